//! How many calls a second an endpoint accepts: without a limit until it refuses one, then found by trying.
//!
//! A provider's limit is rarely known: a plan names compute units, or one limit for all keys, or none. Without a pace, a
//! backlog would be sent as fast as possible, refused, held back for as long as the provider asks, sent again, and so
//! on: most calls would be refused. The wait that it asks for is the breaker's; the pace is what follows.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::info;

use super::RpcError;
use super::shared_breaker::SharedBreaker;
use crate::metrics::EndpointMetrics;

/// The percentage of what was accepted that is sent after a refusal.
const CAUTION: u32 = 70;
/// The percentage by which the pace is first raised after a refusal that follows another; each further raise is twice as
/// large, up to doubling.
const FIRST_RAISE: u32 = 5;
const DOUBLING: u32 = 100;
/// Time between two raises, in multiples of the wait that the endpoint asked for: the longer a refusal holds everything
/// up, the fewer are worth it.
const RAISE_AFTER: u32 = 3;
/// The bounds of that, and the upper one after a refusal that does not follow another.
const SHORTEST: Duration = Duration::from_secs(3);
const LONGEST: Duration = Duration::from_secs(60);
const LONGEST_AT_FIRST: Duration = Duration::from_secs(10);
/// Calls per minute at the slowest.
const SLOWEST: u32 = 30;
/// Calls per minute from which on there is no limit.
const FREE: u32 = 600_000;
/// A message may have as many calls as fit in this part of a minute: a quarter of a second.
const MESSAGE: u32 = 240;
const MINUTE: Duration = Duration::from_secs(60);
/// Accepted calls are counted by the second, and the most in one second are remembered for this long.
const SECOND: Duration = Duration::from_secs(1);
const REMEMBERED: Duration = Duration::from_secs(10);

/// Keeps the messages to one endpoint to its pace.
pub(super) struct Pacer {
    pace: Mutex<Pace>,
    /// Messages delayed by the pace take turns.
    turn: tokio::sync::Mutex<()>,
    /// Number of messages delayed now.
    delayed: AtomicU32,
    breaker: SharedBreaker,
    metrics: EndpointMetrics,
}

/// A delayed message, counted until dropped.
struct Delayed<'a>(&'a AtomicU32);

impl<'a> Delayed<'a> {
    fn counted(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Delayed<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pacer {
    pub(super) fn new(breaker: SharedBreaker, metrics: EndpointMetrics) -> Self {
        Self {
            pace: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            delayed: AtomicU32::new(0),
            breaker,
            metrics,
        }
    }

    /// Waits until the endpoint can be expected to accept `calls` that its breaker has admitted.
    ///
    /// # Errors
    /// If it was set aside since.
    pub(super) async fn keep(&self, calls: u32) -> Result<(), RpcError> {
        if self.with(|pace| pace.wait(Instant::now())).is_some() {
            let _delayed = Delayed::counted(&self.delayed);
            let _turn = self.turn.lock().await;
            self.still_admitted()?;
            let wait = self.with(|pace| pace.wait(Instant::now())).unwrap_or_default();
            tokio::time::sleep(wait).await;
            self.still_admitted()?;
            self.with(|pace| pace.sent(calls, Instant::now()));
        }
        self.still_admitted()
    }

    fn still_admitted(&self) -> Result<(), RpcError> {
        self.breaker
            .with(|b| b.still_admits(Instant::now()).map_err(|_| b.cause()))
            .map_err(RpcError::SetAside)
    }

    /// The endpoint accepted `calls`.
    pub(super) fn note_accepted(&self, calls: u32) {
        self.with(|pace| pace.accepted(calls, Instant::now()));
    }

    /// It refused a message that was made at `asked`, because of too many before it.
    pub(super) fn note_refused(&self, asked: Instant, wait: Duration) {
        let lowered = self.with(|pace| pace.refused(asked, wait, Instant::now()));
        if let Some(per_minute) = lowered {
            let endpoint = self.metrics.position;
            info!(endpoint, per_minute, "the endpoint accepts no more calls: keeping to this pace");
        }
    }

    /// How long a message would have to wait now, because the endpoint would not accept it sooner.
    pub(super) fn wait(&self) -> Duration {
        let delayed = self.delayed.load(Ordering::Relaxed);
        self.with(|pace| pace.wait_behind(delayed, Instant::now()))
    }

    /// How many calls one message may have; none while there is no limit.
    pub(super) fn at_once(&self) -> Option<u32> {
        self.with(|pace| pace.at_once())
    }

    /// Does `act` with the pace, and exports it if it changes.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Pace) -> T) -> T {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let before = pace.per_minute();
        let result = act(&mut pace);
        let after = pace.per_minute();
        if before != after {
            self.metrics.pace(after);
        }
        result
    }

    #[cfg(test)]
    pub(super) fn delayed(&self) -> u32 {
        self.delayed.load(Ordering::Relaxed)
    }
}

/// The pace of one endpoint: after a refusal a little below what was accepted before, then raised until the next refusal,
/// at first by doubling it, because little may have been accepted yet, then by a little, and more each time. So a limit
/// is approached from below, and a single refusal is soon forgotten.
#[derive(Default)]
pub(super) struct Pace {
    limit: Option<Limit>,
    /// The second that has begun last.
    current: Option<Second>,
    /// The one with the most accepted calls lately.
    best: Option<Second>,
}

/// A second, and the calls accepted in it.
#[derive(Clone, Copy)]
struct Second {
    since: Instant,
    calls: u32,
}

struct Limit {
    per_minute: u32,
    /// When the next message may be sent.
    next: Instant,
    /// When the pace was last lowered.
    lowered: Instant,
    /// The percentage by which it is raised next, and when.
    raise: u32,
    due: Instant,
    every: Duration,
}

impl Limit {
    /// The time that `calls` take up.
    fn time_of(&self, calls: u32) -> Duration {
        calls * MINUTE / self.per_minute
    }
}

impl Pace {
    /// How long to wait before the next message; none while there is no limit.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Duration> {
        let limit = self.limit.as_mut()?;
        while now >= limit.due && limit.per_minute < FREE {
            limit.per_minute += (limit.per_minute * limit.raise / 100).max(1);
            limit.raise = (2 * limit.raise).min(DOUBLING);
            limit.due += limit.every;
        }
        if limit.per_minute >= FREE {
            self.limit = None;
            return None;
        }
        Some(limit.next.saturating_duration_since(now))
    }

    /// How long a message would have to wait behind as many others that are delayed.
    pub(super) fn wait_behind(&mut self, others: u32, now: Instant) -> Duration {
        let wait = self.wait(now).unwrap_or_default();
        wait + self.limit.as_ref().map_or(Duration::ZERO, |limit| limit.time_of(others))
    }

    /// A message of `calls` is being sent.
    pub(super) fn sent(&mut self, calls: u32, now: Instant) {
        // One that was made before the pace was lowered may have more.
        let calls = calls.min(self.at_once().unwrap_or(calls));
        if let Some(limit) = &mut self.limit {
            limit.next = limit.next.max(now) + limit.time_of(calls);
        }
    }

    /// Calls per minute; none while there is no limit.
    pub(super) fn per_minute(&self) -> Option<u32> {
        self.limit.as_ref().map(|limit| limit.per_minute)
    }

    /// How many calls one message may have; none while there is no limit.
    pub(super) fn at_once(&self) -> Option<u32> {
        self.per_minute().map(|per_minute| (per_minute / MESSAGE).max(1))
    }

    /// The endpoint accepted `calls`.
    pub(super) fn accepted(&mut self, calls: u32, now: Instant) {
        let current = self.current.get_or_insert(Second { since: now, calls: 0 });
        if now.saturating_duration_since(current.since) < SECOND {
            current.calls = current.calls.saturating_add(calls);
            return;
        }
        let over = std::mem::replace(current, Second { since: now, calls });
        if self.best.is_none_or(|best| over.calls >= best.calls || best.is_old(now)) {
            self.best = Some(over);
        }
    }

    /// The endpoint refused a message that was made at `asked`, and asked us to `wait`. If the pace was lowered since, that
    /// says nothing new. Returns the new pace, in calls per minute.
    pub(super) fn refused(&mut self, asked: Instant, wait: Duration, now: Instant) -> Option<u32> {
        if self.limit.as_ref().is_some_and(|limit| asked < limit.lowered) {
            return None;
        }
        let seconds = [self.current, self.best].into_iter().flatten();
        let best = seconds.filter(|second| !second.is_old(now)).map(|second| second.calls).max();
        let one_too_many = |calls: u32| calls.saturating_add(1).saturating_mul(60);
        let most = match (self.per_minute(), best.map(one_too_many)) {
            (None, accepted) => accepted.unwrap_or(one_too_many(0)).min(FREE),
            // Nothing was sent lately: it was refused for what was sent before.
            (Some(before), None) => before,
            (Some(before), Some(accepted)) => before.min(accepted),
        };
        // If far less was sent than the pace allowed, what was accepted says little.
        let (raise, longest) = match self.per_minute() {
            Some(before) if before < 2 * most => (FIRST_RAISE, LONGEST),
            _ => (DOUBLING, LONGEST_AT_FIRST),
        };
        let wait = wait.min(LONGEST);
        let every = (RAISE_AFTER * wait).clamp(SHORTEST, longest);
        let mut limit = Limit {
            per_minute: (most * CAUTION / 100).max(SLOWEST),
            next: now,
            lowered: now,
            raise,
            due: now + wait + every,
            every,
        };
        limit.next += limit.time_of(1);
        self.limit = Some(limit);
        self.per_minute()
    }
}

impl Second {
    fn is_old(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) > REMEMBERED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pace that was lowered after `accepted` calls, and the time of that.
    fn lowered_after(accepted: u32) -> (Pace, Instant) {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.accepted(accepted, now);
        pace.refused(now, SECOND, now);
        (pace, now)
    }

    /// The pace at these times after the last refusal.
    fn at(pace: &mut Pace, refused: Instant, seconds: &[u32]) -> Vec<u32> {
        let at = |after: u32| {
            pace.wait(refused + after * SECOND);
            pace.per_minute().unwrap()
        };
        seconds.iter().copied().map(at).collect()
    }

    #[test]
    fn there_is_no_limit_until_a_refusal_and_then_a_little_less_than_was_accepted() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        for (accepted, after) in [(90, 0), (60, 1_000), (39, 1_999), (1, 2_000), (8, 3_000)] {
            assert_eq!((pace.wait(now), pace.at_once()), (None, None));
            pace.accepted(accepted, now + Duration::from_millis(after));
        }
        // 99 were accepted in one second, and one more was too many.
        assert_eq!(pace.refused(now, SECOND, now + 4 * SECOND), Some(60 * 70));
        assert_eq!(pace.at_once(), Some(17));

        let (mut unused, since) = lowered_after(0);
        assert_eq!((unused.per_minute(), unused.at_once()), (Some(42), Some(1)));
        unused.refused(since, SECOND, since + 9 * SECOND);
        assert_eq!(unused.per_minute(), Some(SLOWEST));
        for (after, per_minute) in [(10, 60 * 70), (11, 42)] {
            let (mut pace, since) = (Pace::default(), Instant::now());
            pace.accepted(99, since);
            assert_eq!(pace.refused(since, SECOND, since + after * SECOND), Some(per_minute));
        }
    }

    #[test]
    fn messages_are_spaced_by_their_calls_and_what_was_not_used_is_not_made_up_for() {
        let (mut pace, refused) = lowered_after(99); // 70 a second
        let next = refused + MINUTE / 4_200;
        assert_eq!(
            pace.wait(refused),
            Some(MINUTE / 4_200),
            "the wait that was asked for is the breaker's"
        );
        assert_eq!(pace.wait(next), Some(Duration::ZERO));
        pace.sent(7, next);
        assert_eq!(pace.wait(next), Some(SECOND / 10));
        assert_eq!(pace.wait_behind(14, next), 3 * SECOND / 10);
        pace.sent(7, next + SECOND / 10);
        assert_eq!(pace.wait(next + SECOND / 10), Some(SECOND / 10));
        pace.sent(7, next + SECOND);
        assert_eq!(pace.wait(next + SECOND), Some(SECOND / 10));
        pace.sent(999, next + 2 * SECOND);
        let longest = pace.wait(next + 2 * SECOND).unwrap();
        assert!(longest < SECOND / 4, "made before the pace was lowered: {longest:?}");
        assert_eq!(Pace::default().wait_behind(9, next), Duration::ZERO);
    }

    #[test]
    fn it_doubles_after_the_first_refusal_and_grows_by_ever_more_after_others() {
        let (mut pace, first) = lowered_after(99);
        assert_eq!(at(&mut pace, first, &[3, 4, 6, 7]), [4_200, 8_400, 8_400, 16_800]);
        let second = first + 8 * SECOND;
        pace.accepted(199, second);
        pace.refused(second, SECOND, second);
        let raised = at(&mut pace, second, &[3, 4, 7, 10, 13, 16, 19]);
        assert_eq!(raised, [8_400, 8_820, 9_702, 11_642, 16_298, 29_336, 58_672]);
        assert_eq!(pace.wait(second + 30 * SECOND), Some(Duration::ZERO));
        assert_eq!(pace.wait(second + 31 * SECOND), None, "it is forgotten");
    }

    #[test]
    fn where_little_was_sent_a_refusal_says_little() {
        // Calls accepted before the second refusal, the pace then, and 4 s later.
        for (accepted, lowered, raised) in
            [(Some(5), 252, 504), (Some(42), 1_806, 1_896), (None, 2_940, 3_087)]
        {
            let (mut pace, refused) = lowered_after(99); // 4,200 a minute
            let second = refused + 20 * SECOND;
            pace.limit.as_mut().unwrap().due = second + SECOND;
            if let Some(accepted) = accepted {
                pace.accepted(accepted, second);
            }
            assert_eq!(pace.refused(second, SECOND, second), Some(lowered));
            assert_eq!(at(&mut pace, second, &[4]), [raised], "{accepted:?}");
        }
    }

    #[test]
    fn the_longer_the_wait_the_rarer_the_raises() {
        for (wait, first, following) in [
            (0, 3, 3),
            (1, 3, 3),
            (3, 9, 9),
            (5, 10, 15),
            (20, 10, 60),
            (60, 10, 60),
            (9_999, 10, 60),
        ] {
            let (mut pace, now) = (Pace::default(), Instant::now());
            let mut raised_after = |refused: Instant| {
                pace.accepted(99, refused);
                pace.refused(refused, wait * SECOND, refused);
                let limit = pace.limit.as_ref().unwrap();
                (limit.due - refused, limit.every)
            };
            for (refused, every) in [(now, first), (now + SECOND, following)] {
                let expected = ((wait.min(60) + every) * SECOND, every * SECOND);
                assert_eq!(raised_after(refused), expected, "{wait}");
            }
        }
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert!(pace.refused(now, Duration::MAX, now).is_some(), "no time is too long");
    }

    #[test]
    fn of_one_burst_only_the_first_refusal_counts() {
        let (mut pace, refused) = lowered_after(99);
        let later = refused + 2 * SECOND;
        assert_eq!(pace.refused(refused - SECOND, SECOND, later), None);
        assert_eq!(pace.per_minute(), Some(4_200));
        assert_eq!(pace.refused(refused, SECOND, later), Some(4_200 * 7 / 10), "sent since");
    }

    /// Calls accepted and refused within ten minutes by an endpoint that accepts so many per `period` and then asks for
    /// a `wait`; one message takes 5 ms.
    fn ten_minutes(limit: u32, period: Duration, wait: Duration) -> (u32, u32) {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let (mut now, mut accepted, mut refused) = (start, 0, 0);
        let (mut since, mut used) = (start, 0);
        while now < start + 600 * SECOND {
            now += pace.wait(now).unwrap_or_default();
            pace.sent(1, now);
            if now >= since + period {
                (since, used) = (now, 0);
            }
            if used < limit {
                used += 1;
                accepted += 1;
                pace.accepted(1, now);
                now += Duration::from_millis(5);
            } else {
                refused += 1;
                pace.refused(now, wait, now);
                now += wait;
            }
        }
        (accepted, refused)
    }

    #[test]
    fn most_of_what_a_provider_accepts_is_used_and_few_calls_are_refused() {
        for (limit, period, wait) in [
            (1, 1, 1),
            (3, 1, 4),
            (10, 1, 1),
            (10, 1, 30),
            (50, 1, 1),
            (300, 60, 10),
            (900, 60, 60),
            (3_000, 60, 10),
            (3_000, 60, 20),
            (6_000, 60, 30),
        ] {
            let (accepted, refused) = ten_minutes(limit, period * SECOND, wait * SECOND);
            let seen =
                format!("{limit} in {period} s, wait {wait} s: {accepted}, {refused} refused");
            eprintln!("{seen}");
            assert!(accepted > 600 / period * limit * 3 / 5 && 8 * refused < accepted, "{seen}");
        }
    }
}
