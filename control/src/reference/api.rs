//! The page about the control socket.

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value};

use super::schema::Definitions;
use super::{head, table};
use crate::api::types::{
    EndedSessions, ErrorBody, LogChange, LogView, RouteView, SessionPage, Status, TenantView,
};
use crate::api::{ENDPOINTS, MAX_BODY_BYTES};
use crate::explanation::Explanation;
use crate::nat_log::who::Answer;
use crate::query::imagined::ImaginedPacket;
use crate::query::look::Look;
use crate::query::selection::Selection;
use crate::tenant::Tenant;
use crate::vitals::Fitness;

/// Types in the order of the page; those that they are made of follow.
const ORDER: [&str; 17] = [
    "Status",
    "Fitness",
    "TenantView",
    "Tenant",
    "TenantStatus",
    "RouteView",
    "SessionPage",
    "SessionView",
    "Selection",
    "ImaginedPacket",
    "Explanation",
    "StageView",
    "Look",
    "WhoAnswer",
    "Holder",
    "LogView",
    "LogChange",
];

/// Returns the page.
pub(super) fn page() -> String {
    let rows = ENDPOINTS.iter().map(|endpoint| {
        let request = format!("`{} {}`", endpoint.method, endpoint.path);
        vec![request, endpoint.takes.to_owned(), endpoint.answers.to_owned()]
    });
    head("Control socket", "`control/src/api`")
        + &introduction()
        + "\n## Requests\n\n"
        + &table(&["request", "takes", "answers"], rows)
        + "\nOver plain HTTP, where `[control] health` names an address: `/healthz` and `/readyz`, as `/v1/health` and \
           `/v1/ready`; at the address of `[control] metrics`: `/metrics`, as `/v1/metrics`.\n"
        + &types()
}

fn introduction() -> String {
    format!(
        "
The daemon speaks HTTP/1.1 and JSON on a unix socket, `/run/spillway/spillway.sock` unless `--socket`, `SPILLWAY_SOCKET` or
the config file names another. The command line is a client of it. For example:

```sh
curl -s --unix-socket /run/spillway/spillway.sock http://spillway/v1/status | jq .drops
```

Names of fields are camelCase and stable; fields may be added. Whom the socket's file lets in may look; changes are taken
from root, the daemon's user and the socket's group (see [operations](operations.md#security)). A body has at most {MAX_BODY_BYTES} bytes.

A refusal is a 4xx or 5xx with an `ErrorBody`: 400 what cannot be read, 403 a change by who may only look, 404 no such
path or tenant, 409 a conflict with another tenant, 413 a body that is too large, 422 a value that is not accepted, 503
while the daemon stops.

```json
{{\"error\": {{\"field\": \"gatewayIP\", \"message\": \"…\"}}}}
```
"
    )
}

fn types() -> String {
    let schemas = schemas();
    let definitions = Definitions { by_name: &schemas, has_sections: true };
    let mut names: Vec<_> = schemas.keys().map(String::as_str).collect();
    names.sort_by_key(|name| (ORDER.iter().position(|first| first == name).unwrap_or(ORDER.len()), *name));
    let section = |name: &&str| {
        let schema = &schemas[*name];
        let meaning = schema["description"].as_str().unwrap_or_default();
        (schema["properties"].is_object())
            .then(|| format!("\n## {name}\n\n{meaning}\n\n{}", definitions.table(schema, false)))
    };
    names.iter().filter_map(section).collect()
}

/// Returns the schemas of everything that is answered or taken, by name.
fn schemas() -> Map<String, Value> {
    fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
        generator.subschema_for::<T>();
    }
    let mut generator = SchemaGenerator::default();
    add::<Status>(&mut generator);
    add::<Fitness>(&mut generator);
    add::<TenantView>(&mut generator);
    add::<Tenant>(&mut generator);
    add::<RouteView>(&mut generator);
    add::<SessionPage>(&mut generator);
    add::<Selection>(&mut generator);
    add::<EndedSessions>(&mut generator);
    add::<ImaginedPacket>(&mut generator);
    add::<Explanation>(&mut generator);
    add::<Look>(&mut generator);
    add::<Answer>(&mut generator);
    add::<LogView>(&mut generator);
    add::<LogChange>(&mut generator);
    add::<ErrorBody>(&mut generator);
    generator.take_definitions(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_says_what_it_means() {
        let schemas = schemas();
        let definitions = Definitions { by_name: &schemas, has_sections: true };
        for (name, schema) in &schemas {
            let silent: Vec<_> =
                definitions.fields(schema).into_iter().filter(|field| field.meaning.is_empty()).collect();
            assert!(silent.is_empty(), "{name}: {:?}", silent.iter().map(|it| it.name).collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_type_of_the_table_of_requests_is_on_the_page() {
        let page = page();
        for endpoint in ENDPOINTS {
            for name in [endpoint.takes, endpoint.answers].join(" ").split('`').skip(1).step_by(2) {
                let is_type = name.chars().next().is_some_and(char::is_uppercase);
                assert!(!is_type || page.contains(&format!("\n## {name}\n")), "{name} is not described");
            }
        }
    }
}
