//! One provider: its two transports, its breaker, and what it has been found to offer.

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::warn;

use super::RpcError;
use super::announced::Announced;
use super::batch_size::BatchSize;
use super::breaker::Breaker;
use super::cost::Prices;
use super::genesis::Genesis;
use super::http::HttpClient;
use super::latency::Latency;
use super::pace::Pacer;
use super::redaction::Redaction;
use super::shared_breaker::SharedBreaker;
use super::streak::Streak;
use super::throttle::Throttle;
use super::ws::{Connection, FIRST_REQUEST, Shared, SocketEvent, WsClient};
use crate::config::ChainConfig;
use crate::metrics::{ChainMetrics, EndpointMetrics};

/// From this many slow answers in a row on, each counts as a failure.
const UNANSWERED: u32 = 3;
/// How long an endpoint may take for one of its first answers before another one is asked as well.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);
/// After lacking the logs of this many blocks in a row, an endpoint is asked after all others.
pub(crate) const MANY_LACKS: u32 = 10;
/// For how long: it may only have been late.
const LACK_REMEMBERED: Duration = Duration::from_secs(30);
/// How long a refusal of `eth_getBlockReceipts` is remembered.
const RECEIPTS_AGAIN: Duration = Duration::from_secs(60);

/// What one message can ask about several blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// A batch of headers.
    Headers,
    /// A batch of calls, each for one block's receipts.
    Receipts,
    /// The logs of a range, in one call.
    Logs,
}

impl Method {
    const ALL: [Self; 3] = [Self::Headers, Self::Receipts, Self::Logs];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Headers => "eth_getBlockByNumber",
            Self::Receipts => "eth_getBlockReceipts",
            Self::Logs => "eth_getLogs",
        }
    }

    /// How many blocks are asked about at first, and how many at most.
    const fn batch_sizes(self) -> (usize, usize) {
        match self {
            // A header is small.
            Self::Headers => (8, 128),
            // The receipts of a single block may fill a message, and cost the most.
            Self::Receipts => (1, 64),
            // A range is one call, but many providers limit its length.
            Self::Logs => (4, 128),
        }
    }
}

pub(crate) struct Endpoint {
    pub(super) chain_id: u64,
    pub(super) http: Option<HttpClient>,
    pub(super) ws: Option<WsClient>,
    pub(super) breaker: SharedBreaker,
    latency: Mutex<Latency>,
    pub(super) prices: Prices,
    /// The operator's limit of requests; none for no limit.
    pub(super) requests: Option<Throttle>,
    /// The operator's limit of cost; none for no limit.
    pub(super) units: Option<Throttle>,
    /// What the endpoint itself was found to accept.
    pub(super) pacer: Pacer,
    /// How many blocks to ask about at once, indexed by [`Method`].
    batch_sizes: [Mutex<BatchSize>; 3],
    pub(super) next_id: AtomicU64,
    /// Whether it was found to serve this chain; a WebSocket that connects doubts it.
    pub(super) identified: Arc<AtomicBool>,
    pub(super) genesis: Genesis,
    pub(crate) announced: Arc<Announced>,
    /// Refusals of `eth_getBlockReceipts` as unknown.
    receipts_refused: Streak,
    /// Whether it gives receipts by a block's number and not by its hash.
    takes_numbers: AtomicBool,
    /// Blocks whose logs it did not give, though another has them.
    lacks: Streak,
    /// Answers in a row that took too long to wait for.
    pub(super) unanswered: AtomicU32,
    pub(super) redaction: Redaction,
    pub(crate) metrics: EndpointMetrics,
}

/// The endpoints of a chain in their order, and the sockets of those with a WebSocket address.
pub(crate) fn connect(
    config: &ChainConfig,
    heads: &mpsc::Sender<SocketEvent>,
    metrics: &ChainMetrics,
    genesis: &Genesis,
) -> (Vec<Endpoint>, Vec<Connection>) {
    let connect = |position| Endpoint::new(config, position, heads.clone(), metrics, genesis);
    let (endpoints, sockets): (Vec<_>, Vec<_>) = (0..config.endpoints.len()).map(connect).unzip();
    (endpoints, sockets.into_iter().flatten().collect())
}

impl Endpoint {
    fn new(
        chain: &ChainConfig,
        position: usize,
        heads: mpsc::Sender<SocketEvent>,
        metrics: &ChainMetrics,
        genesis: &Genesis,
    ) -> (Self, Option<Connection>) {
        let (chain_id, config) = (chain.profile.chain_id, &chain.endpoints[position]);
        let metrics = metrics.endpoint(position);
        let breaker = SharedBreaker::new(metrics.clone());
        let pacer = Pacer::new(breaker.clone(), metrics.clone());
        let identified = Arc::<AtomicBool>::default();
        let announced = Arc::<Announced>::default();
        let (ws, socket) = config
            .ws
            .clone()
            .map(|url| {
                let redaction = Redaction::of(config);
                let shared = Shared {
                    identified: Arc::clone(&identified),
                    announced: Arc::clone(&announced),
                    breaker: breaker.clone(),
                    is_only: config.http.is_none(),
                };
                let profile = chain.profile.clone();
                WsClient::new(url, profile, heads, metrics.clone(), redaction, shared)
            })
            .unzip();
        let endpoint = Self {
            chain_id,
            http: config.http.clone().map(HttpClient::new),
            ws,
            breaker,
            latency: Mutex::default(),
            prices: Prices::of(config),
            requests: chain.requests_per_second.map(Throttle::new),
            units: chain.units_per_second.map(Throttle::new),
            pacer,
            batch_sizes: Method::ALL.map(|method| {
                let (first, most) = method.batch_sizes();
                Mutex::new(BatchSize::new(first, most))
            }),
            next_id: AtomicU64::new(FIRST_REQUEST + 1),
            identified,
            genesis: genesis.clone(),
            announced,
            receipts_refused: Streak::default(),
            takes_numbers: AtomicBool::new(false),
            lacks: Streak::default(),
            unanswered: AtomicU32::new(0),
            redaction: Redaction::of(config),
            metrics,
        };
        (endpoint, socket)
    }

    /// How many blocks to ask about at once now; 1 means block by block.
    pub(crate) fn blocks_at_once(&self, method: Method) -> usize {
        let blocks = self.with_batch_size(method, |size| size.blocks(Instant::now()));
        if method == Method::Logs {
            return blocks; // one call, however many blocks
        }
        // A message costs at most a second's budget, so that more urgent ones get through.
        let price = self.prices.of_call(method.name()).throughput.max(1);
        let in_budget = self.units.as_ref().map_or(u32::MAX, |t| t.per_second() / price);
        let in_rate = self.requests.as_ref().map_or(u32::MAX, Throttle::per_second);
        let in_pace = self.pacer.at_once().unwrap_or(u32::MAX);
        blocks.min(in_budget.min(in_rate).min(in_pace).max(1) as usize)
    }

    /// The cost of a call, in the provider's billing units.
    pub(crate) fn units_of(&self, method: Method) -> u64 {
        self.prices.of_call(method.name()).units.into()
    }

    /// Only part of a message about this many blocks was answered.
    pub(crate) fn note_batch_too_large(&self, method: Method, blocks: usize) {
        self.with_batch_size(method, |size| size.refused(blocks, None, Instant::now()));
    }

    /// Sets it aside for a while: by `cause` it asked us to wait, or an answer failed a check.
    pub(crate) fn set_aside(&self, wait: Duration, cause: Option<RpcError>) {
        self.breaker.with(|b| b.set_aside(Instant::now(), wait, cause));
    }

    /// Admits a probe now, although it is set aside; while it has asked us to wait, only if it is `urgent`.
    pub(crate) fn probe(&self, urgent: bool) {
        self.breaker.with(|b| b.probe(Instant::now(), urgent));
    }

    /// How long to wait for an answer before another endpoint is asked as well: the 95th percentile
    /// of its last answers, if there are enough of them.
    pub(crate) fn patience(&self) -> Duration {
        self.with_latency(|latency| latency.percentile(95)).unwrap_or(FIRST_PATIENCE)
    }

    /// Another endpoint was asked, because an answer took longer than this.
    pub(crate) fn note_slow(&self, waited: Duration) {
        self.metrics.hedges.inc();
        // Otherwise an endpoint that never answers again would not be noticed.
        if self.unanswered.fetch_add(1, Ordering::Relaxed) + 1 >= UNANSWERED {
            let jitter = rand::random();
            let cause = RpcError::Timeout(waited);
            self.breaker.with(|b| b.failure(Instant::now(), jitter, cause));
        }
    }

    /// Records the time of an answer about one block, or a lower bound for it.
    pub(crate) fn note_latency(&self, took: Duration) {
        self.with_latency(|latency| latency.note(took));
    }

    /// Whether no request may be sent to it now.
    pub(crate) fn is_set_aside(&self) -> bool {
        self.breaker.with(|b| b.is_open(Instant::now()))
    }

    /// The median duration of the last answers; none while there are few.
    pub(crate) fn usual_latency(&self) -> Option<Duration> {
        self.with_latency(|latency| latency.percentile(50))
    }

    pub(super) fn with_batch_size<T>(
        &self,
        method: Method,
        act: impl FnOnce(&mut BatchSize) -> T,
    ) -> T {
        act(&mut self.batch_sizes[method as usize].lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How long a message would have to wait now, because the endpoint would not accept it sooner.
    pub(crate) fn wait(&self) -> Duration {
        self.pacer.wait()
    }

    pub(super) fn with_latency<T>(&self, act: impl FnOnce(&mut Latency) -> T) -> T {
        act(&mut self.latency.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Checks again before the next request which chain it serves. If the expected genesis `changed`, failures of before
    /// do not count.
    pub(crate) fn identify_again(&self, changed: bool) {
        self.identified.store(false, Ordering::Relaxed);
        if changed {
            self.breaker.with(Breaker::connected);
        }
    }

    /// It gave a block's logs.
    pub(crate) fn note_logs_given(&self) {
        self.lacks.end();
    }

    /// It did not give a block's logs that another has.
    pub(crate) fn note_logs_missing(&self) {
        if self.lacks.note() == MANY_LACKS {
            let endpoint = self.metrics.position;
            warn!(
                endpoint,
                "another endpoint has the blocks that this one lacks: it is asked last"
            );
        }
    }

    /// Whether it lacked one block after another, lately.
    pub(crate) fn is_lacking(&self) -> bool {
        self.lacks.has(MANY_LACKS, LACK_REMEMBERED)
    }

    /// Reconnects and subscribes again, because the subscription has fallen silent.
    pub(crate) fn resubscribe(&self) {
        if let Some(ws) = &self.ws {
            ws.reconnect();
        }
    }

    /// Whether to ask for receipts: a refusal is remembered only for a while, because it may have
    /// come from one bad node behind a load balancer.
    pub(crate) fn offers_receipts(&self) -> bool {
        !self.receipts_refused.has(1, RECEIPTS_AGAIN)
    }

    pub(crate) fn note_receipts_refused(&self) {
        self.receipts_refused.note();
    }

    /// Whether to ask for receipts by a block's number.
    pub(crate) fn takes_numbers(&self) -> bool {
        self.takes_numbers.load(Ordering::Relaxed)
    }

    pub(crate) fn note_takes_numbers(&self, by_number: bool) {
        self.takes_numbers.store(by_number, Ordering::Relaxed);
    }
}

#[cfg(test)]
impl Endpoint {
    /// As if it had refused a call, and then accepted so many messages ahead of time.
    pub(crate) fn fall_behind(&self, messages: u32) {
        self.pacer.note_refused(Instant::now(), Duration::ZERO);
        (0..messages).for_each(|_| self.pacer.with(|pace| pace.sent(1, Instant::now())));
    }

    /// Number of messages that its pace delays now.
    pub(crate) fn delayed(&self) -> u32 {
        self.pacer.delayed()
    }

    /// Uses the prices of the provider at `url`.
    pub(crate) fn cost_as(&mut self, url: &str) {
        self.prices = Prices::of(&crate::EndpointConfig::http(url));
    }
}
