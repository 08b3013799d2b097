//! Tenants of the cluster change under traffic, conflict with each other and with those of people, and drain.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use control::demo::command::text;
use control::demo::topology::{BLUE, Host, OUTSIDE, PODS, RED};
use control::demo::wait;
use serde_json::{Value, json};
use spillway_tests::cluster::{ClusterFixture, Prepared, SOON, tenant_object};
use spillway_tests::peers::{Peer, exchange};
use spillway_tests::stream::Stream;

/// Another egress address.
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 55, 115);

#[test]
fn a_tenant_that_is_changed_and_deleted_disturbs_no_other() -> Result<()> {
    let Some(cluster) = ClusterFixture::with_tenants()? else { return Ok(()) };
    let lab = &cluster.fixture.lab;
    let echo = Peer::udp_echo(lab, 7)?;
    let red = Stream::start(lab, &PODS[1], echo.address())?;
    let blue = || exchange(lab, PODS[0].host, &echo, b"blue");
    assert_eq!(blue()?.0, BLUE.egress);
    cluster.change_tenant(BLUE.name, json!({"egressIPs": [OTHER]}))?;
    cluster.until_condition(BLUE.name, "Programmed", "True")?;
    assert_eq!(blue()?.0, OTHER);
    cluster.change_tenant(BLUE.name, json!({"limits": {"sessionsPerPod": 1}}))?;
    cluster.until_condition(BLUE.name, "Programmed", "True")?;
    assert!([blue(), blue()].iter().any(Result::is_err), "two sessions of a pod that may have one");
    cluster.change_tenant(BLUE.name, json!({"limits": {"sessionsPerPod": 0}}))?;
    cluster.until_condition(BLUE.name, "Programmed", "True")?;
    assert_eq!(blue()?.0, OTHER);
    cluster.delete_tenant(BLUE.name)?;
    until_gone(&cluster, BLUE.name)?;
    cluster.require_no_service(&BLUE)?;
    red.until_answered(50)?;
    let summary = cluster.fixture.finish_without_loss(&PODS[1], red)?;
    assert_eq!(summary.seen_as.len(), 1, "the session changed: {summary:?}");
    Ok(())
}

#[test]
fn of_tenants_that_want_the_same_the_oldest_has_it_until_it_goes() -> Result<()> {
    let Some(prepared) = Prepared::build()? else { return Ok(()) };
    let cluster = prepared.start()?;
    cluster.api.create(tenant("z-oldest", 15, 115))?;
    cluster.until_condition("z-oldest", "Accepted", "True")?;
    wait::pause(Duration::from_millis(1100))?; // the API tells ages in whole seconds
    cluster.api.create(tenant("a-egress", 16, 115))?;
    cluster.api.create(tenant("a-gateway", 15, 116))?;
    for (name, field) in
        [("a-egress", "egressIPs[0]: 192.168.55.115"), ("a-gateway", "gatewayIP: 192.168.99.15")]
    {
        let refused = cluster.until_condition(name, "Accepted", "False")?;
        let message = refused["message"].as_str().unwrap_or_default();
        assert_eq!(refused["reason"], "Conflict", "{refused}");
        assert!(message.contains(field) && message.contains("\"z-oldest\""), "{message}");
    }
    cluster.until_condition("z-oldest", "Accepted", "True")?;
    cluster.delete_tenant("z-oldest")?;
    cluster.until_condition("a-egress", "Programmed", "True")?;
    cluster.until_condition("a-gateway", "Programmed", "True").map(drop)
}

#[test]
fn tenants_of_the_config_file_and_of_the_socket_have_what_they_have() -> Result<()> {
    let Some(prepared) = Prepared::build()? else { return Ok(()) };
    let cluster = prepared.start_with(
        "\n[[tenant]]\nname = \"ns-file\"\ngateway_ip = \"192.168.99.15\"\negress_ips = [\"192.168.55.115\"]\n",
    )?;
    cluster.fixture.gateway.add_tenant(&RED)?;
    cluster.add_tenant(&BLUE)?;
    for (object, cause) in [
        (tenant("ns-file", 16, 116), "the config file"),
        (tenant_object(&RED), "the control socket"),
        (tenant("of-file", 17, 115), "tenant \"ns-file\" from the config file"),
        (tenant("of-red", 18, 114), "tenant \"ns-red\" from the control socket"),
    ] {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        cluster.api.create(object)?;
        let refused = cluster.until_condition(&name, "Accepted", "False")?;
        assert!(refused["message"].as_str().is_some_and(|message| message.contains(cause)), "{refused}");
    }
    let sources = [("ns-blue", "kubernetes"), ("ns-file", "configFile"), ("ns-red", "controlSocket")];
    let sources = sources.map(|(name, source)| (name.to_owned(), source.to_owned()));
    assert_eq!(cluster.tenant_sources()?, BTreeMap::from(sources));
    let add = ["tenant", "add", "thief", "--gw-ip", "192.168.99.19", "--egress-ip", "192.168.55.113"];
    let refused = cluster.fixture.gateway.installation().output(&add)?;
    let message = text(&refused.stderr);
    assert!(!refused.status.success() && message.contains("the Kubernetes API"), "{message}");
    cluster.fixture.gateway.remove_tenant(&RED)?;
    cluster.until_condition(RED.name, "Programmed", "True")?;
    wait::until("of-red is told who has its address now", SOON, || {
        let refused = cluster.until_condition("of-red", "Accepted", "False")?;
        let message = refused["message"].as_str().unwrap_or_default();
        Ok(message.contains("tenant \"ns-red\" from the Kubernetes API").then_some(()))
    })
}

#[test]
fn a_deleted_tenant_drains_if_it_says_so_and_else_goes_at_once() -> Result<()> {
    let Some(cluster) = ClusterFixture::with_tenants()? else { return Ok(()) };
    cluster.change_tenant(BLUE.name, json!({"drainSeconds": 12}))?;
    cluster.until_condition(BLUE.name, "Programmed", "True")?;
    let lab = &cluster.fixture.lab;
    let echo = Peer::udp_echo(lab, 7)?;
    let live = Stream::start(lab, &PODS[0], echo.address())?;
    live.until_answered(50)?;
    cluster.delete_tenant(BLUE.name)?;
    cluster.delete_tenant(RED.name)?;
    until_gone(&cluster, RED.name)?;
    assert!(cluster.tenant_sources()?.contains_key(BLUE.name), "it drains");
    live.until_answered(50)?;
    assert!(exchange(lab, PODS[2].host, &echo, b"new").is_err(), "a new session of a tenant that drains");
    assert!(cluster.fixture.drops("tenant_draining")? > 0);
    live.until_answered(50)?;
    until_gone(&cluster, BLUE.name)?;
    let gateway = lab.namespace(Host::Gateway);
    let (addresses, links) = (
        gateway.ip(&format!("-brief address show dev {OUTSIDE}"))?,
        gateway.ip("-brief link show type macvlan")?,
    );
    assert!(!addresses.contains("192.168.55.11"), "{addresses}");
    assert_eq!(links.trim(), "");
    cluster.require_no_service(&BLUE)
}

fn tenant(name: &str, gateway: u8, egress: u8) -> Value {
    let mut object = tenant_object(&BLUE);
    object["metadata"]["name"] = name.into();
    object["spec"]["gatewayIP"] = format!("192.168.99.{gateway}").into();
    object["spec"]["egressIPs"] = json!([format!("192.168.55.{egress}")]);
    object
}

fn until_gone(cluster: &ClusterFixture, tenant: &str) -> Result<()> {
    wait::until(&format!("{tenant} is gone"), SOON, || {
        Ok((!cluster.tenant_sources()?.contains_key(tenant)).then_some(()))
    })
}
