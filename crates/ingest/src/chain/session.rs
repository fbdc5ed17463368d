//! A session: one loop that handles the heads, header requests, fetches and steps of one chain.
//!
//! The loop owns all state and changes it only between awaits, so no lock is needed in any order of
//! events. The canonical chain decides what is wanted; the queue keeps it until it is fetched and
//! its turn comes. Added blocks are pipelined; every other step waits until all of them are
//! acknowledged, and is sent alone.

mod apart;
mod asking;
mod fetching;
mod finality;
mod heads;
mod pipeline;
mod progress;
mod retention;
#[cfg(test)]
pub(super) mod scene;
mod silence;
mod writing;

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use ethhook_domain::{BlockRef, CanonicalChain};
use ethhook_streams::PublishedBlock;
use futures_util::future::{Aborted, BoxFuture, pending};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use super::open::Opened;
use super::queue::Queue;
use super::{Chain, End};
use crate::node::{FetchedBlock, NodeError};
use crate::rpc::{RpcError, SocketEvent};
use crate::status::{Cause, Needs};
use apart::Apart;
use asking::Asking;
use finality::Finality;
use pipeline::{PublishPipeline, Writer};
use retention::Retention;
use silence::Silence;

/// Consecutive failures to fetch a block, or a header of a branch, after which it is doubted that the
/// chain still contains it.
const DOUBT_AFTER: u32 = 3;
/// Consecutive failures after which the chain counts as stalled.
const TROUBLE_AFTER: u32 = 8;

/// With subscriptions, the node is polled after this many block times without a head: one that is late is no reason.
const SILENT_BLOCKS: u32 = 3;
/// The bounds of that. Where blocks are fast, a short pause is no silence; where they are rare, a subscription that
/// died must not go unnoticed for minutes.
const SHORTEST_SILENCE: Duration = Duration::from_secs(5);
const LONGEST_SILENCE: Duration = Duration::from_secs(30);
/// Without subscriptions, the node is polled once a block time, within these bounds: more often would spend its rate
/// limit on polls, and less often would find an early block late.
const SHORTEST_POLL: Duration = Duration::from_millis(250);
const LONGEST_POLL: Duration = Duration::from_secs(12);

/// At most one running operation of its kind; `None` once it is done.
type Running<'a, T> = Option<BoxFuture<'a, T>>;
type Fetched = (Vec<BlockRef>, Result<Vec<FetchedBlock>, Aborted>);

struct Session<'a> {
    chain: &'a Chain,
    _permit: OwnedSemaphorePermit,
    pipeline: PublishPipeline,
    canonical: CanonicalChain,
    /// From the finalized block, or else the first, to the tip of the stream.
    published: VecDeque<PublishedBlock>,
    queue: Queue,
    /// The last block to publish: the configured one, or the last that an earlier run published if that is
    /// higher, so that all published blocks keep following the chain.
    end_block: Option<u64>,
    start_block: u64,
    /// The newest block that was done with when the session was opened: published, or skipped by an operator.
    opened_at: u64,
    /// A reorg may replace all blocks, even the first: the genesis was checked just before.
    may_be_replaced: bool,
    /// Height and time of the newest head.
    head: Option<(u64, u64)>,
    fetches: JoinSet<Fetched>,
    alarm: Option<String>,
    apart: Apart<'a>,
    silence: Silence<'a>,
    asking: Asking<'a>,
    finality: Finality<'a>,
    retention: Retention<'a>,
    due: Due,
}

/// When each activity is next due.
struct Due {
    poll: Instant,
    ask: Instant,
    renew: Instant,
    finality: Instant,
    retention: Instant,
    /// Only used if blocks at the head are fetched together.
    batch: Instant,
}

impl Chain {
    /// Runs a session until it ends.
    pub(super) async fn drive(
        &self,
        opened: Opened,
        heads: &mut mpsc::Receiver<SocketEvent>,
        cancel: &CancellationToken,
    ) -> End {
        let mut session = Session::new(self, opened);
        loop {
            let now = Instant::now();
            session.start_what_can_be(now);
            session.compare_heads(now);
            session.watch_subscriptions(now);
            session.report();
            let wake = sleep_until(session.next_due(now).into());
            let ended = tokio::select! {
                // Steps first: everything else waits for them. Heads before fetches: an orphaned
                // block should not be published.
                biased;
                () = cancel.cancelled() => return session.drain().await,
                Some(written) = session.pipeline.next() => session.written(written),
                Some(event) = heads.recv() => session.told_by_socket(event),
                asked = finished(&mut session.asking.headers) => session.answered(asked),
                judged = finished(&mut session.asking.judging) => session.judged(judged),
                Some(fetched) = session.fetches.join_next() => { session.fetched(fetched); None }
                tag = finished(&mut session.finality.asking) => { session.tagged(tag); None }
                swept = finished(&mut session.retention.sweep) => { session.swept(swept); None }
                () = wake => None,
            };
            if let Some(end) = ended {
                session.end_sweep().await;
                if matches!(end, End::Alarm | End::Refused(_)) {
                    // The operator writes next and must not have to wait for our lease.
                    session.give_lease_up().await;
                }
                return end;
            }
        }
    }
}

impl<'a> Session<'a> {
    fn new(chain: &'a Chain, opened: Opened) -> Self {
        let now = Instant::now();
        let writer = Writer {
            chain_id: chain.id(),
            filter: chain.config.filter.clone(),
            digest: chain.config.filter.digest(),
            metrics: chain.metrics.clone(),
            status: chain.status.clone(),
            renew_every: chain.options.renew_every(),
        };
        let published = opened.published.last().map_or(0, |tip| tip.block.number);
        let end_block = chain.config.end_block.map(|end| end.max(published));
        let cursor = opened.publisher.cursor();
        chain.metrics.finalized.set(gauge(cursor.finalized_number));
        let start_block = cursor.start_number;
        let finalized = cursor.finalized();
        let opened_at = cursor.next_number().saturating_sub(1);
        Self {
            chain,
            _permit: opened._permit,
            pipeline: PublishPipeline::new(writer, opened.publisher),
            canonical: opened.canonical,
            published: opened.published.into(),
            queue: Queue::default(),
            end_block,
            start_block,
            opened_at,
            may_be_replaced: chain.may_be_replaced,
            head: None,
            fetches: JoinSet::new(),
            alarm: None,
            apart: Apart::new(chain.node.endpoints()),
            silence: Silence::new(chain.node.endpoints()),
            asking: Asking::default(),
            finality: Finality::since(finalized),
            retention: Retention::default(),
            due: Due {
                poll: now + chain.poll_every(),
                ask: now,
                renew: now + chain.options.renew_every(),
                finality: now + chain.finality_every(),
                retention: now,
                batch: now,
            },
        }
    }

    /// The highest block that may be published now.
    fn up_to(&self) -> Option<u64> {
        let tip = self.canonical.tip()?.number.checked_sub(self.chain.config.confirmations)?;
        Some(self.end_block.map_or(tip, |end| tip.min(end)))
    }

    /// When something is next due that could not start at `now`.
    fn next_due(&self, now: Instant) -> Instant {
        // Only what could start then: anything that waits for something else is woken by it.
        let due = &self.due;
        let mut next = due.poll;
        let mut consider = |at: Instant, could_start: bool| {
            if could_start {
                next = next.min(at);
            }
        };
        consider(due.renew, self.pipeline.nothing_in_flight());
        consider(due.finality, self.finality.asking.is_none() && !self.end_is_final());
        consider(due.retention, self.retention.sweep.is_none());
        consider(due.ask, self.asks_something());
        if let Some(fetch) = self.fetches_due(now) {
            consider(fetch, true);
        }
        next.max(now + Duration::from_millis(1))
    }

    fn start_what_can_be(&mut self, now: Instant) {
        if now >= self.due.poll {
            self.canonical.doubt();
            self.asking.silent_polls += 1;
            self.due.poll = now + self.poll_every();
        }
        self.start_fetches(now);
        self.start_writing(now);
        self.start_asking(now);
        self.start_asking_for_finalized(now);
        self.start_sweep(now);
    }

    /// Whether the queue has room for another block.
    fn has_room(&self) -> bool {
        self.queue.room(self.chain.config.confirmations) > 0
    }

    /// Marks the chain stalled: the node does not return `what`, even after many attempts.
    fn not_available(&self, cause: Cause, what: impl fmt::Display, error: &NodeError) {
        if matches!(error, NodeError::Rpc(RpcError::SetAside(_))) && !error.is_wrong_chain() {
            return; // the earlier error says more
        }
        let needs = if error.is_wrong_chain() { Needs::Operator } else { Needs::Time };
        self.chain.status.stalled(cause, format!("{what} is not available: {error}"), needs);
    }

    fn note_answer(&self) {
        self.chain.status.update(|s| s.last_answer = Some(Instant::now()));
    }

    /// How long to wait for a head before polling the node; where nothing is left to do, only to see whether it answers.
    fn poll_every(&self) -> Duration {
        if self.end_is_final() { LONGEST_SILENCE } else { self.chain.poll_every() }
    }
}

impl Chain {
    fn has_socket(&self) -> bool {
        self.config.endpoints.iter().any(|endpoint| endpoint.ws.is_some())
    }

    /// How long to wait for a head before polling the node.
    fn poll_every(&self) -> Duration {
        // Where blocks are fetched together, each one need not be known at once.
        let block_time =
            self.config.profile.block_time.max(self.config.batch_every.unwrap_or_default());
        if self.has_socket() {
            (SILENT_BLOCKS * block_time).clamp(SHORTEST_SILENCE, LONGEST_SILENCE)
        } else {
            block_time.clamp(SHORTEST_POLL, LONGEST_POLL)
        }
    }
}

/// Waits for the running operation; forever if none runs.
async fn finished<T>(running: &mut Running<'_, T>) -> T {
    match running {
        Some(future) => future.await,
        None => pending().await,
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use ethhook_domain::Secret;
    use ethhook_domain::canonical::Ask;

    use super::scene::{Scene, header};
    use super::*;
    use crate::config::{ChainConfig, EndpointConfig};
    use crate::rpc::Head;

    #[tokio::test]
    async fn once_the_end_block_is_final_the_node_is_hardly_asked_any_more() {
        let config = ChainConfig { end_block: Some(2), ..ChainConfig::local([]) };
        let scene = Scene::of(config).await;
        let mut session = scene.session().await;
        session.hear(1..=3);
        session.publish().await;
        for is_final in [false, false, true] {
            session.due.finality = Instant::now();
            session.start_asking_for_finalized(Instant::now());
            assert_eq!(session.finality.asking.take().is_none(), is_final);
            assert_eq!(session.poll_every() == LONGEST_SILENCE, is_final);
            // Block 1, then block 2.
            let first = if session.canonical.is_finalized() { 1 } else { 0 };
            session.finality.next = session.published.get(first).map(|published| published.block);
            session.publish().await;
        }
        let now = Instant::now();
        let later = now + Duration::from_secs(60);
        session.due = Due {
            poll: later,
            ask: later,
            renew: later,
            finality: now,
            retention: later,
            batch: now,
        };
        assert_eq!(session.next_due(now), later, "nothing is due before");
        // After a restart the block itself may be gone.
        session.published.clear();
        assert!(session.end_is_final());
    }

    #[tokio::test]
    async fn a_poll_that_is_due_doubts_the_head_and_so_does_a_head_of_another_branch() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        session.hear(1..=3);
        session.answered((Ask::Latest, Ok(vec![header(3, 'a')])));
        assert_eq!((session.ask(), session.asking.heard_otherwise), (None, false));
        let due = session.due.poll;
        for (now, polls, next) in
            [(due - Duration::from_millis(1), 0, due), (due, 1, due + scene.chain.poll_every())]
        {
            session.due.ask = due + Duration::from_secs(9);
            session.start_what_can_be(now);
            assert_eq!((session.asking.silent_polls, session.due.poll), (polls, next));
            assert_eq!(session.ask().is_some(), polls > 0);
        }
        session.answered((Ask::Latest, Ok(vec![header(3, 'a')])));
        assert!(!session.asking.heard_otherwise);
        session.heard(Head::Header(Box::new(header(3, 'b'))));
        assert!(session.asking.heard_otherwise);
    }

    #[tokio::test]
    async fn a_session_wakes_for_what_is_due_first_of_what_could_start_then() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        session.hear(1..=1);
        session.canonical.doubt();
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let due = &mut session.due;
        (due.poll, due.ask, due.renew) = (at(60), at(10), at(20));
        (due.finality, due.retention) = (at(30), at(40));
        assert!(session.asks_something());
        assert_eq!(session.next_due(now), at(10));
        session.start_asking(at(10));
        assert_eq!(session.next_due(now), at(20), "what is asked is waited for anyway");
        session.start_writing(now);
        assert_eq!(session.next_due(now), at(30), "what is written, too");
        session.start_asking_for_finalized(at(30));
        session.due.finality = at(30);
        assert_eq!(session.next_due(now), at(40));
        session.start_sweep(at(40));
        session.due.retention = at(40);
        assert_eq!(session.next_due(now), at(60));
        assert_eq!(session.next_due(at(90)), at(90) + Duration::from_millis(1));
    }

    #[tokio::test]
    async fn the_node_is_polled_at_a_block_time_or_where_heads_are_told_at_three() {
        let nowhere = || "http://127.0.0.1:1".to_owned();
        let mut scene = Scene::of(ChainConfig::local([])).await;
        for (block_time, batch_every, without, with_socket) in [
            (10, None, 250, 5_000),
            (2_000, None, 2_000, 6_000),
            (2_000, Some(3_000), 3_000, 9_000),
            (20_000, None, 12_000, 30_000),
        ] {
            let config = &mut scene.chain.config;
            config.profile.block_time = Duration::from_millis(block_time);
            config.batch_every = batch_every.map(Duration::from_millis);
            config.endpoints = vec![EndpointConfig::http(nowhere())];
            assert_eq!(scene.chain.poll_every(), Duration::from_millis(without));
            scene.chain.config.endpoints[0].ws = Some(Secret::new(nowhere()));
            assert_eq!(scene.chain.poll_every(), Duration::from_millis(with_socket));
        }
    }
}
