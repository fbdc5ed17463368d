//! Steps that only an operator orders: a gap, and a retreat below the finalized block.

use ethhook_domain::Op;
use ethhook_streams::{Events, Outcome, PublishedBlock, Publisher, Step, StepError};

use crate::chain::{CHAIN, Fixture, add, add_all, block, hash};

async fn window(redis: &Fixture) -> Vec<u64> {
    let blocks: Vec<PublishedBlock> =
        redis.streams.window(CHAIN, &redis.cursor().await).await.unwrap();
    blocks.iter().map(|published| published.block.number).collect()
}

async fn refused(publisher: &mut Publisher, step: &Step<'_>, why: &str) {
    match publisher.apply(step).await {
        Err(StepError::Refused(text)) => assert!(text.contains(why), "{text}"),
        other => panic!("{step:?}: {other:?}"),
    }
}

#[tokio::test]
async fn a_gap_moves_the_tip_and_the_window_begins_above_it() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add_all(&mut publisher, 1..=3, 2).await;
    let gap = block("9a", "8a", 0).link;
    let before = redis.dump().await;
    for number in ["3b", "2a"] {
        let back = block(number, "0", 0).link;
        refused(&mut publisher, &Step::Gap { block: &back }, "below 4").await;
    }
    assert_eq!(redis.dump().await, before);

    let step = Step::Gap { block: &gap };
    let first = publisher.apply(&step).await.unwrap();
    assert!(matches!(&first, Outcome::Published { events: 0, .. }), "{first:?}");
    let marker = redis.markers().await.pop().unwrap();
    assert_eq!((marker.op, marker.number, marker.hash), (Op::Gap, 9, hash("9a")));
    assert_eq!(marker.parent_hash, Some(hash("3a")), "the tip before it");
    assert_eq!(redis.cursor().await, *publisher.cursor());
    assert_eq!(window(&redis).await, [0; 0]);

    let published = add_all(&mut publisher, 10..=12, 3).await;
    assert_eq!(window(&redis).await, [10, 11, 12]);
    for block in published.iter().rev() {
        publisher.take_back(block).await.unwrap();
    }
    assert_eq!(window(&redis).await, [0; 0]);
    let held = redis.cursor().await;
    assert_eq!((held.number, held.hash), (9, Some(hash("9a"))), "the gap is the tip again");
    // Another gap directly after it, as from two successive orders.
    publisher.apply(&Step::Gap { block: &block("20a", "19a", 0).link }).await.unwrap();
    add(&mut publisher, &block("21a", "20a", 1)).await;
    assert_eq!(window(&redis).await, [21]);
}

#[tokio::test]
async fn a_stream_may_begin_with_a_gap() {
    let redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    publisher.apply(&Step::Gap { block: &block("5a", "4a", 0).link }).await.unwrap();
    assert_eq!(redis.markers().await[0].parent_hash, None);
    assert_eq!(window(&redis).await, [0; 0]);
    add(&mut publisher, &block("6a", "5a", 1)).await;
    assert_eq!(window(&redis).await, [6]);
}

#[tokio::test]
async fn taking_back_restores_what_was_and_is_the_same_when_asked_twice() {
    let redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    let published = add_all(&mut publisher, 1..=2, 4).await;
    publisher.take_back(&published[1]).await.unwrap();
    let events = redis.events().await;
    let indices: Vec<_> = events[8..].iter().map(|(_, e)| (e.log_index, e.removed)).collect();
    assert_eq!(indices, [(3, true), (2, true), (1, true), (0, true)]);
    assert_eq!(window(&redis).await, [1]);
    let again = publisher.take_back(&published[1]).await;
    assert!(matches!(again, Err(StepError::Refused(_))), "{again:?}");
    assert_eq!(redis.events().await, events);
}

#[tokio::test]
async fn g4_to_take_back_what_redis_has_lost_is_told_as_a_cursor_that_moved() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    let published = add_all(&mut publisher, 1..=2, 4).await;
    // As after a failover: the newest block is gone, including entries, marker and cursor.
    redis.ask::<u64>(&format!("XDEL {} {}", redis.keys.events, published[1].last_id)).await;
    let contradicts = publisher.take_back(&published[1]).await;
    assert!(matches!(contradicts, Err(StepError::Inconsistent(_))), "{contradicts:?}");
    redis.ask::<i64>(&format!("HINCRBY {} seq -1", redis.keys.cursor)).await;
    redis.lose_newest_marker().await;
    let moved = publisher.take_back(&published[1]).await;
    assert!(matches!(&moved, Err(StepError::Moved { held: Some(_) })), "{moved:?}");
}

#[tokio::test]
async fn g10_finality_moves_back_only_with_a_latched_alarm() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    let published = add_all(&mut publisher, 1..=8, 2).await;
    let at = |n: usize| published[n - 1].block;
    publisher.apply(&Step::Finalized { block: &at(6) }).await.unwrap();
    refused(&mut publisher, &Step::Retreat { to: (&at(4)).into() }, "no alarm").await;
    publisher.apply(&Step::Alarm { text: "a reorg below it" }).await.unwrap();
    let before = redis.dump().await;
    refused(&mut publisher, &Step::Retreat { to: (&at(7)).into() }, "finalized").await;
    for step in [Step::Gap { block: &block("9b", "8b", 0).link }, Step::Finalized { block: &at(7) }]
    {
        let error = publisher.apply(&step).await.unwrap_err();
        assert!(matches!(&error, StepError::Alarmed(text) if text.contains("below it")), "{error}");
    }
    assert_eq!(redis.dump().await, before);

    publisher.apply(&Step::Retreat { to: (&at(4)).into() }).await.unwrap();
    let held = redis.cursor().await;
    assert_eq!((held.finalized_number, held.finalized_hash), (4, Some(hash("4a"))));
    assert_eq!((held.alarm.as_str(), held.number), ("", 8));
    let marker = redis.markers().await.pop().unwrap();
    assert_eq!((marker.op, marker.number), (Op::Finalized, 4));
    assert_eq!(held, *publisher.cursor());
    assert_eq!(window(&redis).await, [4, 5, 6, 7, 8]);
    for block in published[4..].iter().rev() {
        publisher.take_back(block).await.unwrap();
    }
    refused(
        &mut publisher,
        &Step::Remove { block: &published[3], events: &Events::default() },
        "4 is finalized",
    )
    .await;
}
