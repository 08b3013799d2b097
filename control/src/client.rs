//! The command line's end of the control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::api::types::ErrorBody;
use crate::vitals::Fitness;

const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Why the daemon gave no answer, or a refusal.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no daemon answers on {path}; is `spillway run` running, and is --socket right?")]
    NoDaemon {
        /// Path of the socket.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The socket belongs to somebody else.
    #[error("may not use {path}; run as root, or as a member of the socket's group")]
    Forbidden {
        /// Path of the socket.
        path: PathBuf,
    },
    /// The daemon takes too long.
    #[error(
        "the daemon on {path} did not answer within {} s; its log may tell why, and whether the request was carried out",
        within.as_secs()
    )]
    NoAnswer {
        /// Path of the socket.
        path: PathBuf,
        /// Time that it was given.
        within: Duration,
    },
    /// The conversation broke off.
    #[error("the daemon broke off")]
    Broken(#[from] hyper::Error),
    /// What came cannot be written.
    #[error("the answer cannot be written")]
    Output(#[source] io::Error),
    /// The answer is not what this command expects.
    #[error("the daemon's answer cannot be read; are daemon and command of the same version?")]
    Unreadable(#[from] serde_json::Error),
    /// The daemon refused.
    #[error("{}{message}", field.as_ref().map(|field| format!("{field}: ")).unwrap_or_default())]
    Refused {
        /// Field that was refused.
        field: Option<String>,
        /// The value, and what would be accepted.
        message: String,
    },
}

/// A control socket to talk to.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    within: Duration,
}

impl Client {
    /// Returns a client of the daemon behind a socket; nothing is sent yet.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), within: ANSWER_WITHIN }
    }

    /// Gets a path's JSON.
    ///
    /// # Errors
    /// When the daemon does not answer, or refuses.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        Ok(serde_json::from_slice(&self.send(Method::GET, path, Bytes::new()).await?)?)
    }

    /// Gets a path's text.
    ///
    /// # Errors
    /// When the daemon does not answer, or refuses.
    pub async fn get_text(&self, path: &str) -> Result<String, ClientError> {
        Ok(String::from_utf8_lossy(&self.send(Method::GET, path, Bytes::new()).await?).into_owned())
    }

    /// Asks whether something is as it should be.
    ///
    /// # Errors
    /// When the daemon does not answer, or with something else.
    pub async fn ask_fitness(&self, path: &str) -> Result<Fitness, ClientError> {
        let (status, body) = self.in_time(self.converse(Method::GET, path, Bytes::new())).await?;
        match serde_json::from_slice(&body) {
            Ok(fitness) => Ok(fitness),
            Err(_) if !status.is_success() => Err(refusal(status, &body)),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts JSON to a path and returns the answer's.
    ///
    /// # Errors
    /// When the daemon does not answer, or refuses.
    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = Bytes::from(serde_json::to_vec(body)?);
        Ok(serde_json::from_slice(&self.send(Method::PUT, path, body).await?)?)
    }

    /// Deletes what is at a path.
    ///
    /// # Errors
    /// When the daemon does not answer, or refuses.
    pub async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.send(Method::DELETE, path, Bytes::new()).await.map(drop)
    }

    /// Deletes what is at a path, and returns the answer's JSON.
    ///
    /// # Errors
    /// When the daemon does not answer, or refuses.
    pub async fn delete_for<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        Ok(serde_json::from_slice(&self.send(Method::DELETE, path, Bytes::new()).await?)?)
    }

    /// Gets a path's answer bit by bit, for as long as it goes on; `take` is given each bit as it comes.
    ///
    /// # Errors
    /// When the daemon does not answer, or refuses, or a bit cannot be taken.
    pub async fn stream(
        &self,
        path: &str,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let mut response = self.in_time(self.begin(Method::GET, path, Bytes::new())).await?;
        if !response.status().is_success() {
            let status = response.status();
            return Err(refusal(status, &response.into_body().collect().await?.to_bytes()));
        }
        while let Some(frame) = response.body_mut().frame().await {
            if let Ok(bytes) = frame?.into_data() {
                take(&bytes).map_err(ClientError::Output)?;
            }
        }
        Ok(())
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let (status, bytes) = self.in_time(self.converse(method, path, body)).await?;
        if status.is_success() { Ok(bytes) } else { Err(refusal(status, &bytes)) }
    }

    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let answer = timeout(self.within, answer).await;
        answer
            .unwrap_or_else(|_| Err(ClientError::NoAnswer { path: self.socket.clone(), within: self.within }))
    }

    async fn converse(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let response = self.begin(method, path, body).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }

    /// Sends a request; returns the beginning of the answer.
    async fn begin(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| self.unreachable(source))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "spillway");
        let request = request.body(Full::new(body)).map_err(|error| ClientError::Refused {
            field: None,
            message: format!("{path:?} cannot be asked for: {error}"),
        })?;
        Ok(sender.send_request(request).await?)
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        let path = self.socket.clone();
        match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Forbidden { path },
            _ => ClientError::NoDaemon { path, source },
        }
    }
}

/// A control socket for programs without a runtime: every call waits for its answer.
#[derive(Debug)]
pub struct BlockingClient {
    client: Client,
    runtime: Runtime,
}

impl BlockingClient {
    /// Returns a client of the daemon behind a socket; nothing is sent yet.
    ///
    /// # Errors
    /// When the kernel gives no descriptors for it.
    pub fn new(socket: &Path) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { client: Client::new(socket), runtime })
    }

    /// As [`Client::get`].
    ///
    /// # Errors
    /// When the daemon does not answer, or refuses.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.runtime.block_on(self.client.get(path))
    }

    /// As [`Client::put`].
    ///
    /// # Errors
    /// When the daemon does not answer, or refuses.
    pub fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.runtime.block_on(self.client.put(path, body))
    }

    /// As [`Client::delete`].
    ///
    /// # Errors
    /// When the daemon does not answer, or refuses.
    pub fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.runtime.block_on(self.client.delete(path))
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(ErrorBody { error }) => ClientError::Refused { field: error.field, message: error.message },
        Err(_) => ClientError::Refused { field: None, message: format!("the daemon answered {status}") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_daemon_that_does_not_answer_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _silent = tokio::net::UnixListener::bind(&path).unwrap();
        let client = Client { within: Duration::from_millis(10), ..Client::new(&path) };
        let answer = client.get::<u32>("/v1/status").await;
        assert!(matches!(answer, Err(ClientError::NoAnswer { .. })), "{answer:?}");
    }
}
