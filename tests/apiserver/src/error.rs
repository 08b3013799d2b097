//! What the server refuses, in the API's own words: a `Status` object with a code and a reason.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, StatusCause, StatusDetails};

/// An answer that refuses: the `Status` object of the Kubernetes API conventions, "Response Status Kind".
#[derive(Debug, Clone)]
pub struct ApiError {
    status: Box<Status>,
    retry_after: Option<u32>,
}

/// Why one field was refused: path, reason as in `StatusCause`, and the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    pub(crate) field: String,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Cause {
    pub(crate) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), reason: "FieldValueInvalid", message: message.into() }
    }

    pub(crate) fn required(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), reason: "FieldValueRequired", message: message.into() }
    }

    pub(crate) fn forbidden(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), reason: "FieldValueForbidden", message: message.into() }
    }

    pub(crate) fn duplicate(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), reason: "FieldValueDuplicate", message: message.into() }
    }

    /// Returns the message as the API begins it: with the kind of the error.
    fn told(&self) -> String {
        let kind = match self.reason {
            "FieldValueRequired" => "Required value",
            "FieldValueForbidden" => "Forbidden",
            "FieldValueDuplicate" => "Duplicate value",
            "FieldValueNotSupported" => "Unsupported value",
            _ => "Invalid value",
        };
        format!("{kind}: {}", self.message)
    }
}

impl ApiError {
    /// Returns the HTTP status code, such as 409.
    #[must_use]
    pub fn code(&self) -> u16 {
        self.status.code.and_then(|code| u16::try_from(code).ok()).unwrap_or(500)
    }

    /// Returns the machine-readable reason, such as `AlreadyExists`.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.status.reason.as_deref().unwrap_or_default()
    }

    /// Returns the whole answer.
    #[must_use]
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Returns after how many seconds a client may ask again, where the answer says so.
    pub(crate) fn retry_after(&self) -> Option<u32> {
        self.retry_after
    }

    pub(crate) fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        let status = Status {
            code: Some(code.into()),
            reason: Some(reason.into()),
            message: Some(message.into()),
            status: Some("Failure".into()),
            ..Status::default()
        };
        Self { status: Box::new(status), retry_after: None }
    }

    /// Names the object that the answer is about.
    pub(crate) fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        let details = self.status.details.get_or_insert_with(StatusDetails::default);
        details.group = (!group.is_empty()).then(|| group.to_owned());
        details.kind = Some(kind.to_owned());
        details.name = (!name.is_empty()).then(|| name.to_owned());
        self
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(403, "Forbidden", message)
    }

    pub(crate) fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    pub(crate) fn not_found(group: &str, plural: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", qualified(group, plural));
        Self::new(404, "NotFound", message).about(group, plural, name)
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    pub(crate) fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", qualified(group, plural));
        Self::new(409, "AlreadyExists", message).about(group, plural, name)
    }

    pub(crate) fn conflict(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", qualified(group, plural));
        Self::new(409, "Conflict", message).about(group, plural, name)
    }

    /// The version asked for is older than what is kept (API concepts, "410 Gone responses").
    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    pub(crate) fn unsupported_media_type(content_type: &str) -> Self {
        let message = format!("the body of the request was in an unknown format: {content_type}");
        Self::new(415, "UnsupportedMediaType", message)
    }

    pub(crate) fn invalid(group: &str, kind: &str, name: &str, causes: &[Cause]) -> Self {
        let sentences: Vec<_> =
            causes.iter().map(|cause| format!("{}: {}", cause.field, cause.told())).collect();
        let list = match sentences.as_slice() {
            [one] => one.clone(),
            several => format!("[{}]", several.join(", ")),
        };
        let message = format!("{} \"{name}\" is invalid: {list}", qualified(group, kind));
        let mut error = Self::new(422, "Invalid", message).about(group, kind, name);
        let details = error.status.details.get_or_insert_with(StatusDetails::default);
        let told = |cause: &Cause| StatusCause {
            field: Some(cause.field.clone()),
            reason: Some(cause.reason.to_owned()),
            message: Some(cause.told()),
        };
        details.causes = Some(causes.iter().map(told).collect());
        error
    }

    pub(crate) fn too_many_requests(retry_after: u32) -> Self {
        let message = "the server has received too many requests and has asked us to try again later";
        let mut error = Self::new(429, "TooManyRequests", message);
        error.retry_after = Some(retry_after);
        let details = error.status.details.get_or_insert_with(StatusDetails::default);
        details.retry_after_seconds = i32::try_from(retry_after).ok();
        error
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "InternalError", message)
    }

    /// The version asked for has not been reached yet (API concepts, "Unavailable resource versions").
    pub(crate) fn version_in_the_future(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        Self::new(504, "Timeout", message)
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let message = self.status.message.as_deref().unwrap_or_default();
        write!(f, "{} {}: {message}", self.code(), self.reason())
    }
}

impl std::error::Error for ApiError {}

fn qualified(group: &str, name: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}
