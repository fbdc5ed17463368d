//! What an endpoint last said of its head.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ethhook_domain::BlockRef;

#[derive(Default)]
pub(crate) struct Announced(Mutex<State>);

#[derive(Default)]
struct State {
    last: Option<(BlockRef, Instant)>,
    pushed: Option<(u64, Instant)>,
}

impl Announced {
    pub(crate) fn note(&self, block: BlockRef) {
        self.note_at(block, Instant::now());
    }

    pub(crate) fn note_at(&self, block: BlockRef, now: Instant) {
        self.state().last = Some((block, now));
    }

    /// The subscription sent a head at this height, or began (0).
    pub(crate) fn note_pushed(&self, number: u64, now: Instant) {
        self.state().pushed = Some((number, now));
    }

    pub(crate) fn unsubscribed(&self) {
        self.state().pushed = None;
    }

    /// The block last announced as the head, or called `latest`, and when; none before the first.
    pub(crate) fn last(&self) -> Option<(BlockRef, Instant)> {
        self.state().last
    }

    /// The height of the head that the subscription sent last, and when; 0 if it has sent none since it began, none
    /// if there is no subscription.
    pub(crate) fn pushed(&self) -> Option<(u64, Instant)> {
        self.state().pushed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
