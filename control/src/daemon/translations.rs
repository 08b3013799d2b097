//! The log of translations, as the gateway holds it, and who is behind an address now.

use std::sync::Arc;

use anyhow::Context;
use fastpath::dataplane::DataPlane;

use super::gateway::Gateway;
use crate::api::WhoDesk;
use crate::config::NatLog as Settings;
use crate::kubernetes::state::ClusterState;
use crate::nat_log::NatLog;
use crate::nat_log::entry::Continuity;
use crate::nat_log::names::{NameBook, Names};
use crate::registry::Registry;

/// Starts the log of translations, if there is to be one.
///
/// # Errors
/// When the process has no thread left.
pub(super) fn start_log(
    settings: Option<&Settings>,
    data_plane: &DataPlane,
    registry: &Registry,
    cluster: &Arc<ClusterState>,
) -> anyhow::Result<Option<NatLog>> {
    let (Some(settings), Some(events)) = (settings, data_plane.events()) else { return Ok(None) };
    let names = NameBook::default();
    names.update(registry, cluster);
    let inheritance = data_plane.inheritance();
    let continuity = Continuity {
        continues: inheritance.is_some_and(|inheritance| inheritance.set_aside.is_none()),
        restored: inheritance.map_or(0, |inheritance| inheritance.restored),
    };
    let log = NatLog::start(settings, events.clone(), Arc::new(names), continuity);
    log.map(Some).context("nat_log: it cannot be started")
}

impl Gateway {
    /// Tells the log what tenants and pods are called, before the first session of a new one.
    pub(super) fn name_translations(&self) {
        if let Some(log) = &self.nat_log {
            log.names().update(&self.registry, &self.cluster.state);
        }
    }

    /// Returns who looks for whoever is or was behind an egress address and port.
    pub(super) fn who(&self) -> WhoDesk {
        WhoDesk {
            desk: self.desk(),
            names: Names::new(&self.registry, &self.cluster.state, &Names::default()),
            log: self.nat_log.as_ref().and_then(NatLog::file),
        }
    }
}
