//! Connections to Redis: pools for short commands, and dedicated connections for the publisher and
//! for blocking reads.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{self, Metrics, Object, Pool, RecycleResult};
use ethhook_domain::Secret;
use futures_util::future::try_join_all;
use redis::aio::MultiplexedConnection;

use crate::errors::RedisFailure;
use crate::keys::Keys;
use crate::location::Location;
use crate::remembered::Remembered;
use crate::servers::{Servers, slot};

/// The address of Redis and its timeouts.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// `redis://[user:password@]host[:port][/database]`,
    /// `redis-sentinel://[user:password@]host[:port],…/master[/database]` (with
    /// `?sentinel_user=…&sentinel_password=…` if the Sentinels require it) or
    /// `redis-cluster://[user:password@]host[:port],…`; with TLS `rediss`, `rediss-sentinel`,
    /// `rediss-cluster`. A secret.
    pub url: Secret,
    /// Certificate authorities to trust instead of the public ones, PEM; only with TLS.
    pub authorities: Option<Vec<u8>>,
    /// Connections for everything but publishing and blocking reads; in a Cluster, per chain.
    pub pool_size: usize,
    /// Timeout for establishing a connection.
    pub connect_timeout: Duration,
    /// Timeout for an answer. The library's default of 500 ms is too short for a large step queued
    /// behind another, and for a server that forks.
    pub response_timeout: Duration,
}

impl RedisConfig {
    /// The defaults for `url`: 8 connections; 3 s to connect, because Redis is near and one that takes longer is as
    /// good as down; 10 s for an answer: a step of 10,000 entries takes Redis only some 50 ms, but a disk that stalls
    /// takes far longer.
    #[must_use]
    pub fn new(url: Secret) -> Self {
        Self {
            url,
            authorities: None,
            pool_size: 8,
            connect_timeout: Duration::from_secs(3),
            response_timeout: Duration::from_secs(10),
        }
    }
}

/// The configuration cannot work, whatever state Redis is in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// What is wrong with the URL, which is not shown.
    #[error("the Redis URL {0}")]
    Url(String),
    /// What is wrong with the certificate authorities.
    #[error("the Redis certificate authorities {0}")]
    Authorities(&'static str),
    /// A pool without connections.
    #[error("the Redis pool needs at least one connection")]
    EmptyPool,
}

/// Access to Redis; clones share the pools.
#[derive(Clone)]
pub struct Streams {
    servers: Arc<Servers>,
    pool_size: usize,
    connect_timeout: Duration,
    response_timeout: Duration,
    /// One for each slot in use; without a Cluster all chains share one.
    pools: Arc<Mutex<HashMap<u16, Pool<Master>>>>,
    pub(crate) remembered: Arc<Remembered>,
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams").field("address", &self.address()).finish_non_exhaustive()
    }
}

impl Streams {
    /// Parses the configuration; no I/O.
    ///
    /// # Errors
    /// See [`ConnectError`]; none of its texts contains the URL.
    pub fn new(config: RedisConfig) -> Result<Self, ConnectError> {
        if config.pool_size == 0 {
            return Err(ConnectError::EmptyPool);
        }
        let mut location = Location::read(config.url.reveal()).map_err(ConnectError::Url)?;
        if location.is_encrypted() {
            // The provider is process-wide; it may already be installed.
            drop(rustls::crypto::ring::default_provider().install_default());
        }
        match config.authorities {
            Some(_) if !location.is_encrypted() => {
                return Err(ConnectError::Authorities("need a URL with TLS, rediss…://"));
            }
            Some(pem) => location
                .trust(pem)
                .map_err(|_| ConnectError::Authorities("are not certificates in PEM form"))?,
            None => {}
        }
        let servers = Servers::new(location, config.connect_timeout, config.response_timeout);
        Ok(Self {
            servers: Arc::new(servers),
            pool_size: config.pool_size,
            connect_timeout: config.connect_timeout,
            response_timeout: config.response_timeout,
            pools: Arc::default(),
            remembered: Arc::default(),
        })
    }

    /// Hosts and ports, without user and password.
    #[must_use]
    pub fn address(&self) -> String {
        self.servers.to_string()
    }

    /// Checks that every master in use answers.
    ///
    /// # Errors
    /// The failure of one that does not.
    pub async fn ping(&self) -> Result<(), RedisFailure> {
        let mut pools: Vec<_> = self.locked_pools().values().cloned().collect();
        if pools.is_empty() {
            pools.push(self.pool(&Keys::of(0).events)?);
        }
        // The pool checks a connection before it hands it out.
        try_join_all(pools.iter().map(Pool::get)).await?;
        Ok(())
    }

    /// A pooled connection, checked to answer and to lead to the master of these keys.
    pub(crate) async fn pooled(&self, keys: &Keys) -> Result<Object<Master>, RedisFailure> {
        self.pool(&keys.events)?.get().await.map_err(|error| {
            let failure = RedisFailure::from(error);
            if failure.is_unreachable() {
                // The text names the server, since the reader may be thinking of another one.
                RedisFailure::new(
                    failure.kind,
                    format_args!("{}: {}", self.address(), failure.detail),
                )
            } else {
                failure
            }
        })
    }

    fn pool(&self, key: &str) -> Result<Pool<Master>, RedisFailure> {
        let slot = if self.servers.is_cluster() { slot(key) } else { 0 };
        let mut pools = self.locked_pools();
        if let Some(pool) = pools.get(&slot) {
            return Ok(pool.clone());
        }
        let master = Master { servers: Arc::clone(&self.servers), key: key.to_owned() };
        // Creating a connection has its own timeouts.
        let pool = Pool::builder(master)
            .max_size(self.pool_size)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(self.response_timeout))
            // A connection that does not confirm in time that it leads to the master is replaced.
            .recycle_timeout(Some(self.connect_timeout))
            .build()
            .map_err(|_| RedisFailure::unexpected("creating a connection pool"))?;
        pools.insert(slot, pool.clone());
        Ok(pool)
    }

    fn locked_pools(&self) -> MutexGuard<'_, HashMap<u16, Pool<Master>>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A dedicated connection to the master of `key`, the key of an event stream. Its response
    /// timeout is extended by `longer`.
    pub(crate) async fn connect(
        &self,
        key: &str,
        longer: Duration,
    ) -> Result<MultiplexedConnection, RedisFailure> {
        self.servers.master(key, longer).await
    }

    /// One event stream's name per master; `name` makes names from numbers.
    pub(crate) async fn name_for_each_master(
        &self,
        name: impl Fn(u32) -> String,
    ) -> Result<Vec<String>, RedisFailure> {
        self.servers.key_of_each_master(name).await
    }

    /// Whether this is a Cluster.
    pub(crate) fn is_cluster(&self) -> bool {
        self.servers.is_cluster()
    }
}

/// Creates a pool's connections, all to the master of one key.
pub(crate) struct Master {
    servers: Arc<Servers>,
    key: String,
}

impl fmt::Debug for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Master").field("key", &self.key).finish_non_exhaustive()
    }
}

impl managed::Manager for Master {
    type Type = MultiplexedConnection;
    type Error = RedisFailure;

    async fn create(&self) -> Result<MultiplexedConnection, RedisFailure> {
        self.servers.master(&self.key, Duration::ZERO).await
    }

    /// Drops a connection if its server is no longer the master.
    async fn recycle(
        &self,
        connection: &mut MultiplexedConnection,
        _: &Metrics,
    ) -> RecycleResult<RedisFailure> {
        Ok(self.servers.check(connection, &self.key).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g11_errors_and_debug_hide_the_url() {
        for url in ["http://user:hunter2@host/", "redis://user:hunter2@host:port", "hunter2"] {
            let error = Streams::new(RedisConfig::new(Secret::new(url))).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
        for url in ["redis://u:hunter2@host:6380/1", "redis-cluster://u:hunter2@host:6380"] {
            let streams = Streams::new(RedisConfig::new(Secret::new(url))).unwrap();
            let shown = format!("{streams:?} {}", streams.address());
            assert!(shown.contains("host:6380") && !shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn authorities_are_for_tls_and_must_be_some() {
        for (url, pem, says) in [
            ("redis://h", "", "need a URL with TLS"),
            ("rediss://h", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----", "are not"),
        ] {
            let authorities = Some(pem.as_bytes().to_vec());
            let config = RedisConfig { authorities, ..RedisConfig::new(Secret::new(url)) };
            let error = Streams::new(config).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
