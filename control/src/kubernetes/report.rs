//! Tells the cluster what became of its objects: the status of EgressTenants, and notices as events.
//!
//! A status is written by a JSON patch (RFC 6902) that first tests the object's uid: a tenant that was deleted and made
//! anew meanwhile is left alone. A merge patch cannot promise that. Its `metadata.uid` is compared by some resources
//! alone, as the status of a custom resource takes nothing but `status` from what is sent; and its `resourceVersion`
//! would refuse a status because of any other change.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Patch, PatchParams};
use kube::core::DynamicObject;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::debug;

use super::bulletin::Bulletin;
use super::egress_tenant::EgressTenantStatus;
use super::objects::TenantObject;
use super::trouble::{describe, status_code};
use super::view::{Kind, Notice};
use super::writes::{Failure, Writes};

const WRITES_IN_FLIGHT: usize = 4;
const CONTROLLER: &str = "spillway.dev/gateway";
/// An event's note may have 1,024 bytes.
const NOTE_BYTES: usize = 1000;

/// Tells the cluster what became of its objects.
pub struct Reports {
    client: Client,
    host: String,
    writes: Writes,
    bulletin: Bulletin,
    running: JoinSet<Done>,
    writing: usize,
    waiting: VecDeque<(Arc<TenantObject>, EgressTenantStatus)>,
    troubles: BTreeMap<&'static str, String>,
}

/// What was done.
enum Done {
    Status { uid: String, name: String, result: kube::Result<Option<EgressTenantStatus>> },
    Event { notice: Notice, result: kube::Result<()> },
}

impl Reports {
    /// Returns reports over this client, in the name of this host.
    pub fn new(client: Client, host: String) -> Self {
        Self {
            client,
            host,
            writes: Writes::default(),
            bulletin: Bulletin::default(),
            running: JoinSet::new(),
            writing: 0,
            waiting: VecDeque::new(),
            troubles: BTreeMap::new(),
        }
    }

    /// Writes the statuses that are due, a few at a time. `wanted` returns what an object's status should be.
    pub fn write_statuses(
        &mut self,
        tenants: &BTreeMap<String, Arc<TenantObject>>,
        wanted: impl Fn(&TenantObject) -> EgressTenantStatus,
    ) {
        self.writes
            .keep(&tenants.values().map(|object| object.identity.uid.as_str()).collect::<BTreeSet<_>>());
        let now = Instant::now().into_std();
        self.waiting.clear();
        for object in tenants.values() {
            let known = TenantObject { status: self.writes.observed(object), ..TenantObject::clone(object) };
            let status = wanted(&known);
            if self.writes.is_due(object, &status, now) {
                self.waiting.push_back((object.clone(), status));
            }
        }
        self.write_waiting();
    }

    fn write_waiting(&mut self) {
        while self.writing < WRITES_IN_FLIGHT
            && let Some((object, status)) = self.waiting.pop_front()
        {
            self.writes.begin(&object, &status, Instant::now().into_std());
            self.writing += 1;
            let (name, uid) = (object.identity.name.clone(), object.identity.uid.clone());
            self.running.spawn(write(self.client.clone(), name, uid, status));
        }
    }

    /// Begins to publish the notices that are due.
    pub fn publish(&mut self, notices: &[Notice]) {
        for notice in self.bulletin.begin(notices, Instant::now().into_std()) {
            let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: Some(self.host.clone()) };
            self.running.spawn(publish(self.client.clone(), reporter, notice));
        }
    }

    /// Waits until one thing that was begun is done; for ever if there is none.
    pub async fn finish_one(&mut self) {
        match self.running.join_next().await {
            Some(Ok(done)) => self.settle(done),
            Some(Err(error)) => debug!(%error, "a report broke off"),
            None => std::future::pending().await,
        }
    }

    /// Returns why statuses or events cannot be written; none while they can.
    pub fn trouble(&self) -> Option<String> {
        let troubles: Vec<_> = self.troubles.values().map(String::as_str).collect();
        (!troubles.is_empty()).then(|| troubles.join("; "))
    }

    fn settle(&mut self, done: Done) {
        let now = Instant::now().into_std();
        match done {
            Done::Status { uid, name, result } => {
                self.writing -= 1;
                let what = format!("cannot write the status of EgressTenant {name}");
                self.note("egresstenants/status", "spillway.dev", "patch", &what, result.as_ref().err());
                self.writes.settle(&uid, result.map_err(|error| failure(&error)), now);
                self.write_waiting();
            }
            Done::Event { notice, result } => {
                let what = format!("cannot publish an event of {} {}", notice.kind.name(), notice.name);
                self.note("events", "events.k8s.io", "create and patch", &what, result.as_ref().err());
                self.bulletin.settle(notice, result.is_ok(), now);
            }
        }
    }

    fn note(
        &mut self,
        resource: &'static str,
        group: &str,
        verbs: &str,
        what: &str,
        error: Option<&kube::Error>,
    ) {
        let Some(error) = error else {
            self.troubles.remove(resource);
            return;
        };
        let text = format!("{what}: {}", describe(error));
        match status_code(error) {
            Some(404 | 409 | 410) => debug!("{text}"), // the object went away just now
            Some(403) => {
                let grant = format!("{text}; grant {verbs} on {resource} of API group {group:?}");
                self.troubles.insert(resource, grant);
            }
            Some(_) | None => {
                self.troubles.insert(resource, text);
            }
        }
    }
}

/// Returns what an error means for trying again. 422: the uid is another, or the API refuses the content. An object that
/// is not found is either gone, which the watch will tell, or behind an API server that is just starting.
fn failure(error: &kube::Error) -> Failure {
    match status_code(error) {
        Some(400 | 422) => Failure::Final,
        Some(403) => Failure::Denied,
        Some(_) | None => Failure::Passing,
    }
}

async fn write(client: Client, name: String, uid: String, status: EgressTenantStatus) -> Done {
    let operations = json!([
        { "op": "test", "path": "/metadata/uid", "value": uid },
        { "op": "add", "path": "/status", "value": status },
    ]);
    let patch = serde_json::from_value(operations).expect("a test and an addition are JSON patches");
    let api = Api::<DynamicObject>::all_with(client, &Kind::EgressTenant.api_resource());
    let result = api.patch_status(&name, &PatchParams::default(), &Patch::<Value>::Json(patch)).await;
    let stored = |object: DynamicObject| EgressTenantStatus::deserialize(object.data.get("status")?).ok();
    Done::Status { uid, name, result: result.map(stored) }
}

async fn publish(client: Client, reporter: Reporter, notice: Notice) -> Done {
    let mut end = notice.message.len().min(NOTE_BYTES);
    while !notice.message.is_char_boundary(end) {
        end -= 1;
    }
    let event = Event {
        type_: EventType::Warning,
        reason: notice.reason.to_owned(),
        note: Some(notice.message[..end].to_owned()),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    let reference = ObjectReference {
        api_version: Some(notice.kind.api_version().to_owned()),
        kind: Some(notice.kind.name().to_owned()),
        name: Some(notice.name.clone()),
        uid: Some(notice.uid.clone()),
        ..ObjectReference::default()
    };
    // A recorder that lives on would count another message of the same reason as the same event.
    let result = Recorder::new(client, reporter).publish(&event, &reference).await;
    Done::Event { notice, result }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::super::fixtures::{map, tenant};
    use super::super::scripted::{Answer, Call, client, refusal};
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_status_is_written_under_a_test_of_the_uid_and_only_once() {
        let (calls, mut reports) = reports(|call| Answer::Json(200, stored(call)));
        let tenants = map([tenant("ns-blue", 1, 13)]);
        for _ in 0..3 {
            reports.write_statuses(&tenants, wanted);
            settle(&mut reports).await;
        }
        let calls = calls.lock().unwrap();
        assert_eq!(calls.len(), 1);
        assert_eq!(calls[0].path, "/apis/spillway.dev/v1alpha1/egresstenants/ns-blue/status");
        assert_eq!(calls[0].body[0], json!({"op": "test", "path": "/metadata/uid", "value": "ns-blue"}));
        assert_eq!(calls[0].body[1]["value"]["gatewayMAC"], "02:53:c0:a8:63:0d");
        assert_eq!(reports.trouble(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn few_statuses_are_written_at_a_time_and_all_in_the_end() {
        let (calls, mut reports) = reports(|call| Answer::Json(200, stored(call)));
        let tenants = map((0..10).map(|number| tenant(&format!("t{number}"), 1, number)));
        reports.write_statuses(&tenants, wanted);
        assert_eq!(reports.running.len(), WRITES_IN_FLIGHT);
        settle(&mut reports).await;
        assert_eq!(calls.lock().unwrap().len(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_status_that_may_not_be_written_is_told_once_and_tried_seldom() {
        let (calls, mut reports) = reports(|_| refusal(403, "egresstenants.spillway.dev is forbidden"));
        let tenants = map([tenant("ns-blue", 1, 13)]);
        for _ in 0..25 {
            reports.write_statuses(&tenants, wanted);
            settle(&mut reports).await;
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(calls.lock().unwrap().len(), 1);
        let trouble = reports.trouble().unwrap();
        assert!(
            trouble.ends_with("grant patch on egresstenants/status of API group \"spillway.dev\""),
            "{trouble}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_api_refuses_is_not_written_again_and_what_is_in_conflict_is_ever_later() {
        for (code, expected) in [(400, 1), (422, 1), (404, 10), (409, 10), (410, 10)] {
            let (calls, mut reports) = reports(move |_| refusal(code, "no"));
            let tenants = map([tenant("ns-blue", 1, 13)]);
            for _ in 0..10 {
                reports.write_statuses(&tenants, wanted);
                settle(&mut reports).await;
                tokio::time::advance(Duration::from_secs(60)).await;
            }
            assert_eq!(calls.lock().unwrap().len(), expected, "{code}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_notice_becomes_an_event_of_its_object() {
        let (calls, mut reports) = reports(|call| Answer::Json(201, call.body.clone()));
        let notice = Notice {
            kind: Kind::Node,
            name: "w1".to_owned(),
            uid: "uid-w1".to_owned(),
            reason: "OverlappingPodCIDR",
            message: "ä".repeat(800),
        };
        for _ in 0..3 {
            reports.publish(std::slice::from_ref(&notice));
            settle(&mut reports).await;
        }
        let calls = calls.lock().unwrap();
        assert_eq!(calls.len(), 1);
        assert_eq!(calls[0].path, "/apis/events.k8s.io/v1/namespaces/default/events");
        let event = &calls[0].body;
        assert_eq!(
            (event["reason"].as_str(), event["type"].as_str()),
            (Some("OverlappingPodCIDR"), Some("Warning"))
        );
        let regarding = json!({"apiVersion": "v1", "kind": "Node", "name": "w1", "uid": "uid-w1"});
        assert_eq!(event["regarding"], regarding);
        assert_eq!(event["reportingController"], CONTROLLER);
        assert_eq!(event["reportingInstance"], "gateway-1");
        assert_eq!(event["note"].as_str().map(str::len), Some(NOTE_BYTES));
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_ends_when_writing_works_again() {
        let failures = Mutex::new(vec![(); 5]);
        let (_calls, mut reports) = reports(move |call| match failures.lock().unwrap().pop() {
            Some(()) => Answer::Refused,
            None => Answer::Json(200, stored(call)),
        });
        let tenants = map([tenant("ns-blue", 1, 13)]);
        reports.write_statuses(&tenants, wanted);
        settle(&mut reports).await;
        assert!(reports.trouble().unwrap().contains("connection refused"));
        for _ in 0..60 {
            reports.write_statuses(&tenants, wanted);
            settle(&mut reports).await;
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(reports.trouble(), None);
    }

    type Calls = Arc<Mutex<Vec<Call>>>;

    fn reports(mut answer: impl FnMut(&Call) -> Answer + Send + 'static) -> (Calls, Reports) {
        let calls = Calls::default();
        let recorded = calls.clone();
        let client = client(move |call| {
            recorded.lock().unwrap().push(call.clone());
            answer(call)
        });
        (calls, Reports::new(client, "gateway-1".to_owned()))
    }

    /// Waits for everything that was begun.
    async fn settle(reports: &mut Reports) {
        while !reports.running.is_empty() {
            timeout(Duration::from_secs(60), reports.finish_one()).await.unwrap();
        }
    }

    fn stored(call: &Call) -> Value {
        json!({"metadata": {"name": "ns-blue"}, "status": call.body[1]["value"]})
    }

    fn wanted(object: &TenantObject) -> EgressTenantStatus {
        let tenant = object.tenant.as_ref().unwrap();
        let gateway_mac = crate::tenant::mac_to_text(tenant.effective_mac());
        EgressTenantStatus { gateway_mac, ..EgressTenantStatus::default() }
    }
}
