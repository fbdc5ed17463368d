//! What the chain wants published and is not yet: steps in their order, blocks fetched ahead.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use alloy_primitives::B256;
use ethhook_domain::canonical::Change;
use ethhook_domain::verify::Verified;
use ethhook_domain::{BlockRef, Header};
use futures_util::future::AbortHandle;

/// Blocks whose logs are fetched at once.
const FETCHES_AT_ONCE: usize = 8;
/// Logs that may wait in memory for their turn; the block that passes it is the last one fetched.
const MAX_WAITING_LOGS: usize = 20_000;
/// Headers that may wait, beyond those held back by confirmations.
const MAX_WAITING_BLOCKS: usize = 128;

/// One block on its way into the stream.
pub(super) struct Pending {
    pub(super) header: Header,
    /// When its head came; none while catching up.
    pub(super) heard: Option<Instant>,
    /// Fetches that failed.
    pub(super) attempts: u32,
    body: Slot,
}

enum Slot {
    Wanted { not_before: Option<Instant> },
    Fetching(AbortHandle),
    Here(Verified),
}

enum Item {
    Undo(BlockRef),
    Add(Box<Pending>),
}

/// The next step to publish.
pub(super) enum Next {
    Undo(BlockRef),
    Add(Box<Pending>, Verified),
}

#[derive(Default)]
pub(super) struct Queue {
    items: VecDeque<Item>,
    waiting_logs: usize,
    fetching: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Headers that may be asked for now. `held_back`: how many wait for confirmations.
    pub(super) fn room(&self, held_back: u64) -> u64 {
        (MAX_WAITING_BLOCKS as u64 + held_back).saturating_sub(self.items.len() as u64)
    }

    /// Follows a change of the chain: blocks that wait and are wanted no longer leave from the end,
    /// those beyond them are to be taken back. A new block that its header tells all of (`told_by`)
    /// is ready at once. Returns how many left.
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
        self.items.extend(change.new.into_iter().map(|header| {
            let body = match told_by(&header) {
                Some(verified) => Slot::Here(verified),
                None => Slot::Wanted { not_before: None },
            };
            Item::Add(Box::new(Pending { header, heard, attempts: 0, body }))
        }));
        dropped
    }

    /// The next block to fetch, up to height `up_to`; register the fetch with `abort`.
    pub(super) fn next_fetch(&mut self, up_to: u64, now: Instant) -> Option<&mut Pending> {
        if self.fetching >= FETCHES_AT_ONCE {
            return None;
        }
        // The block whose turn is next is fetched however much waits behind it: only it can make room.
        let ahead = self.ahead();
        let blocks = self.items.iter_mut().filter_map(|item| match item {
            Item::Add(pending) => Some(&mut **pending),
            Item::Undo(_) => None,
        });
        blocks.take(ahead).find(|pending| {
            pending.header.block.number <= up_to
                && matches!(pending.body, Slot::Wanted { not_before } if not_before.is_none_or(|t| t <= now))
        })
    }

    /// The fetch of the block that `next_fetch` gave is on its way.
    pub(super) fn fetching(&mut self, hash: B256, abort: AbortHandle) {
        if let Some(pending) = self.find(hash) {
            pending.body = Slot::Fetching(abort);
            self.fetching += 1;
        }
    }

    /// A fetch came back with the block's logs.
    pub(super) fn fetched(&mut self, hash: B256, verified: Verified) {
        let logs = verified.logs.len();
        if let Some(pending) = self.find(hash) {
            pending.body = Slot::Here(verified);
            self.waiting_logs += logs;
            self.fetching -= 1;
        }
    }

    /// A fetch failed: again, after a wait that grows with `attempts` up to two seconds. Returns
    /// how often it has failed by now.
    pub(super) fn failed(&mut self, hash: B256, now: Instant) -> Option<u32> {
        let pending = self.find(hash)?;
        pending.attempts += 1;
        let attempts = pending.attempts;
        let wait = Duration::from_millis(25 << attempts.min(7)).min(Duration::from_secs(2));
        pending.body = Slot::Wanted { not_before: Some(now + wait) };
        self.fetching -= 1;
        Some(attempts)
    }

    /// When the earliest postponed fetch is due, if it could start then.
    pub(super) fn next_due(&self) -> Option<Instant> {
        if self.fetching >= FETCHES_AT_ONCE {
            return None;
        }
        let ahead = self.ahead();
        let slots = self.items.iter().filter_map(|item| match item {
            Item::Add(pending) => Some(&pending.body),
            Item::Undo(_) => None,
        });
        slots
            .take(ahead)
            .filter_map(|slot| match slot {
                Slot::Wanted { not_before } => *not_before,
                _ => None,
            })
            .min()
    }

    /// Whether a step up to height `up_to` waits, ready or not.
    pub(super) fn wants_any(&self, up_to: u64) -> bool {
        match self.items.front() {
            Some(Item::Undo(_)) => true,
            Some(Item::Add(pending)) => pending.header.block.number <= up_to,
            None => false,
        }
    }

    /// The step whose turn it is, if it is ready.
    pub(super) fn pop_ready(&mut self, up_to: u64) -> Option<Next> {
        match self.items.front()? {
            Item::Undo(_) => {}
            Item::Add(pending) if pending.header.block.number > up_to => return None,
            Item::Add(pending) if !matches!(pending.body, Slot::Here(_)) => return None,
            Item::Add(_) => {}
        }
        match self.items.pop_front()? {
            Item::Undo(block) => Some(Next::Undo(block)),
            Item::Add(mut pending) => {
                let nothing = Slot::Wanted { not_before: None };
                match std::mem::replace(&mut pending.body, nothing) {
                    Slot::Here(verified) => {
                        self.waiting_logs -= verified.logs.len();
                        Some(Next::Add(pending, verified))
                    }
                    Slot::Wanted { .. } | Slot::Fetching(_) => None,
                }
            }
        }
    }

    /// How many blocks from the front may be fetched now.
    fn ahead(&self) -> usize {
        if self.waiting_logs >= MAX_WAITING_LOGS { 1 } else { 2 * FETCHES_AT_ONCE }
    }

    fn find(&mut self, hash: B256) -> Option<&mut Pending> {
        self.items.iter_mut().find_map(|item| match item {
            Item::Add(pending) if pending.header.block.hash == hash => Some(&mut **pending),
            _ => None,
        })
    }

    fn forget(&mut self, pending: Pending) {
        match pending.body {
            Slot::Fetching(abort) => {
                abort.abort();
                self.fetching -= 1;
            }
            Slot::Here(verified) => self.waiting_logs -= verified.logs.len(),
            Slot::Wanted { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::keccak256;
    use ethhook_domain::Proof;
    use ethhook_domain::block::Seal;

    use super::*;

    fn header(name: &str) -> Header {
        let number = name.trim_end_matches(char::is_alphabetic).parse().unwrap();
        let block =
            BlockRef { number, hash: keccak256(name), parent_hash: B256::ZERO, timestamp: 0 };
        Header {
            block,
            transactions_root: B256::ZERO,
            receipts_root: B256::ZERO,
            logs_bloom: Box::default(),
            gas_used: 0,
            seal: Seal::Matches,
        }
    }

    /// `-4a +4b`: what is orphaned first, then what is new.
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

    fn fetch(queue: &mut Queue, up_to: u64) -> Option<u64> {
        let block = queue.next_fetch(up_to, Instant::now())?.header.block;
        queue.fetching(block.hash, AbortHandle::new_pair().0);
        Some(block.number)
    }

    fn arrive(queue: &mut Queue, name: &str) {
        let nothing = Verified { logs: Vec::new(), proof: Proof::ReceiptsRoot, unhashed: false };
        queue.fetched(keccak256(name), nothing);
    }

    fn pop(queue: &mut Queue, up_to: u64) -> String {
        match queue.pop_ready(up_to) {
            Some(Next::Undo(block)) => format!("-{}", block.number),
            Some(Next::Add(pending, _)) => format!("+{}", pending.header.block.number),
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
    fn what_is_wanted_no_longer_leaves_unseen_and_what_is_published_is_taken_back() {
        let mut queue = Queue::default();
        follow(&mut queue, "+4a +5a");
        assert_eq!(fetch(&mut queue, 9), Some(4));
        // 3a was published; 4a is being fetched, 5a waits.
        assert_eq!(follow(&mut queue, "-5a -4a -3a +3b +4b"), 2);
        assert_eq!(pop(&mut queue, 9), "-3");
        arrive(&mut queue, "4a"); // too late, and not waited for
        assert_eq!(
            (fetch(&mut queue, 9), fetch(&mut queue, 9), fetch(&mut queue, 9)),
            (Some(3), Some(4), None)
        );
        // Back again: the branch that never was published leaves, the first one is fetched anew.
        assert_eq!(follow(&mut queue, "-4b -3b +3a"), 2);
        assert_eq!((fetch(&mut queue, 9), queue.len()), (Some(3), 1));
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
        let names: Vec<_> = (1..=200).map(|n| format!("+{n}a")).collect();
        follow(&mut queue, &names[..100].join(" "));
        assert_eq!((queue.room(0), queue.room(10)), (28, 38));
        follow(&mut queue, &names[100..].join(" "));
        assert_eq!(queue.room(0), 0);
        let fetched = std::iter::from_fn(|| fetch(&mut queue, 999)).count();
        assert_eq!(fetched, FETCHES_AT_ONCE);
        // Logs that wait stop it, too, once there are enough of them.
        let log = ethhook_domain::Log {
            address: Default::default(),
            topics: Vec::new(),
            data: Default::default(),
            block_hash: B256::ZERO,
            block_number: 1,
            tx_hash: B256::ZERO,
            tx_index: 0,
            log_index: 0,
            removed: false,
        };
        let logs = vec![log; MAX_WAITING_LOGS];
        queue.fetched(keccak256("1a"), Verified { logs, proof: Proof::Bloom, unhashed: false });
        assert_eq!(fetch(&mut queue, 999), None);
        assert_eq!(pop(&mut queue, 999), "+1");
        assert_eq!(fetch(&mut queue, 999), Some(9));
    }

    #[test]
    fn the_block_whose_turn_it_is_is_fetched_however_much_waits_behind_it() {
        let mut queue = Queue::default();
        follow(&mut queue, "+1a +2a +3a");
        assert_eq!((fetch(&mut queue, 9), fetch(&mut queue, 9)), (Some(1), Some(2)));
        let now = Instant::now();
        queue.failed(keccak256("1a"), now);
        queue.waiting_logs = MAX_WAITING_LOGS;
        let due = queue.next_due().unwrap();
        assert_eq!(queue.next_fetch(9, due).map(|pending| pending.header.block.number), Some(1));
    }

    #[test]
    fn a_failed_fetch_comes_again_after_a_growing_wait() {
        let mut queue = Queue::default();
        follow(&mut queue, "+1a");
        let now = Instant::now();
        for (attempt, wait) in [(1, 50), (2, 100), (3, 200)] {
            assert_eq!(fetch(&mut queue, 9), Some(1));
            assert_eq!(queue.failed(keccak256("1a"), now), Some(attempt));
            let due = now + Duration::from_millis(wait);
            assert_eq!(queue.next_due(), Some(due));
            assert!(queue.next_fetch(9, now).is_none());
            assert!(queue.next_fetch(9, due).is_some());
            // As if the time had come.
            queue.find(keccak256("1a")).unwrap().body = Slot::Wanted { not_before: None };
        }
        assert_eq!(queue.failed(keccak256("9z"), now), None);
    }
}
