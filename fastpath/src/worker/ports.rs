//! A worker's ports: how frames come and leave by them, and how they are replaced while the worker runs.
//!
//! A worker need not have a port on a side, because an interface may have fewer queues than there are workers. Its frames
//! then leave by another worker, always the same one, so that those of a flow stay in order.

use std::sync::Arc;

use conntrack::{TenantId, Tick};
use crossbeam::channel::Sender;

use super::{Arrival, BATCH_FRAMES, Worker};
use crate::counters::QueueCounters;
use crate::io::{Frame, FrameIo};
use crate::mailbox::{HandedFrame, Notice, Task};
use crate::snapshot::Side;
use crate::verdict::{DropReason, Errand};

/// Frames taken from one port in one turn where tenants compete for the core that receives them: those that come while
/// these are forwarded wait in the NIC's ring.
const CONTENDED_BATCH_FRAMES: usize = 32;

/// One queue of one interface.
#[derive(Debug)]
pub struct Port<I> {
    /// Side of the interface.
    pub side: Side,
    /// Its rings.
    pub io: I,
    /// What is counted for it.
    pub counters: Arc<QueueCounters>,
}

/// What takes the place of a worker's ports on one side.
#[derive(Debug)]
pub struct PortChange<I> {
    /// The side.
    pub side: Side,
    /// Its ports from now on.
    pub ports: Vec<Port<I>>,
    /// The worker that sends for this one if there are none; none while nobody has a port on the side.
    pub sender: Option<u16>,
    /// Frames that the worker keeps from now on.
    pub home_frames: usize,
    /// Where the ports go that it had; receiving them acknowledges the change.
    pub replaced: Sender<Vec<Port<I>>>,
}

/// A frame that could not be sent, and why.
#[derive(Debug)]
pub(super) struct Unsent {
    pub(super) frame: Frame,
    pub(super) reason: DropReason,
}

impl<I> Port<I> {
    /// Makes a port whose counters are zero.
    pub fn new(side: Side, io: I) -> Self {
        Self { side, io, counters: Arc::default() }
    }
}

impl<I: FrameIo> Worker<I> {
    /// Receives from every port, and passes on what came; returns how many frames did.
    pub(super) fn serve_ports(&mut self, now: Tick) -> usize {
        let limit = if self.is_contended { CONTENDED_BATCH_FRAMES } else { BATCH_FRAMES };
        self.is_contended = false;
        (0..self.parts.ports.len()).map(|port| self.serve_port(port, limit, now)).sum()
    }

    fn serve_port(&mut self, port: usize, limit: usize, now: Tick) -> usize {
        let found = self.parts.ports[port].io.receive(&mut self.batch, limit);
        if found > 0 {
            self.parts.ports[port].counters.received.add(found as u64);
            let arrival = Arrival { side: self.parts.ports[port].side, port };
            self.pass_batch(arrival, Errand::NEW, now);
        }
        self.is_contended |= found == limit && self.parts.ports[port].io.note_backlog();
        found
    }

    /// Tells whether tenants compete for what is received on the worker's core, and more may be there than it took.
    pub fn is_contended(&self) -> bool {
        self.is_contended
    }

    /// Sends a frame by one of the ports of a side, always the same for frames of one port, or by the worker that sends
    /// for this one. A forwarded packet is counted for its tenant when a ring took it.
    pub(super) fn transmit(
        &mut self,
        frame: Frame,
        side: Side,
        from_port: usize,
        tenant: Option<TenantId>,
    ) -> Result<(), Unsent> {
        let Some(port) = self.tx_port(side, from_port) else {
            return self.let_transmit(frame, side, tenant);
        };
        let port = &mut self.parts.ports[port];
        let bytes = frame.bytes().len();
        port.io.send(frame).map_err(|frame| Unsent { frame, reason: DropReason::TxRingFull })?;
        port.counters.transmitted.add(1);
        if let Some(tenant) = tenant {
            self.parts.engine.counters.tenant(tenant).forwarded(side, bytes);
        }
        Ok(())
    }

    /// Returns the port that frames from another one leave by on a side, if there is one.
    pub(super) fn tx_port(&self, side: Side, from_port: usize) -> Option<usize> {
        let ports = &self.tx_ports[side.index()];
        Some(ports[from_port.checked_rem(ports.len())?])
    }

    /// Sends a frame of a worker that has no port on its side.
    pub(super) fn transmit_for_another(&mut self, frame: Frame, side: Side, tenant: Option<TenantId>) {
        let sent = if self.tx_ports[side.index()].is_empty() {
            // The port went while the frame was on its way here; it is not passed on again.
            Err(Unsent { frame, reason: DropReason::InterfaceAway })
        } else {
            self.transmit(frame, side, 0, tenant)
        };
        if let Err(Unsent { frame, reason }) = sent {
            if tenant.is_some() {
                self.parts.engine.counters.dropped(side.other(), reason, tenant);
            }
            self.parts.pool.put(frame);
        }
    }

    fn let_transmit(&mut self, frame: Frame, side: Side, tenant: Option<TenantId>) -> Result<(), Unsent> {
        let Some(sender) = self.parts.senders[side.index()] else {
            return Err(Unsent { frame, reason: DropReason::InterfaceAway });
        };
        let handed = HandedFrame { side, frame, tenant, task: Task::Transmit(tenant) };
        self.parts.mailboxes[usize::from(sender)]
            .hand_over(handed)
            .map_err(|HandedFrame { frame, .. }| Unsent { frame, reason: DropReason::HandOverFull })?;
        self.parts.engine.counters.sent_by_others.add(1);
        Ok(())
    }

    /// Exchanges the ports of a side, if the control side asked for it. Sessions stay.
    pub(super) fn exchange_ports(&mut self) {
        if !self.mailbox().take_notice(Notice::NewPorts) {
            return;
        }
        while let Ok(change) = self.parts.port_changes.try_recv() {
            let PortChange { side, ports, sender, home_frames, replaced } = change;
            let (old, kept) = self.parts.ports.drain(..).partition(|port| port.side == side);
            self.parts.ports = kept;
            self.parts.ports.extend(ports);
            self.parts.senders[side.index()] = sender;
            self.home_frames = home_frames;
            self.tx_ports = tx_ports(&self.parts.ports);
            self.have_ports_changed = true;
            // The control side closes them, which takes time. Where it no longer waits, they are closed here.
            let _ = replaced.try_send(old);
        }
    }

    /// Tells once whether the worker's descriptors are others than before.
    pub fn take_port_exchange(&mut self) -> bool {
        std::mem::take(&mut self.have_ports_changed)
    }
}

/// Returns which ports belong to each side.
pub(super) fn tx_ports<I>(ports: &[Port<I>]) -> [Vec<usize>; 2] {
    Side::BOTH.map(|side| (0..ports.len()).filter(|index| ports[*index].side == side).collect())
}
