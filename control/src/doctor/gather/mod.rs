//! Asks the host, the daemon, the wire and the API, and changes none of them.
//!
//! - [`host`]: `/proc`, the pins, the state directory, the clock
//! - [`arp`]: who answers for the gateway's addresses
//! - [`api`]: the Kubernetes API

pub mod api;
pub mod arp;
pub mod host;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fastpath::io::ethtool::rx_queues;
use fastpath::snapshot::Side;
use tokio::time::sleep;

use super::evidence::{ArpAnswer, Evidence, Known};
use crate::api::types::Status;
use crate::client::Client;
use crate::config::Config;
use crate::daemon::socket_path;
use crate::netlink::Netlink;
use crate::netlink::facts::{Facts, Interfaces};
use crate::state::StateDir;
use crate::tenant::Tenant;

/// Least time between the two looks at the daemon's counters, so that one sees what grows.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// Gathers everything, for the daemon with this config file and socket (none: the config file's).
pub async fn gather(config_path: &Path, socket: Option<PathBuf>) -> Evidence {
    let config = Config::load(config_path).map_err(described);
    let of_config = config.as_ref().ok().and_then(|config| config.socket.clone());
    let client = Client::new(&socket_path(socket, of_config));
    let status: Known<Status> = client.get("/v1/status").await.map_err(described);
    let kernel = read_kernel().await;
    let tenants = tenants(&config, &status);
    let look = || async {
        if status.is_ok() {
            sleep(BETWEEN_LOOKS).await;
        }
        client.get("/v1/status").await.map_err(described)
    };
    let (later, answers, cluster, clock) =
        tokio::join!(look(), probe(&config, &kernel, &tenants), api::ask(&config), host::clock());
    let isolated = host::isolated(&config);
    Evidence {
        settings: host::settings(&kernel, &isolated),
        process: host::process(status.as_ref().ok().map(|status| status.pid)),
        host: host::host(&config),
        queues: queues(&config),
        config_path: config_path.to_owned(),
        config,
        status,
        later,
        tenants,
        kernel,
        isolated,
        answers,
        clock,
        cluster,
    }
}

/// Returns an error with its causes, as one line.
fn described(error: impl Into<anyhow::Error>) -> String {
    let text = format!("{:#}", error.into());
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn read_kernel() -> Known<Facts> {
    let netlink = Netlink::connect().map_err(described)?;
    Facts::read(&netlink).await.map_err(described)
}

fn tenants(config: &Known<Config>, status: &Known<Status>) -> Known<Vec<Tenant>> {
    if let Ok(status) = status {
        return Ok(status.tenants.iter().map(|view| view.tenant.clone()).collect());
    }
    let config = config.as_ref().map_err(|_| "neither daemon nor config file tells the tenants")?;
    let mut tenants = config.tenants.clone();
    if config.state_dir.is_dir() {
        let state = StateDir::open(&config.state_dir).and_then(|state| state.load_tenants());
        tenants.extend(state.map_err(described)?);
    }
    Ok(tenants)
}

fn queues(config: &Known<Config>) -> Known<[u32; 2]> {
    let config = config.as_ref().map_err(|_| "the config file is not usable")?;
    let queues = |name: &str| rx_queues(name).map_err(|error| format!("queues of {name}: {error}"));
    Ok([queues(&config.inside)?, queues(&config.outside)?])
}

/// Probes both sides at the same time.
async fn probe(
    config: &Known<Config>,
    kernel: &Known<Facts>,
    tenants: &Known<Vec<Tenant>>,
) -> Known<Vec<ArpAnswer>> {
    let config = config.as_ref().map_err(|_| "the config file is not usable")?;
    let (facts, tenants) = (kernel.as_ref().map_err(Clone::clone)?, tenants.as_ref().map_err(Clone::clone)?);
    let interfaces = Interfaces { inside: config.inside.clone(), outside: config.outside.clone() };
    let mut own: BTreeSet<_> = tenants.iter().map(Tenant::effective_mac).collect();
    own.extend(facts.links.iter().filter_map(|link| link.mac));
    let mut probes = Vec::new();
    for side in Side::BOTH {
        let (link, network) = facts.port(&interfaces, side).map_err(|error| error.to_string())?;
        let tenants = tenants.iter().flat_map(|tenant| match side {
            Side::Inside => vec![tenant.gateway_ip],
            Side::Outside => tenant.egress_ips.clone(),
        });
        let addresses: BTreeSet<Ipv4Addr> = tenants.chain([network.addr()]).collect();
        let (name, own) = (link.name.clone(), own.clone());
        probes.push(tokio::task::spawn_blocking(move || arp::probe(&name, side, &addresses, &own)));
    }
    let mut answers = Vec::new();
    for probe in probes {
        answers.extend(probe.await.map_err(described)??);
    }
    Ok(answers)
}
