//! The express lane: the packets that are nearly all, TCP and UDP of sessions that exist, some at a time. Sessions of pods
//! begin here too (`firsts`), and what another worker owns is found out.
//!
//! ```text
//!   look ahead   each frame: glance → tenant → key → fetch index      some frames later: index → fetch entry
//!   forward      each frame, in order: session still valid? → touch → rewrite
//!                else: make its session and try again, hand it over, or the whole pipeline
//! ```
//!
//! A table of a million sessions is in no cache: one packet waits for memory twice, for the index and for the
//! session. Looked up side by side, packets have both fetched while others are looked at. What was seen ahead is a hint and
//! no more: a packet takes the lane only if the session that it is forwarded by has its key and was checked under the
//! present snapshot, by which everything is known that [`crate::pipeline`] would find out about it.

mod firsts;

use std::ops::Range;

use conntrack::{
    Candidate, Conntrack, Direction, Key, KeyHash, Protocol, Rewrite, TcpFlags, TcpSegment, TenantId, Tick,
    Wire,
};
pub use firsts::Continuation;
use macaddr::MacAddr6;

use crate::fragments::Fragments;
use crate::io::Frame;
use crate::parse::{ETHERNET_BYTES, read_u16, read_u32};
use crate::pipeline::Engine;
use crate::rewrite::{write_identification, write_u16};
use crate::snapshot::{NeighbourId, Side, Snapshot};
use crate::track::HAIRPIN;

/// Frames that are looked up side by side: with fewer a processor waits for memory that it could have asked for, and more
/// gain nothing.
pub const LANES: usize = 32;

/// Frames after which entries are found for the ones before: what is fetched is fetched while frames are looked at. Found
/// for all lanes at the end, a hit in a table of a million sessions took 48 to 66 ns where it takes 47 to 60, in turn.
const STEP: usize = 8;

/// Least time to live: what comes back in takes two hops.
const LEAST_TTL: u8 = 3;
/// Bytes of Ethernet, IPv4 without options and UDP, or the first of TCP.
const UDP_HEADERS: usize = 42;
/// Bytes of Ethernet, IPv4 without options and TCP without options.
const TCP_HEADERS: usize = 54;
const TCP: u8 = 6;
const UDP: u8 = 17;
const UDP_CHECKSUM_AT: usize = 40;
const TCP_CHECKSUM_AT: usize = 50;

/// A whole TCP or UDP packet without IPv4 options, as far as the lane has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glance {
    /// Length of the frame without padding, in bytes.
    pub frame_bytes: u16,
    /// Whether the packet may not be fragmented.
    pub dont_fragment: bool,
    /// Addresses and ports as they stand on the wire.
    pub wire: Wire,
}

/// Looks at a frame; none if it is not one for the lane, for whatever reason. A segment that opens a connection is not.
#[inline]
pub fn glance(frame: &[u8], least_mtu: u16) -> Option<Glance> {
    glance_at(frame, least_mtu, |flags| !flags.has(TcpFlags::SYN))
}

/// Does the same for segments with such flags.
#[inline(always)]
fn glance_at(frame: &[u8], least_mtu: u16, is_wanted: impl Fn(TcpFlags) -> bool) -> Option<Glance> {
    let head: &[u8; UDP_HEADERS] = frame.first_chunk()?;
    let total = read_u16(head, 16);
    // Ethertype 0x0800, version 4, five words of header; neither a fragment nor the first of some.
    let is_plain = read_u16(head, 12) == 0x0800
        && head[14] == 0x45
        && read_u16(head, 20) & 0x3fff == 0
        && head[22] >= LEAST_TTL;
    if !is_plain || total > least_mtu || usize::from(total) + 14 > frame.len() || !has_right_checksum(head) {
        return None;
    }
    let is_whole = if head[23] == UDP {
        let length = read_u16(head, 38);
        length >= 8 && u32::from(length) + 20 <= u32::from(total)
    } else {
        is_whole_segment(frame, total, is_wanted)
    };
    if !is_whole {
        return None;
    }
    let addresses = u64::from_ne_bytes(bytes_at(head, 26));
    let wire = Wire { addresses, ports: read_u32(head, 34), protocol_number: head[23] };
    Some(Glance { frame_bytes: total + 14, dont_fragment: head[20] & 0x40 != 0, wire })
}

/// Tells whether a packet is a TCP segment with its whole header, and such flags.
#[inline(always)]
fn is_whole_segment(frame: &[u8], total: u16, is_wanted: impl Fn(TcpFlags) -> bool) -> bool {
    frame.first_chunk::<TCP_HEADERS>().is_some_and(|head| {
        let header = u32::from(head[46] >> 4) * 4;
        let is_whole = header >= 20 && header + 20 <= u32::from(total);
        head[23] == TCP && is_whole && is_wanted(TcpFlags(head[47]))
    })
}

/// Tells whether the checksum of the IPv4 header holds (RFC 1071: the order of bytes does not matter).
#[inline]
fn has_right_checksum(head: &[u8; UDP_HEADERS]) -> bool {
    let word = |at: usize| u64::from(u32::from_ne_bytes(bytes_at(head, at)));
    let sum = word(14) + word(18) + word(22) + word(26) + word(30);
    // The sum is a multiple of 65,535, and not zero, which only a header of zeros would give.
    sum % 0xffff == 0
}

/// What was seen ahead of up to [`LANES`] frames.
#[derive(Debug, Default)]
pub struct Lanes {
    lanes: [Lane; LANES],
    /// Lanes in which frames were seen.
    seen: usize,
    /// Whether what the first packets of sessions will ask for was fetched.
    has_fetched_firsts: bool,
    /// SYNs of pods in these lanes, once that was done. One passes only by a session that begins with it.
    syns: [Lane; LANES],
}

/// What has to be known of a frame that takes the lane. The key of one that does not is nobody's.
#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    key: Key,
    hash: KeyHash,
    candidate: Candidate,
    frame_bytes: u16,
    dont_fragment: bool,
}

impl Lane {
    fn is_nobodys(&self) -> bool {
        self.key == Key::default()
    }

    fn is_tcp(&self) -> bool {
        self.key.protocol_number() == TCP
    }

    fn passed(&self) -> Passed {
        Passed { tenant: self.key.tenant(), frame_bytes: self.frame_bytes }
    }
}

/// A packet that was translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Its tenant.
    pub tenant: TenantId,
    /// Length of its frame, in bytes.
    pub frame_bytes: u16,
}

impl Lanes {
    /// Looks at frames that came in on `side`, [`LANES`] at most.
    #[inline(never)] // its loops are short, and keep what they need in registers
    pub fn look_ahead(&mut self, snapshot: &Snapshot, conntrack: &Conntrack, side: Side, frames: &[Frame]) {
        self.has_fetched_firsts = false;
        self.seen = frames.len().min(LANES);
        let lanes = &mut self.lanes[..self.seen];
        // With the side known beforehand there is a loop of its own for each.
        match side {
            Side::Inside => see_all(snapshot, conntrack, Side::Inside, lanes, frames),
            Side::Outside => see_all(snapshot, conntrack, Side::Outside, lanes, frames),
        }
    }

    /// Translates frames from the one that was seen in `lane` on, until one may not take the lane; returns how many.
    #[inline(never)]
    pub fn pass(
        &self,
        lane: usize,
        direction: Direction,
        frames: &mut [Frame],
        engine: &mut Engine,
        now: Tick,
    ) -> usize {
        let Engine { snapshot, conntrack, fragments, .. } = engine;
        let mut crossing = Crossing { snapshot, conntrack, fragments, now };
        let lanes = self.lanes[lane..].iter().zip(frames);
        // With the direction known beforehand there is a loop of its own for each.
        match direction {
            Direction::Outbound => {
                pass_while(lanes, |lane, frame| crossing.pass(Direction::Outbound, lane, frame))
            }
            Direction::Inbound => {
                pass_while(lanes, |lane, frame| crossing.pass(Direction::Inbound, lane, frame))
            }
        }
    }

    /// Returns the length of the frame that was seen in a lane, without padding, in bytes.
    pub fn frame_bytes(&self, lane: usize) -> usize {
        usize::from(self.lanes[lane].frame_bytes)
    }

    /// Returns tenant and length of the frames that have passed in some lanes.
    #[inline]
    pub fn passed(&self, lanes: Range<usize>) -> impl Iterator<Item = Passed> {
        self.lanes[lanes].iter().map(Lane::passed)
    }

    /// Returns tenant and length of the frame that has passed in a lane.
    #[inline]
    pub fn passed_in(&self, lane: usize) -> Passed {
        self.lanes[lane].passed()
    }
}

#[inline(always)]
fn pass_while<'a>(
    lanes: impl Iterator<Item = (&'a Lane, &'a mut Frame)>,
    mut pass: impl FnMut(&Lane, &mut Frame) -> Option<()>,
) -> usize {
    let mut passed = 0;
    for (lane, frame) in lanes {
        if pass(lane, frame).is_none() {
            break;
        }
        passed += 1;
    }
    passed
}

/// What is the same for all frames of a batch.
struct Crossing<'a> {
    snapshot: &'a Snapshot,
    conntrack: &'a mut Conntrack,
    fragments: &'a mut Fragments,
    now: Tick,
}

impl Crossing<'_> {
    /// Translates a frame if its session exists and is valid; else changes nothing.
    #[inline(always)]
    fn pass(&mut self, direction: Direction, lane: &Lane, frame: &mut Frame) -> Option<()> {
        let timeouts = &self.snapshot.spec().timeouts;
        let (id, session) = self.conntrack.confirm(lane.candidate, &lane.key, direction)?;
        let rewrite = session.rewrite(direction);
        // What goes to an egress address comes back in, and from outside nothing may seem to.
        let comes_back = session.rewrite(Direction::Outbound).next_hop == HAIRPIN;
        if session.epoch() != self.snapshot.epoch() || rewrite.next_hop >= HAIRPIN || comes_back {
            return None;
        }
        let is_noted = session.note_datagram(direction, self.now, timeouts);
        let is_tcp = lane.is_tcp();
        let bytes = frame.shorten(usize::from(lane.frame_bytes));
        write(bytes, is_tcp, &rewrite);
        let mut macs = self.snapshot.macs_to(NeighbourId(rewrite.next_hop));
        if direction == Direction::Inbound {
            let tenant = lane.key.tenant();
            macs[6..].copy_from_slice(self.snapshot.source_mac(Side::Inside, tenant).as_bytes());
        }
        write_macs(bytes, macs);
        // What follows changes nothing that was written, nor is changed by it; behind it, nothing has to be kept meanwhile.
        if !is_noted {
            let segment = if is_tcp { tcp_segment(bytes) } else { TcpSegment::default() };
            self.conntrack.touch(id, direction, &segment, self.now, timeouts);
        }
        if direction == Direction::Outbound && !lane.dont_fragment {
            let protocol = if is_tcp { Protocol::Tcp } else { Protocol::Udp };
            let destination = read_u32(bytes, 30).into();
            let identification = self.fragments.draw_identification(destination, protocol);
            write_identification(bytes, ETHERNET_BYTES, identification);
        }
        Some(())
    }
}

#[inline(always)]
fn see_all(snapshot: &Snapshot, conntrack: &Conntrack, side: Side, lanes: &mut [Lane], frames: &[Frame]) {
    let mut guide = Guide::new(snapshot, side);
    let mut seen: &mut [Lane] = &mut [];
    for (lanes, frames) in lanes.chunks_mut(STEP).zip(frames.chunks(STEP)) {
        for (lane, frame) in lanes.iter_mut().zip(frames) {
            if guide.see(snapshot, frame.bytes(), lane).is_none() {
                lane.key = Key::default();
            }
            lane.hash = conntrack.hash_of(&lane.key);
            conntrack.fetch_slot(lane.hash);
        }
        find_all(conntrack, seen);
        seen = lanes;
    }
    find_all(conntrack, seen);
}

/// Finds entries, and has them fetched.
#[inline(always)]
fn find_all(conntrack: &Conntrack, lanes: &mut [Lane]) {
    for lane in lanes {
        lane.candidate = conntrack.candidate(lane.hash);
        conntrack.fetch_entry(lane.candidate);
    }
}

/// Finds out keys.
struct Guide {
    side: Side,
    least_mtu: u16,
    /// What the last frame to a tenant was addressed to: a MAC inside, an egress address outside.
    address: u64,
    /// The tenant.
    tenant: TenantId,
}

impl Guide {
    #[inline(always)]
    fn new(snapshot: &Snapshot, side: Side) -> Self {
        Self { side, least_mtu: snapshot.least_mtu(), address: u64::MAX, tenant: TenantId::default() }
    }

    /// Looks at a frame and fills its lane, if it may take it.
    #[inline(always)]
    fn see(&mut self, snapshot: &Snapshot, frame: &[u8], lane: &mut Lane) -> Option<()> {
        self.fill(snapshot, frame, glance(frame, self.least_mtu)?, lane)
    }

    #[inline(always)]
    fn fill(&mut self, snapshot: &Snapshot, frame: &[u8], glance: Glance, lane: &mut Lane) -> Option<()> {
        let (address, direction) = match self.side {
            Side::Inside => (u64::from_le_bytes(bytes_at(frame, 0)) << 16, Direction::Outbound),
            Side::Outside => (u64::from(u32::from_le_bytes(bytes_at(frame, 30))), Direction::Inbound),
        };
        if address != self.address {
            self.tenant = self.tenant_at(snapshot, frame)?;
            self.address = address;
        }
        lane.key = Key::of_wire(self.tenant, direction, glance.wire);
        lane.frame_bytes = glance.frame_bytes;
        lane.dont_fragment = glance.dont_fragment;
        Some(())
    }

    #[inline(never)] // frames of one tenant mostly come one after the other
    fn tenant_at(&self, snapshot: &Snapshot, frame: &[u8]) -> Option<TenantId> {
        let mac: [u8; 6] = *frame.first_chunk()?;
        match self.side {
            Side::Inside => snapshot.tenant_by_mac(MacAddr6::from(mac)),
            Side::Outside => snapshot.tenant_by_egress(read_u32(frame, 30).into()),
        }
    }
}

/// Writes what a session has prepared into a packet: address, port, time to live and checksums (RFC 1624, RFC 3022
/// section 4.1).
///
/// # Panics
/// When the frame is shorter than its headers; a [`glance`] has checked that.
#[inline]
pub fn write(frame: &mut [u8], is_tcp: bool, rewrite: &Rewrite) {
    let delta = rewrite.transport_delta;
    if is_tcp {
        let head: &mut [u8; TCP_HEADERS] = frame.first_chunk_mut().expect("a glance has seen them");
        update_checksum(head, TCP_CHECKSUM_AT, |checksum| delta.apply_in_memory(checksum));
    }
    let head: &mut [u8; UDP_HEADERS] = frame.first_chunk_mut().expect("a glance has seen them");
    if !is_tcp {
        update_checksum(head, UDP_CHECKSUM_AT, |checksum| match checksum {
            0 => 0, // there is none
            // One that comes out as zero is sent as all ones (RFC 768).
            _ => match delta.apply_in_memory(checksum) {
                0 => 0xffff,
                updated => updated,
            },
        });
    }
    match rewrite.direction {
        Direction::Outbound => {
            head[26..30].copy_from_slice(&rewrite.address.octets());
            write_u16(head, 34, rewrite.port);
        }
        Direction::Inbound => {
            head[30..34].copy_from_slice(&rewrite.address.octets());
            write_u16(head, 36, rewrite.port);
        }
    }
    head[22] -= 1;
    let delta = rewrite.header_delta.one_hop();
    update_checksum(head, 24, |checksum| delta.apply_in_memory(checksum));
}

#[inline(always)]
fn update_checksum(head: &mut [u8], at: usize, update: impl FnOnce(u16) -> u16) {
    let updated = update(u16::from_ne_bytes(bytes_at(head, at)));
    head[at..at + 2].copy_from_slice(&updated.to_ne_bytes());
}

/// Writes destination and source MAC of the link that the frame leaves by.
///
/// # Panics
/// When the frame is shorter than its headers; a [`glance`] has checked that.
#[inline]
pub fn write_macs(frame: &mut [u8], macs: [u8; 12]) {
    let head: &mut [u8; UDP_HEADERS] = frame.first_chunk_mut().expect("a glance has seen them");
    head[..12].copy_from_slice(&macs);
}

fn tcp_segment(frame: &[u8]) -> TcpSegment {
    let head: &[u8; TCP_HEADERS] = frame.first_chunk().expect("a glance has seen them");
    TcpSegment {
        flags: TcpFlags(head[47]),
        sequence: read_u32(head, 38),
        acknowledgement: read_u32(head, 42),
    }
}

/// Returns some bytes of a frame as they stand there.
#[inline(always)]
fn bytes_at<const N: usize>(frame: &[u8], at: usize) -> [u8; N] {
    *frame[at..].first_chunk().expect("a glance has seen them")
}
