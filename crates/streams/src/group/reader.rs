//! A consumer of a group, which loses nothing that was delivered to it.

use std::fmt;
use std::time::Duration;

use ethhook_domain::{ChainId, EntryId};
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, Value};

use super::GroupError;
use crate::connection::Streams;
use crate::keys::Keys;
use crate::reader::{self, EventEntry, ReadError, query, unexpected};

impl Streams {
    /// A reader of `chain`'s events as `consumer` of `group`: it reads its pending entries first, then new ones, and its
    /// pending ones again whenever there is nothing new: they may have been claimed for it. Each wait lasts at most
    /// `block`.
    #[must_use]
    pub fn group_reader(
        &self,
        chain: ChainId,
        group: &str,
        consumer: &str,
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

/// Reads one chain's events as a consumer of a group, over a dedicated connection.
pub struct GroupReader {
    streams: Streams,
    key: String,
    group: String,
    consumer: String,
    /// While pending entries are read again: the ID to continue after; none while reading new ones.
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
    /// The next entries, at most `count`; none if nothing came in time. After processing, pass them to
    /// [`GroupReader::acknowledge`], before the next call. Entries that retention removed before they were read are acknowledged here.
    ///
    /// # Errors
    /// See [`GroupError`]. Afterwards, all pending entries are read again.
    pub async fn next(&mut self, count: usize) -> Result<Vec<EventEntry>, GroupError> {
        let next = self.try_next(count).await;
        self.begin_anew_after(next)
    }

    async fn try_next(&mut self, count: usize) -> Result<Vec<EventEntry>, GroupError> {
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
                // All pending entries have been read.
                (own_after @ Some(_), None) => *own_after = None,
                (Some(own_after), Some(last)) => *own_after = last,
                (own_after @ None, None) => {
                    *own_after = Some(EntryId::MIN);
                    return Ok(Vec::new());
                }
                (None, Some(_)) => {}
            }
            if entries.is_empty() && (self.own_after.is_some() || !gone.is_empty()) {
                continue;
            }
            return Ok(entries.iter().map(reader::Entry::read).collect());
        }
    }

    /// Acknowledges entries.
    ///
    /// # Errors
    /// See [`GroupError`]; the entries are then delivered again.
    pub async fn acknowledge(&mut self, ids: &[EntryId]) -> Result<(), GroupError> {
        let acknowledged = self.try_acknowledge(ids).await;
        self.begin_anew_after(acknowledged)
    }

    /// A failure leaves unknown what was delivered and acknowledged: starts again with all pending
    /// entries.
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

/// The entries in an answer for one stream, and the IDs of those that no longer exist: their fields
/// are null (<https://redis.io/docs/latest/commands/xreadgroup/>).
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
