//! Names for addresses: tenants by gateway and egress address, pods where Kubernetes is followed.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::kubernetes::state::{ClusterState, PodName};
use crate::registry::Registry;

/// Names as they are now.
#[derive(Clone, Debug, Default)]
pub struct Names {
    by_gateway: HashMap<Ipv4Addr, String>,
    by_egress: HashMap<Ipv4Addr, String>,
    cluster: Arc<ClusterState>,
}

impl Names {
    /// Returns the names of tenants and pods that there are. Tenants that are gone keep theirs from `before`, until another
    /// has their address: their sessions may end later.
    pub fn new(registry: &Registry, cluster: &Arc<ClusterState>, before: &Self) -> Self {
        let Self { mut by_gateway, mut by_egress, .. } = before.clone();
        for entry in registry.entries() {
            by_gateway.insert(entry.tenant.gateway_ip, entry.tenant.name.clone());
            for egress in &entry.tenant.egress_ips {
                by_egress.insert(*egress, entry.tenant.name.clone());
            }
        }
        Self { by_gateway, by_egress, cluster: Arc::clone(cluster) }
    }

    /// Returns the tenant with a gateway address.
    pub fn tenant(&self, gateway: Ipv4Addr) -> Option<String> {
        self.by_gateway.get(&gateway).cloned()
    }

    /// Returns the tenant with an egress address.
    pub fn tenant_of_egress(&self, egress: Ipv4Addr) -> Option<String> {
        self.by_egress.get(&egress).cloned()
    }

    /// Returns the live pod with an address.
    pub fn pod(&self, address: Ipv4Addr) -> Option<PodName> {
        self.cluster.pods.get(&address).cloned()
    }
}

/// Names that the control loop changes and the log reads.
#[derive(Debug, Default)]
pub struct NameBook {
    newest: Mutex<Arc<Names>>,
}

impl NameBook {
    /// Returns the newest names.
    pub fn get(&self) -> Arc<Names> {
        Arc::clone(&self.lock())
    }

    /// Takes over what the registry and the cluster say now.
    pub fn update(&self, registry: &Registry, cluster: &Arc<ClusterState>) {
        let next = Arc::new(Names::new(registry, cluster, &self.get()));
        *self.lock() = next;
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Names>> {
        // Nobody leaves half of a name behind.
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Names {
    /// Returns names of the reference tenant and of one pod.
    pub(super) fn sample() -> Self {
        let pod = PodName { namespace: "ns-blue".into(), pod: "web-0".into(), node: Some("worker-1".into()) };
        let cluster =
            ClusterState { pods: [([10, 132, 0, 5].into(), pod)].into(), ..ClusterState::default() };
        Self {
            by_gateway: [([192, 168, 99, 13].into(), "ns-blue".into())].into(),
            by_egress: [([192, 168, 55, 113].into(), "ns-blue".into())].into(),
            cluster: Arc::new(cluster),
        }
    }
}
