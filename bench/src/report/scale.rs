use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// Where values are on an axis. Ends and ticks of a logarithmic one are kept as logarithms.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scale {
    is_logarithmic: bool,
    low: f64,
    high: f64,
    ticks: Vec<f64>,
    /// What stands at the ticks instead of numbers.
    names: Vec<String>,
}

/// Lines across a chart, about.
const TICKS: f64 = 6.0;

impl Scale {
    /// Makes an axis that has room for these values.
    pub(super) fn fit(values: impl Iterator<Item = f64>, is_logarithmic: bool) -> Self {
        let values = values.filter(|value| value.is_finite() && (*value > 0.0 || !is_logarithmic));
        let (low, high) = values
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low > high { (1.0, 1.0) } else { (low, high) };
        if is_logarithmic {
            let (low, high) = (low.log10().floor(), high.log10().ceil());
            Self::spread(low, high.max(low + 1.0), true)
        } else {
            Self::spread(low, if high > low { high } else { low + 1.0 }, false)
        }
    }

    /// Makes an axis of rows, the first one on top; the lowest is from 0 to 1.
    pub(super) fn rows(names: impl DoubleEndedIterator<Item = String>) -> Self {
        let names: Vec<String> = names.rev().collect();
        let ticks: Vec<f64> = names.iter().zip(0_u32..).map(|(_, row)| f64::from(row) + 0.5).collect();
        let high = ticks.last().map_or(1.0, |last| last + 0.5);
        Self { is_logarithmic: false, low: 0.0, high, ticks, names }
    }

    /// Lets a linear axis begin at zero, with a little room at its end.
    pub(super) fn starting_at_zero(self) -> Self {
        if self.is_logarithmic { self } else { Self::spread(self.low.min(0.0), self.high * 1.05, false) }
    }

    /// Leaves room behind the greatest value, for a word.
    pub(super) fn with_room(mut self) -> Self {
        self.high += 0.08 * (self.high - self.low);
        self
    }

    /// Returns the value at the axis' begin.
    pub(super) fn start(&self) -> f64 {
        self.value(self.low)
    }

    fn spread(low: f64, high: f64, is_logarithmic: bool) -> Self {
        let step =
            if is_logarithmic { ((high - low) / TICKS).ceil() } else { round_up((high - low) / TICKS) };
        let first = (low / step).ceil() * step;
        let ticks = std::iter::successors(Some(first), |tick| Some(tick + step));
        let ticks = ticks.take_while(|tick| *tick <= high + step * 1e-6).collect();
        Self { is_logarithmic, low, high, ticks, names: Vec::new() }
    }

    fn place(&self, value: f64) -> f64 {
        if self.is_logarithmic { value.log10() } else { value }
    }

    fn value(&self, place: f64) -> f64 {
        if self.is_logarithmic { 10_f64.powf(place) } else { place }
    }
}

impl Ranged for Scale {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    #[expect(
        clippy::cast_possible_truncation,
        reason = "a page has few pixels, and casts of floats saturate"
    )]
    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (self.place(*value) - self.low) / (self.high - self.low);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // There are no lines between the ticks.
        if hint.weight().allow_light_points() {
            return Vec::new();
        }
        self.ticks.iter().map(|tick| self.value(*tick)).collect()
    }

    fn range(&self) -> Range<f64> {
        self.value(self.low)..self.value(self.high)
    }
}

impl ValueFormatter<f64> for Scale {
    fn format_ext(&self, value: &f64) -> String {
        let tick = self.ticks.iter().position(|tick| (tick - self.place(*value)).abs() < 1e-6);
        let name = tick.and_then(|tick| self.names.get(tick));
        name.map_or_else(|| short(*value), String::clone)
    }
}

/// Returns the next of 1, 2 and 5 times a power of ten.
fn round_up(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= step * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

/// Writes a number with three digits at most.
pub(super) fn short(value: f64) -> String {
    let size = value.abs();
    let (value, unit) = match size {
        _ if size >= 1e9 => (value / 1e9, " G"),
        _ if size >= 1e6 => (value / 1e6, " M"),
        _ if size >= 1e4 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 0.1 || size == 0.0 => 2,
        _ => 4,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (0.75, "0.75"),
            (0.0125, "0.0125"),
            (30.0, "30"),
            (1024.0, "1024"),
            (65_536.0, "65.5 k"),
            (1e6, "1 M"),
            (4_128_768.0, "4.13 M"),
        ];
        for (value, expected) in cases {
            assert_eq!(short(value), expected, "{value}");
        }
    }

    #[test]
    fn a_logarithmic_axis_goes_by_decades() {
        let scale = Scale::fit([1.0, 1e6].into_iter(), true);
        assert_eq!(scale.ticks, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(scale.map(&1000.0, (0, 600)), 300);
        assert_eq!(scale.format_ext(&1e6), "1 M");
    }

    #[test]
    fn a_linear_axis_has_round_ticks() {
        let scale = Scale::fit([0.31, 0.57].into_iter(), false).starting_at_zero();
        assert_eq!(scale.map(&0.0, (0, 100)), 0);
        assert!(scale.map(&0.57, (0, 100)) < 100);
        let labels: Vec<String> = scale.ticks.iter().map(|tick| scale.format_ext(tick)).collect();
        assert_eq!(labels, ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]);
    }

    #[test]
    fn an_axis_without_values_is_still_one() {
        for is_logarithmic in [false, true] {
            let scale = Scale::fit([f64::NAN].into_iter(), is_logarithmic).starting_at_zero();
            assert!(scale.low < scale.high, "{scale:?}");
            assert!(!scale.ticks.is_empty(), "{scale:?}");
        }
    }

    #[test]
    fn rows_have_their_names_in_the_middle_from_the_top() {
        let scale = Scale::rows(["first", "second"].into_iter().map(str::to_owned));
        assert_eq!(scale.high, 2.0);
        assert_eq!(
            (scale.format_ext(&1.5), scale.format_ext(&0.5)),
            ("first".to_owned(), "second".to_owned())
        );
    }
}
