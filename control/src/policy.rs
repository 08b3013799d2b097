//! What a tenant's sessions may do, in the words of people and the API.

use conntrack::Quota;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How outside ports are chosen (RFC 4787 section 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub enum Mapping {
    /// A port for each session; the same port serves others towards other destinations.
    #[default]
    AddressAndPortDependent,
    /// A port for each inside port, whatever the destination.
    EndpointIndependent,
}

/// Who may send to an outside port that a pod has opened (RFC 4787 section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub enum Filtering {
    /// The address and port that the pod has sent to.
    #[default]
    AddressAndPortDependent,
    /// Any port of an address that the pod has sent to; needs endpoint-independent mapping.
    AddressDependent,
    /// Anybody; needs endpoint-independent mapping.
    EndpointIndependent,
}

/// Bounds on a tenant's sessions; 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Sessions at the same time.
    pub sessions: u32,
    /// Sessions at the same time for each pod.
    pub sessions_per_pod: u32,
    /// Outside ports at the same time (RFC 6888 REQ-4).
    pub ports: u32,
    /// Outside ports at the same time for each pod.
    pub ports_per_pod: u32,
    /// New sessions in a second.
    pub new_sessions_per_second: u32,
    /// New sessions in a second for each pod.
    pub new_sessions_per_second_per_pod: u32,
}

/// A choice that people make by a word, on the command line and in the config file.
pub trait Choice: Copy + PartialEq + Send + Sync + 'static {
    /// Every value, its word, and what it means.
    const WORDS: &'static [(Self, &'static str, &'static str)];

    /// Returns the word.
    fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(value, ..)| *value == self).map_or("", |(_, word, _)| word)
    }

    /// Returns the value that has this word.
    fn from_word(text: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(_, word, _)| *word == text).map(|(value, ..)| *value)
    }
}

impl Choice for Mapping {
    const WORDS: &'static [(Self, &'static str, &'static str)] = &[
        (
            Self::AddressAndPortDependent,
            "address-and-port",
            "a port for each session; the same port serves others towards other destinations",
        ),
        (
            Self::EndpointIndependent,
            "endpoint-independent",
            "a port for each inside port, whatever the destination",
        ),
    ];
}

impl Choice for Filtering {
    const WORDS: &'static [(Self, &'static str, &'static str)] = &[
        (Self::AddressAndPortDependent, "address-and-port", "the address and port that the pod has sent to"),
        (
            Self::AddressDependent,
            "address",
            "any port of an address that the pod has sent to; needs endpoint-independent mapping",
        ),
        (Self::EndpointIndependent, "endpoint-independent", "anybody; needs endpoint-independent mapping"),
    ];
}

impl Limits {
    /// Returns the most that the tenant may have.
    pub fn tenant_quota(&self) -> Quota {
        Quota { sessions: self.sessions, ports: self.ports, new_per_second: self.new_sessions_per_second }
    }

    /// Returns the most that each of the tenant's pods may have.
    pub fn pod_quota(&self) -> Quota {
        Quota {
            sessions: self.sessions_per_pod,
            ports: self.ports_per_pod,
            new_per_second: self.new_sessions_per_second_per_pod,
        }
    }
}

impl From<Mapping> for conntrack::Mapping {
    fn from(mapping: Mapping) -> Self {
        match mapping {
            Mapping::AddressAndPortDependent => Self::AddressAndPortDependent,
            Mapping::EndpointIndependent => Self::EndpointIndependent,
        }
    }
}

impl From<Filtering> for conntrack::Filtering {
    fn from(filtering: Filtering) -> Self {
        match filtering {
            Filtering::AddressAndPortDependent => Self::AddressAndPortDependent,
            Filtering::AddressDependent => Self::AddressDependent,
            Filtering::EndpointIndependent => Self::EndpointIndependent,
        }
    }
}
