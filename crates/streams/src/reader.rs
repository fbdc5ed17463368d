//! Reading a chain's keys: the cursor, events, markers, the window of blocks that a reorg may still
//! take back, and the tail.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use alloy_primitives::B256;
use ethhook_domain::event::CodecError;
use ethhook_domain::{BlockRef, ChainId, Cursor, EntryId, Marker, Op, ProcessedEvent, Proof};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, FromRedisValue, Value};

use crate::connection::Streams;
use crate::errors::{RedisFailure, is_wrong_type};
use crate::keys::Keys;

/// Markers in one answer: about 250 bytes each.
pub(crate) const MARKERS_A_BATCH: usize = 512;
/// Entries in one answer while a block is read back: about 600 bytes each, some far larger.
const EVENTS_A_BATCH: usize = 1_000;

/// Why something could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Redis failed.
    #[error(transparent)]
    Redis(#[from] RedisFailure),
    /// A key is not what this program makes of it.
    #[error("key `{key}` holds another type than expected")]
    WrongType {
        /// Its name.
        key: String,
    },
    /// An entry is not one of ours.
    #[error("key `{key}`{}: {source}", .id.as_ref().map(|id| format!(", entry {id}")).unwrap_or_default())]
    Malformed {
        /// The key's name.
        key: String,
        /// The entry's ID; none for the cursor.
        id: Option<EntryId>,
        /// What is wrong.
        source: CodecError,
    },
    /// The cursor is no longer the one that was asked about: read it anew.
    #[error("the cursor moved while the stream was read")]
    Moved,
    /// Stream, markers and cursor contradict each other.
    #[error("{0}: `ethhook reset` starts the chain anew")]
    Inconsistent(String),
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

    /// Whether reading again may succeed by itself.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Redis(failure) => failure.is_retryable(),
            Self::Moved => true,
            _ => false,
        }
    }
}

/// A block of the canonical chain as it stands in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedBlock {
    /// The block.
    pub block: BlockRef,
    /// How many entries it has.
    pub events: u64,
    /// ID of its first entry; none if it has none.
    pub first_id: Option<EntryId>,
    /// ID of its last entry; the stream's last ID at that time if it has none.
    pub last_id: EntryId,
    /// The strongest check it passed.
    pub proof: Proof,
}

impl Streams {
    /// Where `chain`'s stream is; none before the first lease.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn cursor(&self, chain: ChainId) -> Result<Option<Cursor>, ReadError> {
        let keys = Keys::of(chain);
        cursor(&mut *self.pooled(&keys).await?, &keys).await
    }

    /// The canonical blocks that a reorg may still take back, ascending: from the finalized block
    /// (the first block while none is final), or the first above an operator's gap, to the tip. Read
    /// from the markers, newest first, a bounded batch at a time; blocks that were taken back cancel
    /// out. The finalized block itself is missing if retention already took it.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn window(
        &self,
        chain: ChainId,
        cursor: &Cursor,
    ) -> Result<Vec<PublishedBlock>, ReadError> {
        let keys = Keys::of(chain);
        let connection = &mut *self.pooled(&keys).await?;
        let result = unwind(connection, &keys, cursor, Depth::Window).await;
        if matches!(result, Err(ReadError::Inconsistent(_)))
            && self::cursor(connection, &keys).await?.as_ref() != Some(cursor)
        {
            return Err(ReadError::Moved);
        }
        result
    }

    /// The canonical blocks whose markers are still there, ascending to the tip, also those that are
    /// final; none below an operator's gap. All in memory: some 200 bytes a block.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn retained(
        &self,
        chain: ChainId,
        cursor: &Cursor,
    ) -> Result<Vec<PublishedBlock>, ReadError> {
        let keys = Keys::of(chain);
        unwind(&mut *self.pooled(&keys).await?, &keys, cursor, Depth::Retained).await
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
            let page = Page { from, to: block.last_id, count: EVENTS_A_BATCH };
            let entries = range(connection, &keys.events, page).await?;
            let last = entries.last().map(|entry| entry.id);
            let full = entries.len() == EVENTS_A_BATCH;
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

    /// At most `count` events after `after_id`, with their IDs.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn events(
        &self,
        chain: ChainId,
        after_id: EntryId,
        count: usize,
    ) -> Result<Vec<(EntryId, ProcessedEvent)>, ReadError> {
        let keys = Keys::of(chain);
        let page = Page::after(after_id, count);
        let entries = range(&mut *self.pooled(&keys).await?, &keys.events, page).await?;
        entries.into_iter().map(|e| Ok((e.id, e.event(&keys.events)?))).collect()
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

    /// A reader that waits for events after `after_id`; none is for what comes next. Each wait lasts
    /// at most `block`.
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

/// Follows one chain's events on a connection of its own: a blocking read holds its connection, and
/// its answer comes later than any other's.
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
    /// The next events, at most `count`, with their IDs; none if nothing came in time. After an
    /// error, or when dropped half-way, the next call goes on where the last answer ended.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn next(
        &mut self,
        count: usize,
    ) -> Result<Vec<(EntryId, ProcessedEvent)>, ReadError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.streams.connect(&self.key, self.block).await?,
        };
        let after_id = match self.after_id {
            Some(id) => id,
            // Resolved once: what comes between two calls is not to be missed.
            None => *self.after_id.insert(last_id(&mut connection, &self.key).await?),
        };
        let mut command = redis::cmd("XREAD");
        let block_ms = self.block.as_millis().max(1).to_string();
        command.arg("COUNT").arg(count).arg("BLOCK").arg(block_ms);
        command.arg("STREAMS").arg(&self.key).arg(after_id.to_string());
        let answer: Value = query(&command, &mut connection, &self.key).await?;
        // Pairs of name and entries, one here: only one stream was asked for.
        let streams: Option<Vec<(String, Value)>> =
            FromRedisValue::from_redis_value(answer).map_err(|_| unexpected("XREAD"))?;
        let entries = match streams.and_then(|streams| streams.into_iter().next()) {
            Some((_, value)) => entries(value)?,
            None => Vec::new(),
        };
        self.connection = Some(connection);
        let last = entries.last().map(|entry| entry.id);
        let events = entries
            .into_iter()
            .map(|e| Ok((e.id, e.event(&self.key)?)))
            .collect::<Result<_, ReadError>>()?;
        self.after_id = last.or(self.after_id);
        Ok(events)
    }
}

/// One entry as Redis gives it.
pub(crate) struct Entry {
    pub(crate) id: EntryId,
    /// Names and values in turn.
    fields: Vec<Vec<u8>>,
}

impl Entry {
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.chunks_exact(2).map(|pair| (pair[0].as_slice(), pair[1].as_slice()))
    }

    pub(crate) fn event(&self, key: &str) -> Result<ProcessedEvent, ReadError> {
        ProcessedEvent::from_fields(self.pairs()).map_err(|source| self.malformed(key, source))
    }

    pub(crate) fn marker(&self, key: &str) -> Result<Marker, ReadError> {
        Marker::from_fields(self.pairs()).map_err(|source| self.malformed(key, source))
    }

    fn malformed(&self, key: &str, source: CodecError) -> ReadError {
        ReadError::Malformed { key: key.to_owned(), id: Some(self.id), source }
    }
}

/// A part of a stream: at most `count` entries, the first and the last ID included.
#[derive(Clone, Copy)]
pub(crate) struct Page {
    pub(crate) from: EntryId,
    pub(crate) to: EntryId,
    pub(crate) count: usize,
}

impl Page {
    /// What stands behind `id`.
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

/// The ID of the first entry from `from` on.
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

/// Markers of `key` below `before`, newest first, with their IDs; all that there are if fewer than
/// [`MARKERS_A_BATCH`] come.
pub(crate) async fn newest_markers(
    connection: &mut impl ConnectionLike,
    key: &str,
    before: EntryId,
) -> Result<Vec<(EntryId, Marker)>, ReadError> {
    let mut command = redis::cmd("XREVRANGE");
    command.arg(key).arg(format!("({before}")).arg("-").arg("COUNT").arg(MARKERS_A_BATCH);
    let entries = entries(query(&command, connection, key).await?)?;
    entries.into_iter().map(|e| Ok((e.id, e.marker(key)?))).collect()
}

/// The cursor behind `keys`.
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
    Cursor::from_fields(fields).map(Some).map_err(|source| ReadError::Malformed {
        key: keys.cursor.clone(),
        id: None,
        source,
    })
}

/// The last ID that the stream `key` ever gave; `0-0` if it does not exist.
pub(crate) async fn last_id(
    connection: &mut impl ConnectionLike,
    key: &str,
) -> Result<EntryId, ReadError> {
    Ok(given(connection, key).await?.0)
}

/// The last ID that the stream `key` ever gave, and how many entries it was given in all, also those
/// that are gone; `0-0` and 0 if it does not exist.
pub(crate) async fn given(
    connection: &mut impl ConnectionLike,
    key: &str,
) -> Result<(EntryId, u64), ReadError> {
    let mut command = redis::cmd("XINFO");
    command.arg("STREAM").arg(key);
    let info: HashMap<String, Value> = match query(&command, connection, key).await {
        Err(ReadError::Redis(failure)) if failure.detail.contains("no such key") => {
            return Ok((EntryId::MIN, 0));
        }
        other => other?,
    };
    let text = |name| String::from_redis_value_ref(info.get(name)?).ok();
    let last = text("last-generated-id").and_then(|id| id.parse().ok());
    let added = text("entries-added").and_then(|added| added.parse().ok());
    last.zip(added).ok_or_else(|| unexpected("XINFO STREAM"))
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

/// How far back the markers are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// As far as a reorg may reach: the markers must go so far.
    Window,
    /// As far as there are markers.
    Retained,
}

async fn unwind(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
    cursor: &Cursor,
    depth: Depth,
) -> Result<Vec<PublishedBlock>, ReadError> {
    let Some(tip) = cursor.hash else { return Ok(Vec::new()) };
    let mut unwinding = Unwinding::new(cursor, tip, depth);
    let mut before = EntryId::MAX;
    loop {
        let batch = newest_markers(connection, &keys.blocks, before).await?;
        let is_last = batch.len() < MARKERS_A_BATCH;
        for (id, marker) in batch {
            if unwinding.older(id, marker)? {
                return Ok(unwinding.finish());
            }
            before = id;
        }
        if is_last {
            break;
        }
    }
    unwinding.exhausted()
}

/// The canonical chain while it is read backwards, from the newest marker on.
struct Unwinding {
    start: u64,
    finalized: Option<u64>,
    depth: Depth,
    /// The block that must come next: the tip, then each one's parent.
    want: (u64, B256),
    /// Blocks that were taken back: whatever `add` of one comes before that no longer counts.
    taken_back: HashSet<B256>,
    blocks: Vec<PublishedBlock>,
}

impl Unwinding {
    fn new(cursor: &Cursor, tip: B256, depth: Depth) -> Self {
        Self {
            start: cursor.start_number,
            finalized: cursor.finalized().filter(|_| depth == Depth::Window),
            depth,
            want: (cursor.number, tip),
            taken_back: HashSet::new(),
            blocks: Vec::new(),
        }
    }

    /// Takes the next older marker in; `true` once the window is whole.
    fn older(&mut self, id: EntryId, marker: Marker) -> Result<bool, ReadError> {
        match marker.op {
            Op::Finalized => return Ok(false),
            Op::Remove => {
                self.taken_back.insert(marker.hash);
                return Ok(false);
            }
            Op::Add | Op::Gap => {}
        }
        if self.taken_back.contains(&marker.hash) {
            return Ok(false);
        }
        let found = (marker.number, marker.hash);
        let parent_hash = match marker.parent_hash {
            // What an operator skipped has no blocks to give.
            _ if marker.op == Op::Gap && found == self.want => return Ok(true),
            Some(parent) if found == self.want => parent,
            _ => {
                return Err(ReadError::Inconsistent(format!(
                    "marker {id} holds block {} {}, expected block {} {}",
                    found.0, found.1, self.want.0, self.want.1
                )));
            }
        };
        let block =
            BlockRef { number: found.0, hash: found.1, parent_hash, timestamp: marker.timestamp };
        self.blocks.push(PublishedBlock {
            block,
            events: marker.events,
            first_id: marker.first_id,
            last_id: marker.last_id,
            proof: marker.proof,
        });
        self.want = (block.number.saturating_sub(1), parent_hash);
        Ok(block.number <= self.start.max(self.finalized.unwrap_or(0)))
    }

    /// The markers ended: right if everything below is final, for only that is ever trimmed.
    fn exhausted(self) -> Result<Vec<PublishedBlock>, ReadError> {
        let is_enough = self.finalized.is_some_and(|finalized| self.want.0 <= finalized);
        if is_enough || self.depth == Depth::Retained {
            return Ok(self.finish());
        }
        Err(ReadError::Inconsistent(format!(
            "the markers end above block {} {}, which is not final",
            self.want.0, self.want.1
        )))
    }

    fn finish(mut self) -> Vec<PublishedBlock> {
        self.blocks.reverse();
        self.blocks
    }
}
