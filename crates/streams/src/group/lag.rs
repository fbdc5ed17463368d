//! How far each consumer group is behind, and what it still needs of a stream.

use std::collections::HashMap;
use std::time::Duration;

use ethhook_domain::EntryId;
use redis::aio::ConnectionLike;
use redis::{FromRedisValue, Value};

use crate::errors::FailureKind;
use crate::reader::{self, ReadError, oldest, query, unexpected};

/// A group whose entries wait for less is not asked when it last read.
const WORTH_ASKING: Duration = Duration::from_secs(60);

/// How far a consumer group is behind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupLag {
    /// Its name.
    pub group: String,
    /// How many consumers it knows.
    pub consumers: u64,
    /// Entries given and not acknowledged.
    pub pending: u64,
    /// Entries that it was not given or has not acknowledged, no more than there are: Redis also counts what
    /// retention took before. None if it cannot tell how many it was not given, which is not zero.
    pub entries: Option<u64>,
    /// Age, by its ID, of the oldest of them; zero if there are none.
    pub waiting: Duration,
    /// How long none of its consumers has tried to read; asked only once entries wait for a minute,
    /// else zero.
    pub idle: Duration,
}

/// A consumer group of an event stream, as `XINFO GROUPS` tells it
/// (<https://redis.io/docs/latest/commands/xinfo-groups/>).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// How many consumers it knows.
    pub consumers: u64,
    /// Entries given and not acknowledged.
    pub pending: u64,
    /// The last entry given.
    pub last_delivered_id: EntryId,
    /// Entries not yet given; none if Redis cannot tell, which is not zero.
    pub lag: Option<u64>,
}

/// One consumer of a group, as `XINFO CONSUMERS` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    /// Its name.
    pub name: String,
    /// Entries it was given and has not acknowledged.
    pub pending: u64,
    /// How long it has not tried to read.
    pub idle: Duration,
}

/// From where on a group needs the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) group: String,
    /// The last entry it was given.
    pub(crate) delivered: EntryId,
    /// Its oldest entry in the stream that is given and not acknowledged.
    pub(crate) oldest_pending: Option<EntryId>,
}

impl Hold {
    /// The oldest entry it may still need.
    pub(crate) fn from(&self) -> EntryId {
        let undelivered = self.delivered.next();
        self.oldest_pending.map_or(undelivered, |pending| pending.min(undelivered))
    }
}

/// What the groups of the stream `key`, which has `len` entries, still need, and how far behind they are:
/// one question, and for each group that is behind up to three.
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
            // Pending entries below the stream's first are gone already and hold nothing.
            if let Some(first) = first {
                let span = (first, EntryId::MAX);
                let found = pending(connection, key, &group.name, span, 1).await?;
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
            let consumers = consumers(connection, key, &group.name).await?;
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
        holds.push(Hold { group: group.name, delivered, oldest_pending });
    }
    Ok((holds, lags))
}

/// At most `count` pending IDs of `group`, oldest first.
pub(crate) async fn pending(
    connection: &mut impl ConnectionLike,
    key: &str,
    group: &str,
    (from, to): (EntryId, EntryId),
    count: usize,
) -> Result<Vec<EntryId>, ReadError> {
    let mut command = redis::cmd("XPENDING");
    command.arg(key).arg(group).arg(from.to_string()).arg(to.to_string()).arg(count);
    // Each: ID, consumer, milliseconds since it was given, how often it was given.
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
    group: &str,
) -> Result<Vec<Consumer>, ReadError> {
    let mut command = redis::cmd("XINFO");
    command.arg("CONSUMERS").arg(key).arg(group);
    let consumers: Vec<HashMap<String, Value>> = query(&command, connection, key).await?;
    consumers.iter().map(|c| consumer(c).ok_or_else(|| unexpected("XINFO CONSUMERS"))).collect()
}

fn read<T: FromRedisValue>(fields: &HashMap<String, Value>, name: &str) -> Option<T> {
    T::from_redis_value_ref(fields.get(name)?).ok()
}

fn consumer(fields: &HashMap<String, Value>) -> Option<Consumer> {
    Some(Consumer {
        name: read(fields, "name")?,
        pending: read(fields, "pending")?,
        idle: Duration::from_millis(read(fields, "idle")?),
    })
}

fn group(fields: &HashMap<String, Value>) -> Option<Group> {
    Some(Group {
        name: read(fields, "name")?,
        consumers: read(fields, "consumers")?,
        pending: read(fields, "pending")?,
        last_delivered_id: reader::id(fields.get("last-delivered-id")?)?,
        lag: read::<Option<u64>>(fields, "lag").flatten(),
    })
}
