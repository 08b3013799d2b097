//! What a watch makes of an API that misbehaves. Time is paused and jumps from one event to the next.

use std::collections::VecDeque;
use std::sync::Mutex;

use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::core::DynamicObject;
use kube::core::PartialObjectMeta;
use serde_json::Value;
use tokio::sync::mpsc;

use super::super::credentials::Connected;
use super::super::scripted::{Answer, Call, client, connection, event, list, object, refusal, status};
use super::*;

/// Answers in the order in which they are given out; then watches stay open and silent.
#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    calls: Arc<Mutex<Vec<Call>>>,
    open: Arc<Mutex<Vec<mpsc::UnboundedSender<Value>>>>,
}

impl Script {
    fn of(answers: impl IntoIterator<Item = Answer>) -> Self {
        Self { answers: Arc::new(Mutex::new(answers.into_iter().collect())), ..Self::default() }
    }

    /// Answers with a watch that stays open, to whose sender the test speaks.
    fn watch(&self) -> Answer {
        let (sender, events) = mpsc::unbounded_channel();
        self.open.lock().unwrap().push(sender);
        Answer::Events(events)
    }

    fn then(&self, answer: Answer) {
        self.answers.lock().unwrap().push_back(answer);
    }

    fn answer(&self, call: &Call) -> Answer {
        self.calls.lock().unwrap().push(call.clone());
        match self.answers.lock().unwrap().pop_front() {
            Some(answer) => answer,
            None if call.is_watch() => self.watch(),
            None => panic!("nobody expected {call:?}"),
        }
    }

    fn connection(&self) -> Connection {
        let script = self.clone();
        connection(move |call| script.answer(call))
    }

    fn say(&self, events: impl IntoIterator<Item = Value>) {
        let open = self.open.lock().unwrap();
        let sender = open.last().expect("a watch is open");
        events.into_iter().for_each(|event| sender.send(event).unwrap());
    }

    fn lists(&self) -> usize {
        self.calls.lock().unwrap().iter().filter(|call| !call.is_watch()).count()
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_in_chunks_is_taken_whole_and_then_watched() {
    let script = Script::of([list(7, "next", &[object("w1", 1, "x")]), list(7, "", &[object("w2", 2, "x")])]);
    let mut nodes = nodes(&script.connection());
    until(&mut nodes, |nodes| held(nodes) == "w1=x w2=x").await;
    until_watched(&script, 1).await;
    script.say([
        event("ADDED", &object("w3", 8, "x")),
        event("MODIFIED", &object("w1", 9, "y")),
        event("DELETED", &object("w2", 10, "x")),
    ]);
    until(&mut nodes, |nodes| held(nodes) == "w1=y w3=x").await;
    let calls = script.calls.lock().unwrap();
    assert!(calls[0].query.contains("limit=500"), "{}", calls[0].query);
    assert!(calls[1].query.contains("continue=next"), "{}", calls[1].query);
    assert!(calls[2].query.contains("resourceVersion=7"), "{}", calls[2].query);
    assert!(calls[2].query.contains("allowWatchBookmarks=true"), "{}", calls[2].query);
}

#[tokio::test(start_paused = true)]
async fn after_a_410_whatever_the_list_lacks_is_kept_until_a_second_list_lacks_it() {
    let script = Script::of([list(7, "", &[object("w1", 1, "x"), object("w2", 2, "x")])]);
    let mut nodes = nodes(&script.connection());
    until_watched(&script, 1).await;
    script.then(list(20, "", &[object("w1", 1, "x")]));
    script.say([event("ERROR", &status(410, "too old resource version"))]);
    until(&mut nodes, |nodes| nodes.collection.doubtful().contains_key("w2")).await;
    let doubted = Instant::now();
    assert_eq!(held(&nodes.progress()), "w1=x w2=x");
    assert_eq!(nodes.progress().trouble, None, "an API that forgets is no trouble");
    until_watched(&script, 2).await;
    script.then(list(21, "", &[object("w1", 1, "x")]));
    until(&mut nodes, |nodes| held(nodes) == "w1=x").await;
    assert!(doubted.elapsed() >= super::super::collection::CONFIRM_AFTER);
    assert_eq!(script.lists(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_too_old_from_the_start_is_listed_anew() {
    let script = Script::of([
        list(7, "", &[object("w1", 1, "x")]),
        refusal(410, "too old resource version"),
        list(20, "", &[object("w1", 1, "z")]),
    ]);
    let mut nodes = nodes(&script.connection());
    until(&mut nodes, |nodes| held(nodes) == "w1=z").await;
}

#[tokio::test(start_paused = true)]
async fn a_relist_that_breaks_off_between_chunks_changes_nothing() {
    let script = Script::of([list(7, "", &[object("w1", 1, "x"), object("w2", 2, "x")])]);
    let mut nodes = nodes(&script.connection());
    until_watched(&script, 1).await;
    script.then(list(20, "next", &[object("w1", 1, "y")]));
    script.then(refusal(500, "etcdserver: leader changed"));
    script.then(list(21, "next", &[object("w1", 1, "y")]));
    script.then(refusal(410, "the provided continue parameter is too old"));
    script.then(list(22, "next", &[object("w1", 1, "y")]));
    script.then(Answer::Refused);
    script.say([event("ERROR", &status(410, "too old"))]);
    until(&mut nodes, |nodes| {
        nodes.trouble.as_ref().is_some_and(|trouble| trouble.cause == Cause::Unreachable)
    })
    .await;
    assert_eq!(held(&nodes.progress()), "w1=x w2=x");
    assert!(nodes.progress().collection.doubtful().is_empty());
    script.then(list(23, "next", &[object("w1", 1, "y")]));
    script.then(list(23, "", &[object("w2", 1, "y")]));
    until(&mut nodes, |nodes| held(nodes) == "w1=y w2=y" && nodes.trouble.is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_client_is_tried_at_once_where_the_old_one_is_refused() {
    let script = Script::of([list(7, "", &[object("w1", 1, "x")])]);
    let connection = script.connection();
    let mut nodes = nodes(&connection);
    until_watched(&script, 1).await;
    let (refused, renewed) = (Script::default(), Script::default());
    adopt(&connection, move |call| {
        refused.calls.lock().unwrap().push(call.clone());
        refusal(401, "Unauthorized")
    });
    script.open.lock().unwrap().clear(); // the old watch ends, and the next one is refused
    until(&mut nodes, |nodes| {
        nodes.trouble.as_ref().is_some_and(|trouble| trouble.cause == Cause::Unauthorized)
    })
    .await;
    assert_eq!(held(&nodes.progress()), "w1=x", "nothing is forgotten meanwhile");
    let answers = renewed.clone();
    let begun = Instant::now();
    adopt(&connection, move |call| answers.answer(call));
    until(&mut nodes, |nodes| nodes.trouble.is_none()).await;
    assert!(begun.elapsed() < Duration::from_millis(200), "{:?}", begun.elapsed());
    assert_eq!(renewed.lists(), 0, "the watch goes on from where it was");
    renewed.say([event("MODIFIED", &object("w1", 9, "y"))]);
    until(&mut nodes, |nodes| held(nodes) == "w1=y").await;
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_forbidden_does_not_touch_another() {
    let connection = connection(|call| match (call.path.as_str(), call.is_watch()) {
        ("/api/v1/nodes", _) => refusal(403, "nodes is forbidden"),
        (_, false) => list(7, "", &[object("ns-blue", 1, "x")]),
        (_, true) => Answer::Silence,
    });
    let mut nodes = nodes(&connection);
    let subject = Subject { kind: Kind::Namespace, namespace: None };
    let read = |namespace: &PartialObjectMeta<Namespace>| namespace.labels()["a"].clone();
    let mut namespaces = Watch::start(subject, &connection, Api::all, read, Arc::default());
    until(&mut namespaces, |namespaces| held(namespaces) == "ns-blue=x").await;
    until(&mut nodes, |nodes| nodes.trouble.is_some()).await;
    let trouble = nodes.progress().trouble.clone().unwrap();
    assert_eq!(trouble.cause, Cause::Forbidden);
    assert!(
        trouble
            .message
            .starts_with("cannot list nodes: nodes is forbidden; grant get, list and watch on nodes")
    );
    assert_eq!(namespaces.progress().trouble, None);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_serve_policies_yet_is_not_believed_at_once() {
    let script = Script::of([refusal(404, "page not found"), list(3, "", &[object("tenant-blue", 1, "x")])]);
    let connection = script.connection();
    let mut policies = policies(&connection);
    until(&mut policies, |policies| policies.collection.objects().is_some()).await;
    assert_eq!(held(&policies.progress()), "tenant-blue=x");
    assert!(policies.progress().is_installed);
}

#[tokio::test(start_paused = true)]
async fn a_cluster_without_policies_has_an_empty_list_and_is_asked_again() {
    let script = Script::of([refusal(404, "page not found"), refusal(404, "page not found")]);
    let connection = script.connection();
    let mut policies = policies(&connection);
    until(&mut policies, |policies| policies.collection.objects().is_some()).await;
    assert_eq!(held(&policies.progress()), "");
    assert_eq!(policies.progress().trouble, None);
    assert!(!policies.progress().is_installed);
    let begun = Instant::now();
    script.then(list(3, "", &[object("tenant-blue", 1, "x")]));
    until(&mut policies, |policies| held(policies) == "tenant-blue=x").await;
    assert!(policies.progress().is_installed);
    assert!(begun.elapsed() <= LOOK_AGAIN * 2, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn policies_stay_when_the_kind_is_away_for_a_moment() {
    let script = Script::of([list(3, "", &[object("tenant-blue", 1, "x")]), refusal(404, "not served yet")]);
    let mut policies = policies(&script.connection());
    until(&mut policies, |policies| policies.collection.objects().is_some()).await;
    script.then(refusal(404, "not served yet"));
    script.then(list(4, "", &[object("tenant-blue", 1, "x")]));
    until(&mut policies, |policies| !policies.is_installed).await;
    assert_eq!(held(&policies.progress()), "tenant-blue=x");
    until(&mut policies, |policies| policies.is_installed).await;
    assert_eq!(held(&policies.progress()), "tenant-blue=x");
    assert!(policies.progress().collection.doubtful().is_empty());
}

#[tokio::test(start_paused = true)]
async fn trouble_with_a_watch_ends_when_it_is_accepted_although_nothing_happens() {
    let script =
        Script::of([list(7, "", &[object("w1", 1, "x")]), refusal(403, "cannot watch"), Answer::Refused]);
    let mut nodes = nodes(&script.connection());
    until(&mut nodes, |nodes| nodes.trouble.is_some()).await;
    assert!(
        nodes.progress().trouble.as_ref().unwrap().message.starts_with("cannot watch nodes: cannot watch;")
    );
    until(&mut nodes, |nodes| nodes.trouble.is_none()).await;
    assert_eq!(script.lists(), 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_silence_a_list_that_hangs_is_begun_anew() {
    let script = Script::of([Answer::Silence]);
    let connection = script.connection();
    let mut nodes = nodes(&connection);
    until_called(&script, 1).await;
    connection.note_heartbeat(false);
    script.then(list(7, "", &[object("w1", 1, "x")]));
    let begun = Instant::now();
    connection.note_heartbeat(true);
    until(&mut nodes, |nodes| held(nodes) == "w1=x").await;
    assert!(begun.elapsed() < Duration::from_millis(200), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_throttled_list_waits_as_long_as_the_api_says() {
    let script = Script::of([]);
    let answers = script.clone();
    let throttled = Mutex::new(true);
    let connection = connection(move |call| {
        if std::mem::take(&mut *throttled.lock().unwrap()) {
            return Answer::Throttled(9);
        }
        answers.answer(call)
    });
    script.then(list(7, "", &[object("w1", 1, "x")]));
    let begun = Instant::now();
    let mut nodes = nodes(&connection);
    until(&mut nodes, |nodes| held(nodes) == "w1=x").await;
    assert!(begun.elapsed() >= Duration::from_secs(9), "{:?}", begun.elapsed());
    assert_eq!(nodes.progress().trouble, None);
}

fn nodes(connection: &Connection) -> Watch<String> {
    let subject = Subject { kind: Kind::Node, namespace: None };
    Watch::start(subject, connection, Api::all, |node: &Node| node.labels()["a"].clone(), Arc::default())
}

fn policies(connection: &Connection) -> Watch<String> {
    let subject = Subject { kind: Kind::ExternalRoute, namespace: None };
    let read = |policy: &DynamicObject| policy.labels()["a"].clone();
    let api = |client| Api::all_with(client, &Kind::ExternalRoute.api_resource());
    Watch::start(subject, connection, api, read, Arc::default())
}

fn adopt(connection: &Connection, answer: impl FnMut(&Call) -> Answer + Send + 'static) {
    connection.adopt(Connected { client: client(answer), server: "https://api".to_owned() });
}

fn held(progress: &Progress<String>) -> String {
    let objects = progress.collection.objects().iter().flatten();
    objects.map(|(name, label)| format!("{name}={label}")).collect::<Vec<_>>().join(" ")
}

async fn until(watch: &mut Watch<String>, reached: impl Fn(&Progress<String>) -> bool) {
    let waited = watch.progress.wait_for(|progress| reached(progress));
    let is_reached = timeout(Duration::from_secs(120), waited).await.is_ok();
    assert!(is_reached, "{:?}", watch.progress.borrow());
}

async fn until_watched(script: &Script, watches: usize) {
    poll(|| script.open.lock().unwrap().len() >= watches).await;
}

async fn until_called(script: &Script, calls: usize) {
    poll(|| script.calls.lock().unwrap().len() >= calls).await;
}

async fn poll(reached: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !reached() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
