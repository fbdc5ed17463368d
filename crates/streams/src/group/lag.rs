//! How far each consumer group lags, and which part of a stream it still needs.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use ethhook_domain::EntryId;
use redis::aio::ConnectionLike;
use redis::{FromRedisValue, Value};

use crate::errors::FailureKind;
use crate::reader::{self, ReadError, oldest, query, unexpected};

/// Idle times are queried only for groups whose entries have waited for at least this long.
const WORTH_ASKING: Duration = Duration::from_secs(60);

/// The lag of a consumer group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupLag {
    /// Its name.
    pub group: String,
    /// Number of consumers.
    pub consumers: u64,
    /// Entries delivered and not acknowledged.
    pub pending: u64,
    /// Entries not yet delivered or not acknowledged, at most the stream's length: Redis' counts include entries that
    /// retention removed. None if Redis cannot tell how many are undelivered, which does not mean zero.
    pub entries: Option<u64>,
    /// Age of the oldest of them, by its ID; zero if there are none.
    pub waiting: Duration,
    /// Time since any of its consumers last tried to read (`waiting` if it has none); only queried
    /// once entries have waited for a minute, zero otherwise.
    pub idle: Duration,
}

/// A consumer group of an event stream, as reported by `XINFO GROUPS`
/// (<https://redis.io/docs/latest/commands/xinfo-groups/>).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// The same as Redis has it, which need not be text.
    pub(crate) raw_name: Vec<u8>,
    /// Number of consumers.
    pub consumers: u64,
    /// Entries delivered and not acknowledged.
    pub pending: u64,
    /// The last entry delivered.
    pub last_delivered_id: EntryId,
    /// Entries not yet delivered; none if Redis cannot tell, which does not mean zero.
    pub lag: Option<u64>,
}

/// One consumer of a group, as reported by `XINFO CONSUMERS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    /// Its name.
    pub name: String,
    /// Entries delivered to it and not acknowledged.
    pub pending: u64,
    /// Time since it last tried to read.
    pub idle: Duration,
}

/// The part of the stream that a group still needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) group: String,
    pub(crate) raw_name: Vec<u8>,
    /// The last entry delivered.
    pub(crate) delivered: EntryId,
    /// The oldest entry, among those still in the stream, that is delivered and not acknowledged.
    pub(crate) oldest_pending: Option<EntryId>,
}

impl Hold {
    /// The lowest ID that it may still need.
    pub(crate) fn from(&self) -> EntryId {
        let undelivered = self.delivered.next();
        self.oldest_pending.map_or(undelivered, |pending| pending.min(undelivered))
    }
}

/// What the groups of the stream `key`, which has `len` entries, still need, and their lag. Takes one query, one more
/// if entries are pending, and up to three for each group that is behind.
pub(crate) async fn look_at_groups(
    connection: &mut impl ConnectionLike,
    key: &str,
    len: u64,
    now_ms: u64,
) -> Result<(Vec<Hold>, Vec<GroupLag>), ReadError> {
    let (mut holds, mut lags) = (Vec::new(), Vec::new());
    let mut first: Option<EntryId> = None;
    for group in groups(connection, key).await? {
        let delivered = group.last_delivered_id;
        let mut oldest_pending = None;
        if group.pending > 0 {
            if first.is_none() {
                first = oldest(connection, key, EntryId::MIN).await?;
            }
            // Pending entries below the stream's first one are already gone, so nothing need be
            // kept for them.
            if let Some(first) = first {
                let all = first..=EntryId::MAX;
                let found = pending(connection, key, &group.raw_name, all, 1).await?;
                oldest_pending = found.first().copied();
            }
        }
        let undelivered = match group.lag {
            Some(0) => None,
            _ => oldest(connection, key, delivered.next()).await?,
        };
        let not_given = if undelivered.is_none() { Some(0) } else { group.lag };
        let waits = undelivered.into_iter().chain(oldest_pending).min();
        let age = |id: EntryId| Duration::from_millis(now_ms.saturating_sub(id.ms));
        let waiting = waits.map(age).unwrap_or_default();
        let idle = if waiting >= WORTH_ASKING {
            let consumers = consumers(connection, key, &group.raw_name).await?;
            consumers.iter().map(|consumer| consumer.idle).min().unwrap_or(waiting)
        } else {
            Duration::ZERO
        };
        lags.push(GroupLag {
            group: group.name.clone(),
            consumers: group.consumers,
            pending: group.pending,
            entries: not_given.map(|entries| (entries + group.pending).min(len)),
            waiting,
            idle,
        });
        let (group, raw_name) = (group.name, group.raw_name);
        holds.push(Hold { group, raw_name, delivered, oldest_pending });
    }
    Ok((holds, lags))
}

/// At most `count` pending IDs of `group`, oldest first.
pub(crate) async fn pending(
    connection: &mut impl ConnectionLike,
    key: &str,
    group: &[u8],
    ids: RangeInclusive<EntryId>,
    count: usize,
) -> Result<Vec<EntryId>, ReadError> {
    let mut command = redis::cmd("XPENDING");
    command.arg(key).arg(group);
    command.arg(ids.start().to_string()).arg(ids.end().to_string()).arg(count);
    // For each: ID, consumer, milliseconds since delivery, number of deliveries.
    let pending: Vec<(Value, Value, Value, Value)> = query(&command, connection, key).await?;
    let ids: Option<_> = pending.iter().map(|(id, ..)| reader::id(id)).collect();
    ids.ok_or_else(|| unexpected("XPENDING"))
}

/// The groups of the stream `key`; none if it does not exist.
pub(crate) async fn groups(
    connection: &mut impl ConnectionLike,
    key: &str,
) -> Result<Vec<Group>, ReadError> {
    let answer = query(redis::cmd("XINFO").arg("GROUPS").arg(key), connection, key).await;
    let groups: Vec<HashMap<String, Value>> = match answer {
        Err(ReadError::Redis(failure)) if failure.kind == FailureKind::NoKey => Vec::new(),
        other => other?,
    };
    groups.iter().map(|g| group(g).ok_or_else(|| unexpected("XINFO GROUPS"))).collect()
}

/// The consumers of a group of the stream `key`.
pub(crate) async fn consumers(
    connection: &mut impl ConnectionLike,
    key: &str,
    group: &[u8],
) -> Result<Vec<Consumer>, ReadError> {
    let mut command = redis::cmd("XINFO");
    command.arg("CONSUMERS").arg(key).arg(group);
    let consumers: Vec<HashMap<String, Value>> = query(&command, connection, key).await?;
    consumers.iter().map(|c| consumer(c).ok_or_else(|| unexpected("XINFO CONSUMERS"))).collect()
}

fn read<T: FromRedisValue>(fields: &HashMap<String, Value>, name: &str) -> Option<T> {
    T::from_redis_value_ref(fields.get(name)?).ok()
}

/// A name as text that may be shown: Redis accepts any bytes, those that control a terminal as well.
fn as_text(name: &[u8]) -> String {
    let mut text = String::new();
    for c in String::from_utf8_lossy(name).chars() {
        match c {
            c if c.is_control() => text.extend(c.escape_default()),
            c => text.push(c),
        }
    }
    text
}

fn consumer(fields: &HashMap<String, Value>) -> Option<Consumer> {
    Some(Consumer {
        name: as_text(&read::<Vec<u8>>(fields, "name")?),
        pending: read(fields, "pending")?,
        idle: Duration::from_millis(read(fields, "idle")?),
    })
}

fn group(fields: &HashMap<String, Value>) -> Option<Group> {
    let raw_name: Vec<u8> = read(fields, "name")?;
    Some(Group {
        name: as_text(&raw_name),
        raw_name,
        consumers: read(fields, "consumers")?,
        pending: read(fields, "pending")?,
        last_delivered_id: reader::id(fields.get("last-delivered-id")?)?,
        lag: read::<Option<u64>>(fields, "lag").flatten(),
    })
}
