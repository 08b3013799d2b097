//! Lists and watches objects of one kind, for as long as it is held.
//!
//! kube's watcher lists in chunks, watches from there, and lists again when the API has forgotten where it was (410).
//! Around it: how long to wait after an error, what the error means, and when to start anew.

use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, DefaultBackoff, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::collection::Collection;
use super::connection::{Connection, State};
use super::trouble::{Cause, Trouble, Verb, status_code};
use super::view::Kind;

/// How often a kind that the cluster does not have is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// A kind counts as not installed once it was looked for in vain for so long: an API server that has just started does
/// not serve custom resources yet, and answers 404.
const MISSING_AFTER: Duration = Duration::from_secs(10);
const LIST_CHUNK: u32 = 500;

/// Objects of one kind, and how they are followed.
#[derive(Clone, Debug)]
pub struct Progress<T> {
    /// The objects.
    pub collection: Collection<T>,
    /// What keeps them from being followed; none when nothing does.
    pub trouble: Option<Trouble>,
    /// Whether the cluster has this kind, as far as is known.
    pub is_installed: bool,
}

/// Objects of one kind, followed until it is dropped.
#[derive(Debug)]
pub struct Watch<T> {
    progress: watch::Receiver<Progress<T>>,
    task: JoinHandle<()>,
}

/// What is watched.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Kind of the objects.
    pub kind: Kind,
    /// The namespace that they are in; none for all.
    pub namespace: Option<String>,
}

impl<T: PartialEq + Send + Sync + 'static> Watch<T> {
    /// Starts to follow a subject; `api` makes the API of it, `read` takes from each object what is kept.
    ///
    /// `changes` is notified whenever there is progress.
    pub fn start<K>(
        subject: Subject,
        connection: &Connection,
        api: impl FnOnce(Client) -> Api<K>,
        read: fn(&K) -> T,
        changes: Arc<Notify>,
    ) -> Self
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let (sender, progress) =
            watch::channel(Progress { collection: Collection::default(), trouble: None, is_installed: true });
        let recorder = Recorder { progress: sender, changes };
        let observer = recorder.clone();
        let client = connection.client_with(move |uri, status| {
            // A watch without events tells nothing through the stream, so its answer ends the trouble.
            if status.is_success() && uri.query().is_some_and(|query| query.contains("watch=true")) {
                observer.record(|progress| progress.trouble.take().is_some());
            }
        });
        let follower = Follower {
            subject,
            api: api(client),
            read,
            recorder,
            connection: connection.subscribe(),
            backoff: DefaultBackoff::default(),
            missing_since: None,
        };
        Self { progress, task: tokio::spawn(follower.run()) }
    }

    /// Returns whether there was progress since [`Self::progress`] was last asked for.
    pub fn is_changed(&self) -> bool {
        self.progress.has_changed().unwrap_or(false)
    }

    /// Returns the objects, and how they are followed. Progress stops while the answer is held.
    pub fn progress(&mut self) -> watch::Ref<'_, Progress<T>> {
        self.progress.borrow_and_update()
    }

    /// Returns the same as [`Self::progress`], which stays to be asked for.
    pub fn peek(&self) -> watch::Ref<'_, Progress<T>> {
        self.progress.borrow()
    }
}

impl<T> Drop for Watch<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Writes down progress, and tells of it.
struct Recorder<T> {
    progress: watch::Sender<Progress<T>>,
    changes: Arc<Notify>,
}

impl<T> Clone for Recorder<T> {
    fn clone(&self) -> Self {
        Self { progress: self.progress.clone(), changes: self.changes.clone() }
    }
}

impl<T> Recorder<T> {
    fn record(&self, change: impl FnOnce(&mut Progress<T>) -> bool) {
        if self.progress.send_if_modified(change) {
            self.changes.notify_one();
        }
    }
}

struct Follower<K, T> {
    subject: Subject,
    api: Api<K>,
    read: fn(&K) -> T,
    recorder: Recorder<T>,
    connection: watch::Receiver<State>,
    backoff: DefaultBackoff,
    missing_since: Option<std::time::Instant>,
}

/// How following goes on after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resume {
    /// The watcher goes on by itself.
    Here,
    /// With a list.
    Anew,
}

/// What an error means.
struct Stumble {
    trouble: Option<Trouble>,
    resume: Resume,
    is_missing: bool,
}

impl<K, T> Follower<K, T>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    T: PartialEq + Send + Sync + 'static,
{
    async fn run(mut self) {
        while self.connection.wait_for(|state| state.clients > 0).await.is_ok() {
            self.follow().await;
        }
    }

    /// Lists and watches until there is a reason to start anew.
    async fn follow(&mut self) {
        let starts = self.connection.borrow_and_update().starts;
        let mut events = pin!(watcher(self.api.clone(), configuration()));
        loop {
            let confirm_at = self.recorder.progress.borrow().collection.confirm_at();
            let event = tokio::select! {
                event = events.next() => event,
                () = wait_until(confirm_at) => return,
                _ = self.connection.wait_for(|state| state.starts != starts) => return,
            };
            match event {
                Some(Ok(event)) => self.take_in(event),
                Some(Err(error)) => {
                    let stumble = self.interpret(&error);
                    let resume = stumble.resume;
                    let delay = self.note(stumble);
                    if self.rest(delay, starts).await == Resume::Anew || resume == Resume::Anew {
                        return;
                    }
                }
                None => return,
            }
        }
    }

    fn take_in(&mut self, event: Event<K>) {
        let now = Instant::now().into_std();
        let read = |object: K| (object.name_any(), (self.read)(&object));
        let is_complete = matches!(event, Event::InitDone);
        if is_complete {
            self.missing_since = None;
        }
        let event = match event {
            Event::Init => Event::Init,
            Event::InitApply(object) => Event::InitApply(read(object)),
            Event::InitDone => Event::InitDone,
            Event::Apply(object) => Event::Apply(read(object)),
            Event::Delete(object) => Event::Delete(read(object)),
        };
        self.recorder.record(|progress| {
            if is_complete {
                progress.trouble = None;
                progress.is_installed = true;
            }
            progress.collection.apply(event, now) | is_complete // a list may change no object, and yet raise doubts
        });
    }

    fn interpret(&self, error: &watcher::Error) -> Stumble {
        let now = Instant::now().into_std();
        let trouble = |verb, error| {
            Trouble::new(self.subject.kind, self.subject.namespace.as_deref(), verb, error, now)
        };
        let (trouble, resume) = match error {
            watcher::Error::InitialListFailed(error) if status_code(error) == Some(410) => {
                (None, Resume::Here)
            }
            watcher::Error::InitialListFailed(error) => (Some(trouble(Verb::List, error)), Resume::Here),
            // The watcher would ask for the same version for ever.
            watcher::Error::WatchStartFailed(error) if status_code(error) == Some(410) => {
                (None, Resume::Anew)
            }
            watcher::Error::WatchStartFailed(error) => {
                let trouble = trouble(Verb::Watch, error);
                let resume = match trouble.cause {
                    Cause::NotInstalled => Resume::Anew,
                    Cause::Unreachable | Cause::Unauthorized | Cause::Forbidden | Cause::Failing => {
                        Resume::Here
                    }
                };
                (Some(trouble), resume)
            }
            watcher::Error::WatchError(status) if status.code == 410 => (None, Resume::Here),
            watcher::Error::WatchError(status) => {
                (Some(trouble(Verb::Watch, &kube::Error::Api(status.clone()))), Resume::Anew)
            }
            // An object that cannot be read would be missed, unless a list says that it is there.
            watcher::Error::WatchFailed(error @ kube::Error::SerdeError(_)) => {
                (Some(trouble(Verb::Watch, error)), Resume::Anew)
            }
            watcher::Error::WatchFailed(_) => (None, Resume::Here), // trouble only if it cannot be begun again
            watcher::Error::NoResourceVersion => {
                let message = format!("{} have no metadata.resourceVersion", self.subject.kind.resource());
                (Some(Trouble { cause: Cause::Failing, message, since: now }), Resume::Anew)
            }
        };
        let is_missing = trouble.as_ref().is_some_and(|trouble| trouble.cause == Cause::NotInstalled)
            && self.subject.kind == Kind::ExternalRoute;
        Stumble { trouble, resume, is_missing }
    }

    /// Writes down what an error means, and returns how long to wait.
    fn note(&mut self, stumble: Stumble) -> Duration {
        let delay = self.backoff.next().unwrap_or(LOOK_AGAIN) / 2; // kube's own is twice what jitter may add to
        if !stumble.is_missing {
            if let Some(trouble) = stumble.trouble {
                self.recorder.record(|progress| begin(&mut progress.trouble, trouble));
            }
            return delay;
        }
        let now = Instant::now().into_std();
        let missing_since = *self.missing_since.get_or_insert(now);
        let is_known = self.recorder.progress.borrow().collection.objects().is_some();
        if !is_known && now.saturating_duration_since(missing_since) < MISSING_AFTER {
            return MISSING_AFTER;
        }
        let mut confirm_at = None;
        self.recorder.record(|progress| {
            let is_news = progress.is_installed | progress.trouble.take().is_some();
            progress.is_installed = false;
            let is_changed = progress.collection.apply_empty_list(now);
            confirm_at = progress.collection.confirm_at();
            is_news | is_changed
        });
        confirm_at.map_or(LOOK_AGAIN, |at| at.saturating_duration_since(now))
    }

    /// Waits, but no longer than until a new client or a new start makes another try worthwhile.
    async fn rest(&mut self, delay: Duration, starts: u64) -> Resume {
        let clients = self.connection.borrow_and_update().clients;
        let changed = self.connection.wait_for(|state| state.starts != starts || state.clients != clients);
        let Ok(Ok(state)) = timeout(delay, changed).await else { return Resume::Here };
        self.backoff.reset();
        if state.starts == starts { Resume::Here } else { Resume::Anew }
    }
}

/// Takes over newer trouble and returns whether it is of another cause: a message may differ at each try.
fn begin(known: &mut Option<Trouble>, trouble: Trouble) -> bool {
    match known {
        Some(known) if known.cause == trouble.cause => {
            known.message = trouble.message;
            false
        }
        Some(_) | None => {
            *known = Some(trouble);
            true
        }
    }
}

fn configuration() -> watcher::Config {
    watcher::Config::default().page_size(LIST_CHUNK)
}

async fn wait_until(time: Option<std::time::Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
