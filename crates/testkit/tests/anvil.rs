//! The dev node does what the tests need, and its blocks pass the service's checks.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use ethhook_domain::block::{Body, Quantity};
use ethhook_domain::verify::verify;
use ethhook_domain::{Header, Profile, Proof, Receipt};
use ethhook_testkit::anvil::{Anvil, Mining};
use ethhook_testkit::node_rpc::RpcError;
use serde_json::{Value, json};

async fn receipts(anvil: &Anvil, number: u64) -> Vec<Receipt> {
    anvil.node().call("eth_getBlockReceipts", json!([Quantity(number)])).await.unwrap()
}

async fn header(anvil: &Anvil, number: u64) -> Header {
    anvil.node().header_by_number(number).await.unwrap().unwrap()
}

fn local() -> Profile {
    Profile::built_in().into_iter().find(|profile| profile.name == "local").unwrap()
}

#[tokio::test]
async fn it_emits_logs_and_its_blocks_pass_at_receipts_root() {
    let anvil = Anvil::start(Mining::OnDemand).await.unwrap();
    let emitter = anvil.deploy_emitter().await.unwrap();
    for (account, count) in [(0, 3), (1, 0), (2, 400)] {
        anvil.emit(emitter, account, count, 7).await.unwrap();
    }
    anvil.mine(2).await.unwrap();
    assert_eq!(anvil.node().block_number().await.unwrap(), 3);

    let mut logs = Vec::new();
    for number in 0..=3 {
        let header = header(&anvil, number).await;
        let body = Body::Receipts(receipts(&anvil, number).await);
        let verified = verify(&local(), &header, body).unwrap();
        assert_eq!((verified.proof, verified.unhashed), (Proof::ReceiptsRoot, false));
        assert_eq!(anvil.node().logs_of(header.block.hash).await.unwrap(), verified.logs);
        logs.push(verified.logs.len());
    }
    assert_eq!(logs, [0, 0, 403, 0]);
    anvil.stop().await.unwrap();
}

#[tokio::test]
async fn it_reorganises_with_the_same_and_with_other_transactions() {
    let anvil = Anvil::start(Mining::OnDemand).await.unwrap();
    let emitter = anvil.deploy_emitter().await.unwrap();
    for salt in 0..3 {
        anvil.emit(emitter, 0, 5, salt).await.unwrap();
        anvil.mine(1).await.unwrap();
    }
    let hashes = async || {
        let mut hashes = Vec::new();
        for number in 1..=4 {
            hashes.push(header(&anvil, number).await.block.hash);
        }
        hashes
    };
    let before = hashes().await;
    let other = anvil.emission(emitter, 0, 9, 99).unwrap();
    anvil.reorg(2, &[(other, 1)]).await.unwrap();
    let after = hashes().await;
    assert_eq!(before[..2], after[..2]);
    assert!(before[2] != after[2] && before[3] != after[3]);
    let count =
        async |number| receipts(&anvil, number).await.iter().map(|r| r.logs.len()).sum::<usize>();
    assert_eq!([count(3).await, count(4).await], [0, 9]);
}

#[tokio::test]
async fn errors_are_the_nodes_own() {
    let anvil = Anvil::start(Mining::EverySeconds(1)).await.unwrap();
    let error = anvil.node().call::<Value>("eth_noSuchMethod", json!([])).await.unwrap_err();
    let error = error.downcast_ref::<RpcError>().unwrap();
    assert_eq!(error.code, -32601, "{error}");
    assert_eq!(anvil.node().header_by_number(1 << 40).await.unwrap(), None);
    let accounts: BTreeSet<_> = anvil.accounts().iter().collect();
    assert_eq!(accounts.len(), 10);
}
