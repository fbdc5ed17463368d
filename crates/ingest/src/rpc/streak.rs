//! How often something happened in a row, and when last.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Default)]
pub(crate) struct Streak(Mutex<(u32, Option<Instant>)>);

impl Streak {
    /// It happened again; returns how often by now.
    pub(crate) fn note(&self) -> u32 {
        let mut streak = self.lock();
        *streak = (streak.0.saturating_add(1), Some(Instant::now()));
        streak.0
    }

    /// It did not happen this time.
    pub(crate) fn end(&self) {
        *self.lock() = (0, None);
    }

    /// Whether it happened this often in a row, the last time less than `remembered` ago.
    pub(crate) fn has(&self, times: u32, remembered: Duration) -> bool {
        let (happened, last) = *self.lock();
        happened >= times && last.is_some_and(|last| last.elapsed() < remembered)
    }

    fn lock(&self) -> MutexGuard<'_, (u32, Option<Instant>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Streak {
    /// As if it had last happened this much earlier.
    pub(crate) fn age(&self, by: Duration) {
        let mut streak = self.lock();
        streak.1 = streak.1.and_then(|last| last.checked_sub(by));
    }
}
