//! Replication between a server and its replicas: waiting until they hold the same data, and
//! cutting it.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

use crate::redis_server::RedisServer;

/// The user as which replicas read from a master, so that only they can be kept away from it.
pub(crate) const REPLICATION_USER: &str = "replication on >replication +psync +replconf +ping";
/// The settings that make them use it.
pub(crate) const REPLICATION: [(&str, &str); 3] = [
    ("masteruser", "replication"),
    ("masterauth", "replication"),
    ("repl-diskless-sync-delay", "0"),
];

/// Time limit for anything on a busy machine. A Sentinel whose clock jumped waits for 30 s.
const PATIENCE: Duration = Duration::from_secs(120);

impl RedisServer {
    /// Waits until this replica is connected to its master and has received its data.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn until_synchronous(&self) -> Result<()> {
        wait_until("a replica holds what its master holds", async || {
            Ok(self.ask::<String>("INFO replication").await?.contains("master_link_status:up"))
        })
        .await
    }

    /// Waits until a replica of this master holds all current data of this master.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn until_replicated(&self) -> Result<()> {
        let mut connection = self.connection().await?;
        wait_until("a replica holds what this master holds", async || {
            // WAIT covers what was written before this connection's last command, and nothing
            // before the first one.
            redis::cmd("PING").exec_async(&mut connection).await?;
            let mut wait = redis::cmd("WAIT");
            Ok(wait.arg(1).arg(1_000).query_async::<u64>(&mut connection).await? > 0)
        })
        .await
    }

    /// Prevents replicas from reading from this master until it is restarted: writes from now on
    /// are lost in a failover. Only for servers of a `SentinelSet` or a `RedisCluster`.
    ///
    /// # Errors
    /// If it is not running.
    pub async fn cut_replication(&self) -> Result<()> {
        self.ask::<()>("ACL SETUSER replication off").await?;
        self.ask::<u64>("CLIENT KILL TYPE replica").await.map(drop)
    }
}

/// Polls until `holds` returns true; an error counts as false.
///
/// # Errors
/// If it does not within two minutes.
pub async fn wait_until(what: &str, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let held = holds().await;
        if matches!(held, Ok(true)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("not within {PATIENCE:?}: {what} ({held:?})");
        }
        sleep(Duration::from_millis(50)).await;
    }
}
