//! The hearing side of a session: what endpoints announce, and what a change of the canonical chain means for what waits
//! to be published.

use std::time::Instant;

use ethhook_domain::canonical::{Ask, Change};
use ethhook_domain::{BlockRef, Header};
use tracing::info;

use super::Session;
use super::asking::ASK_AGAIN;
use crate::chain::End;
use crate::metrics::BlockOutcome;
use crate::rpc::{Head, SocketEvent};

impl Session<'_> {
    pub(super) fn told_by_socket(&mut self, event: SocketEvent) -> Option<End> {
        match event {
            SocketEvent::Subscribed => {
                self.canonical.doubt();
                None
            }
            SocketEvent::Head(head) => self.heard(head),
        }
    }

    pub(super) fn heard(&mut self, head: Head) -> Option<End> {
        match head {
            Head::Number(number) => {
                let is_new = number >= self.canonical.next_number();
                self.canonical.heard_of(number);
                self.note_heard(is_new, is_new);
                None
            }
            Head::Header(header) => self.heard_header(*header),
        }
    }

    fn heard_header(&mut self, header: Header) -> Option<End> {
        let BlockRef { number, hash, .. } = header.block;
        if self.head.is_some_and(|(known, _)| known < number) {
            self.asking.silent_polls = 0; // the subscription is alive
        }
        if number > self.last_header() {
            return None; // nothing past the end needs following
        }
        if self.canonical.is_next(&header.block) && !self.has_room() {
            self.canonical.postpone(&header.block);
            self.asking.silent_polls = 0;
            return None;
        }
        let is_new = number >= self.canonical.next_number();
        let change = self.canonical.heard(header);
        let contradicts = change.is_empty()
            && (is_new || self.canonical.at(number).is_some_and(|ours| ours.hash != hash));
        self.asking.heard_otherwise |= self.canonical.ask() == Some(Ask::Latest);
        let end = self.follow(change, Some(Instant::now()));
        self.note_heard(is_new, contradicts);
        end
    }

    /// Notes a head: whether it `is_new`, above our tip, and whether it `contradicts` our chain, which does not contain
    /// it even now.
    fn note_heard(&mut self, is_new: bool, contradicts: bool) {
        // The answer under way may be older.
        self.asking.heard_meanwhile |= contradicts && self.asking.headers.is_some();
        if !is_new {
            return;
        }
        self.asking.silent_polls = 0;
        self.note_answer();
        if self.asking.refused > 0 {
            self.due.ask = self.due.ask.min(Instant::now() + ASK_AGAIN); // it may answer again
        }
        // Only news delays the next poll. While the newest announced head is above anything we can ask for, not even
        // that: it may be false.
        if self.has_reached_head() || self.ask().is_some() {
            self.due.poll = Instant::now() + self.chain.poll_every();
        }
    }

    pub(super) fn follow(&mut self, mut change: Change, heard: Option<Instant>) -> Option<End> {
        if change.is_empty() {
            return None;
        }
        if !change.new.is_empty() {
            self.has_grown();
        }
        if let Some(tip) = self.canonical.tip() {
            // A head counts once it has joined the chain, not when it is announced.
            if self.head.is_none_or(|(number, _)| number < tip.number) {
                self.head = Some((tip.number, tip.timestamp));
            }
        }
        if let Some(end) = self.end_block {
            change.undo.retain(|block| block.number <= end);
            change.new.retain(|header| header.block.number <= end);
        }
        // A restarted dev node has another genesis, which opening a session refuses.
        if change.undo.last().is_some_and(|lowest| lowest.number == self.start_block)
            && !std::mem::take(&mut self.may_be_replaced)
        {
            return Some(End::Replaced);
        }
        if let (Some(top), Some(lowest)) = (change.undo.first(), change.undo.last()) {
            let depth = change.undo.len();
            info!(depth, from = %top, to = %lowest, "reorg");
            self.chain.metrics.reorg_depth.observe(u32::try_from(depth).unwrap_or(u32::MAX).into());
            self.chain.status.update(|status| status.reorgs += 1);
        }
        let node = &self.chain.node;
        for _ in 0..self.queue.follow(change, heard, |header| node.told_by(header)) {
            self.chain.metrics.block(BlockOutcome::Skipped);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::scene::{Scene, header};
    use super::*;
    use crate::config::ChainConfig;

    #[tokio::test]
    async fn a_reorg_of_all_blocks_ends_the_session_unless_the_genesis_was_just_checked() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        session.hear(1..=3);
        session.publish().await;
        let undo = |numbers: &[u64]| Change {
            undo: numbers.iter().map(|number| header(*number, 'a').block).collect(),
            new: Vec::new(),
        };
        assert!(session.follow(undo(&[3, 2]), None).is_none());
        assert!(matches!(session.follow(undo(&[1]), None), Some(End::Replaced)));
        assert_eq!(session.queue.len(), 2, "it is not followed");
        session.may_be_replaced = true;
        assert!(session.follow(undo(&[1]), None).is_none());
        assert!(matches!(session.follow(undo(&[1]), None), Some(End::Replaced)), "once");
        assert_eq!(scene.status().reorgs, 2);
    }

    #[tokio::test]
    async fn nothing_past_the_end_block_is_queued_or_taken_back() {
        let scene = Scene::of(ChainConfig { end_block: Some(2), ..ChainConfig::local([]) }).await;
        let mut session = scene.session().await;
        session.hear(1..=3);
        assert_eq!(session.queue.len(), 2);
        let [two, three] = [2, 3].map(|number| header(number, 'a').block);
        session.follow(Change { undo: vec![three, two], new: vec![] }, None);
        assert_eq!(session.queue.len(), 1);
    }
}
