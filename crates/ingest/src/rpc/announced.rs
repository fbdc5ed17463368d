//! What an endpoint last said of its head.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ethhook_domain::BlockRef;

#[derive(Default)]
pub(crate) struct Announced(Mutex<State>);

#[derive(Default)]
struct State {
    last: Option<(BlockRef, Instant)>,
    pushed: Option<Pushed>,
}

/// What a subscription sent last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pushed {
    pub(crate) at: Instant,
    /// The height of the head; none if it has sent none since it began.
    pub(crate) number: Option<u64>,
}

impl Announced {
    pub(crate) fn note(&self, block: BlockRef) {
        self.note_at(block, Instant::now());
    }

    pub(crate) fn note_at(&self, block: BlockRef, now: Instant) {
        self.state().last = Some((block, now));
    }

    /// The subscription began.
    pub(crate) fn note_subscribed(&self, now: Instant) {
        self.state().pushed = Some(Pushed { at: now, number: None });
    }

    /// The subscription sent a head at this height.
    pub(crate) fn note_pushed(&self, number: u64, now: Instant) {
        self.state().pushed = Some(Pushed { at: now, number: Some(number) });
    }

    pub(crate) fn note_unsubscribed(&self) {
        self.state().pushed = None;
    }

    /// The block last announced as the head, or called `latest`, and when; none before the first.
    pub(crate) fn last(&self) -> Option<(BlockRef, Instant)> {
        self.state().last
    }

    /// What the subscription sent last; none if there is no subscription.
    pub(crate) fn pushed(&self) -> Option<Pushed> {
        self.state().pushed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
