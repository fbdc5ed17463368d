//! `ethhook skip`: skips blocks, which are then never published.

use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use ethhook_domain::{BlockRef, Cursor, Header};
use ethhook_ingest::inquiry::{Inquiry, Which};
use ethhook_streams::{PublishedBlock, Step};

use super::{Order, ensure_no_alarm};
use crate::Exit;
use crate::config::Inputs;
use crate::node;
use crate::output::say;
use crate::target::Target;

/// The last block to skip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    /// The node's head minus the chain's confirmations, as for the tip.
    Latest,
    /// At this height.
    Number(u64),
}

impl FromStr for To {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "latest" => Ok(Self::Latest),
            text => text
                .parse()
                .map(Self::Number)
                .map_err(|_| "must be latest or a block number".into()),
        }
    }
}

/// Prints what will be skipped, asks, and writes the gap.
///
/// # Errors
/// If an ingestor writes the chain, the block is not above the tip, the node no longer has the published blocks, it
/// does not answer, there is no terminal to ask on, or Redis fails.
pub(crate) async fn run(inputs: &Inputs, order: Order<'_>, to: To) -> anyhow::Result<Exit> {
    let target = Target::load(inputs, order.chain)?;
    let cursor = target.cursor().await?;
    ensure_no_alarm(&cursor)?;
    let inquiry = Inquiry::open(&target.chain, cursor.genesis_hash)?;
    let header = resolve(&target, &inquiry, to).await?;
    let first = first_skipped(&cursor, header.block.number)?;
    check_tip(&target, &inquiry, &cursor).await?;
    let (last, count) = (header.block, header.block.number - first + 1);
    say!(
        "Chain {}: blocks {first} to {last} ({count} in all) will never be published.",
        target.name()
    );
    if !target.confirmed(order)? {
        say!("Nothing was skipped.");
        return Ok(Exit::Done);
    }
    write_gap(&target, &inquiry, &cursor, &last).await?;
    tracing::warn!(chain = target.name(), from = first, to = %last, "skipped");
    say!("Done. A `gap` marker tells the consumers; the ingestor continues after it.");
    Ok(Exit::Done)
}

/// Takes the lease and writes the gap up to `last`, if the node still has that block and our tip: the operator may have
/// answered minutes later.
async fn write_gap(
    target: &Target,
    inquiry: &Inquiry,
    cursor: &Cursor,
    last: &BlockRef,
) -> anyhow::Result<()> {
    let mut writer = target.open("skip", cursor).await?;
    let step = Step::Gap { block: last };
    let result = async {
        check_tip(target, inquiry, cursor).await?;
        let now = resolve(target, inquiry, To::Number(last.number)).await?.block;
        ensure!(now.hash == last.hash, "the node has replaced block {last}: run the command again");
        writer.step(async |publisher| publisher.apply(&step).await).await
    };
    let result = result.await;
    writer.publisher.release().await;
    result.map(|_| ())
}

/// The header of the block to skip to.
async fn resolve(target: &Target, inquiry: &Inquiry, to: To) -> anyhow::Result<Header> {
    let number = match to {
        To::Number(number) => number,
        To::Latest => {
            let head = node::head(inquiry).await?;
            if target.chain.confirmations == 0 {
                return Ok(head);
            }
            head.block.number.saturating_sub(target.chain.confirmations)
        }
    };
    let header = inquiry.header(Which::Number(number)).await?;
    header.with_context(|| {
        format!("the node has no block {number}: choose the lowest one that it has, above those that are missing")
    })
}

/// Refuses if the node has other blocks at the end of the stream, because blocks below a gap can no
/// longer be taken back. A block that the node does not have proves nothing.
async fn check_tip(target: &Target, inquiry: &Inquiry, cursor: &Cursor) -> anyhow::Result<()> {
    let window = target.streams.window(target.id(), cursor).await?;
    let mut orphan = None;
    for PublishedBlock { block, .. } in window.iter().rev() {
        let held = inquiry.header(Which::Number(block.number)).await?;
        if held.is_none_or(|held| held.block.hash == block.hash) {
            break;
        }
        orphan = Some(block);
    }
    let Some(lowest) = orphan else { return Ok(()) };
    bail!(
        "the node has replaced the published blocks from {lowest} on: run `ethhook rewind --chain {} --to \
         {}` first, as blocks below a gap can never be taken back",
        target.name(),
        lowest.number.saturating_sub(1)
    );
}

/// The first block skipped by an order to skip to `last`.
fn first_skipped(cursor: &Cursor, last: u64) -> anyhow::Result<u64> {
    let next = cursor.next_number();
    ensure!(
        last >= next,
        "block {last} is already published, the next block is {next}: to go back, use `ethhook rewind`"
    );
    Ok(next)
}

#[cfg(test)]
mod tests {
    use alloy_primitives::B256;
    use ethhook_simulator::{Chain, Contents, ManualSpec, Node};

    use super::super::tests::{begun, target};
    use super::*;

    #[test]
    fn a_gap_begins_with_the_next_block_and_never_goes_back() {
        let mut cursor = Cursor::starting_at(10, None, String::new());
        assert_eq!(first_skipped(&cursor, 10).ok(), Some(10), "nothing is published yet");
        assert!(first_skipped(&cursor, 9).is_err());
        (cursor.number, cursor.hash) = (20, Some(B256::ZERO));
        assert_eq!(first_skipped(&cursor, 21).ok(), Some(21));
        assert!(first_skipped(&cursor, 20).unwrap_err().to_string().contains("next block is 21"));
    }

    #[tokio::test]
    async fn latest_is_below_the_head_by_the_confirmations_and_a_number_is_as_it_says() {
        let chain = Chain::manual(ManualSpec::new(31_337));
        let node = Node::bind(([127, 0, 0, 1], 0).into(), [chain.clone()]).await.unwrap().spawn();
        chain.mine(10);
        let (_redis, mut target) = target(&node.http_url(31_337)).await;
        for (confirmations, to, number) in
            [(0, To::Latest, 10), (3, To::Latest, 7), (12, To::Latest, 0), (3, To::Number(9), 9)]
        {
            target.chain.confirmations = confirmations;
            let inquiry = Inquiry::open(&target.chain, None).unwrap();
            let found = resolve(&target, &inquiry, to).await.unwrap().block;
            assert_eq!(found.hash, chain.block(number).unwrap().hash(), "{confirmations} {to:?}");
        }
    }

    #[tokio::test]
    async fn a_block_that_was_replaced_before_the_operator_answered_is_not_skipped_to() {
        let chain = Chain::manual(ManualSpec::new(31_337));
        let node = Node::bind(([127, 0, 0, 1], 0).into(), [chain.clone()]).await.unwrap().spawn();
        chain.mine(10);
        let (redis, target) = begun(&node.http_url(31_337)).await;
        let cursor = target.cursor().await.unwrap();
        let inquiry = Inquiry::open(&target.chain, None).unwrap();
        let last = resolve(&target, &inquiry, To::Latest).await.unwrap().block;
        chain.reorg(2, 3, Contents::Fresh);
        let told = write_gap(&target, &inquiry, &cursor, &last).await.unwrap_err().to_string();
        assert!(told.contains("has replaced block 10"), "{told}");
        assert!(
            !redis.ask::<bool>("EXISTS blocks:{events:31337} lease:{events:31337}").await.unwrap()
        );
        let last = resolve(&target, &inquiry, To::Latest).await.unwrap().block;
        write_gap(&target, &inquiry, &cursor, &last).await.unwrap();
        assert_eq!(target.cursor().await.unwrap().tip(), Some(11));
    }

    #[test]
    fn targets_are_latest_or_a_number() {
        assert_eq!("latest".parse(), Ok(To::Latest));
        assert_eq!("7".parse(), Ok(To::Number(7)));
        assert!("newest".parse::<To>().is_err() && "-1".parse::<To>().is_err());
    }
}
