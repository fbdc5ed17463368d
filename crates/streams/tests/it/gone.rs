//! A stream that was deleted under the cursor: the chain stops instead of losing entries silently. G1.

use ethhook_domain::Encoding;
use ethhook_streams::{
    OpenError, Outcome, Publisher, ReadError, ReplayError, ReplaySpec, Step, StepError,
};

use crate::chain::{CHAIN, Fixture, add, add_all, block, first, open, remove};

/// Checks that every step and a new session say `text`, and that none of them changes anything. The tip is block `3a`
/// with two events.
async fn everything_says(redis: &mut Fixture, publisher: &mut Publisher, text: &str) {
    let before = redis.dump().await;
    let tip = publisher.cursor().clone();
    let three = block("3a", "2a", 2);
    let (four, empty) = (block("4a", "3a", 2), block("4b", "3a", 0));
    for step in [
        four.add(),
        empty.add(),
        three.add(), // as if its answer had been lost
        Step::Finalized { block: &block("1a", "0", 2).link },
        Step::Gap { block: &block("9a", "8a", 0).link },
        Step::Alarm { text: "x" },
    ] {
        let told = publisher.apply(&step).await;
        assert_eq!(told, Err(StepError::Inconsistent(text.to_owned())), "{step:?}");
    }
    assert_eq!(publisher.cursor(), &tip);
    let error = open(&redis.streams, "one", Some(first())).await.unwrap_err();
    assert_eq!(error, OpenError::Inconsistent(text.to_owned()));
    assert_eq!(error.to_string(), format!("{text}: `ethhook reset` starts the chain over"));
    assert!(!error.is_retryable());
    assert_eq!(redis.dump().await, before);
}

#[tokio::test]
async fn g1_a_stream_that_was_deleted_stops_the_chain() {
    for key in ["events:7", "blocks:{events:7}"] {
        let mut redis = Fixture::new().await;
        let mut publisher = redis.publisher().await;
        let published = add_all(&mut publisher, 1..=3, 2).await;
        let tip = published.last().unwrap();
        redis.ask::<u64>(&format!("DEL {key}")).await;
        let text = format!("the stream {key} is gone, although the cursor is at seq 3");
        everything_says(&mut redis, &mut publisher, &text).await;
        // Sent behind others: with a reply, and quietly.
        let (empty, four) = (block("4b", "3a", 0), block("4a", "3a", 2));
        assert!(publisher.send(&empty.add()) && publisher.send(&four.add()));
        let told = publisher.next_outcome().await;
        assert!(matches!(&told, Some(Err(StepError::Inconsistent(text))) if text.contains(key)));
        assert!(publisher.send(&four.add()));
        assert_eq!(publisher.next_outcome().await, Some(Err(StepError::NotIn)));
        let told = remove(&mut publisher, &block("3a", "2a", 2), tip).await;
        assert!(matches!(told, Err(StepError::Inconsistent(_))), "{told:?}");

        // A consumer that finds no group creates it again, and with it an empty stream.
        redis.ask::<String>(&format!("XGROUP CREATE {key} readers 0 MKSTREAM")).await;
        everything_says(&mut redis, &mut publisher, &text).await;
        if key.starts_with("blocks") {
            let cursor = redis.cursor().await;
            for told in [
                redis.streams.window(CHAIN, &cursor).await,
                redis.streams.kept_blocks(CHAIN, &cursor).await,
            ] {
                let is_told =
                    matches!(&told, Err(ReadError::Inconsistent(text)) if text.contains(key));
                assert!(is_told, "{told:?}");
            }
        }

        publisher.release().await;
        redis.streams.reset(CHAIN).await.unwrap();
        let mut publisher = redis.publisher().await;
        add_all(&mut publisher, 1..=2, 2).await;
    }
}

#[tokio::test]
async fn g1_a_newest_marker_that_is_not_the_cursors_stops_the_chain() {
    for (seq, found) in [(3, "seq 2"), (4, "seq 3"), (3, "foreign")] {
        let mut redis = Fixture::new().await;
        let mut publisher = redis.publisher().await;
        add_all(&mut publisher, 1..=3, 2).await;
        let found = match found {
            "seq 2" => {
                redis.lose_newest_marker().await;
                "marker of blocks:{events:7} has seq 2".to_owned()
            }
            "seq 3" => {
                redis.raw_hset("cursor:{events:7}", "seq", "4").await;
                "marker of blocks:{events:7} has seq 3".to_owned()
            }
            _ => {
                let id: String = redis.ask("XADD blocks:{events:7} * foo bar").await;
                format!("entry of blocks:{{events:7}}, {id}, is no marker (XDEL removes it)")
            }
        };
        let text = format!("the newest {found}, although the cursor is at seq {seq}");
        everything_says(&mut redis, &mut publisher, &text).await;
    }
}

#[tokio::test]
async fn a_replayed_stream_that_is_deleted_meanwhile_is_not_written_any_more() {
    let mut redis = Fixture::new().await;
    // A consumer may have made its group first.
    redis.ask::<String>("XGROUP CREATE history g 0 MKSTREAM").await;
    let (filter, encoding) = ("all".to_owned(), Encoding::Fields);
    let spec = ReplaySpec { chain: CHAIN, from: 1, filter, encoding };
    let mut replay = redis.streams.replay_into("history", spec.clone()).await.unwrap();
    let [one, two, three] = [("1a", "0", 0), ("2a", "1a", 2), ("3a", "2a", 2)]
        .map(|(name, parent, events)| block(name, parent, events));
    replay.append(&one.link, &one.events).await.unwrap();
    redis.ask::<u64>("DEL history").await; // it had no entries yet
    replay.append(&two.link, &two.events).await.unwrap();
    redis.ask::<u64>("DEL history").await;
    let (stream, position) = ("history".to_owned(), "replay:{history}".to_owned());
    let gone = ReplayError::Gone { stream, position };
    let told = replay.append(&three.link, &three.events).await;
    assert_eq!(told, Err(gone.clone()));
    let told = redis.streams.replay_into("history", spec.clone()).await;
    assert_eq!(told.err(), Some(gone));
    redis.ask::<String>("XADD history * a b").await;
    redis.ask::<u64>("DEL replay:{history}").await;
    let told = redis.streams.replay_into("history", spec).await;
    assert_eq!(told.err(), Some(ReplayError::Foreign("history".to_owned())));
}

#[tokio::test]
async fn a_stream_that_never_had_events_or_has_none_left_is_not_gone() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    // No events yet: there may be no stream, or one that a group created and somebody deleted.
    add_all(&mut publisher, 1..=2, 0).await;
    assert_eq!(redis.ask::<u64>("EXISTS events:7").await, 0);
    redis.ask::<String>("XGROUP CREATE events:7 readers 0 MKSTREAM").await;
    let mut publisher = redis.publisher().await;
    add_all(&mut publisher, 3..=4, 0).await;
    redis.ask::<u64>("DEL events:7").await;
    let mut publisher = redis.publisher().await;
    add_all(&mut publisher, 5..=6, 0).await;
    add_all(&mut publisher, 7..=7, 2).await;
    assert!(publisher.send(&block("8a", "7a", 2).add()));
    let sent = publisher.next_outcome().await;
    assert!(matches!(sent, Some(Ok(Outcome::Published { events: 2, .. }))), "{sent:?}");

    // Retention may leave an empty stream, and the newest marker.
    redis.ask::<u64>("XTRIM events:7 MAXLEN 0").await;
    redis.ask::<u64>("XTRIM blocks:{events:7} MAXLEN 1").await;
    add_all(&mut publisher, 9..=9, 0).await;
    let mut publisher = redis.publisher().await;
    add_all(&mut publisher, 10..=11, 2).await;
    assert_eq!(redis.events().await.len(), 4);
}

#[tokio::test]
async fn a_chain_that_was_opened_and_has_no_block_yet_has_no_streams() {
    let redis = Fixture::new().await;
    for _ in 0..2 {
        redis.publisher().await;
    }
    let mut publisher = redis.publisher().await;
    publisher.apply(&Step::Alarm { text: "" }).await.unwrap();
    add(&mut publisher, &block("1a", "0", 1)).await;
}
