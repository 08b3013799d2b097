//! Which egress address, and which worker, an inside address belongs to.

use std::net::Ipv4Addr;

use crate::flow::TenantId;

/// Returns the egress address that stands for a pod in all its sessions (RFC 4787 REQ-2, paired pooling);
/// none when there are no addresses.
///
/// The choice depends on nothing but the two addresses (highest random weight), so that every gateway
/// chooses alike and another address in the pool moves only the pods that it takes over.
pub fn pair_egress(inside: Ipv4Addr, egress_addresses: &[Ipv4Addr]) -> Option<Ipv4Addr> {
    egress_addresses
        .iter()
        .copied()
        .max_by_key(|egress| mix(u64::from(inside.to_bits()) << 32 | u64::from(egress.to_bits())))
}

/// Returns which of `workers` owns all sessions of an inside address.
pub fn owner_of_inside(tenant: TenantId, inside: Ipv4Addr, workers: u16) -> u16 {
    let hash = mix(u64::from(tenant.0) << 32 | u64::from(inside.to_bits()));
    // The remainder of a u16 is a u16.
    u16::try_from(hash % u64::from(workers)).unwrap_or(0)
}

/// Returns a well-mixed word (the finaliser of MurmurHash3).
pub(crate) fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    word = (word ^ (word >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ (word >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods() -> impl Iterator<Item = Ipv4Addr> {
        (0..1000u32).map(|pod| Ipv4Addr::from_bits(0x0a84_0000 + pod))
    }

    #[test]
    fn another_egress_address_moves_only_the_pods_that_it_takes() {
        let pool: Vec<_> = (113..117).map(|host| Ipv4Addr::new(192, 168, 55, host)).collect();
        let mut moved = 0;
        for pod in pods() {
            let (before, after) = (pair_egress(pod, &pool[..3]), pair_egress(pod, &pool));
            assert!(before == after || after == Some(pool[3]));
            moved += u32::from(before != after);
        }
        assert!((150..350).contains(&moved), "{moved} of 1000 pods moved to one of four addresses");
    }

    #[test]
    fn pods_spread_over_workers() {
        let mut owned = [0; 4];
        for pod in pods() {
            owned[usize::from(owner_of_inside(TenantId(3), pod, 4))] += 1;
        }
        assert!(owned.iter().all(|count| (180..320).contains(count)), "{owned:?}");
    }
}
