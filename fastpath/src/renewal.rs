//! Gives up the sockets of an interface that went away, and opens those of one that came, or whose queues are others
//! than before. Workers and sessions stay.
//!
//! The XDP program comes first and the sockets after, as at the start: what no worker takes is dropped.

use crossbeam::channel::bounded;

use crate::dataplane::{ANSWER_WITHIN, DataPlane, DataPlaneError};
use crate::io::probe::XskProbe;
use crate::io::xsk::{Stranded, XskPort};
use crate::launch::{Queue, open_ports};
use crate::layout::Link;
use crate::mailbox::Notice;
use crate::snapshot::Side;
use crate::steer::{Loss, Steering};
use crate::worker::{Port, PortChange};

/// How an interface is found, beside how its sockets were opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SideState {
    /// As its sockets need it.
    Serving,
    /// There is none of its name.
    Away,
    /// It is there, but the sockets are not open, or were another's: it was removed or moved since.
    Replaced,
    /// Somebody else took the XDP program or what belongs to it.
    Disturbed(Loss),
    /// It has another number of queues.
    Requeued {
        /// Queues that it had.
        from: u32,
        /// Queues that it has.
        to: u32,
    },
}

/// What is kept of a side while its sockets are given up.
#[derive(Debug, Default)]
pub(crate) struct Renewal {
    is_given_up: bool,
    /// Sockets that workers have not given back yet.
    awaited: Vec<Awaited>,
    stranded: Vec<Stranded>,
}

/// Ports that one worker was asked to give up, and the probes of their sockets, in the same order.
#[derive(Debug)]
struct Awaited {
    ports: crossbeam::channel::Receiver<Vec<Port<XskPort>>>,
    probes: Vec<XskProbe>,
}

impl DataPlane {
    /// Looks at an interface.
    pub fn inspect(&self, side: Side) -> SideState {
        let served = self.layout.link(side);
        let Ok(link) = Link::find(&served.name) else { return SideState::Away };
        let mut queues = self.workers.iter().flat_map(|worker| &worker.queues);
        let is_dead = queues.any(|queue| queue.side == side && queue.probe.is_dead());
        if self.renewals[side.index()].is_given_up || link.index != served.index || is_dead {
            SideState::Replaced
        } else if link.queues != served.queues {
            SideState::Requeued { from: served.queues, to: link.queues }
        } else {
            let loss = self.steering[side.index()].loss();
            if loss.any() { SideState::Disturbed(loss) } else { SideState::Serving }
        }
    }

    /// Puts back what somebody else took from a side: attaches the XDP program again, and pins it. Sockets and sessions
    /// stay.
    ///
    /// # Errors
    /// When another XDP program is in the way, or the kernel refuses.
    pub fn put_back(&mut self, side: Side) -> Result<(), DataPlaneError> {
        Ok(self.steering[side.index()].make_good(&self.options.pin_dir)?)
    }

    /// Has the workers give up their ports on a side and closes the sockets. Frames that should leave there are dropped
    /// until [`DataPlane::renew_side`].
    ///
    /// # Errors
    /// When a worker does not answer within a second; its sockets are closed when it does, and nothing can be renewed
    /// before.
    pub fn give_up_side(&mut self, side: Side) -> Result<(), DataPlaneError> {
        if !self.renewals[side.index()].is_given_up {
            self.renewals[side.index()].is_given_up = true;
            for number in 0..self.workers.len() {
                let ports = self.exchange(number, side, Vec::new(), None);
                let worker = &mut self.workers[number];
                let (queues, kept) = worker.queues.drain(..).partition(|queue| queue.side == side);
                worker.queues = kept;
                worker.senders[side.index()] = None;
                let probes = queues.into_iter().map(|queue: Queue| queue.probe).collect();
                self.renewals[side.index()].awaited.push(Awaited { ports, probes });
            }
        }
        self.close_given_up(side)?;
        if matches!(self.inspect(side), SideState::Away) {
            self.bring_home(side);
        }
        Ok(())
    }

    /// Attaches the XDP program of a side to the interface that is there now, opens sockets and gives them to the workers.
    /// The side has to be given up before.
    ///
    /// # Errors
    /// As [`DataPlane::start`]; frames from the side are dropped until it succeeds.
    pub fn renew_side(&mut self, side: Side) -> Result<(), DataPlaneError> {
        self.give_up_side(side)?;
        let link = Link::find(&self.layout.link(side).name)?;
        let mut steering = Steering::load(side, link.queues, &self.newest)?;
        // What somebody else unpinned still is attached, and is taken over by its pin.
        self.steering[side.index()].pin_hooks()?;
        steering.attach(link.index, self.options.attach, &self.options.pin_dir)?;
        steering.count_on(&self.steering[side.index()])?;
        self.steering[side.index()] = steering;
        self.layout.replace_link(side, link);
        let opened = (0..self.workers.len())
            .map(|number| open_ports(&self.layout, number, side, &self.area, &self.steering[side.index()]))
            .collect::<Result<Vec<_>, _>>()?;
        for (number, (ports, queues)) in opened.into_iter().enumerate() {
            let senders = self.layout.senders_of(number);
            // Nothing comes back: the worker has no ports there.
            drop(self.exchange(number, side, ports, senders[side.index()]));
            let worker = &mut self.workers[number];
            worker.queues.extend(queues);
            worker.senders[side.index()] = senders[side.index()];
        }
        self.bring_home(side);
        self.renewals[side.index()].is_given_up = false;
        Ok(())
    }

    /// Returns how many queues of an interface the workers serve.
    pub fn queues(&self, side: Side) -> u32 {
        self.layout.link(side).queues
    }

    /// Has one worker tell the neighbours on a side again who answers for what: they may have forgotten, or never
    /// known, as the interface is new.
    pub fn announce(&self, side: Side) {
        if let Some(worker) = self.workers.first() {
            worker.mailbox.note(Notice::Announce(side));
        }
    }

    /// Gives a worker other ports; returns where those come that it had.
    fn exchange(
        &self,
        number: usize,
        side: Side,
        ports: Vec<Port<XskPort>>,
        sender: Option<u16>,
    ) -> crossbeam::channel::Receiver<Vec<Port<XskPort>>> {
        let (replaced, given_back) = bounded(1);
        let home_frames = self.layout.home_frames(number);
        let worker = &self.workers[number];
        let change = PortChange { side, ports, sender, home_frames, replaced };
        let sent = worker.port_changes.try_send(change);
        debug_assert!(sent.is_ok(), "a change is awaited before the next");
        worker.mailbox.note(Notice::NewPorts);
        given_back
    }

    /// Closes the sockets that workers give back.
    fn close_given_up(&mut self, side: Side) -> Result<(), DataPlaneError> {
        let deadline = std::time::Instant::now() + ANSWER_WITHIN;
        let renewal = &mut self.renewals[side.index()];
        for Awaited { ports, probes } in std::mem::take(&mut renewal.awaited) {
            match ports.recv_deadline(deadline) {
                Ok(given_back) => {
                    let closed = given_back.into_iter().zip(probes).map(|(port, probe)| port.io.close(probe));
                    renewal.stranded.extend(closed);
                }
                Err(_) => renewal.awaited.push(Awaited { ports, probes }),
            }
        }
        match renewal.awaited.len() {
            0 => Ok(()),
            missing => Err(DataPlaneError::NotGivenUp { missing, workers: self.workers.len(), side }),
        }
    }

    /// Gives the frames that were in the rings of closed sockets to whoever needs them.
    fn bring_home(&mut self, side: Side) {
        for stranded in self.renewals[side.index()].stranded.drain(..) {
            for frame in stranded.into_frames() {
                let pushed = self.commons.push(frame);
                debug_assert!(pushed.is_ok(), "the commons have room for every frame");
            }
        }
    }
}
