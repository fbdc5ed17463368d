//! `ethhook status` with and without a running service.

use std::process::Output;

use ethhook_simulator::{Chain, ManualSpec, Node};
use serde_json::Value;

use crate::operator::{checker, manual};
use crate::rig::{Rig, SETTLE, until};

/// The output of a command, whatever its exit code.
fn printed(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Tells commands the port of the service, which is a random free one.
pub(crate) async fn found(rig: &mut Rig) {
    let mut port = None;
    until("the service to listen", async || {
        port = rig.address("health").and_then(|a| a.rsplit(':').next().map(str::to_owned));
        port.is_some()
    })
    .await;
    rig.set("HEALTH_PORT", port.unwrap());
}

async fn report(rig: &Rig) -> Value {
    let output = rig.command(&["status", "--json"]).await;
    let report: Value = serde_json::from_str(&printed(&output)).unwrap();
    assert_eq!(output.status.code(), Some(if report["ok"] == true { 0 } else { 1 }), "{report}");
    report
}

#[tokio::test]
async fn status_agrees_with_redis_and_says_what_is_wrong() {
    let (chain, node, mut rig) = manual().await;
    rig.set("LEASE_TTL_MS", 1_000);
    rig.start();
    found(&mut rig).await;
    chain.mine(100);
    let checker = checker(&rig, &node).await;
    checker.settle_and_check(SETTLE).await.unwrap();
    let mut redis = rig.redis.connection().await.unwrap();
    let group = ["CREATE", "events:31337", "readers", "0"];
    redis::cmd("XGROUP").arg(&group).exec_async(&mut redis).await.unwrap();
    rig.wait_for("ready", |status, _| status == 200).await;
    let mut last = Value::Null;
    until("the service to show the whole", async || {
        last = report(&rig).await;
        let chain = &last["chains"][0];
        chain["state"] == "following" && chain["groups"][0]["behind"] == 1_000
    })
    .await;
    let cursor = checker.cursor().await.unwrap().unwrap();
    let shown = &last["chains"][0];
    assert_eq!((&shown["name"], &shown["chain_id"]), (&"local".into(), &31337.into()));
    assert_eq!(shown["head"], 100);
    assert_eq!(shown["published"], cursor.number);
    assert_eq!(shown["entries"], 1_000);
    assert_eq!(shown["counts"]["published"], 1_000);
    assert_eq!((&shown["lag_blocks"], &shown["writer"]), (&0.into(), &"rig".into()));
    assert_eq!(shown["endpoints"][0]["breaker"], "closed");
    assert_eq!(shown["endpoints"][0]["subscribed"], true);
    let output = rig.command(&["status"]).await;
    let text = printed(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("runs as rig") && text.contains("following"), "{text}");
    assert!(text.contains("group readers: 1000 to read") && text.ends_with("All is well.\n"));
    assert!(!text.contains('\x1b'), "plain where there is no terminal");

    // The service has ended: what Redis holds is still shown, and an alarm in it is explained.
    rig.terminate().await;
    let alarm = ["cursor:{events:31337}", "alarm", "a reorg below 36"];
    redis::cmd("HSET").arg(&alarm).exec_async(&mut redis).await.unwrap();
    let offline = report(&rig).await;
    assert_eq!((&offline["ok"], &offline["service"]), (&false.into(), &Value::Null));
    let shown = &offline["chains"][0];
    assert_eq!((&shown["published"], &shown["head"]), (&cursor.number.into(), &Value::Null));
    assert_eq!(shown["groups"][0]["behind"], 1_000);
    let text = printed(&rig.command(&["status"]).await);
    assert!(text.contains("ERROR: the service does not answer here"), "{text}");
    assert!(text.contains("systemctl start ethhook"), "{text}");
    assert!(text.contains("ethhook clear-alarm --chain local"), "{text}");
}

#[tokio::test]
async fn status_tells_that_redis_is_away_and_asks_for_a_port() {
    let (chain, _node, mut rig) = manual().await;
    let unknown_port = rig.command(&["status"]).await;
    assert_eq!(unknown_port.status.code(), Some(78), "{unknown_port:?}");
    assert!(String::from_utf8_lossy(&unknown_port.stderr).contains("HEALTH_PORT"));
    rig.start();
    found(&mut rig).await;
    chain.mine(3);
    until("all to be published", async || report(&rig).await["chains"][0]["published"] == 3).await;
    rig.redis.kill();
    let mut last = Value::Null;
    until("Redis to be missed", async || {
        last = report(&rig).await;
        last["redis"]["failure"].is_string()
    })
    .await;
    assert_eq!(last["troubles"][0]["level"], "error", "{last}");
    assert_eq!(last["chains"][0]["published"], 3, "the service remembers: {last}");
    rig.terminate().await;
    let text = printed(&rig.command(&["status"]).await);
    assert!(
        text.contains("does not answer here") && text.contains("the data in Redis cannot be read"),
        "{text}"
    );
}

#[tokio::test]
async fn one_chains_damaged_key_hides_no_other() {
    let chains = [31337, 8453].map(|id| Chain::manual(ManualSpec::new(id)));
    let node = Node::bind(([127, 0, 0, 1], 0).into(), chains.clone()).await.unwrap().spawn();
    let mut rig = Rig::new().await;
    for (name, id) in [("LOCAL", 31337), ("BASE", 8453)] {
        rig.set(&format!("{name}_WS_URL"), node.ws_url(id));
        rig.set(&format!("{name}_START_BLOCK"), 0);
    }
    rig.start();
    found(&mut rig).await;
    for chain in &chains {
        chain.mine(3);
    }
    let published = |report: &Value| [0, 1].map(|i| report["chains"][i]["published"].as_u64());
    until("both to be published", async || published(&report(&rig).await) == [Some(3); 2]).await;
    rig.terminate().await;
    let mut redis = rig.redis.connection().await.unwrap();
    let damage = ["cursor:{events:8453}", "seq", "many"];
    redis::cmd("HSET").arg(&damage).exec_async(&mut redis).await.unwrap();
    let shown = report(&rig).await;
    assert_eq!(shown["chains"].as_array().unwrap().len(), 1, "{shown}");
    assert_eq!((&shown["chains"][0]["name"], published(&shown)[0]), (&"local".into(), Some(3)));
    let failure = shown["redis"]["failure"].as_str().unwrap();
    assert!(failure.contains("base: key `cursor:{events:8453}`: field `seq`"), "{failure}");
    let text = printed(&rig.command(&["status"]).await);
    assert!(text.contains("`ethhook reset --chain base` deletes"), "{text}");
}
