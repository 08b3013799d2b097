//! Several tables that share egress addresses, as the workers of a gateway do: packets find their owner, ports are lent
//! and go back.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use conntrack::{
    Admission, Conntrack, Direction, Epoch, FiveTuple, Found, Key, Policy, Protocol, Refusal, Revision,
    SessionId, Shared, SharedBook, TenantId, Tick, Timeouts, WorkerSlot, owner_of_inside,
};

/// The workers of one gateway.
pub(crate) struct Workers {
    pub(crate) tables: Vec<Conntrack>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) timeouts: Timeouts,
}

/// A session, by its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) worker: usize,
    pub(crate) id: SessionId,
}

/// What a test asks of one admission.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) tenant: TenantId,
    pub(crate) tuple: FiveTuple,
    pub(crate) opened_by: Direction,
    pub(crate) pool: &'a [Ipv4Addr],
    pub(crate) policy: &'a Policy,
}

impl Workers {
    pub(crate) fn new(workers: u16, capacity: u32, pool: &[Ipv4Addr], seed: u8) -> Self {
        let tenants = (0..16).map(|tenant| (TenantId(tenant), gateway_of(TenantId(tenant))));
        let shared = Arc::new(SharedBook::default().next(pool.iter().copied(), tenants, Epoch(1), Epoch(0)));
        let table = |worker| {
            Conntrack::new(
                capacity,
                WorkerSlot { worker, workers },
                Arc::clone(&shared),
                [seed ^ worker.to_le_bytes()[0]; 32],
            )
        };
        Self {
            tables: (0..workers).map(table).collect(),
            shared: Arc::clone(&shared),
            timeouts: Timeouts::default(),
        }
    }

    /// Returns the worker that owns a pod.
    pub(crate) fn owner(&self, tenant: TenantId, inside: Ipv4Addr) -> usize {
        let workers = u16::try_from(self.tables.len()).unwrap();
        usize::from(owner_of_inside(tenant, inside, workers))
    }

    /// Finds the session of a packet of a pod.
    pub(crate) fn find_outbound(&self, tenant: TenantId, tuple: &FiveTuple) -> Option<At> {
        let worker = self.owner(tenant, tuple.source);
        match self.tables[worker].find(&Key::new(tenant, Direction::Outbound, tuple))? {
            Found::Session(id) => Some(At { worker, id }),
            Found::Lent(_) => panic!("nothing is lent from inside"),
        }
    }

    /// Finds the session of a packet from outside, going where its port leads.
    pub(crate) fn find_inbound(&self, tenant: TenantId, wire: &FiveTuple) -> Option<At> {
        let worker = self.tables[0].owner_of_outside(&wire.reversed())?;
        let key = Key::new(tenant, Direction::Inbound, wire);
        let table = &self.tables[usize::from(worker)];
        let borrower = match table.find(&key) {
            Some(Found::Session(id)) => return Some(At { worker: worker.into(), id }),
            Some(Found::Lent(borrower)) => borrower,
            None => table.lent_mapping(tenant, wire)?,
        };
        match self.tables[usize::from(borrower)].find(&key)? {
            Found::Session(id) => Some(At { worker: borrower.into(), id }),
            Found::Lent(_) => panic!("what is borrowed is not lent on"),
        }
    }

    /// Makes a session, with a port of another worker if need be.
    pub(crate) fn admit(&mut self, ask: &Ask<'_>, now: Tick) -> Result<At, Refusal> {
        let worker = self.owner(ask.tenant, ask.tuple.source);
        let (first, request) = match self.admit_at(worker, ask, None, now) {
            Err(Refusal::PortElsewhere { ask: first, request }) => (first, request),
            settled => return settled,
        };
        let is_portless = matches!(ask.tuple.protocol, Protocol::Portless(_));
        let mut asked = usize::from(first);
        while asked != worker {
            if let Some(loan) = self.tables[asked].lend(&request) {
                let admitted = self.admit_at(worker, ask, Some(loan), now);
                self.tables[worker].settle_loan(&loan);
                return admitted;
            }
            asked = if is_portless { worker } else { (asked + 1) % self.tables.len() };
        }
        Err(Refusal::NoPort)
    }

    pub(crate) fn admit_at(
        &mut self,
        worker: usize,
        ask: &Ask<'_>,
        loan: Option<conntrack::Loan>,
        now: Tick,
    ) -> Result<At, Refusal> {
        let admission = Admission {
            tenant: ask.tenant,
            opened_by: ask.opened_by,
            tuple: ask.tuple,
            egress_addresses: ask.pool,
            policy: ask.policy,
            timeouts: &self.timeouts,
            loan,
            revision: Revision { epoch: Epoch(1), next_hops: [1, 2] },
        };
        self.tables[worker].admit(&admission, now).map(|id| At { worker, id })
    }

    /// Brings borrowed ports back to their lenders.
    pub(crate) fn settle(&mut self) {
        for worker in 0..self.tables.len() {
            while let Some(returned) = self.tables[worker].next_return() {
                self.tables[usize::from(returned.lender)].take_back(&returned);
            }
        }
    }

    /// Ends what is over everywhere.
    pub(crate) fn expire(&mut self, now: Tick) {
        for table in &mut self.tables {
            while table.expire(now, &self.timeouts, 64, |_, _| {}) > 0 {}
        }
        self.settle();
    }

    pub(crate) fn sessions(&self) -> u32 {
        self.tables.iter().map(Conntrack::len).sum()
    }

    /// Asserts that nothing is left of any session.
    pub(crate) fn assert_empty(&self, pool: &[Ipv4Addr], tenants: u16) {
        for table in &self.tables {
            assert_eq!((table.len(), table.room()), (0, table.capacity()), "every entry is free");
        }
        for egress in pool {
            assert!(self.shared.ports(*egress).unwrap().is_free(), "every block of {egress} was returned");
        }
        for tenant in (0..tenants).map(TenantId) {
            let used = self.shared.tenant(tenant);
            assert_eq!((used.sessions(), used.ports()), (0, 0), "nothing is counted for {tenant:?}");
        }
    }
}

/// Returns the gateway address of a tenant.
pub(crate) fn gateway_of(tenant: TenantId) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xc0a8_6300 + u32::from(tenant.0))
}

/// Returns a UDP flow from a pod to port 53 of one server.
pub(crate) fn tuple(pod: u32, port: u16) -> FiveTuple {
    FiveTuple {
        source: Ipv4Addr::from_bits(0x0a84_0000 + pod),
        destination: Ipv4Addr::new(192, 168, 55, 13),
        source_port: port,
        destination_port: 53,
        protocol: Protocol::Udp,
    }
}

/// Returns a moment, in tenths of a second.
pub(crate) fn tick(tenths: u64) -> Tick {
    Tick::since_start(Duration::from_millis(tenths * 100))
}
