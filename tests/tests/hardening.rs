//! What the daemon may do, what it tells nobody, and what it makes of those who wish it ill.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::demo::gateway::{Gateway, Installation};
use control::demo::server::Server;
use control::demo::topology::{BLUE, PODS, RED};
use control::demo::wait;
use spillway_apiserver::Credentials;
use spillway_tests::cluster::{ClusterFixture, Prepared};
use spillway_tests::fixture::{Fixture, LIMIT, executable};
use spillway_tests::manager::wrap;

/// CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN, CAP_SYS_NICE, CAP_PERFMON and CAP_BPF, as in capability.h.
const NEEDED: u64 = 1 << 12 | 1 << 13 | 1 << 21 | 1 << 23 | 1 << 38 | 1 << 39;

/// Passes the limit on locked memory where it may not be lifted.
const IPC_LOCK: u64 = 1 << 14;

#[test]
fn workers_have_no_privilege_and_the_daemon_those_that_it_needs() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    fixture.require_service()?;
    let pid = fixture.gateway.status()?["pid"].as_u64().context("a status has the process")?;
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let memory = limits.lines().find(|line| line.starts_with("Max locked memory")).context("a limit")?;
    let needed = if memory.contains("unlimited") { NEEDED } else { NEEDED | IPC_LOCK };
    let mut threads = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = std::fs::read_to_string(task?.path().join("status"))?;
        let fields: BTreeMap<_, _> = status.lines().filter_map(|line| line.split_once(":\t")).collect();
        let most = if fields["Name"].starts_with("worker-") { 0 } else { needed };
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            let held = u64::from_str_radix(fields[set], 16)?;
            assert_eq!(held & !most, 0, "{set} of {}", fields["Name"]);
        }
        assert_eq!(fields["NoNewPrivs"], "1", "{}", fields["Name"]);
        threads += 1;
    }
    assert!(threads >= 3, "workers, the supervisor, the runtime");
    Ok(())
}

#[test]
fn no_log_line_has_a_token() -> Result<()> {
    const SECRETS: [&str; 3] = ["eyJsecret.first", "eyJsecret.second", "eyJsecret.third"];
    let Some(prepared) = Prepared::build()? else { return Ok(()) };
    prepared.api.rotate_token(SECRETS[0]);
    prepared.api.kubeconfig(&prepared.kubeconfig, &Credentials::Inline)?;
    let server = Server::start(&prepared.lab)?;
    let mut installation =
        Installation::write_for_cluster(&prepared.lab, &executable()?, &prepared.kubeconfig)?;
    // Every crate, those that are quiet otherwise too.
    wrap(&mut installation, &[("RUST_LOG", "trace,libraries=trace,kube_client=trace,kube_runtime=trace")])?;
    let gateway = Gateway::start(&prepared.lab, installation)?;
    let Prepared { lab, api, kubeconfig } = prepared;
    let cluster = ClusterFixture { fixture: Fixture { gateway, server, lab }, api, kubeconfig };
    cluster.add_tenant(&BLUE)?;
    let refused =
        |status: &serde_json::Value| !status["error"].is_null() || status.to_string().contains("renew");
    cluster.api.rotate_token(SECRETS[1]);
    cluster.api.drop_watches();
    cluster.until_status("the token is refused", refused)?;
    std::fs::write(&cluster.kubeconfig, format!("users: [{{user: {{token: {}", SECRETS[2]))?;
    cluster.until_status("the kubeconfig is damaged", |status| status["error"].is_string())?;
    let file = cluster.fixture.lab.directory().join("token");
    cluster.api.kubeconfig(&cluster.kubeconfig, &Credentials::TokenFile(file))?;
    cluster.add_tenant(&RED)?;
    cluster.fixture.require_service()?;
    let log = cluster.fixture.gateway.log();
    for words in ["TRACE", "requesting"] {
        assert!(log.contains(words), "no `{words}`: the log is not as fine as it gets, or not the client's");
    }
    for secret in SECRETS {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None);
    }
    Ok(())
}

#[test]
fn a_thousand_clients_that_talk_nonsense_or_nothing_do_not_keep_others_from_the_socket() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let socket = &fixture.gateway.installation().socket;
    let mode = std::fs::metadata(socket)?.permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let messages: [&[u8]; 5] = [
        b"",
        b"\x16\x03\x01\0\xff\xff\0",
        b"PUT /v1/tenants/x HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n{",
        b"PUT /v1/tenants/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffffffff\r\n",
        b"GET /v1/sessions?limit=10000 HTTP/1.1\r\nhost: x\r\n\r\n",
    ];
    let mut clients = Vec::new();
    for number in 0..1000 {
        let mut client = UnixStream::connect(socket)?;
        // Some are refused before they have said all.
        let _ = client.write_all(messages[number % messages.len()]);
        if number % 3 == 0 {
            client.shutdown(std::net::Shutdown::Write)?;
        }
        clients.push(client);
    }
    fixture.gateway.remove_tenant(&RED)?;
    fixture.gateway.add_tenant(&RED)?;
    fixture.require_service()?;
    let health = fixture.gateway.installation().output(&["health"])?;
    ensure!(health.status.success(), "{health:?}");
    for mut client in clients {
        client.set_read_timeout(Some(LIMIT))?;
        // Each is answered or hung up on.
        let _ = client.read_to_end(&mut Vec::new());
    }
    let log = fixture.gateway.log();
    let line = log.lines().find(|line| line.contains("tenant put") && line.contains(RED.name));
    assert!(line.is_some_and(|line| line.contains("uid=0") && line.contains("pid=")), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    Ok(())
}

#[test]
fn a_damaged_state_file_is_set_aside_and_told_until_somebody_sees_to_it() -> Result<()> {
    let Some(mut fixture) = Fixture::with_tenants()? else { return Ok(()) };
    fixture.gateway.stop()?;
    let state = fixture.lab.directory().join("state");
    let sound = std::fs::read(state.join("tenants.json"))?;
    std::fs::write(state.join("tenants.json"), &sound[..sound.len() / 2])?;
    for _ in 0..2 {
        fixture.start_again()?; // the second time there is no file to be refused
        let health = fixture.gateway.installation().json(&["status"])?["ready"].to_string();
        assert!(health.contains("tenants of the control socket are lost"), "{health}");
        let live = fixture.gateway.installation().output(&["health", "--live"])?;
        assert!(live.status.success());
        assert!(!fixture.gateway.installation().output(&["health"])?.status.success());
        assert_eq!(fixture.attached()?, [true, true]);
        fixture.gateway.stop()?;
    }
    let is_aside = |name: &str| name.starts_with("tenants.json.corrupt-");
    let names = std::fs::read_dir(&state)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names: Vec<String> = names.collect::<Result<_>>()?;
    let aside = names.iter().find(|name| is_aside(name)).with_context(|| format!("{names:?}"))?;
    std::fs::write(state.join("tenants.json"), &sound)?;
    std::fs::remove_file(state.join(aside))?;
    fixture.start_again()?;
    wait::until("the gateway is ready", Duration::from_secs(10), || {
        Ok(fixture.gateway.installation().output(&["health"])?.status.success().then_some(()))
    })?;
    fixture.seen_as(&PODS[0]).map(drop)
}
