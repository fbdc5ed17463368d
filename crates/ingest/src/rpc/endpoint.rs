//! One provider: its two transports, its breaker, and what it was found to offer.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ethhook_domain::block::Quantity;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::warn;

use super::breaker::Breaker;
use super::http::HttpClient;
use super::latency::Latency;
use super::redaction::Redaction;
use super::ws::{Connection, FIRST_REQUEST, Head, WsClient};
use super::{BreakerState, REQUEST_TIMEOUT, RpcError, decode, encode};
use crate::config::EndpointConfig;
use crate::metrics::EndpointMetrics;

/// Answers in a row that were not waited for, from which on each counts as a failure.
const UNANSWERED: u32 = 3;
/// How long a refusal of `eth_getBlockReceipts` is believed.
const RECEIPTS_AGAIN: Duration = Duration::from_secs(60);

pub(crate) struct Endpoint {
    chain_id: u64,
    http: Option<HttpClient>,
    ws: Option<WsClient>,
    breaker: Arc<Mutex<Breaker>>,
    latency: Mutex<Latency>,
    /// Holds requests to the operator's rate; none: no limit.
    limiter: Option<DefaultDirectRateLimiter>,
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

impl Endpoint {
    /// The endpoint, and its socket's task if it has a WebSocket address.
    pub(crate) fn new(
        config: &EndpointConfig,
        chain_id: u64,
        heads: mpsc::Sender<Head>,
        requests_per_second: Option<NonZeroU32>,
        metrics: EndpointMetrics,
    ) -> (Self, Option<Socket>) {
        let breaker = Arc::<Mutex<Breaker>>::default();
        let only = config.http.is_none().then(|| Arc::clone(&breaker));
        let (ws, socket) = config
            .ws
            .clone()
            .map(|url| {
                WsClient::new(url, chain_id, heads, metrics.clone(), Redaction::of(config), only)
            })
            .map_or((None, None), |(client, connection)| (Some(client), Some(Socket(connection))));
        let endpoint = Self {
            chain_id,
            http: config.http.clone().map(HttpClient::new),
            ws,
            breaker,
            latency: Mutex::default(),
            limiter: requests_per_second.map(|rate| RateLimiter::direct(Quota::per_second(rate))),
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
        self.with_breaker(|b| b.admit(Instant::now())).map_err(RpcError::SetAside)?;
        let result = match self.check_chain().await {
            Ok(()) => self.exchange(method, params).await,
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
        let got = self.exchange::<Quantity>("eth_chainId", &none).await?.map_or(0, |q| q.0);
        if got != self.chain_id {
            return Err(RpcError::WrongChain { wanted: self.chain_id, got });
        }
        self.chain_checked.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: &impl Serialize,
    ) -> Result<Option<T>, RpcError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let text = encode(id, method, params)?;
        if let Some(limiter) = &self.limiter {
            limiter.until_ready().await;
        }
        let started = Instant::now();
        let answer = timeout(REQUEST_TIMEOUT, async {
            match (&self.http, &self.ws) {
                (Some(http), _) => http.post(text).await,
                (None, Some(ws)) => ws.request(id, text).await,
                (None, None) => Err(RpcError::Connection("the endpoint has no address".into())),
            }
        })
        .await
        .unwrap_or(Err(RpcError::Timeout(REQUEST_TIMEOUT)));
        let result =
            answer.and_then(|body| decode(&body, id)).map_err(|error| self.redaction.apply(error));
        self.unanswered.store(0, Ordering::Relaxed);
        let outcome = result.as_ref().map_or_else(RpcError::outcome, |_| "ok");
        self.metrics.request(method, outcome, started.elapsed());
        self.with_latency(|latency| latency.note(started.elapsed()));
        result
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
