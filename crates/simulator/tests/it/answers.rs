//! Answers and errors, as real nodes return them.

use std::time::Duration;

use ethhook_simulator::{Chain, Finality, ManualSpec, Node, RangeLimits, RateLimit};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::client::{
    DEADLINE, Socket, answer, error, hex, manual, number, post, post_raw, result, serve,
};

#[tokio::test]
async fn simple_questions() {
    let (_chain, node) = manual(3).await;
    assert_eq!(result(&node, "eth_chainId", json!([])).await, "0x1");
    assert_eq!(result(&node, "net_version", json!([])).await, "1");
    assert_eq!(result(&node, "eth_blockNumber", json!([])).await, "0x3");
    assert_eq!(result(&node, "eth_syncing", json!([])).await, false);
    let version = result(&node, "web3_clientVersion", json!([])).await;
    assert!(version.as_str().unwrap().starts_with("ethhook-simulator/"));
}

#[tokio::test]
async fn tags_stand_for_heights() {
    let (chain, node) = manual(100).await;
    let height = async |tag: &str| {
        let block = result(&node, "eth_getBlockByNumber", json!([tag, false])).await;
        number(&block["number"])
    };
    assert_eq!(height("latest").await, 100);
    assert_eq!(height("pending").await, 100);
    assert_eq!(height("safe").await, 68);
    assert_eq!(height("finalized").await, 36);
    assert_eq!(height("earliest").await, 0);
    assert_eq!(height("0x11").await, 17);
    chain.set_finalized(90);
    assert_eq!(height("finalized").await, 90);
    chain.set_finality(Finality::Unknown);
    let gone = error(&node, "eth_getBlockByNumber", json!(["finalized", false])).await;
    assert_eq!(gone, (-32000, "finalized block not found".to_owned()));
}

#[tokio::test]
async fn blocks_with_hashes_or_whole_transactions() {
    let (chain, node) = manual(1).await;
    let hash = chain.block(1).unwrap().hash();
    let short = result(&node, "eth_getBlockByHash", json!([hash, false])).await;
    let full = result(&node, "eth_getBlockByHash", json!([hash, true])).await;
    let receipts = result(&node, "eth_getBlockReceipts", json!([hash])).await;
    let receipts = receipts.as_array().unwrap();
    assert!(!receipts.is_empty());
    for (i, receipt) in receipts.iter().enumerate() {
        assert_eq!(short["transactions"][i], receipt["transactionHash"]);
        assert_eq!(full["transactions"][i]["hash"], receipt["transactionHash"]);
        assert_eq!(full["transactions"][i]["type"], receipt["type"]);
    }
    for which in [json!("0x1"), json!("latest"), json!({"blockHash": hash})] {
        let same = result(&node, "eth_getBlockReceipts", json!([which])).await;
        assert_eq!(same.as_array().unwrap(), receipts);
    }
}

#[tokio::test]
async fn what_is_unknown_is_null_or_an_error() {
    let (_chain, node) = manual(1).await;
    let nowhere = format!("0x{}", "ab".repeat(32));
    assert!(result(&node, "eth_getBlockByNumber", json!(["0x2", false])).await.is_null());
    assert!(result(&node, "eth_getBlockByHash", json!([nowhere, false])).await.is_null());
    assert!(result(&node, "eth_getBlockReceipts", json!([nowhere])).await.is_null());
    assert!(result(&node, "eth_getBlockReceipts", json!(["0x2"])).await.is_null());
    let unknown = error(&node, "eth_getLogs", json!([{ "blockHash": nowhere }])).await;
    assert_eq!(unknown, (-32000, "unknown block".to_owned()));
}

#[tokio::test]
async fn wrong_calls_get_their_codes() {
    let (_chain, node) = manual(1).await;
    let cases = [
        ("eth_foo", json!([]), -32601),
        ("eth_getBlockByNumber", json!([]), -32602),
        ("eth_getBlockByNumber", json!(["latest"]), -32602),
        ("eth_getBlockByNumber", json!(["newest", false]), -32602),
        ("eth_getBlockByNumber", json!(["0x01", false]), -32602),
        ("eth_getBlockByHash", json!(["0x12", false]), -32602),
        ("eth_getBlockReceipts", json!([17]), -32602),
        ("eth_getLogs", json!([{"address": "0x12"}]), -32602),
        ("eth_getLogs", json!([{"topics": ["0x12"]}]), -32602),
        ("eth_getLogs", json!([{"fromBlock": "0x1", "toBlock": "0x0"}]), -32000),
        ("eth_getLogs", json!({"fromBlock": "0x1"}), -32602),
        ("eth_subscribe", json!(["newHeads"]), -32001),
        ("eth_unsubscribe", json!(["0x1"]), -32000),
    ];
    for (method, params, code) in cases {
        assert_eq!(error(&node, method, params.clone()).await.0, code, "{method} {params}");
    }
    let bodies = [
        ("{\"jsonrpc\":\"2.0\"", -32700),
        ("", -32700),
        ("[]", -32600),
        ("17", -32600),
        (r#"{"id":1,"method":"eth_chainId"}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":{},"method":"eth_chainId"}"#, -32600),
    ];
    for (body, code) in bodies {
        let answer = post(node.addr(), "/", body).await;
        assert_eq!(
            (&answer["error"]["code"], &answer["id"]),
            (&json!(code), &Value::Null),
            "{body}"
        );
    }
}

#[tokio::test]
async fn a_batch_is_answered_call_by_call() {
    let (chain, node) = manual(2).await;
    let batch = json!([
        {"jsonrpc": "2.0", "id": "a", "method": "eth_blockNumber"},
        {"jsonrpc": "2.0", "method": "eth_blockNumber"},
        {"jsonrpc": "2.0", "id": 2, "method": "eth_foo", "params": []},
        5,
    ]);
    let answer = post(node.addr(), "/1", &batch.to_string()).await;
    assert_eq!(answer[0], json!({"jsonrpc": "2.0", "id": "a", "result": "0x2"}));
    assert_eq!((&answer[1]["id"], &answer[1]["error"]["code"]), (&json!(2), &json!(-32601)));
    assert_eq!(answer[2]["error"]["code"], -32600);
    assert_eq!(answer.as_array().unwrap().len(), 3);
    assert_eq!(chain.stats().requests("eth_blockNumber"), 1);

    let call = r#"{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}"#;
    let many = format!("[{}]", vec![call; 1_001].join(","));
    assert_eq!(post(node.addr(), "/1", &many).await["error"]["message"], "batch too large");
    assert_eq!(chain.stats().messages(), 2);
    chain.set_batch_limit(1);
    let refused = post(node.addr(), "/1", &batch.to_string()).await;
    assert_eq!(refused["error"]["message"], "batch too large");
}

#[tokio::test]
async fn calls_beyond_the_rate_limit_are_refused_until_the_second_is_over() {
    let (chain, node) = manual(2).await;
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber", "params": []});
    let batch = json!([call, call, call]).to_string();
    chain.set_rate_limit(Some(RateLimit { calls: 3, retry_after: Some(4) }));
    let whole = post_raw(node.addr(), "/1", &batch).await.unwrap();
    let refused = post_raw(node.addr(), "/1", &call.to_string()).await.unwrap();
    let mut socket = Socket::open(&node).await;
    let on_socket = socket.call("eth_blockNumber", json!([])).await;
    assert!(whole.starts_with("HTTP/1.1 200"), "{whole}");
    assert!(refused.starts_with("HTTP/1.1 429") && refused.contains("retry-after: 4"), "{refused}");
    assert_eq!(on_socket["error"]["code"], -32005);
    assert_eq!(chain.stats().requests("eth_blockNumber"), 3);
    assert_eq!(chain.stats().faults_played()["status_429"], 2);
    let mut again = async || {
        while socket.call("eth_blockNumber", json!([])).await["result"] != "0x2" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, again()).await.expect("it answers again");
    chain.behave();
    let many = json!([call, call, call, call]).to_string();
    assert_eq!(post(node.addr(), "/1", &many).await[3]["result"], "0x2");
}

#[tokio::test]
async fn logs_of_a_range_equal_those_of_its_receipts() {
    let (chain, node) = manual(20).await;
    chain.mine_events(0);
    chain.mine(3);
    let mut expected = Vec::new();
    for number in 5..=24 {
        let receipts = result(&node, "eth_getBlockReceipts", json!([hex(number)])).await;
        for receipt in receipts.as_array().unwrap() {
            expected.extend(receipt["logs"].as_array().unwrap().iter().cloned());
        }
    }
    assert_eq!(expected.len(), 19 * 5);
    let query = |more: Value| {
        let mut query = json!({"fromBlock": "0x5", "toBlock": "latest"});
        query.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!([query])
    };
    let logs = async |more: Value| result(&node, "eth_getLogs", query(more)).await;
    assert_eq!(logs(json!({})).await, json!(expected));

    let one = &expected[40];
    let matching = |keep: &dyn Fn(&Value) -> bool| {
        Value::Array(expected.iter().filter(|log| keep(log)).cloned().collect())
    };
    let by_address = matching(&|log| log["address"] == one["address"]);
    assert!(by_address.as_array().unwrap().len() < expected.len());
    assert_eq!(logs(json!({"address": one["address"]})).await, by_address);
    assert_eq!(
        logs(json!({"address": [one["address"], "0x".to_owned() + &"0".repeat(40)]})).await,
        by_address
    );
    let by_topic = matching(&|log| log["topics"][1] == one["topics"][1]);
    assert_eq!(logs(json!({"topics": [null, one["topics"][1]]})).await, by_topic);
    assert_eq!(logs(json!({"topics": [one["topics"][0], [one["topics"][1]], []]})).await, by_topic);
    let of_four = matching(&|log| log["topics"].as_array().is_some_and(|t| t.len() == 4));
    assert!((1..expected.len()).contains(&of_four.as_array().unwrap().len()));
    assert_eq!(logs(json!({"topics": [[], [], [], []]})).await, of_four);
}

#[tokio::test]
async fn a_range_too_wide_is_refused() {
    let (chain, node) = manual(30).await;
    chain.set_range_limits(RangeLimits { blocks: 10, logs: 45 });
    let query = |from: u64, to: u64| json!([{"fromBlock": hex(from), "toBlock": hex(to)}]);
    let logs = result(&node, "eth_getLogs", query(1, 9)).await;
    assert_eq!(logs.as_array().unwrap().len(), 45);
    let (code, message) = error(&node, "eth_getLogs", query(1, 11)).await;
    assert_eq!((code, message.as_str()), (-32602, "block range too wide: at most 10 blocks"));
    assert_eq!(error(&node, "eth_getLogs", query(1, 10)).await.0, -32005);
}

#[tokio::test]
async fn each_chain_has_its_path_and_the_first_also_the_root() {
    let chains = [42161, 10].map(|id| Chain::manual(ManualSpec::new(id)));
    let node = Node::bind(([127, 0, 0, 1], 0).into(), chains).await.unwrap().spawn();
    let call = r#"{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}"#;
    let paths = [("/", "0xa4b1"), ("/42161", "0xa4b1"), ("/10", "0xa"), ("/10/v2/some-key", "0xa")];
    for (path, id) in paths {
        assert_eq!(post(node.addr(), path, call).await["result"], id, "{path}");
    }
    let missing = post_raw(node.addr(), "/11", call).await.unwrap();
    assert!(missing.starts_with("HTTP/1.1 404"), "{missing}");
    let wide = "x".repeat(5 * 1024 * 1024 + 1);
    // The node may close before all of it is sent.
    if let Ok(refused) = post_raw(node.addr(), "/", &wide).await {
        assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 413"), "{refused}");
    }
    let twice = [3, 3].map(|id| Chain::manual(ManualSpec::new(id)));
    assert!(Node::bind(([127, 0, 0, 1], 0).into(), twice).await.is_err());
}

#[tokio::test]
async fn the_simulator_counts_what_it_was_asked() {
    let (chain, node) = manual(2).await;
    let mut socket = Socket::open(&node).await;
    assert_eq!(socket.call("eth_chainId", json!([])).await["result"], "0x1");
    answer(&node, "eth_chainId", json!([])).await;
    let text = answer(&node, "eth_blockNumber", json!([])).await.to_string();
    let stats = result(&node, "sim_stats", json!([])).await;
    assert_eq!(stats["requests"], json!({"eth_chainId": 2, "eth_blockNumber": 1}));
    assert_eq!(chain.stats().total_requests(), 3);
    assert!(chain.stats().bytes_sent() >= 3 * text.len() as u64);
    chain.stats().reset();
    assert_eq!(chain.stats().total_requests(), 0);
}

#[tokio::test]
async fn unknown_methods_do_not_fill_the_memory() {
    let chain = Chain::manual(ManualSpec::new(1));
    let node = serve(chain.clone()).await;
    let calls: Vec<Value> = (0..500)
        .map(|i| json!({"jsonrpc": "2.0", "id": i, "method": format!("eth_{i}")}))
        .collect();
    post(node.addr(), "/", &json!(calls).to_string()).await;
    assert_eq!(chain.stats().total_requests(), 500);
    assert!(chain.stats().by_method().len() <= 65);
}
