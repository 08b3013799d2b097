//! What is measured, at each number of sessions: in every round, floor, hit, reply, mix, rival and the rest in turn.

use std::time::Duration;

use anyhow::Result;
use conntrack::{Conntrack, FiveTuple};

use crate::floor::{Floor, Forwarder};
use crate::rig::{Rig, Sample};
use crate::rival::Rival;
use crate::stages::{StageTimes, Stages};
use crate::traffic::{Flows, Order, Sizes};

/// Sessions of the floor, whatever the table holds.
pub const FLOOR_SESSIONS: u32 = 1024;
/// Packets that a session has on average where the cost of its end is shared out.
pub const PACKETS_PER_SESSION: u32 = 10;

/// Sessions whose beginning is timed at most, at the end of filling the table.
const MISSES: u32 = 65_536;
/// Longer than any timeout of UDP.
const LONG: Duration = Duration::from_secs(400);
/// Of so many packets one opens a session in the mix.
const MIX_SHARE: usize = 100;
/// Packets between two snapshots.
const PACKETS_PER_SNAPSHOT: usize = 8192;

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Numbers of sessions, one after the other.
    pub sessions: Vec<u32>,
    /// Turns that each measurement has.
    pub rounds: u32,
    /// Packets of each measurement in a round.
    pub packets: usize,
    /// What the order of packets is drawn with.
    pub seed: u64,
}

/// What was found at one number of sessions: nanoseconds a packet or session, a value for each round.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Sessions in the table.
    pub sessions: u32,
    /// The same loop without a look-up, at [`FLOOR_SESSIONS`].
    pub floor: Vec<f64>,
    /// A packet from a pod, of a session that exists.
    pub hit: Vec<f64>,
    /// A packet to a pod, of a session that exists.
    pub reply: Vec<f64>,
    /// IMIX lengths, both directions, one packet in a hundred opening a session.
    pub mix: Vec<f64>,
    /// A hit of the `hashbrown` map in the floor's loop.
    pub rival: Vec<f64>,
    /// The first packet of a session.
    pub miss: Vec<f64>,
    /// The end of a session whose time is over.
    pub expiry: Vec<f64>,
    /// A hit while a snapshot is adopted every 8,192 packets, after each of which every session is checked anew.
    pub churn: Vec<f64>,
    /// A packet of which every second goes to another worker's session.
    pub handed_over: Vec<f64>,
    /// Parts of a hit.
    pub stages: Vec<StageTimes>,
    /// Memory of the table, in bytes.
    pub table_bytes: usize,
}

/// Measures at every number of sessions; `tell` is told what comes next.
///
/// # Errors
/// When a packet was not forwarded that should have been, or memory is short.
pub fn run(plan: &Plan, mut tell: impl FnMut(String)) -> Result<Vec<Row>> {
    let mut order = Order::new(plan.seed);
    plan.sessions.iter().map(|sessions| run_at(plan, *sessions, &mut order, &mut tell)).collect()
}

fn run_at(plan: &Plan, sessions: u32, order: &mut Order, tell: &mut impl FnMut(String)) -> Result<Row> {
    let flows = Flows::new(sessions);
    let mut row = Row { sessions, ..Row::default() };
    tell(format!("{sessions} sessions: begin and end"));
    let mut rig = Rig::new(1, entries(flows))?;
    row.table_bytes = rig.tables().map(Conntrack::memory_bytes).sum();
    begin_and_end(plan, flows, order, &mut rig, &mut row)?;
    let replies = rig.replies(flows)?;

    let mut floor = Forwarder::new(Floor::new(Flows::new(FLOOR_SESSIONS)))?;
    let mut rival = Forwarder::new(Rival::new(flows))?;
    let mut stages = Stages::new(flows, entries(flows), order)?;
    let mut pair = Rig::new(2, entries(flows))?;
    pair.send_outbound(flows, &order.once(0, sessions), Sizes::Small)?;
    let mut draws = vec![0; plan.packets];
    for round in 1..=plan.rounds {
        tell(format!("{sessions} sessions: round {round} of {}", plan.rounds));
        order.draw(FLOOR_SESSIONS, &mut draws);
        row.floor.push(floor.send_outbound(Flows::new(FLOOR_SESSIONS), &draws, Sizes::Small)?.nanoseconds());
        order.draw(sessions, &mut draws);
        row.hit.push(rig.send_outbound(flows, &draws, Sizes::Small)?.nanoseconds());
        row.reply.push(rig.send_inbound(&replies, &draws, Sizes::Small)?.nanoseconds());
        row.rival.push(rival.send_outbound(flows, &draws, Sizes::Small)?.nanoseconds());
        row.stages.push(stages.measure(&draws)?);
        row.handed_over.push(pair.send_outbound(flows, &draws, Sizes::Small)?.nanoseconds());
    }
    tell(format!("{sessions} sessions: mix"));
    for round in 0..plan.rounds {
        row.mix.push(mix(plan, flows, round, order, &mut rig, &replies)?);
    }
    // Last, because it leaves most sessions of a large table to be checked anew.
    tell(format!("{sessions} sessions: churn"));
    for _ in 0..plan.rounds {
        order.draw(sessions, &mut draws);
        row.churn.push(churn(flows, &draws, &mut rig)?);
    }
    Ok(row)
}

/// Returns room for all sessions, their pods, and those that the mix begins.
fn entries(flows: Flows) -> u32 {
    flows.count() + flows.count() / 8 + 16_384
}

/// Fills the table and times the last sessions; then lets all end; as often as it takes to time enough of them. The
/// table is full in the end.
fn begin_and_end(plan: &Plan, flows: Flows, order: &mut Order, rig: &mut Rig, row: &mut Row) -> Result<()> {
    let timed = (flows.count() / 2).clamp(1, MISSES);
    let times = (MISSES / timed).clamp(1, 64).max(if flows.count() < 300_000 { plan.rounds } else { 2 });
    for time in 1..=times {
        let all = order.once(0, flows.count());
        let (before, last) = all.split_at(all.len() - timed as usize);
        rig.send_outbound(flows, before, Sizes::Small)?;
        row.miss.push(rig.send_outbound(flows, last, Sizes::Small)?.nanoseconds());
        if time < times {
            rig.wait(LONG);
            row.expiry.push(rig.expire().nanoseconds());
        }
    }
    Ok(())
}

fn churn(flows: Flows, draws: &[u32], rig: &mut Rig) -> Result<f64> {
    let (mut time, mut packets) = (Duration::ZERO, 0);
    for draws in draws.chunks(PACKETS_PER_SNAPSHOT) {
        rig.publish();
        let sample = rig.send_outbound(flows, draws, Sizes::Small)?;
        time += sample.time;
        packets += sample.count;
    }
    Ok(Sample { time, count: packets }.nanoseconds())
}

fn mix(
    plan: &Plan,
    flows: Flows,
    round: u32,
    order: &mut Order,
    rig: &mut Rig,
    replies: &[FiveTuple],
) -> Result<f64> {
    // New flows are numbered behind the others, and have no reply here.
    let new_flows = plan.packets / MIX_SHARE;
    let room = entries(flows) - flows.count() - 8192;
    let new_flows = u32::try_from(new_flows)?.min(room / plan.rounds);
    let first = flows.count() + round * new_flows;
    let grown = flows.with_more(first + new_flows - flows.count());
    let mut draws = vec![0; plan.packets / 2];
    order.draw(flows.count(), &mut draws);
    let step = draws.len() / new_flows.max(1) as usize;
    for number in 0..new_flows {
        draws[number as usize * step] = first + number;
    }
    let out = rig.send_outbound(grown, &draws, Sizes::Imix)?;
    order.draw(flows.count(), &mut draws);
    let back = rig.send_inbound(replies, &draws, Sizes::Imix)?;
    Ok(Sample { time: out.time + back.time, count: out.count + back.count }.nanoseconds())
}
