//! Requests to a chain's node, for operator commands.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use alloy_primitives::B256;
use ethhook_domain::{BlockRef, Header, Log};
use futures_util::stream;
use futures_util::{StreamExt, TryStreamExt};
use prometheus::Registry;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::Metrics;
use crate::backoff::endless_backoff;
use crate::config::ChainConfig;
use crate::metrics::ChainMetrics;
use crate::node::{Node, NodeError};
use crate::rpc::SocketEvent;

/// Time limit for an answer, including the connection.
const PATIENCE: Duration = Duration::from_secs(20);
/// Waits between two attempts.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// Blocks whose logs are fetched at once.
const FETCHES_AT_ONCE: usize = 8;
/// Heads are not used here; they are dropped when this is full.
const MAX_HEADS: usize = 1;

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InquiryError {
    /// No endpoint answered in time, or no answer passed the checks; the last failure.
    #[error("no endpoint answers: {0}")]
    Unanswered(String),
    /// The node's chain has no such block yet, or no longer.
    #[error("the node has no block {0}")]
    NoBlock(u64),
    /// The block's logs are gone, although its header was found.
    #[error("no endpoint has the logs of {0}")]
    NoLogs(BlockRef),
    /// Two consecutive blocks in the answer are not parent and child.
    #[error("{above} is not the child of {below}: a reorg has just happened; try again")]
    Reorg {
        /// The lower one.
        below: BlockRef,
        /// The one at the next height.
        above: BlockRef,
    },
}

/// A block and its logs, checked as by the ingestor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedBlock {
    /// The block.
    pub block: BlockRef,
    /// Its unfiltered logs by `log_index`; empty if the header proves that none passes the chain's
    /// filter.
    pub logs: Vec<Log>,
}

/// Which block to request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The node's `latest` block.
    Latest,
    /// The node's `finalized` block.
    Finalized,
    /// The canonical one at this height.
    Number(u64),
}

/// The endpoints of one chain, used as by the ingestor: every header is checked against its own
/// hash, and a connection that is not up yet is awaited.
pub struct Inquiry {
    node: Node,
    /// Keeps the WebSockets up.
    _sockets: JoinSet<()>,
    _heads: mpsc::Receiver<SocketEvent>,
}

impl std::fmt::Debug for Inquiry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inquiry").finish_non_exhaustive()
    }
}

impl Inquiry {
    /// Connects to the endpoints of `chain`; must be called within a runtime. Only those whose genesis block has the
    /// hash `genesis` are used; none accepts that of the first one that answers.
    ///
    /// # Errors
    /// If the metrics, which are not exported here, cannot be created.
    pub fn open(chain: &ChainConfig, genesis: Option<B256>) -> Result<Self, prometheus::Error> {
        let metrics = Metrics::register(&Registry::new())?;
        let metrics = ChainMetrics::new(&metrics, &chain.profile.name);
        let (heads_in, heads) = mpsc::channel(MAX_HEADS);
        let (node, running) = Node::new(chain, &heads_in, &metrics);
        node.expect_genesis(genesis);
        let mut sockets = JoinSet::new();
        for socket in running {
            sockets.spawn(socket.run());
        }
        Ok(Self { node, _sockets: sockets, _heads: heads })
    }

    /// The header of a block; none if the node has no such block, or no such tag.
    ///
    /// # Errors
    /// See [`InquiryError`].
    pub async fn header(&self, which: Which) -> Result<Option<Header>, InquiryError> {
        let asked = persist(async || {
            let found = match which {
                Which::Latest => self.node.latest().await.map(Some),
                Which::Finalized => self.node.finalized().await,
                Which::Number(n) => self.node.by_numbers(n..=n).await.map(|mut found| found.pop()),
            };
            match found {
                // A single `null` does not mean that there is no such tag.
                Err(NodeError::Unknown) if which != Which::Finalized => Ok(None),
                other => other,
            }
        });
        asked.await.map_err(|error| InquiryError::Unanswered(error.to_string()))
    }

    /// The canonical blocks at `numbers`, ascending, each the parent of the next. All are held in
    /// memory: request a few dozen at once.
    ///
    /// # Errors
    /// See [`InquiryError`].
    pub async fn blocks(
        &self,
        numbers: RangeInclusive<u64>,
    ) -> Result<Vec<CheckedBlock>, InquiryError> {
        let mut headers: Vec<Header> = Vec::new();
        loop {
            let next = headers.last().map_or(*numbers.start(), |last| last.block.number + 1);
            let rest = next..=*numbers.end();
            if rest.is_empty() {
                break;
            }
            // At most as many as one message covers. An endpoint may have fallen behind the others.
            let found = persist(async || match self.node.by_numbers(rest.clone()).await {
                Ok(found) if found.is_empty() => Err(NodeError::Unknown),
                other => other,
            });
            headers.extend(found.await.map_err(|error| match error {
                NodeError::Unknown => InquiryError::NoBlock(next),
                other => InquiryError::Unanswered(other.to_string()),
            })?);
        }
        let parent_of = |pair: &[Header]| pair[0].block.hash == pair[1].block.parent_hash;
        if let Some(pair) = headers.windows(2).find(|pair| !parent_of(pair)) {
            return Err(InquiryError::Reorg { below: pair[0].block, above: pair[1].block });
        }
        let fetch = |header: Header| async move {
            let block = header.block;
            let verified = match self.node.told_by(&header) {
                Some(told) => told,
                None => {
                    persist(async || self.node.block(&header).await).await.map_err(|error| {
                        match error {
                            NodeError::Unknown => InquiryError::NoLogs(block),
                            other => InquiryError::Unanswered(other.to_string()),
                        }
                    })?
                }
            };
            Ok(CheckedBlock { block, logs: verified.logs })
        };
        stream::iter(headers).map(fetch).buffered(FETCHES_AT_ONCE).try_collect().await
    }
}

/// Retries for a while until there is an answer; then returns the last failure.
async fn persist<T>(ask: impl AsyncFn() -> Result<T, NodeError>) -> Result<T, NodeError> {
    let deadline = Instant::now() + PATIENCE;
    let mut waits = endless_backoff(FIRST_WAIT, LONGEST_WAIT);
    loop {
        match ask().await {
            Err(error) if !error.is_wrong_chain() && Instant::now() < deadline => {
                tokio::time::sleep(waits.next().unwrap_or(LONGEST_WAIT)).await;
            }
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use ethhook_simulator::{Chain, Fault, ManualSpec, RunningNode};

    use super::*;
    use crate::config::EndpointConfig;
    use crate::testing::{LOCAL, mined, serve};

    #[tokio::test]
    async fn g6_an_endpoint_with_another_genesis_than_the_stream_is_not_asked() {
        let ours = mined(3);
        let other =
            Chain::manual(ManualSpec { seed: 7, genesis_time: 7, ..ManualSpec::new(LOCAL) });
        other.mine(9);
        let nodes = [serve(other.clone()).await, serve(ours.clone()).await];
        let latest = async |nodes: &[RunningNode]| {
            let config = ChainConfig::local(nodes.iter().map(EndpointConfig::of));
            let genesis = ours.block(0).unwrap().hash();
            let inquiry = Inquiry::open(&config, Some(genesis)).unwrap();
            inquiry.header(Which::Latest).await.map(|header| header.unwrap().block.number)
        };
        assert_eq!(latest(&nodes).await, Ok(3));
        other.stats().reset();
        let told = latest(&nodes[..1]).await.unwrap_err().to_string();
        assert!(told.contains("the node's genesis block is 0x"), "{told}");
        assert_eq!(other.stats().requests("eth_getBlockByNumber"), 1, "asking again is of no use");
    }

    #[tokio::test]
    async fn what_is_not_there_at_once_is_asked_for_again() {
        let chain = mined(3);
        let node = serve(chain.clone()).await;
        let inquiry =
            Inquiry::open(&ChainConfig::local([EndpointConfig::of(&node)]), None).unwrap();
        for (method, times) in [("eth_getBlockByNumber", 1), ("eth_getBlockReceipts", 2)] {
            chain.faults().push(method, Fault::Null, times);
            let blocks = inquiry.blocks(1..=3).await.unwrap();
            assert_eq!((blocks.len(), chain.faults().left()), (3, 0), "{method}");
        }
    }

    #[tokio::test]
    async fn a_node_that_answers_an_error_has_no_finalized_block_and_one_that_did_once_has() {
        let chain = mined(3);
        chain.set_finalized(2);
        let node = serve(chain.clone()).await;
        let config = ChainConfig::local([EndpointConfig::of(&node)]);
        let error = Fault::Error(-32000, "finalized block not found".to_owned());
        for (fault, times, finalized) in [
            (error.clone(), 1, Some(2)),
            (error, 9, None),
            (Fault::Null, 1, Some(2)),
            (Fault::Null, 9, None),
        ] {
            let inquiry = Inquiry::open(&config, None).unwrap();
            inquiry.header(Which::Latest).await.unwrap(); // identifies it
            chain.faults().push("eth_getBlockByNumber", fault, times);
            let found = inquiry.header(Which::Finalized).await.unwrap();
            assert_eq!(found.map(|header| header.block.number), finalized);
            chain.faults().clear();
        }
    }
}
