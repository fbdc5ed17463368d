//! Recorded blocks are served verbatim.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use ethhook_simulator::{Chain, RecordedError};
use ethhook_testkit::chain_data;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::client::{Socket, error, number, result, serve};

fn unpacked(path: &Path) -> Value {
    let mut text = String::new();
    GzDecoder::new(fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn files(folder: &Path) -> Vec<Value> {
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| unpacked(path)).collect()
}

#[tokio::test]
async fn recorded_blocks_are_served_as_they_are() {
    let Some(data) = chain_data::dir() else { return };
    let folder = data.join("blocks/optimism-sepolia-11155420");
    let chain = Chain::recorded(&folder).unwrap();
    assert_eq!(chain.chain_id(), 11_155_420);
    let node = serve(chain.clone()).await;
    for file in files(&folder) {
        let (block, hash) = (&file["block"], &file["block"]["hash"]);
        let full = json!([block["number"], true]);
        assert_eq!(&result(&node, "eth_getBlockByNumber", full).await, block);
        assert_eq!(&result(&node, "eth_getBlockByHash", json!([hash, true])).await, block);
        assert_eq!(&result(&node, "eth_getBlockReceipts", json!([hash])).await, &file["receipts"]);
        let logs = result(&node, "eth_getLogs", json!([{ "blockHash": hash }])).await;
        let receipts = file["receipts"].as_array().unwrap();
        let expected: Vec<&Value> =
            receipts.iter().flat_map(|r| r["logs"].as_array().unwrap()).collect();
        assert_eq!(logs, json!(expected));
        let short = result(&node, "eth_getBlockByHash", json!([hash, false])).await;
        let hashes: Vec<&Value> = receipts.iter().map(|r| &r["transactionHash"]).collect();
        assert_eq!(short["transactions"], json!(hashes));
    }
}

#[tokio::test]
async fn recorded_reorgs_are_replayed_by_moving_the_head() {
    let Some(data) = chain_data::dir() else { return };
    let chain = Chain::recorded(data.join("polygon_reorg/blocks")).unwrap();
    let node = serve(chain.clone()).await;
    let mut socket = Socket::subscribed(&node).await;
    let session = &chain_data::polygon_sessions(&data).unwrap()[0];
    let reorg = &session["reorgs"][0];
    for side in ["orphaned", "replaced_by"] {
        let block = &reorg[side][0];
        let (hash, height) = (&block["hash"], block["number"].as_u64().unwrap());
        let parsed = hash.as_str().unwrap().parse().unwrap();
        assert!(chain.set_head(parsed) && chain.announce(parsed));
        let head = socket.head().await;
        assert_eq!((&head["hash"], number(&head["number"])), (hash, height));
        assert!(head.get("transactions").is_none());
        let latest = result(&node, "eth_getBlockByNumber", json!(["latest", false])).await;
        assert_eq!(&latest["hash"], hash);
        let logs = result(&node, "eth_getLogs", json!([{ "blockHash": hash }])).await;
        assert_eq!(logs.as_array().unwrap().len() as u64, block["logs"].as_u64().unwrap());
        // Receipts were not recorded.
        assert_eq!(error(&node, "eth_getBlockReceipts", json!([hash])).await.0, -32601);
        let above = json!([format!("{:#x}", height + 1), false]);
        assert!(result(&node, "eth_getBlockByNumber", above).await.is_null());
    }
    assert!(!chain.set_head(alloy_primitives::B256::ZERO));
    let unasked = |file: &&Value| file["logs"].is_null();
    let files = files(&data.join("polygon_reorg/blocks"));
    let query = json!([{ "blockHash": files.iter().find(unasked).unwrap()["block"]["hash"] }]);
    assert_eq!(error(&node, "eth_getLogs", query).await.0, -32000);
}

#[test]
fn a_folder_that_cannot_be_served_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, json: Value| {
        let file = fs::File::create(folder.path().join(name)).unwrap();
        let mut packed = GzEncoder::new(file, Compression::fast());
        packed.write_all(json.to_string().as_bytes()).unwrap();
        packed.finish().unwrap();
    };
    let load = || Chain::recorded(folder.path()).err().unwrap();
    let missing = Chain::recorded(folder.path().join("none")).err().unwrap();
    assert!(matches!(missing, RecordedError::Unreadable { .. }));
    write("1.json.gz", json!({"chain_id": 1, "block": null, "receipts": []}));
    assert!(matches!(load(), RecordedError::Empty { .. }));
    let hash = format!("0x{}", "11".repeat(32));
    let block = json!({"number": "0x1", "hash": hash, "parentHash": hash, "timestamp": "0x1"});
    write("2.json.gz", json!({"chain_id": 1, "block": block, "receipts": []}));
    assert_eq!(Chain::recorded(folder.path()).unwrap().head_number(), 1);
    write("3.json.gz", json!({"chain_id": 2, "block": block, "receipts": []}));
    assert!(matches!(load(), RecordedError::TwoChains { found: 2, expected: 1, .. }));
    write("3.json.gz", json!({"chain_id": 1, "block": {"number": "0x1"}, "receipts": []}));
    let malformed = load().to_string();
    assert!(malformed.contains("3.json.gz") && malformed.contains("hash"), "{malformed}");
}
