//! Several ingestors for one configuration (G5).

use std::time::Duration;

use ethhook_simulator::{Chain, ManualChain, ManualSpec, Node, RunningNode};
use ethhook_testkit::checker::Checker;
use ethhook_testkit::ingestor::Ingestor;
use ethhook_testkit::node_rpc::NodeRpc;
use ethhook_testkit::redis_server::{RedisOptions, RedisServer};
use tokio::time::Instant;

use crate::rig::{SETTLE, ingestor, until, wait_for};

const LOCAL: u64 = 31337;
const LEASE_TTL: Duration = Duration::from_secs(2);

struct Scene {
    chain: ManualChain,
    node: RunningNode,
    redis: RedisServer,
}

impl Scene {
    async fn new() -> Self {
        let chain = Chain::manual(ManualSpec { events_per_block: 30, ..ManualSpec::new(LOCAL) });
        let node = Node::bind(([127, 0, 0, 1], 0).into(), [chain.clone()]).await.unwrap().spawn();
        let redis = RedisServer::spawn(RedisOptions::default()).await.unwrap();
        Self { chain, node, redis }
    }

    fn ingestor(&self, instance: &str) -> Ingestor {
        let mut ingestor = ingestor(&self.redis, instance);
        ingestor
            .set("LOCAL_WS_URL", self.node.ws_url(LOCAL))
            .set("LOCAL_START_BLOCK", 0)
            .set("LEASE_TTL_MS", LEASE_TTL.as_millis());
        ingestor
    }

    async fn check(&self) {
        let node = NodeRpc::at_url(self.node.http_url(LOCAL));
        let checker = Checker::connect(&self.redis.url(), node, LOCAL).await.unwrap();
        checker.settle_and_check(SETTLE).await.unwrap();
    }
}

async fn stands_by(ingestor: &Ingestor) {
    wait_for(ingestor, "ready", |status, body| status == 503 && body.contains("standing by")).await;
}

async fn is_ready(ingestor: &Ingestor) {
    wait_for(ingestor, "ready", |status, _| status == 200).await;
}

/// An ingestor that holds the chain and has published its first blocks, and a standby.
async fn owner_and_standby(scene: &Scene) -> (Ingestor, Ingestor) {
    let (mut first, mut second) = (scene.ingestor("first"), scene.ingestor("second"));
    first.start().unwrap();
    scene.chain.mine(3);
    is_ready(&first).await;
    second.start().unwrap();
    stands_by(&second).await;
    (first, second)
}

#[tokio::test]
async fn a_standby_takes_over_from_one_that_was_killed() {
    let scene = Scene::new().await;
    let (mut first, mut second) = owner_and_standby(&scene).await;
    let (_, metrics) = second.get("metrics").await.unwrap();
    let mut asked = metrics.lines().filter(|line| line.starts_with("ethhook_rpc_requests_total"));
    assert_eq!(asked.next(), None, "who stands by asks the node nothing");
    scene.chain.mine(2);
    first.kill().await.unwrap();
    scene.chain.mine(2);
    let killed = Instant::now();
    scene.check().await;
    eprintln!("taken over after {:?}", killed.elapsed());
    is_ready(&second).await;
    // An ingestor that is terminated releases the chain.
    first.start().unwrap();
    stands_by(&first).await;
    second.terminate(Duration::from_secs(8)).await.unwrap();
    scene.chain.mine(1);
    scene.check().await;
}

#[tokio::test]
async fn g5_an_owner_that_was_paused_past_its_lease_is_refused_and_stands_by() {
    let scene = Scene::new().await;
    let (mut first, mut second) = (scene.ingestor("first"), scene.ingestor("second"));
    first.start().unwrap();
    scene.chain.mine(3);
    is_ready(&first).await;
    second.start().unwrap();
    stands_by(&second).await;
    for _ in 0..3 {
        let (owner, other) = (&mut first, &mut second);
        owner.signal("STOP").await.unwrap();
        scene.chain.mine(3);
        is_ready(other).await;
        scene.check().await;
        owner.signal("CONT").await.unwrap(); // it believes that it is still the owner
        scene.chain.mine(2);
        stands_by(owner).await;
        scene.check().await;
        std::mem::swap(&mut first, &mut second);
    }
}

#[tokio::test]
async fn g5_two_processes_under_one_name_do_not_take_the_chain_from_each_other() {
    // A step is refused, or where there is nothing to publish, the lease is not renewed.
    for mines in [true, false] {
        let scene = Scene::new().await;
        let (mut first, mut second) = (scene.ingestor("twin"), scene.ingestor("twin"));
        first.start().unwrap();
        scene.chain.mine(3);
        is_ready(&first).await;
        second.start().unwrap();
        // Each takes the chain from the other once; then one of them stops and says why.
        until("one of the two stops", async || {
            if mines {
                scene.chain.mine(1);
            }
            for twin in [&first, &second] {
                let ready = twin.get("ready").await;
                if ready
                    .is_some_and(|(status, body)| status == 503 && body.contains("another process"))
                {
                    return true;
                }
            }
            false
        })
        .await;
        scene.chain.mine(3);
        scene.check().await;
        let opened = |twin: &Ingestor| twin.log().matches("session opened").count();
        let before = (opened(&first), opened(&second));
        scene.chain.mine(3);
        scene.check().await;
        assert_eq!((opened(&first), opened(&second)), before, "they go on fighting");
    }
}

#[tokio::test]
async fn chains_spread_over_instances() {
    const CHAINS: [(&str, u64); 3] = [("LOCAL", LOCAL), ("BASE", 8453), ("OPTIMISM", 10)];
    let chains = CHAINS.map(|(_, id)| Chain::manual(ManualSpec::new(id)));
    let node = Node::bind(([127, 0, 0, 1], 0).into(), chains.clone()).await.unwrap().spawn();
    let redis = RedisServer::spawn(RedisOptions::default()).await.unwrap();
    let mut instances = ["a", "b", "c"].map(|name| ingestor(&redis, name));
    for instance in &mut instances {
        instance.set("MAX_CHAINS_PER_INSTANCE", 1).set("LEASE_TTL_MS", LEASE_TTL.as_millis());
        for (name, id) in CHAINS {
            instance.set(&format!("{name}_WS_URL"), node.ws_url(id));
            instance.set(&format!("{name}_START_BLOCK"), 0);
        }
        instance.start().unwrap();
    }
    let mut published = async || {
        let mut counts = Vec::new();
        for instance in &instances {
            let log = instance.log();
            counts.push(log.matches("session opened").count());
        }
        counts == [1, 1, 1]
    };
    chains.iter().for_each(|chain| _ = chain.mine(3));
    until("each instance has one chain", &mut published).await;
    for (_, id) in CHAINS {
        let rpc = NodeRpc::at_url(node.http_url(id));
        let checker = Checker::connect(&redis.url(), rpc, id).await.unwrap();
        checker.settle_and_check(SETTLE).await.unwrap();
    }
}

#[tokio::test]
async fn g4_our_own_name_under_an_older_epoch_is_a_rollback_and_no_other_process() {
    let scene = Scene::new().await;
    let mut only = scene.ingestor("only");
    for _ in 0..3 {
        only.start().unwrap();
        scene.chain.mine(2);
        scene.check().await;
        only.terminate(Duration::from_secs(8)).await.unwrap();
    }
    only.start().unwrap();
    scene.chain.mine(1);
    scene.check().await;
    // Like a Redis that lost the newest lease together with its latest writes.
    let mut redis = scene.redis.connection().await.unwrap();
    let mut older = redis::cmd("HSET");
    older.arg("cursor:{events:31337}").arg("epoch").arg(1);
    older.exec_async(&mut redis).await.unwrap();
    scene.chain.mine(3);
    scene.check().await;
    assert!(!only.log().contains("another process"), "{}", only.log());
}

#[tokio::test]
async fn g5_an_owner_without_blocks_keeps_its_lease() {
    let scene = Scene::new().await;
    let (_first, second) = owner_and_standby(&scene).await;
    let mut redis = scene.redis.connection().await.unwrap();
    // Each renewal comes after a third of the lease's TTL.
    let (mut renewals, mut last) = (0, i64::MAX);
    until("the lease to be renewed time and again", async || {
        let mut left = redis::cmd("PTTL");
        let left = left.arg("lease:{events:31337}").query_async(&mut redis).await.unwrap();
        renewals += u32::from(left > last);
        last = left;
        renewals == 6
    })
    .await;
    assert_eq!(second.log().matches("session opened").count(), 0);
}

#[tokio::test]
async fn one_that_is_asked_to_end_gives_its_lease_back_at_once() {
    let scene = Scene::new().await;
    let mut first = scene.ingestor("first");
    first.start().unwrap();
    scene.chain.mine(3);
    is_ready(&first).await;
    first.terminate(Duration::from_secs(8)).await.unwrap();
    let mut redis = scene.redis.connection().await.unwrap();
    let lease: Option<String> =
        redis::cmd("GET").arg("lease:{events:31337}").query_async(&mut redis).await.unwrap();
    assert_eq!(lease, None);
}
