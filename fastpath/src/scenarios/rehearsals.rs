//! What a rehearsal decides is what the worker then does, and it leaves nothing behind.

use conntrack::{Record, TcpFlags, TenantId};
use proptest::prelude::*;

use super::{answer, ends};
use crate::rehearsal::{RehearsalError, rehearse};
use crate::snapshot::Side::{self, Inside, Outside};
use crate::stage::Stage;
use crate::tap::Sample;
use crate::testing::rig::Rig;
use crate::testing::{corrupt, echo_frame, gateway, raw_frame, red, tcp_frame, udp_frame};
use crate::verdict::{DropReason, Verdict};

fn records(rig: &Rig) -> Vec<(TenantId, Record)> {
    let table = rig.workers[0].conntrack();
    let entries = table.scan_entries(0, table.capacity());
    entries.map(|(id, session)| (session.tenant(), table.record(id))).collect()
}

fn rehearse_in(rig: &Rig, side: Side, frame: &[u8]) -> Sample {
    rehearse(rig.workers[0].snapshot(), &records(rig), side, frame).unwrap()
}

#[test]
fn an_existing_session_keeps_its_port_and_a_new_one_takes_none() {
    let mut rig = Rig::new(gateway().spec());
    let query = udp_frame("10.132.0.5:1000", "192.168.55.13:53", b"query");
    let first = rehearse_in(&rig, Inside, &query);
    assert!(first.is_new_session && rig.sessions() == 0);
    let sent = super::leave(&mut rig, &query);
    let again = rehearse_in(&rig, Inside, &query);
    assert!(!again.is_new_session);
    assert_eq!(ends(&again.after.bytes), ends(&sent));
    let back = rehearse_in(&rig, Outside, &answer(&sent, TcpFlags::default()));
    assert_eq!((back.outcome.verdict, back.outcome.tenant), (Verdict::Forward(Inside), Some(TenantId(0))));
    assert_eq!(back.session.map(|session| session.inside), again.session.map(|session| session.inside));
    assert_eq!((rig.sessions(), rig.all_drops(), rig.blue().outbound_packets), (1, 0, 1));
    assert_eq!(
        rehearse(rig.workers[0].snapshot(), &[], Inside, &[0; 5000]).err(),
        Some(RehearsalError::TooLong(5000))
    );
}

#[test]
fn limits_and_shortages_are_told_before_they_are_met() {
    let spec = gateway().change(|spec| spec.tenants[0].policy.tenant_quota.sessions = 2).spec();
    let mut rig = Rig::new(spec);
    let query = |port: u16| udp_frame(&format!("10.132.0.5:{port}"), "192.168.55.13:53", b"query");
    assert!(rehearse_in(&rig, Inside, &query(1)).dropped().is_none());
    super::leave(&mut rig, &query(1));
    super::leave(&mut rig, &query(2));
    let third = rehearse_in(&rig, Inside, &query(3));
    assert_eq!(third.dropped(), Some(DropReason::TenantSessionLimit));
    assert_eq!(rig.drops(DropReason::TenantSessionLimit), 0);
    rig.send(Inside, &query(3), Outside);
    assert_eq!(rig.drops(DropReason::TenantSessionLimit), 1);
}

fn any_frame() -> impl Strategy<Value = (Side, Vec<u8>)> {
    let pods = prop::sample::select(vec!["10.132.0.5", "10.132.0.6", "10.132.9.9", "172.16.0.1"]);
    let remotes = prop::sample::select(vec!["192.168.55.13", "198.51.100.7", "192.168.55.99", "127.0.0.1"]);
    let kinds = 0..6u8;
    (pods, remotes, 1000..1003u16, kinds, any::<bool>(), prop::option::of((0..60usize, any::<u8>())))
        .prop_map(|(pod, remote, port, kind, is_red, change)| {
            let (from, to) = (format!("{pod}:{port}"), format!("{remote}:80"));
            let frame = match kind {
                0 => udp_frame(&from, &to, b"x"),
                1 => tcp_frame(&from, &to, TcpFlags::SYN),
                2 => tcp_frame(&from, &to, TcpFlags::ACK),
                3 => echo_frame(pod, remote, port, false),
                4 => raw_frame(pod, remote, 47, b"gre"),
                _ => udp_frame(&to, &format!("192.168.55.113:{port}"), b"x"),
            };
            let frame = if is_red { red(frame) } else { frame };
            let at = |at: usize| at.min(frame.len() - 1);
            let frame = change.map_or(frame.clone(), |(place, byte)| corrupt(&frame, &[(at(place), byte)]));
            (if kind == 5 { Outside } else { Inside }, frame)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn a_rehearsal_decides_as_the_worker_does(frames in prop::collection::vec(any_frame(), 1..12)) {
        let mut rig = Rig::new(gateway().spec());
        for (side, frame) in frames {
            let rehearsed = rehearse_in(&rig, side, &frame);
            let before = (rig.sessions(), rig.all_drops());
            rig.inject(0, side, &frame);
            rig.run();
            let dropped = rig.all_drops() - before.1;
            prop_assert_eq!(u64::from(rehearsed.dropped().is_some()), dropped, "{:?}", rehearsed.outcome);
            if let Some(reason) = rehearsed.dropped() {
                prop_assert!(rig.drops(reason) > 0, "{reason:?}");
                prop_assert!(reason.stage() != Stage::Rewrite);
            }
            prop_assert_eq!(rehearsed.is_new_session, rig.sessions() > before.0);
            let sent: usize = Side::BOTH.iter().map(|side| rig.take(*side).len()).sum();
            prop_assert_eq!(rehearsed.leaves_by().is_some(), sent > 0, "{:?}", rehearsed.outcome);
        }
    }
}

#[test]
fn every_stage_but_the_rewriting_drops_for_some_reason() {
    for stage in Stage::ALL {
        let drops = DropReason::ALL.iter().any(|reason| reason.stage() == stage);
        assert_eq!(drops, stage != Stage::Rewrite, "{}", stage.name());
    }
}
