//! The transaction of a step with entries: readers never see the stream set aside in between, and a
//! step that is cut short leaves nothing behind. G4.

use std::time::Duration;

use ethhook_domain::ProcessedEvent;
use ethhook_streams::StepError;
use ethhook_testkit::replication::wait_until;
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamId, StreamReadReply};
use redis::{Cmd, Pipeline, Value};
use tokio::task::JoinSet;

use crate::chain::{CHAIN, Fixture, add, block, command, hash, id, remove};

/// One half of the step that adds `2a` with two entries on `1a`.
fn half(redis: &Fixture, part: &str) -> Cmd {
    let keys = &redis.keys;
    let (number, block, tip) = ("2", hash("2a").to_string(), hash("1a").to_string());
    let mut call = redis::cmd("EVAL");
    call.arg(concat!(include_str!("../../src/common.lua"), include_str!("../../src/step.lua")))
        .arg(5);
    call.arg(&keys.events).arg(&keys.blocks).arg(&keys.cursor);
    call.arg(keys.seen(hash("2a"))).arg(&keys.aside);
    call.arg(&["add", "one", "1", "1", &tip, "", "2", number, &block, &tip, "1", "2", "structure"]);
    call.arg(&["all", number, &block, "60", "fields", part]);
    call
}

fn entry(redis: &Fixture) -> Cmd {
    command(&format!("XADD {} NOMKSTREAM * f v", redis.keys.aside))
}

/// The replies to the commands in one transaction.
async fn exec(redis: &mut Fixture, commands: impl IntoIterator<Item = Cmd>) -> Vec<Value> {
    let mut transaction = Pipeline::new();
    transaction.atomic();
    commands.into_iter().for_each(|command| {
        transaction.add_command(command);
    });
    transaction.query_async(&mut redis.raw).await.unwrap()
}

fn words(value: &Value) -> Vec<String> {
    redis::from_redis_value(value.clone()).unwrap()
}

#[tokio::test]
async fn g4_a_step_of_which_not_all_entries_went_in_leaves_nothing() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add(&mut publisher, &block("1a", "0", 1)).await;
    let before = redis.dump().await;

    let halves = ["open", "close"].map(|part| half(&redis, part));
    let [open, close] = halves.clone();
    let cut = [open, entry(&redis), close];
    let answers = exec(&mut redis, cut).await;
    assert_eq!(words(&answers[0]), ["open"]);
    assert!(words(&answers[2])[1].contains("not all entries were written"), "{answers:?}");
    assert_eq!(redis.dump().await, before);

    // Without the opening call, entries and closing call have no effect.
    let [_, close] = halves.clone();
    let headless = [entry(&redis), entry(&redis), close];
    let answers = exec(&mut redis, headless).await;
    assert_eq!((&answers[0], words(&answers[2])), (&Value::Nil, vec!["not_open".to_owned()]));
    assert_eq!(redis.dump().await, before);

    // Complete, the step goes in.
    let [open, close] = halves;
    let whole = [open, entry(&redis), entry(&redis), close];
    let answers = exec(&mut redis, whole).await;
    assert_eq!(words(&answers[3])[0], "published");
    assert_eq!(redis.cursor().await.hash, Some(hash("2a")));
}

#[tokio::test]
async fn a_stream_that_stands_aside_outside_of_a_step_stops_the_chain() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add(&mut publisher, &block("1a", "0", 1)).await;
    let aside = redis.keys.aside.clone();
    redis.ask::<String>(&format!("XADD {aside} 1-1 f v")).await;
    let before = redis.dump().await;
    let two = block("2a", "1a", 2);
    match publisher.apply(&two.add()).await {
        Err(StepError::Inconsistent(why)) => assert!(why.contains(&aside), "{why}"),
        other => panic!("{other:?}"),
    }
    // The key found there is not ours; apart from it, nothing has changed.
    redis.ask::<u64>(&format!("DEL {aside}")).await;
    let kept: Vec<_> = before.into_iter().filter(|key| !key.starts_with(&aside)).collect();
    assert_eq!(redis.dump().await, kept);
    add(&mut publisher, &two).await;
}

#[tokio::test]
async fn g4_a_step_of_which_redis_refused_the_second_half_is_undone() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add(&mut publisher, &block("1a", "0", 3)).await;
    redis.ask::<String>("XGROUP CREATE events:7 readers 0").await;
    let before = (redis.events().await, redis.markers().await.len());
    // As if the disk had failed in the middle: Redis then refuses the closing call (MISCONF).
    let cut = [half(&redis, "open"), entry(&redis), entry(&redis)];
    exec(&mut redis, cut.clone()).await;
    assert_eq!(redis.ask::<u64>("EXISTS events:7").await, 0);
    // By the next step, which is refused...
    let two = block("2a", "1a", 2);
    let told = publisher.apply(&two.add()).await;
    assert!(matches!(told, Err(StepError::Inconsistent(_))), "{told:?}");
    assert_eq!((redis.events().await, redis.markers().await.len()), before);
    // ...or the next session. A consumer that finds no stream may make one.
    exec(&mut redis, cut).await;
    redis.ask::<String>("XGROUP CREATE events:7 readers 0 MKSTREAM").await;
    let mut publisher = redis.publisher().await;
    assert_eq!((redis.events().await, redis.markers().await.len()), before);
    let aside = redis.keys.aside.clone();
    assert_eq!(redis.ask::<u64>(&format!("EXISTS {aside}")).await, 0);
    assert_eq!(redis.ask::<Vec<Value>>("XINFO GROUPS events:7").await.len(), 1);
    add(&mut publisher, &two).await;
    assert_eq!(redis.events().await.len(), 5);
}

#[tokio::test]
async fn g4_a_step_whose_marker_is_refused_leaves_no_entries() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add(&mut publisher, &block("1a", "0", 3)).await;
    let last = "18446744073709551615-18446744073709551615";
    redis.ask::<String>(&format!("XSETID blocks:{{events:7}} {last}")).await;
    let before = redis.dump().await;
    for count in [2, 0] {
        for _ in 0..2 {
            let told = publisher.apply(&block("2a", "1a", count).add()).await.unwrap_err();
            assert!(told.to_string().contains("exhausted the last possible ID"), "{told}");
            assert_eq!(redis.dump().await, before);
        }
    }
}

/// The first entry that a blocked reader receives.
async fn first_read(mut connection: MultiplexedConnection, line: String) -> StreamId {
    let reply: StreamReadReply = command(&line).query_async(&mut connection).await.unwrap();
    reply.keys.into_iter().flat_map(|key| key.ids).next().unwrap()
}

#[tokio::test]
async fn readers_that_wait_for_the_stream_are_served_and_groups_stay() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    let (one, two) = (block("1a", "0", 3), block("2a", "1a", 3));
    redis.ask::<String>("XGROUP CREATE events:7 g $ MKSTREAM").await;
    let mut tip = None;
    for block in [&one, &two] {
        let waiting = ["XREAD BLOCK 20000", "XREADGROUP GROUP g c BLOCK 20000"]
            .into_iter()
            .zip(["$", ">"])
            .map(|(read, after)| format!("{read} STREAMS events:7 {after}"));
        let mut readers = JoinSet::new();
        for line in waiting {
            let mut connection = redis.server.connection().await.unwrap();
            connection.set_response_timeout(Duration::from_secs(30));
            readers.spawn(first_read(connection, line));
        }
        let blocked = async || {
            let clients: String = redis.server.ask("INFO clients").await?;
            Ok(clients.contains("blocked_clients:2\r\n"))
        };
        wait_until("two readers", blocked).await.unwrap();
        let published = add(&mut publisher, block).await;
        for entry in readers.join_all().await {
            assert_eq!(Some(id(&entry.id)), published.first_id);
            let fields = entry.map.iter().map(|(name, value)| match value {
                Value::BulkString(value) => (name.as_bytes(), value.as_slice()),
                other => panic!("{other:?}"),
            });
            assert_eq!(ProcessedEvent::from_fields(fields).unwrap(), block.events[0]);
        }
        tip = Some(published);
    }
    let groups = redis.streams.inventory(CHAIN).await.unwrap().groups;
    assert_eq!((groups.len(), groups[0].name.as_str()), (1, "g"));
    remove(&mut publisher, &two, &tip.unwrap()).await.unwrap();
}
