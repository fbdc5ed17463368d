//! The canonical chain as a pure value: headers go in; blocks to undo, blocks to add and the next
//! question for the node come out.
//!
//! Invariants:
//! - The links are contiguous: each link's `parent_hash` is the hash of the link before it.
//! - What was *heard* (a head from a subscription) may only extend the tip or prompt a question.
//!   Only what was *told* (the node's answer to a question) can orphan a block: a head that arrives
//!   late, twice, out of order or from a lagging node never causes a reorg on its own.
//! - A block at or below the finalized block is never orphaned ([`FinalityViolation`], G10).
//!
//! The caller must pass in what it hears, ask the node what [`CanonicalChain::ask`] returns, pass
//! the answer in, and carry out every [`Change`].

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use alloy_primitives::B256;

use crate::{BlockRef, Header};

/// How many times a node must report a branch that is *lower* than the tip, or that forks off below
/// the finalized block, before it is believed: a lagging node behind a load balancer gives such an
/// answer once.
pub const SIGHTINGS: u32 = 3;

/// The chain's next question for the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// The node's `latest` block; answer with [`CanonicalChain::told`].
    Latest,
    /// The block with this hash; answer with [`CanonicalChain::answered`].
    Hash(B256),
    /// The blocks at these heights, in order; pass each to [`CanonicalChain::answered`].
    Numbers(RangeInclusive<u64>),
}

/// How the chain changed; carry out `undo` first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Orphaned blocks, the highest first.
    pub undo: Vec<BlockRef>,
    /// Blocks added, the lowest first.
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

/// The node insists on a branch that forks off below the finalized block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node's block {theirs} contradicts the finalized block {finalized}")]
pub struct FinalityViolation {
    /// The block that we consider final.
    pub finalized: BlockRef,
    /// The lowest block of the node's branch that was seen.
    pub theirs: BlockRef,
}

/// The chain from the finalized block, or its first block, up to the tip.
#[derive(Debug, Clone)]
pub struct CanonicalChain {
    start: u64,
    links: VecDeque<BlockRef>,
    /// Whether the first link is the finalized block.
    finalized: bool,
    /// A branch being walked back to its fork point, the highest block first.
    branch: Vec<Header>,
    /// The highest block number heard of or told of.
    target: u64,
    /// Something heard does not fit the chain: ask for `latest`.
    doubt: bool,
    /// How many times in a row the node reported a branch that is not believed at once.
    sightings: u32,
    /// The height of the lowest block seen of that branch.
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

    /// The next question for the node; none if nothing is missing.
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

    /// Whether the node reported a branch that is not believed yet, so that it should be polled
    /// sooner.
    #[must_use]
    pub fn has_unconfirmed_branch(&self) -> bool {
        self.sightings > 0
    }

    /// Takes a head from a subscription, which is only a hint.
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

    /// Takes the height of a head whose header is not known or does not extend the chain.
    pub fn heard_of(&mut self, number: u64) {
        if number >= self.next_number() {
            self.target = self.target.max(number);
            // It does not extend our tip. If it is higher, fetching the blocks in between settles
            // that; at the next height, the node must be asked for `latest`.
            self.doubt |= number == self.next_number();
        } else {
            self.doubt = true;
        }
    }

    /// Whether this block would become the tip.
    #[must_use]
    pub fn is_next(&self, block: &BlockRef) -> bool {
        self.branch.is_empty() && self.extends(block)
    }

    /// Takes a block that would become the tip but for which there is no room now. Once there is room, it is asked
    /// for by number, together with the blocks above it.
    pub fn postpone(&mut self, block: &BlockRef) {
        self.doubt = false;
        self.target = self.target.max(block.number);
    }

    /// Makes the next question `latest`, because heads may have been missed.
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
        // A head heard of above the node's own head was not, or is no longer, canonical.
        self.target = block.number;
        if self.contains(&block) || self.is_ancient(&block) || block.number < self.start {
            // The node now reports our block at a height where it reported another branch: it
            // contradicts itself, so the branch is no longer counted.
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

    /// Takes an answer to [`Ask::Hash`] or [`Ask::Numbers`]; an answer that no longer fits is ignored.
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
            // The branch was invented: a block's parent cannot have this height.
            self.unanswered();
            return Ok(Change::default());
        }
        if self.extends(&block) {
            return Ok(self.extend(header));
        }
        if !self.links.is_empty() && block.number == self.next_number() {
            // The node's block at the height after our tip has another parent: the tip is orphaned.
            self.branch = vec![header];
            return self.join();
        }
        Ok(Change::default())
    }

    /// The node does not have the requested block: the branch vanished, or the node lags behind the
    /// heads heard. The next head or poll starts over.
    pub fn unanswered(&mut self) {
        self.branch.clear();
        self.doubt = false;
        self.target = self.tip().map_or(0, |tip| tip.number);
    }

    /// Makes the block at `number` the finalized one and drops the links below it. Never moves
    /// back; a number that is not held has no effect.
    pub fn finalize(&mut self, number: u64) {
        if self.at(number).is_none() {
            return;
        }
        while self.links.front().is_some_and(|first| first.number < number) {
            self.links.pop_front();
        }
        self.finalized = true;
    }

    /// Whether the block is below all held links, so that nothing can be decided: the node lags by thousands of
    /// blocks or is syncing from scratch.
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
            // The first block's parent is not checked.
            None => block.number == self.start,
        }
    }

    fn extend(&mut self, header: Header) -> Change {
        self.links.push_back(header.block);
        self.target = self.target.max(header.block.number);
        self.sightings = 0;
        Change::add(header)
    }

    /// Joins the branch to the chain if the parent of its lowest block is one of our links.
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
        let joins = on_a_link || replaces_all;
        if !joins && lowest.number > first.number {
            return Ok(Change::default()); // the fork point is further back
        }
        let violation = FinalityViolation { finalized: *first, theirs: lowest };
        if top.block.number < tip.number || !joins {
            self.sightings += 1;
            self.sighted = lowest.number;
            if self.sightings < SIGHTINGS {
                self.unanswered(); // the next poll starts over
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
