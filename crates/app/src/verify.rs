//! `ethhook verify`: compares a chain's streams with the chain.
//!
//! The streams are replayed by `domain`'s fold from the first marker of the range to their end, so
//! that every inconsistency in them is found, and the blocks of the range are fetched and checked
//! as by the ingestor. Neither is held in memory as a whole: final blocks are compared and then
//! dropped.

use std::collections::{HashSet, VecDeque};

use anyhow::{Context, bail, ensure};
use ethhook_domain::fold::{
    Difference, ExpectedBlock, Fold, FoldedBlock, MAX_REPORTED, Problem, Violation, compare,
};
use ethhook_domain::{ChainId, Cursor, EntryId, Filter, Op};
use ethhook_ingest::inquiry::{CheckedBlock, Inquiry};
use ethhook_streams::{StreamPosition, Streams};

use crate::Exit;
use crate::bar::Bar;
use crate::config::Inputs;
use crate::node::BLOCKS_PER_QUESTION;
use crate::output::say;
use crate::target::Target;

/// Markers read at once.
const MARKERS_PER_READ: usize = 256;
/// Entries read at once.
const EVENTS_PER_READ: usize = 1_000;

/// The range of blocks to compare.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    /// None: from the first block that the stream holds completely.
    pub(crate) from: Option<u64>,
    /// None: to the newest final block, or if none is final yet, to the newest one.
    pub(crate) to: Option<u64>,
}

/// Prints every difference, and how many there are.
///
/// # Errors
/// If the range is not in the stream, or Redis or the node do not answer.
pub(crate) async fn run(inputs: &Inputs, chain: &str, range: Range) -> anyhow::Result<Exit> {
    let target = Target::load(inputs, chain)?;
    let cursor = target.cursor().await?;
    let (position, from, to) = locate(&target, &cursor, range).await?;
    say!("Chain {}: comparing blocks {from} to {to} of the stream with the chain.", target.name());
    let retreats = find_retreats(&target, &position).await?;
    let mut verification = Verification {
        streams: &target.streams,
        inquiry: Inquiry::open(&target.chain, cursor.genesis_hash)?,
        chain: target.id(),
        filter: &target.chain.filter,
        fold: Fold::after(target.id(), position.marker.seq - 1, position.after_entry),
        at: position.after_entry,
        next: from,
        to,
        retreats: retreats.iter().copied().collect(),
        other_filter: HashSet::new(),
        tally: Tally::default(),
        bar: Bar::new("blocks", to - from + 1),
    };
    verification.replay(position.after_marker).await?;
    verification.rest().await?;
    let Verification { fold, tally, bar, .. } = verification;
    bar.end();
    report(&target, &cursor, to, &retreats, fold.violations(), &tally)
}

/// Prints all that was found up to block `to`.
///
/// # Errors
/// If there was nothing to compare.
fn report(
    target: &Target,
    cursor: &Cursor,
    to: u64,
    retreats: &[(EntryId, u64)],
    violations: &[Violation],
    tally: &Tally,
) -> anyhow::Result<Exit> {
    for (id, number) in retreats {
        say!("An operator moved finality back to block {number} (marker {id}).");
    }
    let is_retreat = |violation: &&Violation| {
        violation.problem == Problem::Finalized
            && retreats.iter().any(|(id, _)| *id == violation.at)
    };
    let faults: Vec<_> = violations.iter().filter(|v| !is_retreat(v)).collect();
    faults.iter().for_each(|violation| say!("{violation}"));
    tally.differences.iter().for_each(|difference| say!("{difference}"));
    let is_short = tally.last_seq < cursor.seq;
    if is_short {
        say!(
            "the newest marker has seq {}, although the cursor is at seq {}: markers are missing at the end",
            tally.last_seq,
            cursor.seq
        );
    }
    if tally.skipped > 0 {
        say!("{} of these blocks are not in the stream: an operator skipped them.", tally.skipped);
    }
    if tally.other_filter > 0 {
        let prefix = target.name().to_uppercase();
        say!(
            "{} of these blocks were published with another filter ({prefix}_CONTRACTS, {prefix}_TOPICS) than the \
             configured one: their logs were not compared with the chain.",
            tally.other_filter
        );
    }
    let count = faults.len() + tally.differences.len() + usize::from(is_short);
    ensure!(
        count > 0 || tally.other_filter == 0 || tally.blocks > 0,
        "there is nothing to compare: configure the filter of these blocks, or choose others"
    );
    if count == 0 {
        say!("No differences: {} blocks with {} events.", tally.blocks, tally.events);
        return Ok(Exit::Done);
    }
    let more = if count >= MAX_REPORTED { " or more" } else { "" };
    say!(
        "{count} differences{more}. `ethhook rewind` repairs blocks that are not final, but not missing \
         entries of the stream: for those, `ethhook reset`."
    );
    if cursor.finalized().is_none_or(|finalized| to > finalized) {
        say!("Not all of these blocks are final: a reorg in the meantime shows as a difference.");
    }
    Ok(Exit::Differs)
}

/// The position where the streams begin to cover the range, and the range.
async fn locate(
    target: &Target,
    cursor: &Cursor,
    range: Range,
) -> anyhow::Result<(StreamPosition, u64, u64)> {
    let tip = cursor.tip().context("nothing is published yet")?;
    let to = match range.to {
        Some(to) => to,
        None => cursor.finalized().unwrap_or(tip),
    };
    ensure!(to <= tip, "block {to} is not published yet: the stream ends with block {tip}");
    let least = range.from.unwrap_or(0);
    let position = target.streams.position(target.id(), |marker| marker.number >= least).await?;
    let position = position.context("no block of the range is in the stream any more")?;
    let kept = match position.marker.op {
        Op::Gap => position.marker.number + 1,
        _ => position.marker.number,
    };
    let from = match range.from {
        Some(from) if from < kept && position.marker.op != Op::Gap => {
            bail!("the stream only has blocks from {kept} on: --from must not be below that")
        }
        Some(from) => from.max(kept),
        None => kept,
    };
    if let (Op::Gap, Some(asked)) = (position.marker.op, range.from) {
        ensure!(
            kept <= to,
            "blocks {asked} to {to} are not in the stream: an operator skipped them"
        );
    }
    ensure!(from <= to, "there is nothing to compare: the range is {from} to {to}");
    Ok((position, from, to))
}

/// The markers, from `position` on, by which an operator moved finality back, and to which heights.
async fn find_retreats(
    target: &Target,
    position: &StreamPosition,
) -> anyhow::Result<Vec<(EntryId, u64)>> {
    let (mut after, mut finalized, mut found) = (position.after_marker, None, Vec::new());
    loop {
        let markers = target.streams.markers(target.id(), after, MARKERS_PER_READ).await?;
        let Some((last, _)) = markers.last() else { return Ok(found) };
        after = *last;
        for (id, marker) in markers.into_iter().filter(|(_, m)| m.op == Op::Finalized) {
            if finalized.replace(marker.number).is_some_and(|before| marker.number < before) {
                found.push((id, marker.number));
            }
        }
    }
}

/// The results so far.
#[derive(Debug, Default)]
struct Tally {
    differences: Vec<Difference>,
    blocks: usize,
    events: usize,
    /// Blocks of the range that an operator skipped.
    skipped: u64,
    /// `seq` of the newest marker.
    last_seq: u64,
    /// Blocks of the range that were published with another filter than the configured one.
    other_filter: u64,
}

struct Verification<'a> {
    streams: &'a Streams,
    inquiry: Inquiry,
    chain: ChainId,
    filter: &'a Filter,
    fold: Fold,
    /// The entry up to which the stream has been read.
    at: EntryId,
    /// The next block to compare.
    next: u64,
    to: u64,
    /// The moves of finality back that are still ahead.
    retreats: VecDeque<(EntryId, u64)>,
    /// Heights whose newest markers name another filter.
    other_filter: HashSet<u64>,
    tally: Tally,
    bar: Bar,
}

impl Verification<'_> {
    /// Replays both streams to their end, markers from the one after `marker_id` on.
    async fn replay(&mut self, mut marker_id: EntryId) -> anyhow::Result<()> {
        let digest = self.filter.digest();
        let mut last_read = None;
        loop {
            let markers = self.streams.markers(self.chain, marker_id, MARKERS_PER_READ).await?;
            if markers.is_empty() {
                // Entries after the last marker belong to the next marker, or to none.
                let fed = self.feed(None).await?;
                if fed && !self.streams.markers(self.chain, marker_id, 1).await?.is_empty() {
                    continue;
                }
                self.fold.finish();
                return self.check_kept(last_read).await;
            }
            for (id, marker) in markers {
                self.feed(Some(marker.last_id)).await?;
                self.fold.marker(id, &marker);
                self.tally.last_seq = marker.seq;
                if self.retreats.front().is_some_and(|(retreat, _)| *retreat == id) {
                    self.retreats.pop_front();
                }
                match marker.op {
                    Op::Add if marker.filter != digest => {
                        self.other_filter.insert(marker.number);
                    }
                    Op::Add | Op::Remove => {
                        self.other_filter.remove(&marker.number);
                    }
                    _ => {}
                }
                marker_id = id;
            }
            self.check_kept(last_read).await?;
            last_read = Some(marker_id);
            let stays = self.retreats.iter().map(|(_, number)| *number).min();
            let settled = self.fold.settle(stays.unwrap_or(u64::MAX));
            let up_to = settled.last().map(|block| block.number);
            self.compare(&settled, up_to).await?;
        }
    }

    /// Passes to the fold the entries up to `last`, perhaps some more, or all if none is given.
    /// Returns whether there were any.
    async fn feed(&mut self, last: Option<EntryId>) -> anyhow::Result<bool> {
        let mut any = false;
        while last.is_none_or(|last| self.at < last) {
            let entries = self.streams.events(self.chain, self.at, EVENTS_PER_READ).await?;
            let Some((id, _)) = entries.last() else { return Ok(any) };
            (self.at, any) = (*id, true);
            for (id, event) in entries {
                match event {
                    Ok(event) => self.fold.entry(id, event),
                    Err(error) => self.fold.foreign(id, &error),
                }
            }
        }
        Ok(any)
    }

    /// Fails if there are violations that retention may have caused, by trimming past the marker `last_read` in the
    /// meantime.
    async fn check_kept(&self, last_read: Option<EntryId>) -> anyhow::Result<()> {
        let Some(last_read) = last_read.filter(|_| !self.fold.violations().is_empty()) else {
            return Ok(());
        };
        let kept = self.streams.markers(self.chain, EntryId::MIN, 1).await?;
        ensure!(
            kept.first().is_none_or(|(oldest, _)| *oldest <= last_read),
            "retention has removed entries that were to be compared, at block {}: choose a higher \
             --from",
            self.next
        );
        Ok(())
    }

    /// Compares the blocks that never became final.
    async fn rest(&mut self) -> anyhow::Result<()> {
        let blocks = self.fold.canonical().to_vec();
        self.compare(&blocks, Some(self.to)).await
    }

    /// Compares the range up to `up_to` with `blocks`, which cover all of it.
    async fn compare(&mut self, blocks: &[FoldedBlock], up_to: Option<u64>) -> anyhow::Result<()> {
        let Some(up_to) = up_to.map(|number| number.min(self.to)) else { return Ok(()) };
        while self.next <= up_to {
            // Blocks that an operator skipped are not fetched: perhaps no node has them any more.
            let gaps = blocks.iter().filter_map(|block| Some((block.skipped_from?, block.number)));
            let mut gaps = gaps.filter(|(_, last)| *last >= self.next);
            let mut last = up_to.min(self.next + BLOCKS_PER_QUESTION - 1);
            match gaps.next() {
                Some((first, end)) if first <= self.next => {
                    let end = end.min(self.to);
                    self.tally.skipped += end - self.next + 1;
                    self.bar.advance(end - self.next + 1);
                    self.next = end + 1;
                    continue;
                }
                Some((first, _)) => last = last.min(first - 1),
                None => {}
            }
            // Which logs passed another filter, nobody knows.
            if self.other_filter.remove(&self.next) {
                self.tally.other_filter += 1;
                self.bar.advance(1);
                self.next += 1;
                continue;
            }
            let other = (self.next..=last).find(|number| self.other_filter.contains(number));
            last = other.map_or(last, |other| other - 1);
            let part = |number: u64| blocks.partition_point(|block| block.number < number);
            let part = &blocks[part(self.next)..part(last + 1)];
            let chain = self.inquiry.blocks(self.next..=last).await?;
            let expected: Vec<_> = chain.into_iter().map(|b| expected(b, self.filter)).collect();
            self.tally.blocks += expected.len();
            self.tally.events += expected.iter().map(|block| block.logs.len()).sum::<usize>();
            self.tally.differences.extend(compare(part, &expected));
            self.tally.differences.truncate(MAX_REPORTED);
            self.bar.advance(last - self.next + 1);
            self.next = last + 1;
        }
        Ok(())
    }
}

fn expected(block: CheckedBlock, filter: &Filter) -> ExpectedBlock {
    let CheckedBlock { block, mut logs } = block;
    logs.retain(|log| filter.passes(log));
    ExpectedBlock { number: block.number, hash: block.hash, timestamp: block.timestamp, logs }
}
