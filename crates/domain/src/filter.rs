//! Which logs become events.

use std::collections::BTreeSet;

use alloy_primitives::{Address, B256, Bloom, BloomInput, hex, keccak256};

use crate::{BlockRef, ChainId, Log, ProcessedEvent};

/// The contracts and first topics to accept; an empty set accepts all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Emitting contracts.
    pub contracts: BTreeSet<Address>,
    /// First topics (`topics[0]`, the event signature's hash).
    pub topics: BTreeSet<B256>,
}

impl Filter {
    /// Whether `log` becomes an event.
    #[must_use]
    pub fn passes(&self, log: &Log) -> bool {
        self.lets_through(&log.address, log.topics.first())
    }

    /// The events of those of a block's `logs` that pass, in the same order.
    #[must_use]
    pub fn events(
        &self,
        chain_id: ChainId,
        block: &BlockRef,
        mut logs: Vec<Log>,
    ) -> Vec<ProcessedEvent> {
        logs.retain(|log| self.passes(log));
        logs.into_iter().map(|log| ProcessedEvent::new(chain_id, block, log)).collect()
    }

    /// Whether `event` would pass this filter.
    #[must_use]
    pub fn passes_event(&self, event: &ProcessedEvent) -> bool {
        self.lets_through(&event.contract, event.topics.first())
    }

    fn lets_through(&self, contract: &Address, topic: Option<&B256>) -> bool {
        (self.contracts.is_empty() || self.contracts.contains(contract))
            && (self.topics.is_empty() || topic.is_some_and(|topic| self.topics.contains(topic)))
    }

    /// The test whether a block with a given bloom can contain a log that passes.
    #[must_use]
    pub fn bloom_test(&self) -> BloomTest {
        let bits = |item: &[u8]| Bloom::from(BloomInput::Raw(item));
        BloomTest {
            contracts: self.contracts.iter().map(|contract| bits(contract.as_slice())).collect(),
            topics: self.topics.iter().map(|topic| bits(topic.as_slice())).collect(),
        }
    }

    /// Sixteen hex digits that identify this filter in markers and the cursor; `all` if it accepts
    /// everything.
    #[must_use]
    pub fn digest(&self) -> String {
        if self.contracts.is_empty() && self.topics.is_empty() {
            return "all".to_owned();
        }
        let mut bytes = Vec::new();
        self.contracts.iter().for_each(|c| bytes.extend_from_slice(c.as_slice()));
        bytes.push(b'/');
        self.topics.iter().for_each(|t| bytes.extend_from_slice(t.as_slice()));
        hex::encode(&keccak256(bytes)[..8])
    }
}

/// The bloom bits of a filter's contracts and topics, computed once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BloomTest {
    contracts: Vec<Bloom>,
    topics: Vec<Bloom>,
}

impl BloomTest {
    /// Whether a block whose logs have this bloom may contain a log that passes the filter. `false`
    /// is certain, because every log sets the bits of its contract and topics; `true` may be a
    /// coincidence.
    #[must_use]
    pub fn may_match(&self, bloom: &Bloom) -> bool {
        let any_of = |items: &[Bloom]| items.is_empty() || items.iter().any(|i| bloom.contains(i));
        !bloom.is_zero() && any_of(&self.contracts) && any_of(&self.topics)
    }
}
