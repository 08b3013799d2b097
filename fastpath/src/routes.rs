//! The routes that leave by one interface: longest prefix first.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use ahash::RandomState;
use ipnet::Ipv4Net;

/// Routes, by length of their prefixes.
///
/// A gateway's routes are of two or three lengths: its link's, its nodes' and the default one. One hash of each is a
/// fifth of what a trie of all takes, and a table of the whole Internet has 25.
#[derive(Debug, Default)]
pub(crate) struct RouteTable {
    /// Longest first.
    lengths: Vec<Length>,
}

/// Routes whose prefixes have the same length.
#[derive(Debug)]
struct Length {
    mask: Ipv4Addr,
    next_hops: HashMap<Ipv4Addr, Option<Ipv4Addr>, RandomState>,
}

impl RouteTable {
    /// Adds a route; of two to the same prefix the last one counts. No next hop: destinations are on the link.
    pub(crate) fn insert(&mut self, prefix: Ipv4Net, next_hop: Option<Ipv4Addr>) {
        let mask = prefix.netmask();
        let place = match self.lengths.binary_search_by(|length| mask.cmp(&length.mask)) {
            Ok(place) => place,
            Err(place) => {
                self.lengths.insert(place, Length { mask, next_hops: HashMap::default() });
                place
            }
        };
        self.lengths[place].next_hops.insert(prefix.network(), next_hop);
    }

    /// Returns the next hop of the longest prefix that covers a destination; inside, none when it is on the link.
    pub(crate) fn find(&self, destination: Ipv4Addr) -> Option<Option<Ipv4Addr>> {
        self.lengths.iter().find_map(|length| {
            let network = Ipv4Addr::from_bits(destination.to_bits() & length.mask.to_bits());
            length.next_hops.get(&network).copied()
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
                prop_assert_eq!(table.find(destination), expected);
            }
        }
    }
}
