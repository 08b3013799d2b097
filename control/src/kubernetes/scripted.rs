//! A client for tests, whose every request is answered by a function.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use futures_util::{StreamExt, stream};
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};
use hyper::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tower::{BoxError, service_fn};

use super::connection::Connection;
use super::credentials::Connected;

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) path: String,
    pub(super) query: String,
    /// The body; null when there is none.
    pub(super) body: Value,
}

/// An answer.
pub(super) enum Answer {
    /// A status code and a body.
    Json(u16, Value),
    /// A stream of watch events that ends when the sender is dropped.
    Events(mpsc::UnboundedReceiver<Value>),
    /// Too many requests; seconds until the next may come.
    Throttled(u64),
    /// The connection is refused.
    Refused,
    /// Nothing ever comes.
    Silence,
}

impl Call {
    pub(super) fn is_watch(&self) -> bool {
        self.query.contains("watch=true")
    }
}

/// Returns a client whose requests are answered by this function.
pub(super) fn client(answer: impl FnMut(&Call) -> Answer + Send + 'static) -> Client {
    let answer = Arc::new(Mutex::new(answer));
    let service = service_fn(move |request: Request<Body>| {
        let answer = answer.clone();
        async move {
            let (parts, body) = request.into_parts();
            let call = Call {
                path: parts.uri.path().to_owned(),
                query: parts.uri.query().unwrap_or_default().to_owned(),
                body: serde_json::from_slice(&body.collect_bytes().await?).unwrap_or(Value::Null),
            };
            let answer = (*answer.lock().unwrap())(&call);
            respond(answer).await
        }
    });
    Client::new(service, "default")
}

/// Returns a connection whose requests are answered by this function.
pub(super) fn connection(answer: impl FnMut(&Call) -> Answer + Send + 'static) -> Connection {
    let connection = Connection::new();
    connection.adopt(Connected { client: client(answer), server: "https://api".to_owned() });
    connection
}

async fn respond(
    answer: Answer,
) -> Result<Response<StreamBody<stream::BoxStream<'static, Piece>>>, BoxError> {
    let mut response = Response::builder();
    let (code, pieces) = match answer {
        Answer::Json(code, body) => (code, stream::iter([piece(&body)]).boxed()),
        Answer::Events(events) => {
            let events = stream::unfold(events, async |mut events| Some((events.recv().await?, events)));
            (200, events.map(|event| piece(&event)).boxed())
        }
        Answer::Throttled(seconds) => {
            response = response.header("Retry-After", seconds.to_string());
            (429, stream::iter([piece(&status(429, "too many requests"))]).boxed())
        }
        Answer::Refused => return Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into()),
        Answer::Silence => std::future::pending().await,
    };
    Ok(response.status(code).body(StreamBody::new(pieces))?)
}

type Piece = Result<Frame<Bytes>, Infallible>;

fn piece(value: &Value) -> Piece {
    Ok(Frame::data(Bytes::from(format!("{value}\n"))))
}

/// Returns one chunk of a list; an empty token says that it is the last.
pub(super) fn list(version: u32, next: &str, items: &[Value]) -> Answer {
    let metadata = json!({"resourceVersion": version.to_string(), "continue": next});
    Answer::Json(200, json!({"apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items}))
}

/// Returns an answer that is an error.
pub(super) fn refusal(code: u16, message: &str) -> Answer {
    Answer::Json(code, status(code, message))
}

/// Returns the status object of an error.
pub(super) fn status(code: u16, message: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "message": message, "reason": "X"})
}

/// Returns an object with a name, a version and this label.
pub(super) fn object(name: &str, version: u32, label: &str) -> Value {
    let metadata = json!({
        "name": name, "uid": format!("uid-{name}"), "resourceVersion": version.to_string(), "labels": {"a": label},
    });
    json!({"metadata": metadata}) // as in lists, whose items do not tell their kind
}

/// Returns a watch event.
pub(super) fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}
