//! Parses one entry of an event stream independently: packed entries are unpacked by another
//! library than the ingestor's, as an array and not as the record type.

use alloy_primitives::{Address, B256, Bytes};
use anyhow::{Context as _, Result, bail, ensure};
use ethhook_domain::{Encoding, ProcessedEvent};
use rmpv::Value;

/// Parses an entry, given as alternating names and values, and returns how it was encoded.
///
/// # Errors
/// If it is not in our format.
pub(crate) fn read(raw: &[Vec<u8>]) -> Result<(Encoding, ProcessedEvent)> {
    if let [name, packed] = raw
        && name == b"e"
    {
        return Ok((Encoding::Msgpack, unpacked(packed)?));
    }
    let pairs = raw.chunks_exact(2).map(|pair| (pair[0].as_slice(), pair[1].as_slice()));
    Ok((Encoding::Fields, ProcessedEvent::from_fields(pairs)?))
}

fn unpacked(mut packed: &[u8]) -> Result<ProcessedEvent> {
    let Value::Array(values) = rmpv::decode::read_value(&mut packed)? else { bail!("no array") };
    ensure!(packed.is_empty(), "{} bytes after the array", packed.len());
    let count = values.len();
    let [
        chain_id,
        block_number,
        block_hash,
        tx_hash,
        tx_index,
        log_index,
        contract,
        Value::Array(topics),
        data,
        timestamp,
        Value::Boolean(removed),
    ] = values.as_slice()
    else {
        bail!("{count} values, or not of the right kinds");
    };
    Ok(ProcessedEvent {
        chain_id: number(chain_id)?,
        block_number: number(block_number)?,
        block_hash: B256::try_from(binary(block_hash)?)?,
        tx_hash: B256::try_from(binary(tx_hash)?)?,
        tx_index: number(tx_index)?,
        log_index: number(log_index)?,
        contract: Address::try_from(binary(contract)?)?,
        topics: topics.iter().map(|t| Ok(B256::try_from(binary(t)?)?)).collect::<Result<_>>()?,
        data: Bytes::copy_from_slice(binary(data)?),
        timestamp: number(timestamp)?,
        removed: *removed,
    })
}

fn number(value: &Value) -> Result<u64> {
    value.as_u64().with_context(|| format!("{value} is no number"))
}

fn binary(value: &Value) -> Result<&[u8]> {
    // `as_slice` would accept a string, too.
    ensure!(value.is_bin(), "{value} is not binary");
    value.as_slice().context("not binary")
}
