//! Refusals as HTTP answers.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::handlers::MAX_BODY_BYTES;
use super::types::{ErrorBody, ErrorDetail};
use crate::refusal::Refusal;

/// A refusal and its status code.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    detail: ErrorDetail,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, detail: ErrorDetail { field: None, message: message.into() } }
    }

    pub(super) fn body_too_large() -> Self {
        let message = format!("the body is over {MAX_BODY_BYTES} bytes");
        Self::of_field(StatusCode::PAYLOAD_TOO_LARGE, "body", message)
    }

    pub(super) fn of_field(status: StatusCode, field: &str, message: impl Into<String>) -> Self {
        Self { status, detail: ErrorDetail { field: Some(field.to_owned()), message: message.into() } }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let field = refusal.field().map(str::to_owned);
        let (status, message) = match refusal {
            Refusal::Malformed { message, .. } => (StatusCode::BAD_REQUEST, message),
            Refusal::Invalid { message, .. } => (StatusCode::UNPROCESSABLE_ENTITY, message),
            Refusal::Conflict { message, .. } => (StatusCode::CONFLICT, message),
            Refusal::UnknownTenant { .. } => (StatusCode::NOT_FOUND, refusal.to_string()),
            Refusal::Failed { message } => (StatusCode::INTERNAL_SERVER_ERROR, message),
        };
        Self { status, detail: ErrorDetail { field, message } }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorBody { error: self.detail })).into_response()
    }
}
