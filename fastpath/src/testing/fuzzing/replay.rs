//! Runs what the fuzz targets have found worth keeping: inputs that reach code of their own, and those that failed once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use arbitrary::{Arbitrary, Unstructured};

use super::{Input, Plan};
use crate::verdict::DropReason;

/// Reads the files of a fuzz target's corpus, and of its regressions if it has any.
fn files(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let directories = ["corpus", "regressions"].map(|kind| root.join(kind).join(target));
    let entries = directories.iter().filter_map(|directory| std::fs::read_dir(directory).ok()).flatten();
    let paths: BTreeSet<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

fn input<'a, T: Arbitrary<'a>>(bytes: &'a [u8]) -> T {
    T::arbitrary_take_rest(Unstructured::new(bytes)).unwrap()
}

/// Says which file a failing test was at, and what was in it.
struct Show<'a, T: std::fmt::Debug>(&'a Path, &'a T);

impl<T: std::fmt::Debug> Drop for Show<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: {:?}", self.0.display(), self.1);
        }
    }
}

#[test]
fn every_kept_frame_is_parsed_inside_its_bounds_or_refused() {
    let mut reasons = BTreeSet::new();
    for (path, bytes) in files("parse") {
        let input: Input = input(&bytes);
        let _show = Show(&path, &input);
        reasons.insert(input.parse());
    }
    assert!(reasons.len() > 5, "the corpus reaches the parser's answers: {reasons:?}");
}

#[test]
fn every_kept_plan_obeys_the_laws() {
    let mut reached = BTreeMap::new();
    let (mut outbound, mut inbound) = (0, 0);
    for (path, bytes) in files("pipeline") {
        let plan: Plan = input(&bytes);
        let _show = Show(&path, &plan);
        let tally = plan.play();
        (outbound, inbound) = (outbound + tally.outbound, inbound + tally.inbound);
        for (reason, count) in tally.drops {
            *reached.entry(reason).or_insert(0) += count;
        }
    }
    assert!(outbound > 0 && inbound > 0, "{outbound} packets out, {inbound} in");
    let missing: Vec<_> = REACHED.iter().filter(|reason| !reached.contains_key(reason)).collect();
    assert!(missing.is_empty(), "no kept plan meets {missing:?} any more; {reached:?}");
}

/// Reasons to drop a packet that a corpus worth its name meets: all that a few packets can bring about.
const REACHED: [DropReason; 18] = [
    DropReason::Malformed,
    DropReason::NotIpv4,
    DropReason::BadChecksum,
    DropReason::UnsupportedIcmp,
    DropReason::Leak,
    DropReason::UnknownSource,
    DropReason::UnknownPod,
    DropReason::NodeSource,
    DropReason::PodSource,
    DropReason::UnknownTenant,
    DropReason::MartianAddress,
    DropReason::MisaddressedError,
    DropReason::TtlExceeded,
    DropReason::TooBig,
    DropReason::NoSession,
    DropReason::TenantDraining,
    DropReason::NeighbourUnresolved,
    DropReason::TxRingFull,
];
