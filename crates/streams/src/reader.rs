//! Reading a chain's keys: the cursor, events and markers.

use std::collections::HashMap;

use ethhook_domain::event::CodecError;
use ethhook_domain::{ChainId, Cursor, EntryId, Marker, ProcessedEvent};
use redis::aio::ConnectionLike;
use redis::{Cmd, FromRedisValue, Value};

use crate::connection::Streams;
use crate::errors::{FailureKind, RedisFailure, WAY_OUT, is_wrong_type};
use crate::keys::Keys;
use crate::window::PublishedBlock;

/// Markers per answer: about 250 bytes each.
pub(crate) const MARKERS_PER_BATCH: usize = 512;
/// Entries per answer when a block is read back: about 600 bytes each, some far larger.
const EVENTS_PER_BATCH: usize = 1_000;

/// An entry of an event stream: its event, or why it is none, since somebody else added it.
pub type EventEntry = (EntryId, Result<ProcessedEvent, CodecError>);

/// Why something could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Redis failed.
    #[error(transparent)]
    Redis(#[from] RedisFailure),
    /// A key does not hold the type that this program writes.
    #[error("key `{key}` does not have the expected type")]
    WrongType {
        /// Its name.
        key: String,
    },
    /// An entry is not in our format.
    #[error("key `{key}`{}", malformed(*.id, error))]
    Malformed {
        /// The key's name.
        key: String,
        /// The entry's ID; none for the cursor.
        id: Option<EntryId>,
        /// What is wrong.
        error: CodecError,
    },
    /// The cursor has changed since the caller read it: read it again.
    #[error("the cursor moved while the stream was read")]
    Moved,
    /// Stream, markers and cursor contradict each other.
    #[error("{0}{WAY_OUT}")]
    Inconsistent(String),
}

fn malformed(id: Option<EntryId>, error: &CodecError) -> String {
    match id {
        Some(id) => format!(", entry {id}: {error}: if somebody else added it, XDEL removes it"),
        None => format!(": {error}"),
    }
}

impl ReadError {
    /// The label of the error metric.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Redis(failure) => failure.kind.as_str(),
            Self::WrongType { .. } => "wrong_type",
            Self::Malformed { .. } => "malformed",
            Self::Moved => "moved",
            Self::Inconsistent(_) => "inconsistent",
        }
    }

    /// Whether reading again may succeed without intervention.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Redis(failure) => failure.is_retryable(),
            Self::Moved => true,
            _ => false,
        }
    }
}

impl Streams {
    /// The cursor of `chain`; none before the first lease.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn cursor(&self, chain: ChainId) -> Result<Option<Cursor>, ReadError> {
        let keys = Keys::of(chain);
        cursor(&mut *self.pooled(&keys).await?, &keys).await
    }

    /// The events of a published block, in the stream's order.
    ///
    /// # Errors
    /// See [`ReadError`]; `Inconsistent` if the stream does not hold exactly the block's entries.
    pub async fn block_events(
        &self,
        chain: ChainId,
        block: &PublishedBlock,
    ) -> Result<Vec<ProcessedEvent>, ReadError> {
        let Some(first_id) = block.first_id else {
            let wrong =
                format!("block {} has {} entries and no first one", block.block, block.events);
            return if block.events == 0 {
                Ok(Vec::new())
            } else {
                Err(ReadError::Inconsistent(wrong))
            };
        };
        let keys = Keys::of(chain);
        let connection = &mut *self.pooled(&keys).await?;
        let mut events = Vec::new();
        let mut from = first_id;
        loop {
            let page = Page { from, to: block.last_id, count: EVENTS_PER_BATCH };
            let entries = range(connection, &keys.events, page).await?;
            let last = entries.last().map(|entry| entry.id);
            let full = entries.len() == EVENTS_PER_BATCH;
            for entry in entries {
                events.push(entry.event(&keys.events)?);
            }
            match last {
                Some(last) if full && events.len() as u64 <= block.events => from = last.next(),
                _ => break,
            }
        }
        let found = events.len() as u64;
        if found != block.events || events.iter().any(|e| e.block_hash != block.block.hash) {
            return Err(ReadError::Inconsistent(format!(
                "block {} has {} entries by its marker, the stream holds {found} from {} to {}",
                block.block, block.events, first_id, block.last_id
            )));
        }
        Ok(events)
    }

    /// At most `count` entries after `after_id`.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn events(
        &self,
        chain: ChainId,
        after_id: EntryId,
        count: usize,
    ) -> Result<Vec<EventEntry>, ReadError> {
        let keys = Keys::of(chain);
        let page = Page::after(after_id, count);
        let entries = range(&mut *self.pooled(&keys).await?, &keys.events, page).await?;
        Ok(entries.iter().map(Entry::read).collect())
    }

    /// At most `count` markers after `after_id`, with their IDs.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn markers(
        &self,
        chain: ChainId,
        after_id: EntryId,
        count: usize,
    ) -> Result<Vec<(EntryId, Marker)>, ReadError> {
        let keys = Keys::of(chain);
        let page = Page::after(after_id, count);
        markers(&mut *self.pooled(&keys).await?, &keys.blocks, page).await
    }
}

/// One entry as Redis gives it.
pub(crate) struct Entry {
    pub(crate) id: EntryId,
    /// Names and values alternate.
    fields: Vec<Vec<u8>>,
}

impl Entry {
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.chunks_exact(2).map(|pair| (pair[0].as_slice(), pair[1].as_slice()))
    }

    pub(crate) fn read(&self) -> EventEntry {
        (self.id, ProcessedEvent::from_fields(self.pairs()))
    }

    pub(crate) fn event(&self, key: &str) -> Result<ProcessedEvent, ReadError> {
        self.read().1.map_err(|error| self.malformed(key, error))
    }

    pub(crate) fn marker(&self, key: &str) -> Result<Marker, ReadError> {
        Marker::from_fields(self.pairs()).map_err(|error| self.malformed(key, error))
    }

    fn malformed(&self, key: &str, error: CodecError) -> ReadError {
        ReadError::Malformed { key: key.to_owned(), id: Some(self.id), error }
    }
}

/// A range of a stream: at most `count` entries, including the first and the last ID.
#[derive(Clone, Copy)]
pub(crate) struct Page {
    pub(crate) from: EntryId,
    pub(crate) to: EntryId,
    pub(crate) count: usize,
}

impl Page {
    /// The entries after `id`.
    pub(crate) fn after(id: EntryId, count: usize) -> Self {
        Self { from: id.next(), to: EntryId::MAX, count }
    }
}

/// Entries of `key`, oldest first.
pub(crate) async fn range(
    connection: &mut impl ConnectionLike,
    key: &str,
    page: Page,
) -> Result<Vec<Entry>, ReadError> {
    let mut command = redis::cmd("XRANGE");
    command
        .arg(key)
        .arg(page.from.to_string())
        .arg(page.to.to_string())
        .arg("COUNT")
        .arg(page.count);
    entries(query(&command, connection, key).await?)
}

/// The ID of the first entry at or above `from`.
pub(crate) async fn oldest(
    connection: &mut impl ConnectionLike,
    key: &str,
    from: EntryId,
) -> Result<Option<EntryId>, ReadError> {
    let page = Page { from, to: EntryId::MAX, count: 1 };
    Ok(range(connection, key, page).await?.first().map(|entry| entry.id))
}

/// The newest entries, at most `count`.
pub(crate) async fn newest(
    connection: &mut impl ConnectionLike,
    key: &str,
    count: usize,
) -> Result<Vec<Entry>, ReadError> {
    let mut command = redis::cmd("XREVRANGE");
    command.arg(key).arg("+").arg("-").arg("COUNT").arg(count);
    entries(query(&command, connection, key).await?)
}

/// Markers of `key`, oldest first, with their IDs.
pub(crate) async fn markers(
    connection: &mut impl ConnectionLike,
    key: &str,
    page: Page,
) -> Result<Vec<(EntryId, Marker)>, ReadError> {
    let entries = range(connection, key, page).await?;
    entries.into_iter().map(|e| Ok((e.id, e.marker(key)?))).collect()
}

/// Markers of `key` below `before`, newest first, with their IDs; fewer than [`MARKERS_PER_BATCH`]
/// only if there are no more.
pub(crate) async fn newest_markers(
    connection: &mut impl ConnectionLike,
    key: &str,
    before: EntryId,
) -> Result<Vec<(EntryId, Marker)>, ReadError> {
    let mut command = redis::cmd("XREVRANGE");
    command.arg(key).arg(format!("({before}")).arg("-").arg("COUNT").arg(MARKERS_PER_BATCH);
    let entries = entries(query(&command, connection, key).await?)?;
    entries.into_iter().map(|e| Ok((e.id, e.marker(key)?))).collect()
}

/// The cursor of a chain.
pub(crate) async fn cursor(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
) -> Result<Option<Cursor>, ReadError> {
    let mut command = redis::cmd("HGETALL");
    command.arg(&keys.cursor);
    let fields: HashMap<Vec<u8>, Vec<u8>> = query(&command, connection, &keys.cursor).await?;
    if fields.is_empty() {
        return Ok(None);
    }
    let fields = fields.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
    Cursor::from_fields(fields).map(Some).map_err(|error| ReadError::Malformed {
        key: keys.cursor.clone(),
        id: None,
        error,
    })
}

/// The last ID that the stream `key` ever assigned; `0-0` if it does not exist.
pub(crate) async fn last_id(
    connection: &mut impl ConnectionLike,
    key: &str,
) -> Result<EntryId, ReadError> {
    Ok(given(connection, key).await?.0)
}

/// The last ID that the stream `key` ever assigned, and how many entries were ever added, including deleted ones;
/// `0-0` and 0 if it does not exist.
pub(crate) async fn given(
    connection: &mut impl ConnectionLike,
    key: &str,
) -> Result<(EntryId, u64), ReadError> {
    let mut command = redis::cmd("XINFO");
    command.arg("STREAM").arg(key);
    let info: HashMap<String, Value> = match query(&command, connection, key).await {
        Err(ReadError::Redis(failure)) if failure.kind == FailureKind::NoKey => {
            return Ok((EntryId::MIN, 0));
        }
        other => other?,
    };
    let last = info.get("last-generated-id").and_then(id);
    let added = info.get("entries-added").and_then(|added| u64::from_redis_value_ref(added).ok());
    last.zip(added).ok_or_else(|| unexpected("XINFO STREAM"))
}

/// The clock of Redis, from which entry IDs are made: unix milliseconds.
pub(crate) async fn now_ms(connection: &mut impl ConnectionLike) -> Result<u64, ReadError> {
    let (seconds, micros): (u64, u64) = query(&redis::cmd("TIME"), connection, "TIME").await?;
    Ok(seconds * 1_000 + micros / 1_000)
}

/// Runs `command` on `key`.
pub(crate) async fn query<T: FromRedisValue>(
    command: &Cmd,
    connection: &mut impl ConnectionLike,
    key: &str,
) -> Result<T, ReadError> {
    command.query_async(connection).await.map_err(|error| {
        if is_wrong_type(&error) {
            ReadError::WrongType { key: key.to_owned() }
        } else {
            RedisFailure::from(error).into()
        }
    })
}

pub(crate) fn unexpected(what: &'static str) -> ReadError {
    RedisFailure::unexpected(what).into()
}

pub(crate) fn entries(value: Value) -> Result<Vec<Entry>, ReadError> {
    let read = || -> Option<Vec<Entry>> {
        let entry = |value: Value| {
            let mut parts = array(value)?.into_iter();
            let id = id(&parts.next()?)?;
            let fields = array(parts.next()?)?.into_iter().map(bytes).collect::<Option<_>>()?;
            Some(Entry { id, fields })
        };
        array(value)?.into_iter().map(entry).collect()
    };
    read().ok_or_else(|| unexpected("a stream's range"))
}

/// An entry's ID.
pub(crate) fn id(value: &Value) -> Option<EntryId> {
    String::from_redis_value_ref(value).ok()?.parse().ok()
}

fn array(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}
