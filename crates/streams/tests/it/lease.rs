//! Who may write: G5.

use std::time::Duration;

use ethhook_domain::Cursor;
use ethhook_streams::{
    Holder, LeaseError, OpenError, Publisher, ResetError, Streams, WriterOptions,
};
use tokio::time::{Instant, sleep};

use crate::chain::{CHAIN, Fixture, add, add_all, block, first, named, open};

async fn open_for(streams: &Streams, writer: &str, ttl: Duration) -> Result<Publisher, OpenError> {
    let options = WriterOptions { lease_ttl: ttl, ..named(writer) };
    Publisher::open(streams, CHAIN, options, Some(first())).await
}

async fn until_free(redis: &mut Fixture) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while redis.ask::<i64>("EXISTS lease:{events:7}").await == 1 {
        assert!(Instant::now() < deadline, "the lease does not expire");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn taking_the_lease_makes_the_cursor_and_raises_the_epoch() {
    let mut redis = Fixture::new().await;
    let begun = redis.publisher().await;
    let wanted = Cursor { writer: "one".into(), epoch: 1, ..first() };
    assert_eq!((begun.cursor(), &redis.cursor().await), (&wanted, &wanted));
    let ttl: i64 = redis.ask("PTTL lease:{events:7}").await;
    assert!((9_000..=10_000).contains(&ttl), "{ttl} ms");
    // A writer with the same id takes it back at once, and the existing cursor takes precedence
    // over the offered one.
    let other = Cursor { start_number: 500, ..first() };
    let again = open(&redis.streams, "one", Some(other)).await.unwrap();
    assert_eq!(again.cursor(), &Cursor { epoch: 2, ..wanted });
}

#[tokio::test]
async fn g5_another_instance_waits_for_the_lease_to_run_out() {
    let mut redis = Fixture::new().await;
    let mut one = open_for(&redis.streams, "one", Duration::from_millis(400)).await.unwrap();
    match open_for(&redis.streams, "two", Duration::from_secs(10)).await {
        Err(error @ OpenError::LeaseHeld(_)) => {
            assert!(error.is_retryable() && error.to_string().contains("`one`"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(redis.cursor().await.epoch, 1, "who is refused changes nothing");
    until_free(&mut redis).await;
    let mut two = open_for(&redis.streams, "two", Duration::from_secs(10)).await.unwrap();
    assert_eq!((two.cursor().epoch, two.cursor().writer.as_str()), (2, "two"));
    let lost = one.renew().await.unwrap_err();
    assert_eq!(lost, LeaseError::Lost { owner: "two".into(), epoch: 2 });
    two.renew().await.unwrap();
    // A writer that lost it cannot release it either.
    one.release().await;
    assert_eq!(redis.ask::<String>("GET lease:{events:7}").await, "two");
    two.release().await;
    assert_eq!(redis.ask::<i64>("EXISTS lease:{events:7}").await, 0);
    assert_eq!(
        open_for(&redis.streams, "one", Duration::from_secs(1)).await.unwrap().cursor().epoch,
        3
    );
}

#[tokio::test]
async fn a_lease_that_ran_out_is_renewed_if_nobody_took_it() {
    let mut redis = Fixture::new().await;
    let mut one = open_for(&redis.streams, "one", Duration::from_millis(50)).await.unwrap();
    add(&mut one, &block("1a", "0", 1)).await;
    until_free(&mut redis).await;
    one.renew().await.unwrap();
    assert_eq!(redis.cursor().await.epoch, 1);
    until_free(&mut redis).await;
    // Another writer had it in between, and it expired again: the epoch shows that.
    open_for(&redis.streams, "two", Duration::from_millis(50)).await.unwrap();
    until_free(&mut redis).await;
    let lost = one.renew().await.unwrap_err();
    assert_eq!(lost, LeaseError::Lost { owner: "two".into(), epoch: 2 });
    assert_eq!(redis.ask::<i64>("EXISTS lease:{events:7}").await, 0);
}

#[tokio::test]
async fn a_second_process_under_our_id_is_told_apart() {
    let mut redis = Fixture::new().await;
    let mut one = redis.publisher().await;
    let mut twin = redis.publisher().await;
    let lost = one.renew().await.unwrap_err();
    assert_eq!(lost, LeaseError::Lost { owner: "one".into(), epoch: 2 });
    one.release().await;
    assert_eq!(redis.ask::<String>("GET lease:{events:7}").await, "one", "it is the twin's");
    twin.renew().await.unwrap();
    // A lease in another name is not renewed, whatever the cursor says.
    redis.ask::<String>("SET lease:{events:7} two PX 10000").await;
    let lost = twin.renew().await.unwrap_err();
    assert_eq!(lost, LeaseError::Lost { owner: "two".into(), epoch: 2 });
}

#[tokio::test]
async fn a_chain_without_a_cursor_needs_one_to_begin_with() {
    let redis = Fixture::new().await;
    assert_eq!(open(&redis.streams, "one", None).await.unwrap_err(), OpenError::NoCursor);
    assert_eq!(redis.streams.cursor(CHAIN).await.unwrap(), None);
}

#[tokio::test]
async fn leftovers_without_a_cursor_are_refused_until_reset() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add_all(&mut publisher, 1..=2, 2).await;
    publisher.release().await;
    redis.ask::<i64>("DEL cursor:{events:7}").await;
    let (events, blocks) = ("events:7".to_owned(), "blocks:{events:7}".to_owned());
    for (left, gone) in [(vec![&events, &blocks], &events), (vec![&blocks], &blocks)] {
        let before = redis.dump().await;
        match open(&redis.streams, "one", Some(first())).await {
            Err(OpenError::Leftovers { keys }) => assert_eq!(keys.iter().collect::<Vec<_>>(), left),
            other => panic!("{other:?}"),
        }
        assert_eq!(redis.dump().await, before);
        redis.ask::<i64>(&format!("DEL {gone}")).await;
    }
    // Now only dedup records are left.
    for first in [None, Some(first())] {
        let error = open(&redis.streams, "one", first).await.unwrap_err();
        assert!(error.to_string().contains("seen:{events:7}:0x"), "{error}");
        assert!(error.to_string().contains("`ethhook reset`"), "{error}");
    }
    redis.ask::<String>("SET seen:{events:8}:other kept").await;
    redis.streams.reset(CHAIN).await.unwrap();
    let mut left: Vec<String> = redis.ask("KEYS *").await;
    left.sort();
    assert_eq!(left, ["reset:{events:7}", "seen:{events:8}:other"]);
    open(&redis.streams, "one", Some(first())).await.unwrap();
}

#[tokio::test]
async fn a_group_that_waits_for_the_first_block_is_no_leftover() {
    let mut redis = Fixture::new().await;
    redis.ask::<String>("XGROUP CREATE events:7 readers 0 MKSTREAM").await;
    let mut publisher = redis.publisher().await;
    add(&mut publisher, &block("1a", "0", 2)).await;
    let group = redis.streams.inventory(CHAIN).await.unwrap().groups.pop().unwrap();
    assert_eq!((group.name.as_str(), group.pending, group.lag), ("readers", 0, Some(2)));
}

#[tokio::test]
async fn g4_a_renewal_tells_that_acknowledged_steps_are_lost() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add_all(&mut publisher, 1..=3, 1).await;
    // As if its answer were lost: Redis is ahead of what the writer knows.
    redis.ask::<i64>("HINCRBY cursor:{events:7} seq 1").await;
    publisher.renew().await.unwrap();
    redis.ask::<i64>("HINCRBY cursor:{events:7} seq -2").await;
    let before: i64 = redis.ask("PTTL lease:{events:7}").await;
    let told = publisher.renew().await.unwrap_err();
    assert_eq!(told, LeaseError::RolledBack { held: 2, acknowledged: 3 });
    assert!(!told.is_retryable());
    assert!(redis.ask::<i64>("PTTL lease:{events:7}").await <= before);
}

#[tokio::test]
async fn reset_is_refused_while_anybody_writes() {
    let mut redis = Fixture::new().await;
    let mut publisher = redis.publisher().await;
    add_all(&mut publisher, 1..=3, 2).await;
    let before = redis.dump().await;
    match redis.streams.reset(CHAIN).await {
        Err(ResetError::LeaseHeld(Holder { owner, remaining })) => {
            assert!(owner == "one" && remaining.is_some());
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(redis.dump().await, before);
    let inventory = redis.streams.inventory(CHAIN).await.unwrap();
    let counted = (inventory.events_len, inventory.blocks_len, inventory.dedup_records);
    assert_eq!(counted, (6, 3, 3));
    publisher.release().await;
    assert_eq!(redis.streams.last_reset(CHAIN).await.unwrap(), None);
    redis.streams.reset(CHAIN).await.unwrap();
    let told = redis.streams.last_reset(CHAIN).await.unwrap();
    assert_eq!(redis.ask::<Vec<String>>("KEYS *").await, [redis.keys.reset.clone()]);
    // The text differs for each reset, and is kept for a day.
    redis.streams.reset(CHAIN).await.unwrap();
    let again = redis.streams.last_reset(CHAIN).await.unwrap();
    assert!(told.is_some() && again.is_some() && told != again, "{told:?} {again:?}");
    assert!((86_000..=86_400).contains(&redis.ask::<i64>("TTL reset:{events:7}").await));
}

#[tokio::test]
async fn reset_deletes_whatever_the_keys_hold() {
    let mut redis = Fixture::new().await;
    let keys = redis.keys.clone();
    for key in [&keys.lease, &keys.cursor, &keys.events, &keys.blocks] {
        redis.ask::<i64>(&format!("SADD {key} x")).await;
    }
    redis.streams.reset(CHAIN).await.unwrap();
    assert_eq!(redis.ask::<Vec<String>>("KEYS *").await, [keys.reset]);
}

#[tokio::test]
async fn a_cursor_or_a_key_that_is_not_ours_is_refused_by_name() {
    let mut redis = Fixture::new().await;
    redis.publisher().await;
    for (field, value, part) in
        [("schema", "2", "schema `2`"), ("encoding", "msgpack", "encoding `msgpack`")]
    {
        let held: String = redis.ask(&format!("HGET cursor:{{events:7}} {field}")).await;
        redis.raw_hset("cursor:{events:7}", field, value).await;
        let before = redis.dump().await;
        let error = open(&redis.streams, "one", Some(first())).await.unwrap_err();
        assert!(error.to_string().contains(part) && !error.is_retryable(), "{error}");
        assert_eq!(redis.dump().await, before);
        redis.raw_hset("cursor:{events:7}", field, &held).await;
    }
    let keys = redis.keys.clone();
    for key in [keys.lease, keys.cursor, keys.events, keys.blocks] {
        redis.ask::<i64>(&format!("DEL {key}")).await;
        redis.ask::<i64>(&format!("SADD {key} x")).await;
        let error = open(&redis.streams, "one", Some(first())).await.unwrap_err();
        assert!(error.to_string().contains(&format!("`{key}` holds a set")), "{error}");
        redis.ask::<i64>(&format!("DEL {key}")).await;
    }
}
