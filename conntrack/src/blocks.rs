//! Who owns which block of outside ports of one egress address, and how many pods have it.
//!
//! Workers lease the ports of an egress address in blocks of 64 and return a block with its last session, so that one
//! worker may have them all while the others are idle, and the worker of a reply is known from its destination port.
//! This table, and the counts of [`crate::shared`], are all that workers share and change.

use std::sync::atomic::{AtomicU32, Ordering};

/// Ports in one block.
pub const BLOCK_PORTS: u16 = 64;

/// Blocks of one egress address.
pub const BLOCKS: u16 = 1024;

/// The most workers that can share an egress address.
pub const MAX_WORKERS: u16 = 64;

const COUNT_BITS: u32 = 24;
const COUNT_MASK: u32 = (1 << COUNT_BITS) - 1;

/// The blocks of one egress address.
///
/// A block's word holds its owner, plus one, above the number of sessions that use its ports. Whoever finds a free
/// block may claim it by compare-and-swap; after that only the owner writes the word, until it writes zero.
#[derive(Debug)]
pub struct EgressPorts {
    words: [AtomicU32; BLOCKS as usize],
    owned: [AtomicU32; MAX_WORKERS as usize],
    /// Pods of all workers that are paired with the address.
    pods: AtomicU32,
}

impl Default for EgressPorts {
    fn default() -> Self {
        Self {
            words: std::array::from_fn(|_| AtomicU32::new(0)),
            owned: std::array::from_fn(|_| AtomicU32::new(0)),
            pods: AtomicU32::new(0),
        }
    }
}

impl EgressPorts {
    /// Returns the worker that owns a port.
    pub fn owner(&self, port: u16) -> Option<u16> {
        owner_of(self.word(port).load(Ordering::Acquire))
    }

    /// Returns how many blocks a worker owns.
    pub fn blocks_of(&self, worker: u16) -> u32 {
        self.owned[usize::from(worker)].load(Ordering::Relaxed)
    }

    /// Returns how many blocks are owned, by any worker.
    pub fn blocks_owned(&self) -> u32 {
        self.owned.iter().map(|owned| owned.load(Ordering::Relaxed)).sum()
    }

    /// Returns how many pods are paired with the address.
    pub fn pods(&self) -> u32 {
        self.pods.load(Ordering::Relaxed)
    }

    /// Tells whether nobody owns any port and no pod is paired with the address.
    pub fn is_free(&self) -> bool {
        self.pods() == 0 && self.words.iter().all(|word| word.load(Ordering::Acquire) == 0)
    }

    /// Counts a pod that is paired with the address.
    pub(crate) fn add_pod(&self) {
        self.pods.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a pod out that was paired with the address.
    pub(crate) fn remove_pod(&self) {
        // One that was never counted, because no snapshot had the address, changes nothing.
        let _ = self.pods.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |pods| pods.checked_sub(1));
    }

    /// Claims the block of a port for a worker; tells whether it was free.
    pub(crate) fn claim(&self, port: u16, worker: u16) -> bool {
        let mine = (u32::from(worker) + 1) << COUNT_BITS;
        let word = self.word(port);
        // A block that is owned, as all are when one is looked for in vain, costs no locked instruction.
        let is_claimed = word.load(Ordering::Relaxed) == 0
            && word.compare_exchange(0, mine, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if is_claimed {
            self.add_owned(worker, 1);
        }
        is_claimed
    }

    /// Returns how many sessions and mappings use the ports of a port's block.
    pub(crate) fn uses_of_block(&self, port: u16) -> u32 {
        self.word(port).load(Ordering::Relaxed) & COUNT_MASK
    }

    /// Tells whether the count of a port's block cannot hold another session.
    pub(crate) fn is_exhausted(&self, port: u16) -> bool {
        self.uses_of_block(port) == COUNT_MASK
    }

    /// Notes a session that uses a port of `worker`, its owner.
    pub(crate) fn take(&self, port: u16, worker: u16) {
        let word = self.word(port);
        let before = word.load(Ordering::Relaxed);
        debug_assert_eq!(owner_of(before), Some(worker), "only the owner hands out port {port}");
        word.store(before + 1, Ordering::Relaxed);
    }

    /// Notes that a session of `worker`, the owner, left a port; tells whether the block was returned with it.
    pub(crate) fn give_back(&self, port: u16, worker: u16) -> bool {
        let word = self.word(port);
        let before = word.load(Ordering::Relaxed);
        debug_assert_eq!(owner_of(before), Some(worker), "only the owner takes port {port} back");
        let is_last = before & COUNT_MASK <= 1;
        if is_last {
            self.add_owned(worker, u32::MAX);
        }
        word.store(if is_last { 0 } else { before - 1 }, Ordering::Release);
        is_last
    }

    /// Returns all blocks of a worker that has lost its sessions, and shows the first port of each.
    pub(crate) fn give_back_all(&self, worker: u16, mut on_return: impl FnMut(u16)) {
        for (block, word) in (0..BLOCKS).zip(&self.words) {
            if owner_of(word.load(Ordering::Relaxed)) == Some(worker) {
                word.store(0, Ordering::Release);
                on_return(block * BLOCK_PORTS);
            }
        }
        self.owned[usize::from(worker)].store(0, Ordering::Relaxed);
    }

    fn word(&self, port: u16) -> &AtomicU32 {
        &self.words[usize::from(port / BLOCK_PORTS)]
    }

    /// Counts blocks of a worker; only the worker itself does.
    fn add_owned(&self, worker: u16, change: u32) {
        let owned = &self.owned[usize::from(worker)];
        owned.store(owned.load(Ordering::Relaxed).wrapping_add(change), Ordering::Relaxed);
    }
}

fn owner_of(word: u32) -> Option<u16> {
    // The owner is in the 8 bits above the count.
    u16::try_from(word >> COUNT_BITS).ok()?.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn a_block_is_claimed_once_and_returned_with_its_last_session() {
        let ports = EgressPorts::default();
        assert_eq!(ports.owner(5000), None);
        assert!(ports.claim(5000, 3));
        assert!(!ports.claim(5001, 4), "5001 is in the same block");
        ports.take(5000, 3);
        ports.take(5001, 3);
        assert_eq!((ports.owner(4992), ports.blocks_of(3)), (Some(3), 1));
        assert!(!ports.give_back(5000, 3));
        assert!(ports.give_back(5001, 3));
        assert!(ports.is_free() && ports.blocks_of(3) == 0);
        assert!(ports.claim(5001, 4));
    }

    #[test]
    fn a_worker_that_lost_its_sessions_returns_its_blocks_only() {
        let ports = EgressPorts::default();
        for (port, worker) in [(0, 1), (64, 2), (65_535, 1)] {
            assert!(ports.claim(port, worker));
            ports.take(port, worker);
        }
        let mut returned = Vec::new();
        ports.give_back_all(1, |port| returned.push(port));
        assert_eq!(returned, [0, 65_472]);
        assert_eq!([0, 64, 65_535].map(|port| ports.owner(port)), [None, Some(2), None]);
    }

    #[test]
    fn threads_never_own_a_block_together() {
        let ports = EgressPorts::default();
        let holders: [AtomicU64; 16] = std::array::from_fn(|_| AtomicU64::new(0));
        std::thread::scope(|scope| {
            for worker in 0..4u16 {
                let (ports, holders) = (&ports, &holders);
                scope.spawn(move || {
                    for round in 0..20_000 {
                        let block = (round % 16 * 7 + worker * 3) % 16;
                        if ports.claim(block * BLOCK_PORTS, worker) {
                            let holder = &holders[usize::from(block)];
                            assert_eq!(holder.swap(u64::from(worker) + 1, Ordering::AcqRel), 0);
                            ports.take(block * BLOCK_PORTS, worker);
                            assert_eq!(holder.swap(0, Ordering::AcqRel), u64::from(worker) + 1);
                            assert!(ports.give_back(block * BLOCK_PORTS, worker));
                        }
                    }
                });
            }
        });
        assert!(ports.is_free());
    }
}
