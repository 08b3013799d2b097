//! Opens and closes taps.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use super::{MOST_TAPS, Tap, TapFilter, TapLimits};
use crate::mailbox::Mailbox;

/// Opens taps at all workers, from any thread.
#[derive(Clone, Debug)]
pub struct TapBoard {
    pub(crate) mailboxes: Vec<Arc<Mailbox>>,
    pub(crate) open: Arc<Mutex<Vec<Arc<Tap>>>>,
}

/// As many taps are open as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{MOST_TAPS} captures and traces run already; end one, or wait for it")]
pub struct TooManyTaps;

/// A tap that is open until this is dropped.
#[derive(Debug)]
pub struct OpenTap {
    tap: Arc<Tap>,
    board: TapBoard,
}

impl TapBoard {
    /// Opens a tap.
    ///
    /// # Errors
    /// When as many are open as may be.
    pub fn open(&self, filter: TapFilter, limits: TapLimits) -> Result<OpenTap, TooManyTaps> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= MOST_TAPS {
            return Err(TooManyTaps);
        }
        let tap = Arc::new(Tap::new(filter, limits));
        open.push(Arc::clone(&tap));
        self.publish(&open);
        Ok(OpenTap { tap, board: self.clone() })
    }

    fn publish(&self, open: &[Arc<Tap>]) {
        let taps: Arc<[Arc<Tap>]> = open.into();
        self.mailboxes.iter().for_each(|mailbox| mailbox.put_taps(Arc::clone(&taps)));
    }
}

impl Deref for OpenTap {
    type Target = Tap;

    fn deref(&self) -> &Tap {
        &self.tap
    }
}

impl Drop for OpenTap {
    fn drop(&mut self) {
        let mut open = self.board.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|tap| !Arc::ptr_eq(tap, &self.tap));
        self.board.publish(&open);
    }
}
