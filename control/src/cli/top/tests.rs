//! The view at 80×24, of a daemon that is made up.

use std::time::Instant;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use serde_json::json;

use super::model::{Contact, Sort, Tab};
use super::*;
use crate::api::types::Status;

const BLUE_BYTES: u64 = 125_000;

#[test]
fn the_first_view_fits_80_by_24_and_has_what_matters() {
    let mut model = after(1);
    let screen = draw(&mut model, 80, 24);
    for expected in [
        "spillway 0.1.0  ready  up 1m 1s",
        "every 1s",
        "out  1.0Mbit/s",
        "sessions 21 +5/s  drops 7/s",
        "1 Tenants",
        "TENANT",
        "DROPS/s",
        "q end  ? help",
    ] {
        assert!(screen.contains(expected), "no `{expected}` in\n{screen}");
    }
    let rows: Vec<_> = screen.lines().filter(|line| line.starts_with("ns-")).collect();
    assert!(rows[0].starts_with("ns-blue") && rows[0].contains("1.0M"), "{screen}");
    assert_eq!(rows.len(), 19, "as many as fit:\n{screen}");
}

#[test]
fn workers_drops_and_ports_have_views_of_their_own() {
    let mut model = after(1);
    for (key, expected) in [
        ('2', ["LOAD", "████████········ ", " 50%"]),
        ('3', ["no_port", "Every port of the pod's egress", "MEANING"]),
        ('4', ["192.168.55.113", "32256", "2m 3s"]),
        ('1', ["TENANT", "ns-blue", "SESSIONS"]),
    ] {
        press(&mut model, key);
        let screen = draw(&mut model, 80, 24);
        for expected in expected {
            assert!(screen.contains(expected), "no `{expected}` in\n{screen}");
        }
    }
}

#[test]
fn tenants_are_sorted_and_filtered_by_keys() {
    let mut model = after(1);
    let first = |model: &Model| model.tenants()[0].view.tenant.name.clone();
    for (key, sort, expected) in [
        ('a', Sort::Name, "ns-00"),
        ('R', Sort::Name, "ns-blue"),
        ('s', Sort::Sessions, "ns-19"),
        ('d', Sort::Drops, "ns-07"),
        ('n', Sort::New, "ns-07"),
        ('i', Sort::In, "ns-07"),
        ('o', Sort::Out, "ns-blue"),
        ('r', Sort::Rate, "ns-blue"),
    ] {
        press(&mut model, key);
        assert_eq!((model.sort, first(&model).as_str()), (sort, expected), "{key}");
    }
    for letter in "/BLUq".chars() {
        press(&mut model, letter);
    }
    assert!(model.tenants().is_empty(), "q is a letter of the filter");
    assert!(draw(&mut model, 80, 24).contains("filter: BLUq"));
    model.press(KeyCode::Backspace.into());
    assert_eq!(model.tenants().len(), 1, "case does not matter");
    model.press(KeyCode::Enter.into());
    assert!(draw(&mut model, 80, 24).contains("/BLU"));
    model.press(KeyCode::Esc.into());
    assert_eq!(model.tenants().len(), 21);
}

#[test]
fn what_is_below_is_reached_and_never_left() {
    let mut model = after(1);
    draw(&mut model, 80, 24);
    for (code, row) in [
        (KeyCode::Up, 0),
        (KeyCode::Down, 1),
        (KeyCode::PageDown, 20),
        (KeyCode::PageDown, 20),
        (KeyCode::Home, 0),
        (KeyCode::End, 20),
        (KeyCode::PageUp, 1),
    ] {
        model.press(code.into());
        assert_eq!(model.row, row, "{code:?}");
    }
    model.press(KeyCode::End.into());
    assert!(draw(&mut model, 80, 24).contains("ns-19"), "the last row is drawn");
    press(&mut model, '2');
    assert_eq!((model.tab, model.row), (Tab::Workers, 0));
    model.press(KeyCode::End.into());
    assert_eq!(model.row, 0, "one worker");
}

#[test]
fn what_is_paused_stays_and_then_goes_on() {
    let mut model = after(1);
    let sessions = |model: &Model| model.status().unwrap().sessions;
    press(&mut model, ' ');
    model.take(Ok(status(9)), Instant::now());
    assert!(draw(&mut model, 80, 24).contains("paused"));
    assert_eq!(sessions(&model), 21);
    press(&mut model, ' ');
    model.take(Ok(status(9)), Instant::now());
    assert_eq!(sessions(&model), 29);
}

#[test]
fn a_daemon_that_is_away_is_told_of_and_what_it_said_stays() {
    let mut model = Model::new(Duration::from_secs(1));
    assert!(draw(&mut model, 80, 24).contains("asking"));
    model.take(Err("no daemon answers on /run/x".to_owned()), Instant::now());
    assert!(draw(&mut model, 80, 24).contains("no daemon answers on /run/x"));
    let mut model = after(1);
    model.take(Err("no daemon answers".to_owned()), Instant::now());
    let screen = draw(&mut model, 80, 24);
    assert!(screen.contains("no answer, trying again") && screen.contains("ns-blue"), "{screen}");
}

#[test]
fn another_process_counts_from_zero_and_is_no_flood() {
    let mut model = after(1);
    assert!(model.rated.total.bits_out > 0.0);
    let mut next = status(0);
    next.pid += 1;
    let at = model.reading.as_ref().unwrap().at + Duration::from_secs(1);
    model.take(Ok(next.clone()), at);
    assert_eq!((model.contact.clone(), model.rated.total.bits_out), (Contact::Answering, 0.0));
    model.take(Ok(Status { pid: next.pid, ..status(1) }), at + Duration::from_secs(1));
    assert!(model.rated.total.bits_out > 0.0, "rates again");
}

#[test]
fn q_and_ctrl_c_end_it() {
    let mut model = after(1);
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert!(model.press(KeyCode::Char('q').into()) && model.press(control_c));
    press(&mut model, '/');
    assert!(model.press(control_c), "while a filter is typed too");
}

#[test]
fn help_lists_the_keys_and_goes_with_the_next() {
    let mut model = after(1);
    press(&mut model, '?');
    assert!(draw(&mut model, 80, 24).contains("sort tenants by rate"));
    press(&mut model, 's');
    assert!(!draw(&mut model, 80, 24).contains("sort tenants by rate"));
    assert_eq!(model.sort, Sort::Rate, "the key only ended the help");
}

#[test]
fn any_size_is_drawn() {
    for (width, height) in [(1, 1), (2, 3), (20, 5), (79, 23), (300, 100)] {
        let mut model = after(1);
        for key in "1234?".chars() {
            press(&mut model, key);
            draw(&mut model, width, height);
        }
    }
}

#[test]
fn plain_text_has_every_row() {
    let text = view::plain(&after(1));
    for expected in ["21 sessions, 5 new/s, 7 drops/s", "ns-19", " 50%", "no_port", "2m 3s"] {
        assert!(text.contains(expected), "no `{expected}` in\n{text}");
    }
}

fn press(model: &mut Model, key: char) {
    assert!(!model.press(KeyCode::Char(key).into()));
}

/// Returns a model that got two answers, so many seconds apart.
fn after(seconds: u64) -> Model {
    let (mut model, start) = (Model::new(Duration::from_secs(1)), Instant::now());
    model.take(Ok(status(0)), start);
    model.take(Ok(status(seconds)), start + Duration::from_secs(seconds));
    model
}

/// Draws, and returns the screen's lines.
fn draw(model: &mut Model, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view::draw(frame, model)).unwrap();
    let buffer = terminal.backend().buffer();
    let cells = buffer.content().chunks(width.into());
    let lines = cells.map(|cells| cells.iter().map(|cell| cell.symbol()).collect::<String>());
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns the status after so many seconds: blue sends a megabit a second, another tenant loses packets.
fn status(seconds: u64) -> Status {
    let mut tenants: Vec<_> = (0..20u64).map(|number| tenant(&format!("ns-{number:02}"), number)).collect();
    tenants.push(tenant("ns-blue", 1));
    tenants[20]["status"]["outboundBytes"] = json!(BLUE_BYTES * seconds);
    for (field, amount) in [("droppedPackets", 7), ("sessionsBegun", 5), ("inboundBytes", 100)] {
        tenants[7]["status"][field] = json!(amount * seconds);
    }
    let ports = json!({ "protocol": "tcp", "used": 32_256, "capacity": 64_512, "exhaustionSeconds": 123 });
    let status = json!({
        "version": "0.1.0", "pid": 7, "uptimeSeconds": 60 + seconds,
        "ready": { "ok": true, "reasons": [] },
        "epoch": { "wanted": 1, "applied": 1 },
        "interfaces": [], "succession": null, "kubernetes": null,
        "frames": { "total": 0, "atWorkers": 0, "inCommons": 0, "handedOver": 0 },
        "sessions": 20 + seconds,
        "workers": [{
            "worker": 0, "core": null, "epoch": 1, "sessions": 3, "sessionCapacity": 9, "panics": 0, "handedOver": 0,
            "sentByOthers": 0, "insideSender": 0, "outsideSender": 0, "busyMilliseconds": 500 * seconds, "queues": [],
        }],
        "egress": [{
            "tenant": "ns-blue", "address": "192.168.55.113", "pods": 1, "portBlocks": 504, "ports": [ports],
        }],
        "drops": { "no_port": 7 * seconds, "leak": 0 },
        "tenants": tenants,
    });
    serde_json::from_value(status).unwrap()
}

fn tenant(name: &str, sessions: u64) -> serde_json::Value {
    json!({
        "tenant": { "name": name, "gatewayIP": "192.168.99.13", "egressIPs": ["192.168.55.113"] },
        "source": "controlSocket",
        "status": {
            "gatewayMAC": "", "link": "", "sources": [], "trouble": null, "drainsSeconds": null, "sessions": sessions,
            "outboundPackets": 0, "outboundBytes": 0, "inboundPackets": 0, "inboundBytes": 0, "droppedPackets": 0,
            "drops": {},
        },
    })
}
