//! Limits and waiting: memory and reading while Redis is down (G7), an answer that is too large, a
//! backfill at the byte cap, a group that does not read (G8), sessions that are refused.

use std::time::Duration;

use ethhook_simulator::{Fault, ManualChain, RunningNode};
use ethhook_testkit::checker::Checker;
use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use tokio::time::sleep;

use crate::operator::{checker, manual, published, tiny};
use crate::rig::{Rig, SETTLE, until};

const LOCAL: u64 = 31337;
const RECEIPTS: &str = "eth_getBlockReceipts";
/// The limit of an answer is 128 MiB.
const TOO_LARGE: usize = (128 << 20) + 1;

#[tokio::test]
async fn g7_reading_stops_and_memory_stands_while_redis_is_away() {
    /// In blocks of 2,500 logs: up to eight waiting, eight being fetched, and one with the
    /// publisher.
    const FLOOD: u64 = 24;
    let (chain, _node, rig, checker) = published(2).await;
    let memory = async || rig.metric("ethhook_process_resident_memory_bytes").await.unwrap();
    let before = memory().await;
    rig.redis.pause().unwrap();
    let asked_before = chain.stats().requests(RECEIPTS);
    for _ in 0..FLOOD {
        chain.mine_events(2_500);
    }
    let asked = || chain.stats().requests(RECEIPTS) - asked_before;
    until("some blocks are read", async || asked() >= 8).await;
    // Long enough for many more, if there were no limit.
    for _ in 0..20 {
        sleep(Duration::from_millis(100)).await;
        assert!(asked() <= 19, "{} blocks were read while Redis was away", asked());
    }
    let grown = (memory().await - before) / f64::from(1 << 20);
    assert!(grown < 150.0, "{grown} MiB more");
    rig.redis.resume().unwrap();
    let report = checker.settle_and_check(2 * SETTLE).await.unwrap();
    assert_eq!(report.events, 20 + 60_000, "{report}");
}

/// Such a backfill asks little of the node, and writes a marker per block.
#[tokio::test]
async fn g7_a_backfill_of_blocks_without_events_stays_within_the_byte_cap() {
    const CAP: u64 = 1_000_000;
    let (chain, node, mut rig) = manual().await;
    (0..12_000).for_each(|_| drop(chain.mine_events(0)));
    rig.set("STREAM_MAX_BYTES", CAP);
    rig.start();
    let checker = checker(&rig, &node).await.with_trimmed_beginning();
    checker.settle(SETTLE).await.unwrap();
    // A marker takes some 220 bytes, more with Redis' own share.
    let held = async || checker.markers().await.unwrap().len() as u64;
    until("the streams are within their cap", async || held().await * 200 < CAP).await;
    assert!(held().await * 300 > CAP, "too much went");
    checker.check().await.unwrap().into_clean().unwrap();
}

#[tokio::test]
async fn a_block_far_below_the_head_has_a_dedup_record_only_for_a_short_time() {
    let (chain, node, mut rig) = manual().await;
    chain.mine(80);
    rig.start();
    checker(&rig, &node).await.settle_and_check(SETTLE).await.unwrap();
    let mut redis = rig.redis.connection().await.unwrap();
    let mut kept = async |number: u64| -> i64 {
        let hash = chain.block(number).unwrap().hash();
        redis.ttl(format!("seen:{{events:31337}}:{hash}")).await.unwrap()
    };
    // The local chain is final 64 blocks below its head.
    assert!((1..=60).contains(&kept(1).await) && kept(80).await > 80_000);
}

#[tokio::test]
async fn g7_an_answer_over_the_limit_is_refused_and_asked_for_again() {
    let (chain, node, mut rig) = manual().await;
    let checker = checker(&rig, &node).await;
    // In one frame of a WebSocket, then over HTTP.
    for http in [false, true] {
        if http {
            rig.set("LOCAL_HTTP_URL", node.http_url(LOCAL));
        }
        rig.start();
        chain.mine(2);
        checker.settle_and_check(SETTLE).await.unwrap();
        chain.faults().push(RECEIPTS, Fault::Padded(TOO_LARGE), 1);
        chain.mine(1);
        checker.settle_and_check(SETTLE).await.unwrap();
        assert_eq!(chain.faults().left(), 0, "the large answer was not given");
        rig.terminate().await;
    }
    assert!(rig.log().contains("answer over 128 MiB"));
}

#[tokio::test]
async fn g1_heads_that_say_nothing_new_do_not_hold_the_poll_back() {
    let (chain, node, mut rig) = manual().await;
    rig.start();
    let old = chain.mine(3)[0].hash();
    let checker = checker(&rig, &node).await;
    checker.settle_and_check(SETTLE).await.unwrap();
    chain.set_announcing(false);
    let new = chain.mine(2)[1].hash();
    // Far more often than the node is polled.
    until("the poll finds the new blocks", async || {
        chain.announce(old);
        checker.cursor().await.unwrap().and_then(|cursor| cursor.hash) == Some(new)
    })
    .await;
    checker.settle_and_check(SETTLE).await.unwrap();
}

#[tokio::test]
async fn sessions_that_are_refused_wait_longer_each_time() {
    let (chain, _node, rig, checker) = published(3).await;
    // A dedup record of a block that is not in the stream: Redis contradicts itself.
    let mut redis = rig.redis.connection().await.unwrap();
    chain.set_announcing(false);
    let block = chain.mine(1)[0].hash();
    let record = format!("seen:{{events:{LOCAL}}}:{block:#x}");
    redis::cmd("SET").arg(&record).arg("1 0-0 0-0").exec_async(&mut redis).await.unwrap();
    chain.announce(block);
    let ends = |log: &str| -> Vec<f64> {
        log.lines().filter(|line| line.contains("session ended")).map(time_of_day).collect()
    };
    until("five refusals", async || ends(&rig.log()).len() >= 5).await;
    let ends = ends(&rig.log());
    // A slow machine makes the waits longer, never shorter; midnight adds a day.
    for (refusal, pair) in ends.windows(2).take(4).enumerate() {
        let waited = (pair[1] - pair[0]).rem_euclid(86_400.0);
        let least = 0.2 * f64::from(1 << refusal);
        assert!(waited >= least, "{waited} s after refusal {refusal}: {ends:?}");
    }
    let (_, ready) = rig.get("ready").await.unwrap();
    assert!(ready.contains("dedup record"), "{ready}");
    redis::cmd("DEL").arg(&record).exec_async(&mut redis).await.unwrap();
    checker.settle_and_check(SETTLE).await.unwrap();
}

/// The time of a log line that starts with `2024-01-02T03:04:05.678901Z`, in seconds since
/// midnight.
fn time_of_day(line: &str) -> f64 {
    let time = line.split_once('T').and_then(|(_, rest)| rest.split_once('Z')).unwrap().0;
    time.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().unwrap())
}

#[tokio::test]
async fn g8_a_backfill_waits_at_the_byte_cap_for_a_group_that_has_not_read() {
    const BLOCKS: u64 = 1_700;
    let (chain, node, mut rig) = manual().await;
    chain.set_finalized(BLOCKS);
    chain.mine(BLOCKS);
    let mut redis = rig.redis.connection().await.unwrap();
    group(&mut redis, &["CREATE", "events:31337", "readers", "0", "MKSTREAM"]).await;
    // Two requests per block: some 1,024 blocks are final, and above the cap, before all are in.
    rig.set("STREAM_MAX_BYTES", 1_000_000).set("RETENTION_HOURS", 1).set("LOCAL_RPS", 120);
    rig.start();
    let checker = checker(&rig, &node).await;
    let tip = async || checker.cursor().await.unwrap().unwrap().number;
    // Each sweep asks for the groups twice: for the stream's size, and for what they need.
    let sweeps = async || {
        let mut info = redis::cmd("INFO");
        let stats: String = info.arg("commandstats").query_async(&mut redis.clone()).await.unwrap();
        let calls = stats.split_once("cmdstat_xinfo|groups:calls=").map_or("0", |(_, rest)| rest);
        calls.split(',').next().unwrap().parse::<u64>().unwrap()
    };
    rig.wait_for("ready", |_, body| body.contains("the group `readers` has not read")).await;
    let seen = sweeps().await;
    until("another sweep", async || sweeps().await >= seen + 2).await;
    let (at, seen) = (tip().await, sweeps().await);
    assert!(at < BLOCKS, "it was over before it could wait");
    until("a third sweep", async || sweeps().await >= seen + 2).await;
    assert_eq!(tip().await, at, "it went on");
    // A session that has not seen the head yet does not remove the group's entries because of the
    // cap either.
    rig.terminate().await;
    chain.faults().push("eth_getBlockByNumber", Fault::Delay(Duration::from_secs(4)), 2);
    rig.start();
    until("a sweep before the head is known", async || chain.faults().left() == 0).await;
    let seen = sweeps().await;
    until("a sweep after it", async || sweeps().await >= seen + 2).await;
    // The group keeps reading everything: what it has finished is removed, which makes room.
    until("the head", async || {
        group(&mut redis, &["SETID", "events:31337", "readers", "$"]).await;
        tip().await == BLOCKS
    })
    .await;
    let metrics = rig.get("metrics").await.unwrap().1;
    let lost = metrics.lines().find(|line| line.contains("unread") && line.contains("readers"));
    assert!(lost.is_none_or(|line| line.ends_with(" 0")), "{lost:?}");
    checker.with_trimmed_beginning().settle_and_check(SETTLE).await.unwrap();
}

async fn group(redis: &mut MultiplexedConnection, arguments: &[&str]) {
    redis::cmd("XGROUP").arg(arguments).exec_async(redis).await.unwrap();
}

#[tokio::test]
async fn g8_a_group_that_has_not_read_for_hours_is_an_alarm_until_it_reads() {
    let (chain, node, mut rig) = manual().await;
    rig.set("GROUP_IDLE_ALARM_HOURS", 2);
    rig.start();
    chain.mine(3);
    let checker = checker(&rig, &node).await;
    checker.settle_and_check(SETTLE).await.unwrap();
    rig.terminate().await;
    let mut redis = rig.redis.connection().await.unwrap();
    for key in ["events:31337", "blocks:{events:31337}"] {
        publish_earlier(&mut redis, key, Duration::from_secs(3 * 3_600)).await;
    }
    for (_, marker) in checker.markers().await.unwrap() {
        let _: u64 = redis.del(format!("seen:{{events:31337}}:{}", marker.hash)).await.unwrap();
    }
    let checker = checker.with_dedup_ttl(Duration::from_secs(3_600));
    group(&mut redis, &["CREATE", "events:31337", "readers", "0"]).await;
    rig.start();
    chain.mine(1);
    checker.settle_and_check(SETTLE).await.unwrap();
    let idle = r#"ethhook_group_idle{chain="local",group="readers"}"#;
    until("the alarm", async || rig.metric(idle).await == Some(1.0)).await;
    assert!(rig.log().contains("the consumer group does not read"));
    // It reads one entry: it is slow, but no longer idle.
    let mut read = redis::cmd("XREADGROUP");
    read.arg(&["GROUP", "readers", "c", "COUNT", "1", "STREAMS", "events:31337", ">"]);
    read.exec_async(&mut redis).await.unwrap();
    until("the alarm is over", async || rig.metric(idle).await == Some(0.0)).await;
    assert!(rig.log().contains("the consumer group reads again"));
}

/// Changes the stream `key` as if all of it had been published this much earlier: entry IDs contain
/// the time of publishing, including those in markers.
async fn publish_earlier(redis: &mut MultiplexedConnection, key: &str, by: Duration) {
    type Entry = (String, Vec<(String, String)>);
    let by = u64::try_from(by.as_millis()).unwrap();
    // Empty and `0-0` mean that there is no entry.
    let earlier = |id: &str| match id.split_once('-') {
        Some((ms, seq)) if ms != "0" => format!("{}-{seq}", ms.parse::<u64>().unwrap() - by),
        _ => id.to_owned(),
    };
    let mut range = redis::cmd("XRANGE");
    let entries: Vec<Entry> = range.arg(key).arg("-").arg("+").query_async(redis).await.unwrap();
    redis::cmd("DEL").arg(key).exec_async(redis).await.unwrap();
    for (id, fields) in entries {
        let mut add = redis::cmd("XADD");
        add.arg(key).arg(earlier(&id));
        for (name, value) in fields {
            let is_id = name.ends_with("_id") && name != "chain_id";
            add.arg(&name).arg(if is_id { earlier(&value) } else { value });
        }
        add.exec_async(redis).await.unwrap();
    }
}

/// A published chain of 2,500 blocks, most of them final.
async fn final_blocks() -> (ManualChain, RunningNode, Rig, Checker) {
    let (chain, node, mut rig) = tiny(10).await;
    rig.start();
    chain.mine(2_500);
    let checker = checker(&rig, &node).await;
    until("the chain to be final", async || {
        let cursor = checker.cursor().await.unwrap();
        cursor.is_some_and(|c| c.number == 2_500 && c.finalized_number >= 2_000)
    })
    .await;
    (chain, node, rig, checker)
}

/// Sets `maxmemory` to this many bytes less than are used.
async fn overfill(redis: &mut MultiplexedConnection, bytes: u64) {
    let info: String = redis::cmd("INFO").arg("memory").query_async(redis).await.unwrap();
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    let limit = used.trim().parse::<u64>().unwrap() - bytes;
    let set = ["SET", "maxmemory", &limit.to_string()];
    redis::cmd("CONFIG").arg(&set).exec_async(redis).await.unwrap();
}

#[tokio::test]
async fn g8_a_full_redis_is_left_by_keeping_less() {
    let (chain, _node, mut rig, checker) = final_blocks().await;
    let cursor = async || checker.cursor().await.unwrap();
    let mut redis = rig.redis.connection().await.unwrap();
    overfill(&mut redis, 500_000).await;
    chain.mine(1);
    rig.wait_for("metrics", |_, body| body.contains(r#"kind="out_of_memory"} 2"#)).await;
    rig.terminate().await;
    // As in the runbook: only the service itself can make room.
    rig.set("STREAM_MAX_BYTES", 2_000_000);
    rig.start();
    until("room for the next block", async || cursor().await.is_some_and(|c| c.number == 2_501))
        .await;
    let entries: u64 =
        redis::cmd("XLEN").arg("events:31337").query_async(&mut redis).await.unwrap();
    assert!(entries < 10_000, "{entries}");
    assert!(rig.log_of_this_process().contains("memory is full"), "{}", rig.log());
    rig.terminate().await;
}

#[tokio::test]
async fn g7_a_fast_backfill_keeps_to_the_byte_cap() {
    const CAP: u64 = 2_000_000;
    let (chain, node, mut rig) = tiny(10).await;
    chain.mine(6_000);
    let mut redis = rig.redis.connection().await.unwrap();
    group(&mut redis, &["CREATE", "events:31337", "readers", "0", "MKSTREAM"]).await;
    rig.set("STREAM_MAX_BYTES", CAP);
    rig.start();
    rig.wait_for("ready", |_, body| body.contains("the group `readers` has not read")).await;
    let mut bytes = 0;
    for key in ["events:31337", "blocks:{events:31337}"] {
        let mut usage = redis::cmd("MEMORY");
        bytes += usage.arg("USAGE").arg(key).query_async::<u64>(&mut redis).await.unwrap();
    }
    assert!((CAP..CAP * 5 / 4).contains(&bytes), "{bytes}");
    group(&mut redis, &["DESTROY", "events:31337", "readers"]).await;
    checker(&rig, &node).await.with_trimmed_beginning().settle_and_check(SETTLE).await.unwrap();
}

/// Keys of another program, or many dedup records.
#[tokio::test]
async fn g8_a_redis_that_something_else_fills_is_left_without_an_operator() {
    let (chain, _node, rig, checker) = final_blocks().await;
    let cursor = async || checker.cursor().await.unwrap();
    let mut redis = rig.redis.connection().await.unwrap();
    let filling = ["theirs", "10000000", "x"];
    redis::cmd("SETRANGE").arg(&filling).exec_async(&mut redis).await.unwrap();
    overfill(&mut redis, 1_000_000).await;
    let entries = |redis: &MultiplexedConnection| {
        let mut redis = redis.clone();
        async move {
            let mut length = redis::cmd("XLEN");
            length.arg("events:31337").query_async::<u64>(&mut redis).await.unwrap()
        }
    };
    let before = entries(&redis).await;
    chain.mine(1);
    until("room for the next block", async || cursor().await.is_some_and(|c| c.number == 2_501))
        .await;
    let after = entries(&redis).await;
    assert!((before / 2..before).contains(&after), "{before} entries before, {after} after");
    assert_eq!(rig.log().matches("Redis is nearly full").count(), 1, "{}", rig.log());
    checker.with_trimmed_beginning().settle_and_check(SETTLE).await.unwrap();
}

#[tokio::test]
async fn g8_what_the_cap_takes_from_a_group_is_a_metric() {
    let (chain, node, mut rig) = manual().await;
    rig.set("STREAM_MAX_BYTES", 1_000_000);
    chain.set_finalized(1_200);
    let mut redis = rig.redis.connection().await.unwrap();
    group(&mut redis, &["CREATE", "events:31337", "readers", "0", "MKSTREAM"]).await;
    rig.start();
    let checker = checker(&rig, &node).await;
    // Never so many blocks at once that it would be a backfill, which waits for the group.
    for head in (50..=1_200).step_by(50) {
        chain.mine(50);
        let cursor = async || checker.cursor().await.unwrap();
        until("the head", async || cursor().await.is_some_and(|c| c.number == head)).await;
    }
    let line = r#"ethhook_entries_lost_unread_total{chain="local",group="readers"}"#;
    // A sweep that has trimmed tells of it a moment later.
    until("the loss to be told", async || {
        let lost = rig.metric(line).await.unwrap_or_default();
        let mut length = redis::cmd("XLEN");
        let left = length.arg("events:31337").query_async::<u32>(&mut redis.clone()).await;
        lost > 0.0 && lost + f64::from(left.unwrap()) == 12_000.0
    })
    .await;
    checker.with_trimmed_beginning().settle_and_check(SETTLE).await.unwrap();
}

#[tokio::test]
async fn g10_a_tag_at_the_head_makes_nothing_final_before_its_depth() {
    let (chain, node, mut rig) = manual().await;
    let toml = "[chains.local]\nblock_time_ms = 100\nfinality_depth = 20\n";
    rig.write_toml(toml).unwrap();
    chain.set_finalized(1_030);
    chain.mine(1_030);
    rig.start();
    let checker = checker(&rig, &node).await;
    checker.settle_and_check(SETTLE).await.unwrap();
    let finalized = async || checker.cursor().await.unwrap().unwrap().finalized_number;
    until("a finalized block", async || finalized().await > 0).await;
    chain.mine(1);
    checker.settle_and_check(SETTLE).await.unwrap();
    assert!(finalized().await <= 1_031 - 20, "{}", finalized().await);
}
