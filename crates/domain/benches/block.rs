//! The cost of one block at each stage: parse, checks, canonical chain, entry encoding. The
//! throughput is in logs per second.
#![allow(missing_docs, clippy::unwrap_used, reason = "a bench fails by panicking")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ethhook_domain::block::Body;
use ethhook_domain::{BlockRef, CanonicalChain, Header, ProcessedEvent, Profile, Receipt, verify};
use ethhook_testkit::chain_data;

/// An Ethereum block of 537 logs, and one of 10,041.
const BLOCKS: [u64; 2] = [17_686_113, 15_537_394];

fn blocks(criterion: &mut Criterion) {
    let Some(folder) = chain_data::dir() else { return };
    let profile = Profile::built_in().remove(0);
    for number in BLOCKS {
        let recorded = chain_data::ethereum_block(&folder, number).unwrap();
        let (header, text) = (recorded.header().unwrap(), recorded.receipts.to_string());
        let header_text = recorded.block.to_string();
        let receipts: Vec<Receipt> = serde_json::from_str(&text).unwrap();
        let logs: Vec<_> = receipts.iter().flat_map(|receipt| &receipt.logs).cloned().collect();
        let mut group = criterion.benchmark_group(format!("{} logs", logs.len()));
        group.throughput(Throughput::Elements(logs.len() as u64));
        group.bench_function("parse header", |b| {
            b.iter(|| serde_json::from_str::<Header>(&header_text).unwrap());
        });
        group.bench_function("parse receipts", |b| {
            b.iter(|| serde_json::from_slice::<Vec<Receipt>>(text.as_bytes()).unwrap());
        });
        group.bench_function("checks, receipts root", |b| {
            let body = || Body::Receipts(receipts.clone());
            b.iter_batched(
                body,
                |body| verify::verify(&profile, &header, body).unwrap(),
                criterion::BatchSize::LargeInput,
            );
        });
        group.bench_function("entries", |b| {
            let events: Vec<_> =
                logs.iter().map(|log| ProcessedEvent::new(1, &header.block, log.clone())).collect();
            let mut out = Vec::new();
            b.iter(|| {
                out.clear();
                for event in &events {
                    event.write_values(&mut out);
                }
                out.len()
            });
        });
        group.finish();
    }
}

fn canonical(criterion: &mut Criterion) {
    let Some(folder) = chain_data::dir() else { return };
    let header = chain_data::ethereum_block(&folder, BLOCKS[0]).unwrap().header().unwrap();
    let mut group = criterion.benchmark_group("canonical chain");
    group.throughput(Throughput::Elements(1_000));
    group.bench_function("1,000 heads in a row", |b| {
        b.iter(|| {
            let mut chain = CanonicalChain::new(1, std::iter::empty(), false);
            let mut parent = header.block.hash;
            for number in 1..=1_000u64 {
                let mut head = header.clone();
                let hash = alloy_primitives::keccak256(number.to_be_bytes());
                head.block = BlockRef { number, hash, parent_hash: parent, timestamp: number };
                parent = hash;
                drop(chain.heard(head));
            }
            chain.tip().copied()
        });
    });
    group.finish();
}

criterion_group!(benches, blocks, canonical);
criterion_main!(benches);
