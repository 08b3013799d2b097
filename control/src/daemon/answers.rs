//! The running gateway in the words of the API.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use fastpath::dataplane::{AttachMode, FramesReport, Report, SteerReport, TenantReport, WorkerReport};
use fastpath::snapshot::{RouteSpec, Side};
use fastpath::succession::Inheritance;
use fastpath::verdict::DropReason;
use tokio::task::block_in_place;

use super::changes::Change;
use super::gateway::Gateway;
use crate::api::types::{
    EpochStatus, FramesStatus, InterfaceStatus, KindStatus, KubernetesStatus, NoticeView, QueueStatus,
    RefusedTenantView, RouteView, Status, SuccessionStatus, TenantStatus, TenantView, WorkerStatus,
};
use crate::api::{Desk, Reply, Request};
use crate::compile::sources;
use crate::kubernetes::health::{Health, KindHealth};
use crate::kubernetes::view::{Kind, Notice};
use crate::nat_log::NatLog;
use crate::refusal::Refusal;
use crate::registry::Entry;
use crate::tenant::mac_to_text;

/// Who waits for a change of a tenant.
enum Asker {
    Put(String, Reply<TenantView>),
    Remove(Reply<()>),
}

impl Gateway {
    /// Does what the API asks, changes last and together. An asker that went away is no error.
    ///
    /// Nobody who waits for an answer has asked for anything after it, so no order is lost.
    pub async fn answer(&mut self, requests: Vec<Request>) {
        let (mut changes, mut askers) = (Vec::new(), Vec::new());
        for request in requests {
            match request {
                Request::Status(reply) => drop(reply.send(self.status())),
                Request::Metrics(reply) => drop(reply.send(self.sample())),
                Request::Tenants(reply) => drop(reply.send(self.tenants())),
                Request::Tenant(name, reply) => drop(reply.send(self.tenant(&name))),
                Request::Who(reply) => drop(reply.send(Ok(self.who()))),
                Request::Routes(reply) => drop(reply.send(Ok(self.routes()))),
                Request::Desk(reply) => drop(reply.send(Ok(self.desk()))),
                Request::PutTenant(tenant, by, reply) => {
                    askers.push(Asker::Put(tenant.name.clone(), reply));
                    changes.push(Change::Put(Box::new(tenant), by));
                }
                Request::RemoveTenant(name, by, reply) => {
                    askers.push(Asker::Remove(reply));
                    changes.push(Change::Remove(name, by));
                }
            }
        }
        if !changes.is_empty() {
            let outcomes = self.change_tenants(&changes).await;
            self.tell_outcomes(askers, outcomes);
        }
    }

    fn tell_outcomes(&self, askers: Vec<Asker>, outcomes: Vec<Result<(), Refusal>>) {
        let report = self.report();
        for (asker, outcome) in askers.into_iter().zip(outcomes) {
            match asker {
                Asker::Put(name, reply) => {
                    let entry = outcome.and_then(|()| self.registry.get(&name));
                    let report = report.as_ref().map_err(Refusal::clone);
                    drop(reply.send(entry.and_then(|entry| Ok(self.tenant_view(entry, report?)))));
                }
                Asker::Remove(reply) => drop(reply.send(outcome)),
            }
        }
    }

    fn status(&self) -> Result<Status, Refusal> {
        let report = self.report()?;
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: self.obstacles().into(),
            epoch: EpochStatus {
                wanted: self.publication.wanted().0,
                applied: self.data_plane.applied_epoch().0,
            },
            interfaces: Side::BOTH.into_iter().map(|side| self.interface(side, &report)).collect(),
            sessions: report.workers.iter().map(|worker| worker.sessions).sum(),
            succession: self.data_plane.inheritance().map(succession_status),
            egress: self.egress_status(),
            drops: report.drops.iter().map(|(reason, count)| (reason.name().to_owned(), *count)).collect(),
            tenants: self.registry.entries().map(|entry| self.tenant_view(entry, &report)).collect(),
            frames: frames_status(report.frames),
            workers: report.workers.into_iter().map(worker_status).collect(),
            kubernetes: self.cluster.health().map(|health| self.kubernetes_status(&health)),
            nat_log: self.nat_log.as_ref().map(NatLog::status),
        })
    }

    fn kubernetes_status(&self, health: &Health) -> KubernetesStatus {
        let refused = self.cluster.refused().iter();
        let error = health
            .credentials
            .clone()
            .or_else(|| (health.is_answering == Some(false)).then(|| "the API does not answer".to_owned()));
        KubernetesStatus {
            server: health.server.clone().unwrap_or_default(),
            age_seconds: health.contact_age(Instant::now()).map(|age| age.as_secs()),
            error: error.or_else(|| health.reports.clone()),
            kinds: health.kinds.iter().map(|(kind, health)| kind_status(*kind, health)).collect(),
            refused_tenants: refused
                .map(|(name, refused)| RefusedTenantView {
                    name: name.clone(),
                    message: refused.message.clone(),
                })
                .collect(),
            notices: health.notices.iter().map(notice_view).collect(),
        }
    }

    fn tenants(&self) -> Result<Vec<TenantView>, Refusal> {
        let report = self.report()?;
        Ok(self.registry.entries().map(|entry| self.tenant_view(entry, &report)).collect())
    }

    fn tenant(&self, name: &str) -> Result<TenantView, Refusal> {
        let entry = self.registry.get(name)?;
        Ok(self.tenant_view(entry, &self.report()?))
    }

    fn routes(&self) -> Vec<RouteView> {
        self.publication.taken().routes.iter().map(|route| self.route_view(route)).collect()
    }

    pub(super) fn desk(&self) -> Desk {
        let name = |entry: &Entry| (entry.id, entry.tenant.name.clone());
        Desk {
            surveyor: self.data_plane.surveyor(),
            taps: self.data_plane.tap_board(),
            snapshot: Arc::clone(self.data_plane.snapshot()),
            interfaces: Side::BOTH.map(|side| self.constants.interfaces.name(side).to_owned()),
            tenants: self.registry.entries().map(name).collect(),
        }
    }

    pub(super) fn report(&self) -> Result<Report, Refusal> {
        block_in_place(|| self.data_plane.report())
            .map_err(|error| Refusal::Failed { message: format!("{:#}", anyhow::Error::from(error)) })
    }

    fn interface(&self, side: Side, report: &Report) -> InterfaceStatus {
        let link = match side {
            Side::Inside => self.publication.taken().inside,
            Side::Outside => self.publication.taken().outside,
        };
        let steering = report.steering.iter().find(|steering| steering.side == side);
        let attachment = &self.attachments[side.index()];
        let verdicts = |steering: &SteerReport| {
            steering.verdicts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
        };
        InterfaceStatus {
            side: side.name().to_owned(),
            name: self.constants.interfaces.name(side).to_owned(),
            mac: mac_to_text(link.mac),
            address: link.address,
            mtu: link.mtu,
            xdp_mode: match steering.map(|steering| steering.mode) {
                Some(AttachMode::Native) => "native",
                Some(AttachMode::Generic) => "generic",
                None => "none",
            }
            .to_owned(),
            verdicts: steering.map(verdicts).unwrap_or_default(),
            queues: self.data_plane.queues(side),
            away_seconds: attachment.away_for().map(|away| away.as_secs()),
            trouble: attachment.trouble(),
            reattachments: attachment.reattachments(),
            disturbances: attachment.disturbances(),
        }
    }

    fn tenant_view(&self, entry: &Entry, report: &Report) -> TenantView {
        let counted = report.tenant(entry.id).cloned().unwrap_or_default();
        let TenantReport {
            outbound_packets,
            outbound_bytes,
            inbound_packets,
            inbound_bytes,
            dropped_packets,
            drops,
            sessions,
            sessions_begun,
            outbound_drops: _,
        } = counted;
        let link = self.cluster.state.links.get(&entry.tenant.gateway_ip).cloned().unwrap_or_default();
        let pods = |(name, pods): (String, BTreeSet<_>)| (name, pods.len() as u64);
        TenantView {
            source: entry.source,
            status: TenantStatus {
                gateway_mac: mac_to_text(entry.tenant.effective_mac()),
                link: entry.tenant.link_name(),
                sources: sources(&entry.tenant, &self.cluster.state, &self.constants.pod_cidrs).1,
                policies: link.policies.into_iter().collect(),
                namespaces: link.namespaces.into_iter().map(pods).collect(),
                trouble: self.cluster.trouble(&entry.tenant.name).map(str::to_owned),
                drains_seconds: entry
                    .drains_until
                    .map(|until| until.saturating_duration_since(Instant::now()).as_secs()),
                sessions,
                sessions_begun,
                outbound_packets,
                outbound_bytes,
                inbound_packets,
                inbound_bytes,
                dropped_packets,
                drops: by_name(&drops),
            },
            tenant: entry.tenant.clone(),
        }
    }

    fn route_view(&self, route: &RouteSpec) -> RouteView {
        let interface = self.constants.interfaces.name(route.side);
        let neighbour = |address| {
            let mut neighbours = self.publication.taken().neighbours.iter();
            neighbours.find(|neighbour| neighbour.side == route.side && neighbour.address == address)
        };
        let sides = self.facts.sides(&self.constants.interfaces);
        let own = self.facts.routes.iter().any(|fact| {
            fact.ours
                && fact.prefix == route.prefix
                && fact.gateway == route.gateway
                && sides.of(fact.link) == Some(route.side)
        });
        RouteView {
            side: route.side.name().to_owned(),
            interface: interface.to_owned(),
            prefix: route.prefix,
            gateway: route.gateway,
            gateway_mac: route.gateway.and_then(neighbour).map(|neighbour| mac_to_text(neighbour.mac)),
            own,
        }
    }
}

fn kind_status(kind: Kind, health: &KindHealth) -> KindStatus {
    let trouble = health.trouble.as_ref().map(|trouble| trouble.message.clone());
    KindStatus {
        kind: kind.resource().to_owned(),
        listed: health.is_listed,
        objects: health.objects as u64,
        error: trouble
            .or_else(|| health.is_missing.then(|| "the cluster does not have this kind".to_owned())),
    }
}

fn notice_view(notice: &Notice) -> NoticeView {
    NoticeView {
        kind: notice.kind.name().to_owned(),
        name: notice.name.clone(),
        reason: notice.reason.to_owned(),
        message: notice.message.clone(),
    }
}

fn by_name(drops: &[(DropReason, u64)]) -> BTreeMap<String, u64> {
    let met = drops.iter().filter(|(_, packets)| *packets != 0);
    met.map(|(reason, packets)| (reason.name().to_owned(), *packets)).collect()
}

fn succession_status(inheritance: &Inheritance) -> SuccessionStatus {
    let Inheritance { age, restored, over, disowned, unfit, torn, ref set_aside } = *inheritance;
    let describe = |(path, why): &(PathBuf, String)| format!("{why}; set aside as {}", path.display());
    SuccessionStatus {
        away_milliseconds: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        restored,
        over,
        disowned,
        unfit,
        torn,
        set_aside: set_aside.as_ref().map(describe),
    }
}

fn frames_status(report: FramesReport) -> FramesStatus {
    let FramesReport { total, at_workers, in_commons, handed_over } = report;
    FramesStatus { total, at_workers, in_commons, handed_over }
}

fn worker_status(report: WorkerReport) -> WorkerStatus {
    let queue = |queue: fastpath::dataplane::QueueReport| QueueStatus {
        side: queue.side.name().to_owned(),
        queue: queue.queue,
        received: queue.received,
        transmitted: queue.transmitted,
        rx_dropped: queue.rx_dropped,
        rx_ring_full: queue.rx_ring_full,
        fill_ring_empty: queue.fill_ring_empty,
        invalid_descriptors: queue.invalid_descriptors,
        zero_copy: queue.zero_copy,
    };
    WorkerStatus {
        worker: report.worker,
        core: report.core,
        epoch: report.epoch.0,
        sessions: report.sessions,
        session_capacity: report.session_capacity,
        panics: report.panics,
        handed_over: report.handed_over,
        sent_by_others: report.sent_by_others,
        inside_sender: report.senders[Side::Inside.index()],
        outside_sender: report.senders[Side::Outside.index()],
        busy_milliseconds: u64::try_from(report.times.sum().as_millis()).unwrap_or(u64::MAX),
        queues: report.queues.into_iter().map(queue).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reasons_that_were_met_are_told() {
        let drops = [(DropReason::Leak, 0), (DropReason::NoPort, 7), (DropReason::Malformed, 1)];
        let expected = [("malformed".to_owned(), 1), ("no_port".to_owned(), 7)];
        assert_eq!(by_name(&drops), BTreeMap::from(expected));
    }
}
