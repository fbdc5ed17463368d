//! The canonical chain as a pure value: headers in; blocks to undo, blocks to add, and the next
//! question for the node out.
//!
//! Invariants:
//! - The links are contiguous: each one's `parent_hash` is the hash of the one before it.
//! - What was *heard* (a subscription's head) may only extend the tip or raise a question. Only
//!   what was *told* (the node's answer to a question) can take a block back: a head that comes
//!   late, twice, out of order or from a lagging node never becomes a reorg by itself.
//! - Nothing at or below the finalized block is ever taken back ([`FinalityViolation`], G10).
//!
//! The driver's whole duty: pass in what it hears, ask what [`CanonicalChain::ask`] wants asked,
//! pass the answer in, and carry out every [`Change`].

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use alloy_primitives::B256;

use crate::{BlockRef, Header};

/// How often a node must repeat itself before a branch that is *lower* than the tip, or one that
/// leaves the chain below the finalized block, is believed: one such answer is what a lagging node
/// behind a load balancer gives.
pub const SIGHTINGS: u32 = 3;

/// What the chain wants to know next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// The block that the node calls `latest`; answer with [`CanonicalChain::told`].
    Latest,
    /// The block with this hash; answer with [`CanonicalChain::answered`].
    Hash(B256),
    /// The blocks at these heights, in order; answer with [`CanonicalChain::answered`], each.
    Numbers(RangeInclusive<u64>),
}

/// What became of the chain; carry out `undo` first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Orphaned blocks, the highest first.
    pub undo: Vec<BlockRef>,
    /// Blocks that joined, the lowest first.
    pub new: Vec<Header>,
}

impl Change {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.undo.is_empty() && self.new.is_empty()
    }

    fn add(header: Header) -> Self {
        Self { undo: Vec::new(), new: vec![header] }
    }
}

/// The node insists on a branch that leaves our chain below the finalized block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node's block {theirs} contradicts the finalized block {finalized}")]
pub struct FinalityViolation {
    /// The block that we hold final.
    pub finalized: BlockRef,
    /// The lowest block of the node's branch that was seen.
    pub theirs: BlockRef,
}

/// The chain from the finalized block, or the first one, up to the tip.
#[derive(Debug, Clone)]
pub struct CanonicalChain {
    start: u64,
    links: VecDeque<BlockRef>,
    /// The finalized block is the first link.
    finalized: bool,
    /// A branch that is walked back to its fork point, the highest block first.
    branch: Vec<Header>,
    /// The highest number that was heard or told of.
    target: u64,
    /// Something was heard that does not fit: ask for `latest`.
    doubt: bool,
    /// How often in a row the node told of a branch that is not believed at once.
    sightings: u32,
    /// The lowest block of that branch.
    sighted: u64,
}

impl CanonicalChain {
    /// A chain whose first block is at height `start`, holding `links`: contiguous, ascending, and
    /// beginning with the finalized block if `finalized`.
    #[must_use]
    pub fn new(start: u64, links: impl IntoIterator<Item = BlockRef>, finalized: bool) -> Self {
        let links: VecDeque<_> = links.into_iter().collect();
        debug_assert!(
            links.iter().zip(links.iter().skip(1)).all(|(a, b)| a.hash == b.parent_hash),
            "links are contiguous"
        );
        Self {
            start,
            finalized: finalized && !links.is_empty(),
            target: links.back().map_or(0, |tip| tip.number),
            links,
            branch: Vec::new(),
            doubt: true,
            sightings: 0,
            sighted: 0,
        }
    }

    /// The highest block.
    #[must_use]
    pub fn tip(&self) -> Option<&BlockRef> {
        self.links.back()
    }

    /// Whether the first link is final.
    #[must_use]
    pub fn is_finalized(&self) -> bool {
        self.finalized
    }

    /// The height of the block that would extend the chain.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        self.tip().map_or(self.start, |tip| tip.number.saturating_add(1))
    }

    /// The canonical block at `number`, if it is still held.
    #[must_use]
    pub fn at(&self, number: u64) -> Option<&BlockRef> {
        let first = self.links.front()?.number;
        number.checked_sub(first).and_then(|i| self.links.get(usize::try_from(i).ok()?))
    }

    /// The question whose answer the chain needs next; none if it is content.
    #[must_use]
    pub fn ask(&self) -> Option<Ask> {
        if let Some(lowest) = self.branch.last() {
            return Some(Ask::Hash(lowest.block.parent_hash));
        }
        if self.doubt {
            return Some(Ask::Latest);
        }
        let next = self.next_number();
        (self.target >= next).then_some(Ask::Numbers(next..=self.target))
    }

    /// Whether the node told of a branch that is not believed yet: poll sooner.
    #[must_use]
    pub fn is_uneasy(&self) -> bool {
        self.sightings > 0
    }

    /// Takes a head from a subscription: a hint.
    pub fn heard(&mut self, header: Header) -> Change {
        let block = header.block;
        if self.is_ancient(&block) || self.contains(&block) {
            return Change::default();
        }
        if self.is_next(&block) {
            return self.extend(header);
        }
        self.heard_of(block.number);
        Change::default()
    }

    /// Takes word of a head of which only the height is known, or that does not fit.
    pub fn heard_of(&mut self, number: u64) {
        if number >= self.next_number() {
            self.target = self.target.max(number);
            // Its parent is not our tip: the blocks between will tell, or the node must.
            self.doubt |= number == self.next_number();
        } else {
            self.doubt = true;
        }
    }

    /// Whether this block, heard or told of, would become the tip.
    #[must_use]
    pub fn is_next(&self, block: &BlockRef) -> bool {
        self.branch.is_empty() && self.extends(block)
    }

    /// Takes word of a block that would become the tip, and for which there is no room now: it is asked for
    /// by number, with those above it, once there is.
    pub fn postpone(&mut self, block: &BlockRef) {
        self.doubt = false;
        self.target = self.target.max(block.number);
    }

    /// Asks the node for `latest` with the next question, for heads may have been missed.
    pub fn doubt(&mut self) {
        self.doubt = true;
    }

    /// Takes the node's `latest` block.
    ///
    /// # Errors
    /// If the node insists on a branch that contradicts the finalized block.
    pub fn told(&mut self, header: Header) -> Result<Change, Box<FinalityViolation>> {
        self.doubt = false;
        let block = header.block;
        // Whatever was heard of above the node's own head was not (or is no longer) canonical.
        self.target = block.number;
        if self.contains(&block) || self.is_ancient(&block) || block.number < self.start {
            // Our block where the branch has another: the node is of two minds.
            if self.contains(&block) && block.number >= self.sighted {
                self.sightings = 0;
            }
            return Ok(Change::default());
        }
        if self.extends(&block) {
            return Ok(self.extend(header));
        }
        if block.number > self.next_number() || self.links.is_empty() {
            return Ok(Change::default());
        }
        self.branch = vec![header];
        self.join()
    }

    /// Takes an answer to [`Ask::Hash`] or [`Ask::Numbers`]; one that no longer fits is passed over.
    ///
    /// # Errors
    /// If the node insists on a branch that contradicts the finalized block.
    pub fn answered(&mut self, header: Header) -> Result<Change, Box<FinalityViolation>> {
        let block = header.block;
        if let Some(lowest) = self.branch.last() {
            if lowest.block.parent_hash != block.hash {
                return Ok(Change::default());
            }
            if lowest.block.number.checked_sub(1) == Some(block.number) {
                self.branch.push(header);
                return self.join();
            }
            // Whoever told of the branch made it up: no block can stand on a parent of this height.
            self.unanswered();
            return Ok(Change::default());
        }
        if self.extends(&block) {
            return Ok(self.extend(header));
        }
        if !self.links.is_empty() && block.number == self.next_number() {
            // The node's block on top of our tip does not stand on it: the tip is orphaned.
            self.branch = vec![header];
            return self.join();
        }
        Ok(Change::default())
    }

    /// The node does not have what was asked for: a branch that vanished, or a node that lags
    /// behind what was heard. The next head or poll starts anew.
    pub fn unanswered(&mut self) {
        self.branch.clear();
        self.doubt = false;
        self.target = self.tip().map_or(0, |tip| tip.number);
    }

    /// Makes the block at `number` the finalized one and forgets what lies below. Never moves
    /// back; a number that is not held changes nothing.
    pub fn finalize(&mut self, number: u64) {
        if self.at(number).is_none() {
            return;
        }
        while self.links.front().is_some_and(|first| first.number < number) {
            self.links.pop_front();
        }
        self.finalized = true;
    }

    /// Below what is held there is nothing to decide: a node that lags by thousands, or starts anew.
    fn is_ancient(&self, block: &BlockRef) -> bool {
        self.links.front().is_some_and(|first| block.number < first.number)
    }

    fn contains(&self, block: &BlockRef) -> bool {
        self.at(block.number).is_some_and(|ours| ours.hash == block.hash)
    }

    fn extends(&self, block: &BlockRef) -> bool {
        match self.tip() {
            Some(tip) => {
                block.parent_hash == tip.hash && block.number.checked_sub(1) == Some(tip.number)
            }
            // The parent of the first block is free.
            None => block.number == self.start,
        }
    }

    fn extend(&mut self, header: Header) -> Change {
        self.links.push_back(header.block);
        self.target = self.target.max(header.block.number);
        self.sightings = 0;
        Change::add(header)
    }

    /// Joins the branch to the chain if its lowest block stands on a link of ours.
    fn join(&mut self) -> Result<Change, Box<FinalityViolation>> {
        let (Some(first), Some(tip), Some(top), Some(lowest)) =
            (self.links.front(), self.links.back(), self.branch.first(), self.branch.last())
        else {
            return Ok(Change::default());
        };
        let lowest = lowest.block;
        let on_a_link = lowest.number > first.number
            && self.at(lowest.number - 1).is_some_and(|ours| ours.hash == lowest.parent_hash);
        let replaces_all = lowest.number == self.start && !self.finalized;
        if !on_a_link && !replaces_all && lowest.number > first.number {
            return Ok(Change::default()); // further back
        }
        let violation = FinalityViolation { finalized: *first, theirs: lowest };
        let joins = on_a_link || replaces_all;
        if top.block.number < tip.number || !joins {
            self.sightings += 1;
            self.sighted = lowest.number;
            if self.sightings < SIGHTINGS {
                self.unanswered(); // the next poll asks anew
                return Ok(Change::default());
            }
        }
        if !joins {
            self.branch.clear();
            return Err(Box::new(violation));
        }
        let mut change = Change::default();
        while self.links.back().is_some_and(|link| link.number >= lowest.number) {
            change.undo.extend(self.links.pop_back());
        }
        change.new = self.branch.drain(..).rev().collect();
        self.links.extend(change.new.iter().map(|header| header.block));
        self.target = self.target.max(self.next_number() - 1);
        self.sightings = 0;
        Ok(change)
    }
}
