//! What differs between chains.

use std::time::Duration;

use crate::{ChainId, Proof};

/// A `finalized` tag this many times the profile's depth behind the head has stalled.
const STALLED_DEPTHS: u64 = 8;

/// The knowledge about one chain that its blocks do not carry themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The name in configuration (upper case there), logs and metrics (lower case, as here).
    pub name: String,
    /// EIP-155 chain id, checked against the node's.
    pub chain_id: ChainId,
    /// Usual time between blocks: polls and watchdogs derive from it.
    pub block_time: Duration,
    /// A block is final only when at least this many blocks stand above it, whatever a node's
    /// `finalized` tag says; where there is no such tag, this depth alone decides.
    pub finality_depth: u64,
    /// The weakest proof with which a block may be published.
    pub verify: Proof,
    /// Polygon before PIP-74: receipts of state-sync transactions stand outside the header's bloom
    /// and receipts root.
    pub state_sync_logs: bool,
    /// A header without transactions means a block without logs, so that nothing need be fetched.
    pub empty_without_transactions: bool,
    /// The header's bloom holds every log of the block, so that a block whose bloom leaves no room
    /// for a wanted log need not be fetched.
    pub bloom_of_all_logs: bool,
}

impl Profile {
    /// A chain that nothing is known of but its id.
    #[must_use]
    pub fn unknown(name: &str, chain_id: ChainId) -> Self {
        Self {
            name: name.to_owned(),
            chain_id,
            block_time: Duration::from_secs(2),
            finality_depth: 128,
            verify: Proof::Bloom,
            state_sync_logs: false,
            empty_without_transactions: false,
            bloom_of_all_logs: false,
        }
    }

    /// The newest block that counts as final under `head`, with the node at the `finalized` tag: what the node
    /// says, but never less deep than the chain's depth, which also decides alone where there is no tag or it
    /// has stalled. None while the chain is shorter.
    #[must_use]
    pub fn newest_final(&self, head: u64, tag: Option<u64>) -> Option<u64> {
        let deep = head.checked_sub(self.finality_depth)?;
        let stalled = self.finality_depth.saturating_mul(STALLED_DEPTHS);
        let tag = tag.filter(|tag| head.saturating_sub(*tag) <= stalled);
        Some(tag.map_or(deep, |tag| tag.min(deep)))
    }

    /// The chains that need no description: those named in the README.
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
            // A state-sync log may stand in a block without transactions, and outside its bloom.
            Self {
                state_sync_logs: true,
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

    /// As the README and the guide have them.
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
