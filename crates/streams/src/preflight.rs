//! Checks the server before anything starts: its version, its eviction policy, and whether every
//! command and script that publishing uses works as expected, for this user.

use std::fmt::Display;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use alloy_primitives::{Address, B256, Bytes};
use ethhook_domain::{BlockRef, Cursor, ProcessedEvent, Proof};
use redis::Value;
use redis::aio::MultiplexedConnection;

use crate::connection::Streams;
use crate::errors::{FailureKind, RedisFailure};
use crate::info::field;
use crate::keys::{self, Keys};
use crate::lease::{LeaseError, OpenError, WriterOptions};
use crate::memory::Memory;
use crate::publisher::Publisher;
use crate::reader::{self, ReadError, query};
use crate::step::{Outcome, Step, StepError};
use crate::window::PublishedBlock;

/// The oldest version whose streams support what retention and scripts need.
const OLDEST: (u64, u64) = (7, 0);
/// TTL of the lease among the scratch keys, in case the probe stops midway.
const PROBE_TTL: Duration = Duration::from_secs(10);

/// Facts about the server, or about a Cluster's masters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// For example `7.0.15`, or `Valkey 8.1.0`; in a Cluster, one master's.
    pub version: String,
    /// `maxmemory` in bytes, in a Cluster the smallest; none if there is no limit.
    pub maxmemory: Option<u64>,
    /// Whether it keeps an append-only file; in a Cluster, whether all do.
    pub appends: bool,
}

/// Why this Redis cannot be used, in one line that says what is required.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PreflightError {
    /// It does not answer, or is not ready yet.
    #[error("Redis at {address} is not available: {failure}")]
    Unavailable {
        /// Host and port.
        address: String,
        /// Why.
        failure: RedisFailure,
    },
    /// The URL has another form than the server.
    #[error(
        "Redis at {address} is a node of a Cluster: redis-cluster://host:port,host:port is required"
    )]
    Cluster {
        /// Host and port.
        address: String,
    },
    /// It is too old, or reports no version.
    #[error("Redis is version {found}; 7.0 or later is required (or Valkey)")]
    Version {
        /// The version it reports.
        found: String,
    },
    /// It would delete keys when memory is full.
    #[error(
        "maxmemory-policy is {found}; noeviction is required: CONFIG SET maxmemory-policy noeviction"
    )]
    Eviction {
        /// The policy it reports.
        found: String,
    },
    /// Something that this program needs does not work.
    #[error("Redis fails a required operation: {what}: {why}")]
    Probe {
        /// The step or command.
        what: &'static str,
        /// The failure.
        why: String,
    },
}

impl PreflightError {
    /// Whether Redis may pass later without a change of its configuration.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unavailable { failure, .. } => failure.is_retryable(),
            _ => false,
        }
    }
}

impl Streams {
    /// Checks every master, and tries everything that publishing needs on scratch keys (`events:probe:…`), which are
    /// then deleted. If memory is full, which perhaps only publishing's own retention can end, the probe is not
    /// completed but Redis passes.
    ///
    /// # Errors
    /// See [`PreflightError`].
    pub async fn preflight(&self) -> Result<ServerInfo, PreflightError> {
        let nonce = RandomState::new().hash_one(0);
        let names = self.name_for_each_master(|n| keys::probe(nonce, n)).await;
        let names = names.map_err(|failure| self.unavailable(failure))?;
        let mut all: Option<ServerInfo> = None;
        for name in names {
            let server = self.look_at_master(&Keys::tagged(name)).await?;
            let so_far = all.get_or_insert_with(|| server.clone());
            so_far.maxmemory = so_far.maxmemory.into_iter().chain(server.maxmemory).min();
            so_far.appends &= server.appends;
        }
        all.ok_or_else(|| self.unavailable(RedisFailure::unexpected("finding the masters")))
    }

    async fn look_at_master(&self, keys: &Keys) -> Result<ServerInfo, PreflightError> {
        let connected = self.connect(&keys.events, Duration::ZERO).await;
        let mut connection = connected.map_err(|failure| self.unavailable(failure))?;
        let info: String = redis::cmd("INFO")
            .query_async(&mut connection)
            .await
            .map_err(|error| self.unavailable(error.into()))?;
        let server = examine(&info, self)?;
        let result = probe(self, &mut connection, keys).await;
        let deleted = delete(&mut connection, keys).await;
        match result.and(deleted) {
            Ok(()) => Ok(server),
            // Only the service's retention can make room.
            Err(Failed { failure: Some(failure), .. })
                if failure.kind == FailureKind::OutOfMemory =>
            {
                tracing::warn!(%failure, "memory is full: the required operations were not tested");
                Ok(server)
            }
            Err(Failed { failure: Some(failure), .. }) if failure.is_retryable() => {
                Err(self.unavailable(failure))
            }
            Err(Failed { what, why, .. }) => Err(PreflightError::Probe { what, why }),
        }
    }

    /// The `maxmemory-policy` of a master that evicts keys when memory is full; none if none does. It may be changed
    /// while this program runs.
    ///
    /// # Errors
    /// The failure of a master.
    pub async fn eviction_policy(&self) -> Result<Option<String>, RedisFailure> {
        for name in self.name_for_each_master(|n| keys::probe(0, n)).await? {
            let mut connection = self.connect(&Keys::tagged(name).events, Duration::ZERO).await?;
            let info: String =
                redis::cmd("INFO").arg("memory").query_async(&mut connection).await?;
            if let Some(policy) = eviction(&info) {
                return Ok(Some(policy.to_owned()));
            }
        }
        Ok(None)
    }

    fn unavailable(&self, failure: RedisFailure) -> PreflightError {
        PreflightError::Unavailable { address: self.address(), failure }
    }
}

/// The policy, unless it is the only one that evicts nothing.
fn eviction(info: &str) -> Option<&str> {
    let policy = field(info, "maxmemory_policy").unwrap_or("unknown");
    (policy != "noeviction").then_some(policy)
}

/// Evaluates the reply to `INFO`.
fn examine(info: &str, streams: &Streams) -> Result<ServerInfo, PreflightError> {
    let field = |name| field(info, name);
    let version = field("redis_version").unwrap_or("unknown");
    let mut numbers = version.split('.').map_while(|part| part.parse::<u64>().ok());
    if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < OLDEST {
        return Err(PreflightError::Version { found: version.to_owned() });
    }
    if field("loading") == Some("1") {
        let failure = RedisFailure::new(FailureKind::Loading, "it is loading its data");
        return Err(streams.unavailable(failure));
    }
    if field("cluster_enabled") == Some("1") && !streams.is_cluster() {
        return Err(PreflightError::Cluster { address: streams.address() });
    }
    if let Some(policy) = eviction(info) {
        return Err(PreflightError::Eviction { found: policy.to_owned() });
    }
    Ok(ServerInfo {
        version: match field("valkey_version") {
            Some(valkey) => format!("Valkey {valkey}"),
            None => version.to_owned(),
        },
        maxmemory: Memory::of(info).max,
        appends: field("aof_enabled") == Some("1"),
    })
}

/// The part of the probe that failed.
struct Failed {
    what: &'static str,
    why: String,
    failure: Option<RedisFailure>,
}

/// Adds the name of the attempt to a failure.
trait Trying<T> {
    fn trying(self, what: &'static str) -> Result<T, Failed>;
}

macro_rules! trying {
    ($($error:ident),+) => {$(
        impl<T> Trying<T> for Result<T, $error> {
            fn trying(self, what: &'static str) -> Result<T, Failed> {
                self.map_err(|error| {
                    let why = error.to_string();
                    let failure = match error {
                        $error::Redis(failure) => Some(failure),
                        _ => None,
                    };
                    Failed { what, why, failure }
                })
            }
        }
    )+};
}
trying!(OpenError, LeaseError, StepError, ReadError);

impl<T> Trying<T> for Result<T, RedisFailure> {
    fn trying(self, what: &'static str) -> Result<T, Failed> {
        self.map_err(|failure| Failed { what, why: failure.to_string(), failure: Some(failure) })
    }
}

/// Fails unless `found` is `wanted`.
fn expect<T: PartialEq + Display>(what: &'static str, found: T, wanted: T) -> Result<(), Failed> {
    if found == wanted {
        return Ok(());
    }
    Err(Failed { what, why: format!("gave {found}, expected {wanted}"), failure: None })
}

/// Every command without which the service or one of its scripts does not work, in an order in which each one does.
/// `E`, `B`, `C`, `L`, `A` and `S` stand for the events, the blocks, the cursor, the lease, the name of a stream set
/// aside and a dedup record. Each is tried separately, because an error within a script does not name the command.
const COMMANDS: [&str; 41] = [
    "ROLE",
    "TIME",
    "MULTI",
    "EXEC",
    "TYPE E",
    "EXISTS C",
    "HSET C f 1",
    "HINCRBY C f 1",
    "HMGET C f",
    "HGETALL C",
    "HDEL C f",
    "SET L probe PX 10000",
    "GET L",
    "PTTL L",
    "PEXPIRE L 10000",
    "SET S probe EX 10",
    "SCAN 0 MATCH S COUNT 1",
    "DEL S",
    "XADD B 1-1 f v",
    "XINFO STREAM B",
    "XGROUP CREATE B probe 0 MKSTREAM",
    "XGROUP DESTROY B probe",
    "XSETID B 2-1",
    "XADD E 1-1 f v",
    "XADD E 2-1 f v",
    "XDEL E 2-2",
    "RENAME E A",
    "RENAME A E",
    "XLEN E",
    "XRANGE E - + COUNT 1",
    "XREVRANGE E + - COUNT 1",
    "XINFO STREAM E",
    "XGROUP CREATE E probe 0 MKSTREAM",
    "XINFO GROUPS E",
    "XINFO CONSUMERS E probe",
    "XPENDING E probe - + 1",
    "XGROUP DESTROY E probe",
    "XSETID E 3-1",
    "XTRIM E MINID ~ 2-1 LIMIT 10",
    "XTRIM E MINID = 2-1",
    "MEMORY USAGE E",
];

async fn probe_commands(connection: &mut MultiplexedConnection, keys: &Keys) -> Result<(), Failed> {
    let seen = keys.seen(probe_hash(1));
    for line in COMMANDS {
        let mut command = redis::Cmd::new();
        for word in line.split(' ') {
            command.arg(match word {
                "E" => &keys.events,
                "B" => &keys.blocks,
                "C" => &keys.cursor,
                "L" => &keys.lease,
                "A" => &keys.aside,
                "S" => &seen,
                word => word,
            });
        }
        query::<Value>(&command, connection, &keys.events).await.trying(line)?;
    }
    delete(connection, keys).await
}

/// Tries everything on `keys`: every command, then every script.
async fn probe(
    streams: &Streams,
    connection: &mut MultiplexedConnection,
    keys: &Keys,
) -> Result<(), Failed> {
    probe_commands(connection, keys).await?;
    let options = WriterOptions {
        writer: "probe".to_owned(),
        lease_ttl: PROBE_TTL,
        dedup_ttl: PROBE_TTL,
        encoding: None,
    };
    let first = Cursor::starting_at(1, None, "all".to_owned());
    let mut publisher = Publisher::open_at(streams, 0, keys.clone(), options, Some(first))
        .await
        .trying("taking a lease")?;
    publisher.renew().await.trying("renewing a lease")?;
    probe_steps(&mut publisher).await?;
    publisher.release().await;
    let lease: Option<String> = query(redis::cmd("GET").arg(&keys.lease), connection, &keys.lease)
        .await
        .trying("releasing a lease")?;
    expect("releasing a lease", lease.is_some(), false)?;
    let cursor = reader::cursor(connection, keys).await.trying("reading the cursor")?;
    expect("reading the cursor", cursor.map_or(0, |cursor| cursor.seq), 4)
}

/// Publishes two blocks, makes one of them final and takes the other back.
async fn probe_steps(publisher: &mut Publisher) -> Result<(), Failed> {
    let a = BlockRef { number: 1, hash: probe_hash(1), parent_hash: probe_hash(0), timestamp: 1 };
    let b = BlockRef { number: 2, hash: probe_hash(2), parent_hash: a.hash, timestamp: 2 };
    let proof = Proof::Structure;
    let mut published = None;
    for block in [a, b] {
        let events = vec![probe_event(&block, false)].into();
        let step =
            Step::Add { block: &block, events: &events, proof, filter: "all", is_deep: false };
        let what = "publishing a block";
        if let Outcome::Published { first_id, last_id, events, .. } =
            publisher.apply(&step).await.trying(what)?
        {
            published = Some(PublishedBlock { block, events, first_id, last_id, proof });
        }
        let again = publisher.apply(&step).await.trying("publishing a block twice")?;
        expect("publishing a block twice", matches!(again, Outcome::Duplicate { .. }), true)?;
    }
    let Some(tip) = published else {
        return Err(Failed {
            what: "publishing a block",
            why: "it was reported as a duplicate".to_owned(),
            failure: None,
        });
    };
    publisher.apply(&Step::Finalized { block: &a }).await.trying("marking a block final")?;
    let events = vec![probe_event(&b, true)].into();
    let step = Step::Remove { block: &tip, events: &events };
    publisher.apply(&step).await.trying("taking a block back").map(drop)
}

/// Deletes the scratch keys.
async fn delete(connection: &mut MultiplexedConnection, keys: &Keys) -> Result<(), Failed> {
    let mut unlink = redis::cmd("UNLINK");
    unlink.arg(&keys.events).arg(&keys.blocks).arg(&keys.cursor).arg(&keys.lease);
    unlink.arg(&keys.aside);
    for n in 1..=2 {
        unlink.arg(keys.seen(probe_hash(n)));
    }
    query::<u64>(&unlink, connection, &keys.events).await.trying("UNLINK").map(drop)
}

fn probe_hash(n: u8) -> B256 {
    B256::repeat_byte(n)
}

fn probe_event(block: &BlockRef, removed: bool) -> ProcessedEvent {
    ProcessedEvent {
        chain_id: 0,
        block_number: block.number,
        block_hash: block.hash,
        tx_hash: B256::ZERO,
        tx_index: 0,
        log_index: 0,
        contract: Address::ZERO,
        topics: Vec::new(),
        data: Bytes::new(),
        timestamp: block.timestamp,
        removed,
    }
}

#[cfg(test)]
mod tests {
    use ethhook_domain::Secret;

    use super::*;
    use crate::connection::RedisConfig;

    fn said(version: &str, cluster: &str, policy: &str) -> Result<ServerInfo, String> {
        let info = format!(
            "# Server\r\nredis_version:{version}\r\n# Memory\r\nmaxmemory:1024\r\n\
             maxmemory_policy:{policy}\r\nloading:0\r\ncluster_enabled:{cluster}\r\n"
        );
        examine(&info, &streams()).map_err(|error| error.to_string())
    }

    fn streams() -> Streams {
        Streams::new(RedisConfig::new(Secret::new("redis://host:6379"))).unwrap()
    }

    #[test]
    fn each_fault_is_one_line_that_says_what_would_be_right() {
        let right =
            ServerInfo { version: "7.0.15".to_owned(), maxmemory: Some(1024), appends: false };
        assert_eq!(said("7.0.15", "0", "noeviction"), Ok(right));
        for (version, cluster, policy, line) in [
            ("6.2.14", "0", "noeviction", "Redis is version 6.2.14; 7.0 or later is required"),
            (
                "7.0.0",
                "1",
                "noeviction",
                "Redis at host:6379 is a node of a Cluster: redis-cluster",
            ),
            ("8.2.1", "0", "allkeys-lru", "maxmemory-policy is allkeys-lru; noeviction is"),
        ] {
            let said = said(version, cluster, policy).unwrap_err();
            assert!(said.starts_with(line) && !said.contains('\n'), "{said}");
        }
    }

    #[test]
    fn valkey_is_known_by_its_own_version() {
        let info = "redis_version:7.2.4\r\nvalkey_version:8.1.0\r\nmaxmemory:0\r\n\
                    maxmemory_policy:noeviction\r\nrole:master\r\naof_enabled:1\r\n";
        let server = examine(info, &streams()).unwrap();
        assert_eq!(
            server,
            ServerInfo { version: "Valkey 8.1.0".to_owned(), maxmemory: None, appends: true }
        );
    }
}
