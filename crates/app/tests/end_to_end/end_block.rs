//! The end of a chain: confirmations hold back its newest blocks, and an end block is the last one.

use ethhook_simulator::Contents;

use crate::operator::{checker, manual, published, tiny};
use crate::rig::{SETTLE, until};

#[tokio::test]
async fn confirmations_hold_blocks_back_and_an_end_block_ends() {
    let (chain, node, mut rig) = manual().await;
    rig.set("LOCAL_CONFIRMATIONS", 3).set("LOCAL_END_BLOCK", 12);
    rig.start();
    chain.mine(10);
    let checker = checker(&rig, &node).await.with_confirmations(3);
    let report = checker.settle_and_check(SETTLE).await.unwrap();
    assert_eq!(report.blocks, 8); // 0 to 7
    // Blocks that are held back, or above the end block, do not count as lag.
    let lag = r#"ethhook_head_lag_blocks{chain="local"}"#;
    let head = r#"ethhook_head_block{chain="local"}"#;
    assert_eq!((rig.metric(head).await, rig.metric(lag).await), (Some(10.0), Some(0.0)));
    // A reorg among blocks that are held back never appears in the stream.
    chain.reorg(3, 4, Contents::Fresh);
    assert_eq!(checker.settle_and_check(SETTLE).await.unwrap().removed, 0);
    chain.mine(10);
    let body = rig.wait_for("metrics", |_, body| {
        body.contains(r#"ethhook_published_block{chain="local"} 12"#)
    });
    body.await;
    rig.wait_for("ready", |status, _| status == 200).await;
    assert_eq!(checker.cursor().await.unwrap().unwrap().number, 12);
    until("the head", async || rig.metric(head).await >= Some(19.0)).await;
    assert_eq!(rig.metric(lag).await, Some(0.0));
}

#[tokio::test]
async fn past_the_end_block_headers_are_followed_only_until_it_is_final() {
    let (chain, _node, mut rig) = manual().await;
    chain.mine(400);
    rig.set("LOCAL_END_BLOCK", 12);
    rig.start();
    rig.wait_for("metrics", |_, body| {
        body.contains("ethhook_published_block{chain=\"local\"} 12\n")
    })
    .await;
    rig.wait_for("ready", |status, _| status == 200).await;
    // 13 blocks, the 64 above the last one that make it final, and a few other requests.
    let asked = chain.stats().requests("eth_getBlockByNumber");
    assert!((77..=90).contains(&asked), "{asked} headers were asked for");
}

#[tokio::test]
async fn g3_a_reorg_of_the_end_is_followed_until_it_is_final() {
    let (chain, node, mut rig) = tiny(10).await;
    rig.set("TINY_END_BLOCK", 25);
    // The tag is far below the least depth in the profile.
    chain.set_finalized(21);
    chain.mine(31);
    rig.start();
    let checker = checker(&rig, &node).await;
    let hash = async || checker.cursor().await.unwrap().map(|cursor| (cursor.number, cursor.hash));
    until("the end", async || hash().await.is_some_and(|(number, _)| number == 25)).await;
    let orphaned = hash().await;
    chain.reorg(10, 12, Contents::Fresh);
    until("the other branch's end", async || {
        let now = hash().await;
        now != orphaned && now.is_some_and(|(number, _)| number == 25)
    })
    .await;
    rig.terminate().await;
}

#[tokio::test]
async fn g3_an_end_block_below_what_is_published_leaves_no_orphan() {
    let (chain, _node, mut rig, checker) = published(30).await;
    rig.terminate().await;
    rig.set("LOCAL_END_BLOCK", 20);
    rig.start();
    rig.wait_for("ready", |status, _| status == 200).await;
    let tip = async || {
        let cursor = checker.cursor().await.unwrap().unwrap();
        assert_eq!(cursor.alarm, "");
        (cursor.number, cursor.hash)
    };
    // Above the end block, and across it.
    for depth in [5, 18] {
        chain.reorg(depth, depth + 2, Contents::Fresh);
        let wanted = (30, chain.block(30).map(|block| block.hash()));
        until("the other branch", async || tip().await == wanted).await;
    }
    rig.terminate().await;
    let told = rig.command(&["verify", "--chain", "local", "--to", "30"]).await;
    assert!(told.status.success(), "{told:?}");
}

#[tokio::test]
async fn raising_the_confirmations_takes_nothing_back() {
    let (chain, node, mut rig, _checker) = published(10).await;
    rig.terminate().await;
    rig.set("LOCAL_CONFIRMATIONS", 3);
    rig.start();
    chain.mine(1);
    rig.wait_for("ready", |status, _| status == 200).await;
    let cursor = async || checker(&rig, &node).await.cursor().await.unwrap().unwrap();
    assert_eq!(cursor().await.number, 10);
    chain.mine(3);
    let checker = checker(&rig, &node).await.with_confirmations(3);
    let report = checker.settle_and_check(SETTLE).await.unwrap();
    assert_eq!((cursor().await.number, report.removed), (11, 0));
}
