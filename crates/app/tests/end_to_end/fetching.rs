//! What is asked of a node, and what need not be: counted at the simulator.

use alloy_primitives::{Address, B256, Log};
use ethhook_domain::{Filter, Proof};
use ethhook_simulator::{Chain, ManualChain, ManualSpec, Node, RunningNode};
use ethhook_testkit::checker::Checker;
use ethhook_testkit::node_rpc::NodeRpc;

use crate::rig::{Rig, SETTLE};

const LOCAL: u64 = 31337;
const RECEIPTS: &str = "eth_getBlockReceipts";
const LOGS: &str = "eth_getLogs";

/// A chain that is moved by hand, a node whose requests are counted, another for the checker, and a
/// rig that points to the first; the ingestor does not run yet.
struct Scene {
    chain: ManualChain,
    _node: RunningNode,
    judge: RunningNode,
    rig: Rig,
}

impl Scene {
    async fn new(events_per_block: usize) -> Self {
        let chain = Chain::manual(ManualSpec { events_per_block, ..ManualSpec::new(LOCAL) });
        let serve = async |view: Chain| {
            Node::bind(([127, 0, 0, 1], 0).into(), [view]).await.unwrap().spawn()
        };
        let (node, judge) = (serve(chain.clone().into()).await, serve(chain.view()).await);
        let mut rig = Rig::new().await;
        rig.set("LOCAL_WS_URL", node.ws_url(LOCAL)).set("LOCAL_START_BLOCK", 0);
        Self { chain, _node: node, judge, rig }
    }

    async fn checker(&self) -> Checker {
        self.rig.checker(NodeRpc::at_url(self.judge.http_url(LOCAL)), LOCAL).await
    }
}

#[tokio::test]
async fn a_block_whose_bloom_rules_the_filter_out_costs_no_request() {
    let mut scene = Scene::new(0).await;
    let (wanted, other) = (Address::repeat_byte(7), Address::repeat_byte(8));
    let (event, elsewhere) = (B256::repeat_byte(1), B256::repeat_byte(2));
    let log = |contract, topic| Log::new_unchecked(contract, vec![topic], vec![9; 32].into());
    scene.rig.set("LOCAL_CONTRACTS", wanted).set("LOCAL_TOPICS", event);
    scene.rig.start();
    for _ in 0..5 {
        scene.chain.mine_with(vec![vec![log(other, event)]]);
        scene.chain.mine_with(vec![vec![log(wanted, elsewhere)]]);
        scene.chain.mine_with(vec![vec![log(other, elsewhere), log(wanted, event)]]);
    }
    // Both are there, but not in one log: the bloom cannot tell.
    scene.chain.mine_with(vec![vec![log(other, event), log(wanted, elsewhere)]]);
    let filter = Filter { contracts: [wanted].into(), topics: [event].into() };
    let checker = scene.checker().await.with_filter(filter);
    let report = checker.settle_and_check(SETTLE).await.unwrap();
    assert_eq!((report.blocks, report.events), (17, 5));
    let stats = scene.chain.stats();
    assert_eq!((stats.requests(RECEIPTS), stats.requests(LOGS)), (6, 0));
    // What was not asked for says so: the bloom was all that was looked at.
    let markers = checker.markers().await.unwrap();
    let proofs = |proof| markers.iter().filter(|(_, marker)| marker.proof == proof).count();
    assert_eq!((proofs(Proof::Bloom), proofs(Proof::ReceiptsRoot)), (10, 7), "{markers:?}");
}
