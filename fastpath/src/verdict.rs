//! What becomes of a frame.

use conntrack::{Key, Loan, LoanRequest};

use crate::dataplane::NeighbourRequest;
use crate::fragments::Head;
use crate::fragments::table::DatagramId;
use crate::snapshot::Side;

/// What is known of a frame when a worker takes it up, beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errand {
    /// Whether another worker found that the frame's session is at this one.
    pub is_owned: bool,
    /// Whether it comes from a pod, and back in by the outside: from an egress address of this gateway nothing else may.
    pub has_turned: bool,
    /// What is known of its datagram, if it is a fragment.
    pub datagram: DatagramErrand,
    /// What the workers said about a port for its session.
    pub lending: Lending,
}

/// What is known of the datagram of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatagramErrand {
    /// Nothing, or it is no fragment.
    Unknown,
    /// It is a fragment, and the worker keeps its datagram.
    Keep,
    /// It is a fragment of a datagram with this head, and was tracked.
    Resolved(Head),
}

/// What the workers said when they were asked for a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lending {
    /// They were not asked.
    NotAsked,
    /// The worker that has the frame is asked.
    Asked(LoanRequest),
    /// One lent a port.
    Lent(Loan),
    /// None has one.
    Refused,
}

impl Errand {
    /// The errand of a frame that comes from a wire.
    pub const NEW: Self = Self {
        is_owned: false,
        has_turned: false,
        datagram: DatagramErrand::Unknown,
        lending: Lending::NotAsked,
    };

    /// That of a frame that was handed over for its session, and for nothing else.
    pub const OWNED: Self = Self { is_owned: true, ..Self::NEW };

    /// Returns the errand of a frame whose session is at the worker that it is handed to.
    #[must_use]
    pub fn for_owner(self) -> Self {
        Self { is_owned: true, lending: Lending::NotAsked, ..self }
    }

    /// Returns the errand of a frame that waited and is taken up again.
    #[must_use]
    pub fn again(self) -> Self {
        Self { is_owned: false, lending: Lending::NotAsked, ..self }
    }
}

/// What the pipeline decided about one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The frame is rewritten and leaves by this side.
    Forward(Side),
    /// The frame is rewritten and comes back in by the outside: it goes to an egress address of this gateway (RFC 4787
    /// REQ-9).
    Hairpin,
    /// The frame is rewritten and leaves by this side in fragments, because it is too large for the link.
    Split(Side),
    /// The frame now holds an answer (ICMP error or TCP RST) that goes back where it came from; the
    /// packet that it held is dropped for the reason.
    Reject(DropReason),
    /// The frame is untouched and belongs to another worker.
    HandOver(u16, Errand),
    /// The frame is untouched and waits until a neighbour is resolved.
    Wait(NeighbourRequest),
    /// The frame is untouched, a SYN from outside that nobody asked for, and is kept until it is known whether the
    /// pod opens the connection that packets with this key belong to (RFC 5382 REQ-4).
    HoldSyn(Key),
    /// The frame is untouched and waits for the first fragment of its datagram.
    Hold(DatagramId),
    /// The frame is dropped.
    Drop(DropReason),
}

impl Verdict {
    /// Returns the verdict on a packet from `side` that may not pass: pods and nodes are told why; the world is
    /// not (RFC 5382 REQ-4).
    pub fn refuse(side: Side, reason: DropReason) -> Self {
        match side {
            Side::Inside => Self::Reject(reason),
            Side::Outside => Self::Drop(reason),
        }
    }
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// Why a packet was dropped. Each reason is a counter; its first line is the metric's help.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl DropReason {
            /// Every reason, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// Returns the reason's name in metrics and status.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// Returns what the reason means, in a sentence.
            pub fn help(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii(),)+ }
            }

            /// Returns the reason's place among the counters.
            pub fn index(self) -> usize {
                self as usize
            }
        }
    };
}

drop_reasons! {
    /// The frame is too short for its headers, or a length in it contradicts another.
    Malformed = "malformed",
    /// The frame does not hold IPv4.
    NotIpv4 = "not_ipv4",
    /// The IPv4 header checksum is wrong.
    BadChecksum = "bad_checksum",
    /// The packet is a fragment of an ICMP error; they are too short to need any (RFC 1812 section 4.3.2.3).
    FragmentedError = "fragmented_error",
    /// The ICMP error quotes a later fragment, which has no ports to find a session by.
    QuotedFragment = "quoted_fragment",
    /// The fragment overlaps another of its datagram (RFC 1858), or is of a datagram where that happened.
    FragmentOverlap = "fragment_overlap",
    /// The first fragment of the datagram did not come in time.
    FragmentIncomplete = "fragment_incomplete",
    /// Too many datagrams are incomplete, lie in too many pieces, or have too many fragments that wait.
    FragmentLimit = "fragment_limit",
    /// Another pod talks to the same address in the same protocol, which has no ports to tell them apart.
    AmbiguousProtocol = "ambiguous_protocol",
    /// The transport protocol is not one that is translated.
    UnsupportedProtocol = "unsupported_protocol",
    /// The ICMP type is neither a query nor an error that is translated.
    UnsupportedIcmp = "unsupported_icmp",
    /// A packet from a pod network came to a MAC that is no tenant's.
    Leak = "leak",
    /// The source address is not one that the tenant may use.
    UnknownSource = "unknown_source",
    /// The source is a pod that is not known to be the tenant's; it may be too new, and is not answered.
    UnknownPod = "unknown_pod",
    /// The source is a node's: the cluster translates pods to their node's address, which the tenant may not use.
    NodeSource = "node_source",
    /// The source is a pod's, and the tenant may use nodes' addresses only.
    PodSource = "pod_source",
    /// The destination is no tenant's, by MAC inside or by egress address outside.
    UnknownTenant = "unknown_tenant",
    /// The source or destination address may not be forwarded (multicast, broadcast, loopback, link-local).
    MartianAddress = "martian_address",
    /// An ICMP error is not addressed to the sender of the packet that it quotes.
    MisaddressedError = "misaddressed_error",
    /// The time to live ran out at the gateway.
    TtlExceeded = "ttl_exceeded",
    /// The packet is larger than the outgoing link's MTU.
    TooBig = "too_big",
    /// No session belongs to the packet, and it may not open one.
    NoSession = "no_session",
    /// The tenant is being removed and takes no new sessions.
    TenantDraining = "tenant_draining",
    /// Every port of the pod's egress address is taken towards this destination (RFC 4787 REQ-3: never overload).
    NoPort = "no_port",
    /// The session table is full.
    SessionsFull = "sessions_full",
    /// The tenant has its share of the session table; what is free is kept for others.
    TenantShare = "tenant_share",
    /// The tenant has as many sessions as it may.
    TenantSessionLimit = "tenant_session_limit",
    /// The tenant has as many outside ports as it may.
    TenantPortLimit = "tenant_port_limit",
    /// The tenant has opened as many sessions in this second as it may.
    TenantRateLimit = "tenant_rate_limit",
    /// The pod has as many sessions as it may.
    PodSessionLimit = "pod_session_limit",
    /// The pod has as many outside ports as it may.
    PodPortLimit = "pod_port_limit",
    /// The pod has opened as many sessions in this second as it may.
    PodRateLimit = "pod_rate_limit",
    /// No route leads to the destination by the outgoing interface.
    NoRoute = "no_route",
    /// The next hop did not resolve in time, or too many frames were waiting for it.
    NeighbourUnresolved = "neighbour_unresolved",
    /// The interface that the packet should leave by is away.
    InterfaceAway = "interface_away",
    /// The tenant had its share of a queue that frames of others came by too (dropped by the XDP program).
    QueueShare = "queue_share",
    /// The outgoing ring was full.
    TxRingFull = "tx_ring_full",
    /// No frame was free for a fragment of a packet that is too large for the link.
    NoFreeFrame = "no_free_frame",
    /// The hand-over queue of the worker that owns the packet, or has to send it, was full.
    HandOverFull = "hand_over_full",
    /// The worker failed while it had this frame in hand.
    WorkerPanic = "worker_panic",
}

impl DropReason {
    /// Reasons to refuse a session for lack of room, or by a limit: the pod and the operator are told (RFC 5508 REQ-8, RFC
    /// 6888 REQ-11).
    pub const SHORTAGES: [Self; 10] = [
        Self::NoPort,
        Self::AmbiguousProtocol,
        Self::SessionsFull,
        Self::TenantShare,
        Self::TenantSessionLimit,
        Self::TenantPortLimit,
        Self::TenantRateLimit,
        Self::PodSessionLimit,
        Self::PodPortLimit,
        Self::PodRateLimit,
    ];
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_has_its_own_name_index_and_help() {
        let names: HashSet<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), DropReason::ALL.len());
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), index);
            assert!(reason.help().ends_with('.') || reason.help().ends_with(')'), "{}", reason.help());
        }
    }
}
