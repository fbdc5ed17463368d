//! The event, as stored in `events:<chain_id>`: one entry per log.

use alloy_primitives::{Address, B256, Bytes, hex};
use serde::{Deserialize, Serialize};

use crate::encoding::{self, PACKED};
use crate::{BlockRef, ChainId, Log};

/// The fields of an entry, always complete and in this order: Redis does not repeat the field names
/// of an entry that has the same ones as its predecessor. A packed entry has the same values in the
/// same order ([`crate::Encoding::Msgpack`]).
pub const FIELDS: [&str; 11] = [
    "chain_id",
    "block_number",
    "block_hash",
    "tx_hash",
    "tx_index",
    "log_index",
    "contract",
    "topics",
    "data",
    "timestamp",
    "removed",
];

/// One log of one block, ready for the stream or read back from it.
///
/// It is identified by (`block_hash`, `log_index`). [`ProcessedEvent::event_id`] is only a
/// reference for people and log files: a transaction that is mined again has the same one.
///
/// The members are in the order of [`FIELDS`], which is also the order in a packed entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessedEvent {
    /// EIP-155 chain id.
    pub chain_id: ChainId,
    /// Height of the block.
    pub block_number: u64,
    /// Hash of the block.
    pub block_hash: B256,
    /// Hash of the transaction. No check against the header proves it.
    pub tx_hash: B256,
    /// Position of the transaction in the block.
    pub tx_index: u64,
    /// Position of the log in the block.
    pub log_index: u64,
    /// The contract that emitted the log.
    pub contract: Address,
    /// Zero to four topics, 32 bytes each.
    pub topics: Vec<B256>,
    /// The part that is not indexed.
    pub data: Bytes,
    /// Time of the block, unix seconds.
    pub timestamp: u64,
    /// `true` if this takes back an earlier entry, as in Ethereum's own log object.
    pub removed: bool,
}

/// An entry that is not in our format: which field is wrong, and how.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field `{field}` {problem}")]
pub struct CodecError {
    /// The field's name.
    pub field: &'static str,
    /// What is wrong with its value.
    pub problem: String,
}

impl CodecError {
    pub(crate) fn missing(field: &'static str) -> Self {
        Self { field, problem: "is missing".into() }
    }

    pub(crate) fn invalid(field: &'static str, value: &[u8]) -> Self {
        let shown: String = String::from_utf8_lossy(value).chars().take(80).collect();
        Self { field, problem: format!("has the value `{shown}`") }
    }
}

impl ProcessedEvent {
    /// The event of `log` in `block`.
    #[must_use]
    pub fn new(chain_id: ChainId, block: &BlockRef, log: Log) -> Self {
        Self {
            chain_id,
            block_number: block.number,
            block_hash: block.hash,
            tx_hash: log.tx_hash,
            tx_index: log.tx_index,
            log_index: log.log_index,
            contract: log.address,
            topics: log.topics,
            data: log.data,
            timestamp: block.timestamp,
            removed: false,
        }
    }

    /// `event:<chain_id>:<tx_hash>:<log_index>`: a reference, not an idempotency key.
    #[must_use]
    pub fn event_id(&self) -> String {
        format!("event:{}:{:#x}:{}", self.chain_id, self.tx_hash, self.log_index)
    }

    /// The values of [`FIELDS`], in that order: numbers in decimal, bytes as lower-case hex with
    /// `0x`.
    #[must_use]
    pub fn to_values(&self) -> [String; FIELDS.len()] {
        let (mut values, mut from) = (Vec::new(), 0);
        self.write_values(&mut values).map(|end| {
            let value = String::from_utf8_lossy(&values[from..end]).into_owned();
            from = end;
            value
        })
    }

    /// Appends those values, and returns where each ends in `buffer`.
    pub fn write_values(&self, buffer: &mut Vec<u8>) -> [usize; FIELDS.len()] {
        [
            write_number(self.chain_id, buffer),
            write_number(self.block_number, buffer),
            write_hex(self.block_hash.as_slice(), buffer),
            write_hex(self.tx_hash.as_slice(), buffer),
            write_number(self.tx_index, buffer),
            write_number(self.log_index, buffer),
            write_hex(self.contract.as_slice(), buffer),
            write_topics(&self.topics, buffer),
            write_hex(&self.data, buffer),
            write_number(self.timestamp, buffer),
            write_text(if self.removed { "true" } else { "false" }, buffer),
        ]
    }

    /// Appends the value of [`PACKED`], the only field of a packed entry.
    pub fn write_packed(&self, buffer: &mut Vec<u8>) {
        encoding::pack(self, buffer);
    }

    /// Reads an entry of either encoding; the order of the fields does not matter.
    ///
    /// # Errors
    /// Names the first field that is missing or malformed.
    pub fn from_fields<'a>(
        fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Self, CodecError> {
        let mut fields = fields.into_iter().peekable();
        if let Some((_, packed)) = fields.next_if(|(name, _)| *name == PACKED.as_bytes()) {
            return encoding::unpack(packed);
        }
        let record = Record::new(FIELDS, fields);
        Ok(Self {
            chain_id: record.number("chain_id")?,
            block_number: record.number("block_number")?,
            block_hash: record.hash("block_hash")?,
            tx_hash: record.hash("tx_hash")?,
            tx_index: record.number("tx_index")?,
            log_index: record.number("log_index")?,
            contract: record.parse("contract", |v| {
                let bytes = hex::decode(v.strip_prefix("0x")?).ok()?;
                Address::try_from(bytes.as_slice()).ok()
            })?,
            topics: record.parse("topics", |v| serde_json::from_str(v).ok())?,
            data: record.parse("data", |v| {
                v.starts_with("0x").then(|| hex::decode(v).ok()).flatten().map(Bytes::from)
            })?,
            timestamp: record.number("timestamp")?,
            removed: record.parse("removed", |v| v.parse().ok())?,
        })
    }
}

/// Appends the bytes as hex and returns where the value ends; the functions below do the same.
fn write_hex(bytes: &[u8], buffer: &mut Vec<u8>) -> usize {
    buffer.extend(b"0x");
    let from = buffer.len();
    buffer.resize(from + 2 * bytes.len(), 0);
    // Fails only if the slice has the wrong length.
    let written = hex::encode_to_slice(bytes, &mut buffer[from..]);
    debug_assert!(written.is_ok(), "{written:?}");
    buffer.len()
}

fn write_number(number: u64, buffer: &mut Vec<u8>) -> usize {
    write_text(itoa::Buffer::new().format(number), buffer)
}

fn write_text(text: &str, buffer: &mut Vec<u8>) -> usize {
    buffer.extend(text.as_bytes());
    buffer.len()
}

fn write_topics(topics: &[B256], buffer: &mut Vec<u8>) -> usize {
    buffer.push(b'[');
    for (i, topic) in topics.iter().enumerate() {
        buffer.extend(if i > 0 { b",\"".as_slice() } else { b"\"" });
        write_hex(topic.as_slice(), buffer);
        buffer.push(b'"');
    }
    buffer.push(b']');
    buffer.len()
}

/// The key of a chain's event stream, `events:<chain_id>`.
#[must_use]
pub fn stream_name(chain_id: ChainId) -> String {
    format!("events:{chain_id}")
}

/// The named fields of a stored record while it is being read.
pub(crate) struct Record<'a, const N: usize> {
    names: [&'static str; N],
    values: [Option<&'a [u8]>; N],
}

impl<'a, const N: usize> Record<'a, N> {
    pub(crate) fn new(
        names: [&'static str; N],
        fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Self {
        let mut values = [None; N];
        for (name, value) in fields {
            if let Some(i) = names.iter().position(|n| n.as_bytes() == name) {
                values[i] = Some(value);
            }
        }
        Self { names, values }
    }

    pub(crate) fn parse<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, CodecError> {
        let value = self
            .names
            .iter()
            .position(|n| *n == name)
            .and_then(|i| self.values[i])
            .ok_or_else(|| CodecError::missing(name))?;
        std::str::from_utf8(value)
            .ok()
            .and_then(read)
            .ok_or_else(|| CodecError::invalid(name, value))
    }

    pub(crate) fn number(&self, name: &'static str) -> Result<u64, CodecError> {
        self.parse(name, |v| v.parse().ok())
    }

    pub(crate) fn text(&self, name: &'static str) -> Result<String, CodecError> {
        self.parse(name, |v| Some(v.to_owned()))
    }

    pub(crate) fn hash(&self, name: &'static str) -> Result<B256, CodecError> {
        self.parse(name, read_hash)
    }

    /// A hash that may be empty, such as the cursor's before the first block.
    pub(crate) fn optional_hash(&self, name: &'static str) -> Result<Option<B256>, CodecError> {
        self.parse(name, |v| if v.is_empty() { Some(None) } else { read_hash(v).map(Some) })
    }
}

fn read_hash(value: &str) -> Option<B256> {
    (value.len() == 66).then(|| value.parse().ok()).flatten()
}

/// `0x…` or the empty string.
#[must_use]
pub fn write_optional_hash(hash: Option<B256>) -> String {
    hash.map(hex::encode_prefixed).unwrap_or_default()
}
