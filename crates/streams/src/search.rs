//! Where in a chain's streams a block, or a time, begins, and how many entries stand before a place.

use ethhook_domain::{ChainId, EntryId, Marker, Op};
use redis::aio::ConnectionLike;

use crate::connection::Streams;
use crate::keys::Keys;
use crate::reader::{self, MARKERS_A_BATCH, Page, ReadError};

/// How often the streams are looked at again because a block came in between.
const LOOKS: usize = 16;

/// A place in both streams of a chain, from which on they can be read together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The marker that comes next: that of a block that joins, or of an operator's gap.
    pub marker: Marker,
    /// The ID of the marker before it; [`EntryId::MIN`] if that is gone or there was none.
    pub after_marker: EntryId,
    /// The last entry before those of the marker; [`EntryId::MIN`] likewise.
    pub after_entry: EntryId,
}

impl Streams {
    /// The place before the first block that `fits` and is kept whole, with all its entries; none
    /// if there is none. Everything of such a block, also what is later taken back, stands behind
    /// it, if whatever `fits` holds for a block holds for all above it. Reads the markers from the
    /// oldest on.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn place(
        &self,
        chain: ChainId,
        fits: impl Fn(&Marker) -> bool,
    ) -> Result<Option<Place>, ReadError> {
        let keys = Keys::of(chain);
        let connection = &mut *self.pooled(&keys).await?;
        let oldest = reader::oldest(connection, &keys.events, EntryId::MIN).await?;
        let (mut after_marker, mut after_entry) = (EntryId::MIN, EntryId::MIN);
        loop {
            let page = Page::after(after_marker, MARKERS_A_BATCH);
            let markers = reader::markers(connection, &keys.blocks, page).await?;
            let is_last = markers.len() < MARKERS_A_BATCH;
            for (id, marker) in markers {
                let joins = matches!(marker.op, Op::Add | Op::Gap);
                if joins && is_whole(&marker, oldest) && fits(&marker) {
                    return Ok(Some(Place { marker, after_marker, after_entry }));
                }
                (after_marker, after_entry) = (id, marker.last_id);
            }
            if is_last {
                return Ok(None);
            }
        }
    }
}

/// Whether retention has left all entries of `marker`.
fn is_whole(marker: &Marker, oldest: Option<EntryId>) -> bool {
    marker.events == 0 || marker.first_id.zip(oldest).is_some_and(|(first, oldest)| oldest <= first)
}

/// How many entries the event stream was ever given up to `id`: what Redis counts by itself only at the
/// stream's ends. Counted from the newest marker back; none if `id` is below the stream's first entry,
/// or the markers do not tell, as of a stream that somebody else writes to as well.
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
            continue; // a block came in between
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
                // The rest of a block in whose middle it is; nothing if the block ends with it.
                let count = marker.events.try_into().unwrap_or(usize::MAX);
                if last > id {
                    let page = Page { to: last, ..Page::after(id, count) };
                    behind += reader::range(connection, &keys.events, page).await?.len() as u64;
                }
                let oldest = reader::oldest(connection, &keys.events, EntryId::MIN).await?;
                let kept = oldest.is_none_or(|oldest| oldest <= id);
                return Ok(added.checked_sub(behind).filter(|_| kept));
            }
            let oldest = markers.last().filter(|_| markers.len() == MARKERS_A_BATCH);
            let Some((oldest, _)) = oldest else { return Ok(None) };
            markers = reader::newest_markers(connection, &keys.blocks, *oldest).await?;
        }
    }
    Ok(None)
}
