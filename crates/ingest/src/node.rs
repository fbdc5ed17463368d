//! What the chain asks of a node, whichever endpoint answers.
//!
//! Endpoints are asked in the order of the configuration, much slower ones last; one that fails,
//! lags, lies or is slower than it tends to be is followed by the next. Every header is held against its own
//! hash and every block against its header before it leaves this module (G6).

use std::future::Future;
use std::ops::RangeInclusive;
use std::time::Duration;

use alloy_primitives::B256;
use ethhook_domain::block::{Body, Quantity};
use ethhook_domain::verify::{self, Check, Failure, Verified};
use ethhook_domain::{BloomTest, Header, Log, Profile, Proof, Receipt};
use futures_util::future::join_all;
use futures_util::stream::{self, FuturesUnordered};
use futures_util::{FutureExt, StreamExt};
use serde_json::json;
use tracing::warn;

use crate::config::ChainConfig;
use crate::rpc::{Endpoint, RpcError};

/// Headers that are asked for at once while catching up.
const HEADERS_AT_ONCE: usize = 8;
/// Between the two askings of one endpoint for a block that it says is empty.
const SECOND_ASKING: Duration = Duration::from_millis(500);
/// The next endpoint is not asked before this long.
const LEAST_PATIENCE: Duration = Duration::from_millis(50);
/// How many times slower than the fastest, and how much, an endpoint may be and keep its place.
const MUCH_SLOWER: u32 = 2;
const NOTICEABLE: Duration = Duration::from_millis(10);
/// How long an endpoint is set aside that failed a check which another passed.
const LIAR_WAIT: Duration = Duration::from_secs(30);

/// Why no endpoint gave what was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum NodeError {
    /// The last endpoint's fault.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// An answer failed a check.
    #[error("check `{}` failed: {}", .0.check.as_str(), .0.detail)]
    Check(#[from] Failure),
    /// No endpoint has it, yet or any more.
    #[error("no endpoint has it")]
    Unknown,
}

impl NodeError {
    /// Whether the answer contradicted itself or the block.
    fn is_lie(&self) -> bool {
        matches!(self, Self::Check(f) if !matches!(f.check, Check::Empty | Check::Unprovable))
    }

    /// Of what several endpoints said, the part that a person should read.
    fn or_more_telling(self, other: Self) -> Self {
        let weight = |error: &Self| match error {
            Self::Rpc(RpcError::SetAside(_)) => 0,
            Self::Unknown => 1,
            Self::Rpc(_) => 2,
            Self::Check(_) => 3,
        };
        if weight(&other) >= weight(&self) { other } else { self }
    }
}

/// The endpoints of one chain.
pub(crate) struct Node {
    profile: Profile,
    /// Whether a block may hold a log that anybody wants.
    wanted: BloomTest,
    endpoints: Vec<Endpoint>,
}

impl Node {
    pub(crate) fn new(config: &ChainConfig, endpoints: Vec<Endpoint>) -> Self {
        let (profile, wanted) = (config.profile.clone(), config.filter.bloom_test());
        Self { profile, wanted, endpoints }
    }

    /// The block that the node calls `latest`.
    pub(crate) async fn latest(&self) -> Result<Header, NodeError> {
        self.first(async |endpoint| {
            let header =
                self.header(endpoint, "eth_getBlockByNumber", json!(["latest", false])).await?;
            header.ok_or(NodeError::Unknown)
        })
        .await
    }

    /// The block that the node calls `finalized`; none where there is no such tag.
    pub(crate) async fn finalized(&self) -> Result<Option<Header>, NodeError> {
        let asked = self
            .first(async |endpoint| {
                self.header(endpoint, "eth_getBlockByNumber", json!(["finalized", false])).await
            })
            .await;
        match asked {
            Err(NodeError::Rpc(RpcError::Answer { .. } | RpcError::NotOffered(_))) => Ok(None),
            other => other,
        }
    }

    /// The highest block that any endpoint calls `latest`.
    pub(crate) async fn highest_latest(&self) -> Result<Header, NodeError> {
        let ask = async |endpoint| {
            self.header(endpoint, "eth_getBlockByNumber", json!(["latest", false])).await
        };
        let answers = join_all(self.endpoints.iter().map(ask)).await;
        let mut failure = NodeError::Rpc(RpcError::SetAside(LIAR_WAIT));
        let mut highest: Option<Header> = None;
        for answer in answers {
            match answer {
                Ok(Some(h)) if highest.as_ref().is_none_or(|b| b.block.number < h.block.number) => {
                    highest = Some(h);
                }
                Ok(_) => {}
                Err(error) => failure = failure.or_more_telling(error),
            }
        }
        highest.ok_or(failure)
    }

    /// The hash of block 0; none where the node has forgotten it.
    pub(crate) async fn genesis_hash(&self) -> Result<Option<B256>, NodeError> {
        let asked = self
            .first(async |endpoint| {
                // The genesis of some chains is not hashed as other headers are.
                let params = json!(["0x0", false]);
                let header = endpoint.call::<BareBlock>("eth_getBlockByNumber", &params).await?;
                Ok(header.map(|block| block.hash))
            })
            .await;
        match asked {
            Err(NodeError::Rpc(RpcError::Answer { .. })) => Ok(None),
            other => other,
        }
    }

    /// The block with `hash`.
    pub(crate) async fn by_hash(&self, hash: B256) -> Result<Header, NodeError> {
        self.first(async |endpoint| {
            let header = self
                .header(endpoint, "eth_getBlockByHash", json!([hash, false]))
                .await?
                .ok_or(NodeError::Unknown)?;
            if header.block.hash == hash {
                return Ok(header);
            }
            Err(lie(
                endpoint,
                Failure {
                    check: Check::BlockHash,
                    detail: format!("asked for {hash}, got {}", header.block.hash),
                },
            ))
        })
        .await
    }

    /// The blocks at `numbers` in order, up to the first that is not there.
    pub(crate) async fn by_numbers(
        &self,
        numbers: RangeInclusive<u64>,
    ) -> Result<Vec<Header>, NodeError> {
        let mut answers = stream::iter(numbers)
            .map(|number| async move {
                self.first(async |endpoint| {
                    let params = json!([Quantity(number), false]);
                    let header = self.header(endpoint, "eth_getBlockByNumber", params).await?;
                    header.filter(|h| h.block.number == number).ok_or(NodeError::Unknown)
                })
                .await
            })
            .buffered(HEADERS_AT_ONCE);
        let mut headers = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(header) => headers.push(header),
                Err(NodeError::Unknown) => break,
                Err(error) if headers.is_empty() => return Err(error),
                Err(_) => break, // what came before it is of use; it is asked for again
            }
        }
        Ok(headers)
    }

    /// What need not be asked about `header`'s block, for the header tells it.
    pub(crate) fn told_by(&self, header: &Header) -> Option<Verified> {
        verify::without_fetching(&self.profile, header, &self.wanted)
    }

    /// The logs of `header`'s block, checked; one request.
    pub(crate) async fn block(&self, header: &Header) -> Result<Verified, NodeError> {
        let (answerer, verified) = self
            .first(async |endpoint| Ok((endpoint, self.checked(endpoint, header).await?)))
            .await?;
        let unproven = verified.logs.is_empty() && verified.proof != Proof::ReceiptsRoot;
        if unproven && !self.is_empty_again(answerer, header).await? {
            return Err(NodeError::Unknown);
        }
        Ok(verified)
    }

    /// An empty answer proves nothing by itself: another endpoint is asked, or the same one again.
    async fn is_empty_again(
        &self,
        answerer: &Endpoint,
        header: &Header,
    ) -> Result<bool, NodeError> {
        for other in self.endpoints.iter().filter(|other| !std::ptr::eq(*other, answerer)) {
            if let Ok(verified) = self.checked(other, header).await {
                return Ok(verified.logs.is_empty());
            }
        }
        tokio::time::sleep(SECOND_ASKING).await;
        Ok(self.checked(answerer, header).await?.logs.is_empty())
    }

    /// Makes the sockets subscribe anew.
    pub(crate) fn resubscribe(&self) {
        self.endpoints.iter().for_each(Endpoint::resubscribe);
    }

    /// The answer of the best endpoint that has one. The next is asked when one fails, and, without
    /// giving up on it, when it is slower than it tends to be (a hedge).
    ///
    /// An endpoint that failed a check is set aside only if another passed it: where every one fails
    /// the same check, the check is suspect, and the chain waits (G6).
    async fn first<'a, T, F>(&'a self, ask: impl Fn(&'a Endpoint) -> F) -> Result<T, NodeError>
    where
        F: Future<Output = Result<T, NodeError>> + 'a,
    {
        let mut rest = self.by_preference().into_iter();
        let mut running = FuturesUnordered::new();
        let start = |endpoint| ask(endpoint).map(move |answer| (endpoint, answer));
        let mut newest: Option<&Endpoint> = None;
        let (mut liars, mut failure) = (Vec::new(), NodeError::Rpc(RpcError::SetAside(LIAR_WAIT)));
        loop {
            if running.is_empty() {
                let Some(next) = rest.next() else { return Err(failure) };
                newest = Some(next);
                running.push(start(next));
            }
            let patience = newest.map_or(LEAST_PATIENCE, Endpoint::patience).max(LEAST_PATIENCE);
            tokio::select! {
                biased;
                Some((endpoint, answer)) = running.next() => match answer {
                    Ok(answer) => {
                        liars.iter().for_each(|liar: &&Endpoint| liar.set_aside(LIAR_WAIT));
                        return Ok(answer);
                    }
                    Err(error) => {
                        if error.is_lie() {
                            liars.push(endpoint);
                        }
                        failure = failure.or_more_telling(error);
                    }
                },
                () = tokio::time::sleep(patience), if rest.len() > 0 => {
                    if let Some((slow, next)) = newest.zip(rest.next()) {
                        slow.was_slow(patience);
                        newest = Some(next);
                        running.push(start(next));
                    }
                }
            }
        }
    }

    /// The endpoints as configured, but those that answer much slower than the fastest go last.
    fn by_preference(&self) -> Vec<&Endpoint> {
        let medians: Vec<_> = self.endpoints.iter().map(Endpoint::usual_latency).collect();
        let fastest = medians.iter().flatten().min().copied().unwrap_or_default();
        let too_slow = MUCH_SLOWER * fastest + NOTICEABLE;
        let mut order: Vec<_> = self.endpoints.iter().zip(medians).collect();
        order.sort_by_key(|(_, median)| median.is_some_and(|median| median > too_slow)); // stable
        order.into_iter().map(|(endpoint, _)| endpoint).collect()
    }

    async fn header(
        &self,
        endpoint: &Endpoint,
        method: &'static str,
        params: serde_json::Value,
    ) -> Result<Option<Header>, NodeError> {
        let header = endpoint.call::<Header>(method, &params).await?;
        if let Some(header) = &header {
            verify::verify_header(&self.profile, header).map_err(|f| lie(endpoint, f))?;
        }
        Ok(header)
    }

    async fn checked(&self, endpoint: &Endpoint, header: &Header) -> Result<Verified, NodeError> {
        let body = self.body(endpoint, header).await?;
        match verify::verify(&self.profile, header, body) {
            Ok(verified) => Ok(verified),
            // A node that has not caught up, or does not offer what a proof needs, is not a liar.
            Err(failure) if matches!(failure.check, Check::Empty | Check::Unprovable) => {
                endpoint.metrics.check_failed(failure.check.as_str());
                Err(failure.into())
            }
            Err(failure) => Err(lie(endpoint, failure)),
        }
    }

    /// The logs of one block by the best way that the endpoint offers.
    async fn body(&self, endpoint: &Endpoint, header: &Header) -> Result<Body, NodeError> {
        const RECEIPTS: &str = "eth_getBlockReceipts";
        let block = &header.block;
        if endpoint.offers_receipts() {
            let mut answer = endpoint.call::<Vec<Receipt>>(RECEIPTS, &json!([block.hash])).await;
            if let Err(RpcError::Answer { code: -32602, .. }) = answer {
                // Some take a number only; the receipts' own hashes tell which block they are of.
                answer = endpoint.call(RECEIPTS, &json!([Quantity(block.number)])).await;
            }
            match answer {
                Err(RpcError::NotOffered(_)) => {
                    warn!(
                        endpoint = endpoint.metrics.position,
                        "eth_getBlockReceipts is not offered: eth_getLogs it is"
                    );
                    endpoint.lacks_receipts();
                }
                other => return other?.map(Body::Receipts).ok_or(NodeError::Unknown),
            }
        }
        let params = json!([{ "blockHash": block.hash }]);
        let logs = endpoint.call::<Vec<Log>>("eth_getLogs", &params).await?;
        logs.map(Body::Logs).ok_or(NodeError::Unknown)
    }
}

#[derive(serde::Deserialize)]
struct BareBlock {
    hash: B256,
}

/// Counts a lie.
fn lie(endpoint: &Endpoint, failure: Failure) -> NodeError {
    warn!(
        endpoint = endpoint.metrics.position,
        check = failure.check.as_str(),
        detail = failure.detail,
        "answer failed a check"
    );
    endpoint.metrics.check_failed(failure.check.as_str());
    failure.into()
}
