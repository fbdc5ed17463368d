//! Alterations of a correct answer; each returns false if it finds nothing to alter.

use std::collections::BTreeMap;

use serde_json::Value;

use super::BloomLie;

impl BloomLie {
    /// Alters a block or header; false if it already has this bloom, or the lie does not apply to
    /// it.
    pub(super) fn tell(self, block: &mut Value) -> bool {
        let Some(field) = block.get_mut("logsBloom") else { return false };
        let zero = format!("0x{}", "0".repeat(512));
        let is_empty = field.as_str() == Some(&zero);
        let lie = match self {
            Self::Zero if is_empty => return false,
            Self::OnEmpty if !is_empty => return false,
            Self::Zero => zero,
            Self::Ones => format!("0x{}", "f".repeat(512)),
            Self::OnEmpty => format!("0x{}{}", "80000001".repeat(3), "0".repeat(488)),
        };
        let changes = field.as_str() != Some(&lie);
        *field = lie.into();
        changes
    }
}

pub(super) fn drop_receipt(result: &mut Value) -> bool {
    let Some(receipts) = result.as_array_mut() else { return false };
    let middle = receipts.len() / 2;
    receipts.get(middle).is_some_and(|receipt| receipt.get("logs").is_some())
        && receipts.remove(middle).is_object()
}

pub(super) fn drop_log(result: &mut Value) -> bool {
    let Some(logs) = some_logs(result) else { return false };
    let middle = logs.len() / 2;
    logs.remove(middle).is_object()
}

pub(super) fn alter_log(result: &mut Value) -> bool {
    let Some(log) = some_logs(result).and_then(|logs| logs.first_mut()) else { return false };
    let field =
        if log["data"].as_str().is_none_or(|data| data.len() <= 2) { "address" } else { "data" };
    other_digit(&mut log[field])
}

/// Makes every receipt and log name the same other block.
pub(super) fn foreign_logs(result: &mut Value) -> bool {
    let Some(items) = result.as_array_mut() else { return false };
    let mut changed = false;
    for item in items {
        changed |= item.get_mut("blockHash").is_some_and(other_digit);
        for log in item.get_mut("logs").and_then(Value::as_array_mut).into_iter().flatten() {
            changed |= log.get_mut("blockHash").is_some_and(other_digit);
        }
    }
    changed
}

pub(super) fn foreign_log(result: &mut Value) -> bool {
    let Some(logs) = some_logs(result) else { return false };
    let middle = logs.len() / 2;
    logs.get_mut(middle).is_some_and(|log| other_digit(&mut log["blockHash"]))
}

/// Removes the logs of the middle log's block, if others remain.
pub(super) fn drop_block(result: &mut Value) -> bool {
    let Some(logs) = some_logs(result) else { return false };
    let dropped = logs[logs.len() / 2]["blockHash"].clone();
    let is_other = |log: &Value| log["blockHash"] != dropped;
    let others = logs.iter().any(is_other);
    if others {
        logs.retain(is_other);
    }
    others
}

/// Cuts the second half off, and the last log of the block that is then the last one.
pub(super) fn cut_range(result: &mut Value) -> bool {
    let Some(logs) = some_logs(result) else { return false };
    let block = logs[logs.len() / 2]["blockHash"].clone();
    let Some(first) = logs.iter().position(|log| log["blockHash"] == block) else { return false };
    let end = logs.iter().skip(first).take_while(|log| log["blockHash"] == block).count() + first;
    let can_cut = end < logs.len() && end - first > 1;
    if can_cut {
        logs.truncate(end - 1);
    }
    can_cut
}

/// Alters the last digit of a hexadecimal text.
fn other_digit(value: &mut Value) -> bool {
    let Some(text) = value.as_str().filter(|text| text.len() > 2) else { return false };
    let last = if text.ends_with('0') { '1' } else { '0' };
    *value = format!("{}{last}", &text[..text.len() - 1]).into();
    true
}

pub(super) fn log_index_per_transaction(result: &mut Value) -> bool {
    let mut next: BTreeMap<String, u64> = BTreeMap::new();
    let mut changed = false;
    for log in all_logs(result) {
        let Some(transaction) = log["transactionHash"].as_str() else { continue };
        let index = next.entry(transaction.to_owned()).or_default();
        let restarted = Value::from(format!("{index:#x}"));
        *index += 1;
        changed |= log["logIndex"] != restarted;
        log["logIndex"] = restarted;
    }
    changed
}

pub(super) fn doubled_log_index(result: &mut Value) -> bool {
    let mut logs = all_logs(result);
    let [first, second, ..] = logs.as_mut_slice() else { return false };
    second["logIndex"] = first["logIndex"].clone();
    true
}

/// All logs of an array of receipts or logs.
fn all_logs(result: &mut Value) -> Vec<&mut Value> {
    let items = result.as_array_mut().into_iter().flatten();
    let logs_of = |item: &'_ mut Value| -> bool { item.get("logs").is_some() };
    let mut logs = Vec::new();
    for item in items {
        if logs_of(item) {
            logs.extend(item["logs"].as_array_mut().into_iter().flatten());
        } else if item.get("topics").is_some() {
            logs.push(item);
        }
    }
    logs
}

/// The result itself, if it is an array of logs, or the logs of the first receipt that has any.
fn some_logs(result: &mut Value) -> Option<&mut Vec<Value>> {
    let items = result.as_array_mut()?;
    if items.first()?.get("topics").is_some() {
        return Some(items);
    }
    let of_receipt = |receipt: &'_ mut Value| -> bool {
        receipt["logs"].as_array().is_some_and(|logs| !logs.is_empty())
    };
    items.iter_mut().find_map(|r| if of_receipt(r) { r["logs"].as_array_mut() } else { None })
}
