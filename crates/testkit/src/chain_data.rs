//! Real recorded blocks, with the receipts or logs that nodes returned for them.
//!
//! They are not part of the repository. The folder `../shared/data/chain` next to it holds
//! `blocks/<chain>/*.json.gz` and `receipts_only/<chain>/*.json.gz` (`{"chain_id", "block",
//! "receipts"}`, the block null in the latter) and `polygon_reorg/blocks/*.json.gz` (`{"chain_id",
//! "block", "logs"}`). Tests that need it print that they are skipped if it is missing.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use ethhook_domain::block::Body;
use ethhook_domain::{ChainId, Header};
use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::Value;

/// Set to `1` if the data must be present, so that no test is skipped silently.
pub const REQUIRE_DATA: &str = "ETHHOOK_REQUIRE_DATA";

/// The folder of the data; `None`, with a line that says so, if it is missing.
///
/// # Panics
/// If it is missing although `ETHHOOK_REQUIRE_DATA=1`.
#[must_use]
pub fn dir() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/chain");
    if dir.is_dir() {
        return Some(dir);
    }
    let required = std::env::var(REQUIRE_DATA).is_ok_and(|v| v == "1");
    assert!(!required, "{REQUIRE_DATA}=1, but the recorded chain data is not there");
    eprintln!("left out: the recorded chain data is not there");
    None
}

/// One recorded block, as JSON from a node.
#[derive(Debug, Clone, Deserialize)]
pub struct RecordedBlock {
    /// The file's name, for messages.
    #[serde(skip)]
    pub name: String,
    /// EIP-155 chain id.
    pub chain_id: ChainId,
    /// Answer of `eth_getBlockByNumber`; null if no header was recorded.
    pub block: Value,
    /// Answer of `eth_getBlockReceipts`; null if only logs were recorded.
    #[serde(default)]
    pub receipts: Value,
    /// Answer of `eth_getLogs` by block hash; null if it was not requested.
    #[serde(default)]
    pub logs: Value,
}

impl RecordedBlock {
    /// The block's header.
    ///
    /// # Errors
    /// If none was recorded, or it does not parse.
    pub fn header(&self) -> Result<Header> {
        Header::deserialize(&self.block).with_context(|| format!("header of {}", self.name))
    }

    /// The block's receipts, or its logs; `None` if neither was recorded.
    ///
    /// # Errors
    /// If they do not parse.
    pub fn body(&self) -> Result<Option<Body>> {
        let parsed = if !self.receipts.is_null() {
            Deserialize::deserialize(&self.receipts).map(Body::Receipts).map(Some)
        } else if !self.logs.is_null() {
            Deserialize::deserialize(&self.logs).map(Body::Logs).map(Some)
        } else {
            Ok(None)
        };
        parsed.with_context(|| format!("body of {}", self.name))
    }
}

/// The complete blocks of all chains, by chain and height.
///
/// # Errors
/// If the folder cannot be read; each item fails if its file cannot.
pub fn blocks(dir: &Path) -> Result<impl Iterator<Item = Result<RecordedBlock>> + use<>> {
    in_chain_folders(&dir.join("blocks"))
}

/// The receipts that were recorded without their headers.
///
/// # Errors
/// As [`blocks`].
pub fn receipts_only(dir: &Path) -> Result<impl Iterator<Item = Result<RecordedBlock>> + use<>> {
    in_chain_folders(&dir.join("receipts_only"))
}

/// The blocks, canonical and orphaned, of Polygon sessions with reorgs; logs only.
///
/// # Errors
/// As [`blocks`].
pub fn polygon_reorg(dir: &Path) -> Result<impl Iterator<Item = Result<RecordedBlock>> + use<>> {
    load_all(gzipped_files(&dir.join("polygon_reorg/blocks"))?)
}

/// The Polygon sessions, one JSON object each: `events` in chronological order, with results
/// identified by block hash, `canonical_at_end` and `reorgs`.
///
/// # Errors
/// If the folder or a file cannot be read.
pub fn polygon_sessions(dir: &Path) -> Result<Vec<Value>> {
    gzipped_files(&dir.join("polygon_reorg/sessions"))?.iter().map(|path| read(path)).collect()
}

/// The complete Ethereum block at `number`.
///
/// # Errors
/// If there is none, or its file cannot be read.
pub fn ethereum_block(dir: &Path, number: u64) -> Result<RecordedBlock> {
    let start = format!("{number:09}-");
    let files = gzipped_files(&dir.join("blocks/ethereum-1"))?;
    let is_it = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&start))
    };
    let file = files.into_iter().find(is_it).with_context(|| format!("no block {number}"))?;
    load_all(vec![file])?.next().with_context(|| format!("no block {number}"))?
}

fn in_chain_folders(dir: &Path) -> Result<impl Iterator<Item = Result<RecordedBlock>> + use<>> {
    let mut files = Vec::new();
    for chain in entries(dir)? {
        files.extend(gzipped_files(&chain)?);
    }
    load_all(files)
}

fn load_all(files: Vec<PathBuf>) -> Result<impl Iterator<Item = Result<RecordedBlock>> + use<>> {
    ensure!(!files.is_empty(), "there are no recorded blocks");
    Ok(files.into_iter().map(|path| {
        let mut block: RecordedBlock = read(&path)?;
        let parent = path.parent().and_then(Path::file_name).unwrap_or_default();
        let file = path.file_name().unwrap_or_default();
        block.name = format!("{}/{}", parent.display(), file.display());
        Ok(block)
    }))
}

fn gzipped_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = entries(dir)?;
    files.retain(|path| path.extension().is_some_and(|e| e == "gz"));
    Ok(files)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let listed = std::fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let mut paths = listed.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let read = || -> Result<T> {
        let mut text = String::new();
        GzDecoder::new(BufReader::new(File::open(path)?)).read_to_string(&mut text)?;
        Ok(serde_json::from_str(&text)?)
    };
    read().with_context(|| path.display().to_string())
}
