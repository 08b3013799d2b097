//! Questions about what the client may do (`SelfSubjectAccessReview`).

use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::answer::{self, Body};
use super::request::ResourcePath;
use crate::cluster::resource::identity;
use crate::error::ApiError;
use crate::faults::Faults;

pub(super) const GROUP: &str = "authorization.k8s.io";
pub(super) const PLURAL: &str = "selfsubjectaccessreviews";
pub(super) const KIND: &str = "SelfSubjectAccessReview";

/// Answers a review from the denials that are switched on.
///
/// # Errors
/// 400 when it cannot be read; 404 for other reviews.
pub(super) fn answer(faults: &Faults, path: &ResourcePath, body: &[u8]) -> Result<Response<Body>, ApiError> {
    if path.plural != PLURAL || path.version != "v1" {
        return Err(ApiError::no_such_path());
    }
    let review: Value =
        serde_json::from_slice(body).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let asked = &review["spec"]["resourceAttributes"];
    let text = |key: &str| asked[key].as_str().unwrap_or_default();
    let verb = text("verb")
        .parse()
        .map_err(|error: String| ApiError::bad_request(format!("spec.resourceAttributes.{error}")))?;
    let name = identity(text("group"), text("resource"));
    let name = if text("subresource").is_empty() { name } else { format!("{name}/{}", text("subresource")) };
    let allowed = !faults.is_denied(verb, &name);
    let told = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": KIND, "metadata": {"creationTimestamp": null},
        "spec": review["spec"], "status": {"allowed": allowed},
    });
    Ok(answer::value(StatusCode::CREATED, &told))
}
