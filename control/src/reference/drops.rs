//! Every reason for which a packet is dropped: on which side its packets come in, and what to do about it.

use fastpath::stage::Stage;
use fastpath::verdict::DropReason;

/// On which side the packets come in that are dropped for a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From pods.
    Inside,
    /// From the world.
    Outside,
    /// From either.
    Both,
}

/// Returns what is decided at a stage.
pub fn help(stage: Stage) -> &'static str {
    match stage {
        Stage::Steer => {
            "The XDP program decides which frames a worker gets; what it drops itself is in the table below."
        }
        Stage::Parse => "Every length is checked here, and nowhere after.",
        Stage::Classify => {
            "Inside, the destination MAC tells the tenant, and the source has to be one that it may use; outside, the \
             destination address tells it."
        }
        Stage::Fragments => "Later fragments have no ports: they wait for the first.",
        Stage::Limits => "What a router may not forward.",
        Stage::Session => "One lookup finds the session; a packet without one may open it, if there is room.",
        Stage::Route => "The kernel's routes and neighbours, as the workers know them.",
        Stage::Rewrite => "Addresses, ports and checksums are written; nothing is dropped here.",
        Stage::Send => {
            "To the ring of the interface ahead, or first to the worker that has the packet's session, or that can send it."
        }
    }
}

impl Origin {
    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inside => "inside",
            Self::Outside => "outside",
            Self::Both => "both",
        }
    }
}

/// What is known of a reason beside what it means.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The reason.
    pub reason: DropReason,
    /// The side on which they come in.
    pub origin: Origin,
    /// What to do when packets are dropped for it that should not be.
    pub remedy: &'static str,
}

/// Every reason, in the order in which a packet may meet them.
pub const PLACES: &[Place] = &[
    place(
        DropReason::QueueShare,
        Origin::Both,
        "Look at who floods: the tenant had its share while others used the queue too. More queues or cores \
         help them all.",
    ),
    place(
        DropReason::Malformed,
        Origin::Both,
        "Nothing, if they are few: somebody sends garbage. From pods, look at the sender with `tcpdump`.",
    ),
    place(DropReason::NotIpv4, Origin::Both, "Nothing: IPv6 and the like are not translated yet."),
    place(
        DropReason::BadChecksum,
        Origin::Both,
        "On a veth: turn off the sender's transmit offloads (`ethtool -K DEV tx off`). Else look for a \
         damaged link.",
    ),
    place(
        DropReason::FragmentedError,
        Origin::Both,
        "Nothing: such an error cannot be brought to its session.",
    ),
    place(
        DropReason::QuotedFragment,
        Origin::Both,
        "Nothing: such an error cannot be brought to its session.",
    ),
    place(
        DropReason::UnsupportedProtocol,
        Origin::Both,
        "Nothing: TCP, UDP, ICMP queries and errors, GRE, ESP, SCTP, UDP-Lite and IP-in-IP are translated.",
    ),
    place(
        DropReason::UnsupportedIcmp,
        Origin::Both,
        "Nothing: TCP, UDP, ICMP queries and errors, GRE, ESP, SCTP, UDP-Lite and IP-in-IP are translated.",
    ),
    place(
        DropReason::Leak,
        Origin::Inside,
        "A few after tenants changed are stale ARP caches, and end by themselves. If it goes on, the \
         policy's next hop is not a tenant's gateway address, or the tenant is missing: `spillway doctor`.",
    ),
    place(
        DropReason::UnknownSource,
        Origin::Inside,
        "Correct the tenant's `pod_cidrs` (`spillway tenant show NAME` has its sources), or \
         `cluster.pod_cidrs`.",
    ),
    place(
        DropReason::UnknownPod,
        Origin::Inside,
        "A few are pods that are newer than what the gateway knows. If it goes on, look at `kubernetes` in \
         `spillway status`, and whether a policy routes the pod's namespace to this tenant.",
    ),
    place(
        DropReason::NodeSource,
        Origin::Inside,
        "The cluster translates pods to their node's address: set the tenant's sources to nodes, or turn \
         that off in the cluster.",
    ),
    place(
        DropReason::PodSource,
        Origin::Inside,
        "Pods come with their own addresses: set the tenant's sources to pods.",
    ),
    place(
        DropReason::UnknownTenant,
        Origin::Both,
        "A few are packets to a tenant that is gone. Else somebody sends to a wrong address.",
    ),
    place(
        DropReason::MartianAddress,
        Origin::Both,
        "Nothing: multicast, broadcast, loopback, link-local and spoofed addresses are not forwarded.",
    ),
    place(
        DropReason::MisaddressedError,
        Origin::Both,
        "Nothing: somebody sends errors that nobody is to get.",
    ),
    place(
        DropReason::FragmentOverlap,
        Origin::Both,
        "Look at the sender: overlapping fragments are an attack or a fault.",
    ),
    place(
        DropReason::FragmentIncomplete,
        Origin::Both,
        "Look for loss ahead of the gateway; lower the MTU of pods, so that less is fragmented.",
    ),
    place(
        DropReason::FragmentLimit,
        Origin::Both,
        "Lower the MTU of pods, or set `mss_clamp`, so that less is fragmented.",
    ),
    place(
        DropReason::TtlExceeded,
        Origin::Both,
        "Nothing for traceroute; else there is a loop in the routes.",
    ),
    place(
        DropReason::TooBig,
        Origin::Both,
        "Nothing: the sender is told the right size. If connections hang, something drops ICMP on the way; \
         `mss_clamp` helps.",
    ),
    place(
        DropReason::AmbiguousProtocol,
        Origin::Inside,
        "Give the tenant another egress address, so that the second pod has one that the first does not \
         use.",
    ),
    place(
        DropReason::NoSession,
        Origin::Both,
        "From outside, nothing: the world knocks. From pods, a few are connections that ended or idled too \
         long (`[timeouts]`).",
    ),
    place(DropReason::TenantDraining, Origin::Both, "Nothing: the tenant is being removed."),
    place(
        DropReason::NoPort,
        Origin::Inside,
        "Give the tenant more egress addresses: each has 64,512 ports towards each destination, and a pod \
         uses one address. Endpoint-independent mapping takes a port for each inside port: use \
         `address-and-port` where programs do not need it.",
    ),
    place(
        DropReason::SessionsFull,
        Origin::Both,
        "Raise `[sessions] capacity` and restart, which costs no connection; or bound tenants by \
         `--max-sessions`.",
    ),
    place(
        DropReason::TenantShare,
        Origin::Both,
        "Raise `[sessions] capacity` and restart, or look at what this tenant does.",
    ),
    place(
        DropReason::TenantSessionLimit,
        Origin::Both,
        "Raise the tenant's `--max-sessions`, or leave it: it is its bound.",
    ),
    place(
        DropReason::TenantPortLimit,
        Origin::Both,
        "Raise the tenant's `--max-ports`, or leave it: it is its bound.",
    ),
    place(
        DropReason::TenantRateLimit,
        Origin::Both,
        "Raise the tenant's `--max-new-sessions`, or leave it: it is its bound.",
    ),
    place(
        DropReason::PodSessionLimit,
        Origin::Both,
        "Raise the tenant's `--max-sessions-per-pod`, or look at what the pod does.",
    ),
    place(
        DropReason::PodPortLimit,
        Origin::Both,
        "Raise the tenant's `--max-ports-per-pod`, or look at what the pod does.",
    ),
    place(
        DropReason::PodRateLimit,
        Origin::Both,
        "Raise the tenant's `--max-new-sessions-per-pod`, or look at what the pod does.",
    ),
    place(
        DropReason::NoRoute,
        Origin::Both,
        "`spillway routes` and `ip route`: to the world, a default route by the outside interface is \
         missing; to a pod, `cluster.routes` or its Node object.",
    ),
    place(
        DropReason::NeighbourUnresolved,
        Origin::Both,
        "`ip neigh`: the next hop does not answer ARP. Is it up, and in the same network and VLAN?",
    ),
    place(
        DropReason::HandOverFull,
        Origin::Both,
        "One worker is overloaded: look at WORKER and HANDED OVER in `spillway status`. More workers, or as \
         many queues as workers, help.",
    ),
    place(
        DropReason::InterfaceAway,
        Origin::Both,
        "`spillway status` says why: the interface is down, gone or renamed. It is taken up again by \
         itself.",
    ),
    place(
        DropReason::TxRingFull,
        Origin::Both,
        "The link ahead carries no more, or the worker's core is busy: more queues, or a faster link.",
    ),
    place(
        DropReason::NoFreeFrame,
        Origin::Both,
        "Lower the MTU of pods, or set `mss_clamp`, so that less is fragmented.",
    ),
    place(
        DropReason::WorkerPanic,
        Origin::Both,
        "Report it, with the lines of the log that say `worker panicked`. The worker goes on.",
    ),
];

const fn place(reason: DropReason, origin: Origin, remedy: &'static str) -> Place {
    Place { reason, origin, remedy }
}

/// Rows of the XDP program's decision table, and which frames each counts.
pub const ROWS_HELP: &[(&str, &str)] = &[
    ("arp_passed", "ARP, left to the kernel, which answers for tenants' links."),
    (
        "gateway_address_passed",
        "Packets to a tenant's gateway address itself, such as ping, left to the kernel.",
    ),
    ("tenant_to_worker", "Tenants' packets that a worker got."),
    (
        "tenant_without_worker_dropped",
        "Tenants' packets while no worker serves the queue: the daemon does not run.",
    ),
    (
        "tenant_over_share_dropped",
        "Tenants' packets over their share of the queue; also counted as `queue_share`.",
    ),
    ("tenant_not_ipv4_dropped", "Frames to a tenant's MAC that are not IPv4."),
    ("leak_to_worker", "Pods' packets to a MAC that is no tenant's; the worker answers, and counts `leak`."),
    ("leak_without_worker_dropped", "The same while no worker serves the queue."),
    ("leak_over_share_dropped", "The same over the share of the queue; also counted as `queue_share`."),
    ("leak_tagged_dropped", "Pods' packets behind a VLAN tag."),
    ("egress_address_dropped", "Packets from inside to an egress address by another than a tenant's MAC."),
    ("many_tags_dropped", "Frames behind more than two VLAN tags."),
    ("rest_passed", "Everything else, left to the kernel."),
    ("egress_to_worker", "Packets to an egress address that a worker got."),
    ("egress_without_worker_dropped", "Packets to an egress address while no worker serves the queue."),
    (
        "egress_over_share_dropped",
        "Packets over their tenant's share of the queue; also counted as `queue_share`.",
    ),
    ("egress_tagged_dropped", "Packets to an egress address behind a VLAN tag."),
    (
        "second_line_dropped",
        "What the second line dropped, because it got past XDP: somebody took the program away.",
    ),
];

/// Returns which frames a row of the XDP program's decision table counts.
pub fn row_help(row: &str) -> Option<&'static str> {
    ROWS_HELP.iter().find(|(name, _)| *name == row).map(|(_, help)| *help)
}

#[cfg(test)]
mod tests {
    use fastpath::steer::ROWS;

    use super::*;

    #[test]
    fn every_row_of_the_xdp_program_is_explained() {
        for (_, row) in ROWS {
            assert!(row_help(row).is_some(), "ROWS_HELP lacks {row}");
        }
    }

    #[test]
    fn every_reason_has_one_place_and_a_remedy_that_is_a_sentence() {
        for reason in DropReason::ALL {
            let places: Vec<_> = PLACES.iter().filter(|place| place.reason == *reason).collect();
            assert_eq!(places.len(), 1, "PLACES has {places:?} for {reason:?}");
            assert!(places[0].remedy.ends_with(['.', '?', '`']), "{reason:?}");
        }
        assert!(PLACES.is_sorted_by_key(|place| place.reason.stage()));
    }
}
