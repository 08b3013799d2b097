//! Endpoint-independent mappings (RFC 4787 REQ-1): an outside port for each inside port, as long as it has sessions.

use crate::admit::Admission;
use crate::anchor::{Anchor, Role, mapping_key_inside, mapping_key_outside};
use crate::flow::{Direction, FiveTuple, Protocol};
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
    ) {
        let id = match mapping {
            Some(id) => {
                if self.slab.anchor(id).sessions == 0 {
                    self.expiry.unlink(self.slab.entries_mut(), id, TimeoutClass::Resting);
                }
                id
            }
            None => self.make_mapping(admission, outside_tuple),
        };
        let rests = rests(admission);
        let anchor = self.slab.anchor_mut(id);
        anchor.sessions += 1;
        if let Role::Mapping { rests: mapping_rests, .. } = &mut anchor.role {
            *mapping_rests |= rests;
        }
    }

    /// Returns the mapping that new sessions of an inside port use.
    pub(crate) fn current_mapping(&self, admission: &Admission<'_>) -> Option<u32> {
        let Admission { tenant, tuple, .. } = *admission;
        self.find_entry(&mapping_key_inside(tenant, tuple.protocol, (tuple.source, tuple.source_port)))
    }

    /// Makes a mapping. One by an egress address that the pod no longer has stays for its sessions only.
    fn make_mapping(&mut self, admission: &Admission<'_>, outside_tuple: &FiveTuple) -> u32 {
        let Admission { tenant, tuple, loan, .. } = *admission;
        if let Some(former) = self.current_mapping(admission) {
            self.drop_key(former, Direction::Outbound);
            if let Role::Mapping { is_current, .. } = &mut self.slab.anchor_mut(former).role {
                *is_current = false;
            }
        }
        let role = Role::Mapping { rests: rests(admission), is_borrowed: loan.is_some(), is_current: true };
        let everybody = outside_tuple.towards_anybody();
        if loan.is_none() {
            self.take_port(tenant, &everybody);
        }
        self.mappings += 1;
        let inside = (tuple.source, tuple.source_port);
        self.put_entry(Kind::Anchor(Anchor::of_port(tenant, role, inside, &everybody)))
    }

    /// Counts a session out of its mapping; tells whether it was the last. The port then rests, or is free.
    pub(crate) fn leave_mapping(&mut self, session: &Session, now: Tick) -> bool {
        let outside = (session.outside, session.outside_port);
        let id = self
            .find_entry(&mapping_key_outside(session.tenant, session.protocol, outside))
            .expect("a mapped session has its mapping");
        let anchor = self.slab.anchor_mut(id);
        anchor.sessions -= 1;
        if anchor.sessions > 0 {
            return false;
        }
        self.shared.tenant(session.tenant).end_port();
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
        if matches!(anchor.role, Role::Mapping { is_borrowed: true, .. }) {
            self.return_port(anchor.tenant, outside_tuple, true);
        } else {
            self.free_port(anchor.tenant, &outside_tuple);
        }
    }
}

/// Tells whether the port rests when it is freed (RFC 6888 REQ-8): not where TCP's state tells that the connection is
/// over, nor where filtering keeps out what was sent to the port's last holder (its exceptions A and C).
fn rests(admission: &Admission<'_>) -> bool {
    admission.policy.filtering == Filtering::EndpointIndependent && admission.tuple.protocol != Protocol::Tcp
}
