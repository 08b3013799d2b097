//! Brings the kernel and the fast path to what the registry says, in the order that fails closed.
//!
//! What the kernel refuses for one tenant stops no other: everything is tried, and what was refused is
//! returned with what it belongs to.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::Context;
use fastpath::snapshot::Snapshot;
use tokio::task::block_in_place;
use tracing::debug;

use super::gateway::Gateway;
use super::program;
use crate::compile::compile;
use crate::netlink::monitor::Changes;
use crate::plan::{Addition, Needs, Plan, Removal};
use crate::tenant::Tenant;

/// What a refusal belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// A tenant's link, by name.
    Link(String),
    /// An egress address.
    EgressAddress(Ipv4Addr),
    /// A route or a neighbour, which other traffic does well without.
    Path,
    /// Everything.
    Gateway,
}

/// Something that the kernel or the fast path refused.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) subject: Subject,
    pub(super) error: anyhow::Error,
}

/// What must not be refused: the links and egress addresses of the tenants that are changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Stakes {
    links: BTreeSet<String>,
    egress_addresses: BTreeSet<Ipv4Addr>,
}

impl Stakes {
    /// Returns the stakes of a change from some tenants to others.
    pub(super) fn of<'a>(tenants: impl IntoIterator<Item = &'a Tenant>) -> Self {
        let mut stakes = Self::default();
        for tenant in tenants {
            stakes.links.insert(tenant.link_name());
            stakes.egress_addresses.extend(&tenant.egress_ips);
        }
        stakes
    }

    /// Tells whether a refusal of this concerns the change.
    pub(super) fn concern(&self, subject: &Subject) -> bool {
        match subject {
            Subject::Link(name) => self.links.contains(name),
            Subject::EgressAddress(address) => self.egress_addresses.contains(address),
            Subject::Path => false,
            Subject::Gateway => true,
        }
    }
}

impl From<&Removal> for Subject {
    fn from(removal: &Removal) -> Self {
        match removal {
            Removal::Link { name, .. } => Self::Link(name.clone()),
            Removal::Address { address, .. } => Self::EgressAddress(*address),
            Removal::Route { .. } | Removal::Neighbour { .. } => Self::Path,
        }
    }
}

impl From<&Addition> for Subject {
    fn from(addition: &Addition) -> Self {
        match addition {
            Addition::Link(link) => Self::Link(link.name.clone()),
            Addition::EgressAddress(address) => Self::EgressAddress(*address),
            Addition::ReturnRoute(_) | Addition::NextHop(..) => Self::Path,
        }
    }
}

impl Gateway {
    /// Brings everything in step and returns what was refused. When the kernel keeps what is at stake and
    /// should go, the fast path is not told: it goes on guarding it.
    pub(super) async fn converge(&mut self, stakes: &Stakes) -> Vec<Refused> {
        let plan = self.plan();
        let mut refused = self.remove_all(&plan.removals).await;
        if refused.iter().any(|refused| stakes.concern(&refused.subject)) {
            return refused;
        }
        refused.extend(self.catch_up(plan.removals.iter().map(Removal::touches)).await.err());
        if refused.iter().any(|refused| refused.subject == Subject::Gateway) {
            return refused; // what is new is added only once it is steered
        }
        refused.extend(self.add_all(&plan.additions).await);
        if !plan.additions.is_empty() {
            refused.extend(self.catch_up(plan.additions.iter().map(Addition::touches)).await.err());
        }
        refused
    }

    /// Returns what differs between registry and kernel.
    pub(super) fn plan(&self) -> Plan {
        let interfaces = &self.constants.interfaces;
        let needs = Needs {
            keeps_other_routes: self.constants.has_kubernetes && !self.cluster.state.are_nodes_listed,
            ..Needs::of(&self.registry, &self.return_routes, &self.facts, interfaces)
        };
        Plan::compare(&needs, &self.facts, interfaces)
    }

    /// Gives the fast path a new snapshot, if there is anything new in it.
    ///
    /// # Errors
    /// When an interface is not usable, or the fast path did not take it; it is given again next time.
    pub(super) fn publish_changes(&mut self) -> anyhow::Result<()> {
        self.name_translations();
        let epoch = self.publication.wanted();
        let cluster = &self.cluster.state;
        let next =
            compile(epoch, &self.registry, &self.facts, &self.return_routes, cluster, &self.constants)?;
        let Some(next) = self.publication.attempt(next) else { return Ok(()) };
        debug!(epoch = next.epoch.0, "publishing snapshot");
        block_in_place(|| self.data_plane.publish(Snapshot::compile(next.clone())))
            .context("the fast path did not take the new snapshot")?;
        self.publication.settle(next);
        Ok(())
    }

    async fn remove_all(&self, removals: &[Removal]) -> Vec<Refused> {
        let mut refused = Vec::new();
        for removal in removals {
            if let Err(error) = program::remove(&self.netlink, removal).await {
                refused.push(Refused { subject: removal.into(), error: error.into() });
            }
        }
        refused
    }

    async fn add_all(&mut self, additions: &[Addition]) -> Vec<Refused> {
        let interfaces = &self.constants.interfaces;
        let (netlink, monitor) = (&self.netlink, &mut self.monitor);
        let outcomes = program::add_all(netlink, monitor, &mut self.facts, interfaces, additions).await;
        let refused = outcomes.into_iter().filter_map(|(addition, outcome)| Some((addition, outcome.err()?)));
        refused.map(|(addition, error)| Refused { subject: addition.into(), error: error.into() }).collect()
    }

    /// Takes over what the kernel made of the changes, if there were any, and tells the fast path.
    async fn catch_up(&mut self, touched: impl Iterator<Item = Changes>) -> Result<(), Refused> {
        let mut changes = Changes::default();
        touched.for_each(|touched| changes.include(touched));
        let caught_up = self.facts.catch_up(&self.netlink, &mut self.monitor, changes).await;
        match &caught_up {
            // Others may have changed something too: what follows from that is for `follow` to do.
            Ok(changed) => self.monitor.put_back(Changes { links: false, ..*changed }),
            Err(_) => self.facts_are_old = true,
        }
        caught_up
            .map_err(anyhow::Error::from)
            .and_then(|_| self.publish_changes())
            .map_err(|error| Refused { subject: Subject::Gateway, error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_changed_tenants_own_objects_are_at_stake() {
        let tenant: Tenant = serde_json::from_str(
            r#"{"name":"ns-blue","gatewayIP":"192.168.99.13","egressIPs":["192.168.55.113"]}"#,
        )
        .unwrap();
        let stakes = Stakes::of([&tenant]);
        let link = |name: &str| Subject::Link(name.into());
        let egress = |last| Subject::EgressAddress([192, 168, 55, last].into());
        let table = [
            (link("spw-c0a8630d"), true),
            (link("spw-c0a8630e"), false),
            (egress(113), true),
            (egress(114), false),
            (Subject::Path, false),
            (Subject::Gateway, true),
        ];
        for (subject, concerned) in table {
            assert_eq!(stakes.concern(&subject), concerned, "{subject:?}");
        }
    }
}
