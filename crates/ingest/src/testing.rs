//! Shared by tests of this crate: the chain `local`, and simulated nodes that serve it.

use alloy_primitives::{Address, B256, Bytes};
use ethhook_domain::block::Seal;
use ethhook_domain::verify::Verified;
use ethhook_domain::{BlockRef, Filter, Header, Log, Profile, Proof, Secret};
use ethhook_simulator::{self as simulator, ManualChain, ManualSpec, RunningNode};
use prometheus::Registry;
use tokio::sync::mpsc;

use crate::Metrics;
use crate::config::{ChainConfig, EndpointConfig, Fetch, StartBlock};
use crate::metrics::ChainMetrics;
use crate::rpc::SocketEvent;

/// Chain id of `local`.
pub(crate) const LOCAL: u64 = 31_337;

impl ChainConfig {
    /// The chain `local` with these endpoints, from block 1 on.
    pub(crate) fn local(endpoints: impl IntoIterator<Item = EndpointConfig>) -> Self {
        let profile = Profile::built_in().into_iter().find(|profile| profile.name == "local");
        Self {
            profile: profile.unwrap(),
            endpoints: endpoints.into_iter().collect(),
            start: StartBlock::Number(1),
            end_block: None,
            filter: Filter::default(),
            confirmations: 0,
            requests_per_second: None,
            units_per_second: None,
            fetch: Fetch::Auto,
            batch_every: None,
        }
    }
}

impl EndpointConfig {
    /// An endpoint at `url`, without a WebSocket.
    pub(crate) fn http(url: impl Into<String>) -> Self {
        Self { http: Some(Secret::new(url)), ws: None }
    }

    /// An endpoint that uses `node` over HTTP.
    pub(crate) fn of(node: &RunningNode) -> Self {
        Self::http(node.http_url(LOCAL))
    }
}

/// The contents of a block with this many logs.
pub(crate) fn verified(logs: usize) -> Verified {
    let logs = vec![log(); logs];
    Verified { logs, proof: Proof::Bloom, unhashed: false, root_differs: false }
}

/// The header of a block, for tests that do not check it.
pub(crate) fn header(number: u64, hash: B256, parent_hash: B256) -> Header {
    Header {
        block: BlockRef { number, hash, parent_hash, timestamp: number },
        transactions_root: B256::ZERO,
        receipts_root: B256::ZERO,
        logs_bloom: Box::default(),
        gas_used: 0,
        seal: Seal::Matches,
    }
}

/// A log, for tests that do not check it.
pub(crate) fn log() -> Log {
    Log {
        address: Address::ZERO,
        topics: Vec::new(),
        data: Bytes::new(),
        block_hash: B256::ZERO,
        block_number: 1,
        tx_hash: B256::ZERO,
        tx_index: 0,
        log_index: 0,
        removed: false,
    }
}

/// The chain `local` with `count` blocks.
pub(crate) fn mined(count: u64) -> ManualChain {
    let chain = simulator::Chain::manual(ManualSpec::new(LOCAL));
    chain.mine(count);
    chain
}

/// A node that serves `chain`.
pub(crate) async fn serve(chain: impl Into<simulator::Chain>) -> RunningNode {
    let local = ([127, 0, 0, 1], 0).into();
    simulator::Node::bind(local, [chain.into()]).await.unwrap().spawn()
}

/// A channel for heads that nobody reads, and metrics that nobody scrapes.
pub(crate) fn unread() -> (mpsc::Sender<SocketEvent>, ChainMetrics) {
    let metrics = Metrics::register(&Registry::new()).unwrap();
    (mpsc::channel(1).0, ChainMetrics::new(&metrics, "local"))
}
