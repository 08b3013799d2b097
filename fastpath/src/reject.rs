//! Answers to packets that are refused: TCP RST or ICMP errors, so that clients fail fast and retry.
//!
//! The answer is written over the packet that it answers and goes back to the MAC that the packet came from.

use std::net::Ipv4Addr;

use conntrack::checksum::{checksum, sum};
use conntrack::{TcpFlags, TenantId, Tick};

use crate::classify::is_martian;
use crate::io::Frame;
use crate::parse::{ETHERNET_BYTES, Flow, ICMP_HEADER_BYTES, Packet, Segment, Transport, read_u16, read_u32};
use crate::rewrite::write_u16;
use crate::verdict::DropReason;

/// Bytes of an IPv4 header without options.
const IP_BYTES: usize = 20;

/// An ICMP error is not longer than this, so that it fits everywhere (RFC 1812 section 4.3.2.3).
const ERROR_BYTES: usize = 576;

/// Answers per second that one worker sends to one tenant, and how many of them at once.
const ANSWERS_PER_SECOND: u32 = 1000;

/// Token buckets for answers (RFC 1812 section 4.3.2.8): one for each tenant, so that none takes the answers of others,
/// and one for packets that are no tenant's. All memory is taken by [`AnswerLimit::new`].
#[derive(Debug)]
pub struct AnswerLimit {
    /// By tenant, and nobody's last: a second of the gateway's clock in tenths, above the tokens that were spent by then
    /// and have not been earned again.
    spent: Box<[u64]>,
}

impl AnswerLimit {
    /// Makes full buckets.
    pub fn new() -> Self {
        Self { spent: vec![0; usize::from(u16::MAX) + 2].into() }
    }

    /// Fills all buckets.
    pub fn fill(&mut self) {
        self.spent.fill(0);
    }

    /// Takes a token of a tenant, or of nobody; tells whether there was one.
    pub fn take(&mut self, tenant: Option<TenantId>, now: Tick) -> bool {
        let nobody = self.spent.len() - 1;
        let bucket = &mut self.spent[tenant.map_or(nobody, |tenant| usize::from(tenant.0))];
        let tenths = now.elapsed_since(Tick::default()).as_millis() / 100;
        // A tick is a tenth of a second in 32 bits.
        let tenths = u32::try_from(tenths).unwrap_or(u32::MAX);
        let [before, spent] = [*bucket >> 32, *bucket & u64::from(u32::MAX)];
        let earned = u64::from(tenths).saturating_sub(before) * u64::from(ANSWERS_PER_SECOND / 10);
        let spent = spent.saturating_sub(earned);
        let has_token = spent < u64::from(ANSWERS_PER_SECOND);
        *bucket = before.max(u64::from(tenths)) << 32 | (spent + u64::from(has_token));
        has_token
    }
}

impl Default for AnswerLimit {
    fn default() -> Self {
        Self::new()
    }
}

/// What an ICMP error says (RFC 792, RFC 1812 section 5.2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    kind: u8,
    code: u8,
    mtu: u16,
}

/// How a refused packet is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With a RST to the segment at this offset, which had these flags.
    Reset(usize, TcpFlags),
    /// With an ICMP error.
    Error(IcmpError),
}

/// Returns how a packet that is refused for a reason is answered, if at all. `mtu` is that of the link that it was
/// too big for.
pub fn answer_to(packet: &Packet, reason: DropReason, mtu: u16) -> Option<Answer> {
    let flow = answerable_flow(packet)?;
    // A pod may be newer than what the gateway knows: an answer would end its attempt, and silence makes it try again.
    if reason == DropReason::UnknownPod {
        return None;
    }
    match (icmp_error(reason, mtu), flow.segment) {
        (Some(error), _) => Some(Answer::Error(error)),
        (None, Segment::Tcp(segment)) if segment.flags.has(TcpFlags::RST) => None,
        (None, Segment::Tcp(segment)) => Some(Answer::Reset(flow.at, segment.flags)),
        (None, Segment::Udp | Segment::Query | Segment::Reply | Segment::Opaque) => {
            Some(Answer::Error(PROHIBITED))
        }
    }
}

/// Returns the answer to a packet from outside that nobody asked for, if there is one: port unreachable (RFC 5382
/// REQ-4).
pub fn answer_unasked(packet: &Packet) -> Option<Answer> {
    let unreachable = IcmpError { kind: 3, code: 3, mtu: 0 };
    answerable_flow(packet).map(|_| Answer::Error(unreachable))
}

/// Returns the flow of a packet that may be answered: never an error about an error, or anything to a group (RFC
/// 1122 section 3.2.2).
fn answerable_flow(packet: &Packet) -> Option<Flow> {
    let Transport::Flow(flow) = packet.transport else { return None };
    let is_group_mac = packet.destination_mac.as_bytes()[0] & 1 == 1;
    let is_martian = is_martian(packet.ip.source) || is_martian(packet.ip.destination);
    (!is_group_mac && !is_martian).then_some(flow)
}

/// Writes the answer to a packet into its frame. An ICMP error comes from `speaker`.
pub fn write_answer(frame: &mut Frame, packet: &Packet, answer: Answer, speaker: Ipv4Addr) {
    match answer {
        Answer::Reset(at, flags) => write_rst(frame, packet, at, flags),
        Answer::Error(error) => write_error(frame, packet, speaker, error),
    }
}

/// Communication administratively prohibited, as RFC 5508 REQ-8 asks for a session that cannot be made.
const PROHIBITED: IcmpError = IcmpError { kind: 3, code: 13, mtu: 0 };

/// Returns the ICMP error for a reason; none where TCP gets a RST and the rest [`PROHIBITED`].
fn icmp_error(reason: DropReason, mtu: u16) -> Option<IcmpError> {
    match reason {
        DropReason::TtlExceeded => Some(IcmpError { kind: 11, code: 0, mtu: 0 }),
        DropReason::TooBig => Some(IcmpError { kind: 3, code: 4, mtu }),
        DropReason::NoRoute => Some(IcmpError { kind: 3, code: 0, mtu: 0 }),
        DropReason::NeighbourUnresolved => Some(IcmpError { kind: 3, code: 1, mtu: 0 }),
        DropReason::TenantDraining
        | DropReason::NoPort
        | DropReason::AmbiguousProtocol
        | DropReason::SessionsFull
        | DropReason::TenantShare
        | DropReason::TenantSessionLimit
        | DropReason::TenantPortLimit
        | DropReason::TenantRateLimit
        | DropReason::PodSessionLimit
        | DropReason::PodPortLimit
        | DropReason::PodRateLimit => Some(PROHIBITED),
        DropReason::Malformed
        | DropReason::NotIpv4
        | DropReason::BadChecksum
        | DropReason::FragmentedError
        | DropReason::QuotedFragment
        | DropReason::FragmentOverlap
        | DropReason::FragmentIncomplete
        | DropReason::FragmentLimit
        | DropReason::UnsupportedProtocol
        | DropReason::UnsupportedIcmp
        | DropReason::Leak
        | DropReason::UnknownSource
        | DropReason::UnknownPod
        | DropReason::NodeSource
        | DropReason::PodSource
        | DropReason::UnknownTenant
        | DropReason::MartianAddress
        | DropReason::MisaddressedError
        | DropReason::NoSession
        | DropReason::InterfaceAway
        | DropReason::QueueShare
        | DropReason::TxRingFull
        | DropReason::NoFreeFrame
        | DropReason::HandOverFull
        | DropReason::WorkerPanic => None,
    }
}

fn write_error(frame: &mut Frame, packet: &Packet, speaker: Ipv4Addr, error: IcmpError) {
    let quoted_from = packet.ip.at;
    let quote_bytes = (packet.frame_bytes - quoted_from).min(ERROR_BYTES - IP_BYTES - ICMP_HEADER_BYTES);
    let icmp_at = ETHERNET_BYTES + IP_BYTES;
    let quote_at = icmp_at + ICMP_HEADER_BYTES;
    frame.set_len((quote_at + quote_bytes).max(packet.frame_bytes));
    let bytes = frame.bytes_mut();
    bytes.copy_within(quoted_from..quoted_from + quote_bytes, quote_at);
    bytes[icmp_at..quote_at].copy_from_slice(&[error.kind, error.code, 0, 0, 0, 0, 0, 0]);
    write_u16(bytes, icmp_at + 6, error.mtu);
    let icmp = checksum(0, &bytes[icmp_at..quote_at + quote_bytes]);
    write_u16(bytes, icmp_at + 2, icmp);
    swap_macs(bytes);
    write_ip(bytes, IP_BYTES + ICMP_HEADER_BYTES + quote_bytes, 1, speaker, packet.ip.source);
    frame.set_len(quote_at + quote_bytes);
}

/// Writes the RST that answers a segment (RFC 9293 section 3.10.7.1).
fn write_rst(frame: &mut Frame, packet: &Packet, tcp_at: usize, flags: TcpFlags) {
    let bytes = frame.bytes_mut();
    let header_bytes = usize::from(bytes[tcp_at + 12] >> 4) * 4;
    let payload_bytes = packet.frame_bytes - tcp_at - header_bytes;
    let counted =
        payload_bytes + usize::from(flags.has(TcpFlags::SYN)) + usize::from(flags.has(TcpFlags::FIN));
    let sequence = read_u32(bytes, tcp_at + 4);
    let (rst_sequence, rst_acknowledged, rst_flags) = if flags.has(TcpFlags::ACK) {
        (read_u32(bytes, tcp_at + 8), 0, TcpFlags::RST.0)
    } else {
        let counted = u32::try_from(counted).expect("a frame is shorter than 4 GiB");
        (0, sequence.wrapping_add(counted), TcpFlags::RST.0 | TcpFlags::ACK.0)
    };
    let ports = [read_u16(bytes, tcp_at + 2), read_u16(bytes, tcp_at)];

    let at = ETHERNET_BYTES + IP_BYTES;
    swap_macs(bytes);
    write_ip(bytes, IP_BYTES + 20, 6, packet.ip.destination, packet.ip.source);
    write_u16(bytes, at, ports[0]);
    write_u16(bytes, at + 2, ports[1]);
    bytes[at + 4..at + 8].copy_from_slice(&rst_sequence.to_be_bytes());
    bytes[at + 8..at + 12].copy_from_slice(&rst_acknowledged.to_be_bytes());
    bytes[at + 12..at + 20].copy_from_slice(&[5 << 4, rst_flags, 0, 0, 0, 0, 0, 0]);
    let pseudo_header = sum(6 + 20, &bytes[ETHERNET_BYTES + 12..at]);
    let tcp = checksum(pseudo_header, &bytes[at..at + 20]);
    write_u16(bytes, at + 16, tcp);
    frame.set_len(at + 20);
}

fn swap_macs(bytes: &mut [u8]) {
    let (destination, source) = bytes[..12].split_at_mut(6);
    destination.swap_with_slice(source);
}

fn write_ip(bytes: &mut [u8], total: usize, protocol: u8, source: Ipv4Addr, destination: Ipv4Addr) {
    let total = u16::try_from(total).expect("an answer is at most 576 bytes long");
    let header = &mut bytes[ETHERNET_BYTES..ETHERNET_BYTES + IP_BYTES];
    header.fill(0);
    header[0] = 0x45;
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[8] = 64;
    header[9] = protocol;
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&destination.octets());
    let header_checksum = checksum(0, header);
    header[10..12].copy_from_slice(&header_checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::parse::parse;
    use crate::testing::{tcp_frame, udp_frame};

    #[test]
    fn whatever_there_is_no_room_for_is_prohibited_tcp_or_not() {
        let frames = [
            tcp_frame("10.132.0.5:40000", "192.168.55.13:80", TcpFlags::SYN),
            udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"x"),
        ];
        for packet in frames.map(|frame| parse(&frame).unwrap()) {
            for reason in DropReason::SHORTAGES {
                let answer = answer_to(&packet, reason, 1500);
                let prohibited = IcmpError { kind: 3, code: 13, mtu: 0 };
                assert_eq!(answer, Some(Answer::Error(prohibited)), "{}", reason.name());
            }
        }
    }

    #[test]
    fn every_tenant_gets_as_many_answers_as_may_be_exactly_whatever_others_get() {
        let (mut limit, start) = (AnswerLimit::new(), Tick::default());
        let mut taken = |tenant, now| (0..5000).filter(|_| limit.take(tenant, now)).count();
        let tenants = [Some(TenantId(0)), Some(TenantId(1)), Some(TenantId(u16::MAX)), None];
        assert_eq!(tenants.map(|tenant| taken(tenant, start)), [1000; 4]);
        let later = |tenths: u64| start.after(Duration::from_millis(100 * tenths));
        assert_eq!(taken(None, later(1)), 100);
        assert_eq!(taken(None, later(0)), 0, "time that goes back earns nothing");
        assert_eq!(taken(None, later(8)), 800 - 100);
        assert_eq!(taken(Some(TenantId(0)), later(600)), 1000);
    }
}
