//! The fault switches, and the counts.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::{Api, ListParams, PostParams, WatchEvent, WatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use spillway_apiserver::{Credentials, Options, Verb};

use crate::lab::{Lab, Steady, client, code, eventually, next};
use crate::watches::follow;

#[tokio::test]
async fn a_rotated_token_shuts_out_the_old_one() {
    let lab = Lab::start().await;
    assert!(lab.nodes().list(&ListParams::default()).await.is_ok());

    lab.server.rotate_token("new");
    let old = lab.nodes().list(&ListParams::default()).await;
    let directory = tempfile::tempdir().unwrap();
    let token = Credentials::TokenFile(directory.path().join("token"));
    let renewed = client(&lab.server, &token).await;

    assert_eq!(code(old), 401);
    assert!(Api::<k8s_openapi::api::core::v1::Node>::all(renewed).list(&ListParams::default()).await.is_ok());
}

#[tokio::test]
async fn a_denied_verb_is_forbidden_and_a_review_says_so() {
    let lab = Lab::start().await;
    let reviews: Api<SelfSubjectAccessReview> = Api::all(lab.client.clone());
    let asked = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some("list".into()),
                resource: Some("nodes".into()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let allowed =
        || async { reviews.create(&PostParams::default(), &asked).await.unwrap().status.unwrap().allowed };

    lab.server.deny(Verb::List, "nodes");
    assert_eq!(code(lab.nodes().list(&ListParams::default()).await), 403);
    assert_eq!(code(lab.nodes().get("w1").await), 404);
    assert!(!allowed().await);

    lab.server.allow(Verb::List, "nodes");
    assert!(lab.nodes().list(&ListParams::default()).await.is_ok());
    assert!(allowed().await);
}

#[tokio::test]
async fn the_next_requests_fail_as_often_as_asked() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1"]);

    lab.server.throttle(2, 1);
    lab.server.fail(1);
    for expected in [429, 429, 500] {
        assert_eq!(code(lab.nodes().get("w1").await), expected);
    }

    assert!(lab.nodes().get("w1").await.is_ok());
    assert_eq!(lab.server.requests().count(Verb::Get, "nodes"), 4, "refused requests count");
    assert_eq!(lab.server.requests().total(), 4);
}

#[tokio::test]
async fn a_stopped_server_refuses_and_comes_back_on_its_port() {
    let lab = Lab::with(Options { tls: false, ..Options::default() }).await;
    let address = lab.server.address();
    lab.add_nodes(&["w1"]);
    assert!(lab.nodes().get("w1").await.is_ok());

    lab.server.refuse_connections();
    eventually(Some(std::io::ErrorKind::ConnectionRefused), || async {
        tokio::net::TcpStream::connect(address).await.err().map(|error| error.kind())
    })
    .await;
    assert!(lab.nodes().get("w1").await.is_err());

    lab.server.accept_connections();
    eventually(true, || async { lab.nodes().get("w1").await.is_ok() }).await;
}

#[tokio::test]
async fn a_hanging_server_answers_when_it_is_let() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1"]);

    lab.server.hang(true);
    let nodes = lab.nodes();
    let asked = tokio::spawn(async move { nodes.get("w1").await });
    eventually(1, || async { lab.server.requests().count(Verb::Get, "nodes") }).await;
    assert!(!asked.is_finished());

    lab.server.hang(false);
    assert!(asked.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_hanging_server_leaves_its_watches_silent_and_loses_nothing() {
    let lab = Lab::start().await;
    let mut events = lab.nodes().watch(&WatchParams::default(), "0").await.unwrap().boxed();
    lab.add_nodes(&["w1"]);
    next(&mut events).await.unwrap();

    lab.server.hang(true);
    lab.add_nodes(&["w2"]);
    let silence = tokio::time::timeout(Duration::from_millis(100), events.next()).await;
    lab.server.hang(false);

    assert!(silence.is_err(), "{silence:?}");
    let WatchEvent::Added(node) = next(&mut events).await.unwrap() else { panic!("w2 is added") };
    assert_eq!(node.metadata.name.as_deref(), Some("w2"));
}

#[tokio::test]
async fn slow_answers_take_their_time() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1"]);
    lab.server.delay_answers(Duration::from_millis(120));

    let start = Instant::now();
    lab.nodes().get("w1").await.unwrap();

    assert!(start.elapsed() >= Duration::from_millis(120));
}

#[tokio::test]
async fn a_list_that_breaks_between_chunks_is_listed_again() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1", "w2", "w3", "w4", "w5"]);
    lab.server.break_lists(1, 2);
    lab.server.delay_chunks(Duration::from_millis(10));

    let (names, follower) =
        follow(watcher(lab.nodes(), watcher::Config::default().page_size(2)).backoff(Steady));

    eventually(5, || async { names.borrow().len() }).await;
    assert!(lab.server.requests().count(Verb::List, "nodes") >= 5, "{:?}", lab.server.requests());
    follower.abort();
}

#[tokio::test]
async fn a_stale_list_lacks_objects_as_often_as_asked() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1", "w2", "w3"]);
    lab.server.omit_from_lists("nodes", &["w1", "w3"], 1);
    let count = |limit: u32| {
        let nodes = lab.nodes();
        async move { nodes.list(&ListParams::default().limit(limit)).await.unwrap().items.len() }
    };

    assert_eq!(count(500).await, 1);
    assert_eq!(count(500).await, 3);
}

#[tokio::test]
async fn faults_can_be_taken_back_and_counts_begun_again() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1"]);
    lab.server.deny(Verb::Get, "nodes");
    lab.server.fail(100);
    assert_eq!(code(lab.nodes().get("w1").await), 500);

    lab.server.clear();
    lab.server.forget_requests();

    assert!(lab.nodes().get("w1").await.is_ok());
    assert_eq!(lab.server.requests().iter().collect::<Vec<_>>(), [(Verb::Get, "nodes", 1)]);
}
