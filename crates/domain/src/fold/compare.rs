//! Compares the blocks in the streams with the chain's blocks.

use std::fmt;

use alloy_primitives::B256;

use super::{FoldedBlock, MAX_REPORTED};
use crate::{Log, ProcessedEvent};

/// A block of the chain, with the logs that should be live in the stream, by `log_index`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedBlock {
    /// Height.
    pub number: u64,
    /// Hash.
    pub hash: B256,
    /// Unix seconds.
    pub timestamp: u64,
    /// Its logs that pass the chain's filter.
    pub logs: Vec<Log>,
}

/// Where stream and chain differ.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// The stream lacks a block of the chain.
    #[error("block {number} {hash} is missing in the stream")]
    BlockMissing {
        /// Height.
        number: u64,
        /// Hash.
        hash: B256,
    },
    /// The stream has a block that the chain does not have.
    #[error("block {number} {hash} is in the stream but not in the chain")]
    BlockUnexpected {
        /// Height.
        number: u64,
        /// Hash.
        hash: B256,
    },
    /// The same block, with another time.
    #[error("block {number}: timestamp is {stream}, the chain has {chain}")]
    BlockTime {
        /// Height.
        number: u64,
        /// Its time in the stream, unix seconds.
        stream: u64,
        /// Its time in the chain.
        chain: u64,
    },
    /// The stream lacks a log.
    #[error("block {number}: log {log_index} is missing in the stream")]
    LogMissing {
        /// Height.
        number: u64,
        /// Position in the block.
        log_index: u64,
    },
    /// The stream has a log that the chain does not have, or has it twice.
    #[error("block {number}: log {log_index} is in the stream but not in the chain")]
    LogUnexpected {
        /// Height.
        number: u64,
        /// Position in the block.
        log_index: u64,
    },
    /// The same log, with other content.
    #[error("block {number}: log {log_index}: {field} is {stream}, the chain has {chain}")]
    Field {
        /// Height.
        number: u64,
        /// Position in the block.
        log_index: u64,
        /// The field's name in an entry.
        field: &'static str,
        /// Its value in the stream.
        stream: String,
        /// Its value in the chain.
        chain: String,
    },
}

/// Compares the `stream`'s blocks with the chain's, both sorted by height: block hash and time, transaction
/// hash and index, log index, contract, topics and data. Blocks that an operator skipped are not compared. If the stream is trimmed, `expected` must not contain blocks below its first
/// one. Returns the first [`MAX_REPORTED`] differences.
#[must_use]
pub fn compare(stream: &[FoldedBlock], expected: &[ExpectedBlock]) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut chain = expected.iter().peekable();
    let missing =
        |block: &ExpectedBlock| Difference::BlockMissing { number: block.number, hash: block.hash };
    for block in stream {
        let first = block.skipped_from.unwrap_or(block.number);
        while let Some(before) = chain.next_if(|e| e.number < first) {
            differences.push(missing(before));
        }
        if block.skipped_from.is_some() {
            while chain.next_if(|e| e.number <= block.number).is_some() {}
            continue;
        }
        match chain.next_if(|e| e.number == block.number) {
            Some(same) if same.hash == block.hash => {
                compare_block(block, same, &mut differences);
            }
            other => {
                let (number, hash) = (block.number, block.hash);
                differences.push(Difference::BlockUnexpected { number, hash });
                differences.extend(other.map(missing));
            }
        }
        if differences.len() >= MAX_REPORTED {
            break;
        }
    }
    differences.extend(chain.map(missing));
    differences.truncate(MAX_REPORTED);
    differences
}

fn compare_block(block: &FoldedBlock, expected: &ExpectedBlock, out: &mut Vec<Difference>) {
    let number = block.number;
    if block.timestamp != expected.timestamp {
        let (stream, chain) = (block.timestamp, expected.timestamp);
        out.push(Difference::BlockTime { number, stream, chain });
    }
    let missing = |log: &Log| Difference::LogMissing { number, log_index: log.log_index };
    let mut logs = expected.logs.iter().peekable();
    for event in &block.events {
        while let Some(before) = logs.next_if(|log| log.log_index < event.log_index) {
            out.push(missing(before));
        }
        match logs.next_if(|log| log.log_index == event.log_index) {
            Some(log) => compare_event(event, log, out),
            None => out.push(Difference::LogUnexpected { number, log_index: event.log_index }),
        }
    }
    out.extend(logs.map(missing));
}

fn compare_event(event: &ProcessedEvent, log: &Log, out: &mut Vec<Difference>) {
    let mut field = |field, stream: &dyn fmt::Debug, chain: &dyn fmt::Debug| {
        out.push(Difference::Field {
            number: event.block_number,
            log_index: event.log_index,
            field,
            stream: format!("{stream:?}"),
            chain: format!("{chain:?}"),
        });
    };
    if event.block_hash != log.block_hash {
        field("block_hash", &event.block_hash, &log.block_hash);
    }
    if event.tx_hash != log.tx_hash {
        field("tx_hash", &event.tx_hash, &log.tx_hash);
    }
    if event.tx_index != log.tx_index {
        field("tx_index", &event.tx_index, &log.tx_index);
    }
    if event.contract != log.address {
        field("contract", &event.contract, &log.address);
    }
    if event.topics != log.topics {
        field("topics", &event.topics, &log.topics);
    }
    if event.data != log.data {
        field("data", &event.data, &log.data);
    }
}
