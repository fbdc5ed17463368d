//! Redis in every form: TLS with a private authority and a least-privileged user, a master under
//! Sentinel, a Cluster; and what happens when another server takes over.

use std::collections::BTreeSet;
use std::time::Duration;

use ethhook_domain::{EntryId, Secret};
use ethhook_streams::{
    FailureKind, Keys, Outcome, Publisher, ReadError, RedisConfig, StepError, Streams,
};
use ethhook_testkit::certificates::Certificates;
use ethhook_testkit::cluster::RedisCluster;
use ethhook_testkit::guide::least_rights;
use ethhook_testkit::redis_server::{RedisOptions, RedisServer};
use ethhook_testkit::replication::wait_until;
use ethhook_testkit::sentinel::SentinelSet;
use tokio::time::{Instant, sleep};

use crate::chain::{Block, CHAIN, add, add_all, block, first, named};

/// Time limit for a failover on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn reach(url: &str) -> Streams {
    Streams::new(RedisConfig::new(Secret::new(url))).unwrap()
}

async fn open(streams: &Streams, chain: u64) -> Publisher {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Publisher::open(streams, chain, named("one"), Some(first())).await {
            Ok(publisher) => return publisher,
            Err(e) => assert!(e.is_retryable() && Instant::now() < deadline, "{e}"),
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Applies `block` until Redis takes or refuses it, as the ingestor does.
async fn apply(publisher: &mut Publisher, block: &Block) -> Result<Outcome, StepError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match publisher.apply(&block.add()).await {
            Err(error) if error.is_retryable() => assert!(Instant::now() < deadline, "{error}"),
            result => return result,
        }
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn tls_with_an_authority_of_ones_own_and_a_user_with_the_least_rights() {
    let tls = Certificates::make().unwrap();
    let authorities = Some(std::fs::read(tls.authority()).unwrap());
    let options = RedisOptions {
        tls: Some(tls),
        users: vec![least_rights("hunter2")],
        ..RedisOptions::default()
    };
    let server = RedisServer::spawn(options).await.unwrap();
    let url = format!("rediss://ethhook:hunter2@127.0.0.1:{}", server.port());

    let stranger = reach(&url).preflight().await.unwrap_err().to_string();
    assert!(stranger.contains("certificate") && !stranger.contains("hunter2"), "{stranger}");

    let config = RedisConfig { authorities, ..RedisConfig::new(Secret::new(&url)) };
    let streams = Streams::new(config).unwrap();
    streams.preflight().await.unwrap();
    let mut publisher = open(&streams, CHAIN).await;
    add_all(&mut publisher, 1..=2, 3).await;
    publisher.renew().await.unwrap();
    publisher.release().await;
    assert_eq!(streams.inventory(CHAIN).await.unwrap().dedup_records, 2);
    let mut tail = streams.tail(CHAIN, Some(EntryId::MIN), Duration::from_millis(10));
    assert_eq!(tail.next(100).await.unwrap().len(), 6);
    streams.reset(CHAIN).await.unwrap();
    assert_eq!(server.ask::<Vec<String>>("KEYS *").await.unwrap(), [Keys::of(CHAIN).reset]);
}

#[tokio::test]
async fn a_port_without_tls_is_suspected_by_name() {
    let server = RedisServer::spawn(RedisOptions::default()).await.unwrap();
    let url = Secret::new(server.url().replace("redis://", "rediss://"));
    let connect_timeout = Duration::from_millis(300);
    let streams = Streams::new(RedisConfig { connect_timeout, ..RedisConfig::new(url) }).unwrap();
    let failure = streams.ping().await.unwrap_err();
    assert_eq!(failure.to_string(), "Redis: no connection in time: does that port speak TLS?");
}

#[tokio::test]
async fn a_connection_to_a_master_that_became_a_replica_is_dropped() {
    let server = RedisServer::spawn(RedisOptions::default()).await.unwrap();
    let streams = reach(&server.url());
    streams.ping().await.unwrap();
    server.ask::<()>("REPLICAOF 127.0.0.1 1").await.unwrap();
    let failure = streams.ping().await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::ReadOnly, "{failure}");
    let refused = streams.preflight().await.unwrap_err();
    assert!(refused.is_retryable() && refused.to_string().contains("replica"), "{refused}");
    server.ask::<()>("REPLICAOF NO ONE").await.unwrap();
    streams.ping().await.unwrap();
}

#[tokio::test]
async fn a_url_of_another_form_is_refused_with_the_right_one() {
    let set = SentinelSet::spawn(RedisOptions::default(), 0).await.unwrap();
    let error = reach(&set.sentinels[0].url()).preflight().await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("redis-sentinel://"), "{error}");
    let url = set.url().replace("/main", "/other");
    let error = reach(&url).preflight().await.unwrap_err();
    assert!(error.to_string().contains("knows no master `other`"), "{error}");
    let url = set.servers[0].url().replace("redis://", "redis-cluster://");
    let error = reach(&url).preflight().await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("cluster support"), "{error}");
}

#[tokio::test]
async fn g4_under_sentinel_the_chain_goes_on_from_what_a_lagging_replica_holds() {
    let mut set = SentinelSet::spawn(RedisOptions::default(), 1).await.unwrap();
    let streams = reach(&set.url());
    streams.preflight().await.unwrap();
    let mut publisher = open(&streams, CHAIN).await;
    add_all(&mut publisher, 1..=2, 3).await;
    set.servers[0].until_replicated().await.unwrap();

    // The replica never receives what follows, and the master's clock is an hour ahead.
    set.servers[0].cut_replication().await.unwrap();
    let (seconds, _): (u64, u64) = set.servers[0].ask("TIME").await.unwrap();
    let ahead = format!("XSETID events:{CHAIN} {}-0", (seconds + 3_600) * 1_000);
    set.servers[0].ask::<()>(&ahead).await.unwrap();
    let lost = add(&mut publisher, &block("3a", "2a", 5)).await;
    assert_eq!(streams.last_seq(CHAIN), Some(3));

    assert_eq!(set.fail_over(0).await.unwrap(), 1);
    match apply(&mut publisher, &block("4a", "3a", 1)).await {
        Err(StepError::Moved { held: Some(held) }) => assert_eq!(held.seq, 2),
        other => panic!("{other:?}"),
    }
    let mut publisher = open(&streams, CHAIN).await;
    assert_eq!(publisher.cursor().seq, 2);
    add(&mut publisher, &block("3b", "2a", 2)).await;
    // A reader that had read all of the lost block finds the following entries.
    let mut tail = streams.tail(CHAIN, Some(lost.last_id), Duration::from_millis(10));
    let found = tail.next(100).await.unwrap();
    let block_3b = block("3b", "2a", 2);
    let found: Vec<_> = found.into_iter().map(|(_, event)| event.unwrap()).collect();
    assert_eq!(found, *block_3b.events);

    // The old master comes back, becomes a replica, and is made the master again.
    set.servers[0].start().await.unwrap();
    set.servers[0].until_synchronous().await.unwrap();
    assert_eq!(set.switch(1).await.unwrap(), 0);
    apply(&mut publisher, &block("4b", "3b", 1)).await.unwrap();
    assert_eq!(streams.cursor(CHAIN).await.unwrap().unwrap().seq, 4);
    assert_eq!(set.servers[0].ask::<u64>("XLEN blocks:{events:7}").await.unwrap(), 4);
}

/// Chains on all three masters.
const CHAINS: [u64; 5] = [1, 10, 137, 8453, 31337];

#[tokio::test]
async fn g5_in_a_cluster_chains_are_on_all_masters_and_outlive_one() {
    let mut cluster = RedisCluster::spawn(RedisOptions::default(), 1).await.unwrap();
    let streams = reach(&cluster.url());
    streams.preflight().await.unwrap();
    for node in &cluster.nodes {
        assert_eq!(node.ask::<u64>("DBSIZE").await.unwrap(), 0, "what the preflight left");
    }
    let mut masters = BTreeSet::new();
    let mut publishers = Vec::new();
    for chain in CHAINS {
        masters.insert(cluster.master_of(&Keys::of(chain).events).await.unwrap());
        let mut publisher = open(&streams, chain).await;
        add(&mut publisher, &block("1a", "0", 3).on(chain)).await;
        add(&mut publisher, &block("2a", "1a", 1).on(chain)).await;
        publisher.renew().await.unwrap();
        assert_eq!(streams.inventory(chain).await.unwrap().dedup_records, 2);
        assert_eq!(streams.standing(chain).await.unwrap().entries, 4);
        publishers.push((chain, publisher));
    }
    assert_eq!(masters, BTreeSet::from([0, 1, 2]));
    streams.ping().await.unwrap();

    let node = &cluster.nodes[cluster.master_of("events:137").await.unwrap()];
    node.until_replicated().await.unwrap();
    cluster.fail_over("events:137").await.unwrap();
    for (chain, publisher) in &mut publishers {
        apply(publisher, &block("3a", "2a", 2).on(*chain)).await.unwrap();
        let mut tail = streams.tail(*chain, Some(EntryId::MIN), Duration::from_millis(10));
        assert_eq!(tail.next(100).await.unwrap().len(), 6);
        publisher.release().await;
        streams.reset(*chain).await.unwrap();
    }
    for master in [0, 1, 2].map(|i| if cluster.nodes[i].is_running() { i } else { i + 3 }) {
        let left: Vec<String> = cluster.nodes[master].ask("KEYS *").await.unwrap();
        assert!(left.iter().all(|key| key.starts_with("reset:{events:")), "{left:?}");
    }
}

#[tokio::test]
async fn g4_a_slot_that_moves_to_another_master_is_waited_for_and_followed() {
    let cluster = RedisCluster::spawn(RedisOptions::default(), 0).await.unwrap();
    let streams = reach(&cluster.url());
    let mut publisher = open(&streams, CHAIN).await;
    let published = add_all(&mut publisher, 1..=2, 3).await;
    let keys = Keys::of(CHAIN);
    let from = cluster.master_of(&keys.events).await.unwrap();
    let to = (from + 1) % 3;
    let (source, target) = (&cluster.nodes[from], &cluster.nodes[to]);
    let slot: u16 = source.ask(&format!("CLUSTER KEYSLOT {}", keys.events)).await.unwrap();
    let (from_id, to_id): (String, String) =
        (source.ask("CLUSTER MYID").await.unwrap(), target.ask("CLUSTER MYID").await.unwrap());
    let migrate = |names: &[&str]| {
        format!("MIGRATE 127.0.0.1 {}  0 60000 KEYS {}", target.port(), names.join(" "))
    };
    target.ask::<()>(&format!("CLUSTER SETSLOT {slot} IMPORTING {from_id}")).await.unwrap();
    source.ask::<()>(&format!("CLUSTER SETSLOT {slot} MIGRATING {to_id}")).await.unwrap();
    source.ask::<()>(&migrate(&[&keys.events])).await.unwrap();

    // Half of the keys have moved: TRYAGAIN for the script, ASK for a moved key.
    let before = cluster_markers(source, &keys).await;
    for _ in 0..3 {
        match publisher.apply(&block("3a", "2a", 2).add()).await {
            Err(StepError::Redis(failure)) => assert_eq!(failure.kind, FailureKind::Cluster),
            other => panic!("{other:?}"),
        }
        match streams.block_events(CHAIN, &published[0]).await {
            Err(ReadError::Redis(failure)) => assert_eq!(failure.kind, FailureKind::Cluster),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(cluster_markers(source, &keys).await, before);

    let mut left: Vec<String> =
        source.ask(&format!("CLUSTER GETKEYSINSLOT {slot} 100")).await.unwrap();
    left.sort();
    let names: Vec<_> = left.iter().map(String::as_str).collect();
    source.ask::<()>(&migrate(&names)).await.unwrap();
    for node in [target, source] {
        node.ask::<()>(&format!("CLUSTER SETSLOT {slot} NODE {to_id}")).await.unwrap();
    }
    apply(&mut publisher, &block("3a", "2a", 2)).await.unwrap();
    wait_until("the other master serves the chain", async || {
        Ok(streams.block_events(CHAIN, &published[0]).await?.len() == 3)
    })
    .await
    .unwrap();
    assert_eq!(cluster_markers(target, &keys).await, 3);
}

async fn cluster_markers(node: &RedisServer, keys: &Keys) -> u64 {
    node.ask(&format!("XLEN {}", keys.blocks)).await.unwrap()
}
