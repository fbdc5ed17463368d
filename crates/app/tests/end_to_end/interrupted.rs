//! An operator's command that is killed midway: what it has done is consistent, and running it
//! again does the rest.

use std::net::SocketAddr;
use std::time::Duration;

use ethhook_domain::Op;
use ethhook_simulator::{Contents, ManualChain, RunningNode};
use ethhook_testkit::checker::Checker;
use ethhook_testkit::proxy::Proxy;

use crate::operator::{checker, manual};
use crate::rig::{Rig, SETTLE, until};

/// Delay in each direction: a step takes twice as long.
const SLOW: Duration = Duration::from_millis(30);

/// A chain, and a rig whose link to Redis can be slowed down.
async fn slowed() -> (ManualChain, RunningNode, Rig, Proxy, Checker) {
    let (chain, node, mut rig) = manual().await;
    let redis = SocketAddr::from(([127, 0, 0, 1], rig.redis.port()));
    let link = Proxy::start(redis).await.unwrap();
    rig.set("REDIS_URL", format!("redis://{}/", link.address())).set("LEASE_TTL_MS", 1_000);
    let checker = checker(&rig, &node).await;
    (chain, node, rig, link, checker)
}

/// Runs the command over a slow link and kills it once `half_way` is true.
async fn kill_half_way(
    rig: &Rig,
    link: &Proxy,
    command: &[&str],
    half_way: impl AsyncFnMut() -> bool,
) {
    link.delay(SLOW);
    tokio::select! {
        biased;
        () = until("half of it", half_way) => {} // dropping the command kills it
        done = rig.command(command) => panic!("it was done before it could be killed: {done:?}"),
    }
    link.delay(Duration::ZERO);
}

/// Runs the command again until the lease of the killed one has expired; returns its output.
async fn again(rig: &Rig, command: &[&str]) -> String {
    let mut told = String::new();
    until("the lease to run out", async || {
        let output = rig.command(command).await;
        told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        !told.contains("holds the lease")
    })
    .await;
    told
}

async fn number(checker: &Checker) -> u64 {
    checker.cursor().await.unwrap().unwrap().number
}

async fn lease_is_held(rig: &Rig) -> bool {
    let mut redis = rig.redis.connection().await.unwrap();
    redis::cmd("EXISTS").arg("lease:{events:31337}").query_async(&mut redis).await.unwrap()
}

#[tokio::test]
async fn a_rewind_that_was_killed_is_done_by_giving_it_again() {
    let (chain, _node, mut rig, link, checker) = slowed().await;
    rig.start();
    chain.mine(60);
    checker.settle_and_check(SETTLE).await.unwrap();
    rig.terminate().await;
    let rewind = ["rewind", "--chain", "local", "--to", "10", "--yes"];
    kill_half_way(&rig, &link, &rewind, async || number(&checker).await < 50).await;
    let at = number(&checker).await;
    assert!((11..50).contains(&at), "killed at {at}");
    let report = checker.check().await.unwrap();
    assert!(report.violations.is_empty() && report.records.is_empty(), "{report}");
    let told = again(&rig, &rewind).await;
    assert!(told.contains("will be taken back, down to block 10"), "{told}");
    assert_eq!(number(&checker).await, 10);
    rig.start();
    let report = checker.settle_and_check(SETTLE).await.unwrap();
    assert_eq!((report.blocks, report.removed), (61, 500), "{report}");
}

#[tokio::test]
async fn a_skip_that_was_killed_is_done_once() {
    let (chain, _node, mut rig, link, checker) = slowed().await;
    rig.start();
    chain.mine(10);
    checker.settle_and_check(SETTLE).await.unwrap();
    rig.terminate().await;
    chain.mine(10);
    let skip = ["skip", "--chain", "local", "--to", "15", "--yes"];
    // Between the lease and the step, or just after the step.
    kill_half_way(&rig, &link, &skip, async || lease_is_held(&rig).await).await;
    let told = again(&rig, &skip).await;
    assert!(told.contains("blocks 11 to 15") || told.contains("next block is 16"), "{told}");
    let markers = checker.markers().await.unwrap();
    let gaps: Vec<_> =
        markers.iter().filter(|(_, m)| m.op == Op::Gap).map(|(_, m)| m.number).collect();
    assert_eq!(gaps, [15]);
    rig.start();
    let report = checker.settle_and_check(SETTLE).await.unwrap();
    assert_eq!((report.events, report.removed), (150, 0), "{report}");
}

#[tokio::test]
async fn g10_a_cleared_alarm_that_was_killed_half_way_is_cleared_whole() {
    let (chain, _node, mut rig, link, checker) = slowed().await;
    rig.start();
    chain.mine(10);
    checker.settle_and_check(SETTLE).await.unwrap();
    rig.terminate().await;
    // The last skipped block counts as final: a reorg of it is an alarm.
    chain.mine(10);
    let told = again(&rig, &["skip", "--chain", "local", "--to", "20", "--yes"]).await;
    assert!(told.contains("Done"), "{told}");
    chain.mine(40);
    rig.start();
    checker.settle_and_check(SETTLE).await.unwrap();
    chain.reorg(45, 50, Contents::Fresh);
    rig.wait_for("ready", |status, body| status == 503 && body.contains("alarm")).await;
    assert!(!lease_is_held(&rig).await, "nobody need wait for one that stands still");
    rig.terminate().await;

    let clear = ["clear-alarm", "--chain", "local", "--yes"];
    kill_half_way(&rig, &link, &clear, async || number(&checker).await < 50).await;
    let at = number(&checker).await;
    assert!((20..50).contains(&at), "killed at {at}");
    // The ingestor does the rest by following the remaining reorg or, if that still goes below the
    // finalized block, the same command does.
    rig.start();
    until("the chain continues", async || {
        let told = again(&rig, &clear).await;
        assert!(
            told.contains("no alarm") || told.contains("alarm is cleared") || told.contains("Done"),
            "{told}"
        );
        let head = chain.block(65).map(|block| block.hash());
        checker.cursor().await.unwrap().and_then(|cursor| cursor.hash) == head
    })
    .await;
    let report = checker.settle_and_check(SETTLE).await.unwrap();
    assert_eq!(report.removed, 400, "{report}");
}
