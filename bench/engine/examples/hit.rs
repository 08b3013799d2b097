//! Forwards packets, for whoever counts instructions in `Rig::turn`: `hit SESSIONS PACKETS TURNS LOOKS ENDS`: nobody looks
//! (0), or at drops (1), or at a packet of every tenth of a second (2); and at last all sessions end (1), or do not (0).

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use fastpath::tap::{Tap, TapFilter, TapLimits};
use spillway_bench_engine::rig::Rig;
use spillway_bench_engine::traffic::{Flows, Order, Sizes};

fn main() -> Result<()> {
    let mut numbers = std::env::args().skip(1).map(|word| word.parse::<u32>());
    let mut next = || numbers.next().unwrap_or(Ok(0));
    let (sessions, packets, turns, looks, ends) = (next()?, next()?, next()?, next()?, next()?);
    let flows = Flows::new(sessions);
    let mut order = Order::new(1);
    let mut rig = Rig::new(1, 2 * sessions + 8192)?;
    rig.send_outbound(flows, &order.once(0, sessions), Sizes::Small)?;
    let mut draws = vec![0; packets as usize];
    order.draw(sessions, &mut draws);
    if looks > 0 {
        let filter = TapFilter { drops_only: looks == 1, ..TapFilter::default() };
        rig.show_to(Arc::new(Tap::new(filter, TapLimits { bytes: 2048, per_second: 10, samples: 1024 })));
    }
    rig.send_outbound(flows, &draws, Sizes::Small)?;
    for _ in 0..turns {
        rig.turn();
    }
    if ends > 0 {
        rig.wait(Duration::from_secs(400));
        rig.expire();
    }
    Ok(())
}
