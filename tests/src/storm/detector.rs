//! The leak detector: it knows nothing of Spillway, sits at the other end of the gateway's outside cable, and misses nothing.
//!
//! Rules in the kernel's ingress hook of the switch's port count every frame that the gateway sends, in its way; there is
//! no queue that could overflow. Whatever is not known to be right is a leak. Of leaks tcpdump keeps the bytes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::demo::Lab;
use control::demo::command::{run_ok, run_with_input};
use control::demo::namespace::Namespace;
use control::demo::process::Process;
use control::demo::topology::{CLUSTER_CIDR, GATEWAY_INSIDE, GATEWAY_OUTSIDE, Host, SERVER};
use serde_json::Value;

use super::frames::{MARK, NOBODY};
use super::tenants::{ADDRESSES_EACH, Slot, TENANTS};
use crate::fixture::LIMIT;

/// What tcpdump keeps: what the rules below count as leaks by its source alone.
const LEAKS: &str = "not (arp and (src net 192.168.55.0/24 or src host 192.168.99.12)) and \
                     not (ip and (src host 192.168.55.12 or src net 192.168.55.120/29 or src net 192.168.55.128/27 or \
                     src net 192.168.55.160/28 or src net 192.168.55.176/29)) and \
                     not (ip and src net 192.168.99.0/24 and dst net 10.132.0.0/14)";

/// Counts what the gateway sends outside.
#[derive(Debug)]
pub(super) struct Detector {
    switch: Namespace,
    tcpdump: Process,
    file: PathBuf,
}

/// What was counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted(BTreeMap<String, u64>);

impl Counted {
    /// Returns the leaks, by kind.
    pub(super) fn leaks(&self) -> Vec<(&str, u64)> {
        let all = self.0.iter().filter(|(name, count)| name.starts_with("leak_") && **count > 0);
        all.map(|(name, count)| (name.as_str(), *count)).collect()
    }

    /// Returns the frames that left under an egress address.
    pub(super) fn translated(&self) -> u64 {
        self.0.get("translated").copied().unwrap_or_default()
    }

    /// Returns the kernel's own answers to pods that left outside, and what a forwarding host routes back for the server.
    pub(super) fn astray(&self) -> u64 {
        self.0.get("seen_astray").copied().unwrap_or_default()
    }

    /// Returns all frames.
    pub(super) fn all(&self) -> u64 {
        self.0.get("seen_all").copied().unwrap_or_default()
    }
}

impl Detector {
    /// Starts counting at the switch's end of the gateway's outside cable.
    pub(super) fn start(lab: &Lab) -> Result<Self> {
        let switch = lab.namespace(Host::SwitchOutside);
        let mut nft = switch.command("nft");
        let output = run_with_input(nft.args(["-f", "-"]), rules().as_bytes(), LIMIT)?;
        ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
        let file = lab.directory().join("leaks.pcap");
        let mut command = switch.command("tcpdump");
        command.args(["-n", "-U", "--immediate-mode", "-Z", "root", "-Q", "in", "-i", Host::Gateway.name()]);
        command.arg("-w").arg(&file).arg(LEAKS);
        let mut tcpdump = lab.start(&mut command, &file.with_extension("log"))?;
        tcpdump.until_printed("listening on", Duration::from_secs(10))?;
        Ok(Self { switch, tcpdump, file })
    }

    /// Reads what was counted.
    pub(super) fn read(&self) -> Result<Counted> {
        let text = self.switch.run("nft", &["-j", "list", "counters", "table", "netdev", "storm"])?;
        let listed: Value = serde_json::from_str(&text)?;
        let counters = listed["nftables"].as_array().context("nft lists counters")?;
        let read = |entry: &Value| {
            let counter = entry.get("counter")?;
            Some((counter["name"].as_str()?.to_owned(), counter["packets"].as_u64()?))
        };
        Ok(Counted(counters.iter().filter_map(read).collect()))
    }

    /// Starts again from zero.
    pub(super) fn reset(&self) -> Result<()> {
        self.switch.run("nft", &["reset", "counters", "table", "netdev", "storm"]).map(drop)
    }

    /// Returns the first leaking frames, as far as their source shows them, in hex.
    pub(super) fn show(&self) -> Result<String> {
        let mut tcpdump = std::process::Command::new("tcpdump");
        tcpdump.args(["-n", "-e", "-XX", "-c", "5", "-Z", "root", "-r"]).arg(&self.file);
        run_ok(&mut tcpdump, LIMIT)
    }

    /// Ends it.
    pub(super) fn stop(mut self) -> Result<()> {
        self.tcpdump.stop().map(drop)
    }
}

/// The kernel's own answers to pods go astray where it knows no way back to them, and so does its ARP about them while no
/// daemon isolates it; they bear no pod's address.
///
/// A frame may leave as ARP from the outside network, from the gateway's own address, or from an egress address; and what
/// bears a tenant's number only from that tenant's own.
fn rules() -> String {
    let port = Host::Gateway.name();
    let mark = u32::from_be_bytes([MARK[0], MARK[1], MARK[2], 0]);
    let datagram = "ip protocol udp ip frag-off & 0x1fff == 0 @th,64,32";
    let mut chain = String::new();
    for slot in Slot::all() {
        let range = format!("{}-{}", slot.egress(0), slot.egress(ADDRESSES_EACH - 1));
        let number = mark + u32::from(slot.0);
        chain +=
            &format!("    {datagram} {number:#x} ip saddr != {range} counter name leak_other_tenant drop\n");
    }
    let nobody = mark + u32::from(NOBODY);
    let egress = format!("{}-{}", Slot(0).egress(0), Slot(TENANTS - 1).egress(ADDRESSES_EACH - 1));
    format!(
        "table netdev storm {{\n\
         \x20 counter seen_all {{ }}\n  counter seen_arp {{ }}\n  counter seen_own {{ }}\n  counter seen_astray {{ }}\n  counter translated {{ }}\n\
         \x20 counter leak_source {{ }}\n  counter leak_arp {{ }}\n  counter leak_other {{ }}\n\
         \x20 counter leak_other_tenant {{ }}\n  counter leak_nobody {{ }}\n\
         \x20 chain from_gateway {{\n\
         \x20   type filter hook ingress device \"{port}\" priority 0; policy accept;\n\
         \x20   counter name seen_all\n\
         {chain}\
         \x20   {datagram} {nobody:#x} counter name leak_nobody drop\n\
         \x20   ip saddr {egress} counter name translated accept\n\
         \x20   ip saddr {GATEWAY_OUTSIDE} counter name seen_own accept\n\
         \x20   ip saddr 192.168.99.0/24 ip daddr {CLUSTER_CIDR} counter name seen_astray accept\n\
         \x20   ip saddr {SERVER} counter name seen_astray accept\n\
         \x20   ether type ip counter name leak_source drop\n\
         \x20   ether type arp arp saddr ip 192.168.55.0/24 counter name seen_arp accept\n\
         \x20   arp saddr ip {GATEWAY_INSIDE} counter name seen_astray accept\n\
         \x20   ether type arp counter name leak_arp drop\n\
         \x20   counter name leak_other drop\n\
         \x20 }}\n}}\n"
    )
}
