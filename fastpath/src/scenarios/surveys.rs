//! Sessions are listed, copied and ended while frames go on.

use std::collections::HashSet;
use std::thread;
use std::time::Duration;

use conntrack::{FiveTuple, Protocol, TcpFlags, TenantId};

use super::{EGRESS, SYN_ACK, answer, leave, only};
use crate::dataplane::SessionReport;
use crate::snapshot::Side::{Inside, Outside};
use crate::survey::{Cursor, EndFilter, Page, SessionFilter, SessionState, Surveyor};
use crate::testing::rig::Rig;
use crate::testing::{echo_frame, gateway, red, tcp_frame, udp_frame};

/// Asks while the workers turn.
pub(super) fn ask<T: Send>(rig: &mut Rig, question: impl FnOnce(&Surveyor) -> T + Send) -> T {
    let surveyor = Surveyor { mailboxes: rig.mailboxes.clone() };
    thread::scope(|scope| {
        let asked = scope.spawn(|| question(&surveyor));
        while !asked.is_finished() {
            rig.run();
        }
        asked.join().unwrap()
    })
}

fn list(rig: &mut Rig, filter: &SessionFilter) -> Vec<SessionReport> {
    let Page { rows, next } = ask(rig, |surveyor| surveyor.list(filter, Cursor::default(), 1000)).unwrap();
    assert_eq!(next, None);
    rows
}

fn network(text: &str) -> EndFilter {
    EndFilter { network: Some(text.parse().unwrap()), port: None }
}

#[test]
fn every_part_of_a_filter_is_heeded() {
    let mut rig = Rig::new(gateway().spec());
    let udp = udp_frame("10.132.0.5:1000", "192.168.55.13:53", b"x");
    leave(&mut rig, &udp);
    rig.wait(Duration::from_secs(10));
    let syn = leave(&mut rig, &tcp_frame("10.132.0.6:1000", "198.51.100.7:80", TcpFlags::SYN));
    only(rig.send(Outside, &answer(&syn, SYN_ACK), Inside));
    leave(&mut rig, &tcp_frame("10.132.0.6:1000", "198.51.100.7:80", TcpFlags::ACK));
    leave(&mut rig, &tcp_frame("10.132.0.6:1001", "198.51.100.7:80", TcpFlags::SYN));
    leave(&mut rig, &echo_frame("10.132.0.6", "192.168.55.13", 7, false));
    rig.send(Inside, &red(udp_frame("10.132.0.5:1000", "192.168.55.13:53", b"x")), Outside);
    leave(&mut rig, &udp);
    let all = list(&mut rig, &SessionFilter::default());
    assert_eq!(all.len(), 5);
    let udp_of_blue = all.iter().find(|row| row.tenant == TenantId(0) && row.state == SessionState::Active);
    assert_eq!(udp_of_blue.map(|row| (row.age_seconds, row.idle_seconds)), Some((10, 0)));
    let port = all.iter().find(|row| row.state == SessionState::Established).unwrap().outside.1;

    let none = SessionFilter::default;
    let cases = [
        (4, SessionFilter { tenant: Some(TenantId(0)), ..none() }),
        (2, SessionFilter { protocol: Some(Protocol::Udp), ..none() }),
        (2, SessionFilter { inside: network("10.132.0.5/32"), ..none() }),
        (5, SessionFilter { inside: network("10.132.0.0/24"), ..none() }),
        (1, SessionFilter { inside: EndFilter { network: None, port: Some(1001) }, ..none() }),
        (2, SessionFilter { remote: EndFilter { network: None, port: Some(80) }, ..none() }),
        (3, SessionFilter { remote: network("192.168.55.13/32"), ..none() }),
        (4, SessionFilter { outside: network("192.168.55.113/32"), ..none() }),
        (
            1,
            SessionFilter {
                outside: EndFilter { port: Some(port), ..network("192.168.55.113/32") },
                protocol: Some(Protocol::Tcp),
                ..none()
            },
        ),
        (1, SessionFilter { state: Some(SessionState::Established), ..none() }),
        (1, SessionFilter { state: Some(SessionState::Opening), ..none() }),
        (0, SessionFilter { state: Some(SessionState::Closing), ..none() }),
        (1, SessionFilter { older_than: Some(Duration::from_secs(5)), ..none() }),
        (4, SessionFilter { younger_than: Some(Duration::from_secs(5)), ..none() }),
        (0, SessionFilter { idle_for: Some(Duration::from_secs(5)), ..none() }),
    ];
    for (expected, filter) in cases {
        assert_eq!(list(&mut rig, &filter).len(), expected, "{filter:?}");
    }
    rig.wait(Duration::from_secs(6));
    assert_eq!(list(&mut rig, &SessionFilter { idle_for: Some(Duration::from_secs(5)), ..none() }).len(), 5);
}

#[test]
fn pages_have_every_session_that_stays_once() {
    const PODS: u8 = 200;
    let mut rig = Rig::with_workers(3, 1024, gateway().spec());
    let open = |rig: &mut Rig, pod: u8, port: u16| {
        leave(rig, &udp_frame(&format!("10.132.0.{pod}:{port}"), "192.168.55.13:53", b"x"));
    };
    (0..PODS).for_each(|pod| open(&mut rig, pod, 1000));
    let stays = EndFilter { network: None, port: Some(1000) };
    let (mut seen, mut cursor, mut pages) = (Vec::new(), Some(Cursor::default()), 0);
    while let Some(from) = cursor {
        let page = ask(&mut rig, |surveyor| surveyor.list(&SessionFilter::default(), from, 7)).unwrap();
        assert!(page.rows.len() <= 7);
        seen.extend(page.rows.iter().filter(|row| row.inside.source_port == 1000).map(|row| row.inside));
        cursor = page.next;
        pages += 1;
        open(&mut rig, pages % PODS, 2000 + u16::from(pages));
    }
    let unique: HashSet<FiveTuple> = seen.iter().copied().collect();
    assert_eq!((seen.len(), unique.len()), (usize::from(PODS), usize::from(PODS)));
    let filter = SessionFilter { inside: stays, ..SessionFilter::default() };
    let beyond = Cursor { worker: 3, entry: 0 };
    let nothing = ask(&mut rig, |surveyor| surveyor.list(&filter, beyond, 7)).unwrap();
    assert_eq!(nothing, Page { rows: Vec::new(), next: None });
    let copied =
        ask(&mut rig, |surveyor| surveyor.copy(&filter, Cursor { worker: 2, entry: 0 }, 1000)).unwrap();
    assert_eq!(copied.next, None);
    assert!(
        copied
            .rows
            .iter()
            .all(|record| record.inside_tuple.source_port == 1000 && record.outside.0 == EGRESS)
    );
}

#[test]
fn sessions_that_are_ended_are_gone_and_nothing_else_is() {
    let mut rig = Rig::with_workers(2, 1024, gateway().spec());
    for pod in 0..150u8 {
        leave(&mut rig, &tcp_frame(&format!("10.132.0.{pod}:1000"), "198.51.100.7:80", TcpFlags::SYN));
    }
    leave(&mut rig, &udp_frame("10.132.0.5:1000", "192.168.55.13:53", b"x"));
    let filter = SessionFilter { remote: network("198.51.100.7/32"), ..SessionFilter::default() };
    assert_eq!(ask(&mut rig, |surveyor| surveyor.end(&filter)), Ok(150));
    assert_eq!(list(&mut rig, &SessionFilter::default()).len(), 1);
    assert_eq!((rig.sessions(), rig.all_tenants().sessions), (1, 1));
    let reset = rig.send(Inside, &tcp_frame("10.132.0.7:1000", "198.51.100.7:80", TcpFlags::ACK), Inside);
    assert_ne!(only(reset)[47] & 0x04, 0, "the pod hears that its connection is no more");
    assert_eq!(ask(&mut rig, |surveyor| surveyor.end(&filter)), Ok(0));
}
