//! What a session does with its publisher: blocks are sent one behind the other; what fails, and every
//! other step, goes by itself and is tried until it is in.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use ethhook_domain::verify::Verified;
use ethhook_domain::{BlockRef, ChainId, Filter, ProcessedEvent, Proof};
use ethhook_streams::{
    Answer, Events, Outcome, PublishedBlock, Publisher, Step, StepError, fail_point,
};
use futures_util::FutureExt;
use futures_util::future::ready;
use tracing::warn;

use super::queue::Pending;
use crate::metrics::ChainMetrics;

/// What the publisher is sent off to do.
pub(super) enum Work {
    Add(Adding),
    Undo(PublishedBlock),
    Finalize(BlockRef),
    Alarm(String),
    Renew,
}

/// A block that joins, kept until Redis has acknowledged it: it may have to go again.
pub(super) struct Adding {
    pub(super) block: BlockRef,
    /// When its head came; none while catching up.
    heard: Option<Instant>,
    pub(super) events: Events,
    proof: Proof,
    started: Instant,
}

impl Adding {
    pub(super) fn new(
        block: BlockRef,
        heard: Option<Instant>,
        events: Vec<ProcessedEvent>,
        proof: Proof,
    ) -> Self {
        Self { block, heard, events: events.into(), proof, started: Instant::now() }
    }
}

/// What it comes back with.
pub(super) enum Done {
    Added {
        block: PublishedBlock,
        heard: Option<Instant>,
    },
    /// The block was there already, with so many events.
    Duplicate {
        events: u64,
    },
    Removed {
        block: PublishedBlock,
    },
    Finalized(BlockRef),
    Alarmed,
    Renewed,
    LeaseLost,
}

/// What a writer needs beside the publisher.
#[derive(Clone)]
pub(super) struct Writer {
    pub(super) chain_id: ChainId,
    pub(super) filter: Filter,
    pub(super) digest: String,
    pub(super) metrics: ChainMetrics,
}

impl Writer {
    /// Does `work`, however long Redis is away, and gives the publisher back.
    pub(super) async fn write(
        self,
        mut publisher: Publisher,
        work: Work,
    ) -> (Publisher, Result<Done, StepError>) {
        let started = match &work {
            Work::Add(adding) => adding.started,
            _ => Instant::now(),
        };
        let result = match work {
            Work::Add(adding) => {
                let outcome = self.apply(&mut publisher, &self.step(&adding)).await;
                outcome.map(|outcome| Self::added(adding, outcome))
            }
            Work::Undo(block) => self.undo(&mut publisher, block).await,
            Work::Finalize(block) => self
                .apply(&mut publisher, &Step::Finalized { block: &block })
                .await
                .map(|_| Done::Finalized(block)),
            Work::Alarm(text) => self
                .apply(&mut publisher, &Step::Alarm { text: &text })
                .await
                .map(|_| Done::Alarmed),
            Work::Renew => {
                let done = self.renew(&mut publisher).await;
                return (publisher, Ok(done));
            }
        };
        self.metrics.publish_seconds.observe(started.elapsed().as_secs_f64());
        (publisher, result)
    }

    /// The events of a block that is to join.
    pub(super) fn adding(&self, pending: &Pending, mut verified: Verified) -> Adding {
        fail_point("block", "in-flight");
        let block = pending.header.block;
        verified.logs.retain(|log| self.filter.passes(log));
        let logs = verified.logs.into_iter();
        let events: Vec<_> =
            logs.map(|log| ProcessedEvent::new(self.chain_id, &block, log)).collect();
        self.metrics.ingested.inc_by(events.len() as u64);
        Adding::new(block, pending.heard, events, verified.proof)
    }

    /// Sends a block behind those that are on the wire; none if it has to go by itself.
    pub(super) fn send(&self, publisher: &mut Publisher, adding: &Adding) -> Option<Answer> {
        let sent = publisher.send(&self.step(adding));
        // What is refused before it leaves is told of in its turn.
        sent.unwrap_or_else(|error| Some(ready(Err(error)).boxed()))
    }

    /// Takes note of what became of the oldest block on the wire.
    pub(super) fn acknowledge(
        &self,
        publisher: &mut Publisher,
        adding: &Adding,
        result: &Result<Outcome, StepError>,
    ) {
        publisher.acknowledge(&self.step(adding), result);
        if result.is_ok() {
            self.metrics.publish_seconds.observe(adding.started.elapsed().as_secs_f64());
        }
    }

    fn step<'a>(&'a self, adding: &'a Adding) -> Step<'a> {
        let Adding { block, events, proof, .. } = adding;
        Step::Add { block, events, proof: *proof, filter: &self.digest }
    }

    /// What a block that is in has become.
    pub(super) fn added(adding: Adding, outcome: Outcome) -> Done {
        let Adding { block, heard, events, proof, .. } = adding;
        match outcome {
            Outcome::Published { first_id, last_id, .. } => {
                let events = events.len() as u64;
                let block = PublishedBlock { block, events, first_id, last_id, proof };
                Done::Added { block, heard }
            }
            Outcome::Duplicate { events } => Done::Duplicate { events },
        }
    }

    /// Takes a block back, however long Redis is away.
    async fn undo(
        &self,
        publisher: &mut Publisher,
        block: PublishedBlock,
    ) -> Result<Done, StepError> {
        let mut patience = self.patience();
        loop {
            match publisher.take_back(&block).await {
                Err(error) if error.is_retryable() => patience.wait_after(&error).await,
                Err(error) => return Err(error),
                Ok(_) => return Ok(Done::Removed { block }),
            }
        }
    }

    /// Tries a step until it is in or refused.
    async fn apply(
        &self,
        publisher: &mut Publisher,
        step: &Step<'_>,
    ) -> Result<Outcome, StepError> {
        let mut patience = self.patience();
        loop {
            match publisher.apply(step).await {
                Err(error) if error.is_retryable() => patience.wait_after(&error).await,
                result => return result,
            }
        }
    }

    fn patience(&self) -> Patience<'_> {
        // 50 ms growing to 2 s, for ever.
        let waits = ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(2))
            .with_jitter()
            .without_max_times()
            .build();
        Patience { metrics: &self.metrics, waits, tries: 0 }
    }

    /// A renewal that failed comes again at the next turn; a lease that another took is lost.
    async fn renew(&self, publisher: &mut Publisher) -> Done {
        match publisher.renew().await {
            Ok(()) => Done::Renewed,
            Err(error) if error.is_retryable() => {
                self.metrics.redis_error(error.kind());
                warn!(%error, "the lease was not renewed");
                Done::Renewed
            }
            Err(error) => {
                self.metrics.redis_error(error.kind());
                warn!(%error, "the lease is lost");
                Done::LeaseLost
            }
        }
    }
}

/// The tries of one step while Redis is away.
struct Patience<'a> {
    metrics: &'a ChainMetrics,
    waits: ExponentialBackoff,
    tries: u32,
}

impl Patience<'_> {
    async fn wait_after(&mut self, error: &StepError) {
        self.metrics.redis_error(error.kind());
        self.tries += 1;
        if self.tries.is_power_of_two() {
            let tries = self.tries;
            warn!(tries, %error, "Redis did not take the step: holding it and trying again");
        }
        tokio::time::sleep(self.waits.next().unwrap_or_default()).await;
    }
}
