//! A master, its replicas, and three Sentinels that watch them.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::redis_server::{Part, RedisOptions, RedisServer};
use crate::replication::{REPLICATION, REPLICATION_USER, wait_until};

/// The name under which the Sentinels know the master.
pub const MASTER_NAME: &str = "main";

/// A silent master counts as down after this; far longer than a busy machine delays a server.
const DOWN_AFTER: Duration = Duration::from_secs(2);
/// Servers watched by three Sentinels; all are killed when dropped.
#[derive(Debug)]
pub struct SentinelSet {
    /// The first one starts as the master.
    pub servers: Vec<RedisServer>,
    /// The Sentinels.
    pub sentinels: Vec<RedisServer>,
}

impl SentinelSet {
    /// Starts a master, `replicas` of it and three Sentinels, and waits until the replicas hold the
    /// master's data and the Sentinels know all of them. `options` apply to every server.
    ///
    /// # Errors
    /// If a server does not start, or they do not find each other in time.
    pub async fn spawn(options: RedisOptions, replicas: usize) -> Result<Self> {
        let watching = RedisOptions { tls: options.tls.clone(), ..RedisOptions::default() };
        Self::spawn_with(options, replicas, watching).await
    }

    /// The same with separate options for the Sentinels, such as another password.
    ///
    /// # Errors
    /// See [`SentinelSet::spawn`].
    pub async fn spawn_with(
        options: RedisOptions,
        replicas: usize,
        watching: RedisOptions,
    ) -> Result<Self> {
        let mut options = options;
        options.users.push(REPLICATION_USER.to_owned());
        options.more.extend(REPLICATION.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let mut servers = vec![RedisServer::spawn(options.clone()).await?];
        let master = servers[0].port();
        for _ in 0..replicas {
            let server = RedisServer::spawn(options.clone()).await?;
            server.ask::<()>(&format!("REPLICAOF 127.0.0.1 {master}")).await?;
            servers.push(server);
        }
        let mut watched = format!(
            "sentinel monitor {MASTER_NAME} 127.0.0.1 {master} 2\n\
             sentinel down-after-milliseconds {MASTER_NAME} {}\n\
             sentinel failover-timeout {MASTER_NAME} 5000",
            DOWN_AFTER.as_millis()
        );
        if let Some(password) = options.password() {
            write!(watched, "\nsentinel auth-pass {MASTER_NAME} {password}")?;
        }
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            let part = Part::Sentinel(watched.clone());
            sentinels.push(RedisServer::spawn_as(part, watching.clone()).await?);
        }
        let set = Self { servers, sentinels };
        set.find_each_other(replicas).await?;
        Ok(set)
    }

    async fn find_each_other(&self, replicas: usize) -> Result<()> {
        for replica in &self.servers[1..] {
            replica.until_synchronous().await?;
        }
        for sentinel in &self.sentinels {
            wait_until("a Sentinel knows the others", async || {
                let info: String = sentinel.ask("INFO sentinel").await?;
                Ok(info.contains(&format!(
                    "status=ok,address=127.0.0.1:{},slaves={replicas},sentinels=3",
                    self.servers[0].port()
                )))
            })
            .await?;
        }
        Ok(())
    }

    /// `redis-sentinel://host:port,…/main`, or `rediss-sentinel://` with TLS; with the passwords of
    /// servers and Sentinels, if required.
    #[must_use]
    pub fn url(&self) -> String {
        let tls = self.sentinels[0].tls_suffix();
        let hosts: Vec<_> =
            self.sentinels.iter().map(|s| format!("127.0.0.1:{}", s.port())).collect();
        let servers = self.servers[0].password().map(|text| format!(":{text}@"));
        let watching =
            self.sentinels[0].password().map(|text| format!("?sentinel_password={text}"));
        format!(
            "redis{tls}-sentinel://{}{}/{MASTER_NAME}{}",
            servers.unwrap_or_default(),
            hosts.join(","),
            watching.unwrap_or_default()
        )
    }

    /// The server that a majority of the Sentinels currently names as the master; none while they
    /// do not agree.
    pub async fn master(&self) -> Option<usize> {
        let mut named = Vec::new();
        for sentinel in &self.sentinels {
            let line = format!("SENTINEL GET-MASTER-ADDR-BY-NAME {MASTER_NAME}");
            if let Ok((_, port)) = sentinel.ask::<(String, u16)>(&line).await {
                named.push(port);
            }
        }
        self.servers.iter().position(|server| {
            named.iter().filter(|port| **port == server.port()).count() > self.sentinels.len() / 2
        })
    }

    /// Kills `master` and waits until another server is master. Returns that one. Start the killed
    /// one again to have it as a replica.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn fail_over(&mut self, master: usize) -> Result<usize> {
        self.servers[master].kill();
        self.other_master(master, async || {}).await
    }

    /// Makes a replica the master while the old one is running, as for maintenance, and waits until
    /// the old master is a replica: writes to it until then are lost. Returns the new master.
    ///
    /// # Errors
    /// If the Sentinels refuse, or it takes too long.
    pub async fn switch(&self, master: usize) -> Result<usize> {
        let order = format!("SENTINEL FAILOVER {MASTER_NAME}");
        let new = self
            .other_master(master, async || {
                // Repeated until it is carried out: as long as a Sentinel has not checked a replica
                // recently, it refuses, or starts and gives up.
                drop(self.sentinels[0].ask::<()>(&order).await);
            })
            .await?;
        wait_until("the old master is a replica", async || {
            Ok(self.servers[master].ask::<String>("INFO replication").await?.contains("role:slave"))
        })
        .await?;
        Ok(new)
    }

    async fn other_master(&self, old: usize, order: impl AsyncFn()) -> Result<usize> {
        let mut found = None;
        wait_until("another server is the master", async || {
            found = self.master().await.filter(|now| *now != old);
            let Some(new) = found else {
                order().await;
                return Ok(false);
            };
            Ok(self.servers[new].ask::<String>("INFO replication").await?.contains("role:master"))
        })
        .await?;
        found.context("no master")
    }
}
