//! A user who lacks a right gets no lease; one who loses a right leaves no step half-written.

use ethhook_streams::{FailureKind, OpenError, StepError};

use crate::chain::{Fixture, add, add_all, block, first, open, remove};

#[tokio::test]
async fn a_user_who_may_not_write_a_key_gets_no_lease() {
    let mut redis = Fixture::new().await;
    let users = [
        ("+@all ~lease:* ~cursor:* ~events:* ~seen:* ~aside:*", "blocks"),
        ("+@all ~lease:* ~cursor:* ~blocks:* ~events:* ~aside:*", "seen"),
        ("+@all ~lease:* ~cursor:* ~blocks:* ~events:* ~seen:*", "aside"),
        // Rights on all keys, but the command only on some of them: without a test beforehand, a
        // step would fail in the middle.
        ("~* +@all -xadd (+@all ~events:*)", "XADD blocks"),
        ("~* +@all -xadd (+@all ~blocks:*)", "XADD events"),
        ("~* +@all -rename", "RENAME"),
        ("~* +@all -xdel", "XDEL"),
        ("~* +@all -hdel", "HDEL"),
        ("~* +@all -set (+@all ~lease:*)", "SET seen"),
        ("~* +@all -del (+@all ~lease:*)", "DEL seen"),
    ];
    for (rights, missing) in users {
        let streams = redis.as_user(rights).await;
        let error = open(&streams, "one", Some(first())).await.unwrap_err();
        assert!(
            matches!(error, OpenError::Redis(_)) && !error.is_retryable(),
            "{missing}: {error}"
        );
        assert_eq!(redis.dump().await, Vec::<String>::new(), "{missing}");
    }
}

/// Rights to take away, and how they are given back: every command of the script that applies a step, and one on some
/// keys.
const RIGHTS: [(&str, &str); 15] = [
    ("-del", "+del"),
    ("-exists", "+exists"),
    ("-hdel", "+hdel"),
    ("-hgetall", "+hgetall"),
    ("-hmget", "+hmget"),
    ("-hset", "+hset"),
    ("-rename", "+rename"),
    ("-set", "+set"),
    ("-type", "+type"),
    ("-xadd", "+xadd"),
    ("-xdel", "+xdel"),
    ("-xlen", "+xlen"),
    ("-xrange", "+xrange"),
    ("-xrevrange", "+xrevrange"),
    ("-xadd (+@all ~events:* ~aside:*)", "clearselectors +xadd"),
];

#[tokio::test]
async fn g4_a_right_that_is_taken_away_meanwhile_leaves_no_step_half_written() {
    for (right, back) in RIGHTS {
        let mut redis = Fixture::new().await;
        let streams = redis.as_user("~* &* +@all").await;
        let mut publisher = open(&streams, "one", Some(first())).await.unwrap();
        let tip = add_all(&mut publisher, 1..=2, 3).await.pop().unwrap();
        let (two, three, empty) =
            (block("2a", "1a", 3), block("3a", "2a", 3), block("3b", "2a", 0));
        redis.ask::<String>(&format!("ACL SETUSER poor {right}")).await;
        let before = redis.dump().await;
        for _ in 0..2 {
            let told = publisher.apply(&three.add()).await.unwrap_err();
            let is_denied = matches!(&told, StepError::Redis(f) if f.kind == FailureKind::Denied);
            assert!(is_denied, "{right}: {told}");
            let told = remove(&mut publisher, &two, &tip).await;
            assert!(told.is_err(), "{right}: {told:?}");
            // Quietly, if it may be sent behind others.
            if publisher.send(&three.add()) {
                assert!(publisher.next_outcome().await.unwrap().is_err(), "{right}");
            }
            assert_eq!(redis.dump().await, before, "{right}");
        }
        // A block without events needs fewer commands.
        let told = publisher.apply(&empty.add()).await;
        redis.ask::<String>(&format!("ACL SETUSER poor {back}")).await;
        let (cursor, newest) = (redis.cursor().await, redis.markers().await.pop().unwrap());
        let expected = if told.is_ok() { (3, empty.link.hash) } else { (2, two.link.hash) };
        assert_eq!((cursor.seq, cursor.hash), (expected.0, Some(expected.1)), "{right}");
        assert_eq!((newest.seq, newest.hash), expected, "{right}");
        if told.is_err() {
            assert_eq!(redis.dump().await, before, "{right}");
            add(&mut publisher, &three).await;
        }
    }
}
