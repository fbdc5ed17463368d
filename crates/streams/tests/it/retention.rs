//! What is removed from the streams, and what must not be: G8.

use std::time::Duration;

use ethhook_streams::{Memory, Publisher, RetentionPolicy, Standing, Step, Swept};
use tokio::time::{Instant, sleep};

use crate::chain::{CHAIN, Fixture, add, add_all, block, id};

const HOUR: Duration = Duration::from_secs(3_600);

/// Nothing is too old and the cap is never reached.
fn keep_all() -> RetentionPolicy {
    RetentionPolicy {
        keep: HOUR,
        max_bytes: u64::MAX,
        memory: Memory::default(),
        redis_refuses_steps: false,
        following_head: true,
    }
}

fn keep_none() -> RetentionPolicy {
    RetentionPolicy { keep: Duration::ZERO, ..keep_all() }
}

/// Blocks `1a ..= <n>a` with `events` each; all except the last `open` of them are final.
async fn chain(redis: &mut Fixture, n: u64, events: u64, open: u64) -> Publisher {
    let mut publisher = redis.publisher().await;
    add_all(&mut publisher, 1..=n, events).await;
    let last = block(&format!("{}a", n - open), &format!("{}a", n - open - 1), 0);
    publisher.apply(&Step::Finalized { block: &last.link }).await.unwrap();
    // All entries are now older than the current time.
    pass(redis, 2).await;
    publisher
}

/// Waits until Redis' clock has advanced by `wait_ms`.
async fn pass(redis: &mut Fixture, wait_ms: u64) {
    let millis = |(seconds, micros): (u64, u64)| seconds * 1_000 + micros / 1_000;
    let before = millis(redis.ask("TIME").await);
    let deadline = Instant::now() + Duration::from_secs(10);
    while millis(redis.ask("TIME").await) < before + wait_ms {
        assert!(Instant::now() < deadline, "Redis' clock stands still");
        sleep(Duration::from_millis(1)).await;
    }
}

async fn sweep(redis: &Fixture, policy: &RetentionPolicy) -> Swept {
    redis.streams.sweep(CHAIN, policy).await.unwrap()
}

/// The IDs of all entries.
async fn entry_ids(redis: &Fixture) -> Vec<String> {
    redis.events().await.into_iter().map(|(id, _)| id.to_string()).collect()
}

/// Height of the oldest block that still has an entry, and how many entries there are.
async fn rest(redis: &Fixture) -> (u64, usize) {
    let events = redis.events().await;
    (events.first().map_or(0, |(_, event)| event.block_number), events.len())
}

/// Every entry has its marker, every block above the oldest is complete, and `seq` has no gaps.
async fn check_whole(redis: &Fixture) {
    let (events, markers) = (redis.events().await, redis.markers().await);
    let seqs: Vec<_> = markers.iter().map(|m| m.seq).collect();
    assert_eq!(seqs, (seqs[0]..=redis.cursor().await.seq).collect::<Vec<_>>());
    let (oldest, _) = rest(redis).await;
    for marker in markers.iter().filter(|m| m.op == ethhook_domain::Op::Add) {
        let found = events.iter().filter(|(_, e)| e.block_hash == marker.hash).count() as u64;
        let whole = found == marker.events;
        assert!(whole || marker.number == oldest, "block {} has {found}", marker.number);
    }
    let known = |hash| markers.iter().any(|m| m.hash == hash);
    assert!(events.iter().all(|(_, e)| known(e.block_hash)), "an entry without its marker");
}

#[tokio::test]
async fn what_is_old_goes_and_what_is_young_stays() {
    let mut redis = Fixture::new().await;
    let mut publisher = chain(&mut redis, 100, 20, 0).await;
    pass(&mut redis, 3_000).await;
    add_all(&mut publisher, 101..=110, 20).await;
    let last = block("110a", "109a", 0);
    publisher.apply(&Step::Finalized { block: &last.link }).await.unwrap();
    let policy = RetentionPolicy { keep: Duration::from_millis(2_500), ..keep_all() };
    let swept = sweep(&redis, &policy).await;
    let (oldest, entries) = rest(&redis).await;
    // Whole nodes only: a few entries of block 100 may share one with block 101.
    assert!((100..=101).contains(&oldest), "the oldest entry is of block {oldest}");
    assert_eq!(swept.trimmed_entries, 2_200 - entries as u64);
    assert!((99..=101).contains(&swept.trimmed_markers), "{swept:?}");
    assert_eq!((swept.len, swept.held_by_group), (entries as u64, None));
    check_whole(&redis).await;
}

#[tokio::test]
async fn g8_nothing_above_finalized_goes() {
    let mut redis = Fixture::new().await;
    let policy = RetentionPolicy { max_bytes: 0, ..keep_none() };
    assert_eq!(sweep(&redis, &policy).await, Swept::default());
    let mut publisher = redis.publisher().await;
    add_all(&mut publisher, 1..=50, 20).await;
    pass(&mut redis, 2).await;
    assert_eq!(sweep(&redis, &policy).await.trimmed_entries, 0, "nothing is final yet");
    for boundary in [10, 30] {
        let (name, parent) = (format!("{boundary}a"), format!("{}a", boundary - 1));
        let final_block = block(&name, &parent, 0).link;
        publisher.apply(&Step::Finalized { block: &final_block }).await.unwrap();
        sweep(&redis, &policy).await;
        let (oldest, entries) = rest(&redis).await;
        assert!(oldest == boundary || oldest == boundary + 1, "oldest {oldest}");
        assert!(entries as u64 >= (50 - boundary) * 20, "{entries}");
        check_whole(&redis).await;
        let window = redis.streams.window(CHAIN, publisher.cursor()).await.unwrap();
        let numbers: Vec<_> = window.iter().map(|b| b.block.number).collect();
        let begins = numbers[0];
        assert!(begins == boundary || begins == boundary + 1);
        assert_eq!(numbers, (begins..=50).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn g8_the_newest_marker_stays_with_an_empty_stream() {
    let mut redis = Fixture::new().await;
    let publisher = chain(&mut redis, 40, 0, 0).await;
    let swept = sweep(&redis, &keep_none()).await;
    assert_eq!(swept.trimmed_markers, 40);
    assert_eq!(redis.markers().await.last().unwrap().seq, publisher.cursor().seq);
    let mut publisher = publisher;
    add(&mut publisher, &block("41a", "40a", 3)).await;
    check_whole(&redis).await;
}

#[tokio::test]
async fn the_byte_cap_takes_the_oldest_before_their_time() {
    let mut redis = Fixture::new().await;
    chain(&mut redis, 200, 20, 10).await;
    let bytes = redis.streams.standing(CHAIN).await.unwrap().bytes;
    let policy = RetentionPolicy { max_bytes: bytes / 2, ..keep_all() };
    let mut swept = sweep(&redis, &policy).await;
    let slack = 16 * 1024;
    assert!(swept.bytes <= policy.max_bytes + slack, "{swept:?} of {bytes}");
    assert!(swept.bytes >= policy.max_bytes - bytes / 10, "too much went: {swept:?}");
    // The rest are markers.
    assert!((bytes / 2..bytes).contains(&(4_000 * swept.entry_bytes)), "{swept:?} of {bytes}");
    assert!(swept.lost_unread_by_group.is_empty());
    check_whole(&redis).await;
    // A cap below what must stay: everything up to the finalized block is removed, nothing above
    // it.
    for _ in 0..3 {
        swept = sweep(&redis, &RetentionPolicy { max_bytes: 1, ..keep_all() }).await;
    }
    let (oldest, _) = rest(&redis).await;
    assert!((190..=191).contains(&oldest), "{oldest}: {swept:?}");
    check_whole(&redis).await;
}

/// Other keys than the streams may fill Redis.
#[tokio::test]
async fn g8_a_nearly_full_redis_takes_what_no_group_needs_down_to_half_the_cap() {
    let mut redis = Fixture::new().await;
    chain(&mut redis, 200, 20, 10).await;
    let bytes = redis.streams.standing(CHAIN).await.unwrap().bytes;
    let max_bytes = bytes * 3 / 2;
    let policy = |used| RetentionPolicy {
        max_bytes,
        memory: Memory { used, max: Some(1_000) },
        ..keep_all()
    };
    redis.ask::<String>("XGROUP CREATE events:7 slow 0").await;
    let swept = sweep(&redis, &policy(1_000)).await;
    assert_eq!((swept.trimmed_entries, swept.held_by_group.as_deref()), (0, Some("slow")));
    redis.ask::<u64>("XGROUP DESTROY events:7 slow").await;
    let swept = sweep(&redis, &policy(900)).await;
    assert_eq!((swept.trimmed_entries, swept.nearly_full), (0, false));
    let swept = sweep(&redis, &RetentionPolicy { redis_refuses_steps: true, ..policy(800) }).await;
    assert!(swept.nearly_full && swept.trimmed_entries > 0, "a step needs more than there is");
    let bytes = swept.bytes;
    // A tenth of what is used has to go, so a tenth of the streams.
    let swept = sweep(&redis, &policy(1_000)).await;
    assert!((bytes * 85 / 100..bytes * 95 / 100).contains(&swept.bytes), "{swept:?} of {bytes}");
    assert!(swept.nearly_full);
    check_whole(&redis).await;
    let mut swept = swept;
    for _ in 0..20 {
        swept = sweep(&redis, &policy(100_000)).await;
    }
    let half = max_bytes / 2;
    assert!((half - bytes / 10..half + bytes / 10).contains(&swept.bytes), "{swept:?} of {bytes}");
    assert!(swept.lost_unread_by_group.is_empty());
    check_whole(&redis).await;
}

#[tokio::test]
async fn g7_markers_of_blocks_without_entries_count_against_the_byte_cap() {
    let mut redis = Fixture::new().await;
    let mut publisher = chain(&mut redis, 4_000, 0, 10).await;
    let bytes = redis.streams.standing(CHAIN).await.unwrap().bytes;
    assert!(bytes > 4_000 * 100, "{bytes}");
    let policy = RetentionPolicy { max_bytes: bytes / 2, ..keep_all() };
    let swept = sweep(&redis, &policy).await;
    assert!(swept.bytes <= bytes * 55 / 100, "{swept:?} of {bytes}");
    assert!((1_800..2_200).contains(&swept.trimmed_markers) && !swept.has_more, "{swept:?}");
    check_whole(&redis).await;
    // The marker of an entry stays with it, and so do those after it.
    add(&mut publisher, &block("4001a", "4000a", 3)).await;
    add_all(&mut publisher, 4_002..=4_100, 0).await;
    let last = block("4100a", "4099a", 0).link;
    publisher.apply(&Step::Finalized { block: &last }).await.unwrap();
    redis.ask::<String>("XGROUP CREATE events:7 slow 0").await;
    pass(&mut redis, 2).await;
    let policy = RetentionPolicy { max_bytes: 1, following_head: false, ..keep_all() };
    let swept = sweep(&redis, &policy).await;
    assert_eq!((swept.held_by_group.as_deref(), rest(&redis).await), (Some("slow"), (4_001, 3)));
    assert_eq!(redis.markers().await[0].number, 4_001);
    check_whole(&redis).await;
}

#[tokio::test]
async fn an_old_entry_beside_young_ones_holds_back_few_markers() {
    for (empty, trimmed) in [(900, 0), (1_100, 1_101)] {
        let mut redis = Fixture::new().await;
        let mut publisher = redis.publisher().await;
        add(&mut publisher, &block("1a", "0a", 1)).await;
        add_all(&mut publisher, 2..=1 + empty, 0).await;
        pass(&mut redis, 4_000).await;
        // In the same node as the first.
        let next = empty + 2;
        let (name, parent) = (format!("{next}a"), format!("{}a", empty + 1));
        let young = block(&name, &parent, 1);
        add(&mut publisher, &young).await;
        publisher.apply(&Step::Finalized { block: &young.link }).await.unwrap();
        let policy = RetentionPolicy { keep: Duration::from_millis(3_500), ..keep_all() };
        let swept = sweep(&redis, &policy).await;
        assert_eq!(swept.trimmed_markers, trimmed, "{swept:?}");
        assert_eq!(swept.trimmed_entries, u64::from(trimmed > 0));
        check_whole(&redis).await;
    }
}

#[tokio::test]
async fn a_sweep_that_ends_at_its_limit_says_so() {
    let mut redis = Fixture::new().await;
    chain(&mut redis, 33_500, 0, 0).await;
    let swept = sweep(&redis, &keep_none()).await;
    assert!(swept.has_more && (32_000..33_000).contains(&swept.trimmed_markers), "{swept:?}");
    let swept = sweep(&redis, &keep_none()).await;
    assert!(!swept.has_more && swept.trimmed_markers > 0, "{swept:?}");
}

#[tokio::test]
async fn what_a_group_was_given_makes_the_stream_no_larger() {
    let mut redis = Fixture::new().await;
    chain(&mut redis, 200, 20, 0).await;
    let Standing { entries, bytes, .. } = redis.streams.standing(CHAIN).await.unwrap();
    redis.ask::<String>("XGROUP CREATE events:7 ahead 0").await;
    redis.ask::<redis::Value>("XREADGROUP GROUP ahead c COUNT 9000 STREAMS events:7 >").await;
    let with_pending = redis.streams.standing(CHAIN).await.unwrap().bytes;
    assert!(
        with_pending * 10 >= bytes * 9 && with_pending * 10 <= bytes * 11,
        "{bytes}, {with_pending}"
    );
    // So the cap removes nothing from it that was not above the cap before.
    let policy = RetentionPolicy { max_bytes: bytes * 11 / 10, ..keep_all() };
    let swept = sweep(&redis, &policy).await;
    assert_eq!((swept.trimmed_entries, swept.len), (0, entries));
}

#[tokio::test]
async fn g8_what_a_group_of_the_markers_was_given_removes_nothing() {
    let mut redis = Fixture::new().await;
    chain(&mut redis, 50, 3, 0).await;
    let mut publisher = redis.publisher().await;
    add_all(&mut publisher, 51..=3_000, 0).await;
    let last = block("3000a", "2999a", 0).link;
    publisher.apply(&Step::Finalized { block: &last }).await.unwrap();
    redis.ask::<String>("XGROUP CREATE events:7 slow 0").await;
    let bytes = redis.streams.standing(CHAIN).await.unwrap().bytes;
    redis.ask::<String>("XGROUP CREATE blocks:{events:7} ahead 0").await;
    let read = "XREADGROUP GROUP ahead c COUNT 9000 STREAMS blocks:{events:7} >";
    redis.ask::<redis::Value>(read).await;
    let policy = RetentionPolicy { max_bytes: bytes * 3 / 2, ..keep_all() };
    let swept = sweep(&redis, &policy).await;
    assert_eq!((swept.trimmed_entries, swept.trimmed_markers), (0, 0), "{swept:?}");
}

#[tokio::test]
async fn g8_what_a_group_has_not_acknowledged_stays() {
    let mut redis = Fixture::new().await;
    chain(&mut redis, 50, 20, 0).await;
    let policy = RetentionPolicy { max_bytes: 1, following_head: false, ..keep_none() };
    redis.ask::<String>("XGROUP CREATE events:7 slow 0").await;
    redis.ask::<String>("XGROUP CREATE events:7 fast $").await;
    // Nothing is delivered, so nothing is removed.
    let swept = sweep(&redis, &policy).await;
    assert_eq!((swept.trimmed_entries, swept.trimmed_markers), (0, 0));
    assert_eq!(swept.held_by_group.as_deref(), Some("slow"));

    // 600 delivered, 250 acknowledged: the first 12 blocks are finished, and half of the 13th.
    redis.ask::<redis::Value>("XREADGROUP GROUP slow c COUNT 600 STREAMS events:7 >").await;
    let ids = entry_ids(&redis).await;
    let ack = async |redis: &mut Fixture, ids: &[String]| {
        redis.ask::<i64>(&format!("XACK events:7 slow {}", ids.join(" "))).await
    };
    ack(&mut redis, &ids[..250]).await;
    let swept = sweep(&redis, &policy).await;
    assert!((200..=240).contains(&swept.trimmed_entries), "{swept:?}");
    assert_eq!(swept.held_by_group.as_deref(), Some("slow"));
    let (oldest, entries) = rest(&redis).await;
    assert!((12..=13).contains(&oldest) && entries >= 1_000 - 240, "{oldest} {entries}");
    check_whole(&redis).await;

    // One old unacknowledged entry keeps everything after it; delivered entries keep nothing more.
    ack(&mut redis, &ids[251..600]).await;
    let held = sweep(&redis, &policy).await;
    assert!(entry_ids(&redis).await.contains(&ids[250]), "{held:?}");
    ack(&mut redis, &ids[250..251]).await;
    sweep(&redis, &policy).await;
    let (oldest, _) = rest(&redis).await;
    assert!((30..=31).contains(&oldest), "{oldest}");
    assert!(entry_ids(&redis).await.contains(&ids[600]), "undelivered");
    check_whole(&redis).await;
}

#[tokio::test]
async fn g8_only_at_the_head_the_cap_takes_what_is_unread_and_counts_it() {
    let mut redis = Fixture::new().await;
    chain(&mut redis, 50, 20, 5).await;
    let ids = entry_ids(&redis).await;
    redis.ask::<String>("XGROUP CREATE events:7 slow 0").await;
    redis.ask::<String>("XGROUP CREATE events:7 idle 0").await;
    redis.ask::<String>("XGROUP CREATE events:7 fast $").await;
    // `slow`: 170 delivered, 60 of them acknowledged, so 110 pending; the rest undelivered.
    redis.ask::<redis::Value>("XREADGROUP GROUP slow c COUNT 170 STREAMS events:7 >").await;
    let done = [&ids[..50], &ids[60..70]].concat().join(" ");
    redis.ask::<i64>(&format!("XACK events:7 slow {done}")).await;

    let waiting = RetentionPolicy { max_bytes: 1, following_head: false, ..keep_all() };
    assert_eq!(sweep(&redis, &waiting).await.trimmed_entries, 0, "a backfill waits");
    let aged = sweep(&redis, &keep_none()).await;
    assert_eq!(aged.trimmed_entries, 0, "age alone takes nothing from a group");
    assert_eq!(aged.held_by_group.as_deref(), Some("idle"));

    let swept = sweep(&redis, &RetentionPolicy { max_bytes: 1, ..keep_all() }).await;
    assert_eq!(swept.trimmed_entries, 900, "exactly up to finalized");
    let mut lost = swept.lost_unread_by_group.clone();
    lost.sort();
    assert_eq!(lost, [("idle".to_owned(), 900), ("slow".to_owned(), 900 - 60)]);
    assert_eq!(rest(&redis).await, (46, 100));
    check_whole(&redis).await;
    let groups = redis.streams.groups(CHAIN).await.unwrap();
    let behind: Vec<_> = groups.iter().map(|g| (g.group.as_str(), g.entries)).collect();
    assert_eq!(
        behind,
        [("fast", Some(0)), ("idle", Some(100)), ("slow", Some(100))],
        "not what is gone"
    );

    // Removed entries stay pending in Redis, but no longer keep anything.
    let mut publisher = redis.publisher().await;
    publisher.apply(&Step::Finalized { block: &block("50a", "49a", 0).link }).await.unwrap();
    let pending: (u64, String, String, redis::Value) = redis.ask("XPENDING events:7 slow").await;
    assert_eq!(pending.0, 110);
    let again = sweep(&redis, &RetentionPolicy { max_bytes: 1, ..keep_all() }).await;
    let mut lost = again.lost_unread_by_group.clone();
    lost.sort();
    assert_eq!(lost, [("idle".to_owned(), 100), ("slow".to_owned(), 100)]);
    assert_eq!(redis.events().await.len(), 0);
}

#[tokio::test]
async fn what_a_group_loses_is_told_once_though_the_sweep_is_cut_short() {
    let mut redis = Fixture::new().await;
    chain(&mut redis, 300, 40, 5).await; // more than one trim takes
    let ids = entry_ids(&redis).await;
    redis.ask::<String>("XGROUP CREATE events:7 slow 0").await;
    redis.ask::<redis::Value>("XREADGROUP GROUP slow c COUNT 8000 STREAMS events:7 >").await;
    redis.ask::<i64>(&format!("XACK events:7 slow {} {}", ids[10], ids[7_000])).await;
    let cap = RetentionPolicy { max_bytes: 1, ..keep_all() };

    redis.ask::<String>("ACL SETUSER default -xtrim").await;
    redis.streams.sweep(CHAIN, &cap).await.unwrap_err();
    redis.ask::<String>("ACL SETUSER default (+xtrim ~events:7)").await;
    // Each sweep loses only so much, and tells of it.
    for (trimmed, acknowledged, has_more) in [(5_000, 1, true), (5_000, 1, true), (1_800, 0, false)]
    {
        let swept = sweep(&redis, &cap).await;
        assert_eq!((swept.trimmed_entries, swept.trimmed_markers), (trimmed, 0));
        assert_eq!(swept.has_more, has_more);
        assert_eq!(swept.lost_unread_by_group, [("slow".to_owned(), trimmed - acknowledged)]);
    }
    // The markers are still there, and show what was removed and reported.
    redis.streams.sweep(CHAIN, &cap).await.unwrap_err();
    redis.ask::<String>("ACL SETUSER default +xtrim").await;
    let swept = sweep(&redis, &cap).await;
    assert_eq!((swept.trimmed_entries, swept.lost_unread_by_group.len()), (0, 0));
    assert!(swept.trimmed_markers >= 294, "{swept:?}");
    check_whole(&redis).await;
}

#[tokio::test]
async fn a_sweep_with_nothing_to_trim_is_a_handful_of_small_questions() {
    let mut redis = Fixture::new().await;
    chain(&mut redis, 2_000, 1, 0).await;
    redis.ask::<String>("XGROUP CREATE events:7 readers 0").await;
    let commands = async |redis: &mut Fixture| -> u64 {
        let info: String = redis.ask("INFO stats").await;
        let line = info.lines().find_map(|l| l.strip_prefix("total_commands_processed:")).unwrap();
        line.trim().parse().unwrap()
    };
    // The first sweep also opens a connection.
    sweep(&redis, &keep_all()).await;
    let before = commands(&mut redis).await;
    sweep(&redis, &keep_all()).await;
    let asked = commands(&mut redis).await - before - 1;
    // Two of them concern the group: that it exists, and since when an entry has been waiting for
    // it.
    assert!(asked <= 12, "{asked} commands");
}

/// Name, entries, whether anything waits.
fn lags(swept: &Swept) -> Vec<(&str, Option<u64>, bool)> {
    let groups = swept.groups.iter();
    groups.map(|g| (g.group.as_str(), g.entries, !g.waiting.is_zero())).collect()
}

#[tokio::test]
async fn lag_is_told_for_each_group_in_entries_and_time() {
    let mut redis = Fixture::new().await;
    assert_eq!(sweep(&redis, &keep_all()).await.groups, []);
    chain(&mut redis, 10, 10, 0).await;
    for (group, from) in [("a", "0"), ("b", "$"), ("c", "0"), ("d", "0")] {
        redis.ask::<String>(&format!("XGROUP CREATE events:7 {group} {from}")).await;
    }
    redis.ask::<redis::Value>("XREADGROUP GROUP a one COUNT 40 STREAMS events:7 >").await;
    redis.ask::<redis::Value>("XREADGROUP GROUP c one STREAMS events:7 >").await;
    let ids = entry_ids(&redis).await;
    redis.ask::<i64>(&format!("XACK events:7 a {}", ids[..30].join(" "))).await;
    redis.ask::<i64>(&format!("XACK events:7 c {}", ids.join(" "))).await;
    pass(&mut redis, 1_000).await;
    let swept = sweep(&redis, &keep_all()).await;
    let wanted = [("a", Some(70), true), ("b", Some(0), false), ("c", Some(0), false)];
    assert_eq!(lags(&swept), [&wanted[..], &[("d", Some(100), true)]].concat());
    let waiting = swept.groups[0].waiting;
    assert!(Duration::from_secs(1) <= waiting && waiting < HOUR, "{waiting:?}");
    assert_eq!(swept.groups[3].idle, Duration::ZERO, "not asked so soon");

    // A hole in the stream: Redis no longer knows how many entries are undelivered.
    redis.ask::<i64>(&format!("XDEL events:7 {}", ids[50])).await;
    let swept = sweep(&redis, &keep_all()).await;
    assert_eq!(lags(&swept)[0], ("a", None, true), "unknown, not zero");
    assert_eq!(lags(&swept)[1], ("b", Some(0), false));
    // Everything is delivered and acknowledged.
    redis.ask::<redis::Value>("XREADGROUP GROUP a one STREAMS events:7 >").await;
    redis.ask::<i64>(&format!("XACK events:7 a {}", ids.join(" "))).await;
    assert_eq!(lags(&sweep(&redis, &keep_all()).await)[0], ("a", Some(0), false));
}

#[tokio::test]
async fn g8_names_that_are_not_text_hold_their_entries_and_stop_no_sweep() {
    let mut redis = Fixture::new().await;
    redis.publisher().await;
    redis.ask::<String>("XADD events:7 1-1 f v").await; // it has waited for long
    let (group, consumer) = (b"g\xff", b"c\xfe");
    let mut create = redis::cmd("XGROUP");
    create.arg("CREATE").arg("events:7").arg(group).arg("0");
    create.exec_async(&mut redis.raw).await.unwrap();
    let mut read = redis::cmd("XREADGROUP");
    read.arg("GROUP").arg(group).arg(consumer).arg(&["COUNT", "40", "STREAMS", "events:7", ">"]);
    read.exec_async(&mut redis.raw).await.unwrap();
    let swept = sweep(&redis, &keep_all()).await;
    assert_eq!(lags(&swept), [("g\u{fffd}", Some(1), true)]);
    assert!(swept.groups[0].idle < HOUR, "{:?}", swept.groups[0].idle);
}

#[tokio::test]
async fn a_group_that_begins_in_the_middle_has_a_lag_in_entries() {
    let mut redis = Fixture::new().await;
    let mut publisher = chain(&mut redis, 700, 3, 0).await;
    let ids = entry_ids(&redis).await;
    // Within a block, at the end of a block, far back and at both ends of the stream.
    for at in [0, 1, 2, 1_000, 2_097, 2_099] {
        let group = format!("behind {at}");
        redis.streams.create_group(CHAIN, &group, Some(id(&ids[at]))).await.unwrap();
        let groups = redis.streams.groups(CHAIN).await.unwrap();
        let made = groups.iter().find(|made| made.group == group).unwrap();
        assert_eq!(made.entries, Some(2_099 - at as u64), "{group}");
    }
    // Removed entries are not counted.
    redis.ask::<u64>("XTRIM events:7 MAXLEN 100").await;
    redis.streams.create_group(CHAIN, "late", Some(id(&ids[1_500]))).await.unwrap();
    let lag = async |redis: &Fixture, group: &str| {
        let groups = redis.streams.groups(CHAIN).await.unwrap();
        groups.into_iter().find(|made| made.group == group).unwrap().entries
    };
    assert_eq!(lag(&redis, "late").await, Some(100));
    redis.ask::<redis::Value>("XREADGROUP GROUP late one STREAMS events:7 >").await;
    let acknowledged: u64 = redis.ask(&format!("XACK events:7 late {}", ids.join(" "))).await;
    assert_eq!((acknowledged, lag(&redis, "late").await), (100, Some(0)));
    // A group that starts at the end of the stream.
    redis.streams.create_group(CHAIN, "next", None).await.unwrap();
    add(&mut publisher, &block("701a", "700a", 3)).await;
    assert_eq!(lag(&redis, "next").await, Some(3));
}

#[tokio::test]
async fn a_group_that_does_not_read_is_told_from_one_that_is_slow() {
    let mut redis = Fixture::new().await;
    // Entries with IDs of 1970: they have waited for decades.
    for id in ["1-1", "2-1"] {
        redis.ask::<String>(&format!("XADD events:7 {id} f v")).await;
    }
    for group in ["gone", "slow"] {
        redis.ask::<String>(&format!("XGROUP CREATE events:7 {group} 0")).await;
    }
    redis.ask::<redis::Value>("XREADGROUP GROUP slow one COUNT 1 STREAMS events:7 >").await;
    let swept = sweep(&redis, &keep_all()).await;
    assert_eq!(lags(&swept), [("gone", Some(2), true), ("slow", Some(2), true)]);
    let (gone, slow) = (&swept.groups[0], &swept.groups[1]);
    assert!(gone.waiting > 24 * HOUR && gone.idle == gone.waiting, "{gone:?}");
    assert!(slow.waiting > 24 * HOUR && slow.idle < HOUR, "{slow:?}");
}

#[tokio::test]
async fn g8_the_last_entry_of_a_block_holds_it() {
    let mut redis = Fixture::new().await;
    redis.ask::<String>("CONFIG SET stream-node-max-entries 20").await;
    redis.ask::<String>("CONFIG SET stream-node-max-bytes 0").await;
    chain(&mut redis, 50, 20, 0).await;
    redis.ask::<String>("XGROUP CREATE events:7 slow 0").await;
    redis.ask::<redis::Value>("XREADGROUP GROUP slow c COUNT 200 STREAMS events:7 >").await;
    let ids = entry_ids(&redis).await;
    redis.ask::<i64>(&format!("XACK events:7 slow {}", ids[..199].join(" "))).await;
    let swept = sweep(&redis, &keep_none()).await;
    assert_eq!(swept.held_by_group.as_deref(), Some("slow"));
    assert!(entry_ids(&redis).await.contains(&ids[199]), "{swept:?}");
    check_whole(&redis).await;
}

#[tokio::test]
async fn one_consumer_that_reads_is_enough() {
    let mut redis = Fixture::new().await;
    redis.ask::<String>("XADD events:7 1-1 f v").await;
    redis.ask::<String>("XGROUP CREATE events:7 g 0").await;
    redis.ask::<i64>("XGROUP CREATECONSUMER events:7 g dead").await;
    pass(&mut redis, 3_000).await;
    redis.ask::<redis::Value>("XREADGROUP GROUP g alive COUNT 1 STREAMS events:7 >").await;
    let swept = sweep(&redis, &keep_all()).await;
    assert!(swept.groups[0].idle < Duration::from_secs(2), "{:?}", swept.groups);
}
