//! The lab: network namespaces, wired as in the picture of the design.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use super::inventory::{Inventory, missing_privilege};
use super::namespace::{Namespace, ip_batch};
use super::process::Process;
use super::topology::{
    GATEWAY_INSIDE, GATEWAY_OUTSIDE, Host, INSIDE, INTERNET, NODES, Node, OUTSIDE, POD_MTU, PODS, Pod,
    ROUTER, ROUTER_FAR, SERVER,
};
use super::wait;

static BUILT: AtomicU32 = AtomicU32::new(0);

/// How a lab is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabOptions {
    /// Receive and transmit queues of the gateway's inside interface.
    pub inside_queues: u32,
    /// Receive and transmit queues of its outside interface.
    pub outside_queues: u32,
    /// Whether programs that were started in it may run on after this process.
    pub outlives: bool,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self { inside_queues: 1, outside_queues: 1, outlives: false }
    }
}

/// A cluster of two nodes, a gateway without its daemon, and what is upstream; removed when dropped.
#[derive(Debug)]
pub struct Lab {
    inventory: Inventory,
    outlives: bool,
}

impl Lab {
    /// Builds one; its names are its own, so that any number can stand side by side.
    ///
    /// # Errors
    /// When the process is not root, or the kernel refuses something; what was made by then is removed.
    pub fn build(options: &LabOptions) -> Result<Self> {
        let missing = missing_privilege();
        ensure!(missing.is_none(), "{}", missing.unwrap_or_default());
        let lab = Self { inventory: plan(), outlives: options.outlives };
        lab.inventory.save()?;
        lab.add_namespaces()?;
        lab.add_links(options)?;
        lab.wire_switches()?;
        [INSIDE, OUTSIDE].into_iter().try_for_each(|device| lab.set_up_interface(device))?;
        NODES.iter().try_for_each(|node| lab.set_up_node(node))?;
        PODS.iter().try_for_each(|pod| lab.set_up_pod(pod))?;
        lab.set_up_upstream()?;
        Ok(lab)
    }

    /// Returns its name, which all that it made begins with.
    pub fn name(&self) -> &str {
        &self.inventory.name
    }

    /// Returns the directory for the files of everything that runs in it.
    pub fn directory(&self) -> PathBuf {
        self.inventory.directory()
    }

    /// Returns the directory where its gateway pins XDP programs.
    pub fn pin_dir(&self) -> &Path {
        &self.inventory.pin_dir
    }

    /// Returns one machine's namespace.
    pub fn namespace(&self, host: Host) -> Namespace {
        Namespace::named(namespace_name(&self.inventory.name, host))
    }

    /// Sends a pod's traffic to another next hop, as its node's policy route.
    ///
    /// # Errors
    /// When the node refuses the route.
    pub fn route_pod(&self, pod: &Pod, next_hop: std::net::Ipv4Addr) -> Result<()> {
        let line = format!("route replace default via {next_hop} table {}", pod.tenant.table);
        self.namespace(pod.node.host).ip(&line).map(drop)
    }

    /// Starts a program in the background, which ends with this process unless the lab outlives it.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub fn start(&self, command: &mut Command, log: &Path) -> Result<Process> {
        if self.outlives { Process::start_to_stay(command, log) } else { Process::start(command, log) }
    }

    /// Keeps it when it is dropped, with what still runs in it, until [`clean`](super::clean).
    ///
    /// # Errors
    /// When the list of what was made cannot be written.
    pub fn keep(&mut self) -> Result<()> {
        self.inventory.kept = true;
        self.inventory.save()
    }

    fn add_namespaces(&self) -> Result<()> {
        ip_batch(
            &self.inventory.namespaces.iter().map(|name| format!("netns add {name}")).collect::<Vec<_>>(),
        )?;
        for host in Host::ALL {
            let settings = kernel_settings(host);
            let mut arguments = vec!["-q", "-w"];
            arguments.extend(settings.iter().map(String::as_str));
            self.namespace(host).run("sysctl", &arguments)?;
            self.namespace(host).ip("link set lo up")?;
        }
        Ok(())
    }

    fn add_links(&self, options: &LabOptions) -> Result<()> {
        let cables = cables();
        ip_batch(&cables.iter().map(|cable| self.cable_line(cable, options)).collect::<Vec<_>>())?;
        cables.iter().try_for_each(|cable| self.dress_cable(cable))
    }

    fn cable_line(&self, cable: &Cable, options: &LabOptions) -> String {
        let queues = match cable.device {
            INSIDE => options.inside_queues,
            OUTSIDE => options.outside_queues,
            _ => 1,
        };
        let own = format!("numtxqueues {queues} numrxqueues {queues}");
        let host = namespace_name(&self.inventory.name, cable.host);
        let peer = namespace_name(&self.inventory.name, cable.peer);
        format!(
            "link add {} netns {host} {own} type veth peer name {} netns {peer} {own}",
            cable.device, cable.port
        )
    }

    fn dress_cable(&self, cable: &Cable) -> Result<()> {
        self.disable_offloads(cable.host, cable.device)?;
        self.disable_offloads(cable.peer, &cable.port)
    }

    /// Pulls the cable of one of the gateway's interfaces out for good: the interface is gone, with all that the kernel
    /// knew of it.
    ///
    /// # Errors
    /// When the interface is not there.
    pub fn remove_interface(&self, device: &str) -> Result<()> {
        self.namespace(Host::Gateway).ip(&format!("link del {device}")).map(drop)
    }

    /// Puts in a new cable where one was removed, and sets the interface up as it was at first.
    ///
    /// # Errors
    /// When the kernel refuses something.
    pub fn add_interface(&self, device: &str, options: &LabOptions) -> Result<()> {
        let cables = cables();
        let cable = cables.iter().find(|cable| cable.host == Host::Gateway && cable.device == device);
        let cable = cable.with_context(|| format!("the gateway has no interface {device}"))?;
        ip_batch(&[self.cable_line(cable, options)])?;
        self.dress_cable(cable)?;
        self.namespace(cable.peer).ip(&format!("link set {} master br0 up", cable.port))?;
        self.set_up_interface(device)
    }

    /// Gives one of the gateway's interfaces its address and routes, and sets it up.
    ///
    /// # Errors
    /// When the kernel refuses something.
    pub fn set_up_interface(&self, device: &str) -> Result<()> {
        let address = if device == INSIDE { GATEWAY_INSIDE } else { GATEWAY_OUTSIDE };
        let mut lines = vec![format!("addr add {address}/24 dev {device}"), format!("link set {device} up")];
        if device == OUTSIDE {
            lines.push(format!("route add default via {ROUTER} dev {OUTSIDE}"));
        }
        self.namespace(Host::Gateway).ip_batch(&lines)
    }

    /// A veth hands its peer's XDP program frames as the sender's stack left them: with offloads, checksums
    /// would be missing and packets larger than the MTU.
    fn disable_offloads(&self, host: Host, device: &str) -> Result<()> {
        let features = ["tx", "off", "gso", "off", "tso", "off", "gro", "off"];
        let mut arguments = vec!["-K", device];
        arguments.extend(features);
        self.namespace(host).run("ethtool", &arguments).map(drop)
    }

    fn wire_switches(&self) -> Result<()> {
        for switch in [Host::SwitchInside, Host::SwitchOutside] {
            let mut lines = vec!["link add br0 type bridge".to_owned(), "link set br0 up".to_owned()];
            for cable in cables().iter().filter(|cable| cable.peer == switch) {
                lines.push(format!("link set {} master br0 up", cable.port));
            }
            self.namespace(switch).ip_batch(&lines)?;
        }
        Ok(())
    }

    /// A pod's traffic leaves its node by the tenant's gateway, its source address untouched: what OVN-Kubernetes
    /// does with an AdminPolicyBasedExternalRoute.
    fn set_up_node(&self, node: &Node) -> Result<()> {
        let mut lines = vec![format!("addr add {}/24 dev eth0", node.address), "link set eth0 up".to_owned()];
        for pod in PODS.iter().filter(|pod| pod.node == node) {
            let device = pod.host.name();
            lines.extend([
                format!("addr add {}/32 dev {device}", node.pod_gateway),
                format!("link set {device} mtu {POD_MTU} up"),
                format!("route add {} dev {device}", pod.address),
                format!("route add default via {} table {}", pod.tenant.gateway, pod.tenant.table),
                format!("rule add from {} lookup {}", pod.address, pod.tenant.table),
            ]);
        }
        self.namespace(node.host).ip_batch(&lines)
    }

    fn set_up_pod(&self, pod: &Pod) -> Result<()> {
        let gateway = pod.node.pod_gateway;
        self.namespace(pod.host).ip_batch(&[
            format!("addr add {}/32 dev eth0", pod.address),
            format!("link set eth0 mtu {POD_MTU} up"),
            format!("route add {gateway} dev eth0"),
            format!("route add default via {gateway}"),
        ])
    }

    fn set_up_upstream(&self) -> Result<()> {
        let host = |host, address, gateway| {
            self.namespace(host).ip_batch(&[
                format!("addr add {address}/24 dev eth0"),
                "link set eth0 up".to_owned(),
                format!("route add default via {gateway}"),
            ])
        };
        self.namespace(Host::Router).ip_batch(&[
            format!("addr add {ROUTER}/24 dev eth0"),
            "link set eth0 up".to_owned(),
            format!("addr add {ROUTER_FAR}/24 dev internet"),
            "link set internet up".to_owned(),
        ])?;
        host(Host::Server, SERVER, ROUTER)?;
        host(Host::Internet, INTERNET, ROUTER_FAR)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.inventory.kept {
            return;
        }
        wait::begin_clean_up();
        if let Err(problem) = self.inventory.remove() {
            anstream::eprintln!("the lab {} is not removed completely: {problem:#}", self.name());
        }
    }
}

/// A veth pair: a host's device, and the port of what it is plugged into.
struct Cable {
    host: Host,
    device: &'static str,
    peer: Host,
    port: String,
}

fn cables() -> Vec<Cable> {
    let cable = |host: Host, device, peer| Cable { host, device, peer, port: host.name().to_owned() };
    let mut cables = vec![
        cable(Host::Gateway, INSIDE, Host::SwitchInside),
        cable(Host::Gateway, OUTSIDE, Host::SwitchOutside),
        cable(Host::Server, "eth0", Host::SwitchOutside),
        cable(Host::Router, "eth0", Host::SwitchOutside),
        cable(Host::Internet, "eth0", Host::Router),
    ];
    cables.extend(NODES.iter().map(|node| cable(node.host, "eth0", Host::SwitchInside)));
    cables.extend(PODS.iter().map(|pod| cable(pod.host, "eth0", pod.node.host)));
    cables
}

/// Returns the kernel settings of a host's namespace. A new one takes over the machine's own, whatever they are.
fn kernel_settings(host: Host) -> Vec<String> {
    // The gateway too, as on many a host: nothing but the XDP programs keeps pods' packets from the kernel.
    let forward = matches!(host, Host::Gateway | Host::Node1 | Host::Node2 | Host::Router);
    let mut settings = vec![format!("net.ipv4.ip_forward={}", u8::from(forward))];
    let has_ipv6 = Path::new("/proc/sys/net/ipv6/conf").exists();
    for scope in ["all", "default"] {
        let zero = ["rp_filter", "arp_ignore", "arp_announce", "arp_filter", "accept_local"];
        settings.extend(zero.iter().map(|name| format!("net.ipv4.conf.{scope}.{name}=0")));
        if has_ipv6 {
            settings.push(format!("net.ipv6.conf.{scope}.disable_ipv6=1"));
        }
    }
    settings
}

fn plan() -> Inventory {
    let owner = std::process::id();
    let number = BUILT.fetch_add(1, Ordering::Relaxed);
    let random = RandomState::new().build_hasher().finish() & 0xffff;
    let name = format!("spw-{owner}-{number}-{random:04x}");
    Inventory {
        owner,
        kept: false,
        namespaces: Host::ALL.iter().map(|host| namespace_name(&name, *host)).collect(),
        pin_dir: Path::new("/sys/fs/bpf").join(format!("spillway-{name}")),
        name,
    }
}

fn namespace_name(lab: &str, host: Host) -> String {
    format!("{lab}-{}", host.name())
}
