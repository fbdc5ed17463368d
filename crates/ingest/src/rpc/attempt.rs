//! One attempt with an endpoint: its requests, and the time that the endpoint takes.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use alloy_primitives::B256;
use ethhook_domain::block::Quantity;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::batch::{self, Item};
use super::breaker::Breaker;
use super::endpoint::{Endpoint, Method};
use super::{Answer, MAX_ANSWER_BYTES, MAX_SPAN_BYTES, REQUEST_TIMEOUT, RpcError, decode, encode};

/// How long an endpoint is left alone that asks for patience, but does not say how much.
const USUAL_WAIT: Duration = Duration::from_secs(1);

/// Measures the time that an endpoint takes; stopped while our own rate limit holds a request back.
struct Watch {
    taken: Duration,
    /// When it was last started; none while stopped.
    running: Option<Instant>,
}

impl Watch {
    fn hold(&mut self) {
        self.taken = self.taken();
        self.running = None;
    }

    fn go_on(&mut self) {
        self.running = Some(Instant::now());
    }

    fn taken(&self) -> Duration {
        self.taken + self.running.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// A request that the breaker admitted; if dropped, its outcome is reported as unknown.
struct Admitted<'a>(&'a Endpoint);

impl Admitted<'_> {
    fn told(self) {
        std::mem::forget(self);
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.0.breaker.with(|b| b.unknown(Instant::now()));
    }
}

/// A message on its way, which is counted once: if dropped before its outcome is known, as abandoned.
struct Sent<'a> {
    endpoint: &'a Endpoint,
    method: &'static str,
    calls: u32,
    at: Instant,
    outcome: &'static str,
    /// The outcomes of calls of a batch that failed individually.
    failed: Vec<&'static str>,
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        let metrics = &self.endpoint.metrics;
        metrics.took(self.method, self.at.elapsed());
        self.failed.iter().for_each(|outcome| metrics.requested(self.method, 1, outcome));
        let failed = u32::try_from(self.failed.len()).unwrap_or(u32::MAX);
        metrics.requested(self.method, self.calls.saturating_sub(failed), self.outcome);
    }
}

/// What a message brought: the metric counts each of its calls by its own outcome.
trait Brought {
    /// The outcomes of the calls of a batch that failed individually.
    fn failed(&self) -> Vec<&'static str>;
}

impl<T> Brought for Option<T> {
    fn failed(&self) -> Vec<&'static str> {
        Vec::new()
    }
}

impl<T> Brought for Vec<Item<T>> {
    fn failed(&self) -> Vec<&'static str> {
        self.iter().filter_map(|item| item.as_ref().err()).map(RpcError::outcome).collect()
    }
}

/// One attempt with an endpoint: one or more requests in sequence.
#[derive(Clone)]
pub(crate) struct Attempt<'a> {
    endpoint: &'a Endpoint,
    watch: Arc<Mutex<Watch>>,
}

const BLOCK_BY_NUMBER: &str = Method::Headers.name();

/// A block of which only the hash counts: on some chains, that of the genesis is not computed as for other headers.
#[derive(Deserialize)]
struct BareBlock {
    hash: B256,
}

/// A single message: one call or a batch.
struct Message {
    method: &'static str,
    first_id: u64,
    calls: usize,
    /// How many blocks it is about; 1 for other calls.
    blocks: usize,
    text: String,
}

impl Message {
    fn calls(&self) -> u32 {
        u32::try_from(self.calls).unwrap_or(u32::MAX)
    }

    /// Maximum size of the answer; a larger one about several blocks is requested in parts instead.
    fn max_bytes(&self) -> usize {
        if self.blocks > 1 { MAX_SPAN_BYTES } else { MAX_ANSWER_BYTES }
    }
}

impl<'a> Attempt<'a> {
    pub(crate) fn with(endpoint: &'a Endpoint) -> Self {
        let watch = Watch { taken: Duration::ZERO, running: Some(Instant::now()) };
        Self { endpoint, watch: Arc::new(Mutex::new(watch)) }
    }

    pub(crate) fn endpoint(&self) -> &'a Endpoint {
        self.endpoint
    }

    /// What is left of `patience`; all of it while our own rate limit holds the request back.
    pub(crate) fn left_of(&self, patience: Duration) -> Duration {
        let watch = self.watch();
        if watch.running.is_none() { patience } else { patience.saturating_sub(watch.taken()) }
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a call if the breaker admits it; `null` becomes none.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: &impl Serialize,
    ) -> Result<Option<T>, RpcError> {
        let message = self.message(method, params)?;
        let id = message.first_id;
        self.ask(message, |body| decode(body, id)).await
    }

    /// Sends one message with a call for each of several blocks; the results are in the order of
    /// `params`.
    ///
    /// # Errors
    /// If there is no result for any of them.
    pub(crate) async fn call_each<T: DeserializeOwned>(
        &self,
        method: Method,
        params: &[impl Serialize],
    ) -> Result<Vec<Item<T>>, RpcError> {
        // Some providers do not support batches.
        if let [params] = params {
            return self.call_span(method, 1, params).await.map(|answer| vec![Ok(answer)]);
        }
        let (name, calls) = (method.name(), params.len());
        let first_id = self.endpoint.next_id.fetch_add(calls as u64, Ordering::Relaxed);
        let text = batch::encode(first_id, name, params)?;
        let message = Message { method: name, first_id, calls, blocks: calls, text };
        let read = |body: &str| batch::decode(body, first_id, calls);
        let asked = Instant::now();
        let redaction = &self.endpoint.redaction;
        let read = |body: &str| {
            Ok(read(body)?.into_iter().map(|item| item.map_err(|e| redaction.apply(e))).collect())
        };
        let items: Vec<Item<T>> = self.ask_span(method, message, read).await?;
        // Some providers refuse single calls of a batch.
        let refusals = items.iter().filter_map(|item| match item {
            Err(error @ RpcError::RateLimited(wait)) => Some((error, *wait)),
            _ => None,
        });
        let accepted = calls - refusals.clone().count();
        self.endpoint.pacer.note_accepted(u32::try_from(accepted).unwrap_or(u32::MAX));
        if let Some((error, wait)) = refusals.clone().next() {
            self.back_off(name, error, wait, asked);
        }
        Ok(items)
    }

    /// Sends one call about `blocks` blocks, at least 1.
    pub(crate) async fn call_span<T: DeserializeOwned>(
        &self,
        method: Method,
        blocks: usize,
        params: &impl Serialize,
    ) -> Result<Option<T>, RpcError> {
        let message = Message { blocks, ..self.message(method.name(), params)? };
        let id = message.first_id;
        self.ask_span(method, message, |body| decode(body, id)).await
    }

    fn message(&self, method: &'static str, params: &impl Serialize) -> Result<Message, RpcError> {
        let id = self.endpoint.next_id.fetch_add(1, Ordering::Relaxed);
        let text = encode(id, method, params)?;
        Ok(Message { method, first_id: id, calls: 1, blocks: 1, text })
    }

    /// Sends a message, and learns from its outcome how many blocks to ask about at once.
    async fn ask_span<T: Brought>(
        &self,
        method: Method,
        message: Message,
        read: impl FnOnce(&str) -> Result<T, RpcError>,
    ) -> Result<T, RpcError> {
        let blocks = message.blocks;
        let mut bytes = 0;
        let answer = self
            .ask(message, |body| {
                bytes = body.len();
                read(body)
            })
            .await;
        match &answer {
            Ok(_) => self.endpoint.with_batch_size(method, |size| size.took(blocks, bytes)),
            Err(error) if blocks > 1 && error.may_be_of_size() => {
                debug!(endpoint = self.endpoint.metrics.position, about = ?method, blocks, %error, "requested too much at once");
                let suggested = error.suggested_blocks();
                self.endpoint.with_batch_size(method, |size| {
                    size.refused(blocks, suggested, Instant::now())
                });
            }
            Err(_) => {}
        }
        answer
    }

    async fn ask<T: Brought>(
        &self,
        message: Message,
        read: impl FnOnce(&str) -> Result<T, RpcError>,
    ) -> Result<T, RpcError> {
        let method = message.method;
        let asked = async {
            self.identify().await?;
            self.exchange(message, read).await
        };
        self.guarded(method, asked).await
    }

    /// Makes sure that the endpoint serves this chain, if the breaker admits it.
    pub(crate) async fn ask_identity(&self) -> Result<(), RpcError> {
        self.guarded(BLOCK_BY_NUMBER, self.identify()).await
    }

    /// Sends what `asked` does if the breaker admits it, and tells it the outcome.
    async fn guarded<T>(
        &self,
        method: &'static str,
        asked: impl Future<Output = Result<T, RpcError>>,
    ) -> Result<T, RpcError> {
        let admitted = self.admitted()?;
        let since = Instant::now();
        let result = asked.await;
        match &result {
            Err(RpcError::SetAside(_)) => return result, // the socket sent nothing
            Err(error @ RpcError::RateLimited(wait)) => {
                self.back_off(method, error, *wait, since);
            }
            Err(error) if error.is_endpoint_failure() => {
                warn!(endpoint = self.endpoint.metrics.position, method, %error, "request failed");
                let jitter = rand::random();
                self.endpoint.breaker.with(|b| b.failure(Instant::now(), jitter, error.clone()));
            }
            _ => self.endpoint.breaker.with(Breaker::success),
        }
        admitted.told();
        result
    }

    /// Asks the breaker to admit a request, whose outcome is unknown unless `told` is called.
    fn admitted(&self) -> Result<Admitted<'a>, RpcError> {
        self.endpoint
            .breaker
            .with(|b| b.admit(Instant::now()).map_err(|_| b.cause()))
            .map_err(RpcError::SetAside)?;
        Ok(Admitted(self.endpoint))
    }

    /// Sets the endpoint aside for as long as it asks, in answer to a message that was made at `asked`, and slows down.
    fn back_off(&self, method: &str, error: &RpcError, wait: Option<Duration>, asked: Instant) {
        let wait = wait.unwrap_or(USUAL_WAIT);
        self.endpoint.pacer.note_refused(asked, wait);
        if !self.endpoint.is_set_aside() {
            let endpoint = self.endpoint.metrics.position;
            warn!(endpoint, method, %error, ?wait, "endpoint set aside");
        }
        self.endpoint.set_aside(wait, Some(error.clone()));
    }

    /// Checks which chain the endpoint serves, unless it was checked before.
    async fn identify(&self) -> Result<(), RpcError> {
        let Endpoint { identified, chain_id, genesis, .. } = self.endpoint;
        if identified.load(Ordering::Relaxed) {
            return Ok(());
        }
        // A WebSocket is checked when it connects.
        if self.endpoint.http.is_some() {
            let none: [(); 0] = [];
            let message = self.message("eth_chainId", &none)?;
            let id = message.first_id;
            let got = self.exchange(message, |body| decode::<Quantity>(body, id)).await?;
            let got = got.map_or(0, |q| q.0);
            if got != *chain_id {
                return Err(RpcError::WrongChain { wanted: *chain_id, got });
            }
        }
        let message = self.message(BLOCK_BY_NUMBER, &json!(["0x0", false]))?;
        let id = message.first_id;
        match self.exchange(message, |body| decode::<BareBlock>(body, id)).await {
            Ok(Some(block)) => genesis.check(block.hash)?,
            // It no longer has it.
            Ok(None) | Err(RpcError::Answer { .. } | RpcError::NotOffered(_)) => {}
            Err(error) => return Err(error),
        }
        identified.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn exchange<T: Brought>(
        &self,
        message: Message,
        read: impl FnOnce(&str) -> Result<T, RpcError>,
    ) -> Result<T, RpcError> {
        let (method, calls, is_single) = (message.method, message.calls(), message.blocks == 1);
        self.wait_for_leave(method, calls).await?;
        let endpoint = self.endpoint;
        let (at, outcome, failed) = (Instant::now(), "abandoned", Vec::new());
        let mut sent = Sent { endpoint, method, calls, at, outcome, failed };
        let answer = timeout(REQUEST_TIMEOUT, self.send(message))
            .await
            .unwrap_or(Err(RpcError::Timeout(REQUEST_TIMEOUT)));
        let result =
            answer.and_then(|body| read(&body)).map_err(|error| endpoint.redaction.apply(error));
        endpoint.unanswered.store(0, Ordering::Relaxed);
        // Of a batch, some calls may be refused.
        let is_answer =
            matches!(result, Ok(_) | Err(RpcError::Answer { .. } | RpcError::NotOffered(_)));
        if is_answer && calls == 1 {
            endpoint.pacer.note_accepted(1);
        }
        sent.outcome = result.as_ref().map_or_else(RpcError::outcome, |_| "ok");
        sent.failed = result.as_ref().map_or_else(|_| Vec::new(), Brought::failed);
        // Answers about several blocks say nothing about when one is late, and neither do immediate
        // failures.
        if is_single && matches!(result, Ok(_) | Err(RpcError::Timeout(_))) {
            endpoint.note_latency(sent.at.elapsed());
        }
        result
    }

    /// Waits until the operator's rate limit and budget allow `calls`, and the endpoint's pace; records their cost.
    ///
    /// # Errors
    /// If the endpoint was set aside meanwhile.
    async fn wait_for_leave(&self, method: &'static str, calls: u32) -> Result<(), RpcError> {
        let price = self.endpoint.prices.of_call(method);
        self.watch().hold();
        if let Some(requests) = &self.endpoint.requests {
            requests.take(calls).await;
        }
        if let Some(units) = &self.endpoint.units {
            units.take(price.throughput.saturating_mul(calls)).await;
        }
        let kept = self.endpoint.pacer.keep(calls).await;
        self.watch().go_on();
        kept?;
        self.endpoint.metrics.spent(method, u64::from(price.units) * u64::from(calls));
        Ok(())
    }

    async fn send(&self, message: Message) -> Answer {
        let max_bytes = message.max_bytes();
        let Message { first_id, calls, text, .. } = message;
        match (&self.endpoint.http, &self.endpoint.ws) {
            (Some(http), _) => http.post(text, max_bytes).await,
            (None, Some(ws)) => ws.request(first_id, calls as u64, text).await,
            (None, None) => Err(RpcError::Connection("the endpoint has no address".into())),
        }
    }
}
