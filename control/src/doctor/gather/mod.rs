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

use super::evidence::{Answers, ArpAnswer, Evidence, Known, Silence};
use crate::api::types::Status;
use crate::client::{Client, ClientError};
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
    let status: Result<Status, Silence> = client.get("/v1/status").await.map_err(silence);
    let kernel = read_kernel().await;
    let tenants = tenants(&config, &status);
    let look = || async {
        match &status {
            Ok(_) => sleep(BETWEEN_LOOKS).await,
            Err(why) => return Err(why.clone()),
        }
        client.get("/v1/status").await.map_err(silence)
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

fn silence(error: ClientError) -> Silence {
    match error {
        ClientError::NoDaemon { .. } => Silence::NoDaemon(described(error)),
        ClientError::Forbidden { .. } => Silence::Forbidden(described(error)),
        ClientError::NoAnswer { .. }
        | ClientError::Broken(_)
        | ClientError::Output(_)
        | ClientError::Unreadable(_)
        | ClientError::Refused { .. } => Silence::NoAnswer(described(error)),
    }
}

fn tenants(config: &Known<Config>, status: &Result<Status, Silence>) -> Known<Vec<Tenant>> {
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
async fn probe(config: &Known<Config>, kernel: &Known<Facts>, tenants: &Known<Vec<Tenant>>) -> Answers {
    let known = || -> Known<_> {
        let config = config.as_ref().map_err(|_| "the config file is not usable")?;
        let interfaces = Interfaces { inside: config.inside.clone(), outside: config.outside.clone() };
        Ok((interfaces, kernel.as_ref().map_err(Clone::clone)?, tenants.as_deref().map_err(Clone::clone)?))
    };
    let (interfaces, facts, tenants) = match known() {
        Ok(known) => known,
        Err(reason) => return Answers { inside: Err(reason.clone()), outside: Err(reason) },
    };
    let probe = |side| probe_side(side, &interfaces, facts, tenants);
    let (inside, outside) = tokio::join!(probe(Side::Inside), probe(Side::Outside));
    Answers { inside, outside }
}

async fn probe_side(
    side: Side,
    interfaces: &Interfaces,
    facts: &Facts,
    tenants: &[Tenant],
) -> Known<Vec<ArpAnswer>> {
    let name = interfaces.name(side).to_owned();
    let (_, network) = facts.port(interfaces, side).map_err(|_| format!("{name} is not usable"))?;
    let tenant_macs = tenants.iter().map(Tenant::effective_mac);
    let own: BTreeSet<_> = tenant_macs.chain(facts.links.iter().filter_map(|link| link.mac)).collect();
    let of_tenants = tenants.iter().flat_map(|tenant| match side {
        Side::Inside => std::slice::from_ref(&tenant.gateway_ip),
        Side::Outside => tenant.egress_ips.as_slice(),
    });
    let addresses: BTreeSet<Ipv4Addr> = of_tenants.copied().chain([network.addr()]).collect();
    let probe = tokio::task::spawn_blocking(move || arp::probe(&name, side, &addresses, &own));
    Ok(probe.await.map_err(described)??.into_iter().collect())
}
