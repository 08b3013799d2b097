//! What becomes of packets that belong to no session and may not open one.

use conntrack::Direction;

use crate::classify::Class;
use crate::parse::{Flow, Segment};
use crate::snapshot::{MidStream, Side, TcpPolicy};
use crate::verdict::{DropReason, Verdict};

/// Refuses a packet that belongs to no session and may not open one.
#[cold]
pub fn refuse_stray(policy: TcpPolicy, class: Class, flow: &Flow) -> Verdict {
    match (class.direction, flow.segment, policy.mid_stream) {
        (Direction::Outbound, Segment::Tcp(_), MidStream::Drop) => Verdict::Drop(DropReason::NoSession),
        (
            direction,
            Segment::Tcp(_) | Segment::Udp | Segment::Query | Segment::Reply | Segment::Opaque,
            MidStream::Reset | MidStream::Drop,
        ) => Verdict::refuse(Side::ahead(direction).other(), DropReason::NoSession),
    }
}
