//! Opens a session: lease, cursor and the published window, or the reason why that is not possible.

use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::B256;
use ethhook_domain::{BlockRef, CanonicalChain, Cursor};
use ethhook_streams::{FailureKind, Holder, OpenError, PublishedBlock, Publisher, ReadError};
use tokio::sync::OwnedSemaphorePermit;

use super::Chain;
use crate::backoff::endless_backoff;
use crate::config::StartBlock;
use crate::node::NodeError;
use crate::status::{Cause, Needs};

/// How often a chain that waits for an operator checks whether it may continue.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The starting state of a session.
pub(super) struct Opened {
    pub(super) publisher: Publisher,
    pub(super) canonical: CanonicalChain,
    pub(super) published: Vec<PublishedBlock>,
    /// Released when the session ends, so that another chain can be opened instead.
    pub(super) _permit: OwnedSemaphorePermit,
}

/// Why a session could not be opened.
#[derive(Debug)]
struct NotYet {
    why: String,
    needs: Needs,
    /// When to try again; none for a growing backoff.
    again_in: Option<Duration>,
}

impl NotYet {
    /// A temporary failure if it `passes`; otherwise one that needs an operator.
    fn because(why: impl ToString, passes: bool) -> Self {
        let (needs, again_in) =
            if passes { (Needs::Time, None) } else { (Needs::Operator, Some(LOOK_AGAIN)) };
        Self { why: why.to_string(), needs, again_in }
    }
}

impl Chain {
    /// Tries until a session is open.
    pub(super) async fn open(&mut self) -> Opened {
        let mut backoff = endless_backoff(Duration::from_millis(100), LOOK_AGAIN);
        loop {
            let Ok(permit) = Arc::clone(&self.chain_permits).try_acquire_owned() else {
                let why = "standing by: this instance has as many chains as MAX_CHAINS_PER_INSTANCE allows";
                self.status.stalled(Cause::Opening, why.to_owned(), Needs::Turn);
                if let Ok(held) = self.streams.cursor(self.id()).await {
                    self.show_alarm(held.as_ref());
                }
                tokio::time::sleep(self.options.renew_every()).await;
                continue;
            };
            match self.try_open(permit).await {
                Ok(opened) => {
                    // Only a successful step shows that Redis no longer refuses one.
                    self.status.clear_all_but(Cause::Refusal);
                    return opened;
                }
                Err(NotYet { why, needs, again_in }) => {
                    self.status.stalled(Cause::Opening, why, needs);
                    let wait = again_in.or_else(|| backoff.next()).unwrap_or(LOOK_AGAIN);
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    async fn try_open(&mut self, permit: OwnedSemaphorePermit) -> Result<Opened, NotYet> {
        let held = self.read_cursor().await?;
        // Checked before asking the node anything, because a standby comes here again and again.
        self.check_lease_is_free().await?;
        check_alarm(held.as_ref())?;
        let genesis = self.identify_node(held.as_ref()).await?;
        let first = match held {
            Some(_) => None,
            None => Some(self.first_cursor(genesis).await?),
        };
        self.check_end(held.as_ref().or(first.as_ref()))?;
        let publisher = self.take_lease(first).await?;
        self.restore(publisher, permit).await
    }

    /// The cursor in Redis; none if the stream has not begun, or is lost.
    async fn read_cursor(&mut self) -> Result<Option<Cursor>, NotYet> {
        let held = self.streams.cursor(self.id()).await.map_err(|error| self.not_read(&error))?;
        if let Some(cursor) = &held {
            // A standby may be the first to find Redis wiped.
            self.resolved_start = Some(cursor.start_number);
            self.has_begun = true;
        }
        self.look_for_reset().await?;
        self.tell_of_loss(held.as_ref());
        self.show_alarm(held.as_ref());
        Ok(held)
    }

    /// Refuses while another instance holds the lease.
    async fn check_lease_is_free(&self) -> Result<(), NotYet> {
        let holder = self.streams.lease_holder(self.id()).await;
        match holder.map_err(|error| self.not_read(&error))? {
            Some(other) if other.owner != self.options.instance_id => Err(self.standing_by(&other)),
            _ => Ok(()),
        }
    }

    /// The node's genesis block, which must be the one of the cursor that Redis holds.
    async fn identify_node(&self, held: Option<&Cursor>) -> Result<Option<B256>, NotYet> {
        let expected = held.and_then(|cursor| cursor.genesis_hash);
        let genesis = self.node.identify(expected).await.map_err(|e| self.node_away(&e))?;
        self.status.update(|status| status.last_answer = Some(Instant::now()));
        Ok(genesis)
    }

    /// The cursor with which a stream begins.
    async fn first_cursor(&mut self, genesis: Option<B256>) -> Result<Cursor, NotYet> {
        let start = self.resolve_start().await?;
        let first = Cursor::starting_at(start, genesis, self.config.filter.digest());
        Ok(first.encoded(self.options.encoding))
    }

    /// Takes the lease, and begins the stream with the cursor `first` if Redis holds none.
    async fn take_lease(&mut self, first: Option<Cursor>) -> Result<Publisher, NotYet> {
        let is_first = first.is_some();
        let opened =
            Publisher::open(&self.streams, self.id(), self.options.for_writer(), first).await;
        let publisher = opened.map_err(|error| self.not_open(&error))?;
        let cursor = publisher.cursor();
        let start = cursor.start_number;
        self.epoch = Some(cursor.epoch);
        if is_first && self.has_begun {
            tracing::warn!(start, "starting over at the block where this process began");
        }
        (self.resolved_start, self.has_begun) = (Some(start), true);
        if let StartBlock::Number(configured) = self.config.start
            && configured != start
        {
            let started = start;
            tracing::info!(configured, started, "START_BLOCK is not used: the stream has started");
        }
        Ok(publisher)
    }

    /// Rebuilds the canonical chain from the published window.
    async fn restore(
        &self,
        mut publisher: Publisher,
        permit: OwnedSemaphorePermit,
    ) -> Result<Opened, NotYet> {
        let cursor = publisher.cursor();
        let published = match self.streams.window(self.id(), cursor).await {
            Ok(published) => published,
            Err(error) => {
                if !error.is_retryable() {
                    publisher.release().await; // the operator writes next
                }
                return Err(self.not_read(&error));
            }
        };
        let base = base(cursor, published.first().map(|first| first.block));
        let canonical = CanonicalChain::new(
            cursor.start_number,
            base.into_iter().chain(published.iter().map(|p| p.block)),
            // An operator may have moved finality back to below the first block.
            cursor.finalized().is_some_and(|number| number >= cursor.start_number)
                || base.is_some(),
        );
        let tip = published.last().map(|p| p.block.number);
        self.status.update(|status| status.tip = tip);
        Ok(Opened { publisher, canonical, published, _permit: permit })
    }

    fn show_alarm(&self, held: Option<&Cursor>) {
        self.metrics.alarm.set(held.is_some_and(|held| !held.alarm.is_empty()).into());
    }

    /// Refuses an end block below the first block of a stream that has none yet.
    fn check_end(&self, cursor: Option<&Cursor>) -> Result<(), NotYet> {
        let (Some(cursor), Some(end)) = (cursor, self.config.end_block) else { return Ok(()) };
        let start = cursor.start_number;
        if cursor.hash.is_some() || end >= start {
            return Ok(());
        }
        let why = format!(
            "END_BLOCK {end} is below the first block {start}, so nothing would be published"
        );
        Err(NotYet::because(why, false))
    }

    /// After an operator's reset, forgets the state from before.
    async fn look_for_reset(&mut self) -> Result<(), NotYet> {
        let reset = self.streams.last_reset(self.id()).await;
        let reset = reset.map_err(|error| self.not_read(&error))?;
        if reset.is_some() && reset != self.last_reset {
            self.streams.forget_seq(self.id());
            (self.resolved_start, self.has_begun) = (None, false);
        }
        self.last_reset = reset;
        Ok(())
    }

    /// Logs and counts a loss of steps that Redis had acknowledged to this process.
    fn tell_of_loss(&self, held: Option<&Cursor>) {
        let Some(acknowledged) = self.streams.last_seq(self.id()) else { return };
        match held {
            Some(cursor) if cursor.seq >= acknowledged => return,
            Some(cursor) => {
                self.metrics.rollbacks.inc();
                tracing::error!(
                    acknowledged_seq = acknowledged,
                    held_seq = cursor.seq,
                    tip = cursor.number,
                    "Redis lost steps that it had acknowledged: publishing them again"
                );
            }
            None => {
                self.metrics.wipes.inc();
                tracing::error!(
                    acknowledged_seq = acknowledged,
                    "Redis was wiped, or somebody deleted the chain's cursor"
                );
            }
        }
        // Once is enough, however long it takes to open the next session.
        self.streams.forget_seq(self.id());
    }

    /// The stream's first block; resolved once and kept.
    async fn resolve_start(&mut self) -> Result<u64, NotYet> {
        let start = match (self.resolved_start, self.config.start) {
            (Some(start), _) => start,
            (None, StartBlock::Number(number)) => number,
            (None, StartBlock::Latest) => {
                self.node.latest().await.map_err(|e| self.node_away(&e))?.block.number
            }
        };
        self.resolved_start = Some(start);
        Ok(start)
    }

    fn not_read(&self, error: &ReadError) -> NotYet {
        self.metrics.redis_error(error.kind());
        NotYet::because(self.advising(error), error.is_retryable())
    }

    fn node_away(&self, error: &NodeError) -> NotYet {
        let reason = error.reason();
        let why = if error.is_wrong_genesis() {
            format!(
                "{reason}: correct its URL, or if a dev node was restarted, `ethhook reset --chain {}` deletes the \
                 old stream",
                self.config.profile.name
            )
        } else {
            format!("no endpoint answers: {reason}")
        };
        NotYet::because(why, !error.is_wrong_chain())
    }

    fn standing_by(&self, holder: &Holder) -> NotYet {
        let longest = self.options.renew_every();
        NotYet {
            why: format!("standing by: `{}` holds the lease", holder.owner),
            needs: Needs::Turn,
            again_in: holder.remaining.map(|left| left.clamp(Duration::from_millis(100), longest)),
        }
    }

    fn not_open(&self, error: &OpenError) -> NotYet {
        if let OpenError::LeaseHeld(holder) = error {
            return self.standing_by(holder);
        }
        self.metrics.redis_error(error.kind());
        let not_yet = NotYet::because(self.advising(error), error.is_retryable());
        match error {
            OpenError::Redis(failure) if failure.kind == FailureKind::OutOfMemory => {
                NotYet { needs: Needs::Room, ..not_yet }
            }
            _ => not_yet,
        }
    }
}

/// The block below the published window, if the window begins with neither the first nor the
/// finalized block: the last block that an operator skipped, or a finalized one that retention
/// removed. Like a finalized block, it can no longer be taken back.
fn base(cursor: &Cursor, first: Option<BlockRef>) -> Option<BlockRef> {
    let (number, hash) = match first {
        None => (cursor.number, cursor.hash?),
        Some(first) if first.number == cursor.start_number => return None,
        Some(first) if cursor.finalized_hash == Some(first.hash) => return None,
        Some(first) => (first.number.checked_sub(1)?, first.parent_hash),
    };
    // Its parent and time are never used.
    Some(BlockRef { number, hash, parent_hash: B256::ZERO, timestamp: 0 })
}

/// Only an operator can clear an alarm.
fn check_alarm(held: Option<&Cursor>) -> Result<(), NotYet> {
    match held {
        Some(cursor) if !cursor.alarm.is_empty() => {
            Err(NotYet::because(format!("stopped by an alarm: {}", cursor.alarm), false))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use ethhook_domain::canonical::FinalityViolation;
    use ethhook_domain::{Proof, Secret};
    use ethhook_simulator::{Chain as Simulated, ManualChain, ManualSpec};
    use ethhook_streams::{Events, MarkedBlock, RedisConfig, RedisFailure, Step, Streams};
    use tokio::time::timeout;

    use super::super::session::scene::{Scene, header};
    use super::*;
    use crate::config::{ChainConfig, EndpointConfig};
    use crate::rpc::RpcError;
    use crate::testing::{LOCAL, mined, serve};

    #[tokio::test]
    async fn g1_whoever_stood_by_begins_a_wiped_redis_where_the_other_had_begun() {
        let chain = mined(20);
        let node = serve(chain.clone()).await;
        let mut config = ChainConfig::local([EndpointConfig::of(&node)]);
        config.start = StartBlock::Latest;
        let (mut one, mut two) = (Scene::of(config.clone()).await, Scene::of(config).await);
        // As in another process, which has its own memory.
        let redis = RedisConfig::new(Secret::new(one.redis.url()));
        two.chain.streams = Streams::new(redis).unwrap();
        two.chain.options.instance_id = "two".into();
        let opened = one.chain.open().await;
        assert_eq!(opened.publisher.cursor().start_number, 20);
        let stands_by = timeout(Duration::from_secs(1), two.chain.open()).await;
        assert!(stands_by.is_err());
        chain.mine(10);
        one.redis.ask::<String>("FLUSHALL").await.unwrap();
        assert_eq!(two.chain.open().await.publisher.cursor().start_number, 20);
    }

    #[tokio::test]
    async fn an_end_below_the_first_block_is_told_while_nothing_is_published() {
        let node = serve(mined(20)).await;
        let config = ChainConfig {
            start: StartBlock::Latest,
            end_block: Some(12),
            ..ChainConfig::local([EndpointConfig::of(&node)])
        };
        let mut scene = Scene::of(config).await;
        let told = try_open(&mut scene).await.err().unwrap();
        assert!(told.why.starts_with("END_BLOCK 12 is below the first block 20"), "{}", told.why);
        assert_eq!(told.needs, Needs::Operator);
        scene.chain.config.end_block = Some(20);
        let mut publisher = try_open(&mut scene).await.unwrap().publisher;
        publisher.apply(&add(&header(20, 'a').block)).await.unwrap();
        drop(publisher);
        scene.chain.config.end_block = Some(12);
        assert!(try_open(&mut scene).await.is_ok(), "the newest published block is the last one");
    }

    #[tokio::test]
    async fn g6_an_endpoint_with_another_genesis_is_not_used() {
        let ours = mined(20);
        let of_genesis = |seed| ManualSpec { seed, genesis_time: seed, ..ManualSpec::new(LOCAL) };
        let other = Simulated::manual(of_genesis(7));
        other.mine(30);
        let nodes = [serve(other.clone()).await, serve(ours.clone()).await];
        let config = ChainConfig::local(nodes.each_ref().map(EndpointConfig::of));
        let mut scene = Scene::of(config).await;
        let hash = |chain: &ManualChain| chain.block(0).unwrap().hash();
        scene.chain.node.identify(Some(hash(&ours))).await.unwrap();
        let unknown = scene.chain.node.by_hash(B256::ZERO).await;
        assert!(matches!(unknown, Err(NodeError::Unknown)), "what the right one says counts");
        // The cursor tells which one it must be; without one, it is that of the first endpoint that answers.
        for (expected, head) in [(Some(hash(&ours)), 20), (Some(hash(&other)), 30), (None, 30)] {
            scene.chain.node.identify(expected).await.unwrap();
            assert_eq!(scene.chain.node.latest().await.unwrap().block.number, head);
            assert_eq!(scene.chain.node.highest_latest(None).await.unwrap().block.number, head);
        }
        let opened = scene.chain.open().await;
        assert_eq!(opened.publisher.cursor().genesis_hash, Some(hash(&other)));
        drop(opened);
        let refused = scene.chain.node.identify(Some(B256::ZERO)).await.unwrap_err();
        let told = scene.chain.node_away(&refused).why;
        assert!(told.contains("the node's genesis block is 0x"), "{told}");
        assert!(told.contains("`ethhook reset --chain local`"), "{told}");
    }

    #[tokio::test]
    async fn g10_finality_that_went_back_below_the_first_block_leaves_none_final() {
        let node = serve(mined(3)).await;
        let mut scene = Scene::of(ChainConfig::local([EndpointConfig::of(&node)])).await;
        let mut publisher = scene.publisher().await;
        let [zero, one] = [0, 1].map(|number| header(number, 'a').block);
        publisher.apply(&add(&one)).await.unwrap();
        publisher.apply(&Step::Finalized { block: &one }).await.unwrap();
        let mut opened = scene.chain.open().await;
        let told =
            |opened: &mut Opened| (0..3).find_map(|_| opened.canonical.told(header(1, 'b')).err());
        assert_eq!(
            told(&mut opened).map(|violation| *violation),
            Some(FinalityViolation { finalized: one, theirs: header(1, 'b').block })
        );
        opened.publisher.apply(&Step::Alarm { text: "as it is" }).await.unwrap();
        opened.publisher.apply(&Step::Retreat { to: MarkedBlock::from(&zero) }).await.unwrap();
        drop(opened);
        let mut opened = scene.chain.open().await;
        assert!(!opened.canonical.is_finalized());
        assert!(told(&mut opened).is_none());
    }

    #[tokio::test]
    async fn g10_an_alarm_is_told_also_while_no_node_answers() {
        let mut scene = Scene::of(ChainConfig::local([])).await;
        let mut publisher = scene.publisher().await;
        publisher.apply(&Step::Alarm { text: "a reorg" }).await.unwrap();
        publisher.release().await;
        let told = try_open(&mut scene).await.err().unwrap();
        assert_eq!(told.why, "stopped by an alarm: a reorg");
        assert_eq!(scene.chain.metrics.alarm.get(), 1);
        // Also where the chain is left to another instance.
        scene.redis.ask::<i64>("HSET cursor:{events:31337} alarm ").await.unwrap();
        let _permit = Arc::clone(&scene.chain.chain_permits).try_acquire_owned().unwrap();
        assert!(timeout(Duration::from_millis(500), scene.chain.open()).await.is_err());
        assert_eq!(scene.chain.metrics.alarm.get(), 0);
    }

    #[tokio::test]
    async fn a_stream_that_has_begun_keeps_its_first_block_whatever_is_configured() {
        let node = serve(mined(9)).await;
        let config = ChainConfig::local([EndpointConfig::of(&node)]);
        let mut scene = Scene::of(ChainConfig { start: StartBlock::Number(5), ..config }).await;
        drop(scene.publisher().await); // begins with block 1
        for start in [StartBlock::Number(5), StartBlock::Latest] {
            scene.chain.config.start = start;
            assert_eq!(scene.chain.open().await.publisher.cursor().start_number, 1);
        }
    }

    #[tokio::test]
    async fn keys_without_a_cursor_are_refused_with_the_command_that_deletes_them() {
        let node = serve(mined(3)).await;
        let mut scene = Scene::of(ChainConfig::local([EndpointConfig::of(&node)])).await;
        scene.redis.ask::<String>("XADD events:31337 * a b").await.unwrap();
        let told = try_open(&mut scene).await.err().unwrap();
        assert_eq!(told.needs, Needs::Operator);
        let why =
            "no cursor, but data is left in events:31337: `ethhook reset --chain local` deletes it";
        assert_eq!(told.why, why);
    }

    #[tokio::test]
    async fn a_chain_that_needs_a_reset_does_not_hold_its_lease() {
        let node = serve(mined(3)).await;
        let mut scene = Scene::of(ChainConfig::local([EndpointConfig::of(&node)])).await;
        let mut publisher = scene.publisher().await;
        for number in 1..=2 {
            publisher.apply(&add(&header(number, 'a').block)).await.unwrap();
        }
        publisher.release().await;
        scene.redis.ask::<u64>("XTRIM blocks:{events:31337} MAXLEN 1").await.unwrap();
        let told = try_open(&mut scene).await.err().unwrap();
        assert_eq!(told.needs, Needs::Operator, "{}", told.why);
        assert!(scene.chain.streams.lease_holder(scene.chain.id()).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_stream_has_begun_once_it_was_seen_and_until_it_is_reset() {
        let node = serve(mined(3)).await;
        let mut scene = Scene::of(ChainConfig::local([EndpointConfig::of(&node)])).await;
        scene.redis.ask::<String>("SET events:31337 foreign").await.unwrap();
        assert!(try_open(&mut scene).await.is_err());
        assert!(scene.chain.resolved_start.is_some() && !scene.chain.has_begun);
        scene.redis.ask::<i64>("DEL events:31337").await.unwrap();
        try_open(&mut scene).await.unwrap().publisher.release().await;
        assert!(scene.chain.has_begun);
        scene.chain.streams.reset(scene.chain.id()).await.unwrap();
        scene.chain.look_for_reset().await.unwrap();
        assert!(scene.chain.resolved_start.is_none() && !scene.chain.has_begun);
    }

    async fn try_open(scene: &mut Scene) -> Result<Opened, NotYet> {
        let permit = Arc::clone(&scene.chain.chain_permits).try_acquire_owned().unwrap();
        scene.chain.try_open(permit).await
    }

    /// The step that adds a block without events.
    fn add(block: &BlockRef) -> Step<'_> {
        static NONE: LazyLock<Events> = LazyLock::new(Events::default);
        Step::Add { block, events: &NONE, proof: Proof::Bloom, filter: "all", is_deep: false }
    }

    #[test]
    fn the_block_below_a_window_counts_as_final_unless_the_window_begins_where_it_may() {
        let mut cursor = Cursor::starting_at(5, None, "all".to_owned());
        let first = header(9, 'a').block;
        let base =
            |cursor: &Cursor, first| base(cursor, first).map(|base| (base.number, base.hash));
        assert_eq!(base(&cursor, None), None, "nothing is published");
        (cursor.number, cursor.hash) = (9, Some(first.hash));
        assert_eq!(base(&cursor, None), Some((9, first.hash)), "everything was skipped");
        assert_eq!(base(&cursor, Some(first)), Some((8, first.parent_hash)));
        cursor.finalized_hash = Some(first.hash);
        assert_eq!(base(&cursor, Some(first)), None);
        (cursor.finalized_hash, cursor.start_number) = (None, 9);
        assert_eq!(base(&cursor, Some(first)), None);
    }

    #[tokio::test]
    async fn what_a_chain_that_is_not_open_waits_for_is_told_and_looked_at_again() {
        let chain = Scene::of(ChainConfig::local([])).await.chain;
        let ttl = chain.options.lease_ttl;
        let redis = |kind| OpenError::Redis(RedisFailure { kind, detail: "no".to_owned() });
        let held = |remaining| OpenError::LeaseHeld(Holder { owner: "one".to_owned(), remaining });
        let wrong_chain = RpcError::WrongChain { wanted: 1, got: 2 };
        for (not_yet, needs, again_in) in [
            (chain.node_away(&NodeError::Unknown), Needs::Time, None),
            (chain.node_away(&wrong_chain.into()), Needs::Operator, Some(LOOK_AGAIN)),
            (chain.not_open(&redis(FailureKind::ReadOnly)), Needs::Time, None),
            (chain.not_open(&redis(FailureKind::OutOfMemory)), Needs::Room, None),
            (chain.not_open(&held(None)), Needs::Turn, None),
            (chain.not_open(&held(Some(Duration::ZERO))), Needs::Turn, Some(ttl / 100)),
            (chain.not_open(&held(Some(ttl / 5))), Needs::Turn, Some(ttl / 5)),
            (chain.not_open(&held(Some(ttl))), Needs::Turn, Some(ttl / 3)),
        ] {
            assert_eq!((not_yet.needs, not_yet.again_in), (needs, again_in), "{}", not_yet.why);
        }
    }

    #[tokio::test]
    async fn a_loss_of_what_redis_had_acknowledged_is_told_once() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let losses = async |held: Option<u64>| {
            let mut publisher = scene.publisher().await;
            publisher.apply(&add(&header(1, 'a').block)).await.unwrap();
            scene.redis.ask::<String>("FLUSHALL").await.unwrap();
            let cursor =
                held.map(|seq| Cursor { seq, ..Cursor::starting_at(1, None, String::new()) });
            (0..2).for_each(|_| scene.chain.tell_of_loss(cursor.as_ref()));
            (scene.chain.metrics.rollbacks.get(), scene.chain.metrics.wipes.get())
        };
        assert_eq!(losses(Some(2)).await, (0, 0));
        assert_eq!(losses(Some(1)).await, (0, 0));
        assert_eq!(losses(Some(0)).await, (1, 0));
        assert_eq!(losses(None).await, (1, 1));
    }
}
