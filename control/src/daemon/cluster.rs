//! What the cluster asks for, carried out, and what came of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use conntrack::{Epoch, TenantId};
use fastpath::dataplane::TenantReport;
use fastpath::verdict::DropReason;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::converge::{Refused, Stakes, Subject};
use super::gateway::Gateway;
use crate::compile::host;
use crate::config::ReturnRoute;
use crate::kubernetes::follow::Follower;
use crate::kubernetes::health::Health;
use crate::kubernetes::state::{
    ClusterState, Mismatched, ObjectVersion, Outcome, RefusedTenant, TenantOutcome,
};
use crate::kubernetes::view::Surroundings;
use crate::refusal::Refusal;
use crate::registry::{Entry, Host, Registry, Source};
use crate::tenant::{Tenant, mac_to_text};
use fastpath::snapshot::Side;

/// The gateway's end of what crosses to the cluster's side.
#[derive(Debug, Default)]
pub struct ClusterSide {
    /// What the cluster asks for.
    pub(super) state: Arc<ClusterState>,
    accepted: BTreeMap<String, ObjectVersion>,
    refused: BTreeMap<String, RefusedTenant>,
    carried_out: BTreeMap<String, CarriedOut>,
    troubles: BTreeMap<String, String>,
    counted: BTreeMap<TenantId, (u64, Mismatched)>,
    follower: Option<Follower>,
}

/// A tenant as the fast path has it, since which snapshot, and what it had counted by then.
#[derive(Debug)]
struct CarriedOut {
    tenant: Tenant,
    object: Option<ObjectVersion>,
    epoch: Epoch,
    mismatched: Mismatched,
}

impl ClusterSide {
    /// Returns the gateway's end, with the last good state.
    pub fn new(follower: Option<Follower>) -> Self {
        let state = follower.as_ref().map(|follower| follower.state().borrow().clone()).unwrap_or_default();
        Self { state, follower, ..Self::default() }
    }

    /// Follows what the cluster asks for; none when the Kubernetes API is not asked.
    pub(super) fn states(&self) -> Option<watch::Receiver<Arc<ClusterState>>> {
        self.follower.as_ref().map(Follower::state)
    }

    /// Returns how well the cluster is known; none when the Kubernetes API is not asked.
    pub(super) fn health(&self) -> Option<Health> {
        self.follower.as_ref().map(|follower| follower.health().borrow().clone())
    }

    /// Tells whether it is known what the cluster asks for: from the API, or from an earlier daemon's state file.
    pub(super) fn is_known(&self) -> bool {
        let state = &*self.state;
        (state.are_nodes_listed && state.are_tenants_listed)
            || !(state.routes.is_empty() && state.tenants.is_empty())
    }

    /// Returns the cluster's tenants that are refused.
    pub(super) fn refused(&self) -> &BTreeMap<String, RefusedTenant> {
        &self.refused
    }

    /// Stops following the cluster.
    pub(super) async fn stop(&mut self) {
        if let Some(follower) = self.follower.take() {
            follower.stop().await;
        }
    }

    /// Returns the return routes of the config file and of the cluster.
    pub(super) fn return_routes(&self, configured: &[ReturnRoute]) -> Vec<ReturnRoute> {
        configured.iter().chain(self.state.routes.values().flatten()).copied().collect()
    }

    /// Returns why a tenant does not have all that it needs of kernel and fast path.
    pub(super) fn trouble(&self, tenant: &str) -> Option<&str> {
        self.troubles.get(tenant).map(String::as_str)
    }

    /// Puts the cluster's tenants into the registry.
    pub(super) fn register(&mut self, registry: &mut Registry, host: &Host) {
        let wanted = self.state.tenants.iter().map(|tenant| &tenant.tenant);
        let refused = registry.replace_cluster(wanted, host, Instant::now());
        let mut accepted = BTreeMap::new();
        self.refused.clear();
        for tenant in &self.state.tenants {
            let name = &tenant.tenant.name;
            let object = ObjectVersion { uid: tenant.uid.clone(), generation: tenant.generation };
            let Some(refusal) = refused.get(name) else {
                accepted.insert(name.clone(), object);
                continue;
            };
            if let Some(before) = self.accepted.remove(name) {
                accepted.insert(name.clone(), before); // it stays as it was, if it is in the registry at all
            }
            let is_conflict = matches!(refusal, Refusal::Conflict { .. });
            let refused = RefusedTenant { object, is_conflict, message: refusal.to_string() };
            self.refused.insert(name.clone(), refused);
        }
        self.accepted = accepted;
    }

    /// Notes which tenants the fast path has, and what was refused while it and the kernel were told.
    fn note(&mut self, registry: &Registry, epoch: Epoch, refused: &[Refused]) {
        self.troubles.clear();
        let tenants = || registry.entries().map(|entry| &entry.tenant);
        let stakes: Vec<_> = tenants().map(|tenant| (&tenant.name, Stakes::of([tenant]))).collect();
        for Refused { subject, error } in refused {
            for (name, _) in stakes.iter().filter(|(_, stakes)| stakes.concern(subject)) {
                let trouble = self.troubles.entry((*name).clone()).or_default();
                *trouble =
                    if trouble.is_empty() { format!("{error:#}") } else { format!("{trouble}; {error:#}") };
            }
        }
        if refused.iter().any(|refused| refused.subject == Subject::Gateway) {
            return; // the fast path may not have heard of anything
        }
        self.carried_out.retain(|name, _| registry.get(name).is_ok());
        for entry in registry.entries() {
            let object = self.object_of(entry);
            let name = &entry.tenant.name;
            let same = |carried: &CarriedOut| carried.tenant == entry.tenant && carried.object == object;
            if !self.carried_out.get(name).is_some_and(same) {
                let mismatched =
                    self.counted.get(&entry.id).map(|(_, mismatched)| *mismatched).unwrap_or_default();
                let carried_out = CarriedOut { tenant: entry.tenant.clone(), object, epoch, mismatched };
                self.carried_out.insert(name.clone(), carried_out);
            }
        }
    }

    fn object_of(&self, entry: &Entry) -> Option<ObjectVersion> {
        let is_there = entry.source == Source::Kubernetes && entry.drains_until.is_none();
        self.accepted.get(&entry.tenant.name).filter(|_| is_there).cloned()
    }

    /// Notes what tenants count.
    pub(super) fn count(&mut self, tenants: &[(TenantId, TenantReport)]) {
        let of = |report: &TenantReport, reason| {
            report.drops.iter().find(|(met, _)| *met == reason).map_or(0, |(_, packets)| *packets)
        };
        let counted = tenants.iter().map(|(id, report)| {
            let mismatched = Mismatched {
                from_nodes: of(report, DropReason::NodeSource),
                from_pods: of(report, DropReason::PodSource),
            };
            (*id, (report.sessions, mismatched))
        });
        self.counted = counted.collect();
    }

    /// Returns what came of the cluster's wishes.
    fn outcome(&self, registry: &Registry, applied: Epoch) -> Outcome {
        let tenants = registry.entries().filter_map(|entry| {
            let name = &entry.tenant.name;
            let carried_out = self.carried_out.get(name);
            let (sessions, mismatched) = self.counted.get(&entry.id).copied().unwrap_or_default();
            let outcome = TenantOutcome {
                gateway_ip: entry.tenant.gateway_ip,
                gateway_mac: mac_to_text(entry.tenant.effective_mac()),
                from_policy: entry.tenant.sources.from_policy,
                object: carried_out.and_then(|carried| carried.object.clone()),
                epoch: carried_out.map_or(Epoch(u32::MAX), |carried| carried.epoch),
                trouble: self.troubles.get(name).cloned(),
                sessions,
                mismatched: carried_out.map_or(mismatched, |carried| mismatched.since(carried.mismatched)),
            };
            entry.drains_until.is_none().then(|| (name.clone(), outcome))
        });
        let draining = registry.entries().filter(|entry| entry.drains_until.is_some());
        Outcome {
            tenants: tenants.collect(),
            refused: self.refused.clone(),
            draining: draining.map(|entry| entry.tenant.gateway_ip).collect(),
            applied,
        }
    }
}

impl Gateway {
    /// Carries out what the cluster asks for.
    pub async fn adopt(&mut self, state: Arc<ClusterState>) {
        debug!(routes = state.routes.len(), tenants = state.tenants.len(), "the cluster's state changed");
        self.cluster.state = state;
        self.follow_cluster().await;
    }

    /// Carries out again what the cluster asks for: what was in its way may have gone.
    pub(super) async fn follow_cluster(&mut self) {
        self.return_routes = self.cluster.return_routes(&self.configured_routes);
        match host(&self.facts, &self.return_routes, &self.constants) {
            Ok(host) => self.cluster.register(&mut self.registry, &host),
            Err(error) => warn!(%error, "tenants of the cluster are not looked at"),
        }
        let refused = self.converge(&Stakes::default()).await;
        self.note(&refused);
    }

    /// Removes tenants that have drained.
    pub(super) async fn end_drains(&mut self) {
        if self.registry.next_drained().is_none() {
            return;
        }
        let Ok(report) = self.report() else { return };
        let sessions: BTreeMap<TenantId, u64> =
            report.tenants.iter().map(|(id, counted)| (*id, counted.sessions)).collect();
        let is_idle = |id| sessions.get(&id).is_none_or(|sessions| *sessions == 0);
        let drained = self.registry.remove_drained(Instant::now(), is_idle);
        for name in &drained {
            info!(tenant = name, "tenant drained");
        }
        if !drained.is_empty() {
            self.follow_cluster().await;
        }
    }

    /// Tells the cluster's side what came of its wishes, after `refused` was.
    pub(super) fn tell_cluster(&mut self, refused: &[Refused]) {
        self.cluster.note(&self.registry, self.publication.taken().epoch, refused);
        self.tell_counts();
    }

    /// Tells the cluster's side what tenants count.
    pub(super) fn tell_counts(&self) {
        let Some(follower) = &self.cluster.follower else { return };
        follower.tell(self.cluster.outcome(&self.registry, self.data_plane.applied_epoch()));
        if let Some(surroundings) = self.surroundings() {
            follower.surround(surroundings);
        }
    }

    /// Tells whether tenants of the cluster are refused.
    pub(super) fn refuses_tenants(&self) -> bool {
        !self.cluster.refused.is_empty()
    }

    fn surroundings(&self) -> Option<Surroundings> {
        let network = |side| self.facts.port(&self.constants.interfaces, side).map(|(_, network)| network);
        Some(Surroundings {
            inside: network(Side::Inside).ok()?,
            outside: network(Side::Outside).ok()?,
            routes: self.configured_routes.clone(),
            gateways: self.registry.entries().map(|entry| entry.tenant.gateway_ip).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::state::ClusterTenant;

    #[test]
    fn the_outcome_tells_versions_epochs_troubles_and_counts() {
        let mut world = World::new(&[("blue", 1, 13, 113), ("red", 1, 14, 114)]);
        let trouble = Refused {
            subject: Subject::EgressAddress([192, 168, 55, 114].into()),
            error: anyhow::anyhow!("the kernel refused to add 192.168.55.114/32"),
        };
        world.side.note(&world.registry, Epoch(7), &[trouble]);
        let drops = vec![(DropReason::NodeSource, 3), (DropReason::Leak, 9)];
        let counted = TenantReport { sessions: 5, drops, ..TenantReport::default() };
        world.side.count(&[(world.id("blue"), counted)]);
        let outcome = world.tell();
        let [blue, red] = [&outcome.tenants["blue"], &outcome.tenants["red"]];
        assert_eq!((blue.epoch, blue.sessions, blue.trouble.as_deref()), (Epoch(7), 5, None));
        assert_eq!(blue.mismatched, Mismatched { from_nodes: 3, from_pods: 0 });
        assert_eq!(blue.object, Some(version("blue", 1)));
        assert_eq!(blue.gateway_mac, "02:53:c0:a8:63:0d");
        assert_eq!(red.trouble.as_deref(), Some("the kernel refused to add 192.168.55.114/32"));
        assert_eq!(outcome.applied, Epoch(9));
    }

    #[test]
    fn what_did_not_match_is_forgotten_when_the_tenant_changes() {
        let mut world = World::new(&[("blue", 1, 13, 113)]);
        world.side.note(&world.registry, Epoch(2), &[]);
        let counted = |from_nodes| TenantReport {
            drops: vec![(DropReason::NodeSource, from_nodes)],
            ..TenantReport::default()
        };
        let blue = world.id("blue");
        world.side.count(&[(blue, counted(3))]);
        assert_eq!(world.tell().tenants["blue"].mismatched.from_nodes, 3);
        world.ask(&[("blue", 2, 13, 113)]);
        world.side.note(&world.registry, Epoch(3), &[]);
        assert_eq!(world.tell().tenants["blue"].mismatched.from_nodes, 0);
        world.side.count(&[(blue, counted(5))]);
        assert_eq!(world.tell().tenants["blue"].mismatched.from_nodes, 2);
    }

    #[test]
    fn a_tenant_keeps_the_epoch_of_its_own_last_change() {
        let mut world = World::new(&[("blue", 1, 13, 113), ("red", 1, 14, 114)]);
        world.side.note(&world.registry, Epoch(2), &[]);
        world.ask(&[("blue", 1, 13, 113), ("red", 2, 14, 115)]);
        world.side.note(&world.registry, Epoch(3), &[]);
        let unheard = Refused { subject: Subject::Gateway, error: anyhow::anyhow!("no worker answers") };
        world.ask(&[("blue", 2, 13, 116), ("red", 2, 14, 115)]);
        world.side.note(&world.registry, Epoch(3), &[unheard]);
        let outcome = world.tell();
        let told = |name: &str| (outcome.tenants[name].epoch, outcome.tenants[name].object.clone());
        assert_eq!(
            told("blue"),
            (Epoch(2), Some(version("blue", 1))),
            "no worker knows of the second version"
        );
        assert_eq!(told("red"), (Epoch(3), Some(version("red", 2))));
        assert!(outcome.tenants["blue"].trouble.is_some());
    }

    #[test]
    fn a_refused_change_is_told_with_the_version_that_stays() {
        let mut world = World::new(&[("blue", 1, 13, 113), ("red", 1, 14, 114)]);
        world.ask(&[("blue", 1, 13, 113), ("red", 2, 14, 113), ("green", 1, 13, 117)]);
        world.side.note(&world.registry, Epoch(4), &[]);
        let outcome = world.tell();
        assert_eq!(outcome.tenants["red"].object, Some(version("red", 1)));
        let red = &outcome.refused["red"];
        assert_eq!((&red.object, red.is_conflict), (&version("red", 2), true));
        assert!(red.message.starts_with("egressIPs[0]: 192.168.55.113"), "{}", red.message);
        assert!(outcome.refused["green"].message.starts_with("gatewayIP: 192.168.99.13"));
        assert!(!outcome.tenants.contains_key("green"));
    }

    #[test]
    fn a_tenant_that_drains_is_told_by_its_next_hop_alone() {
        let mut world = World::new(&[("blue", 1, 13, 113), ("red", 1, 14, 114)]);
        let mut state = ClusterState::clone(&world.side.state);
        state.tenants.iter_mut().for_each(|tenant| tenant.tenant.drain_seconds = 60);
        world.adopt(state.clone());
        state.tenants.truncate(1);
        world.adopt(state);
        let outcome = world.tell();
        assert_eq!(outcome.tenants.keys().collect::<Vec<_>>(), ["blue"]);
        assert_eq!(outcome.draining, [[192, 168, 99, 14].into()].into());
    }

    struct World {
        side: ClusterSide,
        registry: Registry,
    }

    impl World {
        fn new(tenants: &[(&str, i64, u8, u8)]) -> Self {
            let mut world = Self { side: ClusterSide::default(), registry: Registry::default() };
            world.ask(tenants);
            world
        }

        fn ask(&mut self, tenants: &[(&str, i64, u8, u8)]) {
            let tenants = tenants.iter().map(|(name, generation, gateway, egress)| ClusterTenant {
                uid: format!("uid of {name}"),
                generation: *generation,
                tenant: serde_json::from_value(serde_json::json!({
                    "name": name,
                    "gatewayIP": format!("192.168.99.{gateway}"),
                    "egressIPs": [format!("192.168.55.{egress}")],
                }))
                .unwrap(),
            });
            self.adopt(ClusterState { tenants: tenants.collect(), ..ClusterState::default() });
        }

        fn adopt(&mut self, state: ClusterState) {
            self.side.state = Arc::new(state);
            let host = Host {
                inside_network: "192.168.99.12/24".parse().unwrap(),
                pod_cidrs: vec!["10.132.0.0/14".parse().unwrap()],
                ..Host::default()
            };
            self.side.register(&mut self.registry, &host);
        }

        fn id(&self, name: &str) -> TenantId {
            self.registry.get(name).unwrap().id
        }

        fn tell(&self) -> Outcome {
            self.side.outcome(&self.registry, Epoch(9))
        }
    }

    fn version(name: &str, generation: i64) -> ObjectVersion {
        ObjectVersion { uid: format!("uid of {name}"), generation }
    }
}
