//! The task that follows the cluster and tells the gateway what it asks for.
//!
//! It never fails: whatever the API cannot tell stays as it was told last, even by the daemon before this one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::Api;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use super::connection::{self, Connection};
use super::credentials::Credentials;
use super::health::{Health, KindHealth, Line};
use super::keeper;
use super::objects::{NamespaceObject, NodeObject, PodObject, PolicyObject, TenantObject};
use super::report::Reports;
use super::state::{ClusterState, Outcome};
use super::status::status;
use super::view::{Compiled, Kind, Listed, Surroundings, View, compile};
use super::watch::{Progress, Subject, Watch};
use crate::config::Kubernetes;
use crate::state::StateDir;

/// Changes that come together are compiled together.
const COLLECT: Duration = Duration::from_millis(10);
/// How often retries, repetitions and numbers of sessions are looked at.
const TICK: Duration = Duration::from_secs(1);
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// The gateway's end of the task that follows the cluster. The task ends when it is dropped.
#[derive(Debug)]
pub struct Follower {
    state: watch::Receiver<Arc<ClusterState>>,
    health: watch::Receiver<Health>,
    outcome: watch::Sender<Option<Arc<Outcome>>>,
    surroundings: watch::Sender<Surroundings>,
    _stop: oneshot::Sender<()>,
    tasks: [JoinHandle<()>; 2],
}

/// Starts to follow the cluster, from the state that was saved last, if any.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn start(config: &Kubernetes, directory: StateDir, surroundings: Surroundings) -> Follower {
    let mut tasks = tokio::task::JoinSet::new();
    let connection = Connection::open(Credentials::new(config.kubeconfig.clone()), &mut tasks);
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let (follower, cluster) =
        prepare(connection, directory, surroundings, host.unwrap_or_else(|| "gateway".to_owned()));
    follower.run(cluster, tasks)
}

impl Follower {
    /// Follows what the cluster asks for: the state that was saved last, until the API has told more.
    pub fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.state.clone()
    }

    /// Follows how well the cluster is known.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Tells what the gateway made of the cluster's state. Until the first time no status is written.
    pub fn tell(&self, outcome: Outcome) {
        self.outcome.send_if_modified(|told| {
            let is_new = told.as_deref() != Some(&outcome);
            *told = Some(Arc::new(outcome));
            is_new
        });
    }

    /// Tells that the gateway's own side has changed.
    pub fn surround(&self, surroundings: Surroundings) {
        self.surroundings.send_if_modified(|told| {
            let is_new = *told != surroundings;
            *told = surroundings;
            is_new
        });
    }

    /// Stops following, and waits until the last state is saved.
    pub async fn stop(self) {
        let Self { tasks, _stop: stop, .. } = self;
        drop(stop);
        for task in tasks {
            if timeout(STOP_LIMIT, task).await.is_err() {
                warn!("Kubernetes: the last state is not saved yet; it is left as it was");
            }
        }
    }
}

/// A follower that has not begun.
struct Prepared {
    state: watch::Receiver<Arc<ClusterState>>,
    health: watch::Receiver<Health>,
    outcome: watch::Sender<Option<Arc<Outcome>>>,
    surroundings: watch::Sender<Surroundings>,
    directory: StateDir,
}

impl Prepared {
    fn run(self, cluster: Cluster, keepers: tokio::task::JoinSet<()>) -> Follower {
        let (stop, stopped) = oneshot::channel();
        let saving = tokio::spawn(keeper::keep(self.directory, self.state.clone()));
        let following = tokio::spawn(cluster.run(stopped, keepers));
        let Self { state, health, outcome, surroundings, .. } = self;
        Follower { state, health, outcome, surroundings, _stop: stop, tasks: [following, saving] }
    }
}

fn prepare(
    connection: Connection,
    directory: StateDir,
    surroundings: Surroundings,
    host: String,
) -> (Prepared, Cluster) {
    let previous = keeper::load(&directory);
    let (states, state) = watch::channel(Arc::new(previous.clone()));
    let (healths, health) = watch::channel(Health::default());
    let (outcome, outcomes) = watch::channel(None);
    let (surroundings, surrounding) = watch::channel(surroundings);
    let changes = Arc::new(Notify::new());
    let kinds = Kinds::watch(&connection, &changes);
    let reports = Reports::new(connection.client(), host);
    let cluster = Cluster {
        connected: connection.subscribe(),
        connection,
        changes,
        kinds,
        pods: BTreeMap::new(),
        view: View::default(),
        compiled: Compiled { state: previous, ..Compiled::default() },
        compiled_with: Arc::default(),
        health: Health::default(),
        reports,
        outcomes,
        surrounding,
        states,
        healths,
    };
    (Prepared { state, health, outcome, surroundings, directory }, cluster)
}

/// Everything that is known of the cluster, and everybody who is told of it.
struct Cluster {
    connection: Connection,
    connected: watch::Receiver<connection::State>,
    changes: Arc<Notify>,
    kinds: Kinds,
    pods: BTreeMap<String, Watch<PodObject>>,
    view: View,
    compiled: Compiled,
    compiled_with: Arc<Outcome>,
    health: Health,
    reports: Reports,
    outcomes: watch::Receiver<Option<Arc<Outcome>>>,
    surrounding: watch::Receiver<Surroundings>,
    states: watch::Sender<Arc<ClusterState>>,
    healths: watch::Sender<Health>,
}

/// How much has to be done.
enum Turn {
    /// Objects, the outcome or the surroundings changed.
    Recompile,
    /// What is reported may be due by now.
    Report,
    /// Only health may have changed.
    TellHealth,
}

/// Kinds that are watched in the whole cluster.
struct Kinds {
    nodes: Watch<NodeObject>,
    tenants: Watch<TenantObject>,
    policies: Watch<PolicyObject>,
    namespaces: Watch<NamespaceObject>,
}

impl Kinds {
    fn watch(connection: &Connection, changes: &Arc<Notify>) -> Self {
        let of = |kind| Subject { kind, namespace: None };
        let dynamic = |kind: Kind| move |client| Api::all_with(client, &kind.api_resource());
        let changes = || changes.clone();
        Self {
            nodes: Watch::start(of(Kind::Node), connection, Api::all, NodeObject::read, changes()),
            tenants: Watch::start(
                of(Kind::EgressTenant),
                connection,
                dynamic(Kind::EgressTenant),
                TenantObject::read,
                changes(),
            ),
            policies: Watch::start(
                of(Kind::ExternalRoute),
                connection,
                dynamic(Kind::ExternalRoute),
                PolicyObject::read,
                changes(),
            ),
            namespaces: Watch::start(
                of(Kind::Namespace),
                connection,
                Api::all,
                NamespaceObject::read,
                changes(),
            ),
        }
    }
}

impl Cluster {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>, _keepers: tokio::task::JoinSet<()>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.recompile(); // pods of the state that was saved are watched from the start
        loop {
            let turn = tokio::select! {
                () = self.changes.notified() => {
                    sleep(COLLECT).await;
                    if self.collect() { Turn::Recompile } else { Turn::TellHealth }
                }
                Ok(()) = self.outcomes.changed() => {
                    if self.has_other_tenants() { Turn::Recompile } else { Turn::Report }
                }
                Ok(()) = self.surrounding.changed() => Turn::Recompile,
                Ok(()) = self.connected.changed() => Turn::TellHealth,
                () = self.reports.finish_one() => Turn::TellHealth,
                _ = tick.tick() => Turn::Report,
                _ = &mut stopped => return,
            };
            match turn {
                Turn::Recompile => {
                    self.recompile();
                    self.report();
                }
                Turn::Report => self.report(),
                Turn::TellHealth => {}
            }
            self.tell_health();
        }
    }

    /// Tells whether the gateway says something of its tenants that was not compiled yet.
    fn has_other_tenants(&self) -> bool {
        let is_first = *self.compiled_with == Outcome::default();
        let outcome = self.outcomes.borrow();
        is_first || outcome.as_ref().is_none_or(|outcome| !outcome.has_tenants_of(&self.compiled_with))
    }

    /// Takes over what the watches have, and returns whether any has made progress that matters.
    fn collect(&mut self) -> bool {
        let before = self.view.tenants.clone();
        let (kinds, view, health) = (&mut self.kinds, &mut self.view, &mut self.health.kinds);
        let mut is_changed = take(&mut kinds.nodes, &mut view.nodes, health.entry(Kind::Node).or_default());
        is_changed |=
            take(&mut kinds.tenants, &mut view.tenants, health.entry(Kind::EgressTenant).or_default())
                && !are_alike(&before, &view.tenants);
        is_changed |=
            take(&mut kinds.policies, &mut view.policies, health.entry(Kind::ExternalRoute).or_default());
        is_changed |=
            take(&mut kinds.namespaces, &mut view.namespaces, health.entry(Kind::Namespace).or_default());
        for (namespace, watch) in &mut self.pods {
            let listed = view.pods.entry(namespace.clone()).or_default();
            is_changed |= take(watch, listed, &mut KindHealth::default());
        }
        is_changed
    }

    /// Compiles what is known, tells the gateway if that changed, and watches the pods that matter now.
    fn recompile(&mut self) {
        let outcome = self.outcomes.borrow_and_update().clone().unwrap_or_default();
        let surroundings = self.surrounding.borrow_and_update().clone();
        self.compiled = compile(&self.view, &self.compiled.state, &surroundings, &outcome);
        self.compiled_with = outcome;
        self.states.send_if_modified(|state| {
            let is_new = **state != self.compiled.state;
            if is_new {
                *state = Arc::new(self.compiled.state.clone());
            }
            is_new
        });
        self.health.notices.clone_from(&self.compiled.notices);
        let wanted = &self.compiled.pod_namespaces;
        self.pods.retain(|namespace, _| wanted.contains(namespace));
        self.view.pods.retain(|namespace, _| wanted.contains(namespace));
        for namespace in wanted {
            if self.view.pods.contains_key(namespace) {
                continue;
            }
            let subject = Subject { kind: Kind::Pod, namespace: Some(namespace.clone()) };
            let api = |client| Api::namespaced(client, namespace);
            let watch = Watch::start(subject, &self.connection, api, PodObject::read, self.changes.clone());
            self.pods.insert(namespace.clone(), watch);
            self.view.pods.insert(namespace.clone(), None);
        }
    }

    /// Writes what the cluster has to be told.
    fn report(&mut self) {
        self.reports.publish(&self.compiled.notices);
        let outcome = self.outcomes.borrow().clone();
        let (Some(outcome), Some(tenants)) = (outcome, &self.view.tenants) else { return };
        let (view, compiled, now) = (&self.view, &self.compiled, Timestamp::now());
        self.reports.write_statuses(tenants, |object| status(object, view, compiled, &outcome, now));
    }

    /// Tells how well the cluster is known, and logs what has begun and what is over.
    fn tell_health(&mut self) {
        self.health.set_connection(&self.connected.borrow_and_update());
        let pods = self.pod_health();
        self.health.kinds.insert(Kind::Pod, pods);
        self.health.reports = self.reports.trouble();
        self.healths.send_if_modified(|told| {
            if *told == self.health {
                return false;
            }
            for line in self.health.lines_since(told) {
                match line {
                    Line::Warn(text) => warn!("Kubernetes: {text}"),
                    Line::Info(text) => info!("Kubernetes: {text}"),
                }
            }
            told.clone_from(&self.health);
            true
        });
    }

    /// Returns the health of all pods that are watched, with the first trouble that any has.
    fn pod_health(&self) -> KindHealth {
        let mut whole = KindHealth { is_listed: true, ..KindHealth::default() };
        for watch in self.pods.values() {
            let part = health_of(&watch.peek());
            whole.is_listed &= part.is_listed;
            whole.objects += part.objects;
            whole.doubtful += part.doubtful;
            whole.trouble = whole.trouble.or(part.trouble);
        }
        whole
    }
}

/// Tells whether tenants differ in their statuses at most: those are written by this task, and ask for nothing.
fn are_alike(one: &Listed<TenantObject>, other: &Listed<TenantObject>) -> bool {
    let (Some(one), Some(other)) = (one, other) else { return false };
    let without_status = |object: &TenantObject| TenantObject { status: None, ..object.clone() };
    let is_alike = |(one, other): (&Arc<TenantObject>, &Arc<TenantObject>)| {
        Arc::ptr_eq(one, other) || without_status(one) == without_status(other)
    };
    one.keys().eq(other.keys()) && one.values().zip(other.values()).all(is_alike)
}

/// Takes over what a watch has, and returns whether it has made progress.
fn take<T: PartialEq + Send + Sync + 'static>(
    watch: &mut Watch<T>,
    listed: &mut Listed<T>,
    health: &mut KindHealth,
) -> bool {
    if !watch.is_changed() {
        return false;
    }
    let progress = watch.progress();
    listed.clone_from(progress.collection.objects());
    *health = health_of(&progress);
    true
}

fn health_of<T: PartialEq>(progress: &Progress<T>) -> KindHealth {
    let objects = progress.collection.objects().as_ref();
    KindHealth {
        is_listed: objects.is_some(),
        is_missing: !progress.is_installed,
        objects: objects.map_or(0, BTreeMap::len),
        doubtful: progress.collection.doubtful().len(),
        trouble: progress.trouble.clone(),
    }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
