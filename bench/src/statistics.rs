use serde::Serialize;

/// The middle and the ends of a few repeated measurements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) minimum: f64,
    pub(crate) maximum: f64,
}

impl Summary {
    /// Sums up values in any order; none at all give zeros.
    pub(crate) fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (Some(&minimum), Some(&maximum)) = (sorted.first(), sorted.last()) else {
            return Self { median: 0.0, minimum: 0.0, maximum: 0.0 };
        };
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Self { median, minimum, maximum }
    }

    /// Writes `median (minimum to maximum)`.
    pub(crate) fn show(&self) -> String {
        format!("{:.2} ({:.2} to {:.2})", self.median, self.minimum, self.maximum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        let cases: [(&[f64], f64, f64, f64); 4] = [
            (&[], 0.0, 0.0, 0.0),
            (&[2.0], 2.0, 2.0, 2.0),
            (&[3.0, 1.0, 2.0], 2.0, 1.0, 3.0),
            (&[4.0, 1.0, 2.0, 3.0], 2.5, 1.0, 4.0),
        ];
        for (values, median, minimum, maximum) in cases {
            assert_eq!(Summary::of(values), Summary { median, minimum, maximum }, "{values:?}");
        }
    }
}
