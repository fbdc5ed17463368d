//! Steps that are not yet published, in order, and blocks fetched ahead.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use alloy_primitives::B256;
use ethhook_domain::canonical::Change;
use ethhook_domain::verify::Verified;
use ethhook_domain::{BlockRef, Header};
use futures_util::future::AbortHandle;

use crate::backoff::{after_refusals, is_lasting};
use crate::node::{NodeError, Plan};

/// Fetches under way at once, one message each.
const FETCHES_AT_ONCE: usize = 8;
/// With messages for several blocks, blocks are considered for fetching as far ahead as this many full messages
/// reach.
const SPANS_AHEAD: usize = 4;
/// Logs that may wait in memory for their turn, including those expected from fetches under way;
/// the block that exceeds this is the last one fetched.
const MAX_WAITING_LOGS: usize = 10_000;
/// Headers that may wait, in addition to those held back by confirmations.
const MAX_WAITING_BLOCKS: usize = 512;

/// One block on its way into the stream.
struct Pending {
    header: Header,
    /// When its head arrived; none while catching up.
    heard: Option<Instant>,
    /// Failed fetches.
    attempts: u32,
    /// Of these, those that endpoints answered.
    refusals: u32,
    /// It failed a check, perhaps because of other blocks in the message: it is fetched separately,
    /// by its hash.
    alone: bool,
    body: BodyState,
}

enum BodyState {
    Wanted { not_before: Option<Instant> },
    Fetching { _until_dropped: Arc<FetchGuard> },
    Here(Verified),
}

impl Pending {
    fn is_here(&self) -> bool {
        matches!(self.body, BodyState::Here(_))
    }

    /// Whether it waits to be fetched, and not for a later time.
    fn is_due(&self, now: Instant) -> bool {
        matches!(self.body, BodyState::Wanted { not_before } if not_before.is_none_or(|at| at <= now))
    }
}

/// A fetch under way; it is aborted when no block waits for it any more.
struct FetchGuard(AbortHandle);

impl Drop for FetchGuard {
    fn drop(&mut self) {
        self.0.abort(); // no effect if it is finished
    }
}

/// Which blocks may be fetched now, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The highest block that may be fetched.
    pub(super) up_to: u64,
    /// The highest block that may be fetched together with others.
    pub(super) together: u64,
    pub(super) plan: Plan,
}

enum Item {
    Undo(BlockRef),
    Add(Box<Pending>),
}

/// The next step to publish.
pub(super) enum Next {
    Undo(BlockRef),
    Add {
        block: BlockRef,
        /// When its head arrived; none while catching up.
        heard: Option<Instant>,
        body: Verified,
    },
}

#[derive(Default)]
pub(super) struct Queue {
    items: VecDeque<Item>,
    waiting_logs: usize,
    fetches: Vec<Weak<FetchGuard>>,
    /// Logs expected from a fetch under way: as many as in the largest recent block.
    usual_logs: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// How many more headers may be requested now; `held_back` is how many wait for confirmations.
    pub(super) fn room(&self, held_back: u64) -> u64 {
        (MAX_WAITING_BLOCKS as u64 + held_back).saturating_sub(self.items.len() as u64)
    }

    /// Follows a change of the chain: orphaned blocks that still wait are dropped from the end; for
    /// those already published, an undo step is added, or dropped if the chain returns to it before it is
    /// taken. A new block whose logs follow from its header (`told_by`) is ready at once. Returns how many
    /// blocks were dropped.
    pub(super) fn follow(
        &mut self,
        change: Change,
        heard: Option<Instant>,
        told_by: impl Fn(&Header) -> Option<Verified>,
    ) -> usize {
        let mut dropped = 0;
        for block in change.undo {
            match self.items.pop_back() {
                Some(Item::Add(pending)) if pending.header.block.hash == block.hash => {
                    self.forget(*pending);
                    dropped += 1;
                }
                other => {
                    self.items.extend(other);
                    self.items.push_back(Item::Undo(block));
                }
            }
        }
        for header in change.new {
            if matches!(self.items.back(), Some(Item::Undo(block)) if block.hash == header.block.hash)
            {
                self.items.pop_back();
                continue;
            }
            let body = match told_by(&header) {
                Some(verified) => BodyState::Here(verified),
                None => BodyState::Wanted { not_before: None },
            };
            let pending = Pending { header, heard, attempts: 0, refusals: 0, alone: false, body };
            self.items.push_back(Item::Add(Box::new(pending)));
        }
        dropped
    }

    /// The blocks to fetch with the next message, empty if there are none. The caller then passes
    /// them to `fetching`.
    ///
    /// If publishing is the bottleneck, each step makes room for only one more block. Then fewer
    /// blocks than one message could cover wait for more, unless the first of them is next in turn.
    pub(super) fn next_fetch(&self, limits: &Limits, now: Instant) -> Vec<Header> {
        if self.is_busy() {
            return Vec::new();
        }
        let Limits { up_to, together, plan } = *limits;
        let may_start =
            |pending: &Pending| pending.header.block.number <= up_to && pending.is_due(now);
        let may_join =
            |pending: &Pending| pending.header.block.number <= together && !pending.alone;

        let mut rest = self.to_fetch(plan.blocks).enumerate().skip_while(|(_, p)| !may_start(p));
        let Some((position, first)) = rest.next() else { return Vec::new() };
        let is_next_turn = position == 0;
        let mut last = first.header.block.number;
        let mut chosen = vec![first.header.clone()];

        // Whether no other block could join them.
        let mut is_complete = !may_join(first) || plan.blocks <= 1 || last == together;
        while !is_complete && let Some((_, pending)) = rest.next() {
            let number = pending.header.block.number;
            let fits = may_start(pending) && may_join(pending);
            if number > together || (plan.in_a_row && !(fits && number == last + 1)) {
                is_complete = true;
            } else if fits {
                last = number;
                chosen.push(pending.header.clone());
                is_complete = chosen.len() >= plan.blocks || last == together;
            }
        }
        if is_complete || is_next_turn { chosen } else { Vec::new() }
    }

    /// Records that the blocks returned by `next_fetch` are being fetched.
    pub(super) fn fetching(&mut self, hashes: &[B256], abort: AbortHandle) {
        let fetch = Arc::new(FetchGuard(abort));
        self.fetches.retain(|fetch| fetch.strong_count() > 0);
        self.fetches.push(Arc::downgrade(&fetch));
        for hash in hashes {
            if let Some(pending) = self.find(*hash) {
                pending.body = BodyState::Fetching { _until_dropped: Arc::clone(&fetch) };
            }
        }
    }

    /// A fetch brought the block's logs; another fetch may have done so before.
    pub(super) fn fetched(&mut self, hash: B256, verified: Verified) {
        let logs = verified.logs.len();
        if let Some(pending) = self.find(hash).filter(|pending| !pending.is_here()) {
            pending.body = BodyState::Here(verified);
            self.waiting_logs += logs;
            self.usual_logs = logs.max(self.usual_logs / 8 * 7);
        }
    }

    /// A fetch failed: it is repeated after a wait that grows up to two seconds, and later further if endpoints did
    /// answer; separately from now on, unless the whole request failed, which says nothing about one block. Returns
    /// the number of failures so far.
    pub(super) fn failed(&mut self, hash: B256, error: &NodeError, now: Instant) -> Option<u32> {
        let pending = self.find(hash).filter(|pending| !pending.is_here())?;
        pending.attempts += 1;
        pending.refusals += u32::from(error.is_refusal());
        pending.alone |= !matches!(error, NodeError::Rpc(_));
        let attempts = pending.attempts;
        let wait = Duration::from_millis(25 << attempts.min(7)).min(Duration::from_secs(2));
        let not_before = now + after_refusals(pending.refusals, wait);
        pending.body = BodyState::Wanted { not_before: Some(not_before) };
        Some(attempts)
    }

    /// Whether a block up to height `up_to` waits to be fetched, and could be fetched now.
    pub(super) fn wants_fetch(&self, up_to: u64) -> bool {
        let wanted = |pending: &Pending| {
            matches!(pending.body, BodyState::Wanted { .. }) && pending.header.block.number <= up_to
        };
        !self.is_busy() && self.to_fetch(1).any(wanted)
    }

    /// When the earliest postponed fetch after `now` is due, if it could start then.
    pub(super) fn next_due(&self, limits: &Limits, now: Instant) -> Option<Instant> {
        if self.is_busy() {
            return None;
        }
        let in_reach = self.to_fetch(limits.plan.blocks);
        in_reach
            .filter(|pending| pending.header.block.number <= limits.up_to)
            .filter_map(|pending| match pending.body {
                BodyState::Wanted { not_before } => not_before.filter(|at| *at > now),
                _ => None,
            })
            .min()
    }

    /// Whether the next step takes a published block back.
    pub(super) fn undo_is_next(&self) -> bool {
        matches!(self.items.front(), Some(Item::Undo(_)))
    }

    /// Whether a step up to height `up_to` is waiting, ready or not.
    pub(super) fn wants_any(&self, up_to: u64) -> bool {
        match self.items.front() {
            Some(Item::Undo(_)) => true,
            Some(Item::Add(pending)) => pending.header.block.number <= up_to,
            None => false,
        }
    }

    /// Whether this block is the next one in turn.
    pub(super) fn is_next(&self, hash: B256) -> bool {
        let Some(Item::Add(pending)) = self.items.front() else { return false };
        pending.header.block.hash == hash
    }

    /// The next step in turn, if it is ready: an undo whatever its height, a block up to `up_to`.
    pub(super) fn pop_ready(&mut self, up_to: Option<u64>) -> Option<Next> {
        match self.items.pop_front()? {
            Item::Undo(block) => Some(Next::Undo(block)),
            Item::Add(pending) => match *pending {
                Pending {
                    header: Header { block, .. },
                    heard,
                    body: BodyState::Here(body),
                    ..
                } if up_to.is_some_and(|up_to| block.number <= up_to) => {
                    self.waiting_logs -= body.logs.len();
                    Some(Next::Add { block, heard, body })
                }
                not_yet => {
                    self.items.push_front(Item::Add(Box::new(not_yet)));
                    None
                }
            },
        }
    }

    /// Number of fetches under way.
    fn under_way(&self) -> usize {
        self.fetches.iter().filter(|fetch| fetch.strong_count() > 0).count()
    }

    fn is_busy(&self) -> bool {
        self.under_way() >= FETCHES_AT_ONCE
    }

    /// The blocks from the front that may be fetched now, with `at_once` blocks per message. The
    /// block whose turn is next is fetched however many logs wait: only it can make room. If it does not come, those
    /// behind it would cost calls for nothing.
    fn to_fetch(&self, at_once: usize) -> impl Iterator<Item = &Pending> {
        let expected = self.waiting_logs + self.under_way() * self.usual_logs;
        let mut blocks = self
            .items
            .iter()
            .filter_map(|item| match item {
                Item::Add(pending) => Some(&**pending),
                Item::Undo(_) => None,
            })
            .peekable();
        let is_stuck =
            blocks.peek().is_some_and(|next| !next.is_here() && is_lasting(next.refusals));
        let ahead = if is_stuck || expected >= MAX_WAITING_LOGS {
            1
        } else {
            (2 * FETCHES_AT_ONCE).max(SPANS_AHEAD * at_once)
        };
        blocks.take(ahead)
    }

    fn find(&mut self, hash: B256) -> Option<&mut Pending> {
        self.items.iter_mut().find_map(|item| match item {
            Item::Add(pending) if pending.header.block.hash == hash => Some(&mut **pending),
            _ => None,
        })
    }

    fn forget(&mut self, pending: Pending) {
        if let BodyState::Here(verified) = pending.body {
            self.waiting_logs -= verified.logs.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::keccak256;

    use super::*;
    use crate::rpc::RpcError;
    use crate::testing::{self, verified};

    fn header(name: &str) -> Header {
        let number = name.trim_end_matches(char::is_alphabetic).parse().unwrap();
        testing::header(number, keccak256(name), B256::ZERO)
    }

    /// `-4a +4b`: orphaned blocks first, then new ones.
    fn follow(queue: &mut Queue, steps: &str) -> usize {
        let mut change = Change::default();
        for step in steps.split_whitespace() {
            match step.split_at(1) {
                ("-", name) => change.undo.push(header(name).block),
                (_, name) => change.new.push(header(name)),
            }
        }
        queue.follow(change, None, |_| None)
    }

    const ALONE: Plan = Plan { blocks: 1, in_a_row: false };

    fn one_by_one(up_to: u64) -> Limits {
        Limits { up_to, together: 0, plan: ALONE }
    }

    fn fetch(queue: &mut Queue, up_to: u64) -> Option<u64> {
        let numbers = fetch_together(queue, &one_by_one(up_to));
        assert!(numbers.len() < 2);
        numbers.first().copied()
    }

    fn fetch_together(queue: &mut Queue, limits: &Limits) -> Vec<u64> {
        let headers = queue.next_fetch(limits, Instant::now());
        if !headers.is_empty() {
            let hashes: Vec<_> = headers.iter().map(|header| header.block.hash).collect();
            queue.fetching(&hashes, AbortHandle::new_pair().0);
        }
        headers.iter().map(|header| header.block.number).collect()
    }

    fn arrive(queue: &mut Queue, name: &str) {
        queue.fetched(keccak256(name), verified(0));
    }

    fn pop(queue: &mut Queue, up_to: u64) -> String {
        match queue.pop_ready(Some(up_to)) {
            Some(Next::Undo(block)) => format!("-{}", block.number),
            Some(Next::Add { block, .. }) => format!("+{}", block.number),
            None => "nothing".into(),
        }
    }

    #[test]
    fn blocks_leave_in_order_whatever_order_they_arrive_in() {
        let mut queue = Queue::default();
        follow(&mut queue, "+1a +2a +3a");
        assert_eq!(
            (fetch(&mut queue, 9), fetch(&mut queue, 9), fetch(&mut queue, 9)),
            (Some(1), Some(2), Some(3))
        );
        arrive(&mut queue, "3a");
        arrive(&mut queue, "2a");
        assert_eq!(pop(&mut queue, 9), "nothing");
        arrive(&mut queue, "1a");
        let popped: Vec<_> = (0..4).map(|_| pop(&mut queue, 9)).collect();
        assert_eq!(popped, ["+1", "+2", "+3", "nothing"]);
    }

    #[test]
    fn a_block_that_comes_from_two_fetches_counts_once() {
        let mut queue = Queue::default();
        follow(&mut queue, "+1a");
        queue.fetched(keccak256("1a"), verified(1));
        queue.fetched(keccak256("1a"), verified(1));
        assert_eq!(queue.waiting_logs, 1);
        assert_eq!(
            queue.failed(keccak256("1a"), &NodeError::Unknown, Instant::now()),
            None,
            "it is here"
        );
        assert_eq!((pop(&mut queue, 9), queue.waiting_logs), ("+1".into(), 0));
    }

    #[test]
    fn what_is_wanted_no_longer_leaves_unseen_and_what_is_published_is_taken_back() {
        let mut queue = Queue::default();
        follow(&mut queue, "+4a +5a");
        assert_eq!(fetch(&mut queue, 9), Some(4));
        // 3a was published; 4a is being fetched, 5a waits.
        assert_eq!(follow(&mut queue, "-5a -4a -3a +3b +4b"), 2);
        assert_eq!(pop(&mut queue, 9), "-3");
        arrive(&mut queue, "4a"); // too late: dropped
        assert_eq!(
            (fetch(&mut queue, 9), fetch(&mut queue, 9), fetch(&mut queue, 9)),
            (Some(3), Some(4), None)
        );
        // Back to the first branch: the unpublished one is dropped, and the first is fetched again.
        assert_eq!(follow(&mut queue, "-4b -3b +3a"), 2);
        assert_eq!((fetch(&mut queue, 9), queue.len()), (Some(3), 1));
    }

    #[test]
    fn back_to_what_is_published_before_it_is_taken_back_nothing_is_to_do() {
        let mut queue = Queue::default();
        follow(&mut queue, "-5a -4a +4b");
        assert_eq!(follow(&mut queue, "-4b +4a +5a +6a"), 1);
        assert_eq!((fetch(&mut queue, 9), queue.len()), (Some(6), 1));
        // One that is taken back already comes again.
        let mut queue = Queue::default();
        follow(&mut queue, "-5a -4a +4b");
        assert_eq!(pop(&mut queue, 9), "-5");
        assert_eq!(follow(&mut queue, "-4b +4a +5a"), 1);
        assert_eq!((fetch(&mut queue, 9), queue.len()), (Some(5), 1));
    }

    #[test]
    fn a_block_that_no_endpoint_gives_for_long_costs_few_calls_and_those_behind_it_none() {
        let mut queue = Queue::default();
        follow(&mut queue, "+1a +2a");
        let mut now = Instant::now();
        let mut fails = |error: &NodeError| {
            let due = queue.next_due(&one_by_one(9), now).unwrap_or(now);
            let waited = due - now;
            now = due;
            let next = queue.next_fetch(&one_by_one(9), now);
            assert_eq!(next[0].block.number, 1);
            queue.failed(keccak256("1a"), error, now);
            waited
        };
        let timeout = NodeError::Rpc(RpcError::Timeout(Duration::ZERO));
        (0..99).for_each(|_| assert!(fails(&timeout) <= Duration::from_secs(2)));
        let waits: Vec<_> = (0..30).map(|_| fails(&NodeError::Unknown)).collect();
        assert_eq!(waits[20], Duration::from_secs(2));
        assert_eq!(waits[21..25], [4, 8, 16, 30].map(Duration::from_secs));
        let later = now + Duration::from_secs(99);
        let limits = Limits { plan: Plan { blocks: 9, in_a_row: false }, ..one_by_one(9) };
        assert_eq!(queue.next_fetch(&limits, later).len(), 1);
        queue.fetched(keccak256("1a"), verified(0));
        assert_eq!(queue.next_fetch(&one_by_one(9), later)[0].block.number, 2);
    }

    #[test]
    fn confirmations_hold_fetches_and_steps_back_but_never_an_undo() {
        let mut queue = Queue::default();
        follow(&mut queue, "-2z +2a +3a");
        assert_eq!((fetch(&mut queue, 2), fetch(&mut queue, 2)), (Some(2), None));
        arrive(&mut queue, "2a");
        assert_eq!((pop(&mut queue, 0), pop(&mut queue, 1)), ("-2".into(), "nothing".into()));
        assert_eq!((pop(&mut queue, 2), pop(&mut queue, 2)), ("+2".into(), "nothing".into()));
        assert!(!queue.wants_any(2) && queue.wants_any(3));
    }

    #[test]
    fn g7_reading_ahead_stops_at_its_bounds() {
        let mut queue = Queue::default();
        let names: Vec<_> = (1..=600).map(|n| format!("+{n}a")).collect();
        follow(&mut queue, &names[..500].join(" "));
        assert_eq!((queue.room(0), queue.room(10)), (12, 22));
        follow(&mut queue, &names[500..].join(" "));
        assert_eq!(queue.room(0), 0);
        let fetched = std::iter::from_fn(|| fetch(&mut queue, 999)).count();
        assert_eq!(fetched, FETCHES_AT_ONCE);
        // Enough waiting logs stop fetching, too.
        queue.fetched(keccak256("1a"), verified(MAX_WAITING_LOGS));
        assert_eq!(fetch(&mut queue, 999), None);
        assert_eq!(pop(&mut queue, 999), "+1");
        assert_eq!(fetch(&mut queue, 999), None, "those under way may be as large");
        (2..=8).for_each(|n| arrive(&mut queue, &format!("{n}a")));
        assert_eq!(fetch(&mut queue, 999), Some(9));
    }

    #[test]
    fn the_block_whose_turn_it_is_is_fetched_however_much_waits_behind_it() {
        let mut queue = Queue::default();
        follow(&mut queue, "+1a +2a +3a");
        assert_eq!((fetch(&mut queue, 9), fetch(&mut queue, 9)), (Some(1), Some(2)));
        let now = Instant::now();
        queue.failed(keccak256("1a"), &NodeError::Unknown, now);
        queue.waiting_logs = MAX_WAITING_LOGS;
        let due = queue.next_due(&one_by_one(9), now).unwrap();
        let next = queue.next_fetch(&one_by_one(9), due);
        assert_eq!(next.iter().map(|header| header.block.number).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_failed_fetch_comes_again_after_a_growing_wait() {
        let mut queue = Queue::default();
        follow(&mut queue, "+1a");
        let now = Instant::now();
        for (attempt, wait) in [(1, 50), (2, 100), (3, 200)] {
            assert_eq!(fetch(&mut queue, 9), Some(1));
            assert_eq!(queue.failed(keccak256("1a"), &NodeError::Unknown, now), Some(attempt));
            let due = now + Duration::from_millis(wait);
            assert_eq!(queue.next_due(&one_by_one(9), now), Some(due));
            assert_eq!(queue.next_due(&one_by_one(9), due), None, "what could start by then has");
            assert_eq!(queue.next_due(&one_by_one(0), now), None, "not before it may be published");
            assert!(queue.next_fetch(&one_by_one(9), now).is_empty());
            assert_eq!(queue.next_fetch(&one_by_one(9), due).len(), 1);
            // Makes it due now.
            queue.find(keccak256("1a")).unwrap().body = BodyState::Wanted { not_before: None };
        }
        assert_eq!(queue.failed(keccak256("9z"), &NodeError::Unknown, now), None);
    }

    #[test]
    fn several_blocks_are_fetched_together_up_to_a_height() {
        let mut queue = Queue::default();
        let names: Vec<_> = (1..=20).map(|n| format!("+{n}a")).collect();
        let known = |header: &Header| (header.block.number == 4).then(|| verified(0));
        let new = names.iter().map(|name| header(&name[1..])).collect();
        queue.follow(Change { undo: Vec::new(), new }, None, known);
        let plan = Plan { blocks: 5, in_a_row: true };
        let limits = Limits { up_to: 12, together: 9, plan };
        // Block 4 need not be fetched, and so ends a range.
        assert_eq!(fetch_together(&mut queue, &limits), [1, 2, 3]);
        assert_eq!(fetch_together(&mut queue, &limits), [5, 6, 7, 8, 9]);
        assert_eq!(fetch_together(&mut queue, &limits), [10]);
        // A block that failed a check is fetched separately; those that failed with it are fetched
        // together again.
        let now = Instant::now();
        let timeout = NodeError::Rpc(RpcError::Timeout(Duration::ZERO));
        queue.failed(keccak256("2a"), &NodeError::Unknown, now);
        queue.failed(keccak256("1a"), &timeout, now);
        queue.failed(keccak256("3a"), &timeout, now);
        let later = now + Duration::from_secs(9);
        let next = |queue: &mut Queue, plan| {
            let headers = queue.next_fetch(&Limits { plan, ..limits }, later);
            let hashes: Vec<_> = headers.iter().map(|header| header.block.hash).collect();
            queue.fetching(&hashes, AbortHandle::new_pair().0);
            headers.iter().map(|header| header.block.number).collect::<Vec<_>>()
        };
        // A batch may contain blocks that are not consecutive.
        assert_eq!(next(&mut queue, Plan { blocks: 5, in_a_row: false }), [1, 3]);
        assert_eq!(next(&mut queue, plan), [2]);
    }

    #[test]
    fn a_few_blocks_wait_for_the_rest_of_their_message_unless_it_is_their_turn() {
        let names: Vec<_> = (1..=40).map(|n| format!("+{n}a")).collect();
        for plan in [false, true].map(|in_a_row| Plan { blocks: 5, in_a_row }) {
            let limits = Limits { up_to: 99, together: 99, plan };
            let mut queue = Queue::default();
            follow(&mut queue, &names.join(" "));
            for first in [1, 6, 11, 16] {
                let message: Vec<u64> = (first..first + 5).collect();
                assert_eq!(fetch_together(&mut queue, &limits), message);
            }
            for number in 1..=20 {
                arrive(&mut queue, &format!("{number}a"));
                assert_eq!(pop(&mut queue, 99), format!("+{number}"));
                let expected: Vec<u64> = if number % 5 == 0 {
                    (number + 16..=number + 20).collect()
                } else {
                    Vec::new()
                };
                assert_eq!(fetch_together(&mut queue, &limits), expected, "after {number}");
            }
            (21..=40).for_each(|number| arrive(&mut queue, &format!("{number}a")));
            (21..=40).for_each(|_| _ = pop(&mut queue, 99));
            // These are all known blocks; more may come, but these are next in turn.
            follow(&mut queue, "+41a +42a");
            assert_eq!(fetch_together(&mut queue, &limits), [41, 42]);
            // No other block may join them.
            follow(&mut queue, "+43a +44a");
            let limits = Limits { together: 44, ..limits };
            assert_eq!(fetch_together(&mut queue, &limits), [43, 44]);
        }
    }

    #[test]
    fn a_fetch_ends_when_nobody_waits_for_it_any_more() {
        let mut queue = Queue::default();
        follow(&mut queue, "+1a +2a +3a");
        let (abort, registration) = AbortHandle::new_pair();
        let hashes = ["2a", "3a"].map(keccak256);
        queue.fetching(&hashes, abort);
        follow(&mut queue, "-3a");
        assert!(!registration.handle().is_aborted(), "block 2 waits for it");
        follow(&mut queue, "-2a +2b");
        assert!(registration.handle().is_aborted());
        assert_eq!((fetch(&mut queue, 9), fetch(&mut queue, 9)), (Some(1), Some(2)));
    }
}
