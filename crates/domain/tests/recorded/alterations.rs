//! Ways in which a node may alter receipts and logs.

use alloy_primitives::{B256, Bytes};
use ethhook_domain::{Log, Receipt};

/// One way to alter a node's answer; `None` if it is not possible at this place.
pub(crate) type Alteration = (&'static str, fn(&mut Vec<Receipt>, Place) -> Option<()>);

/// Where to alter: a receipt, and one of its logs for alterations of logs.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) receipt: usize,
    pub(crate) log: usize,
}

fn log_at(receipts: &mut [Receipt], at: Place) -> Option<&mut Log> {
    receipts.get_mut(at.receipt)?.logs.get_mut(at.log)
}

/// Renumbers receipts and logs, so that only the header's commitments show the alteration.
fn renumber(receipts: &mut [Receipt]) {
    let mut log_index = 0;
    for (i, receipt) in (0..).zip(receipts) {
        receipt.tx_index = i;
        for log in &mut receipt.logs {
            (log.tx_index, log.log_index) = (i, log_index);
            log_index += 1;
        }
    }
}

fn flip(hash: &mut B256) {
    hash.0[31] ^= 1;
}

pub(crate) const RECEIPT_ALTERATIONS: &[Alteration] = &[
    ("status or root", |receipts, at| {
        let receipt = &mut receipts[at.receipt];
        match (&mut receipt.status, &mut receipt.root) {
            (Some(status), _) => *status ^= 1,
            (None, root) => flip(root.as_mut()?),
        }
        Some(())
    }),
    ("no status and no root", |receipts, at| {
        (receipts[at.receipt].status, receipts[at.receipt].root) = (None, None);
        Some(())
    }),
    ("cumulative gas up", |receipts, at| {
        receipts[at.receipt].cumulative_gas_used += 1;
        Some(())
    }),
    ("cumulative gas down", |receipts, at| {
        let gas = &mut receipts[at.receipt].cumulative_gas_used;
        *gas = gas.checked_sub(1)?;
        Some(())
    }),
    ("type", |receipts, at| {
        receipts[at.receipt].tx_type ^= 2;
        Some(())
    }),
    ("type of two bytes", |receipts, at| {
        receipts[at.receipt].tx_type |= 0x100;
        Some(())
    }),
    ("deposit nonce", |receipts, at| {
        let receipt = &mut receipts[at.receipt];
        receipt.deposit_receipt_version?;
        *receipt.deposit_nonce.as_mut()? += 1;
        Some(())
    }),
    ("deposit version", |receipts, at| {
        receipts[at.receipt].deposit_receipt_version.take().map(|_| ())
    }),
    ("block hash", |receipts, at| {
        flip(&mut receipts[at.receipt].block_hash);
        Some(())
    }),
    ("transaction hash", |receipts, at| {
        // Nothing is published from a receipt without logs, and nothing proves its hash.
        let receipt = &mut receipts[at.receipt];
        receipt.logs.first()?;
        flip(&mut receipt.tx_hash);
        Some(())
    }),
    ("transaction index", |receipts, at| {
        receipts[at.receipt].tx_index += 1;
        Some(())
    }),
    ("dropped", |receipts, at| {
        receipts.remove(at.receipt);
        Some(())
    }),
    ("dropped, renumbered", |receipts, at| {
        receipts.remove(at.receipt);
        renumber(receipts);
        Some(())
    }),
    ("doubled, renumbered", |receipts, at| {
        receipts.insert(at.receipt, receipts[at.receipt].clone());
        renumber(receipts);
        Some(())
    }),
    ("order", |receipts, at| {
        (at.receipt + 1 < receipts.len()).then(|| receipts.swap(at.receipt, at.receipt + 1))
    }),
    ("order, renumbered, gas kept", |receipts, at| {
        let next = at.receipt + 1;
        receipts.get(next)?;
        receipts.swap(at.receipt, next);
        let gas = receipts[at.receipt].cumulative_gas_used;
        receipts[at.receipt].cumulative_gas_used = receipts[next].cumulative_gas_used;
        receipts[next].cumulative_gas_used = gas;
        renumber(receipts);
        let (a, b) = (&receipts[at.receipt], &receipts[next]);
        let essence = |r: &Receipt| (r.tx_type, r.status, r.root, essence_of_logs(r));
        (essence(a) != essence(b)).then_some(())
    }),
];

fn essence_of_logs(receipt: &Receipt) -> Vec<(Vec<u8>, Vec<B256>, Bytes)> {
    receipt.logs.iter().map(essence).collect()
}

/// The part of a log that the header commits to.
fn essence(log: &Log) -> (Vec<u8>, Vec<B256>, Bytes) {
    (log.address.to_vec(), log.topics.clone(), log.data.clone())
}

pub(crate) const LOG_ALTERATIONS: &[Alteration] = &[
    ("address", |receipts, at| {
        log_at(receipts, at)?.address.0[19] ^= 1;
        Some(())
    }),
    ("first topic", |receipts, at| {
        flip(log_at(receipts, at)?.topics.first_mut()?);
        Some(())
    }),
    ("last topic", |receipts, at| {
        flip(log_at(receipts, at)?.topics.last_mut()?);
        Some(())
    }),
    ("topic dropped", |receipts, at| log_at(receipts, at)?.topics.pop().map(|_| ())),
    ("topic added", |receipts, at| {
        log_at(receipts, at)?.topics.push(B256::ZERO);
        Some(())
    }),
    ("topic order", |receipts, at| {
        let topics = &mut log_at(receipts, at)?.topics;
        (topics.len() > 1 && topics[0] != topics[1]).then(|| topics.swap(0, 1))
    }),
    ("data", |receipts, at| {
        let log = log_at(receipts, at)?;
        let mut data = log.data.to_vec();
        *data.first_mut()? ^= 1;
        log.data = data.into();
        Some(())
    }),
    ("data longer", |receipts, at| {
        let log = log_at(receipts, at)?;
        log.data = [&log.data[..], &[0]].concat().into();
        Some(())
    }),
    ("block hash", |receipts, at| {
        flip(&mut log_at(receipts, at)?.block_hash);
        Some(())
    }),
    ("block number", |receipts, at| {
        log_at(receipts, at)?.block_number += 1;
        Some(())
    }),
    ("transaction hash", |receipts, at| {
        flip(&mut log_at(receipts, at)?.tx_hash);
        Some(())
    }),
    ("transaction index", |receipts, at| {
        log_at(receipts, at)?.tx_index += 1;
        Some(())
    }),
    ("log index", |receipts, at| {
        log_at(receipts, at)?.log_index += 1;
        Some(())
    }),
    ("removed", |receipts, at| {
        log_at(receipts, at)?.removed = true;
        Some(())
    }),
    ("dropped", |receipts, at| {
        log_at(receipts, at)?;
        receipts[at.receipt].logs.remove(at.log);
        Some(())
    }),
    ("dropped, renumbered", |receipts, at| {
        log_at(receipts, at)?;
        receipts[at.receipt].logs.remove(at.log);
        renumber(receipts);
        Some(())
    }),
    ("doubled", |receipts, at| {
        let log = log_at(receipts, at)?.clone();
        receipts[at.receipt].logs.insert(at.log, log);
        Some(())
    }),
    ("doubled, renumbered", |receipts, at| {
        let log = log_at(receipts, at)?.clone();
        receipts[at.receipt].logs.insert(at.log, log);
        renumber(receipts);
        Some(())
    }),
    ("order", |receipts, at| {
        let logs = &mut receipts[at.receipt].logs;
        (at.log + 1 < logs.len()).then(|| logs.swap(at.log, at.log + 1))
    }),
    ("order, renumbered", |receipts, at| {
        let logs = &mut receipts[at.receipt].logs;
        let next = logs.get(at.log + 1)?;
        if essence(&logs[at.log]) == essence(next) {
            return None;
        }
        logs.swap(at.log, at.log + 1);
        renumber(receipts);
        Some(())
    }),
    ("moved to the next receipt", |receipts, at| {
        log_at(receipts, at)?;
        let tx_hash = receipts.get(at.receipt + 1)?.tx_hash;
        let mut log = receipts[at.receipt].logs.pop()?;
        log.tx_hash = tx_hash;
        receipts[at.receipt + 1].logs.insert(0, log);
        renumber(receipts);
        Some(())
    }),
];
