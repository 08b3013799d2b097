//! The running gateway: keeps registry, kernel and fast path in step.
//!
//! Fail closed: what is new is steered by the fast path before the kernel answers for it; what is gone is
//! taken from the kernel before the fast path forgets it.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use anyhow::Context;
use conntrack::Epoch;
use fastpath::dataplane::{DataPlane, DataPlaneOptions, NeighbourRequest, NeighbourRequests};
use fastpath::groundwork::Groundwork;
use fastpath::pulse::Pulse;
use fastpath::snapshot::{Side, Snapshot};
use fastpath::succession::Inheritance;
use tokio::sync::watch;
use tokio::task::block_in_place;
use tracing::{debug, error, info, warn};

use super::attachment::Attachment;
use super::cluster::ClusterSide;
use super::converge::{Refused, Stakes, Subject};
use super::program;
use super::publication::Publication;
use super::shortage::Shortages;
use super::threads::{self, Hurry};
use super::translations::start_log;
use crate::compile::{Constants, compile, host};
use crate::config::ReturnRoute;
use crate::kubernetes::state::ClusterState;
use crate::metrics::ports::{PortUsage, keep_surveying};
use crate::nat_log::NatLog;
use crate::netlink::facts::Facts;
use crate::netlink::monitor::{Changes, Monitor};
use crate::netlink::neighbours::Resolution;
use crate::netlink::{Netlink, NetlinkError};
use crate::plan::{Addition, Needs, Plan};
use crate::registry::{Registry, Source};
use crate::state::StateDir;

/// What a gateway is started with.
pub struct Setup {
    /// Connection to the kernel.
    pub netlink: Netlink,
    /// What the kernel told since before it was first asked.
    pub monitor: Monitor,
    /// What the kernel knew when it was last asked.
    pub facts: Facts,
    /// Tenants of the config file and the state file.
    pub registry: Registry,
    /// Where tenants of the control socket are kept.
    pub state: StateDir,
    /// What never changes.
    pub constants: Constants,
    /// Return routes of the config file.
    pub configured_routes: Vec<ReturnRoute>,
    /// What the cluster asked for when it was last heard of.
    pub cluster: ClusterSide,
    /// What the fast path is started with.
    pub options: DataPlaneOptions,
    /// Destinations that metrics tell of.
    pub metrics_destinations: usize,
    /// What is logged of translations; none: nothing.
    pub nat_log: Option<crate::config::NatLog>,
}

/// The running gateway.
pub struct Gateway {
    pub(super) netlink: Netlink,
    pub(super) monitor: Monitor,
    pub(super) facts: Facts,
    pub(super) registry: Registry,
    pub(super) state: StateDir,
    pub(super) constants: Constants,
    pub(super) configured_routes: Vec<ReturnRoute>,
    pub(super) cluster: ClusterSide,
    pub(super) return_routes: Vec<ReturnRoute>,
    pub(super) data_plane: DataPlane,
    pub(super) publication: Publication,
    pub(super) started: Instant,
    pub(super) began: SystemTime,
    pub(super) shortages: Shortages,
    pub(super) attachments: [Attachment; 2],
    pub(super) nat_log: Option<NatLog>,
    /// Tenants of the control socket that were in a damaged file.
    pub(super) tenants_set_aside: Vec<PathBuf>,
    pub(super) port_usage: watch::Receiver<Arc<PortUsage>>,
    requested: HashSet<(Side, Ipv4Addr)>,
    pub(super) facts_are_old: bool,
    last_trouble: String,
}

impl Gateway {
    /// Removes what an earlier process left, starts the fast path, and gives the kernel what tenants need.
    ///
    /// `keep` leaves in place what was made when something is refused. The `hurry` ends as soon as somebody forwards.
    ///
    /// # Errors
    /// When an interface is not usable, or the kernel or the fast path refuses.
    pub(super) async fn start(
        mut setup: Setup,
        keep: bool,
        hurry: Hurry,
        groundwork: Groundwork,
    ) -> anyhow::Result<Self> {
        let return_routes = setup.cluster.return_routes(&setup.configured_routes);
        let cluster_host = host(&setup.facts, &return_routes, &setup.constants)?;
        setup.cluster.register(&mut setup.registry, &cluster_host);
        let interfaces = &setup.constants.interfaces;
        let needs = Needs {
            keeps_other_routes: setup.constants.has_kubernetes,
            ..Needs::of(&setup.registry, &return_routes, &setup.facts, interfaces)
        };
        program::clear_leftovers(&setup.netlink, &setup.facts, interfaces).await?;
        let stale = Plan::compare(&needs, &setup.facts, interfaces).removals;
        program::remove_all(&setup.netlink, &stale).await?;
        // With thousands of tenants it takes long to read everything again, and nobody forwards meanwhile.
        setup.facts.catch_up(&setup.netlink, &mut setup.monitor, Changes::default()).await?;
        let published = compile(
            Epoch(1),
            &setup.registry,
            &setup.facts,
            &return_routes,
            &setup.cluster.state,
            &setup.constants,
        )?;
        let first = Snapshot::compile(published.clone());
        let data_plane = block_in_place(|| DataPlane::start(&setup.options, first, groundwork))
            .context("the fast path did not start")?;
        block_in_place(|| threads::settle(hurry, &data_plane.pulses()));
        let port_usage = keep_surveying(data_plane.surveyor(), setup.metrics_destinations);
        tell_inheritance(data_plane.inheritance());
        let nat_log = start_log(setup.nat_log.as_ref(), &data_plane, &setup.registry, &setup.cluster.state)?;
        let tenants_set_aside = setup.state.tenants_set_aside();
        let mut gateway = Self {
            netlink: setup.netlink,
            monitor: setup.monitor,
            facts: setup.facts,
            registry: setup.registry,
            state: setup.state,
            constants: setup.constants,
            configured_routes: setup.configured_routes,
            cluster: setup.cluster,
            return_routes,
            data_plane,
            publication: Publication::first(published),
            port_usage,
            started: Instant::now(),
            began: SystemTime::now(),
            shortages: Shortages::default(),
            attachments: Default::default(),
            nat_log,
            tenants_set_aside,
            requested: HashSet::new(),
            facts_are_old: false,
            last_trouble: String::new(),
        };
        let refused = gateway.converge(&Stakes::default()).await;
        gateway.note(&refused);
        match refused.into_iter().find(|refused| gateway.must_not_be_refused(&refused.subject)) {
            None => Ok(gateway),
            Some(Refused { error, .. }) => {
                gateway.stop(keep).await;
                Err(error)
            }
        }
    }

    /// Tells whether the gateway does not start without this: all that tenants of people need. Those of the cluster
    /// are tried again.
    fn must_not_be_refused(&self, subject: &Subject) -> bool {
        let people = self.registry.entries().filter(|entry| entry.source != Source::Kubernetes);
        Stakes::of(people.map(|entry| &entry.tenant)).concern(subject)
    }

    /// Removes everything that was made, unless told to keep it, and stops the workers, which forward until then: what
    /// is on its way arrives while nothing new is asked for. The XDP programs stay, and drop tenant traffic.
    pub async fn stop(mut self, keep: bool) {
        self.cluster.stop().await;
        if keep {
            info!("links, addresses and routes stay");
        } else if let Err(error) = self.withdraw().await {
            error!(error = format!("{error:#}"), "not everything was removed");
        }
        info!("stopping the workers");
        let _hurry = threads::hurry(); // whoever comes next forwards the sooner
        for worker in block_in_place(|| self.data_plane.stop()) {
            error!(worker, "worker {worker} does not stop; it ends with the process");
        }
        if let Some(log) = self.nat_log {
            block_in_place(|| log.stop());
        }
    }

    /// Returns the workers' signs of life.
    pub fn pulses(&self) -> Vec<Pulse> {
        self.data_plane.pulses()
    }

    /// Waits until the kernel tells of changes that are not known yet; none when it does not tell any more.
    pub async fn kernel_changed(&mut self) -> Option<()> {
        self.monitor.changed().await
    }

    /// Has the kernel tell of changes again, after it ceased to.
    ///
    /// # Errors
    /// When no socket can be opened.
    pub fn subscribe_again(&mut self) -> Result<(), NetlinkError> {
        self.monitor = Monitor::subscribe()?;
        Ok(())
    }

    /// Takes over what changed in the kernel, and what is `wanted`, and tells the fast path.
    pub async fn follow(&mut self, wanted: Changes) {
        let changed = match self.facts.catch_up(&self.netlink, &mut self.monitor, wanted).await {
            Ok(changed) => changed,
            Err(error) => {
                self.facts_are_old = true; // the next repair reads again
                self.log_trouble(&error.into());
                return;
            }
        };
        if !changed.any() {
            return;
        }
        let back = self.attend_interfaces();
        if changed.routes || changed.neighbours {
            self.ask_next_hops().await;
            self.confirm_stale().await;
        }
        if let Err(error) = self.publish_changes() {
            self.log_trouble(&error);
        }
        if !back.is_empty() {
            self.serve_again(&back).await;
        }
    }

    /// Makes good what somebody else undid, and what was refused before. Trouble is logged once.
    pub async fn repair(&mut self) {
        self.data_plane.note_alive();
        if !self.tenants_set_aside.is_empty() {
            self.tenants_set_aside = self.state.tenants_set_aside();
        }
        if std::mem::take(&mut self.facts_are_old) {
            self.follow(Changes::ALL).await;
        }
        if self.refuses_tenants() {
            self.follow_cluster().await;
        } else {
            let refused = self.converge(&Stakes::default()).await;
            self.note(&refused);
        }
        self.end_drains().await;
    }

    /// Gives interfaces that are back what tenants need there, and tells their neighbours.
    async fn serve_again(&mut self, back: &[Side]) {
        // The kernel forgot the routes and neighbours of a link that was down without a word on each.
        if let Err(error) = self.facts.refresh(&self.netlink, Changes::ALL).await {
            self.facts_are_old = true;
            self.log_trouble(&error.into());
        }
        let refused = self.converge(&Stakes::default()).await;
        self.note(&refused);
        back.iter().for_each(|side| self.data_plane.announce(*side));
    }

    /// Asks the kernel for the neighbours that workers wait for.
    pub async fn resolve(&mut self, requests: Vec<NeighbourRequest>) {
        for NeighbourRequest { side, address } in requests {
            debug!(side = side.name(), %address, "resolving neighbour");
            self.resolve_one(side, address).await;
            self.requested.insert((side, address));
        }
    }

    /// Follows what the cluster asks for; none when the Kubernetes API is not asked.
    pub fn cluster_states(&self) -> Option<watch::Receiver<Arc<ClusterState>>> {
        self.cluster.states()
    }

    /// Returns the workers' requests.
    pub fn neighbour_requests(&self) -> NeighbourRequests {
        self.data_plane.neighbour_requests()
    }

    async fn withdraw(&mut self) -> anyhow::Result<()> {
        self.facts.refresh(&self.netlink, Changes::ALL).await?;
        Ok(program::withdraw(&self.netlink, &self.facts, &self.constants.interfaces).await?)
    }

    /// Has the kernel resolve the next hops of new routes at once, before a packet needs them.
    async fn ask_next_hops(&self) {
        let plan = self.plan();
        for addition in plan.additions.iter().filter(|addition| matches!(addition, Addition::NextHop(..))) {
            let interfaces = &self.constants.interfaces;
            if let Err(error) = program::add_path(&self.netlink, addition, &self.facts, interfaces).await {
                debug!(error = &error as &dyn std::error::Error, "next hop not asked for");
                if error.is_out_of_room() {
                    return;
                }
            }
        }
    }

    /// Has the kernel confirm neighbours that it has not heard of for a while: it does not see the traffic
    /// that shows them alive.
    async fn confirm_stale(&mut self) {
        let sides = self.facts.sides(&self.constants.interfaces);
        let known = |resolution: Option<Resolution>| {
            let neighbours = self.facts.neighbours.iter();
            let matching =
                neighbours.filter(move |neighbour| resolution.is_none_or(|it| neighbour.resolution == it));
            matching.filter_map(|neighbour| Some((sides.of(neighbour.link)?, neighbour.address)))
        };
        let present: HashSet<_> = known(None).collect();
        let stale: Vec<_> =
            known(Some(Resolution::Stale)).filter(|neighbour| self.requested.contains(neighbour)).collect();
        self.requested.retain(|neighbour| present.contains(neighbour));
        for (side, address) in stale {
            self.resolve_one(side, address).await;
        }
    }

    async fn resolve_one(&self, side: Side, address: Ipv4Addr) {
        let interfaces = &self.constants.interfaces;
        let sides = self.facts.sides(interfaces);
        let kept = self.facts.neighbours.iter().any(|neighbour| {
            neighbour.ours && neighbour.address == address && sides.of(neighbour.link) == Some(side)
        });
        if kept {
            return; // the kernel keeps asking, and would stop if told to resolve it once
        }
        if let Err(error) = program::resolve(&self.netlink, &self.facts, interfaces, side, address).await {
            warn!(error = &error as &dyn std::error::Error, %address, "neighbour not resolved");
        }
    }

    /// Notes what was refused while kernel and fast path were told of everything.
    pub(super) fn note(&mut self, refused: &[Refused]) {
        self.tell_cluster(refused);
        self.log_refusals(refused);
    }

    pub(super) fn log_refusals(&mut self, refused: &[Refused]) {
        if refused.is_empty() {
            self.last_trouble.clear();
        }
        const TOLD: usize = 5;
        let troubles = refused.iter().map(|refused| format!("{:#}", refused.error));
        let mut troubles: Vec<String> = troubles.take(TOLD).collect();
        if let Some(more) = refused.len().checked_sub(TOLD).filter(|more| *more > 0) {
            troubles.push(format!("and {more} more"));
        }
        if !troubles.is_empty() {
            self.log_trouble(&anyhow::anyhow!(troubles.join("; ")));
        }
    }

    fn log_trouble(&mut self, error: &anyhow::Error) {
        let trouble = format!("{error:#}");
        if trouble != self.last_trouble {
            warn!("{trouble}; will try again");
            self.last_trouble = trouble;
        }
    }
}

/// Logs what became of the sessions of the process before.
fn tell_inheritance(inheritance: Option<&Inheritance>) {
    let Some(inheritance) = inheritance else { return };
    let Inheritance { age, restored, over, disowned, unfit, torn, set_aside } = inheritance;
    if let Some((path, why)) = set_aside {
        error!("{why}; it is set aside as {}, and the gateway starts without sessions", path.display());
    } else if restored + over + disowned + unfit + torn > 0 {
        info!(restored, over, disowned, unfit, torn, ?age, "sessions of the process before go on");
    }
}
