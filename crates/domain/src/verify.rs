//! Pure checks of a block against its header (G6): a block that fails one is never published.
//!
//! The header is the root of trust: its hash is recomputed from its fields, and it commits to the
//! receipts by `receiptsRoot` and, more weakly, to the logs by `logsBloom`. A block's logs are
//! proven by rebuilding the receipts trie; failing that, by the bloom alone; failing that, only by
//! hashes and indices agreeing with each other. [`Profile::verify`] is the weakest proof that may
//! be published. None of these proves a log's transaction hash or Polygon's old state-sync logs,
//! which neither commitment covers.
//!
//! Sources: yellow paper 4.3; EIP-2718 and EIP-658 (receipts); OP stack specification, "Deposited
//! transaction receipt"; Polygon PIP-74 (state-sync transactions).

mod blooms;
mod receipt_rlp;

use std::fmt;

use alloy_consensus::constants::EMPTY_ROOT_HASH;
use alloy_primitives::{B256, Bloom, keccak256};
use alloy_trie::root::ordered_trie_root_with_encoder;

use blooms::Blooms;
use receipt_rlp::encode_receipt;

use crate::block::{Body, Seal};
use crate::{BloomTest, Header, Log, Profile, Proof, Receipt};

/// A check of a block against its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Check {
    /// The header's hash follows from its fields.
    HeaderHash,
    /// Every receipt and log carries the block's hash and number.
    BlockHash,
    /// No log is marked as removed.
    Removed,
    /// Receipts and logs are numbered from 0 without gaps, and agree on their transactions.
    Indices,
    /// The answer is not empty unless the block is. An empty one most often comes from a node that
    /// has not caught up, so it is worth asking again before the node counts as wrong.
    Empty,
    /// Cumulative gas never decreases, and its last value is the header's gas used.
    GasUsed,
    /// The bloom of the logs equals the header's.
    Bloom,
    /// The root of the receipts trie equals the header's.
    ReceiptsRoot,
    /// The answer can carry the proof that the chain requires. Logs without their receipts cannot,
    /// even if nothing is wrong with them.
    Unprovable,
}

impl Check {
    /// Every check, for metrics that register their labels in advance.
    pub const ALL: [Self; 9] = [
        Self::HeaderHash,
        Self::BlockHash,
        Self::Removed,
        Self::Indices,
        Self::Empty,
        Self::GasUsed,
        Self::Bloom,
        Self::ReceiptsRoot,
        Self::Unprovable,
    ];

    /// The check's name as a metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HeaderHash => "header_hash",
            Self::BlockHash => "block_hash",
            Self::Removed => "removed",
            Self::Indices => "indices",
            Self::Empty => "empty",
            Self::GasUsed => "gas_used",
            Self::Bloom => "bloom",
            Self::ReceiptsRoot => "receipts_root",
            Self::Unprovable => "unprovable",
        }
    }

    /// Whether failing it shows a false answer, not a late or a weak one.
    #[must_use]
    pub fn is_conclusive(self) -> bool {
        !matches!(self, Self::Empty | Self::Unprovable)
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The first check that a block failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("check `{check}` failed: {detail}")]
pub struct Failure {
    /// Which check.
    pub check: Check,
    /// What was expected and what was received.
    pub detail: String,
}

/// A block that may be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// All logs of the block, by `log_index`. Empty if the block was not fetched because none of
    /// its logs would pass the filter.
    pub logs: Vec<Log>,
    /// The strongest check that the logs passed.
    pub proof: Proof,
    /// The hash was not proven by the header's fields: some are fields that we do not know how to
    /// hash (or the chain's level is `structure`, which does not require it).
    pub unhashed: bool,
    /// There were receipts, and their root is not the header's: they are altered, or the chain encodes them in a way
    /// that we do not know. Only below `receipts_root`.
    pub root_differs: bool,
}

/// Checks a header's hash, as soon as the header arrives.
///
/// # Errors
/// [`Check::HeaderHash`] if every field is known and the hash does not follow from them, unless the
/// chain's level is `structure`.
pub fn verify_header(profile: &Profile, header: &Header) -> Result<(), Failure> {
    if header.seal == Seal::Differs && profile.verify != Proof::Structure {
        return fail(Check::HeaderHash, || {
            format!(
                "block {}: the fields do not hash to {}",
                header.block.number, header.block.hash
            )
        });
    }
    Ok(())
}

/// What the header alone proves about a block that need not be fetched; none if it must be.
///
/// Two things are conclusive if the header's hash proves them and the profile allows it:
/// - No transactions, no receipts, no gas and a zero bloom: the empty receipts root itself proves
///   that there are no logs.
/// - A bloom that excludes every log that would pass the filter. The header commits to the bloom as
///   it does to the receipts root, and no log can be missing from it, so this is as certain at
///   every level that trusts the header. But no receipts were seen, so the proof is recorded as the
///   bloom.
#[must_use]
pub fn without_fetching(
    profile: &Profile,
    header: &Header,
    wanted: &BloomTest,
) -> Option<Verified> {
    if header.seal != Seal::Matches {
        return None;
    }
    let proof = if profile.empty_without_transactions && is_empty(header) {
        Proof::ReceiptsRoot
    } else if profile.bloom_of_all_logs
        && profile.verify != Proof::Structure
        && !wanted.may_match(&header.logs_bloom)
    {
        Proof::Bloom
    } else {
        return None;
    };
    Some(Verified { logs: Vec::new(), proof, unhashed: false, root_differs: false })
}

fn is_empty(header: &Header) -> bool {
    header.transactions_root == EMPTY_ROOT_HASH
        && header.receipts_root == EMPTY_ROOT_HASH
        && header.logs_bloom.is_zero()
        && header.gas_used == 0
}

/// Checks the logs of a block against its header, by the strongest proof that they allow.
///
/// # Errors
/// The first check that fails. Receipts and logs are first checked one by one, then for emptiness
/// and gas, then for the proof, which need not be stronger than the chain's level.
pub fn verify(profile: &Profile, header: &Header, body: Body) -> Result<Verified, Failure> {
    verify_header(profile, header)?;
    let state_sync =
        (header.block.number < profile.state_sync_until).then(|| state_sync_hash(header));
    let (logs, proof, root_differs) = match body {
        Body::Receipts(receipts) => {
            check_receipts(header, &receipts)?;
            let committed = committed_receipts(&receipts, state_sync);
            if committed.is_empty() {
                check_no_receipts(profile, header)?;
            }
            check_gas(header, committed)?;
            let proof = prove_receipts(profile, header, committed)?;
            let mut logs = Vec::with_capacity(receipts.iter().map(|r| r.logs.len()).sum());
            let root_differs = proof != Proof::ReceiptsRoot && !receipts.is_empty();
            logs.extend(receipts.into_iter().flat_map(|r| r.logs));
            (logs, proof, root_differs)
        }
        Body::Logs(logs) => {
            check_logs(header, &logs)?;
            let committed = committed_logs(&logs, state_sync);
            if committed.is_empty() {
                check_no_logs(profile, header)?;
            }
            let proof = prove_logs(profile, header, committed)?;
            (logs, proof, false)
        }
    };
    let unhashed = header.seal != Seal::Matches;
    Ok(Verified { logs, proof, unhashed, root_differs })
}

/// Checks the logs of a range of blocks against their headers, as [`verify`] does for each block. `headers` must be
/// consecutive and ascending; the results are in the same order.
///
/// # Errors
/// The first failure of any block, or a log outside the range. The other blocks are then not accepted either: in an
/// answer that was cut short, or puts a log into the wrong block, a block can lack logs without its bloom showing it.
pub fn verify_range(
    profile: &Profile,
    headers: &[Header],
    logs: Vec<Log>,
) -> Result<Vec<Verified>, Failure> {
    let lowest = headers.first().map_or(0, |header| header.block.number);
    let mut by_block: Vec<Vec<Log>> = headers.iter().map(|_| Vec::new()).collect();
    for log in logs {
        let number = log.block_number;
        let position = number.checked_sub(lowest).and_then(|p| usize::try_from(p).ok());
        let Some(logs) = position.and_then(|position| by_block.get_mut(position)) else {
            return fail(Check::BlockHash, || {
                format!("a log is of block {number}, outside the range")
            });
        };
        logs.push(log);
    }
    let blocks = headers.iter().zip(by_block);
    blocks.map(|(header, logs)| verify(profile, header, Body::Logs(logs))).collect()
}

/// The hash under which Polygon (before PIP-74) reports the state-sync logs of a block.
fn state_sync_hash(header: &Header) -> B256 {
    const PREFIX: &[u8] = b"matic-bor-receipt-";
    let mut bytes = Vec::with_capacity(PREFIX.len() + 8 + 32);
    bytes.extend_from_slice(PREFIX);
    bytes.extend_from_slice(&header.block.number.to_be_bytes());
    bytes.extend_from_slice(header.block.hash.as_slice());
    keccak256(bytes)
}

/// The receipts that the header commits to: all except an untyped state-sync receipt at the end.
fn committed_receipts(receipts: &[Receipt], state_sync: Option<B256>) -> &[Receipt] {
    match receipts.split_last() {
        Some((last, rest)) if Some(last.tx_hash) == state_sync && last.tx_type == 0 => rest,
        _ => receipts,
    }
}

/// The logs that the header commits to: all except those of a state-sync receipt at the end.
fn committed_logs(logs: &[Log], state_sync: Option<B256>) -> &[Log] {
    let outside = logs.iter().rev().take_while(|log| Some(log.tx_hash) == state_sync).count();
    &logs[..logs.len() - outside]
}

fn check_receipts(header: &Header, receipts: &[Receipt]) -> Result<(), Failure> {
    let mut next_log_index = 0;
    for (i, receipt) in (0u64..).zip(receipts) {
        if receipt.block_hash != header.block.hash {
            return fail(Check::BlockHash, || {
                format!("receipt {i} is of block {}, not {}", receipt.block_hash, header.block.hash)
            });
        }
        if receipt.tx_index != i {
            return fail(Check::Indices, || format!("receipt {i} has index {}", receipt.tx_index));
        }
        for log in &receipt.logs {
            check_log(header, log, next_log_index)?;
            if (log.tx_index, log.tx_hash) != (receipt.tx_index, receipt.tx_hash) {
                return fail(Check::Indices, || {
                    format!(
                        "log {next_log_index} is of transaction {} {}, its receipt of {i} {}",
                        log.tx_index, log.tx_hash, receipt.tx_hash
                    )
                });
            }
            next_log_index += 1;
        }
    }
    Ok(())
}

fn check_logs(header: &Header, logs: &[Log]) -> Result<(), Failure> {
    let mut previous: Option<&Log> = None;
    for (i, log) in (0u64..).zip(logs) {
        check_log(header, log, i)?;
        if let Some(before) = previous {
            let same_index = log.tx_index == before.tx_index;
            if log.tx_index < before.tx_index || same_index != (log.tx_hash == before.tx_hash) {
                return fail(Check::Indices, || {
                    format!(
                        "log {i} is of transaction {} {}, the one before of {} {}",
                        log.tx_index, log.tx_hash, before.tx_index, before.tx_hash
                    )
                });
            }
        }
        previous = Some(log);
    }
    Ok(())
}

fn check_log(header: &Header, log: &Log, log_index: u64) -> Result<(), Failure> {
    let block = &header.block;
    if (log.block_hash, log.block_number) != (block.hash, block.number) {
        return fail(Check::BlockHash, || {
            format!(
                "log {log_index} is of block {} {}, not {} {}",
                log.block_number, log.block_hash, block.number, block.hash
            )
        });
    }
    if log.removed {
        return fail(Check::Removed, || format!("log {log_index} is marked as removed"));
    }
    if log.log_index != log_index {
        return fail(Check::Indices, || format!("log {log_index} has index {}", log.log_index));
    }
    Ok(())
}

/// Fails if there are no receipts although the header implies some. At level `structure` the header's roots are not
/// trusted, and only its gas counts.
fn check_no_receipts(profile: &Profile, header: &Header) -> Result<(), Failure> {
    let root_counts = profile.verify != Proof::Structure;
    if header.gas_used > 0 || (root_counts && header.receipts_root != EMPTY_ROOT_HASH) {
        return fail(Check::Empty, || not_empty("receipts", header));
    }
    check_no_logs(profile, header)
}

/// The same for logs, by the header's bloom.
fn check_no_logs(profile: &Profile, header: &Header) -> Result<(), Failure> {
    if profile.verify != Proof::Structure && !header.logs_bloom.is_zero() {
        return fail(Check::Empty, || not_empty("logs", header));
    }
    Ok(())
}

fn not_empty(what: &str, header: &Header) -> String {
    format!(
        "no {what} for block {}, whose header says: receiptsRoot {}, gasUsed {}, logsBloom {}",
        header.block.hash,
        header.receipts_root,
        header.gas_used,
        if header.logs_bloom.is_zero() { "zero" } else { "not zero" }
    )
}

/// Whether the header's roots are trusted: at level `structure`, only if its hash covers them.
fn is_trusted(profile: &Profile, header: &Header) -> bool {
    profile.verify != Proof::Structure || header.seal == Seal::Matches
}

fn check_gas(header: &Header, receipts: &[Receipt]) -> Result<(), Failure> {
    let mut used = 0;
    for receipt in receipts {
        if receipt.cumulative_gas_used < used {
            return fail(Check::GasUsed, || {
                format!(
                    "receipt {} has cumulativeGasUsed {}, the one before {used}",
                    receipt.tx_index, receipt.cumulative_gas_used
                )
            });
        }
        used = receipt.cumulative_gas_used;
    }
    if used != header.gas_used {
        return fail(Check::GasUsed, || {
            format!("the receipts use {used} gas, the header says {}", header.gas_used)
        });
    }
    Ok(())
}

fn prove_receipts(
    profile: &Profile,
    header: &Header,
    receipts: &[Receipt],
) -> Result<Proof, Failure> {
    // The root also commits to each receipt's bloom: a false bloom gives another root, and a true
    // one saves computing it. If the root does not match, all blooms are computed.
    let mut blooms = Blooms::default();
    let mut root =
        ordered_trie_root_with_encoder(receipts, |receipt: &Receipt, out| {
            match &receipt.logs_bloom {
                Some(told) => encode_receipt(receipt, told, out),
                None => encode_receipt(receipt, &blooms.of(&receipt.logs), out),
            }
        });
    if root != header.receipts_root && receipts.iter().any(|r| r.logs_bloom.is_some()) {
        root = ordered_trie_root_with_encoder(receipts, |receipt: &Receipt, out| {
            encode_receipt(receipt, &blooms.of(&receipt.logs), out);
        });
    }
    // Any header can claim the root of no receipts, so that proves something only in a trusted one.
    if root == header.receipts_root && (!receipts.is_empty() || is_trusted(profile, header)) {
        return Ok(Proof::ReceiptsRoot);
    }
    if profile.verify == Proof::ReceiptsRoot {
        return fail(Check::ReceiptsRoot, || {
            format!("the receipts' root is {root}, the header says {}", header.receipts_root)
        });
    }
    prove_bloom(profile, header, receipts.iter().flat_map(|r| &r.logs))
}

fn prove_logs(profile: &Profile, header: &Header, logs: &[Log]) -> Result<Proof, Failure> {
    let shows_nothing = header.receipts_root == EMPTY_ROOT_HASH && header.logs_bloom.is_zero();
    if logs.is_empty() && shows_nothing && is_trusted(profile, header) {
        return Ok(Proof::ReceiptsRoot);
    }
    let proof = prove_bloom(profile, header, logs.iter())?;
    if profile.verify == Proof::ReceiptsRoot {
        return fail(Check::Unprovable, || {
            format!("{} logs without receipts cannot prove the receiptsRoot", logs.len())
        });
    }
    Ok(proof)
}

fn prove_bloom<'a>(
    profile: &Profile,
    header: &Header,
    logs: impl Iterator<Item = &'a Log>,
) -> Result<Proof, Failure> {
    let bloom = Blooms::default().of(logs);
    if bloom == *header.logs_bloom {
        return Ok(Proof::Bloom);
    }
    if profile.verify == Proof::Structure {
        return Ok(Proof::Structure);
    }
    fail(Check::Bloom, || {
        let missing = bits_missing(&header.logs_bloom, &bloom);
        let extra = bits_missing(&bloom, &header.logs_bloom);
        format!(
            "the logs' bloom lacks {missing} bits of the header's and has {extra} that are not in \
             it"
        )
    })
}

/// How many bits of `a` are not in `b`.
fn bits_missing(a: &Bloom, b: &Bloom) -> u32 {
    a.iter().zip(b.iter()).map(|(a, b)| (a & !b).count_ones()).sum()
}

fn fail<T>(check: Check, detail: impl FnOnce() -> String) -> Result<T, Failure> {
    Err(Failure { check, detail: detail() })
}
