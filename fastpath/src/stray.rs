//! What becomes of packets that belong to no session and may not open one.
//!
//! A SYN from outside may be half of a simultaneous open, so it is held for six seconds (RFC 5382 REQ-4): if the pod
//! has opened the connection by then nothing is said, else its sender learns that nobody listens.

use std::time::Duration;

use conntrack::{Direction, Key, TenantId, Tick};

use crate::classify::Class;
use crate::io::Frame;
use crate::parse::{Flow, Segment, parse};
use crate::pipeline::{Engine, Outcome};
use crate::reject::{answer_unasked, write_answer};
use crate::snapshot::{MidStream, Side, TcpPolicy, UnsolicitedSyn};
use crate::verdict::{DropReason, Errand, Verdict};
use crate::waiting::WaitingRules;

/// Rules for SYNs that nobody asked for; one that was sent again while the first is held tells nothing new.
pub const FOR_OPENING: WaitingRules =
    WaitingRules { in_all: 128, of_tenant: 32, for_same: 1, patience: Duration::from_secs(6) };

/// Refuses a packet that belongs to no session and may not open one.
#[cold]
pub fn refuse_stray(policy: TcpPolicy, class: Class, flow: &Flow) -> Verdict {
    match (class.direction, flow.segment) {
        (Direction::Outbound, Segment::Tcp(_)) => match policy.mid_stream {
            MidStream::Reset => Verdict::Reject(DropReason::NoSession),
            MidStream::Drop => Verdict::Drop(DropReason::NoSession),
        },
        (Direction::Inbound, Segment::Tcp(segment)) if segment.flags.opens() => {
            match policy.unsolicited_syn {
                UnsolicitedSyn::Unreachable => {
                    Verdict::HoldSyn(Key::new(class.tenant, class.direction, &flow.tuple))
                }
                UnsolicitedSyn::Drop => Verdict::Drop(DropReason::NoSession),
            }
        }
        (direction, Segment::Tcp(_) | Segment::Udp | Segment::Query | Segment::Reply | Segment::Opaque) => {
            Verdict::refuse(Side::ahead(direction).other(), DropReason::NoSession)
        }
    }
}

/// Decides about a SYN that was held long enough: answers it unless the session with this key exists by now, or it
/// would not be held today.
#[cold]
pub fn release_syn(
    engine: &mut Engine,
    frame: &mut Frame,
    key: &Key,
    tenant: Option<TenantId>,
    now: Tick,
) -> Outcome {
    let dropped = Outcome {
        verdict: Verdict::Drop(DropReason::NoSession),
        tenant,
        side: Side::Outside,
        errand: Errand::NEW,
    };
    let Ok(packet) = parse(frame.bytes()) else { return dropped };
    let is_answered = match engine.snapshot.spec().tcp.unsolicited_syn {
        UnsolicitedSyn::Unreachable => engine.conntrack.find(key).is_none(),
        UnsolicitedSyn::Drop => false,
    };
    let egress = packet.ip.destination;
    // Nor does a pod that came to another tenant's egress address learn more than the world would.
    let is_ours = tenant.is_some()
        && engine.snapshot.tenant_by_egress(egress) == tenant
        && engine.snapshot.tenant_by_egress(packet.ip.source).is_none();
    match answer_unasked(&packet).filter(|_| is_answered && is_ours) {
        Some(answer) if engine.answers.take(tenant, now) => {
            write_answer(frame, &packet, answer, egress);
            Outcome {
                verdict: Verdict::Reject(DropReason::NoSession),
                tenant,
                side: Side::Outside,
                errand: Errand::NEW,
            }
        }
        Some(_) | None => dropped,
    }
}
