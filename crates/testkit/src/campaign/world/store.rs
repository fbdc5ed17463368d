//! The world's Redis, with a proxy before it, and what is wrong with it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::{Instant, sleep};

use crate::canary;
use crate::ingestor::Ingestor;
use crate::proxy::Proxy;
use crate::redis_server::{RedisOptions, RedisServer};

pub(super) struct Store {
    server: RedisServer,
    pub(super) link: Proxy,
    /// Its append-only file was cut since it was last started.
    torn: bool,
    /// That are not over.
    faults: u32,
    sound_since: Instant,
}

impl Store {
    pub(super) async fn new(appendfsync: &'static str) -> Result<Self> {
        let options = RedisOptions {
            appendfsync,
            more: vec![("requirepass".into(), canary::REDIS_PASSWORD.into())],
            ..RedisOptions::default()
        };
        let server = RedisServer::spawn(options).await?;
        let link = Proxy::start(SocketAddr::from(([127, 0, 0, 1], server.port()))).await?;
        Ok(Self { server, link, torn: false, faults: 0, sound_since: Instant::now() })
    }

    /// What the ingestors are given: through the proxy.
    pub(super) fn url(&self) -> String {
        format!("redis://:{}@{}/", canary::REDIS_PASSWORD, self.link.address())
    }

    /// For who must not be disturbed.
    pub(super) fn direct_url(&self) -> String {
        self.server.url()
    }

    pub(super) fn fault_begins(&mut self) {
        self.faults += 1;
    }

    pub(super) fn fault_is_over(&mut self) {
        self.faults -= 1;
        self.sound_since = Instant::now();
    }

    /// Whether nothing was wrong with it since `start`.
    pub(super) fn was_sound_since(&self, start: Instant) -> bool {
        self.faults == 0 && self.sound_since < start
    }

    pub(super) fn kill(&mut self) {
        self.server.kill();
    }

    pub(super) fn pause(&self) -> Result<()> {
        self.server.pause()
    }

    pub(super) fn resume(&self) -> Result<()> {
        self.server.resume()
    }

    pub(super) async fn start(&mut self) -> Result<()> {
        self.server.start().await?;
        if std::mem::take(&mut self.torn) {
            self.rewrite_append_only_file().await?;
        }
        Ok(())
    }

    /// Cuts the newest file to `millionths` of its length: what a crashed machine may leave of it.
    pub(super) fn cut_append_only_file(&mut self, millionths: u64) -> Result<()> {
        let folder = self.server.directory().join("appendonlydir");
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

    /// What a careful operator does after such a restart. Redis 7.0 leaves the head of a torn
    /// transaction in the file (where the cut is within a command, it cuts back to the last whole
    /// command, not to the `MULTI` before it), and the restart after the next runs that head together
    /// with the transaction that follows: writes come back that no reader ever saw.
    async fn rewrite_append_only_file(&self) -> Result<()> {
        let mut redis = self.server.connection().await?;
        redis::cmd("BGREWRITEAOF").exec_async(&mut redis).await?;
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
        let mut redis = self.server.connection().await?;
        redis::cmd("CONFIG").arg(&["SET", "maxmemory", value]).exec_async(&mut redis).await?;
        Ok(())
    }

    /// Looks for the secrets of the world's URLs in all that can be read; returns how many bytes
    /// that were.
    pub(super) async fn sweep_for_secrets(&self, ingestors: &[&Ingestor]) -> Result<usize> {
        canary::sweep(ingestors, &self.server).await
    }

    pub(super) async fn connection(&self) -> Result<redis::aio::MultiplexedConnection> {
        self.server.connection().await
    }
}
