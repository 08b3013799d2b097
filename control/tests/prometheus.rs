//! The alerts and the dashboard in deploy/: that Prometheus' own tool takes them, that alerts fire when they should, and that
//! they ask for metrics that there are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use control::metrics::reference;
use control::metrics::table::Kind;
use serde_json::{Value, json};

#[test]
fn the_alerts_are_rules_that_prometheus_takes_and_fire_when_they_should() {
    promtool(&["check", "rules", "alerts.yaml"]);
    promtool(&["test", "rules", "tests.yaml"]);
}

#[test]
fn every_alert_is_tested() {
    let tests = std::fs::read_to_string(prometheus().join("tests.yaml")).unwrap();
    let tests: Vec<Value> = serde_saphyr::from_multiple(&tests).unwrap();
    let cases = tests[0]["tests"].as_array().unwrap().iter();
    let cases = cases.flat_map(|test| test["alert_rule_test"].as_array().unwrap());
    let firing = cases.filter(|case| case["exp_alerts"].as_array().is_some_and(|alerts| !alerts.is_empty()));
    let tested: BTreeSet<_> = firing.map(|case| case["alertname"].as_str().unwrap().to_owned()).collect();
    let alerts: BTreeSet<_> = rules().iter().map(|rule| rule["alert"].as_str().unwrap().to_owned()).collect();
    assert_eq!(tested, alerts);
}

#[test]
fn every_alert_says_how_grave_it_is_and_what_to_do() {
    for rule in rules() {
        let severity = rule["labels"]["severity"].as_str();
        assert!(matches!(severity, Some("critical" | "warning")), "{rule}");
        for text in ["summary", "description"] {
            assert!(rule["annotations"][text].as_str().is_some_and(|text| text.len() > 20), "{rule}");
        }
    }
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
    let known: BTreeSet<String> = reference()
        .iter()
        .flat_map(|metric| match metric.kind {
            Kind::Counter | Kind::Gauge => vec![metric.name.to_owned()],
            Kind::Histogram => {
                ["bucket", "sum", "count"].map(|part| format!("{}_{part}", metric.name)).into()
            }
        })
        .collect();
    let alerts = rules().into_iter().map(|rule| rule["expr"].as_str().unwrap().to_owned());
    for expression in alerts.chain(queries()).chain(variables()) {
        let named: Vec<_> = metrics_in(&expression).collect();
        let is_ours = !expression.starts_with("up{");
        assert!(!is_ours || !named.is_empty(), "{expression} asks for nothing of ours");
        for name in named {
            assert!(known.contains(name), "{name} is no metric: {expression}");
        }
    }
}

#[test]
fn prometheus_understands_every_query_of_the_dashboard() {
    let queries = queries();
    assert!(queries.len() > 30, "{queries:?}");
    let rule = |(number, query): (usize, &String)| {
        let query =
            query.replace("$instance", ".*").replace("$tenant", ".*").replace("$__rate_interval", "5m");
        assert!(!query.contains('$'), "{query}");
        json!({ "record": format!("dashboard:query_{number}"), "expr": query })
    };
    let rules: Vec<_> = queries.iter().enumerate().map(rule).collect();
    let file = json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("dashboard.yaml");
    std::fs::write(&path, file.to_string()).unwrap(); // JSON is YAML
    promtool(&["check", "rules", path.to_str().unwrap()]);
}

#[test]
fn the_dashboard_asks_the_data_source_that_is_chosen() {
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["datasource", "instance", "tenant"]);
    let mut ids = BTreeSet::new();
    for panel in panels(&dashboard) {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        }
    }
}

fn promtool(arguments: &[&str]) {
    let mut command = Command::new("promtool");
    let Output { status, stdout, stderr } = command
        .args(arguments)
        .current_dir(prometheus())
        .output()
        .expect("promtool is missing; scripts/install-deps installs it");
    let said = [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(status.success(), "promtool {arguments:?}: {said}");
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn prometheus() -> PathBuf {
    deploy().join("prometheus")
}

/// Returns the rules of all groups.
fn rules() -> Vec<Value> {
    let text = std::fs::read_to_string(prometheus().join("alerts.yaml")).expect("the file is there");
    let file: Vec<Value> = serde_saphyr::from_multiple(&text).expect("the file is YAML");
    let groups = file[0]["groups"].as_array().expect("a list").iter();
    groups.flat_map(|group| group["rules"].as_array().expect("a list").clone()).collect()
}

fn dashboard() -> Value {
    let text = std::fs::read_to_string(deploy().join("grafana/spillway.json")).expect("the file is there");
    serde_json::from_str(&text).expect("the file is JSON")
}

fn panels(dashboard: &Value) -> &Vec<Value> {
    dashboard["panels"].as_array().expect("a list")
}

/// Returns the queries of all panels.
fn queries() -> Vec<String> {
    let dashboard = dashboard();
    let targets = panels(&dashboard).iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.map(|target| target["expr"].as_str().expect("a text").to_owned()).collect()
}

/// Returns the queries of all variables.
fn variables() -> Vec<String> {
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().expect("a list");
    variables.iter().filter_map(|variable| Some(variable["definition"].as_str()?.to_owned())).collect()
}

/// Returns the words of an expression that are metrics of Spillway.
fn metrics_in(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("spillway_"))
}
