//! Skipping blocks by a header's bloom, on real blocks: never a block that has a wanted log (G1),
//! and how often a block without one is fetched nevertheless.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::{Address, B256};
use ethhook_domain::block::Body;
use ethhook_domain::verify::without_fetching;
use ethhook_domain::{Filter, Header, Log, Profile};
use ethhook_testkit::chain_data;

/// Recorded Ethereum blocks count as recent from this one on: April 2023.
const RECENT: u64 = 17_000_000;

/// A contract and a first topic: the filter of one event of one contract.
type Event = (Address, B256);

fn event_of(log: &Log) -> Option<Event> {
    Some((log.address, *log.topics.first()?))
}

fn filter((contract, topic): Event) -> Filter {
    Filter { contracts: [contract].into(), topics: [topic].into() }
}

/// Header and logs of each recorded block of a chain whose bloom is trusted.
fn blocks() -> Option<Vec<(Profile, Header, Vec<Log>)>> {
    let profiles: BTreeMap<_, _> =
        Profile::built_in().into_iter().map(|profile| (profile.chain_id, profile)).collect();
    let blocks = chain_data::blocks(&chain_data::dir()?).unwrap().filter_map(|block| {
        let block = block.unwrap();
        let profile = profiles.get(&block.chain_id)?.clone();
        let Some(Body::Receipts(receipts)) = block.body().unwrap() else { return None };
        let logs = receipts.into_iter().flat_map(|receipt| receipt.logs).collect();
        profile.bloom_of_all_logs.then(|| (profile, block.header().unwrap(), logs))
    });
    Some(blocks.collect())
}

#[test]
fn g1_no_recorded_block_is_skipped_that_has_a_wanted_log() {
    let Some(blocks) = blocks() else { return };
    let mut tested = 0;
    for (profile, header, logs) in &blocks {
        let events: BTreeSet<Event> = logs.iter().filter_map(event_of).collect();
        for event in events {
            let test = filter(event).bloom_test();
            assert!(without_fetching(profile, header, &test).is_none(), "{event:?}");
            tested += 1;
        }
    }
    assert!(tested > 5_000, "{tested} events");
}

/// The figure of the README: `cargo test -p ethhook-domain --test bloom_skip -- --nocapture`.
#[test]
fn how_often_a_block_is_fetched_for_nothing() {
    let Some(blocks) = blocks() else { return };
    let recent: Vec<_> = blocks
        .iter()
        .filter(|(profile, header, _)| profile.chain_id == 1 && header.block.number >= RECENT)
        .collect();
    let mut counts: BTreeMap<Event, usize> = BTreeMap::new();
    for (_, _, logs) in &recent {
        let events: BTreeSet<Event> = logs.iter().filter_map(event_of).collect();
        events.into_iter().for_each(|event| *counts.entry(event).or_default() += 1);
    }
    // For each filter: among the blocks without such a log, the share that the bloom does not
    // exclude.
    let mut shares = Vec::new();
    let (mut skipped, mut without) = (0, 0);
    for (event, with) in counts {
        let test = filter(event).bloom_test();
        let may_match =
            recent.iter().filter(|(_, header, _)| test.may_match(&header.logs_bloom)).count();
        assert!(may_match >= with);
        if with == recent.len() {
            continue;
        }
        skipped += recent.len() - may_match;
        without += recent.len() - with;
        shares.push(100.0 * (may_match - with) as f64 / (recent.len() - with) as f64);
    }
    shares.sort_by(f64::total_cmp);
    let at = |percent: usize| shares[(shares.len() - 1) * percent / 100];
    let ruled_out = 100.0 * skipped as f64 / without as f64;
    let found = format!(
        "{} filters, {} blocks: {ruled_out:.1} % ruled out; fetched for nothing: median {:.1} %, nine in ten {:.1} to {:.1} %",
        shares.len(),
        recent.len(),
        at(50),
        at(5),
        at(95),
    );
    // README.md gives these figures.
    assert_eq!(
        found,
        "3646 filters, 43 blocks: 89.9 % ruled out; fetched for nothing: median 9.5 %, nine in ten 0.0 to 25.0 %"
    );
}
