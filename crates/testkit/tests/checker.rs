//! The checker on a real node and a real Redis: a stream that matches the chain is clean, and every
//! fault in it is found.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use alloy_primitives::B256;
use ethhook_domain::{
    Cursor, EntryId, Header, Marker, Op, ProcessedEvent, Proof, cursor, event, marker,
};
use ethhook_testkit::anvil::{Anvil, Mining};
use ethhook_testkit::checker::Checker;
use ethhook_testkit::node_rpc::NodeRpc;
use ethhook_testkit::redis_server::{RedisOptions, RedisServer};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;

const CHAIN: u64 = 31_337;

/// A minimal publisher, to have something to check.
struct Publisher {
    redis: MultiplexedConnection,
    seq: u64,
    last_id: EntryId,
    /// It loses the last log of each block.
    loses: bool,
}

impl Publisher {
    async fn publish(&mut self, node: &NodeRpc, op: Op, header: &Header) {
        let mut events: Vec<_> = node
            .logs_of(header.block.hash)
            .await
            .unwrap()
            .into_iter()
            .map(|log| ProcessedEvent::new(CHAIN, &header.block, log))
            .collect();
        if self.loses {
            events.pop();
        }
        if op == Op::Remove {
            events.reverse();
            events.iter_mut().for_each(|event| event.removed = true);
        }
        let mut first_id = None;
        for event in &events {
            self.last_id = self.add(event::FIELDS, event.to_values(), "events:31337").await;
            first_id.get_or_insert(self.last_id);
        }
        self.seq += 1;
        let block = &header.block;
        let marker = Marker {
            seq: self.seq,
            op,
            number: block.number,
            hash: block.hash,
            parent_hash: Some(block.parent_hash),
            timestamp: block.timestamp,
            events: events.len() as u64,
            first_id,
            last_id: self.last_id,
            proof: Proof::Bloom,
            filter: "all".to_owned(),
        };
        self.add(marker::FIELDS, marker.to_values(), "blocks:{events:31337}").await;
        let seen = format!("seen:{{events:31337}}:{}", block.hash);
        let _: () = match first_id {
            Some(first) if op == Op::Add => {
                let record = format!("{} {first} {}", events.len(), self.last_id);
                self.redis.set(seen, record).await.unwrap()
            }
            _ => self.redis.del(seen).await.unwrap(),
        };
        let tip = match op {
            Op::Remove => (block.number - 1, block.parent_hash),
            _ => (block.number, block.hash),
        };
        self.set_cursor(tip.0, tip.1).await;
    }

    async fn set_cursor(&mut self, number: u64, hash: B256) {
        let start = Cursor::starting_at(0, None, "all".to_owned());
        let cursor = Cursor { seq: self.seq, number, hash: Some(hash), ..start };
        let mut command = redis::cmd("HSET");
        command.arg("cursor:{events:31337}");
        for (name, value) in cursor::FIELDS.iter().zip(cursor.to_values()) {
            command.arg(name).arg(value);
        }
        let _: i64 = command.query_async(&mut self.redis).await.unwrap();
    }

    async fn add<const N: usize>(
        &mut self,
        names: [&str; N],
        values: [String; N],
        key: &str,
    ) -> EntryId {
        let mut command = redis::cmd("XADD");
        command.arg(key).arg("*");
        for (name, value) in names.iter().zip(values) {
            command.arg(name).arg(value);
        }
        let id: String = command.query_async(&mut self.redis).await.unwrap();
        id.parse().unwrap()
    }
}

struct Scene {
    anvil: Anvil,
    publisher: Publisher,
    checker: Checker,
    server: RedisServer,
}

/// A chain with a reorg, published correctly.
async fn published() -> Scene {
    let server = RedisServer::spawn(RedisOptions::default()).await.unwrap();
    let anvil = Anvil::start(Mining::OnDemand).await.unwrap();
    let redis = server.connection().await.unwrap();
    let mut publisher = Publisher { redis, seq: 0, last_id: EntryId::MIN, loses: false };
    let emitter = anvil.deploy_emitter().await.unwrap();
    for salt in 0..5 {
        anvil.emit(emitter, 0, 10, salt).await.unwrap();
        anvil.mine(1).await.unwrap();
    }
    let mut headers = Vec::new();
    for number in 0..=6 {
        headers.push(anvil.node().header_by_number(number).await.unwrap().unwrap());
        publisher.publish(anvil.node(), Op::Add, &headers[headers.len() - 1]).await;
    }
    // Anvil forgets orphaned blocks, so they are taken back before the reorg.
    for header in headers[5..].iter().rev() {
        publisher.publish(anvil.node(), Op::Remove, header).await;
    }
    let other = anvil.emission(emitter, 0, 3, 99).unwrap();
    anvil.reorg(2, &[(other, 0)]).await.unwrap();
    for number in 5..=6 {
        let header = anvil.node().header_by_number(number).await.unwrap().unwrap();
        publisher.publish(anvil.node(), Op::Add, &header).await;
    }
    let node = NodeRpc::new(anvil.address());
    let checker = Checker::connect(&server.url(), node, CHAIN).await.unwrap();
    Scene { anvil, publisher, checker, server }
}

#[tokio::test]
async fn what_is_published_by_the_book_is_clean() {
    let Scene { anvil, checker, server, publisher: _ } = published().await;
    let report = checker.settle_and_check(Duration::from_secs(10)).await.unwrap();
    assert_eq!((report.blocks, report.events, report.removed), (7, 33, 20));
    assert_eq!((report.markers, report.entries), (11, 73));

    // The chain grows and nobody publishes.
    anvil.mine(1).await.unwrap();
    let error = checker.settle(Duration::from_millis(100)).await.unwrap_err().to_string();
    assert!(error.contains("not settled") && error.contains("cursor at 6"), "{error}");
    let behind =
        Checker::connect(&server.url(), NodeRpc::new(anvil.address()), CHAIN).await.unwrap();
    behind.with_confirmations(1).settle_and_check(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn a_tip_above_the_confirmed_one_is_right_only_if_the_chain_was_longer() {
    let Scene { anvil, server, publisher: _publisher, checker: _ } = published().await;
    for (peak, settles) in [(None, false), (Some(8), false), (Some(9), true)] {
        let node = NodeRpc::new(anvil.address());
        let checker = Checker::connect(&server.url(), node, CHAIN).await.unwrap();
        let checker = checker.with_confirmations(3);
        let checker = peak.into_iter().fold(checker, Checker::with_peak);
        // The tip is block 6, as is the head.
        let settled = checker.settle(Duration::from_millis(100)).await;
        assert_eq!(settled.is_ok(), settles, "{peak:?}");
    }
}

#[tokio::test]
async fn a_weaker_proof_than_the_configured_one_is_found() {
    let Scene { checker, publisher: _publisher, anvil: _anvil, server: _server } =
        published().await;
    let checker = checker.with_verify(Proof::Bloom);
    assert!(checker.check().await.unwrap().is_clean());
    let report = checker.with_verify(Proof::ReceiptsRoot).check().await.unwrap();
    // Five blocks have events, and so has one of the two that replaced others; the bloom proves that the rest have none.
    assert_eq!(report.records.len(), 6, "{report}");
    assert!(report.records.iter().all(|line| line.ends_with("has the proof bloom")), "{report}");
}

#[tokio::test]
async fn what_is_broken_is_found() {
    let Scene { checker, mut publisher, anvil, server: _server } = published().await;
    let ids: Vec<(String, Vec<Vec<u8>>)> = redis::cmd("XRANGE")
        .arg("events:31337")
        .arg("-")
        .arg("+")
        .query_async(&mut publisher.redis)
        .await
        .unwrap();
    let tip = anvil.node().header_by_tag("latest").await.unwrap().unwrap();

    publisher.set_cursor(5, tip.block.parent_hash).await;
    let report = checker.check().await.unwrap();
    assert_eq!((report.records.len(), report.violations.len()), (2, 0), "{report}");
    publisher.set_cursor(tip.block.number, tip.block.hash).await;
    assert!(checker.check().await.unwrap().is_clean());

    let deleted: u64 = redis::cmd("XDEL")
        .arg("events:31337")
        .arg(&ids[4].0)
        .query_async(&mut publisher.redis)
        .await
        .unwrap();
    assert_eq!(deleted, 1);
    let report = checker.check().await.unwrap();
    assert!(!report.violations.is_empty() && !report.differences.is_empty(), "{report}");
    let text = report.into_clean().unwrap_err().to_string();
    assert!(text.contains("log 4 is missing in the stream"), "{text}");
}

#[tokio::test]
async fn what_was_taken_back_is_compared_as_long_as_the_node_knows_it() {
    let Scene { checker, anvil, mut publisher, server: _server } = published().await;
    let emitter = anvil.deploy_emitter().await.unwrap();
    anvil.emit(emitter, 0, 3, 7).await.unwrap();
    anvil.mine(1).await.unwrap();
    let header = anvil.node().header_by_tag("latest").await.unwrap().unwrap();
    let parent = anvil.node().header_by_number(header.block.number - 1).await.unwrap().unwrap();
    publisher.publish(anvil.node(), Op::Add, &parent).await;
    for loses in [false, true] {
        publisher.loses = loses;
        publisher.publish(anvil.node(), Op::Add, &header).await;
        publisher.publish(anvil.node(), Op::Remove, &header).await;
        let report = checker.check().await.unwrap();
        assert!(report.violations.is_empty(), "the stream is sound in itself: {report}");
        assert_eq!(report.orphans, if loses { 2 } else { 1 });
        assert_eq!(report.differences.len(), usize::from(loses), "{report}");
    }
}

#[tokio::test]
async fn a_stream_of_another_branch_differs_from_the_chain() {
    let Scene { checker, anvil, server: _server, publisher: _ } = published().await;
    anvil.reorg(1, &[]).await.unwrap();
    let report = checker.check().await.unwrap();
    assert!(report.violations.is_empty(), "the stream is sound in itself: {report}");
    assert_eq!(report.differences.len(), 2, "one block for another: {report}");
}

#[tokio::test]
async fn a_trimmed_stream_is_checked_from_where_it_is_whole() {
    let Scene { checker, mut publisher, anvil: _anvil, server: _server } = published().await;
    for (key, keep) in [("events:31337", 60), ("blocks:{events:31337}", 9)] {
        let _: u64 = redis::cmd("XTRIM")
            .arg(key)
            .arg("MAXLEN")
            .arg(keep)
            .query_async(&mut publisher.redis)
            .await
            .unwrap();
    }
    assert!(!checker.check().await.unwrap().is_clean());
    let checker = checker.with_trimmed_beginning();
    let told = checker.check().await.unwrap().into_clean().unwrap_err().to_string();
    assert!(told.contains("begin with block Some(4), not with 0 or before"), "{told}");
    for (field, value) in [("finalized_number", "3"), ("finalized_hash", &format!("0x{:064}", 1))] {
        let mut set = redis::cmd("HSET");
        set.arg("cursor:{events:31337}").arg(field).arg(value);
        set.exec_async(&mut publisher.redis).await.unwrap();
    }
    let report = checker.check().await.unwrap().into_clean().unwrap();
    assert_eq!((report.blocks, report.events), (3, 13), "{report}");
    // Not where nothing above the finalized block is left.
    for (key, first) in [("events:31337", "Some("), ("blocks:{events:31337}", "None")] {
        let _: u64 = publisher.redis.del(key).await.unwrap();
        let told = checker.check().await.unwrap().into_clean().unwrap_err().to_string();
        assert!(told.contains(&format!("the streams begin with block {first}")), "{told}");
    }
}

#[tokio::test]
async fn a_cursor_that_does_not_agree_is_found() {
    const CURSOR: &str = "cursor:{events:31337}";
    let Scene { checker, mut publisher, anvil: _anvil, server: _server } = published().await;
    let checker = checker.with_start(0);
    assert!(checker.check().await.unwrap().is_clean());
    for (field, value, finding) in [
        ("start_number", "1", "start_number is 1, not 0"),
        ("finalized_hash", &*format!("0x{:064}", 1), "finalized_hash is Some"),
        ("alarm", "stopped", "alarm is stopped, not "),
        ("filter", "some", "filter is some, not all"),
        ("genesis_hash", &*format!("0x{:064}", 1), "genesis_hash is 0x00"),
    ] {
        let before: String = publisher.redis.hget(CURSOR, field).await.unwrap();
        let _: u64 = publisher.redis.hset(CURSOR, field, value).await.unwrap();
        let report = checker.check().await.unwrap();
        assert_eq!(report.records.len(), 1, "{report}");
        assert!(report.to_string().contains(finding), "{report}");
        let _: u64 = publisher.redis.hset(CURSOR, field, before).await.unwrap();
    }
    let _: u64 = publisher.redis.del(CURSOR).await.unwrap();
    assert_eq!(checker.check().await.unwrap().records, ["there is no cursor"]);
}

#[tokio::test]
async fn dedup_records_are_those_of_live_blocks_with_entries() {
    let Scene { checker, mut publisher, anvil, server } = published().await;
    let of = |hash: B256| format!("seen:{{events:31337}}:{hash}");
    let markers = checker.markers().await.unwrap();
    let (_, live) = &markers[2];
    let (_, orphaned) = markers.iter().find(|(_, marker)| marker.op == Op::Remove).unwrap();
    let (_, empty) = &markers[0];
    let key = of(live.hash);
    let record: String = publisher.redis.get(&key).await.unwrap();
    for (key, wrong) in
        [(key.clone(), "10 1-0 2-0"), (of(orphaned.hash), &record), (of(empty.hash), "0 0-0 0-0")]
    {
        let right: Option<String> = publisher.redis.get(&key).await.unwrap();
        let _: () = publisher.redis.set(&key, wrong).await.unwrap();
        let report = checker.check().await.unwrap();
        assert_eq!(report.records.len(), 1, "{report}");
        assert!(report.to_string().contains(wrong), "{report}");
        let _: () = match right {
            Some(right) => publisher.redis.set(&key, right).await.unwrap(),
            None => publisher.redis.del(&key).await.unwrap(),
        };
        assert!(checker.check().await.unwrap().is_clean());
    }
    let _: u64 = publisher.redis.del(key).await.unwrap();
    let report = checker.check().await.unwrap();
    assert_eq!(report.records.len(), 1, "{report}");
    assert!(report.to_string().contains(&format!("None, not Some(\"{record}\")")), "{report}");
    // It may have expired.
    let url = server.url();
    let checker = Checker::connect(&url, NodeRpc::new(anvil.address()), CHAIN).await.unwrap();
    assert!(checker.with_dedup_ttl(Duration::ZERO).check().await.unwrap().is_clean());
}
