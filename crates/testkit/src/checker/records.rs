//! Cursor and dedup records, which change together with the streams (G4) and so must agree with them.

use std::collections::HashMap;
use std::time::Duration;

use alloy_primitives::B256;
use anyhow::Result;
use ethhook_domain::fold::Fold;
use ethhook_domain::{Cursor, Encoding, EntryId, Marker, Op, Proof};

use super::{Checker, Report};

/// Records of blocks that were deep when they were published are kept this long at most.
const DEEP_DEDUP_TTL: Duration = Duration::from_secs(60);
/// The newest blocks, at least, were not deep.
const SHALLOW: u64 = 4;
/// Dedup records per read.
const RECORDS: usize = 500;

impl Checker {
    /// Compares the cursor with the ends of the streams, and with what the checker expects of the configuration.
    /// Retention may have removed the beginnings of the streams, but nothing above the finalized block (G8).
    pub(super) async fn compare_cursor(
        &self,
        cursor: Option<&Cursor>,
        markers: &[(EntryId, Marker)],
        fold: &Fold,
    ) -> Result<Vec<String>> {
        let Some(cursor) = cursor else {
            let lost = (!markers.is_empty()).then(|| "there is no cursor".to_owned());
            return Ok(lost.into_iter().collect());
        };
        let mut findings = Vec::new();
        let mut compare = |what: &str, cursor: String, expected: String| {
            if cursor != expected {
                findings.push(format!("cursor: {what} is {cursor}, not {expected}"));
            }
        };
        let newest = markers.last().map(|(_, marker)| marker);
        compare("seq", cursor.seq.to_string(), newest.map_or(0, |marker| marker.seq).to_string());
        if let Some(tip) = fold.canonical().last() {
            compare("number", cursor.number.to_string(), tip.number.to_string());
            compare("hash", format!("{:?}", cursor.hash), format!("{:?}", Some(tip.hash)));
        }
        if let Some((number, hash)) = fold.finalized() {
            compare("finalized_number", cursor.finalized_number.to_string(), number.to_string());
            let held = format!("{:?}", cursor.finalized_hash);
            compare("finalized_hash", held, format!("{:?}", Some(hash)));
        } else if !self.may_be_trimmed {
            compare("finalized_hash", format!("{:?}", cursor.finalized_hash), "None".to_owned());
        }
        if let Some(start) = self.start {
            compare("start_number", cursor.start_number.to_string(), start.to_string());
        }
        compare("alarm", cursor.alarm.clone(), String::new());
        let published = markers.iter().rfind(|(_, marker)| marker.op != Op::Finalized);
        if let Some((_, marker)) = published {
            compare("filter", cursor.filter.clone(), marker.filter.clone());
        }
        if let (Some(held), Some(genesis)) =
            (cursor.genesis_hash, self.node.header_by_number(0).await?)
        {
            compare("genesis_hash", held.to_string(), genesis.block.hash.to_string());
        }
        let skipped = markers.iter().any(|(_, marker)| marker.op == Op::Gap);
        let first = fold.canonical().first().map(|first| first.number);
        let latest = match cursor.finalized() {
            Some(finalized) if self.may_be_trimmed => finalized + 1,
            _ => cursor.start_number,
        };
        let begins = first.is_some_and(|first| first <= latest) || skipped;
        if cursor.hash.is_some() && !begins {
            findings.push(format!(
                "cursor: the streams begin with block {first:?}, not with {latest} or before"
            ));
        }
        Ok(findings)
    }

    /// Checks that there is a dedup record of each live block with entries, as its marker says, and of no orphaned
    /// one.
    pub(super) async fn compare_dedup_records(
        &self,
        markers: &[(EntryId, Marker)],
        tip: u64,
    ) -> Result<Vec<String>> {
        // Of a block that was added twice, the last marker counts.
        let mut expected: HashMap<B256, (u64, Option<(EntryId, String)>)> = HashMap::new();
        for (_, marker) in markers {
            let record = match (marker.op, marker.first_id) {
                (Op::Add, Some(first)) => {
                    let Marker { events, last_id, .. } = marker;
                    Some((marker.last_id, format!("{events} {first} {last_id}")))
                }
                (Op::Add | Op::Remove, _) => None,
                (Op::Finalized | Op::Gap, _) => continue,
            };
            expected.insert(marker.hash, (marker.number, record));
        }
        let mut findings = Vec::new();
        let expected: Vec<_> = expected.into_iter().collect();
        for part in expected.chunks(RECORDS) {
            let mut command = redis::cmd("MGET");
            for (hash, _) in part {
                command.arg(format!("seen:{{events:{}}}:{hash}", self.chain_id));
            }
            let found: Vec<Option<String>> = command.query_async(&mut self.redis.clone()).await?;
            let now = self.redis_time().await?;
            let published_before = |ttl: Duration| now.saturating_sub(ttl.as_secs() * 1_000);
            for ((hash, (number, expected)), found) in part.iter().zip(found) {
                let wanted = expected.as_ref().map(|(_, record)| record);
                let may_be_deep = number + SHALLOW < tip;
                let deep_ttl = self.dedup_ttl.min(DEEP_DEDUP_TTL);
                let oldest = published_before(if may_be_deep { deep_ttl } else { self.dedup_ttl });
                let may_be_gone = expected.as_ref().is_some_and(|(last, _)| last.ms <= oldest);
                if found.as_ref() != wanted && !(found.is_none() && may_be_gone) {
                    findings.push(format!(
                        "dedup record of block {number} {hash}: {found:?}, not {wanted:?}"
                    ));
                }
            }
        }
        Ok(findings)
    }

    /// The added blocks whose proof is weaker than the configured one.
    pub(super) fn unproven(&self, markers: &[(EntryId, Marker)]) -> Vec<String> {
        let Some(verify) = self.verify else { return Vec::new() };
        let is_weak = |marker: &&Marker| {
            let is_skipped = marker.events == 0 && marker.proof == Proof::Bloom;
            // The strongest is the least.
            marker.op == Op::Add && marker.proof > verify && !is_skipped
        };
        let weak = markers.iter().map(|(_, marker)| marker).filter(is_weak);
        weak.map(|m| format!("block {} {} has the proof {}", m.number, m.hash, m.proof)).collect()
    }

    /// Unix milliseconds.
    async fn redis_time(&self) -> Result<u64> {
        let (seconds, micros): (u64, u64) =
            redis::cmd("TIME").query_async(&mut self.redis.clone()).await?;
        Ok(seconds * 1_000 + micros / 1_000)
    }
}

/// Checks that all entries have the encoding that the cursor names.
pub(super) fn mixed(cursor: Option<&Cursor>, report: &Report) -> Option<String> {
    let encoding = cursor?.encoding;
    let right = if encoding == Encoding::Msgpack { report.entries } else { 0 };
    let Report { packed, entries, .. } = report;
    (*packed != right).then(|| {
        format!("cursor: encoding is {encoding}, {packed} of {entries} entries are packed")
    })
}
