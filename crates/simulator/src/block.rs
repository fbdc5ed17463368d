//! A block, simulated or recorded, and its JSON as a node returns it.

use std::sync::Arc;

use alloy_consensus::{EMPTY_OMMER_ROOT_HASH, EMPTY_ROOT_HASH, Header};
use alloy_primitives::{Address, B256, Bytes, b256};
use ethhook_domain::Log;

use crate::body::{BLOB_GAS, Body, DEPOSIT_VERSION, Kind, Transaction};
use crate::json::{Object, push_array, push_hash};
use crate::recorded::Recording;
use crate::seed::{Bits, mix};

/// `sha256("")`, the hash of an empty list of requests (EIP-7685).
const EMPTY_REQUESTS_HASH: B256 =
    b256!("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");

/// A block of one of the node's chains.
#[derive(Debug)]
pub struct Block {
    number: u64,
    hash: B256,
    parent_hash: B256,
    timestamp: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Simulated {
        header: Box<Header>,
        body: Arc<Body>,
        /// Determines the transaction hashes.
        salt: u64,
    },
    Recorded(Recording),
}

/// The inputs of one simulated block.
pub(crate) struct Draft {
    pub(crate) number: u64,
    pub(crate) parent_hash: B256,
    /// Unix seconds.
    pub(crate) timestamp: u64,
    pub(crate) body: Arc<Body>,
    /// Determines the transaction hashes: equal salts mean the same transactions.
    pub(crate) salt: u64,
    /// Distinguishes blocks that are equal in everything else.
    pub(crate) nonce: u64,
}

/// The filter of an `eth_getLogs`.
#[derive(Debug, Default)]
pub(crate) struct LogFilter {
    /// Any of these; empty for all.
    pub(crate) addresses: Vec<Address>,
    /// By position, any of these; empty for all.
    pub(crate) topics: Vec<Vec<B256>>,
}

impl LogFilter {
    pub(crate) fn passes(&self, address: &Address, topics: &[B256]) -> bool {
        (self.addresses.is_empty() || self.addresses.contains(address))
            && self.topics.len() <= topics.len()
            && self
                .topics
                .iter()
                .zip(topics)
                .all(|(any, topic)| any.is_empty() || any.contains(topic))
    }
}

impl Block {
    pub(crate) fn simulated(draft: Draft) -> Self {
        let header = header(&draft);
        let hash = header.hash_slow();
        Self::with_hash(draft, header, hash)
    }

    /// A block whose hash is already known, so that it need not be computed again.
    pub(crate) fn known(draft: Draft, hash: B256) -> Self {
        let header = header(&draft);
        Self::with_hash(draft, header, hash)
    }

    fn with_hash(draft: Draft, header: Header, hash: B256) -> Self {
        Self {
            number: draft.number,
            hash,
            parent_hash: draft.parent_hash,
            timestamp: draft.timestamp,
            content: Content::Simulated {
                header: Box::new(header),
                body: draft.body,
                salt: draft.salt,
            },
        }
    }

    pub(crate) fn recorded(
        number: u64,
        hash: B256,
        parent_hash: B256,
        timestamp: u64,
        recording: Recording,
    ) -> Self {
        Self { number, hash, parent_hash, timestamp, content: Content::Recorded(recording) }
    }

    /// Height.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Hash of the header.
    #[must_use]
    pub fn hash(&self) -> B256 {
        self.hash
    }

    /// Hash of the block below.
    #[must_use]
    pub fn parent_hash(&self) -> B256 {
        self.parent_hash
    }

    /// Unix seconds.
    #[must_use]
    pub fn timestamp(&self) -> u64 {
        self.timestamp
    }

    /// All its logs in order, as a test expects them in the stream.
    #[must_use]
    pub fn logs(&self) -> Vec<Log> {
        let Content::Simulated { body, salt, .. } = &self.content else {
            let mut text = String::new();
            self.write_logs(&LogFilter::default(), &mut text);
            return serde_json::from_str(&format!("[{text}]")).unwrap_or_default();
        };
        let mut logs = Vec::with_capacity(body.events);
        for (i, transaction) in body.transactions.iter().enumerate() {
            let tx_hash = transaction_hash(*salt, i);
            for log in &transaction.logs {
                logs.push(Log {
                    address: log.address,
                    topics: log.topics().to_vec(),
                    data: log.data.data.clone(),
                    block_hash: self.hash,
                    block_number: self.number,
                    tx_hash,
                    tx_index: i as u64,
                    log_index: logs.len() as u64,
                    removed: false,
                });
            }
        }
        logs
    }

    /// The transactions of a simulated block, to be mined again in another block.
    pub(crate) fn transactions(&self) -> Option<(Arc<Body>, u64)> {
        match &self.content {
            Content::Simulated { body, salt, .. } => Some((Arc::clone(body), *salt)),
            Content::Recorded(_) => None,
        }
    }

    /// The header's fields as `newHeads` sends them.
    pub(crate) fn head_json(&self) -> String {
        match &self.content {
            Content::Simulated { header, .. } => {
                let mut out = String::with_capacity(1_800);
                let mut object = Object::open(&mut out);
                write_header(&mut object, header, &self.hash);
                object.close();
                out
            }
            Content::Recorded(recording) => recording.head_json(),
        }
    }

    /// The whole block, with full transactions or only their hashes.
    pub(crate) fn block_json(&self, full: bool) -> String {
        let (header, body, salt) = match &self.content {
            Content::Simulated { header, body, salt } => (header, body, *salt),
            Content::Recorded(recording) => return recording.block_json(full),
        };
        let mut out = String::with_capacity(2_000 + 80 * body.transactions.len());
        let mut object = Object::open(&mut out);
        write_header(&mut object, header, &self.hash);
        object.quantity("size", 700 + 180 * body.transactions.len() as u64);
        object.raw("uncles", "[]");
        object.raw("withdrawals", "[]");
        let all = body.transactions.iter().enumerate();
        push_array(object.field("transactions"), all, |out, (i, transaction)| {
            if full {
                self.write_transaction(out, i, transaction, salt);
            } else {
                push_hash(out, &transaction_hash(salt, i));
            }
        });
        object.close();
        out
    }

    /// The answer of `eth_getBlockReceipts`; none if receipts were not recorded.
    pub(crate) fn receipts_json(&self) -> Option<String> {
        let (body, salt) = match &self.content {
            Content::Simulated { body, salt, .. } => (body, *salt),
            Content::Recorded(recording) => return recording.receipts_json(),
        };
        let mut out =
            String::with_capacity(16 + 1_300 * body.transactions.len() + 720 * body.events);
        let mut log_index = 0;
        let all = body.transactions.iter().enumerate();
        push_array(&mut out, all, |out, (i, transaction)| {
            self.write_receipt(out, i, transaction, salt, &mut log_index);
        });
        Some(out)
    }

    /// Appends the logs that pass, separated by commas, and returns their number; none if logs were
    /// not recorded.
    pub(crate) fn write_logs(&self, filter: &LogFilter, out: &mut String) -> Option<usize> {
        let (body, salt) = match &self.content {
            Content::Simulated { body, salt, .. } => (body, *salt),
            Content::Recorded(recording) => return recording.write_logs(filter, out),
        };
        let mut index = 0;
        let mut written = 0;
        for (i, transaction) in body.transactions.iter().enumerate() {
            let hash = transaction_hash(salt, i);
            for log in &transaction.logs {
                if filter.passes(&log.address, log.topics()) {
                    if written > 0 {
                        out.push(',');
                    }
                    self.write_log(out, i as u64, &hash, index, log);
                    written += 1;
                }
                index += 1;
            }
        }
        Some(written)
    }

    fn write_receipt(
        &self,
        out: &mut String,
        index: usize,
        transaction: &Transaction,
        salt: u64,
        log_index: &mut u64,
    ) {
        let hash = transaction_hash(salt, index);
        let mut object = Object::open(out);
        object.hash("blockHash", &self.hash);
        object.quantity("blockNumber", self.number);
        object.raw("contractAddress", "null");
        object.quantity("cumulativeGasUsed", transaction.cumulative_gas_used);
        object.quantity("effectiveGasPrice", 1_500_000_000);
        object.address("from", &transaction.from);
        object.quantity("gasUsed", transaction.gas_used);
        push_array(object.field("logs"), &transaction.logs, |out, log| {
            self.write_log(out, index as u64, &hash, *log_index, log);
            *log_index += 1;
        });
        object.bloom("logsBloom", &transaction.bloom);
        match transaction.kind {
            Kind::Deposit { nonce } => {
                object.quantity("depositNonce", nonce);
                object.quantity("depositReceiptVersion", DEPOSIT_VERSION);
            }
            Kind::Blob => {
                object.quantity("blobGasUsed", BLOB_GAS);
                object.quantity("blobGasPrice", 1);
            }
            _ => {}
        }
        object.quantity("status", transaction.succeeded.into());
        object.address("to", &transaction.to);
        object.hash("transactionHash", &hash);
        object.quantity("transactionIndex", index as u64);
        object.quantity("type", transaction.kind.number().into());
        object.close();
    }

    fn write_log(
        &self,
        out: &mut String,
        tx_index: u64,
        tx_hash: &B256,
        log_index: u64,
        log: &alloy_primitives::Log,
    ) {
        let mut object = Object::open(out);
        object.address("address", &log.address);
        push_array(object.field("topics"), log.topics(), push_hash);
        object.bytes("data", &log.data.data);
        object.quantity("blockNumber", self.number);
        object.hash("transactionHash", tx_hash);
        object.quantity("transactionIndex", tx_index);
        object.hash("blockHash", &self.hash);
        object.quantity("blockTimestamp", self.timestamp);
        object.quantity("logIndex", log_index);
        object.raw("removed", "false");
        object.close();
    }

    /// A transaction in geth's format; its signature is made up.
    fn write_transaction(
        &self,
        out: &mut String,
        index: usize,
        transaction: &Transaction,
        salt: u64,
    ) {
        let mut bits = Bits::of(&[salt, index as u64, 2]);
        let mut object = Object::open(out);
        object.hash("blockHash", &self.hash);
        object.quantity("blockNumber", self.number);
        object.address("from", &transaction.from);
        object.quantity("gas", transaction.gas_used * 2);
        object.quantity("gasPrice", 1_500_000_000);
        if !matches!(transaction.kind, Kind::Legacy | Kind::AccessList) {
            object.quantity("maxFeePerGas", 2_000_000_000);
            object.quantity("maxPriorityFeePerGas", 500_000_000);
        }
        if transaction.kind != Kind::Legacy {
            object.raw("accessList", "[]");
            object.raw("yParity", "\"0x0\"");
        }
        match transaction.kind {
            Kind::Blob => {
                object.quantity("maxFeePerBlobGas", 10);
                push_array(object.field("blobVersionedHashes"), [bits.hash()], |out, hash| {
                    push_hash(out, &hash);
                });
            }
            Kind::SetCode => object.raw("authorizationList", "[]"),
            Kind::Deposit { .. } => object.hash("sourceHash", &bits.hash()),
            _ => {}
        }
        object.hash("hash", &transaction_hash(salt, index));
        object.raw("input", "\"0x\"");
        object.quantity("nonce", bits.below(100_000));
        object.address("to", &transaction.to);
        object.quantity("transactionIndex", index as u64);
        object.raw("value", "\"0x0\"");
        object.quantity("type", transaction.kind.number().into());
        object.raw("v", "\"0x0\"");
        object.hash("r", &bits.hash());
        object.hash("s", &bits.hash());
        object.close();
    }
}

/// A transaction's hash. It is made up, as no header or receipt proves it.
fn transaction_hash(salt: u64, index: usize) -> B256 {
    Bits::of(&[salt, index as u64]).hash()
}

/// A header in Ethereum's format since Prague. Its `transactionsRoot` is not the true root, since
/// the transactions have no signatures: it is made up, or the empty root if there are none.
fn header(draft: &Draft) -> Header {
    let mut bits = Bits::of(&[draft.salt, 3]);
    let transactions_root =
        if draft.body.transactions.is_empty() { EMPTY_ROOT_HASH } else { bits.hash() };
    let mut extra_data = b"ethhook-simulator".to_vec();
    extra_data.extend_from_slice(&draft.nonce.to_be_bytes());
    Header {
        parent_hash: draft.parent_hash,
        ommers_hash: EMPTY_OMMER_ROOT_HASH,
        beneficiary: bits.address(),
        state_root: Bits::of(&[draft.salt, draft.nonce, 4]).hash(),
        transactions_root,
        receipts_root: draft.body.receipts_root,
        logs_bloom: draft.body.bloom,
        number: draft.number,
        gas_limit: 36_000_000_u64.max(draft.body.gas_used.saturating_mul(2)),
        gas_used: draft.body.gas_used,
        timestamp: draft.timestamp,
        extra_data: Bytes::from(extra_data),
        mix_hash: bits.hash(),
        base_fee_per_gas: Some(1_000_000_000 + mix(&[draft.salt]) % 1_000_000),
        withdrawals_root: Some(EMPTY_ROOT_HASH),
        blob_gas_used: Some(draft.body.blob_gas_used),
        excess_blob_gas: Some(0),
        parent_beacon_block_root: Some(bits.hash()),
        requests_hash: Some(EMPTY_REQUESTS_HASH),
        ..Header::default()
    }
}

fn write_header(object: &mut Object<'_>, header: &Header, hash: &B256) {
    object.hash("parentHash", &header.parent_hash);
    object.hash("sha3Uncles", &header.ommers_hash);
    object.address("miner", &header.beneficiary);
    object.hash("stateRoot", &header.state_root);
    object.hash("transactionsRoot", &header.transactions_root);
    object.hash("receiptsRoot", &header.receipts_root);
    object.bloom("logsBloom", &header.logs_bloom);
    object.raw("difficulty", "\"0x0\"");
    object.quantity("number", header.number);
    object.quantity("gasLimit", header.gas_limit);
    object.quantity("gasUsed", header.gas_used);
    object.quantity("timestamp", header.timestamp);
    object.bytes("extraData", &header.extra_data);
    object.hash("mixHash", &header.mix_hash);
    object.bytes("nonce", header.nonce.as_slice());
    let quantities = [
        ("baseFeePerGas", header.base_fee_per_gas),
        ("blobGasUsed", header.blob_gas_used),
        ("excessBlobGas", header.excess_blob_gas),
    ];
    for (name, value) in quantities {
        object.quantity(name, value.unwrap_or_default());
    }
    let hashes = [
        ("withdrawalsRoot", header.withdrawals_root),
        ("parentBeaconBlockRoot", header.parent_beacon_block_root),
        ("requestsHash", header.requests_hash),
    ];
    for (name, value) in hashes {
        object.hash(name, &value.unwrap_or_default());
    }
    object.hash("hash", hash);
}
