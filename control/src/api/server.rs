//! Connections to the control socket and to the address for health, bounded in number, size and time so that no client
//! starves another.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::IntoResponse;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tower::ServiceExt;
use tracing::{debug, warn};

use super::caller::Caller;
use super::error::ApiError;
use super::handlers::MAX_BODY_BYTES;
use super::watch::Streams;

/// Wait after a connection could not be accepted: open files may have run out.
const PAUSE: Duration = Duration::from_secs(1);
/// Most that a client may say before its body, in bytes.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// How many connections there are at the same time, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at the same time; others wait until the kernel's queue is full, and are refused then.
    pub connections: usize,
    /// Requests that are answered at the same time; others wait.
    pub requests: usize,
    /// Time in which a client has to say what it wants, and again for its body.
    pub speak: Duration,
    /// Time that a connection may take, its only request and answer included.
    pub connection: Duration,
}

impl Bounds {
    /// Bounds of the address for health, whose answers are short.
    pub const HEALTH: Self = Self {
        connections: 64,
        requests: 16,
        speak: Duration::from_secs(2),
        connection: Duration::from_secs(5),
    };

    /// Bounds of the address for metrics: few ask, and answers may be of many tenants.
    pub const METRICS: Self = Self {
        connections: 32,
        requests: 2,
        speak: Duration::from_secs(2),
        connection: Duration::from_secs(30),
    };
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 512,
            requests: 64,
            speak: Duration::from_secs(5),
            connection: Duration::from_secs(60),
        }
    }
}

/// A socket that clients connect to.
pub trait Listener {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for a client; tells who it is, where the kernel knows.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Option<Caller>)>> + Send;
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Option<Caller>)> {
        let (stream, _) = Self::accept(self).await?;
        let caller = Caller::of(&stream).ok();
        Ok((stream, caller))
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Option<Caller>)> {
        Ok((Self::accept(self).await?.0, None))
    }
}

/// Serves the API to every client that connects, for ever.
pub async fn serve(listener: impl Listener, router: Router, bounds: Bounds) -> Infallible {
    let connections = Arc::new(Semaphore::new(bounds.connections));
    let requests = Arc::new(Semaphore::new(bounds.requests));
    loop {
        let permit = Arc::clone(&connections).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, caller)) => {
                let conversation =
                    Conversation { router: router.clone(), caller, bounds, requests: Arc::clone(&requests) };
                tokio::spawn(async move {
                    conversation.hold(stream).await;
                    drop(permit);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(PAUSE).await;
            }
        }
    }
}

/// One connection: a request and its answer.
struct Conversation {
    router: Router,
    caller: Option<Caller>,
    bounds: Bounds,
    requests: Arc<Semaphore>,
}

impl Conversation {
    async fn hold(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        // Held until the answer is written, not only made.
        let (permit, streams) = (OnceLock::new(), OnceLock::new());
        let service = service_fn(async |request| {
            let request = match self.read(request).await {
                Ok(request) => request,
                Err(refusal) => return Ok::<_, Infallible>(refusal.into_response()),
            };
            let asked = Arc::clone(&self.requests).acquire_owned().await;
            let _ = permit.set(asked.expect("the semaphore is never closed"));
            let response = self.router.clone().oneshot(request).await?;
            if let Some(Streams(lasts)) = response.extensions().get() {
                let _ = streams.set(*lasts);
            }
            Ok(response)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.bounds.speak)
            .max_buf_size(MAX_HEADER_BYTES)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        let overdue = async {
            sleep(self.bounds.connection).await;
            if let Some(lasts) = streams.get() {
                sleep(*lasts).await;
            }
        };
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                debug!(error = &error as &dyn std::error::Error, "a client broke off");
            },
            () = overdue => debug!("a client took too long"),
        }
    }

    /// Reads all that a client has to say, and notes who it is.
    async fn read(&self, request: Request<Incoming>) -> Result<Request<Body>, ApiError> {
        let (mut parts, body) = request.into_parts();
        if let Some(caller) = self.caller {
            parts.extensions.insert(caller);
        }
        let body = timeout(self.bounds.speak, Limited::new(body, MAX_BODY_BYTES).collect()).await;
        let bytes: Bytes = match body {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(ApiError::body_too_large()),
            Ok(Err(error)) => {
                return Err(ApiError::of_field(StatusCode::BAD_REQUEST, "body", error.to_string()));
            }
            Err(_) => {
                let message = format!("the body did not come within {:?}", self.bounds.speak);
                return Err(ApiError::of_field(StatusCode::REQUEST_TIMEOUT, "body", message));
            }
        };
        Ok(Request::from_parts(parts, Body::from(bytes)))
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
