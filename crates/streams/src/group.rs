//! Consumer groups of a live stream: made, read and tidied up.

use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

use ethhook_domain::{ChainId, EntryId, ProcessedEvent};
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, Value};

use crate::connection::Streams;
use crate::errors::RedisFailure;
use crate::inventory::{Consumer, consumers};
use crate::keys::Keys;
use crate::reader::{self, ReadError, query, unexpected};
use crate::retention::{GroupLag, look_at_groups, now_ms};
use crate::script::{Call, Script};
use crate::search::entries_up_to;
use crate::size::length;

static PRUNE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("prune.lua")));

/// Why a group was not made, read or tidied up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// There is no stream to have groups.
    #[error("`{0}` does not exist: nothing has been published yet")]
    NoStream(String),
    /// There is no such group.
    #[error("there is no group `{0}`: `ethhook groups create` makes one")]
    NoGroup(String),
    /// There is one of this name already.
    #[error("there is a group `{0}` already")]
    Exists(String),
    /// Reading failed.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl GroupError {
    /// Whether the same call may succeed later by itself.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Read(error) if error.is_retryable())
    }

    /// What Redis' refusal means for `group` of the stream `key`.
    fn of(error: ReadError, key: &str, group: &str) -> Self {
        let ReadError::Redis(failure) = &error else { return error.into() };
        let says = |word| failure.detail.contains(word);
        if says("BUSYGROUP") {
            Self::Exists(group.to_owned())
        } else if says("NOGROUP") {
            Self::NoGroup(group.to_owned())
        } else if says("no such key") || says("requires the key to exist") {
            Self::NoStream(key.to_owned())
        } else {
            error.into()
        }
    }
}

impl From<RedisFailure> for GroupError {
    fn from(failure: RedisFailure) -> Self {
        Self::Read(failure.into())
    }
}

impl Streams {
    /// The groups of `chain`'s live stream, and how far each is behind.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn groups(&self, chain: ChainId) -> Result<Vec<GroupLag>, ReadError> {
        let keys = Keys::of(chain);
        let connection = &mut *self.pooled(&keys).await?;
        let now_ms = now_ms(connection).await?;
        let len = length(connection, &keys.events).await?;
        Ok(look_at_groups(connection, &keys.events, len, now_ms).await?.1)
    }

    /// The consumers of a group.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub async fn consumers(
        &self,
        chain: ChainId,
        group: &str,
    ) -> Result<Vec<Consumer>, GroupError> {
        let keys = Keys::of(chain);
        let key = &keys.events;
        let found = consumers(&mut *self.pooled(&keys).await?, key, group).await;
        found.map_err(|error| GroupError::of(error, key, group))
    }

    /// Makes a group that is given what stands behind `after_id`; none is for what comes next. Redis is told
    /// how many entries stand before an ID, without which it could not tell the group's lag until all is
    /// read (`ENTRIESREAD` of <https://redis.io/docs/latest/commands/xgroup-create/>).
    ///
    /// # Errors
    /// See [`GroupError`].
    pub async fn create_group(
        &self,
        chain: ChainId,
        group: &str,
        after_id: Option<EntryId>,
    ) -> Result<(), GroupError> {
        let keys = Keys::of(chain);
        let key = &keys.events;
        let connection = &mut *self.pooled(&keys).await?;
        // Of `$` nobody could say how many entries stand before it.
        let after = match after_id {
            Some(id) => id,
            None => reader::last_id(connection, key).await?,
        };
        let mut command = redis::cmd("XGROUP");
        command.arg("CREATE").arg(key).arg(group).arg(after.to_string());
        // Nor need it be told that none stand before all.
        if after > EntryId::MIN
            && let Some(before) = entries_up_to(connection, &keys, after).await?
        {
            command.arg("ENTRIESREAD").arg(before);
        }
        let made: Result<(), _> = query(&command, connection, key).await;
        made.map_err(|error| GroupError::of(error, key, group))
    }

    /// Removes the consumers of a group that hold nothing and have not tried to read for `idle`;
    /// returns their names. One that holds entries stays: with it they would be lost.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub async fn prune_consumers(
        &self,
        chain: ChainId,
        group: &str,
        idle: Duration,
    ) -> Result<Vec<String>, GroupError> {
        let keys = Keys::of(chain);
        let key = &keys.events;
        let idle_ms = idle.as_millis().to_string();
        let arguments = [group.as_bytes(), idle_ms.as_bytes()];
        let connection = &mut *self.pooled(&keys).await?;
        let call = Call { keys: &[key], arguments: &arguments };
        let reply = PRUNE.call(connection, call).await;
        let reply = reply.map_err(|failure| GroupError::of(failure.into(), key, group))?;
        Ok(reply.rest)
    }

    /// A reader of `chain`'s events as `consumer` of `group`: first what it was given before and has
    /// not acknowledged, then what is new. Each wait lasts at most `block`.
    #[must_use]
    pub fn group_reader(
        &self,
        chain: ChainId,
        (group, consumer): (&str, &str),
        block: Duration,
    ) -> GroupReader {
        GroupReader {
            streams: self.clone(),
            key: Keys::of(chain).events,
            group: group.to_owned(),
            consumer: consumer.to_owned(),
            own_after: Some(EntryId::MIN),
            block,
            connection: None,
        }
    }
}

/// Reads one chain's events as a consumer of a group, on a connection of its own.
pub struct GroupReader {
    streams: Streams,
    key: String,
    group: String,
    consumer: String,
    /// While it reads what it was given before: behind this ID.
    own_after: Option<EntryId>,
    block: Duration,
    connection: Option<MultiplexedConnection>,
}

impl fmt::Debug for GroupReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupReader").field("group", &self.group).finish_non_exhaustive()
    }
}

impl GroupReader {
    /// The next events, at most `count`, with their IDs; none if nothing came in time. Once they are
    /// dealt with, [`GroupReader::acknowledge`] them. What retention removed before it was read is
    /// acknowledged here.
    ///
    /// # Errors
    /// See [`GroupError`]. What was given meanwhile is read again after it.
    pub async fn next(
        &mut self,
        count: usize,
    ) -> Result<Vec<(EntryId, ProcessedEvent)>, GroupError> {
        let next = self.try_next(count).await;
        self.begin_anew_after(next)
    }

    async fn try_next(
        &mut self,
        count: usize,
    ) -> Result<Vec<(EntryId, ProcessedEvent)>, GroupError> {
        loop {
            let mut connection = self.connected().await?;
            let mut command = redis::cmd("XREADGROUP");
            command.arg("GROUP").arg(&self.group).arg(&self.consumer).arg("COUNT").arg(count);
            command.arg("BLOCK").arg(self.block.as_millis().max(1).to_string());
            command.arg("STREAMS").arg(&self.key);
            command.arg(self.own_after.map_or(">".to_owned(), |id| id.to_string()));
            let answer = query(&command, &mut connection, &self.key).await;
            let answer: Value = answer.map_err(|e| GroupError::of(e, &self.key, &self.group))?;
            self.connection = Some(connection);
            let (entries, gone) = split(answer)?;
            let last = entries.last().map(|entry| entry.id).max(gone.last().copied());
            if !gone.is_empty() {
                self.try_acknowledge(&gone).await?;
            }
            match (&mut self.own_after, last) {
                // All that it was given before is dealt with.
                (own_after @ Some(_), None) => *own_after = None,
                (Some(own_after), Some(last)) => *own_after = last,
                (None, _) => {}
            }
            if entries.is_empty() && (self.own_after.is_some() || !gone.is_empty()) {
                continue;
            }
            return entries.into_iter().map(|e| Ok((e.id, e.event(&self.key)?))).collect();
        }
    }

    /// Acknowledges entries.
    ///
    /// # Errors
    /// See [`GroupError`]; then they are given again.
    pub async fn acknowledge(&mut self, ids: &[EntryId]) -> Result<(), GroupError> {
        let acknowledged = self.try_acknowledge(ids).await;
        self.begin_anew_after(acknowledged)
    }

    /// After a failure nobody knows what the group has given and taken: it is asked from the start.
    fn begin_anew_after<T>(&mut self, result: Result<T, GroupError>) -> Result<T, GroupError> {
        if result.is_err() {
            self.own_after = Some(EntryId::MIN);
        }
        result
    }

    async fn try_acknowledge(&mut self, ids: &[EntryId]) -> Result<(), GroupError> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut connection = self.connected().await?;
        let mut command = redis::cmd("XACK");
        command.arg(&self.key).arg(&self.group);
        ids.iter().for_each(|id| {
            command.arg(id.to_string());
        });
        let _: u64 = query(&command, &mut connection, &self.key).await?;
        self.connection = Some(connection);
        Ok(())
    }

    async fn connected(&mut self) -> Result<MultiplexedConnection, GroupError> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            None => Ok(self.streams.connect(&self.key, self.block).await?),
        }
    }
}

/// The entries of an answer for one stream, and the IDs of those that are gone: their fields are
/// null (<https://redis.io/docs/latest/commands/xreadgroup/>).
fn split(answer: Value) -> Result<(Vec<reader::Entry>, Vec<EntryId>), ReadError> {
    let unexpected = || unexpected("XREADGROUP");
    let streams: Option<Vec<(String, Vec<Value>)>> =
        FromRedisValue::from_redis_value(answer).map_err(|_| unexpected())?;
    let listed = streams.and_then(|streams| streams.into_iter().next()).map(|(_, values)| values);
    let (mut kept, mut gone) = (Vec::new(), Vec::new());
    for value in listed.unwrap_or_default() {
        match &value {
            Value::Array(parts) if matches!(parts.get(1), Some(Value::Nil)) => {
                gone.push(reader::id(&parts[0]).ok_or_else(unexpected)?);
            }
            _ => kept.push(value),
        }
    }
    Ok((reader::entries(Value::Array(kept))?, gone))
}
