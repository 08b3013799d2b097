//! The connection to the API: one client for everybody, exchanged beneath them when credentials change.
//!
//! ```text
//!  watches, reports ─▶ Connection::client ─▶ retries (429, 503, 504) ─▶ the client of now ─▶ API server
//!                                                   kubeconfig, token ─▶ made anew ▲
//! ```
//!
//! A heartbeat tells whether the API answers. After a silence connections may be dead without anybody knowing, so
//! everything that waits for the API is told to start anew.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hyper::header::RETRY_AFTER;
use hyper::{HeaderMap, Request, Response, StatusCode, Uri};
use kube::Client;
use kube::client::Body;
use kube::client::retry::RetryPolicy;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tower::retry::RetryLayer;
use tower::{BoxError, Layer, service_fn};
use tracing::{info, warn};

use super::credentials::{Connected, Credentials};

const LOOK_INTERVAL: Duration = Duration::from_secs(3);
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(5);
/// While the API is silent it is asked more often, so that its return is noticed soon.
const SILENT_INTERVAL: Duration = Duration::from_secs(2);
/// Longer than an API server lets a request take (60 s by default). The headers of a watch come at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(70);
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
/// Time between two runs of a credential program whose credentials are refused.
const PROGRAM_INTERVAL: Duration = Duration::from_secs(30);
/// Whoever rotates credentials may be at it just when the old ones are refused.
const REFUSED_INTERVAL: Duration = Duration::from_secs(1);
const RETRIES: u32 = 3;
/// A proxy's maintenance page may ask for hours.
const LONGEST_WAIT: u64 = 60;

/// The connection to the API. Clones are the same connection.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Shared>);

struct Shared {
    client: RwLock<Option<Client>>,
    state: watch::Sender<State>,
    is_refused: Notify,
}

/// What is known of the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Scheme, host and port of the server; none until there is a client.
    pub server: Option<String>,
    /// Why credentials cannot be read; the client that was made before, if any, is still used.
    pub trouble: Option<String>,
    /// Whether the last heartbeat was answered; none before the first.
    pub is_answering: Option<bool>,
    /// When the API last answered anything but an error of its own.
    pub last_contact: Option<Instant>,
    /// Clients that were made. When it rises, what was refused may be tried again.
    pub clients: u64,
    /// Rises when connections may be dead or lead to another server: watches then start anew.
    pub starts: u64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Shared").field("state", &*self.state.borrow()).finish_non_exhaustive()
    }
}

impl Connection {
    /// Opens a connection with these credentials, kept up by tasks of `tasks`. Never fails: what is missing is told
    /// by the state, and looked for again.
    pub fn open(credentials: Credentials, tasks: &mut JoinSet<()>) -> Self {
        let connection = Self::new();
        tasks.spawn(connection.clone().keep_credentials(credentials));
        tasks.spawn(connection.clone().keep_heartbeat());
        connection
    }

    /// Returns a connection without a client and without tasks.
    pub(super) fn new() -> Self {
        let state = watch::Sender::new(State::default());
        Self(Arc::new(Shared { client: RwLock::new(None), state, is_refused: Notify::new() }))
    }

    /// Follows what is known of the connection. Contact alone is no change.
    pub fn subscribe(&self) -> watch::Receiver<State> {
        self.0.state.subscribe()
    }

    /// Returns a client that stays good when credentials change.
    pub fn client(&self) -> Client {
        self.client_with(|_, _| {})
    }

    /// Returns a client that stays good when credentials change, and lets `observe` see every answer.
    pub fn client_with(&self, observe: impl Fn(&Uri, StatusCode) + Clone + Send + Sync + 'static) -> Client {
        let connection = self.clone();
        let service = service_fn(move |request: Request<Body>| {
            let (connection, observe, uri) = (connection.clone(), observe.clone(), request.uri().clone());
            async move {
                let mut response = connection.send(request).await?;
                bound_wait(response.headers_mut());
                observe(&uri, response.status());
                Ok::<_, BoxError>(response)
            }
        });
        let policy = RetryPolicy::new(Duration::from_millis(500), Duration::from_secs(10), RETRIES, true)
            .expect("the shortest delay is shorter than the longest");
        Client::new(RetryLayer::new(policy).layer(service), "default")
    }

    /// Exchanges the client. Streams that the one before has begun go on.
    pub(super) fn adopt(&self, connected: Connected) {
        *self.0.client.write().unwrap_or_else(PoisonError::into_inner) = Some(connected.client);
        self.0.state.send_modify(|state| {
            let is_other = state.server.as_ref().is_some_and(|server| *server != connected.server);
            if state.clients == 0 || is_other {
                info!("Kubernetes: the API is {}", connected.server);
            } else {
                info!("Kubernetes: credentials read anew");
            }
            state.starts += u64::from(is_other);
            state.clients += 1;
            state.server = Some(connected.server);
            state.trouble = None;
        });
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let client = self.0.client.read().unwrap_or_else(PoisonError::into_inner).clone();
        let client = client.ok_or("no credentials yet")?;
        let response = timeout(ANSWER_TIMEOUT, client.send(request))
            .await
            .map_err(|_| format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))??;
        if !response.status().is_server_error() {
            self.0.state.send_if_modified(|state| {
                state.last_contact = Some(Instant::now());
                false
            });
        }
        if response.status() == StatusCode::UNAUTHORIZED {
            self.0.is_refused.notify_one();
        }
        Ok(response)
    }

    /// Reads credentials when their files change, and when the API refuses those that a program gave.
    async fn keep_credentials(self, credentials: Credentials) {
        let (mut used, mut is_refused, mut renewed) = (None, false, Instant::now());
        loop {
            let source = credentials.clone();
            let seen = blocking(move || (source.fingerprint(), source.are_from_a_program())).await;
            let is_due = is_refused && renewed.elapsed() >= PROGRAM_INTERVAL;
            if let Some((fingerprint, is_program)) = seen
                && (used != Some(fingerprint) || is_program && is_due)
            {
                used = self.renew(&credentials).await.then_some(fingerprint);
                renewed = Instant::now();
            }
            is_refused = timeout(LOOK_INTERVAL, self.0.is_refused.notified()).await.is_ok();
            if is_refused {
                sleep(REFUSED_INTERVAL).await;
            }
        }
    }

    /// Makes a new client and returns whether that went well.
    async fn renew(&self, credentials: &Credentials) -> bool {
        let source = credentials.clone();
        let connected = blocking(move || source.connect()).await;
        match connected.unwrap_or_else(|| Err("the credential program does not end".to_owned())) {
            Ok(connected) => {
                self.adopt(connected);
                true
            }
            Err(message) => {
                self.0.state.send_if_modified(|state| {
                    let is_new = state.trouble.as_ref() != Some(&message);
                    if is_new {
                        warn!("Kubernetes: {message}; it is tried again");
                    }
                    state.trouble = Some(message);
                    is_new
                });
                false
            }
        }
    }

    async fn keep_heartbeat(self) {
        let mut state = self.subscribe();
        loop {
            // The sender is part of the connection, so the state cannot be closed.
            let Ok(clients) = state.wait_for(|state| state.clients > 0).await.map(|state| state.clients)
            else {
                return;
            };
            let is_answering = self.beat().await;
            self.note_heartbeat(is_answering);
            let interval = if is_answering { HEARTBEAT_INTERVAL } else { SILENT_INTERVAL };
            let _ = timeout(interval, state.wait_for(|state| state.clients != clients)).await;
        }
    }

    /// Asks for the API's version and returns whether anything but an error of its own came back in time.
    pub(super) async fn beat(&self) -> bool {
        let request = Request::get("/version").body(Body::empty()).expect("the path is a constant");
        let answer = async {
            let response = self.send(request).await?;
            let is_own_error = response.status().is_server_error();
            response.into_body().collect_bytes().await?; // so that the connection can be used again
            Ok::<_, BoxError>(!is_own_error)
        };
        timeout(HEARTBEAT_TIMEOUT, answer).await.is_ok_and(|answer| answer.unwrap_or(false))
    }

    pub(super) fn note_heartbeat(&self, is_answering: bool) {
        self.0.state.send_modify(|state| {
            let was_answering = state.is_answering;
            if !is_answering && was_answering != Some(false) {
                warn!("Kubernetes: the API does not answer; its last state is kept");
            }
            if is_answering && was_answering == Some(false) {
                info!("Kubernetes: the API answers again");
                state.starts += 1;
            }
            state.is_answering = Some(is_answering);
        });
    }
}

/// Removes the wish that the next try come much later: the API may be back sooner.
fn bound_wait(headers: &mut HeaderMap) {
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if seconds.is_some_and(|seconds| seconds > LONGEST_WAIT) {
        headers.remove(RETRY_AFTER);
    }
}

/// Runs something that blocks; none when it takes too long.
async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    timeout(CONNECT_LIMIT, tokio::task::spawn_blocking(run)).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};

    use serde_json::json;

    use super::super::scripted::{Answer, connection, refusal};
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_kubeconfig_is_read_when_it_appears_and_whenever_it_changes() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config");
        let mut tasks = JoinSet::new();
        let mut state = Connection::open(Credentials::new(Some(file.clone())), &mut tasks).subscribe();

        let missing = reached(&mut state, |state| state.trouble.is_some()).await;
        assert!(missing.trouble.unwrap().contains("No such file"));

        write(&file, "127.0.0.1:1", "token: a");
        let first = reached(&mut state, |state| state.clients == 1).await;
        assert_eq!(
            (first.trouble, first.server.as_deref(), first.starts),
            (None, Some("http://127.0.0.1:1"), 0)
        );

        write(&file, "127.0.0.1:1", "token: b");
        let rotated = reached(&mut state, |state| state.clients == 2).await;
        assert_eq!(rotated.starts, 0, "watches go on");

        write(&file, "127.0.0.1:1", "token: [b");
        let broken = reached(&mut state, |state| state.trouble.is_some()).await;
        assert_eq!((broken.clients, broken.server.as_deref()), (2, Some("http://127.0.0.1:1")));

        write(&file, "127.0.0.1:2", "token: b");
        let moved = reached(&mut state, |state| state.clients == 3).await;
        assert_eq!((moved.trouble, moved.starts), (None, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_credential_program_is_asked_again_when_its_token_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config");
        let credential = r#"'{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"a"}}'"#;
        let exec = "{apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never, command: /bin/echo, args: ";
        write(&file, "127.0.0.1:1", &format!("exec: {exec}[{credential}]}}"));
        let mut tasks = JoinSet::new();
        let connection = Connection::open(Credentials::new(Some(file)), &mut tasks);
        let mut state = connection.subscribe();
        reached(&mut state, |state| state.clients == 1).await;
        let begun = Instant::now();
        tasks.spawn(async move {
            loop {
                connection.0.is_refused.notify_one();
                sleep(Duration::from_secs(1)).await;
            }
        });
        reached(&mut state, |state| state.clients == 2).await;
        assert!(begun.elapsed() >= PROGRAM_INTERVAL, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_silence_watches_are_started_anew_once() {
        let is_away = Arc::new(AtomicBool::new(false));
        let answers = is_away.clone();
        let connection = connection(move |_| match answers.load(Ordering::Relaxed) {
            true => Answer::Silence,
            false => Answer::Json(200, json!({"gitVersion": "v1.32.0"})),
        });
        let mut state = connection.subscribe();
        let mut tasks = JoinSet::new();
        tasks.spawn(connection.keep_heartbeat());
        let first = reached(&mut state, |state| state.is_answering == Some(true)).await;
        assert_eq!(first.starts, 0);
        is_away.store(true, Ordering::Relaxed);
        reached(&mut state, |state| state.is_answering == Some(false)).await;
        let silent = Instant::now();
        is_away.store(false, Ordering::Relaxed);
        let back = reached(&mut state, |state| state.is_answering == Some(true)).await;
        assert_eq!(back.starts, 1);
        assert!(silent.elapsed() <= SILENT_INTERVAL + HEARTBEAT_TIMEOUT);
        assert_eq!(back.last_contact, Some(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_a_proxy_asks_for_is_bounded() {
        for (asked, shortest, longest) in [(40, 40, 41), (86_400, 0, 15)] {
            let is_back = AtomicBool::new(false);
            let connection = connection(move |_| match is_back.swap(true, Ordering::Relaxed) {
                true => Answer::Json(200, json!({"gitVersion": "v1.32.0"})),
                false => Answer::Throttled(asked),
            });
            let begun = Instant::now();
            let request = Request::get("/version").body(Body::empty()).unwrap();
            let response = connection.client().send(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            let bounds = Duration::from_secs(shortest)..=Duration::from_secs(longest);
            assert!(bounds.contains(&begun.elapsed()), "{asked}: {:?}", begun.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_of_the_api_itself_is_no_contact() {
        for (code, is_contact) in [(200, true), (401, true), (403, true), (500, false), (503, false)] {
            let connection = connection(move |_| refusal(code, "x"));
            assert_eq!(connection.beat().await, is_contact, "{code}");
            assert_eq!(connection.subscribe().borrow().last_contact.is_some(), is_contact, "{code}");
        }
    }

    async fn reached(state: &mut watch::Receiver<State>, is_reached: impl Fn(&State) -> bool) -> State {
        let reached = timeout(Duration::from_secs(600), state.wait_for(|state| is_reached(state)));
        let found = reached.await.is_ok();
        assert!(found, "{:?}", state.borrow());
        state.borrow().clone()
    }

    fn write(file: &Path, server: &str, user: &str) {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: c, cluster: {{server: 'http://{server}'}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             users:\n- name: u\n  user:\n    {user}\n"
        );
        std::fs::write(file, text).unwrap();
    }
}
