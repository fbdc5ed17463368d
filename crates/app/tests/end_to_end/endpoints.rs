//! Several endpoints of one chain, each with its own faults (G6).

use std::time::{Duration, Instant};

use ethhook_simulator::{
    Chain, Contents, Fault, HeadFault, ManualChain, ManualSpec, Node, RateLimit, RunningNode,
};
use ethhook_testkit::node_rpc::NodeRpc;

use crate::rig::{Rig, SETTLE, until};

const LOCAL: u64 = 31337;
const RECEIPTS: &str = "eth_getBlockReceipts";

/// One chain behind two endpoints; the second is correct and fast throughout.
struct Scene {
    chain: ManualChain,
    first: Chain,
    second: Chain,
    nodes: [RunningNode; 2],
    rig: Rig,
}

impl Scene {
    async fn new() -> Self {
        let chain = Chain::manual(ManualSpec { events_per_block: 30, ..ManualSpec::new(LOCAL) });
        let (first, second) = (Chain::from(chain.clone()), chain.view());
        let serve = async |view: &Chain| {
            Node::bind(([127, 0, 0, 1], 0).into(), [view.clone()]).await.unwrap().spawn()
        };
        let nodes = [serve(&first).await, serve(&second).await];
        let mut rig = Rig::new().await;
        let urls = [nodes[0].ws_url(LOCAL), nodes[1].ws_url(LOCAL)].join(",");
        rig.set("LOCAL_WS_URL", urls).set("LOCAL_START_BLOCK", 0);
        rig.start();
        Self { chain, first, second, nodes, rig }
    }

    async fn check(&self) {
        let node = NodeRpc::at_url(self.nodes[1].http_url(LOCAL));
        self.rig.checker(node, LOCAL).await.settle_and_check(SETTLE).await.unwrap();
    }

    async fn metric(&self, name: &str, labels: &str) -> f64 {
        let line = format!("{name}{{chain=\"local\"{labels}}}");
        self.rig.metric(&line).await.unwrap_or_default()
    }
}

/// Two endpoints, each with a chain of its own; they have the same blocks until one is moved otherwise.
async fn two_chains() -> ([ManualChain; 2], [RunningNode; 2], Rig) {
    let spec = || ManualSpec { events_per_block: 3, ..ManualSpec::new(LOCAL) };
    let chains = [Chain::manual(spec()), Chain::manual(spec())];
    let serve = async |chain: &ManualChain| {
        Node::bind(([127, 0, 0, 1], 0).into(), [chain.clone()]).await.unwrap().spawn()
    };
    let nodes = [serve(&chains[0]).await, serve(&chains[1]).await];
    let mut rig = Rig::new().await;
    let urls = [nodes[0].ws_url(LOCAL), nodes[1].ws_url(LOCAL)].join(",");
    rig.set("LOCAL_WS_URL", urls).set("LOCAL_START_BLOCK", 0);
    (chains, nodes, rig)
}

#[tokio::test]
async fn a_slow_answer_is_asked_of_the_next_endpoint_too() {
    let scene = Scene::new().await;
    // Enough fast answers for a percentile.
    for _ in 0..12 {
        scene.chain.mine(1);
        scene.check().await;
    }
    let hedged = scene.second.stats().requests(RECEIPTS);
    assert!(hedged < scene.first.stats().requests(RECEIPTS), "the first is preferred");
    scene.first.faults().push(RECEIPTS, Fault::Delay(Duration::from_secs(10)), 2);
    scene.chain.mine(2);
    scene.check().await;
    assert!(scene.second.stats().requests(RECEIPTS) >= hedged + 2);
    assert!(scene.metric("ethhook_rpc_hedges_total", ",endpoint=\"0\"").await >= 2.0);
    // An endpoint that became slow permanently goes last in the order, and is spared.
    scene.first.faults().push(RECEIPTS, Fault::Delay(Duration::from_millis(300)), 1_000);
    until("the slow endpoint goes last", async || {
        let before = scene.first.stats().requests(RECEIPTS);
        scene.chain.mine(2);
        scene.check().await;
        scene.first.stats().requests(RECEIPTS) == before
    })
    .await;
}

#[tokio::test]
async fn g6_a_liar_is_set_aside_only_when_another_proved_it() {
    let scene = Scene::new().await;
    scene.chain.mine(2);
    scene.check().await;
    // Both give the same false answer: the check is suspect, the chain waits, and no endpoint is
    // set aside.
    for view in [&scene.first, &scene.second] {
        view.faults().push(RECEIPTS, Fault::AlterLog, 1_000_000);
    }
    scene.chain.mine(1);
    let body = scene.rig.wait_for("ready", |status, body| status == 503 && body.contains("check"));
    assert!(body.await.contains("receipts_root"));
    for endpoint in ["0", "1"] {
        let label = format!(",endpoint=\"{endpoint}\"");
        assert_eq!(scene.metric("ethhook_breaker_state", &label).await, 0.0, "endpoint {endpoint}");
        let label = format!(",check=\"receipts_root\"{label}");
        assert!(scene.metric("ethhook_checks_failed_total", &label).await >= 1.0);
    }
    // One becomes correct: the block is published, and the other endpoint is known to be wrong.
    scene.second.behave();
    scene.check().await;
    assert_eq!(scene.metric("ethhook_breaker_state", ",endpoint=\"0\"").await, 2.0);
    let asked = scene.first.stats().requests(RECEIPTS);
    scene.chain.mine(5);
    scene.check().await;
    assert_eq!(scene.first.stats().requests(RECEIPTS), asked, "a liar is left alone");
}

#[tokio::test]
async fn a_subscription_that_dies_beside_a_live_one_is_made_anew() {
    let scene = Scene::new().await;
    scene.chain.mine(2);
    scene.check().await;
    scene.first.faults().push_head(HeadFault::Deaf, 1);
    until("the silence is noticed", async || {
        scene.chain.mine(1);
        scene.metric("ethhook_stalls_total", "").await >= 1.0
    })
    .await;
    let heads = || scene.first.stats().heads_sent();
    let before = heads();
    until("its heads come again", async || {
        scene.chain.mine(1);
        heads() > before
    })
    .await;
    assert_eq!(scene.second.open_sockets(), 1, "the other is left alone");
    let lost = scene.rig.log().matches("WebSocket lost").count();
    assert_eq!((lost, scene.metric("ethhook_stalls_total", "").await), (1, 1.0));
    scene.check().await;
}

#[tokio::test]
async fn an_endpoint_that_lags_or_limits_or_dies_is_replaced_by_the_next() {
    let mut scene = Scene::new().await;
    scene.chain.mine(2);
    scene.check().await;
    // A node that is 3 blocks behind, as are its heads.
    scene.first.faults().push("eth_getBlockByNumber", Fault::Behind(3), 20);
    scene.first.faults().push(RECEIPTS, Fault::Behind(3), 20);
    scene.chain.mine(3);
    scene.check().await;
    scene.chain.reorg(2, 3, Contents::Fresh);
    scene.check().await;
    scene.first.behave();
    assert_eq!(scene.metric("ethhook_stalls_total", "").await, 0.0, "heads came all the time");
    // The endpoint asks us to wait, and we do. (An answer overtaken by a hedge is not counted.)
    scene.first.faults().push(RECEIPTS, Fault::Error(-32005, "slow down".into()), 1_000_000);
    let limited = r#",endpoint="0",method="eth_getBlockReceipts",outcome="rate_limited""#;
    until("the limit is obeyed", async || {
        scene.chain.mine(3);
        scene.check().await;
        scene.metric("ethhook_rpc_requests_total", limited).await >= 1.0
    })
    .await;
    scene.first.behave();
    // The endpoint is down.
    scene.nodes[0].pause();
    scene.nodes[0].kill_connections();
    scene.chain.mine(5);
    scene.check().await;
    scene.rig.terminate().await;
}

#[tokio::test]
async fn what_a_dead_socket_never_sent_does_not_make_it_look_well() {
    let mut scene = Scene::new().await;
    scene.chain.mine(2);
    scene.check().await;
    scene.nodes[0].pause();
    scene.nodes[0].kill_connections();
    // It is asked for each block, fails at once, and fails to connect five times in half a minute.
    until("its breaker", async || {
        scene.chain.mine(1);
        scene.check().await;
        scene.metric("ethhook_breaker_state", ",endpoint=\"0\"").await == 2.0
    })
    .await;
    assert!(scene.rig.log().contains("the endpoint is left alone"));
    scene.rig.terminate().await;
}

#[tokio::test]
async fn what_one_endpoint_does_not_accept_is_fetched_from_the_next() {
    let scene = Scene::new().await;
    let views = [&scene.first, &scene.second];
    for view in views {
        view.set_rate_limit(Some(RateLimit { calls: 10, retry_after: Some(1) }));
    }
    scene.chain.mine(60);
    until("all blocks", async || scene.metric("ethhook_published_block", "").await == 60.0).await;
    let fetched = views.map(|view| view.stats().requests(RECEIPTS));
    let refused = views.map(|view| view.stats().faults_played()["status_429"]);
    eprintln!("receipts by endpoint: {fetched:?}, refused: {refused:?}");
    assert!(fetched.iter().all(|blocks| *blocks >= 15), "{fetched:?}");
    views.into_iter().for_each(Chain::behave);
    scene.check().await;
}

#[tokio::test]
async fn an_endpoint_that_stays_on_another_branch_is_reported() {
    let (chains, nodes, mut rig) = two_chains().await;
    rig.start();
    chains.iter().for_each(|chain| _ = chain.mine(5));
    let checker = rig.checker(NodeRpc::at_url(nodes[0].http_url(LOCAL)), LOCAL).await;
    checker.settle_and_check(SETTLE).await.unwrap();
    // From here on, each has its own blocks; the stream follows the first.
    chains[0].mine(1);
    checker.settle_and_check(SETTLE).await.unwrap();
    chains[1].mine_events(7);
    let apart = r#"ethhook_endpoint_apart{chain="local",endpoint="1"}"#;
    let deadline = Instant::now() + Duration::from_secs(150);
    while rig.metric(apart).await != Some(1.0) {
        assert!(Instant::now() < deadline, "it is not reported");
        chains[0].mine(1);
        tokio::time::sleep(Duration::from_secs(1)).await;
        chains[1].mine(1);
    }
    assert!(rig.log().contains("the endpoint follows another branch"), "the log");
    checker.settle_and_check(SETTLE).await.unwrap();
}

#[tokio::test]
async fn requests_keep_to_the_operators_rate() {
    let mut scene = Scene::new().await;
    scene.rig.terminate().await;
    scene.rig.set("LOCAL_RPS", 20).set("LOCAL_WS_URL", scene.nodes[0].ws_url(LOCAL));
    scene.chain.mine(60);
    let before = scene.first.stats().total_requests();
    let started = tokio::time::Instant::now();
    scene.rig.start();
    scene.check().await;
    let (requests, seconds) =
        (scene.first.stats().total_requests() - before, started.elapsed().as_secs_f64());
    // A full bucket at the start, then 20 per second; subscriptions do not count against the
    // bucket.
    assert!(requests as f64 <= 20.0 + 20.0 * seconds + 5.0, "{requests} in {seconds:.1} s");
    assert!(requests >= 120, "a header and receipts for each of 60 blocks: {requests}");
}

#[tokio::test]
async fn what_the_own_rate_holds_back_is_not_slowness() {
    let mut scene = Scene::new().await;
    scene.rig.terminate().await;
    scene.rig.set("LOCAL_RPS", 5);
    scene.rig.start();
    // Each request waits for 200 ms, four times as long as an answer may take before a hedge.
    for _ in 0..25 {
        scene.chain.mine(1);
        scene.check().await;
    }
    let hedges = scene.metric("ethhook_rpc_hedges_total", ",endpoint=\"0\"").await;
    let asked = scene.first.stats().requests(RECEIPTS) as f64;
    assert!(asked >= 20.0 && 4.0 * hedges <= asked, "{hedges} hedges of {asked} requests");
}

#[tokio::test]
async fn g10_one_endpoint_alone_contradicts_nothing_final() {
    let (chains, nodes, mut rig) = two_chains().await;
    for chain in &chains {
        chain.set_finalized(80);
        chain.mine(100);
    }
    rig.start();
    let checker = rig.checker(NodeRpc::at_url(nodes[1].http_url(LOCAL)), LOCAL).await;
    checker.settle_and_check(SETTLE).await.unwrap();
    until("a finalized block", async || {
        checker.cursor().await.unwrap().is_some_and(|cursor| cursor.finalized_number > 30)
    })
    .await;
    // The first endpoint switches to a branch that forks off below it; the second stays.
    chains[0].reorg(90, 92, Contents::Fresh);
    rig.wait_for("ready", |status, body| status == 503 && body.contains("still has")).await;
    chains[1].mine(3);
    checker.settle_and_check(SETTLE).await.unwrap();
    assert_eq!(checker.cursor().await.unwrap().unwrap().alarm, "");
    // Now both endpoints do.
    chains[1].reorg(95, 96, Contents::Fresh);
    rig.wait_for("ready", |status, body| status == 503 && body.contains("alarm")).await;
}

#[tokio::test]
async fn g6_an_http_address_of_another_chain_is_refused() {
    let other = Chain::manual(ManualSpec { events_per_block: 3, ..ManualSpec::new(10) });
    let node = Node::bind(([127, 0, 0, 1], 0).into(), [other.clone()]).await.unwrap().spawn();
    other.mine(5);
    let mut rig = Rig::new().await;
    rig.set("LOCAL_HTTP_URL", node.http_url(10)).set("LOCAL_START_BLOCK", 0);
    rig.start();
    rig.wait_for("ready", |status, body| status == 503 && body.contains("serves chain id 10"))
        .await;
}

#[tokio::test]
async fn one_that_never_answers_is_set_aside() {
    let scene = Scene::new().await;
    for _ in 0..12 {
        scene.chain.mine(1);
        scene.check().await;
    }
    scene.first.faults().push(RECEIPTS, Fault::NoAnswer, 1_000_000);
    for _ in 0..30 {
        scene.chain.mine(1);
        scene.check().await;
        if scene.metric("ethhook_breaker_state", ",endpoint=\"0\"").await == 2.0 {
            return;
        }
    }
    panic!("never set aside");
}
