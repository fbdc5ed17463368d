//! What differs between chains.

use std::time::Duration;

use crate::{ChainId, Proof};

/// A `finalized` tag counts as stalled if it is more than this many times the profile's depth
/// behind the head.
const STALLED_DEPTHS: u64 = 8;

/// The first block of Polygon's hard fork with PIP-74 (`madhugiriBlock` in Bor's configuration of the mainnet).
const MADHUGIRI: u64 = 80_084_800;

/// What the ingestor must know about a chain that its blocks do not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Name: upper case in configuration, lower case in logs, metrics and here.
    pub name: String,
    /// EIP-155 chain id, checked against the node's.
    pub chain_id: ChainId,
    /// Usual time between blocks; polls and watchdogs derive from it.
    pub block_time: Duration,
    /// A block is final only if at least this many blocks are above it, whatever a node's
    /// `finalized` tag says; without such a tag, this depth alone decides.
    pub finality_depth: u64,
    /// The weakest proof that is enough to publish a block.
    pub verify: Proof,
    /// Polygon before PIP-74: below this height, the header's bloom and receipts root do not cover the receipts of
    /// state-sync transactions. 0 for any other chain.
    pub state_sync_until: u64,
    /// A block without transactions has no logs and need not be fetched.
    pub empty_without_transactions: bool,
    /// The header's bloom covers every log of the block, so that a block whose bloom excludes all
    /// wanted logs need not be fetched.
    pub bloom_of_all_logs: bool,
}

impl Profile {
    /// A chain of which only the id is known.
    #[must_use]
    pub fn unknown(name: &str, chain_id: ChainId) -> Self {
        Self {
            name: name.to_owned(),
            chain_id,
            block_time: Duration::from_secs(2),
            finality_depth: 128,
            verify: Proof::Bloom,
            state_sync_until: 0,
            empty_without_transactions: false,
            bloom_of_all_logs: false,
        }
    }

    /// The newest block that counts as final below `head`, given the node's `finalized` tag: the tagged block, or the
    /// one `finality_depth` below the head if that is lower. Without a tag, or if it has stalled, the depth alone
    /// decides. None while the chain is shorter than that depth.
    #[must_use]
    pub fn newest_final(&self, head: u64, tag: Option<u64>) -> Option<u64> {
        let deep = head.checked_sub(self.finality_depth)?;
        let stalled = self.finality_depth.saturating_mul(STALLED_DEPTHS);
        let tag = tag.filter(|tag| head.saturating_sub(*tag) <= stalled);
        Some(tag.map_or(deep, |tag| tag.min(deep)))
    }

    /// Whether an operator has chosen a weaker proof than the chain's default.
    #[must_use]
    pub fn is_lowered(&self) -> bool {
        let built_in = Self::built_in().into_iter().find(|known| known.chain_id == self.chain_id);
        let default = built_in.unwrap_or_else(|| Self::unknown(&self.name, self.chain_id));
        self.verify.is_weaker_than(default.verify)
    }

    /// The chains that need no configuration: those listed in the README.
    #[must_use]
    pub fn built_in() -> Vec<Self> {
        let chain = |name: &str, chain_id, block_time_ms, finality_depth| Self {
            block_time: Duration::from_millis(block_time_ms),
            finality_depth,
            verify: Proof::ReceiptsRoot,
            empty_without_transactions: true,
            bloom_of_all_logs: true,
            ..Self::unknown(name, chain_id)
        };
        vec![
            chain("ethereum", 1, 12_000, 64),
            chain("arbitrum", 42161, 250, 1_200),
            chain("optimism", 10, 2_000, 450),
            chain("base", 8453, 2_000, 450),
            // A state-sync log may be in a block without transactions, and is not in its bloom.
            Self {
                state_sync_until: MADHUGIRI,
                empty_without_transactions: false,
                bloom_of_all_logs: false,
                ..chain("polygon", 137, 2_000, 128)
            },
            chain("bsc", 56, 750, 32),
            chain("sepolia", 11_155_111, 12_000, 64),
            chain("local", 31_337, 1_000, 64),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_lowered_if_it_is_weaker_than_the_chains_default() {
        for (profile, levels) in [
            (Profile::built_in().remove(0), [false, true, true]),
            (Profile::unknown("mine", 4_242), [false, false, true]),
        ] {
            for (verify, lowered) in
                [Proof::ReceiptsRoot, Proof::Bloom, Proof::Structure].into_iter().zip(levels)
            {
                assert_eq!(Profile { verify, ..profile.clone() }.is_lowered(), lowered);
            }
        }
    }

    /// The values stated in the README and the guide.
    #[test]
    fn the_built_in_chains_are_final_at_these_depths() {
        let depths: Vec<_> = Profile::built_in()
            .into_iter()
            .map(|p| (p.name, p.chain_id, p.finality_depth))
            .collect();
        let known = [
            ("ethereum", 1, 64),
            ("arbitrum", 42_161, 1_200),
            ("optimism", 10, 450),
            ("base", 8_453, 450),
            ("polygon", 137, 128),
            ("bsc", 56, 32),
            ("sepolia", 11_155_111, 64),
            ("local", 31_337, 64),
        ];
        assert_eq!(depths, known.map(|(name, id, depth)| (name.to_owned(), id, depth)));
    }

    #[test]
    fn a_block_is_final_by_the_nodes_word_and_the_chains_depth() {
        let profile = Profile { finality_depth: 64, ..Profile::unknown("any", 5) };
        for (head, tag, newest) in [
            (63, None, None),
            (63, Some(63), None),
            (64, None, Some(0)),
            (1_000, None, Some(936)),
            (1_000, Some(990), Some(936)),
            (1_000, Some(900), Some(900)),
            (1_000, Some(1_001), Some(936)),
            (1_000, Some(488), Some(488)),
            (1_000, Some(487), Some(936)),
        ] {
            assert_eq!(profile.newest_final(head, tag), newest, "{head} {tag:?}");
        }
    }
}
