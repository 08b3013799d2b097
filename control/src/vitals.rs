//! Whether the gateway lives and is ready, for those who ask without waiting for the control loop.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether something is as it should be: the answer of `/v1/health` and `/v1/ready`.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Fitness {
    /// Whether it is.
    pub ok: bool,
    /// Why it is not; empty when it is.
    pub reasons: Vec<String>,
}

impl From<Vec<String>> for Fitness {
    fn from(reasons: Vec<String>) -> Self {
        Self { ok: reasons.is_empty(), reasons }
    }
}

/// What is known of the gateway's health. The control loop and the supervisor write it, the API reads it.
#[derive(Debug)]
pub struct Vitals {
    beats: AtomicU64,
    is_stopping: AtomicBool,
    ailments: Mutex<Vec<String>>,
    obstacles: Mutex<Vec<String>>,
}

impl Default for Vitals {
    fn default() -> Self {
        Self {
            beats: AtomicU64::new(0),
            is_stopping: AtomicBool::new(false),
            ailments: Mutex::default(),
            obstacles: Mutex::new(vec!["the gateway is starting".to_owned()]),
        }
    }
}

impl Vitals {
    /// Notes a turn of the control loop.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many turns the control loop has taken.
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// Notes that the gateway stops: it is not ready any more, whatever else is noted.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
    }

    /// Notes why the gateway does not live as it should; nothing: it does.
    pub fn set_ailments(&self, reasons: Vec<String>) {
        *lock(&self.ailments) = reasons;
    }

    /// Notes why the gateway is not ready; nothing: it is.
    pub fn set_obstacles(&self, reasons: Vec<String>) {
        *lock(&self.obstacles) = reasons;
    }

    /// Tells whether every worker and the control loop turn.
    pub fn health(&self) -> Fitness {
        lock(&self.ailments).clone().into()
    }

    /// Tells whether the gateway serves as it should: it lives, and nothing is in the way.
    pub fn readiness(&self) -> Fitness {
        if self.is_stopping.load(Ordering::Acquire) {
            return vec!["the gateway is stopping".to_owned()].into();
        }
        let mut reasons = lock(&self.obstacles).clone();
        reasons.extend_from_slice(&lock(&self.ailments));
        reasons.into()
    }
}

fn lock(reasons: &Mutex<Vec<String>>) -> MutexGuard<'_, Vec<String>> {
    reasons.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_ready_between_its_start_and_its_stop_while_it_lives_and_nothing_is_in_the_way() {
        let vitals = Vitals::default();
        assert_eq!((vitals.health().ok, vitals.readiness().ok), (true, false), "starting");
        vitals.set_obstacles(Vec::new());
        assert_eq!((vitals.health().ok, vitals.readiness().ok), (true, true));
        vitals.set_ailments(vec!["worker 0 is stuck".to_owned()]);
        assert_eq!(vitals.health().reasons, ["worker 0 is stuck"]);
        assert_eq!(vitals.readiness().reasons, ["worker 0 is stuck"]);
        vitals.set_ailments(Vec::new());
        vitals.set_obstacles(vec!["the inside interface is away".to_owned()]);
        assert_eq!((vitals.health().ok, vitals.readiness().ok), (true, false));
        vitals.stop();
        assert_eq!(vitals.readiness().reasons, ["the gateway is stopping"]);
        assert!(vitals.health().ok, "what stops in order lives");
    }
}
