//! The path to Redis: added blocks are pipelined; a block that failed, and every other step, is sent alone
//! and retried until Redis has accepted it.

use std::collections::VecDeque;
use std::mem;
use std::time::{Duration, Instant};

use backon::ExponentialBackoff;
use ethhook_domain::verify::Verified;
use ethhook_domain::{BlockRef, ChainId, Filter, Proof};
use ethhook_streams::{
    Events, FailureKind, LeaseError, Outcome, PublishedBlock, Publisher, Step, StepError,
    fail_point,
};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tracing::warn;

use crate::backoff::endless_backoff;
use crate::metrics::ChainMetrics;
use crate::status::{Cause, ChainBoard, Needs};

/// Blocks in flight at once: enough that Redis never waits for us.
const MAX_BLOCKS: usize = 4;
/// Events in flight at which no further block is sent. Redis may execute everything from one
/// connection without a break, while other chains wait.
const MAX_EVENTS: usize = 1_000;

/// After this long, a step that Redis does not accept counts as a stall.
const TOLD_AFTER: Duration = Duration::from_secs(3);

/// One publisher and the steps in flight on it.
pub(super) struct PublishPipeline {
    pub(super) writer: Writer,
    traffic: Traffic,
    /// Blocks to send again, each alone, because the first of them failed. Nothing is pipelined
    /// meanwhile.
    again: VecDeque<PendingAdd>,
}

enum Traffic {
    /// Blocks are pipelined; `sent` are in flight.
    Pipelined { publisher: Box<Publisher>, sent: VecDeque<PendingAdd> },
    /// One step is in flight alone.
    Alone(BoxFuture<'static, (Box<Publisher>, Result<Done, Ended>)>),
    /// The lease was released.
    Closed,
}

impl PublishPipeline {
    pub(super) fn new(writer: Writer, publisher: Publisher) -> Self {
        let traffic = Traffic::Pipelined { publisher: Box::new(publisher), sent: VecDeque::new() };
        Self { writer, traffic, again: VecDeque::new() }
    }

    /// Whether another step may be sent: none is in flight alone.
    pub(super) fn can_send(&self) -> bool {
        matches!(self.traffic, Traffic::Pipelined { .. })
    }

    /// Whether nothing is in flight.
    pub(super) fn nothing_in_flight(&self) -> bool {
        matches!(&self.traffic, Traffic::Pipelined { sent, .. } if sent.is_empty())
    }

    /// Whether nothing is in flight and nothing has to be sent again.
    pub(super) fn nothing_to_send(&self) -> bool {
        self.nothing_in_flight() && self.again.is_empty()
    }

    /// Whether a block may be sent behind those in flight.
    pub(super) fn has_room(&self) -> bool {
        let Traffic::Pipelined { sent, .. } = &self.traffic else { return false };
        let events: usize = sent.iter().map(|adding| adding.events.len()).sum();
        sent.len() < MAX_BLOCKS && events < MAX_EVENTS
    }

    /// The next block to send again.
    pub(super) fn pop_again(&mut self) -> Option<PendingAdd> {
        self.again.pop_front()
    }

    /// Starts `work`, which must be possible: see `can_send`. Only an added block may be sent behind others.
    pub(super) fn start(&mut self, work: Work) {
        let (mut publisher, mut sent) = match mem::replace(&mut self.traffic, Traffic::Closed) {
            Traffic::Pipelined { publisher, sent } => (publisher, sent),
            Traffic::Alone(_) | Traffic::Closed => unreachable!("nothing can be sent now"),
        };
        self.traffic = match work {
            Work::Add(adding)
                if self.again.is_empty() && publisher.send(&self.writer.step(&adding)) =>
            {
                sent.push_back(adding);
                Traffic::Pipelined { publisher, sent }
            }
            work => {
                debug_assert!(sent.is_empty(), "what is in flight would be forgotten");
                Traffic::Alone(self.writer.clone().write(publisher, work).boxed())
            }
        };
    }

    /// The result of the oldest work; `None` if nothing is in flight. Safe to drop and call again.
    pub(super) async fn next(&mut self) -> Option<Result<Done, Ended>> {
        match &mut self.traffic {
            Traffic::Pipelined { publisher, sent } => {
                let result = publisher.next_outcome().await?;
                let adding = sent.pop_front()?;
                let metrics = &self.writer.metrics;
                Some(match result {
                    Ok(outcome) => {
                        metrics.publish_seconds.observe(adding.started.elapsed().as_secs_f64());
                        Ok(added(adding, outcome))
                    }
                    Err(error) if error.is_retryable() => {
                        metrics.redis_error(error.kind());
                        warn!(%error, "Redis did not accept a block: trying again");
                        self.again.push_back(adding);
                        self.again.append(sent);
                        Ok(Done::WillRetry)
                    }
                    Err(error) => Err(error.into()),
                })
            }
            Traffic::Alone(running) => {
                let (publisher, result) = running.await;
                self.traffic = Traffic::Pipelined { publisher, sent: VecDeque::new() };
                Some(result)
            }
            Traffic::Closed => None,
        }
    }

    /// Waits until nothing is in flight.
    pub(super) async fn settle(&mut self) {
        while self.next().await.is_some() {}
    }

    /// The epoch under which this writer owns the chain, if known.
    pub(super) fn epoch(&self) -> Option<u64> {
        match &self.traffic {
            Traffic::Pipelined { publisher, .. } => Some(publisher.cursor().epoch),
            Traffic::Alone(_) | Traffic::Closed => None,
        }
    }

    /// Releases the lease, unless a step in flight does not end: then the lease expires.
    pub(super) async fn close(&mut self) {
        if let Traffic::Pipelined { mut publisher, .. } =
            mem::replace(&mut self.traffic, Traffic::Closed)
        {
            publisher.release().await;
        }
    }
}

/// Work for the publisher.
pub(super) enum Work {
    Add(PendingAdd),
    Remove(PublishedBlock),
    Finalize(BlockRef),
    Alarm(String),
    Renew,
}

/// A block being added, kept until Redis has acknowledged it: it may have to be sent again.
pub(super) struct PendingAdd {
    pub(super) block: BlockRef,
    /// When its head arrived; `None` while catching up.
    heard: Option<Instant>,
    events: Events,
    proof: Proof,
    is_deep: bool,
    started: Instant,
}

/// The result of the work.
pub(super) enum Done {
    Added {
        block: PublishedBlock,
        heard: Option<Instant>,
    },
    /// The block was already published, with this many events.
    Duplicate {
        events: u64,
    },
    /// Redis did not accept a block: it and those behind it are sent again.
    WillRetry,
    Removed {
        block: PublishedBlock,
    },
    Finalized(BlockRef),
    Alarmed,
    Renewed,
    /// The lease was not renewed; that is tried again when the next renewal is due.
    RenewalFailed,
}

/// Why this writer may not go on.
#[derive(Debug)]
pub(super) enum Ended {
    Refused(StepError),
    LeaseLost(LeaseError),
}

impl From<StepError> for Ended {
    fn from(error: StepError) -> Self {
        Self::Refused(error)
    }
}

/// What a writer needs in addition to the publisher.
#[derive(Clone)]
pub(super) struct Writer {
    pub(super) chain_id: ChainId,
    pub(super) filter: Filter,
    pub(super) digest: String,
    pub(super) metrics: ChainMetrics,
    pub(super) status: ChainBoard,
    pub(super) renew_every: Duration,
}

impl Writer {
    /// Does `work`, and returns the publisher. A step is retried until it is accepted or refused, or the lease is lost
    /// meanwhile; a renewal is tried once.
    async fn write(
        self,
        mut publisher: Box<Publisher>,
        work: Work,
    ) -> (Box<Publisher>, Result<Done, Ended>) {
        let started = match &work {
            Work::Add(adding) => adding.started,
            _ => Instant::now(),
        };
        let result = match work {
            Work::Add(adding) => {
                let outcome = self.apply(&mut publisher, &self.step(&adding)).await;
                outcome.map(|outcome| added(adding, outcome))
            }
            Work::Remove(block) => self.remove(&mut publisher, block).await,
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
                return (publisher, done);
            }
        };
        self.metrics.publish_seconds.observe(started.elapsed().as_secs_f64());
        (publisher, result)
    }

    /// A block to add.
    pub(super) fn pending_add(
        &self,
        block: BlockRef,
        heard: Option<Instant>,
        body: Verified,
        is_deep: bool,
    ) -> PendingAdd {
        fail_point("block", "in-flight");
        let events = self.filter.events(self.chain_id, &block, body.logs);
        self.metrics.ingested.inc_by(events.len() as u64);
        let (events, started) = (events.into(), Instant::now());
        PendingAdd { block, heard, events, proof: body.proof, is_deep, started }
    }

    fn step<'a>(&'a self, adding: &'a PendingAdd) -> Step<'a> {
        let PendingAdd { block, events, proof, is_deep, .. } = adding;
        Step::Add { block, events, proof: *proof, filter: &self.digest, is_deep: *is_deep }
    }

    /// Removes a block, however long Redis is unavailable.
    async fn remove(
        &self,
        publisher: &mut Publisher,
        block: PublishedBlock,
    ) -> Result<Done, Ended> {
        let mut retry = self.retry();
        loop {
            let result = publisher.take_back(&block).await;
            if retry.after(publisher, result).await?.is_some() {
                return Ok(Done::Removed { block });
            }
        }
    }

    /// Tries a step until it is accepted or refused.
    async fn apply(&self, publisher: &mut Publisher, step: &Step<'_>) -> Result<Outcome, Ended> {
        let mut retry = self.retry();
        loop {
            let result = publisher.apply(step).await;
            if let Some(outcome) = retry.after(publisher, result).await? {
                return Ok(outcome);
            }
        }
    }

    fn retry(&self) -> StepRetry<'_> {
        let waits = endless_backoff(Duration::from_millis(50), Duration::from_secs(2));
        StepRetry { writer: self, waits, tries: 0, since: Instant::now(), renewed: None }
    }

    /// Renews the lease; one that another has taken is lost.
    async fn renew(&self, publisher: &mut Publisher) -> Result<Done, Ended> {
        let Err(error) = publisher.renew().await else { return Ok(Done::Renewed) };
        self.metrics.redis_error(error.kind());
        if error.is_retryable() {
            warn!(%error, "the lease was not renewed: trying again");
            return Ok(Done::RenewalFailed);
        }
        warn!(%error, "the lease is lost");
        Err(Ended::LeaseLost(error))
    }
}

/// Turns the outcome of an added block into a result.
fn added(adding: PendingAdd, outcome: Outcome) -> Done {
    let PendingAdd { block, heard, events, proof, .. } = adding;
    match outcome {
        Outcome::Published { first_id, last_id, .. } => {
            let events = events.len() as u64;
            let block = PublishedBlock { block, events, first_id, last_id, proof };
            Done::Added { block, heard }
        }
        Outcome::Duplicate { events } => Done::Duplicate { events },
    }
}

/// The retries of one step that Redis does not accept.
struct StepRetry<'a> {
    writer: &'a Writer,
    waits: ExponentialBackoff,
    tries: u32,
    since: Instant,
    /// When the lease was last renewed between two tries.
    renewed: Option<Instant>,
}

impl StepRetry<'_> {
    /// The outcome of a try, if it was the last one; else waits until the next.
    async fn after(
        &mut self,
        publisher: &mut Publisher,
        result: Result<Outcome, StepError>,
    ) -> Result<Option<Outcome>, Ended> {
        let error = match result {
            Ok(outcome) => {
                self.writer.status.clear(Cause::Step);
                return Ok(Some(outcome));
            }
            Err(error) if error.is_retryable() => error,
            Err(error) => return Err(error.into()),
        };
        self.writer.metrics.redis_error(error.kind());
        self.tries += 1;
        if self.tries.is_power_of_two() {
            let tries = self.tries;
            warn!(tries, %error, "Redis did not accept a step: trying again");
        }
        let is_full =
            matches!(&error, StepError::Redis(failure) if failure.kind == FailureKind::OutOfMemory);
        if self.since.elapsed() >= TOLD_AFTER {
            let needs = if is_full { Needs::Room } else { Needs::Time };
            let why = format!("Redis does not accept a step: {error}");
            self.writer.status.stalled(Cause::Step, why, needs);
        }
        // A full Redis still renews a lease, and would give it to another instance, which could not publish either.
        if is_full && self.renewed.is_none_or(|at| at.elapsed() >= self.writer.renew_every) {
            self.renewed = Some(Instant::now());
            self.writer.renew(publisher).await?;
        }
        let wait = self.waits.next().unwrap_or_default();
        tokio::time::sleep(wait.min(self.writer.renew_every)).await;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::B256;
    use ethhook_streams::RedisFailure;
    use futures_util::poll;

    use super::super::scene::Scene;
    use super::*;
    use crate::chain::End;
    use crate::config::ChainConfig;
    use crate::testing::verified;

    #[tokio::test]
    async fn g4_what_was_sent_behind_a_failure_goes_again_after_it() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        session.hear(1..=1);
        session.publish().await; // a publisher's first step is sent alone
        scene.redis.ask::<String>("SCRIPT FLUSH").await.unwrap();
        session.hear(2..=9);
        session.start_writing(Instant::now());
        assert!(!session.pipeline.has_room() && session.pipeline.can_send());
        let result = session.pipeline.next().await.unwrap().unwrap();
        assert!(matches!(result, Done::WillRetry));
        assert!(session.pipeline.nothing_in_flight() && !session.pipeline.nothing_to_send());
        assert!(session.pipeline.next().await.is_none(), "what was behind it is forgotten");
        let again: Vec<_> =
            session.pipeline.again.iter().map(|adding| adding.block.number).collect();
        assert_eq!(again, [2, 3, 4, 5]);

        session.publish().await;
        assert!(session.pipeline.nothing_to_send());
        let markers: Vec<_> = scene.markers().await.iter().map(|m| (m.seq, m.number)).collect();
        assert_eq!(markers, (1..=9).map(|number| (number, number)).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_step_that_redis_does_not_take_for_a_while_is_a_stall_until_it_is_in() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let session = scene.session().await;
        let refused = |kind| StepError::Redis(RedisFailure { kind, detail: "no".into() });
        for (kind, needs) in
            [(FailureKind::OutOfMemory, Needs::Room), (FailureKind::ReadOnly, Needs::Time)]
        {
            let mut retry = session.pipeline.writer.retry();
            let mut publisher = scene.publisher().await;
            let mut after = async |result| retry.after(&mut publisher, result).await.unwrap();
            assert!(after(Err(refused(kind))).await.is_none());
            assert_eq!(scene.stall(), None, "one refusal");
            retry.since -= TOLD_AFTER;
            let mut after = async |result| retry.after(&mut publisher, result).await.unwrap();
            assert!(after(Err(refused(kind))).await.is_none());
            assert_eq!(
                scene.stall(),
                Some(("Redis does not accept a step: Redis: no".into(), needs))
            );
            assert!(after(Ok(Outcome::Duplicate { events: 0 })).await.is_some());
            assert_eq!(scene.stall(), None);
        }
    }

    #[tokio::test]
    async fn g5_the_lease_is_kept_while_redis_is_full_and_its_loss_is_noticed() {
        const TTL: Duration = Duration::from_millis(900);
        let mut scene = Scene::of(ChainConfig::local([])).await;
        scene.chain.options.lease_ttl = TTL;
        let mut session = scene.session().await;
        session.hear(1..=1);
        scene.redis.ask::<String>("CONFIG SET maxmemory 1").await.unwrap();
        session.start_writing(Instant::now());
        let chain = &scene.chain;
        let until = Instant::now() + 4 * TTL;
        let is_held = async {
            while Instant::now() < until {
                assert!(chain.streams.lease_holder(chain.id()).await.unwrap().is_some());
                tokio::time::sleep(TTL / 20).await;
            }
        };
        tokio::select! {
            ended = session.pipeline.next() => panic!("{:?}", ended.map(|ended| ended.err())),
            () = is_held => {}
        }
        // Another process under our name.
        let options = chain.options.for_writer();
        Publisher::open(&chain.streams, chain.id(), options, None).await.unwrap();
        let ended = session.pipeline.next().await.unwrap();
        assert!(matches!(session.written(ended), Some(End::Namesake)));
    }

    #[tokio::test]
    async fn g7_what_is_on_the_wire_is_bounded_by_events_too() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        session.hear(1..=1);
        session.publish().await;
        let pipeline = &mut session.pipeline;
        let block = BlockRef { number: 2, hash: B256::ZERO, parent_hash: B256::ZERO, timestamp: 2 };
        for (logs, has_room) in [(MAX_EVENTS - 1, true), (1, false)] {
            let adding = pipeline.writer.pending_add(block, None, verified(logs), false);
            pipeline.start(Work::Add(adding));
            assert_eq!(pipeline.has_room(), has_room);
        }
        assert!(poll!(Box::pin(pipeline.next())).is_pending());
    }
}
