//! Over Sentinel, a Cluster and TLS, when another server takes over that does not hold all that was
//! acknowledged (G1 to G4).

use ethhook_simulator::{Chain, ManualChain, ManualSpec, Node, RunningNode};
use ethhook_testkit::certificates::Certificates;
use ethhook_testkit::checker::Checker;
use ethhook_testkit::cluster::RedisCluster;
use ethhook_testkit::node_rpc::NodeRpc;
use ethhook_testkit::redis_server::{RedisOptions, RedisServer};
use ethhook_testkit::sentinel::SentinelSet;

use crate::rig::{Rig, SETTLE, until};

/// In the Cluster on another master each, but for the last.
const CHAINS: [(&str, u64); 4] =
    [("LOCAL", 31337), ("BASE", 8453), ("ETHEREUM", 1), ("OPTIMISM", 10)];

async fn serve(ids: &[u64]) -> (Vec<ManualChain>, RunningNode) {
    let spec = |id: &u64| ManualSpec { events_per_block: 20, ..ManualSpec::new(*id) };
    let chains: Vec<_> = ids.iter().map(|id| Chain::manual(spec(id))).collect();
    let node = Node::bind(([127, 0, 0, 1], 0).into(), chains.clone()).await.unwrap().spawn();
    (chains, node)
}

/// Waits until the streams on `server` are the chain.
async fn check(server: &RedisServer, node: &RunningNode, chain_id: u64) {
    let rpc = NodeRpc::at_url(node.http_url(chain_id));
    let checker = Checker::connect(&server.url(), rpc, chain_id).await.unwrap();
    checker.settle_and_check(SETTLE).await.unwrap();
}

async fn rollbacks<R>(rig: &Rig<R>, chain: &str) -> Option<f64> {
    let chain = chain.to_lowercase();
    rig.metric(&format!(r#"ethhook_redis_rollbacks_total{{chain="{chain}"}}"#)).await
}

#[tokio::test]
async fn g2_a_failover_to_a_lagging_replica_is_told_and_the_stream_is_whole() {
    let (chains, node) = serve(&[31337]).await;
    let set = SentinelSet::spawn(RedisOptions::default(), 1).await.unwrap();
    let url = set.url();
    let mut rig = Rig::over(set, &url);
    rig.set("LOCAL_WS_URL", node.ws_url(31337)).set("LOCAL_START_BLOCK", 0);
    rig.start();
    chains[0].mine(3);
    check(&rig.redis.servers[0], &node, 31337).await;
    assert_eq!(rig.redis.servers[0].ask::<u64>("WAIT 1 60000").await.unwrap(), 1);
    assert_eq!(rollbacks(&rig, "local").await, Some(0.0));

    rig.redis.servers[0].cut_replication().await.unwrap();
    chains[0].mine(3);
    check(&rig.redis.servers[0], &node, 31337).await;
    assert_eq!(rig.redis.fail_over(0).await.unwrap(), 1);
    chains[0].mine(1);
    check(&rig.redis.servers[1], &node, 31337).await;
    assert_eq!(rollbacks(&rig, "local").await, Some(1.0));
    assert!(rig.log().contains("Redis went back"));
    rig.terminate().await;
}

#[tokio::test]
async fn g2_chains_over_three_masters_of_a_cluster_outlive_one() {
    let (chains, node) = serve(&CHAINS.map(|(_, id)| id)).await;
    let cluster = RedisCluster::spawn(RedisOptions::default(), 1).await.unwrap();
    let url = cluster.url();
    let mut rig = Rig::over(cluster, &url);
    for (name, id) in CHAINS {
        rig.set(&format!("{name}_WS_URL"), node.ws_url(id)).set(&format!("{name}_START_BLOCK"), 0);
    }
    rig.start();
    let check_all = async |rig: &Rig<RedisCluster>| {
        for (_, id) in CHAINS {
            let master = rig.redis.master_of(&format!("events:{id}")).await.unwrap();
            check(&rig.redis.nodes[master], &node, id).await;
        }
    };
    chains.iter().for_each(|chain| _ = chain.mine(3));
    check_all(&rig).await;
    let master = rig.redis.master_of("events:1").await.unwrap();
    assert_eq!(rig.redis.nodes[master].ask::<u64>("WAIT 1 60000").await.unwrap(), 1);

    rig.redis.nodes[master].cut_replication().await.unwrap();
    chains.iter().for_each(|chain| _ = chain.mine(2));
    check_all(&rig).await;
    assert_ne!(rig.redis.fail_over("events:1").await.unwrap(), master);
    chains.iter().for_each(|chain| _ = chain.mine(1));
    check_all(&rig).await;
    for (name, _) in CHAINS {
        let expected = if name == "ETHEREUM" { 1.0 } else { 0.0 };
        assert_eq!(rollbacks(&rig, name).await, Some(expected), "{name}");
    }
    rig.terminate().await;
}

#[tokio::test]
async fn tls_with_an_authority_of_ones_own_that_a_file_names() {
    let (chains, node) = serve(&[31337]).await;
    let tls = Certificates::make().unwrap();
    let options = RedisOptions { tls: Some(tls.clone()), ..RedisOptions::default() };
    let redis = RedisServer::spawn(options).await.unwrap();
    let url = redis.url();
    let mut rig = Rig::over(redis, &url);
    rig.set("REDIS_CA_FILE", tls.authority().display())
        .set("LOCAL_WS_URL", node.ws_url(31337))
        .set("LOCAL_START_BLOCK", 0);
    rig.start();
    chains[0].mine(3);
    rig.wait_for("ready", |status, _| status == 200).await;
    rig.terminate().await;
    rig.unset("REDIS_CA_FILE");
    rig.start();
    until("a start without it is refused", async || rig.ended().unwrap().is_some()).await;
    assert!(rig.log_of_this_process().contains("certificate"), "{}", rig.log_of_this_process());
}
