//! Blocks that were sent to Redis and are not acknowledged yet, in their order.

use std::collections::VecDeque;

use ethhook_streams::{Answer, Outcome, StepError};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;

use crate::chain::write::Adding;

/// Blocks on the wire at once: enough that Redis never waits for us.
const MAX_BLOCKS: usize = 4;
/// Events on the wire beyond which nothing is sent behind them. Redis may run what one connection
/// brings without a break, and other chains wait for as long.
const MAX_EVENTS: usize = 1_000;

/// What is on its way, and what has to go again because something before it failed.
#[derive(Default)]
pub(super) struct Wire {
    answers: FuturesOrdered<Answer>,
    /// One each of `answers`.
    sent: VecDeque<Adding>,
    again: VecDeque<Adding>,
}

impl Wire {
    /// Whether nothing is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.sent.is_empty()
    }

    /// Whether nothing is on its way, and nothing has to go again.
    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty() && self.again.is_empty()
    }

    /// Whether blocks wait to go again, each by itself. Nothing is on its way meanwhile.
    pub(super) fn goes_again(&self) -> bool {
        !self.again.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        let events: usize = self.sent.iter().map(|adding| adding.events.len()).sum();
        self.sent.len() < MAX_BLOCKS && events < MAX_EVENTS
    }

    /// `adding` was sent behind all that is there.
    pub(super) fn push(&mut self, adding: Adding, answer: Answer) {
        self.sent.push_back(adding);
        self.answers.push_back(answer);
    }

    /// The outcome of the oldest block; none if there is none.
    pub(super) async fn next(&mut self) -> Option<(Adding, Result<Outcome, StepError>)> {
        let result = self.answers.next().await?;
        Some((self.sent.pop_front()?, result))
    }

    /// `first` is not in: what was sent behind it is not either, whatever its answers are, and goes
    /// again after it.
    pub(super) fn failed(&mut self, first: Adding) {
        self.answers = FuturesOrdered::new();
        self.again.push_back(first);
        self.again.append(&mut self.sent);
    }

    /// The next block that has to go again, by itself.
    pub(super) fn pop_again(&mut self) -> Option<Adding> {
        self.again.pop_front()
    }

    /// Waits until everything that was sent is answered.
    pub(super) async fn settle(&mut self) {
        while self.next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::B256;
    use ethhook_domain::{BlockRef, EntryId, Proof};
    use futures_util::FutureExt;
    use futures_util::future::{pending, ready};

    use super::*;

    fn adding(number: u64) -> Adding {
        let block =
            BlockRef { number, hash: B256::ZERO, parent_hash: B256::ZERO, timestamp: number };
        Adding::new(block, None, Vec::new(), Proof::Bloom)
    }

    fn published() -> Answer {
        let outcome =
            Outcome::Published { first_id: None, last_id: EntryId { ms: 1, seq: 1 }, events: 0 };
        ready(Ok(outcome)).boxed()
    }

    fn refused() -> Answer {
        ready(Err(StepError::Refused("no".into()))).boxed()
    }

    #[tokio::test]
    async fn blocks_come_back_in_the_order_they_were_sent() {
        let mut wire = Wire::default();
        for number in 1..=3 {
            assert!(wire.has_room());
            wire.push(adding(number), published());
        }
        assert!(!wire.is_idle());
        for number in 1..=3 {
            let (adding, result) = wire.next().await.unwrap();
            assert_eq!((adding.block.number, result.is_ok()), (number, true));
        }
        assert!(wire.is_empty() && wire.next().await.is_none());
    }

    #[tokio::test]
    async fn g4_what_was_sent_behind_a_failure_goes_again_after_it() {
        let mut wire = Wire::default();
        wire.push(adding(1), published());
        wire.push(adding(2), refused());
        wire.push(adding(3), published()); // whatever it says
        wire.push(adding(4), pending().boxed());
        assert!(wire.next().await.unwrap().1.is_ok());
        let (second, result) = wire.next().await.unwrap();
        assert!(result.is_err());
        wire.failed(second);
        assert!(wire.is_idle() && !wire.is_empty());
        assert!(wire.next().await.is_none(), "its answers are forgotten");
        let again: Vec<_> =
            std::iter::from_fn(|| wire.pop_again()).map(|a| a.block.number).collect();
        assert_eq!(again, [2, 3, 4]);
        assert!(wire.is_empty());
    }

    #[tokio::test]
    async fn g7_what_is_on_the_wire_is_bounded() {
        let mut wire = Wire::default();
        let mut sent = 0;
        while wire.has_room() {
            sent += 1;
            wire.push(adding(sent), pending().boxed());
        }
        assert_eq!(sent, MAX_BLOCKS as u64);
    }
}
