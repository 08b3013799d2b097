//! The process that keeps tenants, kernel and fast path in step, until it is told to stop.
//!
//! - `attachment`: the two interfaces, which may go away and come back
//! - [`guard`]: one daemon for each interface, control socket and directory
//! - [`host`]: what the process needs of the host
//! - [`gateway`]: the running gateway
//! - [`cluster`]: what the cluster asks for, and what came of it
//! - `changes`: what people ask of tenants, carried out
//! - `metering`: what metrics are made of
//! - [`program`]: a plan, carried out over netlink
//! - [`publication`]: which snapshot the fast path has
//! - `readiness`: whether the gateway serves as it should
//! - [`supervisor`]: watches over the workers and the control loop
//! - `grace`: short grace periods while nobody forwards
//! - `threads`: how urgently the daemon's own threads run, and where
//! - `translations`: the log of translations
//! - [`shortage`]: new sessions that were refused for lack of room

mod answers;
mod attachment;
mod changes;
pub mod cluster;
mod converge;
pub mod gateway;
mod grace;
pub mod guard;
pub mod host;
mod metering;
pub mod program;
pub mod publication;
mod readiness;
pub mod shortage;
pub mod supervisor;
mod threads;
mod translations;

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use fastpath::dataplane::{DataPlaneOptions, NeighbourRequests};
use fastpath::groundwork::Groundwork;
use fastpath::snapshot::Side;
use futures_util::FutureExt;
use sd_notify::NotifyState;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info, warn};

use self::cluster::ClusterSide;
use self::gateway::{Gateway, Setup};
use self::guard::{ControlSocket, DirectoryGuard, InterfaceGuard};
use self::supervisor::Supervisor;
use self::threads::Hurry;
use crate::api::{Bounds, Request, health_router, log_router, router, serve};
use crate::compile::{Constants, host as host_of};
use crate::config::Config;
use crate::kubernetes::follow;
use crate::kubernetes::state::ClusterState;
use crate::kubernetes::view::Surroundings;
use crate::logging::Log;
use crate::metrics::{self, Metering};
use crate::netlink::Netlink;
use crate::netlink::facts::{Facts, Interfaces};
use crate::netlink::monitor::{Changes, Monitor};
use crate::registry::{Host, Registry, Source};
use crate::state::{StateDir, StateError};
use crate::sysctl::Sysctls;
use crate::tenant::Tenant;
use crate::vitals::Vitals;

const REPAIR_INTERVAL: Duration = Duration::from_secs(1);
/// The kernel tells of links that come and go, but not of queues, nor of sockets that died.
const INTERFACES_INTERVAL: Duration = Duration::from_millis(250);
const SHORTAGE_INTERVAL: Duration = Duration::from_secs(5);
const REQUESTS_IN_FLIGHT: usize = 64;

/// Runs the gateway until SIGTERM or SIGINT.
///
/// `keep` leaves links, addresses and routes in place when it stops by SIGTERM, for the next process; SIGINT takes them away.
///
/// # Errors
/// When it cannot start, or a part of the process breaks off.
pub fn run(config: Config, socket: &Path, keep: bool, log: &Log) -> anyhow::Result<()> {
    host::lift_memory_limit();
    host::lift_file_limit();
    host::keep_files_to_own_group();
    host::give_up_privileges()?;
    let hurry = threads::hurry(); // nobody forwards now
    let beginning = Beginning { keep, log, hurry, groundwork: Groundwork::begin(&config.pin_dir) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run_in_runtime(config, socket, beginning))
}

/// What a daemon begins with.
struct Beginning<'a> {
    keep: bool,
    log: &'a Log,
    hurry: Hurry,
    groundwork: Groundwork,
}

async fn run_in_runtime(config: Config, socket: &Path, beginning: Beginning<'_>) -> anyhow::Result<()> {
    let keep = beginning.keep;
    let _inside = InterfaceGuard::take(&config.inside)?;
    let _outside = InterfaceGuard::take(&config.outside)?;
    let socket = ControlSocket::listen(socket)?;
    host::mount_bpffs(&config.pin_dir)?;
    let _pins = DirectoryGuard::take("xdp.pin_dir", &config.pin_dir)?;
    let _state = DirectoryGuard::take("control.state_dir", &config.state_dir)?;
    let state = StateDir::open(&config.state_dir)?;
    let mut sysctls = Sysctls::open(state.clone())?;
    let interfaces = Interfaces { inside: config.inside.clone(), outside: config.outside.clone() };
    let ran = Daemon::run(config, &socket, state, &mut sysctls, beginning).await;
    if !keeps(keep, &ran)
        && let Err(error) = restore(&mut sysctls, &interfaces).await
    {
        error!(error = format!("{error:#}"), "kernel settings were not restored");
    }
    ran.map(drop)
}

/// Tells whether links, addresses and routes stay.
fn keeps(keep: bool, ended: &anyhow::Result<SignalKind>) -> bool {
    keep && !matches!(ended, Ok(signal) if *signal == SignalKind::interrupt())
}

/// Removes every link, address and route that a daemon with this config left, then restores kernel settings.
///
/// The caller holds the interfaces.
///
/// # Errors
/// When another daemon keeps its state in the same directory, or the kernel refuses.
pub async fn withdraw(config: &Config) -> anyhow::Result<()> {
    let interfaces = Interfaces { inside: config.inside.clone(), outside: config.outside.clone() };
    let _state = DirectoryGuard::take("control.state_dir", &config.state_dir)?;
    let mut sysctls = Sysctls::open(StateDir::open(&config.state_dir)?)?;
    let netlink = Netlink::connect()?;
    let facts = Facts::read(&netlink).await?;
    program::withdraw(&netlink, &facts, &interfaces).await?;
    program::clear_leftovers(&netlink, &facts, &interfaces).await?;
    restore(&mut sysctls, &interfaces).await
}

/// Restores kernel settings, unless a tenant's link still stands and needs its ARP isolated.
async fn restore(sysctls: &mut Sysctls, interfaces: &Interfaces) -> anyhow::Result<()> {
    let facts = Facts::read(&Netlink::connect()?).await?;
    let inside = facts.link(&interfaces.inside).map(|link| link.index);
    let standing =
        facts.links.iter().find(|link| inside.is_some_and(|inside| link.is_tenant_link_of(inside)));
    if let Some(link) = standing {
        anyhow::bail!("tenant link {} still stands", link.name);
    }
    Ok(sysctls.restore()?)
}

struct Daemon {
    gateway: Gateway,
    states: Option<watch::Receiver<Arc<ClusterState>>>,
    requests: mpsc::Receiver<Request>,
    neighbour_requests: NeighbourRequests,
    neighbours_readable: AsyncFd<OwnedFd>,
    signals: [Signal; 2],
    vitals: Arc<Vitals>,
}

impl Daemon {
    async fn run(
        config: Config,
        socket: &ControlSocket,
        state: StateDir,
        sysctls: &mut Sysctls,
        Beginning { keep, log, hurry, groundwork }: Beginning<'_>,
    ) -> anyhow::Result<SignalKind> {
        let signals = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
        // What would end the process otherwise, where there is no log of translations to be opened anew.
        let _hangup = signal(SignalKind::hangup())?;
        let health = config.health.map(listen_for_health).transpose()?;
        let metrics = metrics::listen(config.metrics)?;
        let monitor = Monitor::subscribe()?; // before the first read, so that nothing is missed
        let session_file = config.session_file.clone().path(socket.path());
        let setup = prepare(config, session_file, state, monitor).await?;
        for side in Side::BOTH {
            sysctls.isolate(setup.constants.interfaces.name(side))?;
        }
        if setup.constants.has_kubernetes {
            sysctls.make_room_for_neighbours()?;
        }
        let pin_dir = setup.options.pin_dir.clone();
        let gateway = Gateway::start(setup, keep, hurry, groundwork)
            .await
            .map_err(|error| with_advice(error, &pin_dir))?;
        let neighbour_requests = gateway.neighbour_requests();
        let neighbours_readable = watch(&neighbour_requests)?;
        let (sender, requests) = mpsc::channel(REQUESTS_IN_FLIGHT);
        let vitals = Arc::new(Vitals::default());
        vitals.set_obstacles(gateway.obstacles());
        let mut servers = JoinSet::new();
        if let Some(listener) = metrics {
            let metering = Metering { daemon: sender.clone(), vitals: Arc::clone(&vitals) };
            servers.spawn(serve(listener, metrics::router(metering), Bounds::METRICS));
        }
        let api = router(sender, Arc::clone(&vitals)).merge(log_router(log.clone()));
        servers.spawn(serve(socket.listener()?, api, Bounds::default()));
        servers.spawn(log.limit.clone().keep_telling());
        if let Some(listener) = health {
            servers.spawn(serve(listener, health_router(Arc::clone(&vitals)), Bounds::HEALTH));
        }
        let watchdog = sd_notify::watchdog_enabled();
        let supervisor = Supervisor::start(gateway.pulses(), Arc::clone(&vitals), watchdog)?;
        let states = gateway.cluster_states();
        let mut daemon =
            Self { gateway, states, requests, neighbour_requests, neighbours_readable, signals, vitals };
        info!("ready");
        notify(NotifyState::Ready);
        let served = daemon.serve().await;
        daemon.stop(keeps(keep, &served), supervisor).await;
        drop(servers); // until now they tell that the gateway stops
        served
    }

    /// Stops in order: says so, takes no more changes, withdraws what attracts traffic, then stops forwarding.
    async fn stop(self, keep: bool, supervisor: Supervisor) {
        let Self { gateway, requests, vitals, .. } = self;
        info!("stopping");
        vitals.stop();
        notify(NotifyState::Stopping);
        drop(requests);
        drop(supervisor);
        gateway.stop(keep).await;
    }

    /// Serves until a signal comes, and returns which.
    async fn serve(&mut self) -> anyhow::Result<SignalKind> {
        let mut repair = interval(REPAIR_INTERVAL);
        repair.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut interfaces = interval(INTERFACES_INTERVAL);
        interfaces.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut shortage = interval(SHORTAGE_INTERVAL);
        shortage.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut requests = Vec::new();
        let [terminate, interrupt] = &mut self.signals;
        loop {
            self.vitals.beat();
            tokio::select! {
                // `systemctl stop` sends SIGINT, and then SIGTERM to whatever is left: what it wants is the first.
                _ = terminate.recv() => return Ok(match interrupt.recv().now_or_never() {
                    Some(Some(())) => SignalKind::interrupt(),
                    Some(None) | None => SignalKind::terminate(),
                }),
                _ = interrupt.recv() => return Ok(SignalKind::interrupt()),
                changed = self.gateway.kernel_changed() => match changed {
                    Some(()) => self.gateway.follow(Changes::default()).await,
                    None => {
                        warn!("the kernel's notifications ended; subscribing again");
                        self.gateway.subscribe_again()?;
                        self.gateway.follow(Changes::ALL).await;
                    }
                },
                state = next_state(&mut self.states) => self.gateway.adopt(state).await,
                1.. = self.requests.recv_many(&mut requests, REQUESTS_IN_FLIGHT) => {
                    self.gateway.answer(requests.split_off(0)).await;
                }
                readable = self.neighbours_readable.readable() => {
                    readable?.clear_ready(); // first, so that what comes meanwhile makes it readable again
                    self.gateway.resolve(self.neighbour_requests.drain()).await;
                }
                _ = repair.tick() => self.gateway.repair().await,
                _ = interfaces.tick() => {
                    if self.gateway.has_stray_side() {
                        self.gateway.follow(Changes::ALL).await;
                    }
                }
                _ = shortage.tick() => self.gateway.tell_shortages(),
            }
            self.vitals.set_obstacles(self.gateway.obstacles());
        }
    }
}

/// Waits for the cluster to ask for something else; for ever when it is not followed.
async fn next_state(states: &mut Option<watch::Receiver<Arc<ClusterState>>>) -> Arc<ClusterState> {
    if let Some(followed) = states {
        if followed.changed().await.is_ok() {
            return followed.borrow_and_update().clone();
        }
        error!(
            "the cluster is not followed any more, as the task that does so broke off; restart the gateway"
        );
        *states = None;
    }
    std::future::pending().await
}

/// Says how to get rid of the XDP programs, if there are any after a failed start.
fn with_advice(error: anyhow::Error, pin_dir: &Path) -> anyhow::Error {
    let attached = std::fs::read_dir(pin_dir).is_ok_and(|mut pins| pins.next().is_some());
    if !attached {
        return error;
    }
    error.context(
        "the gateway did not start, and XDP programs stay attached that drop tenant traffic until it does; \
         `spillway detach --config FILE` removes them",
    )
}

/// Checks everything that can be checked before anything is changed.
async fn prepare(
    config: Config,
    session_file: Option<PathBuf>,
    state: StateDir,
    monitor: Monitor,
) -> anyhow::Result<Setup> {
    let netlink = Netlink::connect()?;
    let facts = Facts::read(&netlink).await?;
    let constants = Constants {
        interfaces: Interfaces { inside: config.inside.clone(), outside: config.outside.clone() },
        pod_cidrs: config.pod_cidrs.clone(),
        timeouts: config.timeouts,
        tcp: config.tcp,
        has_kubernetes: config.kubernetes.is_some(),
    };
    let host = host_of(&facts, &config.routes, &constants)?;
    check_routes(&config, &host)?;
    let registry = register(&config, &state, &host)?;
    let options = DataPlaneOptions {
        inside: config.inside,
        outside: config.outside,
        attach: config.attach,
        pin_dir: config.pin_dir,
        workers: config.workers,
        cores: config.cores,
        scheduler_policy: config.scheduler_policy,
        session_capacity: config.session_capacity,
        session_file,
        records: config.nat_log.as_ref().map(|log| log.records),
    };
    let follower = config
        .kubernetes
        .as_ref()
        .map(|kubernetes| follow::start(kubernetes, state.clone(), Surroundings::default()));
    let cluster = ClusterSide::new(follower);
    Ok(Setup {
        netlink,
        monitor,
        facts,
        registry,
        state,
        constants,
        configured_routes: config.routes,
        cluster,
        options,
        metrics_destinations: config.metrics_destinations,
        nat_log: config.nat_log,
    })
}

fn check_routes(config: &Config, host: &Host) -> anyhow::Result<()> {
    for (index, route) in config.routes.iter().enumerate() {
        let network = host.inside_network;
        if !network.contains(&route.via) || route.via == network.addr() {
            anyhow::bail!(
                "cluster.routes[{index}].via: {} is no node on the inside network; give another address of {}",
                route.via,
                network.trunc()
            );
        }
        if !config.pod_cidrs.iter().any(|cidr| cidr.contains(&route.pod_cidr)) {
            warn!(
                "cluster.routes[{index}].pod_cidr: {} is in none of cluster.pod_cidrs; tenants that take the \
                 cluster's refuse its pods",
                route.pod_cidr
            );
        }
    }
    Ok(())
}

fn register(config: &Config, state: &StateDir, host: &Host) -> anyhow::Result<Registry> {
    let mut registry = Registry::default();
    for (index, tenant) in config.tenants.iter().enumerate() {
        if config.tenants[..index].iter().any(|earlier| earlier.name == tenant.name) {
            anyhow::bail!("tenant[{index}].name: {:?} is in the config file twice; rename one", tenant.name);
        }
        registry
            .put(tenant.clone(), Source::ConfigFile, host)
            .with_context(|| format!("tenant {:?} of the config file is refused", tenant.name))?;
    }
    for tenant in load_tenants(state)? {
        let name = tenant.name.clone();
        registry.put(tenant, Source::ControlSocket, host).with_context(|| {
            format!("tenant {name:?} of {}/tenants.json is refused", config.state_dir.display())
        })?;
    }
    Ok(registry)
}

/// Returns the tenants of the control socket. A damaged file is set aside, so that the tenants of other sources are
/// served: what it held is dropped by the XDP programs, and the gateway is not ready until somebody has seen to it.
fn load_tenants(state: &StateDir) -> anyhow::Result<Vec<Tenant>> {
    match state.load_tenants() {
        Err(error @ StateError::Parse { .. }) => {
            let aside = state.set_tenants_aside()?;
            error!(error = &error as &dyn std::error::Error, "the tenants of the control socket are lost");
            error!("starting without them; the file is kept as {}", aside.display());
            Ok(Vec::new())
        }
        loaded => Ok(loaded?),
    }
}

#[expect(deprecated, reason = "the unsafe replacement asks that the descriptor stays ours; an OwnedFd does")]
fn watch(requests: &NeighbourRequests) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(requests.as_fd().try_clone_to_owned()?, Interest::READABLE)
}

/// Opens the socket for health over plain HTTP.
fn listen_for_health(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .and_then(TcpListener::from_std);
    listener.with_context(|| {
        format!("control.health: cannot listen on {address}; use a free port of an address of this host")
    })
}

fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "the service manager was not told");
    }
}

/// Returns the control socket's path: the one given, else the config file's, else the default.
pub fn socket_path(given: Option<PathBuf>, config: Option<PathBuf>) -> PathBuf {
    given.or(config).unwrap_or_else(|| PathBuf::from(crate::config::DEFAULT_SOCKET))
}
