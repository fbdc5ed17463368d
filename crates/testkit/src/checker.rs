//! Folds a chain's streams and compares them with the chain (G1 to G4): the check after every
//! fault. It reads Redis and the node with its own code, and shares only the record types with the
//! publisher.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ethhook_domain::fold::{Difference, ExpectedBlock, Fold, Violation};
use ethhook_domain::{ChainId, Cursor, Encoding, EntryId, Filter, Header, Marker, Op};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client};
use tokio::time::{Instant, sleep};

use crate::entry;
use crate::node_rpc::NodeRpc;

/// Entries per read.
const PAGE: usize = 2_000;
/// How many times both streams are read at most, because steps may come in between.
const LOOKS: usize = 5;
const REDIS_TIMEOUT: Duration = Duration::from_secs(10);

/// An entry of a stream, as returned by Redis: its ID, and names and values alternating.
type RawEntry = (String, Vec<Vec<u8>>);

/// Compares one chain's streams with one node.
#[derive(Debug)]
pub struct Checker {
    redis: MultiplexedConnection,
    node: NodeRpc,
    chain_id: ChainId,
    filter: Filter,
    confirmations: u64,
    may_be_trimmed: bool,
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
    /// Differences between the cursor and the streams.
    pub cursor: Vec<String>,
    /// Blocks compared with the chain.
    pub blocks: usize,
    /// Live events compared with the chain.
    pub events: usize,
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
        self.violations.is_empty() && self.differences.is_empty() && self.cursor.is_empty()
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
            "{} blocks with {} events compared; {} markers, {} entries ({} removed)",
            self.blocks, self.events, self.markers, self.entries, self.removed
        )?;
        for line in self.violations.iter().take(SHOWN) {
            writeln!(f, "  stream: {line}")?;
        }
        for line in self.differences.iter().take(SHOWN) {
            writeln!(f, "  chain: {line}")?;
        }
        for line in &self.cursor {
            writeln!(f, "  cursor: {line}")?;
        }
        let all = self.violations.len() + self.differences.len() + self.cursor.len();
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
            filter: Filter::default(),
            confirmations: 0,
            may_be_trimmed: false,
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
        Self { filter, ..self }
    }

    /// Expects the tip this many blocks behind the head.
    #[must_use]
    pub fn with_confirmations(self, confirmations: u64) -> Self {
        Self { confirmations, ..self }
    }

    /// Allows the beginnings of the streams to be trimmed by retention.
    #[must_use]
    pub fn with_trimmed_beginning(self) -> Self {
        Self { may_be_trimmed: true, ..self }
    }

    /// Waits until the cursor's tip is the block where the stream should end: the node's head minus
    /// the confirmations. Returns that block.
    ///
    /// # Errors
    /// If it is not within `limit`; the error shows the cursor's actual position.
    pub async fn settle(&self, limit: Duration) -> Result<Header> {
        let deadline = Instant::now() + limit;
        loop {
            let target = self.target().await?;
            let cursor = self.cursor().await?;
            if cursor.as_ref().and_then(|c| c.hash) == Some(target.block.hash) {
                return Ok(target);
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
    /// from the stream's first block to its last. The chain should not change in the meantime.
    ///
    /// # Errors
    /// If Redis or the node cannot be read, or a record is not in our format.
    pub async fn check(&self) -> Result<Report> {
        let (mut report, fold, markers, cursor) = self.read().await?;
        let mut expected = Vec::new();
        if let Some((first, last)) = fold.canonical().first().zip(fold.canonical().last()) {
            for number in first.number..=last.number {
                expected.extend(self.expected_block(number).await?);
            }
        }
        report.cursor = self.compare_cursor(cursor.as_ref(), &markers, &fold);
        report.cursor.extend(mixed(cursor.as_ref(), &report));
        report.differences = fold.compare(&expected);
        report.violations = fold.violations().to_vec();
        report.blocks = expected.len();
        report.events = fold.canonical().iter().map(|block| block.events.len()).sum();
        report.markers = markers.len();
        Ok(report)
    }

    /// Reads both streams and the cursor in one consistent state, unless steps keep coming.
    async fn read(&self) -> Result<(Report, Fold, Vec<(EntryId, Marker)>, Option<Cursor>)> {
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
            let markers = self.feed(&mut fold, &mut report).await?;
            let cursor = self.cursor().await?;
            let seq = |cursor: &Option<Cursor>| cursor.as_ref().map(|cursor| cursor.seq);
            if looks == LOOKS || seq(&before) == seq(&cursor) {
                return Ok((report, fold, markers, cursor));
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
    async fn feed(&self, fold: &mut Fold, report: &mut Report) -> Result<Vec<(EntryId, Marker)>> {
        let key = format!("events:{}", self.chain_id);
        let mut after = EntryId::MIN;
        let mut take = |id: EntryId, raw: &[Vec<u8>]| {
            let (encoding, event) = entry::read(raw).with_context(|| format!("entry {id}"))?;
            report.entries += 1;
            report.packed += usize::from(encoding == Encoding::Msgpack);
            report.removed += usize::from(event.removed);
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
        Ok(markers)
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

    /// The canonical block at `number` according to the node; `None` above its head.
    async fn expected_block(&self, number: u64) -> Result<Option<ExpectedBlock>> {
        let Some(header) = self.node.header_by_number(number).await? else { return Ok(None) };
        let block = header.block;
        let mut logs = self.node.logs_of(block.hash).await?;
        logs.retain(|log| self.filter.passes(log));
        Ok(Some(ExpectedBlock { number, hash: block.hash, timestamp: block.timestamp, logs }))
    }

    /// The cursor changes together with the streams (G4), so it must agree with their ends. Retention may have removed
    /// their beginnings, but nothing above the finalized block (G8).
    fn compare_cursor(
        &self,
        cursor: Option<&Cursor>,
        markers: &[(EntryId, Marker)],
        fold: &Fold,
    ) -> Vec<String> {
        let Some(cursor) = cursor else {
            return if markers.is_empty() { Vec::new() } else { vec!["there is none".to_owned()] };
        };
        let mut findings = Vec::new();
        let mut compare = |what: &str, cursor: String, streams: String| {
            if cursor != streams {
                findings.push(format!("{what} is {cursor}, the streams have {streams}"));
            }
        };
        let last_seq = markers.last().map_or(0, |(_, marker)| marker.seq);
        compare("seq", cursor.seq.to_string(), last_seq.to_string());
        let tip = fold.canonical().last();
        if let Some(tip) = tip {
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
        if let Some(start) = self.start.filter(|start| *start != cursor.start_number) {
            findings.push(format!("start_number is {}, not {start}", cursor.start_number));
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
                "the streams begin with block {first:?}, not with {latest} or before"
            ));
        }
        findings
    }
}

fn fields(raw: &[Vec<u8>]) -> impl Iterator<Item = (&[u8], &[u8])> {
    raw.chunks_exact(2).map(|pair| (pair[0].as_slice(), pair[1].as_slice()))
}

/// Checks that all entries have the encoding that the cursor names.
fn mixed(cursor: Option<&Cursor>, report: &Report) -> Option<String> {
    let encoding = cursor?.encoding;
    let right = if encoding == Encoding::Msgpack { report.entries } else { 0 };
    let Report { packed, entries, .. } = report;
    (*packed != right)
        .then(|| format!("encoding is {encoding}, {packed} of {entries} entries are packed"))
}
