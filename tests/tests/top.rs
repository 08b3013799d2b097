//! `spillway top` in a terminal of 80×24, as a person would use it.

use std::num::NonZeroU16;

use anyhow::{Result, ensure};
use control::demo::command::text;
use control::demo::topology::PODS;
use spillway_tests::fixture::Fixture;
use spillway_tests::peers::Peer;
use spillway_tests::stream::Stream;
use spillway_tests::terminal::Terminal;

#[test]
fn top_shows_traffic_live_and_gives_the_terminal_back() -> Result<()> {
    let Some(mut fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let echo = Peer::udp_echo(&fixture.lab, 7007)?;
    let stream = Stream::start(&fixture.lab, &PODS[0], echo.address())?;
    let mut top = start(&fixture, &["top", "--interval", "200ms"])?;

    let screen = top.until("the rates of blue", |screen| {
        let blue = screen.lines().find(|line| line.starts_with("ns-blue"));
        blue.is_some_and(|line| line.contains('k') && line.contains('█'))
    })?;
    ensure!(screen.lines().next().is_some_and(|line| line.contains("ready")), "{screen}");
    let rows: Vec<_> = screen.lines().filter(|line| line.starts_with("ns-")).collect();
    ensure!(rows.len() == 2 && rows[0].starts_with("ns-blue"), "the one with traffic comes first: {screen}");

    top.press("a/red")?;
    top.until("the filter", |screen| screen.contains("ns-red") && !screen.contains("ns-blue"))?;
    top.press("\x1b")?;
    top.until("no filter", |screen| screen.contains("ns-blue"))?;
    top.press("2")?;
    top.until("the workers", |screen| screen.contains("HANDED OVER"))?;
    top.resize(size(120), size(40))?;
    top.until("the last line of a greater terminal", |screen| {
        screen.lines().nth(39).is_some_and(|line| line.contains("q end"))
    })?;
    top.resize(size(80), size(24))?;
    top.press("4")?;
    top.until("the ports", |screen| screen.contains("192.168.55.113") && screen.contains("64512"))?;

    fixture.gateway.stop()?;
    top.until("the daemon is missed", |screen| screen.contains("no answer"))?;
    fixture.start_again()?;
    top.until("the daemon is back", |screen| screen.contains("every 200ms"))?;

    top.press("q")?;
    let status = top.until_ended()?;
    ensure!(status.success() && top.is_given_back(), "{status:?}: {}", top.text());
    drop(stream);
    Ok(())
}

#[test]
fn keys_are_heeded_while_the_terminal_changes_its_size() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let mut top = start(&fixture, &["top"])?;
    top.until("the tenants", |screen| screen.contains("ns-blue"))?;
    for round in 0..50 {
        for (columns, key, shown) in [(90, "2", "HANDED OVER"), (80, "4", "EGRESS ADDRESS")] {
            top.resize(size(columns), size(24))?;
            top.press(key)?;
            top.until(&format!("{shown} in round {round}"), |screen| screen.contains(shown))?;
        }
    }
    Ok(())
}

#[test]
fn ctrl_c_and_a_signal_give_the_terminal_back() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    for end in ["\x03", ""] {
        let mut top = start(&fixture, &["top"])?;
        top.until("the tenants", |screen| screen.contains("ns-blue"))?;
        ensure!(!top.is_given_back());
        if end.is_empty() {
            top.terminate()?;
        } else {
            top.press(end)?;
        }
        let status = top.until_ended()?;
        ensure!(status.success() && top.is_given_back(), "{status:?}: {}", top.text());
    }
    Ok(())
}

#[test]
fn once_prints_plain_text() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    fixture.require_service()?;
    let output = fixture.gateway.installation().output(&["top", "--once", "--interval", "100ms"])?;
    let printed = text(&output.stdout);
    for expected in ["TENANT", "ns-blue", "ns-red", "WORKER", "EGRESS ADDRESS", "192.168.55.114"] {
        ensure!(output.status.success() && printed.contains(expected), "no {expected} in {printed}");
    }
    ensure!(!printed.contains('\x1b'), "{printed:?}");
    let piped = fixture.gateway.installation().output(&["top"])?;
    ensure!(!piped.status.success() && text(&piped.stderr).contains("--once"), "{piped:?}");
    Ok(())
}

fn start(fixture: &Fixture, arguments: &[&str]) -> Result<Terminal> {
    let installation = fixture.gateway.installation();
    let socket = installation.socket.to_string_lossy();
    let arguments = [&["--socket", &socket], arguments].concat();
    Terminal::start(&installation.executable, &arguments, size(80), size(24))
}

fn size(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).expect("no terminal is empty")
}
