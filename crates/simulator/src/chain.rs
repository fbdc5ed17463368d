//! One chain of a node: its blocks, of whichever kind, and its views, each with its subscribers,
//! faults and counters.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use alloy_primitives::B256;
use tokio::sync::{broadcast, watch};

use crate::block::Block;
use crate::faults::{Faults, FinalizedLie};
use crate::limits::{
    BATCH_CALLS, BatchRefusal, HEADS_QUEUED, RENDERED_BYTES, RENDERED_RECEIPTS, RangeLimits,
    RateLimit, SENT_TIMES,
};
use crate::manual::{ManualChain, ManualSpec};
use crate::methods::Vantage;
use crate::mischief::{Mischief, Playing};
use crate::recorded::{RecordedChain, RecordedError};
use crate::scheduled::{ChainSpec, Scheduled, SpecError};
use crate::stats::Stats;

/// Where a chain's blocks come from.
pub(crate) trait Source: Send + Sync {
    /// The heights that the tags stand for.
    fn tips(&self) -> Tips;
    /// The canonical block at a height.
    fn at(&self, number: u64) -> Option<Arc<Block>>;
    /// A block by hash, canonical or recently orphaned.
    fn by_hash(&self, hash: &B256) -> Option<Arc<Block>>;
    /// The branch that the last reorg replaced, the lowest block first; empty if there was none.
    fn replaced(&self) -> Vec<Arc<Block>>;
    /// Advances the chain to `now`, unix microseconds.
    fn advance(&self, now: u64) -> Advance;
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Tips {
    pub(crate) head: u64,
    pub(crate) safe: Option<u64>,
    pub(crate) finalized: Option<u64>,
}

pub(crate) struct Advance {
    /// Blocks that became canonical, in the order in which a node announces them.
    pub(crate) announce: Vec<Arc<Block>>,
    /// When the chain advances next, unix microseconds; none if never on its own.
    pub(crate) next: Option<u64>,
}

/// When the last blocks were announced.
#[derive(Default)]
struct SentTimes {
    at: HashMap<B256, u64>,
    order: VecDeque<B256>,
}

/// The two transports of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One request, one answer.
    Http,
    /// Calls, answers and heads.
    WebSocket,
}

/// What is sent to subscriptions.
#[derive(Debug, Clone)]
pub(crate) enum Heard {
    Head(Arc<str>),
    /// All subscriptions are dropped silently.
    Deaf,
}

/// How a socket ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum SocketEnd {
    /// Without a word.
    #[default]
    Cut,
    /// With a close frame.
    Closed,
}

/// What closes sockets.
#[derive(Debug, Default)]
pub(crate) struct Door {
    /// How many times all sockets ended, and how they did last.
    pub(crate) ends: u64,
    pub(crate) how: SocketEnd,
    pub(crate) idle_limit: Option<Duration>,
}

/// A handle to one chain as seen through one endpoint; clones are the same handle. [`Chain::view`]
/// creates another endpoint's.
#[derive(Clone)]
pub struct Chain {
    inner: Arc<Inner>,
}

/// The blocks, which all views share.
struct Blocks {
    chain_id: u64,
    source: Box<dyn Source>,
    rendered: Mutex<VecDeque<(B256, Arc<str>)>>,
    views: Mutex<Vec<Weak<Inner>>>,
    /// Locked while the chain advances, so that heads are announced in order.
    clock: Mutex<Clock>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Clock {
    #[default]
    Runs,
    Stopped,
}

/// The calls of the current second, and how many are answered.
#[derive(Default)]
struct Rate {
    limit: Option<RateLimit>,
    since: Option<Instant>,
    calls: u32,
}

/// The state of one view.
struct Inner {
    blocks: Arc<Blocks>,
    faults: Faults,
    stats: Stats,
    heads: broadcast::Sender<Heard>,
    door: watch::Sender<Door>,
    muted: AtomicBool,
    on_other_branch: AtomicBool,
    http_lag: AtomicU64,
    ws_lag: AtomicU64,
    /// An additional lag of HTTP until the next head.
    http_behind: AtomicU64,
    finalized: Mutex<Option<FinalizedLie>>,
    range_limits: Mutex<RangeLimits>,
    batch_limit: AtomicUsize,
    batch_refusal: Mutex<BatchRefusal>,
    rate: Mutex<Rate>,
    sent: Mutex<SentTimes>,
}

impl Inner {
    fn new(blocks: Arc<Blocks>) -> Arc<Self> {
        Arc::new(Self {
            blocks,
            faults: Faults::default(),
            stats: Stats::default(),
            heads: broadcast::Sender::new(HEADS_QUEUED),
            door: watch::Sender::new(Door::default()),
            muted: AtomicBool::new(false),
            on_other_branch: AtomicBool::new(false),
            http_lag: AtomicU64::new(0),
            ws_lag: AtomicU64::new(0),
            http_behind: AtomicU64::new(0),
            finalized: Mutex::default(),
            range_limits: Mutex::new(RangeLimits { blocks: 1_000, logs: 20_000 }),
            batch_limit: AtomicUsize::new(BATCH_CALLS),
            batch_refusal: Mutex::default(),
            rate: Mutex::default(),
            sent: Mutex::default(),
        })
    }
}

impl Chain {
    pub(crate) fn new(chain_id: u64, source: impl Source + 'static) -> Self {
        let blocks = Arc::new(Blocks {
            chain_id,
            source: Box::new(source),
            rendered: Mutex::default(),
            views: Mutex::default(),
            clock: Mutex::default(),
        });
        Self::of(blocks)
    }

    fn of(blocks: Arc<Blocks>) -> Self {
        let inner = Inner::new(blocks);
        let mut views = lock(&inner.blocks.views);
        views.retain(|view| view.strong_count() > 0);
        views.push(Arc::downgrade(&inner));
        drop(views);
        Self { inner }
    }

    /// The same blocks through another endpoint, for another [`crate::Node`]: with its own faults,
    /// counters, sockets, heights and limits, all in their initial state.
    #[must_use]
    pub fn view(&self) -> Self {
        Self::of(Arc::clone(&self.inner.blocks))
    }

    /// A chain whose height follows the clock. Computing its history takes about 2 µs per block and
    /// blocks the thread.
    ///
    /// # Errors
    /// [`SpecError`] if such a chain is impossible.
    pub fn scheduled(spec: ChainSpec) -> Result<Self, SpecError> {
        let chain_id = spec.chain_id;
        Ok(Self::new(chain_id, Scheduled::new(spec, unix_micros())?))
    }

    /// A chain that a test moves by hand.
    #[must_use]
    pub fn manual(spec: ManualSpec) -> ManualChain {
        ManualChain::new(spec)
    }

    /// A chain of the recorded blocks in a folder; see [`crate::recorded`] for their format.
    /// Reading them blocks the thread.
    ///
    /// # Errors
    /// [`RecordedError`] names the file that cannot be served.
    pub fn recorded(folder: impl AsRef<Path>) -> Result<RecordedChain, RecordedError> {
        RecordedChain::load(folder.as_ref())
    }

    /// Stops the clock of this chain permanently, in every view. For a comparison that takes longer
    /// than a block.
    pub fn stop_clock(&self) {
        *lock(&self.inner.blocks.clock) = Clock::Stopped;
    }

    /// EIP-155 chain id.
    #[must_use]
    pub fn chain_id(&self) -> u64 {
        self.inner.blocks.chain_id
    }

    /// Height of the highest canonical block.
    #[must_use]
    pub fn head_number(&self) -> u64 {
        self.inner.blocks.source.tips().head
    }

    /// The height of the `finalized` tag, if the node knows one.
    #[must_use]
    pub fn finalized_number(&self) -> Option<u64> {
        self.inner.blocks.source.tips().finalized
    }

    /// The canonical block at a height.
    #[must_use]
    pub fn block(&self, number: u64) -> Option<Arc<Block>> {
        self.inner.blocks.source.at(number)
    }

    /// A block by hash, canonical or recently orphaned.
    #[must_use]
    pub fn block_by_hash(&self, hash: B256) -> Option<Arc<Block>> {
        self.inner.blocks.source.by_hash(&hash)
    }

    /// Sends the block's header to all subscriptions of this view, whether it is new, old or
    /// orphaned. False if there is no such block.
    pub fn announce(&self, hash: B256) -> bool {
        let block = self.block_by_hash(hash);
        block.inspect(|block| self.hear(block)).is_some()
    }

    /// When the block was last announced here, unix microseconds: just before it was sent to the
    /// first subscription.
    #[must_use]
    pub fn sent_at(&self, hash: B256) -> Option<u64> {
        lock(&self.inner.sent).at.get(&hash).copied()
    }

    /// The faults that can be armed.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.inner.faults
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.inner.stats
    }

    /// While muted, subscriptions, including new ones, receive nothing.
    pub fn set_muted(&self, muted: bool) {
        self.inner.muted.store(muted, Ordering::Relaxed);
    }

    /// Cuts every WebSocket of this chain, without a close frame.
    pub fn cut_sockets(&self) {
        self.end_sockets(SocketEnd::Cut);
    }

    fn end_sockets(&self, how: SocketEnd) {
        self.inner.door.send_modify(|door| {
            door.ends += 1;
            door.how = how;
        });
    }

    /// Cuts WebSockets that are idle for this long; initially none.
    pub fn set_idle_limit(&self, limit: Option<Duration>) {
        self.inner.door.send_modify(|door| door.idle_limit = limit);
    }

    /// Makes this transport lag by `blocks`: higher blocks are unknown there, and heads come that
    /// much later. 0 ends it.
    pub fn set_lag(&self, transport: Transport, blocks: u64) {
        let lag = match transport {
            Transport::Http => &self.inner.http_lag,
            Transport::WebSocket => &self.inner.ws_lag,
        };
        lag.store(blocks, Ordering::Relaxed);
    }

    /// Whether this view is on the branch that the last reorg replaced: it knows no other, and announces nothing.
    /// Before the first reorg there is no such branch.
    pub fn set_on_other_branch(&self, is_on_it: bool) {
        self.inner.on_other_branch.store(is_on_it, Ordering::Relaxed);
    }

    /// What the tag `finalized` stands for in this view, if not the true height.
    pub fn set_finalized_lie(&self, lie: Option<FinalizedLie>) {
        *lock(&self.inner.finalized) = lie;
    }

    /// From now on, calls and heads fail at random according to the mischief's seed, in addition to
    /// the faults armed in [`Chain::faults`]. [`Stats::faults_played`] counts them.
    pub fn misbehave(&self, mischief: Mischief) {
        let finalized = self.finalized_number().unwrap_or_default();
        self.inner.faults.draw_from(Playing::new(mischief, self.chain_id(), finalized));
    }

    /// Ends everything that is wrong with this view: mischief, armed faults, delayed heads, muting,
    /// lag, another branch, a false `finalized`, the idle limit. Subscriptions that have died stay dead and must be
    /// made again.
    pub fn behave(&self) {
        self.inner.faults.clear();
        self.set_muted(false);
        self.set_lag(Transport::Http, 0);
        self.set_lag(Transport::WebSocket, 0);
        self.set_on_other_branch(false);
        self.inner.http_behind.store(0, Ordering::Relaxed);
        self.set_finalized_lie(None);
        self.set_idle_limit(None);
        self.set_rate_limit(None);
    }

    /// WebSockets of this chain that are open.
    #[must_use]
    pub fn open_sockets(&self) -> usize {
        self.inner.door.receiver_count()
    }

    /// The limits of one `eth_getLogs` by range: initially 1,000 blocks and 20,000 logs.
    pub fn set_range_limits(&self, limits: RangeLimits) {
        *lock(&self.inner.range_limits) = limits;
    }

    /// How many calls one batch may contain: initially as many as in geth.
    pub fn set_batch_limit(&self, calls: usize) {
        self.inner.batch_limit.store(calls, Ordering::Relaxed);
    }

    /// How a larger batch is refused.
    pub fn set_batch_refusal(&self, refusal: BatchRefusal) {
        *lock(&self.inner.batch_refusal) = refusal;
    }

    /// Limits the calls answered per second; initially there is no limit.
    pub fn set_rate_limit(&self, limit: Option<RateLimit>) {
        *lock(&self.inner.rate) = Rate { limit, ..Rate::default() };
    }

    /// Counts a call against the limit; returns the limit if it was used up before.
    pub(crate) fn refuses_call(&self) -> Option<RateLimit> {
        let mut rate = lock(&self.inner.rate);
        let limit = rate.limit?;
        let now = Instant::now();
        if rate.since.is_none_or(|since| now - since >= Duration::from_secs(1)) {
            (rate.since, rate.calls) = (Some(now), 0);
        }
        rate.calls += 1;
        (rate.calls > limit.calls).then_some(limit)
    }

    pub(crate) fn batch_refusal(&self) -> BatchRefusal {
        *lock(&self.inner.batch_refusal)
    }

    pub(crate) fn batch_limit(&self) -> usize {
        self.inner.batch_limit.load(Ordering::Relaxed)
    }

    pub(crate) fn range_limits(&self) -> RangeLimits {
        *lock(&self.inner.range_limits)
    }

    pub(crate) fn tips(&self) -> Tips {
        self.inner.blocks.source.tips()
    }

    pub(crate) fn replaced_branch(&self) -> Vec<Arc<Block>> {
        self.inner.blocks.source.replaced()
    }

    pub(crate) fn is_muted(&self) -> bool {
        self.inner.muted.load(Ordering::Relaxed)
    }

    pub(crate) fn heads(&self) -> broadcast::Receiver<Heard> {
        self.inner.heads.subscribe()
    }

    pub(crate) fn door(&self) -> watch::Receiver<Door> {
        self.inner.door.subscribe()
    }

    /// How calls over this transport see the chain.
    pub(crate) fn vantage(&self, is_websocket: bool) -> Vantage {
        let load = |lag: &AtomicU64| lag.load(Ordering::Relaxed);
        let behind = if is_websocket {
            load(&self.inner.ws_lag)
        } else {
            load(&self.inner.http_lag).saturating_add(load(&self.inner.http_behind))
        };
        let other_branch = self.inner.on_other_branch.load(Ordering::Relaxed);
        Vantage { behind, other_branch, finalized: *lock(&self.inner.finalized) }
    }

    /// Announces a new head in every view.
    pub(crate) fn send_head(&self, block: &Block) {
        let views: Vec<_> =
            lock(&self.inner.blocks.views).iter().filter_map(Weak::upgrade).collect();
        for inner in views {
            Self { inner }.hear(block);
        }
    }

    /// Announces a head in this view, subject to its faults.
    fn hear(&self, block: &Block) {
        if self.vantage(true).other_branch && !self.replaced_branch().is_empty() {
            return;
        }
        let below = |depth: u64| self.block(block.number().checked_sub(depth)?);
        let told = match self.inner.ws_lag.load(Ordering::Relaxed) {
            0 => self.inner.faults.tell(block, below),
            lag => match below(lag) {
                Some(old) => self.inner.faults.tell(&old, |depth| below(depth.saturating_add(lag))),
                None => return,
            },
        };
        told.fault.inspect(|fault| self.inner.stats.played(fault));
        self.inner.http_behind.store(told.http_behind, Ordering::Relaxed);
        if let Some(how) = told.ends {
            self.end_sockets(how);
        }
        if told.deaf {
            // An error only means that there are no subscribers; the same below.
            let _ = self.inner.heads.send(Heard::Deaf);
        }
        // Everything that the subscriber will ask for is prepared before the time is taken, so that
        // measurements from it contain the client's time only.
        if self.inner.heads.receiver_count() > 0 {
            self.receipts_json(block);
        }
        for (hash, json) in told.heads {
            self.note_sent(hash);
            let _ = self.inner.heads.send(Heard::Head(json));
        }
    }

    fn note_sent(&self, hash: B256) {
        let mut sent = lock(&self.inner.sent);
        if sent.at.insert(hash, unix_micros()).is_none() {
            sent.order.push_back(hash);
        }
        if sent.order.len() > SENT_TIMES
            && let Some(oldest) = sent.order.pop_front()
        {
            sent.at.remove(&oldest);
        }
    }

    /// The answer of `eth_getBlockReceipts`, cached for the last blocks requested.
    pub(crate) fn receipts_json(&self, block: &Block) -> Option<Arc<str>> {
        let found =
            |(hash, json): &(B256, Arc<str>)| (*hash == block.hash()).then(|| Arc::clone(json));
        if let Some(json) = lock(&self.inner.blocks.rendered).iter().find_map(found) {
            return Some(json);
        }
        let json: Arc<str> = block.receipts_json()?.into();
        let mut rendered = lock(&self.inner.blocks.rendered);
        let mut bytes: usize = rendered.iter().map(|(_, json)| json.len()).sum();
        while rendered.len() >= RENDERED_RECEIPTS || bytes > RENDERED_BYTES {
            let Some((_, oldest)) = rendered.pop_front() else { break };
            bytes -= oldest.len();
        }
        rendered.push_back((block.hash(), Arc::clone(&json)));
        Some(json)
    }

    /// Advances the chain to the current time and returns when it advances next. Every node of the
    /// chain does this.
    fn advance(&self) -> Option<u64> {
        let clock = lock(&self.inner.blocks.clock);
        if *clock == Clock::Stopped {
            return None;
        }
        let step = self.inner.blocks.source.advance(unix_micros());
        // After a pause of the machine only the last blocks are announced, like a node that imports
        // many at once.
        let skipped = step.announce.len().saturating_sub(HEADS_QUEUED / 2);
        for block in step.announce.iter().skip(skipped) {
            self.send_head(block);
        }
        step.next
    }

    /// Advances the chain with the clock; never returns.
    pub(crate) async fn follow_clock(self) {
        loop {
            match self.advance() {
                Some(at) => {
                    let wait = at.saturating_sub(unix_micros());
                    tokio::time::sleep(Duration::from_micros(wait)).await;
                }
                None => std::future::pending().await,
            }
        }
    }
}

pub(crate) fn unix_micros() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// A panic while a lock was held leaves plain data behind, which is still valid.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
