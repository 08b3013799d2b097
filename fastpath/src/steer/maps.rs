//! What is in the maps of an XDP program, and how they follow the snapshot: what closes a way is changed before
//! the workers learn of a snapshot, what opens one to the kernel after.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use aya::{Ebpf, Pod};

use super::{ROWS, SteerError};
use crate::io::turnstile::SharedArray;
use crate::snapshot::{Snapshot, TenantSpec};

/// Names of the maps.
const NAMES: [&str; 8] = [
    "xsks_map",
    "rings",
    "shares",
    "tenant_macs",
    "egress_addresses",
    "own_addresses",
    "pod_cidrs",
    "verdicts",
];

/// The maps of one side's programs.
#[derive(Debug)]
pub(super) struct Maps(BTreeMap<&'static str, Map>);

impl Maps {
    /// Takes the maps of a loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Self {
        Self(NAMES.map(|name| (name, ebpf.take_map(name).expect("the object has this map"))).into())
    }

    /// Opens those that are pinned in a directory.
    ///
    /// # Errors
    /// When one is missing.
    pub(super) fn pinned(directory: &Path) -> Result<Self, MapError> {
        let open = |name| Ok((name, Map::from_map_data(MapData::from_pin(directory.join(name))?)?));
        NAMES.into_iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    /// Returns all maps with their names.
    pub(super) fn all(&self) -> impl Iterator<Item = (&'static str, &Map)> {
        self.0.iter().map(|(name, map)| (*name, map))
    }

    /// Maps the memory of one of the arrays.
    pub(super) fn share(
        &self,
        name: &'static str,
        map: impl FnOnce(BorrowedFd<'_>) -> io::Result<SharedArray>,
    ) -> Result<SharedArray, SteerError> {
        let Some(Map::Array(array)) = self.0.get(name) else { unreachable!("the object has this array") };
        map(array.fd().as_fd()).map_err(|source| SteerError::Memory { map: name, source })
    }

    /// Returns how often each row of the decision table was met.
    pub(super) fn verdicts(&self) -> Result<[u64; ROWS.len()], SteerError> {
        let sum_up = || -> Result<_, MapError> {
            let counters: PerCpuArray<_, u64> = PerCpuArray::try_from(&self.0["verdicts"])?;
            let mut counts = [0; ROWS.len()];
            for (row, count) in (0..).zip(&mut counts) {
                *count = counters.get(&row, 0)?.iter().sum();
            }
            Ok(counts)
        };
        sum_up().map_err(|source| SteerError::Map { map: "verdicts", source })
    }

    /// Counts from zero again.
    pub(super) fn forget_verdicts(&mut self) -> Result<(), SteerError> {
        self.change("verdicts", |map| {
            let mut counters: PerCpuArray<_, u64> = PerCpuArray::try_from(map)?;
            let cores = nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
            for row in (0..).take(ROWS.len()) {
                counters.set(row, PerCpuValues::try_from(vec![0; cores])?, 0)?;
            }
            Ok(())
        })
    }

    fn change<T>(
        &mut self,
        name: &'static str,
        change: impl FnOnce(&mut Map) -> Result<T, MapError>,
    ) -> Result<T, SteerError> {
        let map = self.0.get_mut(name).expect("the object has this map");
        change(map).map_err(|source| SteerError::Map { map: name, source })
    }

    fn change_hash<K: Pod, V: Pod>(
        &mut self,
        name: &'static str,
        change: impl FnOnce(&mut HashMap<&mut MapData, K, V>) -> Result<(), MapError>,
    ) -> Result<(), SteerError> {
        self.change(name, |map| change(&mut HashMap::try_from(map)?))
    }

    fn change_pod_cidrs(
        &mut self,
        change: impl FnOnce(&mut LpmTrie<&mut MapData, [u8; 4], u8>) -> Result<(), MapError>,
    ) -> Result<(), SteerError> {
        self.change("pod_cidrs", |map| change(&mut LpmTrie::try_from(map)?))
    }

    fn read_hash<K: Pod, V: Pod, C: FromIterator<(K, V)>>(
        &self,
        name: &'static str,
    ) -> Result<C, SteerError> {
        HashMap::<_, K, V>::try_from(&self.0[name])
            .and_then(|map| map.iter().collect())
            .map_err(|source| SteerError::Map { map: name, source })
    }
}

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
    /// Reads what is in maps that an earlier process filled.
    pub(super) fn read(maps: &Maps) -> Result<Self, SteerError> {
        let own_addresses: HashSet<([u8; 4], u8)> = maps.read_hash("own_addresses")?;
        let pod_cidrs = || -> Result<_, MapError> {
            let trie: LpmTrie<_, [u8; 4], u8> = LpmTrie::try_from(&maps.0["pod_cidrs"])?;
            let cidr = |key: Key<[u8; 4]>| (u8::try_from(key.prefix_len()).expect("at most 32"), key.data());
            trie.keys().map(|key| key.map(cidr)).collect()
        };
        Ok(Self {
            tenant_macs: maps.read_hash("tenant_macs")?,
            egress_addresses: maps.read_hash("egress_addresses")?,
            own_addresses: own_addresses.into_iter().map(|(address, _)| address).collect(),
            pod_cidrs: pod_cidrs().map_err(|source| SteerError::Map { map: "pod_cidrs", source })?,
        })
    }

    /// Puts in what `next` steers to workers and takes out what it no longer lets pass to the kernel.
    pub(super) fn open(&mut self, maps: &mut Maps, next: &Snapshot) -> Result<(), SteerError> {
        let next = Self::of(next);
        for (mac, tenant) in next.tenant_macs.difference(&self.tenant_macs) {
            maps.change_hash::<[u8; 6], [u32; 2]>("tenant_macs", |map| map.insert(mac, tenant, 0))?;
        }
        for (address, number) in next.egress_addresses.difference(&self.egress_addresses) {
            maps.change_hash::<[u8; 4], u32>("egress_addresses", |map| map.insert(address, number, 0))?;
        }
        for (bits, network) in next.pod_cidrs.difference(&self.pod_cidrs) {
            maps.change_pod_cidrs(|map| map.insert(&Key::new(u32::from(*bits), *network), 1, 0))?;
        }
        for address in self.own_addresses.difference(&next.own_addresses) {
            maps.change_hash::<[u8; 4], u8>("own_addresses", |map| map.remove(address))?;
        }
        self.own_addresses.retain(|address| next.own_addresses.contains(address));
        self.tenant_macs.extend(next.tenant_macs);
        self.egress_addresses.extend(next.egress_addresses);
        self.pod_cidrs.extend(next.pod_cidrs);
        Ok(())
    }

    /// Takes out what `adopted` no longer steers to workers and puts in what it lets pass to the kernel.
    pub(super) fn close(&mut self, maps: &mut Maps, adopted: &Snapshot) -> Result<(), SteerError> {
        let adopted = Self::of(adopted);
        let macs: HashSet<_> = adopted.tenant_macs.iter().map(|(mac, _)| mac).collect();
        for (mac, _) in self.tenant_macs.difference(&adopted.tenant_macs) {
            if !macs.contains(mac) {
                maps.change_hash::<[u8; 6], [u32; 2]>("tenant_macs", |map| map.remove(mac))?;
            }
        }
        let gone: Vec<_> = self.egress_addresses.difference(&adopted.egress_addresses).collect();
        if !gone.is_empty() {
            let kept: HashSet<_> = adopted.egress_addresses.iter().map(|(address, _)| address).collect();
            for (address, _) in gone.into_iter().filter(|(address, _)| !kept.contains(address)) {
                maps.change_hash::<[u8; 4], u32>("egress_addresses", |map| map.remove(address))?;
            }
        }
        for (bits, network) in self.pod_cidrs.difference(&adopted.pod_cidrs) {
            maps.change_pod_cidrs(|map| map.remove(&Key::new(u32::from(*bits), *network)))?;
        }
        for address in adopted.own_addresses.difference(&self.own_addresses) {
            maps.change_hash::<[u8; 4], u8>("own_addresses", |map| map.insert(address, 1, 0))?;
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

fn number_of(tenant: &TenantSpec) -> u32 {
    u32::from(tenant.id.0)
}
