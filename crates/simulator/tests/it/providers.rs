//! Faults of providers beyond a single wrong answer: false headers, heights and finality, faults of
//! heads, two endpoints of one chain, and mischief from a seed.

use std::time::Duration;

use ethhook_domain::Header;
use ethhook_domain::block::Seal;
use ethhook_simulator::{
    BloomLie, Chain, Fault, FinalizedLie, HeadFault, ManualChain, ManualSpec, Mischief,
    RunningNode, Transport,
};
use serde_json::{Value, json};

use crate::client::{Socket, answer, error, hex, manual, number, post_raw, result, serve};

const RECEIPTS: &str = "eth_getBlockReceipts";

fn logs(result: &Value) -> Vec<Value> {
    let items = result.as_array().unwrap().iter();
    items
        .flat_map(|item| item["logs"].as_array().cloned().unwrap_or_else(|| vec![item.clone()]))
        .collect()
}

fn indices(result: &Value) -> Vec<u64> {
    logs(result).iter().map(|log| number(&log["logIndex"])).collect()
}

/// Chain 1 with 12 logs in its head; the logs as receipts and as logs.
async fn twelve() -> (ManualChain, RunningNode, [(&'static str, Value); 2]) {
    let (chain, node) = manual(0).await;
    let hash = chain.mine_events(12).hash();
    let calls = [(RECEIPTS, json!([hash])), ("eth_getLogs", json!([{ "blockHash": hash }]))];
    (chain, node, calls)
}

#[tokio::test]
async fn logs_of_another_fork_and_wrong_indices() {
    let (chain, node, calls) = twelve().await;
    for (method, params) in calls {
        let right = result(&node, method, params.clone()).await;
        assert_eq!(indices(&right), (0..12).collect::<Vec<_>>());
        let wrong = async |fault: Fault| {
            let kind = fault.kind();
            chain.faults().push(method, fault, 1);
            let wrong = result(&node, method, params.clone()).await;
            assert_eq!((chain.faults().left(), chain.stats().faults_played()[kind]), (0, 1));
            assert_eq!(result(&node, method, params.clone()).await, right);
            wrong
        };
        let foreign = wrong(Fault::ForeignLogs).await;
        let other = &foreign[0]["blockHash"];
        assert_ne!(other, &right[0]["blockHash"]);
        for (item, log) in foreign.as_array().unwrap().iter().zip(logs(&foreign)) {
            assert_eq!((&item["blockHash"], &log["blockHash"]), (other, other));
        }
        let restarted = wrong(Fault::LogIndexPerTransaction).await;
        assert_eq!(indices(&restarted).iter().filter(|index| **index == 0).count(), {
            let mut hashes: Vec<String> =
                logs(&right).iter().map(|log| log["transactionHash"].to_string()).collect();
            hashes.dedup();
            hashes.len()
        });
        assert_eq!(indices(&wrong(Fault::DoubledLogIndex).await)[..3], [0, 0, 2]);
        let one = logs(&wrong(Fault::ForeignLog).await);
        let foreign = one.iter().zip(logs(&right)).filter(|(one, right)| *one != right);
        assert_eq!(foreign.count(), 1);
        chain.stats().reset();
    }
}

#[tokio::test]
async fn a_range_without_one_of_its_blocks() {
    let (chain, node) = manual(3).await;
    chain.mine(4);
    let range = async |first: u64, last: u64| {
        let bounds = json!([{ "fromBlock": hex(first), "toBlock": hex(last) }]);
        let logs = result(&node, "eth_getLogs", bounds).await;
        let mut heights: Vec<_> =
            logs.as_array().unwrap().iter().map(|log| number(&log["blockNumber"])).collect();
        heights.dedup();
        heights
    };
    chain.faults().push("eth_getLogs", Fault::CutRange, 1);
    let all = json!([{ "fromBlock": hex(1), "toBlock": hex(3) }]);
    let (cut, whole) =
        (result(&node, "eth_getLogs", all.clone()).await, result(&node, "eth_getLogs", all).await);
    let of_block_two = |logs: &Value| {
        logs.as_array().unwrap().iter().filter(|log| number(&log["blockNumber"]) == 2).count()
    };
    assert_eq!(of_block_two(&cut), of_block_two(&whole) - 1);
    assert!(whole.as_array().unwrap().starts_with(cut.as_array().unwrap()));
    chain.faults().push("eth_getLogs", Fault::DropBlock, 1);
    // With only one block, nothing would be left.
    assert_eq!(range(2, 2).await, [2]);
    assert_eq!(range(1, 3).await, [1, 3]);
    assert_eq!(range(1, 3).await, [1, 2, 3]);
}

#[tokio::test]
async fn an_unknown_block_is_answered_by_an_empty_array() {
    let (chain, node, calls) = twelve().await;
    for (method, params) in calls {
        chain.faults().push(method, Fault::UnknownAsEmpty(0), 1);
        let right = result(&node, method, params.clone()).await;
        assert!(!right.as_array().unwrap().is_empty(), "it knows this block");
        let nowhere = format!("0x{}", "ab".repeat(32));
        let unknown =
            if method == RECEIPTS { json!([nowhere]) } else { json!([{ "blockHash": nowhere }]) };
        assert_eq!(result(&node, method, unknown).await, json!([]));
        chain.faults().push(method, Fault::UnknownAsEmpty(1), 1);
        assert_eq!(result(&node, method, params.clone()).await, json!([]), "one behind");
        assert_eq!(chain.faults().left(), 0);
    }
}

#[tokio::test]
async fn headers_lie_about_their_bloom() {
    let (chain, node) = manual(1).await;
    chain.mine_events(0);
    let zero = format!("0x{}", "0".repeat(512));
    let lies = [(BloomLie::Zero, 1), (BloomLie::Ones, 1), (BloomLie::OnEmpty, 2)];
    for (lie, height) in lies {
        for (method, which) in [
            ("eth_getBlockByNumber", json!(hex(height))),
            ("eth_getBlockByHash", json!(chain.block(height).unwrap().hash())),
        ] {
            let right = result(&node, method, json!([which, false])).await;
            chain.faults().push(method, Fault::Bloom(lie), 1);
            if lie != BloomLie::Ones {
                let other = chain.block(3 - height).unwrap().hash();
                result(&node, "eth_getBlockByHash", json!([other, false])).await;
                assert_eq!(chain.faults().left(), 1, "nothing to alter");
            }
            let wrong = result(&node, method, json!([which, false])).await;
            let bloom = wrong["logsBloom"].as_str().unwrap();
            assert_ne!(bloom, right["logsBloom"]);
            assert_eq!((bloom.len(), bloom == zero), (514, lie == BloomLie::Zero));
            let header: Header = serde_json::from_value(wrong).unwrap();
            assert_eq!(header.seal, Seal::Differs);
        }
    }
}

/// A node's view: the head, by number and by tag, and whether it has the block at a height.
async fn view_of(node: &RunningNode, chain: &Chain, height: u64) -> (u64, u64, bool) {
    let head = number(&result(node, "eth_blockNumber", json!([])).await);
    let latest = result(node, "eth_getBlockByNumber", json!(["latest", false])).await;
    let hash = chain.block(height).unwrap().hash();
    let by_number = result(node, "eth_getBlockByNumber", json!([hex(height), false])).await;
    let by_hash = result(node, "eth_getBlockByHash", json!([hash, false])).await;
    let receipts = result(node, RECEIPTS, json!([hash])).await;
    let logs = answer(node, "eth_getLogs", json!([{ "blockHash": hash }])).await;
    let knows = !by_number.is_null();
    assert_eq!([!by_hash.is_null(), !receipts.is_null(), logs.get("result").is_some()], [knows; 3]);
    (head, number(&latest["number"]), knows)
}

#[tokio::test]
async fn one_call_is_answered_by_a_node_that_lags() {
    let (chain, node) = manual(2_000).await;
    let heads = async || number(&result(&node, "eth_blockNumber", json!([])).await);
    for (behind, kind) in [(1, "behind"), (1_500, "far_behind")] {
        chain.faults().push("eth_blockNumber", Fault::Behind(behind), 1);
        assert_eq!([heads().await, heads().await], [2_000 - behind, 2_000]);
        assert_eq!(chain.stats().faults_played()[kind], 1);
    }
    // For an old block the answer is the same, so the fault waits for a call that it changes.
    chain.faults().push(RECEIPTS, Fault::Behind(5), 1);
    assert!(result(&node, RECEIPTS, json!(["0x1"])).await.is_array());
    assert!(result(&node, RECEIPTS, json!([hex(1_996)])).await.is_null());
    assert!(result(&node, RECEIPTS, json!([hex(1_996)])).await.is_array());
}

#[tokio::test]
async fn http_and_websocket_are_at_different_heights() {
    let (chain, node) = manual(10).await;
    let mut socket = Socket::subscribed(&node).await;
    chain.set_lag(Transport::Http, 4);
    assert_eq!(view_of(&node, &chain, 7).await, (6, 6, false));
    assert_eq!(view_of(&node, &chain, 6).await, (6, 6, true));
    assert_eq!(socket.call("eth_blockNumber", json!([])).await["result"], "0xa");
    chain.set_lag(Transport::Http, 0);
    chain.set_lag(Transport::WebSocket, 2);
    assert_eq!(view_of(&node, &chain, 10).await, (10, 10, true));
    assert_eq!(socket.call("eth_blockNumber", json!([])).await["result"], "0x8");
    chain.mine(1);
    assert_eq!(socket.heads(1).await, [(9, chain.block(9).unwrap().hash().to_string())]);
    chain.faults().push_head(HeadFault::HttpBehind(3), 1);
    chain.mine(1);
    assert_eq!(view_of(&node, &chain, 9).await, (9, 9, true));
    chain.mine(1);
    assert_eq!(view_of(&node, &chain, 13).await, (13, 13, true));
}

#[tokio::test]
async fn finalized_goes_back_equals_latest_or_stalls() {
    let (chain, node) = manual(100).await;
    let finalized = async || {
        let block = result(&node, "eth_getBlockByNumber", json!(["finalized", false])).await;
        number(&block["number"])
    };
    let lies =
        [(FinalizedLie::Back(6), 30), (FinalizedLie::Latest, 100), (FinalizedLie::At(20), 20)];
    for (lie, height) in lies {
        chain.faults().push("eth_getBlockByNumber", Fault::Finalized(lie), 1);
        assert_eq!([finalized().await, finalized().await], [height, 36]);
    }
    // Only that tag is affected.
    chain.faults().push("eth_getBlockByNumber", Fault::Finalized(FinalizedLie::Latest), 1);
    result(&node, "eth_getBlockByNumber", json!(["safe", false])).await;
    assert_eq!([finalized().await, finalized().await], [100, 36]);
    chain.set_finalized_lie(Some(FinalizedLie::At(36)));
    chain.mine(10);
    assert_eq!([finalized().await, finalized().await], [36, 36]);
    chain.behave();
    assert_eq!(finalized().await, 46);
}

#[tokio::test]
async fn answers_longer_than_a_frame_may_be() {
    let (chain, node, [(method, params), _]) = twelve().await;
    let right = result(&node, method, params.clone()).await;
    chain.faults().push(method, Fault::Padded(17 << 20), 2);
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
    let long = post_raw(node.addr(), "/", &call).await.unwrap();
    assert!(long.len() > 17 << 20);
    let body: Value = serde_json::from_str(long.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(body["result"], right);
    let mut socket = Socket::open(&node).await;
    socket.send(method, params).await;
    // The client's library limits frames to 16 MiB, and gives up.
    assert_eq!(socket.next_text().await, None);
    assert_eq!(chain.faults().left(), 0);
}

#[tokio::test]
async fn answers_are_cut_in_the_middle() {
    let (chain, node, [(method, params), _]) = twelve().await;
    chain.faults().push(method, Fault::CutMidAnswer, 2);
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
    let cut = post_raw(node.addr(), "/", &call).await.unwrap();
    let (head, body) = cut.split_once("\r\n\r\n").unwrap();
    let promised: usize = head
        .lines()
        .find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned))
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(body.len(), promised / 2);
    assert!(body.starts_with("{\"jsonrpc\""));
    let whole = post_raw(node.addr(), "/", &call.replace(RECEIPTS, "eth_chainId")).await.unwrap();
    assert!(whole.ends_with('}'), "the node lives on");

    let mut socket = Socket::open(&node).await;
    socket.send(method, params.clone()).await;
    assert_eq!(socket.next_text().await, None);
    let mut socket = Socket::open(&node).await;
    assert!(socket.call(method, params).await["result"].is_array());
}

#[tokio::test]
async fn errors_by_which_providers_refuse() {
    let (chain, node, [_, (method, params)]) = twelve().await;
    let cases = [
        (-32005, "limit_exceeded"),
        (-32602, "range_too_wide"),
        (-32601, "method_not_found"),
        (-32001, "method_not_offered"),
        (-32000, "error"),
    ];
    for (code, kind) in cases {
        chain.faults().push(method, Fault::Error(code, kind.to_owned()), 1);
        assert_eq!(error(&node, method, params.clone()).await, (code, kind.to_owned()));
        assert_eq!(chain.stats().faults_played()[kind], 1);
    }
}

/// A subscriber to a chain of three blocks, the second of them empty, for faults of heads.
async fn subscriber() -> (ManualChain, RunningNode, Socket) {
    let (chain, node) = manual(3).await;
    let socket = Socket::subscribed(&node).await;
    (chain, node, socket)
}

async fn heights(socket: &mut Socket, count: usize) -> Vec<u64> {
    socket.heads(count).await.into_iter().map(|(height, _)| height).collect()
}

#[tokio::test]
async fn heads_are_skipped_doubled_late_or_go_back() {
    let (chain, _node, mut socket) = subscriber().await;
    for fault in [HeadFault::Skip, HeadFault::Double, HeadFault::Back(1), HeadFault::Back(5)] {
        chain.faults().push_head(fault, 1);
    }
    chain.mine(5);
    assert_eq!(heights(&mut socket, 6).await, [5, 5, 6, 5, 7, 2]);
    assert_eq!(heights(&mut socket, 1).await, [8]);
    chain.faults().push_head(HeadFault::Late(50), 1);
    chain.mine(51);
    let mut expected: Vec<u64> = (10..=59).collect();
    expected.push(9);
    assert_eq!(heights(&mut socket, 51).await, expected);
    chain.faults().push_head(HeadFault::Back(1_000), 1);
    chain.mine(1);
    assert_eq!((heights(&mut socket, 1).await, chain.faults().left()), (vec![60], 1));
    chain.mine(2_000);
    // It waited until the chain was long enough.
    assert_eq!(chain.faults().left(), 0);
    assert_eq!(chain.stats().faults_played()["head_far_back"], 1);
    assert_eq!(chain.stats().faults_played()["head_back"], 2);
}

#[tokio::test]
async fn heads_lack_fields_or_have_another_bloom() {
    let (chain, _node, mut socket) = subscriber().await;
    chain.faults().push_head(HeadFault::MissingField("receiptsRoot".to_owned()), 1);
    chain.mine(1);
    let head = socket.head().await;
    assert!(head.get("receiptsRoot").is_none() && head.get("logsBloom").is_some());
    chain.faults().push_head(HeadFault::MissingField("noSuchField".to_owned()), 1);
    chain.mine(1);
    let whole: Header = serde_json::from_value(socket.head().await).unwrap();
    assert_eq!((whole.seal, chain.faults().left()), (Seal::Matches, 1));
    chain.faults().clear();
    for (lie, events) in [(BloomLie::Zero, 5), (BloomLie::Ones, 5), (BloomLie::OnEmpty, 0)] {
        chain.faults().push_head(HeadFault::Bloom(lie), 1);
        let block = chain.mine_events(events);
        let header: Header = serde_json::from_value(socket.head().await).unwrap();
        assert_eq!((header.block.hash, header.seal), (block.hash(), Seal::Differs));
    }
}

#[tokio::test]
async fn subscriptions_die_in_silence_and_sockets_are_dropped() {
    let (chain, node, mut socket) = subscriber().await;
    chain.faults().push_head(HeadFault::Deaf, 1);
    chain.mine(2);
    // The socket lives, and the next message is the answer.
    assert_eq!(socket.call("eth_blockNumber", json!([])).await["result"], "0x5");
    let mut fresh = Socket::subscribed(&node).await;
    chain.mine(1);
    assert_eq!(heights(&mut fresh, 1).await, [6]);
    assert_eq!(socket.call("eth_blockNumber", json!([])).await["result"], "0x6");

    chain.faults().push_head(HeadFault::Drop, 1);
    chain.mine(1);
    assert_eq!((fresh.next_text().await, socket.next_text().await), (None, None));

    let mut socket = Socket::subscribed(&node).await;
    chain.faults().push_head(HeadFault::Close, 1);
    chain.mine(1);
    assert_eq!(socket.next_text().await.unwrap(), "closed on request");
    assert_eq!(socket.next_text().await, None);
}

#[tokio::test]
async fn an_id_is_accepted_and_nothing_sent() {
    let (chain, node) = manual(3).await;
    chain.faults().push("eth_subscribe", Fault::DeafSubscription, 1);
    let mut socket = Socket::subscribed(&node).await;
    chain.mine(1);
    assert_eq!(socket.call("eth_blockNumber", json!([])).await["result"], "0x4");
    socket.call("eth_subscribe", json!(["newHeads"])).await;
    chain.mine(1);
    assert_eq!(heights(&mut socket, 1).await, [5]);
}

#[tokio::test]
async fn an_idle_socket_is_dropped_and_one_in_use_is_not() {
    let (chain, node, mut socket) = subscriber().await;
    chain.set_muted(true);
    chain.mine(1);
    chain.set_idle_limit(Some(Duration::from_millis(50)));
    assert_eq!(socket.next_text().await, None);
    chain.behave();
    let mut socket = Socket::subscribed(&node).await;
    chain.set_idle_limit(Some(Duration::from_secs(3_600)));
    chain.mine(1);
    assert_eq!(heights(&mut socket, 1).await, [5]);
}

#[tokio::test]
async fn two_endpoints_of_one_chain_go_wrong_on_their_own() {
    let (chain, honest) = manual(3).await;
    let view = chain.view();
    let lying = serve(view.clone()).await;
    let (mut at_honest, mut at_lying) =
        (Socket::subscribed(&honest).await, Socket::subscribed(&lying).await);
    view.faults().push(RECEIPTS, Fault::Empty, 1);
    view.faults().push_head(HeadFault::Skip, 1);
    view.set_lag(Transport::Http, 2);
    chain.mine(1);
    chain.reorg(1, 2, ethhook_simulator::Contents::Fresh);
    assert_eq!(heights(&mut at_honest, 3).await, [4, 4, 5]);
    assert_eq!(heights(&mut at_lying, 2).await, [4, 5]);
    assert_eq!(result(&honest, "eth_blockNumber", json!([])).await, "0x5");
    assert_eq!(result(&lying, "eth_blockNumber", json!([])).await, "0x3");
    let right = result(&honest, RECEIPTS, json!(["0x1"])).await;
    assert_eq!(result(&lying, RECEIPTS, json!(["0x1"])).await, json!([]));
    assert_eq!(result(&lying, RECEIPTS, json!(["0x1"])).await, right);
    assert_eq!((chain.stats().requests(RECEIPTS), view.stats().requests(RECEIPTS)), (1, 2));
    assert!(chain.stats().faults_played().is_empty());
    view.cut_sockets();
    assert_eq!(at_lying.next_text().await, None);
    assert_eq!(at_honest.call("eth_chainId", json!([])).await["result"], "0x1");
    assert_eq!((chain.open_sockets(), view.head_number()), (1, 5));
}

/// Sends many requests to a node, and returns all answers and announcements.
async fn transcript(seed: u64) -> (Vec<String>, Chain) {
    let chain = Chain::manual(ManualSpec { empty_every: 4, ..ManualSpec::new(1) });
    let node = serve(chain.clone()).await;
    chain.misbehave(Mischief::mixed(seed, 400).without(&[
        "no_answer",
        "delay",
        "padded",
        "sockets_dropped",
    ]));
    let mut said = Vec::new();
    for height in 1..=40 {
        let hash = chain.mine(1)[0].hash();
        for (method, params) in [
            ("eth_blockNumber", json!([])),
            ("eth_getBlockByNumber", json!([hex(height), false])),
            ("eth_getBlockByNumber", json!(["finalized", false])),
            (RECEIPTS, json!([hash])),
            ("eth_getLogs", json!([{ "blockHash": hash }])),
        ] {
            let call = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
            let text = post_raw(node.addr(), "/", &call.to_string()).await.unwrap_or_default();
            said.push(text.lines().filter(|line| !line.starts_with("date: ")).collect());
        }
    }
    (said, chain.into())
}

#[tokio::test]
async fn mischief_is_the_same_for_the_same_seed_and_ends_when_told() {
    let ((first, chain), (again, _)) = (transcript(5).await, transcript(5).await);
    assert_eq!(first, again);
    assert_ne!(first, transcript(6).await.0);
    let played = chain.stats().faults_played();
    let hit: u64 = played.values().sum();
    assert!((60..120).contains(&hit) && played.len() > 20, "{hit} of 240: {played:?}");
    chain.behave();
    let node = serve(chain.clone()).await;
    let mut socket = Socket::subscribed(&node).await;
    for height in 0..=40 {
        assert_eq!(view_of(&node, &chain, height).await, (40, 40, true));
        assert!(chain.announce(chain.block(height).unwrap().hash()));
    }
    assert_eq!(heights(&mut socket, 41).await, (0..=40).collect::<Vec<_>>());
    assert_eq!(chain.stats().faults_played(), played);
}
