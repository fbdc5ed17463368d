//! With the simulator: situations that a real dev node does not produce.

use std::net::SocketAddr;
use std::time::Duration;

use ethhook_domain::{Marker, Op, Proof};
use ethhook_simulator::{
    Chain, ChainSpec, Contents, Fault, ManualChain, ManualSpec, Mischief, Node, RunningNode,
};
use ethhook_testkit::canary;
use ethhook_testkit::checker::Report;
use ethhook_testkit::node_rpc::NodeRpc;
use ethhook_testkit::redis_server::RedisOptions;

use crate::operator::tiny;
use crate::rig::{Rig, SETTLE, until};
use crate::status::found;

const LOCAL: u64 = 31337;
const RECEIPTS: &str = "eth_getBlockReceipts";

async fn serve<C: Into<Chain>>(chains: Vec<C>) -> RunningNode {
    Node::bind(([127, 0, 0, 1], 0).into(), chains).await.unwrap().spawn()
}

/// A chain that is moved by hand, its node, and a rig that uses it.
async fn manual() -> (ManualChain, RunningNode, Rig) {
    let chain = Chain::manual(ManualSpec { events_per_block: 40, ..ManualSpec::new(LOCAL) });
    let node = serve(vec![chain.clone()]).await;
    let mut rig = Rig::new().await;
    rig.set("LOCAL_WS_URL", node.ws_url(LOCAL)).set("LOCAL_START_BLOCK", 0);
    (chain, node, rig)
}

async fn check(rig: &Rig, node: &RunningNode) -> Report {
    let checker = rig.checker(NodeRpc::at_url(node.http_url(LOCAL)), LOCAL).await;
    checker.settle_and_check(SETTLE).await.unwrap()
}

#[tokio::test]
async fn g6_lies_and_failures_at_the_head_are_never_published() {
    let (chain, node, mut rig) = manual().await;
    rig.start();
    chain.mine(3);
    check(&rig, &node).await;
    let faults = [
        Fault::Null,
        Fault::Empty,
        Fault::DropReceipt,
        Fault::DropLog,
        Fault::AlterLog,
        Fault::Error(-32000, "header not found".into()),
        Fault::Html,
        Fault::InvalidJson,
        Fault::WrongId,
        Fault::Cut,
        Fault::Delay(Duration::from_millis(300)),
    ];
    for fault in faults {
        chain.faults().push(RECEIPTS, fault.clone(), 2);
        chain.mine(2);
        let report = check(&rig, &node).await;
        assert_eq!(report.removed, 0, "{fault:?} was published and taken back");
        eprintln!("{fault:?}: equal");
        assert_eq!(chain.faults().left(), 0, "{fault:?} was not played");
    }
    for check in ["receipts_root", "indices", "empty"] {
        let line =
            format!(r#"ethhook_checks_failed_total{{chain="local",check="{check}",endpoint="0"}}"#);
        assert!(rig.metric(&line).await >= Some(2.0), "{line}");
    }
}

#[tokio::test]
async fn g6_a_chain_whose_only_node_lies_waits_and_says_so() {
    let (chain, node, mut rig) = manual().await;
    rig.start();
    chain.mine(2);
    check(&rig, &node).await;
    chain.faults().push(RECEIPTS, Fault::DropLog, 1_000_000);
    chain.mine(1);
    let body = rig.wait_for("ready", |status, body| status == 503 && body.contains("check")).await;
    assert!(body.contains("`indices`") && body.contains("block 3"), "{body}");
    chain.faults().clear();
    check(&rig, &node).await;
    rig.wait_for("ready", |status, _| status == 200).await;
}

#[tokio::test]
async fn g6_a_lie_is_made_good_by_the_next_endpoint() {
    let (chain, liar, mut rig) = manual().await;
    let honest = serve(vec![chain.clone()]).await;
    // Both nodes serve the same chain; the fault affects one call only, and the first node is asked
    // first.
    rig.set("LOCAL_WS_URL", format!("{},{}", liar.ws_url(LOCAL), honest.ws_url(LOCAL)));
    rig.start();
    chain.mine(2);
    check(&rig, &liar).await;
    chain.faults().push(RECEIPTS, Fault::AlterLog, 1);
    chain.mine(1);
    check(&rig, &liar).await;
    let lies = r#"ethhook_checks_failed_total{chain="local",check="receipts_root",endpoint="0"}"#;
    assert_eq!(rig.metric(lies).await, Some(1.0));
    // The wrong node is set aside, the other continues to be used.
    liar.pause();
    liar.kill_connections();
    chain.mine(3);
    check(&rig, &honest).await;
}

#[tokio::test]
async fn g3_branches_that_come_and_go() {
    let (chain, node, mut rig) = manual().await;
    rig.start();
    chain.mine(20);
    check(&rig, &node).await;
    for depth in [1, 2, 5, 12] {
        chain.reorg(depth, depth, Contents::Fresh);
        check(&rig, &node).await;
        chain.switch_back();
        check(&rig, &node).await;
        chain.reorg(depth, depth + 1, Contents::SameTransactions);
        check(&rig, &node).await;
    }
    // The head is lower than before and stays there: believed when the node insists.
    chain.reorg(4, 2, Contents::Fresh);
    let report = check(&rig, &node).await;
    assert!(report.removed > 0);
}

#[tokio::test]
async fn g1_heads_late_doubled_skipped_or_never() {
    let (chain, node, mut rig) = manual().await;
    rig.start();
    chain.mine(5);
    check(&rig, &node).await;
    chain.set_announcing(false);
    let blocks = chain.mine(6);
    for i in [5, 1, 1, 3, 0, 5] {
        chain.announce(blocks[i].hash());
    }
    check(&rig, &node).await;
    // A late head of an orphaned branch changes nothing.
    let orphan = chain.mine(1)[0].hash();
    chain.reorg(1, 2, Contents::Fresh);
    chain.announce(chain.block(13).unwrap().hash());
    let report = check(&rig, &node).await;
    chain.announce(orphan);
    chain.announce(orphan);
    let later = chain.mine(1)[0].hash();
    chain.announce(later);
    assert_eq!(check(&rig, &node).await.removed, report.removed);
    // Nothing is announced: the poll finds it.
    chain.mine(2);
    check(&rig, &node).await;
}

#[tokio::test]
async fn g10_a_reorg_below_finalized_stops_the_chain_with_an_alarm() {
    let (chain, node, mut rig) = tiny(10).await;
    chain.set_finalized(1030);
    rig.start();
    // While catching up, the finalized block is requested every 1,024 blocks, and every 30 seconds.
    chain.mine(1040);
    check(&rig, &node).await;
    until("a finalized block", async || {
        rig.metric(r#"ethhook_finalized_block{chain="tiny"}"#).await >= Some(1000.0)
    })
    .await;
    check(&rig, &node).await;
    let finalized = rig.metric(r#"ethhook_finalized_block{chain="tiny"}"#).await.unwrap();
    chain.reorg(60, 62, Contents::Fresh);
    let body =
        rig.wait_for("ready", |status, body| status == 503 && body.contains("finalized")).await;
    assert!(body.contains("alarm"), "{body}");
    let checker = rig.checker(NodeRpc::at_url(node.http_url(LOCAL)), LOCAL).await;
    let cursor = checker.cursor().await.unwrap().unwrap();
    assert!(cursor.alarm.contains("finalized"), "{cursor:?}");
    assert_eq!((cursor.number, cursor.finalized_number as f64), (1040, finalized));
    assert_eq!(rig.metric(r#"ethhook_alarm{chain="tiny"}"#).await, Some(1.0));
    // The alarm is latched: a restart does not clear it.
    rig.terminate().await;
    rig.start();
    rig.wait_for("ready", |status, body| status == 503 && body.contains("alarm")).await;
}

#[tokio::test]
async fn g9_four_scheduled_chains_with_reorgs_and_a_dead_one() {
    const CHAINS: [(&str, u64); 4] =
        [("ETHEREUM", 1), ("ARBITRUM", 42161), ("OPTIMISM", 10), ("BASE", 8453)];
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let chains = CHAINS.map(|(_, chain_id)| {
        Chain::scheduled(ChainSpec {
            chain_id,
            block_time: Duration::from_millis(250),
            events_per_block: 50,
            empty_every: 0,
            reorg_every: 5,
            reorg_depth: 4,
            seed: 7,
            genesis_time: now,
        })
        .unwrap()
    });
    let node = serve(chains.to_vec()).await;
    let mut rig = Rig::new().await;
    for (name, id) in CHAINS {
        rig.set(&format!("{name}_WS_URL"), node.ws_url(id)).set(&format!("{name}_START_BLOCK"), 0);
    }
    rig.set("POLYGON_WS_URL", "ws://127.0.0.1:9/none"); // no server listens there
    rig.start();
    let metric = async |rig: &Rig, name: &str, chain: &str| {
        let chain = chain.to_lowercase();
        rig.metric(&format!(r#"{name}{{chain="{chain}"}}"#)).await.unwrap_or_default()
    };
    for (name, _) in CHAINS {
        until("forty blocks and three reorgs", async || {
            metric(&rig, "ethhook_published_block", name).await >= 40.0
                && metric(&rig, "ethhook_reorg_depth_blocks_count", name).await >= 3.0
        })
        .await;
    }
    let body =
        rig.wait_for("ready", |status, body| status == 503 && body.contains("polygon")).await;
    assert!(!body.contains("ethereum"), "{body}");
    rig.terminate().await;
    // The chains grow in the meantime, with at least one reorg.
    let missed = chains.each_ref().map(|chain| chain.head_number() + 10);
    for (chain, missed) in chains.iter().zip(missed) {
        until("ten blocks more", async || chain.head_number() >= missed).await;
    }
    rig.start();
    for ((name, _), missed) in CHAINS.iter().zip(missed) {
        until("what was missed", async || {
            metric(&rig, "ethhook_published_block", name).await >= missed as f64
        })
        .await;
    }
    // On a busy machine, comparing takes longer than a block.
    chains.iter().for_each(Chain::stop_clock);
    for (_, id) in CHAINS {
        let checker = rig.checker(NodeRpc::at_url(node.http_url(id)), id).await;
        assert!(checker.settle_and_check(SETTLE).await.unwrap().removed > 0);
    }
}

#[tokio::test]
async fn live_blocks_cost_one_request_each() {
    let (chain, node, mut rig) = manual().await;
    rig.start();
    chain.mine(2);
    check(&rig, &node).await;
    let before = chain.stats().total_requests();
    for _ in 0..100 {
        let block = chain.mine(1)[0].clone();
        until("the block is published", async || {
            rig.metric(r#"ethhook_published_block{chain="local"}"#).await
                >= Some(block.number() as f64)
        })
        .await;
    }
    let requests = chain.stats().total_requests() - before;
    assert!(
        (100..=110).contains(&requests),
        "{requests} requests: {:?}",
        chain.stats().by_method()
    );
}

#[tokio::test]
async fn a_block_without_transactions_costs_no_request() {
    let (chain, node, mut rig) = manual().await;
    rig.start();
    chain.mine(2);
    check(&rig, &node).await;
    let before = chain.stats().requests(RECEIPTS);
    for _ in 0..5 {
        chain.mine_events(0);
    }
    let report = check(&rig, &node).await;
    assert_eq!((report.blocks, chain.stats().requests(RECEIPTS)), (8, before));
}

#[tokio::test]
async fn g6_without_receipts_the_logs_prove_the_bloom_at_most() {
    const LACKING: &str = "method not offered: eth_getBlockReceipts";
    let (chain, node, mut rig) = manual().await;
    chain.faults().push(RECEIPTS, Fault::Error(-32601, "no such method".into()), 1_000_000);
    rig.start();
    chain.mine(3);
    rig.wait_for("ready", |status, body| status == 503 && body.contains(LACKING)).await;
    assert_eq!(chain.stats().requests("eth_getLogs"), 0, "they could prove nothing");
    found(&mut rig).await;
    let status = rig.command(&["status"]).await;
    let status = String::from_utf8_lossy(&status.stdout);
    for advice in ["needs one that offers eth_getBlockReceipts", "LOCAL_VERIFY=bloom"] {
        assert!(status.contains(advice), "{status}");
    }
    // The operator lowers the check for this chain, and the markers show it.
    rig.terminate().await;
    rig.set("LOCAL_VERIFY", "bloom");
    rig.start();
    chain.mine(3);
    check(&rig, &node).await;
    assert_eq!(rig.metric(r#"ethhook_verify_lowered{chain="local"}"#).await, Some(1.0));
    let checker = rig.checker(NodeRpc::at_url(node.http_url(LOCAL)), LOCAL).await;
    let markers = checker.markers().await.unwrap();
    let weak = markers.iter().filter(|(_, marker)| marker.proof == Proof::Bloom).count();
    assert_eq!(weak, 6, "{markers:?}"); // the genesis has no transactions, so it is proven
}

#[tokio::test]
async fn g6_refused_methods_among_other_faults_leave_proofs_of_the_bloom() {
    /// Only the receipts root shows these faults: a chain with level `bloom` accepts them.
    const BEYOND_THE_BLOOM: &[&str] = &["alter_log", "drop_log"];
    /// These would only take time here; other tests cover each of them.
    const SLOW: &[&str] = &["delay", "no_answer", "status_429", "limit_exceeded", "padded"];
    let (chain, node, mut rig) = manual().await;
    rig.set("LOCAL_VERIFY", "bloom").set("LOCAL_HTTP_URL", node.http_url(LOCAL));
    rig.start();
    chain.mine(3);
    check(&rig, &node).await;
    chain.misbehave(Mischief::mixed(5, 250).without(BEYOND_THE_BLOOM).without(SLOW));
    // The first refusal is remembered for a minute, so later blocks are fetched by eth_getLogs.
    chain.faults().push(RECEIPTS, Fault::Error(-32601, "no such method".into()), 1);
    until("a refusal", async || {
        chain.mine(2);
        chain.stats().faults_played().contains_key("method_not_found")
    })
    .await;
    chain.faults().push("eth_getLogs", Fault::Error(-32001, "not offered".into()), 1);
    until("the other refusal", async || {
        chain.mine(2);
        chain.stats().faults_played().contains_key("method_not_offered")
    })
    .await;
    chain.behave();
    chain.mine(1);
    let report = check(&rig, &node).await;
    let checker = rig.checker(NodeRpc::at_url(node.http_url(LOCAL)), LOCAL).await;
    let markers = checker.markers().await.unwrap();
    let added = |proof| move |m: &Marker| (m.op, m.proof) == (Op::Add, proof);
    let count = |holds: &dyn Fn(&Marker) -> bool| markers.iter().filter(|(_, m)| holds(m)).count();
    let (weak, unproven) = (count(&added(Proof::Bloom)), count(&added(Proof::Structure)));
    assert!(weak > 0 && unproven == 0, "{weak} by their bloom, {unproven} unproven: {report}");
}

#[tokio::test]
async fn g11_no_secret_is_ever_shown() {
    let chain = Chain::manual(ManualSpec { events_per_block: 40, ..ManualSpec::new(LOCAL) });
    let node = serve(vec![chain.clone()]).await;
    let requirepass = ("requirepass".into(), canary::REDIS_PASSWORD.into());
    let options = RedisOptions { more: vec![requirepass], ..RedisOptions::default() };
    let mut rig = Rig::with_redis(options).await;
    // Both ways to set a secret: as a value, and by file.
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = files.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    rig.unset("REDIS_URL");
    let port = rig.redis.port();
    rig.set("REDIS_PORT", port);
    rig.set("REDIS_PASSWORD_FILE", file("redis", canary::REDIS_PASSWORD.into()));
    rig.set("LOCAL_WS_URL_FILE", file("ws", canary::node_url(&node.ws_url(LOCAL))));
    rig.set("LOCAL_HTTP_URL", canary::node_url(&node.http_url(LOCAL)));
    rig.set("LOCAL_START_BLOCK", 0);
    rig.set("POLYGON_WS_URL", canary::node_url("ws://127.0.0.1:9/rpc"));
    rig.set("BASE_HTTP_URL", canary::node_url("http://127.0.0.1:9/rpc"));
    rig.set("RUST_LOG", "debug");
    // A node that repeats the key while the WebSocket is being set up, and then in answers.
    let repeats = |what| {
        let text = format!("{what}: see https://rpc/{}, not {}", canary::PATH, canary::PATH);
        Fault::Error(-32000, text)
    };
    chain.faults().push("eth_subscribe", repeats("bad key"), 1);
    rig.start();
    chain.mine(3);
    chain.faults().push(RECEIPTS, repeats("limits"), 2);
    chain.mine(2);
    check(&rig, &node).await;
    let told =
        "WebSocket not connected endpoint=0 error=error -32000: bad key: see <url> not <redacted>";
    until("the refused subscription is told", async || rig.log().contains(told)).await;
    node.pause();
    node.kill_connections();
    rig.wait_for("ready", |status, body| status == 503 && body.contains("base")).await;
    // Enough failures to be logged: the breaker of an endpoint that refuses has opened.
    until("the breaker opens", async || {
        rig.metric(r#"ethhook_breaker_state{chain="base",endpoint="0"}"#).await == Some(2.0)
    })
    .await;
    node.resume();
    let searched = canary::sweep(&[&*rig], &rig.redis).await.unwrap();
    assert!(searched > 10_000, "only {searched} bytes were searched");
    // A problem with a secret is reported without the secret.
    rig.set("BASE_HTTP_URL", canary::node_url("ftp://127.0.0.1:9/rpc"));
    rig.set("LOCAL_WS_URL_FILE", file("ws", canary::MARK.into()));
    for command in ["check-config", "ingest"] {
        let told = rig.command(&[command]).await;
        let told = [told.stdout, told.stderr].concat();
        let told = String::from_utf8_lossy(&told);
        assert!(!told.contains(canary::MARK), "{command}: {told}");
        assert!(told.contains("BASE_HTTP_URL"), "{command}: {told}");
    }
}

/// Serves `chain` where another node has just stopped.
async fn serve_at(address: SocketAddr, chain: &ManualChain) -> RunningNode {
    let mut node = None;
    until("the port to be free", async || {
        node = Node::bind(address, vec![chain.clone()]).await.ok().map(Node::spawn);
        node.is_some()
    })
    .await;
    node.unwrap()
}

/// A chain with its own genesis, as a dev node creates.
fn dev_chain(seed: u64) -> ManualChain {
    Chain::manual(ManualSpec { seed, genesis_time: 1_700_000_000 + seed, ..ManualSpec::new(LOCAL) })
}

#[tokio::test]
async fn g6_an_endpoint_that_serves_another_chain_by_now_is_left_for_another() {
    let (ours, other) = (dev_chain(1), dev_chain(2));
    let (first, second) = (serve(vec![ours.clone()]).await, serve(vec![ours.view()]).await);
    let address = first.addr();
    let mut rig = Rig::new().await;
    let of_both = [&first, &second].map(|node| node.ws_url(LOCAL)).join(",");
    rig.set("LOCAL_WS_URL", of_both).set("LOCAL_START_BLOCK", 0);
    rig.start();
    ours.mine(10);
    let checker = rig.checker(NodeRpc::at_url(second.http_url(LOCAL)), LOCAL).await;
    checker.settle_and_check(SETTLE).await.unwrap();
    drop(first);
    other.mine(30);
    let _node = serve_at(address, &other).await;
    until("the other chain to be asked for", async || {
        other.mine(1);
        ours.mine(1);
        other.stats().requests("eth_getBlockByNumber") > 0
    })
    .await;
    checker.settle_and_check(SETTLE).await.unwrap();
    rig.wait_for("ready", |status, _| status == 200).await;
    let (_, metrics) = rig.get("metrics").await.unwrap();
    assert!(!metrics.contains(r#"cause="genesis""#), "a session ended:\n{metrics}");
    // Commands ask only the one that has the stream's chain.
    let verified = rig.command(&["verify", "--chain", "local", "--to", "9"]).await;
    assert!(verified.status.success(), "{verified:?}");
    rig.terminate().await;
}

#[tokio::test]
async fn g10_a_dev_node_that_started_anew_is_no_finality_violation() {
    let (first, second) = (dev_chain(1), dev_chain(2));
    let node = serve(vec![first.clone()]).await;
    let address = node.addr();
    let mut rig = Rig::new().await;
    rig.set("LOCAL_HTTP_URL", node.http_url(LOCAL)).set("LOCAL_START_BLOCK", 0);
    first.mine(80);
    first.set_finalized(15);
    rig.start();
    let checker = rig.checker(NodeRpc::at_url(node.http_url(LOCAL)), LOCAL).await;
    until("a block to be final", async || {
        checker.cursor().await.unwrap().is_some_and(|cursor| cursor.finalized_number == 15)
    })
    .await;
    drop(node);
    second.mine(90);
    let _node = serve_at(address, &second).await;
    rig.wait_for("ready", |_, body| body.contains("genesis")).await;
    assert_eq!(checker.cursor().await.unwrap().unwrap().alarm, "");
    rig.terminate().await;
}

#[tokio::test]
async fn g3_a_dev_node_that_started_anew_is_not_followed_within_a_session() {
    let (first, second) = (dev_chain(1), dev_chain(2));
    let node = serve(vec![first.clone()]).await;
    let address = node.addr();
    let mut rig = Rig::new().await;
    rig.set("LOCAL_WS_URL", node.ws_url(LOCAL)).set("LOCAL_START_BLOCK", 0);
    rig.start();
    first.mine(20);
    let checker = rig.checker(NodeRpc::at_url(node.http_url(LOCAL)), LOCAL).await;
    checker.settle_and_check(SETTLE).await.unwrap();
    // Another branch of the same chain may replace all of its blocks.
    first.reorg(20, 21, Contents::Fresh);
    checker.settle_and_check(SETTLE).await.unwrap();
    let before = checker.cursor().await.unwrap();
    drop(node);
    second.mine(30);
    let _node = serve_at(address, &second).await;
    second.mine(1);
    let told = rig.wait_for("ready", |_, body| body.contains("genesis")).await;
    assert!(told.contains("`ethhook reset --chain local`"), "{told}");
    let after = checker.cursor().await.unwrap();
    assert_eq!(after.map(|c| c.hash), before.map(|c| c.hash), "no block of it was taken");
    rig.terminate().await;
}
