//! Reading back: the window after reorgs, events by block, the tail.

use std::time::{Duration, Instant};

use ethhook_domain::{EntryId, Marker, Op, Proof};
use ethhook_streams::{GroupReader, PublishedBlock, Publisher, ReadError, Step};

use crate::chain::{Block, CHAIN, Fixture, add, add_all, block, hash, remove};

/// The window's blocks in order, each by its hash.
async fn window(redis: &Fixture) -> Vec<PublishedBlock> {
    redis.streams.window(CHAIN, &redis.cursor().await).await.unwrap()
}

fn names(blocks: &[PublishedBlock]) -> Vec<alloy_primitives::B256> {
    blocks.iter().map(|published| published.block.hash).collect()
}

#[tokio::test]
async fn the_window_is_the_canonical_chain_after_reorgs() {
    let redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    assert_eq!(window(&redis).await, []);
    let mut stack: Vec<(Block, PublishedBlock)> = Vec::new();
    // Each word adds a block (`3b`, with the tip as parent) or takes the tip back (`-`).
    for word in "1a 2a 3a - - 2b 3b 4b - - - - 1c 2c 3c - 3a - 3c 4c".split(' ') {
        if word == "-" {
            let (block, published) = stack.pop().unwrap();
            remove(&mut publisher, &block, &published).await.unwrap();
        } else {
            let parent = stack.last().map_or(hash("0"), |(block, _)| block.link.hash);
            let mut block = block(word, "0", stack.len() as u64);
            block.link.parent_hash = parent;
            let published = add(&mut publisher, &block).await;
            stack.push((block, published));
        }
        let wanted: Vec<_> = stack.iter().map(|(_, published)| published.clone()).collect();
        assert_eq!(window(&redis).await, wanted, "after {word}");
    }
    assert_eq!(names(&window(&redis).await), ["1c", "2c", "3c", "4c"].map(hash));
    for (block, published) in &stack {
        assert_eq!(redis.streams.block_events(CHAIN, published).await.unwrap(), *block.events);
    }
}

#[tokio::test]
async fn the_window_begins_at_the_finalized_block() {
    let redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add_all(&mut publisher, 1..=1_300, 0).await;
    assert_eq!(window(&redis).await.len(), 1_300, "longer than a batch of markers");
    publisher.apply(&Step::Finalized { block: &block("1290a", "1289a", 0).link }).await.unwrap();
    let blocks = window(&redis).await;
    assert_eq!((blocks.len(), blocks[0].block.number), (11, 1_290));
    assert_eq!(blocks[10].block.number, 1_300);
}

#[tokio::test]
async fn markers_that_contradict_the_cursor_are_told() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add_all(&mut publisher, 1..=3, 1).await;
    let cursor = redis.cursor().await;
    let mut older = cursor.clone();
    older.seq -= 1;
    older.number -= 1;
    older.hash = Some(hash("2a"));
    assert_eq!(redis.streams.window(CHAIN, &older).await.unwrap_err(), ReadError::Moved);

    redis.ask::<i64>("XTRIM blocks:{events:7} MAXLEN 2").await;
    let error = redis.streams.window(CHAIN, &cursor).await.unwrap_err();
    assert!(
        matches!(&error, ReadError::Inconsistent(text) if text.contains("not final")),
        "{error}"
    );
    let missing = Marker {
        seq: 4,
        op: Op::Add,
        number: 5,
        hash: hash("5a"),
        parent_hash: Some(hash("4a")),
        timestamp: 0,
        events: 0,
        first_id: None,
        last_id: EntryId::MIN,
        proof: Proof::Bloom,
        filter: "all".into(),
    };
    let mut command = redis::cmd("XADD");
    command.arg("blocks:{events:7}").arg("*");
    for (name, value) in ethhook_domain::marker::FIELDS.iter().zip(missing.to_values()) {
        command.arg(*name).arg(value);
    }
    command.exec_async(&mut redis.raw).await.unwrap();
    let error = redis.streams.window(CHAIN, &cursor).await.unwrap_err();
    assert!(
        matches!(&error, ReadError::Inconsistent(text) if text.contains("expected")),
        "{error}"
    );
}

#[tokio::test]
async fn a_block_with_an_entry_missing_or_foreign_is_told() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    let published = add_all(&mut publisher, 1..=2, 3).await;
    let whole = redis.streams.block_events(CHAIN, &published[0]).await.unwrap();
    assert_eq!(whole.len(), 3);
    let last_id = published[1].last_id;
    let both = PublishedBlock { last_id, events: 6, ..published[0].clone() };
    assert!(matches!(
        redis.streams.block_events(CHAIN, &both).await,
        Err(ReadError::Inconsistent(_))
    ));
    redis.ask::<i64>(&format!("XDEL events:7 {}", published[0].last_id)).await;
    assert!(matches!(
        redis.streams.block_events(CHAIN, &published[0]).await,
        Err(ReadError::Inconsistent(_))
    ));
    redis.ask::<String>("XADD events:7 * foreign entry").await;
    let after = redis.streams.events(CHAIN, published[1].last_id, 10).await.unwrap();
    let [(_, Err(error))] = &after[..] else { panic!("{after:?}") };
    assert_eq!(error.to_string(), "field `chain_id` is missing");
}

#[tokio::test]
async fn pages_join_without_a_hole() {
    let redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add_all(&mut publisher, 1..=5, 7).await;
    let (mut after, mut pages) = (EntryId::MIN, Vec::new());
    loop {
        let page = redis.streams.events(CHAIN, after, 4).await.unwrap();
        let Some((last, _)) = page.last() else { break };
        after = *last;
        pages.extend(page.into_iter().map(|(id, event)| (id, event.unwrap())));
    }
    assert_eq!(pages, redis.events().await);
    assert_eq!(pages.len(), 35);
}

async fn next_ids(tail: &mut ethhook_streams::Tail) -> Vec<EntryId> {
    tail.next(100).await.unwrap().into_iter().map(|(id, _)| id).collect()
}

#[tokio::test]
async fn the_tail_waits_longer_than_an_answer_may_take() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    redis.hurry(Duration::from_millis(200));
    let mut tail = redis.streams.tail(CHAIN, None, Duration::from_millis(600));
    assert_eq!(next_ids(&mut tail).await, []);
    // Added between two reads, and before the stream exists: not missed.
    let a = add(&mut publisher, &block("1a", "0", 2)).await;
    assert_eq!(next_ids(&mut tail).await, [a.first_id.unwrap(), a.last_id]);
    let a2 = block("2a", "1a", 1);
    let (ids, b) = tokio::join!(next_ids(&mut tail), add(&mut publisher, &a2));
    assert_eq!(ids, [b.last_id]);
    let mut all = redis.streams.tail(CHAIN, Some(EntryId::MIN), Duration::from_millis(100));
    assert_eq!(next_ids(&mut all).await.len(), 3);
}

#[tokio::test]
async fn the_tail_goes_on_after_a_restart() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add(&mut publisher, &block("1a", "0", 1)).await;
    let mut tail = redis.streams.tail(CHAIN, Some(EntryId::MIN), Duration::from_millis(100));
    assert_eq!(next_ids(&mut tail).await.len(), 1);
    redis.server.kill();
    assert!(tail.next(10).await.unwrap_err().is_retryable());
    redis.server.start().await.unwrap();
    // `everysec` may have lost the block; the writer detects that itself.
    let mut publisher: Publisher = redis.publisher().await;
    let next = publisher.cursor().next_number();
    let b = block(&format!("{next}a"), &format!("{}a", next - 1), 1);
    let b = add(&mut publisher, &b).await;
    assert_eq!(next_ids(&mut tail).await.last(), Some(&b.last_id));
}

#[tokio::test]
async fn a_group_reader_is_given_again_what_a_failure_left_open() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add_all(&mut publisher, 1..=1, 12).await;
    redis.ask::<String>("XGROUP CREATE events:7 g 0").await;
    let wait = Duration::from_millis(50);
    let mut reader = redis.streams.group_reader(CHAIN, "g", "c", wait);
    let first = given(&mut reader).await;
    redis.ask::<i64>("CLIENT KILL TYPE normal SKIPME yes").await;
    assert!(reader.acknowledge(&first).await.is_err(), "the connection is cut");
    assert_eq!(given(&mut reader).await, first);
    reader.acknowledge(&first).await.unwrap();
    // Twelve entries in one millisecond: their IDs differ in length.
    let mut rest = Vec::new();
    while rest.len() < 7 {
        let next = given(&mut reader).await;
        reader.acknowledge(&next).await.unwrap();
        rest.extend(next);
    }
    let all: Vec<_> = redis.events().await.into_iter().map(|(id, _)| id).collect();
    assert_eq!([first, rest].concat(), all);
}

#[tokio::test]
async fn a_group_reader_is_given_what_was_claimed_for_it() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add_all(&mut publisher, 1..=1, 4).await;
    redis.ask::<String>("XGROUP CREATE events:7 g 0").await;
    let wait = Duration::from_millis(50);
    let mut reader = redis.streams.group_reader(CHAIN, "g", "c", wait);
    redis.ask::<redis::Value>("XREADGROUP GROUP g dead COUNT 2 STREAMS events:7 >").await;
    let rest = given(&mut reader).await;
    reader.acknowledge(&rest).await.unwrap();
    assert_eq!((rest.len(), reader.next(5).await.unwrap().len()), (2, 0));
    redis.ask::<redis::Value>("XAUTOCLAIM events:7 g c 0 0").await;
    let claimed = given(&mut reader).await;
    let all: Vec<_> = redis.events().await.into_iter().map(|(id, _)| id).collect();
    assert_eq!([claimed, rest].concat(), all);
}

#[tokio::test]
async fn a_name_that_would_control_a_terminal_is_shown_escaped() {
    let redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add_all(&mut publisher, 1..=1, 1).await;
    let mut connection = redis.server.connection().await.unwrap();
    let mut create = redis::cmd("XGROUP");
    create.arg("CREATE").arg("events:7").arg("x\nAll is well.\u{1b}[2J é").arg("0");
    create.exec_async(&mut connection).await.unwrap();
    let standing = redis.streams.standing(CHAIN).await.unwrap();
    assert_eq!(standing.groups[0].group, r"x\nAll is well.\u{1b}[2J é");
}

/// The IDs of the next entries, at most 5.
async fn given(reader: &mut GroupReader) -> Vec<EntryId> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let events = reader.next(5).await.unwrap();
        if !events.is_empty() {
            return events.into_iter().map(|(id, _)| id).collect();
        }
        assert!(Instant::now() < deadline, "nothing is given");
    }
}
