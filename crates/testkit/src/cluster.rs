//! A Redis Cluster of three masters, with or without replicas.

use std::time::Duration;

use anyhow::{Context as _, Result};
use redis::aio::MultiplexedConnection;

use crate::redis_server::{Part, RedisOptions, RedisServer};
use crate::replication::{REPLICATION, REPLICATION_USER, wait_until};

const MASTERS: usize = 3;
const SLOTS: usize = 16_384;
/// A silent node counts as down after this; far longer than a busy machine delays a server.
const NODE_TIMEOUT: Duration = Duration::from_secs(3);

/// A cluster; all its nodes are killed when it is dropped.
#[derive(Debug)]
pub struct RedisCluster {
    /// Three masters, then their replicas: node 3 begins as the replica of node 0, and so on.
    pub nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts three masters with a third of the slots each, and `replicas` (0 or 1) of each; waits
    /// until the cluster is healthy. `options` apply to every node.
    ///
    /// # Errors
    /// If a node does not start, or they do not find each other in time.
    pub async fn spawn(options: RedisOptions, replicas: usize) -> Result<Self> {
        let mut options = options;
        options.users.push(REPLICATION_USER.to_owned());
        let timeout = ("cluster-node-timeout", NODE_TIMEOUT.as_millis().to_string());
        let more = REPLICATION.map(|(name, value)| (name, value.to_owned()));
        let more = more.into_iter().chain([timeout]);
        options.more.extend(more.map(|(name, value)| (name.to_owned(), value)));
        let mut nodes = Vec::new();
        for _ in 0..MASTERS * (1 + replicas) {
            nodes.push(RedisServer::spawn_as(Part::ClusterNode, options.clone()).await?);
        }
        let cluster = Self { nodes };
        cluster.form().await?;
        Ok(cluster)
    }

    async fn form(&self) -> Result<()> {
        let first = &self.nodes[0];
        for (i, node) in self.nodes.iter().enumerate() {
            node.ask::<()>(&format!("CLUSTER SET-CONFIG-EPOCH {}", i + 1)).await?;
            if i < MASTERS {
                let (from, to) = (i * SLOTS / MASTERS, (i + 1) * SLOTS / MASTERS - 1);
                node.ask::<()>(&format!("CLUSTER ADDSLOTSRANGE {from} {to}")).await?;
            }
            let meet = format!("CLUSTER MEET 127.0.0.1 {} {}", first.port(), first.bus_port());
            if i > 0 {
                node.ask::<()>(&meet).await?;
            }
        }
        self.all_well(self.nodes.len()).await?;
        for (i, replica) in self.nodes.iter().enumerate().skip(MASTERS) {
            let master: String = self.nodes[i - MASTERS].ask("CLUSTER MYID").await?;
            replica.ask::<()>(&format!("CLUSTER REPLICATE {master}")).await?;
            replica.until_synchronous().await?;
        }
        self.all_well(self.nodes.len()).await
    }

    /// Waits until every running node knows `count` nodes and reports all slots as served.
    async fn all_well(&self, count: usize) -> Result<()> {
        for node in &self.nodes {
            wait_until("a node finds the cluster whole", async || {
                let info: String = node.ask("CLUSTER INFO").await?;
                Ok(info.contains("cluster_state:ok")
                    && info.contains(&format!("cluster_known_nodes:{count}\r\n")))
            })
            .await?;
        }
        Ok(())
    }

    /// `redis-cluster://host:port,…` of the first three nodes, or `rediss-cluster://` with TLS.
    #[must_use]
    pub fn url(&self) -> String {
        let tls = self.nodes[0].tls_suffix();
        let nodes = &self.nodes[..MASTERS];
        let hosts: Vec<_> = nodes.iter().map(|n| format!("127.0.0.1:{}", n.port())).collect();
        format!("redis{tls}-cluster://{}", hosts.join(","))
    }

    /// Which node serves the slot of `key`, such as `events:1`.
    ///
    /// # Errors
    /// If no running node reports it as served.
    pub async fn master_of(&self, key: &str) -> Result<usize> {
        let mut found = None;
        wait_until("a slot is served", async || {
            for node in &self.nodes {
                if let Ok(Some(port)) = master_as_seen_by(node, key).await {
                    found = self.nodes.iter().position(|node| node.port() == port);
                    return Ok(found.is_some());
                }
            }
            Ok(false)
        })
        .await?;
        found.context("no master")
    }

    /// A connection to the node that serves the slot of `key` now.
    ///
    /// # Errors
    /// See [`RedisCluster::master_of`].
    pub async fn connection(&self, key: &str) -> Result<MultiplexedConnection> {
        self.nodes[self.master_of(key).await?].connection().await
    }

    /// Kills the node that serves the slot of `key` and waits until its replica serves it. Returns
    /// that replica. Start the killed node again to have it as a replica.
    ///
    /// # Errors
    /// If it does not in time.
    pub async fn fail_over(&mut self, key: &str) -> Result<usize> {
        let old = self.master_of(key).await?;
        self.nodes[old].kill();
        let mut new = old;
        wait_until("a replica serves its master's slots", async || {
            new = self.master_of(key).await?;
            Ok(new != old)
        })
        .await?;
        Ok(new)
    }
}

/// The port of the master of `key`'s slot, but only if `node` reports the cluster as healthy and is
/// itself that master, so that a node unaware of a failover is not believed.
async fn master_as_seen_by(node: &RedisServer, key: &str) -> Result<Option<u16>> {
    if !node.ask::<String>("CLUSTER INFO").await?.contains("cluster_state:ok") {
        return Ok(None);
    }
    let slot: u16 = node.ask(&format!("CLUSTER KEYSLOT {key}")).await?;
    let myself: String = node.ask("CLUSTER MYID").await?;
    let lines: String = node.ask("CLUSTER NODES").await?;
    let own = lines.lines().find(|line| line.starts_with(&myself)).context("itself unknown")?;
    let mut fields = own.split(' ').skip(8);
    let serves = fields.any(|range| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        matches!((from.parse::<u16>(), to.parse::<u16>()), (Ok(a), Ok(b)) if (a..=b).contains(&slot))
    });
    Ok((serves && own.contains("master")).then(|| node.port()))
}
