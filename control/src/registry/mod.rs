//! All tenants, from every source, without conflicts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use conntrack::TenantId;
use ipnet::Ipv4Net;
use macaddr::MacAddr6;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;
use crate::tenant::{Sources, Tenant, mac_to_text};

/// Where a tenant comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// The config file.
    ConfigFile,
    /// The control socket, kept in the state file.
    ControlSocket,
    /// The Kubernetes API; the last good state is kept in a state file.
    Kubernetes,
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::ConfigFile => "the config file",
            Self::ControlSocket => "the control socket",
            Self::Kubernetes => "the Kubernetes API",
        })
    }
}

/// A tenant, its slot and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Slot in snapshots.
    pub id: TenantId,
    /// Where the tenant comes from.
    pub source: Source,
    /// The tenant.
    pub tenant: Tenant,
    /// When its sessions end; none unless it was removed and they go on until then.
    pub drains_until: Option<Instant>,
}

/// What tenants must agree with on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Network of the inside interface.
    pub inside_network: Ipv4Net,
    /// Addresses that no tenant may use, and what each is.
    pub addresses: BTreeMap<Ipv4Addr, String>,
    /// Hardware addresses of the two interfaces.
    pub macs: Vec<MacAddr6>,
    /// Pod networks that tenants without their own take.
    pub pod_cidrs: Vec<Ipv4Net>,
    /// Whether the Kubernetes API is asked, which some sources need.
    pub has_kubernetes: bool,
}

/// Tenants by name.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    entries: BTreeMap<String, Entry>,
    claims: Claims,
    next_id: u16,
}

/// What only one tenant may have, and the name of the tenant that has it.
#[derive(Clone, Debug, Default)]
struct Claims {
    ids: BTreeSet<u16>,
    addresses: BTreeMap<Ipv4Addr, String>,
    macs: BTreeMap<[u8; 6], String>,
}

impl Claims {
    fn add(&mut self, entry: &Entry) {
        let name = || entry.tenant.name.clone();
        self.ids.insert(entry.id.0);
        self.addresses.extend(addresses(&entry.tenant).map(|(_, address)| (address, name())));
        self.macs.insert(entry.tenant.effective_mac().into_array(), name());
    }

    fn remove(&mut self, entry: &Entry) {
        self.ids.remove(&entry.id.0);
        for (_, address) in addresses(&entry.tenant) {
            self.addresses.remove(&address);
        }
        self.macs.remove(&entry.tenant.effective_mac().into_array());
    }
}

impl Registry {
    /// Returns all tenants, by name; those that drain too.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Returns one tenant.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn get(&self, name: &str) -> Result<&Entry, Refusal> {
        self.entries.get(name).ok_or_else(|| Refusal::UnknownTenant { name: name.to_owned() })
    }

    /// Returns the tenants of one source, without those that drain.
    pub fn tenants_from(&self, source: Source) -> Vec<Tenant> {
        let there = self.entries().filter(|entry| entry.source == source && entry.drains_until.is_none());
        there.map(|entry| entry.tenant.clone()).collect()
    }

    /// Adds a tenant, or replaces the one of the same name and source; tells whether anything changed.
    ///
    /// # Errors
    /// When a field is out of its bounds, contradicts the host, or is in use by another tenant.
    pub fn put(&mut self, tenant: Tenant, source: Source, host: &Host) -> Result<bool, Refusal> {
        self.check(&tenant, source, host)?;
        let id = match self.entries.get(&tenant.name) {
            Some(entry) if entry.tenant == tenant && entry.drains_until.is_none() => return Ok(false),
            Some(entry) => entry.id,
            None => self.take_id()?,
        };
        self.insert(Entry { id, source, tenant, drains_until: None });
        Ok(true)
    }

    /// Removes a tenant that came from this source. If its sessions may go on for a while it drains.
    ///
    /// # Errors
    /// When there is none of this name, or it came from elsewhere.
    pub fn remove(&mut self, name: &str, source: Source, now: Instant) -> Result<(), Refusal> {
        let entry = self.get(name)?;
        if entry.source != source {
            let message = format!("{name:?} comes from {}; remove it there", entry.source);
            return Err(Refusal::conflict("name", message));
        }
        if entry.drains_until.is_some() {
            return Err(Refusal::UnknownTenant { name: name.to_owned() });
        }
        self.drain(name, now);
        Ok(())
    }

    /// Makes the tenants of the cluster those that are wanted, first come first served, and returns those that were
    /// refused, by name.
    ///
    /// A tenant whose change is refused stays as it was, unless a tenant before it wants what it has. One that is not
    /// wanted any more drains.
    pub fn replace_cluster<'a>(
        &mut self,
        wanted: impl Iterator<Item = &'a Tenant> + Clone,
        host: &Host,
        now: Instant,
    ) -> BTreeMap<String, Refusal> {
        let names: BTreeSet<&str> = wanted.clone().map(|tenant| tenant.name.as_str()).collect();
        let present = |entry: &&Entry| entry.source == Source::Kubernetes && entry.drains_until.is_none();
        let before: Vec<String> =
            self.entries().filter(present).map(|entry| entry.tenant.name.clone()).collect();
        let (kept, gone): (Vec<_>, Vec<_>) =
            before.into_iter().partition(|name| names.contains(name.as_str()));
        for name in gone {
            self.drain(&name, now);
        }
        let mut old: BTreeMap<String, Entry> =
            kept.into_iter().filter_map(|name| Some((name.clone(), self.take(&name)?))).collect();
        // The slots of all that were there stay reserved until every tenant that has one has it again.
        self.claims.ids.extend(old.values().map(|entry| entry.id.0));
        let mut refused = BTreeMap::new();
        for tenant in wanted {
            let old = old.remove(&tenant.name);
            if let Err(refusal) = self.put_again(tenant.clone(), old.as_ref(), host) {
                if let Some(old) = old {
                    // Refused too, it is gone: a tenant before it has what it had.
                    let _ = self.put_again(old.tenant.clone(), Some(&old), host);
                }
                refused.insert(tenant.name.clone(), refusal);
            }
        }
        let used = self.entries.values().map(|entry| entry.id.0);
        self.claims.ids = used.collect();
        refused
    }

    /// Returns when the next tenant that drains is to be removed.
    pub fn next_drained(&self) -> Option<Instant> {
        self.entries().filter_map(|entry| entry.drains_until).min()
    }

    /// Removes tenants that have drained: those whose time is over and those of which `is_idle` says that no session is
    /// left. Returns their names.
    pub fn remove_drained(&mut self, now: Instant, is_idle: impl Fn(TenantId) -> bool) -> Vec<String> {
        let drained =
            |entry: &&Entry| entry.drains_until.is_some_and(|until| until <= now || is_idle(entry.id));
        let names: Vec<String> =
            self.entries().filter(drained).map(|entry| entry.tenant.name.clone()).collect();
        for name in &names {
            self.take(name);
        }
        names
    }

    /// Puts a tenant of the cluster; it gets the slot that it had.
    fn put_again(&mut self, tenant: Tenant, old: Option<&Entry>, host: &Host) -> Result<(), Refusal> {
        let source = Source::Kubernetes;
        let Some(old) = old else { return self.put(tenant, source, host).map(drop) };
        self.check(&tenant, source, host)?;
        self.insert(Entry { id: old.id, source, tenant, drains_until: None });
        Ok(())
    }

    fn check(&self, tenant: &Tenant, source: Source, host: &Host) -> Result<(), Refusal> {
        tenant.check()?;
        self.check_name(tenant, source)?;
        self.check_others(tenant, source)?;
        check_host(tenant, host)
    }

    fn drain(&mut self, name: &str, now: Instant) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        match entry.tenant.drain_seconds {
            0 => drop(self.take(name)),
            seconds => entry.drains_until = Some(now + Duration::from_secs(seconds.into())),
        }
    }

    fn insert(&mut self, entry: Entry) {
        self.take(&entry.tenant.name.clone());
        self.claims.add(&entry);
        self.entries.insert(entry.tenant.name.clone(), entry);
    }

    fn take(&mut self, name: &str) -> Option<Entry> {
        let entry = self.entries.remove(name)?;
        self.claims.remove(&entry);
        Some(entry)
    }

    fn check_name(&self, tenant: &Tenant, source: Source) -> Result<(), Refusal> {
        match self.entries.get(&tenant.name) {
            Some(entry) if entry.source != source => {
                let message = format!(
                    "{:?} from {source} is already a tenant from {}; change it there or choose another name",
                    tenant.name, entry.source
                );
                Err(Refusal::conflict("name", message))
            }
            _ => Ok(()),
        }
    }

    fn check_others(&self, tenant: &Tenant, source: Source) -> Result<(), Refusal> {
        let mac = tenant.effective_mac();
        let address = |(field, address): (String, Ipv4Addr)| {
            let owner = self.claims.addresses.get(&address).filter(|owner| **owner != tenant.name)?;
            let is_gateway = self.entries.get(owner)?.tenant.gateway_ip == address;
            Some((
                field,
                address.to_string(),
                if is_gateway { "the gatewayIP" } else { "an egressIP" },
                owner,
            ))
        };
        let taken_mac = self.claims.macs.get(mac.as_bytes()).filter(|owner| **owner != tenant.name);
        let taken_mac =
            taken_mac.map(|owner| ("gatewayMAC".to_owned(), mac_to_text(mac), "the gatewayMAC", owner));
        let Some((field, value, role, owner)) = addresses(tenant).find_map(address).or(taken_mac) else {
            return Ok(());
        };
        let owner = self.get(owner)?;
        let advice = match owner.drains_until {
            Some(_) => "which is removed and still drains; it is free when its sessions have ended",
            None => "give each its own",
        };
        let message = format!(
            "{value} (tenant {:?} from {source}) is {role} of tenant {:?} from {}; {advice}",
            tenant.name, owner.tenant.name, owner.source
        );
        Err(Refusal::conflict(field, message))
    }

    fn take_id(&mut self) -> Result<TenantId, Refusal> {
        let free = |id: &u16| !self.claims.ids.contains(id);
        let next = (0..=u16::MAX).map(|step| self.next_id.wrapping_add(step)).find(free);
        let Some(id) = next else {
            return Err(Refusal::conflict("name", "all 65536 tenants are taken; remove one first"));
        };
        self.next_id = id.wrapping_add(1);
        Ok(TenantId(id))
    }
}

/// Returns the addresses that only this tenant may have, and the field of each.
fn addresses(tenant: &Tenant) -> impl Iterator<Item = (String, Ipv4Addr)> + '_ {
    let egress = tenant.egress_ips.iter().enumerate();
    let egress = egress.map(|(index, address)| (format!("egressIPs[{index}]"), *address));
    std::iter::once(("gatewayIP".to_owned(), tenant.gateway_ip)).chain(egress)
}

fn check_host(tenant: &Tenant, host: &Host) -> Result<(), Refusal> {
    let gateway = tenant.gateway_ip;
    let network = host.inside_network;
    if !network.contains(&gateway) || gateway == network.network() || gateway == network.broadcast() {
        let message =
            format!("{gateway} is no host address of the inside network; give one of {}", network.trunc());
        return Err(Refusal::invalid("gatewayIP", message));
    }
    for (field, address) in addresses(tenant) {
        if let Some(role) = host.addresses.get(&address) {
            let message = format!("{address} is {role}; give one that is free");
            return Err(Refusal::conflict(field, message));
        }
    }
    if host.macs.contains(&tenant.effective_mac()) {
        let mac = mac_to_text(tenant.effective_mac());
        return Err(Refusal::conflict("gatewayMAC", format!("{mac} is an interface's own; leave it empty")));
    }
    check_host_sources(tenant, host)
}

fn check_host_sources(tenant: &Tenant, host: &Host) -> Result<(), Refusal> {
    let Sources { pod_cidrs, from_policy, nodes } = &tenant.sources;
    for (field, given) in [("sources.fromPolicy", *from_policy), ("sources.nodes", *nodes)] {
        if given && !host.has_kubernetes {
            let message =
                "needs the Kubernetes API; set kubernetes.enabled in the config file, or give pod networks";
            return Err(Refusal::invalid(field, message));
        }
    }
    if pod_cidrs.is_empty() && !from_policy && !nodes && host.pod_cidrs.is_empty() {
        let message =
            "is empty and the config file has no cluster.pod_cidrs to take instead; give pod networks";
        return Err(Refusal::invalid("sources.podCIDRs", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
