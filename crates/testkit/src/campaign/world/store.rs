//! The world's Redis, with a proxy in front of it, and its faults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::{Instant, sleep};

use super::super::action::{Form, WorldPlan};
use crate::canary;
use crate::cluster::RedisCluster;
use crate::ingestor::Ingestor;
use crate::proxy::Proxy;
use crate::redis_server::{RedisOptions, RedisServer};
use crate::sentinel::SentinelSet;

enum Servers {
    One(RedisServer),
    Sentinel(SentinelSet),
    Cluster(RedisCluster),
}

pub(super) struct Store {
    servers: Servers,
    /// In front of the first server; only used if it is the only one.
    pub(super) link: Proxy,
    /// Whether its append-only file was cut since its last start.
    torn: bool,
    /// Faults that have not ended yet.
    faults: u32,
    sound_since: Instant,
}

impl Servers {
    fn all(&self) -> &[RedisServer] {
        match self {
            Self::One(server) => std::slice::from_ref(server),
            Self::Sentinel(set) => &set.servers,
            Self::Cluster(cluster) => &cluster.nodes,
        }
    }

    fn all_mut(&mut self) -> &mut [RedisServer] {
        match self {
            Self::One(server) => std::slice::from_mut(server),
            Self::Sentinel(set) => &mut set.servers,
            Self::Cluster(cluster) => &mut cluster.nodes,
        }
    }

    fn first(&self) -> &RedisServer {
        &self.all()[0]
    }
}

fn events_key(chain: u64) -> String {
    format!("events:{chain}")
}

impl Store {
    pub(super) async fn new(world: &WorldPlan) -> Result<Self> {
        let options = RedisOptions { appendfsync: world.appendfsync, ..RedisOptions::default() };
        let servers = match world.redis {
            Form::One => {
                let more = vec![("requirepass".into(), canary::REDIS_PASSWORD.into())];
                let options = RedisOptions { more, ..options };
                Servers::One(RedisServer::spawn(options).await?)
            }
            Form::Sentinel => Servers::Sentinel(SentinelSet::spawn(options, 1).await?),
            Form::Cluster => Servers::Cluster(RedisCluster::spawn(options, 1).await?),
        };
        let port = servers.first().port();
        let link = Proxy::start(SocketAddr::from(([127, 0, 0, 1], port))).await?;
        Ok(Self { servers, link, torn: false, faults: 0, sound_since: Instant::now() })
    }

    /// The URL for the ingestors: through the proxy if there is only one server.
    pub(super) fn url(&self) -> String {
        match &self.servers {
            Servers::One(_) => {
                format!("redis://:{}@{}/", canary::REDIS_PASSWORD, self.link.address())
            }
            Servers::Sentinel(set) => set.url(),
            Servers::Cluster(cluster) => cluster.url(),
        }
    }

    /// The server that currently holds this chain.
    async fn holder(&self, chain: u64) -> Result<usize> {
        match &self.servers {
            Servers::One(_) => Ok(0),
            Servers::Sentinel(set) => set.master().await.context("the Sentinels do not agree"),
            Servers::Cluster(cluster) => cluster.master_of(&events_key(chain)).await,
        }
    }

    /// The URL of the server that currently holds this chain, for clients that the proxy must not
    /// disturb.
    pub(super) async fn direct_url(&self, chain: u64) -> Result<String> {
        Ok(self.servers.all()[self.holder(chain).await?].url())
    }

    /// From now on, no replica receives writes to the server that holds this chain.
    pub(super) async fn cut_replication(&self, chain: u64) -> Result<()> {
        let servers = self.servers.all();
        for server in servers {
            let info: String = server.ask("INFO replication").await?;
            if info.contains("role:slave") {
                server.until_synchronous().await?;
            }
        }
        servers[self.holder(chain).await?].cut_replication().await
    }

    /// Kills the server that holds this chain, waits until its replica has taken its place, and
    /// starts it again.
    pub(super) async fn fail_over(&mut self, chain: u64) -> Result<()> {
        let old = self.holder(chain).await?;
        match &mut self.servers {
            Servers::One(server) => server.kill(),
            Servers::Sentinel(set) => drop(set.fail_over(old).await?),
            Servers::Cluster(cluster) => drop(cluster.fail_over(&events_key(chain)).await?),
        }
        self.servers.all_mut()[old].start().await
    }

    pub(super) fn fault_begins(&mut self) {
        self.faults += 1;
    }

    pub(super) fn fault_is_over(&mut self) {
        self.faults -= 1;
        self.sound_since = Instant::now();
    }

    /// Whether nothing was wrong with Redis since `start`.
    pub(super) fn was_sound_since(&self, start: Instant) -> bool {
        self.faults == 0 && self.sound_since < start
    }

    pub(super) fn kill(&mut self) {
        self.servers.all_mut()[0].kill();
    }

    pub(super) fn pause(&self) -> Result<()> {
        self.servers.first().pause()
    }

    pub(super) fn resume(&self) -> Result<()> {
        self.servers.first().resume()
    }

    pub(super) async fn start(&mut self) -> Result<()> {
        self.servers.all_mut()[0].start().await?;
        if std::mem::take(&mut self.torn) {
            self.rewrite_append_only_file().await?;
        }
        Ok(())
    }

    /// Cuts the newest file to `millionths` of its length, like a crash of the machine.
    pub(super) fn cut_append_only_file(&mut self, millionths: u64) -> Result<()> {
        let folder = self.servers.first().directory().join("appendonlydir");
        let files = std::fs::read_dir(&folder).context("appendonlydir")?;
        let mut files: Vec<_> = files.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
        files.retain(|path| path.to_string_lossy().ends_with(".incr.aof"));
        // Their names end with `.<number>.incr.aof`.
        let number = |path: &PathBuf| {
            let name = path.file_name()?.to_str()?;
            name.split('.').rev().nth(2)?.parse::<u64>().ok()
        };
        let newest = files.into_iter().max_by_key(number).context("no append-only file")?;
        let file = std::fs::File::options().write(true).open(newest)?;
        let length = file.metadata()?.len();
        self.torn = true;
        Ok(file.set_len(length * millionths / 1_000_000)?)
    }

    /// What a careful operator does after such a restart. Redis 7.0 leaves the beginning of a torn
    /// transaction in the file (if the cut is within a command, it truncates to the last whole
    /// command, not to the `MULTI` before it), and the restart after the next one runs that
    /// beginning together with the transaction that follows: writes come back that no reader ever
    /// saw.
    async fn rewrite_append_only_file(&self) -> Result<()> {
        let mut redis = self.servers.first().connection().await?;
        match redis::cmd("BGREWRITEAOF").exec_async(&mut redis).await {
            // An ingestor has requested it since the restart, which is just as good.
            Err(error) if error.to_string().contains("already in progress") => {}
            asked => asked?,
        }
        loop {
            let info: String =
                redis::cmd("INFO").arg("persistence").query_async(&mut redis).await?;
            if ["aof_rewrite_in_progress:0", "aof_rewrite_scheduled:0"]
                .iter()
                .all(|line| info.contains(line))
            {
                return Ok(());
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) async fn set_maxmemory(&self, value: &str) -> Result<()> {
        let mut redis = self.servers.first().connection().await?;
        redis::cmd("CONFIG").arg(&["SET", "maxmemory", value]).exec_async(&mut redis).await?;
        Ok(())
    }

    /// Searches everything readable for the secrets in the world's URLs; returns the number of
    /// bytes searched.
    pub(super) async fn sweep_for_secrets(&self, ingestors: &[&Ingestor]) -> Result<usize> {
        let mut searched = 0;
        for server in self.servers.all() {
            // A replica holds the same data as its master.
            if server.ask::<String>("INFO replication").await?.contains("role:master") {
                searched += canary::sweep(ingestors, server).await?;
            }
        }
        Ok(searched)
    }

    pub(super) async fn connection(&self) -> Result<redis::aio::MultiplexedConnection> {
        self.servers.first().connection().await
    }
}
