//! Asks the daemon for its status again and again, on a thread of its own, so that keys never wait for it.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::api::types::Status;
use crate::client::BlockingClient;

/// An answer, or why there is none, and when it came.
pub(super) type Answer = (Result<Status, String>, Instant);

/// Answers of the daemon, until this is dropped.
#[derive(Debug)]
pub(super) struct Asking {
    answers: Receiver<Answer>,
    _end: Sender<()>,
}

impl Asking {
    /// Begins to ask the daemon behind a socket. One that is away is asked again: it may come back.
    ///
    /// # Errors
    /// When the kernel gives no descriptors for it.
    pub(super) fn start(socket: &Path, interval: Duration) -> std::io::Result<Self> {
        let client = BlockingClient::new(socket)?;
        let ((answers_in, answers), (end, ended)) = (channel(), channel());
        thread::Builder::new().name("asking".to_owned()).spawn(move || {
            let mut due = Instant::now();
            loop {
                let answer = client.get("/v1/status").map_err(|error| error.to_string());
                if answers_in.send((answer, Instant::now())).is_err() {
                    return;
                }
                due = (due + interval).max(Instant::now());
                match ended.recv_timeout(due.saturating_duration_since(Instant::now())) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })?;
        Ok(Self { answers, _end: end })
    }

    /// Waits for the next answer; none when nobody asks any more.
    pub(super) fn next(&self) -> Option<Answer> {
        self.answers.recv().ok()
    }

    /// Returns an answer that has come.
    pub(super) fn try_next(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }
}
