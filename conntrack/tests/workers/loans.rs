//! Ports that are lent: each is used or goes back, and none outlives what a worker has forgotten.

use std::net::Ipv4Addr;

use crate::gateway::{Ask, At, Workers, tick};
use conntrack::{
    Direction, Filtering, FiveTuple, Loan, Mapping, Policy, Protocol, Refusal, Session, TenantId,
};

const POOL: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 55, 113), Ipv4Addr::new(192, 168, 55, 200)];
const BLUE: TenantId = TenantId(0);
/// Outside ports that stand for inside ports below 1024.
const SYSTEM_PORTS: u32 = 1023;

/// A gateway whose lender has every system port, some of them free.
struct Exhausted {
    gateway: Workers,
    lender: usize,
    borrower: usize,
    policy: Policy,
}

impl Exhausted {
    fn new(workers: u16, policy: Policy, free: usize) -> Self {
        let gateway = Workers::new(workers, 4000, &POOL, 3);
        // Ports are not to rest yet.
        let at_first = Policy { filtering: Filtering::default(), ..policy };
        let mut test = Self { gateway, lender: 0, borrower: 1, policy: at_first };
        let taken: Vec<_> = (0..SYSTEM_PORTS).map(|nth| test.admit(test.pod_of(0, nth), 53)).collect();
        for at in taken.into_iter().take(free) {
            let at = at.unwrap();
            test.gateway.tables[at.worker].remove(at.id, tick(0));
        }
        test.policy = policy;
        test
    }

    /// Returns the `nth` pod that a worker owns.
    fn pod_of(&self, worker: usize, nth: u32) -> Ipv4Addr {
        let pods = (0..).map(|pod| Ipv4Addr::from_bits(0x0a84_0000 + pod));
        pods.filter(|pod| self.gateway.owner(BLUE, *pod) == worker).nth(nth as usize).unwrap()
    }

    fn admit(&mut self, pod: Ipv4Addr, remote_port: u16) -> Result<At, Refusal> {
        self.gateway.admit(&ask(pod, remote_port, &self.policy), tick(0))
    }

    /// Admits at the borrower, with a loan or without.
    fn admit_with(&mut self, pod: Ipv4Addr, remote_port: u16, loan: Option<Loan>) -> Result<At, Refusal> {
        self.gateway.admit_at(self.borrower, &ask(pod, remote_port, &self.policy), loan, tick(0))
    }

    /// Returns a loan that is under way to the borrower.
    fn borrow(&mut self, pod: Ipv4Addr, remote_port: u16) -> Loan {
        let Err(Refusal::PortElsewhere { request, .. }) = self.admit_with(pod, remote_port, None) else {
            panic!("the borrower has no port")
        };
        self.gateway.tables[self.lender].lend(&request).unwrap()
    }

    fn outside(&self, at: At) -> FiveTuple {
        self.gateway.tables[at.worker].session(at.id).outside_tuple()
    }

    /// Asserts that there are so many free ports, and that sessions that get them are found by their replies.
    fn assert_free(&mut self, free: u32) {
        self.gateway.settle();
        for nth in 0..free {
            let at = self.admit(self.pod_of(self.borrower, 900 + nth), 53).unwrap();
            let wire = self.outside(at).reversed();
            assert_eq!(self.gateway.find_inbound(BLUE, &wire), Some(at));
        }
        assert_eq!(self.admit(self.pod_of(self.borrower, 950), 53), Err(Refusal::NoPort));
        self.gateway.expire(tick(1_000_000));
        self.gateway.expire(tick(2_000_000));
        self.gateway.assert_empty(&POOL, 1);
    }
}

/// Asks for a session of a port below 1024.
fn ask(pod: Ipv4Addr, remote_port: u16, policy: &Policy) -> Ask<'_> {
    let tuple = FiveTuple {
        source: pod,
        destination: Ipv4Addr::new(198, 51, 100, 1),
        source_port: 500,
        destination_port: remote_port,
        protocol: Protocol::Udp,
    };
    Ask { tenant: BLUE, tuple, opened_by: Direction::Outbound, pool: &POOL[..1], policy }
}

fn endpoint_independent(filtering: Filtering) -> Policy {
    Policy { mapping: Mapping::EndpointIndependent, filtering, ..Policy::default() }
}

#[test]
fn a_tenant_cannot_fill_the_table_of_a_lender() {
    let mut test = Exhausted::new(2, Policy::default(), 0);
    let (lender, pod) = (test.lender, test.pod_of(test.borrower, 0));
    let lent = (1000..).take_while(|remote_port| test.admit(pod, *remote_port).is_ok()).count();
    // Of 4,000 entries two for each session of the lender were taken; 15 are the reserve, and 30 a 128th of the rest.
    assert_eq!((lent, test.gateway.tables[lender].room()), (4000 - 2 * 1023 - 45, 45));
    let policy = test.policy;
    let visitor = (0..)
        .map(|pod| Ipv4Addr::from_bits(0x0a84_0000 + pod))
        .find(|pod| test.gateway.owner(TenantId(1), *pod) == lender)
        .unwrap();
    let ask = Ask { tenant: TenantId(1), pool: &POOL[1..], ..ask(visitor, 53, &policy) };
    test.gateway.admit(&ask, tick(0)).unwrap();
}

#[test]
fn a_second_loan_for_the_same_inside_port_goes_back() {
    let mut test = Exhausted::new(2, endpoint_independent(Filtering::default()), 2);
    let pod = test.pod_of(test.borrower, 0);
    let loans = [54, 55].map(|remote_port| test.borrow(pod, remote_port));
    assert_ne!(loans[0].port, loans[1].port);
    for (remote_port, loan) in [54, 55].into_iter().zip(loans) {
        let at = test.admit_with(pod, remote_port, Some(loan)).unwrap();
        assert_eq!(test.outside(at).source_port, loans[0].port, "the mapping that the first loan made");
        test.gateway.tables[test.borrower].settle_loan(&loan);
    }
    test.assert_free(1);
}

#[test]
fn a_loan_of_another_egress_address_goes_back_unused() {
    let mut test = Exhausted::new(2, Policy::default(), 1);
    let pod = test.pod_of(test.borrower, 0);
    let loan = test.borrow(pod, 53);
    let (policy, borrower) = (test.policy, test.borrower);
    let ask = Ask { pool: &POOL[1..], ..ask(pod, 53, &policy) };
    let at = test.gateway.admit_at(borrower, &ask, Some(loan), tick(0)).unwrap();
    test.gateway.tables[borrower].settle_loan(&loan);
    let outside = test.outside(at);
    assert_eq!((outside.source, test.gateway.find_outbound(BLUE, &ask.tuple)), (POOL[1], Some(at)));
    assert_eq!(test.gateway.find_inbound(BLUE, &outside.reversed()), Some(at));
    test.gateway.tables[borrower].remove(at.id, tick(0));
    test.assert_free(1);
}

#[test]
fn a_loan_that_its_lender_has_forgotten_is_not_used() {
    let mut test = Exhausted::new(2, Policy::default(), 1);
    let pod = test.pod_of(test.borrower, 0);
    let loan = test.borrow(pod, 53);
    test.gateway.tables[test.lender].forget_all();
    test.gateway.tables[test.borrower].forget_worker(0, tick(0), |_| {});
    let at = test.admit_with(pod, 53, Some(loan)).unwrap();
    test.gateway.tables[test.borrower].settle_loan(&loan);
    assert_eq!(test.gateway.find_inbound(BLUE, &test.outside(at).reversed()), Some(at), "a port of its own");
    assert_eq!(test.gateway.sessions(), 1);
    test.assert_free(SYSTEM_PORTS - 1);
}

#[test]
fn a_loan_that_its_borrower_has_forgotten_is_not_used() {
    let mut test = Exhausted::new(2, Policy::default(), 1);
    let pod = test.pod_of(test.borrower, 0);
    let loan = test.borrow(pod, 53);
    test.gateway.tables[test.borrower].forget_all();
    let late = test.gateway.tables[test.lender].lend(&loan.request);
    assert_eq!(late, None, "nothing is lent to a life that is over");
    test.gateway.tables[test.lender].forget_worker(1, tick(0), |_| {});
    let refused = test.admit_with(pod, 53, Some(loan));
    assert!(matches!(refused, Err(Refusal::PortElsewhere { .. })), "{refused:?}");
    test.gateway.tables[test.borrower].settle_loan(&loan);
    test.assert_free(1);
}

#[test]
fn what_a_forgetful_worker_lent_ends_also_when_others_have_its_blocks_by_then() {
    for filtering in [Filtering::default(), Filtering::EndpointIndependent] {
        for mapping in [Mapping::AddressAndPortDependent, Mapping::EndpointIndependent] {
            let mut test = Exhausted::new(3, Policy { mapping, filtering, ..Policy::default() }, 3);
            let borrowed = [0, 1].map(|nth| test.admit(test.pod_of(1, nth), 53).unwrap());
            // The second one's port rests where ports do.
            test.gateway.tables[1].remove(borrowed[1].id, tick(0));
            test.gateway.tables[0].forget_all();
            for nth in 0..SYSTEM_PORTS {
                test.admit(test.pod_of(2, nth), 53).unwrap();
            }
            let mut ended = 0;
            test.gateway.tables[1].forget_worker(0, tick(0), |tenant| {
                assert_eq!(tenant, BLUE);
                ended += 1;
            });
            assert_eq!((ended, test.gateway.tables[1].len()), (1, 0), "{mapping:?}");
            assert_eq!(test.gateway.tables[1].room(), test.gateway.tables[1].capacity());
            assert_eq!(test.gateway.tables[1].next_return(), None, "nobody waits for it");
            test.assert_free(0);
        }
    }
}

#[test]
fn no_mapping_is_lent_that_an_older_session_could_meet() {
    let mut test = Exhausted::new(2, Policy::default(), 0);
    let older: Vec<_> = test.gateway.tables[test.lender].scan(0, 4000).map(Session::outside_tuple).collect();
    assert_eq!(older.len(), SYSTEM_PORTS as usize);
    // The tenant's mapping changes while they live.
    test.policy = endpoint_independent(Filtering::EndpointIndependent);
    let pod = test.pod_of(test.borrower, 0);
    for remote_port in [80, 53] {
        if let Ok(at) = test.admit(pod, remote_port) {
            assert!(!older.contains(&test.outside(at)), "the outside tuple is another session's");
        }
    }
    for at in older.iter().map(|tuple| test.gateway.find_inbound(BLUE, &tuple.reversed())) {
        assert_eq!(at.map(|at| at.worker), Some(test.lender), "every older session is found by its replies");
    }
}
