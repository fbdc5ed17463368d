//! `ethhook clear-alarm`: an operator has looked at a reorg below the finalized block, and lets the
//! chain follow it.
//!
//! The alarm goes in the same step that moves finality back to the fork point. Whatever ends the
//! command after that, the chain is whole: the ingestor follows the rest as it would any reorg, or
//! finds the node's chain below its finalized block again and latches the alarm again.

use anyhow::{Context, ensure};
use ethhook_domain::{BlockRef, Cursor};
use ethhook_ingest::inquiry::{Inquiry, Which};
use ethhook_streams::{PublishedBlock, ReadError, Step};

use super::{Order, Target, Writer, bad_configuration, events};
use crate::Exit;
use crate::config::{Inputs, Problem};
use crate::output::say;

/// What will be done.
struct Plan {
    /// The block to stand on once `above` is taken back.
    floor: BlockRef,
    /// What is taken back, ascending.
    above: Vec<PublishedBlock>,
    /// The block to skip to then, where the fork point is older than what is retained.
    gap: Option<BlockRef>,
}

/// Says what will be done, asks, does it and clears the alarm.
///
/// # Errors
/// If an ingestor writes the chain, the node does not answer or lags below the finalized block, nobody can be
/// asked, or Redis fails.
pub(crate) async fn run(
    inputs: Result<Inputs, Vec<Problem>>,
    order: Order<'_>,
) -> anyhow::Result<Exit> {
    let Some(target) = Target::load(inputs, order.chain)? else { return bad_configuration() };
    let cursor = target.cursor().await?;
    if cursor.alarm.is_empty() {
        say!("Chain {}: no alarm is latched.", target.name());
        return Ok(Exit::Done);
    }
    say!("Chain {} is stopped by an alarm: {}", target.name(), cursor.alarm);
    let plan = plan(&target, &cursor).await?;
    say!("{}", plan.tell(&cursor));
    if !target.confirmed(order)? {
        say!("The alarm stays.");
        return Ok(Exit::Done);
    }
    let mut writer = target.open("clear-alarm", &cursor).await?;
    let told = plan.tell(&cursor);
    tracing::warn!(
        chain = target.name(),
        alarm = cursor.alarm,
        "clearing the alarm, as ordered: {told}"
    );
    let result = plan.carry_out(&mut writer, &cursor).await;
    writer.publisher.release().await;
    result?;
    tracing::warn!(chain = target.name(), "the alarm is cleared");
    say!("Done. The ingestor goes on.");
    Ok(Exit::Done)
}

async fn plan(target: &Target, cursor: &Cursor) -> anyhow::Result<Plan> {
    let inquiry = Inquiry::open(&target.chain)?;
    let head = inquiry.header(Which::Latest).await?.context("the node shows no head")?.block;
    ensure!(
        head.number >= cursor.finalized_number,
        "the node's head {} is below the finalized block {}, so that it tells nothing of it: try again \
         when it has caught up",
        head.number,
        cursor.finalized_number
    );
    let mut retained = target.streams.retained(target.id(), cursor).await?;
    let common = common(&inquiry, &retained).await?;
    let mut above = retained.split_off(common);
    // Retention may have taken entries, though not yet the marker, of the oldest.
    let mut lost = 0;
    for (position, block) in above.iter().enumerate().filter(|(_, block)| block.events > 0) {
        match target.streams.block_events(target.id(), block).await {
            Ok(_) => break,
            Err(ReadError::Inconsistent(_)) => lost = position + 1,
            Err(error) => return Err(error.into()),
        }
    }
    above.drain(..lost);
    let floor = match (above.first(), retained.last()) {
        (Some(lowest), _) => below(&lowest.block),
        (None, Some(common)) if lost == 0 => common.block,
        (None, _) => tip(cursor)?,
    };
    let is_whole = lost == 0 && (common > 0 || reaches_base(&inquiry, cursor, &floor).await?);
    let gap = if is_whole { None } else { Some(gap(target, &inquiry, &head, floor.number).await?) };
    Ok(Plan { floor, above, gap })
}

/// How many of the blocks, ascending, are on the node's chain: all below the fork point.
async fn common(inquiry: &Inquiry, blocks: &[PublishedBlock]) -> anyhow::Result<usize> {
    let (mut low, mut high) = (0, blocks.len());
    while low < high {
        let middle = low + (high - low) / 2;
        if is_theirs(inquiry, &blocks[middle].block).await? {
            low = middle + 1
        } else {
            high = middle
        }
    }
    Ok(low)
}

async fn is_theirs(inquiry: &Inquiry, block: &BlockRef) -> anyhow::Result<bool> {
    let header = inquiry.header(Which::Number(block.number)).await?;
    Ok(header.is_some_and(|header| header.block.hash == block.hash))
}

/// Whether all that the node orphaned is retained, although no retained block is on its chain: the
/// stream begins here, or the block below is the fork point.
async fn reaches_base(
    inquiry: &Inquiry,
    cursor: &Cursor,
    floor: &BlockRef,
) -> anyhow::Result<bool> {
    Ok(floor.number + 1 == cursor.start_number || is_theirs(inquiry, floor).await?)
}

/// The node's finalized block, or as deep below its head as counts for final; above `floor`.
async fn gap(
    target: &Target,
    inquiry: &Inquiry,
    head: &BlockRef,
    floor: u64,
) -> anyhow::Result<BlockRef> {
    let tag = inquiry.header(Which::Finalized).await?.map(|header| header.block.number);
    let depth = target.chain.profile.finality_depth;
    let number = tag.unwrap_or(head.number.saturating_sub(depth)).max(floor + 1);
    ensure!(
        number <= head.number,
        "the node's head {} is not above block {floor}, which the stream has: try again later",
        head.number
    );
    let header = inquiry.header(Which::Number(number)).await?;
    Ok(header.with_context(|| format!("the node has no block {number}"))?.block)
}

fn below(block: &BlockRef) -> BlockRef {
    // Of the block below only this is known; nothing is asked of the rest.
    BlockRef {
        number: block.number.saturating_sub(1),
        hash: block.parent_hash,
        parent_hash: alloy_primitives::B256::ZERO,
        timestamp: 0,
    }
}

fn tip(cursor: &Cursor) -> anyhow::Result<BlockRef> {
    let hash =
        cursor.hash.context("nothing is published: `ethhook reset` starts the chain anew")?;
    let parent_hash = alloy_primitives::B256::ZERO;
    Ok(BlockRef { number: cursor.number, hash, parent_hash, timestamp: 0 })
}

impl Plan {
    /// Whether the finalized block is orphaned, too.
    fn retreats(&self, cursor: &Cursor) -> bool {
        cursor.finalized_hash.is_some() && self.floor.number < cursor.finalized_number
    }

    fn tell(&self, cursor: &Cursor) -> String {
        let (blocks, events) = (self.above.len(), events(&self.above));
        let floor = self.floor.number;
        match &self.gap {
            None if !self.retreats(cursor) => format!(
                "The node's chain holds the finalized block {}: nothing below it is taken back; the \
                 alarm is cleared, and the ingestor follows what is above.",
                cursor.finalized_number
            ),
            None => format!(
                "The fork point, block {floor}, is retained: {blocks} blocks with {events} events \
                 above it will be taken back, also below the finalized block {}.",
                cursor.finalized_number
            ),
            Some(gap) => format!(
                "The fork point is older than what is retained: {blocks} blocks with {events} events \
                 will be taken back, down to block {floor}, and a gap leads from there to the \
                 node's block {}. What is orphaned below {floor} stays in the hands of the readers.",
                gap.number
            ),
        }
    }

    async fn carry_out(&self, writer: &mut Writer, cursor: &Cursor) -> anyhow::Result<()> {
        let first = if self.retreats(cursor) {
            Step::Retreat { to: &self.floor }
        } else {
            Step::Alarm { text: "" }
        };
        writer.step(async |publisher| publisher.apply(&first).await).await?;
        if self.gap.is_none() && !self.retreats(cursor) {
            return Ok(());
        }
        writer.take_back(&self.above).await?;
        let Some(gap) = &self.gap else { return Ok(()) };
        for step in [Step::Gap { block: gap }, Step::Finalized { block: gap }] {
            writer.step(async |publisher| publisher.apply(&step).await).await?;
        }
        Ok(())
    }
}
