//! Watches (API concepts, "Efficient detection of changes").

use std::sync::Arc;
use std::time::Duration;

use http_body_util::channel::{Channel, Sender};
use hyper::body::Bytes;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};

use super::Server;
use super::answer::Broken;
use super::request::Query;
use crate::cluster::Cluster;
use crate::cluster::resource::Resource;
use crate::cluster::selector::Selector;
use crate::cluster::store::{Change, Key, Object};
use crate::error::ApiError;
use crate::faults::Signals;

/// Events are sent together up to about this size.
const BATCH_BYTES: usize = 64 * 1024;

/// One client's watch.
pub(crate) struct Watch {
    server: Arc<Server>,
    resource: Arc<Resource>,
    selector: Selector,
    partial: bool,
    bookmarks: bool,
    /// The version that the client has seen everything up to.
    seen: u64,
    deadline: Instant,
    sender: Sender<Bytes, Broken>,
    revisions: watch::Receiver<u64>,
    signals: Signals,
}

/// How a watch goes on after it has waited.
enum Next {
    Changes,
    Bookmark,
    Timeout,
    Expired,
    Dropped,
}

impl Watch {
    /// Begins a watch and returns the body that its events come in.
    ///
    /// # Errors
    /// 400 when the query cannot be read; 410 when it starts at a version that is forgotten and a switch says so.
    pub(crate) fn begin(
        server: &Arc<Server>,
        resource: Arc<Resource>,
        selector: Selector,
        partial: bool,
        query: &Query,
    ) -> Result<Channel<Bytes, Broken>, ApiError> {
        let cluster = server.cluster();
        let asked = query.number("resourceVersion")?.filter(|asked| *asked > 0);
        let streamed = query.flag("sendInitialEvents");
        let bookmarks = query.flag("allowWatchBookmarks");
        if streamed && (query.text("resourceVersionMatch") != "NotOlderThan" || !bookmarks) {
            let message =
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan and bookmarks";
            return Err(ApiError::bad_request(message));
        }
        // A version that is forgotten is told by an event, as by real servers, unless a switch asks for a refusal.
        if let Some(asked) = asked.filter(|_| !streamed && server.faults.refuses_expired_watches())
            && cluster.store.changes_since(&resource.id, asked).is_none()
        {
            let current = cluster.store.revision();
            return Err(ApiError::expired(format!("too old resource version: {asked} ({current})")));
        }
        let seconds = query.number("timeoutSeconds")?.filter(|seconds| *seconds > 0).unwrap_or(30 * 60);
        let (sender, channel) = Channel::new(16);
        let watch = Self {
            server: server.clone(),
            resource,
            selector,
            partial,
            bookmarks,
            seen: asked.filter(|_| !streamed).unwrap_or_else(|| cluster.store.revision()),
            deadline: Instant::now() + Duration::from_secs(seconds),
            sender,
            revisions: server.revisions.subscribe(),
            signals: server.faults.signals(),
        };
        let initial = if asked.is_none() || streamed { watch.everything(&cluster) } else { Vec::new() };
        drop(cluster);
        tokio::spawn(watch.run(initial, streamed));
        Ok(channel)
    }

    fn everything(&self, cluster: &Cluster) -> Vec<Arc<Object>> {
        let start =
            Key { namespace: self.selector.namespace.clone().unwrap_or_default(), name: String::new() };
        let objects = cluster.store.range(&self.resource.id, &start).map(|(_, object)| object);
        objects.filter(|object| self.selector.matches(object)).cloned().collect()
    }

    async fn run(mut self, initial: Vec<Arc<Object>>, streamed: bool) {
        if self.follow(initial, streamed).await.is_err() {
            self.sender.abort(Broken);
        }
    }

    async fn follow(&mut self, initial: Vec<Arc<Object>>, streamed: bool) -> Result<(), Gone> {
        let lines = initial.iter().map(|object| self.line("ADDED", object)).collect();
        drop(initial);
        self.send(lines).await?;
        if streamed {
            self.bookmark(true).await?;
        }
        let every = self.server.bookmark_interval;
        let mut ticks = interval_at(Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A client that has gone is noticed when the next event cannot be sent.
        while self.step(&mut ticks).await? {}
        Ok(())
    }

    /// Sends what is new and waits for more; returns whether the watch goes on.
    async fn step(&mut self, ticks: &mut Interval) -> Result<bool, Gone> {
        let (changes, served) = {
            let cluster = self.server.cluster();
            self.revisions.borrow_and_update();
            let changes = cluster.store.changes_since(&self.resource.id, self.seen);
            self.seen = self.seen.max(cluster.store.revision());
            (changes, cluster.registry.by_id(&self.resource.id).is_some())
        };
        let Some(changes) = changes else { return self.expire().await };
        let lines = changes.iter().filter_map(|change| self.event(change)).collect();
        self.send(lines).await?;
        if !served {
            return Ok(false);
        }
        match self.wait(ticks).await {
            Next::Changes => Ok(true),
            Next::Bookmark => self.bookmark(false).await.map(|()| true),
            Next::Timeout => self.bookmark(false).await.map(|()| false),
            Next::Expired => self.expire().await,
            Next::Dropped => Err(Gone),
        }
    }

    async fn wait(&mut self, ticks: &mut Interval) -> Next {
        tokio::select! {
            biased;
            _ = self.signals.dropped.changed() => Next::Dropped,
            _ = self.signals.expired.changed() => Next::Expired,
            changed = self.revisions.changed() => if changed.is_ok() { Next::Changes } else { Next::Dropped },
            () = sleep_until(self.deadline) => Next::Timeout,
            _ = ticks.tick(), if self.bookmarks => Next::Bookmark,
        }
    }

    /// Returns what a change is to this watch: an object that stops being selected is gone for it.
    fn event(&self, change: &Change) -> Option<Bytes> {
        let before = change.before.as_ref().filter(|object| self.selector.matches(object));
        let after = Some(&change.object).filter(|object| !change.removed && self.selector.matches(object));
        match (before, after) {
            (None, Some(object)) => Some(self.line("ADDED", object)),
            (Some(_), Some(object)) => Some(self.line("MODIFIED", object)),
            (Some(_), None) if change.removed => Some(self.line("DELETED", &change.object)),
            (Some(before), None) => {
                Some(self.line("DELETED", &Object::new(before.value.clone(), change.revision)))
            }
            (None, None) => None,
        }
    }

    fn line(&self, kind: &str, object: &Object) -> Bytes {
        let bytes = if self.partial { object.partial() } else { object.full() };
        [b"{\"type\":\"", kind.as_bytes(), b"\",\"object\":", bytes.as_ref(), b"}\n"].concat().into()
    }

    async fn send(&mut self, lines: Vec<Bytes>) -> Result<(), Gone> {
        let mut batch = Vec::new();
        for line in lines {
            batch.extend_from_slice(&line);
            if batch.len() >= BATCH_BYTES {
                self.send_bytes(std::mem::take(&mut batch).into()).await?;
            }
        }
        if batch.is_empty() { Ok(()) } else { self.send_bytes(batch.into()).await }
    }

    async fn send_bytes(&mut self, bytes: Bytes) -> Result<(), Gone> {
        tokio::select! {
            biased;
            _ = self.signals.dropped.changed() => return Err(Gone),
            hanging = self.signals.hanging.wait_for(|hanging| !hanging) => drop(hanging),
        }
        tokio::select! {
            biased;
            _ = self.signals.dropped.changed() => Err(Gone),
            sent = self.sender.send_data(bytes) => sent.map_err(|_| Gone),
        }
    }

    async fn bookmark(&mut self, ends_initial: bool) -> Result<(), Gone> {
        if !self.bookmarks {
            return Ok(());
        }
        let (version, kind) = if self.partial {
            ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadata")
        } else {
            (self.resource.api_version(), self.resource.kind.as_str())
        };
        let mut metadata = json!({"resourceVersion": self.seen.to_string(), "creationTimestamp": null});
        if ends_initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = json!({"apiVersion": version, "kind": kind, "metadata": metadata});
        let event = json!({"type": "BOOKMARK", "object": object});
        self.send_bytes(format!("{event}\n").into()).await
    }

    async fn expire(&mut self) -> Result<bool, Gone> {
        let error = ApiError::expired(format!("too old resource version: {}", self.seen));
        let event = json!({"type": "ERROR", "object": error.status()});
        self.send_bytes(format!("{event}\n").into()).await.map(|()| false)
    }
}

/// The client has gone, or the watch was broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gone;
