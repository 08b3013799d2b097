//! Between receiving and sending nothing is allocated.

use std::time::Duration;

use allocation_counter::measure;
use spillway_bench_engine::rig::Rig;
use spillway_bench_engine::traffic::{Flows, Order, Sizes};

const SESSIONS: u32 = 20_000;

/// Makes workers whose queues and lines have seen traffic.
fn warm_rig(workers: u16, flows: Flows) -> Rig {
    let mut rig = Rig::new(workers, 2 * flows.count() + 8192).expect("there is memory");
    rig.send_outbound(flows, &Order::new(1).once(0, 256), Sizes::Small).expect("they are forwarded");
    rig
}

#[test]
fn nothing_is_allocated_for_a_packet_a_session_or_its_end() {
    let flows = Flows::new(SESSIONS);
    let mut order = Order::new(2);
    let first = order.once(256, SESSIONS);
    let mut draws = vec![0; 50_000];
    order.draw(SESSIONS, &mut draws);
    let mut rig = warm_rig(1, flows);
    let begins = measure(|| _ = rig.send_outbound(flows, &first, Sizes::Imix).expect("all begin"));
    assert_eq!((rig.sessions(), begins.count_total), (SESSIONS, 0), "new sessions");
    let hits = measure(|| _ = rig.send_outbound(flows, &draws, Sizes::Imix).expect("all pass"));
    assert_eq!(hits.count_total, 0, "packets of sessions that exist");
    let replies = rig.replies(flows).expect("all have sessions");
    // The harness's own queue on that side grows with the first ones.
    rig.send_inbound(&replies, &draws[..256], Sizes::Imix).expect("all pass");
    let answers = measure(|| _ = rig.send_inbound(&replies, &draws, Sizes::Imix).expect("all pass"));
    assert_eq!(answers.count_total, 0, "answers");
    rig.wait(Duration::from_secs(400));
    let ends = measure(|| _ = rig.expire());
    assert_eq!((rig.sessions(), ends.count_total), (0, 0), "sessions that end");
}

#[test]
fn nothing_is_allocated_when_frames_are_handed_over() {
    let flows = Flows::new(SESSIONS);
    let first = Order::new(2).once(256, SESSIONS);
    let mut rig = warm_rig(4, flows);
    let handed = measure(|| _ = rig.send_outbound(flows, &first, Sizes::Small).expect("all begin"));
    assert_eq!((rig.sessions(), handed.count_total), (SESSIONS, 0));
    assert!(rig.tables().all(|table| table.len() > SESSIONS / 8), "every worker has some");
}

#[test]
fn the_counter_counts() {
    assert_eq!(measure(|| _ = Box::new(1_u64)).count_total, 1);
}
