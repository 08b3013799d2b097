//! What is kept of each object of the API: small, and read once, when it arrives.
//!
//! An object that cannot be understood is kept with the reason: it is refused by itself, and stops no other.
//!
//! - `nodes`: pod networks and addresses of nodes
//! - `tenants`: EgressTenants
//! - `policies`: AdminPolicyBasedExternalRoutes
//! - `namespaces`: labels of namespaces
//! - `pods`: addresses of live pods

mod namespaces;
mod nodes;
mod pods;
mod policies;
mod tenants;

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use self::namespaces::NamespaceObject;
pub use self::nodes::NodeObject;
pub use self::pods::PodObject;
pub use self::policies::{ExternalRoute, PolicyObject};
pub use self::tenants::TenantObject;
use crate::refusal::Refusal;

/// What every object has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Name.
    pub name: String,
    /// Namespace, of objects that are in one.
    pub namespace: Option<String>,
    /// Identity: another object of the same name has another.
    pub uid: String,
    /// When it was made; none: not known, which counts as newest.
    pub created: Option<Timestamp>,
}

impl Identity {
    /// Reads an object's identity.
    pub fn read(metadata: &ObjectMeta) -> Self {
        Self {
            name: metadata.name.clone().unwrap_or_default(),
            namespace: metadata.namespace.clone(),
            uid: metadata.uid.clone().unwrap_or_default(),
            created: metadata.creation_timestamp.as_ref().map(|time| time.0),
        }
    }

    /// Returns what objects of one kind are ordered by, oldest first; of the same age by name.
    pub fn age(&self) -> impl Ord + '_ {
        (self.created.is_none(), self.created, &self.name)
    }
}

/// Reads one section of an object whose type is not known to the client.
///
/// # Errors
/// When it is missing or of the wrong shape, naming the field at which reading stopped.
fn read_section<T: DeserializeOwned>(data: &Value, section: &str) -> Result<T, Refusal> {
    let Some(value) = data.get(section) else {
        return Err(Refusal::Malformed {
            field: section.to_owned(),
            message: "is missing; see kubectl explain".into(),
        });
    };
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { section.to_owned() } else { format!("{section}.{path}") };
        Refusal::Malformed { field, message: error.into_inner().to_string() }
    })
}

/// Returns the field of an annotation, as the API server spells it.
fn annotation_field(key: &str) -> String {
    format!("metadata.annotations[{key}]")
}

/// Reads an address, with or without the length of its network; none for IPv6.
fn read_ipv4(field: &str, text: &str) -> Result<Option<Ipv4Addr>, Refusal> {
    let address = text.parse::<IpNet>().map(|network| network.addr()).or_else(|_| text.parse::<IpAddr>());
    match address {
        Ok(IpAddr::V4(address)) => Ok(Some(address)),
        Ok(IpAddr::V6(_)) => Ok(None),
        Err(_) => Err(Refusal::Malformed {
            field: field.to_owned(),
            message: format!("{text:?} is no address; write it as 192.168.99.21 or 192.168.99.21/24"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_comes_first_and_unknown_age_is_newest() {
        let identity = |name: &str, second: Option<i64>| Identity {
            name: name.into(),
            created: second.map(|second| Timestamp::from_second(second).unwrap()),
            ..Identity::default()
        };
        let mut identities =
            [identity("a", None), identity("c", Some(5)), identity("b", Some(5)), identity("d", Some(4))];
        identities.sort_by(|one, other| one.age().cmp(&other.age()));
        assert_eq!(identities.map(|identity| identity.name), ["d", "b", "c", "a"]);
    }
}
