//! The obvious alternative: sessions in a hash map of the best kind that there is.

use ahash::RandomState;
use conntrack::{Direction, Epoch, Key, Rewrite, Tick};
use fastpath::express::Glance;
use fastpath::snapshot::Snapshot;
use hashbrown::HashMap;
use macaddr::MacAddr6;

use crate::floor::{Translator, rewrite_of};
use crate::rig::facts;
use crate::traffic::{EGRESS, Flows};

/// A session of the map: as much as one needs to forward a packet and to know when it came.
#[derive(Debug)]
struct Session {
    rewrite: Rewrite,
    epoch: Epoch,
    last_seen: Tick,
}

/// Both keys of each session in a `hashbrown` map with `ahash`.
#[derive(Debug)]
pub struct Rival {
    snapshot: Snapshot,
    sessions: HashMap<Key, Session, RandomState>,
}

impl Rival {
    /// Makes the sessions of all flows.
    pub fn new(flows: Flows) -> Self {
        let snapshot = Snapshot::compile(facts(Epoch(1)));
        let tenant = snapshot.spec().tenants[0].id;
        let mut sessions = HashMap::with_capacity_and_hasher(
            2 * flows.count() as usize,
            RandomState::with_seeds(1, 2, 3, 4),
        );
        for flow in 0..flows.count() {
            let tuple = flows.tuple(flow);
            let rewrite = rewrite_of(flows, flow);
            let outside = conntrack::FiveTuple { source: EGRESS, source_port: rewrite.port, ..tuple };
            for (direction, tuple) in [(Direction::Outbound, tuple), (Direction::Inbound, outside.reversed())]
            {
                let session = Session { rewrite, epoch: Epoch(1), last_seen: Tick::default() };
                sessions.insert(Key::new(tenant, direction, &tuple), session);
            }
        }
        Self { snapshot, sessions }
    }
}

impl Translator for Rival {
    fn translate(&mut self, glance: &Glance, frame: &[u8], _: u32) -> Option<Rewrite> {
        let mac: [u8; 6] = *frame.first_chunk()?;
        let tenant = self.snapshot.tenant_by_mac(MacAddr6::from(mac))?;
        let session = self.sessions.get_mut(&Key::of_wire(tenant, Direction::Outbound, glance.wire))?;
        session.last_seen = Tick::default();
        (session.epoch == self.snapshot.epoch()).then_some(session.rewrite)
    }
}
