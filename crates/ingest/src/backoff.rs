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
