//! Inventory of a chain's keys, and their deletion.

use std::sync::LazyLock;

use ethhook_domain::{ChainId, Cursor};
use redis::aio::ConnectionLike;

use crate::connection::Streams;
use crate::errors::RedisFailure;
use crate::group::{Group, groups};
use crate::keys::Keys;
use crate::lease::Holder;
use crate::reader::{self, ReadError, query};
use crate::script::{Call, Script};
use crate::size::length;

static RESET: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("reset.lua")));

/// Keys that one `SCAN` examines: about a millisecond of Redis' time.
const KEYS_PER_SCAN: usize = 5_000;

/// What a chain's keys hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// Entries in the event stream.
    pub events_len: u64,
    /// Markers.
    pub blocks_len: u64,
    /// The cursor, if there is one.
    pub cursor: Option<Cursor>,
    /// Number of dedup records, one per block.
    pub dedup_records: u64,
    /// The consumer groups of the event stream.
    pub groups: Vec<Group>,
}

/// Why a chain's keys were not deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResetError {
    /// An ingestor writes the chain: stop it, or wait until its lease expires.
    #[error("{0}: stop that process first")]
    LeaseHeld(Holder),
    /// Redis failed; repeat the reset, because some keys may already be deleted.
    #[error(transparent)]
    Redis(#[from] RedisFailure),
}

impl Streams {
    /// What the keys of `chain` hold. Walks all keys of the database to count the dedup records.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn inventory(&self, chain: ChainId) -> Result<Inventory, ReadError> {
        let keys = Keys::of(chain);
        let connection = &mut *self.pooled(&keys).await?;
        let mut dedup_records = 0;
        let mut scan = Scan::of(&keys);
        while let Some(found) = scan.next(connection).await? {
            dedup_records += found.len() as u64;
        }
        Ok(Inventory {
            events_len: length(connection, &keys.events).await?,
            blocks_len: length(connection, &keys.blocks).await?,
            cursor: reader::cursor(connection, &keys).await?,
            dedup_records,
            groups: groups(connection, &keys.events).await?,
        })
    }

    /// When `chain` was last reset, if within a day; the text is different for each reset.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn last_reset(&self, chain: ChainId) -> Result<Option<String>, ReadError> {
        let keys = Keys::of(chain);
        let connection = &mut *self.pooled(&keys).await?;
        query(redis::cmd("GET").arg(&keys.reset), connection, &keys.reset).await
    }

    /// Deletes all keys of `chain`, whatever they hold. Refused while anybody holds the lease.
    ///
    /// # Errors
    /// See [`ResetError`].
    pub async fn reset(&self, chain: ChainId) -> Result<(), ResetError> {
        let keys = Keys::of(chain);
        let connection = &mut *self.pooled(&keys).await?;
        let Keys { events, blocks, cursor, lease, reset, aside } = &keys;
        let names = [lease, cursor, events, blocks, aside, reset].map(String::as_str);
        let reply = RESET.call(connection, Call { keys: &names, arguments: &[] }).await?;
        if reply.outcome != "deleted" {
            return Err(ResetError::LeaseHeld(Holder::of(&reply)));
        }
        let mut scan = Scan::of(&keys);
        while let Some(found) = scan.next(connection).await? {
            if !found.is_empty() {
                let mut unlink = redis::cmd("UNLINK");
                unlink.arg(found);
                unlink.exec_async(connection).await.map_err(RedisFailure::from)?;
            }
        }
        Ok(())
    }
}

/// An iteration over the dedup records of one chain.
pub(crate) struct Scan {
    pattern: String,
    cursor: Option<u64>,
}

impl Scan {
    pub(crate) fn of(keys: &Keys) -> Self {
        Self { pattern: keys.seen_pattern(), cursor: Some(0) }
    }

    /// The next records of the iteration, possibly none; `None` at the end.
    pub(crate) async fn next(
        &mut self,
        connection: &mut impl ConnectionLike,
    ) -> Result<Option<Vec<String>>, RedisFailure> {
        let Some(cursor) = self.cursor else { return Ok(None) };
        let mut command = redis::cmd("SCAN");
        command.arg(cursor).arg("MATCH").arg(&self.pattern).arg("COUNT").arg(KEYS_PER_SCAN);
        let (next, keys): (u64, Vec<String>) = command.query_async(connection).await?;
        self.cursor = (next != 0).then_some(next);
        Ok(Some(keys))
    }
}

/// Any dedup record of the chain behind `keys`.
pub(crate) async fn first_dedup_record(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
) -> Result<Option<String>, RedisFailure> {
    let mut scan = Scan::of(keys);
    while let Some(found) = scan.next(connection).await? {
        if let Some(key) = found.into_iter().next() {
            return Ok(Some(key));
        }
    }
    Ok(None)
}
