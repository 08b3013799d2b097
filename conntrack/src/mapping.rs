//! Endpoint-independent mappings (RFC 4787 REQ-1): an outside port for each inside port, as long as it has sessions.

use crate::admit::Admission;
use crate::anchor::{Anchor, Role, mapping_key_outside};
use crate::flow::{FiveTuple, Protocol};
use crate::policy::Filtering;
use crate::session::Session;
use crate::slab::Kind;
use crate::table::Conntrack;
use crate::time::{Tick, TimeoutClass};

impl Conntrack {
    /// Counts a session into its mapping, which is made if there is none, or ends its rest.
    pub(crate) fn join_mapping(
        &mut self,
        admission: &Admission<'_>,
        mapping: Option<u32>,
        outside_tuple: &FiveTuple,
        lender: Option<u16>,
    ) {
        let id = match mapping {
            Some(id) => {
                if self.slab.anchor(id).sessions == 0 {
                    self.expiry.unlink(self.slab.entries_mut(), id, TimeoutClass::Resting);
                }
                id
            }
            None => self.make_mapping(admission, outside_tuple, lender),
        };
        let rests = rests(admission);
        let anchor = self.slab.anchor_mut(id);
        anchor.sessions += 1;
        if let Role::Mapping { rests: mapping_rests, .. } = &mut anchor.role {
            *mapping_rests |= rests;
        }
    }

    fn make_mapping(
        &mut self,
        admission: &Admission<'_>,
        outside_tuple: &FiveTuple,
        lender: Option<u16>,
    ) -> u32 {
        let Admission { tenant, tuple, .. } = *admission;
        let role = Role::Mapping { rests: rests(admission), lender };
        let everybody = outside_tuple.towards_anybody();
        if lender.is_none() {
            self.take_port(tenant, &everybody);
        }
        self.mappings += 1;
        let inside = (tuple.source, tuple.source_port);
        self.put_entry(Kind::Anchor(Anchor::of_port(tenant, role, inside, &everybody)))
    }

    /// Returns the mapping of a session that has one.
    pub(crate) fn mapping_of(&self, session: &Session) -> u32 {
        let outside = (session.outside, session.outside_port);
        self.find_entry(&mapping_key_outside(session.tenant(), session.protocol(), outside))
            .expect("a mapped session has its mapping")
    }

    /// Counts a session out of its mapping; tells whether it was the last. The port then rests, or is free.
    pub(crate) fn leave_mapping(&mut self, session: &Session, now: Tick) -> bool {
        let id = self.mapping_of(session);
        let anchor = self.slab.anchor_mut(id);
        anchor.sessions -= 1;
        if anchor.sessions > 0 {
            return false;
        }
        self.shared.tenant(session.tenant()).end_port();
        match anchor.role {
            Role::Mapping { rests: true, .. } => {
                anchor.tally.freed = now;
                self.expiry.append(self.slab.entries_mut(), id, TimeoutClass::Resting);
            }
            Role::Mapping { rests: false, .. }
            | Role::Pod
            | Role::Peer
            | Role::LentPort { .. }
            | Role::LentMapping { .. } => self.end_mapping(id),
        }
        true
    }

    /// Ends the rest of a port.
    pub(crate) fn end_rest(&mut self, id: u32) {
        self.is_changing = true;
        self.expiry.unlink(self.slab.entries_mut(), id, TimeoutClass::Resting);
        self.end_mapping(id);
        self.is_changing = false;
    }

    fn end_mapping(&mut self, id: u32) {
        let anchor = self.slab.anchor(id).clone();
        self.drop_entry(id);
        self.mappings -= 1;
        let outside_tuple = anchor.outside_tuple();
        if let Role::Mapping { lender: Some(lender), .. } = anchor.role {
            self.return_port(lender, anchor.tenant, outside_tuple, true);
        } else {
            self.free_port(anchor.tenant, &outside_tuple);
        }
    }
}

/// Tells whether the port rests when it is freed (RFC 6888 REQ-8): not where TCP's state tells that the connection is
/// over, nor where filtering keeps out what was sent to the port's last holder (its exceptions A and C).
pub(crate) fn rests(admission: &Admission<'_>) -> bool {
    admission.policy.filtering == Filtering::EndpointIndependent && admission.tuple.protocol != Protocol::Tcp
}
