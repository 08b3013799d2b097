//! Which snapshot the fast path has, and whether it needs another.

use conntrack::Epoch;
use fastpath::snapshot::SnapshotSpec;

/// The snapshot that the fast path took last, and the last epoch that was tried.
#[derive(Debug)]
pub struct Publication {
    taken: SnapshotSpec,
    tried: Epoch,
    settled: bool,
}

impl Publication {
    /// Returns the publication of a first snapshot that the fast path was started with.
    pub fn first(taken: SnapshotSpec) -> Self {
        Self { tried: taken.epoch, taken, settled: true }
    }

    /// Returns the snapshot that the fast path took last.
    pub fn taken(&self) -> &SnapshotSpec {
        &self.taken
    }

    /// Returns the epoch of the newest snapshot that the fast path was given.
    pub fn wanted(&self) -> Epoch {
        self.tried
    }

    /// Returns `next` under a new epoch, if the fast path has to be given it: it differs from what was taken
    /// last, or a snapshot was tried since of which some workers may have heard. Its own epoch does not count.
    pub fn attempt(&mut self, next: SnapshotSpec) -> Option<SnapshotSpec> {
        let epoch = self.taken.epoch;
        if self.settled && (SnapshotSpec { epoch, ..next.clone() }) == self.taken {
            return None;
        }
        self.settled = false;
        self.tried = Epoch(self.tried.0 + 1);
        Some(SnapshotSpec { epoch: self.tried, ..next })
    }

    /// Notes that the fast path took the snapshot that was tried last.
    pub fn settle(&mut self, taken: SnapshotSpec) {
        self.taken = taken;
        self.settled = true;
    }
}

#[cfg(test)]
mod tests {
    use conntrack::Timeouts;
    use fastpath::snapshot::{LinkSpec, TcpPolicy};

    use super::*;

    #[test]
    fn a_snapshot_that_was_not_taken_is_tried_again_under_a_greater_epoch() {
        let mut publication = Publication::first(spec(1, 1500));
        assert_eq!(publication.attempt(spec(0, 1500)), None, "nothing changed");
        assert_eq!(publication.attempt(spec(0, 1400)).unwrap().epoch, Epoch(2));
        let again = publication.attempt(spec(0, 1400)).unwrap();
        assert_eq!((again.epoch, publication.taken().inside.mtu), (Epoch(3), 1500));
        publication.settle(again);
        assert_eq!(publication.taken().inside.mtu, 1400);
        assert_eq!(publication.attempt(spec(0, 1400)), None);
    }

    #[test]
    fn what_was_taken_before_a_failure_is_published_anew() {
        let mut publication = Publication::first(spec(1, 1500));
        assert!(publication.attempt(spec(0, 1400)).is_some());
        let back = publication.attempt(spec(0, 1500)).unwrap();
        assert_eq!((back.epoch, publication.wanted()), (Epoch(3), Epoch(3)));
    }

    fn spec(epoch: u32, mtu: u16) -> SnapshotSpec {
        let link = LinkSpec { mac: macaddr::MacAddr6::nil(), address: [192, 0, 2, 1].into(), mtu };
        SnapshotSpec {
            epoch: Epoch(epoch),
            inside: link,
            outside: link,
            tenants: Vec::new(),
            pod_cidrs: Vec::new(),
            own_addresses: Vec::new(),
            routes: Vec::new(),
            neighbours: Vec::new(),
            timeouts: Timeouts::default(),
            tcp: TcpPolicy::default(),
        }
    }
}
