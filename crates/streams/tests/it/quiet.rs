//! Steps sent quietly: one reply for a whole transaction, and sending again to learn why a step is
//! not in. G3, G4, G5.

use ethhook_domain::marker::FIELDS;
use ethhook_domain::{Marker, Op};
use ethhook_streams::{FailureKind, Outcome, Publisher, StepError};

use crate::chain::{Block, Fixture, add, block, first, hash, open};

async fn send(publisher: &mut Publisher, block: &Block) -> Result<Outcome, StepError> {
    assert!(publisher.send(&block.add()), "it need not go alone");
    publisher.next_outcome().await.unwrap()
}

/// How often replies were turned on or off.
async fn switches(redis: &mut Fixture) -> u64 {
    let stats: String = redis.ask("INFO commandstats").await;
    let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_client|reply:calls="));
    line.and_then(|line| line.split(',').next()?.parse().ok()).unwrap_or(0)
}

const ALL: &str = "~* &* +@all";
const NOT_QUIET: &str = "~* &* +@all -client|reply";

#[tokio::test]
async fn a_step_up_to_a_thousand_entries_has_one_answer() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add(&mut publisher, &block("1a", "0", 1)).await;
    let at_first = switches(&mut redis).await;
    let mut parent = "1a";
    // Number of entries, and how often such a step switches replies.
    for (name, entries, told) in [("2a", 1, 2), ("3a", 0, 0), ("4a", 1_000, 2), ("5a", 1_001, 0)] {
        let before = switches(&mut redis).await;
        let outcome = send(&mut publisher, &block(name, parent, entries)).await.unwrap();
        let marker = redis.markers().await.pop().unwrap();
        let (first_id, last_id, events) = (marker.first_id, marker.last_id, entries);
        let marker_id = redis.last_marker_id().await;
        assert_eq!(outcome, Outcome::Published { first_id, last_id, events, marker_id });
        assert_eq!(switches(&mut redis).await - before, told, "{name}");
        parent = name;
    }
    assert!(at_first > 0, "nobody asked whether the server can be quiet");
    assert_eq!(publisher.cursor(), &redis.cursor().await);
    assert_eq!(redis.events().await.len(), 2_003);
}

#[tokio::test]
async fn g5_who_asks_again_is_told_why_a_step_is_not_in() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add(&mut publisher, &block("1a", "0", 1)).await;
    let before = redis.dump().await;
    let stray = block("2x", "1x", 2);
    assert_eq!(send(&mut publisher, &stray).await, Err(StepError::NotIn));
    assert!(matches!(publisher.apply(&stray.add()).await, Err(StepError::Refused(_))));
    assert_eq!(redis.dump().await, before);

    // Full memory: nothing is in, and the next attempt reports the reason.
    let two = block("2a", "1a", 3);
    add(&mut publisher, &two).await;
    let three = block("3a", "2a", 3);
    redis.ask::<String>("CONFIG SET maxmemory 1").await;
    assert_eq!(send(&mut publisher, &three).await, Err(StepError::NotIn));
    match publisher.apply(&three.add()).await {
        Err(StepError::Redis(failure)) => assert_eq!(failure.kind, FailureKind::OutOfMemory),
        other => panic!("{other:?}"),
    }
    redis.ask::<String>("CONFIG SET maxmemory 0").await;
    add(&mut publisher, &three).await;

    // Another writer: our step is not in, and the error names the new writer.
    redis.ask::<u64>(&format!("DEL {}", redis.keys.lease)).await;
    let other = open(&redis.streams, "two", Some(first())).await.unwrap();
    let four = block("4a", "3a", 1);
    assert_eq!(send(&mut publisher, &four).await, Err(StepError::NotIn));
    let fenced = publisher.apply(&four.add()).await;
    assert!(matches!(fenced, Err(StepError::Fenced { writer, .. }) if writer == "two"));
    assert_eq!(other.cursor(), &redis.cursor().await);
    assert_eq!(redis.events().await.len(), 7);
}

#[tokio::test]
async fn only_its_own_marker_says_that_a_step_is_in() {
    // It has another parent, so that it is not in, whatever the newest marker says.
    let stray = block("2x", "1x", 1);
    let cases: [fn(&mut Marker); 5] = [
        |marker| marker.seq = 1,
        |marker| marker.seq = 3,
        |marker| marker.op = Op::Remove,
        |marker| marker.op = Op::Finalized,
        |marker| marker.hash = hash("2a"),
    ];
    for differ in cases {
        let mut redis = Fixture::new().await;
        let mut publisher = redis.publisher().await;
        add(&mut publisher, &block("1a", "0", 1)).await;
        let mut marker = redis.markers().await.pop().unwrap();
        (marker.seq, marker.number, marker.hash) = (2, 2, hash("2x"));
        differ(&mut marker);
        let mut forged = redis::cmd("XADD");
        forged.arg(&redis.keys.blocks).arg("*");
        for (name, value) in FIELDS.iter().zip(marker.to_values()) {
            forged.arg(name).arg(value);
        }
        forged.exec_async(&mut redis.raw).await.unwrap();
        assert_eq!(send(&mut publisher, &stray).await, Err(StepError::NotIn), "{marker:?}");
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_quiet_answers_each_command() {
    let mut redis = Fixture::new().await;
    let streams = redis.as_user(NOT_QUIET).await;
    let mut publisher = open(&streams, "one", Some(first())).await.unwrap();
    add(&mut publisher, &block("1a", "0", 1)).await;
    send(&mut publisher, &block("2a", "1a", 700)).await.unwrap();
    // A refusal is reported at once.
    let stray = send(&mut publisher, &block("3x", "2x", 1)).await;
    assert!(matches!(stray, Err(StepError::Refused(_))), "{stray:?}");
    assert_eq!(redis.events().await.len(), 701);
}

#[tokio::test]
async fn a_right_that_is_taken_away_costs_one_connection() {
    let mut redis = Fixture::new().await;
    let streams = redis.as_user(ALL).await;
    let mut publisher = open(&streams, "one", Some(first())).await.unwrap();
    add(&mut publisher, &block("1a", "0", 1)).await;
    redis.as_user(NOT_QUIET).await;
    let two = block("2a", "1a", 2);
    let error = send(&mut publisher, &two).await.unwrap_err();
    assert!(matches!(&error, StepError::Redis(f) if f.kind == FailureKind::Connection), "{error}");
    add(&mut publisher, &two).await;
    // The next one is answered in full, and understood.
    send(&mut publisher, &block("3a", "2a", 2)).await.unwrap();
    assert_eq!(redis.events().await.len(), 5);
}

#[tokio::test]
async fn g3_the_right_to_be_quiet_may_be_taken_away_at_any_time() {
    let mut redis = Fixture::new().await;
    let streams = redis.as_user(ALL).await;
    let mut publisher = open(&streams, "one", Some(first())).await.unwrap();
    add(&mut publisher, &block("1a", "0", 1)).await;
    send(&mut publisher, &block("2a", "1a", 2)).await.unwrap();
    redis.as_user(NOT_QUIET).await;

    // Everything is answered now: the replies to one step are taken for those to another.
    let blocks = [block("3a", "2a", 2), block("4a", "3a", 2)];
    assert!(blocks.iter().all(|block| publisher.send(&block.add())));
    let error = publisher.next_outcome().await.unwrap().unwrap_err();
    assert!(error.is_retryable(), "{error}");
    for block in &blocks {
        let outcome = publisher.apply(&block.add()).await;
        // The second may have been in when the first was sent again.
        assert!(outcome.is_ok() || matches!(outcome, Err(StepError::Moved { .. })), "{outcome:?}");
    }
    assert_eq!(redis.cursor().await.seq, 4);
    let heights: Vec<_> = redis.events().await.iter().map(|(_, e)| e.block_number).collect();
    assert_eq!(heights, [1, 2, 2, 3, 3, 4, 4]);
}
