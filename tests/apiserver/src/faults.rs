//! Switches that make the server fail as real ones do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::error::ApiError;
use crate::requests::{Requests, Verb};

/// The switches of a server; each works at once, on requests that come and, where it says so, on those that are open.
#[derive(Debug)]
pub struct Faults {
    switches: Mutex<Switches>,
    refusing: watch::Sender<bool>,
    broken: watch::Sender<u64>,
    hanging: watch::Sender<bool>,
    dropped: watch::Sender<u64>,
    expired: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Switches {
    token: Option<String>,
    denied: BTreeSet<(Verb, String)>,
    throttled: u32,
    retry_after: u32,
    failing: u32,
    delay: Duration,
    chunk_delay: Duration,
    broken_lists: u32,
    broken_after: u32,
    lacking: BTreeMap<String, Lack>,
    refuses_expired_watches: bool,
    requests: Requests,
}

#[derive(Debug)]
struct Lack {
    names: BTreeSet<String>,
    lists: u32,
}

/// What open requests follow.
#[derive(Debug)]
pub(crate) struct Signals {
    pub(crate) refusing: watch::Receiver<bool>,
    pub(crate) broken: watch::Receiver<u64>,
    pub(crate) hanging: watch::Receiver<bool>,
    pub(crate) dropped: watch::Receiver<u64>,
    pub(crate) expired: watch::Receiver<u64>,
}

impl Faults {
    pub(crate) fn new(token: Option<String>) -> Self {
        Self {
            switches: Mutex::new(Switches { token, ..Switches::default() }),
            refusing: watch::Sender::new(false),
            broken: watch::Sender::new(0),
            hanging: watch::Sender::new(false),
            dropped: watch::Sender::new(0),
            expired: watch::Sender::new(0),
        }
    }

    /// Stops listening and breaks every connection, as a server that died.
    pub fn refuse_connections(&self) {
        self.refusing.send_replace(true);
        self.broken.send_modify(|times| *times += 1);
    }

    /// Listens again, on the same port.
    pub fn accept_connections(&self) {
        self.refusing.send_replace(false);
    }

    /// Breaks every open watch; other requests never notice.
    pub fn drop_watches(&self) {
        self.dropped.send_modify(|times| *times += 1);
    }

    /// Ends every open watch with an `ERROR` event that holds a 410 `Status`.
    pub fn expire_watches(&self) {
        self.expired.send_modify(|times| *times += 1);
    }

    /// Answers HTTP 410 to a watch that starts at a forgotten version, as the API allows.
    ///
    /// Otherwise such a watch begins, and ends with an `ERROR` event at once: so do real servers.
    pub fn refuse_expired_watches(&self, refuses: bool) {
        self.lock().refuses_expired_watches = refuses;
    }

    /// Accepts and never answers; open watches fall silent. With `false`, answers what has piled up.
    pub fn hang(&self, hangs: bool) {
        self.hanging.send_replace(hangs);
    }

    /// Answers 401 to every token but this one.
    pub fn rotate_token(&self, token: &str) {
        self.lock().token = Some(token.to_owned());
    }

    /// Answers 403 to a verb on a resource, such as `egresstenants.spillway.dev/status`.
    pub fn deny(&self, verb: Verb, resource: &str) {
        self.lock().denied.insert((verb, resource.to_owned()));
    }

    /// Takes a denial back.
    pub fn allow(&self, verb: Verb, resource: &str) {
        self.lock().denied.remove(&(verb, resource.to_owned()));
    }

    /// Answers 429 to the next requests, asking to come again after some seconds.
    pub fn throttle(&self, requests: u32, retry_after_seconds: u32) {
        let mut switches = self.lock();
        (switches.throttled, switches.retry_after) = (requests, retry_after_seconds);
    }

    /// Answers 500 to the next requests.
    pub fn fail(&self, requests: u32) {
        self.lock().failing = requests;
    }

    /// Waits before every answer.
    pub fn delay_answers(&self, delay: Duration) {
        self.lock().delay = delay;
    }

    /// Waits before every chunk of a list but the first.
    pub fn delay_chunks(&self, delay: Duration) {
        self.lock().chunk_delay = delay;
    }

    /// Breaks the connection instead of sending a further chunk, once a list has had some; for the next lists.
    pub fn break_lists(&self, after_chunks: u32, lists: u32) {
        let mut switches = self.lock();
        (switches.broken_after, switches.broken_lists) = (after_chunks, lists);
    }

    /// Leaves objects out of the next lists of a resource, as a stale cache does.
    pub fn omit_from_lists(&self, resource: &str, names: &[&str], lists: u32) {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.lock().lacking.insert(resource.to_owned(), Lack { names, lists });
    }

    /// Takes every fault back; the token and the counts stay.
    pub fn clear(&self) {
        let mut switches = self.lock();
        let (token, requests) = (switches.token.take(), std::mem::take(&mut switches.requests));
        *switches = Switches { token, requests, ..Switches::default() };
        drop(switches);
        self.hang(false);
        self.accept_connections();
    }

    /// Returns how often each verb was asked of each resource, refused requests included.
    #[must_use]
    pub fn requests(&self) -> Requests {
        self.lock().requests.clone()
    }

    /// Counts from zero again.
    pub fn forget_requests(&self) {
        self.lock().requests = Requests::default();
    }

    pub(crate) fn token(&self) -> Option<String> {
        self.lock().token.clone()
    }

    pub(crate) fn signals(&self) -> Signals {
        Signals {
            refusing: self.refusing.subscribe(),
            broken: self.broken.subscribe(),
            hanging: self.hanging.subscribe(),
            dropped: self.dropped.subscribe(),
            expired: self.expired.subscribe(),
        }
    }

    pub(crate) fn count(&self, verb: Verb, resource: &str) {
        self.lock().requests.add(verb, resource);
    }

    pub(crate) fn refuses_expired_watches(&self) -> bool {
        self.lock().refuses_expired_watches
    }

    pub(crate) fn delay(&self) -> Duration {
        self.lock().delay
    }

    pub(crate) fn chunk_delay(&self) -> Duration {
        self.lock().chunk_delay
    }

    /// Returns the refusal that a request meets before anything looks at what it asks for.
    pub(crate) fn refusal(&self, token: Option<&str>) -> Option<ApiError> {
        let mut switches = self.lock();
        if switches.throttled > 0 {
            switches.throttled -= 1;
            return Some(ApiError::too_many_requests(switches.retry_after));
        }
        if switches.failing > 0 {
            switches.failing -= 1;
            return Some(ApiError::internal("Internal error occurred: a fault was asked for"));
        }
        let known = switches.token.is_none() || switches.token.as_deref() == token;
        (!known).then(ApiError::unauthorized)
    }

    pub(crate) fn is_denied(&self, verb: Verb, resource: &str) -> bool {
        self.lock().denied.contains(&(verb, resource.to_owned()))
    }

    /// Returns whether a list ends here, in the face of its client, having had so many chunks.
    pub(crate) fn breaks_list(&self, chunks: u32) -> bool {
        let mut switches = self.lock();
        let breaks = switches.broken_lists > 0 && chunks >= switches.broken_after;
        switches.broken_lists -= u32::from(breaks);
        breaks
    }

    /// Returns whether a list that begins lacks objects.
    pub(crate) fn begins_lacking(&self, resource: &str) -> bool {
        let mut switches = self.lock();
        let Some(lack) = switches.lacking.get_mut(resource).filter(|lack| lack.lists > 0) else {
            return false;
        };
        lack.lists -= 1;
        true
    }

    /// Returns the names that lists of a resource lack.
    pub(crate) fn lacking(&self, resource: &str) -> BTreeSet<String> {
        self.lock().lacking.get(resource).map(|lack| lack.names.clone()).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Switches> {
        self.switches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
