//! What became of a frame, stage by stage, in words: the same for a packet that is only imagined and for one that came.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::SystemTime;

use conntrack::{FiveTuple, Protocol, TcpFlags, TenantId};
use fastpath::classify::classify;
use fastpath::parse::{Packet, Segment, Transport, parse};
use fastpath::snapshot::{NextHop, RouteSpec, Side, Snapshot, SourceKind};
use fastpath::stage::Stage;
use fastpath::tap::Sample;
use fastpath::verdict::{DropReason, Verdict};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::tenant::mac_to_text;

/// What became of one frame: `GET /v1/explain`, and each line of `GET /v1/trace`.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// When it was decided about (RFC 3339).
    pub time: String,
    /// Worker that did; none if it was only imagined.
    pub worker: Option<u16>,
    /// Side that it came from: `inside` or `outside`.
    pub side: String,
    /// What was decided: `forward`, `reject`, `drop`, `wait`, `hold`, `split` or `handOver`.
    pub verdict: String,
    /// Why it was dropped or rejected: the name of a drop reason; else null.
    pub reason: Option<String>,
    /// Tenant, where it is known.
    pub tenant: Option<String>,
    /// The stages that it went through, in their order.
    pub stages: Vec<StageView>,
    /// What could not be taken into account; null if nothing.
    pub remark: Option<String>,
}

/// One stage, and what was decided there.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StageView {
    /// Name of the stage.
    pub stage: String,
    /// Whether the frame went on.
    pub passed: bool,
    /// What was decided, and why.
    pub decision: String,
}

/// Puts samples into words.
#[derive(Clone, Copy, Debug)]
pub struct Explainer<'a> {
    /// Configuration that was in use.
    pub snapshot: &'a Snapshot,
    /// Names of the tenants.
    pub tenants: &'a HashMap<TenantId, String>,
}

impl Explainer<'_> {
    /// Tells what became of a frame.
    pub fn explain(&self, sample: &Sample) -> Explanation {
        Explanation {
            time: time_to_text(sample.at),
            worker: Some(sample.worker),
            side: sample.side.name().to_owned(),
            verdict: verdict_name(sample.outcome.verdict).to_owned(),
            reason: sample.dropped().map(|reason| reason.name().to_owned()),
            tenant: sample.outcome.tenant.map(|tenant| self.name(tenant)),
            stages: self.stages(sample),
            remark: None,
        }
    }

    /// Tells in a line what became of a frame.
    pub fn summary(&self, sample: &Sample) -> String {
        let tenant = sample.outcome.tenant.map(|tenant| format!("tenant {}: ", self.name(tenant)));
        let decision = match sample.dropped() {
            Some(reason) => self.refusal(sample, reason),
            None => self.sending(sample),
        };
        let session = sample.session.filter(|_| sample.dropped().is_none()).map(|session| {
            let kind = if sample.is_new_session { "new session" } else { "session" };
            let (address, port) = session.outside;
            format!("; {kind} {} behind {address}:{port}", session.state.name())
        });
        let worker = format!("; worker {}", sample.worker);
        [tenant.unwrap_or_default(), decision, session.unwrap_or_default(), worker].concat()
    }

    fn stages(&self, sample: &Sample) -> Vec<StageView> {
        let dropped = sample.dropped().map(|reason| (reason.stage(), reason));
        let packet = parse(&sample.before.bytes).ok();
        let mut views = Vec::new();
        for stage in Stage::ALL {
            let is_last = dropped.is_some_and(|(at, _)| at <= stage);
            if let Some((_, reason)) = dropped.filter(|_| is_last) {
                let decision = self.refusal(sample, reason);
                views.push(StageView { stage: stage.name().to_owned(), passed: false, decision });
                break;
            }
            let decision = match (stage, &packet) {
                (Stage::Steer, _) => Some(steering(sample)),
                (Stage::Parse, Some(packet)) => Some(parsing(packet)),
                (Stage::Classify, Some(packet)) => self.classifying(sample, packet),
                (Stage::Fragments, Some(packet)) => fragments(sample, packet),
                (Stage::Limits, Some(packet)) => Some(self.limits(packet)),
                (Stage::Session, _) => session(sample),
                (Stage::Route, _) => self.routing(sample),
                (Stage::Rewrite, Some(packet)) => rewriting(sample, packet),
                (Stage::Send, _) => Some(self.sending(sample)),
                (_, None) => None,
            };
            let Some(decision) = decision else { continue };
            views.push(StageView { stage: stage.name().to_owned(), passed: true, decision });
        }
        views
    }

    fn name(&self, tenant: TenantId) -> String {
        self.tenants.get(&tenant).cloned().unwrap_or_else(|| format!("number {}", tenant.0))
    }

    fn refusal(&self, sample: &Sample, reason: DropReason) -> String {
        let (name, help) = (reason.name(), reason.help());
        match sample.outcome.verdict {
            Verdict::Reject(_) => {
                let answer = parse(&sample.after.bytes).ok().map(|packet| match packet.transport {
                    Transport::Error(_) => {
                        let icmp = &sample.after.bytes[packet.ip.payload_at..];
                        format!("ICMP type {} code {}", icmp[0], icmp[1])
                    }
                    Transport::Flow(_) | Transport::Fragment(_) => "a TCP RST".to_owned(),
                });
                format!("rejected ({name}) with {}: {help}", answer.as_deref().unwrap_or("an answer"))
            }
            _ => format!("dropped ({name}): {help}"),
        }
    }

    fn classifying(&self, sample: &Sample, packet: &Packet) -> Option<String> {
        let class = classify(self.snapshot, sample.side, packet).ok()?;
        let spec = self.snapshot.tenant(class.tenant)?;
        let name = self.name(class.tenant);
        Some(match sample.side {
            Side::Inside => {
                let source = packet.ip.source;
                let network = spec.sources.iter().find(|network| network.contains(&source));
                let sources = match (spec.source_kind, network) {
                    (SourceKind::LivePods, _) => format!("{source} is one of its live pods"),
                    (SourceKind::Nodes, _) => format!("{source} is a node"),
                    (SourceKind::Networks, Some(network)) => format!("{source} is in its network {network}"),
                    (SourceKind::Networks, None) => "an ICMP error may come from any router".to_owned(),
                };
                format!("tenant {name}, by its MAC {}; {sources}", mac_to_text(packet.destination_mac))
            }
            Side::Outside => format!("tenant {name}, by its egress address {}", packet.ip.destination),
        })
    }

    fn limits(&self, packet: &Packet) -> String {
        let [inside, outside] = Side::BOTH.map(|side| self.snapshot.link(side).mtu);
        format!(
            "TTL {} and {} bytes pass (MTU {inside} inside, {outside} outside)",
            packet.ip.ttl, packet.ip.total_bytes
        )
    }

    /// Tells the way of what leaves, or what it waits for.
    fn routing(&self, sample: &Sample) -> Option<String> {
        let (side, destination) = match sample.outcome.verdict {
            Verdict::Forward(side) | Verdict::Split(side) => {
                (side, parse(&sample.after.bytes).ok()?.ip.destination)
            }
            Verdict::Wait(request) => (request.side, request.address),
            _ => return None,
        };
        let route = self.route(side, destination);
        let way = match route.and_then(|route| route.gateway.map(|gateway| (route.prefix, gateway))) {
            Some((prefix, gateway)) => format!("route {prefix} via {gateway}"),
            None => format!("{destination} is on the link"),
        };
        let hop = match self.snapshot.next_hop(side, destination) {
            NextHop::Resolved(id) => mac_to_text(self.snapshot.neighbour(id).mac),
            NextHop::Unresolved(_) | NextHop::NoRoute => "not resolved yet".to_owned(),
        };
        Some(format!("{way}, next hop {hop}"))
    }

    fn route(&self, side: Side, destination: Ipv4Addr) -> Option<&RouteSpec> {
        let routes = self.snapshot.spec().routes.iter();
        routes
            .filter(|route| route.side == side && route.prefix.contains(&destination))
            .max_by_key(|route| route.prefix.prefix_len())
    }

    fn sending(&self, sample: &Sample) -> String {
        let frame = &sample.after.bytes;
        let mac = |at: usize| {
            let mac = frame.get(at..at + 6).and_then(|mac| <[u8; 6]>::try_from(mac).ok());
            mac.map_or_else(String::new, |mac| mac_to_text(mac.into()))
        };
        let bytes = sample.after.frame_bytes;
        match sample.outcome.verdict {
            Verdict::Forward(side) => {
                format!("forwarded {}, from {} to {}, {bytes} bytes", side.name(), mac(6), mac(0))
            }
            Verdict::Split(side) => {
                format!("forwarded {} in fragments, from {} to {}", side.name(), mac(6), mac(0))
            }
            Verdict::HandOver(worker, _) => format!("handed over to worker {worker}, which owns its session"),
            Verdict::Wait(request) => {
                format!("waits until {} is resolved {}", request.address, request.side.name())
            }
            Verdict::HoldSyn(_) => "kept for 6 s, in case the pod opens this connection itself".to_owned(),
            Verdict::Hold(_) => "waits for the first fragment of its datagram".to_owned(),
            Verdict::Hairpin => "comes back in by the outside".to_owned(),
            Verdict::Reject(reason) | Verdict::Drop(reason) => self.refusal(sample, reason),
        }
    }
}

fn steering(sample: &Sample) -> String {
    let frame = &sample.before.bytes;
    let mac = frame.first_chunk::<6>().map_or_else(String::new, |mac| mac_to_text((*mac).into()));
    let bytes = sample.before.frame_bytes;
    format!("{bytes} bytes came in {}, to MAC {mac}", sample.side.name())
}

fn parsing(packet: &Packet) -> String {
    let Packet { ip, transport, .. } = packet;
    match transport {
        Transport::Flow(flow) => format!("{}{}", ends(&flow.tuple), segment(&flow.segment)),
        Transport::Error(quoted) => {
            format!("ICMP error from {} about {}", ip.source, ends(&quoted.flow.tuple))
        }
        Transport::Fragment(protocol) => format!(
            "{} {} to {}, a fragment from byte {} on",
            protocol.name(),
            ip.source,
            ip.destination,
            ip.fragment_offset
        ),
    }
}

fn ends(tuple: &FiveTuple) -> String {
    let FiveTuple { source, destination, source_port, destination_port, protocol } = tuple;
    match protocol {
        Protocol::Tcp | Protocol::Udp => {
            format!("{} {source}:{source_port} to {destination}:{destination_port}", protocol.name())
        }
        Protocol::Icmp => {
            format!("icmp {source} to {destination}, identifier {}", source_port.max(destination_port))
        }
        Protocol::Portless(_) => format!("{} {source} to {destination}", protocol.name()),
    }
}

fn segment(segment: &Segment) -> String {
    match segment {
        Segment::Tcp(segment) => {
            let known = [
                (TcpFlags::SYN, "SYN"),
                (TcpFlags::FIN, "FIN"),
                (TcpFlags::RST, "RST"),
                (TcpFlags::ACK, "ACK"),
            ];
            let set: Vec<_> = known
                .into_iter()
                .filter(|(flag, _)| segment.flags.has(*flag))
                .map(|(_, name)| name)
                .collect();
            format!(", {}", if set.is_empty() { "no flags".to_owned() } else { set.join(" ") })
        }
        Segment::Query => ", a query".to_owned(),
        Segment::Reply => ", a reply".to_owned(),
        Segment::Udp | Segment::Opaque => String::new(),
    }
}

fn fragments(sample: &Sample, packet: &Packet) -> Option<String> {
    packet.ip.is_fragment().then(|| match sample.outcome.verdict {
        Verdict::Hold(_) => "its ports are not known yet".to_owned(),
        _ => "a fragment, whose ports are those of the first".to_owned(),
    })
}

fn session(sample: &Sample) -> Option<String> {
    let session = sample.session?;
    let (address, port) = session.outside;
    let flow = format!("{} behind {address}:{port}", ends(&session.inside));
    Some(if sample.is_new_session {
        format!("new: {flow}")
    } else {
        let state = session.state.name();
        format!("{state} for {} s: {flow}", session.age_seconds)
    })
}

fn rewriting(sample: &Sample, packet: &Packet) -> Option<String> {
    sample.leaves_by()?;
    let after = parse(&sample.after.bytes).ok()?;
    let end = |address: Ipv4Addr, port: Option<u16>| match port {
        Some(port) => format!("{address}:{port}"),
        None => address.to_string(),
    };
    let tuple = |packet: &Packet| match packet.transport {
        Transport::Flow(flow) if flow.has_ports => Some(flow.tuple),
        Transport::Flow(_) | Transport::Error(_) | Transport::Fragment(_) => None,
    };
    let (old, new) = (tuple(packet), tuple(&after));
    let source = |packet: &Packet, tuple: Option<FiveTuple>| {
        end(packet.ip.source, tuple.map(|tuple| tuple.source_port))
    };
    let destination = |packet: &Packet, tuple: Option<FiveTuple>| {
        end(packet.ip.destination, tuple.map(|tuple| tuple.destination_port))
    };
    let mut changes = Vec::new();
    if source(packet, old) != source(&after, new) {
        changes.push(format!("source {} becomes {}", source(packet, old), source(&after, new)));
    }
    if destination(packet, old) != destination(&after, new) {
        changes.push(format!(
            "destination {} becomes {}",
            destination(packet, old),
            destination(&after, new)
        ));
    }
    changes.push(format!("TTL {} becomes {}", packet.ip.ttl, after.ip.ttl));
    Some(changes.join(", "))
}

fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Forward(_) => "forward",
        Verdict::Split(_) => "split",
        Verdict::Reject(_) => "reject",
        Verdict::Drop(_) => "drop",
        Verdict::Wait(_) => "wait",
        Verdict::HoldSyn(_) | Verdict::Hold(_) => "hold",
        Verdict::HandOver(..) | Verdict::Hairpin => "handOver",
    }
}

/// Returns a moment as RFC 3339 writes it, in UTC and with microseconds.
pub fn time_to_text(time: SystemTime) -> String {
    humantime::format_rfc3339_micros(time).to_string()
}
