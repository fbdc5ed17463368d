//! The publish step against a real Redis: one block of 200 events at a time, and four on the wire.
#![allow(missing_docs, clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::collections::VecDeque;
use std::time::Duration;

use alloy_primitives::{Address, B256, Bytes, keccak256};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ethhook_domain::{BlockRef, Cursor, ProcessedEvent, Proof, Secret};
use ethhook_streams::{Events, Publisher, RedisConfig, Step, Streams};
use ethhook_testkit::redis_server::{RedisOptions, RedisServer};

const CHAIN: u64 = 7;
const EVENTS: u64 = 200;
const ON_THE_WIRE: usize = 4;

struct Block {
    block: BlockRef,
    events: Events,
}

impl Block {
    fn after(parent: Option<&BlockRef>) -> Self {
        let number = parent.map_or(1, |parent| parent.number + 1);
        let block = BlockRef {
            number,
            hash: keccak256(number.to_be_bytes()),
            parent_hash: parent.map_or(B256::ZERO, |parent| parent.hash),
            timestamp: number,
        };
        let event = |log_index: u64| ProcessedEvent {
            chain_id: CHAIN,
            block_number: number,
            block_hash: block.hash,
            tx_hash: keccak256(log_index.to_be_bytes()),
            tx_index: log_index,
            log_index,
            contract: Address::repeat_byte(1),
            topics: vec![B256::repeat_byte(2); 3],
            data: Bytes::from(vec![0; 32]),
            timestamp: number,
            removed: false,
        };
        Self { block, events: (0..EVENTS).map(event).collect::<Vec<_>>().into() }
    }

    fn step(&self) -> Step<'_> {
        let Self { block, events } = self;
        Step::Add { block, events, proof: Proof::ReceiptsRoot, filter: "all" }
    }
}

fn publish(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let server = runtime.block_on(RedisServer::spawn(RedisOptions::default())).unwrap();
    let streams = Streams::new(RedisConfig::new(Secret::new(server.url()))).unwrap();
    let first = Cursor::starting_at(1, None, "all".into());
    let ttl = Duration::from_secs(3_600);
    let opened = Publisher::open(&streams, CHAIN, "bench", ttl, ttl, None, Some(first));
    let mut publisher = runtime.block_on(opened).unwrap();
    let mut tip: Option<BlockRef> = None;
    let mut group = criterion.benchmark_group("publish");
    group.throughput(Throughput::Elements(EVENTS));
    group.bench_function("one at a time", |b| {
        b.iter(|| {
            let block = Block::after(tip.as_ref());
            runtime.block_on(publisher.apply(&block.step())).unwrap();
            tip = Some(block.block);
        });
    });
    group.bench_function("four on the wire", |b| {
        let mut wire: VecDeque<(Block, _)> = VecDeque::new();
        b.iter(|| {
            let block = Block::after(tip.as_ref());
            tip = Some(block.block);
            let mut answer = publisher.send(&block.step()).unwrap().unwrap();
            runtime.block_on(async {
                assert!(futures_util::poll!(&mut answer).is_pending()); // it is sent by now
            });
            wire.push_back((block, answer));
            if wire.len() > ON_THE_WIRE {
                let (block, answer) = wire.pop_front().unwrap();
                let result = runtime.block_on(answer);
                publisher.acknowledge(&block.step(), &result);
                result.unwrap();
            }
        });
        for (block, answer) in wire {
            publisher.acknowledge(&block.step(), &runtime.block_on(answer));
        }
    });
    group.finish();
}

criterion_group!(benches, publish);
criterion_main!(benches);
