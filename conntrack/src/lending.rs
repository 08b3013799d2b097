//! Ports that workers lend to each other.
//!
//! A worker that has no port left towards a destination, in its own blocks or in blocks that nobody owns, asks the
//! others in turn: as long as one port of an egress address is free towards a destination, the session is made.
//!
//! ```text
//!   borrower                                   lender (owns the block of the port)
//!   admit → PortElsewhere ── the frame ──────▶ lend: an entry under the reply's key
//!   admit with the loan   ◀── frame, port ────
//!                         ◀── each reply ───── find → Lent(borrower)
//!   the session ends      ──── Return ───────▶ take_back: the port is free
//! ```
//!
//! Protocols without ports have a home worker for each destination, by hash, which lends the one "port" that there is.

use std::net::Ipv4Addr;

use crate::anchor::{Anchor, Role, mapping_key_outside};
use crate::choose::Wanted;
use crate::flow::{Direction, FiveTuple, Key, Protocol, TenantId};
use crate::pairing::mix;
use crate::session::{PortHolder, SessionId};
use crate::slab::Kind;
use crate::table::Conntrack;
use crate::time::Tick;

/// A port that another worker has lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loan {
    /// Egress address.
    pub outside: Ipv4Addr,
    /// The port.
    pub port: u16,
    /// Whether it stands for all destinations.
    pub is_mapping: bool,
}

/// What is asked of a lender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoanRequest {
    /// Tenant.
    pub tenant: TenantId,
    /// The tuple of the session's packets after translation, but for its source port: that is still the inside port.
    pub outside_tuple: FiveTuple,
    /// Whether the port shall stand for all destinations.
    pub is_mapping: bool,
}

/// A port that goes back to the worker that lent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Return {
    /// Worker that lent it.
    pub lender: u16,
    /// Tenant.
    pub tenant: TenantId,
    /// The tuple that it was lent for.
    pub outside_tuple: FiveTuple,
    /// Whether it stood for all destinations.
    pub is_mapping: bool,
}

impl Conntrack {
    /// Lends a port to another worker; none when this one has none either, or no room.
    pub fn lend(&mut self, request: &LoanRequest, borrower: u16) -> Option<Loan> {
        let LoanRequest { tenant, outside_tuple, is_mapping } = *request;
        if self.slab.room() == 0 {
            return None;
        }
        let port = self.free_port_here(&Wanted::new(tenant, &outside_tuple, is_mapping))?;
        let lent = FiveTuple { source_port: port, ..outside_tuple };
        let (role, lent) = match is_mapping {
            true => (Role::LentMapping { borrower }, lent.towards_anybody()),
            false => (Role::LentPort { borrower }, lent),
        };
        self.is_changing = true;
        self.take_port(tenant, &lent);
        self.mappings += u32::from(is_mapping);
        let nobody = (Ipv4Addr::UNSPECIFIED, 0);
        self.put_entry(Kind::Anchor(Anchor::of_port(tenant, role, nobody, &lent)));
        self.is_changing = false;
        Some(Loan { outside: outside_tuple.source, port, is_mapping })
    }

    /// Takes a port back that this worker has lent. One that it has not is ignored.
    pub fn take_back(&mut self, returned: &Return) {
        let Return { tenant, outside_tuple, is_mapping, .. } = *returned;
        let key = match is_mapping {
            true => {
                let outside = (outside_tuple.source, outside_tuple.source_port);
                mapping_key_outside(tenant, outside_tuple.protocol, outside)
            }
            false => Key::new(tenant, Direction::Inbound, &outside_tuple.reversed()),
        };
        if let Some(id) = self.find_entry(&key)
            && self.is_lent(id, None)
        {
            self.end_loan(id);
        }
    }

    /// Returns a port that goes back to its lender; it must be delivered, or put back.
    pub fn next_return(&mut self) -> Option<Return> {
        self.returns.pop()
    }

    /// Keeps a port whose lender could not be told yet.
    pub fn put_back(&mut self, returned: Return) {
        self.returns.push(returned);
    }

    /// Takes back a port that this worker lent when the borrower could not be told.
    pub fn withdraw(&mut self, request: &LoanRequest, loan: &Loan) {
        let LoanRequest { tenant, outside_tuple, is_mapping } = *request;
        let lent = FiveTuple { source_port: loan.port, ..outside_tuple };
        let outside_tuple = if is_mapping { lent.towards_anybody() } else { lent };
        self.take_back(&Return { lender: self.slot.worker, tenant, outside_tuple, is_mapping });
    }

    /// Returns the loan of a frame whose session was not made to its lender.
    pub fn decline(&mut self, request: &LoanRequest, loan: &Loan) {
        let LoanRequest { tenant, outside_tuple, .. } = *request;
        let outside_tuple = FiveTuple { source: loan.outside, source_port: loan.port, ..outside_tuple };
        self.return_port(tenant, outside_tuple, loan.is_mapping);
    }

    /// Ends what was lent to, and borrowed from, a worker that forgot all its sessions; returns how many sessions that
    /// ended.
    pub fn forget_worker(&mut self, worker: u16, now: Tick, mut on_end: impl FnMut(TenantId)) {
        for id in 0..self.capacity() {
            let is_borrowed = match &self.slab.entry(id).kind {
                Kind::Session(session) => {
                    let holder = self.lender_of(&session.outside_tuple());
                    session.port != PortHolder::Session && holder.is_none_or(|holder| holder == worker)
                }
                Kind::Free | Kind::Anchor(_) => false,
            };
            if is_borrowed {
                on_end(self.slab.session(SessionId(id)).tenant);
                self.remove(SessionId(id), now);
            } else if self.is_lent(id, Some(worker)) {
                self.end_loan(id);
            }
        }
        self.returns.retain(|returned| returned.lender != worker);
    }

    /// Returns the worker that a packet from outside belongs to by its destination: the owner of the port's block, or the
    /// home of a destination without ports; none when nobody has the port.
    pub fn owner_of_outside(&self, outside_tuple: &FiveTuple) -> Option<u16> {
        match self.home_of(outside_tuple) {
            Some(home) => Some(home),
            None => self.shared.ports(outside_tuple.source)?.owner(outside_tuple.source_port),
        }
    }

    /// Returns the worker that gives out the one place that a protocol without ports has towards a destination.
    pub(crate) fn home_of(&self, outside_tuple: &FiveTuple) -> Option<u16> {
        let Protocol::Portless(protocol) = outside_tuple.protocol else { return None };
        let ends =
            u64::from(outside_tuple.source.to_bits()) << 32 | u64::from(outside_tuple.destination.to_bits());
        let hash = mix(ends ^ protocol as u64) % u64::from(self.slot.workers);
        // The remainder of a u16 is a u16.
        Some(u16::try_from(hash).unwrap_or(0))
    }

    /// Notes that a borrowed port goes back.
    pub(crate) fn return_port(&mut self, tenant: TenantId, outside_tuple: FiveTuple, is_mapping: bool) {
        if let Some(lender) = self.lender_of(&outside_tuple) {
            self.returns.push(Return { lender, tenant, outside_tuple, is_mapping });
        }
    }

    fn lender_of(&self, outside_tuple: &FiveTuple) -> Option<u16> {
        self.owner_of_outside(outside_tuple)
    }

    /// Tells whether an entry is a port that is lent, to `worker` if one is named.
    fn is_lent(&self, id: u32, worker: Option<u16>) -> bool {
        match &self.slab.entry(id).kind {
            Kind::Anchor(anchor) => match anchor.role {
                Role::LentPort { borrower } | Role::LentMapping { borrower } => {
                    worker.is_none_or(|worker| worker == borrower)
                }
                Role::Pod | Role::Mapping { .. } | Role::Peer => false,
            },
            Kind::Session(_) | Kind::Free => false,
        }
    }

    fn end_loan(&mut self, id: u32) {
        let anchor = self.slab.anchor(id).clone();
        self.is_changing = true;
        self.drop_entry(id);
        self.mappings -= u32::from(matches!(anchor.role, Role::LentMapping { .. }));
        self.free_port(anchor.tenant, &anchor.outside_tuple());
        self.is_changing = false;
    }
}
