//! Answers: JSON, errors as `Status` objects, and streams.

use http_body_util::channel::Channel;
use http_body_util::{Either, Full};
use hyper::body::Bytes;
use hyper::{Response, StatusCode, header};
use serde_json::Value;

use crate::error::ApiError;

/// The body of an answer: whole, or sent as it comes.
pub(crate) type Body = Either<Full<Bytes>, Channel<Bytes, Broken>>;

/// An answer that ends in the middle: the connection breaks.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the connection was broken on purpose")]
pub(crate) struct Broken;

pub(crate) fn json(code: StatusCode, bytes: Bytes) -> Response<Body> {
    respond(code, Either::Left(Full::new(bytes)))
}

pub(crate) fn value(code: StatusCode, value: &Value) -> Response<Body> {
    json(code, value.to_string().into())
}

pub(crate) fn stream(channel: Channel<Bytes, Broken>) -> Response<Body> {
    respond(StatusCode::OK, Either::Right(channel))
}

pub(crate) fn error(error: &ApiError) -> Response<Body> {
    let code = StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let status = serde_json::to_vec(error.status()).expect("a Status has text keys only");
    let mut response = json(code, status.into());
    if let Some(seconds) = error.retry_after() {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

fn respond(code: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}
