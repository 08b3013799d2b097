//! Objects for tests, named by what matters to them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use super::objects::{
    ExternalRoute, Identity, NamespaceObject, NodeObject, PodObject, PolicyObject, TenantObject,
};
use super::view::Surroundings;
use crate::refusal::Refusal;
use crate::tenant::Tenant;

/// What a list is keyed by.
pub(super) trait Named {
    /// Returns the identity.
    fn identity(&self) -> &Identity;
}

macro_rules! named {
    ($($object:ty),*) => { $(impl Named for $object {
        fn identity(&self) -> &Identity { &self.identity }
    })* };
}

named!(NodeObject, TenantObject, PolicyObject, NamespaceObject, PodObject);

pub(super) fn map<T: Named>(objects: impl IntoIterator<Item = T>) -> BTreeMap<String, Arc<T>> {
    objects.into_iter().map(|object| (object.identity().name.clone(), Arc::new(object))).collect()
}

/// Returns an identity whose uid is its name.
pub(super) fn identity(name: &str, created: i64) -> Identity {
    let created = Some(Timestamp::from_second(created).unwrap());
    Identity { name: name.into(), uid: name.into(), created, namespace: None }
}

/// Returns a tenant with the gateway address 192.168.99.`last`.
pub(super) fn tenant(name: &str, created: i64, last: u8) -> TenantObject {
    let spec = serde_json::json!({
        "name": name,
        "gatewayIP": Ipv4Addr::new(192, 168, 99, last),
        "egressIPs": [Ipv4Addr::new(192, 168, 55, 100 + last)],
    });
    TenantObject {
        identity: identity(name, created),
        generation: 1,
        is_deleted: false,
        tenant: Ok(serde_json::from_value::<Tenant>(spec).unwrap()),
        status: None,
    }
}

/// Returns a tenant that cannot be read.
pub(super) fn broken_tenant(name: &str, created: i64) -> TenantObject {
    let tenant = Err(Refusal::invalid("spec.egressIPs", "is empty; give one or more IPv4 addresses"));
    TenantObject { tenant, ..self::tenant(name, created, 0) }
}

/// Returns a policy that sends namespaces with the label tenant=`label` to 192.168.99.`hops`.
pub(super) fn policy(name: &str, label: &str, hops: &[u8]) -> PolicyObject {
    let next_hops = hops.iter().map(|last| Ipv4Addr::new(192, 168, 99, *last)).collect();
    let namespaces = [("tenant".to_owned(), label.to_owned())].into_iter().collect();
    PolicyObject {
        identity: identity(name, 0),
        policy: Ok(ExternalRoute { namespaces, next_hops, has_dynamic_hops: false }),
    }
}

/// Returns a namespace with the label tenant=`label`.
pub(super) fn namespace(name: &str, label: &str) -> NamespaceObject {
    NamespaceObject { identity: identity(name, 0), labels: BTreeMap::from([("tenant".into(), label.into())]) }
}

/// Returns a pod with the address 10.132.0.`last`.
pub(super) fn pod(name: &str, created: i64, last: u8) -> PodObject {
    PodObject {
        identity: identity(name, created),
        addresses: [Ipv4Addr::new(10, 132, 0, last)].into(),
        is_announced: false,
        node: None,
    }
}

/// Returns the networks of the reference gateway.
pub(super) fn surroundings() -> Surroundings {
    Surroundings {
        inside: "192.168.99.12/24".parse().unwrap(),
        outside: "192.168.55.12/24".parse().unwrap(),
        ..Surroundings::default()
    }
}
