//! Takes up sessions from their records ([`crate::replication`]), before the first packet.
//!
//! The number of workers may be another than when the session was made: its owner is computed anew. Who owns a block of
//! ports is decided by the first session that is taken up with one of them; what other workers have of the block counts
//! as lent to them ([`crate::lending`]), as if they had asked for it.

use std::time::Duration;

use thiserror::Error;

use crate::Epoch;
use crate::admit::{Admission, FoundPort, Ground, has_ports};
use crate::anchor::{mapping_key_inside, mapping_key_outside, pod_key};
use crate::flow::{Direction, FiveTuple, Key, TenantId};
use crate::lending::Return;
use crate::pairing::owner_of_inside;
use crate::policy::{Mapping, Policy, Quota};
use crate::replication::Record;
use crate::session::SessionId;
use crate::table::{Conntrack, Revision};
use crate::time::{Tick, Timeouts};

/// What takes up a session.
#[derive(Clone, Copy, Debug)]
pub struct Resumption<'a> {
    /// The tenant that has the record's gateway address now.
    pub tenant: TenantId,
    /// The session.
    pub record: &'a Record,
    /// How long ago the record was known to be true.
    pub age: Duration,
    /// Timeouts; the session begins its time anew.
    pub timeouts: &'a Timeouts,
    /// Where its packets go until it is checked under a snapshot, in the caller's terms.
    pub next_hops: [u32; 2],
}

/// Why a session was not taken up. Nothing is changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotRestored {
    /// It would have ended in the meantime.
    #[error("its time is over")]
    Over,
    /// Its egress address is no tenant's.
    #[error("its egress address is no tenant's")]
    NoAddress,
    /// Another session, or a mapping, has its port or its packets.
    #[error("another session has its port or its packets")]
    Taken,
    /// A table is full.
    #[error("a session table is full")]
    Full,
}

/// Takes up a session; `tables` are those of all workers, by number. It is to be checked under the present snapshot
/// before its next packet, as after every change of the snapshot ([`Epoch`] 0).
///
/// # Errors
/// Why it was not taken up.
///
/// # Panics
/// When there is no table.
pub fn restore(tables: &mut [Conntrack], resumption: &Resumption<'_>, now: Tick) -> Result<(), NotRestored> {
    let Resumption { tenant, record, age, timeouts, .. } = *resumption;
    let tuple = record.inside_tuple;
    let class = timeouts.class_of(tuple.protocol, record.tcp, tuple.destination_port);
    if timeouts.of(class) <= age {
        return Err(NotRestored::Over);
    }
    let workers = u16::try_from(tables.len()).expect("there are at most MAX_WORKERS workers");
    let borrower = usize::from(owner_of_inside(tenant, tuple.source, workers));
    let ground = tables[borrower].survey_record(resumption)?;
    let owner = tables[borrower].owner_of_record(record)?.unwrap_or(borrower);
    let outside_tuple = outside_tuple(record);
    let mut lender = None;
    if owner != borrower {
        if ground.mapping.is_none() {
            tables[owner].lend_again(borrower, tenant, record)?;
        }
        lender = u16::try_from(owner).ok();
    } else if has_ports(tuple.protocol)
        && let Some(ports) = tables[owner].shared.ports(outside_tuple.source)
    {
        // Claiming what it owns already changes nothing.
        ports.claim(outside_tuple.source_port, tables[owner].slot().worker);
    }
    tables[borrower].resume(resumption, ground, lender, now);
    Ok(())
}

impl Conntrack {
    /// Finds what a record meets in the table of its pod.
    fn survey_record(&self, resumption: &Resumption<'_>) -> Result<Ground, NotRestored> {
        let Resumption { tenant, record, .. } = *resumption;
        let tuple = record.inside_tuple;
        let (outside, port) = record.outside;
        let key = |direction, tuple: &FiveTuple| Key::new(tenant, direction, tuple);
        let inbound = outside_tuple(record).reversed();
        let is_taken = self.find_entry(&key(Direction::Outbound, &tuple)).is_some()
            || self.find_entry(&key(Direction::Inbound, &inbound)).is_some();
        if is_taken || (record.mapping.is_some() && !has_ports(tuple.protocol)) {
            return Err(NotRestored::Taken);
        }
        let inside = (tuple.source, tuple.source_port);
        let at_inside = self.find_entry(&mapping_key_inside(tenant, tuple.protocol, inside, outside));
        let at_outside = self.find_entry(&mapping_key_outside(tenant, tuple.protocol, (outside, port)));
        // The same entry at both keys, or none at either.
        if record.mapping.is_some() && at_inside != at_outside {
            return Err(NotRestored::Taken);
        }
        if self.slab.room() < 4 {
            return Err(NotRestored::Full); // session, pod, mapping and peer
        }
        let mapping = at_inside.filter(|_| record.mapping.is_some());
        let pod = self.find_entry(&pod_key(tenant, tuple.source));
        Ok(Ground { pod, outside, mapping, new_ports: u32::from(mapping.is_none()) })
    }

    /// Returns the worker that has a record's port already, or must have it.
    fn owner_of_record(&self, record: &Record) -> Result<Option<usize>, NotRestored> {
        let outside_tuple = outside_tuple(record);
        if self.shared.ports(outside_tuple.source).is_none() {
            return Err(NotRestored::NoAddress);
        }
        Ok(self.owner_of_outside(&outside_tuple).map(usize::from))
    }

    /// Notes that another worker has a port of this one.
    fn lend_again(&mut self, borrower: usize, tenant: TenantId, record: &Record) -> Result<(), NotRestored> {
        let borrower = u16::try_from(borrower).expect("there are at most MAX_WORKERS workers");
        let outside_tuple = outside_tuple(record);
        let outside = (outside_tuple.source, outside_tuple.source_port);
        let key = Key::new(tenant, Direction::Inbound, &outside_tuple.reversed());
        let mapping = mapping_key_outside(tenant, outside_tuple.protocol, outside);
        if self.find_entry(&key).is_some() || (self.mappings > 0 && self.find_entry(&mapping).is_some()) {
            return Err(NotRestored::Taken);
        }
        if self.slab.room() == 0 {
            return Err(NotRestored::Full);
        }
        let is_mapping = record.mapping.is_some();
        let outside_tuple = if is_mapping { outside_tuple.towards_anybody() } else { outside_tuple };
        let lender = self.slot.worker;
        self.begin_loan(&Return { lender, borrower, tenant, outside_tuple, is_mapping });
        Ok(())
    }

    fn resume(&mut self, resumption: &Resumption<'_>, ground: Ground, lender: Option<u16>, now: Tick) {
        let Resumption { tenant, record, timeouts, next_hops, .. } = *resumption;
        let policy = Policy {
            mapping: match record.mapping {
                Some(_) => Mapping::EndpointIndependent,
                None => Mapping::AddressAndPortDependent,
            },
            filtering: record.mapping.unwrap_or_default(),
            ..Policy::default()
        };
        let admission = Admission {
            tenant,
            opened_by: Direction::Outbound,
            tuple: record.inside_tuple,
            egress_addresses: &[],
            policy: &policy,
            timeouts,
            loan: None,
            revision: Revision { epoch: Epoch(0), next_hops },
        };
        // What lives is not refused: limits hold for what begins.
        let _ = self.shared.tenant(tenant).begin(&Quota::default(), ground.new_ports, 0);
        let port = FoundPort { port: record.outside.1, lender };
        let id = self.begin(&admission, ground, port, now);
        if self.session(id).tcp_state().is_some_and(|tcp| tcp != record.tcp) {
            self.set_tcp_state(id, record.tcp, timeouts);
        }
        let pod = self.find_entry(&pod_key(tenant, record.inside_tuple.source)).expect("it has just joined");
        self.slab.anchor_mut(pod).tally.begun = 0;
    }

    fn set_tcp_state(&mut self, id: SessionId, tcp: crate::TcpState, timeouts: &Timeouts) {
        let session = self.slab.session_mut(id);
        session.tcp = tcp;
        let class = timeouts.class_of(session.protocol(), tcp, session.remote_port);
        self.classify(id, class);
        self.replicate(id, false);
    }
}

fn outside_tuple(record: &Record) -> FiveTuple {
    let (source, source_port) = record.outside;
    FiveTuple { source, source_port, ..record.inside_tuple }
}
