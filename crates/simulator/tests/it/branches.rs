//! Nodes that are on another branch than the chain.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ethhook_simulator::{Chain, ChainSpec, Contents, Fault};
use serde_json::json;

use crate::client::{Socket, hex, manual, number, result, serve};

const RECEIPTS: &str = "eth_getBlockReceipts";

#[tokio::test]
async fn a_node_may_still_be_on_the_branch_that_was_replaced() {
    let (chain, node) = manual(10).await;
    let mut socket = Socket::subscribed(&node).await;
    let hash = |number| chain.block(number).unwrap().hash();
    chain.faults().push("eth_blockNumber", Fault::OtherBranch, 1);
    assert_eq!(result(&node, "eth_blockNumber", json!([])).await, "0xa", "there is none yet");
    let (old, common) = ([9, 10].map(hash), hash(8));
    chain.reorg(2, 3, Contents::Fresh);
    let new = [9, 10, 11].map(hash);
    assert_eq!(socket.heads(3).await.len(), 3);
    assert_eq!(result(&node, "eth_blockNumber", json!([])).await, "0xa", "that fault was left");
    assert_eq!(result(&node, "eth_blockNumber", json!([])).await, "0xb");

    let hash_at = async |number: u64| {
        let block = result(&node, "eth_getBlockByNumber", json!([hex(number), false])).await;
        block.get("hash").map(|hash| hash.as_str().unwrap().to_owned())
    };
    let knows = async |hash| result(&node, RECEIPTS, json!([hash])).await.is_array();
    chain.set_on_other_branch(true);
    for (number, expected) in [(8, Some(common)), (9, Some(old[0])), (10, Some(old[1])), (11, None)]
    {
        assert_eq!(hash_at(number).await, expected.map(|hash| hash.to_string()), "{number}");
    }
    assert!(knows(common).await && knows(old[0]).await && knows(old[1]).await);
    for hash in new {
        assert!(!knows(hash).await);
    }
    chain.mine(1);
    assert_eq!(
        socket.call("eth_blockNumber", json!([])).await["result"],
        "0xa",
        "nothing is heard"
    );
    chain.behave();
    assert_eq!(hash_at(9).await, Some(new[0].to_string()));
    chain.mine(1);
    assert_eq!(socket.heads(1).await[0].0, 13);
}

#[tokio::test]
async fn a_clock_moves_nodes_to_another_branch_too() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let chain = Chain::scheduled(ChainSpec {
        chain_id: 1,
        block_time: Duration::from_secs(1),
        events_per_block: 3,
        empty_every: 0,
        reorg_every: 1,
        reorg_depth: 1,
        seed: 1,
        genesis_time: now - 100,
    });
    let chain = chain.unwrap();
    chain.stop_clock();
    let node = serve(chain.clone()).await;
    chain.set_on_other_branch(true);
    let latest = result(&node, "eth_getBlockByNumber", json!(["latest", false])).await;
    let ours = chain.block(number(&latest["number"])).unwrap();
    assert_ne!(latest["hash"], ours.hash().to_string());
    assert_eq!(latest["parentHash"], ours.parent_hash().to_string());
}
