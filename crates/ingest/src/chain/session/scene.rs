//! Sessions on a real Redis, driven step by step by a test: it decides which heads and answers arrive and
//! what is due.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::keccak256;
use ethhook_domain::{CanonicalChain, Cursor, Encoding, EntryId, Header, Marker, Secret};
use ethhook_streams::{Publisher, ReadError, RedisConfig, Streams, Swept};
use ethhook_testkit::redis_server::{RedisOptions, RedisServer};
use prometheus::{Registry, TextEncoder};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::Session;
use crate::chain::Chain;
use crate::chain::open::Opened;
use crate::config::{ByteCap, ChainConfig, Options};
use crate::metrics::ChainMetrics;
use crate::node::Node;
use crate::rpc::{Head, SocketEvent};
use crate::status::{ChainStatus, Needs};
use crate::{Metrics, StatusBoard, testing};

/// A chain and its Redis; its node is whatever the configuration names.
pub(in crate::chain) struct Scene {
    pub(in crate::chain) chain: Chain,
    pub(super) metrics: Metrics,
    pub(super) board: StatusBoard,
    pub(super) heads: mpsc::Receiver<SocketEvent>,
    registry: Registry,
    pub(in crate::chain) redis: RedisServer,
    _sockets: JoinSet<()>,
}

impl Scene {
    pub(in crate::chain) async fn of(config: ChainConfig) -> Self {
        let redis = RedisServer::spawn(RedisOptions::default()).await.unwrap();
        let registry = Registry::new();
        let all = Metrics::register(&registry).unwrap();
        let metrics = ChainMetrics::new(&all, &config.profile.name);
        let (heads_in, heads) = mpsc::channel(64);
        let (node, running) = Node::new(&config, &heads_in, &metrics);
        let mut sockets = JoinSet::new();
        for socket in running {
            sockets.spawn(socket.run());
        }
        let board = StatusBoard::new([&config]);
        let chain = Chain {
            status: board.chain(&config.profile.name),
            config,
            options: Options {
                instance_id: "test".into(),
                max_chains: None,
                lease_ttl: Duration::from_secs(10),
                dedup_ttl: Duration::from_secs(60),
                encoding: Encoding::Fields,
                retention: Duration::from_secs(3_600),
                group_idle_alarm: Duration::from_secs(3_600),
                stream_max_bytes: ByteCap::Bytes(u64::MAX),
            },
            streams: Streams::new(RedisConfig::new(Secret::new(redis.url()))).unwrap(),
            node: Arc::new(node),
            metrics,
            resolved_start: None,
            has_begun: false,
            epoch: None,
            last_reset: None,
            may_be_replaced: false,
            chain_permits: Arc::new(Semaphore::new(1)),
        };
        Self { chain, metrics: all, board, heads, registry, redis, _sockets: sockets }
    }

    /// A writer of a stream that begins with block 1.
    pub(in crate::chain) async fn publisher(&self) -> Publisher {
        self.publisher_from(1).await
    }

    async fn publisher_from(&self, start: u64) -> Publisher {
        let Chain { streams, config, options, .. } = &self.chain;
        let first = Cursor::starting_at(start, None, config.filter.digest());
        let opened = Publisher::open(streams, self.chain.id(), options.for_writer(), Some(first));
        opened.await.unwrap()
    }

    /// A session that begins with block 1.
    pub(super) async fn session(&self) -> Session<'_> {
        self.session_from(1).await
    }

    /// A session that begins with block `start`.
    pub(super) async fn session_from(&self, start: u64) -> Session<'_> {
        let opened = Opened {
            publisher: self.publisher_from(start).await,
            canonical: CanonicalChain::new(start, [], false),
            published: Vec::new(),
            _permit: Arc::clone(&self.chain.chain_permits).try_acquire_owned().unwrap(),
        };
        Session::new(&self.chain, opened)
    }

    /// The chain's status.
    pub(super) fn status(&self) -> ChainStatus {
        self.board.snapshot().remove(0).1
    }

    /// Why the chain is stalled, and what it needs; none if it does not.
    pub(super) fn stall(&self) -> Option<(String, Needs)> {
        self.status().stall().map(|stall| (stall.why.clone(), stall.needs))
    }

    /// All markers of the stream.
    pub(super) async fn markers(&self) -> Vec<Marker> {
        let markers = self.chain.streams.markers(self.chain.id(), EntryId::MIN, 1_000).await;
        markers.unwrap().into_iter().map(|(_, marker)| marker).collect()
    }

    /// All metrics, as they are scraped.
    pub(super) fn scrape(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap()
    }
}

/// The header of a block of a branch; it shows that the block has no logs.
pub(in crate::chain) fn header(number: u64, branch: char) -> Header {
    let hash = |number: u64| keccak256(format!("{number}{branch}"));
    testing::header(number, hash(number), hash(number.wrapping_sub(1)))
}

impl Session<'_> {
    /// Receives heads of these blocks of branch `a`, which join at once and need no fetch.
    pub(super) fn hear(&mut self, numbers: RangeInclusive<u64>) {
        for number in numbers {
            let ended = self.heard(Head::Header(Box::new(header(number, 'a'))));
            assert!(ended.is_none(), "the session ended");
        }
    }

    /// A sweep that ends with `result`.
    pub(super) fn sweep(&mut self, result: Result<Swept, ReadError>) {
        self.start_sweep(self.due.retention);
        self.swept(result);
    }

    /// Writes everything that may go to Redis now.
    pub(super) async fn publish(&mut self) {
        loop {
            self.start_writing(Instant::now());
            let Some(written) = self.pipeline.next().await else { return };
            let ended = self.written(written);
            assert!(ended.is_none(), "the session ended");
        }
    }
}
