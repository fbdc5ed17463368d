//! The circuit breaker of one endpoint, as a pure value to which the time is passed.
//!
//! Closed: requests are sent. Open: no request is sent until a wait is over. Half-open: one probe
//! is under way; its success closes the breaker, its failure opens it again for twice as long.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::RpcError;

/// This many failures in a row open the breaker.
const FAILURES: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Upper bound for how long a provider can ask us to wait.
const LONGEST_PATIENCE: Duration = Duration::from_secs(600);

/// Whether an endpoint is used; the values are those of the metric `ethhook_breaker_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is used.
    Closed = 0,
    /// It is being probed.
    HalfOpen = 1,
    /// It is set aside.
    Open = 2,
}

impl State {
    /// The state for the metric's `value`.
    pub(crate) fn shown_as(value: i64) -> Self {
        match value {
            0 => Self::Closed,
            1 => Self::HalfOpen,
            _ => Self::Open,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half-open",
            Self::Open => "open",
        })
    }
}

#[derive(Debug)]
pub(crate) struct Breaker {
    state: State,
    /// Failures in a row; 0 while it is open for another reason.
    failures: u32,
    wait: Duration,
    until: Option<Instant>,
    /// The last failure; none while it is set aside for an answer that failed a check.
    cause: Option<Box<RpcError>>,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: State::Closed, failures: 0, wait: FIRST_WAIT, until: None, cause: None }
    }
}

impl Breaker {
    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Why it is open; none for an answer that failed a check.
    pub(crate) fn cause(&self) -> Option<Box<RpcError>> {
        self.cause.clone()
    }

    /// Whether the endpoint was last found to serve another chain.
    pub(crate) fn is_of_another_chain(&self) -> bool {
        self.cause.as_ref().is_some_and(|cause| cause.is_wrong_chain())
    }

    /// Whether no request may be sent now.
    pub(crate) fn is_open(&self, now: Instant) -> bool {
        self.state != State::Closed && self.until.is_some_and(|until| now < until)
    }

    /// Whether a request may be sent now; if not, how long to wait. The caller must report its
    /// outcome: success, failure or unknown.
    pub(crate) fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        let until = match (self.state, self.until) {
            (State::Closed, _) | (_, None) => return Ok(()),
            (_, Some(until)) => until,
        };
        if now < until {
            return Err(until - now);
        }
        self.state = State::HalfOpen;
        self.until = Some(now + LONGEST_WAIT);
        Ok(())
    }

    /// Whether a request that was admitted may still be sent: not if it was opened since.
    pub(crate) fn still_admits(&mut self, now: Instant) -> Result<(), Duration> {
        // Half-open: it is the probe, or was admitted before.
        if self.state == State::Open { self.admit(now) } else { Ok(()) }
    }

    /// The outcome of a request will not be known: it was abandoned, or never sent. If it was the
    /// probe, another one is admitted soon.
    pub(crate) fn unknown(&mut self, now: Instant) {
        if self.state == State::HalfOpen {
            self.until = Some(now + FIRST_WAIT);
        }
    }

    /// A new connection clears failures, but not an endpoint being set aside for another reason.
    pub(crate) fn connected(&mut self) {
        if self.failures > 0 {
            *self = Self::default();
        }
    }

    /// Does not close an open breaker: the request was sent before it opened.
    pub(crate) fn success(&mut self) {
        if self.state != State::Open {
            *self = Self::default();
        }
    }

    /// `jitter` in 0..1 lengthens the wait by up to a half, to spread those of several endpoints.
    pub(crate) fn failure(&mut self, now: Instant, jitter: f64, cause: RpcError) {
        match self.state {
            // The request was sent before it opened, and says nothing of why.
            State::Open => return,
            State::Closed => {
                self.failures += 1;
                if self.failures >= FAILURES {
                    self.open(now, jitter);
                }
            }
            State::HalfOpen => {
                self.failures += 1;
                self.wait = (self.wait * 2).min(LONGEST_WAIT);
                self.open(now, jitter);
            }
        }
        self.cause = Some(Box::new(cause));
    }

    /// Opens at once: an answer failed a check, or by `cause` the endpoint asked us to wait. Lasts
    /// at least `wait`.
    pub(crate) fn set_aside(&mut self, now: Instant, wait: Duration, cause: Option<RpcError>) {
        let until = now + wait.clamp(FIRST_WAIT, LONGEST_PATIENCE);
        self.failures = 0;
        // A shorter wait does not end a longer one.
        if self.state != State::Open || self.until.is_none_or(|earlier| earlier <= until) {
            self.state = State::Open;
            self.cause = cause.map(Box::new);
            self.until = Some(until);
        }
    }

    /// Admits a probe now; while the endpoint has asked us to wait, only if it is `urgent`.
    pub(crate) fn probe(&mut self, now: Instant, urgent: bool) {
        let asked_to_wait = matches!(self.cause.as_deref(), Some(RpcError::RateLimited(_)));
        if self.state == State::Open && (urgent || !asked_to_wait) {
            self.until = Some(now);
        }
    }

    fn open(&mut self, now: Instant, jitter: f64) {
        self.state = State::Open;
        self.until = Some(now + self.wait.mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 2.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut() -> RpcError {
        RpcError::Connection("cut".into())
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn opens_after_five_failures_in_a_row_and_not_before() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..4 {
            breaker.failure(now, 0.0, cut());
        }
        breaker.success();
        for _ in 0..4 {
            breaker.failure(now, 0.0, cut());
            assert_eq!(breaker.admit(now), Ok(()));
        }
        breaker.failure(now, 0.0, cut());
        assert_eq!(breaker.admit(now), Err(seconds(1)));
        assert_eq!(breaker.state(), State::Open);
    }

    #[test]
    fn half_open_lets_one_probe_through_and_reopens_for_twice_as_long() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        (0..5).for_each(|_| breaker.failure(now, 0.0, cut()));
        for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(breaker.admit(now), Err(seconds(wait)));
            now += seconds(wait);
            assert_eq!(breaker.admit(now), Ok(()));
            assert!(breaker.admit(now).is_err(), "a second request beside the probe");
            breaker.failure(now, 0.0, cut());
        }
        now += seconds(60);
        assert_eq!(breaker.admit(now), Ok(()));
        breaker.success();
        assert_eq!((breaker.state(), breaker.admit(now)), (State::Closed, Ok(())));
    }

    #[test]
    fn what_was_well_again_is_waited_for_as_at_first() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        (0..5).for_each(|_| breaker.failure(now, 0.0, cut()));
        for wait in [1, 2, 4] {
            now += seconds(wait);
            assert_eq!(breaker.admit(now), Ok(()));
            breaker.failure(now, 0.0, cut());
        }
        now += seconds(8);
        assert_eq!(breaker.admit(now), Ok(()));
        breaker.success();
        (0..4).for_each(|_| breaker.failure(now, 0.0, cut()));
        assert_eq!(breaker.admit(now), Ok(()), "five in a row again");
        breaker.failure(now, 0.0, cut());
        assert_eq!(breaker.admit(now), Err(seconds(1)));
    }

    #[test]
    fn a_late_answer_does_not_end_a_set_aside() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        breaker.set_aside(now, seconds(30), None);
        breaker.success();
        breaker.failure(now, 0.0, cut());
        assert_eq!((breaker.state(), breaker.admit(now)), (State::Open, Err(seconds(30))));
        assert_eq!(breaker.admit(now + seconds(30)), Ok(()));
        breaker.success();
        assert_eq!(breaker.state(), State::Closed);
    }

    #[test]
    fn a_probe_of_which_nothing_is_known_is_soon_followed_by_another() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        breaker.set_aside(now, seconds(1), None);
        assert_eq!(breaker.admit(now + seconds(1)), Ok(()));
        breaker.unknown(now + seconds(2));
        assert!(breaker.is_open(now + seconds(2)) && !breaker.is_open(now + seconds(3)));
        assert_eq!(breaker.admit(now + seconds(3)), Ok(()));
        breaker.success();
        breaker.unknown(now + seconds(4));
        assert_eq!(breaker.admit(now + seconds(4)), Ok(()), "it was no probe");
    }

    #[test]
    fn a_probe_may_be_sent_early_but_where_a_wait_was_asked_for_only_if_urgent() {
        let now = Instant::now();
        for (cause, urgent, admitted) in [
            (None, false, true),
            (Some(cut()), false, true),
            (Some(RpcError::RateLimited(None)), false, false),
            (Some(RpcError::RateLimited(None)), true, true),
        ] {
            let mut breaker = Breaker::default();
            breaker.set_aside(now, seconds(300), cause);
            breaker.probe(now, urgent);
            assert_eq!(breaker.admit(now).is_ok(), admitted);
        }
        let mut closed = Breaker::default();
        closed.probe(now, true);
        assert_eq!(closed.state(), State::Closed);
    }

    #[test]
    fn a_shorter_wait_does_not_end_a_longer_one() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        breaker.set_aside(now, seconds(300), Some(cut()));
        breaker.set_aside(now, seconds(1), None);
        assert_eq!(breaker.admit(now), Err(seconds(300)));
        assert!(breaker.cause().is_some());
        breaker.set_aside(now, seconds(400), None);
        assert_eq!(breaker.admit(now), Err(seconds(400)));
    }

    #[test]
    fn what_was_sent_before_it_opened_does_not_change_why() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        breaker.set_aside(now, seconds(300), Some(RpcError::RateLimited(None)));
        breaker.failure(now, 0.0, cut());
        assert!(matches!(breaker.cause().as_deref(), Some(RpcError::RateLimited(_))));
        breaker.probe(now, false);
        assert_eq!(breaker.admit(now), Err(seconds(300)), "it has asked us to wait");
    }

    #[test]
    fn a_new_connection_ends_what_failures_began_and_no_set_aside() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        (0..5).for_each(|_| breaker.failure(now, 0.0, cut()));
        assert!(breaker.is_open(now));
        breaker.connected();
        assert_eq!(breaker.state(), State::Closed);
        breaker.set_aside(now, seconds(30), None);
        breaker.connected();
        assert!(breaker.is_open(now + seconds(29)));
    }

    #[test]
    fn ten_minutes_of_refusal_cost_a_few_dozen_attempts() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        let mut attempts = 0;
        for tenth in 0..6_000 {
            let now = start + Duration::from_millis(100 * tenth);
            if breaker.admit(now).is_ok() {
                attempts += 1;
                breaker.failure(now, 0.5, cut());
            }
        }
        assert!((10..36).contains(&attempts), "{attempts} attempts");
    }
}
