//! Where in a chain's streams a block, or a time, begins.

use ethhook_domain::{ChainId, Marker, Op};

use crate::connection::Streams;
use crate::entry_id::EntryId;
use crate::keys::Keys;
use crate::reader::{self, Page, ReadError};

/// Markers in one answer: about 250 bytes each.
const MARKERS_A_BATCH: usize = 512;

/// A place in both streams of a chain, from which on they can be read together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The marker that comes next: that of a block that joins, or of an operator's gap.
    pub marker: Marker,
    /// The ID of the marker before it; `0-0` if that is gone or there was none.
    pub after_marker: String,
    /// The last entry before those of the marker; `0-0` likewise.
    pub after_entry: String,
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
        let first = Page { from: "-", to: "+", count: 1 };
        let oldest = reader::range(connection, &keys.events, first).await?;
        let oldest = oldest.first().and_then(|entry| entry.id.parse::<EntryId>().ok());
        let (mut after_marker, mut after_entry) = ("0-0".to_owned(), "0-0".to_owned());
        loop {
            let from = format!("({after_marker}");
            let page = Page { from: &from, to: "+", count: MARKERS_A_BATCH };
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
    let first = marker.first_id.parse::<EntryId>().ok();
    marker.events == 0 || first.zip(oldest).is_some_and(|(first, oldest)| oldest <= first)
}
