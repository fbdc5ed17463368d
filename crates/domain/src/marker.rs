//! The marker, as stored in `blocks:{events:<chain_id>}`: one entry per block.

use std::fmt;
use std::str::FromStr;

use alloy_primitives::{B256, hex};

use crate::EntryId;
use crate::event::{CodecError, Record, write_optional_hash};

/// The fields of a marker, in this order.
pub const FIELDS: [&str; 11] = [
    "seq",
    "op",
    "number",
    "hash",
    "parent_hash",
    "timestamp",
    "events",
    "first_id",
    "last_id",
    "proof",
    "filter",
];

/// What happened to the marker's block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// The block joined the canonical chain; its events are the entries `first_id..=last_id`.
    Add,
    /// The block was orphaned; the entries `first_id..=last_id` take its events back.
    Remove,
    /// The block is final: nothing at or below it will be taken back.
    Finalized,
    /// An operator ordered to skip all blocks up to this one.
    Gap,
}

/// The strongest check that a block passed, strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Proof {
    /// The receipts trie was rebuilt, and its root equals the header's.
    ReceiptsRoot,
    /// The bloom of the logs equals the header's.
    Bloom,
    /// Hashes and indices agree with each other.
    Structure,
}

macro_rules! names {
    ($type:ty { $($variant:ident = $name:literal),+ $(,)? }) => {
        impl $type {
            /// The name used in storage and configuration.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl FromStr for $type {
            type Err = ();
            fn from_str(s: &str) -> Result<Self, ()> {
                match s { $($name => Ok(Self::$variant),)+ _ => Err(()) }
            }
        }
    };
}

names!(Op { Add = "add", Remove = "remove", Finalized = "finalized", Gap = "gap" });
names!(Proof { ReceiptsRoot = "receipts_root", Bloom = "bloom", Structure = "structure" });

impl Proof {
    /// Whether this proves less than `other`.
    #[must_use]
    pub fn is_weaker_than(self, other: Self) -> bool {
        self > other // declared strongest first
    }
}

/// One published step of the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// Position among the chain's markers: the predecessor's plus one.
    pub seq: u64,
    /// What happened.
    pub op: Op,
    /// Height of the block.
    pub number: u64,
    /// Hash of the block.
    pub hash: B256,
    /// Hash of its parent. None for a `finalized` marker by which an operator moved finality back to a block that is
    /// no longer known, and for a `gap` before the first block.
    pub parent_hash: Option<B256>,
    /// Time of the block, unix seconds; 0 for such a `finalized` marker.
    pub timestamp: u64,
    /// How many entries this step wrote.
    pub events: u64,
    /// ID of the first of them, if there are any.
    pub first_id: Option<EntryId>,
    /// The event stream's last ID after the step.
    pub last_id: EntryId,
    /// The strongest check the block passed.
    pub proof: Proof,
    /// Digest of the filter in force.
    pub filter: String,
}

impl Marker {
    /// The values of [`FIELDS`], in that order.
    #[must_use]
    pub fn to_values(&self) -> [String; FIELDS.len()] {
        [
            self.seq.to_string(),
            self.op.to_string(),
            self.number.to_string(),
            hex::encode_prefixed(self.hash),
            write_optional_hash(self.parent_hash),
            self.timestamp.to_string(),
            self.events.to_string(),
            write_optional_id(self.first_id),
            self.last_id.to_string(),
            self.proof.to_string(),
            self.filter.clone(),
        ]
    }

    /// Reads a marker back from its fields.
    ///
    /// # Errors
    /// Names the first field that is missing or malformed.
    pub fn from_fields<'a>(
        fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Self, CodecError> {
        let record = Record::new(FIELDS, fields);
        Ok(Self {
            seq: record.number("seq")?,
            op: record.parse("op", |v| v.parse().ok())?,
            number: record.number("number")?,
            hash: record.hash("hash")?,
            parent_hash: record.optional_hash("parent_hash")?,
            timestamp: record.number("timestamp")?,
            events: record.number("events")?,
            first_id: record.parse("first_id", read_optional_id)?,
            last_id: record.parse("last_id", |v| v.parse().ok())?,
            proof: record.parse("proof", |v| v.parse().ok())?,
            filter: record.text("filter")?,
        })
    }
}

/// An ID or the empty string.
fn write_optional_id(id: Option<EntryId>) -> String {
    id.map(|id| id.to_string()).unwrap_or_default()
}

fn read_optional_id(value: &str) -> Option<Option<EntryId>> {
    if value.is_empty() { Some(None) } else { value.parse().ok().map(Some) }
}
