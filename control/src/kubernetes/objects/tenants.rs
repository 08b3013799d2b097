//! EgressTenants.

use kube::core::DynamicObject;
use serde::Deserialize;
use serde_json::Value;

use super::{Identity, read_section};
use crate::kubernetes::egress_tenant::{EgressTenantSpec, EgressTenantStatus};
use crate::refusal::Refusal;
use crate::tenant::Tenant;

/// An EgressTenant.
#[derive(Clone, Debug, PartialEq)]
pub struct TenantObject {
    /// Which one.
    pub identity: Identity,
    /// Generation of its specification.
    pub generation: i64,
    /// Whether it is being deleted and waits for finalizers.
    pub is_deleted: bool,
    /// The tenant, or what cannot be read, naming the field.
    pub tenant: Result<Tenant, Refusal>,
    /// The status that it has in the API; none: none, or one that cannot be read.
    pub status: Option<EgressTenantStatus>,
}

impl TenantObject {
    /// Reads an EgressTenant, of this schema or of another that the API server has or had.
    pub fn read(object: &DynamicObject) -> Self {
        let identity = Identity::read(&object.metadata);
        Self {
            generation: object.metadata.generation.unwrap_or_default(),
            is_deleted: object.metadata.deletion_timestamp.is_some(),
            tenant: read_tenant(&identity.name, &object.data),
            status: object.data.get("status").and_then(|status| EgressTenantStatus::deserialize(status).ok()),
            identity,
        }
    }
}

fn read_tenant(name: &str, data: &Value) -> Result<Tenant, Refusal> {
    let spec: EgressTenantSpec = read_section(data, "spec")?;
    let tenant = spec.into_tenant(name)?;
    tenant.check().map_err(in_object)?;
    Ok(tenant)
}

/// Returns a refusal of a tenant with the field where the object has it.
fn in_object(refusal: Refusal) -> Refusal {
    let place =
        |field: String| if field == "name" { "metadata.name".into() } else { format!("spec.{field}") };
    match refusal {
        Refusal::Malformed { field, message } => Refusal::Malformed { field: place(field), message },
        Refusal::Invalid { field, message } => Refusal::Invalid { field: place(field), message },
        Refusal::Conflict { field, message } => Refusal::Conflict { field: place(field), message },
        Refusal::UnknownTenant { .. } | Refusal::Failed { .. } => refusal,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use serde_json::json;

    use super::*;
    use crate::policy::{Filtering, Limits, Mapping};
    use crate::tenant::mac_to_text;

    #[test]
    fn a_tenant_is_read_whole() {
        let object = read(&json!({
            "gatewayIP": "192.168.99.13",
            "gatewayMAC": "02:00:00:00:00:07",
            "egressIPs": ["192.168.55.113", "192.168.55.115"],
            "sources": { "podCIDRs": ["10.132.0.0/14"] },
            "mapping": "EndpointIndependent",
            "filtering": "AddressDependent",
            "limits": { "sessions": 5, "portsPerPod": 6 },
            "mssClamp": 1360,
            "drainSeconds": 60,
        }));
        let tenant = object.tenant.unwrap();
        assert_eq!((object.generation, object.is_deleted, object.status), (3, false, None));
        assert_eq!(tenant.name, "ns-blue");
        assert_eq!(mac_to_text(tenant.effective_mac()), "02:00:00:00:00:07");
        assert_eq!(tenant.egress_ips, [113, 115].map(|last| Ipv4Addr::new(192, 168, 55, last)));
        assert_eq!(tenant.sources.pod_cidrs, ["10.132.0.0/14".parse().unwrap()]);
        assert_eq!(
            (tenant.mapping, tenant.filtering),
            (Mapping::EndpointIndependent, Filtering::AddressDependent)
        );
        assert_eq!(tenant.limits, Limits { sessions: 5, ports_per_pod: 6, ..Limits::default() });
        assert_eq!((tenant.mss_clamp, tenant.drain_seconds), (1360, 60));
    }

    #[test]
    fn what_is_left_out_is_as_on_the_command_line() {
        let spec = json!({ "gatewayIP": "192.168.99.13", "egressIPs": ["192.168.55.113"] });
        let mut by_socket = spec.clone();
        by_socket["name"] = json!("ns-blue");
        assert_eq!(read(&spec).tenant.unwrap(), serde_json::from_value(by_socket).unwrap());
    }

    #[test]
    fn tenants_that_cannot_be_read_name_the_field() {
        let table = [
            (json!({ "gatewayIP": "192.168.99.300" }), "spec.gatewayIP: "),
            (json!({ "egressIPs": ["192.168.55.113", 7] }), "spec.egressIPs[1]: invalid type"),
            (json!({ "egressIPs": [] }), "spec.egressIPs: is empty"),
            (json!({ "egressIPs": null }), "spec.egressIPs: invalid type: null"),
            (json!({ "gatewayMAC": "x" }), "spec.gatewayMAC: \"x\" is no MAC"),
            (
                json!({ "gatewayMAC": "01:00:00:00:00:07" }),
                "spec.gatewayMAC: 01:00:00:00:00:07 is not a unicast",
            ),
            (
                json!({ "sources": { "podCIDRs": ["10.132.0.1/14"] } }),
                "spec.sources.podCIDRs[0]: 10.132.0.1/14 has host",
            ),
            (json!({ "sources": { "pods": true } }), "spec.sources.pods: unknown field"),
            (json!({ "sources": { "fromPolicy": true, "nodes": true } }), "spec.sources: has more than one"),
            (json!({ "limits": { "sessions": -1 } }), "spec.limits.sessions: invalid value"),
            (json!({ "mapping": "Any" }), "spec.mapping: unknown variant `Any`"),
            (json!({ "mssClamp": 70000 }), "spec.mssClamp: invalid value"),
            (json!({ "vlan": 5 }), "spec.vlan: unknown field `vlan`"),
        ];
        for (change, expected) in table {
            let mut spec = json!({ "gatewayIP": "192.168.99.13", "egressIPs": ["192.168.55.113"] });
            spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            let refusal = read(&spec).tenant.unwrap_err().to_string();
            assert!(refusal.starts_with(expected), "{refusal:?} should start with {expected:?}");
        }
        let missing =
            TenantObject::read(&serde_json::from_value(json!({ "metadata": { "name": "a" } })).unwrap());
        assert!(missing.tenant.unwrap_err().to_string().starts_with("spec: is missing"));
    }

    #[test]
    fn a_status_that_cannot_be_read_is_none() {
        for (status, expected) in
            [(json!({ "sessions": 5 }), Some(5)), (json!({ "sessions": "many" }), None), (json!(null), None)]
        {
            let object = json!({ "metadata": { "name": "ns-blue" }, "status": status });
            let object = TenantObject::read(&serde_json::from_value(object).unwrap());
            assert_eq!(object.status.map(|status| status.sessions), expected);
        }
    }

    fn read(spec: &Value) -> TenantObject {
        let metadata = json!({ "name": "ns-blue", "uid": "1", "generation": 3 });
        let object = json!({ "metadata": metadata, "spec": spec });
        TenantObject::read(&serde_json::from_value(object).unwrap())
    }
}
