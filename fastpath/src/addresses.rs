//! Sets of addresses that are asked about for every packet.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use ahash::RandomState;
use ipnet::Ipv4Net;
use prefix_trie::PrefixSet;

/// Prefixes that are looked at in turn: 2 ns for one and 8 ns for eight, where a trie takes 20 ns for any number.
const FEW: usize = 8;

/// A set of addresses, made of networks and single hosts. Asking allocates nothing.
#[derive(Debug)]
pub(crate) enum AddressSet {
    /// A few prefixes, which are looked at in turn: mask and network.
    Few(Vec<(u32, u32)>),
    /// More of them.
    Many(Box<Many>),
}

/// Hosts are hashed, because that takes 3 ns whether they are ten or 50,000, and a trie of them takes 50 ns.
#[derive(Debug)]
pub(crate) struct Many {
    hosts: HashSet<Ipv4Addr, RandomState>,
    networks: PrefixSet<Ipv4Net>,
}

impl AddressSet {
    /// Makes the set of all addresses in some prefixes, which may repeat and overlap.
    pub(crate) fn new(prefixes: &[Ipv4Net]) -> Self {
        if prefixes.len() <= FEW {
            let parts = |prefix: &Ipv4Net| (prefix.netmask().to_bits(), prefix.network().to_bits());
            return Self::Few(prefixes.iter().map(parts).collect());
        }
        let is_host = |prefix: &&Ipv4Net| prefix.prefix_len() == prefix.max_prefix_len();
        let (hosts, networks): (Vec<_>, Vec<_>) = prefixes.iter().partition(is_host);
        Self::Many(Box::new(Many {
            hosts: hosts.into_iter().map(Ipv4Net::addr).collect(),
            networks: networks.into_iter().copied().collect(),
        }))
    }

    /// Tells whether an address is in the set.
    pub(crate) fn contains(&self, address: Ipv4Addr) -> bool {
        match self {
            Self::Few(prefixes) => {
                prefixes.iter().any(|(mask, network)| address.to_bits() & mask == *network)
            }
            Self::Many(many) => {
                many.hosts.contains(&address) || many.networks.get_lpm(&Ipv4Net::from(address)).is_some()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Prefixes close to each other, so that they repeat, overlap and touch.
    fn any_prefix() -> impl Strategy<Value = Ipv4Net> {
        let length = prop_oneof![3 => Just(32u8), 2 => 24u8..32, 1 => 0u8..24];
        (0u32..1024, length)
            .prop_map(|(host, length)| Ipv4Net::new(Ipv4Addr::from_bits(0x0a84_0000 + host), length).unwrap())
    }

    proptest! {
        #[test]
        fn an_address_is_in_the_set_if_it_is_in_one_of_its_prefixes(
            prefixes in prop::collection::vec(any_prefix(), 0..40),
            addresses in prop::collection::vec(0u32..1100, 1..40),
        ) {
            let set = AddressSet::new(&prefixes);
            for address in addresses.into_iter().map(|host| Ipv4Addr::from_bits(0x0a84_0000 + host)) {
                let is_in_one = prefixes.iter().any(|prefix| prefix.contains(&address));
                prop_assert_eq!(set.contains(address), is_in_one, "{}", address);
            }
        }
    }

    #[test]
    fn every_host_of_many_is_in_the_set_and_its_neighbours_are_not() {
        let hosts = (0..50_000u32).map(|host| Ipv4Addr::from_bits(0x0a84_0000 + 2 * host));
        let set = AddressSet::new(&hosts.clone().map(Ipv4Net::from).collect::<Vec<_>>());
        for host in hosts {
            assert!(set.contains(host) && !set.contains(Ipv4Addr::from_bits(host.to_bits() + 1)), "{host}");
        }
    }
}
