//! The events of a chain as they arrive, in stream order.

use std::fmt;
use std::time::Duration;

use ethhook_domain::{ChainId, EntryId};
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, Value};

use crate::connection::Streams;
use crate::keys::Keys;
use crate::reader::{Entry, EventEntry, ReadError, entries, last_id, query, unexpected};

impl Streams {
    /// A reader that waits for events after `after_id`; none to start at the stream's end. Each wait lasts at most
    /// `block`.
    #[must_use]
    pub fn tail(&self, chain: ChainId, after_id: Option<EntryId>, block: Duration) -> Tail {
        Tail {
            streams: self.clone(),
            key: Keys::of(chain).events,
            after_id,
            block,
            connection: None,
        }
    }
}

/// Follows one chain's events over a dedicated connection: a blocking read occupies its connection,
/// and its answer takes longer than any other.
pub struct Tail {
    streams: Streams,
    key: String,
    /// None until the first call.
    after_id: Option<EntryId>,
    block: Duration,
    connection: Option<MultiplexedConnection>,
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tail")
            .field("key", &self.key)
            .field("after_id", &self.after_id)
            .finish_non_exhaustive()
    }
}

impl Tail {
    /// The next entries, at most `count`; none if nothing came in time. After an error, or if this is dropped midway,
    /// the next call continues where the last answer ended.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn next(&mut self, count: usize) -> Result<Vec<EventEntry>, ReadError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.streams.connect(&self.key, self.block).await?,
        };
        let after_id = match self.after_id {
            Some(id) => id,
            // Resolved only once, so that entries added between two calls are not missed.
            None => *self.after_id.insert(last_id(&mut connection, &self.key).await?),
        };
        let mut command = redis::cmd("XREAD");
        let block_ms = self.block.as_millis().max(1).to_string();
        command.arg("COUNT").arg(count).arg("BLOCK").arg(block_ms);
        command.arg("STREAMS").arg(&self.key).arg(after_id.to_string());
        let answer: Value = query(&command, &mut connection, &self.key).await?;
        // Pairs of stream name and entries; only one, since only one stream was requested.
        let streams: Option<Vec<(String, Value)>> =
            FromRedisValue::from_redis_value(answer).map_err(|_| unexpected("XREAD"))?;
        let entries = match streams.and_then(|streams| streams.into_iter().next()) {
            Some((_, value)) => entries(value)?,
            None => Vec::new(),
        };
        self.connection = Some(connection);
        self.after_id = entries.last().map(|entry| entry.id).or(self.after_id);
        Ok(entries.iter().map(Entry::read).collect())
    }
}
