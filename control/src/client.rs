//! The command line's end of the control socket.

use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;

use crate::api::types::ErrorBody;

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
    /// The conversation broke off.
    #[error("the daemon broke off")]
    Broken(#[from] hyper::Error),
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
}

impl Client {
    /// Returns a client of the daemon behind a socket; nothing is sent yet.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Tells whether a daemon listens on the socket.
    pub async fn daemon_listens(&self) -> bool {
        UnixStream::connect(&self.socket).await.is_ok()
    }

    /// Gets a path's JSON.
    ///
    /// # Errors
    /// When the daemon does not answer, or refuses.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        Ok(serde_json::from_slice(&self.send(Method::GET, path, Bytes::new()).await?)?)
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

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| self.unreachable(source))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "spillway");
        let request = request.body(Full::new(body)).map_err(|error| ClientError::Refused {
            field: None,
            message: format!("{path:?} cannot be asked for: {error}"),
        })?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        driver.abort();
        if status.is_success() { Ok(bytes) } else { Err(refusal(status, &bytes)) }
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        let path = self.socket.clone();
        match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Forbidden { path },
            _ => ClientError::NoDaemon { path, source },
        }
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(ErrorBody { error }) => ClientError::Refused { field: error.field, message: error.message },
        Err(_) => ClientError::Refused { field: None, message: format!("the daemon answered {status}") },
    }
}
