use clap::ValueEnum;
use serde::Serialize;

/// Bytes that a link adds to a frame in memory: the check sequence.
const CHECK_BYTES: u16 = 4;

/// Frames after which the sizes start again, as many as in `bpf/generate.bpf.c`.
const SIZES: usize = 12;

/// How long the frames are that are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
pub(crate) enum Frames {
    /// All of 64 bytes
    #[value(name = "64")]
    #[serde(rename = "64")]
    Small,
    /// Seven of 64, four of 570 and one of 1,518 bytes
    #[serde(rename = "imix")]
    Imix,
}

impl Frames {
    /// Returns sizes on a wire, check sequence included, in the order in which frames are sent (RFC 6985 calls that a
    /// genome): always the same, and mixed as well as twelve frames can be.
    fn on_wire(self) -> [u16; SIZES] {
        match self {
            Self::Small => [64; SIZES],
            Self::Imix => [64, 570, 64, 64, 570, 64, 1518, 64, 570, 64, 570, 64],
        }
    }

    /// Returns the sizes in memory, in order.
    pub(crate) fn sizes(self) -> [u16; SIZES] {
        self.on_wire().map(|bytes| bytes - CHECK_BYTES)
    }

    /// Returns the longest frame in memory.
    pub(crate) fn longest(self) -> usize {
        self.sizes().into_iter().max().map_or(0, usize::from)
    }

    /// Returns the mean size on a wire, in bytes.
    pub(crate) fn mean_bytes(self) -> f64 {
        let total: u32 = self.on_wire().into_iter().map(u32::from).sum();
        f64::from(total) / 12.0
    }

    /// Names the frames for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Small => "64 bytes",
            Self::Imix => "IMIX",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imix_is_seven_four_one() {
        let sizes = Frames::Imix.on_wire();
        let count = |bytes| sizes.iter().filter(|size| **size == bytes).count();
        assert_eq!([count(64), count(570), count(1518)], [7, 4, 1]);
        assert!((Frames::Imix.mean_bytes() - 353.83).abs() < 0.01);
        assert_eq!(Frames::Imix.longest(), 1514);
    }

    #[test]
    fn small_frames_are_all_alike() {
        assert_eq!(Frames::Small.sizes(), [60; SIZES]);
        assert!((Frames::Small.mean_bytes() - 64.0).abs() < 1e-9);
    }
}
