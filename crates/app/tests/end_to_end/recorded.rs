//! With recorded mainnet blocks: every receipts root is the real chain's.

use ethhook_simulator::{Chain, Node};
use ethhook_testkit::chain_data;
use ethhook_testkit::node_rpc::NodeRpc;

use crate::rig::{Rig, SETTLE};

/// Ingests the linked blocks `first..=last` of Ethereum and returns how many events they have.
async fn ingest(first: u64, last: u64) -> Option<usize> {
    let dir = chain_data::dir()?.join("blocks/ethereum-1");
    let chain = Chain::recorded(dir).unwrap();
    let head = chain.block(last).unwrap().hash();
    assert!(chain.set_head(head));
    let node = Node::bind(([127, 0, 0, 1], 0).into(), [Chain::from(chain)]).await.unwrap().spawn();
    let mut rig = Rig::new().await;
    rig.set("ETHEREUM_WS_URL", node.ws_url(1)).set("ETHEREUM_START_BLOCK", first);
    rig.start();
    let checker = rig.checker(NodeRpc::at_url(node.http_url(1)), 1).await;
    let report = checker.settle_and_check(SETTLE).await.unwrap();
    assert_eq!(report.blocks as u64, last - first + 1);
    let markers = checker.markers().await.unwrap();
    assert!(markers.iter().all(|(_, marker)| marker.proof == ethhook_domain::Proof::ReceiptsRoot));
    Some(report.events)
}

#[tokio::test]
async fn g4_the_first_block_after_the_merge_with_10_041_logs_is_one_step() {
    if let Some(events) = ingest(15_537_393, 15_537_394).await {
        assert_eq!(events, 10_042);
    }
}

#[tokio::test]
async fn g6_twenty_three_linked_mainnet_blocks() {
    if let Some(events) = ingest(17_686_110, 17_686_132).await {
        assert_eq!(events, 9_807);
    }
}
