//! Every block passes the checks, and the same seed gives the same chain.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alloy_primitives::{Address, B256, Log};
use ethhook_domain::block::Body;
use ethhook_domain::verify::{verify, without_fetching};
use ethhook_domain::{Filter, Header, Profile, Proof};
use ethhook_simulator::{Block, Chain, ChainSpec, Contents, ManualSpec, RunningNode};
use serde_json::{Value, json};

use crate::client::{answer, hex, manual, number, result, serve};

fn profile(chain_id: u64) -> Profile {
    Profile::built_in().into_iter().find(|profile| profile.chain_id == chain_id).unwrap()
}

/// Requests a block of Ethereum mainnet like an ingestor and checks it against its header.
async fn check(node: &RunningNode, block: &Block) {
    check_on(1, node, block).await;
}

async fn check_on(chain_id: u64, node: &RunningNode, block: &Block) {
    let profile = profile(chain_id);
    let hash = block.hash();
    let by_number = result(node, "eth_getBlockByNumber", json!([hex(block.number()), false])).await;
    let by_hash = result(node, "eth_getBlockByHash", json!([hash, false])).await;
    assert_eq!(by_number, by_hash);
    let header: Header = serde_json::from_value(by_hash).unwrap();
    assert_eq!((header.block.hash, header.block.parent_hash), (hash, block.parent_hash()));

    let receipts = result(node, "eth_getBlockReceipts", json!([hash])).await;
    let receipts = Body::Receipts(serde_json::from_value(receipts).unwrap());
    let verified = verify(&profile, &header, receipts).unwrap();
    assert_eq!((verified.proof, verified.unhashed), (Proof::ReceiptsRoot, false));
    assert_eq!(verified.logs, block.logs());
    if profile.empty_without_transactions {
        let free = without_fetching(&profile, &header, &Filter::default().bloom_test());
        assert_eq!(free.is_some(), block.logs().is_empty());
    }

    let logs = result(node, "eth_getLogs", json!([{ "blockHash": hash }])).await;
    // With receipts the bloom is not checked; with logs nothing else is.
    let by_bloom = Profile { verify: Proof::Bloom, ..profile };
    let logs = Body::Logs(serde_json::from_value(logs).unwrap());
    assert_eq!(verify(&by_bloom, &header, logs).unwrap().logs, block.logs());
}

#[tokio::test]
async fn every_block_of_a_manual_chain_checks() {
    let (chain, node) = manual(3).await;
    chain.mine_events(0);
    chain.mine_events(1);
    chain.mine_events(200);
    let topics = vec![B256::repeat_byte(1); 4];
    let odd = Log::new_unchecked(Address::repeat_byte(7), topics, vec![9; 70].into());
    let bare = Log::new_unchecked(Address::repeat_byte(8), vec![], vec![].into());
    chain.mine_with(vec![vec![], vec![odd, bare.clone()], vec![bare]]);
    let orphans = chain.mine(2);
    chain.reorg(2, 3, Contents::SameTransactions);
    for number in 0..=chain.head_number() {
        check(&node, &chain.block(number).unwrap()).await;
    }
    assert_eq!(chain.block(7).unwrap().logs()[0].data.len(), 70);
    for orphan in orphans {
        let receipts = result(&node, "eth_getBlockReceipts", json!([orphan.hash()])).await;
        assert!(!receipts.as_array().unwrap().is_empty(), "an orphan stays servable");
    }
}

#[tokio::test]
async fn a_block_of_50000_logs_checks() {
    let (chain, node) = manual(0).await;
    check(&node, &chain.mine_events(50_000)).await;
}

/// How often each type of transaction occurs in the first blocks of the chain, all of which pass
/// the checks.
async fn types_on(chain_id: u64) -> BTreeMap<u64, usize> {
    let chain = Chain::manual(ManualSpec { events_per_block: 30, ..ManualSpec::new(chain_id) });
    chain.mine(20);
    chain.mine_events(1);
    let node = serve(chain.clone()).await;
    let mut types = BTreeMap::new();
    for height in 1..=chain.head_number() {
        let block = chain.block(height).unwrap();
        assert_eq!(block.logs().len(), if height == 21 { 1 } else { 30 });
        check_on(chain_id, &node, &block).await;
        let receipts = result(&node, "eth_getBlockReceipts", json!([block.hash()])).await;
        let full = result(&node, "eth_getBlockByHash", json!([block.hash(), true])).await;
        for (receipt, transaction) in
            receipts.as_array().unwrap().iter().zip(full["transactions"].as_array().unwrap())
        {
            assert_eq!(receipt["type"], transaction["type"]);
            let is_deposit = receipt["type"] == "0x7e";
            assert_eq!(receipt.get("depositNonce").is_some(), is_deposit, "{receipt}");
            assert_eq!(receipt.get("depositReceiptVersion").is_some(), is_deposit, "{receipt}");
            assert_eq!(transaction.get("blobVersionedHashes").is_some(), receipt["type"] == "0x3");
            *types.entry(number(&receipt["type"])).or_default() += 1;
        }
        let blobs = receipts.as_array().unwrap().iter().filter(|r| r["type"] == "0x3").count();
        assert_eq!(number(&full["blobGasUsed"]), 131_072 * blobs as u64);
    }
    types
}

#[tokio::test]
async fn blocks_hold_the_transaction_types_of_their_chain_and_check() {
    let users = [0, 1, 2, 4];
    for (chain_id, own) in [(1, 3), (10, 0x7e), (8453, 0x7e), (42161, 0x6a), (137, 0x7f)] {
        let types = types_on(chain_id).await;
        let expected: BTreeSet<u64> = users.into_iter().chain([own]).collect();
        assert_eq!(types.keys().copied().collect::<BTreeSet<_>>(), expected, "chain {chain_id}");
        // Every OP stack or Arbitrum block starts with a transaction of the chain's own type.
        let least = if [10, 8453, 42161].contains(&chain_id) { 21 } else { 5 };
        assert!(types[&own] >= least, "chain {chain_id}: {types:?}");
    }
}

#[tokio::test]
async fn blocks_without_transactions_come_when_asked_for() {
    let chain = Chain::manual(ManualSpec { empty_every: 3, ..ManualSpec::new(10) });
    chain.mine(7);
    chain.reorg(2, 3, Contents::Fresh);
    let node = serve(chain.clone()).await;
    let by_clock = ChainSpec { empty_every: 3, ..scheduled(4, seconds_ago(40)) };
    let by_clock = Chain::scheduled(by_clock).unwrap();
    for height in 0..=8 {
        let block = chain.block(height).unwrap();
        assert_eq!(block.logs().len(), if height % 3 == 0 { 0 } else { 5 });
        check_on(10, &node, &block).await;
        let expected = if height % 3 == 0 { 0 } else { 20 };
        assert_eq!(by_clock.block(height).map_or(expected, |block| block.logs().len()), expected);
    }
}

fn seconds_ago(seconds: u64) -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() - seconds
}

fn scheduled(seed: u64, genesis_time: u64) -> ChainSpec {
    ChainSpec {
        chain_id: 8453,
        block_time: Duration::from_secs(5),
        events_per_block: 20,
        empty_every: 0,
        reorg_every: 5,
        reorg_depth: 3,
        seed,
        genesis_time,
    }
}

#[tokio::test]
async fn every_block_of_a_scheduled_chain_checks() {
    let chain = Chain::scheduled(scheduled(3, seconds_ago(100))).unwrap();
    let node = serve(chain.clone()).await;
    // The last three blocks may be replaced while they are read.
    let settled = chain.head_number() - 3;
    assert!(settled >= 17, "{settled}");
    for number in 0..=settled {
        let block = chain.block(number).unwrap();
        assert_eq!(block.logs().len(), if number == 0 { 0 } else { 20 });
        check(&node, &block).await;
    }
}

#[tokio::test]
async fn the_same_seed_and_time_give_the_same_answers_byte_for_byte() {
    let genesis = seconds_ago(2_000);
    let mut texts: Vec<Vec<Value>> = Vec::new();
    for seed in [11, 11, 12] {
        let node = serve(Chain::scheduled(scheduled(seed, genesis)).unwrap()).await;
        let mut all = Vec::new();
        for number in [1, 5, 200, 380] {
            all.push(answer(&node, "eth_getBlockByNumber", json!([hex(number), true])).await);
            all.push(answer(&node, "eth_getBlockReceipts", json!([hex(number)])).await);
        }
        texts.push(all);
    }
    assert_eq!(texts[0], texts[1]);
    for (one, other) in texts[0].iter().zip(&texts[2]) {
        assert_ne!(one, other);
    }
}

#[test]
fn the_same_steps_give_the_same_manual_chain() {
    let run = |seed: u64| -> Vec<B256> {
        let chain = Chain::manual(ManualSpec { seed, ..ManualSpec::new(5) });
        chain.mine(4);
        let mut blocks: Vec<Arc<Block>> = chain.reorg(2, 3, Contents::Fresh);
        blocks.push(chain.mine_events(2));
        blocks.iter().map(|block| block.hash()).collect()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn a_reorg_replaces_and_a_switch_brings_back() {
    let chain = Chain::manual(ManualSpec::new(1));
    let hashes = |blocks: &[Arc<Block>]| blocks.iter().map(|b| b.hash()).collect::<Vec<_>>();
    let canonical = || {
        let blocks: Vec<_> = (0..=chain.head_number()).filter_map(|n| chain.block(n)).collect();
        hashes(&blocks)
    };
    assert!(chain.switch_back().is_empty(), "there is no other branch yet");
    chain.mine(5);
    let a = canonical();
    let new = chain.reorg(2, 4, Contents::SameTransactions);
    let b = canonical();
    assert_eq!((b.len(), &b[..4], &b[4..]), (8, &a[..4], &hashes(&new)[..]));
    for number in 4..6 {
        let number = usize::try_from(number).unwrap();
        let ids = |hash: B256| {
            let logs = chain.block_by_hash(hash).unwrap().logs();
            logs.into_iter().map(|log| (log.tx_hash, log.log_index, log.data)).collect::<Vec<_>>()
        };
        assert_ne!(a[number], b[number]);
        assert_eq!(ids(a[number]), ids(b[number]), "the same transactions in another block");
    }
    assert_eq!(hashes(&chain.switch_back()), a[4..]);
    assert_eq!(canonical(), a);
    assert_eq!(hashes(&chain.switch_back()), b[4..]);
    assert_eq!(canonical(), b);
    chain.reorg(100, 1, Contents::Fresh);
    assert_eq!(chain.head_number(), 1);
    assert_eq!(canonical()[0], a[0], "the genesis stays");
}
