//! `spillway sessions`: what it lists, exports and ends is what passes through the gateway.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Result, ensure};
use control::api::types::SessionView;
use control::demo::topology::{BLUE, PODS, RED};
use control::demo::wait;
use spillway_tests::fixture::Fixture;
use spillway_tests::peers::{Peer, exchange_with};

/// More than two pages of the API.
const SOCKETS: usize = 60;

#[test]
fn sessions_are_listed_page_by_page_exported_and_ended() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let echo = Peer::udp_echo(&fixture.lab, 7)?;
    let mut sockets = Vec::new();
    for (pod, _) in PODS.iter().cycle().zip(0..SOCKETS) {
        let socket = fixture.lab.namespace(pod.host).enter(|| UdpSocket::bind((pod.address, 0)))??;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let (seen_as, _) = exchange_with(&socket, &echo, b"x")?;
        sockets.push((pod, socket.local_addr()?.port(), seen_as, socket));
    }
    let tool = fixture.gateway.installation();
    let remote = echo.address().to_string();
    let udp = ["--protocol", "udp", "--remote", &remote];

    let table = tool.cli(&[&["sessions", "--limit", "7"], &udp[..]].concat())?;
    ensure!(table.lines().count() == 8 && table.starts_with("TENANT"), "{table}");
    let csv = tool.cli(&[&["sessions", "--all", "--csv"], &udp[..]].concat())?;
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let told: BTreeSet<_> = reader
        .deserialize::<SessionView>()
        .map(|row| {
            row.map(|row| (row.inside_address, row.inside_port, row.outside_address, row.outside_port))
        })
        .collect::<Result<_, _>>()?;
    let made: BTreeSet<_> = sockets
        .iter()
        .map(|(pod, port, seen_as, _)| (pod.address, *port, *seen_as.ip(), seen_as.port()))
        .collect();
    ensure!(told == made, "{told:?}\n{made:?}");

    let (pod, port, seen_as, socket) = &sockets[0];
    let one = tool.json(&["sessions", "--egress", &seen_as.to_string()])?;
    ensure!(one.as_array().is_some_and(|rows| rows.len() == 1), "{one}");
    ensure!(one[0]["insideAddress"] == pod.address.to_string() && one[0]["insidePort"] == *port, "{one}");
    let end = format!("{}:{port}", pod.address);
    let ended = tool.json(&["sessions", "end", "--pod", &end])?;
    ensure!(ended["ended"] == 1, "{ended}");
    ensure!(exchange_with(socket, &echo, b"again").is_ok(), "a session that was ended begins anew");

    let of_red = tool.cli(&[&["sessions", "end", "--tenant", RED.name], &udp[..]].concat())?;
    let reds = sockets.iter().filter(|(pod, ..)| pod.tenant.name == RED.name).count();
    ensure!(of_red.trim() == format!("{reds} sessions ended"), "{of_red}");
    let refused = tool.output(&["sessions", "end"])?;
    ensure!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("all"),
        "{refused:?}"
    );
    wait::until("the log tells who ended sessions", Duration::from_secs(5), || {
        Ok(fixture.gateway.log().contains("sessions were ended on request").then_some(()))
    })
}

#[test]
fn a_list_goes_on_where_the_last_one_stopped() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let echo = Peer::udp_echo(&fixture.lab, 7)?;
    let pod = &PODS[0];
    let open = || UdpSocket::bind((pod.address, 0));
    let sockets =
        (0..25).map(|_| Ok(fixture.lab.namespace(pod.host).enter(open)??)).collect::<Result<Vec<_>>>()?;
    for socket in &sockets {
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        exchange_with(socket, &echo, b"x")?;
    }
    let tool = fixture.gateway.installation();
    let (mut ports, mut after) = (Vec::new(), None::<String>);
    loop {
        let mut arguments =
            vec!["sessions", "--tenant", BLUE.name, "--protocol", "udp", "--limit", "10", "--csv"];
        if let Some(after) = &after {
            arguments.extend(["--after", after]);
        }
        let listed = tool.output(&arguments)?;
        for row in csv::Reader::from_reader(&*listed.stdout).deserialize::<SessionView>() {
            ports.push(row?.inside_port);
        }
        let told = String::from_utf8(listed.stderr)?;
        after = told.split("--after ").nth(1).and_then(|rest| rest.split(',').next()).map(str::to_owned);
        if after.is_none() {
            break;
        }
    }
    let unique: BTreeSet<_> = ports.iter().collect();
    ensure!(ports.len() == 25 && unique.len() == 25, "{ports:?}");
    Ok(())
}
