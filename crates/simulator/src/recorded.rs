//! Recorded blocks, served verbatim.
//!
//! A folder holds `*.json.gz` files, each with one block: `{"chain_id", "block", "receipts"}` with
//! the results of `eth_getBlockByNumber` and `eth_getBlockReceipts`, or `{"chain_id", "block",
//! "logs"}` with the result of `eth_getLogs` by block hash. Files whose `block` is null are
//! skipped. For a block without recorded receipts, the node says that it does not support
//! `eth_getBlockReceipts`; without logs as well, it answers requests for the logs as if the block
//! were unknown.

use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::{fs, io};

use alloy_primitives::{Address, B256};
use ethhook_domain::block::Quantity;
use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::block::{Block, LogFilter};
use crate::chain::{Advance, Chain, Source, Tips, lock};
use crate::limits::{FINALITY_DEPTH, SAFE_DEPTH};

/// Why a folder of recorded blocks cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RecordedError {
    /// The folder or a file in it cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Unreadable {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A file is not a recorded block.
    #[error("{} is not a recorded block: {error}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: serde_json::Error,
    },
    /// There is no block in the folder.
    #[error("no recorded block in {}", path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
    },
    /// The folder holds blocks of two chains.
    #[error("{} belongs to chain {found}, others in its folder to chain {expected}", path.display())]
    TwoChains {
        /// The file.
        path: PathBuf,
        /// The file's chain id.
        found: u64,
        /// The chain id of the files read before.
        expected: u64,
    },
}

/// The content of one recorded block.
#[derive(Debug)]
pub(crate) struct Recording {
    block: Box<RawValue>,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Receipts(Box<RawValue>),
    Logs(Box<RawValue>),
    /// Only the block itself was recorded.
    Unknown,
}

#[derive(Deserialize)]
struct File {
    chain_id: u64,
    block: Option<Box<RawValue>>,
    receipts: Option<Box<RawValue>>,
    logs: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Link {
    number: Quantity,
    hash: B256,
    parent_hash: B256,
    timestamp: Quantity,
}

#[derive(Deserialize)]
struct ReceiptLogs<'a> {
    #[serde(borrow, default)]
    logs: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
struct LogKey {
    address: Address,
    topics: Vec<B256>,
}

/// Fields that a block has and its header does not.
const NOT_IN_HEAD: [&str; 5] = ["transactions", "uncles", "withdrawals", "size", "totalDifficulty"];

impl Recording {
    fn fields(&self) -> Map<String, Value> {
        serde_json::from_str(self.block.get()).unwrap_or_default()
    }

    pub(crate) fn head_json(&self) -> String {
        let mut fields = self.fields();
        fields.retain(|name, _| !NOT_IN_HEAD.contains(&name.as_str()));
        Value::Object(fields).to_string()
    }

    pub(crate) fn block_json(&self, full: bool) -> String {
        if full {
            return self.block.get().to_owned();
        }
        let mut fields = self.fields();
        if let Some(Value::Array(transactions)) = fields.get_mut("transactions") {
            for transaction in transactions {
                if let Some(hash) = transaction.get("hash") {
                    *transaction = hash.clone();
                }
            }
        }
        Value::Object(fields).to_string()
    }

    pub(crate) fn receipts_json(&self) -> Option<String> {
        match &self.content {
            Content::Receipts(receipts) => Some(receipts.get().to_owned()),
            Content::Logs(_) | Content::Unknown => None,
        }
    }

    pub(crate) fn write_logs(&self, filter: &LogFilter, out: &mut String) -> Option<usize> {
        let logs: Vec<&RawValue> = match &self.content {
            Content::Receipts(receipts) => {
                let receipts: Vec<ReceiptLogs<'_>> =
                    serde_json::from_str(receipts.get()).unwrap_or_default();
                receipts.into_iter().flat_map(|r| r.logs.unwrap_or_default()).collect()
            }
            Content::Logs(logs) => serde_json::from_str(logs.get()).unwrap_or_default(),
            Content::Unknown => return None,
        };
        let passes = |log: &&RawValue| {
            serde_json::from_str(log.get())
                .is_ok_and(|key: LogKey| filter.passes(&key.address, &key.topics))
        };
        let mut written = 0;
        for log in logs.into_iter().filter(passes) {
            if written > 0 {
                out.push(',');
            }
            out.push_str(log.get());
            written += 1;
        }
        Some(written)
    }
}

fn read(path: &Path) -> Result<Option<(u64, Block)>, RecordedError> {
    let unreadable = |error| RecordedError::Unreadable { path: path.to_owned(), error };
    let malformed = |error| RecordedError::Malformed { path: path.to_owned(), error };
    let packed = fs::read(path).map_err(unreadable)?;
    let text = io::read_to_string(GzDecoder::new(packed.as_slice())).map_err(unreadable)?;
    let file: File = serde_json::from_str(&text).map_err(malformed)?;
    let Some(block) = file.block else { return Ok(None) };
    let content = match (file.receipts, file.logs) {
        (Some(receipts), _) => Content::Receipts(receipts),
        (None, Some(logs)) => Content::Logs(logs),
        (None, None) => Content::Unknown,
    };
    let link: Link = serde_json::from_str(block.get()).map_err(malformed)?;
    let block = Block::recorded(
        link.number.0,
        link.hash,
        link.parent_hash,
        link.timestamp.0,
        Recording { block, content },
    );
    Ok(Some((file.chain_id, block)))
}

struct State {
    blocks: HashMap<B256, Arc<Block>>,
    /// One block per height, for heights that the head's ancestry does not cover.
    any: BTreeMap<u64, Arc<Block>>,
    canonical: BTreeMap<u64, Arc<Block>>,
}

impl State {
    fn head(&self) -> u64 {
        self.canonical.last_key_value().map_or(0, |(number, _)| *number)
    }

    fn set_head(&mut self, head: &Arc<Block>) {
        self.canonical = self.any.range(..=head.number()).map(|(n, b)| (*n, b.clone())).collect();
        let mut next = Some(head);
        while let Some(block) = next {
            self.canonical.insert(block.number(), Arc::clone(block));
            // Heights must decrease as well, or a cycle in the files would loop forever.
            let parent = self.blocks.get(&block.parent_hash());
            next = parent.filter(|parent| parent.number() < block.number());
        }
    }
}

/// A chain of recorded blocks. Its head is the highest of them until [`RecordedChain::set_head`]
/// changes it. For heights without a recorded block the answer is null.
///
/// This is a handle: clones are of the same chain. It dereferences to [`Chain`].
#[derive(Clone)]
pub struct RecordedChain {
    chain: Chain,
    state: Arc<Mutex<State>>,
}

impl RecordedChain {
    pub(crate) fn load(folder: &Path) -> Result<Self, RecordedError> {
        let unreadable = |error| RecordedError::Unreadable { path: folder.to_owned(), error };
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if path.to_string_lossy().ends_with(".json.gz") {
                paths.push(path);
            }
        }
        paths.sort();
        let empty = || RecordedError::Empty { path: folder.to_owned() };
        let mut chain_id = None;
        let mut blocks = HashMap::new();
        let mut any = BTreeMap::new();
        for path in paths {
            let Some((found, block)) = read(&path)? else { continue };
            let expected = *chain_id.get_or_insert(found);
            if found != expected {
                return Err(RecordedError::TwoChains { path, found, expected });
            }
            let block = Arc::new(block);
            any.entry(block.number()).or_insert_with(|| Arc::clone(&block));
            blocks.insert(block.hash(), block);
        }
        let chain_id = chain_id.ok_or_else(empty)?;
        let head = any.last_key_value().map(|(_, block)| Arc::clone(block)).ok_or_else(empty)?;
        let mut state = State { blocks, any, canonical: BTreeMap::new() };
        state.set_head(&head);
        let state = Arc::new(Mutex::new(state));
        let chain = Chain::new(chain_id, Recorded(Arc::clone(&state)));
        Ok(Self { chain, state })
    }

    /// Makes this block the head, and its recorded ancestors the canonical chain. Announces
    /// nothing; [`Chain::announce`] does. False if there is no such block.
    pub fn set_head(&self, hash: B256) -> bool {
        let mut state = lock(&self.state);
        let Some(block) = state.blocks.get(&hash).cloned() else { return false };
        state.set_head(&block);
        true
    }
}

impl Deref for RecordedChain {
    type Target = Chain;

    fn deref(&self) -> &Chain {
        &self.chain
    }
}

impl From<RecordedChain> for Chain {
    fn from(recorded: RecordedChain) -> Self {
        recorded.chain
    }
}

struct Recorded(Arc<Mutex<State>>);

impl Source for Recorded {
    fn tips(&self) -> Tips {
        let head = lock(&self.0).head();
        Tips {
            head,
            safe: Some(head.saturating_sub(SAFE_DEPTH)),
            finalized: Some(head.saturating_sub(FINALITY_DEPTH)),
        }
    }

    fn at(&self, number: u64) -> Option<Arc<Block>> {
        lock(&self.0).canonical.get(&number).cloned()
    }

    fn by_hash(&self, hash: &B256) -> Option<Arc<Block>> {
        lock(&self.0).blocks.get(hash).cloned()
    }

    fn replaced(&self) -> Vec<Arc<Block>> {
        Vec::new()
    }

    fn advance(&self, _now: u64) -> Advance {
        Advance { announce: Vec::new(), next: None }
    }
}
