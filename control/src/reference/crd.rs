//! The page about the custom resource.

use kube::CustomResourceExt;
use serde_json::{Map, Value};

use super::schema::Definitions;
use super::{head, table};
use crate::kubernetes::egress_tenant::EgressTenant;

/// Returns the page.
pub(super) fn page() -> String {
    let definition = serde_json::to_value(EgressTenant::crd()).unwrap_or_default();
    let version = &definition["spec"]["versions"][0];
    let properties = &version["schema"]["openAPIV3Schema"]["properties"];
    let mut page = head("EgressTenant", "`control/src/kubernetes/egress_tenant.rs`") + INTRODUCTION;
    for part in ["spec", "status"] {
        page += &section(&format!("`{part}`"), part, &properties[part]);
    }
    page + "\n## Columns of `kubectl get`\n\n" + &columns(version)
}

const INTRODUCTION: &str = "
A tenant of the gateway as an object of the cluster: `egresstenants.spillway.dev`, cluster-scoped, short name `egt`, version
`v1alpha1`. `spillway crd` prints the definition ([deploy/crd.yaml](../deploy/crd.yaml)), and
[deploy/kubernetes](../deploy/kubernetes/README.md) says how to install it.

```yaml
apiVersion: spillway.dev/v1alpha1
kind: EgressTenant
metadata: { name: ns-blue }
spec:
  gatewayIP: 192.168.99.13
  egressIPs: [192.168.55.113]
  sources: { fromPolicy: true }
```

The API server checks what the table says, and besides the rules below each table; the gateway checks what concerns other
tenants and the host, and answers in the conditions of the status: `Accepted` (the specification is sound and conflicts
with nothing), `Programmed` (every worker forwards by it), `Routed` (a policy routes to it), `SourcesMatch` (what arrives is
what `sources` says).
";

/// Writes an object, and the objects in it as sections of their own.
fn section(title: &str, path: &str, object: &Value) -> String {
    let none = Map::new();
    let definitions = Definitions { by_name: &none, has_sections: false };
    let meaning = object["description"].as_str().unwrap_or_default();
    let mut text = format!("\n## {title}\n\n{meaning}\n\n{}", definitions.table(object, true));
    for rule in object["x-kubernetes-validations"].as_array().into_iter().flatten() {
        text += &format!("\nRefused: {}.\n", rule["message"].as_str().unwrap_or_default());
    }
    for field in definitions.fields(object) {
        if let Some(inner) = field.object {
            let path = format!("{path}.{}{}", field.name, if field.is_list { "[]" } else { "" });
            text += &section(&format!("`{path}`"), &path, inner);
        }
    }
    text
}

fn columns(version: &Value) -> String {
    let text = |column: &Value, name: &str| column[name].as_str().unwrap_or_default().to_owned();
    let rows = version["additionalPrinterColumns"].as_array().into_iter().flatten().map(|column| {
        let wide = if column["priority"].as_i64().unwrap_or(0) > 0 { "with `-o wide`" } else { "" };
        vec![text(column, "name"), format!("`{}`", text(column, "jsonPath")), wide.to_owned()]
    });
    table(&["column", "shows", ""], rows)
}
