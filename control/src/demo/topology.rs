//! Who is in the lab, under which address: the reference addresses that demo, tests and documentation share.

use std::net::Ipv4Addr;

/// A machine of the lab: a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// The switch between the nodes and the gateway.
    SwitchInside,
    /// The switch between the gateway, the server and the router.
    SwitchOutside,
    /// The gateway.
    Gateway,
    /// First node of the cluster.
    Node1,
    /// Second node of the cluster.
    Node2,
    /// Pod of ns-blue on the first node.
    Blue1,
    /// Pod of ns-red on the first node.
    Red1,
    /// Pod of ns-blue on the second node.
    Blue2,
    /// Pod of ns-red on the second node.
    Red2,
    /// The server, one hop from the gateway.
    Server,
    /// The upstream router.
    Router,
    /// A host behind the router.
    Internet,
}

impl Host {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::SwitchInside,
        Self::SwitchOutside,
        Self::Gateway,
        Self::Node1,
        Self::Node2,
        Self::Blue1,
        Self::Red1,
        Self::Blue2,
        Self::Red2,
        Self::Server,
        Self::Router,
        Self::Internet,
    ];

    /// Returns the end of its namespace's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::SwitchInside => "switch-in",
            Self::SwitchOutside => "switch-out",
            Self::Gateway => "gw",
            Self::Node1 => "node1",
            Self::Node2 => "node2",
            Self::Blue1 => "blue1",
            Self::Red1 => "red1",
            Self::Blue2 => "blue2",
            Self::Red2 => "red2",
            Self::Server => "server",
            Self::Router => "router",
            Self::Internet => "internet",
        }
    }
}

/// A tenant of the gateway.
#[derive(Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Its name.
    pub name: &'static str,
    /// The next hop that nodes use for its pods.
    pub gateway: Ipv4Addr,
    /// Address under which the outside sees its pods.
    pub egress: Ipv4Addr,
    /// Routing table of its pods on the nodes.
    pub table: u32,
}

/// Tenant ns-blue.
pub static BLUE: Tenant = Tenant {
    name: "ns-blue",
    gateway: Ipv4Addr::new(192, 168, 99, 13),
    egress: Ipv4Addr::new(192, 168, 55, 113),
    table: 113,
};

/// Tenant ns-red.
pub static RED: Tenant = Tenant {
    name: "ns-red",
    gateway: Ipv4Addr::new(192, 168, 99, 14),
    egress: Ipv4Addr::new(192, 168, 55, 114),
    table: 114,
};

/// A node of the cluster.
#[derive(Debug, PartialEq, Eq)]
pub struct Node {
    /// Its machine.
    pub host: Host,
    /// Its address on the inside network.
    pub address: Ipv4Addr,
    /// Its own address in the pods' network: their default route.
    pub pod_gateway: Ipv4Addr,
    /// Network of its pods.
    pub pod_cidr: &'static str,
}

/// The nodes.
pub static NODES: [Node; 2] = [
    Node {
        host: Host::Node1,
        address: Ipv4Addr::new(192, 168, 99, 21),
        pod_gateway: Ipv4Addr::new(10, 132, 0, 1),
        pod_cidr: "10.132.0.0/24",
    },
    Node {
        host: Host::Node2,
        address: Ipv4Addr::new(192, 168, 99, 22),
        pod_gateway: Ipv4Addr::new(10, 132, 1, 1),
        pod_cidr: "10.132.1.0/24",
    },
];

/// A pod.
#[derive(Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub host: Host,
    /// Its tenant.
    pub tenant: &'static Tenant,
    /// Its node.
    pub node: &'static Node,
    /// Its address.
    pub address: Ipv4Addr,
}

/// The pods: one of each tenant on each node.
pub static PODS: [Pod; 4] = [
    Pod { host: Host::Blue1, tenant: &BLUE, node: &NODES[0], address: Ipv4Addr::new(10, 132, 0, 5) },
    Pod { host: Host::Red1, tenant: &RED, node: &NODES[0], address: Ipv4Addr::new(10, 132, 0, 6) },
    Pod { host: Host::Blue2, tenant: &BLUE, node: &NODES[1], address: Ipv4Addr::new(10, 132, 1, 7) },
    Pod { host: Host::Red2, tenant: &RED, node: &NODES[1], address: Ipv4Addr::new(10, 132, 1, 8) },
];

/// All pods of the cluster, those of nodes to come included.
pub const CLUSTER_CIDR: &str = "10.132.0.0/14";
/// Inside interface of the gateway.
pub const INSIDE: &str = "in0";
/// Outside interface of the gateway.
pub const OUTSIDE: &str = "out0";
/// The gateway's own address on the inside network.
pub const GATEWAY_INSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 99, 12);
/// The gateway's own address on the outside network.
pub const GATEWAY_OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 55, 12);
/// The server.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 55, 13);
/// The router, on the outside network.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 55, 1);
/// The router, on the network behind it.
pub const ROUTER_FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The host behind the router.
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// Largest packet on a pod's link: a network card's less the overlay's headers.
pub const POD_MTU: u32 = 1400;
/// Route protocol number that marks Spillway's routes in the kernel.
pub const ROUTE_PROTOCOL: &str = "83";

#[cfg(test)]
mod tests {
    use ipnet::Ipv4Net;

    use super::*;

    #[test]
    fn every_pod_is_in_its_nodes_network_and_that_in_the_clusters() {
        let cluster: Ipv4Net = CLUSTER_CIDR.parse().unwrap();
        for pod in &PODS {
            let node: Ipv4Net = pod.node.pod_cidr.parse().unwrap();
            assert!(node.contains(&pod.address), "{}", pod.address);
            assert!(cluster.contains(&node), "{node}");
        }
    }
}
