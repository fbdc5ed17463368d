//! Finds the position in a chain's streams where a block or a time begins, and counts entries up to an ID.

use ethhook_domain::{ChainId, EntryId, Marker, Op};
use redis::aio::ConnectionLike;

use crate::connection::Streams;
use crate::keys::Keys;
use crate::reader::{self, MARKERS_PER_BATCH, Page, ReadError};

/// How many times to retry because a block was published between two reads.
const LOOKS: usize = 16;

/// A position in both streams of a chain from which they can be read together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamPosition {
    /// The next marker: that of an added block or of an operator's gap.
    pub marker: Marker,
    /// The ID of the marker before it; [`EntryId::MIN`] if that is gone or never existed.
    pub after_marker: EntryId,
    /// The last entry before those of the marker; [`EntryId::MIN`] in the same cases.
    pub after_entry: EntryId,
}

impl Streams {
    /// The last ID that the chain's event stream ever assigned; `0-0` if it does not exist.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn last_entry(&self, chain: ChainId) -> Result<EntryId, ReadError> {
        let keys = Keys::of(chain);
        reader::last_id(&mut *self.pooled(&keys).await?, &keys.events).await
    }

    /// The position before the first block that `fits` and still has all its entries; none if there is
    /// none. If `fits` is true for all blocks above one for which it is true, then all entries of
    /// fitting blocks come after this position, including those of blocks taken back later. Reads the
    /// markers from the oldest on.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn position(
        &self,
        chain: ChainId,
        fits: impl Fn(&Marker) -> bool,
    ) -> Result<Option<StreamPosition>, ReadError> {
        let keys = Keys::of(chain);
        let connection = &mut *self.pooled(&keys).await?;
        let oldest = reader::oldest(connection, &keys.events, EntryId::MIN).await?;
        let (mut after_marker, mut after_entry) = (EntryId::MIN, EntryId::MIN);
        loop {
            let page = Page::after(after_marker, MARKERS_PER_BATCH);
            let markers = reader::markers(connection, &keys.blocks, page).await?;
            let is_last = markers.len() < MARKERS_PER_BATCH;
            for (id, marker) in markers {
                let joins = matches!(marker.op, Op::Add | Op::Gap);
                if joins && is_whole(&marker, oldest) && fits(&marker) {
                    return Ok(Some(StreamPosition { marker, after_marker, after_entry }));
                }
                (after_marker, after_entry) = (id, marker.last_id);
            }
            if is_last {
                return Ok(None);
            }
        }
    }
}

/// Whether retention has kept all entries of `marker`.
fn is_whole(marker: &Marker, oldest: Option<EntryId>) -> bool {
    marker.events == 0 || marker.first_id.zip(oldest).is_some_and(|(first, oldest)| oldest <= first)
}

/// How many entries were ever added to the event stream up to `id`; Redis itself knows that only for the stream's
/// ends. Counts back from the newest marker. None if `id` is below the stream's first entry, or if the markers do not
/// show it, for instance because somebody else also writes to the stream.
pub(crate) async fn entries_up_to(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
    id: EntryId,
) -> Result<Option<u64>, ReadError> {
    for _ in 0..LOOKS {
        let mut markers = reader::newest_markers(connection, &keys.blocks, EntryId::MAX).await?;
        let newest = markers.first().map(|(_, newest)| newest.last_id);
        let (last, added) = reader::given(connection, &keys.events).await?;
        if newest != Some(last) {
            continue; // a block was published in between
        }
        let mut behind = 0;
        loop {
            for (_, marker) in &markers {
                let last = marker.last_id;
                let begins_behind = marker.first_id.is_none_or(|first| first > id);
                if last > id && begins_behind {
                    behind += marker.events;
                    continue;
                }
                // `id` is inside this block, so count the rest of it, or at its end.
                let count = marker.events.try_into().unwrap_or(usize::MAX);
                if last > id {
                    let page = Page { to: last, ..Page::after(id, count) };
                    behind += reader::range(connection, &keys.events, page).await?.len() as u64;
                }
                let oldest = reader::oldest(connection, &keys.events, EntryId::MIN).await?;
                let kept = oldest.is_none_or(|oldest| oldest <= id);
                return Ok(added.checked_sub(behind).filter(|_| kept));
            }
            let oldest = markers.last().filter(|_| markers.len() == MARKERS_PER_BATCH);
            let Some((oldest, _)) = oldest else { return Ok(None) };
            markers = reader::newest_markers(connection, &keys.blocks, *oldest).await?;
        }
    }
    Ok(None)
}
