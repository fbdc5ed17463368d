//! The chain's requests to a node, whichever endpoint answers ([`selection`]).
//!
//! Every header is checked against its own hash, and every block against its header, before it leaves this module (G6).

mod blocks;
mod second_opinion;
mod selection;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use alloy_primitives::B256;
use ethhook_domain::block::Quantity;
use ethhook_domain::verify::{self, Check, Failure};
use ethhook_domain::{BlockRef, BloomTest, Header, Profile};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::warn;

pub(crate) use self::blocks::{FetchedBlock, Plan};
use self::selection::Request;
use crate::config::{ChainConfig, Fetch};
use crate::metrics::ChainMetrics;
use crate::rpc::{
    Attempt, Connection, Endpoint, Genesis, INVALID_PARAMS, Method, RpcError, SocketEvent, Streak,
    connect,
};

/// How long to wait for other endpoints if one has answered, or will be asked again.
const OTHERS_PATIENCE: Duration = Duration::from_secs(1);
/// How long an endpoint is set aside after failing a check that another endpoint passed.
const LIAR_WAIT: Duration = Duration::from_secs(30);

/// After this many failures in a row, one more means that the node has no finalized block.
pub(crate) const REFUSED_TAGS: u32 = 2;

/// Why no endpoint gave the requested data.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum NodeError {
    /// The failure of an endpoint.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// An answer failed a check.
    #[error(transparent)]
    Check(#[from] Failure),
    /// No endpoint has it: not yet, or no longer.
    #[error("no endpoint has it")]
    Unknown,
}

impl NodeError {
    /// What is wrong, in the same words whether the endpoint failed now or was set aside for it.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Rpc(error) => error.reason().to_string(),
            other => other.to_string(),
        }
    }

    /// Whether nothing was asked, or the endpoint only wants to be asked later, or is the wrong one.
    fn is_to_wait(&self) -> bool {
        let waits = matches!(self, Self::Rpc(RpcError::SetAside(_) | RpcError::RateLimited(_)));
        waits || self.is_wrong_chain()
    }

    /// Whether the answer contradicts itself or the block.
    fn is_lie(&self) -> bool {
        matches!(self, Self::Check(failure) if failure.check.is_conclusive())
    }

    /// Whether the endpoint's URL is for another chain, which only an operator can correct.
    pub(crate) fn is_wrong_chain(&self) -> bool {
        matches!(self, Self::Rpc(error) if error.is_wrong_chain())
    }

    /// Whether the endpoint answered, but without what was asked for.
    fn is_lack(&self) -> bool {
        match self {
            Self::Unknown | Self::Rpc(RpcError::Answer { .. }) => true,
            Self::Check(failure) => failure.check == Check::Empty,
            Self::Rpc(_) => false,
        }
    }

    /// Whether endpoints answered, but none gave what was asked for: asking again costs a call.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Check(_) | Self::Unknown => true,
            Self::Rpc(error) => matches!(error, RpcError::Answer { .. } | RpcError::NotOffered(_)),
        }
    }

    /// Whether the endpoint serves another chain under the same id.
    pub(crate) fn is_wrong_genesis(&self) -> bool {
        matches!(self, Self::Rpc(error) if error.is_wrong_genesis())
    }

    /// Of two endpoints' failures, the one that tells a person more.
    fn or_more_telling(self, other: Self) -> Self {
        let weight = |error: &Self| match error {
            // The others may have it.
            Self::Rpc(rpc) if rpc.is_wrong_chain() => 0,
            Self::Rpc(RpcError::SetAside(_)) => 1,
            Self::Unknown => 2,
            Self::Rpc(_) => 3,
            Self::Check(_) => 4,
        };
        if weight(&other) >= weight(&self) { other } else { self }
    }

    /// The most telling of several endpoints' failures; that nobody has it if there is none.
    fn most_telling(failures: impl IntoIterator<Item = Self>) -> Self {
        failures.into_iter().reduce(Self::or_more_telling).unwrap_or(Self::Unknown)
    }

    /// Whether the endpoint may have it, but gave no answer.
    fn is_silence(&self) -> bool {
        matches!(self, Self::Rpc(error) if !error.is_wrong_chain())
    }
}

/// Whether any endpoint has a certain block.
#[derive(Debug)]
pub(crate) enum Holds {
    Someone,
    Nobody,
    /// None of those that answered, but one did not.
    NotKnown(NodeError),
}

/// The endpoints of one chain.
pub(crate) struct Node {
    profile: Profile,
    fetch: Fetch,
    /// Whether a block may contain a wanted log.
    wanted: BloomTest,
    endpoints: Vec<Endpoint>,
    genesis: Genesis,
    /// Requests in a row for the finalized block that failed.
    refused_tags: AtomicU32,
    /// Consecutive blocks whose receipts miss the header's root on every endpoint asked.
    unproven_streak: Streak,
}

impl Node {
    /// The node, and the tasks that keep its endpoints' WebSockets connected.
    pub(crate) fn new(
        config: &ChainConfig,
        heads: &mpsc::Sender<SocketEvent>,
        metrics: &ChainMetrics,
    ) -> (Self, Vec<Connection>) {
        let genesis = Genesis::default();
        let (endpoints, sockets) = connect(config, heads, metrics, &genesis);
        let (profile, wanted) = (config.profile.clone(), config.filter.bloom_test());
        (
            Self {
                profile,
                fetch: config.fetch,
                wanted,
                endpoints,
                genesis,
                refused_tags: AtomicU32::new(0),
                unproven_streak: Streak::default(),
            },
            sockets,
        )
    }

    /// The node's `latest` block.
    pub(crate) async fn latest(&self) -> Result<Header, NodeError> {
        self.first(async |attempt| self.tagged(&attempt, "latest").await?.ok_or(NodeError::Unknown))
            .await
    }

    /// The node's `finalized` block; none if there is no such tag, or no such block. A single failure proves nothing, nor
    /// does a single `null`, but some nodes always answer with one, each in its own way.
    pub(crate) async fn finalized(&self) -> Result<Option<Header>, NodeError> {
        let has_none = AtomicBool::new(false);
        let asked = self
            .first(async |attempt| {
                let found = self.tagged(&attempt, "finalized").await?;
                has_none.fetch_or(found.is_none(), Ordering::Relaxed);
                found.ok_or(NodeError::Unknown)
            })
            .await;
        match asked {
            Ok(header) => {
                self.refused_tags.store(0, Ordering::Relaxed);
                Ok(Some(header))
            }
            Err(NodeError::Rpc(
                RpcError::NotOffered(_) | RpcError::Answer { code: INVALID_PARAMS, .. },
            )) => Ok(None),
            Err(error)
                if (has_none.into_inner() || !error.is_to_wait())
                    && self.refused_tags.fetch_add(1, Ordering::Relaxed) >= REFUSED_TAGS =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The highest block that any endpoint calls `latest`, or one that is `tip` or its child, if the highest is only one
    /// above it: of two branches that grow side by side, ours is kept. Once one endpoint has answered, the others are
    /// given only a little more time.
    pub(crate) async fn highest_latest(&self, tip: Option<B256>) -> Result<Header, NodeError> {
        let (told, failures) = self
            .each(Some(OTHERS_PATIENCE), async |attempt| {
                self.tagged(&attempt, "latest").await?.ok_or(NodeError::Unknown)
            })
            .await;
        let is_ours =
            |block: &BlockRef| tip.is_some_and(|t| t == block.hash || t == block.parent_hash);
        let highest = told.iter().map(|(_, header)| header.block.number).max().unwrap_or_default();
        let rank = |header: &Header| {
            let block = &header.block;
            (block.number.saturating_add(1) >= highest && is_ours(block), block.number)
        };
        // Of equals, the first in the order of the configuration.
        let best = told.into_iter().map(|(_, header)| header).rev().max_by_key(rank);
        best.ok_or_else(|| NodeError::most_telling(failures))
    }

    /// What each endpoint calls `finalized`, of those that have such a block.
    ///
    /// # Errors
    /// If none has one.
    pub(crate) async fn each_finalized(&self) -> Result<Vec<Header>, NodeError> {
        let (told, failures) = self
            .each(None, async |attempt| {
                self.tagged(&attempt, "finalized").await?.ok_or(NodeError::Unknown)
            })
            .await;
        if told.is_empty() {
            return Err(NodeError::most_telling(failures));
        }
        Ok(told.into_iter().map(|(_, header)| header).collect())
    }

    /// Whether any endpoint has the final block `block` at its height. If so, one that has another block there gave a
    /// false answer. Each is asked, also one that is set aside (`urgent`: even if it has asked us to wait), and checked
    /// again for the genesis block: it may serve another chain by now.
    ///
    /// # Errors
    /// If none has any block at that height: an endpoint that is behind proves nothing.
    pub(crate) async fn anyone_holds(
        &self,
        block: &BlockRef,
        urgent: bool,
    ) -> Result<Holds, NodeError> {
        self.expect_genesis(self.genesis.known());
        self.endpoints.iter().for_each(|endpoint| endpoint.probe(urgent));
        let params = json!([Quantity(block.number), false]);
        let (told, failures) = self
            .each(None, async |attempt| {
                let theirs = self.header(&attempt, "eth_getBlockByNumber", params.clone()).await?;
                Ok(theirs.ok_or(NodeError::Unknown)?.block.hash)
            })
            .await;
        if told.is_empty() {
            return Err(NodeError::most_telling(failures));
        }
        let is_held = told.iter().any(|(_, theirs)| *theirs == block.hash);
        for (endpoint, theirs) in told {
            if is_held && theirs != block.hash {
                let detail = format!(
                    "{block} is final and another endpoint has it, but this one has {theirs}"
                );
                distrust(endpoint, Failure { check: Check::BlockHash, detail });
            }
        }
        let silent = failures.into_iter().find(NodeError::is_silence);
        Ok(match silent {
            _ if is_held => Holds::Someone,
            Some(error) => Holds::NotKnown(error),
            None => Holds::Nobody,
        })
    }

    /// The genesis block of the first endpoint that has the `expected` one, or any if there is none; none if it no longer
    /// has it. From now on every endpoint must have the same, and is checked before its next request: it may serve
    /// another chain by now.
    pub(crate) async fn identify(&self, expected: Option<B256>) -> Result<Option<B256>, NodeError> {
        self.expect_genesis(expected);
        self.first(async |attempt| Ok(attempt.ask_identity().await?)).await?;
        Ok(self.genesis.known())
    }

    /// From now on every endpoint must have the `expected` genesis block, if there is one, and is checked before its next
    /// request.
    pub(crate) fn expect_genesis(&self, expected: Option<B256>) {
        let changed = self.genesis.expect(expected);
        self.endpoints.iter().for_each(|endpoint| endpoint.identify_again(changed));
    }

    /// The block with `hash`.
    pub(crate) async fn by_hash(&self, hash: B256) -> Result<Header, NodeError> {
        self.first(async |attempt| {
            let header = self
                .header(&attempt, "eth_getBlockByHash", json!([hash, false]))
                .await?
                .ok_or(NodeError::Unknown)?;
            if header.block.hash == hash {
                return Ok(header);
            }
            Err(check_failed(
                attempt.endpoint(),
                Failure {
                    check: Check::BlockHash,
                    detail: format!("asked for {hash}, got {}", header.block.hash),
                },
            ))
        })
        .await
    }

    /// The blocks from the start of `numbers` on, in order: as many as one message covers, up to
    /// the first that the node does not have.
    pub(crate) async fn by_numbers(
        &self,
        numbers: RangeInclusive<u64>,
    ) -> Result<Vec<Header>, NodeError> {
        let is_one = numbers.start() == numbers.end();
        let (request, order) = if is_one {
            (Request::OneBlock, self.by_preference())
        } else {
            (Request::Blocks, self.by_wait())
        };
        let ask = async |attempt| self.headers(&attempt, numbers.clone()).await;
        match self.first_to_have(order, request, ask).await {
            Err(NodeError::Unknown) => Ok(Vec::new()),
            other => other.map(|(headers, _)| headers),
        }
    }

    /// One or more headers from an endpoint.
    async fn headers(
        &self,
        attempt: &Attempt<'_>,
        numbers: RangeInclusive<u64>,
    ) -> Result<Vec<Header>, NodeError> {
        let items = loop {
            let blocks = attempt.endpoint().blocks_at_once(Method::Headers);
            let params: Vec<_> =
                numbers.clone().take(blocks).map(|n| json!([Quantity(n), false])).collect();
            match attempt.call_each::<Header>(Method::Headers, &params).await {
                Ok(items) => break items,
                // The batch was too large: the next one is smaller.
                Err(error) if params.len() > 1 && error.may_be_of_size() => {}
                Err(error) => return Err(error.into()),
            }
        };
        let asked = items.len();
        let mut headers = Vec::with_capacity(asked);
        for (number, item) in numbers.zip(items) {
            let checked = match item {
                Ok(header) => header
                    .filter(|header| header.block.number == number)
                    .ok_or(NodeError::Unknown)
                    .and_then(|header| self.sealed(attempt.endpoint(), header)),
                Err(error) => {
                    // Some providers answer only the first calls of a batch.
                    if error.may_be_of_size() {
                        attempt.endpoint().note_batch_too_large(Method::Headers, asked);
                    }
                    Err(error.into())
                }
            };
            match checked {
                Ok(header) => headers.push(header),
                Err(error) if headers.is_empty() => return Err(error),
                Err(_) => break, // keeps those before it; the rest is requested again
            }
        }
        Ok(headers)
    }

    /// The endpoints, for what each announces.
    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The block with a tag, such as `latest`.
    async fn tagged(
        &self,
        attempt: &Attempt<'_>,
        tag: &'static str,
    ) -> Result<Option<Header>, NodeError> {
        let header = self.header(attempt, "eth_getBlockByNumber", json!([tag, false])).await?;
        if let ("latest", Some(header)) = (tag, &header) {
            attempt.endpoint().announced.note(header.block);
        }
        Ok(header)
    }

    async fn header(
        &self,
        attempt: &Attempt<'_>,
        method: &'static str,
        params: serde_json::Value,
    ) -> Result<Option<Header>, NodeError> {
        let header = attempt.call::<Header>(method, &params).await?;
        header.map(|header| self.sealed(attempt.endpoint(), header)).transpose()
    }

    fn sealed(&self, endpoint: &Endpoint, header: Header) -> Result<Header, NodeError> {
        verify::verify_header(&self.profile, &header).map_err(|f| check_failed(endpoint, f))?;
        Ok(header)
    }
}

/// Counts a failed check, and logs it if the answer is false.
fn check_failed(endpoint: &Endpoint, failure: Failure) -> NodeError {
    if failure.check.is_conclusive() {
        warn!(
            endpoint = endpoint.metrics.position,
            check = failure.check.as_str(),
            detail = failure.detail,
            "answer failed a check"
        );
    }
    endpoint.metrics.check_failed(failure.check.as_str());
    failure.into()
}

/// Sets aside an endpoint whose answer failed a check that another endpoint's passed.
fn distrust(endpoint: &Endpoint, failure: Failure) {
    check_failed(endpoint, failure);
    endpoint.set_aside(LIAR_WAIT, None);
}
