//! Finds the server that takes a chain's writes, and connects to it.
//!
//! Every connection leads to one master, which is looked up for each new connection: the only
//! server, the master that a Sentinel names, or in a Cluster the node that serves the chain's slot.
//! It is used only after the server has confirmed that it takes writes, and checked again before
//! each further use. So no notification of a failover is needed: the old master's connections
//! break, or it reports that it is a replica (`READONLY`, `MOVED`); they are dropped, and the next
//! connection leads to the new master. While a slot is being moved (`ASK`, `TRYAGAIN`), we wait: a
//! chain's keys move one by one, and a script needs all of them.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crc::{CRC_16_XMODEM, Crc};
use futures_util::{StreamExt as _, stream};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, Value};

use crate::errors::{FailureKind, RedisFailure};
use crate::location::{Address, Form, Location};

/// How many nodes are asked at once for the master; others only when one of these has answered.
const ASKED_AT_ONCE: usize = 3;

/// The slot of a key without braces
/// (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#key-distribution-model>).
pub(crate) fn slot(key: &str) -> u16 {
    Crc::<u16>::new(&CRC_16_XMODEM).checksum(key.as_bytes()) % 16_384
}

/// All servers at a location.
pub(crate) struct Servers {
    location: Location,
    connect_timeout: Duration,
    response_timeout: Duration,
    /// In a Cluster: the nodes in the URL and those listed by the last node that answered.
    nodes: Mutex<Vec<Address>>,
    /// Which node is asked first, a different one each time: a node cut off from the others may be out of date.
    turn: AtomicUsize,
}

/// A range of a Cluster's slots, and its master.
struct SlotRange {
    first: u16,
    last: u16,
    master: Address,
}

impl Servers {
    pub(crate) fn new(
        location: Location,
        connect_timeout: Duration,
        response_timeout: Duration,
    ) -> Self {
        let nodes = Mutex::new(location.nodes.clone());
        Self { location, connect_timeout, response_timeout, nodes, turn: AtomicUsize::new(0) }
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.location.form == Form::Cluster
    }

    /// A connection to the master that serves `key`, a key without braces. Its response timeout is
    /// extended by `longer`.
    pub(crate) async fn master(
        &self,
        key: &str,
        longer: Duration,
    ) -> Result<MultiplexedConnection, RedisFailure> {
        let limit = self.connect_timeout + self.response_timeout;
        match tokio::time::timeout(limit, self.find(key, longer)).await {
            Ok(found) => found,
            Err(_) => Err(RedisFailure::new(FailureKind::Timeout, "no connection in time")),
        }
    }

    async fn find(
        &self,
        key: &str,
        longer: Duration,
    ) -> Result<MultiplexedConnection, RedisFailure> {
        if self.location.form == Form::Standalone {
            return self.open(&self.location.nodes[0], key, longer).await;
        }
        let mut told = stream::iter(self.nodes_in_turn())
            .map(|node| async move { self.ask(&node, key).await })
            .buffer_unordered(ASKED_AT_ONCE);
        let mut refused = Vec::new();
        let mut worst = None;
        while let Some(told) = told.next().await {
            let failure = match told {
                // Another node named the same server before, and it refused.
                Ok(master) if refused.contains(&master) => continue,
                Ok(master) => match self.open(&master, key, longer).await {
                    Ok(connection) => return Ok(connection),
                    Err(failure) => {
                        refused.push(master);
                        failure
                    }
                },
                Err(failure) => failure,
            };
            // Any other failure says more than that one of many nodes is unreachable.
            if worst.as_ref().is_none_or(|worst: &RedisFailure| worst.is_unreachable()) {
                worst = Some(failure);
            }
        }
        Err(worst.unwrap_or_else(|| RedisFailure::unexpected("finding the master")))
    }

    /// The address of `key`'s master according to `node`.
    async fn ask(&self, node: &Address, key: &str) -> Result<Address, RedisFailure> {
        match &self.location.form {
            Form::Standalone => Ok(node.clone()),
            Form::Sentinel(name) => self.ask_sentinel(node, name).await,
            Form::Cluster => {
                let slot = slot(key);
                let ranges = self.ask_cluster(node).await?;
                let range = ranges.into_iter().find(|r| (r.first..=r.last).contains(&slot));
                range.map(|range| range.master).ok_or_else(|| {
                    RedisFailure::new(FailureKind::Cluster, "no node serves the chain's slot")
                })
            }
        }
    }

    async fn ask_sentinel(&self, node: &Address, name: &str) -> Result<Address, RedisFailure> {
        let ask = async {
            let way = self.location.sentinel(node);
            let mut connection = self.connect(way, self.connect_timeout).await?;
            let mut command = redis::cmd("SENTINEL");
            command.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
            let told = command.query_async::<Option<(String, u16)>>(&mut connection).await;
            told.map_err(RedisFailure::from)
        };
        // Sentinels and servers have separate credentials, so the message says which one failed.
        let told = ask.await.map_err(|failure| {
            let why = format!("the Sentinel at {node}: {}", failure.detail);
            RedisFailure::new(failure.kind, why)
        })?;
        let (host, port) = told.ok_or_else(|| {
            let why = format!("the Sentinel at {node} knows no master `{name}`");
            RedisFailure::new(FailureKind::Other, why)
        })?;
        Ok(Address { host, port })
    }

    /// The slots according to `node`. From now on only it and the nodes it lists are asked: nodes that have left the
    /// Cluster would only time out.
    async fn ask_cluster(&self, node: &Address) -> Result<Vec<SlotRange>, RedisFailure> {
        let way = self.location.server(node);
        let mut connection = self.connect(way, self.connect_timeout).await?;
        // First slot, last slot, master, replicas; each server as host, port, id and more.
        let told: Vec<Vec<Value>> =
            redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await?;
        let (mut ranges, mut named) = (Vec::new(), self.location.nodes.clone());
        for range in told {
            let mut parts = range.into_iter();
            let bounds = (parts.next().and_then(number), parts.next().and_then(number));
            let mut nodes = parts.filter_map(|part| address(part, node));
            if let ((Some(first), Some(last)), Some(master)) = (bounds, nodes.next()) {
                let others = nodes.chain([master.clone()]);
                named.extend(others.filter(|node| !named.contains(node)).collect::<Vec<_>>());
                ranges.push(SlotRange { first, last, master });
            }
        }
        if !ranges.is_empty() {
            *self.nodes.lock().unwrap_or_else(PoisonError::into_inner) = named;
        }
        Ok(ranges)
    }

    /// One key without braces per master (a Cluster has several); `name` makes keys from numbers.
    pub(crate) async fn key_of_each_master(
        &self,
        name: impl Fn(u32) -> String,
    ) -> Result<Vec<String>, RedisFailure> {
        if !self.is_cluster() {
            return Ok(vec![name(0)]);
        }
        let mut failure = RedisFailure::unexpected("CLUSTER SLOTS");
        for node in self.nodes_in_turn() {
            let ranges = match self.ask_cluster(&node).await {
                Ok(ranges) => ranges,
                Err(why) => {
                    failure = why;
                    continue;
                }
            };
            let mut keys: Vec<(Address, String)> = Vec::new();
            for range in ranges {
                if keys.iter().all(|(master, _)| *master != range.master) {
                    let mut names = (0..).map(&name);
                    let key = names.find(|key| (range.first..=range.last).contains(&slot(key)));
                    keys.extend(key.map(|key| (range.master, key)));
                }
            }
            if !keys.is_empty() {
                return Ok(keys.into_iter().map(|(_, key)| key).collect());
            }
            failure = RedisFailure::new(FailureKind::Cluster, "the Cluster serves no slots yet");
        }
        Err(failure)
    }

    /// A connection to the server at `address`, which confirms that it is the master of `key`.
    async fn open(
        &self,
        address: &Address,
        key: &str,
        longer: Duration,
    ) -> Result<MultiplexedConnection, RedisFailure> {
        let timeout = self.response_timeout.saturating_add(longer);
        let mut connection = self.connect(self.location.server(address), timeout).await?;
        self.check(&mut connection, key).await?;
        Ok(connection)
    }

    /// Checks that the server at the other end says that it takes writes of `key`.
    pub(crate) async fn check(
        &self,
        connection: &mut MultiplexedConnection,
        key: &str,
    ) -> Result<(), RedisFailure> {
        if self.is_cluster() {
            // A server that does not serve the slot answers MOVED, and so does a replica.
            return Ok(redis::cmd("EXISTS").arg(key).exec_async(connection).await?);
        }
        let role: Vec<Value> = redis::cmd("ROLE").query_async(connection).await?;
        let role: String = role
            .into_iter()
            .next()
            .and_then(|role| redis::from_redis_value(role).ok())
            .ok_or_else(|| RedisFailure::unexpected("ROLE"))?;
        match role.as_str() {
            "master" => Ok(()),
            "sentinel" => Err(RedisFailure::new(
                FailureKind::Other,
                "this is a Sentinel: redis-sentinel://host:port,host:port/NAME is required",
            )),
            _ => Err(RedisFailure::new(
                FailureKind::ReadOnly,
                "this is a replica: the master is required",
            )),
        }
    }

    async fn connect(
        &self,
        way: ConnectionInfo,
        response_timeout: Duration,
    ) -> Result<MultiplexedConnection, RedisFailure> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(response_timeout));
        let client = Client::open(way)?;
        let connection = client.get_multiplexed_async_connection_with_config(&config).await;
        connection.map_err(|error| match RedisFailure::from(error) {
            // A port without TLS waits for the rest of a command that it takes the handshake for.
            RedisFailure { kind: kind @ FailureKind::Timeout, .. }
                if self.location.is_encrypted() =>
            {
                RedisFailure::new(kind, "no connection in time: does that port speak TLS?")
            }
            failure => failure,
        })
    }

    fn nodes_in_turn(&self) -> Vec<Address> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % nodes.len();
        nodes.rotate_left(turn);
        nodes
    }
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.location.fmt(f)
    }
}

fn number(value: Value) -> Option<u16> {
    redis::from_redis_value(value).ok()
}

/// A node in the reply to `CLUSTER SLOTS` from `teller`: if its host is missing, it is the teller's
/// own.
fn address(node: Value, teller: &Address) -> Option<Address> {
    let Value::Array(parts) = node else { return None };
    let mut parts = parts.into_iter();
    let host: Option<String> = redis::from_redis_value(parts.next()?).ok()?;
    let host = host.filter(|host| !host.is_empty()).unwrap_or_else(|| teller.host.clone());
    Some(Address { host, port: number(parts.next()?)? })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use ethhook_testkit::cluster::RedisCluster;
    use ethhook_testkit::redis_server::RedisOptions;

    use super::*;

    #[tokio::test]
    async fn nodes_that_left_a_cluster_are_not_asked_for_ever() {
        let cluster = RedisCluster::spawn(RedisOptions::default(), 0).await.unwrap();
        let location = Location::read(&cluster.url()).unwrap();
        let (connect, answer) = (Duration::from_millis(300), Duration::from_secs(1));
        let servers = Servers::new(location, connect, answer);
        // They accept connections but never answer.
        let gone: Vec<_> = (0..8).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let address = |socket: &TcpListener| Address {
            host: "127.0.0.1".to_owned(),
            port: socket.local_addr().unwrap().port(),
        };
        servers.nodes.lock().unwrap().extend(gone.iter().map(address));
        servers.master("events:1", Duration::ZERO).await.unwrap();
        let known = servers.nodes_in_turn();
        assert!(gone.iter().all(|socket| !known.contains(&address(socket))), "{known:?}");
        assert_eq!(known.len(), 3, "{known:?}");
    }

    #[test]
    fn slots_are_the_specifications() {
        // Expected values from `CLUSTER KEYSLOT`.
        assert_eq!(slot("123456789"), 12_739);
        assert_eq!((slot("events:1"), slot("events:8453")), (12_255, 8_027));
    }
}
