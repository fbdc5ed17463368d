//! One provider: its two transports, its breaker, and what it was found to offer.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ethhook_domain::block::Quantity;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::batch::{self, Item};
use super::breaker::Breaker;
use super::cost::Prices;
use super::http::HttpClient;
use super::latency::Latency;
use super::redaction::Redaction;
use super::span::Span;
use super::throttle::Throttle;
use super::ws::{Connection, FIRST_REQUEST, Head, WsClient};
use super::{
    Answer, BreakerState, MAX_ANSWER_BYTES, MAX_SPAN_BYTES, REQUEST_TIMEOUT, RpcError, decode,
    encode,
};
use crate::config::ChainConfig;
use crate::metrics::{ChainMetrics, EndpointMetrics};

/// Answers in a row that were not waited for, from which on each counts as a failure.
const UNANSWERED: u32 = 3;
/// How long a refusal of `eth_getBlockReceipts` is believed.
const RECEIPTS_AGAIN: Duration = Duration::from_secs(60);

/// What a message about several blocks asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum About {
    /// A batch of headers.
    Headers,
    /// A batch of calls for one block's receipts each.
    Receipts,
    /// The logs of a range, one call.
    Logs,
}

pub(crate) struct Endpoint {
    chain_id: u64,
    http: Option<HttpClient>,
    ws: Option<WsClient>,
    breaker: Arc<Mutex<Breaker>>,
    latency: Mutex<Latency>,
    prices: Prices,
    /// Holds requests to the operator's rate; none: no limit.
    requests: Option<Throttle>,
    /// Holds what they cost to the operator's budget; none: no limit.
    units: Option<Throttle>,
    /// How much is asked for at once, by [`About`].
    spans: [Mutex<Span>; 3],
    next_id: AtomicU64,
    chain_checked: AtomicBool,
    /// When `eth_getBlockReceipts` was last refused as unknown.
    receipts_refused: Mutex<Option<Instant>>,
    /// Answers in a row that were not waited for.
    unanswered: AtomicU32,
    redaction: Redaction,
    pub(crate) metrics: EndpointMetrics,
}

/// Keeps an endpoint's WebSocket up; owned by the chain's task.
pub(crate) struct Socket(Connection);

impl Socket {
    pub(crate) async fn run(self) {
        self.0.run().await;
    }
}

/// The endpoints of a chain in their order, and the tasks of those that have a WebSocket address.
pub(crate) fn connect(
    config: &ChainConfig,
    heads: &mpsc::Sender<Head>,
    metrics: &ChainMetrics,
) -> (Vec<Endpoint>, Vec<Socket>) {
    let connect = |position| Endpoint::new(config, position, heads.clone(), metrics);
    let (endpoints, sockets): (Vec<_>, Vec<_>) = (0..config.endpoints.len()).map(connect).unzip();
    (endpoints, sockets.into_iter().flatten().collect())
}

/// What goes out at once.
struct Message {
    method: &'static str,
    first_id: u64,
    calls: usize,
    text: String,
    max_bytes: usize,
}

impl Message {
    fn calls(&self) -> u32 {
        u32::try_from(self.calls).unwrap_or(u32::MAX)
    }
}

impl Endpoint {
    fn new(
        chain: &ChainConfig,
        position: usize,
        heads: mpsc::Sender<Head>,
        metrics: &ChainMetrics,
    ) -> (Self, Option<Socket>) {
        let (chain_id, config) = (chain.profile.chain_id, &chain.endpoints[position]);
        let metrics = metrics.endpoint(position);
        let breaker = Arc::<Mutex<Breaker>>::default();
        let only = config.http.is_none().then(|| Arc::clone(&breaker));
        let (ws, socket) = config
            .ws
            .clone()
            .map(|url| {
                WsClient::new(url, chain_id, heads, metrics.clone(), Redaction::of(config), only)
            })
            .map_or((None, None), |(client, connection)| (Some(client), Some(Socket(connection))));
        let span = |first, most| Mutex::new(Span::new(first, most));
        let endpoint = Self {
            chain_id,
            http: config.http.clone().map(HttpClient::new),
            ws,
            breaker,
            latency: Mutex::default(),
            prices: Prices::of(config),
            requests: chain.requests_per_second.map(Throttle::new),
            units: chain.units_per_second.map(Throttle::new),
            spans: [span(8, 128), span(1, 64), span(4, 128)],
            next_id: AtomicU64::new(FIRST_REQUEST + 1),
            chain_checked: AtomicBool::new(false),
            receipts_refused: Mutex::default(),
            unanswered: AtomicU32::new(0),
            redaction: Redaction::of(config),
            metrics,
        };
        (endpoint, socket)
    }

    /// Asks the endpoint, if its breaker lets it; `null` is none.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: &impl Serialize,
    ) -> Result<Option<T>, RpcError> {
        let message = self.message(method, params)?;
        let id = message.first_id;
        self.ask(message, |body| decode(body, id)).await
    }

    /// Asks for the same of several blocks with one message, a call each; the answers come in the
    /// order of `params`.
    ///
    /// # Errors
    /// If there is no answer to any of them.
    pub(crate) async fn call_each<T: DeserializeOwned>(
        &self,
        about: About,
        method: &'static str,
        params: &[impl Serialize],
    ) -> Result<Vec<Item<T>>, RpcError> {
        // Some providers take no batch at all.
        if let [params] = params {
            return self.call_range(about, 1, method, params).await.map(|answer| vec![Ok(answer)]);
        }
        let calls = params.len();
        let first_id = self.next_id.fetch_add(calls as u64, Ordering::Relaxed);
        let text = batch::encode(first_id, method, params)?;
        let message = Message { method, first_id, calls, text, max_bytes: MAX_SPAN_BYTES };
        self.ask_span(about, calls, message, |body| batch::decode(body, first_id, calls)).await
    }

    /// Asks one call about `blocks` blocks, 1 or more.
    pub(crate) async fn call_range<T: DeserializeOwned>(
        &self,
        about: About,
        blocks: usize,
        method: &'static str,
        params: &impl Serialize,
    ) -> Result<Option<T>, RpcError> {
        let mut message = self.message(method, params)?;
        if blocks > 1 {
            message.max_bytes = MAX_SPAN_BYTES;
        }
        let id = message.first_id;
        self.ask_span(about, blocks, message, |body| decode(body, id)).await
    }

    /// How many blocks to ask about at once now; 1: one at a time.
    pub(crate) fn blocks_at_once(&self, about: About) -> usize {
        let blocks = self.with_span(about, |span| span.blocks(Instant::now()));
        let method = match about {
            About::Headers => "eth_getBlockByNumber",
            About::Receipts => "eth_getBlockReceipts",
            About::Logs => return blocks,
        };
        // No more than a second's budget in one message: what is more urgent must get through.
        let price = self.prices.of_call(method).throughput.max(1);
        let in_budget = self.units.as_ref().map_or(u32::MAX, |t| t.per_second() / price);
        let in_rate = self.requests.as_ref().map_or(u32::MAX, Throttle::per_second);
        blocks.min(in_budget.min(in_rate).max(1) as usize)
    }

    /// What so many calls of a method are billed, in the provider's units.
    pub(crate) fn units(&self, method: &str) -> u64 {
        self.prices.of_call(method).units.into()
    }

    fn message(&self, method: &'static str, params: &impl Serialize) -> Result<Message, RpcError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let text = encode(id, method, params)?;
        Ok(Message { method, first_id: id, calls: 1, text, max_bytes: MAX_ANSWER_BYTES })
    }

    /// Asks about `blocks` blocks at once and learns from what becomes of it.
    async fn ask_span<T>(
        &self,
        about: About,
        blocks: usize,
        message: Message,
        read: impl FnOnce(&str) -> Result<T, RpcError>,
    ) -> Result<T, RpcError> {
        let mut bytes = 0;
        let answer = self
            .ask(message, |body| {
                bytes = body.len();
                read(body)
            })
            .await;
        match &answer {
            Ok(_) => self.with_span(about, |span| span.took(blocks, bytes)),
            Err(error) if blocks > 1 && error.may_be_of_size() => {
                debug!(endpoint = self.metrics.position, ?about, blocks, %error, "too much at once");
                let suggested = error.suggested_blocks();
                self.with_span(about, |span| span.refused(blocks, suggested, Instant::now()));
            }
            Err(_) => {}
        }
        answer
    }

    /// So many blocks at once were answered in part.
    pub(crate) fn was_too_much(&self, about: About, blocks: usize) {
        self.with_span(about, |span| span.refused(blocks, None, Instant::now()));
    }

    async fn ask<T>(
        &self,
        message: Message,
        read: impl FnOnce(&str) -> Result<T, RpcError>,
    ) -> Result<T, RpcError> {
        self.with_breaker(|b| b.admit(Instant::now())).map_err(RpcError::SetAside)?;
        let method = message.method;
        let result = match self.check_chain().await {
            Ok(()) => self.exchange(message, read).await,
            Err(error) => Err(error),
        };
        match &result {
            Err(error @ RpcError::RateLimited(wait)) => {
                let wait = wait.unwrap_or(Duration::from_secs(1));
                warn!(endpoint = self.metrics.position, method, %error, ?wait, "endpoint set aside");
                self.set_aside(wait);
            }
            Err(error) if error.is_endpoint_failure() => {
                warn!(endpoint = self.metrics.position, method, %error, "request failed");
                let jitter = rand::random();
                self.with_breaker(|b| b.failure(Instant::now(), jitter));
            }
            _ => self.with_breaker(Breaker::success),
        }
        result
    }

    /// An HTTP address is asked once which chain it serves; a WebSocket is at every connect.
    async fn check_chain(&self) -> Result<(), RpcError> {
        if self.http.is_none() || self.chain_checked.load(Ordering::Relaxed) {
            return Ok(());
        }
        let none: [(); 0] = [];
        let message = self.message("eth_chainId", &none)?;
        let id = message.first_id;
        let got = self.exchange(message, |body| decode::<Quantity>(body, id)).await?;
        let got = got.map_or(0, |q| q.0);
        if got != self.chain_id {
            return Err(RpcError::WrongChain { wanted: self.chain_id, got });
        }
        self.chain_checked.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn exchange<T>(
        &self,
        message: Message,
        read: impl FnOnce(&str) -> Result<T, RpcError>,
    ) -> Result<T, RpcError> {
        let (method, calls, is_single) =
            (message.method, message.calls(), message.max_bytes == MAX_ANSWER_BYTES);
        self.wait_for_leave(method, calls).await;
        let started = Instant::now();
        let answer = timeout(REQUEST_TIMEOUT, self.send(message))
            .await
            .unwrap_or(Err(RpcError::Timeout(REQUEST_TIMEOUT)));
        let result =
            answer.and_then(|body| read(&body)).map_err(|error| self.redaction.apply(error));
        self.unanswered.store(0, Ordering::Relaxed);
        let outcome = result.as_ref().map_or_else(RpcError::outcome, |_| "ok");
        self.metrics.request(method, calls, outcome, started.elapsed());
        // What several blocks take says nothing of when one is late.
        if is_single {
            self.with_latency(|latency| latency.note(started.elapsed()));
        }
        result
    }

    /// Waits until the operator's rate and budget allow `calls`, which then count as spent.
    async fn wait_for_leave(&self, method: &'static str, calls: u32) {
        let price = self.prices.of_call(method);
        if let Some(requests) = &self.requests {
            requests.take(calls).await;
        }
        if let Some(units) = &self.units {
            units.take(price.throughput.saturating_mul(calls)).await;
        }
        self.metrics.spent(method, u64::from(price.units) * u64::from(calls));
    }

    async fn send(&self, message: Message) -> Answer {
        let Message { first_id, calls, text, max_bytes, .. } = message;
        match (&self.http, &self.ws) {
            (Some(http), _) => http.post(text, max_bytes).await,
            (None, Some(ws)) => ws.request(first_id, calls as u64, text).await,
            (None, None) => Err(RpcError::Connection("the endpoint has no address".into())),
        }
    }

    /// Nothing is asked of it for a while: it lied, or asked for patience.
    pub(crate) fn set_aside(&self, wait: Duration) {
        self.with_breaker(|b| b.set_aside(Instant::now(), wait));
    }

    /// How long an answer may take before another endpoint is asked as well: what 95 of 100 of its
    /// last ones took; without limit while there are few.
    pub(crate) fn patience(&self) -> Duration {
        self.with_latency(|latency| latency.percentile(95)).unwrap_or(REQUEST_TIMEOUT)
    }

    /// An answer was not waited for: it would have taken at least this long.
    pub(crate) fn was_slow(&self, took: Duration) {
        self.metrics.hedges.inc();
        // One that never answers any more would otherwise never be found out.
        if self.unanswered.fetch_add(1, Ordering::Relaxed) + 1 >= UNANSWERED {
            let jitter = rand::random();
            self.with_breaker(|b| b.failure(Instant::now(), jitter));
        }
        self.with_latency(|latency| latency.note(took));
    }

    /// The median of the last answers' durations; none while there are few.
    pub(crate) fn usual_latency(&self) -> Option<Duration> {
        self.with_latency(|latency| latency.percentile(50))
    }

    fn with_span<T>(&self, about: About, act: impl FnOnce(&mut Span) -> T) -> T {
        act(&mut self.spans[about as usize].lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn with_latency<T>(&self, act: impl FnOnce(&mut Latency) -> T) -> T {
        act(&mut self.latency.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes a new subscription: this one has fallen silent.
    pub(crate) fn resubscribe(&self) {
        if let Some(ws) = &self.ws {
            ws.reconnect();
        }
    }

    /// Whether to ask for receipts: a refusal is remembered, but not for ever, for one bad node
    /// behind a load balancer may have spoken for all.
    pub(crate) fn offers_receipts(&self) -> bool {
        let refused = self.receipts_refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.is_none_or(|at| at.elapsed() > RECEIPTS_AGAIN)
    }

    pub(crate) fn lacks_receipts(&self) {
        let mut refused = self.receipts_refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused = Some(Instant::now());
    }

    fn with_breaker<T>(&self, act: impl FnOnce(&mut Breaker) -> T) -> T {
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        let before = breaker.state();
        let result = act(&mut breaker);
        let after = breaker.state();
        self.metrics.breaker(after);
        if before != after && after != BreakerState::HalfOpen {
            tracing::info!(endpoint = self.metrics.position, ?before, ?after, "breaker");
        }
        result
    }
}
