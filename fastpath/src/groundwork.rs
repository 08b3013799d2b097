//! What a start does about the XDP programs before anything else, because nobody forwards until it is done.

use std::error::Error;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread::{self, JoinHandle};

use crate::dataplane::DataPlaneOptions;
use crate::layout::Layout;
use crate::snapshot::{Side, Snapshot};
use crate::steer::{Loader, SteerError, Steering};

/// What it takes to load programs, if they are to be loaded; it is made on a thread of its own meanwhile.
#[derive(Debug)]
pub struct Groundwork {
    loader: Option<JoinHandle<Loader>>,
}

/// The programs of both sides, and what loaded them, which takes a while to free: it has the kernel's types, each in memory
/// of its own.
pub(crate) type Steered = (Option<Loader>, Result<[Steering; 2], SteerError>);

impl Groundwork {
    /// Begins to read the kernel's types, which takes tens of milliseconds, unless the programs of an earlier process are there
    /// to be taken over.
    pub fn begin(pin_dir: &Path) -> Self {
        let may_inherit = Side::BOTH.iter().all(|side| Steering::may_inherit(*side, pin_dir));
        Self { loader: (!may_inherit).then(|| thread::spawn(Loader::default)) }
    }

    /// Takes over or loads the programs of both sides. Those that are loaded are not attached yet.
    pub(crate) fn steer(self, layout: &Layout, options: &DataPlaneOptions, first: &Snapshot) -> Steered {
        let mut loading = self.loader;
        let mut loader = None;
        let mut steer = |side| {
            let link = layout.link(side);
            let pinned =
                Steering::inherit(side, link.queues, link.index, options.attach, &options.pin_dir, first);
            match pinned {
                Ok(Some(steering)) => return Ok(steering),
                Ok(None) => {}
                Err(error) => {
                    let (error, side): (&dyn Error, _) = (&error, side.name());
                    tracing::warn!(error, side, "the pinned XDP program is replaced instead of taken over");
                }
            }
            let loader = loader.get_or_insert_with(|| match loading.take() {
                Some(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                None => Loader::default(),
            });
            Steering::load_with(loader, side, link.queues, first)
        };
        let steering = steer(Side::Inside).and_then(|inside| Ok([inside, steer(Side::Outside)?]));
        (loader, steering)
    }
}
