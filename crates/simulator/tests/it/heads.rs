//! Subscriptions: what is announced, when, and to whom.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ethhook_domain::Header;
use ethhook_domain::block::Seal;
use ethhook_simulator::{Chain, ChainSpec, Contents};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::client::{DEADLINE, Socket, manual, number, result, serve};

/// Waits for an effect of the node's own tasks.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_subscriber_gets_whole_headers_in_order() {
    let (chain, node) = manual(1).await;
    let mut socket = Socket::subscribed(&node).await;
    let before = SystemTime::now();
    for block in chain.mine(3) {
        let head = socket.head().await;
        assert!(head.get("transactions").is_none());
        let header: Header = serde_json::from_value(head).unwrap();
        assert_eq!((header.block.hash, header.seal), (block.hash(), Seal::Matches));
        let sent = Duration::from_micros(chain.sent_at(block.hash()).unwrap());
        assert!(before <= UNIX_EPOCH + sent && UNIX_EPOCH + sent <= SystemTime::now());
        let told = result(&node, "sim_sentAt", json!([block.hash()])).await;
        assert_eq!(u128::from(told.as_u64().unwrap()), sent.as_micros());
    }
    assert_eq!(chain.stats().heads_sent(), 3);
    let genesis = chain.block(0).unwrap().hash();
    assert!(result(&node, "sim_sentAt", json!([genesis])).await.is_null());
}

#[tokio::test]
async fn a_reorg_announces_each_block_of_the_new_branch() {
    let (chain, node) = manual(5).await;
    let mut socket = Socket::subscribed(&node).await;
    let named = |blocks: &[std::sync::Arc<ethhook_simulator::Block>]| {
        blocks.iter().map(|b| (b.number(), b.hash().to_string())).collect::<Vec<_>>()
    };
    let b = named(&chain.reorg(2, 3, Contents::Fresh));
    assert_eq!(b.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [4, 5, 6]);
    assert_eq!(socket.heads(3).await, b);
    let a = named(&chain.switch_back());
    assert_eq!(socket.heads(2).await, a);
}

#[tokio::test]
async fn heads_by_hand_come_late_twice_or_never() {
    let (chain, node) = manual(1).await;
    let mut socket = Socket::subscribed(&node).await;
    chain.set_announcing(false);
    let blocks = chain.mine(3);
    for index in [2, 0, 0] {
        assert!(chain.announce(blocks[index].hash()));
    }
    let numbers: Vec<u64> = socket.heads(3).await.into_iter().map(|(number, _)| number).collect();
    assert_eq!(numbers, [4, 2, 2]);
    assert!(!chain.announce(alloy_primitives::B256::ZERO));
}

#[tokio::test]
async fn unsubscribe_ends_it_and_two_subscriptions_get_it_twice() {
    let (chain, node) = manual(1).await;
    let mut socket = Socket::open(&node).await;
    let first = socket.call("eth_subscribe", json!(["newHeads"])).await["result"].clone();
    let second = socket.call("eth_subscribe", json!(["newHeads"])).await["result"].clone();
    assert_ne!(first, second);
    chain.mine(1);
    assert_eq!(socket.heads(2).await.len(), 2);
    assert_eq!(socket.call("eth_unsubscribe", json!([first])).await["result"], true);
    assert_eq!(socket.call("eth_unsubscribe", json!([first])).await["error"]["code"], -32000);
    assert_eq!(socket.call("eth_unsubscribe", json!([second])).await["result"], true);
    chain.mine(1);
    // The next message is the answer, not a head.
    assert_eq!(socket.call("eth_blockNumber", json!([])).await["result"], "0x3");
    let other = socket.call("eth_subscribe", json!(["logs"])).await;
    assert_eq!(other["error"]["message"], "no \"logs\" subscription in eth namespace");
    for _ in 0..16 {
        socket.call("eth_subscribe", json!(["newHeads"])).await;
    }
    let refused = socket.call("eth_subscribe", json!(["newHeads"])).await;
    assert_eq!(refused["error"]["message"], "too many subscriptions");
}

#[tokio::test]
async fn a_muted_chain_accepts_subscriptions_and_sends_nothing() {
    let (chain, node) = manual(1).await;
    chain.set_muted(true);
    let mut socket = Socket::subscribed(&node).await;
    chain.mine(2);
    assert_eq!(socket.call("eth_blockNumber", json!([])).await["result"], "0x3");
    chain.set_muted(false);
    chain.mine(1);
    assert_eq!(number(&socket.head().await["number"]), 4);
}

#[tokio::test]
async fn sockets_are_cut_connections_refused_and_taken_again() {
    let (chain, node) = manual(1).await;
    let mut socket = Socket::subscribed(&node).await;
    chain.cut_sockets();
    assert_eq!(socket.next_text().await, None);
    let mut socket = Socket::subscribed(&node).await;
    node.kill_connections();
    assert_eq!(socket.next_text().await, None);
    until("a cut socket is gone", || chain.open_sockets() == 0).await;

    node.pause();
    let deadline = Instant::now() + DEADLINE;
    while TcpStream::connect(node.addr()).await.is_ok() {
        assert!(Instant::now() < deadline, "a paused node refuses");
    }
    node.resume();
    while TcpStream::connect(node.addr()).await.is_err() {
        assert!(Instant::now() < deadline, "a resumed node listens");
    }
    assert_eq!(result(&node, "eth_blockNumber", json!([])).await, "0x1");
    let addr = node.addr();
    drop(node);
    while TcpStream::connect(addr).await.is_ok() {
        assert!(Instant::now() < deadline, "a dropped node is gone");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_is_disconnected() {
    let (chain, node) = manual(1).await;
    let socket = Socket::subscribed(&node).await;
    let deadline = Instant::now() + DEADLINE;
    while chain.open_sockets() > 0 {
        assert!(Instant::now() < deadline, "a slow subscriber stays connected");
        chain.mine(200);
        tokio::task::yield_now().await;
    }
    drop(socket);
}

#[tokio::test]
async fn a_scheduled_chain_announces_blocks_and_reorgs_by_the_clock() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let chain = Chain::scheduled(ChainSpec {
        chain_id: 1,
        block_time: Duration::from_millis(40),
        events_per_block: 3,
        empty_every: 0,
        reorg_every: 10,
        reorg_depth: 4,
        seed: 5,
        genesis_time: now - 10,
    })
    .unwrap();
    let node = serve(chain.clone()).await;
    let mut socket = Socket::subscribed(&node).await;
    let heads = socket.heads(60).await;
    let mut reorgs = 0;
    for pair in heads.windows(2) {
        let ((before, _), (after, _)) = (&pair[0], &pair[1]);
        if *after != before + 1 {
            assert!(before % 10 == 0 && *after <= *before && *after > before - 4, "{pair:?}");
            reorgs += 1;
        }
    }
    assert!(reorgs >= 3, "{reorgs} reorgs in 60 heads");
    let last = heads.last().unwrap().0;
    let block = chain.block(last - 30).unwrap();
    let newest = heads.iter().rev().find(|(number, _)| *number == last - 30).unwrap();
    assert_eq!(block.hash().to_string(), newest.1, "the last announced is the settled one");
}
