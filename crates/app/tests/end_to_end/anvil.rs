//! Against a real anvil.

use std::time::Duration;

use ethhook_testkit::anvil::{Anvil, Emitter, Mining};
use ethhook_testkit::checker::Report;
use ethhook_testkit::node_rpc::NodeRpc;
use ethhook_testkit::proxy::Proxy;
use ethhook_testkit::redis_server::RedisOptions;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;

use crate::rig::{Rig, SETTLE, until};

const LOCAL: u64 = 31337;

/// An anvil that mines on demand, with the contract, and a rig that points to it.
async fn anvil_and_rig() -> (Anvil, Emitter, Rig) {
    let anvil = Anvil::start(Mining::OnDemand).await.unwrap();
    let emitter = anvil.deploy_emitter().await.unwrap();
    let mut rig = Rig::new().await;
    rig.set("LOCAL_WS_URL", anvil.ws_url()).set("LOCAL_START_BLOCK", 0);
    (anvil, emitter, rig)
}

/// Mines `blocks` blocks of three transactions, `logs` logs in each of them.
async fn mine(anvil: &Anvil, emitter: Emitter, blocks: u64, logs: u64) {
    for salt in 0..blocks {
        for account in 0..3 {
            anvil.emit(emitter, account, logs, salt).await.unwrap();
        }
        anvil.mine(1).await.unwrap();
    }
}

async fn check(rig: &Rig, anvil: &Anvil) -> Report {
    let checker = rig.checker(NodeRpc::at_url(anvil.http_url()), LOCAL).await;
    checker.settle_and_check(SETTLE).await.unwrap()
}

#[tokio::test]
async fn g1_fifty_blocks_with_hundreds_of_logs_are_in_the_stream() {
    let (anvil, emitter, mut rig) = anvil_and_rig().await;
    rig.start();
    mine(&anvil, emitter, 50, 100).await;
    let report = check(&rig, &anvil).await;
    assert_eq!((report.blocks, report.events, report.removed), (52, 15_000, 0));

    assert_eq!(rig.metric(r#"events_published_total{chain="local"}"#).await, Some(15_000.0));
    assert_eq!(rig.metric(r#"events_ingested_total{chain="local"}"#).await, Some(15_000.0));
    assert_eq!(rig.metric(r#"deduplication_hits_total{chain="local"}"#).await, Some(0.0));
    rig.wait_for("ready", |status, body| status == 200 && body.contains("true")).await;
    rig.terminate().await;
    check(&rig, &anvil).await;
}

#[tokio::test]
async fn g3_reorgs_with_other_and_with_the_same_transactions() {
    let (anvil, emitter, mut rig) = anvil_and_rig().await;
    rig.start();
    mine(&anvil, emitter, 8, 20).await;
    check(&rig, &anvil).await;

    let other = anvil.emission(emitter, 5, 33, 99).unwrap();
    anvil.reorg(4, &[(other.clone(), 0), (other, 2)]).await.unwrap();
    let report = check(&rig, &anvil).await;
    assert_eq!((report.removed, report.events), (4 * 60, 4 * 60 + 2 * 33));

    // The same transactions again, in blocks with other hashes: 240 new events with the same event
    // ids.
    let again: Vec<_> = (0..4_u64)
        .flat_map(|block| (0..3).map(move |account| (block, account)))
        .map(|(block, account)| (anvil.emission(emitter, account, 20, block).unwrap(), block))
        .collect();
    mine(&anvil, emitter, 4, 20).await;
    check(&rig, &anvil).await;
    anvil.reorg(4, &again).await.unwrap();
    let report = check(&rig, &anvil).await;
    assert_eq!((report.removed, report.events), (2 * 240, 240 + 2 * 33 + 240));
}

#[tokio::test]
async fn g2_kill_nine_at_ten_random_points_while_blocks_arrive() {
    let (anvil, emitter, mut rig) = anvil_and_rig().await;
    let seed = rand::random();
    eprintln!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    for round in 0..10 {
        rig.start();
        mine(&anvil, emitter, random.random_range(1..4), 200).await;
        // At a random moment, often with a block in flight: this sleep is part of the test, not a
        // wait for something.
        sleep(Duration::from_millis(random.random_range(0..120))).await;
        rig.kill().await;
        mine(&anvil, emitter, random.random_range(0..3), 200).await;
        if round % 3 == 2 {
            anvil.reorg(2, &[(anvil.emission(emitter, 4, 50, round).unwrap(), 1)]).await.unwrap();
        }
    }
    rig.start();
    let report = check(&rig, &anvil).await;
    assert!(report.events > 2_000, "{report:?}");
}

#[tokio::test]
async fn g3_a_reorg_while_down_is_taken_back_in_order() {
    let (anvil, emitter, mut rig) = anvil_and_rig().await;
    rig.start();
    mine(&anvil, emitter, 10, 30).await;
    check(&rig, &anvil).await;
    rig.kill().await;
    let other = anvil.emission(emitter, 7, 11, 7).unwrap();
    anvil.reorg(6, &[(other, 3)]).await.unwrap();
    mine(&anvil, emitter, 3, 30).await;
    rig.start();
    let report = check(&rig, &anvil).await;
    assert_eq!((report.removed, report.events), (6 * 90, 4 * 90 + 11 + 3 * 90));
}

#[tokio::test]
async fn g7_redis_away_for_ten_seconds() {
    let (anvil, emitter, mut rig) = anvil_and_rig().await;
    rig.start();
    mine(&anvil, emitter, 5, 50).await;
    check(&rig, &anvil).await;
    rig.redis.kill();
    rig.wait_for("ready", |status, body| status == 503 && body.contains("Redis")).await;
    assert_eq!(rig.get("health").await.unwrap().0, 200);
    for _ in 0..10 {
        mine(&anvil, emitter, 2, 50).await;
        sleep(Duration::from_secs(1)).await; // the outage itself
    }
    rig.redis.start().await.unwrap();
    let report = check(&rig, &anvil).await;
    assert_eq!(report.events, 25 * 150);
    rig.wait_for("ready", |status, _| status == 200).await;
}

#[tokio::test]
async fn sigterm_while_redis_is_away_ends_in_time() {
    let (anvil, emitter, mut rig) = anvil_and_rig().await;
    rig.start();
    mine(&anvil, emitter, 2, 50).await;
    check(&rig, &anvil).await;
    rig.redis.kill();
    mine(&anvil, emitter, 2, 50).await; // a step that Redis cannot accept
    rig.wait_for("ready", |status, _| status == 503).await;
    rig.terminate().await;
    rig.redis.start().await.unwrap();
    rig.start();
    assert_eq!(check(&rig, &anvil).await.events, 600);
}

#[tokio::test]
async fn g4_redis_killed_again_and_again_with_a_step_on_the_wire() {
    let (anvil, emitter, mut rig) = anvil_and_rig().await;
    rig.start();
    check(&rig, &anvil).await; // at the start, an unreachable Redis is a refusal
    for _ in 0..5 {
        mine(&anvil, emitter, 2, 200).await;
        rig.redis.kill();
        mine(&anvil, emitter, 1, 200).await;
        rig.redis.start().await.unwrap();
    }
    let report = check(&rig, &anvil).await;
    assert_eq!(report.events, 15 * 600);
}

#[tokio::test]
async fn g1_node_cut_off_for_ten_seconds() {
    let (anvil, emitter, mut rig) = anvil_and_rig().await;
    let proxy = Proxy::start(anvil.address()).await.unwrap();
    rig.set("LOCAL_WS_URL", format!("ws://{}", proxy.address()));
    rig.start();
    mine(&anvil, emitter, 5, 50).await;
    check(&rig, &anvil).await;
    proxy.cut();
    for _ in 0..10 {
        mine(&anvil, emitter, 1, 50).await;
        sleep(Duration::from_secs(1)).await; // the outage itself
    }
    proxy.restore();
    let report = check(&rig, &anvil).await;
    assert_eq!(report.events, 15 * 150);
    let reconnects = rig.metric(r#"websocket_reconnects_total{chain="local"}"#).await.unwrap();
    assert!((1.0..15.0).contains(&reconnects), "{reconnects} attempts in ten seconds");
}

#[tokio::test]
async fn g1_a_half_open_socket_is_found_and_replaced() {
    let (anvil, emitter, mut rig) = anvil_and_rig().await;
    let proxy = Proxy::start(anvil.address()).await.unwrap();
    rig.set("LOCAL_WS_URL", format!("ws://{}", proxy.address()));
    rig.start();
    mine(&anvil, emitter, 2, 10).await;
    check(&rig, &anvil).await;
    proxy.blackhole();
    mine(&anvil, emitter, 2, 10).await;
    // Requests time out and pings stay unanswered, so the socket is given up.
    until("the socket is given up", async || {
        rig.metric(r#"websocket_reconnects_total{chain="local"}"#).await >= Some(1.0)
    })
    .await;
    proxy.restore();
    assert_eq!(check(&rig, &anvil).await.events, 4 * 30);
}

#[tokio::test]
async fn http_only_and_http_beside_websocket() {
    let (anvil, emitter, mut rig) = anvil_and_rig().await;
    rig.unset("LOCAL_WS_URL");
    rig.set("LOCAL_HTTP_URL", anvil.http_url());
    rig.start();
    mine(&anvil, emitter, 5, 10).await;
    check(&rig, &anvil).await;
    anvil.reorg(3, &[]).await.unwrap();
    check(&rig, &anvil).await;
    rig.terminate().await;
    rig.set("LOCAL_WS_URL", anvil.ws_url());
    rig.start();
    mine(&anvil, emitter, 5, 10).await;
    assert_eq!(check(&rig, &anvil).await.events, 2 * 30 + 5 * 30);
}

#[tokio::test]
async fn g1_a_wiped_redis_starts_again_where_this_process_began() {
    let (anvil, emitter, mut rig) = anvil_and_rig().await;
    mine(&anvil, emitter, 3, 10).await;
    rig.unset("LOCAL_START_BLOCK"); // latest
    rig.start();
    until("the stream begins", async || {
        rig.metric(r#"events_published_total{chain="local"}"#).await >= Some(30.0)
    })
    .await;
    mine(&anvil, emitter, 2, 10).await;
    let before = check(&rig, &anvil).await;
    let mut redis = rig.redis.connection().await.unwrap();
    redis::cmd("FLUSHALL").exec_async(&mut redis).await.unwrap();
    mine(&anvil, emitter, 1, 10).await;
    let report = check(&rig, &anvil).await;
    assert_eq!((before.blocks, report.blocks), (3, 4));
    assert!(rig.log().contains("starting over") && rig.log().contains("Redis was wiped"));
    assert_eq!(rig.metric(r#"ethhook_redis_wipes_total{chain="local"}"#).await, Some(1.0));
    assert_eq!(rig.metric(r#"ethhook_redis_rollbacks_total{chain="local"}"#).await, Some(0.0));
}

#[tokio::test]
async fn g7_full_memory_stops_the_stream_and_loses_nothing() {
    let (anvil, emitter, _) = anvil_and_rig().await;
    let options = RedisOptions { maxmemory: "4mb".into(), ..RedisOptions::default() };
    let mut rig = Rig::with_redis(options).await;
    rig.set("LOCAL_WS_URL", anvil.ws_url()).set("LOCAL_START_BLOCK", 0);
    rig.start();
    mine(&anvil, emitter, 10, 400).await; // about 7 MB
    until("Redis is full", async || {
        rig.metric(r#"ethhook_redis_errors_total{chain="local",kind="out_of_memory"}"#).await
            >= Some(1.0)
    })
    .await;
    let mut redis = rig.redis.connection().await.unwrap();
    redis::cmd("CONFIG").arg(&["SET", "maxmemory", "100mb"]).exec_async(&mut redis).await.unwrap();
    assert_eq!(check(&rig, &anvil).await.events, 10 * 1200);
}

#[tokio::test]
async fn a_dev_node_that_started_anew_is_refused() {
    let (anvil, emitter, mut rig) = anvil_and_rig().await;
    rig.start();
    mine(&anvil, emitter, 3, 10).await;
    check(&rig, &anvil).await;
    rig.terminate().await;
    let other = Anvil::start_with(Mining::OnDemand, &["--timestamp", "1700000000"]).await.unwrap();
    rig.set("LOCAL_WS_URL", other.ws_url());
    rig.start();
    let body =
        rig.wait_for("ready", |status, body| status == 503 && body.contains("genesis")).await;
    assert!(body.contains("ethhook reset --chain local"), "{body}");
    let checker = rig.checker(NodeRpc::at_url(anvil.http_url()), LOCAL).await;
    checker.check().await.unwrap().into_clean().unwrap();
}

#[tokio::test]
async fn g9_a_wrong_chain_id_stops_that_chain_and_names_both() {
    let (anvil, emitter, mut rig) = anvil_and_rig().await;
    rig.set("ETHEREUM_WS_URL", anvil.ws_url());
    rig.start();
    mine(&anvil, emitter, 3, 10).await;
    check(&rig, &anvil).await; // the other chain continues (G9)
    let body =
        rig.wait_for("ready", |status, body| status == 503 && body.contains("ethereum")).await;
    assert!(!body.contains("local"), "{body}");
    let log = rig.log();
    assert!(log.contains("31337") && log.contains("chain id"), "{log}");
}
