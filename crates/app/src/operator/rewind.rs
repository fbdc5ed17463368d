//! `ethhook rewind`: takes back all blocks above a given one, so that the ingestor publishes them
//! again.

use anyhow::ensure;
use ethhook_domain::Cursor;
use ethhook_streams::PublishedBlock;

use super::{Order, ensure_no_alarm, events};
use crate::Exit;
use crate::config::Inputs;
use crate::output::say;
use crate::target::Target;

/// Prints what will be taken back, asks, and takes it back block by block.
///
/// # Errors
/// If an ingestor writes the chain, `to` is out of reach, there is no terminal to ask on, or Redis
/// fails.
pub(crate) async fn run(inputs: &Inputs, order: Order<'_>, to: u64) -> anyhow::Result<Exit> {
    let target = Target::load(inputs, order.chain)?;
    let cursor = target.cursor().await?;
    let window = target.streams.window(target.id(), &cursor).await?;
    let above = above(&cursor, &window, to)?;
    if above.is_empty() {
        let (name, tip) = (target.name(), cursor.number);
        say!("Chain {name} is at block {tip}: there is nothing above {to} to take back.");
        return Ok(Exit::Done);
    }
    say!(
        "Chain {} is at block {}: {} blocks with {} events will be taken back, down to block {to}.",
        target.name(),
        cursor.number,
        above.len(),
        events(above),
    );
    if !target.confirmed(order)? {
        say!("Nothing was taken back.");
        return Ok(Exit::Done);
    }
    let mut writer = target.open("rewind", &cursor).await?;
    tracing::warn!(chain = target.name(), from = cursor.number, to, "rewinding");
    let result = writer.take_back(above).await;
    let at = writer.publisher.cursor().number;
    writer.publisher.release().await;
    result?;
    tracing::warn!(chain = target.name(), at, events = events(above), "rewound");
    say!("Done. The ingestor will publish these blocks again.");
    Ok(Exit::Done)
}

/// The blocks above `to`, if all of them may be taken back.
fn above<'a>(
    cursor: &Cursor,
    window: &'a [PublishedBlock],
    to: u64,
) -> anyhow::Result<&'a [PublishedBlock]> {
    ensure_no_alarm(cursor)?;
    ensure!(
        cursor.finalized().is_none_or(|finalized| to >= finalized),
        "block {} is final: --to must not be below it",
        cursor.finalized_number
    );
    ensure!(
        to.saturating_add(1) >= cursor.start_number,
        "the stream starts at block {}: --to must not be below {}",
        cursor.start_number,
        cursor.start_number.saturating_sub(1)
    );
    let above = &window[window.partition_point(|block| block.block.number <= to)..];
    let lowest = above.first().map_or(cursor.number + 1, |first| first.block.number);
    ensure!(
        to >= cursor.number || lowest == to + 1,
        "the blocks below {lowest} were skipped: --to must not be below {}",
        lowest.saturating_sub(1)
    );
    Ok(above)
}

#[cfg(test)]
mod tests {
    use alloy_primitives::B256;
    use ethhook_domain::{BlockRef, EntryId, Proof};

    use super::*;

    /// Blocks up to 14 are published, 11 is final.
    fn chain(finalized: Option<u64>, first: u64) -> (Cursor, Vec<PublishedBlock>) {
        let hash = |n: u64| B256::left_padding_from(&n.to_be_bytes());
        let block = |n| PublishedBlock {
            block: BlockRef { number: n, hash: hash(n), parent_hash: hash(n - 1), timestamp: n },
            events: 2,
            first_id: None,
            last_id: EntryId::MIN,
            proof: Proof::Bloom,
        };
        let cursor = Cursor {
            number: 14,
            hash: Some(hash(14)),
            finalized_number: finalized.unwrap_or(0),
            finalized_hash: finalized.map(hash),
            ..Cursor::starting_at(10, None, String::new())
        };
        (cursor, (first..=14).map(block).collect())
    }

    fn lowest(finalized: Option<u64>, first: u64, to: u64) -> Result<Option<u64>, String> {
        let (cursor, window) = chain(finalized, first);
        let above = above(&cursor, &window, to).map_err(|error| error.to_string())?;
        Ok(above.first().map(|block| block.block.number))
    }

    #[test]
    fn what_is_final_before_the_start_or_skipped_is_out_of_reach() {
        assert_eq!(lowest(None, 10, 12), Ok(Some(13)));
        assert_eq!(lowest(None, 10, 9), Ok(Some(10)), "all of it");
        assert_eq!(lowest(None, 10, 14), Ok(None));
        assert_eq!(lowest(None, 10, u64::MAX), Ok(None));
        assert!(lowest(None, 10, 8).unwrap_err().contains("must not be below 9"));
        assert_eq!(lowest(Some(11), 11, 11), Ok(Some(12)));
        assert!(lowest(Some(11), 11, 10).unwrap_err().contains("block 11 is final"));
        assert_eq!(lowest(None, 13, 12), Ok(Some(13)), "a gap ends at 12");
        assert!(lowest(None, 13, 11).unwrap_err().contains("skipped"));
        let (mut cursor, window) = chain(None, 10);
        cursor.alarm = "a reorg".into();
        assert!(above(&cursor, &window, 12).unwrap_err().to_string().contains("clear-alarm"));
    }
}
