//! The immutable configuration that workers read: tenants, routes, neighbours and timeouts of one epoch.
//!
//! The control side states plain facts in a [`SnapshotSpec`]; [`Snapshot::compile`] turns them, purely, into
//! tables that a worker can look up.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ahash::RandomState;
use conntrack::{Direction, Epoch, Policy, Shared, SharedBook, TenantId, Timeouts};
use ipnet::Ipv4Net;
use macaddr::MacAddr6;

use crate::addresses::AddressSet;
use crate::routes::RouteTable;

/// One of the gateway's two networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// The cluster's network, where nodes and pods are.
    Inside,
    /// The upstream network, where egress addresses live.
    Outside,
}

impl Side {
    /// Both sides.
    pub const BOTH: [Self; 2] = [Self::Inside, Self::Outside];

    /// Returns the side's name, as configuration and status spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inside => "inside",
            Self::Outside => "outside",
        }
    }

    /// Returns the side that packets of a direction leave by.
    pub fn ahead(direction: Direction) -> Self {
        match direction {
            Direction::Outbound => Self::Outside,
            Direction::Inbound => Self::Inside,
        }
    }

    /// Returns the direction of packets that come in on this side.
    pub fn direction(self) -> Direction {
        match self {
            Self::Inside => Direction::Outbound,
            Self::Outside => Direction::Inbound,
        }
    }

    /// Returns the side across the gateway.
    pub fn other(self) -> Self {
        match self {
            Self::Inside => Self::Outside,
            Self::Outside => Self::Inside,
        }
    }

    /// Returns the side's place where something is kept for both: inside first.
    pub fn index(self) -> usize {
        match self {
            Self::Inside => 0,
            Self::Outside => 1,
        }
    }
}

/// What the gateway's own interface on one side looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkSpec {
    /// Hardware address.
    pub mac: MacAddr6,
    /// The gateway's own address on this side.
    pub address: Ipv4Addr,
    /// Largest IPv4 packet, in bytes.
    pub mtu: u16,
}

/// A tenant: how its traffic is recognised and what it is translated to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantSpec {
    /// Slot; it stays the tenant's own as long as the tenant exists.
    pub id: TenantId,
    /// Destination MAC of the tenant's outbound frames.
    pub gateway_mac: MacAddr6,
    /// Next hop that the cluster sends the tenant's traffic to.
    pub gateway_address: Ipv4Addr,
    /// Addresses that its traffic leaves with; never empty.
    pub egress_addresses: Vec<Ipv4Addr>,
    /// Source addresses that it may use: a few networks, or tens of thousands of hosts.
    pub sources: Vec<Ipv4Net>,
    /// What these addresses are.
    pub source_kind: SourceKind,
    /// Whether it is being removed: sessions that live go on, and none begins.
    pub is_draining: bool,
    /// What its sessions may do.
    pub policy: Policy,
    /// Greatest TCP segment that its connections may agree on, in bytes; 0: as the ends like (RFC 9293 section 3.7.1).
    pub mss_clamp: u16,
}

/// What the addresses are that a tenant may use as source. It decides what is said of all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceKind {
    /// Networks that pods may come from.
    #[default]
    Networks,
    /// Exactly the live pods of the tenant's namespaces, as far as the control side knows them yet.
    LivePods,
    /// The cluster's nodes, which translate pods to their own address.
    Nodes,
}

/// What becomes of TCP segments that belong to no session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpPolicy {
    /// A segment from a pod that does not open a connection.
    pub mid_stream: MidStream,
    /// A SYN from outside that nobody has asked for.
    pub unsolicited_syn: UnsolicitedSyn,
}

/// What a pod hears about a segment in the middle of a connection that the gateway does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MidStream {
    /// A RST, so that it connects again at once.
    #[default]
    Reset,
    /// Nothing.
    Drop,
}

/// What the world hears about a SYN that nobody asked for (RFC 5382 REQ-4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnsolicitedSyn {
    /// Nothing.
    #[default]
    Drop,
    /// ICMP port unreachable after 6 seconds, unless the pod has opened the connection until then.
    Unreachable,
}

/// A route of the kernel's table that leaves by one of the two interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    /// Interface that it leaves by.
    pub side: Side,
    /// Destinations that it covers.
    pub prefix: Ipv4Net,
    /// Next hop; none when the destination is on the link.
    pub gateway: Option<Ipv4Addr>,
}

/// A neighbour that the kernel has resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourSpec {
    /// Interface that it is on.
    pub side: Side,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its hardware address.
    pub mac: MacAddr6,
}

/// All facts of one epoch, as the control side knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotSpec {
    /// Number of this snapshot; greater than that of every earlier one.
    pub epoch: Epoch,
    /// The inside interface.
    pub inside: LinkSpec,
    /// The outside interface.
    pub outside: LinkSpec,
    /// Tenants, in any order, with distinct ids, MACs and egress addresses.
    pub tenants: Vec<TenantSpec>,
    /// The cluster's pod networks: a frame from them to any MAC but a tenant's is a leak.
    pub pod_cidrs: Vec<Ipv4Net>,
    /// The gateway's own addresses (not egress addresses), which pods may talk to.
    pub own_addresses: Vec<Ipv4Addr>,
    /// Routes that leave by the two interfaces.
    pub routes: Vec<RouteSpec>,
    /// Resolved neighbours on the two interfaces.
    pub neighbours: Vec<NeighbourSpec>,
    /// Session timeouts.
    pub timeouts: Timeouts,
    /// What becomes of TCP segments that belong to no session.
    pub tcp: TcpPolicy,
}

/// Index of a resolved neighbour in one snapshot. Means nothing under another epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourId(pub u32);

/// Where a packet goes next, or why that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// The neighbour is resolved.
    Resolved(NeighbourId),
    /// There is a route, but the neighbour with this address is not resolved.
    Unresolved(Ipv4Addr),
    /// No route leaves by this side.
    NoRoute,
}

/// The tables of one epoch. Immutable; shared by all workers.
#[derive(Debug)]
pub struct Snapshot {
    spec: SnapshotSpec,
    tenants: Vec<Option<Tenant>>,
    pods: AddressSet,
    by_mac: HashMap<MacAddr6, TenantId, RandomState>,
    /// By address, as a number: it is hashed as a whole.
    by_egress: HashMap<u32, TenantId, RandomState>,
    routes: [RouteTable<Hop>; 2],
    neighbours: [HashMap<Ipv4Addr, NeighbourId, RandomState>; 2],
    /// MACs of frames to each neighbour: its own and the link's.
    macs: Vec<[u8; 12]>,
    shared: Option<Arc<Shared>>,
}

/// A tenant in its slot.
#[derive(Debug)]
struct Tenant {
    /// Place of its facts in [`SnapshotSpec::tenants`].
    place: usize,
    gateway_mac: MacAddr6,
    sources: AddressSet,
}

/// Where packets to the destinations of a route go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hop {
    OnLink,
    Via(NextHop),
}

impl Snapshot {
    /// Compiles facts into tables.
    pub fn compile(spec: SnapshotSpec) -> Self {
        let slots = spec.tenants.iter().map(|tenant| usize::from(tenant.id.0) + 1).max().unwrap_or(0);
        let mut snapshot = Self {
            tenants: (0..slots).map(|_| None).collect(),
            pods: AddressSet::new(&spec.pod_cidrs),
            by_mac: HashMap::default(),
            by_egress: HashMap::default(),
            routes: Default::default(),
            neighbours: [HashMap::default(), HashMap::default()],
            macs: Vec::new(),
            shared: None,
            spec,
        };
        for (place, tenant) in snapshot.spec.tenants.iter().enumerate() {
            snapshot.by_mac.insert(tenant.gateway_mac, tenant.id);
            for egress in &tenant.egress_addresses {
                snapshot.by_egress.insert(egress.to_bits(), tenant.id);
            }
            let sources = AddressSet::new(&tenant.sources);
            let gateway_mac = tenant.gateway_mac;
            snapshot.tenants[usize::from(tenant.id.0)] = Some(Tenant { place, gateway_mac, sources });
        }
        for (id, neighbour) in (0..).zip(&snapshot.spec.neighbours) {
            snapshot.neighbours[neighbour.side.index()].insert(neighbour.address, NeighbourId(id));
            let source = snapshot.link(neighbour.side).mac;
            let mut macs = [0; 12];
            macs[..6].copy_from_slice(neighbour.mac.as_bytes());
            macs[6..].copy_from_slice(source.as_bytes());
            snapshot.macs.push(macs);
        }
        for route in &snapshot.spec.routes {
            let hop = route
                .gateway
                .map_or(Hop::OnLink, |gateway| Hop::Via(snapshot.neighbour_at(route.side, gateway)));
            snapshot.routes[route.side.index()].insert(route.prefix, hop);
        }
        snapshot
    }

    /// Gives the snapshot what workers share under it; `applied` is the newest snapshot that every worker has adopted.
    #[must_use]
    pub fn with_shared(mut self, book: &mut SharedBook, applied: Epoch) -> Self {
        let egress_addresses = self.by_egress.keys().map(|address| Ipv4Addr::from_bits(*address));
        let tenants = self.spec.tenants.iter().map(|tenant| (tenant.id, tenant.gateway_address));
        self.shared = Some(Arc::new(book.next(egress_addresses, tenants, self.spec.epoch, applied)));
        self
    }

    /// Returns what workers share under this snapshot.
    pub fn shared(&self) -> Option<&Arc<Shared>> {
        self.shared.as_ref()
    }

    /// Returns the facts that this snapshot was compiled from.
    pub fn spec(&self) -> &SnapshotSpec {
        &self.spec
    }

    /// Returns the number of this snapshot.
    pub fn epoch(&self) -> Epoch {
        self.spec.epoch
    }

    /// Returns the gateway's interface on one side.
    pub fn link(&self, side: Side) -> &LinkSpec {
        match side {
            Side::Inside => &self.spec.inside,
            Side::Outside => &self.spec.outside,
        }
    }

    /// Returns the largest packet that fits both links, in bytes.
    pub fn least_mtu(&self) -> u16 {
        self.spec.inside.mtu.min(self.spec.outside.mtu)
    }

    /// Returns the tenant in a slot.
    pub fn tenant(&self, id: TenantId) -> Option<&TenantSpec> {
        self.slot(id).map(|tenant| &self.spec.tenants[tenant.place])
    }

    /// Tells whether a tenant may send from an address.
    pub fn may_send_from(&self, id: TenantId, source: Ipv4Addr) -> bool {
        self.slot(id).is_some_and(|tenant| tenant.sources.contains(source))
    }

    fn slot(&self, id: TenantId) -> Option<&Tenant> {
        self.tenants.get(usize::from(id.0))?.as_ref()
    }

    /// Returns the tenant whose gateway has this MAC.
    pub fn tenant_by_mac(&self, mac: MacAddr6) -> Option<TenantId> {
        self.by_mac.get(&mac).copied()
    }

    /// Returns the tenant that this egress address belongs to.
    pub fn tenant_by_egress(&self, address: Ipv4Addr) -> Option<TenantId> {
        self.by_egress.get(&address.to_bits()).copied()
    }

    /// Returns where a packet to `destination` goes next when it leaves by `side`: longest prefix first.
    pub fn next_hop(&self, side: Side, destination: Ipv4Addr) -> NextHop {
        match self.routes[side.index()].find(destination) {
            Some(Hop::Via(gateway)) => *gateway,
            Some(Hop::OnLink) => self.neighbour_at(side, destination),
            None => NextHop::NoRoute,
        }
    }

    fn neighbour_at(&self, side: Side, address: Ipv4Addr) -> NextHop {
        match self.neighbours[side.index()].get(&address) {
            Some(id) => NextHop::Resolved(*id),
            None => NextHop::Unresolved(address),
        }
    }

    /// Tells whether an address is on the link of `side`, so that packets to it need no router.
    pub fn is_on_link(&self, side: Side, address: Ipv4Addr) -> bool {
        self.routes[side.index()].find(address) == Some(&Hop::OnLink)
    }

    /// Returns a resolved neighbour of this snapshot.
    ///
    /// # Panics
    /// When `id` comes from another epoch and is out of range here.
    pub fn neighbour(&self, id: NeighbourId) -> &NeighbourSpec {
        &self.spec.neighbours[id.0 as usize]
    }

    /// Returns the MACs of a frame to a neighbour: destination, and the link's own as source.
    ///
    /// # Panics
    /// When `id` comes from another epoch and is out of range here.
    pub fn macs_to(&self, id: NeighbourId) -> [u8; 12] {
        self.macs[id.0 as usize]
    }

    /// Returns the MAC that frames of a tenant carry as source when they leave by `side`: inside the tenant's
    /// own, so that switches keep knowing where it is.
    pub fn source_mac(&self, side: Side, tenant: TenantId) -> MacAddr6 {
        match side {
            Side::Inside => self.slot(tenant).map_or(self.spec.inside.mac, |tenant| tenant.gateway_mac),
            Side::Outside => self.spec.outside.mac,
        }
    }

    /// Tells whether an address belongs to a pod network of the cluster.
    pub fn is_pod(&self, address: Ipv4Addr) -> bool {
        self.pods.contains(address)
    }
}
