use std::fs;

use anyhow::{Context, Result};

use crate::flows::Flows;
use crate::topology::{
    EGRESS, NODE, POD_CIDR, RED_EGRESS, RED_GATEWAY, RED_MAC, TENANT_GATEWAY, TENANT_MAC, Topology,
};

const MARK: u32 = 13;
const MAXIMUM: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const BUCKETS: &str = "/proc/sys/net/netfilter/nf_conntrack_buckets";

/// How long the kernel keeps a UDP session that was never answered, in seconds: as long as Spillway does. With the
/// kernel's own 30 s, flows whose turn is rare would be new each time.
const UDP_TIMEOUT: u32 = 300;

/// Forwards and translates: a macvlan link with the tenant's MAC and gateway address, a mark on what
/// comes in by it, source NAT by mark.
pub(super) fn translate_by_mark(topology: &Topology) -> Result<()> {
    accept_tenant(topology)?;
    let gateway = &topology.gateway;
    let (tenant, outside) = (tenant_device(topology), topology.outside_device());
    gateway.run(&format!("iptables -t mangle -A PREROUTING -i {tenant} -j MARK --set-mark {MARK}"))?;
    gateway.run(&format!(
        "iptables -t nat -A POSTROUTING -o {outside} -m mark --mark {MARK} -j SNAT --to-source {EGRESS}"
    ))?;
    set_up_conntrack(topology)
}

/// Adds a second tenant to a gateway that translates by mark.
pub(super) fn add_red(topology: &Topology) -> Result<()> {
    let (gateway, mark, red) = (&topology.gateway, MARK + 1, format!("br{}", topology.tag));
    let (inside, outside) = (topology.inside_device(), topology.outside_device());
    gateway.ip(&format!("link add link {inside} name {red} address {RED_MAC} type macvlan mode bridge"))?;
    gateway.ip(&format!("addr add {RED_GATEWAY}/32 dev {red}"))?;
    gateway.ip(&format!("link set {red} up"))?;
    gateway.ip(&format!("addr add {RED_EGRESS}/32 dev {outside}"))?;
    gateway.run(&format!("iptables -t mangle -A PREROUTING -i {red} -j MARK --set-mark {mark}"))?;
    let snat = format!("-m mark --mark {mark} -j SNAT --to-source {RED_EGRESS}");
    gateway.run(&format!("iptables -t nat -A POSTROUTING -o {outside} {snat}")).map(drop)
}

/// Forwards and translates: one rule looks the inside address up in a map of egress addresses. No mark is needed.
pub(super) fn translate_by_map(topology: &Topology) -> Result<()> {
    accept_tenant(topology)?;
    let outside = topology.outside_device();
    for words in [
        "add table ip egress".to_owned(),
        "add map ip egress addresses { type ipv4_addr : ipv4_addr; flags interval; }".to_owned(),
        format!("add element ip egress addresses {{ {POD_CIDR} : {EGRESS} }}"),
        "add chain ip egress leave { type nat hook postrouting priority srcnat; }".to_owned(),
        format!("add rule ip egress leave oifname {outside} snat to ip saddr map @addresses"),
    ] {
        topology.gateway.run(&format!("nft {words}"))?;
    }
    set_up_conntrack(topology)
}

/// Gives the outside link the egress address, and conntrack what is fair on veth links.
fn set_up_conntrack(topology: &Topology) -> Result<()> {
    let gateway = &topology.gateway;
    gateway.ip(&format!("addr add {EGRESS}/32 dev {}", topology.outside_device()))?;
    for key in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
        gateway.write(&format!("/proc/sys/net/netfilter/{key}"), &UDP_TIMEOUT.to_string())?;
    }
    // A NIC would have verified the checksum; a veth leaves it to conntrack, at the kernel's expense.
    gateway.write("/proc/sys/net/netfilter/nf_conntrack_checksum", "0")
}

/// Forwards, and leaves the source address alone.
pub(super) fn forward(topology: &Topology) -> Result<()> {
    accept_tenant(topology)?;
    // The way back in round-trip measurements: the server sends to the pod itself.
    topology.sink.ip(&format!("route add {POD_CIDR} via {EGRESS} dev {}", topology.sink_device())).map(drop)
}

fn accept_tenant(topology: &Topology) -> Result<()> {
    let gateway = &topology.gateway;
    let (tenant, inside) = (tenant_device(topology), topology.inside_device());
    gateway
        .ip(&format!("link add link {inside} name {tenant} address {TENANT_MAC} type macvlan mode bridge"))?;
    gateway.ip(&format!("addr add {TENANT_GATEWAY}/32 dev {tenant}"))?;
    gateway.ip(&format!("link set {tenant} up"))?;
    gateway.ip(&format!("route add {POD_CIDR} via {NODE} dev {inside}"))?;
    gateway.write("/proc/sys/net/ipv4/ip_forward", "1")
}

fn tenant_device(topology: &Topology) -> String {
    format!("bt{}", topology.tag)
}

/// The kernel's limits on sessions, raised for all namespaces; dropped, they are put back.
#[derive(Debug)]
pub(crate) struct ConntrackLimits {
    before: Vec<(&'static str, u64)>,
}

impl ConntrackLimits {
    /// Makes room for twice the flows, with a bucket for each direction of a flow; never lowers anything.
    ///
    /// Only the machine's first namespace may do this; elsewhere the kernel is measured with what it has.
    pub(super) fn raise(flows: Flows) -> Option<Self> {
        let wanted = (2 * u64::from(flows.count())).next_power_of_two();
        let mut limits = Self { before: Vec::new() };
        for file in [MAXIMUM, BUCKETS] {
            if let Err(error) = limits.raise_one(file, wanted) {
                eprintln!("warning: the kernel's session limits stay as they are: {error:#}");
                return None;
            }
        }
        Some(limits)
    }

    fn raise_one(&mut self, file: &'static str, wanted: u64) -> Result<()> {
        let before: u64 = fs::read_to_string(file).with_context(|| file.to_owned())?.trim().parse()?;
        if before < wanted {
            fs::write(file, wanted.to_string()).with_context(|| format!("{file} = {wanted}"))?;
            self.before.push((file, before));
        }
        Ok(())
    }
}

impl Drop for ConntrackLimits {
    fn drop(&mut self) {
        for (file, value) in self.before.drain(..).rev() {
            if let Err(error) = fs::write(file, value.to_string()) {
                eprintln!("warning: {file} could not be set back to {value}: {error}");
            }
        }
    }
}
