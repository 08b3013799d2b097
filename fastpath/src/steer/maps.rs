//! What is in the maps of an XDP program, and how they follow the snapshot: what closes a way is changed before
//! the workers learn of a snapshot, what opens one to the kernel after.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, Map, MapData, MapError};
use aya::{Ebpf, Pod};

use super::SteerError;
use crate::io::turnstile::SharedArray;
use crate::snapshot::{Snapshot, TenantSpec};

/// The keys and values of the maps that follow the snapshot.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// MAC of each tenant, and its gateway address and number as a `struct tenant` has them.
    tenant_macs: HashSet<([u8; 6], [u32; 2])>,
    /// Each with the number of its tenant.
    egress_addresses: HashSet<([u8; 4], u32)>,
    own_addresses: HashSet<[u8; 4]>,
    /// Prefix length and network.
    pod_cidrs: HashSet<(u8, [u8; 4])>,
}

impl Entries {
    /// Puts in what `next` steers to workers and takes out what it no longer lets pass to the kernel.
    pub(super) fn open(&mut self, ebpf: &mut Ebpf, next: &Snapshot) -> Result<(), SteerError> {
        let next = Self::of(next);
        for (mac, tenant) in next.tenant_macs.difference(&self.tenant_macs) {
            change_hash::<[u8; 6], [u32; 2]>(ebpf, "tenant_macs", |map| map.insert(mac, tenant, 0))?;
        }
        for (address, number) in next.egress_addresses.difference(&self.egress_addresses) {
            change_hash::<[u8; 4], u32>(ebpf, "egress_addresses", |map| map.insert(address, number, 0))?;
        }
        for (bits, network) in next.pod_cidrs.difference(&self.pod_cidrs) {
            change_pod_cidrs(ebpf, |map| map.insert(&Key::new(u32::from(*bits), *network), 1, 0))?;
        }
        for address in self.own_addresses.difference(&next.own_addresses) {
            change_hash::<[u8; 4], u8>(ebpf, "own_addresses", |map| map.remove(address))?;
        }
        self.own_addresses.retain(|address| next.own_addresses.contains(address));
        self.tenant_macs.extend(next.tenant_macs);
        self.egress_addresses.extend(next.egress_addresses);
        self.pod_cidrs.extend(next.pod_cidrs);
        Ok(())
    }

    /// Takes out what `adopted` no longer steers to workers and puts in what it lets pass to the kernel.
    pub(super) fn close(&mut self, ebpf: &mut Ebpf, adopted: &Snapshot) -> Result<(), SteerError> {
        let adopted = Self::of(adopted);
        let macs: HashSet<_> = adopted.tenant_macs.iter().map(|(mac, _)| mac).collect();
        for (mac, _) in self.tenant_macs.difference(&adopted.tenant_macs) {
            if !macs.contains(mac) {
                change_hash::<[u8; 6], [u32; 2]>(ebpf, "tenant_macs", |map| map.remove(mac))?;
            }
        }
        let gone: Vec<_> = self.egress_addresses.difference(&adopted.egress_addresses).collect();
        if !gone.is_empty() {
            let kept: HashSet<_> = adopted.egress_addresses.iter().map(|(address, _)| address).collect();
            for (address, _) in gone.into_iter().filter(|(address, _)| !kept.contains(address)) {
                change_hash::<[u8; 4], u32>(ebpf, "egress_addresses", |map| map.remove(address))?;
            }
        }
        for (bits, network) in self.pod_cidrs.difference(&adopted.pod_cidrs) {
            change_pod_cidrs(ebpf, |map| map.remove(&Key::new(u32::from(*bits), *network)))?;
        }
        for address in adopted.own_addresses.difference(&self.own_addresses) {
            change_hash::<[u8; 4], u8>(ebpf, "own_addresses", |map| map.insert(address, 1, 0))?;
        }
        *self = adopted;
        Ok(())
    }

    fn of(snapshot: &Snapshot) -> Self {
        let spec = snapshot.spec();
        let egress_addresses: HashSet<_> = spec
            .tenants
            .iter()
            .flat_map(|tenant| {
                tenant.egress_addresses.iter().map(|address| (address.octets(), number_of(tenant)))
            })
            .collect();
        let addresses: HashSet<_> = egress_addresses.iter().map(|(address, _)| *address).collect();
        let own_addresses = spec.own_addresses.iter().map(|address| address.octets());
        Self {
            tenant_macs: spec
                .tenants
                .iter()
                .map(|tenant| {
                    let gateway = u32::from_ne_bytes(tenant.gateway_address.octets());
                    (tenant.gateway_mac.into_array(), [gateway, number_of(tenant)])
                })
                .collect(),
            // Whatever the kernel thinks, an egress address is never its own to answer for.
            own_addresses: own_addresses.filter(|address| !addresses.contains(address)).collect(),
            egress_addresses,
            pod_cidrs: spec
                .pod_cidrs
                .iter()
                .map(|cidr| (cidr.prefix_len(), cidr.network().octets()))
                .collect(),
        }
    }
}

/// Maps the memory of one of the arrays.
pub(super) fn share(
    ebpf: &Ebpf,
    name: &'static str,
    map: impl FnOnce(BorrowedFd<'_>) -> io::Result<SharedArray>,
) -> Result<SharedArray, SteerError> {
    let Some(Map::Array(array)) = ebpf.map(name) else { unreachable!("the object has this array") };
    map(array.fd().as_fd()).map_err(|source| SteerError::Memory { map: name, source })
}

fn number_of(tenant: &TenantSpec) -> u32 {
    u32::from(tenant.id.0)
}

fn change_hash<K: Pod, V: Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
    change: impl FnOnce(&mut HashMap<&mut MapData, K, V>) -> Result<(), MapError>,
) -> Result<(), SteerError> {
    let map = ebpf.map_mut(name).expect("the object has this map");
    HashMap::try_from(map)
        .and_then(|mut map| change(&mut map))
        .map_err(|source| SteerError::Map { map: name, source })
}

fn change_pod_cidrs(
    ebpf: &mut Ebpf,
    change: impl FnOnce(&mut LpmTrie<&mut MapData, [u8; 4], u8>) -> Result<(), MapError>,
) -> Result<(), SteerError> {
    let map = ebpf.map_mut("pod_cidrs").expect("the object has this map");
    LpmTrie::try_from(map)
        .and_then(|mut map| change(&mut map))
        .map_err(|source| SteerError::Map { map: "pod_cidrs", source })
}
