//! Virtual reassembly: finds out the ports of fragments that do not carry them (RFC 4787 REQ-14).
//!
//! ```text
//!   first fragment ──▶ its ports are kept ──▶ goes on
//!   later fragment ──▶ ports known? ── yes ──▶ goes on
//!                            └── no ──▶ held ──▶ goes on behind the first, in order of arrival
//!                                           └──▶ dropped after 15 s
//! ```
//!
//! Nothing is put together: fragments leave one by one, as they came. What overlaps is dropped, so that the
//! receiver has nothing to choose from (RFC 1858, RFC 3128). Memory is bounded, in all and by tenant, and
//! taken at start.
//!
//! - [`datagram`]: one datagram: its key, and which parts of it were seen
//! - [`table`]: all datagrams of one worker: find, begin, end, oldest first
//! - [`held`]: frames that wait for the first fragment of their datagram
//! - [`identification`]: identifications of the gateway's own, for packets that are or may be fragmented

pub mod datagram;
pub mod held;
pub mod identification;
pub mod table;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use ahash::RandomState;
use conntrack::{
    Direction, FiveTuple, Protocol, TcpFlags, TcpSegment, TenantId, Tick, WorkerSlot, owner_of_inside,
};

use crate::io::Frame;
use crate::parse::{Flow, IpHeader, Segment};
use crate::share::may_take;
use crate::snapshot::Side;
use crate::verdict::{DropReason, Verdict};
use datagram::{DatagramKey, Part, Seen};
use held::{HeldFrame, HeldFrames};
use identification::Identifications;
use table::{DatagramId, Datagrams};

/// How long a datagram is remembered from its first frame on: the time that RFC 791 section 3.2 gives
/// reassembly at least. Fragments of one datagram follow each other within milliseconds, and what is
/// remembered longer is room that a flood takes.
const LIFETIME: Duration = Duration::from_secs(15);

/// How much is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Datagrams of one worker.
    pub datagrams: u32,
    /// Datagrams of one tenant, so that none takes all places.
    pub datagrams_per_tenant: u32,
    /// Frames that wait at one worker.
    pub frames: u32,
    /// Frames of one tenant that wait.
    pub frames_per_tenant: u32,
    /// Frames of one datagram that wait.
    pub frames_per_datagram: u32,
}

impl Limits {
    /// What a worker remembers, in under 4 MB. On a link of 1,500 bytes a datagram of 64 KiB has 44 fragments
    /// after the first.
    pub const WORKER: Self = Self {
        datagrams: 16_384,
        datagrams_per_tenant: 4096,
        frames: 256,
        frames_per_tenant: 64,
        frames_per_datagram: 44,
    };
}

/// What the first fragment of a datagram tells about all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Source port, as in the flow of the first fragment.
    pub source_port: u16,
    /// Destination port, as in the flow of the first fragment.
    pub destination_port: u16,
    /// What a later fragment means to the session.
    pub segment: Segment,
    /// Identification that all of them leave with.
    pub identification: u16,
}

impl Head {
    /// Returns the flow of a later fragment.
    pub fn flow_of(&self, ip: &IpHeader, protocol: Protocol) -> Flow {
        let tuple = FiveTuple {
            source: ip.source,
            destination: ip.destination,
            source_port: self.source_port,
            destination_port: self.destination_port,
            protocol,
        };
        Flow { tuple, segment: self.segment, at: ip.payload_at, has_ports: false, checksum_at: None }
    }
}

/// A frame that waited and is free to go.
#[derive(Debug)]
pub struct FreedFrame {
    /// The frame.
    pub frame: Frame,
    /// Side that it came from.
    pub side: Side,
    /// Tenant that it belongs to.
    pub tenant: TenantId,
    /// The ports that it waited for, or why they will not come.
    pub fate: Result<Head, DropReason>,
}

/// The datagrams of one worker of which fragments have come. All memory is taken by [`Fragments::new`].
#[derive(Debug)]
pub struct Fragments {
    limits: Limits,
    datagrams: Datagrams,
    held: HeldFrames,
    freed: VecDeque<FreedFrame>,
    /// By tenant.
    usage: Vec<Usage>,
    identifications: Identifications,
}

/// Returns the worker that keeps a datagram. That of an outbound one owns its flow too; the owner of an
/// inbound one is only known once its ports are.
pub fn keeper_of(slot: WorkerSlot, key: &DatagramKey) -> u16 {
    match key.direction {
        Direction::Outbound => owner_of_inside(key.tenant, key.source, slot.workers),
        Direction::Inbound => {
            // Every worker must come to the same result, so this hash has no secret.
            let hash = RandomState::with_seeds(1, 2, 3, 4).hash_one(key);
            u16::try_from(hash % u64::from(slot.workers)).expect("a remainder of a u16 is one")
        }
    }
}

/// What a tenant takes of the room.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    datagrams: u32,
    frames: u32,
}

impl Fragments {
    /// Makes the table of a worker.
    pub fn new(slot: WorkerSlot, limits: Limits) -> Self {
        Self {
            limits,
            datagrams: Datagrams::new(limits.datagrams),
            held: HeldFrames::new(limits.frames),
            freed: VecDeque::with_capacity(limits.frames as usize),
            usage: vec![Usage::default(); usize::from(u16::MAX) + 1],
            identifications: Identifications::new(slot),
        }
    }

    /// Notes a fragment. `first` is the flow of a first fragment; a later one has none.
    ///
    /// # Errors
    /// The verdict on a fragment that does not go on now. One that is to be held has a place.
    pub fn track(
        &mut self,
        key: DatagramKey,
        part: Part,
        first: Option<&Flow>,
        now: Tick,
    ) -> Result<Head, Verdict> {
        let known = self.find(&key, now);
        let is_headless = known.is_none_or(|id| self.datagrams.get(id).head.is_none());
        if is_headless && first.is_none() && !self.may_hold(key.tenant, known) {
            return Err(Verdict::Drop(DropReason::FragmentLimit));
        }
        let id = match known {
            Some(id) => id,
            None => self.begin(key, now).ok_or(Verdict::Drop(DropReason::FragmentLimit))?,
        };
        match self.datagrams.get_mut(id).see(part) {
            Seen::Anew => {}
            Seen::Before => return Err(Verdict::Drop(DropReason::FragmentOverlap)),
            Seen::InPieces => return Err(Verdict::Drop(DropReason::FragmentLimit)),
            Seen::InPart => {
                self.free_frames(id, Err(DropReason::FragmentOverlap));
                return Err(Verdict::Drop(DropReason::FragmentOverlap));
            }
        }
        if let Some(flow) = first {
            let head = self.head(&key, flow);
            self.datagrams.get_mut(id).head = Some(head);
            self.free_frames(id, Ok(head));
        }
        let datagram = self.datagrams.get(id);
        let (head, is_whole) = (datagram.head, datagram.is_whole());
        if is_whole {
            self.end(id);
        }
        head.ok_or(Verdict::Hold(id))
    }

    /// Holds a fragment that [`Fragments::track`] said is to be held, until its first comes.
    ///
    /// # Panics
    /// When the datagram has ended since.
    pub fn hold(&mut self, id: DatagramId, frame: Frame, side: Side) {
        let datagram = self.datagrams.get_mut(id);
        self.usage[usize::from(datagram.key.tenant.0)].frames += 1;
        self.held.push(&mut datagram.held, HeldFrame { frame, side });
    }

    /// Takes a frame that waits no longer, in order of arrival.
    pub fn take_freed(&mut self) -> Option<FreedFrame> {
        self.freed.pop_front()
    }

    /// Forgets at most `bound` datagrams whose time is over; returns how many. Their frames are freed.
    pub fn expire(&mut self, now: Tick, bound: usize) -> usize {
        for expired in 0..bound {
            match self.datagrams.oldest().filter(|id| now.reached(self.datagrams.get(*id).deadline)) {
                Some(id) => self.give_up(id),
                None => return expired,
            }
        }
        bound
    }

    /// Forgets all datagrams and returns the frames that waited.
    pub fn forget_all(&mut self, slot: WorkerSlot) -> impl Iterator<Item = Frame> + use<> {
        let old = std::mem::replace(self, Self::new(slot, self.limits));
        old.held.into_frames().chain(old.freed.into_iter().map(|freed| freed.frame))
    }

    /// Returns an identification for a packet that leaves whole and may be fragmented on its way.
    pub fn draw_identification(&mut self, destination: Ipv4Addr, protocol: Protocol) -> u16 {
        self.identifications.draw(destination, protocol)
    }

    /// Returns the number of frames that wait or are free to go.
    pub fn frames_owned(&self) -> usize {
        self.held.len() + self.freed.len()
    }

    /// Finds a datagram whose time is not over.
    fn find(&mut self, key: &DatagramKey, now: Tick) -> Option<DatagramId> {
        let id = self.datagrams.find(key)?;
        if now.reached(self.datagrams.get(id).deadline) {
            self.give_up(id);
            return None;
        }
        Some(id)
    }

    fn begin(&mut self, key: DatagramKey, now: Tick) -> Option<DatagramId> {
        let usage = &mut self.usage[usize::from(key.tenant.0)];
        let free = self.limits.datagrams - self.datagrams.len();
        let may_begin = may_take(usage.datagrams as usize, free as usize, self.limits.datagrams as usize);
        if usage.datagrams == self.limits.datagrams_per_tenant || !may_begin {
            return None;
        }
        let id = self.datagrams.begin(key, now.after(LIFETIME))?;
        usage.datagrams += 1;
        Some(id)
    }

    fn may_hold(&self, tenant: TenantId, datagram: Option<DatagramId>) -> bool {
        let of_datagram = datagram.map_or(0, |id| self.datagrams.get(id).held.len());
        let (capacity, of_tenant) = (self.limits.frames as usize, self.usage[usize::from(tenant.0)].frames);
        may_take(of_tenant as usize, capacity - self.held.len(), capacity)
            && of_tenant < self.limits.frames_per_tenant
            && of_datagram < self.limits.frames_per_datagram
    }

    fn head(&mut self, key: &DatagramKey, flow: &Flow) -> Head {
        let identification = match key.direction {
            // Pods share the egress address, so what they chose may be chosen twice (RFC 6864 section 5.3.1).
            Direction::Outbound => self.draw_identification(key.destination, key.protocol),
            Direction::Inbound => key.identification,
        };
        let segment = match flow.segment {
            // The rest of a segment neither opens nor ends anything that its beginning has not.
            Segment::Tcp(segment) => {
                let flags = TcpFlags(segment.flags.0 & TcpFlags::ACK.0);
                Segment::Tcp(TcpSegment { flags, ..segment })
            }
            Segment::Udp | Segment::Query | Segment::Reply | Segment::Opaque => flow.segment,
        };
        let tuple = &flow.tuple;
        Head {
            source_port: tuple.source_port,
            destination_port: tuple.destination_port,
            segment,
            identification,
        }
    }

    fn give_up(&mut self, id: DatagramId) {
        self.free_frames(id, Err(DropReason::FragmentIncomplete));
        self.end(id);
    }

    fn end(&mut self, id: DatagramId) {
        self.usage[usize::from(self.datagrams.get(id).key.tenant.0)].datagrams -= 1;
        self.datagrams.end(id);
    }

    fn free_frames(&mut self, id: DatagramId, fate: Result<Head, DropReason>) {
        let datagram = self.datagrams.get_mut(id);
        let tenant = datagram.key.tenant;
        while let Some(HeldFrame { frame, side }) = self.held.pop(&mut datagram.held) {
            self.usage[usize::from(tenant.0)].frames -= 1;
            self.freed.push_back(FreedFrame { frame, side, tenant, fate });
        }
    }
}
