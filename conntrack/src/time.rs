//! Time as the state machine sees it, and how long an idle session lives.

use std::time::Duration;

use crate::flow::Protocol;
use crate::tcp::TcpState;

/// A moment, in tenths of a second since the worker started; wraps after 13 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tick(u32);

impl Tick {
    /// Ticks in one second.
    pub const PER_SECOND: u32 = 10;

    /// Ticks of one span: 6.4 seconds.
    const SPAN: u32 = 64;

    /// Tells whether two moments are in the same of the spans that time is divided into.
    pub(crate) fn is_in_same_span(self, other: Self) -> bool {
        self.0 / Self::SPAN == other.0 / Self::SPAN
    }

    /// Returns the moment `elapsed` after the start.
    #[expect(clippy::cast_possible_truncation, reason = "time wraps")]
    pub fn since_start(elapsed: Duration) -> Self {
        let whole = elapsed.as_secs().wrapping_mul(u64::from(Self::PER_SECOND));
        Self((whole as u32).wrapping_add(elapsed.subsec_millis() * Self::PER_SECOND / 1000))
    }

    /// Returns the moment `duration` later.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.wrapping_add(Self::since_start(duration).0))
    }

    /// Returns the moment `duration` earlier.
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.wrapping_sub(Self::since_start(duration).0))
    }

    /// Tells whether this moment is at or after `other`, as long as they are less than 6 years apart.
    pub fn reached(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0) < u32::MAX / 2
    }

    /// Returns the whole seconds since the worker started, up to 13 years.
    pub(crate) fn whole_seconds(self) -> u32 {
        self.0 / Self::PER_SECOND
    }

    /// Returns the time from `earlier` to this moment.
    pub fn elapsed_since(self, earlier: Self) -> Duration {
        let ticks = u64::from(self.0.wrapping_sub(earlier.0));
        Duration::from_millis(ticks * 1000 / u64::from(Self::PER_SECOND))
    }
}

/// Which timeout applies to a session in its present state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimeoutClass {
    /// A TCP connection whose handshake completed.
    TcpEstablished,
    /// A TCP connection that is opening.
    TcpOpening,
    /// A TCP connection that is closing or was reset.
    TcpClosing,
    /// A UDP flow.
    Udp,
    /// An ICMP query and its replies.
    IcmpQuery,
    /// No session: an outside port that was freed and rests before another session gets it.
    Resting,
    /// Established TCP, or UDP, towards a port that has a timeout of its own.
    Port(PortSlot),
}

const _: () = assert!(size_of::<TimeoutClass>() == 1);

impl TimeoutClass {
    /// Every class.
    pub const ALL: [Self; 6 + PORT_TIMEOUTS] = [
        Self::TcpEstablished,
        Self::TcpOpening,
        Self::TcpClosing,
        Self::Udp,
        Self::IcmpQuery,
        Self::Resting,
        Self::Port(PortSlot::P0),
        Self::Port(PortSlot::P1),
        Self::Port(PortSlot::P2),
        Self::Port(PortSlot::P3),
        Self::Port(PortSlot::P4),
        Self::Port(PortSlot::P5),
        Self::Port(PortSlot::P6),
        Self::Port(PortSlot::P7),
    ];

    /// Returns its place in [`TimeoutClass::ALL`].
    pub fn index(self) -> usize {
        match self {
            Self::TcpEstablished => 0,
            Self::TcpOpening => 1,
            Self::TcpClosing => 2,
            Self::Udp => 3,
            Self::IcmpQuery => 4,
            Self::Resting => 5,
            Self::Port(slot) => 6 + slot as usize,
        }
    }
}

/// A place in [`Timeouts::ports`]; as an enum, it lets [`TimeoutClass`] fit in one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "they are numbers")]
pub enum PortSlot {
    P0,
    P1,
    P2,
    P3,
    P4,
    P5,
    P6,
    P7,
}

impl PortSlot {
    const ALL: [Self; PORT_TIMEOUTS] =
        [Self::P0, Self::P1, Self::P2, Self::P3, Self::P4, Self::P5, Self::P6, Self::P7];
}

/// A timeout of its own for sessions towards one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortTimeout {
    /// TCP, where it stands for `tcp_established`, or UDP.
    pub protocol: Protocol,
    /// The port of the other end.
    pub port: u16,
    /// The timeout.
    pub timeout: Duration,
}

/// Ports that can have a timeout of their own.
pub const PORT_TIMEOUTS: usize = 8;

/// 2 h 4 min.
const LEAST_TCP_ESTABLISHED: Duration = Duration::from_secs(7440);

/// How long a session may be idle before it is removed, by class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP: 2 h 4 min, the least that RFC 5382 REQ-5 allows.
    pub tcp_established: Duration,
    /// TCP before the handshake completes: 4 min (RFC 5382 REQ-5, RFC 7857 section 2.2).
    pub tcp_opening: Duration,
    /// TCP after FIN or RST: 4 min (RFC 5382 REQ-5, RFC 7857 sections 2.2 and 2.3).
    pub tcp_closing: Duration,
    /// UDP: 5 min, as RFC 4787 REQ-5 recommends; never under 2 min.
    pub udp: Duration,
    /// ICMP query: 60 s, the least that RFC 5508 REQ-2 allows.
    pub icmp_query: Duration,
    /// How long a freed outside port rests: 2 min, the least that RFC 6888 REQ-8 recommends.
    pub port_rest: Duration,
    /// Ports that have a timeout of their own (RFC 4787 REQ-5a), without a gap: what stands after the first empty
    /// place counts for nothing. A place means the same as long as the table has sessions.
    pub ports: [Option<PortTimeout>; PORT_TIMEOUTS],
    /// Whether packets to a pod give a UDP session new time, as those from the pod do (RFC 4787 REQ-6, RFC 7857
    /// section 7).
    pub inbound_refreshes: bool,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_established: LEAST_TCP_ESTABLISHED,
            tcp_opening: Duration::from_secs(240),
            tcp_closing: Duration::from_secs(240),
            udp: Duration::from_secs(300),
            icmp_query: Duration::from_secs(60),
            port_rest: Duration::from_secs(120),
            ports: [None; PORT_TIMEOUTS],
            inbound_refreshes: true,
        }
    }
}

impl Timeouts {
    /// Returns the timeout of one class.
    pub fn of(&self, class: TimeoutClass) -> Duration {
        match class {
            TimeoutClass::TcpEstablished => self.tcp_established,
            TimeoutClass::TcpOpening => self.tcp_opening,
            TimeoutClass::TcpClosing => self.tcp_closing,
            TimeoutClass::Udp => self.udp,
            TimeoutClass::IcmpQuery => self.icmp_query,
            TimeoutClass::Resting => self.port_rest,
            // A session whose place was emptied has no less than it would have without.
            TimeoutClass::Port(slot) => {
                self.ports[slot as usize].map_or(self.tcp_established.max(self.udp), |entry| entry.timeout)
            }
        }
    }

    /// Returns the class of a session towards `remote_port`; `tcp` means something for TCP only.
    pub fn class_of(&self, protocol: Protocol, tcp: TcpState, remote_port: u16) -> TimeoutClass {
        match protocol {
            Protocol::Tcp if tcp.is_open() => {
                self.class_by_port(protocol, remote_port).unwrap_or(TimeoutClass::TcpEstablished)
            }
            Protocol::Tcp => tcp.class(),
            Protocol::Udp => self.class_by_port(protocol, remote_port).unwrap_or(TimeoutClass::Udp),
            Protocol::Portless(_) => TimeoutClass::Udp,
            Protocol::Icmp => TimeoutClass::IcmpQuery,
        }
    }

    fn class_by_port(&self, protocol: Protocol, port: u16) -> Option<TimeoutClass> {
        let entries = self.ports.iter().map_while(Option::as_ref);
        let mut slots = PortSlot::ALL.into_iter().zip(entries);
        let (slot, _) = slots.find(|(_, entry)| entry.protocol == protocol && entry.port == port)?;
        Some(TimeoutClass::Port(slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Portless;

    #[test]
    fn reached_holds_across_the_wrap() {
        let before = Tick(u32::MAX - 5);
        let after = before.after(Duration::from_secs(2));
        assert!(after.reached(before));
        assert!(!before.reached(after));
        assert_eq!(after.elapsed_since(before), Duration::from_secs(2));
        assert_eq!(after.before(Duration::from_secs(2)), before);
    }

    #[test]
    fn a_tick_is_a_tenth_of_a_second() {
        for (milliseconds, tick) in [(0, 0), (99, 0), (100, 1), (1999, 19), (2000, 20), (429_496_729_700, 1)]
        {
            assert_eq!(Tick::since_start(Duration::from_millis(milliseconds)), Tick(tick));
        }
    }

    #[test]
    fn defaults_are_what_the_rfcs_ask() {
        let timeouts = Timeouts::default();
        assert!(timeouts.tcp_established >= Duration::from_secs(7440));
        assert!(timeouts.tcp_opening >= Duration::from_secs(240));
        assert!(timeouts.tcp_closing >= Duration::from_secs(240));
        assert!(timeouts.udp >= Duration::from_secs(300));
        assert!(timeouts.icmp_query >= Duration::from_secs(60));
        assert!(timeouts.port_rest >= Duration::from_secs(120));
    }

    const fn entry(protocol: Protocol, port: u16, seconds: u64) -> PortTimeout {
        PortTimeout { protocol, port, timeout: Duration::from_secs(seconds) }
    }

    fn with_ports(entries: &[PortTimeout]) -> Timeouts {
        let mut timeouts = Timeouts::default();
        for (place, entry) in timeouts.ports.iter_mut().zip(entries) {
            *place = Some(*entry);
        }
        timeouts
    }

    #[test]
    fn every_class_has_a_place_of_its_own() {
        for (place, class) in TimeoutClass::ALL.into_iter().enumerate() {
            assert_eq!(class.index(), place);
        }
    }

    #[test]
    fn a_session_has_the_class_of_its_protocol_state_and_port() {
        use TcpState::{Closed, Established, InsideFin, Opening, OutsideFin, OutsideOpening, Reset};
        let (dns, ssh) = (TimeoutClass::Port(PortSlot::P0), TimeoutClass::Port(PortSlot::P1));
        let gre = Protocol::Portless(Portless::Gre);
        let timeouts = with_ports(&[entry(Protocol::Udp, 53, 10), entry(Protocol::Tcp, 22, 86_400)]);
        let cases = [
            (Protocol::Udp, Opening, 53, dns, TimeoutClass::Udp),
            (Protocol::Udp, Opening, 22, TimeoutClass::Udp, TimeoutClass::Udp),
            (Protocol::Tcp, Established, 22, ssh, TimeoutClass::TcpEstablished),
            (Protocol::Tcp, InsideFin, 22, ssh, TimeoutClass::TcpEstablished),
            (Protocol::Tcp, OutsideFin, 22, ssh, TimeoutClass::TcpEstablished),
            (Protocol::Tcp, Established, 53, TimeoutClass::TcpEstablished, TimeoutClass::TcpEstablished),
            (Protocol::Tcp, Opening, 22, TimeoutClass::TcpOpening, TimeoutClass::TcpOpening),
            (Protocol::Tcp, OutsideOpening, 22, TimeoutClass::TcpOpening, TimeoutClass::TcpOpening),
            (Protocol::Tcp, Closed, 22, TimeoutClass::TcpClosing, TimeoutClass::TcpClosing),
            (Protocol::Tcp, Reset, 22, TimeoutClass::TcpClosing, TimeoutClass::TcpClosing),
            (Protocol::Icmp, Opening, 53, TimeoutClass::IcmpQuery, TimeoutClass::IcmpQuery),
            (gre, Opening, 53, TimeoutClass::Udp, TimeoutClass::Udp),
        ];
        for (protocol, tcp, port, expected, without_entries) in cases {
            let class = timeouts.class_of(protocol, tcp, port);
            assert_eq!(class, expected, "{protocol:?} {tcp:?} {port}");
            assert_eq!(Timeouts::default().class_of(protocol, tcp, port), without_entries);
        }
        assert_eq!(timeouts.of(dns), Duration::from_secs(10));
        assert_eq!(timeouts.of(ssh), Duration::from_secs(86_400));
        assert_eq!(Timeouts::default().of(dns), Duration::from_secs(7440));
    }

    #[test]
    fn the_last_place_counts_like_the_first() {
        let entries: Vec<_> = (0u16..)
            .take(PORT_TIMEOUTS)
            .map(|port| entry(Protocol::Udp, port, 10 + u64::from(port)))
            .collect();
        let timeouts = with_ports(&entries);
        for entry in entries {
            let class = timeouts.class_of(Protocol::Udp, TcpState::Opening, entry.port);
            assert_eq!(timeouts.of(class), entry.timeout);
        }
    }
}
