use std::net::Ipv4Addr;
use std::sync::Arc;

use conntrack::replication::RECORD_BYTES;
use conntrack::{
    Admission, Cause, Direction, Epoch, Event, FiveTuple, Protocol, Revision, SharedBook, WorkerSlot,
    owner_of_inside,
};
use proptest::prelude::*;

use super::*;
use crate::journal::{Events, Records};
use crate::testing::{BLUE, gateway};

const SLOTS: u32 = 100;
const HEADER_BYTES: usize = 4096;

/// A process: its tables, and the file that it keeps.
struct Process {
    tables: Vec<Conntrack>,
    snapshot: Snapshot,
    inheritance: Inheritance,
    counters: Vec<Arc<WorkerCounters>>,
    events: Events,
    _file: SessionFile,
}

impl Process {
    fn start(path: &Path, workers: u16) -> Self {
        Self::start_under(path, workers, Snapshot::compile(gateway().spec()))
    }

    fn start_under(path: &Path, workers: u16, snapshot: Snapshot) -> Self {
        let snapshot = snapshot.with_shared(&mut SharedBook::default(), Epoch::default());
        let table = |worker| {
            let shared = Arc::clone(snapshot.shared().unwrap());
            Conntrack::new(SLOTS, WorkerSlot { worker, workers }, shared, [3; 32])
        };
        let mut tables: Vec<_> = (0..workers).map(table).collect();
        let counters: Vec<_> = (0..workers).map(|_| Arc::new(WorkerCounters::default())).collect();
        counters.iter().for_each(|counters| counters.adopt(&snapshot));
        let events = Events::new(tables.len(), Records::Sessions);
        let numbered = tables.iter_mut().enumerate();
        numbered.for_each(|(worker, table)| table.report_to(events.reporter(worker)));
        let (file, inheritance) = succeed(path, &mut tables, &counters, &snapshot).unwrap();
        Self { tables, snapshot, inheritance, counters, events, _file: file }
    }

    /// Makes sessions of ns-blue, with ports from `first` on.
    fn open(&mut self, first: u16, count: u16) {
        let tenant = self.snapshot.tenant(BLUE).unwrap();
        for port in first..first + count {
            let tuple = FiveTuple {
                source: Ipv4Addr::new(10, 132, 0, port.to_be_bytes()[1]),
                destination: Ipv4Addr::new(198, 51, 100, 7),
                source_port: port,
                destination_port: 443,
                protocol: Protocol::Udp,
            };
            let admission = Admission {
                tenant: BLUE,
                opened_by: Direction::Outbound,
                tuple,
                egress_addresses: &tenant.egress_addresses,
                policy: &tenant.policy,
                timeouts: &self.snapshot.spec().timeouts,
                loan: None,
                revision: Revision { epoch: Epoch(1), next_hops: [0; 2] },
            };
            let workers = u16::try_from(self.tables.len()).unwrap();
            let owner = usize::from(owner_of_inside(BLUE, tuple.source, workers));
            self.tables[owner].admit(&admission, Tick::default()).unwrap();
        }
    }

    /// Returns how many sessions the log of translations heard of that began, and why others ended.
    fn told(&self) -> (usize, Vec<Cause>) {
        let mut told = Vec::new();
        self.events.drain(&mut told);
        let began = told.iter().filter(|(_, event)| matches!(event, Event::Began(_))).count();
        let cause = |event: &Event| match event {
            Event::Ended(_, cause) => Some(*cause),
            Event::Began(_) | Event::BlockTaken(..) | Event::BlockReturned(..) => None,
        };
        (began, told.iter().filter_map(|(_, event)| cause(event)).collect())
    }

    fn translations(&self) -> Vec<(u16, u16)> {
        let sessions = self.tables.iter().flat_map(|table| table.scan(0, SLOTS));
        let ports = |session: &conntrack::Session| {
            (session.inside_tuple().source_port, session.outside_tuple().source_port)
        };
        let mut all: Vec<_> = sessions.map(ports).collect();
        all.sort_unstable();
        all
    }
}

fn directory() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("spillway.sessions");
    (directory, path)
}

/// Leaves a file with eight sessions, in which `change` is made.
fn left_behind(path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut process = Process::start(path, 1);
    process.open(1000, 8);
    drop(process);
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, &bytes).unwrap();
    bytes
}

#[test]
fn sessions_go_on_in_the_next_process_and_the_one_after() {
    let (directory, path) = directory();
    let mut first = Process::start(&path, 1);
    assert_eq!(first.inheritance, Inheritance::default());
    first.open(1000, 8);
    assert_eq!(first.told(), (8, Vec::new()));
    let before = first.translations();
    drop(first);
    for workers in [1, 3, 2] {
        let next = Process::start(&path, workers);
        assert_eq!(next.told(), (0, Vec::new()), "the log has them already");
        assert_eq!(
            (next.inheritance.restored, next.translations()),
            (8, before.clone()),
            "{workers} workers"
        );
        let counted = |counters: &Arc<WorkerCounters>| {
            let mut report = crate::report::TenantReport::default();
            counters.tenant(BLUE).add_to(&mut report);
            report.sessions
        };
        assert_eq!(next.counters.iter().map(counted).sum::<u64>(), 8);
    }
    let names: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names, ["spillway.sessions"], "nothing else is left");
}

#[test]
fn what_ended_does_not_come_back() {
    let (_directory, path) = directory();
    let mut first = Process::start(&path, 1);
    first.open(1000, 8);
    let late = Tick::since_start(Duration::from_secs(86_400));
    let timeouts = first.snapshot.spec().timeouts;
    assert_eq!(first.tables[0].expire(late, &timeouts, 5, |_, _| {}), 5);
    drop(first);
    assert_eq!(Process::start(&path, 1).inheritance.restored, 3);
}

#[test]
fn sessions_of_tenants_that_are_gone_are_left_out() {
    let (_directory, path) = directory();
    left_behind(&path, |_| {});
    let other = gateway().change(|spec| spec.tenants.retain(|tenant| tenant.id != BLUE));
    let next = Process::start_under(&path, 1, Snapshot::compile(other.spec()));
    assert_eq!((next.inheritance.restored, next.inheritance.disowned), (0, 8));
    assert_eq!(next.told(), (0, vec![Cause::NotRestored; 8]), "the log learns that they ended");
}

#[test]
fn a_file_of_long_ago_gives_nothing() {
    let (_directory, path) = directory();
    left_behind(&path, |bytes| bytes[32..40].copy_from_slice(&1_000_000u64.to_be_bytes()));
    let next = Process::start(&path, 1);
    assert_eq!((next.inheritance.restored, next.inheritance.over), (0, 8));
    assert_eq!(next.told(), (0, vec![Cause::NotRestored; 8]));
}

#[test]
fn a_record_that_was_not_written_to_the_end_is_left_out_alone() {
    let (_directory, path) = directory();
    left_behind(&path, |bytes| bytes[HEADER_BYTES + 3 * RECORD_BYTES + 12] ^= 1);
    let next = Process::start(&path, 1);
    assert_eq!((next.inheritance.restored, next.inheritance.torn), (7, 1));
    assert_eq!(next.inheritance.set_aside, None);
}

#[test]
fn a_file_that_cannot_be_trusted_is_set_aside_as_a_whole() {
    fn newer(bytes: &mut [u8]) {
        bytes[9] = 2;
        let sum = crc32fast::hash(&bytes[..24]);
        bytes[24..28].copy_from_slice(&sum.to_be_bytes());
    }
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 7] = [
        ("has 0 bytes", Vec::clear),
        ("is no file of sessions", |bytes| bytes[0] = b'S'),
        ("has a damaged header", |bytes| bytes[14] ^= 1),
        ("is of format 2", |bytes| newer(bytes)),
        ("where its header says", |bytes| bytes.truncate(HEADER_BYTES + 70)),
        ("where its header says", |bytes| bytes.push(0)),
        ("is damaged", |bytes| bytes[HEADER_BYTES..].iter_mut().step_by(20).for_each(|byte| *byte ^= 1)),
    ];
    for (why, damage) in damages {
        let (_directory, path) = directory();
        let left = left_behind(&path, damage);
        let mut next = Process::start(&path, 1);
        let (aside, said) = next.inheritance.set_aside.clone().unwrap();
        assert!(said.contains(why) && said.contains("spillway.sessions"), "{said}");
        assert_eq!(std::fs::read(&aside).unwrap(), left, "it is kept as it was");
        assert!(next.translations().is_empty());
        next.open(2000, 2);
        drop(next);
        assert_eq!(Process::start(&path, 1).inheritance.restored, 2, "the new file is sound");
    }
}

#[test]
fn a_file_that_another_process_writes_is_refused() {
    let (_directory, path) = directory();
    let first = Process::start(&path, 1);
    let mut tables = Vec::new();
    let counters: [Arc<WorkerCounters>; 0] = [];
    let refused = succeed(&path, &mut tables, &counters, &first.snapshot).unwrap_err();
    assert!(refused.to_string().contains("in use by another process"), "{refused}");
}

#[test]
fn only_the_gateway_may_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let (_directory, path) = directory();
    let _process = Process::start(&path, 1);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_damage_leaves_sound_sessions_or_none(
        damage in prop::collection::vec((any::<prop::sample::Index>(), 1..=u8::MAX), 1..6),
    ) {
        let (_directory, path) = directory();
        let mut sound = Process::start(&path, 1);
        sound.open(1000, 8);
        let before = sound.translations();
        drop(sound);
        let mut bytes = std::fs::read(&path).unwrap();
        for (place, change) in damage {
            let at = place.index(bytes.len());
            bytes[at] ^= change;
        }
        std::fs::write(&path, &bytes).unwrap();
        let next = Process::start(&path, 2);
        let after = next.translations();
        prop_assert!(after.iter().all(|translation| before.contains(translation)), "{:?}", after);
        prop_assert!(next.inheritance.set_aside.is_none() || after.is_empty());
    }
}
