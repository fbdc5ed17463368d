//! The content of a simulated block: transactions, their receipts and logs, and the roots that the
//! header takes from them.
//!
//! Neither `receiptsRoot` nor the bloom depends on the block's number or on transaction hashes, so
//! one body can be used in many blocks: a chain keeps a few bodies ([`Pool`]), and its history
//! costs one header hash per block.

use std::sync::{Arc, OnceLock};

use alloy_consensus::proofs::ordered_trie_root_with_encoder;
use alloy_consensus::{Receipt, RlpEncodableReceipt};
use alloy_primitives::{Address, B256, Bloom, Log, logs_bloom};
use alloy_rlp::{Encodable, Header as RlpHeader};

use crate::events::Contracts;
use crate::limits::BODIES;
use crate::seed::{Bits, mix};

/// Kinds of chains, by their special transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Ethereum,
    /// Every block starts with a deposit.
    OpStack,
    /// Every block starts with an internal transaction.
    Arbitrum,
    /// Blocks may end with a state-sync transaction, which since PIP-74 is covered by all roots.
    Polygon,
}

impl Family {
    pub(crate) fn of(chain_id: u64) -> Self {
        match chain_id {
            10 | 8453 => Self::OpStack,
            42161 => Self::Arbitrum,
            137 => Self::Polygon,
            _ => Self::Ethereum,
        }
    }
}

/// EIP-2718 types that a simulated transaction may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Legacy,
    AccessList,
    DynamicFee,
    Blob,
    SetCode,
    /// OP stack since Canyon: the nonce is part of the encoded receipt.
    Deposit {
        nonce: u64,
    },
    ArbitrumInternal,
    /// Polygon, PIP-74.
    StateSync,
}

impl Kind {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Legacy => 0,
            Self::AccessList => 1,
            Self::DynamicFee => 2,
            Self::Blob => 3,
            Self::SetCode => 4,
            Self::Deposit { .. } => 0x7e,
            Self::ArbitrumInternal => 0x6a,
            Self::StateSync => 0x7f,
        }
    }

    /// The kind of a user's transaction, most often the usual one.
    fn of_a_user(bits: &mut Bits, family: Family) -> Self {
        match bits.below(20) {
            0..=3 => Self::Legacy,
            4 => Self::AccessList,
            5 if family == Family::Ethereum => Self::Blob,
            6 => Self::SetCode,
            _ => Self::DynamicFee,
        }
    }
}

/// `depositReceiptVersion` since Canyon.
pub(crate) const DEPOSIT_VERSION: u64 = 1;

/// Gas of one blob (EIP-4844).
pub(crate) const BLOB_GAS: u64 = 131_072;

#[derive(Debug)]
pub(crate) struct Transaction {
    pub(crate) kind: Kind,
    pub(crate) from: Address,
    pub(crate) to: Address,
    pub(crate) succeeded: bool,
    pub(crate) gas_used: u64,
    pub(crate) cumulative_gas_used: u64,
    pub(crate) bloom: Box<Bloom>,
    pub(crate) logs: Vec<Log>,
}

/// Transactions with their receipts, and the header fields that follow from them.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) transactions: Vec<Transaction>,
    pub(crate) receipts_root: B256,
    pub(crate) bloom: Bloom,
    pub(crate) gas_used: u64,
    pub(crate) blob_gas_used: u64,
    pub(crate) events: usize,
}

impl Body {
    /// A body of no transactions.
    pub(crate) fn empty() -> Self {
        Self::new(Vec::new())
    }

    /// A body with exactly `events` logs, 1 to 3 per transaction, between transactions that emit
    /// none: plain transfers, failed ones, and those with which a chain of this family starts its
    /// blocks. Without events it is empty.
    pub(crate) fn generated(mut bits: Bits, events: usize, family: Family) -> Self {
        if events == 0 {
            return Self::empty();
        }
        let contracts = Contracts::of(&mut bits);
        let mut transactions: Vec<Transaction> = opening(&mut bits, family).into_iter().collect();
        // A state-sync transaction at the end holds some of the logs.
        let synced = if family == Family::Polygon { bits.below(4).min(events as u64) } else { 0 };
        let mut left = events - to_index(synced);
        while left > 0 {
            let silent = bits.below(6) == 0;
            let count = if silent { 0 } else { left.min(1 + to_index(bits.below(3))) };
            left -= count;
            let logs = (0..count).map(|_| contracts.log(&mut bits)).collect();
            transactions.push(transaction(&mut bits, logs, family));
        }
        if synced > 0 {
            let logs = (0..synced).map(|_| contracts.log(&mut bits)).collect();
            transactions.push(system(Kind::StateSync, 0, logs));
        }
        Self::new(transactions)
    }

    /// A body of only these transactions, given by their logs.
    pub(crate) fn with_logs(mut bits: Bits, transactions: Vec<Vec<Log>>, family: Family) -> Self {
        let make = |logs| transaction(&mut bits, logs, family);
        Self::new(transactions.into_iter().map(make).collect())
    }

    fn new(mut transactions: Vec<Transaction>) -> Self {
        let mut bloom = Bloom::ZERO;
        let mut gas_used = 0;
        let mut blob_gas_used = 0;
        let mut events = 0;
        for transaction in &mut transactions {
            gas_used += transaction.gas_used;
            blob_gas_used += if transaction.kind == Kind::Blob { BLOB_GAS } else { 0 };
            transaction.cumulative_gas_used = gas_used;
            bloom |= *transaction.bloom;
            events += transaction.logs.len();
        }
        let receipts_root = ordered_trie_root_with_encoder(&transactions, |transaction, out| {
            transaction.encode_receipt(out);
        });
        Self { transactions, receipts_root, bloom, gas_used, blob_gas_used, events }
    }
}

impl Transaction {
    /// The receipt as a value of the trie. Written for each type according to its specification,
    /// independently of the ingestor's check, so that each confirms the other.
    fn encode_receipt(&self, out: &mut Vec<u8>) {
        if self.kind != Kind::Legacy {
            out.push(self.kind.number());
        }
        let receipt = Receipt {
            status: self.succeeded.into(),
            cumulative_gas_used: self.cumulative_gas_used,
            logs: self.logs.clone(),
        };
        let Kind::Deposit { nonce } = self.kind else {
            return receipt.rlp_encode_with_bloom(&self.bloom, out);
        };
        let payload_length = receipt.rlp_encoded_fields_length_with_bloom(&self.bloom)
            + nonce.length()
            + DEPOSIT_VERSION.length();
        RlpHeader { list: true, payload_length }.encode(out);
        receipt.rlp_encode_fields_with_bloom(&self.bloom, out);
        nonce.encode(out);
        DEPOSIT_VERSION.encode(out);
    }
}

fn transaction(bits: &mut Bits, logs: Vec<Log>, family: Family) -> Transaction {
    let mut kind = Kind::of_a_user(bits, family);
    if family == Family::OpStack && bits.below(16) == 0 {
        kind = Kind::Deposit { nonce: bits.below(1_000_000) };
    }
    let gas_used = 21_000 + 30_000 * logs.len() as u64 + bits.below(20_000);
    Transaction {
        kind,
        from: bits.address(),
        to: logs.first().map_or_else(|| bits.address(), |log| log.address),
        // Only transactions without logs can have failed.
        succeeded: !logs.is_empty() || bits.below(4) != 0,
        gas_used,
        cumulative_gas_used: 0,
        bloom: Box::new(logs_bloom(&logs)),
        logs,
    }
}

/// The transaction with which the chain itself starts each block.
fn opening(bits: &mut Bits, family: Family) -> Option<Transaction> {
    match family {
        Family::OpStack => {
            Some(system(Kind::Deposit { nonce: bits.below(1 << 32) }, 46_000, Vec::new()))
        }
        Family::Arbitrum => Some(system(Kind::ArbitrumInternal, 0, Vec::new())),
        Family::Ethereum | Family::Polygon => None,
    }
}

/// A transaction of the chain itself, without a sender.
fn system(kind: Kind, gas_used: u64, logs: Vec<Log>) -> Transaction {
    Transaction {
        kind,
        from: Address::ZERO,
        to: Address::ZERO,
        succeeded: true,
        gas_used,
        cumulative_gas_used: 0,
        bloom: Box::new(logs_bloom(&logs)),
        logs,
    }
}

pub(crate) fn to_index(small: u64) -> usize {
    usize::try_from(small).unwrap_or_default()
}

/// The bodies of one chain, each generated when first needed.
#[derive(Debug)]
pub(crate) struct Pool {
    seed: u64,
    events: usize,
    family: Family,
    empty: Arc<Body>,
    empty_every: u64,
    bodies: Vec<OnceLock<Arc<Body>>>,
}

impl Pool {
    /// Bodies of `events` logs, except that every `empty_every`th block (0: none) has no
    /// transactions.
    pub(crate) fn new(seed: u64, chain_id: u64, events: usize, empty_every: u64) -> Self {
        Self {
            seed,
            events,
            family: Family::of(chain_id),
            empty: Arc::new(Body::empty()),
            empty_every,
            bodies: (0..BODIES).map(|_| OnceLock::new()).collect(),
        }
    }

    /// The body for this height and `salt`. The genesis is empty.
    pub(crate) fn pick(&self, number: u64, salt: u64) -> Arc<Body> {
        let asked = self.empty_every > 0 && number.is_multiple_of(self.empty_every);
        if number == 0 || asked {
            return Arc::clone(&self.empty);
        }
        let slot = mix(&[salt, 1]) % BODIES as u64;
        let bits = || Bits::of(&[self.seed, slot]);
        let make = || Arc::new(Body::generated(bits(), self.events, self.family));
        Arc::clone(self.bodies[to_index(slot)].get_or_init(make))
    }
}
