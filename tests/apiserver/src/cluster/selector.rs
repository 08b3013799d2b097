//! Label and field selectors (Kubernetes, "Labels and Selectors" and "Field Selectors").

use serde_json::{Map, Value};

use super::store::Object;
use crate::error::ApiError;

/// Which objects of a resource a request is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    pub(crate) namespace: Option<String>,
    labels: Vec<LabelTerm>,
    fields: Vec<FieldTerm>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct LabelTerm {
    key: String,
    test: LabelTest,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum LabelTest {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldTerm {
    pointer: String,
    value: String,
    equal: bool,
}

impl Selector {
    /// Parses the query parameters `labelSelector` and `fieldSelector`.
    ///
    /// # Errors
    /// 400 when one cannot be read, or names a field that the resource does not select by.
    pub(crate) fn parse(
        resource: &str,
        namespace: Option<&str>,
        labels: &str,
        fields: &str,
    ) -> Result<Self, ApiError> {
        let labels = split_terms(labels).into_iter().map(label_term).collect::<Result<_, _>>()?;
        let fields = fields.split(',').map(str::trim).filter(|term| !term.is_empty());
        let fields = fields.map(|term| field_term(resource, term)).collect::<Result<_, _>>()?;
        Ok(Self { namespace: namespace.map(str::to_owned), labels, fields })
    }

    /// Returns whether an object is selected.
    pub(crate) fn matches(&self, object: &Object) -> bool {
        let metadata = object.metadata();
        let labels = metadata.get("labels").and_then(Value::as_object);
        self.namespace
            .as_ref()
            .is_none_or(|namespace| metadata.get("namespace").and_then(Value::as_str) == Some(namespace))
            && self.labels.iter().all(|term| term.holds(labels))
            && self.fields.iter().all(|term| term.holds(&object.value))
    }
}

impl LabelTerm {
    fn holds(&self, labels: Option<&Map<String, Value>>) -> bool {
        let value = labels.and_then(|labels| labels.get(&self.key)).and_then(Value::as_str);
        match &self.test {
            LabelTest::In(values) => value.is_some_and(|value| values.iter().any(|one| one == value)),
            LabelTest::NotIn(values) => value.is_none_or(|value| values.iter().all(|one| one != value)),
            LabelTest::Exists => value.is_some(),
            LabelTest::Absent => value.is_none(),
        }
    }
}

impl FieldTerm {
    fn holds(&self, object: &Value) -> bool {
        let text = match object.pointer(&self.pointer) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Bool(value)) => value.to_string(),
            Some(Value::Number(value)) => value.to_string(),
            Some(Value::Null | Value::Array(_) | Value::Object(_)) | None => String::new(),
        };
        (text == self.value) == self.equal
    }
}

/// Splits at commas outside of parentheses.
fn split_terms(text: &str) -> Vec<&str> {
    let mut depth = 0_u32;
    let at_comma = move |letter: char| {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        letter == ',' && depth == 0
    };
    text.split(at_comma).map(str::trim).filter(|term| !term.is_empty()).collect()
}

fn label_term(term: &str) -> Result<LabelTerm, ApiError> {
    let wrong = || ApiError::bad_request(format!("unable to parse requirement: labelSelector {term:?}"));
    let (key, test) = if let Some((key, value)) = term.split_once("!=") {
        (key, LabelTest::NotIn(vec![value.trim().to_owned()]))
    } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (key, LabelTest::In(vec![value.trim().to_owned()]))
    } else if let Some((head, values)) = term.split_once('(') {
        let values = values.strip_suffix(')').ok_or_else(wrong)?;
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        match head.split_whitespace().collect::<Vec<_>>().as_slice() {
            [key, "in"] => (*key, LabelTest::In(values)),
            [key, "notin"] => (*key, LabelTest::NotIn(values)),
            _ => return Err(wrong()),
        }
    } else if let Some(key) = term.strip_prefix('!') {
        (key, LabelTest::Absent)
    } else {
        (term, LabelTest::Exists)
    };
    let key = key.trim();
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./".contains(letter);
    if key.is_empty() || !key.chars().all(plain) {
        return Err(wrong());
    }
    Ok(LabelTerm { key: key.to_owned(), test })
}

fn field_term(resource: &str, term: &str) -> Result<FieldTerm, ApiError> {
    let (field, value, equal) = if let Some((field, value)) = term.split_once("!=") {
        (field, value, false)
    } else if let Some((field, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (field, value, true)
    } else {
        return Err(ApiError::bad_request(format!("invalid selector: {term:?}; can't understand it")));
    };
    let own: &[&str] = match resource {
        "pods" => &["spec.nodeName", "spec.hostNetwork", "spec.serviceAccountName", "status.phase"],
        "events" => &[
            "involvedObject.kind",
            "involvedObject.name",
            "involvedObject.namespace",
            "involvedObject.uid",
            "reason",
            "type",
        ],
        "events.events.k8s.io" => {
            &["regarding.kind", "regarding.name", "regarding.namespace", "reason", "type"]
        }
        "nodes" => &["spec.unschedulable"],
        "namespaces" => &["status.phase"],
        _ => &[],
    };
    if !own.contains(&field) && !["metadata.name", "metadata.namespace"].contains(&field) {
        return Err(ApiError::bad_request(format!("field label not supported: {field}")));
    }
    Ok(FieldTerm { pointer: format!("/{}", field.replace('.', "/")), value: value.to_owned(), equal })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_select_by_equality_and_by_sets() {
        let cases = [
            ("", true),
            ("app=gw", true),
            ("app==gw,tier!=db", true),
            ("app in (web, gw),zone", true),
            ("app notin (gw)", false),
            ("!zone", false),
            ("missing notin (a)", true),
            ("missing", false),
            ("missing!=a", true),
        ];
        let object = Object::new(json!({"metadata": {"labels": {"app": "gw", "zone": ""}}}), 1);

        for (labels, expected) in cases {
            let selector = Selector::parse("pods", None, labels, "").unwrap();
            assert_eq!(selector.matches(&object), expected, "{labels}");
        }
    }

    #[test]
    fn a_selector_that_cannot_be_read_is_a_bad_request() {
        for (labels, fields) in
            [("a in b", ""), ("=x", ""), ("a in (b", ""), ("", "spec.colour=red"), ("", "x")]
        {
            let error = Selector::parse("pods", None, labels, fields).unwrap_err();
            assert_eq!(error.code(), 400, "{labels} {fields}");
        }
    }

    #[test]
    fn pods_are_selected_by_their_node() {
        let object = Object::new(json!({"metadata": {"name": "p"}, "spec": {"nodeName": "w1"}}), 1);

        for (fields, expected) in
            [("spec.nodeName=w1", true), ("spec.nodeName!=w1", false), ("metadata.name=q", false)]
        {
            let selector = Selector::parse("pods", None, "", fields).unwrap();
            assert_eq!(selector.matches(&object), expected, "{fields}");
        }
    }
}
