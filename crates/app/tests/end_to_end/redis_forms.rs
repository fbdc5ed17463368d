//! Over Sentinel, a Cluster and TLS: a server takes over that does not hold everything
//! acknowledged, replicas or masters are down, rights are missing (G1 to G4).

use ethhook_simulator::{Chain, ManualChain, ManualSpec, Node, RunningNode};
use ethhook_testkit::certificates::Certificates;
use ethhook_testkit::checker::Checker;
use ethhook_testkit::cluster::RedisCluster;
use ethhook_testkit::guide::least_rights;
use ethhook_testkit::node_rpc::NodeRpc;
use ethhook_testkit::redis_server::{RedisOptions, RedisServer};
use ethhook_testkit::sentinel::SentinelSet;

use crate::rig::{Rig, SETTLE, until};

/// In the Cluster, each on another master, except the last.
const CHAINS: [(&str, u64); 4] =
    [("LOCAL", 31337), ("BASE", 8453), ("ETHEREUM", 1), ("OPTIMISM", 10)];

async fn serve(ids: &[u64]) -> (Vec<ManualChain>, RunningNode) {
    let spec = |id: &u64| ManualSpec { events_per_block: 20, ..ManualSpec::new(*id) };
    let chains: Vec<_> = ids.iter().map(|id| Chain::manual(spec(id))).collect();
    let node = Node::bind(([127, 0, 0, 1], 0).into(), chains.clone()).await.unwrap().spawn();
    (chains, node)
}

/// Waits until the streams on `server` match the chain.
async fn check(server: &RedisServer, node: &RunningNode, chain_id: u64) {
    checker(server, node, chain_id).await.settle_and_check(SETTLE).await.unwrap();
}

async fn checker(server: &RedisServer, node: &RunningNode, chain_id: u64) -> Checker {
    let rpc = NodeRpc::at_url(node.http_url(chain_id));
    Checker::over(server.connection().await.unwrap(), rpc, chain_id)
}

/// Configures a rig that is not started yet for chains of `node`.
fn follow<R>(rig: &mut Rig<R>, node: &RunningNode, chains: &[(&str, u64)]) {
    for (name, id) in chains {
        rig.set(&format!("{name}_WS_URL"), node.ws_url(*id));
        rig.set(&format!("{name}_START_BLOCK"), 0);
    }
}

/// Waits until calls for `chain` have failed with this kind of error.
async fn failed<R>(rig: &Rig<R>, chain: &str, kind: &str) {
    let line =
        format!(r#"ethhook_redis_errors_total{{chain="{}",kind="{kind}"}}"#, chain.to_lowercase());
    until(&line, async || rig.metric(&line).await >= Some(1.0)).await;
}

/// The same for each chain, on the node of the Cluster that holds it.
async fn check_each(rig: &Rig<RedisCluster>, node: &RunningNode, chains: &[(&str, u64)]) {
    for (_, id) in chains {
        let master = rig.redis.master_of(&format!("events:{id}")).await.unwrap();
        check(&rig.redis.nodes[master], node, *id).await;
    }
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
    follow(&mut rig, &node, &CHAINS[..1]);
    rig.start();
    chains[0].mine(3);
    check(&rig.redis.servers[0], &node, 31337).await;
    rig.redis.servers[0].until_replicated().await.unwrap();
    assert_eq!(rollbacks(&rig, "local").await, Some(0.0));

    rig.redis.servers[0].cut_replication().await.unwrap();
    chains[0].mine(3);
    check(&rig.redis.servers[0], &node, 31337).await;
    assert_eq!(rig.redis.fail_over(0).await.unwrap(), 1);
    chains[0].mine(1);
    check(&rig.redis.servers[1], &node, 31337).await;
    assert_eq!(rollbacks(&rig, "local").await, Some(1.0));
    assert!(rig.log().contains("Redis lost steps"));
    rig.terminate().await;
}

#[tokio::test]
async fn g2_chains_over_three_masters_of_a_cluster_outlive_one() {
    let (chains, node) = serve(&CHAINS.map(|(_, id)| id)).await;
    let cluster = RedisCluster::spawn(RedisOptions::default(), 1).await.unwrap();
    let url = cluster.url();
    let mut rig = Rig::over(cluster, &url);
    follow(&mut rig, &node, &CHAINS);
    rig.start();
    let check_all = async |rig: &Rig<RedisCluster>| check_each(rig, &node, &CHAINS).await;
    chains.iter().for_each(|chain| _ = chain.mine(3));
    check_all(&rig).await;
    let master = rig.redis.master_of("events:1").await.unwrap();
    rig.redis.nodes[master].until_replicated().await.unwrap();

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
async fn g2_tls_with_an_authority_of_ones_own_that_a_file_names() {
    let (chains, node) = serve(&[31337]).await;
    let tls = Certificates::make().unwrap();
    let options = RedisOptions { tls: Some(tls.clone()), ..RedisOptions::default() };
    let redis = RedisServer::spawn(options).await.unwrap();
    let url = redis.url();
    let mut rig = Rig::over(redis, &url);
    rig.set("REDIS_CA_FILE", tls.authority().display());
    follow(&mut rig, &node, &CHAINS[..1]);
    rig.start();
    chains[0].mine(3);
    rig.wait_for("ready", |status, _| status == 200).await;
    check(&rig.redis, &node, 31337).await;
    rig.terminate().await;
    rig.unset("REDIS_CA_FILE");
    rig.start();
    until("a start without it is refused", async || rig.ended().unwrap().is_some()).await;
    assert!(rig.log_of_this_process().contains("certificate"), "{}", rig.log_of_this_process());
}

#[tokio::test]
async fn g2_tls_to_sentinels_and_servers_through_a_failover() {
    let (chains, node) = serve(&[31337]).await;
    let tls = Certificates::make().unwrap();
    let options = RedisOptions { tls: Some(tls.clone()), ..RedisOptions::default() };
    let set = SentinelSet::spawn(options, 1).await.unwrap();
    let url = set.url();
    let mut rig = Rig::over(set, &url);
    rig.set("REDIS_CA_FILE", tls.authority().display());
    follow(&mut rig, &node, &CHAINS[..1]);
    rig.start();
    chains[0].mine(3);
    check(&rig.redis.servers[0], &node, 31337).await;
    assert_eq!(rig.redis.fail_over(0).await.unwrap(), 1);
    chains[0].mine(2);
    check(&rig.redis.servers[1], &node, 31337).await;
    rig.terminate().await;
}

#[tokio::test]
async fn g2_tls_to_a_cluster_whose_master_is_killed_and_comes_back() {
    let (chains, node) = serve(&[31337, 8453]).await;
    let tls = Certificates::make().unwrap();
    let options = RedisOptions { tls: Some(tls.clone()), ..RedisOptions::default() };
    let cluster = RedisCluster::spawn(options, 0).await.unwrap();
    let url = cluster.url();
    let mut rig = Rig::over(cluster, &url);
    rig.set("REDIS_CA_FILE", tls.authority().display());
    follow(&mut rig, &node, &CHAINS[..2]);
    rig.start();
    chains.iter().for_each(|chain| _ = chain.mine(3));
    check_each(&rig, &node, &CHAINS[..2]).await;
    let master = rig.redis.master_of("events:8453").await.unwrap();
    rig.redis.nodes[master].kill();
    chains.iter().for_each(|chain| _ = chain.mine(2));
    failed(&rig, "BASE", "connection").await;
    rig.redis.nodes[master].start().await.unwrap();
    check_each(&rig, &node, &CHAINS[..2]).await;
    rig.terminate().await;
}

#[tokio::test]
async fn g2_sentinels_and_servers_each_have_a_password_of_their_own() {
    let (chains, node) = serve(&[31337]).await;
    let (of_servers, of_sentinels) =
        (RedisOptions::guarded("c4n4ry-data"), RedisOptions::guarded("c4n4ry-watch"));
    let set = SentinelSet::spawn_with(of_servers, 1, of_sentinels).await.unwrap();
    let url = set.url();
    let mut rig = Rig::over(set, &url);
    follow(&mut rig, &node, &CHAINS[..1]);
    rig.start();
    chains[0].mine(3);
    check(&rig.redis.servers[0], &node, 31337).await;
    assert_eq!(rig.redis.fail_over(0).await.unwrap(), 1);
    chains[0].mine(2);
    check(&rig.redis.servers[1], &node, 31337).await;
    rig.terminate().await;

    // The error says whose password is wrong, and shows none.
    for (wrong, whose) in
        [(url.replace("-watch", ""), "the Sentinel at"), (url.replace("-data", ""), "refused")]
    {
        rig.set("REDIS_URL", wrong);
        rig.start();
        until("the start is refused", async || rig.ended().unwrap().is_some()).await;
        let told = rig.log_of_this_process();
        assert!(told.contains(whose) && told.contains("user or password refused"), "{told}");
        assert_eq!(told.contains("the Sentinel at"), whose == "the Sentinel at", "{told}");
        assert!(!told.contains("c4n4ry"), "{told}");
    }
}

#[tokio::test]
async fn g1_a_master_that_may_not_write_without_its_replica_is_waited_for() {
    let (chains, node) = serve(&[31337]).await;
    let mut replica = RedisServer::spawn(RedisOptions::default()).await.unwrap();
    let more = [("repl-diskless-sync-delay", "0"), ("min-replicas-to-write", "1")];
    let more = more.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let mut rig = Rig::with_redis(RedisOptions { more, ..RedisOptions::default() }).await;
    let replicate = format!("REPLICAOF 127.0.0.1 {}", rig.redis.port());
    let good_replicas = async |redis: &RedisServer, count| {
        until("the master counts its replicas", async || {
            let info: String = redis.ask("INFO replication").await.unwrap();
            info.contains(&format!("min_slaves_good_slaves:{count}"))
        })
        .await;
    };
    replica.ask::<()>(&replicate).await.unwrap();
    good_replicas(&rig.redis, 1).await;
    follow(&mut rig, &node, &CHAINS[..1]);
    rig.start();
    chains[0].mine(3);
    check(&rig.redis, &node, 31337).await;

    replica.kill();
    good_replicas(&rig.redis, 0).await;
    chains[0].mine(3);
    failed(&rig, "LOCAL", "no_replicas").await;
    let checker = checker(&rig.redis, &node, 31337).await;
    assert_eq!(checker.cursor().await.unwrap().unwrap().number, 3);

    replica.start().await.unwrap();
    replica.ask::<()>(&replicate).await.unwrap();
    checker.settle_and_check(SETTLE).await.unwrap();
    rig.terminate().await;
}

#[tokio::test]
async fn g1_a_cluster_that_is_down_for_one_of_its_masters_is_waited_for() {
    let (chains, node) = serve(&[31337, 8453]).await;
    let cluster = RedisCluster::spawn(RedisOptions::default(), 0).await.unwrap();
    let url = cluster.url();
    let mut rig = Rig::over(cluster, &url);
    follow(&mut rig, &node, &CHAINS[..2]);
    rig.start();
    chains.iter().for_each(|chain| _ = chain.mine(3));
    check_each(&rig, &node, &CHAINS[..2]).await;

    // No replica replaces it, and while its slots are not served the others refuse as well.
    let master = rig.redis.master_of("events:8453").await.unwrap();
    assert_ne!(rig.redis.master_of("events:31337").await.unwrap(), master);
    rig.redis.nodes[master].kill();
    until("the Cluster is down", async || {
        chains.iter().for_each(|chain| _ = chain.mine(1));
        let others = rig.redis.nodes.iter().filter(|node| node.is_running());
        for other in others {
            if !other.ask::<String>("CLUSTER INFO").await.unwrap().contains("cluster_state:fail") {
                return false;
            }
        }
        true
    })
    .await;
    chains.iter().for_each(|chain| _ = chain.mine(1));
    failed(&rig, "LOCAL", "cluster").await;
    rig.redis.nodes[master].start().await.unwrap();
    check_each(&rig, &node, &CHAINS[..2]).await;
    rig.terminate().await;
}

#[tokio::test]
async fn g1_without_the_right_to_bgrewriteaof_all_else_goes_on_and_it_is_told() {
    let (chains, node) = serve(&[31337]).await;
    let user = least_rights("hunter2").replace("+bgrewriteaof", "");
    let options = RedisOptions { users: vec![user], ..RedisOptions::default() };
    let redis = RedisServer::spawn(options).await.unwrap();
    let url = format!("redis://ethhook:hunter2@127.0.0.1:{}", redis.port());
    let mut rig = Rig::over(redis, &url);
    follow(&mut rig, &node, &CHAINS[..1]);
    rig.start();
    let told = "Redis does not rewrite its append-only file";
    for _ in 0..2 {
        chains[0].mine(3);
        check(&rig.redis, &node, 31337).await;
        // Requested again, and refused again.
        rig.redis.kill();
        rig.redis.start().await.unwrap();
    }
    chains[0].mine(3);
    check(&rig.redis, &node, 31337).await;
    assert_eq!(rig.log().matches(told).count(), 1, "once a process");
    let info: String = rig.redis.ask("INFO persistence").await.unwrap();
    assert!(info.contains("aof_rewrites:0"), "{info}");
    rig.terminate().await;
}
