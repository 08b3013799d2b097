use std::process;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use macaddr::MacAddr6;
use serde::Serialize;

use crate::command;
use crate::flows::Flows;
use crate::namespace::Namespace;
use crate::napi::{self, Priority};

/// The tenant's next hop on the inside.
pub(crate) const TENANT_GATEWAY: &str = "192.168.99.13";
/// What a second tenant has, where there is one.
pub(crate) const RED_GATEWAY: &str = "192.168.99.14";
pub(crate) const RED_MAC: MacAddr6 = MacAddr6::new(0x02, 0x53, 0xc0, 0xa8, 0x63, 0x0e);
pub(crate) const RED_EGRESS: &str = "192.168.55.114";
/// Derived from the tenant's gateway address, as Spillway does.
pub(crate) const TENANT_MAC: MacAddr6 = MacAddr6::new(0x02, 0x53, 0xc0, 0xa8, 0x63, 0x0d);
/// The address that the tenant's traffic leaves with.
pub(crate) const EGRESS: &str = "192.168.55.113";
/// Where the pods are.
pub(crate) const POD_CIDR: &str = "10.132.0.0/16";
/// The pod that asks in round-trip measurements.
pub(crate) const POD: &str = "10.132.0.5";
/// The node that the pods are on: the generator's end of the inside link.
pub(crate) const NODE: &str = "192.168.99.21";
/// The node's link.
pub(crate) const NODE_MAC: MacAddr6 = MacAddr6::new(0x02, 0, 0, 0, 0, 0x21);
/// The server that answers in round-trip measurements.
pub(crate) const SERVER: &str = "192.168.55.13";
/// The asking and the answering end of the link without a gateway.
pub(crate) const DIRECT: [&str; 2] = ["192.168.56.21", "192.168.56.13"];

/// The server's link.
pub(crate) const SERVER_MAC: MacAddr6 = MacAddr6::new(0x02, 0, 0, 0, 0, 0x13);
/// The gateway's links.
pub(crate) const OUTSIDE_MAC: MacAddr6 = MacAddr6::new(0x02, 0, 0, 0, 0, 0x12);
pub(crate) const INSIDE_MAC: MacAddr6 = MacAddr6::new(0x02, 0, 0, 0, 0, 0x11);

/// At 5 Mpps a veth's ring of 256 frames is full after 51 µs.
const SINK_INTERVAL: Duration = Duration::from_micros(40);

/// Which core does what.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Cores {
    pub(crate) generator: usize,
    pub(crate) gateway: usize,
    pub(crate) sink: usize,
}

impl Cores {
    /// Shares out the cores of this machine.
    ///
    /// # Errors
    ///
    /// One core cannot both offer more than the gateway takes and let it work.
    pub(crate) fn plan(available: usize) -> Result<Self> {
        match available {
            0 | 1 => bail!("{available} core is too few: the generator and the gateway need one each"),
            2 => Ok(Self { generator: 0, gateway: 1, sink: 0 }),
            _ => Ok(Self { generator: 0, gateway: 1, sink: 2 }),
        }
    }
}

/// Three namespaces in a row; dropped, they are removed.
///
/// Device names are unique on the machine, because receiving threads are found by them.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) tag: String,
    pub(crate) generator: Namespace,
    pub(crate) gateway: Namespace,
    pub(crate) sink: Namespace,
    pub(crate) cores: Cores,
}

impl Topology {
    /// Makes namespaces, links and addresses for this many flows; no gateway works in it yet.
    pub(crate) fn build(cores: Cores, flows: Flows) -> Result<Self> {
        let tag = next_tag();
        let topology = Self {
            generator: Namespace::create("generator", &tag)?,
            gateway: Namespace::create("gateway", &tag)?,
            sink: Namespace::create("sink", &tag)?,
            tag,
            cores,
        };
        topology.connect_inside()?;
        topology.connect_outside(flows)?;
        topology.connect_directly()?;
        topology.place_receivers(cores.gateway)?;
        Ok(topology)
    }

    pub(crate) fn generator_device(&self) -> String {
        format!("bg{}", self.tag)
    }

    pub(crate) fn inside_device(&self) -> String {
        format!("bi{}", self.tag)
    }

    pub(crate) fn outside_device(&self) -> String {
        format!("bo{}", self.tag)
    }

    pub(crate) fn sink_device(&self) -> String {
        format!("bs{}", self.tag)
    }

    /// Says which core each link's frames are received on; `inside` is where the gateway's are.
    ///
    /// Must be called again once a gateway has attached its XDP program.
    pub(crate) fn place_receivers(&self, inside: usize) -> Result<()> {
        let Cores { generator, gateway, sink } = self.cores;
        napi::receive_on(&self.gateway, &self.inside_device(), inside, Priority::Fair)?;
        napi::receive_on(&self.gateway, &self.outside_device(), gateway, Priority::Fair)?;
        napi::receive_on(&self.generator, &self.generator_device(), generator, Priority::Fair)?;
        napi::receive_on(&self.sink, &self.sink_device(), sink, Priority::Fair)
    }

    /// Lets the far end take frames at its own pace, before everything else on its core.
    ///
    /// Must be called last: an XDP program that is attached later begins with another NAPI. Woken for single frames it
    /// would cost the gateway an interrupt to another core each time, which no NIC asks of it.
    pub(crate) fn poll_sink(&self) -> Result<()> {
        let device = self.sink_device();
        napi::receive_on(&self.sink, &device, self.cores.sink, Priority::First)?;
        napi::poll_every(&self.sink, &device, SINK_INTERVAL)
    }

    /// Leaves the cutting of TCP segments, and their checksums, to the links, which on veth means to nobody.
    pub(crate) fn offload_segments(&self) -> Result<()> {
        for (namespace, device) in [
            (&self.generator, self.generator_device()),
            (&self.gateway, self.inside_device()),
            (&self.gateway, self.outside_device()),
            (&self.sink, self.sink_device()),
        ] {
            namespace.run(&format!("ethtool -K {device} tx on gso on tso on"))?;
        }
        Ok(())
    }

    /// Returns how many frames the gateway sent outside that found the far end's ring full.
    pub(crate) fn lost_at_sink(&self) -> Result<u64> {
        let device = self.outside_device();
        let links = self.gateway.ip(&format!("-j -s link show dev {device}"))?;
        let links: serde_json::Value = serde_json::from_str(&links)?;
        Ok(links[0]["stats64"]["tx"]["dropped"].as_u64().unwrap_or(0))
    }

    /// Says how XDP is attached to the gateway's inside link.
    pub(crate) fn xdp_mode(&self) -> Result<&'static str> {
        let device = self.inside_device();
        let links: serde_json::Value =
            serde_json::from_str(&self.gateway.ip(&format!("-j link show dev {device}"))?)?;
        Ok(match links[0]["xdp"]["mode"].as_u64() {
            Some(1) => "native",
            Some(2) => "generic",
            Some(_) => "mixed",
            None => "none",
        })
    }

    fn connect_inside(&self) -> Result<()> {
        let (node, inside) = (self.generator_device(), self.inside_device());
        connect((&self.generator, &node, NODE_MAC), (&self.gateway, &inside, INSIDE_MAC))?;
        self.generator.ip(&format!("addr add {NODE}/24 dev {node}"))?;
        self.generator.ip(&format!("addr add {POD}/32 dev lo"))?;
        self.generator
            .ip(&format!("neigh add {TENANT_GATEWAY} lladdr {TENANT_MAC} dev {node} nud permanent"))?;
        self.generator.ip(&format!("route add 192.168.55.0/24 via {TENANT_GATEWAY} dev {node} src {POD}"))?;
        self.gateway.ip(&format!("addr add 192.168.99.12/24 dev {inside}"))?;
        self.gateway.ip(&format!("neigh add {NODE} lladdr {NODE_MAC} dev {inside} nud permanent")).map(drop)
    }

    fn connect_outside(&self, flows: Flows) -> Result<()> {
        let (outside, server) = (self.outside_device(), self.sink_device());
        connect((&self.gateway, &outside, OUTSIDE_MAC), (&self.sink, &server, SERVER_MAC))?;
        self.gateway.ip(&format!("addr add 192.168.55.12/24 dev {outside}"))?;
        for destination in flows.destinations().map(|address| address.to_string()).chain([SERVER.to_owned()])
        {
            self.gateway
                .ip(&format!("neigh add {destination} lladdr {SERVER_MAC} dev {outside} nud permanent"))?;
        }
        self.sink.ip(&format!("addr add {SERVER}/24 dev {server}"))?;
        self.sink.ip(&format!("neigh add {EGRESS} lladdr {OUTSIDE_MAC} dev {server} nud permanent")).map(drop)
    }

    fn connect_directly(&self) -> Result<()> {
        let ends = [format!("bx{}", self.tag), format!("by{}", self.tag)];
        let macs = [MacAddr6::new(0x02, 0, 0, 0, 1, 1), MacAddr6::new(0x02, 0, 0, 0, 1, 2)];
        let namespaces = [&self.generator, &self.sink];
        connect((namespaces[0], &ends[0], macs[0]), (namespaces[1], &ends[1], macs[1]))?;
        for (here, there) in [(0, 1), (1, 0)] {
            namespaces[here].ip(&format!("addr add {}/24 dev {}", DIRECT[here], ends[here]))?;
            namespaces[here].ip(&format!(
                "neigh add {} lladdr {} dev {} nud permanent",
                DIRECT[there], macs[there], ends[here]
            ))?;
            napi::receive_on(namespaces[here], &ends[here], self.cores.generator, Priority::Fair)?;
        }
        Ok(())
    }
}

/// Returns a word that no other topology on this machine has, short enough for device names.
fn next_tag() -> String {
    static COUNT: AtomicU16 = AtomicU16::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let letter = |number: u16| char::from(b"abcdefghijklmnopqrstuvwxyz"[usize::from(number % 26)]);
    format!("{}{}{}", process::id(), letter(count / 26), letter(count))
}

type End<'a> = (&'a Namespace, &'a str, MacAddr6);

/// Makes a veth pair with one queue a side, whose ends carry whole checksums and receive through NAPI.
fn connect(first: End, second: End) -> Result<()> {
    let describe = |(namespace, device, mac): End| {
        format!("name {device} netns {} address {mac} numrxqueues 1 numtxqueues 1", namespace.name())
    };
    command::run(&format!("ip link add {} type veth peer {}", describe(first), describe(second)))?;
    for (namespace, device, _) in [first, second] {
        namespace.ip(&format!("link set {device} up"))?;
    }
    for (namespace, device, _) in [first, second] {
        // A checksum left to the sending device would be wrong after translation. GRO gives a veth its NAPI; turned
        // on while the link is up, it also lets the other end be the target of a redirect.
        namespace.run(&format!("ethtool -K {device} tx off gso off tso off gro on"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_never_shares_its_core() {
        for available in 2..8 {
            let cores = Cores::plan(available).unwrap();
            assert_ne!(cores.gateway, cores.generator);
            assert_ne!(cores.gateway, cores.sink);
        }
        assert!(Cores::plan(1).is_err());
    }
}
