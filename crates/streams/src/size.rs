//! How large a chain's streams are.

use ethhook_domain::EntryId;
use redis::aio::ConnectionLike;

use crate::group::groups;
use crate::keys::Keys;
use crate::reader::{self, Entry, Page, ReadError, query};

/// If more than one entry in this many is pending in groups, Redis' own size estimate is not trusted.
const FEW_PENDING: u64 = 20;
/// Entries sampled at each end of a stream.
const SAMPLE: usize = 50;
/// Bytes per value, and per entry, in addition to the values themselves: lengths, and the entry's share of the nodes.
/// A node stores the field names only once.
const BESIDE_VALUE: usize = 3;
const BESIDE_ENTRY: usize = 50;

/// The size of a chain's two streams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) entries: u64,
    entry_bytes: u64,
    markers: u64,
    marker_bytes: u64,
}

impl Size {
    /// Bytes of entries and markers.
    pub(crate) fn bytes(&self) -> u64 {
        self.entry_bytes.saturating_add(self.marker_bytes)
    }

    /// About how many bytes an entry takes; 0 if there is none.
    pub(crate) fn of_entry(&self) -> u64 {
        self.entry_bytes.checked_div(self.entries).unwrap_or(0)
    }

    /// About how many bytes a block with this many entries takes, or its marker alone.
    pub(crate) fn of_block(&self, entries: u64) -> u64 {
        let entry = self.of_entry();
        let marker = self.marker_bytes.checked_div(self.markers).unwrap_or(0);
        marker.saturating_add(entry.saturating_mul(entries))
    }
}

/// Measures a chain's streams: Redis' estimate from a sample
/// (<https://redis.io/docs/latest/commands/memory-usage/>), unless many entries are pending in groups. For each
/// pending entry Redis counts 550 to 1,050 bytes although it takes 90 to 250 (seen on 7.0.15 and 8.2.3; Valkey 9.1.2
/// counts what it takes), so that a group that reads ahead would make a stream look twice as large. In that case the
/// estimate is capped at what the entries themselves take.
pub(crate) async fn measure(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
) -> Result<Size, ReadError> {
    let (entries, entry_bytes) = of_stream(connection, &keys.events).await?;
    let (markers, marker_bytes) = of_stream(connection, &keys.blocks).await?;
    Ok(Size { entries, entry_bytes, markers, marker_bytes })
}

/// Number of entries of the stream `key`, and about how many bytes they take.
async fn of_stream(
    connection: &mut impl ConnectionLike,
    key: &str,
) -> Result<(u64, u64), ReadError> {
    let len = length(connection, key).await?;
    let usage: Option<u64> =
        query(redis::cmd("MEMORY").arg("USAGE").arg(key), connection, key).await?;
    let usage = usage.unwrap_or(0);
    let pending: u64 = groups(connection, key).await?.iter().map(|group| group.pending).sum();
    if pending <= len / FEW_PENDING {
        return Ok((len, usage));
    }
    let oldest = Page::after(EntryId::MIN, SAMPLE);
    let mut sample = reader::range(connection, key, oldest).await?;
    sample.extend(reader::newest(connection, key, SAMPLE).await?);
    let held: usize = sample.iter().map(bytes).sum();
    let all = u128::from(len) * held as u128 / sample.len().max(1) as u128;
    Ok((len, usage.min(all.try_into().unwrap_or(u64::MAX))))
}

fn bytes(entry: &Entry) -> usize {
    entry.pairs().map(|(_, value)| value.len() + BESIDE_VALUE).sum::<usize>() + BESIDE_ENTRY
}

/// `XLEN`: 0 for a key that does not exist.
pub(crate) async fn length(
    connection: &mut impl ConnectionLike,
    key: &str,
) -> Result<u64, ReadError> {
    query(redis::cmd("XLEN").arg(key), connection, key).await
}
