//! A packed stream under reorgs, kills and operator commands; and one that is not packed.

use ethhook_simulator::{Chain, Contents, ManualSpec, Node};
use ethhook_testkit::node_rpc::NodeRpc;

use crate::rig::{Rig, SETTLE};

const LOCAL: u64 = 31337;

#[tokio::test]
async fn a_packed_stream_goes_through_reorgs_kills_and_orders_and_is_never_mixed() {
    let chain = Chain::manual(ManualSpec { events_per_block: 40, ..ManualSpec::new(LOCAL) });
    let node = Node::bind(([127, 0, 0, 1], 0).into(), [chain.clone()]).await.unwrap().spawn();
    let mut rig = Rig::new().await;
    rig.set("LOCAL_WS_URL", node.ws_url(LOCAL)).set("LOCAL_START_BLOCK", 0);
    rig.set("STREAM_ENCODING", "msgpack");
    let checker = rig.checker(NodeRpc::at_url(node.http_url(LOCAL)), LOCAL).await;
    rig.start();
    chain.mine(10);
    checker.settle_and_check(SETTLE).await.unwrap();
    for depth in [1, 4, 9] {
        chain.reorg(depth, depth + 1, Contents::Fresh);
        checker.settle_and_check(SETTLE).await.unwrap();
        // A reorg while the ingestor is down is taken back from the stream.
        rig.kill().await;
        chain.reorg(depth, depth + 1, Contents::SameTransactions);
        chain.mine(3);
        rig.start();
        checker.settle_and_check(SETTLE).await.unwrap();
    }
    rig.terminate().await;
    let rewind = rig.command(&["rewind", "--chain", "local", "--to", "5", "--yes"]).await;
    assert!(rewind.status.success(), "{rewind:?}");

    // An ingestor with the other encoding reports what to do, and writes nothing.
    let before = checker.cursor().await.unwrap();
    rig.set("STREAM_ENCODING", "fields");
    rig.start();
    let body =
        rig.wait_for("ready", |status, body| status == 503 && body.contains("encoding")).await;
    for part in ["`msgpack`, STREAM_ENCODING is `fields`", "`ethhook reset --chain local`"] {
        assert!(body.contains(part), "{body}");
    }
    assert_eq!(checker.cursor().await.unwrap(), before);
    rig.terminate().await;
    rig.set("STREAM_ENCODING", "msgpack");
    rig.start();
    let report = checker.settle_and_check(SETTLE).await.unwrap();
    assert!(report.removed > 0 && report.packed == report.entries, "{report}");
}
