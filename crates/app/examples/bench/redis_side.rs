//! The Redis of the bench: its limit, CPU time and memory.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ethhook_streams::Keys;
use ethhook_testkit::redis_server::{RedisOptions, RedisServer};
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamInfoStreamReply, StreamRangeReply};
use redis::{AsyncConnectionConfig, Client, Connection, ConnectionLike as _};
use tokio::task::spawn_blocking;

/// Commands sent before their answers are read.
const PIPELINE: usize = 500;
/// Entries prepared; they are sent repeatedly.
const PREPARED: usize = 50_000;
/// The stream used to measure the limits.
pub(crate) const XADD_KEY: &str = "bench:xadd";

/// As `scripts/run.sh` and the compose file set it; Redis' default is 4096.
pub(crate) const NODE_BYTES: u32 = 16_384;

/// The bench's own Redis, or a given one.
pub(crate) struct RedisSide {
    /// Killed when dropped; none if Redis was given.
    _own: Option<RedisServer>,
    url: String,
    connection: MultiplexedConnection,
}

impl RedisSide {
    pub(crate) async fn start(given: Option<&str>, node_bytes: u32) -> Result<Self> {
        let own = match given {
            Some(_) => None,
            None => {
                let more = vec![
                    ("stream-node-max-bytes".into(), node_bytes.to_string()),
                    // A rewrite occupies a core for a while and would disturb some runs only.
                    ("auto-aof-rewrite-percentage".into(), "0".into()),
                ];
                Some(RedisServer::spawn(RedisOptions { more, ..RedisOptions::default() }).await?)
            }
        };
        let url = given.map_or_else(|| own.as_ref().map(RedisServer::url), |u| Some(u.to_owned()));
        let url = url.context("no Redis")?;
        let connection = connect(&url).await?;
        Ok(Self { _own: own, url, connection })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A separate connection, not delayed by other answers.
    pub(crate) async fn connect(&self) -> Result<MultiplexedConnection> {
        connect(&self.url).await
    }

    /// The same, blocking.
    pub(crate) async fn blocking_connection(&self) -> Result<Connection> {
        let url = self.url.clone();
        Ok(spawn_blocking(move || Client::open(url)?.get_connection()).await??)
    }

    /// User and system CPU time of the server.
    pub(crate) async fn cpu(&mut self) -> Result<Duration> {
        let info: redis::InfoDict =
            redis::cmd("INFO").arg("cpu").query_async(&mut self.connection).await?;
        let seconds = |name: &str| info.get::<f64>(name).with_context(|| name.to_owned());
        Ok(Duration::from_secs_f64(seconds("used_cpu_user")? + seconds("used_cpu_sys")?))
    }

    /// Height of a chain's tip; none before its first block.
    pub(crate) async fn tip(&mut self, chain_id: u64) -> Result<Option<u64>> {
        let cursor = Keys::of(chain_id).cursor;
        let fields: (Option<u64>, Option<String>) = redis::cmd("HMGET")
            .arg(&[cursor.as_str(), "number", "hash"])
            .query_async(&mut self.connection)
            .await?;
        Ok(fields.0.filter(|_| fields.1.is_some_and(|hash| !hash.is_empty())))
    }

    pub(crate) async fn entries(&mut self, key: &str) -> Result<u64> {
        Ok(redis::cmd("XLEN").arg(key).query_async(&mut self.connection).await?)
    }

    /// Bytes of the chain's events, markers and dedup records.
    pub(crate) async fn bytes(&mut self, chain_id: u64) -> Result<Bytes> {
        let keys = Keys::of(chain_id);
        let seen = self.keys(&format!("seen:{{{}}}:*", keys.events)).await?;
        let events = self.memory(&keys.events).await?;
        let markers = self.memory(&keys.blocks).await?;
        let dedup = match seen.first() {
            Some(first) => self.memory(first).await? * seen.len() as u64,
            None => 0,
        };
        Ok(Bytes { events, markers, dedup })
    }

    async fn memory(&mut self, key: &str) -> Result<u64> {
        let bytes: Option<u64> = redis::cmd("MEMORY")
            .arg(&["USAGE", key, "SAMPLES", "0"])
            .query_async(&mut self.connection)
            .await?;
        Ok(bytes.unwrap_or_default())
    }

    async fn keys(&mut self, pattern: &str) -> Result<Vec<String>> {
        let (mut found, mut cursor) = (Vec::new(), 0);
        loop {
            let (next, page): (u64, Vec<String>) = redis::cmd("SCAN")
                .arg(cursor)
                .arg(&["MATCH", pattern, "COUNT", "1000"])
                .query_async(&mut self.connection)
                .await?;
            found.extend(page);
            cursor = next;
            if cursor == 0 {
                return Ok(found);
            }
        }
    }

    /// All streams by name, with their lengths.
    pub(crate) async fn streams(&mut self) -> Result<Vec<(String, u64)>> {
        let mut streams = Vec::new();
        for key in self.keys("*").await? {
            let kind: String =
                redis::cmd("TYPE").arg(&key).query_async(&mut self.connection).await?;
            if kind == "stream" {
                let info: StreamInfoStreamReply = redis::cmd("XINFO")
                    .arg(&["STREAM", &key])
                    .query_async(&mut self.connection)
                    .await?;
                streams.push((key, info.length as u64));
            }
        }
        Ok(streams)
    }

    /// Deletes everything written for the chain.
    pub(crate) async fn clear(&mut self, chain_id: u64) -> Result<()> {
        let keys = Keys::of(chain_id);
        let mut names = self.keys(&format!("*{{{}}}*", keys.events)).await?;
        names.push(keys.events);
        for name in names {
            redis::cmd("UNLINK").arg(name).exec_async(&mut self.connection).await?;
        }
        Ok(())
    }

    /// A step with the newest entries of `stream`.
    pub(crate) async fn prepared_step(
        &mut self,
        stream: &str,
        entries: usize,
    ) -> Result<PreparedStep> {
        let reply: StreamRangeReply = redis::cmd("XREVRANGE")
            .arg(&[stream, "+", "-", "COUNT"])
            .arg(entries)
            .query_async(&mut self.connection)
            .await?;
        let commands = [
            redis::cmd("MULTI").get_packed_command(),
            pipeline(&reply.ids),
            redis::cmd("EXEC").get_packed_command(),
        ];
        let connection = self.blocking_connection().await?;
        Ok(PreparedStep { connection, commands: commands.concat(), answers: reply.ids.len() + 2 })
    }

    /// Deletes what measuring the limits wrote.
    pub(crate) async fn clear_limits(&mut self) -> Result<()> {
        Ok(redis::cmd("UNLINK").arg(XADD_KEY).exec_async(&mut self.connection).await?)
    }

    /// The most entries per second with `XADD`, and the server's CPU per entry: the entries of
    /// `stream` over one connection, prepared beforehand, in pipelines of 500.
    pub(crate) async fn xadd_limit(&mut self, stream: &str, entries: u64) -> Result<(f64, f64)> {
        let reply: StreamRangeReply = redis::cmd("XRANGE")
            .arg(&[stream, "-", "+", "COUNT"])
            .arg(PREPARED)
            .query_async(&mut self.connection)
            .await?;
        ensure!(reply.ids.len() >= PIPELINE, "{stream} has too few entries to measure with");
        let buffers: Vec<Vec<u8>> = reply.ids.chunks_exact(PIPELINE).map(pipeline).collect();
        let mut connection = self.blocking_connection().await?;
        let before = self.cpu().await?;
        let write = move || -> Result<f64> {
            let (started, mut sent) = (Instant::now(), 0);
            for buffer in buffers.iter().cycle() {
                if sent >= entries {
                    break;
                }
                connection.req_packed_commands(buffer, 0, PIPELINE)?;
                sent += PIPELINE as u64;
            }
            Ok(sent as f64 / started.elapsed().as_secs_f64())
        };
        let rate = spawn_blocking(write).await??;
        let cpu = self.cpu().await?.saturating_sub(before);
        self.clear_limits().await?;
        Ok((rate, cpu.as_secs_f64() * 1e6 / entries as f64))
    }
}

/// A block's entries, prepared as one transaction.
pub(crate) struct PreparedStep {
    connection: Connection,
    commands: Vec<u8>,
    answers: usize,
}

impl PreparedStep {
    /// Sends it and waits for Redis' answer; returns when it started.
    pub(crate) async fn send(mut self) -> Result<(Self, Instant)> {
        spawn_blocking(move || {
            let sent = Instant::now();
            self.connection.req_packed_commands(&self.commands, 0, self.answers)?;
            Ok((self, sent))
        })
        .await?
    }
}

/// Memory of a chain in Redis.
pub(crate) struct Bytes {
    pub(crate) events: u64,
    pub(crate) markers: u64,
    pub(crate) dedup: u64,
}

/// The commands that add the entries again, with the fields in their order.
fn pipeline(entries: &[redis::streams::StreamId]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        let mut command = redis::cmd("XADD");
        command.arg(XADD_KEY).arg("*");
        for name in FIELD_ORDER {
            if let Some(redis::Value::BulkString(value)) = entry.map.get(name) {
                command.arg(name).arg(value.as_slice());
            }
        }
        bytes.extend(command.get_packed_command());
    }
    bytes
}

/// Fields of an entry of either encoding, in their order.
const FIELD_ORDER: [&str; 12] = [
    "chain_id",
    "block_number",
    "block_hash",
    "tx_hash",
    "tx_index",
    "log_index",
    "contract",
    "topics",
    "data",
    "timestamp",
    "removed",
    "e",
];

async fn connect(url: &str) -> Result<MultiplexedConnection> {
    let waits = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(120)));
    Ok(Client::open(url)?.get_multiplexed_async_connection_with_config(&waits).await?)
}
