//! Prometheus reads what the gateway counts, over TCP and over the control socket, and it is what `status` tells.

use anyhow::{Context, Result, ensure};
use control::demo::topology::{BLUE, Host, PODS};
use control::demo::{command, wait};
use serde_json::Value;
use spillway_tests::doctor::edit_config;
use spillway_tests::fixture::{Fixture, LIMIT};
use spillway_tests::prometheus::{Exposition, check_metrics};

#[test]
fn metrics_are_what_status_tells() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    fixture.require_service()?;
    // A source that blue may not use.
    let stranger = ["-c", "1", "-W", "1", "-I", "172.16.0.5", "192.168.55.13"];
    fixture.lab.namespace(PODS[0].host).ip("address add 172.16.0.5/32 dev lo")?;
    fixture.in_pod(&PODS[0], "ping", &stranger)?;

    let (metrics, status) = settled(&fixture)?;
    check_metrics(&metrics.text)?;
    for tenant in tenants(&status)? {
        let name = text(&tenant["tenant"]["name"])?;
        let counted = &tenant["status"];
        for (metric, direction, field) in [
            ("packets", "outbound", "outboundPackets"),
            ("packets", "inbound", "inboundPackets"),
            ("bytes", "outbound", "outboundBytes"),
            ("bytes", "inbound", "inboundBytes"),
        ] {
            let series =
                format!("spillway_tenant_{metric}_total{{tenant=\"{name}\",direction=\"{direction}\"}}");
            let expected = number(&counted[field])?;
            ensure!(expected > 0.0, "no traffic: {status}");
            assert_eq!(metrics.value(&series)?, expected, "{series}");
        }
        let of_tenant = |metric: &str| metrics.value(&format!("{metric}{{tenant=\"{name}\"}}"));
        assert_eq!(of_tenant("spillway_tenant_sessions")?, number(&counted["sessions"])?);
        let begun = of_tenant("spillway_tenant_sessions_begun_total")?;
        assert_eq!(begun, number(&counted["sessionsBegun"])?);
        ensure!(begun >= 1.0, "{name}: {begun} sessions began");
    }
    for (reason, count) in status["drops"].as_object().context("drops")? {
        let of = |direction: &str| {
            metrics.value(&format!(
                "spillway_dropped_packets_total{{direction=\"{direction}\",reason=\"{reason}\"}}"
            ))
        };
        assert_eq!(of("outbound")? + of("inbound")?, number(count)?, "{reason}");
    }
    for interface in status["interfaces"].as_array().context("interfaces")? {
        let (side, name) = (text(&interface["side"])?, text(&interface["name"])?);
        for (verdict, count) in interface["verdicts"].as_object().context("verdicts")? {
            let series = format!(
                "spillway_xdp_frames_total{{side=\"{side}\",interface=\"{name}\",verdict=\"{verdict}\"}}"
            );
            ensure!(metrics.value(&series)? >= number(count)?, "{series}");
        }
    }
    assert_eq!(metrics.value("spillway_ready")?, 1.0);
    let unresolved: f64 = metrics.beginning("spillway_neighbours_unresolved").map(|(_, count)| count).sum();
    assert_eq!(unresolved, 0.0, "{}", metrics.text);
    let turns = metrics.value("spillway_pipeline_latency_seconds_count{worker=\"0\"}")?;
    ensure!(turns > 0.0 && metrics.value("spillway_worker_busy_seconds_total{worker=\"0\"}")? > 0.0);
    Ok(())
}

#[test]
fn metrics_are_served_over_tcp_to_the_host_itself() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    fixture.require_service()?;
    let gateway = fixture.lab.namespace(Host::Gateway);
    let scrape = |url: &str| {
        let mut curl = gateway.command("curl");
        command::run_ok(curl.args(["-sSi", "--fail-with-body", "--max-time", "10", url]), LIMIT)
    };
    let answer = scrape("http://127.0.0.1:9477/metrics")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no body")?;
    ensure!(head.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{head}");
    check_metrics(body)?;
    let scraped = Exposition::read(body)?;
    assert_eq!(scraped.value("spillway_healthy")?, 1.0);
    ensure!(scrape("http://127.0.0.1:9477/v1/status").is_err(), "nothing else is served there");
    let elsewhere = scrape(&format!("http://{}:9477/metrics", control::demo::topology::GATEWAY_INSIDE));
    ensure!(elsewhere.is_err(), "served to the network: {elsewhere:?}");
    Ok(())
}

#[test]
fn a_second_gateway_of_a_host_goes_without_the_default_address_and_says_so() -> Result<()> {
    let Some(mut fixture) = Fixture::without_tenants()? else { return Ok(()) };
    fixture.gateway.stop()?;
    let gateway = fixture.lab.namespace(Host::Gateway);
    let taken = gateway.enter(|| std::net::TcpListener::bind("127.0.0.1:9477"))??;
    fixture.start_again()?;
    ensure!(
        fixture.gateway.log().contains("metrics are on the control socket alone"),
        "{}",
        fixture.gateway.log()
    );
    check_metrics(&Exposition::of(&fixture)?.text)?;

    fixture.gateway.stop()?;
    edit_config(fixture.gateway.installation(), "[control]\n", "[control]\nmetrics = \"127.0.0.1:9477\"\n")?;
    let error = fixture.start_again().expect_err("an address that was asked for is needed");
    let said = format!("{error:#}");
    ensure!(said.contains("control.metrics: cannot listen on 127.0.0.1:9477"), "{said}");
    drop(taken);
    fixture.start_again()
}

#[test]
fn ports_are_told_of_by_egress_address_and_destination() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    fixture.require_service()?;
    let egress = BLUE.egress;
    let of = |metric: &str| {
        format!("{metric}{{tenant=\"{}\",egress_address=\"{egress}\",protocol=\"tcp\"}}", BLUE.name)
    };
    let metrics = wait::until("a survey finds the ports", LIMIT, || {
        let metrics = Exposition::of(&fixture)?;
        let used = metrics.value(&of("spillway_egress_ports_used"))?;
        Ok((used > 0.0).then_some(metrics))
    })?;
    let [used, free, capacity] =
        ["used", "free", "capacity"].map(|what| metrics.value(&of(&format!("spillway_egress_ports_{what}"))));
    assert_eq!((used? + free?, capacity?), (64_512.0, 64_512.0));
    let towards = metrics.beginning("spillway_destination_ports_used").find(|(series, _)| {
        series.contains(&format!("egress_address=\"{egress}\"")) && series.contains("destination_port=\"80\"")
    });
    ensure!(towards.is_some_and(|(_, used)| used > 0.0), "{}", metrics.text);
    Ok(())
}

/// Returns metrics and status of a moment at which no packet was counted in between.
fn settled(fixture: &Fixture) -> Result<(Exposition, Value)> {
    wait::until("the counters stand still", LIMIT, || {
        let before = fixture.gateway.status()?;
        let metrics = Exposition::of(fixture)?;
        let after = fixture.gateway.status()?;
        let is_same = ["tenants", "drops", "sessions"].iter().all(|part| before[part] == after[part]);
        Ok(is_same.then_some((metrics, after)))
    })
}

fn tenants(status: &Value) -> Result<&Vec<Value>> {
    status["tenants"].as_array().filter(|tenants| tenants.len() == 2).context("two tenants")
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().with_context(|| format!("{value} is no number"))
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("{value} is no text"))
}
