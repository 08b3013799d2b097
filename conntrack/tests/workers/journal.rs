//! What a log of translations is told is what happened.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use conntrack::{
    Cause, Direction, Event, FiveTuple, Journal, Mapping, Policy, Protocol, Record, Resumption, TcpFlags,
    TcpSegment, TenantId, Tick, Translation, blocks::BLOCK_PORTS, restore,
};
use proptest::prelude::*;

use crate::gateway::{Ask, Workers, gateway_of, tick};

const POOL: [Ipv4Addr; 1] = [Ipv4Addr::new(192, 168, 55, 113)];
const BLUE: TenantId = TenantId(0);

/// Everything that was told, by all workers.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<(Tick, Event)>>>);

impl Journal for Log {
    fn note(&mut self, at: Tick, event: &Event) {
        self.0.lock().unwrap().push((at, *event));
    }
}

impl Log {
    fn events(&self) -> Vec<(Tick, Event)> {
        self.0.lock().unwrap().clone()
    }

    /// Returns who is behind what, and which blocks are taken, as the log has it.
    fn replay(&self) -> (HashMap<FiveTuple, Translation>, BTreeSet<(Ipv4Addr, u16)>) {
        let (mut sessions, mut blocks) = (HashMap::new(), BTreeSet::new());
        for (_, event) in self.events() {
            match event {
                Event::Began(translation) => {
                    let before = sessions.insert(translation.inside_tuple, translation);
                    assert_eq!(before, None, "a session begins once");
                }
                Event::Ended(translation, _) => {
                    let began = sessions.remove(&translation.inside_tuple);
                    assert_eq!(began, Some(translation), "a session ends as it began");
                }
                Event::BlockTaken(egress, port) => assert!(blocks.insert((egress, port))),
                Event::BlockReturned(egress, port) => assert!(blocks.remove(&(egress, port))),
            }
        }
        (sessions, blocks)
    }
}

fn gateway(workers: u16, pool: &[Ipv4Addr]) -> (Workers, Log) {
    let mut gateway = Workers::new(workers, 4000, pool, 7);
    let log = Log::default();
    gateway.tables.iter_mut().for_each(|table| table.report_to(Box::new(log.clone())));
    (gateway, log)
}

fn flow(pod: u32, port: u16, remote_port: u16, protocol: Protocol) -> FiveTuple {
    FiveTuple {
        source: Ipv4Addr::from_bits(0x0a84_0000 + pod),
        destination: Ipv4Addr::new(198, 51, 100, 7),
        source_port: port,
        destination_port: remote_port,
        protocol,
    }
}

fn open(gateway: &mut Workers, tuple: FiveTuple, policy: &Policy, now: Tick) {
    let ask = Ask { tenant: BLUE, tuple, opened_by: Direction::Outbound, pool: &POOL, policy };
    if gateway.find_outbound(BLUE, &tuple).is_none() {
        gateway.admit(&ask, now).unwrap();
    }
}

/// Asserts that the log has what the tables have.
fn assert_told(gateway: &Workers, log: &Log) {
    let (told, blocks) = log.replay();
    let sessions = gateway.tables.iter().flat_map(|table| table.scan(0, table.capacity()));
    let live: HashMap<_, _> = sessions.map(|session| (session.inside_tuple(), session.outside())).collect();
    assert_eq!(told.len(), live.len());
    for (inside, translation) in told {
        assert_eq!((translation.gateway, translation.outside), (gateway_of(BLUE), live[&inside]));
    }
    let ports = gateway.shared.ports(POOL[0]).unwrap();
    let owned = (0..=u16::MAX).step_by(BLOCK_PORTS.into()).filter(|port| ports.owner(*port).is_some());
    assert_eq!(blocks, owned.map(|port| (POOL[0], port)).collect());
}

#[derive(Clone, Debug)]
enum Step {
    Open { pod: u32, port: u16, remote: u16, is_tcp: bool },
    End { nth: u32 },
    Wait { minutes: u64 },
    Panic { worker: u16 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..20u32, 1000..1040u16, 1..4u16, any::<bool>())
            .prop_map(|(pod, port, remote, is_tcp)| Step::Open { pod, port, remote, is_tcp }),
        2 => any::<u32>().prop_map(|nth| Step::End { nth }),
        1 => (1..7u64).prop_map(|minutes| Step::Wait { minutes }),
        1 => any::<u16>().prop_map(|worker| Step::Panic { worker }),
    ]
}

fn take(gateway: &mut Workers, step: &Step, policy: &Policy, now: &mut u64) {
    match *step {
        Step::Open { pod, port, remote, is_tcp } => {
            let protocol = if is_tcp { Protocol::Tcp } else { Protocol::Udp };
            open(gateway, flow(pod, port, remote, protocol), policy, tick(*now));
        }
        Step::End { nth } => {
            let live: Vec<_> =
                gateway.tables.iter().flat_map(|table| table.scan(0, table.capacity())).collect();
            let Some(session) = live.get(usize::try_from(nth).unwrap() % live.len().max(1)) else { return };
            let at = gateway.find_outbound(BLUE, &session.inside_tuple()).unwrap();
            gateway.tables[at.worker].remove(at.id, tick(*now));
            gateway.settle();
        }
        Step::Wait { minutes } => {
            *now += minutes * 600;
            gateway.expire(tick(*now));
        }
        Step::Panic { worker } => {
            let worker = usize::from(worker) % gateway.tables.len();
            gateway.tables[worker].forget_all();
            for other in (0..gateway.tables.len()).filter(|other| *other != worker) {
                let forgetful = u16::try_from(worker).unwrap();
                gateway.tables[other].forget_worker(forgetful, tick(*now), |_| {});
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn the_log_is_told_of_every_session_and_block(
        steps in prop::collection::vec(step(), 0..200),
        workers in 1..4u16,
        is_mapped: bool,
    ) {
        let mapping = if is_mapped { Mapping::EndpointIndependent } else { Mapping::default() };
        let policy = Policy { mapping, ..Policy::default() };
        let (mut gateway, log) = gateway(workers, &POOL);
        let mut now = 0;
        for step in &steps {
            take(&mut gateway, step, &policy, &mut now);
            assert_told(&gateway, &log);
        }
        gateway.expire(tick(now + 100_000));
        assert_told(&gateway, &log);
    }
}

#[test]
fn the_log_is_told_when_and_why_a_session_ended() {
    let cases: [(&[(Direction, u8)], Cause); 4] = [
        (&[], Cause::Idle),
        (&[(Direction::Inbound, 0x12), (Direction::Outbound, 0x10)], Cause::Idle),
        (
            &[(Direction::Inbound, 0x12), (Direction::Outbound, 0x11), (Direction::Inbound, 0x11)],
            Cause::Closed,
        ),
        (
            &[(Direction::Inbound, 0x12), (Direction::Outbound, 0x10), (Direction::Inbound, 0x04)],
            Cause::Reset,
        ),
    ];
    for (segments, cause) in cases {
        let (mut gateway, log) = gateway(1, &POOL);
        open(&mut gateway, flow(5, 40_000, 443, Protocol::Tcp), &Policy::default(), tick(7));
        let at = gateway.find_outbound(BLUE, &flow(5, 40_000, 443, Protocol::Tcp)).unwrap();
        let timeouts = gateway.timeouts;
        for (sequence, (direction, flags)) in (0..).step_by(1000).zip(segments) {
            let segment = TcpSegment { flags: TcpFlags(*flags), sequence, ..TcpSegment::default() };
            gateway.tables[0].touch(at.id, *direction, &segment, tick(8), &timeouts);
        }
        gateway.expire(tick(90_000));
        let sessions =
            log.events().into_iter().filter(|(_, event)| matches!(event, Event::Began(_) | Event::Ended(..)));
        let told: Vec<_> = sessions
            .map(|(at, event)| match event {
                Event::Ended(_, cause) => (at, Some(cause)),
                Event::Began(_) | Event::BlockTaken(..) | Event::BlockReturned(..) => (at, None),
            })
            .collect();
        assert_eq!(told, [(tick(7), None), (tick(90_000), Some(cause))], "{segments:?}");
    }
}

#[test]
fn a_session_that_is_taken_up_does_not_begin_again() {
    let (mut gateway, log) = gateway(2, &POOL);
    let tuple = flow(5, 40_000, 443, Protocol::Udp);
    let record = Record {
        gateway: gateway_of(BLUE),
        inside_tuple: tuple,
        outside: (POOL[0], 50_123),
        tcp: conntrack::TcpState::Opening,
        mapping: None,
    };
    let timeouts = gateway.timeouts;
    let age = Duration::from_secs(1);
    let resumption =
        Resumption { tenant: BLUE, record: &record, age, timeouts: &timeouts, next_hops: [0; 2] };
    restore(&mut gateway.tables, &resumption, tick(0)).unwrap();
    assert_eq!(log.events(), []);
    let at = gateway.find_outbound(BLUE, &tuple).unwrap();
    gateway.tables[at.worker].remove(at.id, tick(9));
    let translation = Translation { gateway: gateway_of(BLUE), inside_tuple: tuple, outside: record.outside };
    assert_eq!(log.events()[0], (tick(9), Event::Ended(translation, Cause::Removed)));
    gateway.tables[0].note_not_restored(&record);
    assert_eq!(log.events().last().unwrap().1, Event::Ended(translation, Cause::NotRestored));
}
