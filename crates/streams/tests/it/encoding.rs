//! A stream has one encoding from its first entry to its last.

use std::time::Duration;

use ethhook_domain::{Cursor, Encoding, EntryId};
use ethhook_streams::{OpenError, Publisher, StepError};

use crate::chain::{Block, CHAIN, Fixture, add, add_all, block, first, named, open, remove};

/// ID, and the fields as Redis holds them.
type RawEntry = (String, Vec<(String, Vec<u8>)>);

fn packed() -> Cursor {
    first().encoded(Encoding::Msgpack)
}

#[tokio::test]
async fn a_packed_block_lands_is_read_and_taken_back() {
    let mut redis = Fixture::new().await;
    let mut publisher = open(&redis.streams, "one", Some(packed())).await.unwrap();
    let mut tail = redis.streams.tail(CHAIN, Some(EntryId::MIN), Duration::from_secs(5));
    let [a1, a2] = [block("1a", "0", 3), block("2a", "1a", 2)];
    add(&mut publisher, &a1).await;
    let published = add(&mut publisher, &a2).await;

    let mut wanted = [a1.events.as_slice(), a2.events.as_slice()].concat();
    let raw: Vec<RawEntry> = redis.ask("XRANGE events:7 - +").await;
    for ((_, fields), event) in raw.iter().zip(&wanted) {
        let mut value = Vec::new();
        event.write_packed(&mut value);
        assert_eq!(fields, &[("e".to_owned(), value)], "one field, all of the event");
    }
    let followed = tail.next(100).await.unwrap().into_iter().map(|(_, event)| event.unwrap());
    assert_eq!(followed.collect::<Vec<_>>(), wanted);
    let stored = redis.streams.block_events(CHAIN, &published).await.unwrap();
    assert_eq!(stored, *a2.events);

    // Taken back as read from the stream; the removed entries are packed as well.
    publisher.take_back(&published).await.unwrap();
    wanted.extend(a2.reversed().iter().cloned());
    let events: Vec<_> = redis.events().await.into_iter().map(|(_, event)| event).collect();
    assert_eq!(events, wanted);
    assert_eq!(redis.cursor().await.encoding, Encoding::Msgpack);
}

#[tokio::test]
async fn another_encoding_is_refused_and_nothing_changes() {
    for (holds, wanted) in
        [(Encoding::Fields, Encoding::Msgpack), (Encoding::Msgpack, Encoding::Fields)]
    {
        let mut redis = Fixture::new().await;
        let first = first().encoded(holds);
        let mut publisher = open(&redis.streams, "one", Some(first.clone())).await.unwrap();
        let published = add_all(&mut publisher, 1..=2, 3).await;
        publisher.release().await;
        let before = redis.dump().await;
        let error = open(&redis.streams, "one", Some(first.encoded(wanted))).await.unwrap_err();
        let told = error.to_string();
        assert!(matches!(error, OpenError::Encoding { .. }) && !error.is_retryable(), "{told}");
        for part in [
            format!("entries have encoding `{holds}`, STREAM_ENCODING is `{wanted}`"),
            format!("set it back to `{holds}`"),
            "`ethhook reset`".to_owned(),
        ] {
            assert!(told.contains(&part), "{part}: {told}");
        }
        assert_eq!(redis.dump().await, before);

        // A writer without a preference uses the stream's encoding.
        let streams = &redis.streams;
        let mut publisher = Publisher::open(streams, CHAIN, named("two"), None).await.unwrap();
        let Block { link, events } = block("2a", "1a", 3);
        assert_eq!(publisher.cursor().hash, Some(link.hash));
        remove(&mut publisher, &Block { link, events }, &published[1]).await.unwrap();
        let names: Vec<RawEntry> = redis.ask("XRANGE events:7 - +").await;
        let packed = names.iter().filter(|(_, fields)| fields[0].0 == "e").count();
        let all = if holds == Encoding::Msgpack { 9 } else { 0 };
        assert_eq!((names.len(), packed), (9, all));
    }
}

#[tokio::test]
async fn a_stream_that_changed_its_encoding_under_a_writer_moved() {
    let mut redis = Fixture::new().await;
    let mut publisher = open(&redis.streams, "one", Some(packed())).await.unwrap();
    add(&mut publisher, &block("1a", "0", 1)).await;
    redis.raw_hset("cursor:{events:7}", "encoding", "fields").await;
    let before = redis.dump().await;
    let error = publisher.apply(&block("2a", "1a", 1).add()).await.unwrap_err();
    assert!(matches!(error, StepError::Moved { .. }), "{error}");
    assert_eq!(redis.dump().await, before);
}
