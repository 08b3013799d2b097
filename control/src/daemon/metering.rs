//! What the gateway tells those who make metrics of it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use conntrack::{Protocol, port_capacity};
use fastpath::report::EgressReport;
use fastpath::snapshot::Side;

use super::gateway::Gateway;
use crate::api::types::{EgressStatus, PortStatus};
use crate::kubernetes::health::Health;
use crate::metrics::ports::PoolUse;
use crate::metrics::sample::{ClusterSample, InterfaceSample, Sample, TenantSample};
use crate::refusal::Refusal;

impl Gateway {
    /// Returns everything that metrics are made of. Nobody is asked for it: counters are read.
    pub(super) fn sample(&self) -> Result<Sample, Refusal> {
        let tenants = self.registry.entries().map(|entry| TenantSample {
            id: entry.id,
            name: entry.tenant.name.clone(),
            ports: self.data_plane.ports_of(entry.id),
            is_troubled: self.cluster.trouble(&entry.tenant.name).is_some(),
        });
        Ok(Sample {
            started: self.began,
            epoch_wanted: self.publication.wanted().0,
            epoch_applied: self.data_plane.applied_epoch().0,
            inheritance: self.data_plane.inheritance().cloned(),
            report: self.report()?,
            egress: self.data_plane.egress(),
            ports: Arc::clone(&self.port_usage.borrow()),
            tenants: tenants.collect(),
            interfaces: Side::BOTH.map(|side| self.interface_sample(side)),
            cluster: self.cluster.health().map(|health| self.cluster_sample(&health)),
        })
    }

    /// Returns the egress addresses of all tenants, and their ports.
    pub(super) fn egress_status(&self) -> Vec<EgressStatus> {
        let names: HashMap<_, _> =
            self.registry.entries().map(|entry| (entry.id, &entry.tenant.name)).collect();
        let usage = Arc::clone(&self.port_usage.borrow());
        let ports = |(protocol, pool): (Protocol, PoolUse)| PortStatus {
            protocol: protocol.name().to_owned(),
            used: pool.used,
            capacity: port_capacity(protocol),
            exhaustion_seconds: pool.exhaustion.map(|time| time.as_secs()),
        };
        let status = |egress: EgressReport| {
            Some(EgressStatus {
                tenant: (*names.get(&egress.tenant)?).clone(),
                address: egress.address,
                pods: egress.pods,
                port_blocks: egress.blocks,
                ports: usage.of(&egress).map(ports).collect(),
            })
        };
        self.data_plane.egress().into_iter().filter_map(status).collect()
    }

    fn interface_sample(&self, side: Side) -> InterfaceSample {
        let attachment = &self.attachments[side.index()];
        InterfaceSample {
            side,
            name: self.constants.interfaces.name(side).to_owned(),
            is_up: attachment.away_for().is_none(),
            reattachments: attachment.reattachments(),
            disturbances: attachment.disturbances(),
            unresolved: self.unresolved(side),
        }
    }

    /// Returns how many next hops of a side's routes have no hardware address.
    fn unresolved(&self, side: Side) -> usize {
        let spec = self.publication.taken();
        let resolved: HashSet<_> = spec
            .neighbours
            .iter()
            .filter(|neighbour| neighbour.side == side)
            .map(|neighbour| neighbour.address)
            .collect();
        let routes = spec.routes.iter().filter(|route| route.side == side);
        let unresolved: HashSet<_> =
            routes.filter_map(|route| route.gateway).filter(|gateway| !resolved.contains(gateway)).collect();
        unresolved.len()
    }

    fn cluster_sample(&self, health: &Health) -> ClusterSample {
        let kinds = health.kinds.iter().map(|(kind, health)| {
            let is_followed = health.is_listed && health.trouble.is_none() && !health.is_missing;
            (kind.resource(), health.objects, is_followed)
        });
        ClusterSample {
            age: health.contact_age(Instant::now()),
            is_answering: health.is_answering == Some(true) && health.credentials.is_none(),
            kinds: kinds.collect(),
            refused_tenants: self.cluster.refused().len(),
            notices: health.notices.len(),
        }
    }
}
