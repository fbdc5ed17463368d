//! The status that each chain reports, for `/ready`, the progress lines, the page and `status`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tracing::{info, warn};

use crate::config::ChainConfig;

/// The status of one chain, as last written by its task.
#[derive(Debug, Clone, Default)]
pub struct ChainStatus {
    /// Height of the newest head: an endpoint's answer, or an announced one that joined the chain.
    pub head: Option<u64>,
    /// Height of the newest published block.
    pub tip: Option<u64>,
    /// How far the tip is behind the newest block that should be in the stream: the head minus
    /// confirmations, but not above the end block.
    pub lag: Option<Lag>,
    /// When an endpoint last answered.
    pub last_answer: Option<Instant>,
    /// How often an endpoint is asked at least.
    pub polled_every: Duration,
    /// Events published by this process.
    pub events: u64,
    /// Events taken back by this process.
    pub removed: u64,
    /// Reorgs followed by this process.
    pub reorgs: u64,
    /// Entries removed by the byte cap before consumer groups had read them, since this process
    /// started.
    pub lost_unread: u64,
    /// Whether the tip is at the head (minus confirmations, not above the end block).
    pub at_head: bool,
    /// Why the chain is stalled, by cause; empty if it is not.
    pub stalls: BTreeMap<Cause, Stall>,
}

/// How far a chain is behind its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    /// Blocks.
    pub blocks: u64,
    /// Difference in block time, in seconds.
    pub seconds: u64,
}

/// What stalls a chain. If there are several causes, the first one is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// No session can be opened.
    Opening,
    /// Redis temporarily does not accept a step.
    Step,
    /// Redis refused a step and ended the session.
    Refusal,
    /// The node contradicts the finalized block.
    Finality,
    /// The node does not answer requests for headers.
    Headers,
    /// The node is on another branch, and does not give its blocks.
    Branch,
    /// No endpoint has the next block.
    Missing,
    /// The node's head is below the newest published block.
    Head,
    /// The node does not answer requests for a block's logs.
    Block,
    /// The stream is full, and a consumer group has not read.
    Room,
}

/// Why a chain is stalled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stall {
    /// One line for a person.
    pub why: String,
    /// What it waits for.
    pub needs: Needs,
}

/// What a stalled chain waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Its turn: another instance has the chain, or this one already holds as many as it may.
    Turn,
    /// The end of a temporary failure.
    Time,
    /// Free memory in Redis.
    Room,
    /// An operator, who must do what the line says.
    Operator,
}

/// Why a chain does not count as ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unready {
    /// It is stalled.
    Stalled(Stall),
    /// No endpoint has reported a head since the start.
    NoHead,
    /// No endpoint has answered for this long; none if not since the start.
    NoAnswer(Option<Duration>),
    /// It has not published anything yet.
    NothingPublished,
    /// Its lag is too large.
    Behind {
        /// The lag.
        lag: Lag,
        /// The height of the newest head.
        head: u64,
    },
}

impl fmt::Display for Unready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stalled(stall) => f.write_str(&stall.why),
            Self::NoHead => f.write_str("no endpoint has shown a head yet"),
            Self::NoAnswer(Some(since)) => {
                write!(f, "no endpoint has answered for {} s", since.as_secs())
            }
            Self::NoAnswer(None) => f.write_str("no endpoint has answered yet"),
            Self::NothingPublished => f.write_str("nothing is published yet"),
            Self::Behind { lag: Lag { blocks, seconds }, head } => {
                write!(f, "{blocks} blocks ({seconds} s) behind head {head}")
            }
        }
    }
}

/// Why a chain is not ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnreadyChain {
    /// The chain's name.
    pub chain: String,
    /// One line for a person.
    pub why: String,
}

/// The status of all chains, shared between their tasks and the servers.
#[derive(Debug, Clone)]
pub struct StatusBoard {
    chains: Arc<Mutex<Vec<(String, ChainStatus)>>>,
}

impl StatusBoard {
    /// A board for these chains, none of which is ready yet.
    pub fn new<'a>(chains: impl IntoIterator<Item = &'a ChainConfig>) -> Self {
        let unknown = |chain: &ChainConfig| (chain.profile.name.clone(), ChainStatus::default());
        Self { chains: Arc::new(Mutex::new(chains.into_iter().map(unknown).collect())) }
    }

    /// The entry of `chain`; updates for a chain that is not on the board are discarded.
    pub(crate) fn chain(&self, chain: &str) -> ChainBoard {
        ChainBoard { board: self.clone(), chain: chain.to_owned() }
    }

    /// The status of all chains, in the order in which they were given.
    #[must_use]
    pub fn snapshot(&self) -> Vec<(String, ChainStatus)> {
        self.chains.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The chains that are not ready and why; empty if all are.
    #[must_use]
    pub fn not_ready(&self, max_lag: Duration) -> Vec<UnreadyChain> {
        self.snapshot()
            .into_iter()
            .filter_map(|(chain, status)| {
                status.unready(max_lag).map(|why| UnreadyChain { chain, why: why.to_string() })
            })
            .collect()
    }
}

/// One chain's entry on the board.
#[derive(Debug, Clone)]
pub(crate) struct ChainBoard {
    board: StatusBoard,
    chain: String,
}

impl ChainBoard {
    pub(crate) fn update(&self, change: impl FnOnce(&mut ChainStatus)) {
        let mut chains = self.board.chains.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, status)) = chains.iter_mut().find(|(name, _)| *name == self.chain) {
            change(status);
        }
    }

    /// Records that the chain is stalled by this cause, and logs each new reason once.
    pub(crate) fn stalled(&self, cause: Cause, why: String, needs: Needs) {
        self.update(|status| {
            if status.stalls.get(&cause).is_none_or(|stall| stall.why != why) {
                warn!(reason = why, "the chain is stalled");
                status.stalls.insert(cause, Stall { why, needs });
            }
        });
    }

    /// Whether the chain is stalled and waits for this.
    pub(crate) fn needs(&self, needs: Needs) -> bool {
        let chains = self.board.chains.lock().unwrap_or_else(PoisonError::into_inner);
        let mut statuses = chains.iter().filter(|(name, _)| *name == self.chain);
        statuses.any(|(_, status)| status.stalls.values().any(|s| s.needs == needs))
    }

    /// Removes a cause that is over.
    pub(crate) fn clear(&self, cause: Cause) {
        self.retain(|remaining| remaining != cause);
    }

    /// Removes every other cause: they are over.
    pub(crate) fn clear_all_but(&self, cause: Cause) {
        self.retain(|remaining| remaining == cause);
    }

    /// Keeps the causes that remain; logs that the chain continues once none is left.
    fn retain(&self, remains: impl Fn(Cause) -> bool) {
        self.update(|status| {
            let was_stalled = !status.stalls.is_empty();
            status.stalls.retain(|cause, _| remains(*cause));
            if was_stalled && status.stalls.is_empty() {
                info!("the chain continues");
            }
        });
    }
}

impl ChainStatus {
    /// Why the chain is stalled: the cause to show; none if it is not.
    #[must_use]
    pub fn stall(&self) -> Option<&Stall> {
        self.stalls.values().next()
    }

    /// Why the chain does not count as ready; none if it does.
    #[must_use]
    pub fn unready(&self, max_lag: Duration) -> Option<Unready> {
        if let Some(stall) = self.stall() {
            return Some(Unready::Stalled(stall.clone()));
        }
        let Some(head) = self.head else { return Some(Unready::NoHead) };
        let since = self.last_answer.map(|at| at.elapsed());
        // Where heads are rare, an answer may be as old as the last poll.
        if since.is_none_or(|since| since > max_lag.max(2 * self.polled_every)) {
            return Some(Unready::NoAnswer(since));
        }
        if self.at_head {
            return None;
        }
        let Some(lag) = self.lag else { return Some(Unready::NothingPublished) };
        (lag.seconds > max_lag.as_secs()).then_some(Unready::Behind { lag, head })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_LAG: Duration = Duration::from_secs(6);

    #[test]
    fn a_chain_is_ready_only_with_a_node_that_answers_and_little_behind_it() {
        let ready = ChainStatus {
            head: Some(9),
            tip: Some(9),
            last_answer: Some(Instant::now()),
            at_head: true,
            ..ChainStatus::default()
        };
        assert_eq!(ready.unready(MAX_LAG), None);
        let said = |status: &ChainStatus| status.unready(MAX_LAG).map(|why| why.to_string());
        let no_head = ChainStatus { head: None, ..ready.clone() };
        assert_eq!(said(&no_head).as_deref(), Some("no endpoint has shown a head yet"));
        let never = ChainStatus { last_answer: None, ..ready.clone() };
        assert_eq!(said(&never).as_deref(), Some("no endpoint has answered yet"));
        let long_ago = Instant::now().checked_sub(Duration::from_secs(9));
        let silent = ChainStatus { last_answer: long_ago, ..ready.clone() };
        let seldom_asked = ChainStatus { polled_every: MAX_LAG, ..silent.clone() };
        assert_eq!(said(&silent).as_deref(), Some("no endpoint has answered for 9 s"));
        assert_eq!(said(&seldom_asked), None);
        let behind = |lag| ChainStatus { at_head: false, lag, ..ready.clone() };
        assert_eq!(said(&behind(None)).as_deref(), Some("nothing is published yet"));
        assert_eq!(said(&behind(Some(Lag { blocks: 3, seconds: 6 }))), None);
        let far = said(&behind(Some(Lag { blocks: 4, seconds: 7 })));
        assert_eq!(far.as_deref(), Some("4 blocks (7 s) behind head 9"));
        let stall = Stall { why: "Redis is away".to_owned(), needs: Needs::Time };
        let stalls = [(Cause::Opening, stall)].into();
        let stalled = ChainStatus { stalls, ..ready };
        assert_eq!(said(&stalled).as_deref(), Some("Redis is away"));
    }

    #[test]
    fn a_chain_goes_on_once_every_cause_of_its_stall_is_over() {
        let board = StatusBoard::new([&ChainConfig::local([])]);
        let chain = board.chain("local");
        let shown = || board.snapshot().remove(0).1.stall().map(|shown| shown.why.clone());
        assert_eq!(shown(), None);
        for (cause, why) in
            [(Cause::Block, "no logs"), (Cause::Refusal, "refused"), (Cause::Block, "still none")]
        {
            chain.stalled(cause, why.to_owned(), Needs::Time);
        }
        assert_eq!(shown().as_deref(), Some("refused"));
        chain.clear_all_but(Cause::Block);
        assert_eq!(shown().as_deref(), Some("still none"));
        chain.clear_all_but(Cause::Headers);
        assert_eq!(shown(), None);
    }
}
