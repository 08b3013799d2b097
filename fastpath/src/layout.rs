//! Which worker serves which queues on which core, and who sends for whom.
//!
//! Queue `q` of a side is served by worker `q % workers`. On a side with fewer queues than workers, the frames of those
//! that have none are sent by those that have one, spread by the worker's number.

use std::collections::HashSet;
use std::io;

use conntrack::blocks::MAX_WORKERS;
use core_affinity::CoreId;
use nix::net::if_::if_nametoindex;

use crate::dataplane::{DataPlaneError, DataPlaneOptions};
use crate::io::ethtool::rx_queues;
use crate::io::xsk::RING_FRAMES;
use crate::placement::{Placement, SchedulerPolicy};
use crate::snapshot::Side;

/// Frames for each queue: what its fill and tx rings hold, and as many again in hand.
const FRAMES_PER_QUEUE: usize = 3 * RING_FRAMES;

/// Frames for each worker beside those of its queues, of which it may have none: for answers, announcements and
/// fragments.
const FRAMES_PER_WORKER: usize = 512;

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) queues: u32,
}

impl Link {
    /// Looks for an interface.
    ///
    /// # Errors
    /// When it is not there.
    pub(crate) fn find(name: &str) -> Result<Self, DataPlaneError> {
        let missing = |source: io::Error| DataPlaneError::Interface { interface: name.to_owned(), source };
        let index = if_nametoindex(name).map_err(|error| missing(error.into()))?;
        Ok(Self { name: name.to_owned(), index, queues: rx_queues(name).map_err(missing)? })
    }
}

/// Which worker runs where.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) links: [Link; 2],
    pub(crate) cores: Vec<Option<CoreId>>,
    /// Frames that there are for each side; they were counted when the process started.
    frames: [usize; 2],
}

impl Layout {
    /// Looks at the interfaces and cores and decides.
    pub(crate) fn plan(options: &DataPlaneOptions) -> Result<Self, DataPlaneError> {
        let links = [Link::find(&options.inside)?, Link::find(&options.outside)?];
        let most = usize::from(MAX_WORKERS);
        let queues = links.iter().map(|link| link.queues as usize).min().expect("there are two sides");
        let workers = options.workers.unwrap_or(queues.min(most));
        if !(1..=most).contains(&workers) {
            return Err(DataPlaneError::Workers { wanted: workers, most });
        }
        let cores = choose_cores(&options.cores, workers)?;
        let frames = [0, 1].map(|side: usize| links[side].queues as usize * FRAMES_PER_QUEUE);
        Ok(Self { links, cores, frames })
    }

    /// Returns where a worker runs. Where some have no core of their own, none goes before the others.
    pub(crate) fn placement_of(&self, worker: usize, policy: SchedulerPolicy) -> Placement {
        let own: HashSet<_> = self.cores.iter().flatten().map(|core| core.id).collect();
        let policy = if own.len() == self.workers() { policy } else { SchedulerPolicy::Other };
        Placement { core: self.cores[worker], policy }
    }

    /// Returns the number of workers.
    pub(crate) fn workers(&self) -> usize {
        self.cores.len()
    }

    /// Returns the queues of a side that a worker serves: every `workers`th.
    pub(crate) fn queues_of(&self, worker: usize, side: Side) -> impl Iterator<Item = u32> {
        let workers = self.workers();
        (0..self.link(side).queues).filter(move |queue| *queue as usize % workers == worker)
    }

    /// Returns who sends a worker's frames on each side: itself where it has a queue.
    pub(crate) fn senders_of(&self, worker: usize) -> [Option<u16>; 2] {
        Side::BOTH.map(|side| {
            let counts: Vec<_> =
                (0..self.workers()).map(|worker| self.queues_of(worker, side).count()).collect();
            sender_for(worker, &counts)
        })
    }

    /// Returns the interface of a side.
    pub(crate) fn link(&self, side: Side) -> &Link {
        &self.links[side.index()]
    }

    /// Puts another interface in the place of that of a side. The frames stay those that there are.
    pub(crate) fn replace_link(&mut self, side: Side, link: Link) {
        self.links[side.index()] = link;
    }

    /// Returns the number of frames of all workers.
    pub(crate) fn total_frames(&self) -> usize {
        self.frames.iter().sum::<usize>() + self.workers() * FRAMES_PER_WORKER
    }

    /// Returns how many frames a worker keeps: its share for each queue, and some of its own.
    pub(crate) fn home_frames(&self, worker: usize) -> usize {
        let of_side = |side: Side| self.queues_of(worker, side).count() * self.frames_of_queue(side);
        Side::BOTH.into_iter().map(of_side).sum::<usize>() + FRAMES_PER_WORKER
    }

    /// Returns how many frames a queue of a side may have to receive into: fewer than its ring holds only where there
    /// are more queues than when the process started.
    pub(crate) fn fill_frames(&self, side: Side) -> usize {
        self.frames_of_queue(side) / 3
    }

    fn frames_of_queue(&self, side: Side) -> usize {
        (self.frames[side.index()] / self.link(side).queues as usize).min(FRAMES_PER_QUEUE)
    }
}

/// Returns who sends for a worker on a side where each worker has so many queues: itself if it has any, else those that
/// have some in turn.
pub(crate) fn sender_for(worker: usize, queues: &[usize]) -> Option<u16> {
    let narrow = |worker| u16::try_from(worker).expect("there are at most MAX_WORKERS workers");
    if queues[worker] > 0 {
        return Some(narrow(worker));
    }
    let able: Vec<_> = (0..queues.len()).filter(|other| queues[*other] > 0).collect();
    (!able.is_empty()).then(|| narrow(able[worker % able.len()]))
}

/// Returns a core for each worker: those that were asked for, in order and from the start again when they are
/// fewer; else the first ones that there are. A machine with fewer cores than workers pins only the first workers.
fn choose_cores(wanted: &[usize], workers: usize) -> Result<Vec<Option<CoreId>>, DataPlaneError> {
    let available = core_affinity::get_core_ids().unwrap_or_default();
    let find = |core: usize| {
        available.iter().find(|id| id.id == core).copied().ok_or_else(|| DataPlaneError::Core {
            core,
            available: available.iter().map(|id| id.id).collect(),
        })
    };
    let wanted = wanted.iter().map(|core| find(*core)).collect::<Result<Vec<_>, _>>()?;
    Ok((0..workers)
        .map(|worker| {
            if wanted.is_empty() {
                available.get(worker).copied()
            } else {
                Some(wanted[worker % wanted.len()])
            }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(workers: usize, queues: [u32; 2]) -> Layout {
        let link = |queues| Link { name: "eth0".to_owned(), index: 1, queues };
        Layout {
            links: queues.map(link),
            cores: vec![None; workers],
            frames: queues.map(|queues| queues as usize * FRAMES_PER_QUEUE),
        }
    }

    #[test]
    fn every_queue_has_one_worker_and_every_worker_a_sender_on_both_sides() {
        for (workers, queues) in
            [(1, [4, 1]), (4, [1, 4]), (3, [4, 2]), (4, [2, 2]), (8, [3, 16]), (64, [1, 1])]
        {
            let layout = layout(workers, queues);
            for side in Side::BOTH {
                let mut served: Vec<_> =
                    (0..workers).flat_map(|worker| layout.queues_of(worker, side)).collect();
                served.sort_unstable();
                assert_eq!(served, (0..layout.link(side).queues).collect::<Vec<_>>());
                for worker in 0..workers {
                    let sender = usize::from(layout.senders_of(worker)[side.index()].unwrap());
                    assert!(layout.queues_of(sender, side).count() > 0, "{worker} of {workers} {queues:?}");
                }
            }
            let home: usize = (0..workers).map(|worker| layout.home_frames(worker)).sum();
            assert_eq!(home, layout.total_frames());
        }
    }

    #[test]
    fn workers_without_a_queue_are_spread_over_those_with_one() {
        let layout = layout(7, [3, 1]);
        let senders: Vec<_> = (0..7).map(|worker| layout.senders_of(worker)[0].unwrap()).collect();
        assert_eq!(senders, [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(sender_for(0, &[0, 0]), None, "nobody has a queue");
    }

    #[test]
    fn workers_go_before_others_only_where_each_has_a_core_of_its_own() {
        let policy_of = |cores: &[Option<usize>]| {
            let cores = cores.iter().map(|core| core.map(|id| CoreId { id })).collect();
            Layout { cores, ..layout(0, [1, 1]) }.placement_of(0, SchedulerPolicy::Fifo).policy
        };
        assert_eq!(policy_of(&[Some(0), Some(1)]), SchedulerPolicy::Fifo);
        assert_eq!(policy_of(&[Some(1), Some(1)]), SchedulerPolicy::Other);
        assert_eq!(policy_of(&[Some(0), None]), SchedulerPolicy::Other);
    }

    #[test]
    fn queues_that_come_later_share_the_frames_that_there_are() {
        let mut layout = layout(2, [1, 1]);
        let before = layout.total_frames();
        layout.replace_link(Side::Inside, Link { queues: 8, ..layout.links[0].clone() });
        assert!(8 * 3 * layout.fill_frames(Side::Inside) <= FRAMES_PER_QUEUE);
        assert_eq!(layout.fill_frames(Side::Outside), RING_FRAMES);
        let home: usize = (0..2).map(|worker| layout.home_frames(worker)).sum();
        assert!(home <= before && layout.total_frames() == before);
    }
}
