//! A chain that a test moves by hand.

use std::collections::{HashMap, VecDeque};
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy_primitives::{B256, Log};

use crate::block::{Block, Draft};
use crate::body::{Body, Family, Pool};
use crate::chain::{Advance, Chain, Source, Tips, lock};
use crate::limits::{FINALITY_DEPTH, ORPHANS};
use crate::seed::{Bits, mix};

/// The initial state of a chain that is moved by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManualSpec {
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// Same seed and same calls: the same chain.
    pub seed: u64,
    /// Logs in a block of [`ManualChain::mine`].
    pub events_per_block: usize,
    /// At every multiple of this height, [`ManualChain::mine`] makes a block without transactions;
    /// 0: never.
    pub empty_every: u64,
    /// Time of block 0, unix seconds.
    pub genesis_time: u64,
    /// Time between blocks; nothing waits for it. A block's timestamp is up to 7 s later, and less than a block time, so
    /// that two blocks at one height differ.
    pub block_time: Duration,
}

impl ManualSpec {
    /// A chain with 5 events per block and blocks 12 s apart, starting at a fixed time.
    #[must_use]
    pub fn new(chain_id: u64) -> Self {
        Self {
            chain_id,
            seed: 1,
            events_per_block: 5,
            empty_every: 0,
            genesis_time: 1_700_000_000,
            block_time: Duration::from_secs(12),
        }
    }
}

/// What the new branch of a reorg contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// Other transactions.
    Fresh,
    /// The transactions of the old branch, block by block, mined again in blocks with other hashes.
    SameTransactions,
}

/// What the node reports about finality.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finality {
    /// This many blocks below the head.
    Depth(u64),
    /// At this height, or at the head if that is lower.
    At(u64),
    /// The node knows no `safe` and no `finalized` block.
    Unknown,
}

struct State {
    spec: ManualSpec,
    pool: Pool,
    canonical: Vec<Arc<Block>>,
    known: HashMap<B256, Arc<Block>>,
    orphaned_order: VecDeque<B256>,
    /// The branch that the last reorg replaced; its first block shows where it begins.
    replaced: Vec<Arc<Block>>,
    finality: Finality,
    announcing: bool,
    mined: u64,
}

impl State {
    fn head(&self) -> u64 {
        self.canonical.len() as u64 - 1
    }

    fn push(&mut self, body: Arc<Body>, salt: u64) -> Arc<Block> {
        let number = self.canonical.len() as u64;
        let parent_hash = self.canonical.last().map_or(B256::ZERO, |parent| parent.hash());
        let apart = u64::try_from(self.spec.block_time.as_micros()).unwrap_or(u64::MAX);
        // Of two blocks at one height, the later one mined has another time.
        let seconds = number.saturating_mul(apart) / 1_000_000;
        let later = (salt % 8).min((apart / 1_000_000).saturating_sub(1));
        let timestamp = self.spec.genesis_time + seconds + later;
        let nonce = self.mined;
        self.mined += 1;
        let draft = Draft { number, parent_hash, timestamp, body, salt, nonce };
        let block = Arc::new(Block::simulated(draft));
        self.known.insert(block.hash(), Arc::clone(&block));
        self.canonical.push(Arc::clone(&block));
        block
    }

    fn salt(&self) -> u64 {
        mix(&[self.spec.seed, self.spec.chain_id, self.mined])
    }

    fn mine(&mut self) -> Arc<Block> {
        let salt = self.salt();
        let body = self.pool.pick(self.canonical.len() as u64, salt);
        self.push(body, salt)
    }

    /// Removes the last `depth` blocks, never the genesis.
    fn cut(&mut self, depth: u64) -> Vec<Arc<Block>> {
        let keep = self.head().saturating_sub(depth) + 1;
        let removed = self.canonical.split_off(usize::try_from(keep).unwrap_or(usize::MAX));
        for block in &removed {
            self.orphaned_order.push_back(block.hash());
        }
        while self.orphaned_order.len() > ORPHANS {
            let Some(hash) = self.orphaned_order.pop_front() else { break };
            // It may be canonical again by now.
            let Some(number) = self.known.get(&hash).map(|block| block.number()) else { continue };
            let index = usize::try_from(number).unwrap_or(usize::MAX);
            if self.canonical.get(index).is_none_or(|block| block.hash() != hash) {
                self.known.remove(&hash);
            }
        }
        removed
    }
}

/// A chain that a test moves by hand. It starts with a genesis block and announces every new block,
/// in order, unless this is switched off.
///
/// This is a handle: clones move the same chain. It dereferences to [`Chain`].
#[derive(Clone)]
pub struct ManualChain {
    chain: Chain,
    state: Arc<Mutex<State>>,
}

impl ManualChain {
    pub(crate) fn new(spec: ManualSpec) -> Self {
        let seed = mix(&[spec.seed, spec.chain_id]);
        let mut state = State {
            pool: Pool::new(seed, spec.chain_id, spec.events_per_block, spec.empty_every),
            canonical: Vec::new(),
            known: HashMap::new(),
            orphaned_order: VecDeque::new(),
            replaced: Vec::new(),
            finality: Finality::Depth(FINALITY_DEPTH),
            announcing: true,
            mined: 0,
            spec,
        };
        let chain_id = state.spec.chain_id;
        state.mine();
        let state = Arc::new(Mutex::new(state));
        let chain = Chain::new(chain_id, Manual(Arc::clone(&state)));
        Self { chain, state }
    }

    /// Mines `count` blocks with the number of events of the spec.
    pub fn mine(&self, count: u64) -> Vec<Arc<Block>> {
        self.extend(|state| (0..count).map(|_| state.mine()).collect())
    }

    /// Mines a block of `events` events.
    pub fn mine_events(&self, events: usize) -> Arc<Block> {
        self.mine_body(|bits, family| Body::generated(bits, events, family))
    }

    /// Mines a block whose transactions have these logs.
    pub fn mine_with(&self, transactions: Vec<Vec<Log>>) -> Arc<Block> {
        self.mine_body(|bits, family| Body::with_logs(bits, transactions, family))
    }

    fn mine_body(&self, body: impl FnOnce(Bits, Family) -> Body) -> Arc<Block> {
        let block = {
            let mut state = lock(&self.state);
            let salt = state.salt();
            let body = body(Bits::of(&[salt]), Family::of(state.spec.chain_id));
            state.push(Arc::new(body), salt)
        };
        self.announce_all(std::slice::from_ref(&block));
        block
    }

    /// Replaces the last `depth` blocks (at most all but the genesis) by `new_len` others and
    /// returns the new ones.
    pub fn reorg(&self, depth: u64, new_len: u64, contents: Contents) -> Vec<Arc<Block>> {
        self.extend(|state| {
            let old = state.cut(depth);
            let mut again = match contents {
                Contents::Fresh => [].iter(),
                Contents::SameTransactions => old.iter(),
            };
            let new = (0..new_len)
                .map(|_| match again.next().and_then(|block| block.transactions()) {
                    Some((body, salt)) => state.push(body, salt),
                    None => state.mine(),
                })
                .collect();
            state.replaced = old;
            new
        })
    }

    /// Returns to the branch that the last reorg replaced (A, B, A); a second call switches back.
    /// Returns the blocks that are canonical again; none if there was no reorg.
    pub fn switch_back(&self) -> Vec<Arc<Block>> {
        self.extend(|state| {
            let branch = std::mem::take(&mut state.replaced);
            let Some(first) = branch.first().map(|block| block.number()) else { return branch };
            state.replaced = state.cut((state.head() + 1).saturating_sub(first));
            for block in &branch {
                state.known.insert(block.hash(), Arc::clone(block));
            }
            state.canonical.extend(branch.iter().cloned());
            branch
        })
    }

    fn extend(&self, step: impl FnOnce(&mut State) -> Vec<Arc<Block>>) -> Vec<Arc<Block>> {
        let blocks = step(&mut lock(&self.state));
        self.announce_all(&blocks);
        blocks
    }

    fn announce_all(&self, blocks: &[Arc<Block>]) {
        if lock(&self.state).announcing {
            for block in blocks {
                self.chain.send_head(block);
            }
        }
    }

    /// Whether new blocks are announced automatically. If not, use [`Chain::announce`] to do it
    /// late, twice, out of order or never.
    pub fn set_announcing(&self, announcing: bool) {
        lock(&self.state).announcing = announcing;
    }

    /// Sets what the node reports for `safe` and `finalized` from now on.
    pub fn set_finality(&self, finality: Finality) {
        lock(&self.state).finality = finality;
    }

    /// Short for [`Finality::At`].
    pub fn set_finalized(&self, number: u64) {
        self.set_finality(Finality::At(number));
    }
}

impl Deref for ManualChain {
    type Target = Chain;

    fn deref(&self) -> &Chain {
        &self.chain
    }
}

impl From<ManualChain> for Chain {
    fn from(manual: ManualChain) -> Self {
        manual.chain
    }
}

struct Manual(Arc<Mutex<State>>);

impl Source for Manual {
    fn tips(&self) -> Tips {
        let state = lock(&self.0);
        let head = state.head();
        let (safe, finalized) = match state.finality {
            Finality::Depth(depth) => {
                (Some(head.saturating_sub(depth / 2)), Some(head.saturating_sub(depth)))
            }
            Finality::At(number) => (Some(head.min(number)), Some(head.min(number))),
            Finality::Unknown => (None, None),
        };
        Tips { head, safe, finalized }
    }

    fn at(&self, number: u64) -> Option<Arc<Block>> {
        lock(&self.0).canonical.get(usize::try_from(number).ok()?).cloned()
    }

    fn by_hash(&self, hash: &B256) -> Option<Arc<Block>> {
        lock(&self.0).known.get(hash).cloned()
    }

    fn replaced(&self) -> Vec<Arc<Block>> {
        lock(&self.0).replaced.clone()
    }

    fn advance(&self, _now: u64) -> Advance {
        Advance { announce: Vec::new(), next: None }
    }
}
