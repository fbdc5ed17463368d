//! Limits what is sent to an endpoint to what the operator allows.

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// A token bucket with a capacity of one second's allowance: of requests, or of the compute units
/// that they cost.
pub(super) struct Throttle {
    limiter: DefaultDirectRateLimiter,
    per_second: NonZeroU32,
}

impl Throttle {
    pub(super) fn new(per_second: NonZeroU32) -> Self {
        Self { limiter: RateLimiter::direct(Quota::per_second(per_second)), per_second }
    }

    pub(super) fn per_second(&self) -> u32 {
        self.per_second.get()
    }

    /// Waits until `units` may be spent. More than the bucket's capacity is taken in several parts.
    pub(super) async fn take(&self, units: u32) {
        let mut left = units;
        while let Some(part) = NonZeroU32::new(left.min(self.per_second.get())) {
            // A part never exceeds the capacity, which would be the only possible error.
            self.limiter.until_n_ready(part).await.ok();
            left -= part.get();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[tokio::test]
    async fn units_are_given_out_at_the_rate_also_to_one_who_wants_many() {
        let throttle = Throttle::new(NonZeroU32::new(1_000).unwrap());
        let started = Instant::now();
        throttle.take(0).await;
        throttle.take(2_300).await;
        assert!(started.elapsed() >= Duration::from_millis(1_290), "{:?}", started.elapsed());
    }
}
