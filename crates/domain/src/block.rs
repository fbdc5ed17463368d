//! Parses what a node sends about a block. Only the needed fields are read, and an unknown field or
//! type never causes an error (whether the block is valid, G6, is decided later by
//! [`crate::verify`]).
//!
//! Shapes: <https://ethereum.github.io/execution-apis/>, `Block`, `ReceiptInfo` and `Log`.

use std::fmt;

use alloy_consensus::Header as ConsensusHeader;
use alloy_primitives::{Address, B64, B256, Bloom, Bytes, U256, hex};
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

/// A block as one link of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockRef {
    /// Height.
    pub number: u64,
    /// Hash of the header.
    pub hash: B256,
    /// Hash of the block at `number` - 1.
    pub parent_hash: B256,
    /// Unix seconds.
    pub timestamp: u64,
}

/// Whether a header's hash follows from its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seal {
    /// `keccak(rlp(header))` equals the claimed hash.
    Matches,
    /// It does not, and every field is known: the header is false.
    Differs,
    /// It does not, but the header has fields that we do not know how to hash.
    UnknownFields,
}

/// A complete header, with its own hash recomputed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The block as a link.
    pub block: BlockRef,
    /// Root of the trie of transactions; the empty root says that there are none.
    pub transactions_root: B256,
    /// Root of the trie of receipts.
    pub receipts_root: B256,
    /// Bloom of all logs.
    pub logs_bloom: Box<Bloom>,
    /// Gas used by all transactions.
    pub gas_used: u64,
    /// Whether the hash follows from the fields.
    pub seal: Seal,
}

/// One log as the node gave it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Log {
    /// The contract that emitted it.
    pub address: Address,
    /// Zero to four topics.
    pub topics: Vec<B256>,
    /// The part that is not indexed.
    pub data: Bytes,
    /// Hash of the block.
    pub block_hash: B256,
    /// Height of the block.
    #[serde(with = "quantity")]
    pub block_number: u64,
    /// Hash of the transaction.
    #[serde(rename = "transactionHash")]
    pub tx_hash: B256,
    /// Position of the transaction in the block.
    #[serde(rename = "transactionIndex", with = "quantity")]
    pub tx_index: u64,
    /// Position of the log in the block.
    #[serde(with = "quantity")]
    pub log_index: u64,
    /// Set by nodes that replay a reorg.
    #[serde(default, deserialize_with = "null_is_default")]
    pub removed: bool,
}

/// One receipt, with every field that is part of its encoding in the receipts trie.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// EIP-2718 type; 0 for a legacy transaction, and where it is null or missing.
    #[serde(rename = "type", default, deserialize_with = "null_is_zero")]
    pub tx_type: u64,
    /// Hash of the transaction.
    #[serde(rename = "transactionHash")]
    pub tx_hash: B256,
    /// Position of the transaction in the block.
    #[serde(rename = "transactionIndex", with = "quantity")]
    pub tx_index: u64,
    /// Hash of the block.
    pub block_hash: B256,
    /// 1 or 0, since Byzantium.
    #[serde(default, with = "optional_quantity")]
    pub status: Option<u64>,
    /// State root, before Byzantium.
    #[serde(default, deserialize_with = "root_or_none")]
    pub root: Option<B256>,
    /// Gas used in the block up to and including this transaction.
    #[serde(with = "quantity")]
    pub cumulative_gas_used: u64,
    /// Its logs.
    #[serde(default, deserialize_with = "null_is_default")]
    pub logs: Vec<Log>,
    /// The bloom of these logs according to the node; none if missing or malformed. Only a hint
    /// that saves hashing: see [`crate::verify`].
    #[serde(default, deserialize_with = "bloom_or_none")]
    pub logs_bloom: Option<Box<Bloom>>,
    /// OP stack deposits: the sender's nonce.
    #[serde(default, with = "optional_quantity")]
    pub deposit_nonce: Option<u64>,
    /// OP stack deposits since Canyon: if present, the nonce is part of the encoding.
    #[serde(default, with = "optional_quantity")]
    pub deposit_receipt_version: Option<u64>,
}

/// The logs of a block, in the form in which they were fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// The answer of `eth_getBlockReceipts`.
    Receipts(Vec<Receipt>),
    /// The answer of `eth_getLogs` without a filter, for one block.
    Logs(Vec<Log>),
}

/// A header while its JSON fields are read; only the fields in `header` are hashed.
#[derive(Default)]
struct RawHeader {
    header: ConsensusHeader,
    hash: Option<B256>,
    seen: u32,
    unknown_fields: bool,
}

/// Fields every header has; each has one bit in `RawHeader::seen`.
const REQUIRED: [&str; 14] = [
    "parentHash",
    "sha3Uncles",
    "miner",
    "stateRoot",
    "transactionsRoot",
    "receiptsRoot",
    "logsBloom",
    "difficulty",
    "number",
    "gasLimit",
    "gasUsed",
    "timestamp",
    "extraData",
    "hash",
];

/// Fields that a header's JSON may contain but that are not part of its hash.
const NOT_HASHED: [&str; 14] = [
    "size",
    "totalDifficulty",
    "transactions",
    "uncles",
    "withdrawals",
    "l1BlockNumber",
    "sendCount",
    "sendRoot",
    "author",
    "sealFields",
    "milliTimestamp",
    "signature",
    "step",
    "blockTimestamp",
];

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a block header")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut raw = RawHeader::default();
        while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            raw.read(&name, &mut map)?;
        }
        if let Some(i) = (0..REQUIRED.len()).find(|i| raw.seen & (1 << i) == 0) {
            return Err(de::Error::missing_field(REQUIRED[i]));
        }
        let Some(hash) = raw.hash else { return Err(de::Error::missing_field("hash")) };
        let seal = if raw.header.hash_slow() == hash {
            Seal::Matches
        } else if raw.unknown_fields {
            Seal::UnknownFields
        } else {
            Seal::Differs
        };
        let h = raw.header;
        Ok(Header {
            block: BlockRef {
                number: h.number,
                hash,
                parent_hash: h.parent_hash,
                timestamp: h.timestamp,
            },
            transactions_root: h.transactions_root,
            receipts_root: h.receipts_root,
            logs_bloom: Box::new(h.logs_bloom),
            gas_used: h.gas_used,
            seal,
        })
    }
}

impl RawHeader {
    fn read<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        if let Some(bit) = REQUIRED.iter().position(|n| *n == name) {
            self.seen |= 1 << bit;
        }
        let h = &mut self.header;
        match name {
            "hash" => self.hash = Some(map.next_value()?),
            "parentHash" => h.parent_hash = map.next_value()?,
            "sha3Uncles" => h.ommers_hash = map.next_value()?,
            "miner" => h.beneficiary = map.next_value()?,
            "stateRoot" => h.state_root = map.next_value()?,
            "transactionsRoot" => h.transactions_root = map.next_value()?,
            "receiptsRoot" => h.receipts_root = map.next_value()?,
            "logsBloom" => h.logs_bloom = map.next_value()?,
            "difficulty" => h.difficulty = map.next_value::<U256>()?,
            "number" => h.number = map.next_value::<Quantity>()?.0,
            "gasLimit" => h.gas_limit = map.next_value::<Quantity>()?.0,
            "gasUsed" => h.gas_used = map.next_value::<Quantity>()?.0,
            "timestamp" => h.timestamp = map.next_value::<Quantity>()?.0,
            "extraData" => h.extra_data = map.next_value()?,
            "mixHash" => h.mix_hash = map.next_value::<Option<B256>>()?.unwrap_or_default(),
            "nonce" => h.nonce = map.next_value::<Option<B64>>()?.unwrap_or_default(),
            "baseFeePerGas" => h.base_fee_per_gas = optional(map)?,
            "withdrawalsRoot" => h.withdrawals_root = map.next_value()?,
            "blobGasUsed" => h.blob_gas_used = optional(map)?,
            "excessBlobGas" => h.excess_blob_gas = optional(map)?,
            "parentBeaconBlockRoot" => h.parent_beacon_block_root = map.next_value()?,
            "requestsHash" => h.requests_hash = map.next_value()?,
            "blockAccessListHash" => h.block_access_list_hash = map.next_value()?,
            "slotNumber" => h.slot_number = optional(map)?,
            known if NOT_HASHED.contains(&known) => {
                map.next_value::<IgnoredAny>()?;
            }
            // A null field is not part of the hash, whatever its name.
            _ => self.unknown_fields |= map.next_value::<Option<IgnoredAny>>()?.is_some(),
        }
        Ok(())
    }
}

fn optional<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<u64>, A::Error> {
    Ok(map.next_value::<Option<Quantity>>()?.map(|q| q.0))
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Some nodes write `0x` when there is no root.
fn root_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<B256>, D::Error> {
    let root = Option::<Bytes>::deserialize(deserializer)?.filter(|root| !root.is_empty());
    root.map(|root| B256::try_from(&root[..]).map_err(de::Error::custom)).transpose()
}

fn bloom_or_none<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Box<Bloom>>, D::Error> {
    d.deserialize_any(BloomVisitor)
}

/// Decodes the bloom from the borrowed text, without copying its 512 digits. Any other value counts as no bloom and
/// does not reject the receipt.
struct BloomVisitor;

impl<'de> Visitor<'de> for BloomVisitor {
    type Value = Option<Box<Bloom>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        let mut bloom = Box::new(Bloom::ZERO);
        Ok(hex::decode_to_slice(text, &mut bloom.0[..]).is_ok().then_some(bloom))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        IgnoredAny.visit_seq(seq).map(|_| None)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        IgnoredAny.visit_map(map).map(|_| None)
    }
}

fn null_is_zero<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Ok(Option::<Quantity>::deserialize(deserializer)?.map_or(0, |q| q.0))
}

/// A JSON-RPC quantity: `0x` followed by hex digits, at most 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantity(pub u64);

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(QuantityVisitor)
    }
}

/// Parses the borrowed text: a log has three quantities, so copying each would be measurable.
struct QuantityVisitor;

impl Visitor<'_> for QuantityVisitor {
    type Value = Quantity;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a 0x quantity of at most 64 bits")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
        text.strip_prefix("0x")
            .filter(|digits| !digits.starts_with('+'))
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .map(Quantity)
            .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

impl Serialize for Quantity {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

mod quantity {
    use super::{Deserialize, Deserializer, Quantity};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
        Ok(Quantity::deserialize(d)?.0)
    }
}

mod optional_quantity {
    use super::{Deserialize, Deserializer, Quantity};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
        Ok(Option::<Quantity>::deserialize(d)?.map(|q| q.0))
    }
}

impl fmt::Display for BlockRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/0x{}", self.number, hex::encode(&self.hash[..4]))
    }
}
