//! What a worker does with fragments: lets those go that waited for their first, and makes some of packets
//! that are too large.

use conntrack::{TenantId, Tick};

use super::ports::Unsent;
use super::{Arrival, Worker};
use crate::fragments::FreedFrame;
use crate::io::{Frame, FrameIo};
use crate::snapshot::Side;
use crate::split::Cut;
use crate::tap::Occasion;
use crate::verdict::{DatagramErrand, DropReason, Errand, Lending};

/// Datagrams that are given up in one turn.
const DATAGRAMS_EXPIRED_PER_TURN: usize = 64;

impl<I: FrameIo> Worker<I> {
    /// Processes fragments whose ports were found, in order of arrival, and drops those whose will not be.
    pub(super) fn settle_freed(&mut self, port: usize, now: Tick) {
        while let Some(freed) = self.parts.engine.fragments.take_freed() {
            let FreedFrame { frame, side, tenant, fate } = freed;
            match fate {
                Ok(head) => {
                    // From outside only what may come from there was held.
                    let has_turned = side == Side::Outside;
                    let errand =
                        Errand { datagram: DatagramErrand::Resolved(head), has_turned, ..Errand::NEW };
                    // In the batch it is found after a panic.
                    self.batch.push_front(frame);
                    let frame = self.batch.front_mut().expect("it was put there");
                    let occasion = Occasion { side, is_first: false, is_counted: false, now };
                    let outcome =
                        self.taps.watch(&mut self.parts.engine, frame, occasion, |engine, frame| {
                            engine.process(frame, side, errand, now)
                        });
                    let frame = self.batch.pop_front().expect("it was put there");
                    self.settle(frame, outcome, Arrival { side, port }, now);
                }
                Err(reason) => {
                    self.parts.engine.counters.dropped(side, reason, Some(tenant));
                    self.parts.pool.put(frame);
                }
            }
        }
    }

    /// Gives up datagrams that did not become whole in time.
    pub(super) fn expire_fragments(&mut self, now: Tick) {
        let expired = self.parts.engine.fragments.expire(now, DATAGRAMS_EXPIRED_PER_TURN);
        self.has_more |= expired == DATAGRAMS_EXPIRED_PER_TURN;
        self.settle_freed(0, now);
    }

    /// Drops all fragments that wait, after a panic.
    pub(super) fn forget_fragments(&mut self) {
        let engine = &mut self.parts.engine;
        for frame in engine.fragments.forget_all(engine.conntrack.slot()) {
            engine.counters.lost();
            self.parts.pool.put(frame);
        }
    }

    /// Tells whether a frame may be handed over to a worker. Fragments, and frames whose session needs a port of
    /// another worker, leave room for the rest.
    pub(super) fn may_hand_over(&self, worker: u16, tenant: Option<TenantId>, errand: Errand) -> bool {
        let is_whole = errand.datagram == DatagramErrand::Unknown;
        let asks = matches!(errand.lending, Lending::Asked(_));
        is_whole && !asks || self.parts.mailboxes[usize::from(worker)].has_room_to_spare(tenant)
    }

    /// Sends a rewritten packet in fragments, in order (RFC 4787 REQ-13a). Each that cannot be sent is a
    /// drop.
    #[cold]
    pub(super) fn send_in_fragments(
        &mut self,
        packet: Frame,
        side: Side,
        tenant: Option<TenantId>,
        arrival: Arrival,
    ) {
        let cut = Cut::plan(packet.bytes(), self.parts.engine.snapshot.link(side).mtu);
        self.parts.engine.counters.fragments_made.add(cut.pieces() as u64 - 1);
        for piece in 0..cut.pieces() {
            if let Err(reason) = self.send_piece(&cut, piece, &packet, (side, tenant), arrival.port) {
                self.parts.engine.counters.dropped(arrival.side, reason, tenant);
            }
        }
        self.parts.pool.put(packet);
    }

    /// Sends one fragment of a packet.
    fn send_piece(
        &mut self,
        cut: &Cut,
        piece: usize,
        packet: &Frame,
        (side, tenant): (Side, Option<TenantId>),
        port: usize,
    ) -> Result<(), DropReason> {
        let mut frame = self.parts.pool.take().ok_or(DropReason::NoFreeFrame)?;
        cut.write_piece(piece, packet.bytes(), &mut frame);
        self.transmit(frame, side, port, tenant).map_err(|Unsent { frame, reason }| {
            self.parts.pool.put(frame);
            reason
        })
    }
}
