//! Folds a chain's streams and compares them with the chain (G1 to G4): the check after every
//! fault. It reads Redis and the node with its own code, and shares only the record types with the
//! publisher.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use alloy_primitives::B256;
use anyhow::{Context as _, Result, bail};
use ethhook_domain::fold::{Difference, ExpectedBlock, Fold, FoldedBlock, Violation, compare};
use ethhook_domain::{
    ChainId, Cursor, Encoding, EntryId, Filter, Header, Marker, Op, ProcessedEvent, Proof,
};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client};
use tokio::time::{Instant, sleep};

mod records;

use records::mixed;

use crate::entry;
use crate::node_rpc::NodeRpc;

/// Entries per read.
const PAGE: usize = 2_000;
/// How many times both streams are read at most, because steps may come in between.
const LOOKS: usize = 5;
/// The default of `DEDUP_TTL_SECONDS`.
const DEDUP_TTL: Duration = Duration::from_secs(24 * 60 * 60);
const REDIS_TIMEOUT: Duration = Duration::from_secs(10);

/// An entry of a stream, as returned by Redis: its ID, and names and values alternating.
type RawEntry = (String, Vec<Vec<u8>>);

/// Both streams.
struct Read {
    markers: Vec<(EntryId, Marker)>,
    /// The entries that take back another one.
    taken_back: Vec<(EntryId, ProcessedEvent)>,
}

impl Read {
    /// The block that `marker` takes back, as it was added.
    fn orphan(&self, marker: &Marker) -> FoldedBlock {
        let first = marker.first_id.unwrap_or(EntryId::MAX);
        let of_block = |(id, _): &&(EntryId, _)| *id >= first && *id <= marker.last_id;
        let from = self.taken_back.partition_point(|(id, _)| *id < first);
        let taken_back = self.taken_back[from..].iter().take_while(of_block);
        let added =
            |(_, event): &(_, ProcessedEvent)| ProcessedEvent { removed: false, ..event.clone() };
        let mut events: Vec<_> = taken_back.map(added).collect();
        events.reverse();
        let Marker { number, hash, parent_hash, timestamp, proof, .. } = *marker;
        FoldedBlock { number, hash, parent_hash, timestamp, proof, events, skipped_from: None }
    }
}

/// Compares one chain's streams with one node.
#[derive(Debug)]
pub struct Checker {
    redis: MultiplexedConnection,
    node: NodeRpc,
    chain_id: ChainId,
    /// The configured filters: the first, unless a marker says another.
    filters: Vec<Filter>,
    confirmations: u64,
    /// Height of the highest head that there was; none if the chain never became shorter.
    peak: Option<u64>,
    /// The check that each block must have passed; none if any will do.
    verify: Option<Proof>,
    may_be_trimmed: bool,
    dedup_ttl: Duration,
    /// The first block of the stream; none if any will do.
    start: Option<u64>,
}

/// The result of a check.
#[derive(Debug, Default)]
pub struct Report {
    /// Violations within the streams themselves.
    pub violations: Vec<Violation>,
    /// Where the folded stream and the chain differ.
    pub differences: Vec<Difference>,
    /// Where cursor and dedup records do not agree with the streams or the configuration.
    pub records: Vec<String>,
    /// Blocks compared with the chain.
    pub blocks: usize,
    /// Live events compared with the chain.
    pub events: usize,
    /// Orphaned blocks compared with the node, which still knows them.
    pub orphans: usize,
    /// Markers read.
    pub markers: usize,
    /// Entries read, `removed` ones among them.
    pub entries: usize,
    /// Entries that take back another one.
    pub removed: usize,
    /// Entries that are packed.
    pub packed: usize,
}

impl Report {
    /// Whether stream, cursor and chain agree.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty() && self.differences.is_empty() && self.records.is_empty()
    }

    /// # Errors
    /// The whole report, if it is not clean.
    pub fn into_clean(self) -> Result<Self> {
        if self.is_clean() { Ok(self) } else { bail!("{self}") }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Show at most this many of each kind.
        const SHOWN: usize = 20;
        writeln!(
            f,
            "{} blocks with {} events and {} orphans compared; {} markers, {} entries ({} removed)",
            self.blocks, self.events, self.orphans, self.markers, self.entries, self.removed
        )?;
        for line in self.violations.iter().take(SHOWN) {
            writeln!(f, "  stream: {line}")?;
        }
        for line in self.differences.iter().take(SHOWN) {
            writeln!(f, "  chain: {line}")?;
        }
        for line in self.records.iter().take(SHOWN) {
            writeln!(f, "  {line}")?;
        }
        let all = self.violations.len() + self.differences.len() + self.records.len();
        write!(f, "  {all} findings")
    }
}

impl Checker {
    /// A checker of `chain_id` that compares the Redis at `redis_url` with the node.
    ///
    /// # Errors
    /// If Redis cannot be reached.
    pub async fn connect(redis_url: &str, node: NodeRpc, chain_id: ChainId) -> Result<Self> {
        let client = Client::open(redis_url)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(REDIS_TIMEOUT))
            .set_response_timeout(Some(REDIS_TIMEOUT));
        let redis = client.get_multiplexed_async_connection_with_config(&config).await?;
        Ok(Self::over(redis, node, chain_id))
    }

    /// The same over an existing connection, for instance one with TLS.
    #[must_use]
    pub fn over(redis: MultiplexedConnection, node: NodeRpc, chain_id: ChainId) -> Self {
        Self {
            redis,
            node,
            chain_id,
            filters: vec![Filter::default()],
            confirmations: 0,
            peak: None,
            verify: None,
            may_be_trimmed: false,
            dedup_ttl: DEDUP_TTL,
            start: None,
        }
    }

    /// Expects the stream to begin with block `start`, as the configuration says.
    #[must_use]
    pub fn with_start(self, start: u64) -> Self {
        Self { start: Some(start), ..self }
    }

    /// Expects only logs that pass `filter`.
    #[must_use]
    pub fn with_filter(self, filter: Filter) -> Self {
        self.with_filters([filter])
    }

    /// Expects of each block the logs that pass that one of these filters which its marker names.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn with_filters(self, filters: impl IntoIterator<Item = Filter>) -> Self {
        let filters: Vec<_> = filters.into_iter().collect();
        assert!(!filters.is_empty(), "a chain has a filter");
        Self { filters, ..self }
    }

    /// Expects the tip this many blocks behind the head.
    #[must_use]
    pub fn with_confirmations(self, confirmations: u64) -> Self {
        Self { confirmations, ..self }
    }

    /// Allows the chain to have become shorter since its head was at height `peak`.
    #[must_use]
    pub fn with_peak(self, peak: u64) -> Self {
        Self { peak: Some(peak), ..self }
    }

    /// Expects each block to be proven by `verify` or more, or to have been skipped for its bloom.
    #[must_use]
    pub fn with_verify(self, verify: Proof) -> Self {
        Self { verify: Some(verify), ..self }
    }

    /// Expects dedup records only of blocks published no longer ago than this, instead of a day.
    #[must_use]
    pub fn with_dedup_ttl(self, dedup_ttl: Duration) -> Self {
        Self { dedup_ttl, ..self }
    }

    /// Allows the beginnings of the streams to be trimmed by retention.
    #[must_use]
    pub fn with_trimmed_beginning(self) -> Self {
        Self { may_be_trimmed: true, ..self }
    }

    /// Waits until the cursor's tip is the block where the stream should end: the node's head minus
    /// the confirmations, or a higher one of the same chain, if that has become shorter. Returns that block.
    ///
    /// # Errors
    /// If it is not within `limit`; the error shows the cursor's actual position.
    pub async fn settle(&self, limit: Duration) -> Result<Header> {
        let deadline = Instant::now() + limit;
        loop {
            let target = self.target().await?;
            let cursor = self.cursor().await?;
            if let Some(Cursor { number, hash: Some(hash), .. }) = cursor {
                if hash == target.block.hash {
                    return Ok(target);
                }
                let highest = self.peak.map(|peak| peak.saturating_sub(self.confirmations));
                if number > target.block.number
                    && highest.is_some_and(|highest| number <= highest)
                    && let Some(header) = self.node.header_by_number(number).await?
                    && header.block.hash == hash
                {
                    return Ok(header);
                }
            }
            if Instant::now() >= deadline {
                let at = cursor.map_or("nowhere".to_owned(), |c| {
                    format!("{} {:?} (alarm `{}`)", c.number, c.hash, c.alarm)
                });
                let (number, hash) = (target.block.number, target.block.hash);
                bail!("not settled after {limit:?}: cursor at {at}, the chain at {number} {hash}");
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// [`Checker::settle`], then [`Checker::check`].
    ///
    /// # Errors
    /// If it does not settle, or the report is not clean.
    pub async fn settle_and_check(&self, limit: Duration) -> Result<Report> {
        self.settle(limit).await?;
        self.check().await?.into_clean()
    }

    /// Folds the streams as they are and compares what is live with the node's canonical chain,
    /// from the stream's first block to its last, and what was taken back with the blocks that the node still knows.
    /// The chain should not change in the meantime.
    ///
    /// # Errors
    /// If Redis or the node cannot be read, or a record is not in our format.
    pub async fn check(&self) -> Result<Report> {
        let (mut report, fold, read, cursor) = self.read().await?;
        let markers = &read.markers;
        let filters: HashMap<B256, &str> = markers
            .iter()
            .filter(|(_, marker)| marker.op == Op::Add)
            .map(|(_, marker)| (marker.hash, marker.filter.as_str()))
            .collect();
        let mut expected = Vec::new();
        if let Some((first, last)) = fold.canonical().first().zip(fold.canonical().last()) {
            for number in first.number..=last.number {
                let Some(header) = self.node.header_by_number(number).await? else { continue };
                let filter = filters.get(&header.block.hash).copied();
                expected.push(self.expected_block(&header, filter).await?);
            }
        }
        report.records = self.compare_cursor(cursor.as_ref(), markers, &fold).await?;
        let tip = cursor.as_ref().map_or(0, |cursor| cursor.number);
        report.records.extend(mixed(cursor.as_ref(), &report));
        report.records.extend(self.unproven(markers));
        report.records.extend(self.compare_dedup_records(markers, tip).await?);
        report.differences = fold.compare(&expected);
        self.compare_orphans(&mut report, &read).await?;
        report.violations = fold.violations().to_vec();
        report.blocks = expected.len();
        report.events = fold.canonical().iter().map(|block| block.events.len()).sum();
        report.markers = markers.len();
        Ok(report)
    }

    /// Reads both streams and the cursor in one consistent state, unless steps keep coming.
    async fn read(&self) -> Result<(Report, Fold, Read, Option<Cursor>)> {
        let mut looks = 0;
        loop {
            looks += 1;
            let mut report = Report::default();
            let mut fold = if self.may_be_trimmed {
                Fold::from_first_whole_marker(self.chain_id)
            } else {
                Fold::from_start(self.chain_id)
            };
            let before = self.cursor().await?;
            let read = self.feed(&mut fold, &mut report).await?;
            let cursor = self.cursor().await?;
            let seq = |cursor: &Option<Cursor>| cursor.as_ref().map(|cursor| cursor.seq);
            if looks == LOOKS || seq(&before) == seq(&cursor) {
                return Ok((report, fold, read, cursor));
            }
        }
    }

    /// The chain's cursor; `None` before the first start.
    ///
    /// # Errors
    /// If Redis cannot be read, or the cursor is not in our format.
    pub async fn cursor(&self) -> Result<Option<Cursor>> {
        let key = format!("cursor:{{events:{}}}", self.chain_id);
        let raw: Vec<Vec<u8>> =
            redis::cmd("HGETALL").arg(key).query_async(&mut self.redis.clone()).await?;
        if raw.is_empty() {
            return Ok(None);
        }
        Cursor::from_fields(fields(&raw)).map(Some).context("cursor")
    }

    /// Every marker that the stream holds, with its ID.
    ///
    /// # Errors
    /// If Redis cannot be read, or a marker is not in our format.
    pub async fn markers(&self) -> Result<Vec<(EntryId, Marker)>> {
        let key = format!("blocks:{{events:{}}}", self.chain_id);
        let (mut markers, mut after) = (Vec::new(), EntryId::MIN);
        while let Some(last) = self
            .page(&key, after, EntryId::MAX, &mut |id, raw| {
                let marker =
                    Marker::from_fields(fields(raw)).with_context(|| format!("marker {id}"))?;
                markers.push((id, marker));
                Ok(())
            })
            .await?
        {
            after = last;
        }
        Ok(markers)
    }

    /// Passes both streams to `fold`. A step is atomic, so entries that exist when reading begins
    /// have markers by the time those are read; after that, the entries of the newest markers are
    /// read.
    async fn feed(&self, fold: &mut Fold, report: &mut Report) -> Result<Read> {
        let key = format!("events:{}", self.chain_id);
        let (mut after, mut taken_back) = (EntryId::MIN, Vec::new());
        let mut take = |id: EntryId, raw: &[Vec<u8>]| {
            let (encoding, event) = entry::read(raw).with_context(|| format!("entry {id}"))?;
            report.entries += 1;
            report.packed += usize::from(encoding == Encoding::Msgpack);
            if event.removed {
                report.removed += 1;
                taken_back.push((id, event.clone()));
            }
            fold.entry(id, event);
            Ok(())
        };
        while let Some(last) = self.page(&key, after, EntryId::MAX, &mut take).await? {
            after = last;
        }
        let markers = self.markers().await?;
        if let Some((_, newest)) = markers.last() {
            while let Some(last) = self.page(&key, after, newest.last_id, &mut take).await? {
                after = last;
            }
        }
        for (id, marker) in &markers {
            fold.marker(*id, marker);
        }
        fold.finish();
        Ok(Read { markers, taken_back })
    }

    /// Compares the blocks that were taken back with what the node says of them, if it still knows them. (The fold
    /// checks that they were added with the same content.)
    async fn compare_orphans(&self, report: &mut Report, read: &Read) -> Result<()> {
        let mut filters: HashMap<B256, &str> = HashMap::new();
        for (_, marker) in &read.markers {
            match marker.op {
                Op::Add => _ = filters.insert(marker.hash, &marker.filter),
                Op::Remove => {
                    let Some(header) = self.node.header_by_hash(marker.hash).await? else {
                        continue;
                    };
                    let filter = filters.get(&marker.hash).copied();
                    let expected = self.expected_block(&header, filter).await?;
                    report.differences.extend(compare(&[read.orphan(marker)], &[expected]));
                    report.orphans += 1;
                }
                Op::Finalized | Op::Gap => {}
            }
        }
        Ok(())
    }

    /// Reads a page of a stream after `after`; returns the last ID of it, or `None` if it was empty.
    async fn page(
        &self,
        key: &str,
        after: EntryId,
        to: EntryId,
        take: &mut impl FnMut(EntryId, &[Vec<u8>]) -> Result<()>,
    ) -> Result<Option<EntryId>> {
        let entries: Vec<RawEntry> = redis::cmd("XRANGE")
            .arg(key)
            .arg(after.next().to_string())
            .arg(to.to_string())
            .arg("COUNT")
            .arg(PAGE)
            .query_async(&mut self.redis.clone())
            .await?;
        let mut last = None;
        for (id, raw) in &entries {
            let Ok(id) = id.parse() else { bail!("`{id}` is no entry ID") };
            take(id, raw)?;
            last = Some(id);
        }
        Ok(last)
    }

    async fn target(&self) -> Result<Header> {
        let head = self.node.header_by_tag("latest").await?.context("the node has no head")?;
        if self.confirmations == 0 {
            return Ok(head);
        }
        let number = head.block.number.saturating_sub(self.confirmations);
        self.node.header_by_number(number).await?.context("the node has no such block")
    }

    /// The block with this header according to the node, by the filter that its marker names.
    async fn expected_block(&self, header: &Header, named: Option<&str>) -> Result<ExpectedBlock> {
        let block = header.block;
        let number = block.number;
        let mut logs = self.node.logs_of(block.hash).await?;
        let filter = self.filters.iter().find(|filter| named.is_none_or(|n| n == filter.digest()));
        let filter = filter.with_context(|| format!("block {number} has the filter {named:?}"))?;
        logs.retain(|log| filter.passes(log));
        Ok(ExpectedBlock { number, hash: block.hash, timestamp: block.timestamp, logs })
    }
}

fn fields(raw: &[Vec<u8>]) -> impl Iterator<Item = (&[u8], &[u8])> {
    raw.chunks_exact(2).map(|pair| (pair[0].as_slice(), pair[1].as_slice()))
}
