//! Retention: which blocks may be removed from a chain's streams, and their removal (G8).
//!
//! A sweep goes through the oldest markers, block by block, and stops at the first block that must
//! stay. A block may go once it is final and either old enough, or in excess of the byte cap, or Redis is
//! nearly full. A group that has not read or not acknowledged it keeps it and all later blocks, unless the
//! cap is exceeded while the head is followed. Entries that no group needs are trimmed in whole nodes
//! (`MINID ~`, a bounded number per call); entries that a group loses are trimmed exactly, so that
//! the loss can be counted. A marker is removed only once the stream begins above its last entry, for
//! which many markers do not wait; the newest marker always stays.

use std::time::Duration;

use ethhook_domain::{ChainId, EntryId, Marker};
use redis::aio::ConnectionLike;

use crate::connection::Streams;
use crate::group::{GroupLag, Hold, look_at_groups, pending};
use crate::keys::Keys;
use crate::memory::Memory;
use crate::reader::{self, MARKERS_PER_BATCH, Page, ReadError, now_ms, oldest, query};
use crate::size::{Size, measure};

/// Batches per sweep: 32,768 markers; the rest is left to the next sweep.
const BATCHES_PER_SWEEP: usize = 64;
/// Entries that one trim may remove: about a millisecond of Redis' time. Also markers per trim, and about what groups may
/// lose in one sweep: their loss is told with its result, and must not be forgotten with a long one that is cut short.
const ENTRIES_PER_TRIM: usize = 5_000;
/// More markers than this do not wait until the node of entries before them may go as a whole.
const MARKERS_WAITING: usize = 1_000;
/// Pending entries counted per answer.
const PENDING_PER_PAGE: usize = 1_000;

/// What may be removed from a chain's streams, at or below the finalized block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// Blocks published longer ago than this may go.
    pub keep: Duration,
    /// Byte cap of the two streams; above it, blocks may go before `keep` has passed.
    pub max_bytes: u64,
    /// How full Redis is. If it is nearly full, blocks that no group needs may go before the cap is reached, until half
    /// of it is left.
    pub memory: Memory,
    /// Whether Redis refuses a step for lack of memory: then it counts as nearly full earlier.
    pub redis_refuses_steps: bool,
    /// Whether the chain follows its head. Only then may the byte cap remove what a group has not
    /// read: a backfill can wait instead.
    pub following_head: bool,
}

/// What a sweep did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries removed.
    pub trimmed_entries: u64,
    /// Markers removed.
    pub trimmed_markers: u64,
    /// Entries removed although this group had not read or not acknowledged them.
    pub lost_unread_by_group: Vec<(String, u64)>,
    /// The group for which a block had to stay.
    pub held_by_group: Option<String>,
    /// Bytes of both streams after the sweep, estimated.
    pub bytes: u64,
    /// Their byte cap.
    pub max_bytes: u64,
    /// Bytes that an entry takes on average, estimated; 0 if there is none.
    pub entry_bytes: u64,
    /// Whether blocks had to go before the cap was reached because Redis is nearly full.
    pub nearly_full: bool,
    /// Whether the sweep ended at its limit, so that the next one should follow at once.
    pub has_more: bool,
    /// Entries of the event stream after the sweep.
    pub len: u64,
    /// The lag of each consumer group when the sweep began.
    pub groups: Vec<GroupLag>,
}

impl Streams {
    /// Trims what `policy` allows. If nothing may go, this costs one round of small queries.
    ///
    /// # Errors
    /// See [`ReadError`]. A failed sweep does not report what it trimmed, except if a group lost entries: then it
    /// returns that without an error. The next sweep continues from there.
    pub async fn sweep(
        &self,
        chain: ChainId,
        policy: &RetentionPolicy,
    ) -> Result<Swept, ReadError> {
        let keys = Keys::of(chain);
        sweep(&mut *self.pooled(&keys).await?, &keys, policy).await
    }
}

pub(crate) async fn sweep(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
    policy: &RetentionPolicy,
) -> Result<Swept, ReadError> {
    let now_ms = now_ms(connection).await?;
    let size = measure(connection, keys).await?;
    let (len, bytes) = (size.entries, size.bytes());
    let (holds, groups) = look_at_groups(connection, &keys.events, len, now_ms).await?;
    let max_bytes = policy.max_bytes;
    let entry_bytes = size.of_entry();
    let mut swept = Swept { len, bytes, max_bytes, entry_bytes, groups, ..Swept::default() };
    let Some(cursor) = reader::cursor(connection, keys).await? else { return Ok(swept) };
    let Some(finalized) = cursor.finalized() else { return Ok(swept) };
    let keep_ms = policy.keep.as_millis().try_into().unwrap_or(u64::MAX);
    let mut plan = Plan {
        finalized,
        newest_seq: cursor.seq,
        expired_before: EntryId { ms: now_ms.saturating_sub(keep_ms), seq: 0 },
        excess: bytes.saturating_sub(max_bytes),
        memory_excess: policy
            .memory
            .part_in_excess(bytes, policy.redis_refuses_steps)
            .min(bytes.saturating_sub(max_bytes / 2)),
        size,
        following_head: policy.following_head,
        holds,
        going: Vec::new(),
        forced: 0,
        held_by: None,
    };
    swept.nearly_full = plan.memory_excess > 0;
    swept.has_more = plan.walk(connection, keys).await?;
    swept.held_by_group = plan.held_by.clone();
    if !plan.going.is_empty() {
        if let Err(error) = plan.carry_out(connection, keys, &mut swept).await {
            if swept.lost_unread_by_group.is_empty() {
                return Err(error);
            }
            // The next sweep cannot see these losses any more, so they are returned instead of the
            // error.
            tracing::warn!(%error, "retention was interrupted");
            return Ok(swept);
        }
        let size = measure(connection, keys).await?;
        (swept.len, swept.bytes) = (size.entries, size.bytes());
    }
    Ok(swept)
}

/// A block to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Going {
    marker_id: EntryId,
    /// None for a block without entries.
    first: Option<EntryId>,
    last: EntryId,
    events: u64,
    /// Whether a group still needs it.
    forced: bool,
}

#[derive(Debug)]
struct Plan {
    finalized: u64,
    newest_seq: u64,
    expired_before: EntryId,
    /// Bytes that have to go because of the byte cap and are not yet in `going`.
    excess: u64,
    /// The same because Redis is nearly full; for this, no group loses an entry.
    memory_excess: u64,
    size: Size,
    following_head: bool,
    holds: Vec<Hold>,
    /// Oldest first; forced ones come after all others.
    going: Vec<Going>,
    /// How many entries the forced ones have.
    forced: u64,
    held_by: Option<String>,
}

impl Plan {
    /// Decides which of the oldest blocks are removed; true if it ended at the limit of a sweep.
    async fn walk(
        &mut self,
        connection: &mut impl ConnectionLike,
        keys: &Keys,
    ) -> Result<bool, ReadError> {
        let mut after = EntryId::MIN;
        let mut begins = None;
        for batch in 0..BATCHES_PER_SWEEP {
            let count = if batch == 0 { 1 } else { MARKERS_PER_BATCH };
            let page = Page::after(after, count);
            let markers = reader::markers(connection, &keys.blocks, page).await?;
            let Some((last, _)) = markers.last() else { return Ok(false) };
            after = *last;
            for (id, marker) in &markers {
                if !self.is_due(*id, marker) {
                    return Ok(false);
                }
                let begins = match begins {
                    Some(begins) => begins,
                    None => *begins.insert(oldest(connection, &keys.events, EntryId::MIN).await?),
                };
                if !self.take(*id, marker, begins) {
                    return Ok(false);
                }
                if self.forced >= ENTRIES_PER_TRIM as u64 {
                    return Ok(true);
                }
            }
        }
        Ok(true)
    }

    fn is_due(&self, id: EntryId, marker: &Marker) -> bool {
        marker.number <= self.finalized
            && marker.seq != self.newest_seq
            && (id < self.expired_before || self.excess > 0 || self.memory_excess > 0)
    }

    /// Plans the removal of the next due block if allowed; `false` if it and all later ones stay. If the block is
    /// below the stream's first entry `begins`, only its marker is left, after a sweep that was cut short.
    fn take(&mut self, id: EntryId, marker: &Marker, begins: Option<EntryId>) -> bool {
        let last = marker.last_id;
        let is_there = begins.is_some_and(|begins| begins <= last);
        let holds = self.holds.iter().filter(|hold| is_there && hold.from() <= last);
        let holder = holds.min_by_key(|hold| hold.from());
        let forced = holder.is_some();
        if let Some(holder) = holder
            && (self.excess == 0 || !self.following_head)
        {
            self.held_by = Some(holder.group.clone());
            return false;
        }
        let first = marker.first_id;
        let entries = if is_there { marker.events } else { 0 };
        let bytes = self.size.of_block(entries);
        self.excess = self.excess.saturating_sub(bytes);
        self.memory_excess = self.memory_excess.saturating_sub(bytes);
        self.forced += if forced { marker.events } else { 0 };
        self.going.push(Going { marker_id: id, first, last, events: marker.events, forced });
        true
    }

    async fn carry_out(
        &self,
        connection: &mut impl ConnectionLike,
        keys: &Keys,
        swept: &mut Swept,
    ) -> Result<(), ReadError> {
        let (free, forced) = self.going.split_at(self.going.partition_point(|block| !block.forced));
        if let Some(block) = free.last() {
            swept.trimmed_entries += trim_nodes(connection, &keys.events, block.last).await?;
        }
        self.take_from_groups(connection, keys, forced, swept).await?;
        let mut begins = oldest(connection, &keys.events, EntryId::MIN).await?;
        let gone = |begins: Option<EntryId>| {
            self.going.partition_point(|block| begins.is_none_or(|begins| block.last < begins))
        };
        if let Some(block) = free.last()
            && free.len().saturating_sub(gone(begins)) > MARKERS_WAITING
        {
            swept.trimmed_entries += trim_exactly(connection, &keys.events, block.last).await?;
            begins = oldest(connection, &keys.events, EntryId::MIN).await?;
        }
        let gone = &self.going[..gone(begins)];
        for some in gone.chunks(ENTRIES_PER_TRIM) {
            if let Some(block) = some.last() {
                swept.trimmed_markers +=
                    trim_exactly(connection, &keys.blocks, block.marker_id).await?;
            }
        }
        Ok(())
    }

    /// Removes the entries of blocks that groups still need, and records how many each lost. Counts them even if the
    /// answer is lost, because they may be gone.
    async fn take_from_groups(
        &self,
        connection: &mut impl ConnectionLike,
        keys: &Keys,
        blocks: &[Going],
        swept: &mut Swept,
    ) -> Result<(), ReadError> {
        let Some(end) = blocks.last() else { return Ok(()) };
        let mut losses = Vec::new();
        for hold in &self.holds {
            let lost = lost(connection, &keys.events, hold, blocks).await?;
            losses.extend((lost > 0).then(|| (hold.group.clone(), lost)));
        }
        let trimmed = trim_exactly(connection, &keys.events, end.last).await;
        if !trimmed.as_ref().is_err_and(is_refusal) {
            swept.lost_unread_by_group = losses;
        }
        swept.trimmed_entries += trimmed?;
        Ok(())
    }
}

/// Whether Redis reported that it did not carry out a command.
fn is_refusal(error: &ReadError) -> bool {
    !matches!(error, ReadError::Redis(failure) if failure.is_unreachable())
}

/// How many entries of `blocks`, none of them trimmed yet, are undelivered or unacknowledged in a group.
async fn lost(
    connection: &mut impl ConnectionLike,
    key: &str,
    hold: &Hold,
    blocks: &[Going],
) -> Result<u64, ReadError> {
    let mut lost = 0;
    for block in blocks {
        match block.first {
            Some(first) if first > hold.delivered => lost += block.events,
            // Partly delivered: counts the rest in the stream.
            Some(_) if block.last > hold.delivered => {
                let count = block.events.try_into().unwrap_or(usize::MAX);
                let page = Page { to: block.last, ..Page::after(hold.delivered, count) };
                lost += reader::range(connection, key, page).await?.len() as u64;
            }
            _ => {}
        }
    }
    let (Some(first), Some(end)) = (blocks.iter().find_map(|b| b.first), blocks.last()) else {
        return Ok(lost);
    };
    let end = end.last;
    let mut from = hold.oldest_pending.map(|oldest| oldest.max(first));
    while let Some(start) = from.filter(|start| *start <= end) {
        let page = pending(connection, key, &hold.raw_name, start..=end, PENDING_PER_PAGE).await?;
        lost += page.len() as u64;
        from = page.last().filter(|_| page.len() == PENDING_PER_PAGE).map(|last| last.next());
    }
    Ok(lost)
}

/// Removes whole nodes of entries up to `last`, a bounded number at a time.
pub(crate) async fn trim_nodes(
    connection: &mut impl ConnectionLike,
    key: &str,
    last: EntryId,
) -> Result<u64, ReadError> {
    let mut trimmed = 0;
    loop {
        let mut command = redis::cmd("XTRIM");
        command.arg(key).arg("MINID").arg("~").arg(last.next().to_string());
        command.arg("LIMIT").arg(ENTRIES_PER_TRIM);
        let count: u64 = query(&command, connection, key).await?;
        if count == 0 {
            return Ok(trimmed);
        }
        trimmed += count;
    }
}

/// Removes every entry up to `last`.
pub(crate) async fn trim_exactly(
    connection: &mut impl ConnectionLike,
    key: &str,
    last: EntryId,
) -> Result<u64, ReadError> {
    let mut command = redis::cmd("XTRIM");
    command.arg(key).arg("MINID").arg("=").arg(last.next().to_string());
    query(&command, connection, key).await
}
