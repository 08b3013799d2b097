//! The filter that is in force, changed while the daemon runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::reload::Handle;

use super::filter::Filter;

/// Sets which lines are logged.
#[derive(Clone, Debug)]
pub struct Dial {
    handle: Handle<Targets, Registry>,
    setting: Arc<Mutex<Setting>>,
}

#[derive(Debug)]
struct Setting {
    initial: Filter,
    lasting: Filter,
    passing: Option<Passing>,
    changes: u64,
}

#[derive(Clone, Debug)]
struct Passing {
    filter: Filter,
    until: Instant,
}

/// Which lines are logged now, and what comes after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The filter that is in force.
    pub filter: Filter,
    /// The filter that comes back, and when; none when the one in force stays.
    pub then: Option<(Filter, Duration)>,
    /// The filter that the daemon started with.
    pub initial: Filter,
}

/// Names a change, so that its end ends no later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change(u64);

impl Dial {
    pub(crate) fn new(handle: Handle<Targets, Registry>, initial: Filter) -> Self {
        let setting = Setting { lasting: initial.clone(), initial, passing: None, changes: 0 };
        Self { handle, setting: Arc::new(Mutex::new(setting)) }
    }

    /// Returns which lines are logged at a time.
    pub fn read(&self, now: Instant) -> Reading {
        let setting = self.lock();
        let then = setting
            .passing
            .as_ref()
            .map(|it| (setting.lasting.clone(), it.until.saturating_duration_since(now)));
        Reading { filter: setting.present().clone(), then, initial: setting.initial.clone() }
    }

    /// Sets the filter; if `until` is given, the one before comes back then, by [`Dial::end`].
    pub fn set(&self, filter: Filter, until: Option<Instant>) -> Change {
        let mut setting = self.lock();
        match until {
            Some(until) => setting.passing = Some(Passing { filter, until }),
            None => (setting.lasting, setting.passing) = (filter, None),
        }
        self.apply(&mut setting)
    }

    /// Sets the filter that the daemon started with.
    pub fn reset(&self) {
        let mut setting = self.lock();
        (setting.lasting, setting.passing) = (setting.initial.clone(), None);
        self.apply(&mut setting);
    }

    /// Brings the filter back that was there before a change, unless something else changed it since. Tells whether it did.
    pub fn end(&self, change: Change) -> bool {
        let mut setting = self.lock();
        let is_due = setting.changes == change.0 && setting.passing.take().is_some();
        if is_due {
            self.apply(&mut setting);
        }
        is_due
    }

    fn apply(&self, setting: &mut Setting) -> Change {
        setting.changes += 1;
        // It fails only when the subscriber is gone, and nothing is logged any more.
        let _ = self.handle.reload(setting.present().targets());
        Change(setting.changes)
    }

    fn lock(&self) -> MutexGuard<'_, Setting> {
        self.setting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Setting {
    fn present(&self) -> &Filter {
        self.passing.as_ref().map_or(&self.lasting, |passing| &passing.filter)
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::reload;

    use super::*;

    fn dial(initial: &str) -> (reload::Layer<Targets, Registry>, Dial) {
        let initial: Filter = initial.parse().unwrap();
        let (layer, handle) = reload::Layer::new(initial.targets());
        (layer, Dial::new(handle, initial))
    }

    fn filter(text: &str) -> Filter {
        text.parse().unwrap()
    }

    #[test]
    fn a_filter_for_a_while_goes_back_to_the_one_that_lasts() {
        let (_layer, dial) = dial("info");
        let now = Instant::now();
        dial.set(filter("warn"), None);
        let change = dial.set(filter("debug"), Some(now + Duration::from_secs(600)));
        let expected = Reading {
            filter: filter("debug"),
            then: Some((filter("warn"), Duration::from_secs(540))),
            initial: filter("info"),
        };
        assert_eq!(dial.read(now + Duration::from_secs(60)), expected);
        assert!(dial.end(change) && !dial.end(change));
        assert_eq!(dial.read(now), Reading { filter: filter("warn"), then: None, initial: filter("info") });
        dial.reset();
        assert_eq!(dial.read(now).filter, filter("info"));
    }

    #[test]
    fn the_end_of_a_change_ends_no_later_one() {
        let (_layer, dial) = dial("info");
        let until = Some(Instant::now() + Duration::from_secs(600));
        let first = dial.set(filter("debug"), until);
        let second = dial.set(filter("trace"), until);
        assert!(!dial.end(first));
        assert_eq!(dial.read(Instant::now()).filter, filter("trace"));
        assert!(dial.end(second));
        assert_eq!(dial.read(Instant::now()).filter, filter("info"), "not the first passing one");
    }
}
