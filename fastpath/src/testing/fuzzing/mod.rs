//! What the fuzz targets run. Plain tests run it too, on the inputs that the targets have found worth keeping.
//!
//! - `choice`: choices read from any bytes
//! - `frames`: frames written, answered and mended byte by byte
//! - `plan`: what happens in one run of the pipeline
//! - `play`: plays a plan
//! - `laws`: what holds of every frame that is sent
//! - `offsets`: what holds of every frame that is parsed

mod choice;
pub(crate) mod frames;
mod laws;
mod offsets;
mod plan;
mod play;
#[cfg(test)]
mod replay;

pub use offsets::Input;
pub use plan::Plan;
pub use play::Tally;
