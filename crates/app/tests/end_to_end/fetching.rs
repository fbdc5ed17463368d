//! What is requested from a node, how much at once, and what need not be: counted at the simulator.

use std::time::Duration;

use alloy_primitives::{Address, B256, Log};
use ethhook_domain::{Filter, Proof};
use ethhook_simulator::{
    BatchRefusal, Chain, Contents, Fault, ManualChain, ManualSpec, Node, RangeLimits, RateLimit,
    RunningNode,
};
use ethhook_testkit::checker::{Checker, Report};
use ethhook_testkit::node_rpc::NodeRpc;

use crate::rig::{Rig, SETTLE, until};

const LOCAL: u64 = 31337;
const RECEIPTS: &str = "eth_getBlockReceipts";
const LOGS: &str = "eth_getLogs";
const HEADERS: &str = "eth_getBlockByNumber";

/// A chain that is moved by hand, a node whose requests are counted, another for the checker, and a
/// rig that uses the first; the ingestor is not started yet.
struct Scene {
    chain: ManualChain,
    node: RunningNode,
    judge: RunningNode,
    rig: Rig,
}

async fn serve(view: Chain) -> RunningNode {
    Node::bind(([127, 0, 0, 1], 0).into(), [view]).await.unwrap().spawn()
}

impl Scene {
    async fn new(events_per_block: usize) -> Self {
        let chain = Chain::manual(ManualSpec { events_per_block, ..ManualSpec::new(LOCAL) });
        let (node, judge) = (serve(chain.clone().into()).await, serve(chain.view()).await);
        let mut rig = Rig::new().await;
        rig.set("LOCAL_WS_URL", node.ws_url(LOCAL)).set("LOCAL_START_BLOCK", 0);
        // Blocks are final after four more, and blocks below that are fetched together.
        rig.write_toml("[chains.local]\nfinality_depth = 4\n").unwrap();
        Self { chain, node, judge, rig }
    }

    /// The same with a level at which logs are proof enough.
    async fn by_logs(events_per_block: usize) -> Self {
        let mut scene = Self::new(events_per_block).await;
        scene.rig.set("LOCAL_VERIFY", "bloom").set("LOCAL_FETCH", "logs");
        scene
    }

    async fn check(&self) -> Report {
        self.checker().await.settle_and_check(SETTLE).await.unwrap()
    }

    async fn metric(&self, name: &str, labels: &str) -> f64 {
        let line = format!("{name}{{chain=\"local\"{labels}}}");
        self.rig.metric(&line).await.unwrap_or_default()
    }

    async fn tip(&self) -> f64 {
        self.metric("ethhook_published_block", "").await
    }

    async fn checker(&self) -> Checker {
        self.rig.checker(NodeRpc::at_url(self.judge.http_url(LOCAL)), LOCAL).await
    }
}

#[tokio::test]
async fn g6_a_block_whose_bloom_rules_the_filter_out_costs_no_request() {
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
    // Both occur, but not in the same log: the bloom cannot show that.
    scene.chain.mine_with(vec![vec![log(other, event), log(wanted, elsewhere)]]);
    let filter = Filter { contracts: [wanted].into(), topics: [event].into() };
    let checker = scene.checker().await.with_filter(filter);
    let report = checker.settle_and_check(SETTLE).await.unwrap();
    assert_eq!((report.blocks, report.events), (17, 5));
    let stats = scene.chain.stats();
    assert_eq!((stats.requests(RECEIPTS), stats.requests(LOGS)), (6, 0));
    // The markers of blocks that were not fetched show it: only the bloom was checked.
    let markers = checker.markers().await.unwrap();
    let proofs = |proof| markers.iter().filter(|(_, marker)| marker.proof == proof).count();
    assert_eq!((proofs(Proof::Bloom), proofs(Proof::ReceiptsRoot)), (10, 7), "{markers:?}");
}

#[tokio::test]
async fn g6_a_backlog_costs_far_less_than_a_message_a_block() {
    // Receipts in batches prove everything; ranges of logs need fewer calls; over HTTP and
    // WebSocket.
    for (fetch, url) in [("receipts", "WS"), ("receipts", "HTTP"), ("logs", "WS"), ("logs", "HTTP")]
    {
        let mut scene = Scene::new(5).await;
        if url == "HTTP" {
            scene.rig.unset("LOCAL_WS_URL");
            scene.rig.set("LOCAL_HTTP_URL", scene.node.http_url(LOCAL));
        }
        if fetch == "logs" {
            scene.rig.set("LOCAL_VERIFY", "bloom");
        }
        scene.chain.mine(1_000);
        scene.rig.start();
        let report = scene.check().await;
        assert_eq!((report.blocks, report.events), (1_001, 5_000)); // nothing in block 0
        let stats = scene.chain.stats();
        let asked =
            format!("{fetch} over {url}: {} messages, {:?}", stats.messages(), stats.by_method());
        eprintln!("{asked}");
        assert!(stats.messages() < 150, "{asked}");
        let calls = if fetch == "logs" { stats.requests(LOGS) } else { stats.requests(RECEIPTS) };
        assert!(if fetch == "logs" { calls < 100 } else { calls >= 1_000 }, "{asked}");
        let markers = scene.checker().await.markers().await.unwrap();
        let proven = markers.iter().filter(|(_, m)| m.proof == Proof::ReceiptsRoot).count();
        assert!(if fetch == "logs" { proven < 20 } else { proven >= 1_001 }, "{proven}: {asked}");
    }
}

#[tokio::test]
async fn g6_how_many_calls_a_second_a_provider_takes_is_found_out() {
    let catch_up = async |url: &str| {
        let mut scene = Scene::new(5).await;
        if url == "HTTP" {
            scene.rig.unset("LOCAL_WS_URL");
            scene.rig.set("LOCAL_HTTP_URL", scene.node.http_url(LOCAL));
        }
        scene.chain.set_rate_limit(Some(RateLimit { calls: 10, retry_after: Some(1) }));
        scene.chain.mine(60);
        scene.rig.start();
        assert_eq!(scene.check().await.blocks, 61);
        let stats = scene.chain.stats();
        let refused = stats.faults_played()["status_429"];
        let seen = format!("{refused} refused over {url}, answered: {:?}", stats.by_method());
        eprintln!("{seen}");
        // Those that were on their way at the first refusal, and one now and then.
        assert!(refused < 20, "{seen}");
        assert!(scene.metric("ethhook_rpc_pace", ",endpoint=\"0\"").await > 0.0);
    };
    tokio::join!(catch_up("WS"), catch_up("HTTP"));
}

#[tokio::test]
async fn g6_what_a_provider_takes_at_once_is_found_out() {
    for (blocks, logs, batch) in
        [(10, 20_000, 1_000), (1_000, 64, 1_000), (1, 20_000, 3), (7, 30, 1)]
    {
        let mut scene = Scene::by_logs(5).await;
        scene.chain.set_range_limits(RangeLimits { blocks, logs });
        scene.chain.set_batch_limit(batch);
        scene.chain.mine(200);
        scene.rig.start();
        assert_eq!(scene.check().await.blocks, 201);
    }
    // No batches at all, refused in any way.
    for refusal in [BatchRefusal::Status(403), BatchRefusal::Nothing, BatchRefusal::First] {
        let mut scene = Scene::new(5).await;
        scene.chain.set_batch_limit(1);
        scene.chain.set_batch_refusal(refusal);
        scene.rig.set("LOCAL_WS_URL", "").set("LOCAL_HTTP_URL", scene.node.http_url(LOCAL));
        scene.chain.mine(100);
        scene.rig.start();
        assert_eq!(scene.check().await.blocks, 101, "{refusal:?}");
    }
    // With any code, and for batches of receipts, too.
    for (fetch, method) in [("logs", LOGS), ("receipts", RECEIPTS)] {
        let mut scene = Scene::new(5).await;
        scene.rig.set("LOCAL_VERIFY", "bloom").set("LOCAL_FETCH", fetch);
        for (code, message) in [
            (-32602, "block range too wide"),
            (
                -32005,
                "query returned more than 10000 results. Try with this block range [0x1, 0x3].",
            ),
            (-32000, "eth_getLogs is limited to a 1000 range"),
            (35, "ranges over 2 blocks are not supported"),
        ] {
            scene.chain.faults().push(method, Fault::Error(code, message.into()), 2);
        }
        scene.chain.set_batch_limit(5);
        scene.chain.mine(200);
        scene.rig.start();
        assert_eq!(scene.check().await.blocks, 201);
        assert_eq!(scene.chain.faults().left(), 0);
    }
}

#[tokio::test]
async fn patience_asked_for_within_a_batch_is_given() {
    let mut scene = Scene::new(5).await;
    scene.rig.set("LOCAL_FETCH", "receipts");
    scene.chain.mine(100);
    // The first few are requested one by one.
    scene.chain.faults().push(RECEIPTS, Fault::Delay(Duration::ZERO), 30);
    scene.chain.faults().push(RECEIPTS, Fault::Error(-32005, "slow down".into()), 1);
    scene.rig.start();
    assert_eq!(scene.check().await.blocks, 101);
    assert_eq!(scene.rig.log().matches("endpoint set aside").count(), 1);
}

#[tokio::test]
async fn g6_a_lie_in_a_range_is_made_good_block_by_block() {
    let mut scene = Scene::by_logs(20).await;
    scene.rig.start();
    scene.chain.mine(20);
    let checker = scene.checker().await;
    checker.settle(SETTLE).await.unwrap();
    let faults = [
        Fault::DropLog,
        Fault::DropBlock,
        Fault::CutRange,
        Fault::ForeignLog,
        Fault::ForeignLogs,
        Fault::DoubledLogIndex,
        Fault::LogIndexPerTransaction,
        Fault::Empty,
        Fault::Null,
        Fault::Behind(40),
        Fault::WrongId,
        Fault::InvalidJson,
        Fault::CutMidAnswer,
    ];
    for fault in faults {
        scene.chain.faults().push(LOGS, fault.clone(), 2);
        until("the fault is played", async || {
            // They become known all at once: otherwise they would be fetched one by one, and the
            // fault would be over.
            scene.chain.set_announcing(false);
            scene.chain.mine(59);
            scene.chain.set_announcing(true);
            scene.chain.mine(1);
            checker.settle(SETTLE).await.unwrap();
            scene.chain.faults().left() == 0
        })
        .await;
        eprintln!("{fault:?} is over");
    }
    scene.check().await;
    for check in ["indices", "block_hash", "empty"] {
        let failed = format!(r#",check="{check}",endpoint="0""#);
        assert!(scene.metric("ethhook_checks_failed_total", &failed).await >= 1.0, "{check}");
    }
}

#[tokio::test]
async fn g1_killed_in_the_middle_of_a_range() {
    let mut scene = Scene::by_logs(5).await;
    scene.chain.mine(1_500);
    scene.chain.faults().push(LOGS, Fault::Delay(Duration::from_millis(30)), 1_000_000);
    for part in 1..=3 {
        scene.rig.start();
        until("some of the backlog", async || scene.tip().await >= f64::from(part * 300)).await;
        scene.rig.kill().await;
    }
    scene.rig.start();
    assert_eq!(scene.check().await.blocks, 1_501);
}

#[tokio::test]
async fn an_answer_that_says_empty_is_asked_for_twice_where_the_bloom_is_not_trusted() {
    let mut scene = Scene::by_logs(5).await;
    let toml = "[chains.local]\nfinality_depth = 4\nbloom_of_all_logs = false\n";
    scene.rig.write_toml(toml).unwrap();
    // Transactions without logs: an answer of logs shows neither the root nor the number of
    // receipts.
    (0..100).for_each(|_| _ = scene.chain.mine_with(vec![vec![]]));
    let second = scene.chain.view();
    let other = serve(second.clone()).await;
    let urls = [scene.node.ws_url(LOCAL), other.ws_url(LOCAL)].join(",");
    scene.rig.set("LOCAL_WS_URL", urls);
    scene.rig.start();
    let report = scene.check().await;
    assert_eq!((report.blocks, report.events), (101, 0));
    let (first, second) = (scene.chain.stats().requests(LOGS), second.stats().requests(LOGS));
    assert!(first < 80 && second >= 8, "{first} and {second}: as many of the other endpoint");
}

#[tokio::test]
async fn on_a_fast_chain_blocks_at_the_head_are_fetched_together() {
    let mut scene = Scene::by_logs(5).await;
    scene.rig.set("LOCAL_BATCH_MS", 400);
    scene.rig.write_toml("").unwrap(); // none of these blocks is final soon
    scene.rig.start();
    scene.chain.mine(20);
    scene.check().await;
    let stats = scene.chain.stats();
    let (headers, logs) = (stats.requests(HEADERS), stats.requests(LOGS));
    for _ in 0..10 {
        // All their heads arrive within the interval.
        scene.chain.mine(10);
        scene.check().await;
    }
    let (headers, logs) = (stats.requests(HEADERS) - headers, stats.requests(LOGS) - logs);
    assert!(logs <= 50, "{logs} requests for the logs of 100 blocks");
    assert!(headers <= 20, "{headers}: heads bring their headers");
    // Reorgs among blocks that are fetched together.
    scene.chain.faults().push(LOGS, Fault::Delay(Duration::from_millis(200)), 1_000_000);
    for depth in [1, 3, 4] {
        scene.chain.mine(6);
        scene.chain.reorg(depth, depth + 1, Contents::Fresh);
        scene.check().await;
        scene.chain.mine(2);
        scene.chain.reorg(depth, depth, Contents::SameTransactions);
        scene.chain.mine(1);
        scene.check().await;
    }
}

#[tokio::test]
async fn calls_keep_to_the_operators_budget_and_are_counted() {
    let mut scene = Scene::new(5).await;
    scene.rig.set("LOCAL_CU_PER_SECOND", 20);
    scene.chain.mine(60);
    let started = tokio::time::Instant::now();
    scene.rig.start();
    scene.check().await;
    let stats = scene.chain.stats();
    // A call to your own node costs one unit; subscribing does not count against the budget.
    let (calls, seconds) = (stats.total_requests() as f64, started.elapsed().as_secs_f64());
    assert!(calls <= 20.0 + 20.0 * seconds + 5.0, "{calls} calls in {seconds:.1} s");
    let mut spent = 0.0;
    for method in [HEADERS, RECEIPTS] {
        let labels = format!(r#",endpoint="0",method="{method}""#);
        let units = scene.metric("ethhook_rpc_compute_units_total", &labels).await;
        assert!(units >= stats.requests(method) as f64 && units >= 60.0, "{method}: {units}");
        spent += units;
    }
    assert!(spent <= calls + 20.0, "{spent} units, {calls} calls");
}
