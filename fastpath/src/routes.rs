//! The routes that leave by one interface: longest prefix first.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use ahash::RandomState;
use ipnet::Ipv4Net;

/// Routes, by length of their prefixes.
///
/// A gateway's routes are of two or three lengths: its link's, its nodes' and the default one. One hash of each is a
/// fifth of what a trie of all takes, and a table of the whole Internet has 25. A length of one route takes no hash.
#[derive(Debug)]
pub(crate) struct RouteTable<T> {
    /// Longest first.
    lengths: Vec<Length<T>>,
}

/// Routes whose prefixes have the same length.
#[derive(Debug)]
struct Length<T> {
    mask: Ipv4Addr,
    /// The first route.
    first: (Ipv4Addr, T),
    /// The others.
    others: HashMap<Ipv4Addr, T, RandomState>,
}

impl<T> Default for RouteTable<T> {
    fn default() -> Self {
        Self { lengths: Vec::new() }
    }
}

impl<T> RouteTable<T> {
    /// Adds a route; of two to the same prefix the last one counts.
    pub(crate) fn insert(&mut self, prefix: Ipv4Net, next_hop: T) {
        let mask = prefix.netmask();
        let route = (prefix.network(), next_hop);
        match self.lengths.binary_search_by(|length| mask.cmp(&length.mask)) {
            Ok(place) if self.lengths[place].first.0 == route.0 => self.lengths[place].first = route,
            Ok(place) => drop(self.lengths[place].others.insert(route.0, route.1)),
            Err(place) => {
                self.lengths.insert(place, Length { mask, first: route, others: HashMap::default() });
            }
        }
    }

    /// Returns the next hop of the longest prefix that covers a destination.
    pub(crate) fn find(&self, destination: Ipv4Addr) -> Option<&T> {
        self.lengths.iter().find_map(|Length { mask, first, others }| {
            let network = Ipv4Addr::from_bits(destination.to_bits() & mask.to_bits());
            if first.0 == network {
                Some(&first.1)
            } else if others.is_empty() {
                None
            } else {
                others.get(&network)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_longest_prefix_wins(
            routes in prop::collection::vec((0u32..64, 24u8..=32, prop::option::of(any::<u8>())), 0..40),
            destinations in prop::collection::vec(0u32..64, 1..40),
        ) {
            let address = |host: u32| Ipv4Addr::from_bits(0x0a84_0000 + host);
            let routes: Vec<_> = routes
                .into_iter()
                .map(|(host, len, hop)| {
                    let prefix = Ipv4Net::new(address(host), len).unwrap().trunc();
                    (prefix, hop.map(|hop| Ipv4Addr::new(192, 168, 55, hop)))
                })
                .collect();
            let mut table = RouteTable::default();
            routes.iter().for_each(|(prefix, hop)| table.insert(*prefix, *hop));
            for destination in destinations.into_iter().map(address) {
                // The last of the longest ones.
                let covering = routes.iter().filter(|(prefix, _)| prefix.contains(&destination));
                let expected = covering.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, hop)| *hop);
                prop_assert_eq!(table.find(destination).copied(), expected);
            }
        }
    }
}
