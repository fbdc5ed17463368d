//! The finality of a session's blocks: when the finalized block is requested, and which one is accepted.

use std::time::{Duration, Instant};

use ethhook_domain::{BlockRef, Header};
use futures_util::FutureExt;
use tracing::warn;

use super::{Running, Session};
use crate::chain::Chain;
use crate::node::{Node, NodeError, REFUSED_TAGS};
use crate::rpc::RpcError;

/// Published blocks between two requests for the finalized block while catching up.
const FINALITY_BLOCKS: u64 = 1024;
/// The least of them where the byte cap is reached: only what is final makes room.
const FEWEST_BLOCKS: u64 = 16;
/// Least time between regular requests for the finalized block.
const LEAST_FINALITY_EVERY: Duration = Duration::from_secs(30);
/// How long to wait after `null` for the finalized block: a few in a row mean that there is none.
const NO_TAG_AGAIN: Duration = Duration::from_secs(2);
/// Consecutive finalized blocks not on our chain after which every endpoint is asked for its own.
const FOREIGN_TAGS: u32 = 3;

/// What a session knows of the node's finalized block.
pub(super) struct Finality<'a> {
    pub(super) asking: Running<'a, Result<Vec<Header>, NodeError>>,
    /// Blocks published since it was last requested.
    pub(super) blocks_since: u64,
    /// Consecutive answers whose finalized block is not on our chain.
    foreign_tags: u32,
    /// Consecutive answers that no endpoint has one.
    missing: u32,
    /// The tip was far behind the head when it was last requested.
    was_behind: bool,
    /// Height of the newest block marked final.
    pub(super) reached: Option<u64>,
    /// The block to mark final next.
    pub(super) next: Option<BlockRef>,
}

impl Finality<'_> {
    /// What is known from a cursor alone, whose finalized block is at height `reached`.
    pub(super) fn since(reached: Option<u64>) -> Self {
        Self {
            asking: None,
            blocks_since: 0,
            foreign_tags: 0,
            missing: 0,
            was_behind: true,
            reached,
            next: None,
        }
    }
}

impl Session<'_> {
    pub(super) fn start_asking_for_finalized(&mut self, now: Instant) {
        let chain = self.chain;
        let needs_room = self.retention.room_is_used_up() && self.is_backfilling();
        let enough = if needs_room { FEWEST_BLOCKS } else { FINALITY_BLOCKS };
        let catching_up = self.finality.blocks_since >= enough;
        let caught_up = self.finality.was_behind
            && !self.published.is_empty()
            && self.is_at_head()
            && !self.is_backfilling();
        let is_time = now >= self.due.finality || catching_up || caught_up;
        if is_time && self.finality.asking.is_none() && !self.end_is_final() {
            self.finality.was_behind = self.is_backfilling();
            self.due.finality = now + chain.finality_every();
            self.finality.blocks_since = 0;
            let tip = self.canonical.tip().map(|tip| tip.number);
            let of_all = self.finality.foreign_tags >= FOREIGN_TAGS;
            self.finality.asking =
                Some(async move { finalized(&chain.node, tip, of_all).await }.boxed());
        }
    }

    /// Takes what endpoints call `finalized`; none where there is no such tag.
    pub(super) fn tagged(&mut self, tags: Result<Vec<Header>, NodeError>) {
        self.finality.asking = None;
        let tags = match tags {
            Ok(tags) => tags,
            Err(error) => {
                // The node did answer: ask again soon, as the error may be temporary.
                let soon = match error {
                    NodeError::Unknown if self.finality.missing < REFUSED_TAGS => {
                        self.finality.missing += 1;
                        Some(NO_TAG_AGAIN)
                    }
                    NodeError::Unknown | NodeError::Rpc(RpcError::Answer { .. }) => {
                        Some(LEAST_FINALITY_EVERY)
                    }
                    _ => None,
                };
                if let Some(soon) = soon {
                    self.due.finality = self.due.finality.min(Instant::now() + soon);
                }
                return; // counted where it happened; requested again when due
            }
        };
        self.finality.missing = 0;
        let (Some(tip), Some(published)) = (self.canonical.tip(), self.published.back()) else {
            return;
        };
        let is_foreign = |tag: &BlockRef| {
            self.canonical.at(tag.number).is_some_and(|ours| ours.hash != tag.hash)
        };
        let (foreign, ours): (Vec<_>, Vec<_>) =
            tags.iter().map(|header| header.block).partition(is_foreign);
        if let Some(tag) = foreign.first() {
            warn!(%tag, "a node's finalized block is not on our chain: not accepted");
            self.finality.foreign_tags += 1;
        } else {
            self.finality.foreign_tags = 0;
        }
        let tag = ours.iter().max_by_key(|tag| tag.number);
        if tag.is_none() && !foreign.is_empty() {
            self.canonical.doubt();
            return;
        }
        let profile = &self.chain.config.profile;
        let newest = profile.newest_final(tip.number, tag.map(|tag| tag.number));
        let Some(number) = newest.map(|newest| newest.min(published.block.number)) else { return };
        let held = self.published.front().map_or(0, |first| first.block.number);
        let newer = number > held || !self.canonical.is_finalized();
        self.finality.next = self.canonical.at(number).copied().filter(|_| newer);
    }
}

/// The node's finalized block, or that of each endpoint. One above `tip` cannot be compared, and is replaced by the
/// node's block at that height.
async fn finalized(node: &Node, tip: Option<u64>, of_all: bool) -> Result<Vec<Header>, NodeError> {
    let mut tags = if of_all {
        node.each_finalized().await?
    } else {
        node.finalized().await?.into_iter().collect()
    };
    for tag in &mut tags {
        if let Some(tip) = tip.filter(|tip| tag.block.number > *tip) {
            *tag = node.by_numbers(tip..=tip).await?.pop().ok_or(NodeError::Unknown)?;
        }
    }
    Ok(tags)
}

impl Chain {
    /// How often the finalized block is requested: every 32 blocks, but at most every 30 s.
    pub(super) fn finality_every(&self) -> Duration {
        (32 * self.config.profile.block_time).max(LEAST_FINALITY_EVERY)
    }
}

#[cfg(test)]
mod tests {
    use ethhook_domain::canonical::Ask;
    use ethhook_streams::Swept;

    use super::super::finished;
    use super::super::scene::{Scene, header};
    use super::*;
    use crate::config::{ChainConfig, EndpointConfig};
    use crate::testing::{mined, serve};

    /// A session that has published blocks 1 to 9 of a chain with a finality depth of 2.
    async fn nine_blocks(scene: &mut Scene) -> Session<'_> {
        scene.chain.config.profile.finality_depth = 2;
        let mut session = scene.session().await;
        session.hear(1..=9);
        session.publish().await;
        session.answered((Ask::Latest, Ok(vec![header(9, 'a')])));
        assert_eq!(session.ask(), None);
        session
    }

    #[tokio::test]
    async fn g7_a_backfill_at_the_byte_cap_asks_for_finality_early_and_waits_for_it() {
        let due = Duration::ZERO;
        let later = Duration::from_secs(60);
        for (blocks, head, is_full, finality_in, asks, waits) in [
            (15, 40, true, later, false, false),
            (16, 40, true, later, true, true),
            (16, 40, false, later, false, false),
            (16, 40, false, due, true, false),
            (16, 16, true, later, false, false),
        ] {
            let what = format!("{blocks} blocks of {head}, full: {is_full}, in {finality_in:?}");
            let found =
                || Swept { bytes: if is_full { 99 } else { 9 }, max_bytes: 99, ..Swept::default() };
            let mut scene = Scene::of(ChainConfig::local([])).await;
            scene.chain.config.profile.finality_depth = 2;
            let mut session = scene.session().await;
            session.hear(1..=blocks);
            session.publish().await;
            session.head = Some((head, head));
            (session.finality.was_behind, session.due.finality) =
                (false, Instant::now() + finality_in);
            session.sweep(Ok(found()));
            if is_full {
                session.retention.wrote(1);
            }
            session.start_asking_for_finalized(Instant::now());
            assert_eq!(session.finality.asking.is_some(), asks, "{what}");
            session.sweep(Ok(found()));
            assert_eq!(session.backfill_waits(), waits, "{what}");
            session.tagged(Ok(vec![]));
            assert!(!session.backfill_waits(), "{what}");
        }
    }

    #[tokio::test]
    async fn g10_a_finalized_block_that_is_not_ours_makes_nothing_final_and_raises_doubt() {
        let mut scene = Scene::of(ChainConfig::local([])).await;
        let mut session = nine_blocks(&mut scene).await;
        session.tagged(Ok(vec![header(5, 'b')]));
        assert_eq!((session.finality.next, session.ask()), (None, Some(Ask::Latest)));
        session.tagged(Ok(vec![header(5, 'a')]));
        assert_eq!(session.finality.next, Some(header(5, 'a').block));
    }

    #[tokio::test]
    async fn null_for_the_finalized_block_is_asked_again_soon_only_twice() {
        let mut scene = Scene::of(ChainConfig::local([])).await;
        scene.chain.config.profile.block_time = Duration::from_secs(12);
        let mut session = nine_blocks(&mut scene).await;
        for wait in [NO_TAG_AGAIN, NO_TAG_AGAIN, LEAST_FINALITY_EVERY, LEAST_FINALITY_EVERY] {
            let now = Instant::now();
            session.due.finality = now + Duration::from_secs(384);
            session.tagged(Err(NodeError::Unknown));
            let after = session.due.finality - now;
            assert!(after >= wait && after < wait + Duration::from_secs(1), "{after:?}");
        }
        session.tagged(Ok(vec![]));
        session.tagged(Err(NodeError::Unknown));
        assert!(session.due.finality <= Instant::now() + NO_TAG_AGAIN);
    }

    #[tokio::test]
    async fn g10_where_one_endpoint_keeps_calling_a_foreign_block_final_another_is_believed() {
        let (wrong, right) = (mined(9), mined(9));
        wrong.set_finalized(6);
        right.set_finalized(5);
        let nodes = [serve(wrong).await, serve(right.clone()).await];
        let mut scene =
            Scene::of(ChainConfig::local(nodes.each_ref().map(EndpointConfig::of))).await;
        scene.chain.config.profile.finality_depth = 2;
        let mut session = scene.session().await;
        session.hear(1..=9);
        session.publish().await;
        session.answered((Ask::Latest, Ok(vec![header(9, 'a')])));
        let asked = async |session: &mut Session<'_>| {
            session.start_asking_for_finalized(session.due.finality);
            let tags = finished(&mut session.finality.asking).await.unwrap();
            tags.iter().map(|tag| tag.block.number).collect::<Vec<_>>()
        };
        for _ in 0..FOREIGN_TAGS {
            assert_eq!(asked(&mut session).await, [6], "that of the first endpoint");
            session.tagged(Ok(vec![header(6, 'b')]));
            assert_eq!((session.finality.next, session.ask()), (None, Some(Ask::Latest)));
            session.answered((Ask::Latest, Ok(vec![header(9, 'a')])));
        }
        assert_eq!(asked(&mut session).await, [6, 5]);
        session.tagged(Ok(vec![header(6, 'b'), header(4, 'a'), header(5, 'a')]));
        assert_eq!((session.finality.next, session.ask()), (Some(header(5, 'a').block), None));
        assert_eq!(asked(&mut session).await, [6, 5], "as long as one of them is foreign");
        session.tagged(Ok(vec![header(5, 'a')]));
        assert_eq!(asked(&mut session).await, [6]);
    }

    #[tokio::test]
    async fn g10_an_error_makes_nothing_final_and_is_asked_about_soon() {
        let mut scene = Scene::of(ChainConfig::local([])).await;
        let mut session = nine_blocks(&mut scene).await;
        let later = Instant::now() + Duration::from_secs(600);
        session.due.finality = later;
        session.tagged(Err(NodeError::Rpc(RpcError::Timeout(LEAST_FINALITY_EVERY))));
        assert_eq!((session.finality.next, session.due.finality), (None, later));
        let message = "internal error".to_owned();
        session.tagged(Err(NodeError::Rpc(RpcError::Answer { code: -32603, message })));
        assert_eq!(session.finality.next, None);
        let (due, now) = (session.due.finality, Instant::now());
        assert!(due > now && due <= now + LEAST_FINALITY_EVERY);
    }

    #[tokio::test]
    async fn g10_what_is_final_never_moves_back_and_is_published() {
        let mut scene = Scene::of(ChainConfig::local([])).await;
        let mut session = nine_blocks(&mut scene).await;
        session.tagged(Ok(vec![header(6, 'a')]));
        session.publish().await;
        assert_eq!(session.published.front().unwrap().block, header(6, 'a').block);
        for older in [5, 6] {
            session.tagged(Ok(vec![header(older, 'a')]));
            assert_eq!(session.finality.next, None);
        }
        // Far above the tip: blocks that are not published yet are not marked final.
        session.hear(10..=30);
        session.tagged(Ok(vec![header(28, 'a')]));
        assert_eq!(session.finality.next, Some(header(9, 'a').block));
    }

    #[tokio::test]
    async fn a_finalized_block_above_the_tip_is_compared_at_the_tip() {
        let chain = mined(20);
        chain.set_finalized(15);
        let node = serve(chain.clone()).await;
        let scene = Scene::of(ChainConfig::local([EndpointConfig::of(&node)])).await;
        for (tip, compared) in [(None, 15), (Some(18), 15), (Some(15), 15), (Some(10), 10)] {
            let found = finalized(&scene.chain.node, tip, false).await.unwrap().remove(0);
            assert_eq!(found.block.hash, chain.block(compared).unwrap().hash(), "{tip:?}");
        }
    }

    #[tokio::test]
    async fn who_catches_up_asks_for_the_finalized_block_by_what_it_published() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        let now = Instant::now();
        session.finality.blocks_since = FINALITY_BLOCKS - 1;
        session.start_asking_for_finalized(now);
        assert!(session.finality.asking.is_none());
        session.finality.blocks_since += 1;
        session.start_asking_for_finalized(now);
        assert!(session.finality.asking.take().is_some());
        session.start_asking_for_finalized(now);
        assert!(session.finality.asking.is_none(), "so many blocks again");
        session.start_asking_for_finalized(session.due.finality);
        assert!(session.finality.asking.is_some());
    }

    #[tokio::test]
    async fn who_has_caught_up_asks_for_the_finalized_block_at_once_and_once() {
        let mut scene = Scene::of(ChainConfig::local([])).await;
        let mut session = nine_blocks(&mut scene).await;
        let now = Instant::now();
        session.start_asking_for_finalized(now);
        assert!(session.finality.asking.take().is_some());
        session.start_asking_for_finalized(now);
        assert!(session.finality.asking.is_none(), "not again");
    }

    #[tokio::test]
    async fn who_has_nothing_published_does_not_ask_for_the_finalized_block() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        // The node has not reached the first block.
        session.answered((Ask::Latest, Ok(vec![header(0, 'a')])));
        assert!(session.is_at_head());
        session.start_asking_for_finalized(Instant::now());
        assert!(session.finality.asking.is_none());
    }
}
