//! A chain whose height follows the clock, with reorgs at predetermined times.
//!
//! Everything follows from the [`ChainSpec`] and the time: block n appears at `genesis_time` + n ×
//! `block_time`. If `reorg_every` divides n, then half a block time later the last d = 1 +
//! hash(seed, n) % `reorg_depth` blocks are replaced by others at the same heights, and the chain
//! continues from that branch. So a block's hash follows from its height, its parent and its
//! *version*: how many reorgs have replaced that height so far. A node that starts later computes
//! the settled chain up to then, and continues like one that never stopped.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy_primitives::B256;
use hashbrown::HashTable;

use crate::block::{Block, Draft};
use crate::body::Pool;
use crate::chain::{Advance, Source, Tips, lock};
use crate::limits::{FINALITY_DEPTH, HISTORY_BLOCKS, ORPHANS, SAFE_DEPTH};
use crate::seed::mix;

/// Blocks before now that are replayed at the start, so that recently orphaned blocks exist, too.
const REPLAYED: u64 = 256;

/// A chain that follows the clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainSpec {
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// Time between two blocks, at least one microsecond.
    pub block_time: Duration,
    /// Logs in every block except the genesis and the empty ones.
    pub events_per_block: usize,
    /// Every block at a multiple of this height has no transactions; 0: none.
    pub empty_every: u64,
    /// There is a reorg after this many blocks, again and again; 0: never.
    pub reorg_every: u64,
    /// The largest number of blocks that a reorg replaces, at most 64.
    pub reorg_depth: u64,
    /// Same seed and genesis time: the same chain, byte for byte.
    pub seed: u64,
    /// Time of block 0, unix seconds.
    pub genesis_time: u64,
}

/// A [`ChainSpec`] that is impossible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The block time is less than a microsecond.
    #[error("the block time must be at least one microsecond")]
    BlockTime,
    /// The genesis is so long ago that the history would be too large.
    #[error(
        "{blocks} blocks since the genesis; at most {limit} are supported: set a later genesis"
    )]
    HistoryTooLong {
        /// Blocks from the genesis to now.
        blocks: u64,
        /// The supported maximum.
        limit: u64,
    },
}

/// The part that follows from the spec alone.
struct Schedule {
    spec: ChainSpec,
    /// The seed for everything, mixed with the chain id.
    seed: u64,
    block_micros: u64,
    pool: Pool,
}

impl Schedule {
    fn new(spec: ChainSpec) -> Result<Self, SpecError> {
        let block_micros = u64::try_from(spec.block_time.as_micros()).unwrap_or(u64::MAX);
        if block_micros == 0 {
            return Err(SpecError::BlockTime);
        }
        let seed = mix(&[spec.seed, spec.chain_id, spec.genesis_time]);
        let pool = Pool::new(seed, spec.chain_id, spec.events_per_block, spec.empty_every);
        Ok(Self { spec, seed, block_micros, pool })
    }

    /// When block `number` appears, unix microseconds.
    fn time_of(&self, number: u64) -> u64 {
        let since_genesis = number.saturating_mul(self.block_micros);
        self.spec.genesis_time.saturating_mul(1_000_000).saturating_add(since_genesis)
    }

    fn height_at(&self, now: u64) -> u64 {
        now.saturating_sub(self.time_of(0)) / self.block_micros
    }

    fn reorgs_at(&self, number: u64) -> bool {
        self.spec.reorg_every > 0 && number > 0 && number.is_multiple_of(self.spec.reorg_every)
    }

    /// How many blocks the reorg at `number` replaces: never the genesis, never a finalized block.
    fn depth(&self, number: u64) -> u64 {
        let most = self.spec.reorg_depth.clamp(1, FINALITY_DEPTH);
        (1 + mix(&[self.seed, number, 5]) % most).min(number)
    }

    /// How many times height `number` has been replaced after all reorgs up to `last`.
    fn version(&self, number: u64, last: u64) -> u64 {
        let every = self.spec.reorg_every;
        if every == 0 || number == 0 {
            return 0;
        }
        let deepest = self.spec.reorg_depth.clamp(1, FINALITY_DEPTH);
        let mut version = 0;
        let mut at = number.div_ceil(every) * every;
        while at <= last && at - number < deepest {
            version += u64::from(self.depth(at) > at - number);
            at += every;
        }
        version
    }

    fn draft(&self, number: u64, version: u64, parent_hash: B256) -> Draft {
        let salt = mix(&[self.seed, number, version]);
        let body = self.pool.pick(number, salt);
        let timestamp = self.time_of(number) / 1_000_000;
        Draft { number, parent_hash, timestamp, body, salt, nonce: version }
    }
}

/// The part that changes with time.
struct State {
    /// The canonical hash at each height: all that is kept of old blocks.
    hashes: Vec<B256>,
    /// From a canonical hash to its height, about 10 bytes per block.
    heights: HashTable<u32>,
    /// Whether the reorg due at the head has happened.
    reorged: bool,
    orphans: HashMap<B256, Arc<Block>>,
    orphaned_order: VecDeque<B256>,
    /// The branch that the last reorg replaced.
    replaced: Vec<Arc<Block>>,
}

impl State {
    fn height(&self) -> u64 {
        self.hashes.len() as u64 - 1
    }

    fn push(&mut self, hash: B256) {
        let number = u32::try_from(self.hashes.len()).unwrap_or(u32::MAX);
        self.hashes.push(hash);
        let hashes = &self.hashes;
        let rehash = |number: &u32| bucket(&hashes[*number as usize]);
        self.heights.insert_unique(bucket(&hash), number, rehash);
    }

    /// Removes the highest block.
    fn pop(&mut self) {
        let Some(hash) = self.hashes.last().copied() else { return };
        let hashes = &self.hashes;
        if let Ok(entry) = self.heights.find_entry(bucket(&hash), |n| hashes[*n as usize] == hash) {
            entry.remove();
        }
        self.hashes.pop();
    }

    fn height_of(&self, hash: &B256) -> Option<u64> {
        let found = self.heights.find(bucket(hash), |n| self.hashes[*n as usize] == *hash);
        found.map(|number| u64::from(*number))
    }

    fn orphan(&mut self, block: Arc<Block>) {
        if self.orphans.len() >= ORPHANS
            && let Some(oldest) = self.orphaned_order.pop_front()
        {
            self.orphans.remove(&oldest);
        }
        self.orphaned_order.push_back(block.hash());
        self.orphans.insert(block.hash(), block);
    }
}

fn bucket(hash: &B256) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash[..8]);
    u64::from_be_bytes(bytes)
}

/// A chain that follows the clock.
pub(crate) struct Scheduled {
    schedule: Schedule,
    state: Mutex<State>,
}

impl Scheduled {
    /// The chain at `now`, unix microseconds. Takes about 2 µs per block of history.
    pub(crate) fn new(spec: ChainSpec, now: u64) -> Result<Self, SpecError> {
        let schedule = Schedule::new(spec)?;
        let blocks = schedule.height_at(now);
        if blocks > HISTORY_BLOCKS {
            return Err(SpecError::HistoryTooLong { blocks, limit: HISTORY_BLOCKS });
        }
        let settled = blocks.saturating_sub(REPLAYED);
        let capacity = usize::try_from(blocks).unwrap_or_default() + 1;
        let mut state = State {
            hashes: Vec::with_capacity(capacity),
            heights: HashTable::with_capacity(capacity),
            reorged: true,
            orphans: HashMap::new(),
            orphaned_order: VecDeque::new(),
            replaced: Vec::new(),
        };
        let mut parent = B256::ZERO;
        for number in 0..=settled {
            let version = schedule.version(number, settled);
            parent = Block::simulated(schedule.draft(number, version, parent)).hash();
            state.push(parent);
        }
        let chain = Self { schedule, state: Mutex::new(state) };
        chain.advance(now);
        Ok(chain)
    }

    /// The canonical block at `number`, rebuilt.
    fn build(&self, state: &State, number: u64) -> Option<Block> {
        let index = usize::try_from(number).ok()?;
        let hash = *state.hashes.get(index)?;
        let parent = index.checked_sub(1).map_or(B256::ZERO, |below| state.hashes[below]);
        let height = state.height();
        let last = if state.reorged { height } else { height - 1 };
        let version = self.schedule.version(number, last);
        Some(Block::known(self.schedule.draft(number, version, parent), hash))
    }

    fn add(&self, state: &mut State, version: u64) -> Arc<Block> {
        let number = state.hashes.len() as u64;
        let parent = state.hashes.last().copied().unwrap_or_default();
        let block = Block::simulated(self.schedule.draft(number, version, parent));
        state.push(block.hash());
        Arc::new(block)
    }

    fn reorg(&self, state: &mut State, announce: &mut Vec<Arc<Block>>) {
        let head = state.height();
        let first = head + 1 - self.schedule.depth(head);
        let old: Vec<_> =
            (first..=head).filter_map(|n| self.build(state, n)).map(Arc::new).collect();
        for block in &old {
            state.pop();
            state.orphan(Arc::clone(block));
        }
        state.replaced = old;
        for number in first..=head {
            let version = self.schedule.version(number, head);
            announce.push(self.add(state, version));
        }
        state.reorged = true;
    }
}

impl Source for Scheduled {
    fn tips(&self) -> Tips {
        let head = lock(&self.state).height();
        Tips {
            head,
            safe: Some(head.saturating_sub(SAFE_DEPTH)),
            finalized: Some(head.saturating_sub(FINALITY_DEPTH)),
        }
    }

    fn at(&self, number: u64) -> Option<Arc<Block>> {
        let state = lock(&self.state);
        self.build(&state, number).map(Arc::new)
    }

    fn by_hash(&self, hash: &B256) -> Option<Arc<Block>> {
        let state = lock(&self.state);
        match state.height_of(hash) {
            Some(number) => self.build(&state, number).map(Arc::new),
            None => state.orphans.get(hash).cloned(),
        }
    }

    fn replaced(&self) -> Vec<Arc<Block>> {
        lock(&self.state).replaced.clone()
    }

    fn advance(&self, now: u64) -> Advance {
        let mut announce = Vec::new();
        let mut state = lock(&self.state);
        loop {
            let head = state.height();
            let due = if state.reorged {
                self.schedule.time_of(head + 1)
            } else {
                self.schedule.time_of(head) + self.schedule.block_micros / 2
            };
            if due > now {
                return Advance { announce, next: Some(due) };
            }
            if state.reorged {
                announce.push(self.add(&mut state, 0));
                state.reorged = !self.schedule.reorgs_at(head + 1);
            } else {
                self.reorg(&mut state, &mut announce);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ethhook_domain::block::Seal;

    use super::*;

    const GENESIS: u64 = 1_700_000_000;

    fn spec(reorg_every: u64, reorg_depth: u64) -> ChainSpec {
        ChainSpec {
            chain_id: 1,
            block_time: Duration::from_millis(250),
            events_per_block: 3,
            empty_every: 0,
            reorg_every,
            reorg_depth,
            seed: 7,
            genesis_time: GENESIS,
        }
    }

    /// A time in quarters of a block time after the genesis, so that half block times can be
    /// expressed.
    fn at(quarters: u64) -> u64 {
        GENESIS * 1_000_000 + quarters * 62_500
    }

    fn hashes(chain: &Scheduled) -> Vec<B256> {
        lock(&chain.state).hashes.clone()
    }

    fn started(spec: &ChainSpec, quarters: u64) -> Scheduled {
        Scheduled::new(spec.clone(), at(quarters)).unwrap()
    }

    /// Blocks are rebuilt from their hash only: the result must match it.
    fn assert_sealed(block: &Block, hash: B256) {
        let header: ethhook_domain::Header = serde_json::from_str(&block.head_json()).unwrap();
        assert_eq!((header.block.hash, header.seal), (hash, Seal::Matches));
    }

    #[test]
    fn a_chain_started_late_equals_one_that_ran_all_along() {
        for (every, depth) in [(0, 0), (5, 1), (5, 3), (3, 10), (1, 4), (7, 64), (100, 64)] {
            let spec = spec(every, depth);
            let running = started(&spec, 0);
            for quarters in (0..4 * 700).step_by(3) {
                running.advance(at(quarters));
                if quarters % 51 == 0 || quarters > 4 * 690 {
                    let late = started(&spec, quarters);
                    assert_eq!(hashes(&late), hashes(&running), "{every} {depth} {quarters}");
                    assert_eq!(lock(&late.state).reorged, lock(&running.state).reorged);
                }
            }
        }
    }

    #[test]
    fn blocks_link_and_are_found_by_number_and_hash() {
        let chain = started(&spec(5, 4), 4 * 600);
        let mut parent = B256::ZERO;
        for number in 0..=600 {
            let block = chain.at(number).unwrap();
            assert_eq!((block.number(), block.parent_hash()), (number, parent));
            let again = chain.by_hash(&block.hash()).unwrap();
            assert_eq!(again.head_json(), block.head_json());
            parent = block.hash();
        }
        assert!(chain.at(601).is_none());
        assert!(chain.by_hash(&B256::ZERO).is_none());
        assert_eq!(lock(&chain.state).heights.len(), 601);
    }

    #[test]
    fn a_reorg_comes_half_a_block_after_its_block_and_is_announced_from_below() {
        let chain = started(&spec(10, 6), 4 * 9);
        let before = chain.advance(at(40)).announce;
        assert_eq!(before.iter().map(|b| b.number()).collect::<Vec<_>>(), [10]);
        assert!(chain.advance(at(41)).announce.is_empty());
        let old: Vec<B256> = hashes(&chain);
        assert_sealed(&chain.at(10).unwrap(), old[10]);

        let after = chain.advance(at(42)).announce;
        let depth = after.len() as u64;
        assert!((1..=6).contains(&depth));
        let expected: Vec<u64> = (11 - depth..=10).collect();
        assert_eq!(after.iter().map(|b| b.number()).collect::<Vec<_>>(), expected);
        assert_eq!(chain.tips().head, 10);
        for block in &after {
            let orphan = old[usize::try_from(block.number()).unwrap()];
            assert_ne!(block.hash(), orphan);
            assert_sealed(&chain.by_hash(&orphan).unwrap(), orphan);
            assert_eq!(chain.at(block.number()).unwrap().hash(), block.hash());
        }
        assert_eq!(chain.advance(at(44)).announce[0].parent_hash(), after.last().unwrap().hash());
    }

    #[test]
    fn nothing_finalized_is_ever_replaced() {
        let chain = started(&spec(3, 1_000), 0);
        let mut finalized: Vec<B256> = Vec::new();
        for quarters in 0..4 * 400 {
            chain.advance(at(quarters));
            let now = hashes(&chain);
            assert_eq!(finalized[..], now[..finalized.len()]);
            let height = usize::try_from(chain.tips().finalized.unwrap()).unwrap();
            finalized = now[..=height].to_vec();
        }
        assert!(lock(&chain.state).orphans.len() == ORPHANS, "deep reorgs fill the orphans");
    }

    #[test]
    fn another_seed_time_or_chain_is_another_chain() {
        let base = hashes(&started(&spec(0, 0), 8))[1];
        let changes: [fn(&mut ChainSpec); 3] =
            [|s| s.seed += 1, |s| s.chain_id += 1, |s| s.genesis_time -= 1];
        for change in changes {
            let mut other = spec(0, 0);
            change(&mut other);
            assert_ne!(hashes(&started(&other, 8))[1], base);
        }
    }

    #[test]
    fn a_spec_that_cannot_be_followed_is_refused() {
        let mut zero = spec(0, 0);
        zero.block_time = Duration::ZERO;
        assert_eq!(Scheduled::new(zero, at(0)).err(), Some(SpecError::BlockTime));
        let mut old = spec(0, 0);
        old.genesis_time = 0;
        assert!(matches!(Scheduled::new(old, at(0)), Err(SpecError::HistoryTooLong { .. })));
    }
}
