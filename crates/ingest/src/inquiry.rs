//! Single questions to a chain's node, for the commands of an operator.

use std::time::{Duration, Instant};

use ethhook_domain::Header;
use prometheus::Registry;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::Metrics;
use crate::config::ChainConfig;
use crate::metrics::ChainMetrics;
use crate::node::{Node, NodeError};
use crate::rpc::{Endpoint, Head};

/// How long an answer is waited for, the connection included.
const PATIENCE: Duration = Duration::from_secs(20);
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// Heads are of no interest here; what does not fit is dropped.
const MAX_HEADS: usize = 1;

/// No endpoint answered in time, or none that passed the checks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no endpoint answers: {0}")]
pub struct Unanswered(String);

/// Which block is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The one that the node calls `latest`.
    Latest,
    /// The one that the node calls `finalized`.
    Finalized,
    /// The canonical one at this height.
    Number(u64),
}

/// The endpoints of one chain, asked as the ingestor asks them: every header is held against its
/// own hash, and a connection that is not up yet is waited for.
pub struct Inquiry {
    node: Node,
    /// Keeps the WebSockets up.
    _sockets: JoinSet<()>,
    _heads: mpsc::Receiver<Head>,
}

impl std::fmt::Debug for Inquiry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inquiry").finish_non_exhaustive()
    }
}

impl Inquiry {
    /// Connects to the endpoints of `chain`; must be called within a runtime.
    ///
    /// # Errors
    /// If the metrics, which nobody reads here, cannot be made.
    pub fn open(chain: &ChainConfig) -> Result<Self, prometheus::Error> {
        let metrics = Metrics::register(&Registry::new())?;
        let metrics = ChainMetrics::new(&metrics, &chain.profile.name);
        let (heads_in, heads) = mpsc::channel(MAX_HEADS);
        let (mut endpoints, mut sockets) = (Vec::new(), JoinSet::new());
        for (position, endpoint) in chain.endpoints.iter().enumerate() {
            let (id, rate) = (chain.profile.chain_id, chain.requests_per_second);
            let (endpoint, socket) =
                Endpoint::new(endpoint, id, heads_in.clone(), rate, metrics.endpoint(position));
            endpoints.push(endpoint);
            if let Some(socket) = socket {
                sockets.spawn(socket.run());
            }
        }
        let node = Node::new(chain, endpoints);
        Ok(Self { node, _sockets: sockets, _heads: heads })
    }

    /// The header of a block; none if the node has no such block, or no such tag.
    ///
    /// # Errors
    /// See [`Unanswered`].
    pub async fn header(&self, which: Which) -> Result<Option<Header>, Unanswered> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = match which {
                Which::Latest => self.node.latest().await.map(Some),
                Which::Finalized => self.node.finalized().await,
                Which::Number(n) => self.node.by_numbers(n..=n).await.map(|mut found| found.pop()),
            };
            match answer {
                Ok(header) => return Ok(header),
                Err(NodeError::Unknown) => return Ok(None),
                Err(error) if Instant::now() >= deadline => {
                    return Err(Unanswered(error.to_string()));
                }
                Err(_) => tokio::time::sleep(ASK_AGAIN).await,
            }
        }
    }
}
