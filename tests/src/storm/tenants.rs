//! The tenants of a storm: which there may be, and which there are.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};

/// Tenants that there may be at the same time.
pub(crate) const TENANTS: u8 = 8;
/// Egress addresses that only one tenant ever has.
pub(crate) const ADDRESSES_EACH: u8 = 8;

/// Place of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot(pub(super) u8);

impl Slot {
    /// All of them.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..TENANTS).map(Self)
    }

    pub(crate) fn name(self) -> String {
        format!("storm-{}", self.0)
    }

    pub(crate) fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 99, 40 + self.0)
    }

    pub(crate) fn mac(self) -> [u8; 6] {
        let [a, b, c, d] = self.gateway().octets();
        [2, 0x53, a, b, c, d]
    }

    /// Returns one of the addresses that it may have.
    pub(crate) fn egress(self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 55, 120 + ADDRESSES_EACH * self.0 + number % ADDRESSES_EACH)
    }

    /// Returns the address of the pod by which a checkpoint looks whether the tenant is served.
    pub(crate) fn probe(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 132, 0, 100 + self.0)
    }

    /// Returns the routing table of that pod on its node.
    pub(crate) fn table(self) -> u32 {
        300 + u32::from(self.0)
    }
}

/// The tenants that the daemon was told of, as far as it said yes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tenants {
    bodies: BTreeMap<Slot, Value>,
}

impl Tenants {
    /// Returns those that there are, and their egress addresses.
    pub(crate) fn living(&self) -> impl Iterator<Item = (Slot, Vec<Ipv4Addr>)> {
        self.bodies.iter().map(|(slot, body)| {
            let addresses = body["egressIPs"].as_array().into_iter().flatten();
            let parsed = addresses.filter_map(|address| address.as_str()?.parse().ok());
            (*slot, parsed.collect())
        })
    }

    /// Returns what is to be put for a tenant with other egress addresses or other options.
    pub(crate) fn draw(&self, slot: Slot, changes_egress: bool, rng: &mut StdRng) -> Value {
        let first = rng.random_range(0..ADDRESSES_EACH);
        let count = rng.random_range(1..4);
        let drawn: Vec<_> = (first..first + count).map(|number| slot.egress(number)).collect();
        let kept = self.bodies.get(&slot).map(|body| body["egressIPs"].clone());
        let egress = kept.filter(|_| !changes_egress).unwrap_or_else(|| json!(drawn));
        let mapping = if rng.random() { "EndpointIndependent" } else { "AddressAndPortDependent" };
        let (sessions, mss) = (rng.random_range(0..2) * 3000, rng.random_range(0..2) * 1200);
        json!({
            "gatewayIP": slot.gateway(),
            "egressIPs": egress,
            "mapping": mapping,
            "mssClamp": mss,
            "limits": { "sessions": sessions },
        })
    }

    pub(crate) fn note_put(&mut self, slot: Slot, body: Value) {
        self.bodies.insert(slot, body);
    }

    pub(crate) fn note_removed(&mut self, slot: Slot) {
        self.bodies.remove(&slot);
    }

    pub(crate) fn has(&self, slot: Slot) -> bool {
        self.bodies.contains_key(&slot)
    }
}
