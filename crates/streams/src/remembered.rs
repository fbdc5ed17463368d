//! What this process remembers of each chain's streams, so that it notices if Redis lost acknowledged steps, and
//! readers miss nothing after a failover. Correctness does not rest on it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ethhook_domain::{ChainId, EntryId};

use crate::connection::Streams;

/// What is known about the streams of each chain. Outlives publishers.
#[derive(Default)]
pub(crate) struct Remembered(Mutex<HashMap<ChainId, Known>>);

/// What is known about one chain's streams.
#[derive(Default)]
struct Known {
    floor: Option<Floor>,
    /// `seq` of the last acknowledged step, or of a cursor read since then.
    seq: Option<u64>,
}

/// The highest IDs that a chain's streams are known to have assigned: after a failover the next publisher raises their
/// last IDs above those that readers may already have seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Floor {
    pub(crate) event: EntryId,
    pub(crate) marker: EntryId,
}

impl fmt::Display for Floor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.event, self.marker)
    }
}

impl Remembered {
    fn lock(&self) -> MutexGuard<'_, HashMap<ChainId, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Streams {
    /// The floor of `chain`'s streams, if they assigned an ID to this process.
    pub(crate) fn floor(&self, chain: ChainId) -> Option<Floor> {
        self.remembered.lock().get(&chain)?.floor
    }

    /// Remembers that `chain`'s streams assigned these IDs.
    pub(crate) fn raise_floor(&self, chain: ChainId, event: EntryId, marker: EntryId) {
        let mut known = self.remembered.lock();
        let lowest = Floor { event: EntryId::MIN, marker: EntryId::MIN };
        let floor = known.entry(chain).or_default().floor.get_or_insert(lowest);
        floor.event = floor.event.max(event);
        floor.marker = floor.marker.max(marker);
    }

    /// `seq` of the cursor as this process last knew it for certain: a lower one in Redis means that acknowledged
    /// steps were lost. None if this process never held the chain's lease, or forgot the value.
    #[must_use]
    pub fn last_seq(&self, chain: ChainId) -> Option<u64> {
        self.remembered.lock().get(&chain)?.seq
    }

    /// Forgets the cursor's `seq`, so that whatever Redis holds next is not taken for a loss.
    pub fn forget_seq(&self, chain: ChainId) {
        self.remembered.lock().entry(chain).or_default().seq = None;
    }

    /// Remembers that `chain`'s cursor holds `seq`.
    pub(crate) fn remember_seq(&self, chain: ChainId, seq: u64) {
        self.remembered.lock().entry(chain).or_default().seq = Some(seq);
    }
}
