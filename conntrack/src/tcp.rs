//! TCP as a translator sees it (RFC 7857 section 2.1, after RFC 6146 section 3.5.2).
//!
//! ```text
//!           SYN out               SYN in                 FIN out             FIN in
//!   (none) ─────────▶ Opening ─────────────▶ Established ───────▶ InsideFin ───────▶ Closed
//!      │                                      ▲  │ ▲  │ FIN in              FIN out   ▲
//!      │ SYN in                     SYN out   │  │ │  └───────▶ OutsideFin ───────────┘
//!      └──────────▶ OutsideOpening ───────────┘  │ │
//!                                           RST  ▼ │ any packet but RST and a SYN alone
//!                                               Reset
//! ```
//!
//! A RST also leads from InsideFin and OutsideFin to Reset. A SYN alone opens anew what is Closed or Reset: a SYN
//! out leads to Opening, a SYN in to OutsideOpening.

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
    /// The other side sent a SYN that the pod did not answer by a SYN yet: to a port that filtering leaves open to
    /// it, or to what was closed before.
    OutsideOpening,
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
    /// All states; the place of each is its number.
    pub const ALL: [Self; 7] = [
        Self::Opening,
        Self::OutsideOpening,
        Self::Established,
        Self::InsideFin,
        Self::OutsideFin,
        Self::Closed,
        Self::Reset,
    ];

    /// Returns the state with a number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Returns the state of a connection whose first SYN goes in `direction`.
    pub fn opened_by(direction: Direction) -> Self {
        match direction {
            Direction::Outbound => Self::Opening,
            Direction::Inbound => Self::OutsideOpening,
        }
    }

    /// Returns the state after a segment that goes in `direction`.
    #[must_use]
    pub fn next(self, direction: Direction, flags: TcpFlags) -> Self {
        if flags.has(TcpFlags::RST) {
            return match self {
                // A connection that was never open is not brought back by what comes after the RST.
                Self::Opening => Self::Opening,
                Self::OutsideOpening => Self::OutsideOpening,
                Self::Closed => Self::Closed,
                Self::Established | Self::InsideFin | Self::OutsideFin | Self::Reset => Self::Reset,
            };
        }
        match (self, direction) {
            (Self::Opening, Direction::Inbound) if flags.has(TcpFlags::SYN) => Self::Established,
            (Self::Opening, _) => Self::Opening,
            (Self::OutsideOpening, Direction::Outbound) if flags.has(TcpFlags::SYN) => Self::Established,
            (Self::OutsideOpening, _) => Self::OutsideOpening,
            (Self::Established, Direction::Outbound) if flags.has(TcpFlags::FIN) => Self::InsideFin,
            (Self::Established, Direction::Inbound) if flags.has(TcpFlags::FIN) => Self::OutsideFin,
            (Self::Established, _) => Self::Established,
            (Self::InsideFin, Direction::Inbound) if flags.has(TcpFlags::FIN) => Self::Closed,
            (Self::InsideFin, _) => Self::InsideFin,
            (Self::OutsideFin, Direction::Outbound) if flags.has(TcpFlags::FIN) => Self::Closed,
            (Self::OutsideFin, _) => Self::OutsideFin,
            (Self::Closed | Self::Reset, _) if flags.opens() => Self::opened_by(direction),
            (Self::Closed, _) => Self::Closed,
            (Self::Reset, _) => Self::Established,
        }
    }

    /// Returns the state after a segment that goes in `direction`, and notes what the segment says of sequence
    /// numbers: a RST that its receiver would not expect leaves an open connection as it is (RFC 5961 section 3).
    #[must_use]
    pub fn advance(self, expected: &mut Expected, direction: Direction, segment: &TcpSegment) -> Self {
        if self.is_open() && segment.flags.has(TcpFlags::RST) && !expected.accepts_reset(direction, segment) {
            return self;
        }
        expected.note(self, direction, segment);
        self.next(direction, segment.flags)
    }

    /// Tells whether the connection is open, so that a RST would end it.
    pub fn is_open(self) -> bool {
        match self {
            Self::Established | Self::InsideFin | Self::OutsideFin => true,
            Self::Opening | Self::OutsideOpening | Self::Closed | Self::Reset => false,
        }
    }

    /// Tells whether a packet that leaves this state unchanged gives the session new time: not in a closing
    /// state, which ends when its time is over (RFC 6146 section 3.5.2.2).
    pub fn is_refreshed(self) -> bool {
        match self {
            Self::Opening | Self::OutsideOpening => true,
            Self::Established | Self::InsideFin | Self::OutsideFin => true,
            Self::Closed | Self::Reset => false,
        }
    }

    /// Returns the timeout class of the state, towards a port that has no timeout of its own.
    pub fn class(self) -> TimeoutClass {
        match self {
            Self::Opening | Self::OutsideOpening => TimeoutClass::TcpOpening,
            Self::Established | Self::InsideFin | Self::OutsideFin => TimeoutClass::TcpEstablished,
            Self::Closed | Self::Reset => TimeoutClass::TcpClosing,
        }
    }
}

/// The sequence numbers that both receivers of a connection expect next, by which a RST is believed.
///
/// Each is the highest that its receiver acknowledged, so a stranger outside who knows the ports moves the number of
/// the pod's segments at most, never that of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    outbound: u32,
    inbound: u32,
}

const _: () = assert!(size_of::<Expected>() == 8);

/// How far beyond what its receiver expects a RST is believed, in bytes.
///
/// A RST stands behind what its sender has in flight, and 256 KiB cover that of most connections, while of 16,384
/// blind RSTs one is believed. One that stands farther ahead is not lost: its receiver asks back by a challenge
/// ACK, and the RST that answers it has the very number that was asked for (RFC 5961 section 3.2).
pub const RESET_WINDOW: u32 = 1 << 18;

impl Expected {
    /// Notes a segment that goes in `direction` and finds the connection in `state`.
    ///
    /// A SYN says where its side begins, as long as the connection is not open. An acknowledgement moves the other
    /// side's number forward; one that is a little behind is late, and one that is far behind is right and the
    /// number was wrong (another SYN than ours reached the pod, or a stranger acknowledged what was never sent).
    pub fn note(&mut self, state: TcpState, direction: Direction, segment: &TcpSegment) {
        let (own, other) = match direction {
            Direction::Outbound => (&mut self.outbound, &mut self.inbound),
            Direction::Inbound => (&mut self.inbound, &mut self.outbound),
        };
        if segment.flags.has(TcpFlags::RST) {
            return;
        }
        if segment.flags.has(TcpFlags::SYN) && !state.is_open() {
            *own = segment.sequence.wrapping_add(1);
        }
        let behind = other.wrapping_sub(segment.acknowledgement);
        if segment.flags.has(TcpFlags::ACK) && behind >= RESET_WINDOW {
            *other = segment.acknowledgement;
        }
    }

    /// Tells whether the receiver of a RST that goes in `direction` may take it for its peer's.
    pub fn accepts_reset(&self, direction: Direction, segment: &TcpSegment) -> bool {
        let expected = match direction {
            Direction::Outbound => self.outbound,
            Direction::Inbound => self.inbound,
        };
        segment.sequence.wrapping_sub(expected) < RESET_WINDOW
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the segments that words such as `>S <SA` stand for: from the pod a SYN, from the other SYN and ACK.
    fn segments(words: &str) -> Vec<(Direction, TcpFlags)> {
        let flag = |letter| match letter {
            'S' => TcpFlags::SYN.0,
            'A' => TcpFlags::ACK.0,
            'F' => TcpFlags::FIN.0,
            'R' => TcpFlags::RST.0,
            other => panic!("{other} is no flag"),
        };
        let segment = |word: &str| {
            let direction = if word.starts_with('>') { Direction::Outbound } else { Direction::Inbound };
            (direction, TcpFlags(word[1..].chars().map(flag).sum()))
        };
        words.split(' ').map(segment).collect()
    }

    #[test]
    fn connections_reach_the_expected_state() {
        use TcpState::{Closed, Established, InsideFin, Opening, OutsideFin, OutsideOpening, Reset};
        let cases = [
            ("SYN out", ">S", Opening),
            ("SYN in", "<S", OutsideOpening),
            ("retransmitted SYN out", ">S >S", Opening),
            ("retransmitted SYN in", "<S <S", OutsideOpening),
            ("an ACK alone does not establish", ">S >A <A", Opening),
            ("an ACK does not establish what the world opened", "<S <A >A", OutsideOpening),
            ("handshake", ">S <SA >A", Established),
            ("handshake that the world began", "<S >SA <A", Established),
            ("simultaneous open, the pod first", ">S <S >SA", Established),
            ("simultaneous open, the other first", "<S >S <SA", Established),
            ("retransmitted SYN-ACK in", ">S <SA >A <SA", Established),
            ("retransmitted SYN-ACK out", "<S >SA <A >SA", Established),
            ("half-close by the pod", ">S <SA >FA <A", InsideFin),
            ("half-close by the other", ">S <SA <FA >A", OutsideFin),
            ("retransmitted FIN out", ">S <SA >FA >FA", InsideFin),
            ("retransmitted FIN in", ">S <SA <FA <FA", OutsideFin),
            ("close by the pod", ">S <SA >FA <FA >A", Closed),
            ("close by the other", "<S >SA <FA >FA <A", Closed),
            ("retransmitted FIN after close", ">S <SA >FA <FA <FA >A", Closed),
            ("refused", ">S <RA", Opening),
            ("refused by the pod", "<S >RA", OutsideOpening),
            ("SYN, RST and ACK of one side", ">S >R >A", Opening),
            ("reset", ">S <SA >R", Reset),
            ("reset when half closed", ">S <SA <FA >R", Reset),
            ("data after a RST", ">S <SA <R >A", Established),
            ("RST after close", ">S <SA >FA <FA >R", Closed),
            ("opened anew after a RST", ">S <SA <R >S", Opening),
            ("opened anew by the world after a RST", ">S <SA <R <S", OutsideOpening),
            ("opened anew from TIME-WAIT", ">S <SA >FA <FA >S", Opening),
            ("opened anew from TIME-WAIT by the world", ">S <SA >FA <FA <S", OutsideOpening),
            ("a late SYN-ACK opens nothing anew", ">S <SA >FA <FA <SA", Closed),
        ];
        for (name, words, expected) in cases {
            let segments = segments(words);
            let opened = TcpState::opened_by(segments[0].0);
            let state =
                segments.iter().fold(opened, |state, (direction, flags)| state.next(*direction, *flags));
            assert_eq!(state, expected, "{name}");
        }
    }

    const SYN: TcpFlags = TcpFlags::SYN;
    const SYN_ACK: TcpFlags = TcpFlags(TcpFlags::SYN.0 | TcpFlags::ACK.0);
    const ACK: TcpFlags = TcpFlags::ACK;
    const FIN_ACK: TcpFlags = TcpFlags(TcpFlags::FIN.0 | TcpFlags::ACK.0);
    const RST: TcpFlags = TcpFlags::RST;

    /// A connection of two honest sides, as it passes the translator.
    #[derive(Clone)]
    struct Connection {
        state: TcpState,
        expected: Expected,
        /// What each side sends next: the pod, the other.
        next: [u32; 2],
        /// What each side acknowledged of the other's.
        acknowledged: [u32; 2],
    }

    impl Connection {
        /// Returns one after the handshake that the side `opener` began.
        fn open(opener: usize, first: [u32; 2]) -> Self {
            let next = first.map(|first| first.wrapping_add(1));
            let state = TcpState::opened_by(direction_of(opener));
            let mut connection =
                Self { state, expected: Expected::default(), next, acknowledged: [next[1], next[0]] };
            let answerer = 1 - opener;
            connection.pass(direction_of(opener), SYN, first[opener], 0);
            connection.pass(direction_of(answerer), SYN_ACK, first[answerer], next[opener]);
            connection.pass(direction_of(opener), ACK, next[opener], next[answerer]);
            assert_eq!(connection.state, TcpState::Established);
            connection
        }

        fn pass(&mut self, direction: Direction, flags: TcpFlags, sequence: u32, acknowledgement: u32) {
            let segment = TcpSegment { flags, sequence, acknowledgement };
            self.state = self.state.advance(&mut self.expected, direction, &segment);
        }

        /// Lets one side send `bytes`, which the other acknowledges or does not yet.
        fn send(&mut self, side: usize, flags: TcpFlags, bytes: u32, is_acknowledged: bool) {
            self.pass(direction_of(side), flags, self.next[side], self.acknowledged[side]);
            self.next[side] = self.next[side].wrapping_add(bytes);
            if is_acknowledged {
                self.acknowledged[1 - side] = self.next[side];
                self.pass(direction_of(1 - side), ACK, self.next[1 - side], self.next[side]);
            }
        }

        fn after_reset(mut self, side: usize, sequence: u32) -> TcpState {
            self.pass(direction_of(side), RST, sequence, 0);
            self.state
        }
    }

    fn direction_of(side: usize) -> Direction {
        [Direction::Outbound, Direction::Inbound][side]
    }

    /// Where both sides begin, half of the time shortly before the wrap.
    fn first_numbers() -> impl Strategy<Value = [u32; 2]> {
        let number = || prop_oneof![any::<u32>(), u32::MAX - 50_000..=u32::MAX];
        [number(), number()]
    }

    proptest! {
        #[test]
        fn a_reset_of_either_side_is_believed_and_a_blind_one_is_not(
            opener in 0usize..2,
            first in first_numbers(),
            data in prop::collection::vec((0usize..2, 1u32..3000, any::<bool>()), 0..60),
            fin in prop::option::of(0usize..2),
            side in 0usize..2,
            ahead in prop_oneof![Just(RESET_WINDOW), Just(u32::MAX), RESET_WINDOW..=u32::MAX],
        ) {
            let mut connection = Connection::open(opener, first);
            for (side, bytes, is_acknowledged) in data {
                connection.send(side, ACK, bytes, is_acknowledged);
            }
            if let Some(side) = fin {
                connection.send(side, FIN_ACK, 1, false);
            }
            let (sent, acknowledged) = (connection.next[side], connection.acknowledged[1 - side]);
            let state = connection.state;
            prop_assert_eq!(connection.clone().after_reset(side, sent), TcpState::Reset);
            prop_assert_eq!(connection.clone().after_reset(side, acknowledged), TcpState::Reset);
            prop_assert_eq!(connection.after_reset(side, acknowledged.wrapping_add(ahead)), state);
        }

        #[test]
        fn nothing_that_a_stranger_sends_makes_its_blind_reset_believed(
            first in first_numbers(),
            has_fin in any::<bool>(),
            guess in any::<u32>(),
            events in prop::collection::vec((0u8..6, 0u32..3000), 1..60),
        ) {
            let mut connection = Connection::open(0, first);
            if has_fin {
                connection.send(0, FIN_ACK, 1, true);
            }
            for (kind, bytes) in events {
                let number = guess.wrapping_add(bytes);
                let is_blind = number.wrapping_sub(connection.acknowledged[0]) >= RESET_WINDOW;
                match kind {
                    0 => connection.pass(Direction::Inbound, SYN, number, number),
                    1 => connection.pass(Direction::Inbound, SYN_ACK, number, number),
                    2 => connection.pass(Direction::Inbound, ACK, number, number),
                    3 => connection.pass(Direction::Inbound, FIN_ACK, number, number),
                    4 if is_blind => connection.pass(Direction::Inbound, RST, number, number),
                    _ => connection.send(1, ACK, bytes, true),
                }
                prop_assert_ne!(connection.state, TcpState::Reset);
            }
        }
    }

    #[test]
    fn only_its_own_acknowledgements_say_what_a_side_expects() {
        let mut connection = Connection::open(0, [1000, 5000]);
        let expects = |connection: &Connection| (connection.expected.outbound, connection.expected.inbound);
        assert_eq!(expects(&connection), (1001, 5001));
        let cases = [
            ("data out", Direction::Outbound, ACK, 1001, 5001, (1001, 5001)),
            ("its acknowledgement", Direction::Inbound, ACK, 5001, 2001, (2001, 5001)),
            ("a late one", Direction::Inbound, ACK, 5001, 1501, (2001, 5001)),
            ("data in", Direction::Inbound, ACK, 5001, 2001, (2001, 5001)),
            ("its acknowledgement", Direction::Outbound, ACK, 2001, 6001, (2001, 6001)),
            ("a segment without one", Direction::Outbound, TcpFlags::default(), 2001, 9999, (2001, 6001)),
            ("a SYN in the midst", Direction::Inbound, SYN, 77, 0, (2001, 6001)),
            ("a RST", Direction::Outbound, RST, 2001, 9999, (2001, 6001)),
        ];
        for (name, direction, flags, sequence, acknowledgement, after) in cases {
            connection.pass(direction, flags, sequence, acknowledgement);
            assert_eq!(expects(&connection), after, "{name}");
        }
    }

    #[test]
    fn a_false_acknowledgement_that_is_far_off_is_righted_by_the_next_true_one() {
        for ahead in [RESET_WINDOW + 1000, 1 << 30, 1 << 31, u32::MAX - RESET_WINDOW] {
            let mut connection = Connection::open(0, [1000, 5000]);
            connection.pass(Direction::Inbound, ACK, 5001, 1001u32.wrapping_add(ahead));
            assert_eq!(connection.clone().after_reset(0, 1001), TcpState::Established, "{ahead}");
            connection.send(0, ACK, 1000, true);
            let sent = connection.next[0];
            assert_eq!(connection.after_reset(0, sent), TcpState::Reset, "{ahead}");
        }
    }
}
