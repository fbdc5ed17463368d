//! A reader of the first chain's events, and the memory that the processes use.

use anyhow::{Context as _, Result};
use redis::Value;

use super::World;

const GROUP: &str = "readers";
/// More entries than arrive between two reads.
const READ_AT_ONCE: usize = 10_000;

impl World {
    fn events_key(&self) -> String {
        format!("events:{}", self.subjects[0].id())
    }

    /// Creates the group as which [`World::read_group`] reads.
    pub(in super::super) async fn create_group(&mut self) -> Result<()> {
        let mut redis = self.store.connection().await?;
        let mut create = redis::cmd("XGROUP");
        create.arg("CREATE").arg(self.events_key()).arg(GROUP).arg("0").arg("MKSTREAM");
        // A chain with entries but without a cursor would be taken for somebody else's by the
        // ingestor.
        while self.first_cursor().await?.is_none() {
            self.pass(std::time::Duration::from_millis(50)).await?;
        }
        Ok(create.exec_async(&mut redis).await?)
    }

    /// Reads new entries and acknowledges them; returns their number.
    pub(in super::super) async fn read_group(&self) -> Result<u64> {
        type Entry = (String, Value);
        let key = self.events_key();
        let mut redis = self.store.connection().await?;
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(GROUP).arg("reader").arg("COUNT").arg(READ_AT_ONCE);
        read.arg("STREAMS").arg(&key).arg(">");
        let streams: Option<Vec<(String, Vec<Entry>)>> = read.query_async(&mut redis).await?;
        let ids: Vec<String> = streams
            .into_iter()
            .flatten()
            .flat_map(|(_, entries)| entries.into_iter().map(|(id, _)| id))
            .collect();
        if ids.is_empty() {
            return Ok(0);
        }
        Ok(redis::cmd("XACK").arg(&key).arg(GROUP).arg(ids).query_async(&mut redis).await?)
    }

    /// How many entries were ever added to the first chain's stream.
    pub(in super::super) async fn added(&self) -> Result<u64> {
        let mut info = redis::cmd("XINFO");
        info.arg("STREAM").arg(self.events_key());
        let mut redis = self.store.connection().await?;
        let info: std::collections::HashMap<String, Value> = info.query_async(&mut redis).await?;
        let added = info.get("entries-added").context("entries-added")?;
        Ok(redis::from_redis_value(added.clone())?)
    }

    /// Resident memory of the first ingestor and `used_memory` of Redis, bytes.
    pub(in super::super) async fn memory(&self) -> Result<(u64, u64)> {
        let resident = self.metric("ethhook_process_resident_memory_bytes").await;
        let mut redis = self.store.connection().await?;
        let info: String = redis::cmd("INFO").arg("memory").query_async(&mut redis).await?;
        let used = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
        let used = used.and_then(|bytes| bytes.trim().parse().ok()).context("used_memory")?;
        Ok((resident.context("no metric of resident memory")?, used))
    }

    /// How many of the first chain's entries retention has removed.
    pub(in super::super) async fn trimmed(&self) -> Option<u64> {
        let chain = self.subjects[0].name();
        self.metric(&format!("ethhook_entries_trimmed_total{{chain=\"{chain}\"}}")).await
    }

    async fn metric(&self, line: &str) -> Option<u64> {
        let value = self.members[0].process.metric(line).await?;
        format!("{value:.0}").parse().ok()
    }
}
