//! What a tap shows of frames, and that it changes nothing.

use std::sync::Arc;

use conntrack::{TcpFlags, TenantId};

use super::{answer, leave, only};
use crate::snapshot::Side::{Inside, Outside};
use crate::survey::EndFilter;
use crate::tap::{Sample, Tap, TapFilter, TapLimits};
use crate::testing::rig::Rig;
use crate::testing::{corrupt, gateway, red, tcp_frame, udp_frame};
use crate::verdict::{DropReason, Verdict};

const LIMITS: TapLimits = TapLimits { bytes: 2048, per_second: 1000, samples: 64 };

fn tap(rig: &mut Rig, filter: TapFilter, limits: TapLimits) -> Arc<Tap> {
    let tap = Arc::new(Tap::new(filter, limits));
    look(rig, vec![Arc::clone(&tap)]);
    tap
}

fn look(rig: &mut Rig, taps: Vec<Arc<Tap>>) {
    let taps: Arc<[_]> = taps.into();
    rig.mailboxes.iter().for_each(|mailbox| mailbox.put_taps(Arc::clone(&taps)));
    rig.run();
}

fn shown(tap: &Tap) -> Vec<Sample> {
    let mut samples = Vec::new();
    while let Some(sample) = tap.take() {
        samples.push((*sample).clone());
        tap.give_back(sample);
    }
    samples
}

#[test]
fn a_frame_is_shown_as_it_came_and_as_it_leaves() {
    let mut rig = Rig::new(gateway().spec());
    let tap = tap(&mut rig, TapFilter::default(), LIMITS);
    let query = udp_frame("10.132.0.5:1000", "192.168.55.13:53", b"query");
    let sent = leave(&mut rig, &query);
    let came = answer(&sent, TcpFlags::default());
    let back = only(rig.send(Outside, &came, Inside));
    let stray = tcp_frame("10.132.0.5:1000", "192.168.55.13:80", TcpFlags::ACK);
    let reset = only(rig.send(Inside, &stray, Inside));
    let samples = shown(&tap);
    assert_eq!(samples.len(), 3);
    assert_eq!((&samples[0].before.bytes, &samples[0].after.bytes), (&query, &sent));
    assert_eq!((&samples[1].before.bytes, &samples[1].after.bytes), (&came, &back));
    assert_eq!((&samples[2].before.bytes, &samples[2].after.bytes), (&stray, &reset));
    let verdicts = samples.iter().map(|sample| sample.outcome.verdict);
    let expected =
        [Verdict::Forward(Outside), Verdict::Forward(Inside), Verdict::Reject(DropReason::NoSession)];
    assert!(verdicts.eq(expected));
    assert!(samples[0].is_new_session && !samples[1].is_new_session && samples[0].is_first);
    assert_eq!(
        samples[0].session.map(|session| session.inside),
        samples[1].session.map(|session| session.inside)
    );
    assert_eq!(samples[2].session, None);
}

#[test]
fn every_part_of_a_filter_is_heeded_and_what_nobody_wants_stays_in_the_express_lane() {
    let net = |text: &str| EndFilter { network: Some(text.parse().unwrap()), port: None };
    let wants = |filter: TapFilter| {
        let mut rig = Rig::new(gateway().spec());
        let first = udp_frame("10.132.0.5:1000", "192.168.55.13:53", b"x");
        let sent = leave(&mut rig, &first);
        let lane = |rig: &Rig| rig.workers[0].passed_by_lane;
        let tap = tap(&mut rig, filter, LIMITS);
        let before = lane(&rig);
        rig.send(Inside, &first, Outside);
        rig.send(Outside, &answer(&sent, TcpFlags::default()), Inside);
        rig.send(Inside, &tcp_frame("10.132.0.6:1000", "198.51.100.7:80", TcpFlags::SYN), Outside);
        rig.send(Inside, &red(udp_frame("10.132.0.5:1000", "192.168.55.13:53", b"x")), Outside);
        rig.send(Inside, &corrupt(&first, &[(24, 0xff)]), Outside);
        (shown(&tap).len(), lane(&rig) - before)
    };
    let none = TapFilter::default;
    assert_eq!(wants(TapFilter { tenant: Some(TenantId(9)), ..none() }), (0, 4), "all but the broken one");
    assert_eq!(wants(none()), (5, 0));
    assert_eq!(wants(TapFilter { tenant: Some(TenantId(0)), ..none() }), (4, 1));
    assert_eq!(wants(TapFilter { tenant: Some(TenantId(1)), ..none() }).0, 1);
    assert_eq!(wants(TapFilter { protocol: Some(conntrack::Protocol::Tcp), ..none() }), (1, 3));
    assert_eq!(wants(TapFilter { pod: net("10.132.0.6/32"), ..none() }).0, 1);
    assert_eq!(
        wants(TapFilter { pod: net("10.132.0.5/32"), ..none() }).0,
        3,
        "one of them comes from outside"
    );
    assert_eq!(wants(TapFilter { remote: net("192.168.55.13/32"), ..none() }).0, 3);
    assert_eq!(wants(TapFilter { remote: EndFilter { network: None, port: Some(80) }, ..none() }).0, 1);
    assert_eq!(wants(TapFilter { drops_only: true, ..none() }), (1, 4));
}

#[test]
fn a_tap_takes_as_much_as_it_may_and_counts_the_rest() {
    let frame = udp_frame("10.132.0.5:1000", "192.168.55.13:53", b"x");
    for (limits, filter) in [
        (TapLimits { samples: 7, ..LIMITS }, TapFilter::default()),
        (TapLimits { per_second: 70, ..LIMITS }, TapFilter::default()),
        (
            TapLimits { per_second: 70, ..LIMITS },
            TapFilter { tenant: Some(TenantId(0)), ..TapFilter::default() },
        ),
    ] {
        let mut rig = Rig::new(gateway().spec());
        leave(&mut rig, &frame);
        let tap = tap(&mut rig, filter, limits);
        for _ in 0..40 {
            rig.inject(0, Inside, &frame);
        }
        rig.run();
        assert_eq!(rig.take(Outside).len(), 40, "all of them go on");
        assert_eq!((shown(&tap).len(), tap.missed()), (7, 33), "{limits:?}");
        rig.wait(std::time::Duration::from_millis(100));
        leave(&mut rig, &frame);
        assert_eq!((shown(&tap).len(), tap.missed()), (1, 33));
    }
}

#[test]
fn a_tap_that_is_taken_away_costs_nothing_more_and_is_freed_by_others() {
    let mut rig = Rig::new(gateway().spec());
    let frame = udp_frame("10.132.0.5:1000", "192.168.55.13:53", b"x");
    leave(&mut rig, &frame);
    let tap = tap(&mut rig, TapFilter::default(), TapLimits { bytes: 64, ..LIMITS });
    rig.send(Inside, &udp_frame("10.132.0.5:1000", "192.168.55.13:53", &[7; 500]), Outside);
    let sample = &shown(&tap)[0];
    assert_eq!(
        (sample.before.bytes.len(), sample.before.frame_bytes, sample.after.bytes.len()),
        (64, 542, 64)
    );
    look(&mut rig, Vec::new());
    assert_eq!(Arc::strong_count(&tap), 2, "the worker gave it back");
    look(&mut rig, Vec::new());
    assert_eq!(Arc::strong_count(&tap), 1);
    let before = rig.workers[0].passed_by_lane;
    leave(&mut rig, &frame);
    assert_eq!((rig.workers[0].passed_by_lane - before, tap.take().is_none()), (1, true));
}
