//! Operator commands on a live stream, with the real binary.

use std::process::Output;

use ethhook_domain::fold::Problem;
use ethhook_domain::{EntryId, Marker, Op};
use ethhook_simulator::{Chain, Contents, ManualChain, ManualSpec, Node, RunningNode};
use ethhook_testkit::checker::Checker;
use ethhook_testkit::node_rpc::NodeRpc;

use crate::rig::{Rig, SETTLE, until};

const LOCAL: u64 = 31337;

/// A chain that is moved by hand, its node, and a rig that points to it.
pub(crate) async fn manual() -> (ManualChain, RunningNode, Rig) {
    let chain = Chain::manual(ManualSpec { events_per_block: 10, ..ManualSpec::new(LOCAL) });
    let node = Node::bind(([127, 0, 0, 1], 0).into(), vec![chain.clone()]).await.unwrap().spawn();
    let mut rig = Rig::new().await;
    rig.set("LOCAL_WS_URL", node.ws_url(LOCAL)).set("LOCAL_START_BLOCK", 0);
    (chain, node, rig)
}

pub(crate) async fn checker(rig: &Rig, node: &RunningNode) -> Checker {
    rig.checker(NodeRpc::at_url(node.http_url(LOCAL)), LOCAL).await
}

/// The same with this many blocks, all of them published.
pub(crate) async fn published(blocks: u64) -> (ManualChain, RunningNode, Rig, Checker) {
    let (chain, node, mut rig) = manual().await;
    rig.start();
    chain.mine(blocks);
    let checker = checker(&rig, &node).await;
    checker.settle_and_check(SETTLE).await.unwrap();
    (chain, node, rig, checker)
}

/// Standard output of a command that must succeed.
pub(crate) fn done(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Standard error of a command that must be refused.
pub(crate) fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn a_rewound_chain_is_published_anew_and_equal() {
    let (chain, node, mut rig) = manual().await;
    let rewind = ["rewind", "--chain", "local", "--to", "12", "--yes"];
    rig.start();
    chain.mine(30);
    let checker = checker(&rig, &node).await;
    checker.settle_and_check(SETTLE).await.unwrap();
    let told = refused(&rig.command(&rewind).await);
    assert!(
        told.contains("`rig` holds the lease") && told.contains("stop that process first"),
        "{told}"
    );

    rig.terminate().await;
    let unasked = refused(&rig.command(&rewind[..5]).await);
    assert!(unasked.contains("--yes"), "{unasked}");
    assert_eq!(checker.cursor().await.unwrap().unwrap().number, 30);
    let told = done(&rig.command(&rewind).await);
    assert!(told.contains("18 blocks with 180 events"), "{told}");
    let cursor = checker.cursor().await.unwrap().unwrap();
    assert_eq!(cursor.number, 12);
    let report = checker.check().await.unwrap();
    assert_eq!((report.violations.len(), report.records.len()), (0, 0), "{report}");
    assert_eq!(report.removed, 180);

    // In the meantime the chain switched to another branch, which forks off below our tip.
    chain.reorg(20, 22, Contents::Fresh);
    rig.start();
    let report = checker.settle_and_check(SETTLE).await.unwrap();
    assert_eq!((report.blocks, report.removed), (33, 200), "{report}");
    rig.terminate().await;
    // Back to the beginning, and up again.
    rig.command(&["rewind", "--chain", "LOCAL", "--to", "0", "--yes"]).await;
    assert_eq!(checker.cursor().await.unwrap().unwrap().number, 0);
    rig.start();
    checker.settle_and_check(SETTLE).await.unwrap();
    let markers = checker.markers().await.unwrap();
    assert!(markers.iter().all(|(_, marker)| matches!(marker.op, Op::Add | Op::Remove)));
}

#[tokio::test]
async fn g3_what_the_node_gave_up_is_taken_back_before_a_gap() {
    let (chain, _node, mut rig, checker) = published(10).await;
    rig.terminate().await;
    chain.reorg(2, 5, Contents::Fresh);
    let skip = ["skip", "--chain", "local", "--yes", "--to", "latest"];
    let told = refused(&rig.command(&skip).await);
    assert!(told.contains("blocks from 9/") && told.contains("--to 8`"), "{told}");
    done(&rig.command(&["rewind", "--chain", "local", "--yes", "--to", "8"]).await);
    let told = done(&rig.command(&skip).await);
    assert!(told.contains("blocks 9 to 13"), "{told}");
    rig.start();
    let report = checker.settle_and_check(SETTLE).await.unwrap();
    assert_eq!((report.events, report.removed), (80, 20), "{report}");
    rig.terminate().await;
}

#[tokio::test]
async fn skipped_blocks_are_a_gap_and_the_chain_goes_on_above() {
    let (chain, _node, mut rig, checker) = published(10).await;
    let skip = ["skip", "--chain", "local", "--yes", "--to"];
    let command = |to: &'static str| [&skip[..], &[to]].concat();
    let told = refused(&rig.command(&command("latest")).await);
    assert!(told.contains("`rig` holds the lease") || told.contains("next block is 11"), "{told}");

    rig.terminate().await;
    chain.mine(15);
    for to in ["3", "10"] {
        let told = refused(&rig.command(&command(to)).await);
        assert!(told.contains("next block is 11"), "{told}");
    }
    let told = refused(&rig.command(&command("26")).await);
    assert!(told.contains("no block 26"), "{told}");
    let told = done(&rig.command(&command("20")).await);
    assert!(told.contains("blocks 11 to 20") && told.contains("10 in all"), "{told}");
    let (_, gap) = checker.markers().await.unwrap().pop().unwrap();
    assert_eq!((gap.op, gap.number, gap.events), (Op::Gap, 20, 0));
    assert_eq!(gap.hash, chain.block(20).unwrap().hash());
    assert_eq!(gap.parent_hash, Some(chain.block(10).unwrap().hash()));
    rig.start();
    let report = checker.settle_and_check(SETTLE).await.unwrap();
    assert_eq!((report.events, report.removed), (150, 0), "{report}");

    let verify = |from, to| ["verify", "--chain", "local", "--from", from, "--to", to];
    let told = done(&rig.command(&verify("5", "22")).await);
    assert!(
        told.contains("10 of these blocks are not") && told.contains("8 blocks with 80"),
        "{told}"
    );
    let told = refused(&rig.command(&verify("12", "15")).await);
    assert!(told.contains("12 to 15 are not in the stream"), "{told}");

    // A reorg down to the gap, and a rewind down to it, but not below.
    chain.reorg(5, 6, Contents::Fresh);
    let report = checker.settle_and_check(SETTLE).await.unwrap();
    assert_eq!(report.removed, 50, "{report}");
    rig.terminate().await;
    let told = refused(&rig.command(&["rewind", "--chain", "local", "--to", "19", "--yes"]).await);
    assert!(told.contains("skipped"), "{told}");
    done(&rig.command(&["rewind", "--chain", "local", "--to", "20", "--yes"]).await);
    // With the gap as the tip, skip again, to the head; the chain continues from there.
    let told = done(&rig.command(&command("latest")).await);
    assert!(told.contains("blocks 21 to 26"), "{told}");
    rig.start();
    rig.wait_for("ready", |status, _| status == 200).await;
    chain.mine(2);
    let report = checker.settle_and_check(SETTLE).await.unwrap();
    assert_eq!((report.events, report.removed), (120, 110), "{report}");
}

/// The same chain under the name `tiny`, with short blocks and a small finality depth.
pub(crate) async fn tiny(events_per_block: usize) -> (ManualChain, RunningNode, Rig) {
    let chain = Chain::manual(ManualSpec { events_per_block, ..ManualSpec::new(LOCAL) });
    let node = Node::bind(([127, 0, 0, 1], 0).into(), vec![chain.clone()]).await.unwrap().spawn();
    let mut rig = Rig::new().await;
    let toml = "[chains.tiny]\nchain_id = 31337\nblock_time_ms = 100\nfinality_depth = 4\n\
                verify = 'receipts_root'\n";
    rig.write_toml(toml).unwrap();
    rig.set("TINY_WS_URL", node.ws_url(LOCAL)).set("TINY_START_BLOCK", 0);
    (chain, node, rig)
}

/// A chain whose blocks from 980 on were orphaned, below a finalized block of at least 1,000, and
/// its ingestor, which is stopped by the alarm.
async fn alarmed() -> (ManualChain, RunningNode, Rig, Checker) {
    let (chain, node, mut rig) = tiny(3).await;
    chain.set_finalized(1030);
    rig.start();
    chain.mine(1040);
    let checker = checker(&rig, &node).await;
    checker.settle_and_check(SETTLE).await.unwrap();
    until("a finalized block", async || {
        checker.cursor().await.unwrap().unwrap().finalized_number >= 1_000
    })
    .await;
    chain.reorg(60, 70, Contents::Fresh);
    rig.wait_for("ready", |status, body| status == 503 && body.contains("alarm")).await;
    (chain, node, rig, checker)
}

/// Runs `clear-alarm`, which need not wait for the lease: the stopped session has given it up.
pub(crate) async fn clear_alarm(rig: &Rig, chain: &str) -> String {
    done(&rig.command(&["clear-alarm", "--chain", chain, "--yes"]).await)
}

/// The newest marker that puts finality at block `number`.
async fn moved_back(checker: &Checker, number: u64) -> Marker {
    let mut markers = checker.markers().await.unwrap().into_iter().map(|(_, marker)| marker);
    markers.rfind(|marker| marker.op == Op::Finalized && marker.number == number).unwrap()
}

#[tokio::test]
async fn g10_a_cleared_alarm_takes_back_what_is_retained() {
    let (chain, _node, mut rig, checker) = alarmed().await;
    for command in [&["rewind", "--to", "1035"], &["skip", "--to", "1045"]] {
        let arguments = [&command[..], &["--chain", "tiny", "--yes"]].concat();
        let told = refused(&rig.command(&arguments).await);
        assert!(told.contains("clear-alarm"), "{told}");
    }
    let told = clear_alarm(&rig, "tiny").await;
    assert!(told.contains("block 980, is retained: 60 blocks with 180 events"), "{told}");
    // The ingestor, which was running all the time, continues.
    checker.settle(SETTLE).await.unwrap();
    let report = checker.check().await.unwrap();
    assert!(report.differences.is_empty() && report.records.is_empty(), "{report}");
    assert_eq!((report.removed, report.blocks), (180, 1_051), "{report}");
    let problems: Vec<_> = report.violations.iter().map(|v| v.problem).collect();
    assert_eq!(problems, [Problem::Finalized], "finality moved back once, by order: {report}");
    let retreat = moved_back(&checker, 980).await;
    let (parent, fork) = (chain.block(979).unwrap(), chain.block(980).unwrap());
    assert_eq!((retreat.hash, retreat.parent_hash), (fork.hash(), Some(parent.hash())));
    assert_eq!(retreat.timestamp, fork.timestamp());
    rig.wait_for("ready", |status, _| status == 200).await;
    rig.terminate().await;
    assert!(done(&rig.command(&["clear-alarm", "--chain", "tiny"]).await).contains("no alarm"));
    assert_eq!(checker.cursor().await.unwrap().unwrap().hash, chain.block(1_050).map(|b| b.hash()));
}

#[tokio::test]
async fn an_alarm_stays_while_the_node_tells_nothing_of_it_and_goes_with_the_stream() {
    let (chain, _node, rig, checker) = alarmed().await;
    chain.reorg(80, 1, Contents::Fresh); // its head is 971 now
    let told = refused(&rig.command(&["clear-alarm", "--chain", "tiny", "--yes"]).await);
    assert!(told.contains("head 971 is below the finalized block"), "{told}");
    assert!(!checker.cursor().await.unwrap().unwrap().alarm.is_empty());

    let alarm = r#"ethhook_alarm{chain="tiny"}"#;
    assert_eq!(rig.metric(alarm).await, Some(1.0));
    done(&rig.command(&["reset", "--chain", "tiny", "--yes"]).await);
    rig.wait_for("ready", |status, _| status == 200).await;
    assert_eq!(rig.metric(alarm).await, Some(0.0));
    // This was an order, not a loss.
    assert_eq!(rig.metric(r#"ethhook_redis_wipes_total{chain="tiny"}"#).await, Some(0.0));
}

#[tokio::test]
async fn a_chain_that_is_reset_beside_the_service_begins_where_its_start_is_now() {
    let (chain, node, mut rig) = manual().await;
    rig.set("LOCAL_START_BLOCK", "latest").set("LEASE_TTL_MS", 1_000);
    chain.mine(10);
    rig.start();
    rig.wait_for("ready", |status, _| status == 200).await;
    chain.mine(40);
    let checker = checker(&rig, &node).await;
    checker.settle(SETTLE).await.unwrap();
    let mut redis = rig.redis.connection().await.unwrap();
    let cursor = "cursor:{events:31337}";
    redis::cmd("HSET").arg(&[cursor, "alarm", "a test"]).exec_async(&mut redis).await.unwrap();
    chain.mine(1);
    rig.wait_for("ready", |_, body| body.contains("a test")).await;
    until("the lease to run out", async || {
        rig.command(&["reset", "--chain", "local", "--yes"]).await.status.success()
    })
    .await;
    rig.wait_for("ready", |status, _| status == 200).await;
    let cursor = checker.cursor().await.unwrap().unwrap();
    assert_eq!((cursor.start_number, cursor.number), (51, 51));
    rig.terminate().await;
}

#[tokio::test]
async fn g10_a_cleared_alarm_skips_where_the_fork_point_is_gone() {
    let (chain, _node, rig, checker) = alarmed().await;
    // Retention removes everything up to block 990, and one entry of 991.
    let markers = checker.markers().await.unwrap();
    let (id, marker) = markers.iter().find(|(_, m)| m.number == 991 && m.op == Op::Add).unwrap();
    let mut redis = rig.redis.connection().await.unwrap();
    let mut trim = async |key: &str, id: EntryId| {
        let mut command = redis::cmd("XTRIM");
        command.arg(key).arg("MINID").arg("=").arg(id.to_string());
        command.exec_async(&mut redis).await.unwrap();
    };
    trim("blocks:{events:31337}", *id).await;
    trim("events:31337", marker.first_id.unwrap().next()).await;

    let told = clear_alarm(&rig, "tiny").await;
    assert!(told.contains("no longer retained: 49 blocks with 147 events"), "{told}");
    assert!(told.contains("down to block 991") && told.contains("node's block 1030"), "{told}");
    checker.settle(SETTLE).await.unwrap();
    let markers = checker.markers().await.unwrap();
    let (_, gap) = markers.iter().find(|(_, marker)| marker.op == Op::Gap).unwrap();
    assert_eq!((gap.number, Some(gap.hash)), (1_030, chain.block(1_030).map(|b| b.hash())));
    let retreat = moved_back(&checker, 991).await;
    assert_eq!((retreat.hash, retreat.parent_hash, retreat.timestamp), (marker.hash, None, 0));
    let cursor = checker.cursor().await.unwrap().unwrap();
    assert_eq!((cursor.number, cursor.alarm.as_str()), (1_050, ""));
    assert!(cursor.finalized_number >= 1_030);
    rig.wait_for("ready", |status, _| status == 200).await;
}

#[tokio::test]
async fn g8_how_far_a_group_is_behind_is_a_metric() {
    let (chain, node, mut rig) = manual().await;
    chain.mine(5);
    rig.start();
    checker(&rig, &node).await.settle(SETTLE).await.unwrap();
    let mut redis = rig.redis.connection().await.unwrap();
    let mut create = redis::cmd("XGROUP");
    create.arg("CREATE").arg("events:31337").arg("readers").arg("0");
    create.exec_async(&mut redis).await.unwrap();
    let line = |name: &str| format!(r#"ethhook_group_{name}{{chain="local",group="readers"}}"#);
    until("the group's lag", async || {
        rig.metric(&line("lag_entries")).await == Some(50.0)
            && rig.metric(&line("lag_seconds")).await > Some(0.0)
    })
    .await;
    assert_eq!(rig.metric(&line("idle")).await, Some(0.0));
    // A session that has ended shows none, because it no longer checks.
    let latch = ["cursor:{events:31337}", "alarm", "by hand"];
    redis::cmd("HSET").arg(&latch).exec_async(&mut redis).await.unwrap();
    chain.mine(1);
    for name in ["lag_entries", "lag_seconds", "idle"] {
        until("no lag", async || rig.metric(&line(name)).await.is_none()).await;
    }
}

#[tokio::test]
async fn g10_a_reorg_of_the_block_skipped_to_is_an_alarm_that_can_be_cleared() {
    let (chain, _node, mut rig, checker) = published(10).await;
    rig.terminate().await;
    chain.mine(10);
    done(&rig.command(&["skip", "--chain", "local", "--to", "latest", "--yes"]).await);
    chain.mine(5);
    rig.start();
    checker.settle_and_check(SETTLE).await.unwrap();
    chain.reorg(8, 10, Contents::Fresh);
    rig.wait_for("ready", |status, body| status == 503 && body.contains("alarm")).await;
    let told = clear_alarm(&rig, "local").await;
    assert!(
        told.contains("5 blocks with 50 events will be taken back, down to block 20"),
        "{told}"
    );
    let report = checker.settle_and_check(SETTLE).await.unwrap();
    assert_eq!(report.removed, 50, "{report}");
    let markers = checker.markers().await.unwrap();
    let gaps: Vec<_> =
        markers.iter().filter(|(_, m)| m.op == Op::Gap).map(|(_, m)| m.number).collect();
    assert!(gaps.len() == 2 && gaps[0] == 20 && gaps[1] > 20, "{gaps:?}");
}
