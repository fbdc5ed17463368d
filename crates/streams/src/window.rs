//! The canonical chain according to the markers: either the window of blocks that a reorg may still take back, or all
//! blocks that are kept.

use std::collections::HashSet;

use alloy_primitives::B256;
use ethhook_domain::{BlockRef, ChainId, Cursor, EntryId, Marker, Op, Proof};
use redis::aio::ConnectionLike;

use crate::connection::Streams;
use crate::keys::Keys;
use crate::reader::{self, MARKERS_PER_BATCH, ReadError, newest_markers};

/// A block of the canonical chain as published in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedBlock {
    /// The block.
    pub block: BlockRef,
    /// How many entries it has.
    pub events: u64,
    /// ID of its first entry; none if it has none.
    pub first_id: Option<EntryId>,
    /// ID of its last entry; if it has none, the stream's last ID at that time.
    pub last_id: EntryId,
    /// The strongest check it passed.
    pub proof: Proof,
}

impl Streams {
    /// The canonical blocks that a reorg may still take back, ascending to the tip. They begin with the finalized
    /// block (with the first block while none is final), or with the first above an operator's gap. Read from the
    /// markers, newest first, a bounded batch at a time; blocks that were taken back cancel out. The finalized block
    /// itself is missing if retention has removed it.
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
            && reader::cursor(connection, &keys).await?.as_ref() != Some(cursor)
        {
            return Err(ReadError::Moved);
        }
        result
    }

    /// The canonical blocks whose markers still exist, ascending to the tip, including final ones; none below an
    /// operator's gap. All are in memory: some 200 bytes per block.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn kept_blocks(
        &self,
        chain: ChainId,
        cursor: &Cursor,
    ) -> Result<Vec<PublishedBlock>, ReadError> {
        let keys = Keys::of(chain);
        unwind(&mut *self.pooled(&keys).await?, &keys, cursor, Depth::Kept).await
    }
}

/// How far back the markers are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// As far as a reorg may reach; the markers must reach that far.
    Window,
    /// As far as there are markers.
    Kept,
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
        if batch.is_empty() && before == EntryId::MAX {
            return Err(ReadError::Inconsistent(format!(
                "the stream {} is gone, although the cursor is at seq {}",
                keys.blocks, cursor.seq
            )));
        }
        let is_last = batch.len() < MARKERS_PER_BATCH;
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

/// The canonical chain while the markers are read backwards from the newest.
struct Unwinding {
    start: u64,
    finalized: Option<u64>,
    depth: Depth,
    /// The next block to be found: the tip, then each parent.
    want: (u64, B256),
    /// Blocks that were taken back: an older `add` of one no longer counts.
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

    /// Processes the next older marker; `true` once the window is complete.
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
            // Nothing was published for the blocks that an operator skipped.
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

    /// No more markers: correct if everything below is final, since only that is ever trimmed.
    fn exhausted(self) -> Result<Vec<PublishedBlock>, ReadError> {
        let is_enough = self.finalized.is_some_and(|finalized| self.want.0 <= finalized);
        if is_enough || self.depth == Depth::Kept {
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
