//! What a tenant's sessions may do: how outside ports are chosen, who may answer, and how much there may be.

/// How outside ports are chosen (RFC 4787 section 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mapping {
    /// A port for each session; the same port serves sessions towards different destinations (RFC 7857 section 3).
    #[default]
    AddressAndPortDependent,
    /// A port for each inside port, whatever the destination (RFC 4787 REQ-1).
    EndpointIndependent,
}

/// Who may send to an outside port that a pod has opened (RFC 4787 section 5).
///
/// Anything but the default needs [`Mapping::EndpointIndependent`]: else one port stands for several pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Filtering {
    /// The address and port that the pod has sent to.
    #[default]
    AddressAndPortDependent,
    /// Any port of an address that the pod has sent to.
    AddressDependent,
    /// Anybody.
    EndpointIndependent,
}

/// The most that a tenant, or one pod of it, may have; 0: as much as it likes.
///
/// Sessions that are there when a limit falls below their number stay (RFC 6888 REQ-11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Quota {
    /// Sessions at the same time.
    pub sessions: u32,
    /// Outside ports at the same time: one for each session, or for each mapping if that is endpoint-independent.
    pub ports: u32,
    /// New sessions in each second of the gateway's clock. A pod that loses its last session, by a change of policy or a
    /// timeout under a second, is counted anew.
    pub new_per_second: u32,
}

/// What a tenant's sessions may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Policy {
    /// How outside ports are chosen.
    pub mapping: Mapping,
    /// Who may answer.
    pub filtering: Filtering,
    /// The most that the tenant may have.
    pub tenant_quota: Quota,
    /// The most that each of its pods may have.
    pub pod_quota: Quota,
}
