//! Time as the state machine sees it, and how long an idle session lives.

use std::time::Duration;

use crate::flow::Protocol;

/// A moment, in tenths of a second since the worker started; wraps after 13 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tick(u32);

impl Tick {
    /// Ticks in one second.
    pub const PER_SECOND: u32 = 10;

    /// Returns the moment `elapsed` after the start.
    #[expect(clippy::cast_possible_truncation, reason = "time wraps")]
    pub fn since_start(elapsed: Duration) -> Self {
        let ticks = elapsed.as_millis() / u128::from(1000 / Self::PER_SECOND);
        Self(ticks as u32)
    }

    /// Returns the moment `duration` later.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.wrapping_add(Self::since_start(duration).0))
    }

    /// Tells whether this moment is at or after `other`, as long as they are less than 6 years apart.
    pub fn reached(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0) < u32::MAX / 2
    }

    /// Returns the time from `earlier` to this moment.
    pub fn elapsed_since(self, earlier: Self) -> Duration {
        let ticks = u64::from(self.0.wrapping_sub(earlier.0));
        Duration::from_millis(ticks * 1000 / u64::from(Self::PER_SECOND))
    }
}

/// Which timeout applies to a session in its present state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
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
}

impl TimeoutClass {
    /// Every class.
    pub const ALL: [Self; 5] =
        [Self::TcpEstablished, Self::TcpOpening, Self::TcpClosing, Self::Udp, Self::IcmpQuery];
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
    /// Ports that have a timeout of their own (RFC 4787 REQ-5a).
    pub ports: [Option<PortTimeout>; PORT_TIMEOUTS],
    /// Whether packets to a pod give a UDP session new time, as those from the pod do (RFC 4787 REQ-6, RFC 7857
    /// section 7).
    pub inbound_refreshes: bool,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_established: Duration::from_secs(2 * 3600 + 4 * 60),
            tcp_opening: Duration::from_secs(240),
            tcp_closing: Duration::from_secs(240),
            udp: Duration::from_secs(300),
            icmp_query: Duration::from_secs(60),
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reached_holds_across_the_wrap() {
        let before = Tick(u32::MAX - 5);
        let after = before.after(Duration::from_secs(2));
        assert!(after.reached(before));
        assert!(!before.reached(after));
        assert_eq!(after.elapsed_since(before), Duration::from_secs(2));
    }

    #[test]
    fn defaults_are_what_the_rfcs_ask() {
        let timeouts = Timeouts::default();
        assert!(timeouts.tcp_established >= Duration::from_secs(7440));
        assert!(timeouts.tcp_opening >= Duration::from_secs(240));
        assert!(timeouts.tcp_closing >= Duration::from_secs(240));
        assert!(timeouts.udp >= Duration::from_secs(300));
        assert!(timeouts.icmp_query >= Duration::from_secs(60));
    }
}
