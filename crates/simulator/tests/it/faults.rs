//! Each fault once, followed by the correct answer.

use std::time::{Duration, Instant};

use ethhook_simulator::{Fault, ManualChain, On, RunningNode};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::client::{Socket, answer, manual, post, post_raw, result};

const CALL: &str =
    r#"{"jsonrpc":"2.0","id":1,"method":"eth_getBlockReceipts","params":["latest"]}"#;

/// A chain with 12 logs in its head, whose next call for receipts gets this fault.
async fn faulty(fault: Fault) -> (ManualChain, RunningNode) {
    let (chain, node) = manual(0).await;
    chain.mine_events(12);
    chain.faults().push("eth_getBlockReceipts", fault, 1);
    (chain, node)
}

async fn receipts(node: &RunningNode) -> Vec<Value> {
    result(node, "eth_getBlockReceipts", json!(["latest"])).await.as_array().unwrap().clone()
}

fn logs(receipts: &[Value]) -> Vec<Value> {
    receipts.iter().flat_map(|r| r["logs"].as_array().unwrap().clone()).collect()
}

/// The faulty answer and the correct ones after it.
async fn wrong_then_right(fault: Fault) -> (Value, Vec<Value>) {
    let (chain, node) = faulty(fault).await;
    let wrong = answer(&node, "eth_getBlockReceipts", json!(["latest"])).await;
    assert_eq!(chain.faults().left(), 0);
    (wrong, receipts(&node).await)
}

#[tokio::test]
async fn null_empty_and_errors() {
    assert!(wrong_then_right(Fault::Null).await.0["result"].is_null());
    let (empty, right) = wrong_then_right(Fault::Empty).await;
    assert_eq!(empty["result"], json!([]));
    assert_eq!(logs(&right).len(), 12);
    let (error, _) = wrong_then_right(Fault::Error(-32005, "slow \"down\"".to_owned())).await;
    assert_eq!(error["error"], json!({"code": -32005, "message": "slow \"down\""}));
    assert_eq!(error["id"], 1);
}

#[tokio::test]
async fn null_and_empty_wait_for_an_answer_that_is_not_that_already() {
    let (chain, node) = faulty(Fault::Null).await;
    let receipts = |of: &str| result(&node, "eth_getBlockReceipts", json!([of]));
    assert!(receipts("0x99").await.is_null());
    assert_eq!(chain.faults().left(), 1, "that was right");
    assert!(receipts("0x1").await.is_null());
    chain.faults().push("eth_getBlockReceipts", Fault::Empty, 1);
    assert_eq!(receipts("0x0").await, json!([]));
    assert_eq!(chain.faults().left(), 1, "that was right");
    assert_eq!(receipts("0x1").await, json!([]));
    assert_eq!(chain.faults().left(), 0);
}

#[tokio::test]
async fn a_wrong_id() {
    let (wrong, right) = wrong_then_right(Fault::WrongId).await;
    assert_ne!(wrong["id"], 1);
    assert_eq!(wrong["result"], json!(right));
}

#[tokio::test]
async fn a_receipt_or_a_log_less_or_another() {
    let (wrong, right) = wrong_then_right(Fault::DropReceipt).await;
    assert_eq!(wrong["result"].as_array().unwrap().len(), right.len() - 1);
    let (wrong, right) = wrong_then_right(Fault::DropLog).await;
    let wrong = wrong["result"].as_array().unwrap();
    assert_eq!((wrong.len(), logs(wrong).len()), (right.len(), logs(&right).len() - 1));
    let (wrong, right) = wrong_then_right(Fault::AlterLog).await;
    let (wrong, right) = (logs(wrong["result"].as_array().unwrap()), logs(&right));
    let differing = wrong.iter().zip(&right).filter(|(a, b)| a != b).count();
    assert_eq!((wrong.len(), differing), (right.len(), 1));
}

#[tokio::test]
async fn logs_by_hash_can_be_altered_too() {
    let (chain, node) = faulty(Fault::Null).await;
    let query = json!([{"blockHash": chain.block(1).unwrap().hash()}]);
    chain.faults().push("eth_getLogs", Fault::DropLog, 1);
    let wrong = result(&node, "eth_getLogs", query.clone()).await;
    let right = result(&node, "eth_getLogs", query).await;
    assert_eq!((wrong.as_array().unwrap().len(), right.as_array().unwrap().len()), (11, 12));
}

#[tokio::test]
async fn what_finds_nothing_to_alter_stays_armed() {
    let (chain, node) = faulty(Fault::DropLog).await;
    let genesis = result(&node, "eth_getBlockReceipts", json!(["0x0"])).await;
    assert_eq!(genesis, json!([]));
    assert_eq!(chain.faults().left(), 1);
    assert_eq!(logs(&receipts(&node).await).len(), 11);
    assert_eq!(chain.faults().left(), 0);
}

#[tokio::test]
async fn html_invalid_json_and_statuses() {
    let (_chain, node) = faulty(Fault::Html).await;
    let html = post_raw(node.addr(), "/", CALL).await.unwrap();
    assert!(html.contains("text/html") && html.contains("<html>"), "{html}");
    let (_chain, node) = faulty(Fault::InvalidJson).await;
    let invalid = post_raw(node.addr(), "/", &format!("[{CALL},{CALL}]")).await.unwrap();
    let body = invalid.split_once("\r\n\r\n").unwrap().1;
    assert!(!body.is_empty() && serde_json::from_str::<Value>(body).is_err(), "{body}");
    let (_chain, node) = faulty(Fault::HttpStatus(429, Some(3))).await;
    let limited = post_raw(node.addr(), "/", CALL).await.unwrap().to_lowercase();
    assert!(limited.starts_with("http/1.1 429") && limited.contains("retry-after: 3"), "{limited}");
    assert!(post(node.addr(), "/", CALL).await["result"].is_array());
}

#[tokio::test]
async fn a_cut_and_silence_over_http() {
    let (_chain, node) = faulty(Fault::Cut).await;
    // Closed after the request was read: end of stream, or a reset.
    assert_eq!(post_raw(node.addr(), "/", CALL).await.unwrap_or_default(), "");
    assert_eq!(logs(&receipts(&node).await).len(), 12);
    let (_chain, node) = faulty(Fault::NoAnswer).await;
    let waiting = timeout(Duration::from_millis(300), post_raw(node.addr(), "/", CALL)).await;
    assert!(waiting.is_err(), "{waiting:?}");
    assert_eq!(logs(&receipts(&node).await).len(), 12);
}

#[tokio::test]
async fn a_delay_holds_up_its_own_call_only() {
    let (chain, node) = faulty(Fault::Delay(Duration::from_millis(1_500))).await;
    let start = Instant::now();
    let mut socket = Socket::subscribed(&node).await;
    socket.send("eth_getBlockReceipts", json!(["latest"])).await;
    chain.mine(1);
    assert_eq!(crate::client::number(&socket.head().await["number"]), 2);
    assert_eq!(socket.call("eth_chainId", json!([])).await["result"], "0x1");
    let late: Value = serde_json::from_str(&socket.next_text().await.unwrap()).unwrap();
    assert!(late["result"].is_array());
    assert!(start.elapsed() >= Duration::from_millis(1_500));
}

#[tokio::test]
async fn faults_over_a_websocket() {
    let (chain, node) = faulty(Fault::Cut).await;
    let params = || json!(["latest"]);
    let mut socket = Socket::open(&node).await;
    socket.send("eth_getBlockReceipts", params()).await;
    assert_eq!(socket.next_text().await, None);

    let mut socket = Socket::open(&node).await;
    chain.faults().push("eth_getBlockReceipts", Fault::NoAnswer, 1);
    socket.send("eth_getBlockReceipts", params()).await;
    assert_eq!(socket.call("eth_chainId", json!([])).await["result"], "0x1");
    assert_eq!(chain.faults().left(), 0);

    chain.faults().push("eth_getBlockReceipts", Fault::HttpStatus(429, None), 1);
    let limited = socket.call("eth_getBlockReceipts", params()).await;
    assert_eq!((&limited["error"]["code"], &limited["id"]), (&json!(-32005), &json!(7)));

    chain.faults().push("eth_getBlockReceipts", Fault::Html, 1);
    socket.send("eth_getBlockReceipts", params()).await;
    assert!(socket.next_text().await.unwrap().starts_with("<html>"));
}

#[tokio::test]
async fn faults_come_in_order_for_their_method_and_count() {
    let (chain, node) = manual(1).await;
    chain.faults().push("eth_blockNumber", Fault::Null, 2);
    chain.faults().push(On::Any, Fault::Empty, 1);
    let ask = async |method: &str| result(&node, method, json!([])).await;
    assert!(ask("eth_blockNumber").await.is_null());
    assert_eq!(ask("eth_chainId").await, json!([]));
    assert_eq!(ask("eth_chainId").await, "0x1");
    assert!(ask("eth_blockNumber").await.is_null());
    assert_eq!(ask("eth_blockNumber").await, "0x1");
    chain.faults().push(On::Any, Fault::Null, 5);
    assert_eq!(result(&node, "sim_stats", json!([])).await["faultsLeft"], 5);
    chain.faults().clear();
    assert_eq!(ask("eth_chainId").await, "0x1");
}
