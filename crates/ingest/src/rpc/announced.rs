//! The block that an endpoint last announced as its head, or called `latest`.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use ethhook_domain::BlockRef;

#[derive(Default)]
pub(crate) struct Announced(Mutex<Option<(BlockRef, Instant)>>);

impl Announced {
    pub(crate) fn note(&self, block: BlockRef) {
        self.note_at(block, Instant::now());
    }

    pub(crate) fn note_at(&self, block: BlockRef, now: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((block, now));
    }

    /// The block, and when it was announced; none before the first.
    pub(crate) fn last(&self) -> Option<(BlockRef, Instant)> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
