//! The asking side of a session: what the canonical chain wants to know of the node, and what is made of
//! the answers.

use std::time::{Duration, Instant};

use ethhook_domain::Header;
use ethhook_domain::canonical::{Ask, Violation};
use futures_util::FutureExt;
use tracing::{error, warn};

use super::{Asked, Session};
use crate::node::{Node, NodeError};
use crate::rpc::RpcError;
use crate::status::Needs;

/// Headers that one message is sent for, if there are as many to be had.
const HEADERS_WORTH_ASKING: u64 = 128;
/// Polls in a row without a head after which the subscriptions are suspected.
const STALLED_POLLS: u32 = 2;
/// Where there are no subscriptions, one poll in so many asks every endpoint.
const ALL_EVERY: u32 = 8;
/// A node that shows a branch we do not believe yet is asked again after a block time, or this.
const UNEASY_POLL: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_millis(500);

impl Session<'_> {
    /// The last header that is of interest: past the end block only those that make it final.
    pub(super) fn last_header(&self) -> u64 {
        let config = &self.chain.config;
        self.end_block.map_or(u64::MAX, |end| {
            end.saturating_add(config.confirmations).saturating_add(config.profile.finality_depth)
        })
    }

    /// The last header, once the chain has reached it and until its end block is final: the node's block at
    /// this height must stay ours.
    fn watched(&self) -> Option<u64> {
        let is_final = |end| {
            self.canonical.is_finalized()
                && self.published.front().is_some_and(|first| first.block.number >= end)
        };
        let last = self.last_header();
        let is_reached = self.canonical.tip().is_some_and(|tip| tip.number >= last);
        (is_reached && !self.end_block.is_some_and(is_final)).then_some(last)
    }

    /// The question of the canonical chain, less what lies past the last header.
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
        self.asking.is_none()
            && match self.ask() {
                // Not for the few that each published block makes room for.
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
                // The best endpoint may have fallen behind the others without an error.
                let all = if self.chain.has_socket() {
                    self.heard_otherwise || self.silent_polls >= STALLED_POLLS
                } else {
                    self.silent_polls.is_multiple_of(ALL_EVERY)
                };
                let watched = self.watched();
                async move { (Ask::Latest, latest(node, all, watched).await) }.boxed()
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
        self.asking = Some(asking);
    }

    pub(super) fn answered(&mut self, (ask, answer): Asked) {
        self.asking = None;
        let headers = match answer {
            Ok(headers) => headers,
            Err(NodeError::Unknown) => Vec::new(),
            Err(error) => {
                if !matches!(error, NodeError::Rpc(RpcError::SetAside(_))) {
                    warn!(%error, "a question to the node has no answer: asking again");
                }
                self.due.ask = Instant::now() + ASK_AGAIN;
                return;
            }
        };
        self.note_answer();
        if ask == Ask::Latest {
            self.heard_otherwise = false;
        }
        if headers.is_empty() {
            self.canonical.unanswered();
        }
        if let (Ask::Latest, Some(latest)) = (&ask, headers.first()) {
            self.head = Some((latest.block.number, latest.block.timestamp));
        }
        for header in headers {
            let number = header.block.number;
            let result = if ask == Ask::Latest {
                if number > self.last_header() && self.canonical.next_number() > self.last_header()
                {
                    self.canonical.unanswered();
                    continue;
                }
                self.canonical.told(header)
            } else {
                self.canonical.answered(header)
            };
            match result {
                Ok(change) => {
                    if !change.is_empty()
                        && self.chain.has_socket()
                        && self.silent_polls >= STALLED_POLLS
                    {
                        warn!("blocks arrive but no heads: subscribing anew");
                        self.chain.metrics.stalls.inc();
                        self.chain.node.resubscribe();
                        self.silent_polls = 0;
                    }
                    self.follow(change, None);
                }
                Err(violation) => return self.violated(*violation),
            }
        }
        if self.canonical.is_uneasy() {
            let soon = self.chain.config.profile.block_time.min(UNEASY_POLL);
            self.due.poll = self.due.poll.min(Instant::now() + soon);
        }
    }

    /// One endpoint contradicts the finalized block; all are asked for theirs.
    fn violated(&mut self, violation: Violation) {
        if self.judging.is_none() {
            let node = &self.chain.node;
            let judging = async move { (violation, node.anyone_holds(&violation.finalized).await) };
            self.judging = Some(judging.boxed());
        }
    }

    pub(super) fn judged(&mut self, (violation, is_held): (Violation, Result<bool, NodeError>)) {
        self.judging = None;
        match is_held {
            Ok(false) => {
                error!(%violation, "finality violation: the chain stops");
                self.alarm = Some(violation.to_string());
            }
            Ok(true) => {
                let why = format!("{violation}, and an endpoint still holds that one");
                self.chain.stand_still(why, Needs::Time);
                self.heard_otherwise = true;
            }
            Err(error) => warn!(%error, %violation, "no endpoint tells of the finalized block"),
        }
    }
}

/// The block that the node calls `latest`, of the `highest` of its endpoints or the first, and the one at
/// the height `watched`, if that is lower.
async fn latest(
    node: &Node,
    highest: bool,
    watched: Option<u64>,
) -> Result<Vec<Header>, NodeError> {
    let latest = if highest { node.highest_latest().await? } else { node.latest().await? };
    let below = watched.filter(|watched| *watched < latest.block.number);
    let mut headers = vec![latest];
    if let Some(watched) = below {
        headers.extend(node.by_numbers(watched..=watched).await?);
    }
    Ok(headers)
}
