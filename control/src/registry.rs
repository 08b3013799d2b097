//! All tenants, from every source, without conflicts.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use conntrack::TenantId;
use ipnet::Ipv4Net;
use macaddr::MacAddr6;
use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;
use crate::tenant::{Tenant, mac_to_text};

/// Where a tenant comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// Tenants by name.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    entries: BTreeMap<String, Entry>,
    next_id: u16,
}

impl Registry {
    /// Returns all tenants, by name.
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

    /// Returns the tenants of one source.
    pub fn tenants_from(&self, source: Source) -> Vec<Tenant> {
        self.entries().filter(|entry| entry.source == source).map(|entry| entry.tenant.clone()).collect()
    }

    /// Adds a tenant, or replaces the one of the same name and source; tells whether anything changed.
    ///
    /// # Errors
    /// When a field is out of its bounds, contradicts the host, or is in use by another tenant.
    pub fn put(&mut self, tenant: Tenant, source: Source, host: &Host) -> Result<bool, Refusal> {
        tenant.check()?;
        self.check_name(&tenant, source)?;
        self.check_others(&tenant, source)?;
        check_host(&tenant, host)?;
        let id = match self.entries.get(&tenant.name) {
            Some(entry) if entry.tenant == tenant => return Ok(false),
            Some(entry) => entry.id,
            None => self.take_id()?,
        };
        self.entries.insert(tenant.name.clone(), Entry { id, source, tenant });
        Ok(true)
    }

    /// Removes a tenant that came from this source.
    ///
    /// # Errors
    /// When there is none of this name, or it came from elsewhere.
    pub fn remove(&mut self, name: &str, source: Source) -> Result<(), Refusal> {
        let entry = self.get(name)?;
        if entry.source != source {
            let message = format!("{name:?} comes from {}; remove it there", entry.source);
            return Err(Refusal::conflict("name", message));
        }
        self.entries.remove(name);
        Ok(())
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
        for entry in self.entries().filter(|entry| entry.tenant.name != tenant.name) {
            let Some((field, value, role)) = shared_value(tenant, &entry.tenant) else { continue };
            let message = format!(
                "{value} (tenant {:?} from {source}) is {role} of tenant {:?} from {}; give each its own",
                tenant.name, entry.tenant.name, entry.source
            );
            return Err(Refusal::conflict(field, message));
        }
        Ok(())
    }

    fn take_id(&mut self) -> Result<TenantId, Refusal> {
        let free = |id: &u16| self.entries.values().all(|entry| entry.id.0 != *id);
        let next = (0..=u16::MAX).map(|step| self.next_id.wrapping_add(step)).find(free);
        let Some(id) = next else {
            return Err(Refusal::conflict("name", "all 65536 tenants are taken; remove one first"));
        };
        self.next_id = id.wrapping_add(1);
        Ok(TenantId(id))
    }
}

/// Finds a value that only one tenant may have: field and value of `tenant`, and what it is for `other`.
fn shared_value(tenant: &Tenant, other: &Tenant) -> Option<(String, String, &'static str)> {
    let role = |address: Ipv4Addr| {
        if other.gateway_ip == address {
            return Some("the gatewayIP");
        }
        other.egress_ips.contains(&address).then_some("an egressIP")
    };
    if let Some(role) = role(tenant.gateway_ip) {
        return Some(("gatewayIP".into(), tenant.gateway_ip.to_string(), role));
    }
    if tenant.effective_mac() == other.effective_mac() {
        return Some(("gatewayMAC".into(), mac_to_text(tenant.effective_mac()), "the gatewayMAC"));
    }
    tenant
        .egress_ips
        .iter()
        .enumerate()
        .find_map(|(index, egress)| Some((format!("egressIPs[{index}]"), egress.to_string(), role(*egress)?)))
}

fn check_host(tenant: &Tenant, host: &Host) -> Result<(), Refusal> {
    let gateway = tenant.gateway_ip;
    let network = host.inside_network;
    if !network.contains(&gateway) || gateway == network.network() || gateway == network.broadcast() {
        let message =
            format!("{gateway} is no host address of the inside network; give one of {}", network.trunc());
        return Err(Refusal::invalid("gatewayIP", message));
    }
    let egress =
        tenant.egress_ips.iter().enumerate().map(|(index, egress)| (format!("egressIPs[{index}]"), *egress));
    for (field, address) in std::iter::once(("gatewayIP".to_owned(), gateway)).chain(egress) {
        if let Some(role) = host.addresses.get(&address) {
            let message = format!("{address} is {role}; give one that is free");
            return Err(Refusal::conflict(field, message));
        }
    }
    if host.macs.contains(&tenant.effective_mac()) {
        let mac = mac_to_text(tenant.effective_mac());
        return Err(Refusal::conflict("gatewayMAC", format!("{mac} is an interface's own; leave it empty")));
    }
    if tenant.sources.pod_cidrs.is_empty() && host.pod_cidrs.is_empty() {
        let message =
            "is empty and the config file has no cluster.pod_cidrs to take instead; give pod networks";
        return Err(Refusal::invalid("sources.podCIDRs", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn put_is_idempotent_and_keeps_the_slot() {
        let mut registry = Registry::default();
        assert_eq!(registry.put(tenant("blue", 13, 113), Source::ControlSocket, &host()), Ok(true));
        assert_eq!(registry.put(tenant("blue", 13, 113), Source::ControlSocket, &host()), Ok(false));
        assert_eq!(registry.put(tenant("blue", 13, 120), Source::ControlSocket, &host()), Ok(true));
        assert_eq!(registry.get("blue").unwrap().id, TenantId(0));
        assert_eq!(registry.entries().count(), 1);
    }

    #[test]
    fn slots_are_not_reused_until_they_wrap() {
        let mut registry = Registry { next_id: u16::MAX - 1, ..Registry::default() };
        let mut ids = Vec::new();
        for _ in 0..4 {
            registry.put(tenant("blue", 13, 113), Source::ControlSocket, &host()).unwrap();
            ids.push(registry.get("blue").unwrap().id.0);
            registry.remove("blue", Source::ControlSocket).unwrap();
        }
        assert_eq!(ids, [65534, 65535, 0, 1]);
    }

    #[test]
    fn a_slot_in_use_is_passed_over_after_the_wrap() {
        let mut registry = Registry::default();
        registry.put(tenant("blue", 13, 113), Source::ControlSocket, &host()).unwrap();
        registry.next_id = 0;
        registry.put(tenant("red", 14, 114), Source::ControlSocket, &host()).unwrap();
        assert_eq!(registry.get("red").unwrap().id, TenantId(1));
    }

    #[test]
    fn conflicts_name_field_value_and_both_sources() {
        let mut registry = Registry::default();
        registry.put(tenant("blue", 13, 113), Source::ConfigFile, &host()).unwrap();
        let mac =
            Tenant { gateway_mac: Some("02:53:c0:a8:63:0d".parse().unwrap()), ..tenant("red", 14, 114) };
        let table = [
            (tenant("blue", 14, 114), "name", "\"blue\""),
            (tenant("red", 13, 114), "gatewayIP", "192.168.99.13"),
            (tenant("red", 14, 113), "egressIPs[0]", "192.168.55.113"),
            (mac, "gatewayMAC", "02:53:c0:a8:63:0d"),
        ];
        for (tenant, field, value) in table {
            let refusal = registry.put(tenant, Source::ControlSocket, &host()).unwrap_err();
            let text = refusal.to_string();
            assert!(matches!(refusal, Refusal::Conflict { .. }), "{text}");
            assert_eq!(refusal.field(), Some(field));
            for part in [value, "the config file", "the control socket"] {
                assert!(text.contains(part), "{text}");
            }
        }
    }

    #[test]
    fn a_tenant_must_fit_the_host() {
        let egress_own = Tenant { egress_ips: vec![[192, 168, 55, 12].into()], ..tenant("blue", 13, 113) };
        let outside_network = Tenant { gateway_ip: [10, 0, 0, 1].into(), ..tenant("blue", 13, 113) };
        let own_mac =
            Tenant { gateway_mac: Some("02:00:00:00:00:01".parse().unwrap()), ..tenant("blue", 13, 113) };
        let table = [
            (outside_network, "gatewayIP: 10.0.0.1 is no host address of the inside network"),
            (tenant("blue", 255, 113), "gatewayIP: 192.168.99.255 is no host address"),
            (tenant("blue", 12, 113), "gatewayIP: 192.168.99.12 is the gateway's own address on in0"),
            (egress_own, "egressIPs[0]: 192.168.55.12 is the gateway's own address on out0"),
            (own_mac, "gatewayMAC: 02:00:00:00:00:01 is an interface's own"),
        ];
        for (tenant, expected) in table {
            let text = Registry::default().put(tenant, Source::ConfigFile, &host()).unwrap_err().to_string();
            assert!(text.starts_with(expected), "{text:?} should start with {expected:?}");
        }
        let no_pods = Host { pod_cidrs: Vec::new(), ..host() };
        let refusal =
            Registry::default().put(tenant("blue", 13, 113), Source::ConfigFile, &no_pods).unwrap_err();
        assert_eq!(refusal.field(), Some("sources.podCIDRs"));
    }

    #[test]
    fn a_tenant_is_removed_only_where_it_came_from() {
        let mut registry = Registry::default();
        registry.put(tenant("blue", 13, 113), Source::ConfigFile, &host()).unwrap();
        let refusal = registry.remove("blue", Source::ControlSocket).unwrap_err();
        assert!(refusal.to_string().contains("comes from the config file"), "{refusal}");
        assert!(matches!(registry.remove("red", Source::ControlSocket), Err(Refusal::UnknownTenant { .. })));
        assert_eq!(registry.remove("blue", Source::ConfigFile), Ok(()));
    }

    fn tenant(name: &str, gateway: u8, egress: u8) -> Tenant {
        serde_json::from_value(serde_json::json!({
            "name": name,
            "gatewayIP": Ipv4Addr::new(192, 168, 99, gateway),
            "egressIPs": [Ipv4Addr::new(192, 168, 55, egress)],
        }))
        .unwrap()
    }

    fn host() -> Host {
        Host {
            inside_network: "192.168.99.12/24".parse().unwrap(),
            addresses: BTreeMap::from([
                ([192, 168, 99, 12].into(), "the gateway's own address on in0".into()),
                ([192, 168, 55, 12].into(), "the gateway's own address on out0".into()),
            ]),
            macs: vec!["02:00:00:00:00:01".parse().unwrap()],
            pod_cidrs: vec!["10.132.0.0/14".parse().unwrap()],
        }
    }
}
