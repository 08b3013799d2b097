//! The lab of a storm: gateway, wires to throw frames at it, and pods by which to see whether it serves.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::client::BlockingClient;
use control::demo::gateway::{Gateway, Installation};
use control::demo::namespace::Namespace;
use control::demo::topology::{GATEWAY_INSIDE, Host, INSIDE, NODES, OUTSIDE, SERVER};
use control::demo::{Lab, LabOptions, wait};
use pnet_datalink::{Channel, Config, DataLinkSender};
use serde_json::Value;

use super::frames::{ECHO, Frames, From, Macs, SINK};
use super::tenants::{Slot, Tenants};
use crate::doctor::edit_config;
use crate::fixture::{LIMIT, executable};
use crate::peers::Peer;

/// Time that the gateway may take to serve all tenants again: neighbours are resolved anew, and sessions make room.
const RECOVERY: Duration = Duration::from_secs(60);
const PROBE_WAIT: Duration = Duration::from_millis(250);

/// Everything that a storm is about. The daemon ends first, the lab last.
pub(crate) struct World {
    pub(crate) gateway: Option<Gateway>,
    pub(crate) installation: Installation,
    pub(crate) tenants: Tenants,
    pub(crate) frames: Frames,
    /// Frames that were put on a wire.
    pub(crate) sent: u64,
    client: BlockingClient,
    wires: [Box<dyn DataLinkSender>; 2],
    _echo: Peer,
    _sink: UdpSocket,
    pub(crate) lab: Lab,
}

impl World {
    /// Builds the lab and starts the daemon, without tenants.
    pub(crate) fn build(program: Option<PathBuf>) -> Result<Self> {
        let options = LabOptions { inside_queues: 2, outside_queues: 2, ..LabOptions::default() };
        let lab = Lab::build(&options)?;
        let installation = Installation::write(&lab, &program.map_or_else(executable, Ok)?)?;
        let small = "capacity = 8192\n\n[timeouts]\nudp = \"2m\"\n\
                     ports = [{ protocol = \"udp\", port = 7, timeout = \"2s\" }, \
                     { protocol = \"udp\", port = 53, timeout = \"1s\" }]";
        edit_config(&installation, "capacity = 65536", small)?;
        let (node, server) = (lab.namespace(Host::Node1), lab.namespace(Host::Server));
        let macs = Macs {
            inside: mac_of(&lab.namespace(Host::Gateway), INSIDE)?,
            outside: mac_of(&lab.namespace(Host::Gateway), OUTSIDE)?,
            node: mac_of(&node, "eth0")?,
            server: mac_of(&server, "eth0")?,
        };
        for slot in Slot::all() {
            let (probe, table) = (slot.probe(), slot.table());
            node.ip_batch(&[
                format!("addr add {probe}/32 dev lo"),
                format!("route add default via {} table {table}", slot.gateway()),
                format!("rule add from {probe} lookup {table}"),
            ])?;
        }
        let sink = server.enter(|| UdpSocket::bind((SERVER, SINK)))?.context("the sink")?;
        Ok(Self {
            gateway: Some(Gateway::start(&lab, installation.clone())?),
            client: BlockingClient::new(&installation.socket)?,
            tenants: Tenants::default(),
            frames: Frames { macs, own_inside: GATEWAY_INSIDE },
            sent: 0,
            wires: [open_wire(&node)?, open_wire(&server)?],
            _echo: Peer::udp_echo(&lab, ECHO)?,
            _sink: sink,
            installation,
            lab,
        })
    }

    /// Puts a frame on a wire.
    pub(crate) fn send(&mut self, from: From, frame: &[u8]) {
        let wire = &mut self.wires[usize::from(from == From::Server)];
        let is_sent = wire.send_to(frame, None).is_some_and(|sent| sent.is_ok());
        self.sent += u64::from(is_sent);
    }

    /// Sends a pod's packet by the gateway's own outside interface, past Spillway: a leak made on purpose.
    pub(crate) fn leak_on_purpose(&self, frame: &[u8]) -> Result<()> {
        let mut wire = open_wire_of(&self.lab.namespace(Host::Gateway), OUTSIDE)?;
        wire.send_to(frame, None).context("no answer")?.context("the leak was not sent")
    }

    /// Asks the daemon for its status.
    pub(crate) fn status(&self) -> Result<Value> {
        Ok(self.client.get("/v1/status")?)
    }

    /// Puts a tenant; returns what the daemon said.
    pub(crate) fn put(&self, slot: Slot, body: &Value) -> Result<Value, control::client::ClientError> {
        self.client.put(&format!("/v1/tenants/{}", slot.name()), body)
    }

    /// Removes a tenant.
    pub(crate) fn remove(&self, slot: Slot) -> Result<(), control::client::ClientError> {
        self.client.delete(&format!("/v1/tenants/{}", slot.name()))
    }

    /// Returns how often the daemon put back what was taken from an interface, or opened its sockets anew, and what
    /// troubles it there.
    pub(crate) fn disturbances(&self, device: &str) -> Result<(u64, Option<String>)> {
        let status = self.status()?;
        let mut interfaces = status["interfaces"].as_array().context("interfaces")?.iter();
        let told = interfaces.find(|told| told["name"] == device).context("the interface is not told of")?;
        let trouble = told["trouble"].as_str().map(str::to_owned);
        let count = |key: &str| told[key].as_u64().context("a counter of the interface");
        Ok((count("disturbances")? + count("reattachments")?, trouble))
    }

    /// Fails unless the daemon lives and has nothing to be ashamed of.
    pub(crate) fn require_health(&mut self) -> Result<()> {
        let Some(gateway) = &mut self.gateway else { return Ok(()) };
        let log = gateway.log();
        ensure!(!log.contains("panicked"), "the daemon panicked:\n{}", last_lines(&log));
        let status =
            self.status().with_context(|| format!("the daemon is gone or hangs:\n{}", last_lines(&log)))?;
        let workers = status["workers"].as_array().context("workers")?;
        ensure!(workers.iter().all(|worker| worker["panics"] == 0), "a worker panicked: {status}");
        Ok(())
    }

    /// Waits until every living tenant's new flow passes under one of its addresses, and all frames are somewhere.
    pub(crate) fn require_service(&mut self) -> Result<()> {
        self.require_health()?;
        let living: Vec<_> = self.tenants.living().collect();
        for (slot, addresses) in living {
            wait::until(&format!("{} is served", slot.name()), RECOVERY, || {
                let Some(seen) = self.probe(slot)? else { return Ok(None) };
                ensure!(addresses.contains(&seen), "{} is seen as {seen}, not {addresses:?}", slot.name());
                Ok(Some(()))
            })
            .with_context(|| self.describe())?;
        }
        wait::until("every frame is somewhere", LIMIT, || {
            let frames = &self.status()?["frames"];
            let count = |place: &str| frames[place].as_u64().context("frames");
            let found = count("atWorkers")? + count("inCommons")? + count("handedOver")?;
            Ok((found == count("total")?).then_some(()))
        })
        .with_context(|| self.describe())
    }

    /// Sends a datagram from a tenant's pod by a new flow; returns the address that the server saw, if it came back.
    fn probe(&self, slot: Slot) -> Result<Option<Ipv4Addr>> {
        let node = self.lab.namespace(Host::Node1);
        let socket = node.enter(|| UdpSocket::bind((slot.probe(), 0)))?.context("a probe")?;
        socket.set_read_timeout(Some(PROBE_WAIT))?;
        socket.connect((SERVER, ECHO))?;
        if socket.send(b"probe").is_err() {
            return Ok(None);
        }
        let mut answer = [0; 64];
        let Ok(length) = socket.recv(&mut answer) else { return Ok(None) };
        let text = String::from_utf8_lossy(&answer[..length]).into_owned();
        let seen = text.strip_suffix(" probe").and_then(|client| client.rsplit_once(':'));
        Ok(Some(seen.with_context(|| format!("the echo says `{text}`"))?.0.parse()?))
    }

    /// Returns what helps to find out why the gateway does not serve.
    pub(crate) fn describe(&self) -> String {
        let status = self.status().map_or_else(|error| format!("{error:#}"), |status| status.to_string());
        let kernel = |line: &str| self.lab.namespace(Host::Gateway).ip(line).unwrap_or_default();
        let log = self.gateway.as_ref().map(Gateway::log).unwrap_or_default();
        format!(
            "{}{}{}{status}\n{}",
            kernel("-br link"),
            kernel("-4 route"),
            kernel("-4 neigh show nud reachable nud permanent nud stale nud probe"),
            last_lines(&log)
        )
    }

    /// Sets the kernel's right MAC for the server.
    pub(crate) fn right_neighbour(&self) -> Result<()> {
        let mac = self.frames.macs.server.map(|byte| format!("{byte:02x}")).join(":");
        let line = format!("neigh replace {SERVER} lladdr {mac} dev {OUTSIDE} nud reachable");
        self.lab.namespace(Host::Gateway).ip(&line).map(drop)
    }

    /// Returns the node that a return route leads to, and its network.
    pub(crate) fn return_route(number: usize) -> (&'static str, Ipv4Addr) {
        let node = &NODES[number % NODES.len()];
        (node.pod_cidr, node.address)
    }
}

/// Returns the end of a log.
pub(crate) fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

fn mac_of(namespace: &Namespace, device: &str) -> Result<[u8; 6]> {
    let shown = namespace.ip(&format!("-o link show dev {device}"))?;
    let mac = shown.split("link/ether ").nth(1).and_then(|rest| rest.split_whitespace().next());
    let bytes = mac.with_context(|| format!("no MAC in {shown}"))?.split(':');
    let bytes: Vec<u8> = bytes.map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    bytes.try_into().map_err(|_| anyhow::anyhow!("{shown}"))
}

fn open_wire(namespace: &Namespace) -> Result<Box<dyn DataLinkSender>> {
    open_wire_of(namespace, "eth0")
}

/// Opens a socket that sends frames as they are.
fn open_wire_of(namespace: &Namespace, device: &str) -> Result<Box<dyn DataLinkSender>> {
    let config = Config { promiscuous: false, ..Config::default() };
    namespace.enter(|| {
        let interfaces = pnet_datalink::interfaces();
        let found = interfaces.iter().find(|interface| interface.name == device);
        match pnet_datalink::channel(found.with_context(|| format!("no {device}"))?, config)? {
            Channel::Ethernet(sender, _) => Ok(sender),
            _ => anyhow::bail!("{device} is no Ethernet"),
        }
    })?
}
