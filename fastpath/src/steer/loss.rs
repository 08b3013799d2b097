//! What somebody else may take from an interface.

/// What somebody else took from an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// The XDP program is detached, or another runs in its place.
    pub program: bool,
    /// So is the second line.
    pub guard: bool,
    /// Pins are gone: what is attached would go with the process.
    pub pins: bool,
}

impl Loss {
    /// Tells whether anything is lost.
    pub fn any(self) -> bool {
        self.program || self.guard || self.pins
    }
}
