//! What a session does periodically besides publishing: finality and retention.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ethhook_domain::{BlockRef, Header};
use ethhook_streams::{GroupLag, ReadError, RetentionPolicy, Swept};
use futures_util::FutureExt;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::{Session, gauge};
use crate::chain::Chain;
use crate::node::{Node, NodeError};
use crate::rpc::RpcError;

/// Published blocks between two requests for the finalized block while catching up.
const FINALITY_BLOCKS: u64 = 1024;
/// Least time between regular requests for the finalized block.
const LEAST_FINALITY_EVERY: Duration = Duration::from_secs(30);
const RETENTION_EVERY: Duration = Duration::from_secs(10);
/// Consecutive finalized blocks not on our chain after which every endpoint is asked for its own.
const FOREIGN_TAGS: u32 = 3;
/// How long an ending session waits for its sweep.
const SWEEP: Duration = Duration::from_millis(500);

impl Session<'_> {
    pub(super) fn start_upkeep(&mut self, now: Instant) {
        let chain = self.chain;
        let catching_up = self.since_finality >= FINALITY_BLOCKS;
        let caught_up = self.was_behind && self.is_at_head() && !self.is_backfilling();
        if self.finality.is_none() && (now >= self.due.finality || catching_up || caught_up) {
            self.was_behind = self.is_backfilling();
            self.due.finality = now + chain.finality_every();
            self.since_finality = 0;
            let tip = self.canonical.tip().map(|tip| tip.number);
            let of_all = self.foreign_tags >= FOREIGN_TAGS;
            self.finality = Some(async move { finalized(&chain.node, tip, of_all).await }.boxed());
        }
        if self.sweep.is_none() && now >= self.due.retention {
            self.due.retention = now + RETENTION_EVERY;
            let policy = RetentionPolicy {
                keep: chain.options.retention,
                max_bytes: chain.options.stream_max_bytes,
                following_head: !self.is_backfilling(),
            };
            let (id, streams) = (chain.id(), &chain.streams);
            self.sweep = Some(async move { streams.sweep(id, &policy).await }.boxed());
        }
    }

    /// Takes what endpoints call `finalized`; none where there is no such tag.
    pub(super) fn tagged(&mut self, tags: Result<Vec<Header>, NodeError>) {
        self.finality = None;
        let tags = match tags {
            Ok(tags) => tags,
            Err(error) => {
                // The node did answer: ask again soon, as the error may be temporary.
                if matches!(error, NodeError::Rpc(RpcError::Answer { .. })) {
                    let soon = Instant::now() + LEAST_FINALITY_EVERY;
                    self.due.finality = self.due.finality.min(soon);
                }
                return; // counted where it happened; requested again when due
            }
        };
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
            self.foreign_tags += 1;
        } else {
            self.foreign_tags = 0;
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
        self.finalize = self.canonical.at(number).copied().filter(|_| newer);
    }

    pub(super) fn swept(&mut self, swept: Result<Swept, ReadError>) {
        self.sweep = None;
        let metrics = &self.chain.metrics;
        match swept {
            Ok(swept) => {
                metrics.trimmed.inc_by(swept.trimmed_entries);
                metrics.stream_entries.set(gauge(swept.len));
                metrics.stream_bytes.set(gauge(swept.bytes));
                let full = swept.bytes > self.chain.options.stream_max_bytes;
                self.waits_for_room = full && swept.held_by_group.is_some();
                if self.waits_for_room && self.is_backfilling() {
                    let group = swept.held_by_group.as_deref().unwrap_or_default();
                    warn!(
                        group,
                        "the byte cap is reached and the group has not read: the backfill waits"
                    );
                }
                for (group, entries) in &swept.lost_unread_by_group {
                    error!(
                        group,
                        entries, "the byte cap removed entries that the group had not acknowledged"
                    );
                    metrics.lost_unread(group, *entries);
                    self.chain.status.update(|s| s.lost_unread += entries);
                }
                self.look_at_groups(&swept.groups);
            }
            Err(error) => {
                metrics.redis_error(error.kind());
                warn!(%error, "retention failed");
            }
        }
    }

    /// Waits briefly for a running sweep, since only it knows which unread entries a group has lost. From then
    /// on, the chain's next writer shows the groups.
    pub(super) async fn end_upkeep(&mut self) {
        if let Some(retention) = self.sweep.take()
            && let Ok(swept) = timeout(SWEEP, retention).await
        {
            self.swept(swept);
        }
        self.groups.drain().for_each(|(group, _)| self.chain.metrics.group_gone(&group));
    }

    /// Updates how far each consumer group is behind, and logs once when one stops reading: it
    /// blocks trimming.
    fn look_at_groups(&mut self, lags: &[GroupLag]) {
        let metrics = &self.chain.metrics;
        let mut groups = HashMap::new();
        for lag in lags {
            let is_idle = is_idle(lag, self.chain.options.group_idle_alarm);
            let was_idle = self.groups.remove(&lag.group).unwrap_or(false);
            let (group, hours) = (&lag.group, lag.idle.as_secs() / 3600);
            if is_idle && !was_idle {
                warn!(group, hours, "the consumer group does not read: its entries are kept");
            } else if was_idle && !is_idle {
                info!(group, "the consumer group reads again");
            }
            metrics.group(lag, is_idle);
            groups.insert(lag.group.clone(), is_idle);
        }
        self.groups.keys().for_each(|gone| metrics.group_gone(gone));
        self.groups = groups;
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

/// Whether entries have waited, and no consumer has read, for this long.
fn is_idle(lag: &GroupLag, alarm_after: Duration) -> bool {
    lag.waiting >= alarm_after && lag.idle >= alarm_after
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
    async fn g10_a_finalized_block_that_is_not_ours_makes_nothing_final_and_raises_doubt() {
        let mut scene = Scene::of(ChainConfig::local([])).await;
        let mut session = nine_blocks(&mut scene).await;
        session.tagged(Ok(vec![header(5, 'b')]));
        assert_eq!((session.finalize, session.ask()), (None, Some(Ask::Latest)));
        session.tagged(Ok(vec![header(5, 'a')]));
        assert_eq!(session.finalize, Some(header(5, 'a').block));
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
            session.start_upkeep(session.due.finality);
            let tags = finished(&mut session.finality).await.unwrap();
            tags.iter().map(|tag| tag.block.number).collect::<Vec<_>>()
        };
        for _ in 0..FOREIGN_TAGS {
            assert_eq!(asked(&mut session).await, [6], "that of the first endpoint");
            session.tagged(Ok(vec![header(6, 'b')]));
            assert_eq!((session.finalize, session.ask()), (None, Some(Ask::Latest)));
            session.answered((Ask::Latest, Ok(vec![header(9, 'a')])));
        }
        assert_eq!(asked(&mut session).await, [6, 5]);
        session.tagged(Ok(vec![header(6, 'b'), header(4, 'a'), header(5, 'a')]));
        assert_eq!((session.finalize, session.ask()), (Some(header(5, 'a').block), None));
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
        session.tagged(Err(NodeError::Rpc(RpcError::Timeout(SWEEP))));
        assert_eq!((session.finalize, session.due.finality), (None, later));
        let message = "internal error".to_owned();
        session.tagged(Err(NodeError::Rpc(RpcError::Answer { code: -32603, message })));
        assert_eq!(session.finalize, None);
        assert!(session.due.finality <= Instant::now() + LEAST_FINALITY_EVERY);
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
            assert_eq!(session.finalize, None);
        }
        // Far above the tip: blocks that are not published yet are not marked final.
        session.hear(10..=30);
        session.tagged(Ok(vec![header(28, 'a')]));
        assert_eq!(session.finalize, Some(header(9, 'a').block));
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
        session.since_finality = FINALITY_BLOCKS - 1;
        session.start_upkeep(now);
        assert!(session.finality.is_none());
        session.since_finality += 1;
        session.start_upkeep(now);
        assert!(session.finality.take().is_some());
        session.start_upkeep(now);
        assert!(session.finality.is_none(), "so many blocks again");
        session.start_upkeep(session.due.finality);
        assert!(session.finality.is_some());
    }

    #[tokio::test]
    async fn who_has_caught_up_asks_for_the_finalized_block_at_once_and_once() {
        let mut scene = Scene::of(ChainConfig::local([])).await;
        let mut session = nine_blocks(&mut scene).await;
        let now = Instant::now();
        session.start_upkeep(now);
        assert!(session.finality.take().is_some());
        session.start_upkeep(now);
        assert!(session.finality.is_none(), "not again");
    }

    #[tokio::test]
    async fn who_has_nothing_published_does_not_ask_for_the_finalized_block() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        // The node has not reached the first block.
        session.answered((Ask::Latest, Ok(vec![header(0, 'a')])));
        assert!(session.is_at_head());
        session.start_upkeep(Instant::now());
        assert!(session.finality.is_none());
    }

    #[tokio::test]
    async fn a_group_that_is_gone_and_a_session_that_ended_show_no_lag() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        let swept = |groups: &[&str]| {
            let lag = |group: &&str| GroupLag { group: (*group).to_owned(), ..GroupLag::default() };
            Ok(Swept { groups: groups.iter().map(lag).collect(), ..Swept::default() })
        };
        let shown = |group| {
            let label = format!("group=\"{group}\"");
            let scrape = scene.scrape();
            scrape.lines().filter(|l| l.contains("_group_") && l.contains(&label)).count()
        };
        session.swept(swept(&["one", "two"]));
        assert_eq!((shown("one"), shown("two")), (3, 3));
        session.swept(swept(&["two"]));
        assert_eq!((shown("one"), shown("two")), (0, 3));
        session.end_upkeep().await;
        assert_eq!(shown("two"), 0);
    }

    #[test]
    fn a_group_is_idle_only_if_entries_wait_and_nobody_reads() {
        const HOUR: Duration = Duration::from_secs(3_600);
        let lag = |waiting, idle| GroupLag { waiting, idle, ..GroupLag::default() };
        assert!(is_idle(&lag(HOUR, HOUR), HOUR));
        assert!(!is_idle(&lag(HOUR, HOUR / 2), HOUR), "it reads, and is slow");
        assert!(!is_idle(&lag(HOUR / 2, 9 * HOUR), HOUR), "there was nothing to read for long");
    }
}
