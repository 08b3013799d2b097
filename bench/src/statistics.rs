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

/// Writes a number with a comma between thousands.
pub(crate) fn group_digits(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
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

    #[test]
    fn thousands_are_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1024, "1,024"), (4_128_768, "4,128,768")] {
            assert_eq!(group_digits(number), text);
        }
    }
}
