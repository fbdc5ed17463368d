//! A receipt in RLP, as a value of the trie whose root is in the header.
//!
//! Sources: EIP-2718 and EIP-658; OP stack specification, "Deposited transaction receipt".

use alloy_primitives::Bloom;
use alloy_rlp::{BufMut, Encodable, Header as RlpHeader, length_of_length};

use crate::{Log, Receipt};

/// EIP-2718 type of an OP stack deposit.
const OP_DEPOSIT: u64 = 0x7e;

/// The receipt as a value of the trie: `type || rlp([status or root, cumulativeGasUsed, bloom,
/// logs])`, without the type for legacy transactions. Unknown types are encoded the same way; if
/// one is encoded differently, the root does not match, but parsing succeeds.
pub(super) fn encode_receipt(receipt: &Receipt, bloom: &Bloom, out: &mut Vec<u8>) {
    let first_type_byte = receipt.tx_type.leading_zeros() as usize / 8;
    out.put_slice(&receipt.tx_type.to_be_bytes()[first_type_byte..]);

    let logs_length = receipt.logs.iter().map(log_length).sum::<usize>();
    let outcome: &dyn Encodable = match (&receipt.status, &receipt.root) {
        (Some(status), _) => status,
        (None, Some(root)) => root,
        (None, None) => &NoOutcome,
    };
    // OP stack: before Canyon the nonce is in the JSON but not in the encoding.
    let version = receipt.deposit_receipt_version.filter(|_| receipt.tx_type == OP_DEPOSIT);
    let deposit = version.map(|version| (receipt.deposit_nonce.unwrap_or_default(), version));

    let payload_length = outcome.length()
        + receipt.cumulative_gas_used.length()
        + bloom.length()
        + list_length(logs_length)
        + deposit.map_or(0, |(nonce, version)| nonce.length() + version.length());
    RlpHeader { list: true, payload_length }.encode(out);
    outcome.encode(out);
    receipt.cumulative_gas_used.encode(out);
    bloom.encode(out);
    RlpHeader { list: true, payload_length: logs_length }.encode(out);
    receipt.logs.iter().for_each(|log| encode_log(log, out));
    if let Some((nonce, version)) = deposit {
        nonce.encode(out);
        version.encode(out);
    }
}

/// A receipt with neither status nor root: encoded as nothing, so that no root can match.
struct NoOutcome;

impl Encodable for NoOutcome {
    fn encode(&self, _out: &mut dyn BufMut) {}

    fn length(&self) -> usize {
        0
    }
}

fn encode_log(log: &Log, out: &mut Vec<u8>) {
    RlpHeader { list: true, payload_length: log_payload_length(log) }.encode(out);
    log.address.encode(out);
    RlpHeader { list: true, payload_length: log.topics.len() * TOPIC_LENGTH }.encode(out);
    log.topics.iter().for_each(|topic| topic.encode(out));
    log.data.encode(out);
}

/// A topic in RLP: one length byte and 32 bytes.
const TOPIC_LENGTH: usize = 33;

fn log_payload_length(log: &Log) -> usize {
    log.address.length() + list_length(log.topics.len() * TOPIC_LENGTH) + log.data.length()
}

fn log_length(log: &Log) -> usize {
    list_length(log_payload_length(log))
}

fn list_length(payload_length: usize) -> usize {
    length_of_length(payload_length) + payload_length
}
