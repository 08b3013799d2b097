//! What people ask of tenants over the control socket, carried out.

use std::slice;
use std::time::Instant;

use tracing::{error, info};

use super::converge::Stakes;
use super::gateway::Gateway;
use crate::api::Caller;
use crate::compile::host;
use crate::refusal::Refusal;
use crate::registry::{Host, Registry, Source};
use crate::tenant::Tenant;

/// A change of one tenant of the control socket.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// Add it, or replace what it was.
    Put(Box<Tenant>, Caller),
    /// Remove it, by name.
    Remove(String, Caller),
}

impl Change {
    fn name(&self) -> &str {
        match self {
            Self::Put(tenant, _) => &tenant.name,
            Self::Remove(name, _) => name,
        }
    }
}

impl Gateway {
    /// Carries out changes that came together, each of them everywhere or not at all, and returns what became of each.
    ///
    /// What it takes to tell kernel, workers and disk is paid once for all of them, unless one of them is refused there:
    /// then each is carried out by itself.
    pub(super) async fn change_tenants(&mut self, changes: &[Change]) -> Vec<Result<(), Refusal>> {
        let host = match host(&self.facts, &self.return_routes, &self.constants) {
            Ok(host) => host,
            Err(error) => return changes.iter().map(|_| Err(failed(&error.clone().into()))).collect(),
        };
        let before = self.registry.clone();
        let registered: Vec<_> = changes.iter().map(|change| self.register(change, &host)).collect();
        let changed = |(change, outcome): (_, &Result<bool, Refusal>)| {
            matches!(outcome, Ok(true)).then(|| Change::name(change))
        };
        let names: Vec<&str> = changes.iter().zip(&registered).filter_map(changed).collect();
        if names.is_empty() {
            return registered.into_iter().map(|outcome| outcome.map(drop)).collect();
        }
        match (self.commit(before, &names).await, changes) {
            (Ok(()), _) => registered.into_iter().map(|outcome| outcome.map(drop)).collect(),
            (Err(refusal), [_]) => vec![Err(refusal)],
            (Err(_), _) => {
                let mut outcomes = Vec::with_capacity(changes.len());
                for change in changes {
                    outcomes.extend(Box::pin(self.change_tenants(slice::from_ref(change))).await);
                }
                outcomes
            }
        }
    }

    /// Makes a change in the registry alone, and tells whether it is one.
    fn register(&mut self, change: &Change, host: &Host) -> Result<bool, Refusal> {
        match change {
            Change::Put(tenant, by) => {
                let is_new = self.registry.put(Tenant::clone(tenant), Source::ControlSocket, host)?;
                if is_new {
                    info!(tenant = tenant.name, uid = by.uid, pid = by.pid, "tenant put");
                }
                Ok(is_new)
            }
            Change::Remove(name, by) => {
                self.registry.remove(name, Source::ControlSocket, Instant::now())?;
                info!(tenant = name, uid = by.uid, pid = by.pid, "tenant removed");
                Ok(true)
            }
        }
    }

    /// Carries out and saves changes of these tenants, or undoes them. What is refused elsewhere is only logged.
    async fn commit(&mut self, before: Registry, names: &[&str]) -> Result<(), Refusal> {
        let of = |registry| names.iter().filter_map(move |name| Registry::get(registry, name).ok());
        let entries = of(&before).chain(of(&self.registry));
        let stakes = Stakes::of(entries.map(|entry| &entry.tenant));
        let refused = self.converge(&stakes).await;
        let (own, others): (Vec<_>, Vec<_>) =
            refused.into_iter().partition(|refused| stakes.concern(&refused.subject));
        self.log_refusals(&others);
        let saved = || self.state.save_tenants(self.registry.tenants_from(Source::ControlSocket));
        let Err(error) = own.into_iter().next().map_or_else(|| Ok(saved()?), |refused| Err(refused.error))
        else {
            self.tell_cluster(&others);
            if self.refuses_tenants() {
                self.follow_cluster().await;
            }
            return Ok(());
        };
        self.registry = before;
        for second in self.converge(&Stakes::default()).await {
            if stakes.concern(&second.subject) {
                error!(error = format!("{:#}", second.error), "the change was not undone completely");
            }
        }
        Err(failed(&error))
    }
}

fn failed(error: &anyhow::Error) -> Refusal {
    Refusal::Failed { message: format!("{error:#}") }
}
