//! scratch
use spillway_bench_engine::{floor::*, rig::*, rival::*, traffic::*};
use std::time::Duration;

fn main() {
    let sizes: Vec<u32> = std::env::args().skip(1).map(|w| w.parse().unwrap()).collect();
    for count in sizes {
        let flows = Flows::new(count);
        let mut order = Order::new(1);
        let mut rig = Rig::new(1, count + count / 8 + 8192).unwrap();
        let first = order.once(0, count);
        let split = first.len() - (first.len() / 2).min(65536);
        let fill = rig.send_outbound(flows, &first[..split], Sizes::Small).unwrap();
        let miss = rig.send_outbound(flows, &first[split..], Sizes::Small).unwrap();
        let mut floor = Forwarder::new(Floor::new(Flows::new(1024))).unwrap();
        let mut rival = Forwarder::new(Rival::new(flows)).unwrap();
        let mut draws = vec![0; 1 << 17];
        let (mut f, mut h, mut r, mut hb) = (vec![], vec![], vec![], vec![]);
        let replies = rig.replies(flows).unwrap();
        for _ in 0..15 {
            order.draw(1024, &mut draws);
            f.push(floor.send_outbound(Flows::new(1024), &draws, Sizes::Small).unwrap().nanoseconds());
            order.draw(count, &mut draws);
            rig.wait(Duration::from_millis(100));
            h.push(rig.send_outbound(flows, &draws, Sizes::Small).unwrap().nanoseconds());
            rig.wait(Duration::from_millis(100));
            r.push(rig.send_inbound(&replies, &draws, Sizes::Small).unwrap().nanoseconds());
            hb.push(rival.send_outbound(flows, &draws, Sizes::Small).unwrap().nanoseconds());
        }
        rig.wait(Duration::from_secs(400));
        let gone = rig.expire();
        let m = |v: &mut Vec<f64>| {
            v.sort_by(f64::total_cmp);
            format!("{:.1} ({:.1})", v[v.len() / 2], v[0])
        };
        println!(
            "{count}: floor {} hit {} reply {} rival {} fill {:.0} miss {:.0} expire {:.0}",
            m(&mut f),
            m(&mut h),
            m(&mut r),
            m(&mut hb),
            fill.nanoseconds(),
            miss.nanoseconds(),
            gone.nanoseconds()
        );
    }
}
