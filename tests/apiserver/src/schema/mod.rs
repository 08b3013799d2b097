//! Schemas of custom resources: what a definition may say, and what an object must be.

mod fill;
mod lists;
mod structural;
mod translate;

use serde_json::Value;

use crate::error::Cause;

/// The schema of one custom resource, ready for use.
pub(crate) struct CustomSchema {
    schema: Value,
    fields: jsonschema::Validator,
    rules: kube_cel::CompiledSchema,
    evaluator: kube_cel::Validator,
}

impl CustomSchema {
    /// Reads an `openAPIV3Schema`.
    ///
    /// # Errors
    /// What a server refuses about it (Kubernetes, "Specifying a structural schema"), each with its path below `path`.
    pub(crate) fn read(schema: &Value, path: &str) -> Result<Self, Vec<Cause>> {
        let wrong = structural::check(schema, path);
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let fields =
            translate::validator(schema).map_err(|error| vec![Cause::invalid(path, error.to_string())])?;
        let rules = kube_cel::compile_schema(schema);
        let read = Self { schema: schema.clone(), fields, rules, evaluator: kube_cel::Validator::new() };
        let wrong =
            structural::check_defaults(schema, path, &|part, value| read.refuses_default(part, value));
        if wrong.is_empty() { Ok(read) } else { Err(wrong) }
    }

    /// Drops unknown fields and fills in defaults; returns the paths of what was dropped.
    pub(crate) fn fill(&self, object: &mut Value) -> Vec<String> {
        let mut dropped = Vec::new();
        fill::prune(&self.schema, object, "", true, &mut dropped);
        fill::default(&self.schema, object);
        dropped
    }

    /// Returns why an object is refused, in the light of the one it replaces.
    pub(crate) fn refuse(&self, object: &Value, old: Option<&Value>) -> Vec<Cause> {
        let mut causes: Vec<_> =
            self.fields.iter_errors(object).map(|error| translate::cause(&error)).collect();
        lists::check(&self.schema, object, "", &mut causes);
        // Rules run on objects whose fields are right; otherwise they would speak of their own errors.
        if causes.is_empty()
            && let Err(errors) = self.evaluator.validate_compiled(&self.rules, object, old)
        {
            causes.extend(errors.into_vec().into_iter().map(broken_rule));
        }
        causes
    }

    fn refuses_default(&self, part: &Value, value: &Value) -> Option<String> {
        let mut pruned = value.clone();
        let mut dropped = Vec::new();
        fill::prune(part, &mut pruned, "", false, &mut dropped);
        if let Some(unknown) = dropped.first() {
            return Some(format!("must not have unknown fields: {unknown}"));
        }
        let validator = translate::validator(part).ok()?;
        fill::default(part, &mut pruned);
        let wrong = validator.iter_errors(&pruned).next().map(|error| error.to_string());
        wrong.or_else(|| self.evaluator.validate(part, &pruned, None).err().map(|errors| errors.to_string()))
    }
}

impl std::fmt::Debug for CustomSchema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CustomSchema").field("schema", &self.schema).finish_non_exhaustive()
    }
}

fn broken_rule(error: kube_cel::ValidationError) -> Cause {
    let reason = match error.reason.as_deref() {
        Some("FieldValueForbidden") => "FieldValueForbidden",
        Some("FieldValueRequired") => "FieldValueRequired",
        Some("FieldValueDuplicate") => "FieldValueDuplicate",
        _ => "FieldValueInvalid",
    };
    Cause { field: error.field_path, reason, message: error.message }
}

/// Joins a path and a field as Kubernetes writes them: `spec.egressIPs`.
fn below(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

fn flag(schema: &Value, key: &str) -> bool {
    schema.get(key).and_then(Value::as_bool).unwrap_or(false)
}

#[cfg(test)]
mod tests;
