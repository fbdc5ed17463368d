//! The way to Redis: one URL, a pool for short commands, and connections of their own for the
//! publisher and for blocking reads.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool_redis::{Connection, Manager, Pool, Runtime};
use ethhook_domain::{ChainId, Secret};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client};

use crate::entry_id::EntryId;
use crate::errors::RedisFailure;

/// Where Redis is and how long to wait for it.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// `redis://` or `rediss://`, with user and password where needed: a secret.
    pub url: Secret,
    /// Connections for everything but publishing and blocking reads.
    pub pool_size: usize,
    /// Longest wait for a connection to stand.
    pub connect_timeout: Duration,
    /// Longest wait for an answer. The library's own default of 500 ms is too short for a large
    /// step behind another, and for a server that forks.
    pub response_timeout: Duration,
}

impl RedisConfig {
    /// The usual figures for `url`: 8 connections, 5 s to connect, 10 s for an answer.
    #[must_use]
    pub fn new(url: Secret) -> Self {
        Self {
            url,
            pool_size: 8,
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(10),
        }
    }
}

/// The configuration cannot work, whatever Redis does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The URL (not shown) does not parse.
    #[error(
        "the Redis URL is not valid: expected redis://[user:password@]host[:port][/db], or rediss:// for TLS"
    )]
    Url,
    /// A pool without connections.
    #[error("the Redis pool needs at least one connection")]
    EmptyPool,
}

/// Redis as this program uses it; clones share one pool.
#[derive(Clone)]
pub struct Streams {
    client: Client,
    pool: Pool,
    connect_timeout: Duration,
    response_timeout: Duration,
    /// The highest ID that each chain's stream has given this process. It outlives publishers: after
    /// a failover the new one lifts the stream above what readers may already have seen.
    floors: Arc<Mutex<HashMap<ChainId, EntryId>>>,
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
    /// See [`ConnectError`]; none of them shows the URL.
    pub fn new(config: RedisConfig) -> Result<Self, ConnectError> {
        if config.pool_size == 0 {
            return Err(ConnectError::EmptyPool);
        }
        let url = config.url.reveal();
        if url.starts_with("rediss://") {
            // The provider is process-wide; whoever comes second finds it installed.
            drop(rustls::crypto::ring::default_provider().install_default());
        }
        let client = Client::open(url).map_err(|_| ConnectError::Url)?;
        let options = options(config.connect_timeout, config.response_timeout);
        let manager = Manager::new_with_config(client.get_connection_info().clone(), options)
            .map_err(|_| ConnectError::Url)?;
        let pool = Pool::builder(manager)
            .max_size(config.pool_size)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(config.response_timeout))
            .create_timeout(Some(config.connect_timeout))
            .recycle_timeout(Some(config.response_timeout))
            .build()
            .map_err(|_| ConnectError::EmptyPool)?;
        Ok(Self {
            client,
            pool,
            connect_timeout: config.connect_timeout,
            response_timeout: config.response_timeout,
            floors: Arc::default(),
        })
    }

    /// Host and port, without user and password.
    #[must_use]
    pub fn address(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }

    /// Whether Redis answers.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn ping(&self) -> Result<(), RedisFailure> {
        let mut connection = self.pooled().await?;
        Ok(redis::cmd("PING").exec_async(&mut connection).await?)
    }

    /// A connection of the pool, known to answer.
    pub(crate) async fn pooled(&self) -> Result<Connection, RedisFailure> {
        Ok(self.pool.get().await?)
    }

    /// A connection of one's own, whose answers may take `longer` than usual.
    pub(crate) async fn connect(
        &self,
        longer: Duration,
    ) -> Result<MultiplexedConnection, RedisFailure> {
        let options = options(self.connect_timeout, self.response_timeout.saturating_add(longer));
        Ok(self.client.get_multiplexed_async_connection_with_config(&options).await?)
    }

    /// The highest ID this process was given for `chain`.
    pub(crate) fn floor(&self, chain: ChainId) -> Option<EntryId> {
        self.floors.lock().unwrap_or_else(PoisonError::into_inner).get(&chain).copied()
    }

    /// Remembers that `chain`'s stream gave `id`.
    pub(crate) fn raise_floor(&self, chain: ChainId, id: EntryId) {
        let mut floors = self.floors.lock().unwrap_or_else(PoisonError::into_inner);
        let floor = floors.entry(chain).or_default();
        *floor = id.max(*floor);
    }
}

fn options(connect_timeout: Duration, response_timeout: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(connect_timeout))
        .set_response_timeout(Some(response_timeout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_debug_hide_the_url() {
        for url in ["http://user:hunter2@host/", "redis://user:hunter2@host:port", "hunter2"] {
            let error = Streams::new(RedisConfig::new(Secret::new(url))).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
        let streams =
            Streams::new(RedisConfig::new(Secret::new("redis://u:hunter2@host:6380/1"))).unwrap();
        let shown = format!("{streams:?} {}", streams.address());
        assert!(shown.contains("host:6380") && !shown.contains("hunter2"), "{shown}");
    }
}
