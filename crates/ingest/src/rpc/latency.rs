//! How fast an endpoint has answered recently.

use std::collections::VecDeque;
use std::time::Duration;

/// Number of answers kept: enough for a 95th percentile, few enough to follow a change.
const REMEMBERED: usize = 64;
/// Fewer answers than this are not meaningful.
const MEANINGFUL: usize = 8;

/// The durations of the last answers.
#[derive(Debug, Default)]
pub(super) struct Latency(VecDeque<Duration>);

impl Latency {
    pub(super) fn note(&mut self, took: Duration) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(took);
    }

    /// The duration that `percent` of the last answers did not exceed; none while there are few.
    pub(super) fn percentile(&self, percent: usize) -> Option<Duration> {
        if self.0.len() < MEANINGFUL {
            return None;
        }
        let mut sorted: Vec<_> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        Some(sorted[(sorted.len() - 1) * percent / 100])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_follow_the_last_answers() {
        let mut latency = Latency::default();
        (1..MEANINGFUL as u64).for_each(|ms| latency.note(Duration::from_millis(ms)));
        assert_eq!(latency.percentile(50), None);
        (1..=1000).for_each(|ms| latency.note(Duration::from_millis(ms)));
        assert_eq!(latency.percentile(0), Some(Duration::from_millis(937)));
        assert_eq!(latency.percentile(50), Some(Duration::from_millis(968)));
        assert_eq!(latency.percentile(95), Some(Duration::from_millis(996)));
    }
}
