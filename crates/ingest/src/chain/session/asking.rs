//! The asking side of a session: the headers that the canonical chain needs from the node, and how
//! their answers are handled.

use std::time::{Duration, Instant};

use ethhook_domain::canonical::{Ask, FinalityViolation, SIGHTINGS};
use ethhook_domain::{BlockRef, Header};
use futures_util::FutureExt;
use tracing::{error, warn};

use super::{DOUBT_AFTER, Running, Session, TROUBLE_AFTER};
use crate::backoff::after_refusals;
use crate::chain::End;
use crate::node::{Holds, Node, NodeError};
use crate::rpc::RpcError;
use crate::status::{Cause, Needs};

/// Headers that are worth a request of their own; fewer are requested only if there are no more.
const HEADERS_WORTH_ASKING: u64 = 128;
/// With subscriptions, consecutive polls without a head after which every endpoint is asked.
const SILENT_POLLS: u32 = 2;
/// Without subscriptions, one in this many polls asks every endpoint.
const ALL_EVERY: u32 = 8;
/// A branch that is not confirmed yet is polled again after a block time, or this.
const UNCONFIRMED_POLL: Duration = Duration::from_secs(5);
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(500);
/// For how long the next block may be missing, or the head be below ours, until that is reported: one endpoint may be
/// ahead of another.
const MISSING_AFTER: Duration = Duration::from_secs(30);
/// How long to wait after a finality violation before anything is asked again.
const VIOLATION_AGAIN: Duration = Duration::from_secs(5);
/// How long a finality violation is doubted while an endpoint that may have our block gives no answer.
const VIOLATION_DOUBTED: Duration = Duration::from_secs(120);

type Asked = (Ask, Result<Vec<Header>, NodeError>);

/// What the endpoints say of a finality violation.
pub(super) struct Judgement {
    violation: FinalityViolation,
    /// Even those were asked that had asked us to wait: it is not doubted any longer.
    asked_urgently: bool,
    /// Whether an endpoint has our block.
    holds: Result<Holds, NodeError>,
}

/// What is being asked of the node, and what was noticed of its heads.
#[derive(Default)]
pub(super) struct Asking<'a> {
    pub(super) headers: Running<'a, Asked>,
    /// Consecutive header requests that failed.
    failed: u32,
    /// Of these, those that an endpoint answered.
    pub(super) refused: u32,
    /// Whether any endpoint still has the finalized block that the node contradicts.
    pub(super) judging: Running<'a, Judgement>,
    /// Since when no endpoint has had it.
    violated_since: Option<Instant>,
    /// Since when no endpoint has had the next block.
    missing_since: Option<Instant>,
    /// Consecutive polls without a head in between.
    pub(super) silent_polls: u32,
    /// A head announced another branch: the preferred endpoint may not know it yet.
    pub(super) heard_otherwise: bool,
    /// Consecutive answers of the node with a lower head.
    lower_heads: u32,
    /// Since when the head is below the newest published block.
    below_since: Option<Instant>,
    /// How many branches were dropped in a row, because a block of theirs is missing.
    dropped: u32,
    /// While something is asked, another head was announced.
    pub(super) heard_meanwhile: bool,
}

impl Session<'_> {
    /// The last header of interest: past the end block, only those that make it final.
    pub(super) fn last_header(&self) -> u64 {
        let config = &self.chain.config;
        self.end_block.map_or(u64::MAX, |end| {
            end.saturating_add(config.confirmations).saturating_add(config.profile.finality_depth)
        })
    }

    /// The last header, once the chain has reached it and until the end block is final: the node's block at
    /// this height must stay the same as ours.
    fn watched(&self) -> Option<u64> {
        let last = self.last_header();
        let is_reached = self.canonical.tip().is_some_and(|tip| tip.number >= last);
        (is_reached && !self.end_is_final()).then_some(last)
    }

    /// Whether there is an end block and it is final: nothing is left to do.
    pub(super) fn end_is_final(&self) -> bool {
        self.end_block.is_some_and(|end| self.finality.reached >= Some(end))
    }

    /// What the canonical chain asks for, up to the last header.
    pub(super) fn ask(&self) -> Option<Ask> {
        match self.canonical.ask()? {
            Ask::Numbers(numbers) => {
                let last = self.last_header().min(*numbers.end());
                (*numbers.start() <= last).then(|| Ask::Numbers(*numbers.start()..=last))
            }
            ask => Some(ask),
        }
    }

    pub(super) fn asks_something(&self) -> bool {
        self.asking.headers.is_none()
            && match self.ask() {
                // Not for the few that fit each time a block is published.
                Some(Ask::Numbers(numbers)) => {
                    let wanted =
                        (numbers.end() - numbers.start()).min(HEADERS_WORTH_ASKING - 1) + 1;
                    self.queue.room(self.chain.config.confirmations) >= wanted
                }
                Some(_) => true,
                None => false,
            }
    }

    pub(super) fn start_asking(&mut self, now: Instant) {
        if !self.asks_something() || now < self.due.ask {
            return;
        }
        let node = &self.chain.node;
        let asking = match self.ask() {
            Some(Ask::Latest) => {
                // The preferred endpoint may lag behind the others without an error.
                let is_time = if self.chain.has_socket() {
                    self.asking.silent_polls > 0
                        && self.asking.silent_polls.is_multiple_of(SILENT_POLLS)
                } else {
                    self.asking.silent_polls.is_multiple_of(ALL_EVERY)
                };
                let all = self.asking.heard_otherwise || is_time;
                let (watched, tip) = (self.watched(), self.canonical.tip().map(|tip| tip.hash));
                async move {
                    let latest =
                        if all { node.highest_latest(tip).await } else { node.latest().await };
                    (Ask::Latest, with_watched(node, latest, watched).await)
                }
                .boxed()
            }
            Some(Ask::Hash(hash)) => async move {
                (Ask::Hash(hash), node.by_hash(hash).await.map(|header| vec![header]))
            }
            .boxed(),
            Some(Ask::Numbers(numbers)) => {
                let room = self.queue.room(self.chain.config.confirmations);
                let last = (*numbers.end()).min(numbers.start() + room - 1);
                let numbers = *numbers.start()..=last;
                async move { (Ask::Numbers(numbers.clone()), node.by_numbers(numbers).await) }
                    .boxed()
            }
            None => return,
        };
        self.asking.headers = Some(asking);
    }

    pub(super) fn answered(&mut self, (ask, answer): Asked) -> Option<End> {
        self.asking.headers = None;
        let headers = match answer {
            Ok(headers) => headers,
            Err(NodeError::Unknown) if ask != Ask::Latest => Vec::new(),
            // Opening the next session says what to do.
            Err(error) if error.is_wrong_genesis() => return Some(End::Reopen("genesis")),
            Err(error) => {
                self.not_answered(&ask, &error);
                return None;
            }
        };
        let heard_meanwhile = self.note_answer_to(&ask, &headers);
        // Either answer ends doubts, and what was announced meanwhile may be newer.
        let is_doubtful = heard_meanwhile && (ask == Ask::Latest || headers.is_empty());
        match self.take(&ask, headers) {
            Ok(None) => {
                self.after_answer(&ask, is_doubtful);
                None
            }
            Ok(end) => end,
            Err(violation) => {
                self.violated(*violation);
                None
            }
        }
    }

    /// Notes what an answer shows before its headers are followed. Returns whether another head was announced
    /// meanwhile.
    fn note_answer_to(&mut self, ask: &Ask, headers: &[Header]) -> bool {
        self.chain.status.clear(Cause::Headers);
        (self.asking.failed, self.asking.refused) = (0, 0);
        self.note_answer();
        let heard_meanwhile = std::mem::take(&mut self.asking.heard_meanwhile);
        let next = self.canonical.next_number();
        match (ask, headers.first()) {
            (Ask::Latest, latest) => {
                self.asking.heard_otherwise = heard_meanwhile;
                // What was announced beyond it does not count.
                if latest.is_none_or(|latest| latest.block.number < next) {
                    self.nothing_missing();
                }
            }
            (Ask::Numbers(numbers), None) => self.block_missing(*numbers.start()),
            _ => {}
        }
        match (ask, headers.first()) {
            (_, None) => self.not_there(ask, &NodeError::Unknown),
            (Ask::Latest, Some(latest)) => self.told_of_head(&latest.block),
            _ => {}
        }
        heard_meanwhile
    }

    /// What comes next once an answer's headers are followed.
    fn after_answer(&mut self, ask: &Ask, is_doubtful: bool) {
        if is_doubtful {
            self.canonical.doubt();
        }
        if self.canonical.has_unconfirmed_branch() {
            // The endpoint that named it may be the only one on it.
            self.asking.heard_otherwise = true;
            let soon = self.chain.config.profile.block_time.min(UNCONFIRMED_POLL);
            self.due.poll = self.due.poll.min(Instant::now() + soon);
        } else if *ask == Ask::Latest && self.canonical.ask().is_none() {
            self.chain.status.clear(Cause::Finality);
            self.asking.violated_since = None;
        }
    }

    /// Passes headers to the canonical chain, and follows it.
    fn take(
        &mut self,
        ask: &Ask,
        headers: Vec<Header>,
    ) -> Result<Option<End>, Box<FinalityViolation>> {
        for header in headers {
            let number = header.block.number;
            if self.canonical.is_next(&header.block) && !self.has_room() {
                self.canonical.postpone(&header.block);
                continue;
            }
            let change = if *ask == Ask::Latest {
                let last = self.last_header();
                if number > last && self.canonical.next_number() > last {
                    self.canonical.unanswered();
                    continue;
                }
                self.canonical.told(header)?
            } else {
                self.canonical.answered(header)?
            };
            let end = self.follow(change, None);
            if end.is_some() {
                return Ok(end);
            }
        }
        Ok(None)
    }

    /// No endpoint has the block at this height, though a higher one was announced.
    fn block_missing(&mut self, number: u64) {
        let since = *self.asking.missing_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= MISSING_AFTER {
            let why = format!(
                "no endpoint has block {number}, though higher ones were announced: it may come yet; if it is too \
                 old for them, add one that keeps all blocks, or go on with the lowest block that they have: \
                 `ethhook skip --to` it"
            );
            self.chain.status.stalled(Cause::Missing, why, Needs::Operator);
        }
    }

    /// The next block has come, or no higher one was announced after all.
    fn nothing_missing(&mut self) {
        self.asking.missing_since = None;
        self.chain.status.clear(Cause::Missing);
    }

    /// A block has joined the chain: doubts about the nodes' answers are over.
    pub(super) fn has_grown(&mut self) {
        self.asking.violated_since = None;
        self.asking.dropped = 0;
        self.chain.status.clear(Cause::Branch);
        self.nothing_missing();
    }

    fn not_answered(&mut self, ask: &Ask, error: &NodeError) {
        if !matches!(error, NodeError::Rpc(RpcError::SetAside(_))) {
            warn!(%error, "the node did not return headers: asking again");
        }
        self.asking.failed += 1;
        self.asking.refused += u32::from(error.is_refusal());
        self.due.ask = Instant::now() + after_refusals(self.asking.refused, ASK_AGAIN);
        // Some nodes report an unknown block as an error: the branch may be gone.
        if matches!(ask, Ask::Hash(_)) && self.asking.failed >= DOUBT_AFTER {
            self.not_there(ask, error);
        }
        if self.asking.failed >= TROUBLE_AFTER {
            let what = match ask {
                Ask::Latest => "the head",
                Ask::Hash(_) => "a block of another branch",
                Ask::Numbers(_) => "the next header",
            };
            self.not_available(Cause::Headers, what, error);
        }
    }

    /// No endpoint has what was asked for; the next head or poll starts over.
    fn not_there(&mut self, ask: &Ask, error: &NodeError) {
        self.canonical.unanswered();
        if let Ask::Hash(hash) = ask {
            self.asking.dropped += 1;
            if self.asking.dropped >= TROUBLE_AFTER {
                let why = format!(
                    "the node is on another branch, whose block {hash} is not available: {error}"
                );
                self.chain.status.stalled(Cause::Branch, why, Needs::Time);
            }
        }
    }

    /// A head may move back, but a lower one usually comes from a node that lags.
    fn told_of_head(&mut self, block: &BlockRef) {
        if self.head.is_none() && block.number < self.start_block {
            let (head, start) = (block.number, self.start_block);
            warn!(head, start, "the head is below the start block: waiting for it");
        }
        let is_lower = self.head.is_some_and(|(number, _)| block.number < number);
        self.asking.lower_heads = if is_lower { self.asking.lower_heads + 1 } else { 0 };
        if !is_lower || self.asking.lower_heads >= SIGHTINGS {
            self.head = Some((block.number, block.timestamp));
        }
        // Another endpoint may be ahead.
        self.asking.heard_otherwise |= is_lower;
        self.note_head();
    }

    /// Tells of a head that stays below the newest published block: nothing can be published until it has passed it.
    fn note_head(&mut self) {
        let head = self.head.map(|(number, _)| number);
        let published = self.published.back().map(|published| published.block.number);
        let (Some(head), Some(published)) = (head, published.filter(|p| head < Some(*p))) else {
            self.asking.below_since = None;
            self.chain.status.clear(Cause::Head);
            return;
        };
        let since = *self.asking.below_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= MISSING_AFTER {
            let why = format!(
                "the node's head {head} is below the published block {published}: waiting until it has passed it, or \
                 shows another branch"
            );
            self.chain.status.stalled(Cause::Head, why, Needs::Time);
        }
    }

    /// One endpoint contradicts the finalized block: asks all of them for theirs.
    fn violated(&mut self, violation: FinalityViolation) {
        self.due.ask = Instant::now() + VIOLATION_AGAIN;
        if self.asking.judging.is_none() {
            let node = &self.chain.node;
            let since = self.asking.violated_since;
            let asked_urgently = since.is_some_and(|since| since.elapsed() >= VIOLATION_DOUBTED);
            let judging = async move {
                let holds = node.anyone_holds(&violation.finalized, asked_urgently).await;
                Judgement { violation, asked_urgently, holds }
            };
            self.asking.judging = Some(judging.boxed());
        }
    }

    pub(super) fn judged(&mut self, judgement: Judgement) -> Option<End> {
        let Judgement { violation, asked_urgently, holds } = judgement;
        self.asking.judging = None;
        self.asking.violated_since.get_or_insert_with(Instant::now);
        let why = match holds {
            Ok(Holds::Someone) => {
                self.asking.heard_otherwise = true;
                self.asking.violated_since = None;
                format!("{violation}, but an endpoint still has the finalized one")
            }
            Ok(Holds::NotKnown(error)) if !asked_urgently => {
                format!(
                    "{violation}, and an endpoint that may have the finalized one cannot be asked: {error}"
                )
            }
            Ok(Holds::NotKnown(_) | Holds::Nobody) => {
                error!(%violation, "finality violation: the chain stops");
                self.alarm = Some(violation.to_string());
                return None;
            }
            // Opening the next session says what to do.
            Err(error) if error.is_wrong_genesis() => return Some(End::Reopen("genesis")),
            Err(error) => {
                format!(
                    "{violation}, and no endpoint says whether it has the finalized one: {error}"
                )
            }
        };
        self.chain.status.stalled(Cause::Finality, why, Needs::Time);
        None
    }
}

/// The `latest` block, and the one at height `watched`, if it is lower.
async fn with_watched(
    node: &Node,
    latest: Result<Header, NodeError>,
    watched: Option<u64>,
) -> Result<Vec<Header>, NodeError> {
    let latest = latest?;
    let below = watched.filter(|watched| *watched < latest.block.number);
    let mut headers = vec![latest];
    if let Some(watched) = below {
        headers.extend(node.by_numbers(watched..=watched).await?);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests;
