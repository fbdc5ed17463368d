//! `ethhook clear-alarm`: an operator has examined a reorg below the finalized block, and lets the
//! chain follow it.
//!
//! The alarm is cleared in the same step that moves finality back to the fork point. If the command
//! ends early after that, the chain is consistent: the ingestor follows the rest as any other
//! reorg, or again finds that the node's chain contradicts the finalized block and latches the
//! alarm again.

use anyhow::{Context, bail, ensure};
use ethhook_domain::{BlockRef, Cursor};
use ethhook_ingest::inquiry::{Inquiry, Which};
use ethhook_streams::{MarkedBlock, PublishedBlock, ReadError, Step};

use super::{Order, Writer, events};
use crate::Exit;
use crate::config::Inputs;
use crate::node;
use crate::output::say;
use crate::target::Target;

const NOTHING: &str = "nothing is published: `ethhook reset` starts the chain over";

/// The changes to make.
struct Plan {
    /// The block that becomes the tip once `above` is taken back.
    floor: MarkedBlock,
    /// The blocks to take back, ascending.
    above: Vec<PublishedBlock>,
    /// The block to skip to afterwards, if the fork point is older than the retained blocks.
    gap: Option<BlockRef>,
}

/// Prints the changes, asks, makes them and clears the alarm.
///
/// # Errors
/// If an ingestor writes the chain, the node does not answer or lags below the finalized block, there is no terminal
/// to ask on, or Redis fails.
pub(crate) async fn run(inputs: &Inputs, order: Order<'_>) -> anyhow::Result<Exit> {
    let target = Target::load(inputs, order.chain)?;
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
    tracing::warn!(chain = target.name(), alarm = cursor.alarm, "clearing the alarm: {told}");
    let result = plan.carry_out(&mut writer, &cursor).await;
    writer.publisher.release().await;
    result?;
    tracing::warn!(chain = target.name(), "the alarm is cleared");
    say!("Done. The ingestor continues.");
    Ok(Exit::Done)
}

async fn plan(target: &Target, cursor: &Cursor) -> anyhow::Result<Plan> {
    let inquiry = Inquiry::open(&target.chain, cursor.genesis_hash)?;
    let head = node::head(&inquiry).await?.block;
    ensure!(
        head.number >= cursor.finalized_number,
        "the node's head {} is below the finalized block {}, so it cannot confirm that block: try \
         again when the node has caught up",
        head.number,
        cursor.finalized_number
    );
    let mut retained = target.streams.kept_blocks(target.id(), cursor).await?;
    let common = count_common(&inquiry, &head, &retained).await?;
    let mut above = retained.split_off(common);
    // Retention may have removed entries of the oldest blocks, but not yet their markers.
    let mut lost = 0;
    for (position, block) in above.iter().enumerate().filter(|(_, block)| block.events > 0) {
        match target.streams.block_events(target.id(), block).await {
            Ok(_) => break,
            Err(ReadError::Inconsistent(_)) => lost = position + 1,
            Err(error) => return Err(error.into()),
        }
    }
    above.drain(..lost);
    if above.first().is_some_and(|lowest| lowest.block.number == 0) {
        bail!(
            "the node has another block 0, so it serves another chain: correct its URL, or if this is a dev node that \
             was restarted, run `ethhook reset --chain {}`",
            target.name()
        );
    }
    let shared = retained.last().map(|common| common.block);
    let (number, hash) = match (above.first(), shared) {
        (Some(lowest), _) => (lowest.block.number.saturating_sub(1), lowest.block.parent_hash),
        (None, Some(common)) if lost == 0 => (common.number, common.hash),
        (None, _) => (cursor.number, cursor.hash.context(NOTHING)?),
    };
    let theirs = node_block(&inquiry, &head, number).await?;
    let known = [shared, theirs].into_iter().flatten().find(|block| block.hash == hash);
    // All orphaned blocks are retained if the floor is on the node's chain, or the stream begins right above it.
    let is_whole = lost == 0 && (known.is_some() || number + 1 == cursor.start_number);
    let gap =
        if is_whole { None } else { Some(end_of_gap(target, &inquiry, &head, number).await?) };
    let nobodys = MarkedBlock { number, hash, parent_hash: None, timestamp: 0 };
    let floor = known.as_ref().map_or(nobodys, MarkedBlock::from);
    Ok(Plan { floor, above, gap })
}

/// How many of the blocks, which are ascending, are on the node's chain: those up to the fork
/// point.
async fn count_common(
    inquiry: &Inquiry,
    head: &BlockRef,
    blocks: &[PublishedBlock],
) -> anyhow::Result<usize> {
    let (mut low, mut high) = (0, blocks.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let block = &blocks[middle].block;
        let theirs = node_block(inquiry, head, block.number).await?;
        if theirs.is_some_and(|theirs| theirs.hash == block.hash) {
            low = middle + 1
        } else {
            high = middle
        }
    }
    Ok(low)
}

/// The node's block at height `number`; none above its `head`. A block below it that the node does not have proves
/// nothing: the machine that answered may lag.
async fn node_block(
    inquiry: &Inquiry,
    head: &BlockRef,
    number: u64,
) -> anyhow::Result<Option<BlockRef>> {
    if number > head.number {
        return Ok(None);
    }
    let header = inquiry.header(Which::Number(number)).await?;
    let lacks = || {
        format!(
            "the node has no block {number}, although its head is {}: try again, or with an endpoint that has all blocks",
            head.number
        )
    };
    Ok(Some(header.with_context(lacks)?.block))
}

/// The newest block that counts as final, but at least the one above `floor`.
async fn end_of_gap(
    target: &Target,
    inquiry: &Inquiry,
    head: &BlockRef,
    floor: u64,
) -> anyhow::Result<BlockRef> {
    let newest = node::newest_final(inquiry, &target.chain.profile, head.number).await?;
    let number = newest.map_or(floor + 1, |newest| newest.max(floor + 1));
    ensure!(
        number <= head.number,
        "the node's head {} is not above block {floor}, which is in the stream: try again later",
        head.number
    );
    let header = inquiry.header(Which::Number(number)).await?;
    Ok(header.with_context(|| format!("the node has no block {number}"))?.block)
}

impl Plan {
    /// Whether the finalized block is orphaned, too.
    fn retreats(&self, cursor: &Cursor) -> bool {
        cursor.finalized().is_some_and(|finalized| self.floor.number < finalized)
    }

    fn tell(&self, cursor: &Cursor) -> String {
        let (blocks, events) = (self.above.len(), events(&self.above));
        let floor = self.floor.number;
        match &self.gap {
            None if cursor.finalized().is_none() => {
                "Nothing is final yet, so nothing will be taken back; \
                the alarm is cleared, and the ingestor follows the node's chain."
                    .to_owned()
            }
            None if !self.retreats(cursor) => format!(
                "The node's chain contains the finalized block {}: nothing below it is taken back; \
                 the alarm is cleared, and the ingestor follows the node from there.",
                cursor.finalized_number
            ),
            None => format!(
                "The fork point, block {floor}, is retained: {blocks} blocks with {events} events \
                 above it will be taken back, even below the finalized block {}.",
                cursor.finalized_number
            ),
            Some(gap) => format!(
                "The fork point is no longer retained: {blocks} blocks with {events} events will be \
                 taken back, down to block {floor}, and the blocks up to the node's block {} are \
                 skipped. Orphaned events below {floor} cannot be taken back from consumers.",
                gap.number
            ),
        }
    }

    async fn carry_out(&self, writer: &mut Writer, cursor: &Cursor) -> anyhow::Result<()> {
        let first = if self.retreats(cursor) {
            Step::Retreat { to: self.floor }
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

#[cfg(test)]
mod tests {
    use alloy_primitives::B256;
    use ethhook_domain::Proof;
    use std::time::Duration;

    use ethhook_simulator::{Chain, Fault, ManualChain, ManualSpec, Node, RunningNode};
    use ethhook_streams::Publisher;
    use ethhook_testkit::redis_server::RedisServer;

    use super::super::tests::{publisher, target};
    use super::*;

    /// A chain of blocks 0 to 10, and a stream of blocks with `hash` from 0 to 6.
    async fn published(
        hash: impl Fn(&ManualChain, u64) -> B256,
    ) -> (ManualChain, RunningNode, RedisServer, Target, Publisher) {
        let chain = Chain::manual(ManualSpec::new(31_337));
        chain.mine(10);
        let bound = Node::bind(([127, 0, 0, 1], 0).into(), [chain.clone()]).await.unwrap();
        let node = bound.spawn();
        let (redis, target) = target(&node.http_url(31_337)).await;
        let mut publisher = publisher(&target, 0).await;
        for number in 0..=6_u64 {
            let parent_hash = number.checked_sub(1).map_or(B256::ZERO, |below| hash(&chain, below));
            let hash = hash(&chain, number);
            let block = &BlockRef { number, hash, parent_hash, timestamp: number };
            let (events, proof, filter) = (&Default::default(), Proof::Bloom, "all");
            let step = Step::Add { block, events, proof, filter, is_deep: false };
            publisher.apply(&step).await.unwrap();
        }
        (chain, node, redis, target, publisher)
    }

    #[tokio::test]
    async fn another_block_0_is_another_chain_and_nothing_is_taken_back() {
        let hash =
            |_: &ManualChain, number: u64| B256::left_padding_from(&(number + 7).to_be_bytes());
        let (_chain, _node, _redis, target, publisher) = published(hash).await;
        let told = plan(&target, publisher.cursor()).await.err().unwrap().to_string();
        assert!(told.contains("another block 0") && told.contains("`ethhook reset"), "{told}");
    }

    #[tokio::test]
    async fn g1_a_block_that_one_answer_lacks_is_not_taken_for_an_orphan() {
        let hash = |chain: &ManualChain, number| chain.block(number).unwrap().hash();
        let (chain, _node, _redis, target, publisher) = published(hash).await;
        let cursor = publisher.cursor();
        let mut lacked = 0;
        for right in 0..6 {
            let method = "eth_getBlockByNumber";
            chain.faults().push(method, Fault::Delay(Duration::ZERO), right);
            chain.faults().push(method, Fault::Null, 1);
            match plan(&target, cursor).await {
                Ok(plan) => assert!(plan.above.is_empty() && plan.gap.is_none(), "after {right}"),
                Err(told) if told.to_string().contains("has no block ") => lacked += 1,
                Err(told) => assert!(told.to_string().contains("returned no head"), "{told}"),
            }
            chain.faults().clear();
        }
        assert!(lacked >= 3, "{lacked}");
    }
}
