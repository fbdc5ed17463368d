//! A chain to publish: blocks named like `4a`, with events derived from the name.

use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, B256, Bytes, keccak256};
use ethhook_domain::{BlockRef, Cursor, EntryId, Marker, ProcessedEvent, Proof, Secret};
use ethhook_streams::{
    Events, Keys, Outcome, PublishedBlock, Publisher, RedisConfig, Step, StepError, Streams,
    WriterOptions,
};
use ethhook_testkit::redis_server::{RedisOptions, RedisServer};
use redis::aio::MultiplexedConnection;

pub(crate) const CHAIN: u64 = 7;
pub(crate) const LEASE_TTL: Duration = Duration::from_secs(10);
pub(crate) const DEDUP_TTL: Duration = Duration::from_secs(3_600);

/// A server, access to it as the ingestor has, and a raw connection to inspect it.
pub(crate) struct Fixture {
    pub(crate) server: RedisServer,
    pub(crate) streams: Streams,
    pub(crate) keys: Keys,
    pub(crate) raw: MultiplexedConnection,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::with(RedisOptions::default()).await
    }

    pub(crate) async fn with(options: RedisOptions) -> Self {
        let server = RedisServer::spawn(options).await.unwrap();
        let streams = reach(&server, Duration::from_secs(30));
        let raw = server.connection().await.unwrap();
        Self { server, streams, keys: Keys::of(CHAIN), raw }
    }

    /// Sets a new response timeout.
    pub(crate) fn hurry(&mut self, response_timeout: Duration) {
        self.streams = reach(&self.server, response_timeout);
    }

    /// Acts like a newly started process, which does not know what an earlier one saw.
    pub(crate) fn forget(&mut self) {
        self.streams = reach(&self.server, Duration::from_secs(5));
    }

    /// Access as a user with these rights, which replace earlier ones; its password is `hunter2`.
    pub(crate) async fn as_user(&mut self, rights: &str) -> Streams {
        let user = format!("ACL SETUSER poor reset on >hunter2 {rights}");
        self.ask::<redis::Value>(&user).await;
        let url = format!("redis://poor:hunter2@127.0.0.1:{}/", self.server.port());
        Streams::new(RedisConfig::new(Secret::new(url))).unwrap()
    }

    /// The writer `one`, starting at block 1.
    pub(crate) async fn publisher(&self) -> Publisher {
        self.publisher_of("one").await
    }

    pub(crate) async fn publisher_of(&self, writer: &str) -> Publisher {
        open(&self.streams, writer, Some(first())).await.unwrap()
    }

    /// Sets a field of a hash directly; the value may be empty.
    pub(crate) async fn raw_hset(&mut self, key: &str, field: &str, value: &str) {
        let mut command = redis::cmd("HSET");
        command.arg(key).arg(field).arg(value).exec_async(&mut self.raw).await.unwrap();
    }

    /// Deletes the newest marker.
    pub(crate) async fn lose_newest_marker(&mut self) {
        let code = "local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1][1] \
                    return redis.call('XDEL', KEYS[1], newest)";
        let mut lose = redis::cmd("EVAL");
        lose.arg(code).arg(1).arg(&self.keys.blocks);
        let lost: i64 = lose.query_async(&mut self.raw).await.unwrap();
        assert_eq!(lost, 1);
    }

    /// Sets a string with spaces directly.
    pub(crate) async fn raw_set(&mut self, key: &str, value: &str) {
        redis::cmd("SET").arg(key).arg(value).exec_async(&mut self.raw).await.unwrap();
    }

    /// The raw answer to one command.
    pub(crate) async fn ask<T: redis::FromRedisValue>(&mut self, line: &str) -> T {
        command(line).query_async(&mut self.raw).await.unwrap()
    }

    pub(crate) async fn cursor(&self) -> Cursor {
        self.streams.cursor(CHAIN).await.unwrap().unwrap()
    }

    pub(crate) async fn events(&self) -> Vec<(EntryId, ProcessedEvent)> {
        let entries = self.streams.events(CHAIN, EntryId::MIN, 100_000).await.unwrap();
        entries.into_iter().map(|(id, event)| (id, event.unwrap())).collect()
    }

    pub(crate) async fn markers(&self) -> Vec<Marker> {
        let markers = self.streams.markers(CHAIN, EntryId::MIN, 100_000).await.unwrap();
        markers.into_iter().map(|(_, marker)| marker).collect()
    }

    pub(crate) async fn last_marker_id(&self) -> EntryId {
        self.streams.markers(CHAIN, EntryId::MIN, 100_000).await.unwrap().pop().unwrap().0
    }

    /// Everything that Redis holds of the chain, to show that nothing changed; without the
    /// remaining TTLs of the lease and the dedup records.
    pub(crate) async fn dump(&mut self) -> Vec<String> {
        let mut keys: Vec<String> = self.ask("KEYS *").await;
        keys.sort();
        let mut dump = Vec::new();
        for key in keys {
            let kind: String = self.ask(&format!("TYPE {key}")).await;
            let command = match kind.as_str() {
                "stream" => format!("XRANGE {key} - +"),
                "hash" => format!("HGETALL {key}"),
                "string" => format!("GET {key}"),
                "list" => format!("LRANGE {key} 0 -1"),
                other => panic!("unexpected type {other}"),
            };
            if kind == "hash" {
                // Redis returns a hash in the order of its table, which changes when it rehashes.
                let fields: std::collections::BTreeMap<String, String> = self.ask(&command).await;
                dump.push(format!("{key}: {fields:?}"));
                continue;
            }
            let value: redis::Value = self.ask(&command).await;
            dump.push(format!("{key}: {value:?}"));
        }
        dump
    }
}

fn reach(server: &RedisServer, response_timeout: Duration) -> Streams {
    let mut config = RedisConfig::new(Secret::new(server.url()));
    config.response_timeout = response_timeout;
    Streams::new(config).unwrap()
}

pub(crate) fn command(line: &str) -> redis::Cmd {
    let mut words = line.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        command.arg(word);
    });
    command
}

pub(crate) fn first() -> Cursor {
    Cursor::starting_at(1, Some(B256::repeat_byte(0x99)), "all".into())
}

/// A writer of this name that accepts any encoding of the stream.
pub(crate) fn named(writer: &str) -> WriterOptions {
    WriterOptions {
        writer: writer.to_owned(),
        lease_ttl: LEASE_TTL,
        dedup_ttl: DEDUP_TTL,
        encoding: None,
    }
}

pub(crate) async fn open(
    streams: &Streams,
    writer: &str,
    first: Option<Cursor>,
) -> Result<Publisher, ethhook_streams::OpenError> {
    let encoding = first.as_ref().map(|cursor| cursor.encoding);
    Publisher::open(streams, CHAIN, WriterOptions { encoding, ..named(writer) }, first).await
}

/// A block and its events.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) link: BlockRef,
    pub(crate) events: Events,
}

/// The hash of the block called `name`; `0` is the parent of the first.
pub(crate) fn hash(name: &str) -> B256 {
    keccak256(name)
}

/// The block `name` (such as `4a`) with this `parent` and `count` events.
pub(crate) fn block(name: &str, parent: &str, count: u64) -> Block {
    let number = name.trim_end_matches(|c: char| c.is_alphabetic()).parse().unwrap();
    let link = BlockRef {
        number,
        hash: hash(name),
        parent_hash: hash(parent),
        timestamp: 1_700_000_000 + number * 12,
    };
    let events = (0..count).map(|i| event(&link, i)).collect::<Vec<_>>().into();
    Block { link, events }
}

/// A log the size of an ERC-20 Transfer.
fn event(block: &BlockRef, log_index: u64) -> ProcessedEvent {
    let tag = |what: &str| keccak256(format!("{what} {} {log_index}", block.hash));
    ProcessedEvent {
        chain_id: CHAIN,
        block_number: block.number,
        block_hash: block.hash,
        tx_hash: tag("tx"),
        tx_index: log_index / 2,
        log_index,
        contract: Address::from_word(tag("contract")),
        topics: vec![
            keccak256("Transfer(address,address,uint256)"),
            B256::left_padding_from(&tag("from")[..20]),
            B256::left_padding_from(&tag("to")[..20]),
        ],
        data: Bytes::copy_from_slice(B256::left_padding_from(&tag("value")[..8]).as_slice()),
        timestamp: block.timestamp,
        removed: false,
    }
}

impl Block {
    pub(crate) fn add(&self) -> Step<'_> {
        Step::Add {
            block: &self.link,
            events: &self.events,
            proof: Proof::ReceiptsRoot,
            filter: "all",
            is_deep: false,
        }
    }

    /// The same block on another chain.
    pub(crate) fn on(mut self, chain: u64) -> Self {
        Arc::make_mut(&mut self.events).iter_mut().for_each(|event| event.chain_id = chain);
        self
    }

    /// The events that take this block back.
    pub(crate) fn reversed(&self) -> Events {
        let removed = |event: &ProcessedEvent| ProcessedEvent { removed: true, ..event.clone() };
        self.events.iter().rev().map(removed).collect::<Vec<_>>().into()
    }
}

pub(crate) fn id(text: &str) -> EntryId {
    text.parse().unwrap()
}

/// Publishes `block`, which must go in.
pub(crate) async fn add(publisher: &mut Publisher, block: &Block) -> PublishedBlock {
    match publisher.apply(&block.add()).await.unwrap() {
        Outcome::Published { first_id, last_id, events, .. } => PublishedBlock {
            block: block.link,
            events,
            first_id,
            last_id,
            proof: Proof::ReceiptsRoot,
        },
        Outcome::Duplicate { .. } => panic!("{} is a duplicate", block.link),
    }
}

/// Takes `block` back, as it was published.
pub(crate) async fn remove(
    publisher: &mut Publisher,
    block: &Block,
    published: &PublishedBlock,
) -> Result<Outcome, StepError> {
    publisher.apply(&Step::Remove { block: published, events: &block.reversed() }).await
}

/// Adds a chain of blocks `<from>a ..= <to>a` with `count` events each.
pub(crate) async fn add_all(
    publisher: &mut Publisher,
    numbers: std::ops::RangeInclusive<u64>,
    count: u64,
) -> Vec<PublishedBlock> {
    let mut published = Vec::new();
    for n in numbers {
        let parent = format!("{}a", n - 1);
        published.push(add(publisher, &block(&format!("{n}a"), &parent, count)).await);
    }
    published
}
