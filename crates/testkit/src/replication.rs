//! A server and its replicas: whether they hold the same, and keeping them apart.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

use crate::redis_server::RedisServer;

/// As whom replicas read from a master; so they can be kept away from it without anybody else.
pub(crate) const REPLICATION_USER: &str = "replication on >replication +psync +replconf +ping";
/// What makes them do so.
pub(crate) const REPLICATION: [(&str, &str); 3] = [
    ("masteruser", "replication"),
    ("masterauth", "replication"),
    ("repl-diskless-sync-delay", "0"),
];

/// How long anything may take on a busy machine. A Sentinel whose clock jumped waits for 30 s.
const PATIENCE: Duration = Duration::from_secs(120);

impl RedisServer {
    /// Waits until this replica is linked to its master and has read what that held.
    ///
    /// # Errors
    /// If it has not in time.
    pub async fn is_synchronous(&self) -> Result<()> {
        wait_until("a replica holds what its master holds", async || {
            Ok(self.ask::<String>("INFO replication").await?.contains("master_link_status:up"))
        })
        .await
    }

    /// Waits until a replica of this master holds all that this holds now.
    ///
    /// # Errors
    /// If none does in time.
    pub async fn is_replicated(&self) -> Result<()> {
        let mut connection = self.connection().await?;
        wait_until("a replica holds what this master holds", async || {
            // It waits for what its own connection saw last, and for nothing before the first command.
            redis::cmd("PING").exec_async(&mut connection).await?;
            let mut wait = redis::cmd("WAIT");
            Ok(wait.arg(1).arg(1_000).query_async::<u64>(&mut connection).await? > 0)
        })
        .await
    }

    /// Lets no replica read from this master any more, until it starts anew: what is written from
    /// now on is lost if it fails over. Only for servers of a `SentinelSet` or a `RedisCluster`.
    ///
    /// # Errors
    /// If it does not run.
    pub async fn cut_replication(&self) -> Result<()> {
        self.ask::<()>("ACL SETUSER replication off").await?;
        self.ask::<u64>("CLIENT KILL TYPE replica").await.map(drop)
    }
}

/// Polls until `holds`; an error counts as not yet.
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
