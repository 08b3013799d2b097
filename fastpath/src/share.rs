//! How many of the places that tenants share one of them may take.

/// Tells whether somebody who has `held` of `capacity` places may take one of the `free` ones: while it has less than
/// twice as many as are free. An eighth does not count as free, but to those who have none yet. So whoever comes later
/// finds a place, and who is alone may have seven of twelve (see `conntrack`'s `share`, which has the same rule).
pub(crate) fn may_take(held: usize, free: usize, capacity: usize) -> bool {
    free > 0 && (held == 0 || held < 2 * free.saturating_sub(capacity / 8))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn who_has_no_place_finds_one_whatever_others_take(
            capacity in 16usize..600,
            takers in prop::collection::vec(0usize..5, 0..3000),
        ) {
            let mut held = [0; 5];
            for taker in takers {
                let free = capacity - held.iter().sum::<usize>();
                if may_take(held[taker], free, capacity) {
                    held[taker] += 1;
                }
            }
            // Five take what they can; an eighth of 16 places is for two more.
            let free = capacity - held.iter().sum::<usize>();
            prop_assert!(!held.contains(&0) || may_take(0, free, capacity), "{held:?}");
        }
    }

    #[test]
    fn who_is_alone_has_seven_of_twelve_places() {
        let mut held = 0;
        while may_take(held, 240 - held, 240) {
            held += 1;
        }
        assert_eq!(held, 140);
    }
}
