//! The fetching side of a session: which blocks are requested, when, and how many at once.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Instant;

use alloy_primitives::B256;
use ethhook_domain::BlockRef;
use ethhook_domain::verify::Verified;
use futures_util::FutureExt;
use futures_util::future::abortable;
use tokio::task::JoinError;
use tracing::{Instrument, Span};

use super::{DOUBT_AFTER, Fetched, Session, TROUBLE_AFTER};
use crate::chain::queue::Limits;
use crate::metrics::BlockOutcome;
use crate::node::NodeError;
use crate::status::Cause;

impl Session<'_> {
    /// What may be fetched now. Blocks deep enough to be final are fetched together. So are those above
    /// them if `BATCH_MS` is set, but only once per interval.
    fn fetch_limits(&self, now: Instant) -> Option<Limits> {
        if self.queue.len() == 0 {
            return None;
        }
        let limits =
            Limits { up_to: self.up_to()?, together: self.deep(), plan: self.chain.node.plan() };
        Some(match self.chain.config.batch_every {
            None => limits,
            Some(_) if now >= self.due.batch => Limits { together: limits.up_to, ..limits },
            Some(_) => Limits { up_to: limits.up_to.min(limits.together), ..limits },
        })
    }

    /// Whether no reorg is expected to reach the block at this height.
    pub(super) fn is_deep(&self, number: u64) -> bool {
        self.head.is_some() && number <= self.deep()
    }

    /// The highest block that no reorg is expected to reach.
    fn deep(&self) -> u64 {
        let (head, _) = self.head.unwrap_or_default();
        head.saturating_sub(self.chain.config.profile.finality_depth)
    }

    /// When the next fetch that could start then is due.
    pub(super) fn fetches_due(&self, now: Instant) -> Option<Instant> {
        let postponed = self.queue.next_due(&self.fetch_limits(now)?, now);
        let batch = (self.chain.config.batch_every.is_some() && now < self.due.batch)
            .then_some(self.due.batch)
            .filter(|_| self.up_to().is_some_and(|up_to| self.queue.wants_fetch(up_to)));
        postponed.into_iter().chain(batch).min()
    }

    pub(super) fn start_fetches(&mut self, now: Instant) {
        let Some(limits) = self.fetch_limits(now) else { return };
        let (chain, deep) = (self.chain, self.deep());
        let mut at_head = false;
        loop {
            let headers = self.queue.next_fetch(&limits, now);
            let Some(last) = headers.last() else { break };
            at_head |= last.block.number > deep;
            let blocks: Vec<BlockRef> = headers.iter().map(|header| header.block).collect();
            let hashes: Vec<B256> = blocks.iter().map(|block| block.hash).collect();
            let node = Arc::clone(&chain.node);
            let (fetch, abort) = abortable(async move {
                let outcomes = node.blocks(&headers).await;
                outcomes.unwrap_or_else(|error| vec![Err(error); headers.len()])
            });
            // In its own task: decoding and checking must not delay steps to Redis.
            let fetch = fetch.map(move |result| (blocks, result));
            self.fetches.spawn(fetch.instrument(Span::current()));
            self.queue.fetching(&hashes, abort);
        }
        if let (Some(every), true) = (chain.config.batch_every, at_head) {
            self.due.batch = self.due.batch.max(now + every);
        }
    }

    pub(super) fn fetched(&mut self, ended: Result<Fetched, JoinError>) {
        let (blocks, result) = ended.unwrap_or_else(|error| resume_unwind(error.into_panic()));
        let Ok(outcomes) = result else { return }; // no longer wanted
        for (block, outcome) in blocks.into_iter().zip(outcomes) {
            match outcome {
                Ok(verified) => self.fetched_block(&block, verified),
                Err(error) => self.not_fetched(&block, &error),
            }
        }
    }

    fn fetched_block(&mut self, block: &BlockRef, verified: Verified) {
        self.note_answer();
        if verified.unhashed {
            self.chain.metrics.unhashed.inc();
        }
        self.queue.fetched(block.hash, verified);
    }

    fn not_fetched(&mut self, block: &BlockRef, error: &NodeError) {
        let Some(attempts) = self.queue.failed(block.hash, error, Instant::now()) else { return };
        if matches!(error, NodeError::Check(_)) {
            self.chain.metrics.block(BlockOutcome::Refused);
        }
        if attempts >= DOUBT_AFTER {
            self.canonical.doubt();
        }
        // Those behind it do not hold the chain up.
        if attempts >= TROUBLE_AFTER && self.queue.is_next(block.hash) {
            self.not_available(Cause::Block, format_args!("block {}", block.number), error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use alloy_primitives::Bloom;
    use ethhook_domain::Header;
    use ethhook_domain::canonical::Ask;
    use ethhook_simulator::Fault;

    use super::super::scene::{Scene, header};
    use super::*;
    use crate::config::{ChainConfig, EndpointConfig, Fetch};
    use crate::rpc::{Head, RpcError};
    use crate::testing::{mined, serve, verified};

    #[tokio::test]
    async fn a_block_whose_header_could_not_be_hashed_is_counted() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        for (unhashed, counted) in [(false, 0), (true, 1)] {
            session.fetched_block(&header(1, 'a').block, Verified { unhashed, ..verified(1) });
            assert_eq!(scene.chain.metrics.unhashed.get(), counted);
        }
    }

    /// The header of a block that may have wanted logs.
    fn with_logs(number: u64) -> Header {
        Header { logs_bloom: Box::new(Bloom::repeat_byte(0xff)), ..header(number, 'a') }
    }

    #[tokio::test]
    async fn blocks_at_the_head_are_fetched_at_once_or_together_once_an_interval() {
        const EVERY: Duration = Duration::from_secs(1);
        for batch_every in [None, Some(EVERY)] {
            let nowhere = EndpointConfig::http("http://127.0.0.1:1");
            let mut config = ChainConfig { batch_every, ..ChainConfig::local([nowhere]) };
            config.profile.finality_depth = 2;
            let scene = Scene::of(config).await;
            let mut session = scene.session().await;
            for number in 1..=4 {
                assert!(session.heard(Head::Header(Box::new(with_logs(number)))).is_none());
            }
            let due = Instant::now();
            let before = due - EVERY / 2;
            session.due.batch = due;
            let limits = |session: &Session<'_>, now| {
                session.fetch_limits(now).map(|limits| (limits.up_to, limits.together))
            };
            let is_alone = batch_every.is_none();
            let waiting = if is_alone { (4, 2) } else { (2, 2) };
            assert_eq!(limits(&session, before), Some(waiting));
            assert_eq!(limits(&session, due), Some(if is_alone { (4, 2) } else { (4, 4) }));
            assert_eq!(session.fetches_due(before), (!is_alone).then_some(due));
            assert_eq!(session.fetches_due(due), None, "they could have started");
            session.start_fetches(before);
            assert_eq!(session.fetches.len(), if is_alone { 4 } else { 2 });
            assert_eq!(session.due.batch, due, "none of the head");
            session.start_fetches(due);
            assert_eq!(session.fetches.len(), 4);
            assert_eq!(session.due.batch, if is_alone { due } else { due + EVERY });
            assert_eq!(session.fetches_due(before), None, "nothing is left");
        }
    }

    #[tokio::test]
    async fn g1_what_is_fetched_is_published_and_what_is_not_is_fetched_again() {
        let chain = mined(3);
        let node = serve(chain.clone()).await;
        let scene = Scene::of(ChainConfig::local([EndpointConfig::of(&node)])).await;
        let mut session = scene.session().await;
        for header in scene.chain.node.by_numbers(1..=3).await.unwrap() {
            assert!(session.heard(Head::Header(Box::new(header))).is_none());
        }
        chain.faults().push("eth_getBlockReceipts", Fault::Null, 1);
        while session.published.len() < 3 {
            session.start_fetches(Instant::now() + Duration::from_secs(9));
            let fetched = session.fetches.join_next().await.expect("a fetch is under way");
            session.fetched(fetched);
            session.publish().await;
        }
        let events: u64 = scene.markers().await.iter().map(|marker| marker.events).sum();
        assert_eq!((events, chain.faults().left()), (15, 0));
        assert_eq!(scene.status().events, 15);
        assert_eq!(session.finality.blocks_since, 3);
    }

    #[tokio::test]
    async fn a_block_that_failed_itself_is_fetched_alone_and_after_a_few_times_doubted() {
        for (error, again) in [
            (RpcError::Timeout(Duration::ZERO).into(), vec![1, 2, 3]),
            (NodeError::Unknown, vec![1]),
        ] {
            let mut config = ChainConfig::local([EndpointConfig::http("http://127.0.0.1:1")]);
            (config.fetch, config.profile.finality_depth) = (Fetch::Logs, 2);
            let scene = Scene::of(config).await;
            let mut session = scene.session().await;
            let headers: Vec<_> = (1..=5).map(with_logs).collect();
            session.answered((Ask::Latest, Ok(vec![headers[4].clone()])));
            session.answered((Ask::Numbers(1..=5), Ok(headers.clone())));
            for _ in 0..DOUBT_AFTER {
                assert_eq!(session.ask(), None);
                session.not_fetched(&headers[0].block, &error);
            }
            assert_eq!(session.ask(), Some(Ask::Latest));
            let later = Instant::now() + Duration::from_secs(9);
            let limits = session.fetch_limits(later).unwrap();
            let next = session.queue.next_fetch(&limits, later);
            let numbers: Vec<_> = next.iter().map(|header| header.block.number).collect();
            assert_eq!(numbers, again, "{error}");
        }
    }

    #[tokio::test]
    async fn a_block_is_deep_once_the_head_is_known_to_be_far_above_it() {
        let mut config = ChainConfig::local([]);
        config.profile.finality_depth = 10;
        let scene = Scene::of(config).await;
        let mut session = scene.session().await;
        assert!(!session.is_deep(0), "nothing is known");
        session.head = Some((15, 15));
        assert_eq!([5, 6].map(|number| session.is_deep(number)), [true, false]);
        session.head = Some((9, 9));
        assert!(!session.is_deep(1));
    }

    #[tokio::test]
    async fn the_block_that_holds_the_chain_up_is_the_one_that_is_named() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        let headers = [1, 2].map(with_logs);
        for header in headers.clone() {
            assert!(session.heard(Head::Header(Box::new(header))).is_none());
        }
        let told = || scene.stall().map(|(why, _)| why);
        let mut fails = |block: &BlockRef, times| {
            (0..times).for_each(|_| session.not_fetched(block, &NodeError::Unknown));
            told()
        };
        assert_eq!(fails(&headers[1].block, TROUBLE_AFTER), None, "it only waits");
        assert_eq!(fails(&headers[0].block, TROUBLE_AFTER - 1), None, "it may come yet");
        let why = fails(&headers[0].block, 1).unwrap();
        assert!(why.starts_with("block 1 is not available: "), "{why}");
    }
}
