//! Objects of one kind, by name, as lists and watches tell of them.
//!
//! A list counts when it is complete, never before. An object that a complete list lacks, although nobody saw it
//! deleted, is doubtful: an API server whose cache is stale may answer with half of what there is. It is kept until a
//! second list, begun [`CONFIRM_AFTER`] later or more, lacks it too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::runtime::watcher::Event;

use super::view::Listed;

/// Time after which a second list may confirm that a doubtful object is gone.
pub const CONFIRM_AFTER: Duration = Duration::from_secs(5);

/// Objects of one kind, by name. `T` is what is kept of each.
#[derive(Clone, Debug)]
pub struct Collection<T> {
    objects: Listed<T>,
    doubtful: BTreeMap<String, Instant>,
    relist: Option<Relist<T>>,
}

#[derive(Clone, Debug)]
struct Relist<T> {
    begun: Instant,
    objects: BTreeMap<String, Arc<T>>,
}

impl<T> Default for Collection<T> {
    fn default() -> Self {
        Self { objects: None, doubtful: BTreeMap::new(), relist: None }
    }
}

impl<T: PartialEq> Collection<T> {
    /// Returns all objects, doubtful ones too; none until a first list was complete.
    pub fn objects(&self) -> &Listed<T> {
        &self.objects
    }

    /// Returns the names of doubtful objects, each with the time since which it is in doubt.
    pub fn doubtful(&self) -> &BTreeMap<String, Instant> {
        &self.doubtful
    }

    /// Returns when a list has to be made that confirms or clears the oldest doubt; none while a list is under way.
    pub fn confirm_at(&self) -> Option<Instant> {
        let oldest = self.doubtful.values().min().filter(|_| self.relist.is_none())?;
        Some(*oldest + CONFIRM_AFTER)
    }

    /// Takes in an event, with each object's name, and returns whether objects were added, changed or removed.
    pub fn apply(&mut self, event: Event<(String, T)>, now: Instant) -> bool {
        match event {
            Event::Init => self.relist = Some(Relist { begun: now, objects: BTreeMap::new() }),
            Event::InitApply((name, object)) => {
                if let Some(relist) = &mut self.relist {
                    relist.objects.insert(name, Arc::new(object));
                }
            }
            Event::InitDone => return self.relist.take().is_some_and(|relist| self.adopt(relist, now)),
            Event::Apply((name, object)) => {
                self.relist = None;
                return self.put(name, object);
            }
            Event::Delete((name, _)) => {
                self.relist = None;
                self.doubtful.remove(&name);
                return self.objects.as_mut().is_some_and(|objects| objects.remove(&name).is_some());
            }
        }
        false
    }

    /// Takes in that there are no objects, as if a list had said so, and returns whether that changed anything.
    pub fn apply_empty_list(&mut self, now: Instant) -> bool {
        self.adopt(Relist { begun: now, objects: BTreeMap::new() }, now)
    }

    fn put(&mut self, name: String, object: T) -> bool {
        self.doubtful.remove(&name);
        let Some(objects) = &mut self.objects else { return false }; // the list that follows has it
        if objects.get(&name).is_some_and(|known| **known == object) {
            return false;
        }
        objects.insert(name, Arc::new(object));
        true
    }

    fn adopt(&mut self, relist: Relist<T>, now: Instant) -> bool {
        let before = self.objects.take();
        let mut objects = relist.objects;
        let mut doubtful = BTreeMap::new();
        for (name, object) in before.iter().flatten() {
            let since = self.doubtful.get(name).copied();
            let is_gone = since.is_some_and(|since| relist.begun >= since + CONFIRM_AFTER);
            if !is_gone && !objects.contains_key(name) {
                objects.insert(name.clone(), object.clone());
                doubtful.insert(name.clone(), since.unwrap_or(now));
            }
        }
        self.doubtful = doubtful;
        let is_changed = before.as_ref() != Some(&objects);
        self.objects = Some(objects);
        is_changed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_is_listed_before_the_first_list_is_complete() {
        let (mut collection, now) = (Collection::default(), Instant::now());
        assert!(!collection.apply(Event::Init, now));
        assert!(!collection.apply(listed("w1", 1), now));
        assert!(collection.objects().is_none());
        assert!(collection.apply(Event::InitDone, now));
        assert_eq!(held(&collection), [("w1", 1)]);
    }

    #[test]
    fn a_first_list_without_objects_counts_as_listed() {
        let mut collection = Collection::<u32>::default();
        assert!(list(&mut collection, &[], Instant::now()));
        assert_eq!(collection.objects(), &Some(BTreeMap::new()));
    }

    #[test]
    fn a_relist_that_breaks_off_changes_nothing() {
        let now = Instant::now();
        let mut collection = two_nodes(now);
        assert!(!collection.apply(Event::Init, now));
        assert!(!collection.apply(listed("w1", 7), now));
        assert!(!collection.apply(Event::Init, now), "the next attempt begins anew");
        assert!(!collection.apply(listed("w1", 1), now));
        assert!(!collection.apply(listed("w2", 2), now));
        assert_eq!(held(&collection), [("w1", 1), ("w2", 2)]);
        assert!(!collection.apply(Event::InitDone, now), "the same objects again");
        assert!(collection.doubtful().is_empty());
    }

    #[test]
    fn an_object_that_a_list_lacks_is_doubtful_and_stays() {
        let now = Instant::now();
        let mut collection = two_nodes(now);
        assert!(!list(&mut collection, &[("w1", 1)], now));
        assert_eq!(held(&collection), [("w1", 1), ("w2", 2)]);
        assert_eq!(collection.doubtful(), &BTreeMap::from([("w2".to_owned(), now)]));
        assert_eq!(collection.confirm_at(), Some(now + CONFIRM_AFTER));
    }

    #[test]
    fn a_second_list_confirms_only_when_it_is_late_enough() {
        let now = Instant::now();
        let mut collection = two_nodes(now);
        list(&mut collection, &[("w1", 1)], now);
        assert!(!list(&mut collection, &[("w1", 1)], now + CONFIRM_AFTER - Duration::from_millis(1)));
        assert_eq!(collection.doubtful()["w2"], now, "in doubt since the first list that lacked it");
        assert!(list(&mut collection, &[("w1", 1)], now + CONFIRM_AFTER));
        assert_eq!(held(&collection), [("w1", 1)]);
        assert_eq!(collection.confirm_at(), None);
    }

    #[test]
    fn a_list_that_was_begun_too_early_does_not_confirm() {
        let now = Instant::now();
        let mut collection = two_nodes(now);
        list(&mut collection, &[("w1", 1)], now);
        collection.apply(Event::Init, now + Duration::from_secs(1));
        assert_eq!(collection.confirm_at(), None, "a list is under way");
        collection.apply(listed("w1", 1), now + CONFIRM_AFTER * 2);
        assert!(!collection.apply(Event::InitDone, now + CONFIRM_AFTER * 2));
        assert_eq!(held(&collection), [("w1", 1), ("w2", 2)]);
    }

    #[test]
    fn a_doubtful_object_is_certain_again_when_it_is_seen() {
        let now = Instant::now();
        for (event, expected) in [
            (Event::Apply(("w2".to_owned(), 2)), vec![("w1", 1), ("w2", 2)]),
            (Event::Apply(("w2".to_owned(), 3)), vec![("w1", 1), ("w2", 3)]),
            (Event::Delete(("w2".to_owned(), 2)), vec![("w1", 1)]),
        ] {
            let mut collection = two_nodes(now);
            list(&mut collection, &[("w1", 1)], now);
            collection.apply(event, now);
            assert_eq!(held(&collection), expected);
            assert!(collection.doubtful().is_empty());
        }
    }

    #[test]
    fn a_new_object_replaces_a_doubtful_one_of_its_name() {
        let now = Instant::now();
        let mut collection = two_nodes(now);
        list(&mut collection, &[("w1", 1)], now);
        assert!(list(&mut collection, &[("w1", 1), ("w2", 9)], now));
        assert_eq!(held(&collection), [("w1", 1), ("w2", 9)]);
        assert!(collection.doubtful().is_empty());
    }

    #[test]
    fn a_kind_that_goes_away_is_doubted_as_a_list_is() {
        let now = Instant::now();
        let mut collection = two_nodes(now);
        assert!(!collection.apply_empty_list(now));
        assert!(collection.apply_empty_list(now + CONFIRM_AFTER));
        assert!(held(&collection).is_empty());
    }

    #[test]
    fn an_event_without_effect_is_no_change() {
        let now = Instant::now();
        let mut collection = two_nodes(now);
        assert!(!collection.apply(Event::Apply(("w1".to_owned(), 1)), now));
        assert!(!collection.apply(Event::Delete(("w3".to_owned(), 3)), now));
    }

    /// What happens to a cluster of four names and to the one who watches it.
    #[derive(Clone, Debug)]
    enum Step {
        Apply(u8, u32),
        Delete(u8),
        List { lacks: u8, objects: Vec<(u8, u32)> },
        BrokenList(Vec<(u8, u32)>),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let objects = || prop::collection::vec((0..4_u8, 0..3_u32), 0..5);
        prop_oneof![
            (0..4_u8, 0..3_u32).prop_map(|(name, value)| Step::Apply(name, value)),
            (0..4_u8).prop_map(Step::Delete),
            (0..4_u8, objects()).prop_map(|(lacks, objects)| Step::List { lacks, objects }),
            objects().prop_map(Step::BrokenList),
            (0..7_000_u64).prop_map(Step::Wait),
        ]
    }

    /// Remembers, of each name, its value and since when every list lacked it.
    #[derive(Default)]
    struct Oracle {
        is_listed: bool,
        known: BTreeMap<String, (u32, Option<Instant>)>,
    }

    impl Oracle {
        fn list(&mut self, objects: &BTreeMap<String, u32>, now: Instant) {
            self.is_listed = true;
            let mut next = BTreeMap::new();
            for (name, (value, since)) in &self.known {
                match since {
                    Some(since) if now.duration_since(*since) >= CONFIRM_AFTER => {}
                    Some(since) => drop(next.insert(name.clone(), (*value, Some(*since)))),
                    None => drop(next.insert(name.clone(), (*value, Some(now)))),
                }
            }
            for (name, value) in objects {
                next.insert(name.clone(), (*value, None));
            }
            self.known = next;
        }
    }

    proptest! {
        #[test]
        fn a_collection_agrees_with_a_naive_one(steps in prop::collection::vec(step(), 0..40)) {
            let (mut collection, mut oracle) = (Collection::default(), Oracle::default());
            let mut now = Instant::now();
            for step in steps {
                let before = collection.objects().clone();
                let changed = take(&mut collection, &mut oracle, step, &mut now);
                prop_assert_eq!(changed, &before != collection.objects());
                prop_assert_eq!(collection.objects().is_some(), oracle.is_listed);
                let expected: Vec<_> = oracle.known.iter().map(|(name, (value, _))| (name.as_str(), *value)).collect();
                prop_assert_eq!(held(&collection), expected);
                let doubtful: BTreeMap<_, _> = oracle
                    .known
                    .iter()
                    .filter_map(|(name, (_, since))| since.map(|since| (name.clone(), since)))
                    .collect();
                prop_assert_eq!(collection.doubtful(), &doubtful);
            }
        }
    }

    fn take(collection: &mut Collection<u32>, oracle: &mut Oracle, step: Step, now: &mut Instant) -> bool {
        match step {
            Step::Apply(name, value) => {
                if oracle.is_listed {
                    oracle.known.insert(name_of(name), (value, None));
                }
                collection.apply(Event::Apply((name_of(name), value)), *now)
            }
            Step::Delete(name) => {
                oracle.known.remove(&name_of(name));
                collection.apply(Event::Delete((name_of(name), 0)), *now)
            }
            Step::List { lacks, objects } => {
                let objects: BTreeMap<_, _> = objects
                    .into_iter()
                    .filter(|(name, _)| *name != lacks)
                    .map(|(name, value)| (name_of(name), value))
                    .collect();
                oracle.list(&objects, *now);
                let objects: Vec<_> = objects.iter().map(|(name, value)| (name.as_str(), *value)).collect();
                list(collection, &objects, *now)
            }
            Step::BrokenList(objects) => {
                let mut changed = collection.apply(Event::Init, *now);
                for (name, value) in objects {
                    changed |= collection.apply(Event::InitApply((name_of(name), value)), *now);
                }
                changed
            }
            Step::Wait(milliseconds) => {
                *now += Duration::from_millis(milliseconds);
                false
            }
        }
    }

    fn name_of(number: u8) -> String {
        format!("w{number}")
    }

    fn two_nodes(now: Instant) -> Collection<u32> {
        let mut collection = Collection::default();
        list(&mut collection, &[("w1", 1), ("w2", 2)], now);
        collection
    }

    fn list(collection: &mut Collection<u32>, objects: &[(&str, u32)], now: Instant) -> bool {
        collection.apply(Event::Init, now);
        for (name, value) in objects {
            assert!(!collection.apply(listed(name, *value), now), "a list counts when it is complete");
        }
        collection.apply(Event::InitDone, now)
    }

    fn listed(name: &str, value: u32) -> Event<(String, u32)> {
        Event::InitApply((name.to_owned(), value))
    }

    fn held(collection: &Collection<u32>) -> Vec<(&str, u32)> {
        collection.objects().iter().flatten().map(|(name, value)| (name.as_str(), **value)).collect()
    }
}
