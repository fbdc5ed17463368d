//! Steps sent before the previous ones are acknowledged. G3, G4, G5.

use std::pin::pin;
use std::time::Duration;

use ethhook_streams::{Outcome, Publisher, StepError};
use ethhook_testkit::replication::wait_until;
use futures_util::poll;
use tokio::time::{Instant, sleep};

use crate::chain::{Block, Fixture, add, block};

/// Sends `blocks` one after another, and returns their outcomes in that order, up to the first that is not in.
async fn send_all(publisher: &mut Publisher, blocks: &[Block]) -> Vec<Result<Outcome, StepError>> {
    for block in blocks {
        assert!(publisher.send(&block.add()), "it need not go alone");
    }
    let mut outcomes = Vec::new();
    while let Some(outcome) = publisher.next_outcome().await {
        outcomes.push(outcome);
    }
    outcomes
}

fn is_published(result: &Result<Outcome, StepError>) -> bool {
    matches!(result, Ok(Outcome::Published { .. }))
}

/// Whether the first of several steps failed with a retryable error.
fn failed_for_now(results: &[Result<Outcome, StepError>]) -> bool {
    matches!(results, [Err(error)] if error.is_retryable())
}

#[tokio::test]
async fn g3_blocks_that_are_sent_behind_each_other_come_in_their_order() {
    let redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    let first = block("1a", "0", 2);
    assert!(!publisher.send(&first.add()), "the first goes alone");
    add(&mut publisher, &first).await;

    // Some are sent whole, some in parts.
    let blocks = [block("2a", "1a", 1_300), block("3a", "2a", 0), block("4a", "3a", 505)];
    let results = send_all(&mut publisher, &blocks).await;
    assert!(results.len() == 3 && results.iter().all(is_published), "{results:?}");
    assert_eq!(publisher.cursor(), &redis.cursor().await);
    let numbers: Vec<_> = redis.markers().await.iter().map(|m| (m.seq, m.number)).collect();
    assert_eq!(numbers, [(1, 1), (2, 2), (3, 3), (4, 4)]);
    let heights: Vec<_> = redis.events().await.iter().map(|(_, e)| e.block_number).collect();
    assert!(heights.is_sorted() && heights.len() == 1_807);
    // And alone again.
    add(&mut publisher, &block("5a", "4a", 1)).await;
}

#[tokio::test]
async fn g5_nothing_gets_in_behind_a_block_that_was_refused() {
    let redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add(&mut publisher, &block("1a", "0", 1)).await;

    // The parent of 3x is not 2a; the parent of 4x is 3x.
    let blocks = [block("2a", "1a", 1), block("3x", "2x", 1), block("4x", "3x", 1)];
    let results = send_all(&mut publisher, &blocks).await;
    assert!(is_published(&results[0]), "{results:?}");
    assert_eq!(results[1..], [Err(StepError::NotIn)]);
    let refused = publisher.apply(&blocks[1].add()).await;
    assert!(matches!(refused, Err(StepError::Refused(_))), "{refused:?}");
    assert_eq!(publisher.cursor(), &redis.cursor().await);
    assert_eq!(redis.markers().await.len(), 2);
    add(&mut publisher, &block("3a", "2a", 1)).await;
}

#[tokio::test]
async fn g4_a_large_block_behind_one_that_was_refused_is_cut_short_and_leaves_nothing() {
    let redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add(&mut publisher, &block("1a", "0", 1)).await;
    let (refused, large) = (block("3x", "2x", 1), block("4x", "3x", 20_000));
    // The large step is dropped in the middle of its transaction.
    let results = send_all(&mut publisher, &[refused, large]).await;
    assert_eq!(results, [Err(StepError::NotIn)]);
    add(&mut publisher, &block("2a", "1a", 2)).await;
    let heights: Vec<_> = redis.events().await.iter().map(|(_, e)| e.block_number).collect();
    assert_eq!(heights, [1, 2, 2]);
    assert_eq!(publisher.cursor(), &redis.cursor().await);
}

#[tokio::test]
async fn nothing_is_applied_while_steps_are_on_the_wire() {
    let redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add(&mut publisher, &block("1a", "0", 1)).await;
    let (two, three) = (block("2a", "1a", 1), block("3a", "2a", 1));
    assert!(publisher.send(&two.add()));
    let refused = publisher.apply(&three.add()).await;
    assert!(matches!(refused, Err(StepError::Refused(_))), "{refused:?}");
    assert!(is_published(&publisher.next_outcome().await.unwrap()));
    add(&mut publisher, &three).await;
    assert_eq!(publisher.cursor(), &redis.cursor().await);
}

#[tokio::test]
async fn a_server_that_forgot_the_script_is_told_it_again() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add(&mut publisher, &block("1a", "0", 1)).await;
    redis.ask::<String>("SCRIPT FLUSH").await;
    let blocks = [block("2a", "1a", 1), block("3a", "2a", 1)];
    let results = send_all(&mut publisher, &blocks).await;
    assert!(failed_for_now(&results), "{results:?}");
    assert!(!publisher.send(&blocks[0].add()), "it goes alone");
    for block in &blocks {
        add(&mut publisher, block).await;
    }
    assert_eq!(redis.cursor().await.seq, 3);
}

#[tokio::test]
async fn g4_what_was_on_the_wire_when_redis_died_is_applied_again() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add(&mut publisher, &block("1a", "0", 1)).await;
    redis.server.kill();
    let blocks = [block("2a", "1a", 2), block("3a", "2a", 2)];
    let results = send_all(&mut publisher, &blocks).await;
    assert!(failed_for_now(&results), "{results:?}");
    redis.server.start().await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    for block in &blocks {
        while let Err(error) = publisher.apply(&block.add()).await {
            assert!(error.is_retryable() && Instant::now() < deadline, "{error}");
            sleep(Duration::from_millis(10)).await;
        }
    }
    assert_eq!(publisher.cursor(), &redis.cursor().await);
    assert_eq!(redis.events().await.len(), 5);
}

#[tokio::test]
async fn g4_a_step_that_was_cut_short_on_its_way_is_applied_again() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add(&mut publisher, &block("1a", "0", 1)).await;
    let before = redis.dump().await;
    // Of the first only some parts are sent; the second would follow it.
    let blocks = [block("2a", "1a", 3_000), block("3a", "2a", 3)];
    assert!(blocks.iter().all(|block| publisher.send(&block.add())));
    assert!(poll!(pin!(publisher.next_outcome())).is_pending());
    // MULTI, the opening and 1,000 entries have arrived.
    let arrived = async || {
        let clients: String = redis.server.ask("CLIENT LIST").await?;
        Ok(clients.contains(" multi=1001 "))
    };
    wait_until("two parts", arrived).await.unwrap();
    redis.ask::<u64>("CLIENT KILL TYPE normal SKIPME yes").await;
    let result = publisher.next_outcome().await.unwrap();
    assert!(failed_for_now(&[result]));
    assert!(publisher.next_outcome().await.is_none());
    assert_eq!(redis.dump().await, before);

    // A step applied now does not become part of the unfinished transaction either.
    for block in &blocks {
        add(&mut publisher, block).await;
    }
    assert_eq!(publisher.cursor(), &redis.cursor().await);
    assert_eq!(redis.events().await.len(), 3_004);
}

#[tokio::test]
async fn g4_a_call_that_was_dropped_half_way_leaves_the_publisher_usable() {
    let redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add(&mut publisher, &block("1a", "0", 1)).await;
    let large = block("2a", "1a", 3_000);
    for polls in 1..8 {
        let step = large.add();
        let mut call = Box::pin(publisher.apply(&step));
        for _ in 0..polls {
            assert!(poll!(&mut call).is_pending());
            tokio::task::yield_now().await;
        }
        drop(call);
        publisher.renew().await.unwrap();
    }
    add(&mut publisher, &large).await;
    assert_eq!(redis.events().await.len(), 3_001);
}
