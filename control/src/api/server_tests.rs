//! Clients that are slow, many, or talk nonsense, against real sockets.

use std::path::PathBuf;

use axum::Extension;
use axum::routing::get;
use nix::unistd::Uid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::*;
use crate::client::Client;

const SHORT: Bounds = Bounds {
    connections: 8,
    requests: 2,
    speak: Duration::from_millis(100),
    connection: Duration::from_millis(500),
};

#[tokio::test]
async fn clients_that_say_nothing_or_do_not_finish_starve_no_other() {
    let server = Server::start(SHORT);
    let _silent = server.connect_many(4).await;
    let mut slow = server.connect_many(4).await;
    for client in &mut slow {
        client.write_all(b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n").await.unwrap();
    }
    server.require_service().await;
}

#[tokio::test]
async fn a_thousand_connections_are_bounded_and_the_next_client_is_served() {
    let server = Server::start(Bounds { connections: 64, ..SHORT });
    let clients: Vec<_> = (0..1000).map(|_| tokio::spawn(UnixStream::connect(server.path()))).collect();
    let mut connected = Vec::new();
    for client in clients {
        // The kernel refuses those that find its queue full too.
        connected.extend(client.await.unwrap().ok());
    }
    server.require_service().await;
    assert!(connected.len() > 64);
}

#[tokio::test]
async fn a_body_that_is_too_large_or_never_ends_is_refused() {
    let server = Server::start(SHORT);
    let head = |length: &str| format!("PUT / HTTP/1.1\r\nhost: x\r\n{length}\r\n\r\n");
    let answer =
        server.say(head("content-length: 10000000000").as_bytes(), &[b'x'; 2 * MAX_BODY_BYTES]).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("over 65536 bytes"), "{answer}");
    let chunk = format!("8000\r\n{}\r\n", "x".repeat(0x8000)).repeat(4);
    let answer = server.say(head("transfer-encoding: chunked").as_bytes(), chunk.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let answer = server.say(head("content-length: 9").as_bytes(), b"short").await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    server.require_service().await;
}

#[tokio::test]
async fn nonsense_is_refused_and_forgotten() {
    let server = Server::start(SHORT);
    let endless = [b"GET / HTTP/1.1\r\nx: ".as_slice(), &[b'y'; 2 * MAX_HEADER_BYTES]].concat();
    for nonsense in [b"\0\xff\x16\x03\x01".as_slice(), b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", &endless] {
        let answer = server.say(nonsense, b"").await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    server.require_service().await;
}

#[tokio::test]
async fn a_client_that_closed_its_half_is_answered() {
    let server = Server::start(SHORT);
    let mut client = server.connect_many(1).await.remove(0);
    client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn answers_that_nobody_reads_hold_only_so_many_requests_back() {
    let server = Server::start(SHORT);
    let mut deaf = server.connect_many(4).await;
    for client in &mut deaf {
        client.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    }
    server.require_service().await;
}

#[tokio::test]
async fn the_kernel_tells_who_calls() {
    let server = Server::start(SHORT);
    let caller: (u32, i32, bool) = Client::new(&server.path()).get("/caller").await.unwrap();
    let own = i32::try_from(std::process::id()).unwrap();
    assert_eq!(caller, (Uid::current().as_raw(), own, true));
}

struct Server {
    directory: tempfile::TempDir,
    task: JoinHandle<Infallible>,
}

impl Server {
    fn start(bounds: Bounds) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let caller = async |Extension(caller): Extension<Caller>| {
            axum::Json((caller.uid, caller.pid, caller.may_change))
        };
        let router = Router::new()
            .route("/", get(async || axum::Json(7)).put(async |_body: Bytes| axum::Json(7)))
            .route("/large", get(async || "x".repeat(1 << 24)))
            .route("/caller", get(caller));
        Self { directory, task: tokio::spawn(serve(listener, router, bounds)) }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    async fn connect_many(&self, count: usize) -> Vec<UnixStream> {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(UnixStream::connect(self.path()).await.unwrap());
        }
        clients
    }

    /// Says something, as far as it is listened to, and returns the answer.
    async fn say(&self, head: &[u8], rest: &[u8]) -> String {
        let mut client = self.connect_many(1).await.remove(0);
        let _ = client.write_all(head).await;
        let _ = client.write_all(rest).await;
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn require_service(&self) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while let Err(error) = Client::new(&self.path()).get::<u32>("/").await {
            // Only a full queue of the kernel is no answer.
            assert!(tokio::time::Instant::now() < deadline, "{error}");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}
