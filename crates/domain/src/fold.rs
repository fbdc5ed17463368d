//! Replays a chain's two streams and reports whether they are complete and consistent (G1 to G5):
//! the core of the checker.
//!
//! Entries and markers go in, each in stream order. Every breach of the contract comes out as a
//! [`Violation`], and the events that were not taken back as [`Fold::canonical`], which
//! [`Fold::compare`] compares with the chain. Nothing here trusts the publisher: a marker's count
//! and ID range must agree with the entries, and an entry with its marker.
//!
//! ```
//! # use ethhook_domain::{EntryId, Marker, ProcessedEvent, fold::Fold};
//! # let entries: Vec<(EntryId, ProcessedEvent)> = Vec::new();
//! # let markers: Vec<(EntryId, Marker)> = Vec::new();
//! let mut fold = Fold::from_start(1);
//! for (id, event) in entries { // all up to the last marker's `last_id`
//!     fold.entry(id, event);
//! }
//! for (id, marker) in &markers {
//!     fold.marker(*id, marker);
//! }
//! fold.finish();
//! assert!(fold.violations().is_empty());
//! ```
//!
//! A long stream need not be in memory at once: before each marker, pass the entries up to its
//! `last_id`.

use std::collections::{HashSet, VecDeque};
use std::fmt;

use alloy_primitives::B256;

mod compare;

pub use compare::{Difference, ExpectedBlock, compare};

use crate::event::CodecError;
use crate::{ChainId, EntryId, Marker, Op, ProcessedEvent, Proof};

/// At most this many violations, and this many differences, are kept: one fault can cause many.
pub const MAX_REPORTED: usize = 1_000;

/// What must never appear in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Problem {
    /// A log or block was added that was already live (G2).
    Duplicate,
    /// An entry takes back a log that was not live (G2).
    NotLive,
    /// A log or block was taken back with other content than it was added with.
    TakenBackDiffers,
    /// A block was taken back, but not all its logs (G2).
    NotTakenBack,
    /// Entries are in the wrong order (G3).
    Order,
    /// A block was added whose parent is not the tip (G3).
    Parent,
    /// A block was taken back that is not the tip (G3).
    NotTip,
    /// `seq` is not its predecessor's plus one (G4).
    Seq,
    /// An entry belongs to no marker (G4).
    OutsideMarker,
    /// An entry is not an event: somebody else added it.
    Foreign,
    /// A marker's count or ID range does not agree with the entries (G4).
    Range,
    /// An entry does not agree with its marker: chain, block, time, or the `removed` flag.
    EntryDiffersFromMarker,
    /// The finalized block moved back, or is not in the stream (G10).
    Finalized,
    /// A finalized block was taken back (G10).
    BelowFinalized,
    /// The ID is not above its predecessor's; Redis would not assign it.
    Id,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Duplicate => "added while it is live already",
            Self::NotLive => "taken back though it is not live",
            Self::TakenBackDiffers => "taken back by an entry with other content",
            Self::NotTakenBack => "not taken back with its block",
            Self::Order => "in the wrong order",
            Self::Parent => "added on another parent than the tip",
            Self::NotTip => "taken back though it is not the tip",
            Self::Seq => "seq does not follow",
            Self::OutsideMarker => "the entry belongs to no marker",
            Self::Foreign => "the entry is not an event of this program",
            Self::Range => "the marker does not agree with its entries",
            Self::EntryDiffersFromMarker => "the entry does not agree with its marker",
            Self::Finalized => "finality moved back, or to a block that is not in the stream",
            Self::BelowFinalized => "taken back though it was final",
            Self::Id => "the ID is not above the previous one",
        })
    }
}

/// One breach of the contract, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// ID of the entry or marker.
    pub at: EntryId,
    /// What is wrong.
    pub problem: Problem,
    /// What was expected and what was found.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {}: {}: {}", self.at, self.problem, self.detail)
    }
}

/// A block that no marker took back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoldedBlock {
    /// Height.
    pub number: u64,
    /// Hash.
    pub hash: B256,
    /// Hash of the parent; for a gap, of the tip before the gap.
    pub parent_hash: Option<B256>,
    /// Unix seconds.
    pub timestamp: u64,
    /// What its marker says it was checked with.
    pub proof: Proof,
    /// Its live events, in the order of the stream.
    pub events: Vec<ProcessedEvent>,
    /// For an operator's gap: the first skipped block; `number` is the last.
    pub skipped_from: Option<u64>,
}

/// The replay of one chain's streams.
#[derive(Debug)]
pub struct Fold {
    chain_id: ChainId,
    /// The beginnings of the streams may be missing.
    may_be_trimmed: bool,
    /// A marker with all its entries was seen: nothing may be missing after it.
    is_whole: bool,
    /// Entries that no marker has claimed yet.
    pending: VecDeque<(EntryId, ProcessedEvent)>,
    last_entry_id: EntryId,
    /// ID, `seq` and `last_id` of the last marker.
    last_marker: Option<(EntryId, u64, EntryId)>,
    blocks: Vec<FoldedBlock>,
    /// Hashes of `blocks`, and the identities of their events.
    live_blocks: HashSet<B256>,
    live: HashSet<(B256, u64)>,
    /// The block that the next one must build on; none if its parent is not checked.
    tip: Option<(u64, B256)>,
    /// Height of the first block that was added.
    start_number: Option<u64>,
    finalized: Option<(u64, B256)>,
    violations: Vec<Violation>,
}

impl Fold {
    /// Replays streams that are complete from their beginning: the first marker has `seq` 1.
    #[must_use]
    pub fn from_start(chain_id: ChainId) -> Self {
        Self {
            chain_id,
            may_be_trimmed: false,
            is_whole: true,
            pending: VecDeque::new(),
            last_entry_id: EntryId::MIN,
            last_marker: None,
            blocks: Vec::new(),
            live_blocks: HashSet::new(),
            live: HashSet::new(),
            tip: None,
            start_number: None,
            finalized: None,
            violations: Vec::new(),
        }
    }

    /// Replays streams whose beginnings retention may have trimmed: everything before the first
    /// marker that has all its entries is skipped, and taking back a block from before it is
    /// allowed.
    #[must_use]
    pub fn from_first_whole_marker(chain_id: ChainId) -> Self {
        Self { may_be_trimmed: true, is_whole: false, ..Self::from_start(chain_id) }
    }

    /// Continues a replay after the marker `seq` and the entry `last_id` (`0-0`: from the first
    /// entry). Everything up to there is known to be complete; everything after it must be. Taking
    /// back a block from before it is allowed.
    #[must_use]
    pub fn after(chain_id: ChainId, seq: u64, last_id: EntryId) -> Self {
        Self {
            may_be_trimmed: true,
            last_marker: Some((EntryId::MIN, seq, last_id)),
            ..Self::from_start(chain_id)
        }
    }

    /// Takes the next entry of `events:<chain_id>`.
    pub fn entry(&mut self, id: EntryId, event: ProcessedEvent) {
        self.check_id(id);
        self.pending.push_back((id, event));
    }

    /// Takes the next entry of `events:<chain_id>`, which is not an event, and why.
    pub fn foreign(&mut self, id: EntryId, error: &CodecError) {
        self.check_id(id);
        self.report(id, Problem::Foreign, error.to_string());
    }

    fn check_id(&mut self, id: EntryId) {
        if id <= self.last_entry_id {
            self.report(id, Problem::Id, "is not above the entry before".to_owned());
        }
        self.last_entry_id = id;
    }

    /// Takes the next marker of `blocks:{events:<chain_id>}`; the entries up to its `last_id` must
    /// have been given before.
    pub fn marker(&mut self, id: EntryId, marker: &Marker) {
        let claimed = self.pending.iter().take_while(|(id, _)| *id <= marker.last_id).count();
        let mut entries: Vec<_> = self.pending.drain(..claimed).collect();
        self.check_sequence(id, marker);
        if !self.is_whole {
            // Retention trims from the beginning: entries whose markers are gone may remain.
            entries.retain(|(id, _)| marker.first_id.is_some_and(|first| *id >= first));
            if marker.events > 0 && entries.first().map(|(id, _)| *id) != marker.first_id {
                return self.forget();
            }
            self.is_whole = marker.events > 0;
        }
        let entries = self.claim(id, marker, entries);
        self.apply(id, marker, entries);
    }

    /// Ends the replay: remaining entries belong to no marker.
    pub fn finish(&mut self) {
        for (id, event) in std::mem::take(&mut self.pending) {
            self.report(id, Problem::OutsideMarker, describe(&event));
        }
    }

    /// The blocks not taken back, by height, with their live events: the canonical chain according
    /// to the streams.
    #[must_use]
    pub fn canonical(&self) -> &[FoldedBlock] {
        &self.blocks
    }

    /// The newest final block according to the streams.
    #[must_use]
    pub fn finalized(&self) -> Option<(u64, B256)> {
        self.finalized
    }

    /// The first [`MAX_REPORTED`] violations, in stream order.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Compares [`Fold::canonical`] with the chain's blocks, as [`compare()`] does.
    #[must_use]
    pub fn compare(&self, expected: &[ExpectedBlock]) -> Vec<Difference> {
        compare(&self.blocks, expected)
    }

    /// Removes the final blocks up to height `at_most`, except the newest of them, and returns them in ascending
    /// order. A final block cannot be taken back, so a long replay need not keep it. The exception is an operator who
    /// moves finality back: if that happens later in the stream, limit `at_most` to the blocks that stay.
    pub fn settle(&mut self, at_most: u64) -> Vec<FoldedBlock> {
        let Some((finalized, _)) = self.finalized else { return Vec::new() };
        let last = finalized.min(at_most);
        let final_blocks = self.blocks.partition_point(|block| block.number <= last);
        let settled: Vec<_> = self.blocks.drain(..final_blocks.saturating_sub(1)).collect();
        for block in &settled {
            self.live_blocks.remove(&block.hash);
            block.events.iter().for_each(|event| self.drop_live(event));
        }
        settled
    }

    /// The first complete marker is still to come: discards what earlier markers without entries
    /// said.
    fn forget(&mut self) {
        self.blocks.clear();
        self.live_blocks.clear();
        (self.tip, self.start_number) = (None, None);
    }

    fn check_sequence(&mut self, id: EntryId, marker: &Marker) {
        let seq_before = if self.is_whole { 0 } else { marker.seq.saturating_sub(1) };
        let before_all = (EntryId::MIN, seq_before, EntryId::MIN);
        let (previous_id, previous_seq, previous_last_id) = self.last_marker.unwrap_or(before_all);
        if id <= previous_id {
            self.report(id, Problem::Id, "is not above the marker before".to_owned());
        }
        if marker.seq != previous_seq + 1 {
            let detail = format!("seq {} follows {previous_seq}", marker.seq);
            self.report(id, Problem::Seq, detail);
        }
        let (is_empty, last_id) = (marker.events == 0, marker.last_id);
        if last_id < previous_last_id || (!is_empty && last_id == previous_last_id) {
            let detail = format!("last_id {last_id} does not go on");
            self.report(id, Problem::Range, detail);
        }
        self.last_marker = Some((id, marker.seq, last_id.max(previous_last_id)));
    }

    /// The marker's entries; reports entries outside its range, and a count or range that does not
    /// agree with them.
    fn claim(
        &mut self,
        id: EntryId,
        marker: &Marker,
        entries: Vec<(EntryId, ProcessedEvent)>,
    ) -> Vec<(EntryId, ProcessedEvent)> {
        let mut claimed = Vec::with_capacity(entries.len());
        for (entry_id, event) in entries {
            if marker.first_id.is_some_and(|first| entry_id >= first) {
                claimed.push((entry_id, event));
            } else {
                self.report(entry_id, Problem::OutsideMarker, describe(&event));
            }
        }
        let first_id = claimed.first().map(|(id, _)| *id);
        let last_id = claimed.last().map_or(marker.last_id, |(id, _)| *id);
        let count = claimed.len() as u64;
        if (count, first_id, last_id) != (marker.events, marker.first_id, marker.last_id) {
            let said = range(marker.events, marker.first_id, marker.last_id);
            let found = range(count, first_id, last_id);
            let detail = format!("says {said}, there are {found}");
            self.report(id, Problem::Range, detail);
        }
        claimed
    }

    fn apply(&mut self, id: EntryId, marker: &Marker, entries: Vec<(EntryId, ProcessedEvent)>) {
        if matches!(marker.op, Op::Finalized | Op::Gap) && !entries.is_empty() {
            self.report(id, Problem::Range, format!("`{}` has entries", marker.op));
        }
        match marker.op {
            Op::Add => self.add(id, marker, entries),
            Op::Remove => self.remove(id, marker, entries),
            Op::Finalized => self.finalize(id, marker),
            Op::Gap => self.skip(id, marker),
        }
    }

    fn add(&mut self, id: EntryId, marker: &Marker, entries: Vec<(EntryId, ProcessedEvent)>) {
        match self.tip {
            Some((number, hash)) => {
                if marker.parent_hash != Some(hash) || marker.number != number + 1 {
                    let parent = marker.parent_hash.unwrap_or_default();
                    let detail =
                        format!("block {} on {parent}, the tip is {number} {hash}", marker.number);
                    self.report(id, Problem::Parent, detail);
                }
            }
            // The first block's parent is not checked, even when another block replaces it.
            None => {
                let start = *self.start_number.get_or_insert(marker.number);
                if marker.number != start {
                    let detail = format!("block {} is the first, not {start}", marker.number);
                    self.report(id, Problem::Parent, detail);
                }
            }
        }
        if !self.live_blocks.insert(marker.hash) {
            let detail = format!("block {} {} is live already", marker.number, marker.hash);
            self.report(id, Problem::Duplicate, detail);
        }
        let mut previous: Option<u64> = None;
        let mut events = Vec::with_capacity(entries.len());
        for (entry_id, event) in entries {
            self.check_entry(
                entry_id,
                marker,
                &event,
                previous.is_none_or(|p| event.log_index > p),
            );
            if !self.live.insert((event.block_hash, event.log_index)) {
                self.report(entry_id, Problem::Duplicate, describe(&event));
            }
            previous = Some(event.log_index);
            events.push(event);
        }
        self.tip = Some((marker.number, marker.hash));
        self.blocks.push(folded(marker, events, None));
    }

    fn remove(&mut self, id: EntryId, marker: &Marker, entries: Vec<(EntryId, ProcessedEvent)>) {
        if self.finalized.is_some_and(|(number, _)| marker.number <= number) {
            let detail = format!("block {} {} is taken back", marker.number, marker.hash);
            self.report(id, Problem::BelowFinalized, detail);
        }
        let is_before_fold = self.blocks.is_empty()
            && self.may_be_trimmed
            && self.tip.is_none_or(|tip| tip == (marker.number, marker.hash));
        let orphaned = if is_before_fold { None } else { self.pop(id, marker) };
        let mut left = orphaned.map(|block| block.events).unwrap_or_default();
        let mut previous: Option<u64> = None;
        for (entry_id, event) in entries {
            self.check_entry(
                entry_id,
                marker,
                &event,
                previous.is_none_or(|p| event.log_index < p),
            );
            previous = Some(event.log_index);
            if is_before_fold {
                continue;
            }
            let taken_back = left.iter().rposition(|added| {
                (added.block_hash, added.log_index) == (event.block_hash, event.log_index)
            });
            let Some(added) = taken_back.map(|i| left.remove(i)) else {
                self.report(entry_id, Problem::NotLive, describe(&event));
                continue;
            };
            self.drop_live(&event);
            if (ProcessedEvent { removed: true, ..added.clone() }) != event {
                let detail = format!("takes back {added:?} by {event:?}");
                self.report(entry_id, Problem::TakenBackDiffers, detail);
            }
        }
        for event in left {
            self.drop_live(&event);
            self.report(id, Problem::NotTakenBack, describe(&event));
        }
        self.tip = match self.blocks.last() {
            // The block below may be a gap's, so its height need not be one less.
            Some(block) => Some((block.number, block.hash)),
            None if self.may_be_trimmed => {
                marker.parent_hash.map(|hash| (marker.number.saturating_sub(1), hash))
            }
            None => None,
        };
    }

    /// Removes the block that `marker` takes back. If it is not the tip, the blocks above it are
    /// removed with it, so that one fault is reported once.
    fn pop(&mut self, id: EntryId, marker: &Marker) -> Option<FoldedBlock> {
        let position = self.blocks.iter().rposition(|block| block.hash == marker.hash);
        if position.is_none() || position != self.blocks.len().checked_sub(1) {
            let detail = format!("block {} {} is taken back", marker.number, marker.hash);
            self.report(id, Problem::NotTip, detail);
        }
        let mut dropped = self.blocks.split_off(position?).into_iter();
        let block = dropped.next()?;
        self.live_blocks.remove(&block.hash);
        for above in dropped {
            self.live_blocks.remove(&above.hash);
            above.events.iter().for_each(|event| self.drop_live(event));
        }
        let said = (marker.number, marker.parent_hash, marker.timestamp, marker.proof);
        if said != (block.number, block.parent_hash, block.timestamp, block.proof) {
            let detail = format!("takes block {} back with other values", block.number);
            self.report(id, Problem::TakenBackDiffers, detail);
        }
        Some(block)
    }

    /// The log is no longer in the stream, or no longer looked at.
    fn drop_live(&mut self, event: &ProcessedEvent) {
        self.live.remove(&(event.block_hash, event.log_index));
    }

    /// Checks an entry against its marker.
    fn check_entry(
        &mut self,
        id: EntryId,
        marker: &Marker,
        event: &ProcessedEvent,
        in_order: bool,
    ) {
        let said = (event.chain_id, event.block_number, event.block_hash, event.timestamp);
        if said != (self.chain_id, marker.number, marker.hash, marker.timestamp)
            || event.removed != (marker.op == Op::Remove)
        {
            let detail = format!(
                "{} stands in `{}` of block {} {} of chain {} at {}",
                describe(event),
                marker.op,
                marker.number,
                marker.hash,
                self.chain_id,
                marker.timestamp
            );
            self.report(id, Problem::EntryDiffersFromMarker, detail);
        }
        if !in_order {
            self.report(id, Problem::Order, describe(event));
        }
    }

    fn finalize(&mut self, id: EntryId, marker: &Marker) {
        if let Some((number, hash)) = self.finalized {
            let is_same = marker.number == number && marker.hash == hash;
            if marker.number <= number && !is_same {
                let detail = format!("from {number} {hash} to {} {}", marker.number, marker.hash);
                // Reported even if an operator ordered it; later markers are checked against the
                // new finalized block.
                self.report(id, Problem::Finalized, detail);
            }
        }
        let (number, hash) = (marker.number, marker.hash);
        // Below the first block of this replay, any block may be final.
        let first = self.blocks.first().map(|b| b.skipped_from.unwrap_or(b.number));
        let is_ours = first.is_none_or(|first| number < first)
            || self.blocks.iter().rev().any(|b| match b.skipped_from {
                Some(from) => (from..b.number).contains(&number) || b.hash == hash,
                None => b.hash == hash && b.number == number,
            });
        if !is_ours {
            let detail = format!("block {number} {hash} is not in the stream");
            self.report(id, Problem::Finalized, detail);
        }
        self.finalized = Some((number, hash));
    }

    fn skip(&mut self, id: EntryId, marker: &Marker) {
        if let Some((number, hash)) = self.tip
            && (marker.number <= number || marker.parent_hash != Some(hash))
        {
            let detail = format!("gap to {}, the tip is {number} {hash}", marker.number);
            self.report(id, Problem::Parent, detail);
        }
        let from = self.tip.map_or(marker.number, |(number, _)| number + 1);
        self.tip = Some((marker.number, marker.hash));
        self.blocks.push(folded(marker, Vec::new(), Some(from)));
    }

    fn report(&mut self, at: EntryId, problem: Problem, detail: String) {
        if self.violations.len() < MAX_REPORTED {
            self.violations.push(Violation { at, problem, detail });
        }
    }
}

fn folded(marker: &Marker, events: Vec<ProcessedEvent>, skipped_from: Option<u64>) -> FoldedBlock {
    FoldedBlock {
        number: marker.number,
        hash: marker.hash,
        parent_hash: marker.parent_hash,
        timestamp: marker.timestamp,
        proof: marker.proof,
        events,
        skipped_from,
    }
}

/// Describes a range of entries.
fn range(events: u64, first: Option<EntryId>, last: EntryId) -> String {
    match first {
        Some(first) => format!("{events} events from {first} to {last}"),
        None => format!("{events} events, no first_id"),
    }
}

fn describe(event: &ProcessedEvent) -> String {
    format!(
        "{} log {} of block {} {}",
        if event.removed { "removed" } else { "new" },
        event.log_index,
        event.block_number,
        event.block_hash
    )
}
