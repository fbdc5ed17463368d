//! `ethhook replay`: writes a separate stream that equals the chain, once.

use std::process::Stdio;

use ethhook_simulator::{Chain, ManualSpec, Node};
use ethhook_testkit::cluster::RedisCluster;
use ethhook_testkit::redis_server::RedisOptions;
use redis::FromRedisValue;
use redis::aio::MultiplexedConnection;
use tokio::process::Command;

use crate::operator::{checker, done, manual, refused};
use crate::rig::{Rig, SETTLE, until};
use crate::verify::final_after_four;

/// The fields of all entries of `stream`, names and values alternating, as texts or (packed) bytes.
async fn fields<T: FromRedisValue>(redis: &mut MultiplexedConnection, stream: &str) -> Vec<Vec<T>> {
    let mut range = redis::cmd("XRANGE");
    let entries: Vec<(String, Vec<T>)> =
        range.arg(stream).arg("-").arg("+").query_async(redis).await.unwrap();
    entries.into_iter().map(|(_, fields)| fields).collect()
}

#[tokio::test]
async fn a_replayed_range_equals_the_live_stream_and_is_written_once() {
    let (chain, node, mut rig) = manual().await;
    final_after_four(&rig);
    rig.start();
    chain.mine(100);
    // The live stream is known to match the chain; without reorgs, its entries are those of the
    // blocks.
    checker(&rig, &node).await.settle_and_check(SETTLE).await.unwrap();
    let mut redis = rig.redis.connection().await.unwrap();
    let live: Vec<Vec<String>> = fields(&mut redis, "events:31337").await;
    let range = async |from: &str, to: &str, more: &[&str]| {
        let replay = ["replay", "--chain", "local", "--from", from, "--to", to, "--into"];
        rig.command(&[&replay[..], more].concat()).await
    };
    chain.set_finalized(1_000);
    let told = done(&range("1", "60", &["history"]).await);
    assert_eq!(told, "600 events published into history, 600 in all.\n");
    assert_eq!(fields::<String>(&mut redis, "history").await, live[..600]);
    let told = done(&range("1", "60", &["history"]).await);
    assert_eq!(told, "0 events published into history, 600 in all.\n");
    let told = done(&range("21", "80", &["history"]).await);
    assert_eq!(told, "200 events published into history, 800 in all.\n");
    assert_eq!(fields::<String>(&mut redis, "history").await, live[..800]);

    let told = refused(&range("1", "60", &["events:31337"]).await);
    assert!(told.contains("to repair a live stream, use `ethhook rewind`"), "{told}");
    let output = range("1", "97", &["other"]).await;
    let told = refused(&output);
    assert!(output.stdout.is_empty(), "nothing was published: {output:?}");
    assert!(told.contains("97 is not final") && told.contains("must not be above 96"), "{told}");
    assert!(!told.contains("run it again"), "{told}");
    let told = refused(&range("0", "60", &["history"]).await);
    assert!(told.contains("holds blocks 1 to 80"), "{told}");
    let told = refused(&range("82", "90", &["history"]).await);
    assert!(told.contains("does not continue"), "{told}");
    let told = refused(&range("9", "8", &["history"]).await);
    assert!(told.contains("--from 9 is above --to 8"), "{told}");
    redis::cmd("SET").arg("mine").arg("1").exec_async(&mut redis).await.unwrap();
    let told = refused(&range("1", "8", &["mine"]).await);
    assert!(told.contains("was not written by a replay"), "{told}");

    // Only one contract; the same stream accepts no other selection.
    let contract =
        live[0][live[0].iter().position(|field| field == "contract").unwrap() + 1].clone();
    let one = ["one", "--contract", &contract];
    done(&range("1", "60", &one).await);
    let expected: Vec<_> =
        live[..600].iter().filter(|fields| fields.contains(&contract)).cloned().collect();
    assert_eq!(fields::<String>(&mut redis, "one").await, expected);
    let told = refused(&range("1", "61", &["one"]).await);
    assert!(told.contains("events of other contracts or topics"), "{told}");
    let wrong = range("1", "60", &["one", "--contract", "0x12"]).await;
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
}

#[tokio::test]
async fn a_replay_that_is_killed_goes_on_where_it_stood() {
    let (chain, node, mut rig) = manual().await;
    final_after_four(&rig);
    chain.mine(140);
    chain.set_finalized(1_000);
    let replay = ["replay", "--chain", "local", "--from", "1", "--to", "130", "--into", "history"];
    let folder = tempfile::tempdir().unwrap();
    let toml = "[chains.local]\nblock_time_ms = 100\nfinality_depth = 4\n";
    std::fs::write(folder.path().join("ethhook.toml"), toml).unwrap();
    // Slow enough to be killed midway.
    let env = [("REDIS_URL", rig.redis.url()), ("LOCAL_WS_URL", node.ws_url(31337))];
    let slow = [("LOCAL_RPS", "20".to_owned()), ("RUST_LOG", "error".to_owned())];
    let mut child = Command::new(env!("CARGO_BIN_EXE_ethhook"))
        .args(replay)
        .env_clear()
        .envs(env.into_iter().chain(slow))
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut redis = rig.redis.connection().await.unwrap();
    until("some blocks", async || {
        let mut last = redis::cmd("HGET");
        last.arg("replay:{history}").arg("last");
        let last: Option<u64> = last.query_async(&mut redis).await.unwrap();
        last.is_some()
    })
    .await;
    child.kill().await.unwrap();
    let before = fields::<String>(&mut redis, "history").await.len();
    assert!(
        (10..1_300).contains(&before) && before % 10 == 0,
        "{before}: in the middle, and whole"
    );
    let told = done(&rig.command(&replay).await);
    let rest = 1_300 - before;
    assert_eq!(told, format!("{rest} events published into history, 1300 in all.\n"));
    rig.start();
    checker(&rig, &node).await.settle_and_check(SETTLE).await.unwrap();
    let live: Vec<Vec<String>> = fields(&mut redis, "events:31337").await;
    assert_eq!(fields::<String>(&mut redis, "history").await, live[..1_300]);
}

/// Replays blocks 1 to 60 of 10 logs each, twice, to streams that may be on different servers, and
/// compares every byte with the live stream; `verify` agrees.
async fn replays_equal_the_live_stream<R>(
    rig: &mut Rig<R>,
    connection: impl AsyncFn(&R, &str) -> MultiplexedConnection,
) {
    let chain = Chain::manual(ManualSpec { events_per_block: 10, ..ManualSpec::new(31_337) });
    let node = Node::bind(([127, 0, 0, 1], 0).into(), [chain.clone()]).await.unwrap().spawn();
    final_after_four(rig);
    rig.set("LOCAL_WS_URL", node.ws_url(31_337)).set("LOCAL_START_BLOCK", 0);
    rig.start();
    chain.mine(70);
    chain.set_finalized(1_000);
    let mut redis = connection(&rig.redis, "events:31337").await;
    let mut live = Vec::new();
    until("all to be published", async || {
        live = fields::<Vec<u8>>(&mut redis, "events:31337").await;
        live.len() == 700
    })
    .await;
    for into in ["history", "of-one", "late"] {
        let replay = ["replay", "--chain", "local", "--from", "1", "--to", "60", "--into", into];
        let told = done(&rig.command(&replay).await);
        assert_eq!(told, format!("600 events published into {into}, 600 in all.\n"));
        let told = done(&rig.command(&replay).await);
        assert_eq!(told, format!("0 events published into {into}, 600 in all.\n"));
        let replayed: Vec<Vec<Vec<u8>>> =
            fields(&mut connection(&rig.redis, into).await, into).await;
        assert!(replayed == live[..600], "{into} is another stream");
    }
    let verify = ["verify", "--chain", "local", "--from", "1", "--to", "70"];
    let told = done(&rig.command(&verify).await);
    assert!(told.ends_with("No differences: 70 blocks with 700 events.\n"), "{told}");
}

#[tokio::test]
async fn a_packed_range_is_replayed_packed() {
    let mut rig = Rig::new().await;
    rig.set("STREAM_ENCODING", "msgpack");
    replays_equal_the_live_stream(&mut rig, async |redis, _| redis.connection().await.unwrap())
        .await;
    let mut redis = rig.redis.connection().await.unwrap();
    let replayed: Vec<Vec<Vec<u8>>> = fields(&mut redis, "history").await;
    assert!(replayed.iter().all(|entry| entry.len() == 2 && entry[0] == b"e"));
    rig.set("STREAM_ENCODING", "fields");
    let more = ["replay", "--chain", "local", "--from", "61", "--to", "62", "--into", "history"];
    let told = refused(&rig.command(&more).await);
    assert!(told.contains("entries encoded as msgpack"), "{told}");
}

#[tokio::test]
async fn a_range_is_replayed_to_any_master_of_a_cluster() {
    let cluster = RedisCluster::spawn(RedisOptions::default(), 0).await.unwrap();
    let url = cluster.url();
    let mut rig = Rig::over(cluster, &url);
    replays_equal_the_live_stream(&mut rig, async |cluster: &RedisCluster, key| {
        cluster.connection(key).await.unwrap()
    })
    .await;
    let mut masters = Vec::new();
    for key in ["events:31337", "history", "of-one", "late"] {
        masters.push(rig.redis.master_of(key).await.unwrap());
    }
    masters.sort_unstable();
    masters.dedup();
    assert!(masters.len() > 1, "all on one: {masters:?}");
}
