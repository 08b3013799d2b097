//! Keeps what repeats from filling the log, and tells how much it kept back.
//!
//! An event is let through while there is a token in two buckets: one for what it says to the letter, one for its place in
//! the code, whatever it says there. What is kept back is counted, and a line with the count follows, by
//! [`Limit::tell`].

use std::collections::HashMap;
use std::fmt::{self, Debug, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, debug, error, info, trace, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::line::Said;
use super::targets::target_of;

/// What is said to the letter: 20 at once, then one each 10 s.
pub const OF_WORDS: Rate = Rate { burst: 20, each: Duration::from_secs(10) };
/// What a place in the code says, whatever it is: 2,000 at once, then 10 a second.
pub const OF_PLACE: Rate = Rate { burst: 2_000, each: Duration::from_millis(100) };
/// How often counts of what was kept back are told.
pub const TOLD_EACH: Duration = Duration::from_secs(10);
/// Most words that are remembered; beyond, the place in the code alone counts.
const MOST_WORDS: usize = 4_096;
/// Stands for whatever a place in the code says.
const ANY_WORDS: u64 = 0;

/// How many events may pass at once, and how soon another may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Most that pass at once.
    pub burst: u32,
    /// Time after which one more may.
    pub each: Duration,
}

/// Lets events through as often as it may; clones share their counts.
#[derive(Clone)]
pub struct Limit {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Box<dyn Fn() -> Instant + Send + Sync>,
    state: Mutex<State>,
    kept_back: AtomicU64,
}

#[derive(Default)]
struct State {
    words: HashMap<(Identifier, u64), Bucket>,
    places: HashMap<Identifier, Bucket>,
    withheld: HashMap<(Identifier, u64), Withheld>,
}

/// Tokens, as the time at which all are there again.
#[derive(Clone, Copy)]
struct Bucket {
    full_at: Instant,
}

/// Which tokens were lacking.
enum Lack {
    OfWords,
    OfPlace,
}

/// Events of one kind that were kept back.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Withheld {
    count: u64,
    level: Level,
    target: &'static str,
    message: String,
}

impl Limit {
    /// Returns a limit by the system's clock.
    pub fn new() -> Self {
        Self::by(Instant::now)
    }

    fn by(clock: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        let (state, kept_back) = (Mutex::default(), AtomicU64::new(0));
        Self { shared: Arc::new(Shared { clock: Box::new(clock), state, kept_back }) }
    }

    /// Returns how many events were kept back since the start.
    pub fn kept_back(&self) -> u64 {
        self.shared.kept_back.load(Ordering::Relaxed)
    }

    /// Logs how many events were kept back since this was last asked, a line for each of their kinds.
    pub fn tell(&self) {
        let withheld = std::mem::take(&mut self.lock().withheld);
        for Withheld { count, level, target, message } in withheld.into_values() {
            let told = format!("{count} more of these were not logged: {message}");
            match level {
                Level::ERROR => error!(count, of = target, "{told}"),
                Level::WARN => warn!(count, of = target, "{told}"),
                Level::INFO => info!(count, of = target, "{told}"),
                Level::DEBUG => debug!(count, of = target, "{told}"),
                Level::TRACE => trace!(count, of = target, "{told}"),
            }
        }
    }

    /// Tells what was kept back, for ever.
    pub async fn keep_telling(self) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(TOLD_EACH).await;
            self.tell();
        }
    }

    /// Tells whether an event may be logged; if not it is counted.
    fn admit(&self, event: &Event<'_>) -> bool {
        let place = event.metadata().callsite();
        let words = (place.clone(), hash_of(event));
        let now = (self.shared.clock)();
        let mut state = self.lock();
        let kind = match state.take(&words, now) {
            Ok(()) => return true,
            Err(Lack::OfWords) => words,
            Err(Lack::OfPlace) => (place, ANY_WORDS),
        };
        self.shared.kept_back.fetch_add(1, Ordering::Relaxed);
        let withheld = state.withheld.entry(kind).or_insert_with(|| Withheld {
            count: 0,
            level: *event.metadata().level(),
            target: target_of(event.metadata()),
            message: Said::by(event).message,
        });
        withheld.count += 1;
        false
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self::new()
    }
}

impl Debug for Limit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Limit").field("kept_back", &self.kept_back()).finish_non_exhaustive()
    }
}

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        event.metadata().target() == module_path!() || self.admit(event)
    }
}

impl State {
    /// Takes a token for these words and one for their place, or neither.
    fn take(&mut self, words: &(Identifier, u64), now: Instant) -> Result<(), Lack> {
        if self.words.len() >= MOST_WORDS {
            self.words.retain(|_, bucket| bucket.full_at > now);
        }
        let has_room = self.words.len() < MOST_WORDS || self.words.contains_key(words);
        let full = Bucket { full_at: now };
        let of_words = has_room.then(|| self.words.entry(words.clone()).or_insert(full));
        let of_place = self.places.entry(words.0.clone()).or_insert(full);
        let place = of_place.after_one(OF_PLACE, now).ok_or(Lack::OfPlace)?;
        if let Some(of_words) = of_words {
            *of_words = of_words.after_one(OF_WORDS, now).ok_or(Lack::OfWords)?;
        }
        *of_place = place;
        Ok(())
    }
}

impl Bucket {
    /// Returns the bucket after a token was taken now; none if there is none.
    fn after_one(self, rate: Rate, now: Instant) -> Option<Self> {
        let full_at = self.full_at.max(now) + rate.each;
        (full_at <= now + rate.each * rate.burst).then_some(Self { full_at })
    }
}

/// Returns a number that events share which say the same in the same fields.
fn hash_of(event: &Event<'_>) -> u64 {
    let mut hash = Words(DefaultHasher::new());
    event.record(&mut hash);
    hash.0.finish()
}

struct Words(DefaultHasher);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        field.name().hash(&mut self.0);
        // Writing to a hash never fails; what a value's own code refuses to write is left out.
        let _ = write!(self, "{value:?}");
    }
}

impl Write for Words {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Keeps the message of every event.
    struct Keeper(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Keeper {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().unwrap().push(format!("{} {}", event.metadata().level(), Said::by(event).message));
        }
    }

    /// A limit under a clock that tests move, and what passed it.
    struct Script {
        limit: Limit,
        start: Instant,
        now: Arc<Mutex<Instant>>,
        passed: Arc<Mutex<Vec<String>>>,
    }

    impl Script {
        fn new() -> Self {
            let start = Instant::now();
            let now = Arc::new(Mutex::new(start));
            let clock = Arc::clone(&now);
            Self { limit: Limit::by(move || *clock.lock().unwrap()), start, now, passed: Arc::default() }
        }

        fn at(&self, milliseconds: u64) {
            *self.now.lock().unwrap() = self.start + Duration::from_millis(milliseconds);
        }

        /// Runs what logs; returns what passed.
        fn passed(&self, log: impl FnOnce()) -> Vec<String> {
            let keeper = Keeper(Arc::clone(&self.passed));
            let subscriber = tracing_subscriber::registry().with(self.limit.clone()).with(keeper);
            tracing::subscriber::with_default(subscriber, log);
            std::mem::take(&mut self.passed.lock().unwrap())
        }
    }

    fn stumble(times: usize) {
        for _ in 0..times {
            warn!(worker = 1, "stumbled");
        }
    }

    #[test]
    fn the_same_words_pass_as_often_as_they_may_to_the_millisecond() {
        let script = Script::new();
        assert_eq!(script.passed(|| stumble(50)).len(), 20);
        script.at(9_999);
        assert_eq!(script.passed(|| stumble(1)).len(), 0);
        script.at(10_000);
        assert_eq!(script.passed(|| stumble(5)).len(), 1);
        script.at(30_000);
        assert_eq!(script.passed(|| stumble(5)).len(), 2);
        script.at(1_000_000);
        assert_eq!(script.passed(|| stumble(50)).len(), 20, "no more than at once");
        assert_eq!(script.limit.kept_back(), 30 + 1 + 4 + 3 + 30);
    }

    #[test]
    fn what_was_kept_back_is_told_once_with_its_count_and_level() {
        let script = Script::new();
        let passed = script.passed(|| {
            stumble(23);
            for _ in 0..21 {
                error!("fell");
            }
        });
        assert_eq!(passed.len(), 40);
        let mut told = script.passed(|| script.limit.tell());
        told.sort();
        let expected =
            ["ERROR 1 more of these were not logged: fell", "WARN 3 more of these were not logged: stumbled"];
        assert_eq!(told, expected);
        assert_eq!(script.passed(|| script.limit.tell()), [""; 0]);
    }

    #[test]
    fn other_words_have_tokens_of_their_own() {
        let script = Script::new();
        let passed = script.passed(|| {
            for worker in 0..3 {
                for _ in 0..30 {
                    warn!(worker, "stumbled");
                }
            }
        });
        assert_eq!(passed.len(), 60);
    }

    #[test]
    fn a_place_that_always_says_something_else_is_limited_too_and_no_event_goes_uncounted() {
        let script = Script::new();
        let wander = |count: u64| {
            for step in 0..count {
                info!(step, "wandered");
            }
        };
        assert_eq!(script.passed(|| wander(10_000)).len(), 2_000);
        let told = script.passed(|| script.limit.tell());
        assert_eq!(told, ["INFO 8000 more of these were not logged: wandered"]);
        script.at(1_000);
        assert_eq!(script.passed(|| wander(100)).len(), 10);
        assert!(script.limit.lock().words.len() <= MOST_WORDS);
    }
}
