//! TCP as a translator sees it (RFC 7857 section 2.1, after RFC 6146 section 3.5.2).
//!
//! ```text
//!            SYN in          SYN out                FIN in          FIN out
//!   (none) ─────────▶ Opening ─────▶ Established ─────────▶ InsideFin ─────▶ Closed
//!                                   RST │  ▲   │    FIN out           FIN in    ▲
//!                                       ▼  │   └───────────▶ OutsideFin ────────┘
//!                                     Reset┘ any packet but RST
//! ```

use crate::flow::Direction;
use crate::time::TimeoutClass;

/// The flags of one TCP segment that matter to a translator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// FIN (RFC 9293 section 3.1).
    pub const FIN: Self = Self(0x01);
    /// SYN.
    pub const SYN: Self = Self(0x02);
    /// RST.
    pub const RST: Self = Self(0x04);
    /// ACK.
    pub const ACK: Self = Self(0x10);

    /// Tells whether any of `flags` is set.
    pub fn has(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

    /// Tells whether the segment opens a connection: SYN without ACK, FIN or RST.
    pub fn opens(self) -> bool {
        self.has(Self::SYN) && !self.has(Self(Self::ACK.0 | Self::FIN.0 | Self::RST.0))
    }
}

/// What one TCP segment says to a translator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpSegment {
    /// Flags.
    pub flags: TcpFlags,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number; means something when ACK is set.
    pub acknowledgement: u32,
}

/// State of one TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TcpState {
    /// The pod sent a SYN that was not answered by a SYN yet.
    Opening,
    /// Both sides sent a SYN.
    Established,
    /// The pod's side sent a FIN.
    InsideFin,
    /// The other side sent a FIN.
    OutsideFin,
    /// Both sides sent a FIN.
    Closed,
    /// One side sent a RST.
    Reset,
}

impl TcpState {
    /// Returns the state after a segment that goes in `direction`.
    #[must_use]
    pub fn next(self, direction: Direction, flags: TcpFlags) -> Self {
        if flags.has(TcpFlags::RST) {
            return match self {
                // A connection that was never open is not brought back by what comes after the RST.
                Self::Opening => Self::Opening,
                Self::Closed => Self::Closed,
                Self::Established | Self::InsideFin | Self::OutsideFin | Self::Reset => Self::Reset,
            };
        }
        match (self, direction) {
            (Self::Opening, Direction::Inbound) if flags.has(TcpFlags::SYN) => Self::Established,
            (Self::Opening, _) => Self::Opening,
            (Self::Established, Direction::Outbound) if flags.has(TcpFlags::FIN) => Self::InsideFin,
            (Self::Established, Direction::Inbound) if flags.has(TcpFlags::FIN) => Self::OutsideFin,
            (Self::Established, _) => Self::Established,
            (Self::InsideFin, Direction::Inbound) if flags.has(TcpFlags::FIN) => Self::Closed,
            (Self::InsideFin, _) => Self::InsideFin,
            (Self::OutsideFin, Direction::Outbound) if flags.has(TcpFlags::FIN) => Self::Closed,
            (Self::OutsideFin, _) => Self::OutsideFin,
            (Self::Closed | Self::Reset, Direction::Outbound) if flags.opens() => Self::Opening,
            (Self::Closed, _) => Self::Closed,
            (Self::Reset, _) => Self::Established,
        }
    }

    /// Tells whether a packet that leaves this state unchanged gives the session new time: not in a closing
    /// state, which ends when its time is over (RFC 6146 section 3.5.2.2).
    pub fn is_refreshed(self) -> bool {
        match self {
            Self::Opening | Self::Established | Self::InsideFin | Self::OutsideFin => true,
            Self::Closed | Self::Reset => false,
        }
    }

    /// Returns the timeout class of the state.
    pub fn class(self) -> TimeoutClass {
        match self {
            Self::Opening => TimeoutClass::TcpOpening,
            Self::Established | Self::InsideFin | Self::OutsideFin => TimeoutClass::TcpEstablished,
            Self::Closed | Self::Reset => TimeoutClass::TcpClosing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: TcpFlags = TcpFlags::SYN;
    const SYN_ACK: TcpFlags = TcpFlags(TcpFlags::SYN.0 | TcpFlags::ACK.0);
    const ACK: TcpFlags = TcpFlags::ACK;
    const FIN: TcpFlags = TcpFlags(TcpFlags::FIN.0 | TcpFlags::ACK.0);
    const RST: TcpFlags = TcpFlags::RST;
    use Direction::{Inbound as In, Outbound as Out};

    fn run(start: TcpState, segments: &[(Direction, TcpFlags)]) -> TcpState {
        segments.iter().fold(start, |state, (direction, flags)| state.next(*direction, *flags))
    }

    #[test]
    fn connections_reach_the_expected_state() {
        use TcpState::{Closed, Established, InsideFin, Opening, OutsideFin, Reset};
        type Case = (&'static str, &'static [(Direction, TcpFlags)], TcpState);
        let cases: &[Case] = &[
            ("retransmitted SYN", &[(Out, SYN)], Opening),
            ("an ACK alone does not establish", &[(Out, ACK), (In, ACK)], Opening),
            ("handshake", &[(In, SYN_ACK), (Out, ACK)], Established),
            ("simultaneous open", &[(In, SYN), (Out, SYN_ACK)], Established),
            ("half-close by the pod", &[(In, SYN_ACK), (Out, FIN), (In, ACK)], InsideFin),
            ("half-close by the server", &[(In, SYN_ACK), (In, FIN), (Out, ACK)], OutsideFin),
            ("close", &[(In, SYN_ACK), (Out, FIN), (In, FIN), (Out, ACK)], Closed),
            ("retransmitted FIN", &[(In, SYN_ACK), (Out, FIN), (Out, FIN)], InsideFin),
            ("refused", &[(In, RST)], Opening),
            ("SYN, RST and ACK of one side", &[(Out, RST), (Out, ACK)], Opening),
            ("reset", &[(In, SYN_ACK), (Out, RST)], Reset),
            ("data after a RST", &[(In, SYN_ACK), (In, RST), (Out, ACK)], Established),
            ("RST after close", &[(In, SYN_ACK), (Out, FIN), (In, FIN), (Out, RST)], Closed),
            ("reopened from TIME-WAIT", &[(In, SYN_ACK), (Out, FIN), (In, FIN), (Out, SYN)], Opening),
        ];
        for (name, segments, expected) in cases {
            assert_eq!(run(Opening, segments), *expected, "{name}");
        }
    }
}
