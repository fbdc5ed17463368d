//! The state of a chain in Redis, from a few small queries: cheap enough for a live view that asks
//! every second.

use std::time::Duration;

use ethhook_domain::{ChainId, Cursor, EntryId};

use crate::connection::Streams;
use crate::group::{GroupLag, look_at_groups};
use crate::keys::Keys;
use crate::reader::{self, ReadError, now_ms, query};
use crate::size::measure;

/// The state of a chain in Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The cursor, if there is one.
    pub cursor: Option<Cursor>,
    /// Who holds the lease, if anybody does.
    pub lease: Option<String>,
    /// Entries of the event stream.
    pub entries: u64,
    /// Bytes of the event stream, estimated.
    pub bytes: u64,
    /// How long ago the newest marker was written; none if there never was one.
    pub last_step: Option<Duration>,
    /// The consumer groups, and their lag.
    pub groups: Vec<GroupLag>,
}

impl Streams {
    /// The state of `chain`. Unlike [`Streams::inventory`] it does not scan the database.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn standing(&self, chain: ChainId) -> Result<Standing, ReadError> {
        let keys = Keys::of(chain);
        let connection = &mut *self.pooled(&keys).await?;
        let now_ms = now_ms(connection).await?;
        let newest = reader::last_id(connection, &keys.blocks).await?;
        let age = Duration::from_millis(now_ms.saturating_sub(newest.ms));
        let size = measure(connection, &keys).await?;
        let entries = size.entries;
        let (_, groups) = look_at_groups(connection, &keys.events, entries, now_ms).await?;
        Ok(Standing {
            cursor: reader::cursor(connection, &keys).await?,
            lease: query(redis::cmd("GET").arg(&keys.lease), connection, &keys.lease).await?,
            entries,
            bytes: size.bytes(),
            last_step: (newest != EntryId::MIN).then_some(age),
            groups,
        })
    }
}
