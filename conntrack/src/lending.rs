//! Ports that workers lend to each other.
//!
//! A worker that has no port left towards a destination, in its own blocks or in blocks that nobody owns, asks the
//! others in turn: as long as one port of an egress address is free towards a destination, the session is made.
//!
//! ```text
//!   borrower                                   lender (owns the block of the port)
//!   admit → PortElsewhere ── the frame ──────▶ lend: an entry under the reply's key
//!   admit with the loan   ◀── frame, loan ────
//!                         ◀── each reply ───── find → Lent(borrower)
//!   the session ends      ──── Return ───────▶ take_back: the port is free
//! ```
//!
//! Protocols without ports have a home worker for each destination, by hash, which lends the one "port" that there is.
//!
//! A worker that loses its sessions begins a new life: what it lent and borrowed in an old one counts for nothing, also
//! if it is still under way. The others end it when they are told, before they lend to or borrow from the new life.

use std::net::Ipv4Addr;

use crate::anchor::{Anchor, Role, mapping_key_outside};
use crate::choose::Wanted;
use crate::flow::{Direction, FiveTuple, Key, Protocol, TenantId};
use crate::pairing::mix;
use crate::session::{PortHolder, Session, SessionId};
use crate::slab::Kind;
use crate::table::Conntrack;
use crate::time::Tick;

/// A worker that lends or borrows, in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Party {
    /// Number of the worker.
    pub worker: u16,
    /// How often it had forgotten its sessions before.
    pub life: u32,
}

/// A port that another worker has lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loan {
    /// What was asked for.
    pub request: LoanRequest,
    /// Who lent it.
    pub lender: Party,
    /// The port.
    pub port: u16,
}

/// What is asked of a lender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoanRequest {
    /// Who asks.
    pub borrower: Party,
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
    /// Worker that had it.
    pub borrower: u16,
    /// Tenant.
    pub tenant: TenantId,
    /// The tuple that it was lent for.
    pub outside_tuple: FiveTuple,
    /// Whether it stood for all destinations.
    pub is_mapping: bool,
}

impl Loan {
    /// Returns the port as it goes back.
    fn returned(&self) -> Return {
        let LoanRequest { borrower, tenant, outside_tuple, is_mapping } = self.request;
        let lent = FiveTuple { source_port: self.port, ..outside_tuple };
        let outside_tuple = if is_mapping { lent.towards_anybody() } else { lent };
        let (lender, borrower) = (self.lender.worker, borrower.worker);
        Return { lender, borrower, tenant, outside_tuple, is_mapping }
    }
}

impl Return {
    /// Returns the key that the port is found by, at the lender and at the borrower.
    fn key(&self) -> Key {
        let outside_tuple = self.outside_tuple;
        if self.is_mapping {
            let outside = (outside_tuple.source, outside_tuple.source_port);
            mapping_key_outside(self.tenant, outside_tuple.protocol, outside)
        } else {
            Key::new(self.tenant, Direction::Inbound, &outside_tuple.reversed())
        }
    }
}

impl Conntrack {
    /// Lends a port to another worker; none when this one has none either, or no room for the tenant.
    ///
    /// A borrower cannot see which destinations a port serves here. While sessions from before the tenant's mapping
    /// changed share the port's block, it is not lent as a mapping, whose later sessions could meet them (RFC 4787 REQ-3).
    pub fn lend(&mut self, request: &LoanRequest) -> Option<Loan> {
        let LoanRequest { borrower, tenant, is_mapping, .. } = *request;
        if self.check_share(tenant, 1).is_err() || !self.is_alive(borrower) {
            return None;
        }
        let wanted = Wanted::new(request);
        let port = self.free_port_here(&wanted)?;
        if is_mapping && !self.has_mappings_only(&wanted, port) {
            return None;
        }
        let loan = Loan { request: *request, lender: self.party(), port };
        self.begin_loan(&loan.returned());
        Some(loan)
    }

    /// Notes what is lent, by what will come back.
    pub(crate) fn begin_loan(&mut self, lent: &Return) {
        let Return { borrower, tenant, outside_tuple, is_mapping, .. } = *lent;
        let role = if is_mapping { Role::LentMapping { borrower } } else { Role::LentPort { borrower } };
        self.is_changing = true;
        self.take_port(tenant, &outside_tuple);
        self.mappings += u32::from(is_mapping);
        let nobody = (Ipv4Addr::UNSPECIFIED, 0);
        self.put_entry(Kind::Anchor(Anchor::of_port(tenant, role, nobody, &outside_tuple)));
        self.is_changing = false;
    }

    /// Takes a port back that this worker has lent. One that it has not is ignored.
    pub fn take_back(&mut self, returned: &Return) {
        if let Some(id) = self.find_entry(&returned.key())
            && self.is_lent(id, returned.borrower)
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
    pub fn withdraw(&mut self, loan: &Loan) {
        self.take_back(&loan.returned());
    }

    /// Gives a loan back to its lender unless a session was made with it.
    pub fn settle_loan(&mut self, loan: &Loan) {
        let returned = loan.returned();
        if self.is_valid(loan) && self.find_entry(&returned.key()).is_none() {
            self.returns.push(returned);
        }
    }

    /// Ends what was lent to, and borrowed from, a worker that forgot all its sessions, and shows the tenant of each
    /// session that it ends.
    pub fn forget_worker(&mut self, worker: u16, now: Tick, mut on_end: impl FnMut(TenantId)) {
        for id in self.slab.ids() {
            if self.is_lent(id, worker) {
                self.end_loan(id);
            } else if let Kind::Session(session) = &self.slab.entry(id).kind
                && self.lender_of(session) == Some(worker)
            {
                on_end(session.tenant());
                self.remove(SessionId(id), now);
            }
        }
        for id in self.slab.ids() {
            if self.is_borrowed_mapping(id, worker) {
                self.end_rest(id);
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

    /// Returns this worker in its present life.
    pub fn party(&self) -> Party {
        let worker = self.slot.worker;
        Party { worker, life: self.shared.life_of(worker) }
    }

    /// Tells whether a loan is good: neither its lender nor this worker has forgotten it.
    pub(crate) fn is_valid(&self, loan: &Loan) -> bool {
        loan.request.borrower == self.party() && self.is_alive(loan.lender)
    }

    fn is_alive(&self, party: Party) -> bool {
        self.shared.life_of(party.worker) == party.life
    }

    /// Notes that a borrowed port goes back.
    pub(crate) fn return_port(
        &mut self,
        lender: u16,
        tenant: TenantId,
        outside_tuple: FiveTuple,
        is_mapping: bool,
    ) {
        let borrower = self.slot.worker;
        self.returns.push(Return { lender, borrower, tenant, outside_tuple, is_mapping });
    }

    /// Returns the worker that has lent the port of a session.
    fn lender_of(&self, session: &Session) -> Option<u16> {
        match session.port {
            PortHolder::Session => None,
            PortHolder::Lender(lender) => Some(lender),
            PortHolder::Mapping { .. } => match self.slab.anchor(self.mapping_of(session)).role {
                Role::Mapping { lender, .. } => lender,
                Role::Pod | Role::Peer | Role::LentPort { .. } | Role::LentMapping { .. } => None,
            },
        }
    }

    /// Tells whether an entry is a port that is lent to `worker`.
    fn is_lent(&self, id: u32, worker: u16) -> bool {
        match &self.slab.entry(id).kind {
            Kind::Anchor(anchor) => match anchor.role {
                Role::LentPort { borrower } | Role::LentMapping { borrower } => borrower == worker,
                Role::Pod | Role::Mapping { .. } | Role::Peer => false,
            },
            Kind::Session(_) | Kind::Free => false,
        }
    }

    /// Tells whether an entry is a mapping whose port `worker` has lent.
    fn is_borrowed_mapping(&self, id: u32, worker: u16) -> bool {
        match &self.slab.entry(id).kind {
            Kind::Anchor(anchor) => match anchor.role {
                Role::Mapping { lender, .. } => lender == Some(worker),
                Role::Pod | Role::Peer | Role::LentPort { .. } | Role::LentMapping { .. } => false,
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
