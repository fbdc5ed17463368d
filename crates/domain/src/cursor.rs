//! The cursor, stored in `cursor:{events:<chain_id>}`: how far the chain's stream has got.

use alloy_primitives::B256;

use crate::Encoding;
use crate::event::{CodecError, Record, write_optional_hash};

/// The layout of the keys that this program writes and reads.
pub const SCHEMA: u64 = 1;

/// The fields of the cursor's hash.
pub const FIELDS: [&str; 13] = [
    "schema",
    "seq",
    "number",
    "hash",
    "start_number",
    "genesis_hash",
    "finalized_number",
    "finalized_hash",
    "writer",
    "epoch",
    "filter",
    "encoding",
    "alarm",
];

/// Everything the ingestor needs in order to resume, and every value that fences the publish step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// [`SCHEMA`] of the program that created it.
    pub schema: u64,
    /// `seq` of the last marker; 0 before the first.
    pub seq: u64,
    /// Height of the tip; `start_number` - 1 before the first block (0 if the stream starts at
    /// block 0: there only the empty hash shows that nothing is published).
    pub number: u64,
    /// Hash of the tip; none before the first block, whose parent is not checked.
    pub hash: Option<B256>,
    /// The first block of the stream, resolved once.
    pub start_number: u64,
    /// Hash of block 0, if the node could provide it.
    pub genesis_hash: Option<B256>,
    /// Height of the newest final block; 0, with no hash, while there is none.
    pub finalized_number: u64,
    /// Its hash.
    pub finalized_hash: Option<B256>,
    /// `INSTANCE_ID` of the last owner.
    pub writer: String,
    /// Incremented each time the lease is taken.
    pub epoch: u64,
    /// Digest of the filter in force.
    pub filter: String,
    /// How entries are encoded; a stream never mixes encodings.
    pub encoding: Encoding,
    /// Why the chain is stopped until an operator clears the alarm; empty if there is no alarm.
    pub alarm: String,
}

impl Cursor {
    /// The cursor of a chain that has published nothing yet.
    #[must_use]
    pub fn starting_at(start_number: u64, genesis_hash: Option<B256>, filter: String) -> Self {
        Self {
            schema: SCHEMA,
            seq: 0,
            number: start_number.saturating_sub(1),
            hash: None,
            start_number,
            genesis_hash,
            finalized_number: 0,
            finalized_hash: None,
            writer: String::new(),
            epoch: 0,
            filter,
            encoding: Encoding::default(),
            alarm: String::new(),
        }
    }

    /// The same cursor with this encoding.
    #[must_use]
    pub fn encoded(self, encoding: Encoding) -> Self {
        Self { encoding, ..self }
    }

    /// Height of the tip; none before the first block.
    #[must_use]
    pub fn tip(&self) -> Option<u64> {
        self.hash.map(|_| self.number)
    }

    /// Height of the newest final block, if there is one.
    #[must_use]
    pub fn finalized(&self) -> Option<u64> {
        self.finalized_hash.map(|_| self.finalized_number)
    }

    /// The height of the next block to publish.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        self.tip().map_or(self.start_number, |tip| tip.saturating_add(1))
    }

    /// The values of [`FIELDS`], in that order.
    #[must_use]
    pub fn to_values(&self) -> [String; FIELDS.len()] {
        [
            self.schema.to_string(),
            self.seq.to_string(),
            self.number.to_string(),
            write_optional_hash(self.hash),
            self.start_number.to_string(),
            write_optional_hash(self.genesis_hash),
            self.finalized_number.to_string(),
            write_optional_hash(self.finalized_hash),
            self.writer.clone(),
            self.epoch.to_string(),
            self.filter.clone(),
            self.encoding.to_string(),
            self.alarm.clone(),
        ]
    }

    /// Reads the cursor back from its hash.
    ///
    /// # Errors
    /// Names the first field that is missing or malformed.
    pub fn from_fields<'a>(
        fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Self, CodecError> {
        let record = Record::new(FIELDS, fields);
        Ok(Self {
            schema: record.number("schema")?,
            seq: record.number("seq")?,
            number: record.number("number")?,
            hash: record.optional_hash("hash")?,
            start_number: record.number("start_number")?,
            genesis_hash: record.optional_hash("genesis_hash")?,
            finalized_number: record.number("finalized_number")?,
            finalized_hash: record.optional_hash("finalized_hash")?,
            writer: record.text("writer")?,
            epoch: record.number("epoch")?,
            filter: record.text("filter")?,
            encoding: record.parse("encoding", |v| v.parse().ok())?,
            alarm: record.text("alarm")?,
        })
    }
}
