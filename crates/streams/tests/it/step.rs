//! The atomic step: G2, G4, G5.

use ethhook_domain::Op;
use ethhook_domain::{Cursor, Encoding, EntryId, cursor, event, marker};
use ethhook_streams::{Outcome, Standing, Step, StepError};
use redis::Value;

use crate::chain::{CHAIN, Fixture, add, block, hash, id, open, remove};

fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).unwrap(),
        other => panic!("{other:?} is no text"),
    }
}

/// IDs, names and values of a raw `XRANGE` answer.
fn raw_entries(value: Value) -> Vec<(String, Vec<(String, String)>)> {
    let Value::Array(entries) = value else { panic!("no array") };
    let entry = |value: Value| {
        let Value::Array(parts) = value else { panic!("no entry") };
        let Value::Array(fields) = &parts[1] else { panic!("no fields") };
        let pairs = fields.chunks(2).map(|p| (text(&p[0]), text(&p[1]))).collect();
        (text(&parts[0]), pairs)
    };
    entries.into_iter().map(entry).collect()
}

#[tokio::test]
async fn g4_a_block_lands_with_its_marker_dedup_record_and_cursor() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    let a1 = block("1a", "0", 3);
    let published = add(&mut publisher, &a1).await;

    let entries = raw_entries(redis.ask("XRANGE events:7 - +").await);
    assert_eq!(entries.len(), 3);
    for ((_, fields), wanted) in entries.iter().zip(a1.events.iter()) {
        let wanted: Vec<_> =
            event::FIELDS.iter().map(|n| (*n).to_owned()).zip(wanted.to_values()).collect();
        assert_eq!(*fields, wanted, "all fields, in the contract's order");
    }
    let first_id = published.first_id.unwrap();
    assert_eq!((first_id, published.last_id), (id(&entries[0].0), id(&entries[2].0)));

    let markers = raw_entries(redis.ask("XRANGE blocks:{events:7} - +").await);
    let names: Vec<_> = markers[0].1.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, marker::FIELDS);
    let marker = &redis.markers().await[0];
    assert_eq!((marker.seq, marker.op, marker.events), (1, Op::Add, 3));
    assert_eq!((marker.first_id, marker.last_id), (published.first_id, published.last_id));

    let seen = redis.keys.seen(a1.link.hash);
    let record: String = redis.ask(&format!("GET {seen}")).await;
    assert_eq!(record, format!("3 {first_id} {}", published.last_id));
    let ttl: i64 = redis.ask(&format!("TTL {seen}")).await;
    assert!((3_590..=3_600).contains(&ttl), "the record lives {ttl} s");

    let held = redis.cursor().await;
    assert_eq!(held, *publisher.cursor());
    assert_eq!((held.seq, held.number, held.hash), (1, 1, Some(a1.link.hash)));
    let mut names: Vec<String> = redis.ask("HKEYS cursor:{events:7}").await;
    names.sort();
    let mut wanted = cursor::FIELDS;
    wanted.sort_unstable();
    assert_eq!(names, wanted);
    assert_eq!(redis.events().await.into_iter().map(|(_, e)| e).collect::<Vec<_>>(), *a1.events);
}

#[tokio::test]
async fn a_block_without_events_leaves_a_marker_and_no_dedup_record() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add(&mut publisher, &block("1a", "0", 0)).await;
    let published = add(&mut publisher, &block("2a", "1a", 2)).await;
    add(&mut publisher, &block("3a", "2a", 0)).await;
    let markers = redis.markers().await;
    let ids: Vec<_> = markers.iter().map(|m| (m.first_id, m.last_id)).collect();
    let last = published.last_id;
    assert_eq!(ids, [(None, EntryId::MIN), (published.first_id, last), (None, last)]);
    let seen: Vec<String> = redis.ask("KEYS seen:*").await;
    assert_eq!(seen, [redis.keys.seen(hash("2a"))]);
}

#[tokio::test]
async fn g2_a_doubled_block_is_published_once() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    let (a1, a2, a3) = (block("1a", "0", 5), block("2a", "1a", 0), block("3a", "2a", 4));
    for block in [&a1, &a2, &a3] {
        add(&mut publisher, block).await;
        let before = redis.dump().await;
        let doubled = publisher.apply(&block.add()).await.unwrap();
        assert_eq!(doubled, Outcome::Duplicate { events: block.events.len() as u64 });
        assert_eq!(redis.dump().await, before);
    }
    // Even much later: the dedup record outlives the tip.
    assert_eq!(publisher.apply(&a1.add()).await.unwrap(), Outcome::Duplicate { events: 5 });
}

#[tokio::test]
async fn g2_a_chain_that_goes_a_b_a_publishes_a_twice() {
    let redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add(&mut publisher, &block("1a", "0", 1)).await;
    let (a, b) = (block("2a", "1a", 2), block("2b", "1a", 3));
    let published = add(&mut publisher, &a).await;
    remove(&mut publisher, &a, &published).await.unwrap();
    let published = add(&mut publisher, &b).await;
    remove(&mut publisher, &b, &published).await.unwrap();
    add(&mut publisher, &a).await;

    let logs: Vec<_> = redis
        .events()
        .await
        .into_iter()
        .map(|(_, e)| (e.block_hash, e.log_index, e.removed))
        .collect();
    let (one, a, b) = (hash("1a"), hash("2a"), hash("2b"));
    let wanted = [
        vec![(one, 0, false), (a, 0, false), (a, 1, false), (a, 1, true), (a, 0, true)],
        vec![(b, 0, false), (b, 1, false), (b, 2, false)],
        vec![(b, 2, true), (b, 1, true), (b, 0, true), (a, 0, false), (a, 1, false)],
    ];
    assert_eq!(logs, wanted.concat());
    let seqs: Vec<_> = redis.markers().await.iter().map(|m| m.seq).collect();
    assert_eq!(seqs, [1, 2, 3, 4, 5, 6]);
    let last = redis.markers().await.pop().unwrap();
    assert_eq!((last.op, last.parent_hash), (Op::Add, Some(one)));
}

#[tokio::test]
async fn taking_the_first_block_back_frees_the_parent() {
    let redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    let a = block("1a", "0", 2);
    let published = add(&mut publisher, &a).await;
    remove(&mut publisher, &a, &published).await.unwrap();
    let held = redis.cursor().await;
    assert_eq!((held.number, held.hash, held.next_number()), (0, None, 1));
    add(&mut publisher, &block("1b", "0b", 2)).await;
    assert_eq!(redis.cursor().await.hash, Some(hash("1b")));
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_changes_nothing() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    let (a1, a2) = (block("1a", "0", 2), block("2a", "1a", 2));
    let p1 = add(&mut publisher, &a1).await;
    let p2 = add(&mut publisher, &a2).await;
    publisher.apply(&Step::Finalized { block: &a1.link }).await.unwrap();
    let before = redis.dump().await;

    let (stranger, far) = (block("3b", "2b", 2), block("5a", "2a", 2));
    let above = block("3a", "2a", 0);
    let reversed1 = a1.reversed();
    let steps = [
        (stranger.add(), "its parent is"),
        (far.add(), "the next block is 3"),
        (Step::Remove { block: &p1, events: &reversed1 }, "the tip is"),
        (Step::Remove { block: &p2, events: &a2.events }, "is not part of it"),
        (Step::Remove { block: &p2, events: &reversed1 }, "is not part of it"),
        (Step::Finalized { block: &above.link }, "above the tip"),
        (Step::Finalized { block: &block("1b", "0", 0).link }, "is finalized"),
        (Step::Finalized { block: &block("0a", "0", 0).link }, "is finalized"),
    ];
    for (step, why) in &steps {
        match publisher.apply(step).await {
            Err(StepError::Refused(text)) => assert!(text.contains(why), "{text}"),
            other => panic!("{step:?}: {other:?}"),
        }
        assert_eq!(redis.dump().await, before, "{step:?}");
    }
    // G10: a final block is not taken back.
    remove(&mut publisher, &a2, &p2).await.unwrap();
    let refused = remove(&mut publisher, &a1, &p1).await.unwrap_err();
    assert!(matches!(&refused, StepError::Refused(text) if text.contains("1 is finalized")));
    assert!(!refused.is_retryable());
}

#[tokio::test]
async fn a_block_of_10_041_logs_is_one_step() {
    let redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    let large = block("1a", "0", 10_041);
    let published = add(&mut publisher, &large).await;
    assert_eq!(published.events, 10_041);
    let events = redis.streams.block_events(CHAIN, &published).await.unwrap();
    assert_eq!(events, *large.events);
    remove(&mut publisher, &large, &published).await.unwrap();
    assert_eq!(redis.streams.standing(CHAIN).await.unwrap().entries, 20_082);
}

#[tokio::test]
async fn g4_a_block_of_50_000_logs_is_one_step() {
    let redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    let published = add(&mut publisher, &block("1a", "0", 50_000)).await;
    assert_eq!(published.events, 50_000);
    assert_eq!(redis.streams.standing(CHAIN).await.unwrap().entries, 50_000);
    assert_eq!(redis.markers().await.len(), 1);
}

/// Total time that steps with entries have blocked Redis: `usec` of `EXEC` in `INFO commandstats`.
async fn held_micros(redis: &mut Fixture) -> u64 {
    let info: String = redis.ask("INFO commandstats").await;
    let micros = |line: &str| line.split_once("usec=")?.1.split(',').next()?.parse::<u64>().ok();
    info.lines().filter(|line| line.starts_with("cmdstat_exec:")).filter_map(micros).sum()
}

/// Publishes 100 blocks of 200 ERC-20 Transfers each, and one of 10,041; returns the bytes of Redis
/// that each Transfer takes in the stream, and outside it.
async fn bytes_of_a_transfer(encoding: Encoding, node_max_bytes: u64) -> (u64, u64) {
    let mut redis = Fixture::new().await;
    redis.ask::<()>(&format!("CONFIG SET stream-node-max-bytes {node_max_bytes}")).await;
    let first = Cursor::starting_at(15_537_394, None, "all".into()).encoded(encoding);
    let mut publisher = open(&redis.streams, "one", Some(first)).await.unwrap();
    let mut parent = "0".to_owned();
    for n in 15_537_394..15_537_494 {
        let name = format!("{n}a");
        add(&mut publisher, &block(&name, &parent, 200)).await;
        parent = name;
    }
    let Standing { entries: len, bytes, .. } = redis.streams.standing(CHAIN).await.unwrap();
    let mut beside = 0;
    let others: Vec<String> = redis.ask("KEYS *:{events:7}*").await;
    for key in others {
        beside += redis.ask::<u64>(&format!("MEMORY USAGE {key}")).await;
    }
    let small = held_micros(&mut redis).await;
    add(&mut publisher, &block("15537494a", &parent, 10_041)).await;
    let large = held_micros(&mut redis).await - small;
    println!(
        "{encoding}, stream nodes of {node_max_bytes}: {} B an event, {:.1} B beside it (markers, \
         dedup, cursor, at 200 events a block); Redis held {} us by 200 events, {large} us by 10,041",
        bytes / len,
        beside as f64 / len as f64,
        small / 101,
    );
    (bytes / len, beside / len)
}

#[tokio::test]
async fn an_erc_20_transfer_takes_less_than_540_bytes_and_280_packed() {
    // 4,096 is Redis' default. Each bound is a margin above what was measured on Redis 7.0.
    for (encoding, node_max_bytes, bound) in [
        (Encoding::Fields, 4_096, 640),
        (Encoding::Fields, 16_384, 540),
        (Encoding::Msgpack, 4_096, 310),
        (Encoding::Msgpack, 16_384, 280),
    ] {
        let (bytes, beside) = bytes_of_a_transfer(encoding, node_max_bytes).await;
        assert!(bytes < bound, "{bytes} bytes an event in {encoding}");
        assert!(beside < 3, "{beside} bytes an event beside the stream");
    }
}
