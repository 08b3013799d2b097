//! Incremental Internet checksums (RFC 1071, RFC 1624).

use std::net::Ipv4Addr;

/// The change that replacing some words makes to a checksum: a one's complement sum.
///
/// It is prepared once for a session and applied to each of its packets. The sum is of words as they lie in memory: whatever
/// the order of their bytes, it is the same sum in that order (RFC 1071 section 2 B).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChecksumDelta(u16);

impl ChecksumDelta {
    /// Returns this change together with that of replacing one 16-bit word.
    #[must_use]
    pub fn replace(self, old: u16, new: u16) -> Self {
        Self(add(add(self.0, !old.to_be()), new.to_be()))
    }

    /// Returns this change together with that of replacing an address.
    #[must_use]
    pub fn replace_address(self, old: Ipv4Addr, new: Ipv4Addr) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (old.octets(), new.octets());
        let change = |sum, old, new| add(add(sum, !u16::from_ne_bytes(old)), u16::from_ne_bytes(new));
        Self(change(change(self.0, [a, b], [e, f]), [c, d], [g, h]))
    }

    /// Returns the change that takes this one back.
    #[must_use]
    pub fn inverse(self) -> Self {
        Self(!self.0)
    }

    /// Returns this change together with that of taking one from the time to live, which is the high byte of its word.
    #[must_use]
    pub fn one_hop(self) -> Self {
        Self(add(self.0, !0x0100_u16.to_be()))
    }

    /// Returns the checksum after the change: `HC' = ~(~HC + ~m + m')` (RFC 1624 section 3, equation 3).
    pub fn apply(self, checksum: u16) -> u16 {
        u16::from_be(self.apply_in_memory(checksum.to_be()))
    }

    /// The same for a checksum as it lies in memory.
    #[inline]
    pub fn apply_in_memory(self, checksum: u16) -> u16 {
        !add(!checksum, self.0)
    }
}

/// Returns the Internet checksum of `bytes` (RFC 1071), going on from the one's complement sum `start`.
pub fn checksum(start: u16, bytes: &[u8]) -> u16 {
    !sum(start, bytes)
}

/// Returns the one's complement sum of `bytes` and `start`; an odd last byte is padded with zero.
pub fn sum(start: u16, bytes: &[u8]) -> u16 {
    let mut total = u64::from(start);
    let mut words = bytes.chunks_exact(2);
    for word in &mut words {
        total += u64::from(u16::from_be_bytes([word[0], word[1]]));
    }
    if let [last] = words.remainder() {
        total += u64::from(u16::from_be_bytes([*last, 0]));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    (total & 0xffff) as u16
}

/// Returns the one's complement sum of two words.
fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rfc_1624_example_gives_zero_not_minus_zero() {
        // RFC 1624 section 4: HC 0xDD2F, m 0x5555, m' 0x3285 gives 0x0000.
        assert_eq!(ChecksumDelta::default().replace(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    proptest! {
        #[test]
        fn updated_equals_recomputed(mut words in prop::collection::vec(1u16.., 4..20), new in any::<u16>(), at in 0usize..4) {
            let bytes = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>();
            let before = checksum(0, &bytes(&words));
            let delta = ChecksumDelta::default().replace(words[at], new);
            words[at] = new;
            let after = checksum(0, &bytes(&words));
            prop_assert_eq!(delta.apply(before), after);
            prop_assert_eq!(delta.inverse().apply(after), before);
        }
    }
}
