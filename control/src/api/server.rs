//! Connections to the control socket, bounded in number and time so that no client starves another.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

/// Wait after a connection could not be accepted: open files may have run out.
const PAUSE: Duration = Duration::from_secs(1);

/// How many connections are served at the same time, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at the same time; others wait.
    pub connections: usize,
    /// Time in which a client has to say what it wants.
    pub header: Duration,
    /// Time that a connection may take, its only request and answer included.
    pub connection: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { connections: 64, header: Duration::from_secs(5), connection: Duration::from_secs(60) }
    }
}

/// Serves the API to every client that connects, for ever.
pub async fn serve(listener: UnixListener, router: Router, bounds: Bounds) -> Infallible {
    let permits = Arc::new(Semaphore::new(bounds.connections));
    loop {
        let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    serve_one(stream, router, bounds).await;
                    drop(permit);
                });
            }
            Err(error) => {
                warn!("cannot accept a connection to the control socket: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn serve_one(stream: UnixStream, router: Router, bounds: Bounds) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.header)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match timeout(bounds.connection, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!("a client of the control socket broke off: {error}"),
        Err(_) => debug!("a client of the control socket took too long"),
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::client::Client;

    #[tokio::test]
    async fn clients_that_say_nothing_or_do_not_finish_starve_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let bounds = Bounds {
            connections: 2,
            header: Duration::from_millis(100),
            connection: Duration::from_millis(200),
        };
        let answer = async |_body: axum::body::Bytes| axum::Json(7);
        let router = Router::new().route("/", get(async || axum::Json(7)).put(answer));
        let server = tokio::spawn(serve(listener, router, bounds));
        let _silent = UnixStream::connect(&path).await.unwrap();
        let mut slow = UnixStream::connect(&path).await.unwrap();
        slow.write_all(b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n").await.unwrap();
        let client = Client::new(&path);
        let answer = timeout(Duration::from_secs(5), client.get::<u32>("/")).await;
        assert_eq!(answer.expect("served within 5 s").unwrap(), 7);
        server.abort();
    }
}
