//! Frames of every kind at once, under policies of every kind, at several workers that now and then forget; and some
//! tenants drain.

use std::collections::HashSet;
use std::time::Duration;

use conntrack::{Filtering, Mapping, Policy, Protocol, Quota, TcpFlags};
use proptest::prelude::*;

use super::{EGRESS, RED_EGRESS, SYN_ACK};
use crate::io::sim::Faults;
use crate::snapshot::Side::{self, Inside, Outside};
use crate::snapshot::UnsolicitedSyn;
use crate::testing::rig::{Rig, Size, check_checksums, check_source};
use crate::testing::{Gateway, echo_frame, gateway, icmp_error_about, raw_frame, red, tcp_frame, udp_frame};

const WORKERS: usize = 3;
const SESSIONS: u32 = 700;

#[derive(Clone, Debug)]
enum Event {
    Frame(AnyFrame),
    /// A worker forgets its sessions.
    Forget(usize),
}

#[derive(Clone, Debug)]
struct AnyFrame {
    worker: usize,
    pod: Pod,
    kind: Kind,
    flags: TcpFlags,
    is_big: bool,
    noise: Option<(prop::sample::Index, u8)>,
}

#[derive(Clone, Copy, Debug)]
struct Pod {
    is_red: bool,
    host: u8,
    port: u16,
}

#[derive(Clone, Debug)]
enum Kind {
    UdpOut,
    TcpOut,
    Echo,
    Gre,
    UdpIn,
    TcpIn,
    ErrorIn,
    /// From a pod to an egress address and a port that need not be open.
    ToEgress,
    /// Back to where a session has come out: from its other end, or from a pod.
    ToSession {
        which: prop::sample::Index,
        is_from_pod: bool,
    },
    /// An error of a router, or of a pod's node, about a packet of a session.
    AboutSession {
        which: prop::sample::Index,
        is_from_node: bool,
    },
}

fn any_flags() -> impl Strategy<Value = TcpFlags> {
    prop_oneof![
        Just(TcpFlags::SYN),
        Just(SYN_ACK),
        Just(TcpFlags::ACK),
        Just(TcpFlags(0x11)),
        Just(TcpFlags::RST)
    ]
}

fn any_kind() -> impl Strategy<Value = Kind> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        3 => Just(Kind::UdpOut),
        2 => Just(Kind::TcpOut),
        1 => Just(Kind::Echo),
        1 => Just(Kind::Gre),
        1 => Just(Kind::UdpIn),
        1 => Just(Kind::TcpIn),
        1 => Just(Kind::ErrorIn),
        1 => Just(Kind::ToEgress),
        4 => (index(), any::<bool>()).prop_map(|(which, is_from_pod)| Kind::ToSession { which, is_from_pod }),
        2 => (index(), any::<bool>())
            .prop_map(|(which, is_from_node)| Kind::AboutSession { which, is_from_node }),
    ]
}

/// Frames of every kind, from both sides and of both tenants, some of them broken.
fn any_frame() -> impl Strategy<Value = AnyFrame> {
    let port = prop_oneof![2 => 40_000u16..40_003, 1 => 1u16..4];
    let pod = (any::<bool>(), 0u8..4, port).prop_map(|(is_red, host, port)| Pod { is_red, host, port });
    let noise = prop_oneof![6 => Just(None), 1 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(Some)];
    let all = (0..WORKERS, pod, any_kind(), any_flags(), prop::bool::weighted(0.3), noise);
    all.prop_map(|(worker, pod, kind, flags, is_big, noise)| AnyFrame {
        worker,
        pod,
        kind,
        flags,
        is_big,
        noise,
    })
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![40 => any_frame().prop_map(Event::Frame), 1 => (0..WORKERS).prop_map(Event::Forget)]
}

fn any_quota() -> impl Strategy<Value = Quota> {
    let limit = || prop_oneof![3 => Just(0u32), 1 => 1u32..8];
    (limit(), limit(), limit()).prop_map(|(sessions, ports, new_per_second)| Quota {
        sessions,
        ports,
        new_per_second,
    })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let kinds = prop_oneof![
        Just((Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent)),
        Just((Mapping::EndpointIndependent, Filtering::AddressAndPortDependent)),
        Just((Mapping::EndpointIndependent, Filtering::AddressDependent)),
        Just((Mapping::EndpointIndependent, Filtering::EndpointIndependent)),
    ];
    (kinds, any_quota(), any_quota()).prop_map(|((mapping, filtering), tenant_quota, pod_quota)| Policy {
        mapping,
        filtering,
        tenant_quota,
        pod_quota,
    })
}

fn any_tenant() -> impl Strategy<Value = (Policy, bool)> {
    (any_policy(), prop::bool::weighted(0.2))
}

impl AnyFrame {
    /// Returns the frame and the side that it comes from.
    fn bytes(&self, rig: &Rig) -> (Side, Vec<u8>) {
        let Pod { is_red, host, port } = self.pod;
        let address = format!("10.132.0.{host}");
        let pod = format!("{address}:{port}");
        let egress = format!("{}:{}", if is_red { EGRESS } else { RED_EGRESS }, 1024 + u16::from(host) * 64);
        let payload = vec![0; if self.is_big { 1400 } else { 20 }];
        let (side, mut frame) = match &self.kind {
            Kind::UdpOut => (Inside, udp_frame(&pod, "192.168.55.13:53", &payload)),
            Kind::TcpOut => (Inside, tcp_frame(&pod, "192.168.55.13:80", self.flags)),
            Kind::Echo => (Inside, echo_frame(&address, "192.168.55.13", port, false)),
            Kind::Gre => (Inside, raw_frame(&address, "192.168.55.13", 47, &payload)),
            Kind::UdpIn => (Outside, udp_frame("192.168.55.13:53", &egress, &payload)),
            Kind::TcpIn => (Outside, tcp_frame("192.168.55.13:80", &egress, self.flags)),
            Kind::ErrorIn => {
                let about = udp_frame(&egress, "192.168.55.13:53", &payload);
                (Outside, icmp_error_about("192.168.55.1", &about, 3, 8))
            }
            Kind::ToEgress => (Inside, udp_frame(&pod, &egress, &payload)),
            Kind::ToSession { which, is_from_pod } => self.to_session(rig, which, *is_from_pod, &pod),
            Kind::AboutSession { which, is_from_node } => self.about_session(rig, which, *is_from_node),
        };
        if is_red && side == Inside {
            frame = red(frame);
        }
        if let Some((at, byte)) = &self.noise {
            let at = at.index(frame.len());
            frame[at] = *byte;
        }
        (side, frame)
    }

    fn to_session(
        &self,
        rig: &Rig,
        which: &prop::sample::Index,
        is_from_pod: bool,
        pod: &str,
    ) -> (Side, Vec<u8>) {
        let sessions = rig.all_sessions();
        if sessions.is_empty() {
            return (Outside, udp_frame("192.168.55.13:53", "192.168.55.113:5000", b""));
        }
        let outside = which.get(&sessions).outside;
        let other_end = format!("{}:{}", outside.destination, outside.destination_port);
        let from = if is_from_pod { pod } else { &other_end };
        let to = format!("{}:{}", outside.source, outside.source_port);
        let side = if is_from_pod { Inside } else { Outside };
        let host = |ends: &str| ends.split_once(':').unwrap().0.to_owned();
        let frame = match outside.protocol {
            Protocol::Tcp => tcp_frame(from, &to, self.flags),
            Protocol::Udp => udp_frame(from, &to, b"to a session"),
            Protocol::Icmp => echo_frame(&host(from), &host(&to), outside.source_port, !is_from_pod),
            Protocol::Portless(protocol) => raw_frame(&host(from), &host(&to), protocol as u8, &[0; 20]),
        };
        (side, frame)
    }

    /// Returns an error about what a session sends, or about what it gets.
    fn about_session(&self, rig: &Rig, which: &prop::sample::Index, is_from_node: bool) -> (Side, Vec<u8>) {
        let sessions = rig.all_sessions();
        if sessions.is_empty() {
            return (
                Outside,
                icmp_error_about("192.168.55.1", &udp_frame("192.168.55.113:1", "1.1.1.1:1", b""), 3, 8),
            );
        }
        let session = which.get(&sessions);
        let about = if is_from_node { session.inside.reversed() } else { session.outside };
        let (from, to) = (
            format!("{}:{}", about.source, about.source_port),
            format!("{}:{}", about.destination, about.destination_port),
        );
        let about = match about.protocol {
            Protocol::Tcp => tcp_frame(&from, &to, self.flags),
            Protocol::Udp | Protocol::Icmp | Protocol::Portless(_) => {
                udp_frame(&from, &to, b"0123456789abcdef")
            }
        };
        let quoted = if self.is_big { 8 } else { 28 };
        let (side, sender) = if is_from_node { (Inside, "100.64.0.3") } else { (Outside, "192.168.55.1") };
        let mut error = icmp_error_about(sender, &about, 3, quoted);
        if is_from_node {
            error[..6].copy_from_slice(&udp_frame("1.1.1.1:1", "1.1.1.1:1", b"")[..6]);
        }
        (side, error)
    }
}

/// Takes nearly all system ports, so that most workers have to borrow.
fn crowd(rig: &mut Rig) {
    for flow in 0..1018u32 {
        let source = format!("10.132.0.{}:{}", 100 + flow % 100, 1 + flow / 100);
        rig.inject(0, Inside, &udp_frame(&source, "192.168.55.13:53", b"x"));
        if flow % 32 == 0 {
            rig.run();
        }
    }
    rig.run();
}

/// Takes what has left; asserts that it may, and that its checksums are right where those of what came in were.
fn take_sent(rig: &Rig, is_whole: bool) -> u64 {
    let mut sent = 0;
    for leaves_by in Side::BOTH {
        for bytes in rig.take(leaves_by) {
            check_source(leaves_by, &bytes, &[EGRESS, RED_EGRESS]);
            if is_whole {
                check_checksums(&bytes);
            }
            sent += 1;
        }
    }
    sent
}

/// A gateway whose tenants have these policies, and drain or not.
fn with_policies(tenants: &[(Policy, bool); 2], epoch: u32) -> Gateway {
    gateway().epoch(epoch).change(|spec| {
        spec.tcp.unsolicited_syn = UnsolicitedSyn::Unreachable;
        for (tenant, (policy, is_draining)) in spec.tenants.iter_mut().zip(tenants) {
            (tenant.policy, tenant.is_draining) = (*policy, *is_draining);
        }
    })
}

/// Asserts that no two sessions share an outside tuple (RFC 4787 REQ-3).
fn check_no_overloading(rig: &Rig) {
    let sessions = rig.all_sessions();
    let outside: HashSet<_> = sessions.iter().map(|session| session.outside).collect();
    assert_eq!(outside.len(), sessions.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn frames_in_are_frames_out_or_counted_drops_and_in_the_end_nothing_is_left(
        events in prop::collection::vec(any_event(), 1..160),
        policies in prop::collection::vec([any_tenant(), any_tenant()], 1..4),
        is_crowded in any::<bool>(),
        seed in 1u64..,
    ) {
        let faults = Faults { loss: 20, duplication: 20, reordering: 40 };
        let size = Size { workers: 3, sessions: SESSIONS, ..Size::USUAL };
        let mut rig = Rig::of_size(with_policies(&Default::default(), 1).spec(), size, faults, seed);
        let mut sent = 0;
        if is_crowded {
            crowd(&mut rig);
            sent += take_sent(&rig, true);
        }
        let mut epochs = policies.iter().cycle().zip(2..);
        for (index, event) in events.iter().enumerate() {
            if index % 40 == 0 {
                let (policies, epoch) = epochs.next().unwrap();
                rig.publish(with_policies(policies, epoch).spec());
                rig.wait(Duration::from_secs(100));
                check_no_overloading(&rig);
            }
            match event {
                Event::Forget(worker) => rig.workers[*worker].forget_sessions(),
                Event::Frame(frame) => {
                    let (side, bytes) = frame.bytes(&rig);
                    rig.inject(frame.worker, side, &bytes);
                }
            }
            rig.run();
            let is_whole = matches!(event, Event::Frame(AnyFrame { noise: None, .. }));
            sent += take_sent(&rig, is_whole);
        }
        check_no_overloading(&rig);
        rig.wait(Duration::from_secs(6)); // SYNs that are held
        let report = rig.all_tenants();
        let forwarded = report.outbound_packets + report.inbound_packets;
        let came_in = rig.accepted() + rig.hairpinned() + rig.fragments_made();
        prop_assert_eq!(came_in, forwarded + rig.all_drops(), "frames in = forwarded + dropped");
        prop_assert!(sent + rig.hairpinned() >= forwarded, "what was forwarded was sent, and so were answers");
        rig.wait(Duration::from_secs(7440));
        rig.wait(Duration::from_secs(120)); // ports that rest
        prop_assert_eq!((rig.sessions(), rig.room()), (0, 3 * SESSIONS));
        prop_assert!([EGRESS, RED_EGRESS].iter().all(|egress| rig.are_ports_free(*egress)));
    }
}
