//! Every key name. A chain's keys share one hash slot: a key without braces is hashed as a whole,
//! so the tag `{events:1}` has the same slot as the plain key `events:1`
//! (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags>).

use alloy_primitives::{B256, hex};
use ethhook_domain::{ChainId, event};

/// The names of one chain's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    /// Stream of events, one entry per log: `events:<chain_id>`.
    pub events: String,
    /// Stream of markers, one entry per block: `blocks:{events:<chain_id>}`.
    pub blocks: String,
    /// Hash, how far the chain's stream has got: `cursor:{events:<chain_id>}`.
    pub cursor: String,
    /// String, the writer's id: `lease:{events:<chain_id>}`.
    pub lease: String,
    /// String, when the chain was last reset, kept for a day. It tells a writer of the chain to start over, and that
    /// Redis did not lose data: `reset:{events:<chain_id>}`.
    pub reset: String,
    /// The stream's name while a step appends its entries; no other client sees it:
    /// `aside:{events:<chain_id>}`.
    pub aside: String,
}

impl Keys {
    /// The keys of `chain`.
    #[must_use]
    pub fn of(chain: ChainId) -> Self {
        Self::tagged(event::stream_name(chain))
    }

    /// Keys for the event stream `events`, whose name is the hash tag.
    pub(crate) fn tagged(events: String) -> Self {
        Self {
            blocks: format!("blocks:{{{events}}}"),
            cursor: format!("cursor:{{{events}}}"),
            lease: format!("lease:{{{events}}}"),
            reset: format!("reset:{{{events}}}"),
            aside: format!("aside:{{{events}}}"),
            events,
        }
    }

    /// String, the dedup record of one block: `seen:{events:<chain_id>}:<block_hash>`.
    #[must_use]
    pub fn seen(&self, block_hash: B256) -> String {
        format!("seen:{{{}}}:{}", self.events, hex::encode_prefixed(block_hash))
    }

    /// The `SCAN` pattern of all dedup records: `seen:{events:<chain_id>}:*`.
    #[must_use]
    pub fn seen_pattern(&self) -> String {
        format!("seen:{{{}}}:*", self.events)
    }

    /// A key named like a dedup record that is never one, to test the rights on them.
    pub(crate) fn seen_probe(&self) -> String {
        format!("seen:{{{}}}:probe", self.events)
    }
}

/// Hash, how far the replayed stream `stream` has got: `replay:{<stream>}`.
pub(crate) fn replay_position(stream: &str) -> String {
    format!("replay:{{{stream}}}")
}

/// Whether `stream` may name one of the ingestor's own keys, of whichever chain.
pub(crate) fn is_reserved(stream: &str) -> bool {
    stream.starts_with("events:") || stream.contains("{events:")
}

/// The event stream among the scratch keys number `n`, for [`Keys::tagged`]: `events:probe:<nonce>:<n>`.
pub(crate) fn probe(nonce: u64, n: u32) -> String {
    format!("events:probe:{nonce:016x}:{n}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_contracts() {
        let keys = Keys::of(42161);
        assert_eq!(keys.events, "events:42161");
        assert_eq!(keys.blocks, "blocks:{events:42161}");
        assert_eq!(keys.cursor, "cursor:{events:42161}");
        assert_eq!(keys.lease, "lease:{events:42161}");
        assert_eq!(keys.aside, "aside:{events:42161}");
        assert_eq!(keys.reset, "reset:{events:42161}");
        assert_eq!(
            keys.seen(B256::repeat_byte(0xab)),
            format!("seen:{{events:42161}}:0x{}", "ab".repeat(32))
        );
        assert_eq!(keys.seen_pattern(), "seen:{events:42161}:*");
        assert_eq!(replay_position("history"), "replay:{history}");
        assert_eq!(probe(0xab, 3), "events:probe:00000000000000ab:3");
    }
}
