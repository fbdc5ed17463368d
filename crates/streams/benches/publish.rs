//! The publish step against a real Redis: one block of 200 events at a time, and four on the wire.
#![allow(missing_docs, clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use alloy_primitives::{Address, B256, Bytes, keccak256};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ethhook_domain::{BlockRef, Cursor, ProcessedEvent, Proof, Secret};
use ethhook_streams::{Events, Publisher, RedisConfig, Step, Streams, WriterOptions};
use ethhook_testkit::redis_server::{RedisOptions, RedisServer};
use futures_util::poll;

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
        Step::Add { block, events, proof: Proof::ReceiptsRoot, filter: "all", is_deep: false }
    }
}

fn publish(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let server = runtime.block_on(RedisServer::spawn(RedisOptions::default())).unwrap();
    let streams = Streams::new(RedisConfig::new(Secret::new(server.url()))).unwrap();
    let first = Cursor::starting_at(1, None, "all".into());
    let ttl = Duration::from_secs(3_600);
    let options = WriterOptions {
        writer: "bench".to_owned(),
        lease_ttl: ttl,
        dedup_ttl: ttl,
        encoding: None,
    };
    let opened = Publisher::open(&streams, CHAIN, options, Some(first));
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
        let mut on_the_wire = 0;
        b.iter(|| {
            let block = Block::after(tip.as_ref());
            tip = Some(block.block);
            assert!(publisher.send(&block.step()));
            on_the_wire += 1;
            runtime.block_on(async {
                let mut outcome = pin!(publisher.next_outcome());
                let known = match poll!(&mut outcome) {
                    Poll::Pending if on_the_wire > ON_THE_WIRE => Some(outcome.await),
                    Poll::Pending => None, // the step is sent by now
                    Poll::Ready(outcome) => Some(outcome),
                };
                if let Some(outcome) = known {
                    outcome.unwrap().unwrap();
                    on_the_wire -= 1;
                }
            });
        });
        while runtime.block_on(publisher.next_outcome()).is_some() {}
    });
    group.finish();
}

criterion_group!(benches, publish);
criterion_main!(benches);
