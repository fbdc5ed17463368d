//! Faults of a step: late arrival, other writers, damaged keys, full memory, lost answers, dead and
//! wiped servers. G2, G4, G5.

use std::time::Duration;

use ethhook_domain::{Encoding, Op};
use ethhook_streams::{
    DEEP_DEDUP_TTL, FailureKind, Outcome, Publisher, ReplaySpec, Step, StepError, WriterOptions,
};
use ethhook_testkit::redis_server::RedisOptions;
use ethhook_testkit::replication::wait_until;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::chain::{
    Block, CHAIN, Fixture, add, add_all, block, first, hash, id, named, open, remove,
};

/// Applies `block` until it is in, as the ingestor does.
async fn add_until_in(publisher: &mut Publisher, block: &Block) -> (Outcome, u32) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut failures = 0;
    loop {
        match publisher.apply(&block.add()).await {
            Ok(outcome) => return (outcome, failures),
            Err(error) if error.is_retryable() && Instant::now() < deadline => failures += 1,
            Err(error) => panic!("{error}"),
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Applies `step` while the server is paused for longer than the timeout, and resumes it after the
/// caller has given up and disconnected. Checks that the step was executed.
async fn lose_answer(redis: &mut Fixture, publisher: &mut Publisher, step: &Step<'_>) -> StepError {
    let before = redis.cursor().await;
    redis.server.pause().unwrap();
    let error = publisher.apply(step).await.unwrap_err();
    redis.server.resume().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while redis.cursor().await == before {
        assert!(Instant::now() < deadline, "the step did not run");
        sleep(Duration::from_millis(5)).await;
    }
    error
}

#[tokio::test]
async fn g5_a_step_that_arrives_after_the_chain_went_x_y_x_is_refused() {
    let mut redis = Fixture::new().await;
    let mut delayed = redis.publisher().await;
    add(&mut delayed, &block("1a", "0", 1)).await;
    let (x, y) = (block("2x", "1a", 2), block("2y", "1a", 2));
    let mut current = redis.publisher().await;
    let px = add(&mut current, &x).await;
    remove(&mut current, &x, &px).await.unwrap();
    let py = add(&mut current, &y).await;
    remove(&mut current, &y, &py).await.unwrap();
    add(&mut current, &x).await;
    // As if one writer with one epoch had done all that while a step of it was on the wire.
    let epoch = delayed.cursor().epoch.to_string();
    redis.raw_hset("cursor:{events:7}", "epoch", &epoch).await;
    let before = redis.dump().await;

    // X is in: a duplicate. Y and a block without events are not: the chain has moved on.
    let duplicate = delayed.apply(&x.add()).await.unwrap();
    assert_eq!(duplicate, Outcome::Duplicate { events: 2 });
    for late in [y, block("2z", "1a", 0)] {
        match delayed.apply(&late.add()).await {
            Err(StepError::Moved { held: Some(held) }) => assert_eq!(held.seq, 6),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(redis.dump().await, before);
}

#[tokio::test]
async fn g5_another_writer_and_another_epoch_are_refused() {
    let mut redis = Fixture::new().await;
    let mut one = redis.publisher().await;
    add(&mut one, &block("1a", "0", 1)).await;
    let a2 = block("2a", "1a", 1);

    // Our own name with a higher epoch: another process uses it.
    let mut same_name = redis.publisher().await;
    let before = redis.dump().await;
    match one.apply(&a2.add()).await {
        Err(StepError::Fenced { writer, epoch }) => {
            assert_eq!((writer.as_str(), epoch), ("one", same_name.cursor().epoch));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(redis.dump().await, before);

    redis.ask::<i64>("DEL lease:{events:7}").await;
    let mut two = redis.publisher_of("two").await;
    let before = redis.dump().await;
    for step in [a2.add(), Step::Finalized { block: &a2.link }, Step::Alarm { text: "x" }] {
        match same_name.apply(&step).await {
            Err(StepError::Fenced { writer, epoch }) => {
                assert_eq!((writer.as_str(), epoch), ("two", two.cursor().epoch));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(redis.dump().await, before);
    add(&mut two, &a2).await;
}

#[tokio::test]
async fn g5_a_writer_an_epoch_a_seq_or_a_tip_that_moved_is_refused() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add(&mut publisher, &block("1a", "0", 1)).await;
    let a2 = block("2a", "1a", 1);
    for (field, value, back) in [
        ("writer", "two", "one".to_owned()),
        ("epoch", "2", "1".to_owned()),
        ("seq", "9", "1".to_owned()),
        ("hash", "", hash("1a").to_string()),
    ] {
        redis.raw_hset("cursor:{events:7}", field, value).await;
        if field == "seq" {
            redis.ask::<String>("XADD blocks:{events:7} * seq 9 last_id 0-1").await;
        }
        let before = redis.dump().await;
        let error = publisher.apply(&a2.add()).await.unwrap_err();
        assert!(!error.is_retryable(), "{field}: {error}");
        let fenced = matches!(error, StepError::Fenced { .. });
        let moved = matches!(error, StepError::Moved { held: Some(_) });
        let by_owner = matches!(field, "writer" | "epoch");
        assert_eq!((fenced, moved), (by_owner, !by_owner), "{field}: {error}");
        assert_eq!(redis.dump().await, before, "{field}");
        redis.raw_hset("cursor:{events:7}", field, &back).await;
        if field == "seq" {
            redis.lose_newest_marker().await;
        }
    }
    add(&mut publisher, &a2).await;
}

#[tokio::test]
async fn a_key_of_another_type_is_named_and_nothing_is_written() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add(&mut publisher, &block("1a", "0", 1)).await;
    let a2 = block("2a", "1a", 3);
    let keys = redis.keys.clone();
    for key in
        [keys.events.clone(), keys.blocks.clone(), keys.cursor.clone(), keys.seen(a2.link.hash)]
    {
        let existed: i64 = redis.ask(&format!("EXISTS {key}")).await;
        if existed == 1 {
            redis.ask::<String>(&format!("RENAME {key} {key}:kept")).await;
        }
        redis.ask::<i64>(&format!("RPUSH {key} x")).await;
        let before = redis.dump().await;
        match publisher.apply(&a2.add()).await {
            Err(StepError::WrongType { key: named, found, .. }) => {
                assert_eq!((named, found.as_str()), (key.clone(), "list"));
            }
            other => panic!("{key}: {other:?}"),
        }
        assert_eq!(redis.dump().await, before, "{key}");
        redis.ask::<i64>(&format!("DEL {key}")).await;
        if existed == 1 {
            redis.ask::<String>(&format!("RENAME {key}:kept {key}")).await;
        }
    }
    add(&mut publisher, &a2).await;
}

#[tokio::test]
async fn g4_full_memory_refuses_the_whole_step_and_lets_it_in_later() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    let a1 = block("1a", "0", 50);
    let p1 = add(&mut publisher, &a1).await;
    let (a2, empty) = (block("2a", "1a", 50), block("2b", "1a", 0));
    let reversed = a1.reversed();
    redis.ask::<String>("CONFIG SET maxmemory 1").await;
    let before = redis.dump().await;
    let steps = [
        a2.add(),
        empty.add(),
        Step::Remove { block: &p1, events: &reversed },
        Step::Finalized { block: &a1.link },
        Step::Alarm { text: "x" },
    ];
    for step in &steps {
        match publisher.apply(step).await {
            Err(StepError::Redis(failure)) => {
                assert_eq!(failure.kind, FailureKind::OutOfMemory, "{failure}");
            }
            other => panic!("{step:?}: {other:?}"),
        }
        assert_eq!(redis.dump().await, before, "{step:?}");
    }
    // The lease survives full memory: renewing it allocates nothing.
    publisher.renew().await.unwrap();
    redis.ask::<String>("CONFIG SET maxmemory 0").await;
    add(&mut publisher, &a2).await;
}

#[tokio::test]
async fn g4_memory_that_fills_up_within_a_step_does_not_cut_it() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    let info: String = redis.ask("INFO memory").await;
    let used: u64 = info
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    redis.ask::<String>(&format!("CONFIG SET maxmemory {}", used + 1_500_000)).await;
    let mut parent = "0".to_owned();
    let mut whole = 0;
    for n in 1..100 {
        let name = format!("{n}a");
        match publisher.apply(&block(&name, &parent, 500).add()).await {
            Ok(_) => whole += 1,
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                break;
            }
        }
        parent = name;
    }
    assert!((1..99).contains(&whole), "{whole} blocks went in");
    assert_eq!(redis.events().await.len(), whole * 500);
    assert_eq!(redis.markers().await.len(), whole);
    assert_eq!(redis.cursor().await.number, whole as u64);
}

#[tokio::test]
async fn a_replayed_block_whose_answer_was_lost_is_in_once() {
    let mut redis = Fixture::new().await;
    redis.hurry(Duration::from_millis(400));
    let (chain, filter) = (CHAIN, "all".to_owned());
    let spec = ReplaySpec { chain, from: 1, filter, encoding: Encoding::Fields };
    let mut replay = redis.streams.replay_into("history", spec).await.unwrap();
    let (a1, a2) = (block("1a", "0", 3), block("2a", "1a", 2));
    replay.append(&a1.link, &a1.events).await.unwrap();
    redis.server.pause().unwrap();
    let error = replay.append(&a2.link, &a2.events).await.unwrap_err();
    redis.server.resume().unwrap();
    assert!(error.is_retryable(), "{error}");
    let deadline = Instant::now() + Duration::from_secs(10);
    while redis.ask::<u64>("XLEN history").await != 5 {
        assert!(Instant::now() < deadline, "the block did not get in");
        sleep(Duration::from_millis(5)).await;
    }
    replay.append(&a2.link, &a2.events).await.unwrap();
    assert_eq!((redis.ask::<u64>("XLEN history").await, replay.events()), (5, 5));
}

#[tokio::test]
async fn g2_a_step_whose_answer_was_lost_is_in_once() {
    let mut redis = Fixture::new().await;
    redis.hurry(Duration::from_millis(400));
    let mut publisher = redis.publisher().await;
    // A server that does not know the script would only report that.
    add(&mut publisher, &block("1a", "0", 1)).await;
    let (a2, a3, a4) = (block("2a", "1a", 3), block("3a", "2a", 0), block("4a", "3a", 2));
    for (seq, block) in [&a2, &a3, &a4].into_iter().enumerate() {
        let error = lose_answer(&mut redis, &mut publisher, &block.add()).await;
        assert!(matches!(&error, StepError::Redis(f) if f.kind == FailureKind::Timeout), "{error}");
        let (outcome, _) = add_until_in(&mut publisher, block).await;
        let marker = redis.markers().await.pop().unwrap();
        let (first_id, last_id) = (marker.first_id, marker.last_id);
        let (events, marker_id) = (block.events.len() as u64, redis.last_marker_id().await);
        assert_eq!(outcome, Outcome::Published { first_id, last_id, events, marker_id });
        assert_eq!(marker.seq, seq as u64 + 2);
    }
    assert_eq!(redis.events().await.len(), 6);
    // The same for a block taken back, a final block and a latched alarm.
    let p4 = redis.streams.window(7, publisher.cursor()).await.unwrap().pop().unwrap();
    let reversed = a4.reversed();
    for step in [
        Step::Remove { block: &p4, events: &reversed },
        Step::Finalized { block: &a2.link },
        Step::Alarm { text: "stop" },
    ] {
        assert!(lose_answer(&mut redis, &mut publisher, &step).await.is_retryable());
        let outcome = publisher.apply(&step).await;
        assert!(matches!(outcome, Ok(Outcome::Published { .. })), "{outcome:?}");
    }
    let ops: Vec<_> = redis.markers().await.iter().map(|m| m.op).collect();
    assert_eq!(ops, [Op::Add, Op::Add, Op::Add, Op::Add, Op::Remove, Op::Finalized]);
    assert_eq!(redis.events().await.len(), 8);
    assert_eq!(redis.cursor().await, *publisher.cursor());
}

#[tokio::test]
async fn a_connection_that_is_cut_is_made_anew() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    let (mut parent, mut failures) = ("0".to_owned(), 0);
    for n in 1..=20 {
        let name = format!("{n}a");
        let block = block(&name, &parent, 20);
        let (outcome, ()) = tokio::join!(add_until_in(&mut publisher, &block), async {
            redis.ask::<i64>("CLIENT KILL TYPE normal SKIPME yes").await;
        });
        assert!(matches!(outcome.0, Outcome::Published { events: 20, .. }));
        failures += outcome.1;
        parent = name;
    }
    assert!(failures > 0, "no step met a cut connection");
    assert_eq!(redis.events().await.len(), 400);
    let seqs: Vec<_> = redis.markers().await.iter().map(|m| m.seq).collect();
    assert_eq!(seqs, (1..=20).collect::<Vec<_>>());
}

#[tokio::test]
async fn g2_a_step_dropped_half_way_is_in_once_when_taken_again() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    let a1 = block("1a", "0", 3);
    redis.ask::<String>("CLIENT PAUSE 300 ALL").await;
    {
        let step = a1.add();
        let dropped = tokio::time::timeout(Duration::from_millis(50), publisher.apply(&step)).await;
        assert!(dropped.is_err());
    }
    let (outcome, _) = add_until_in(&mut publisher, &a1).await;
    assert!(matches!(outcome, Outcome::Published { events: 3, .. }));
    assert_eq!(redis.events().await.len(), 3);
}

#[tokio::test]
async fn a_step_waits_for_another_clients_endless_script() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add_all(&mut publisher, 1..=2, 2).await;
    redis.ask::<String>("CONFIG SET busy-reply-threshold 10").await;
    let mut other = redis.server.connection().await.unwrap();
    let mut endless = JoinSet::new();
    endless.spawn(async move {
        redis::cmd("EVAL").arg("while true do end").arg(0).query_async::<()>(&mut other).await
    });
    let kind = async |publisher: &mut Publisher| match publisher
        .apply(&block("3a", "2a", 2).add())
        .await
    {
        Err(StepError::Redis(failure)) => Some(failure.kind),
        _ => None,
    };
    wait_until("the script blocks it", async || {
        Ok(redis::cmd("GET").arg("x").exec_async(&mut redis.raw).await.is_err())
    })
    .await
    .unwrap();
    assert_eq!(kind(&mut publisher).await, Some(FailureKind::Busy));
    redis.ask::<String>("SCRIPT KILL").await;
    endless.join_next().await.unwrap().unwrap().unwrap_err();
    let (outcome, _) = add_until_in(&mut publisher, &block("3a", "2a", 2)).await;
    assert!(matches!(outcome, Outcome::Published { events: 2, .. }));
    assert_eq!(redis.events().await.len(), 6);
}

#[tokio::test]
async fn a_server_killed_and_started_again_goes_on() {
    let mut redis =
        Fixture::with(RedisOptions { appendfsync: "always", ..RedisOptions::default() }).await;
    let mut publisher = redis.publisher().await;
    add_all(&mut publisher, 1..=5, 4).await;
    let cursor = publisher.cursor().clone();
    redis.server.kill();
    let a6 = block("6a", "5a", 4);
    let error = publisher.apply(&a6.add()).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    redis.server.start().await.unwrap();
    assert_eq!(redis.cursor().await, cursor, "what was acknowledged is there");
    let (outcome, _) = add_until_in(&mut publisher, &a6).await;
    assert!(matches!(outcome, Outcome::Published { events: 4, .. }));
    assert_eq!(redis.events().await.len(), 24);
    assert_eq!(redis.streams.window(7, publisher.cursor()).await.unwrap().len(), 6);
}

#[tokio::test]
async fn a_wiped_redis_is_moved_and_begins_again() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add_all(&mut publisher, 1..=3, 2).await;
    redis.ask::<String>("FLUSHALL").await;
    let error = publisher.apply(&block("4a", "3a", 2).add()).await.unwrap_err();
    assert_eq!(error, StepError::Moved { held: None });
    assert_eq!(redis.dump().await, Vec::<String>::new());
    let mut publisher = open(&redis.streams, "one", Some(first())).await.unwrap();
    add_all(&mut publisher, 1..=1, 2).await;
    assert_eq!(redis.cursor().await.seq, 1);
}

#[tokio::test]
async fn ids_stay_above_those_that_a_failover_took_back() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add_all(&mut publisher, 1..=2, 2).await;
    let streams = ["events:7", "blocks:{events:7}"];
    for (replica, stream) in streams.iter().enumerate() {
        redis.ask::<i64>(&format!("COPY {stream} replica-{replica}")).await;
        // A master whose clock is far ahead assigned this ID...
        redis.ask::<String>(&format!("XSETID {stream} 9999999999999-{}", 7 - replica)).await;
    }
    let given = add(&mut publisher, &block("3a", "2a", 1)).await;
    assert_eq!(given.last_id, id("9999999999999-8"));
    assert_eq!(redis.last_marker_id().await, id("9999999999999-7"));
    // ...and its replica never received it.
    for wiped in [false, true] {
        if wiped {
            redis.ask::<String>("FLUSHALL").await;
        } else {
            for (replica, stream) in streams.iter().enumerate() {
                redis.ask::<String>(&format!("RENAME replica-{replica} {stream}")).await;
            }
            redis.raw_hset("cursor:{events:7}", "seq", "2").await;
            redis.raw_hset("cursor:{events:7}", "number", "2").await;
            redis.raw_hset("cursor:{events:7}", "hash", &hash("2a").to_string()).await;
            redis.ask::<i64>(&format!("DEL {}", redis.keys.seen(hash("3a")))).await;
        }
        let mut publisher = redis.publisher().await;
        let next = if wiped { block("1b", "0", 1) } else { block("3b", "2a", 0) };
        let published = add(&mut publisher, &next).await;
        let (event, marker) = if wiped { (9, 9) } else { (8, 8) };
        assert_eq!(published.last_id, id(&format!("9999999999999-{event}")), "wiped: {wiped}");
        let marker = id(&format!("9999999999999-{marker}"));
        assert_eq!(redis.last_marker_id().await, marker, "wiped: {wiped}");
    }
}

#[tokio::test]
async fn an_alarm_stands_until_it_is_cleared() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    let a1 = block("1a", "0", 1);
    add(&mut publisher, &a1).await;
    publisher.apply(&Step::Alarm { text: "reorg below finalized" }).await.unwrap();
    let mut reopened = redis.publisher().await;
    assert_eq!(reopened.cursor().alarm, "reorg below finalized");
    let error = reopened.apply(&block("2a", "1a", 1).add()).await.unwrap_err();
    assert_eq!(error, StepError::Alarmed("reorg below finalized".to_owned()));
    assert_eq!(redis.markers().await.len(), 1);
    redis.raw_hset("cursor:{events:7}", "alarm", "").await;
    add(&mut reopened, &block("2a", "1a", 1)).await;
}

#[tokio::test]
async fn a_dedup_record_of_a_block_that_is_not_in_is_no_reason_to_skip_it() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add(&mut publisher, &block("1a", "0", 1)).await;
    let a2 = block("2a", "1a", 1);
    let seen = redis.keys.seen(a2.link.hash);
    redis.raw_set(&seen, "1 1-1 1-1").await;
    let error = publisher.apply(&a2.add()).await.unwrap_err();
    assert!(matches!(error, StepError::Inconsistent(_)), "{error}");
    assert!(error.to_string().contains("`ethhook reset`"), "{error}");
}

#[tokio::test]
async fn g2_correctness_does_not_rest_on_the_dedup_record() {
    let mut redis = Fixture::new().await;
    let options = WriterOptions { dedup_ttl: Duration::from_secs(1), ..named("one") };
    let mut publisher = Publisher::open(&redis.streams, 7, options, Some(first())).await.unwrap();
    let (a1, a2) = (block("1a", "0", 2), block("2a", "1a", 2));
    add(&mut publisher, &a1).await;
    add(&mut publisher, &a2).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !redis.ask::<Vec<String>>("KEYS seen:*").await.is_empty() {
        assert!(Instant::now() < deadline, "the records do not expire");
        sleep(Duration::from_millis(50)).await;
    }
    let before = redis.dump().await;
    assert_eq!(publisher.apply(&a2.add()).await.unwrap(), Outcome::Duplicate { events: 2 });
    assert!(matches!(publisher.apply(&a1.add()).await, Err(StepError::Refused(_))));
    assert_eq!(redis.dump().await, before);
}

#[tokio::test]
async fn the_dedup_record_of_a_deep_block_is_soon_gone() {
    let mut redis = Fixture::new().await;
    let deep_ttl = i64::try_from(DEEP_DEDUP_TTL.as_secs()).unwrap();
    for (dedup_ttl, is_deep, longest) in
        [(3_600, true, deep_ttl), (30, true, 30), (3_600, false, 3_600)]
    {
        redis.ask::<String>("FLUSHALL").await;
        let options = WriterOptions { dedup_ttl: Duration::from_secs(dedup_ttl), ..named("one") };
        let mut publisher =
            Publisher::open(&redis.streams, 7, options, Some(first())).await.unwrap();
        let block = block("1a", "0", 2);
        let step = match block.add() {
            Step::Add { block, events, proof, filter, .. } => {
                Step::Add { block, events, proof, filter, is_deep }
            }
            other => other,
        };
        publisher.apply(&step).await.unwrap();
        let ttl = redis.ask::<i64>(&format!("TTL {}", redis.keys.seen(block.link.hash))).await;
        assert!((longest - 20..=longest).contains(&ttl), "{ttl} of {longest}");
    }
}

/// Cuts the append-only file within the second entry of the newest block, which has `events`.
fn tear_newest_block(redis: &Fixture, events: usize) {
    let folder = redis.server.directory().join("appendonlydir");
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    // Their names are equal except for a small number.
    let newest = files.filter(|path| path.to_string_lossy().ends_with(".incr.aof")).max().unwrap();
    let bytes = std::fs::read(&newest).unwrap();
    let adds: Vec<_> =
        (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"\r\nXADD\r\n")).collect();
    // The last one is the block's marker.
    let second = adds[adds.len() - events];
    let file = std::fs::File::options().write(true).open(newest).unwrap();
    file.set_len(second as u64 + 20).unwrap();
}

#[tokio::test]
async fn g2_entries_of_a_torn_block_do_not_come_back_with_the_restart_after_the_next() {
    let options = RedisOptions { appendfsync: "always", ..RedisOptions::default() };
    let mut redis = Fixture::with(options).await;
    let mut publisher = redis.publisher().await;
    until_rewritten(&redis).await;
    add_all(&mut publisher, 1..=2, 3).await;
    redis.server.kill();
    tear_newest_block(&redis, 3);

    redis.server.start().await.unwrap();
    let mut publisher = redis.publisher().await;
    assert_eq!(publisher.cursor().seq, 1);
    until_rewritten(&redis).await;
    add(&mut publisher, &block("2b", "1a", 1)).await;
    let before = redis.events().await;
    redis.server.kill();
    redis.server.start().await.unwrap();
    assert_eq!(before.len(), 4);
    assert_eq!(redis.events().await, before);
}

/// Waits until the server has rewritten its append-only file once, as requested by a publisher.
async fn until_rewritten(redis: &Fixture) {
    wait_until("the append-only file is rewritten", async || {
        let info: String = redis.server.ask("INFO persistence").await?;
        Ok(info.contains("aof_rewrites:1") && info.contains("aof_rewrite_in_progress:0"))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn g2_another_block_in_the_place_of_ours_is_not_ours() {
    let mut redis = Fixture::new().await;
    let mut first = redis.publisher().await;
    add(&mut first, &block("1a", "0", 1)).await;
    let mut second = redis.publisher().await;
    redis.raw_hset("cursor:{events:7}", "epoch", "1").await;
    add(&mut first, &block("2a", "1a", 1)).await;
    redis.raw_hset("cursor:{events:7}", "epoch", "2").await;
    let answer = second.apply(&block("2b", "1a", 1).add()).await;
    assert!(matches!(answer, Err(StepError::Moved { .. })), "{answer:?}");
}

#[tokio::test]
async fn ids_of_one_millisecond_are_compared_as_numbers() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add_all(&mut publisher, 1..=2, 2).await;
    redis.ask::<String>("XSETID events:7 9999999999999-9").await;
    redis.ask::<i64>("COPY events:7 replica").await;
    let given = add(&mut publisher, &block("3a", "2a", 1)).await;
    assert_eq!(given.last_id, id("9999999999999-10"));
    redis.ask::<String>("RENAME replica events:7").await;
    redis.raw_hset("cursor:{events:7}", "seq", "2").await;
    redis.raw_hset("cursor:{events:7}", "number", "2").await;
    redis.raw_hset("cursor:{events:7}", "hash", &hash("2a").to_string()).await;
    redis.lose_newest_marker().await;
    redis.ask::<i64>(&format!("DEL {}", redis.keys.seen(hash("3a")))).await;
    let mut publisher = redis.publisher().await;
    let published = add(&mut publisher, &block("3b", "2a", 1)).await;
    assert_eq!(published.last_id, id("9999999999999-11"));
}
