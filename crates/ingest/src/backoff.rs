//! Waits between attempts that are repeated until one succeeds.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Waits that double from `first` to `longest`, without end. Each is lengthened at random to up to twice as much, so
/// that not all repeat at once.
pub(crate) fn endless_backoff(first: Duration, longest: Duration) -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(first)
        .with_max_delay(longest)
        .with_jitter()
        .without_max_times()
        .build()
}

/// Answers without what was asked for, in a row, after which it is asked for ever more rarely: it may not just be late.
const LASTING: u32 = 20;
const LONGEST: Duration = Duration::from_secs(30);

/// Whether what was refused this often may not come soon.
pub(crate) fn is_lasting(refusals: u32) -> bool {
    refusals > LASTING
}

/// How long to wait after this many refusals in a row, each of which cost a call: `usual`, and once they last, twice as long
/// each time, up to half a minute.
pub(crate) fn after_refusals(refusals: u32, usual: Duration) -> Duration {
    let doublings = refusals.saturating_sub(LASTING).min(8);
    if doublings == 0 { usual } else { (usual * (1 << doublings)).min(LONGEST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_again_and_again_is_asked_for_ever_more_rarely() {
        for (refusals, seconds) in
            [(0, 2), (1, 2), (20, 2), (21, 4), (22, 8), (24, 30), (9_999, 30)]
        {
            let wait = after_refusals(refusals, Duration::from_secs(2));
            assert_eq!(wait, Duration::from_secs(seconds), "{refusals}");
        }
    }
}
