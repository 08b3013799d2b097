//! However much the others want of a table, whoever comes later finds room.

use std::net::Ipv4Addr;

use crate::gateway::{Ask, At, Workers, tick, tuple};
use conntrack::{Direction, Filtering, FiveTuple, Mapping, Policy, Refusal, TenantId};
use proptest::prelude::*;

const POOL: [Ipv4Addr; 1] = [Ipv4Addr::new(192, 168, 55, 113)];
/// They take what they can get.
const FLOODERS: [TenantId; 2] = [TenantId(1), TenantId(2)];
const VICTIM: TenantId = TenantId(3);

#[derive(Clone, Debug)]
enum Event {
    /// Somebody asks for some sessions, from one pod or from a pod each.
    Ask { tenant: TenantId, sessions: u16, one_pod: bool },
    /// Some sessions of a tenant end, the oldest first.
    End { tenant: TenantId, sessions: usize },
    /// The victim comes, and goes.
    Visit,
}

struct Test {
    workers: Workers,
    policy: Policy,
    alive: Vec<(TenantId, FiveTuple)>,
    asked: u32,
}

impl Test {
    fn new(workers: u16, capacity: u32, policy: Policy) -> Self {
        Self { workers: Workers::new(workers, capacity, &POOL, 7), policy, alive: Vec::new(), asked: 0 }
    }

    /// Asks for a session from a pod, to a server of its own.
    fn ask(&mut self, tenant: TenantId, pod: u32) -> Result<At, Refusal> {
        self.asked += 1;
        let server = Ipv4Addr::from_bits(0xc612_0000 + self.asked);
        let tuple = FiveTuple { destination: server, ..tuple(pod, 2000 + (self.asked % 60_000) as u16) };
        let worker = self.workers.owner(tenant, tuple.source);
        let table = &self.workers.tables[worker];
        let (held, room) = (table.held_by(tenant), table.room());
        let free = room.saturating_sub(table.capacity() / 256);
        let ask = Ask { tenant, tuple, opened_by: Direction::Outbound, pool: &POOL, policy: &self.policy };
        let admitted = self.workers.admit(&ask, tick(0));
        match admitted {
            Ok(_) => {
                self.alive.push((tenant, tuple));
                assert!(held == 0 || held < 128 * free, "{held} were held, and {free} free");
            }
            Err(Refusal::TenantShare) => {
                assert!(held > 0 && (free < 4 || held >= 128 * free), "{held} were held, and {free} free");
            }
            Err(refusal) => panic!("{refusal}"),
        }
        admitted
    }

    fn end(&mut self, tenant: TenantId, sessions: usize) {
        let (of_tenant, mut kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.alive).into_iter().partition(|(owner, _)| *owner == tenant);
        for (number, (tenant, tuple)) in of_tenant.into_iter().enumerate() {
            if number < sessions {
                let at = self.workers.find_outbound(tenant, &tuple).unwrap();
                self.workers.tables[at.worker].remove(at.id, tick(0));
                self.workers.settle();
            } else {
                kept.push((tenant, tuple));
            }
        }
        self.alive = kept;
    }

    fn visit(&mut self) {
        for pod in 0..3 {
            self.ask(VICTIM, pod).expect("who holds nothing finds room");
            self.end(VICTIM, usize::MAX);
        }
    }

    fn apply(&mut self, event: &Event) {
        match *event {
            Event::Ask { tenant, sessions, one_pod } => {
                for _ in 0..sessions {
                    let pod = if one_pod { 7 } else { 1000 + self.asked };
                    let _ = self.ask(tenant, pod);
                }
            }
            Event::End { tenant, sessions } => self.end(tenant, sessions),
            Event::Visit => self.visit(),
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let flooder = || prop::sample::select(&FLOODERS);
    prop_oneof![
        4 => (flooder(), 1u16..1500, any::<bool>())
            .prop_map(|(tenant, sessions, one_pod)| Event::Ask { tenant, sessions, one_pod }),
        2 => (flooder(), 1usize..800).prop_map(|(tenant, sessions)| Event::End { tenant, sessions }),
        2 => Just(Event::Visit),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    let most_entries = Policy {
        mapping: Mapping::EndpointIndependent,
        filtering: Filtering::AddressDependent,
        ..Policy::default()
    };
    prop_oneof![Just(Policy::default()), Just(most_entries)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn who_holds_nothing_always_gets_a_session(
        events in prop::collection::vec(event(), 1..20),
        policy in policy(),
        workers in 1u16..4,
    ) {
        // The least table whose reserve has the four entries that a first session may take.
        let mut test = Test::new(workers, 4 * 256, policy);
        for event in &events {
            test.apply(event);
            test.visit();
        }
        for tenant in FLOODERS {
            test.end(tenant, usize::MAX);
        }
        test.workers.assert_empty(&POOL, 4);
        for table in &test.workers.tables {
            prop_assert!([FLOODERS[0], FLOODERS[1], VICTIM].iter().all(|tenant| table.held_by(*tenant) == 0));
        }
    }
}

#[test]
fn one_tenant_alone_gets_all_but_the_reserve_and_a_129th() {
    let (reserve, parts) = (129, 255);
    let mut test = Test::new(1, 256 * reserve, Policy::default());
    let begun = (0..256 * reserve).filter(|_| test.ask(FLOODERS[0], 7).is_ok()).count();
    assert_eq!(begun, 128 * parts - 1, "one entry is the pod's");
    assert_eq!(test.workers.tables[0].room() as usize, reserve as usize + parts);
    assert_eq!(test.ask(FLOODERS[0], 7), Err(Refusal::TenantShare));
    test.ask(VICTIM, 7).unwrap();
    test.end(FLOODERS[0], 1);
    assert_eq!(test.ask(FLOODERS[0], 7), Err(Refusal::TenantShare), "the victim has what it lacks");
    test.end(VICTIM, 1);
    test.ask(FLOODERS[0], 7).unwrap();
}
