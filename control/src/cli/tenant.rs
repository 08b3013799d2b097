//! `spillway tenant …`: add, remove, list and show tenants.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use clap::{Args, Subcommand};
use fastpath::verdict::DropReason;
use ipnet::Ipv4Net;
use macaddr::MacAddr6;

use super::policy::{self, PolicyArguments};
use crate::api::types::{TenantStatus, TenantView};
use crate::client::{Client, ClientError};
use crate::output;
use crate::policy::{Filtering, Limits, Mapping};
use crate::registry::Source;
use crate::tenant::{Sources, Tenant};

/// What to do with tenants.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Add a tenant, or change the one of this name
    Add(AddArguments),
    /// Remove a tenant
    Remove(RemoveArguments),
    /// List all tenants
    List(ListArguments),
    /// Show one tenant
    Show(ShowArguments),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  spillway tenant add ns-blue --gw-ip 192.168.99.13 --egress-ip 192.168.55.113\n  \
                  spillway tenant add ns-red --gw-ip 192.168.99.14 --egress-ip 192.168.55.114 \\\n    \
                  --mapping endpoint-independent --filtering address --max-ports-per-pod 1000"
)]
pub(super) struct AddArguments {
    /// Name of the tenant
    name: String,

    #[command(flatten)]
    addresses: AddressArguments,

    /// Hardware address of the next hop [default: 02:53 and the four bytes of --gw-ip]
    #[arg(long, value_name = "MAC")]
    mac: Option<MacAddr6>,

    /// Accept exactly the live pods of the namespaces whose policies route to --gw-ip; needs the Kubernetes API
    #[arg(long, conflicts_with_all = ["pod_cidr", "node_sources"])]
    from_policy: bool,

    /// Accept the cluster's nodes, where they translate pods to their own address; needs the Kubernetes API
    #[arg(long, conflicts_with = "pod_cidr")]
    node_sources: bool,

    #[command(flatten)]
    policy: PolicyArguments,

    /// Seconds for which its sessions go on when the tenant is removed
    #[arg(long, value_name = "SECONDS", default_value_t)]
    drain_seconds: u32,

    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

/// Where a tenant's traffic comes from and what it leaves with.
#[derive(Debug, Args)]
pub(super) struct AddressArguments {
    /// Next hop that the cluster sends the tenant's traffic to
    #[arg(long, value_name = "ADDRESS")]
    gw_ip: Ipv4Addr,

    /// Address that its traffic leaves with; may be given more than once
    #[arg(long, value_name = "ADDRESS", required = true, num_args = 1..)]
    egress_ip: Vec<Ipv4Addr>,

    /// Source network that it may use; may be given more than once [default: the cluster's pod networks]
    #[arg(long, value_name = "CIDR", num_args = 1..)]
    pod_cidr: Vec<Ipv4Net>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  spillway tenant remove ns-blue")]
pub(super) struct RemoveArguments {
    /// Name of the tenant
    name: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  spillway tenant list --json | jq '.[].tenant.name'")]
pub(super) struct ListArguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  spillway tenant show ns-blue")]
pub(super) struct ShowArguments {
    /// Name of the tenant
    name: String,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Command {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        match self {
            Self::Add(add) => add.execute(client).await,
            Self::Remove(remove) => remove_tenant(client, &remove.name).await,
            Self::List(list) => list.execute(client).await,
            Self::Show(show) => show.execute(client).await,
        }
    }
}

impl AddArguments {
    async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let mut tenant = Tenant {
            gateway_mac: self.mac,
            drain_seconds: self.drain_seconds,
            ..self.addresses.into_tenant(self.name)
        };
        tenant.sources.from_policy = self.from_policy;
        tenant.sources.nodes = self.node_sources;
        let view = put_tenant(client, &self.policy.apply(tenant)).await?;
        if self.json {
            return Ok(output::print_json(&view)?);
        }
        Ok(output::print(&format!("tenant {} added\n{}", view.tenant.name, describe(&view)))?)
    }
}

impl AddressArguments {
    /// Returns the tenant that has nothing else to it.
    pub(super) fn into_tenant(self, name: String) -> Tenant {
        Tenant {
            name,
            gateway_ip: self.gw_ip,
            gateway_mac: None,
            egress_ips: self.egress_ip,
            sources: Sources { pod_cidrs: self.pod_cidr, ..Sources::default() },
            mapping: Mapping::default(),
            filtering: Filtering::default(),
            limits: Limits::default(),
            mss_clamp: 0,
            drain_seconds: 0,
        }
    }
}

impl ListArguments {
    async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let tenants: Vec<TenantView> = client.get("/v1/tenants").await?;
        if self.json {
            return Ok(output::print_json(&tenants)?);
        }
        if tenants.is_empty() {
            return Ok(output::print("no tenants; `spillway tenant add --help` shows how to add one")?);
        }
        Ok(output::print(&table(&tenants))?)
    }
}

impl ShowArguments {
    async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let view: TenantView = client.get(&path(&self.name)?).await?;
        if self.json {
            return Ok(output::print_json(&view)?);
        }
        Ok(output::print(&describe(&view))?)
    }
}

/// Adds a tenant, or changes the one of its name.
pub(super) async fn put_tenant(client: &Client, tenant: &Tenant) -> Result<TenantView, ClientError> {
    client.put(&path(&tenant.name)?, tenant).await
}

/// Removes a tenant and says so.
pub(super) async fn remove_tenant(client: &Client, name: &str) -> anyhow::Result<()> {
    client.delete(&path(name)?).await?;
    Ok(output::print(&format!("tenant {name} removed"))?)
}

/// Returns tenants as a table.
pub(super) fn table(tenants: &[TenantView]) -> String {
    let header = ["TENANT", "GATEWAY", "MAC", "EGRESS", "SESSIONS", "OUT", "IN", "DROPPED", "SOURCE"];
    let rows = tenants.iter().map(|view| {
        vec![
            view.tenant.name.clone(),
            view.tenant.gateway_ip.to_string(),
            view.status.gateway_mac.clone(),
            join(&view.tenant.egress_ips),
            view.status.sessions.to_string(),
            view.status.outbound_packets.to_string(),
            view.status.inbound_packets.to_string(),
            view.status.dropped_packets.to_string(),
            source(view.source).to_owned(),
        ]
    });
    output::table(&header, &["SESSIONS", "OUT", "IN", "DROPPED"], rows)
}

fn describe(view: &TenantView) -> String {
    let status = &view.status;
    let traffic = |packets, bytes| format!("{packets} packets, {}", output::bytes(bytes));
    let before = [
        ("name", view.tenant.name.clone()),
        ("source", source(view.source).to_owned()),
        ("gateway", format!("{} at {} on {}", view.tenant.gateway_ip, status.gateway_mac, status.link)),
        ("egress", join(&view.tenant.egress_ips)),
        ("sources", sources(view)),
        ("routed by", routed_by(status)),
    ];
    let after = [
        ("sessions", status.sessions.to_string()),
        ("outbound", traffic(status.outbound_packets, status.outbound_bytes)),
        ("inbound", traffic(status.inbound_packets, status.inbound_bytes)),
        ("dropped", format!("{} packets", status.dropped_packets)),
    ];
    let rows = before.into_iter().chain(policy::rows(&view.tenant)).chain(after);
    let rows = rows.chain(troubles(status)).filter(|(_, value)| !value.is_empty());
    let lines: Vec<_> = rows.map(|(name, value)| format!("{name:<9} {value}")).collect();
    lines.join("\n") + &drops(&status.drops)
}

/// Returns which addresses a tenant may send from, in words where there may be many.
fn sources(view: &TenantView) -> String {
    let count = view.status.sources.len();
    match &view.tenant.sources {
        Sources { from_policy: true, .. } => format!("the {count} live pods of the namespaces routed to it"),
        Sources { nodes: true, .. } => format!("the cluster's {count} nodes"),
        Sources { .. } => join(&view.status.sources),
    }
}

/// Returns the policies that route to a tenant, and their namespaces; nothing when there are none.
fn routed_by(status: &TenantStatus) -> String {
    if status.policies.is_empty() {
        return String::new();
    }
    const SHOWN: usize = 5;
    let namespaces = status.namespaces.iter().map(|(name, pods)| format!("{name} ({pods} pods)"));
    let mut namespaces: Vec<_> = namespaces.take(SHOWN).collect();
    if let Some(more) = status.namespaces.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        namespaces.push(format!("and {more} more"));
    }
    let namespaces = if namespaces.is_empty() { "no namespace".to_owned() } else { namespaces.join(", ") };
    format!("{}: {namespaces}", join(&status.policies))
}

fn troubles(status: &TenantStatus) -> [(&'static str, String); 2] {
    let draining = status.drains_seconds.map(|seconds| {
        format!("removed; its sessions go on for at most {}, no new ones begin", output::seconds(seconds))
    });
    [("draining", draining.unwrap_or_default()), ("trouble", status.trouble.clone().unwrap_or_default())]
}

/// Returns drops by reason and what each means, as a section of its own; nothing when there are none.
fn drops(drops: &BTreeMap<String, u64>) -> String {
    if drops.is_empty() {
        return String::new();
    }
    let meaning =
        |name: &str| DropReason::ALL.iter().find(|reason| reason.name() == name).map(|it| it.help());
    let rows = drops.iter().map(|(name, packets)| {
        vec![packets.to_string(), name.clone(), meaning(name).unwrap_or_default().to_owned()]
    });
    format!("\n\n{}", output::table(&["DROPS", "REASON", "MEANING"], &["DROPS"], rows))
}

fn source(source: Source) -> &'static str {
    match source {
        Source::ConfigFile => "config file",
        Source::ControlSocket => "socket",
        Source::Kubernetes => "kubernetes",
    }
}

fn join(values: &[impl ToString]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Returns a tenant's path; a name that cannot stand in one is refused here, the daemon judges the rest.
fn path(name: &str) -> Result<String, ClientError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if !name.is_empty() && name.bytes().all(plain) {
        return Ok(format!("/v1/tenants/{name}"));
    }
    let message = format!("{name:?} is not a tenant name; use lower-case letters, digits, '-' and '.'");
    Err(ClientError::Refused { field: Some("name".into()), message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_shown_with_what_each_reason_means() {
        let counted = BTreeMap::from([("leak".to_owned(), 12), ("not_known_here".to_owned(), 7)]);
        let expected = format!(
            "name      ns-blue\n…dropped   19 packets\n\nDROPS  REASON          MEANING\n   12  leak            {}\n    \
             7  not_known_here",
            DropReason::Leak.help()
        );
        let shown = describe(&view(counted));
        let (head, tail) = expected.split_once('…').unwrap();
        assert!(shown.starts_with(head) && shown.ends_with(tail), "{shown}");
    }

    #[test]
    fn without_drops_there_is_no_such_section() {
        assert!(describe(&view(BTreeMap::new())).ends_with("\ndropped   0 packets"));
    }

    fn view(drops: BTreeMap<String, u64>) -> TenantView {
        let tenant = r#"{"name":"ns-blue","gatewayIP":"192.168.99.13","egressIPs":["192.168.55.113"]}"#;
        TenantView {
            tenant: serde_json::from_str(tenant).unwrap(),
            source: Source::ControlSocket,
            status: TenantStatus {
                gateway_mac: "02:53:c0:a8:63:0d".into(),
                link: "spw-c0a8630d".into(),
                dropped_packets: drops.values().sum(),
                drops,
                ..TenantStatus::default()
            },
        }
    }
}
