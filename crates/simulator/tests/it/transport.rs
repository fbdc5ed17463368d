//! How an answer arrives, not what it says: in parts, in another order, with a status.

use ethhook_simulator::Fault;
use serde_json::{Value, json};

use crate::client::{Socket, manual, post, post_raw, result};

#[tokio::test]
async fn answers_come_in_parts_or_in_another_order() {
    let (chain, node) = manual(3).await;
    let batch = |methods: &[&str]| {
        let calls = methods.iter().enumerate().map(
            |(id, method)| json!({"jsonrpc": "2.0", "id": id, "method": method, "params": []}),
        );
        Value::from_iter(calls).to_string()
    };
    let ids = async |methods: &[&str]| -> Vec<u64> {
        let answers = post(node.addr(), "/", &batch(methods)).await;
        let answers = answers.as_array().unwrap().iter();
        answers.map(|answer| answer["id"].as_u64().unwrap()).collect()
    };
    let played = |kind: &str| chain.stats().faults_played().get(kind).copied().unwrap_or_default();
    let methods = ["eth_chainId", "eth_blockNumber", "net_version"];
    chain.faults().push("eth_blockNumber", Fault::LateInBatch, 1);
    assert_eq!(ids(&methods).await, [0, 2, 1]);
    assert_eq!(ids(&methods).await, [0, 1, 2]);
    // The only one is always the last.
    chain.faults().push("eth_blockNumber", Fault::LateInBatch, 2);
    assert_eq!(result(&node, "eth_blockNumber", json!([])).await, "0x3");
    assert_eq!(ids(&methods[..2]).await, [0, 1]);
    assert_eq!(played("late_in_batch"), 1);

    chain.faults().push("eth_blockNumber", Fault::Fragmented, 3);
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber"}).to_string();
    let answer = post_raw(node.addr(), "/", &call).await.unwrap();
    assert!(answer.contains("transfer-encoding: chunked"), "{answer}");
    assert!(post_raw(node.addr(), "/", &batch(&methods)).await.unwrap().contains("chunked"));
    let mut socket = Socket::open(&node).await;
    socket.send("eth_blockNumber", json!([])).await;
    // Its library joins the parts once it has read the ping between them.
    assert_eq!(socket.next_text().await.unwrap(), "in between");
    assert!(socket.next_text().await.unwrap().contains("0x3"));
    assert_eq!(played("fragmented"), 3);
}

#[tokio::test]
async fn an_error_may_come_with_a_status_of_its_own() {
    let (chain, node) = manual(3).await;
    let fault = Fault::ErrorWithStatus(400, -32000, "header not found".into());
    chain.faults().push("eth_blockNumber", fault, 2);
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber"}).to_string();
    let answer = post_raw(node.addr(), "/", &call).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let error = json!({"code": -32000, "message": "header not found"});
    assert_eq!(body, json!({"jsonrpc": "2.0", "id": 1, "error": error}));
    let mut socket = Socket::open(&node).await;
    assert_eq!(socket.call("eth_blockNumber", json!([])).await["error"], error);
}
