//! Where in a stream reading begins: an ID, a block or a time.

use std::str::FromStr;

use anyhow::{Context, bail};
use ethhook_domain::{EntryId, Op, Profile};
use ethhook_streams::Streams;
use jiff::Timestamp;

/// A bare number below this is a block, otherwise a time in ms: no chain has as many blocks, and no
/// entry is as old as this time, which is in 2001.
const FIRST_MILLISECOND: u64 = 1_000_000_000_000;

/// Where reading begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StartAt {
    /// At the stream's end: only new entries.
    Next,
    /// After this ID.
    Id(EntryId),
    /// At the first event of this block.
    Block(u64),
    /// At the first block that is not older than this.
    Time(Timestamp),
}

impl FromStr for StartAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "$" {
            return Ok(Self::Next);
        }
        if let Ok(number) = text.parse::<u64>() {
            return Ok(match number {
                1..FIRST_MILLISECOND => Self::Block(number),
                ms => Self::Id(EntryId { ms, seq: 0 }),
            });
        }
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        text.parse().map(Self::Time).map_err(|_| {
            "must be $, 0, a block number, an entry ID such as 1700000000000-0, or a time such as \
             2026-01-31T12:00:00Z"
                .to_owned()
        })
    }
}

impl StartAt {
    /// The ID after which reading begins in the chain's stream; none for the stream's end.
    ///
    /// # Errors
    /// If the stream does not contain the start.
    pub(crate) async fn resolve(
        &self,
        streams: &Streams,
        profile: &Profile,
    ) -> anyhow::Result<Option<EntryId>> {
        let (name, chain) = (&profile.name, profile.chain_id);
        let position = match self {
            Self::Next => return Ok(None),
            Self::Id(id) => {
                let last = streams.last_entry(chain).await?;
                if *id > last {
                    bail!(
                        "{name}: {id} is after the stream's last entry {last}: use $ for new events only"
                    );
                }
                return Ok(Some(*id));
            }
            Self::Block(number) => streams.position(chain, |m| m.number >= *number).await?,
            Self::Time(time) => {
                let seconds = u64::try_from(time.as_second()).unwrap_or_default();
                streams.position(chain, |m| m.timestamp >= seconds).await?
            }
        };
        let position = position.with_context(|| match self {
            Self::Block(number) => format!("{name}: block {number} is not published yet"),
            _ => format!("{name}: no block with that time or later is published yet"),
        })?;
        if let Self::Block(number) = self
            && position.marker.op != Op::Gap
            && position.marker.number > *number
        {
            bail!("{name}: the stream only has blocks from {} on", position.marker.number);
        }
        Ok(Some(position.after_entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_blocks_and_times_are_told_apart() {
        assert_eq!("$".parse(), Ok(StartAt::Next));
        let id = |ms, seq| Ok(StartAt::Id(EntryId { ms, seq }));
        assert_eq!("0".parse(), id(0, 0));
        assert_eq!("0-0".parse(), id(0, 0));
        assert_eq!("1700000000000-12".parse(), id(1_700_000_000_000, 12));
        assert_eq!("1700000000000".parse(), id(1_700_000_000_000, 0));
        assert_eq!("21000000".parse(), Ok(StartAt::Block(21_000_000)));
        let time = Timestamp::from_second(1_700_000_000).unwrap();
        assert_eq!("2023-11-14T22:13:20Z".parse(), Ok(StartAt::Time(time)));
        assert_eq!("2023-11-15T00:13:20+02:00".parse(), Ok(StartAt::Time(time)));
        for bad in ["", "-", "1-", "-1", "x", "1-x", "+", ">", "2023-11-14", "latest"] {
            let refused = bad.parse::<StartAt>().unwrap_err();
            assert!(refused.starts_with("must be $, 0, a block"), "{bad}");
        }
    }
}
