//! What a chain says of itself, for `/ready`, the progress lines and, later, the page.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// The state of one chain, as its task last wrote it.
#[derive(Debug, Clone, Default)]
pub struct ChainStatus {
    /// Newest height any endpoint showed, and its block time (unix seconds).
    pub head: Option<(u64, u64)>,
    /// Height and block time of the newest published block.
    pub tip: Option<(u64, u64)>,
    /// Blocks, and seconds of block time, that the tip is behind the newest block that should be in the
    /// stream: the head less confirmations, up to the end block.
    pub lag: Option<(u64, u64)>,
    /// When an endpoint last answered.
    pub last_answer: Option<Instant>,
    /// Events published by this process.
    pub events: u64,
    /// Events taken back by this process.
    pub removed: u64,
    /// Reorgs followed by this process.
    pub reorgs: u64,
    /// Entries that the byte cap took from consumer groups in this process' time.
    pub lost_unread: u64,
    /// The tip is where the head (less confirmations, up to the end block) is.
    pub at_head: bool,
    /// Why the chain stands still, in one line for a person; none if it does not.
    pub trouble: Option<String>,
}

/// Why a chain is not ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotReady {
    /// The chain's name.
    pub chain: String,
    /// One line for a person.
    pub why: String,
}

/// The states of all chains, shared between their tasks and the servers.
#[derive(Debug, Clone, Default)]
pub struct StatusBoard {
    chains: Arc<Mutex<Vec<(String, ChainStatus)>>>,
}

impl StatusBoard {
    /// Changes the state of `chain`, which appears on the board with its first change.
    pub fn update(&self, chain: &str, change: impl FnOnce(&mut ChainStatus)) {
        let mut chains = self.chains.lock().unwrap_or_else(PoisonError::into_inner);
        let index = chains.iter().position(|(name, _)| name == chain).unwrap_or_else(|| {
            chains.push((chain.to_owned(), ChainStatus::default()));
            chains.len() - 1
        });
        change(&mut chains[index].1);
    }

    /// All states, in the order of first appearance.
    #[must_use]
    pub fn snapshot(&self) -> Vec<(String, ChainStatus)> {
        self.chains.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The chains that are not ready and why; empty if all are.
    #[must_use]
    pub fn not_ready(&self, max_lag: Duration) -> Vec<NotReady> {
        self.snapshot()
            .into_iter()
            .filter_map(|(chain, status)| {
                status.why_not_ready(max_lag).map(|why| NotReady { chain, why })
            })
            .collect()
    }
}

impl ChainStatus {
    /// None if the chain is ready.
    #[must_use]
    pub fn why_not_ready(&self, max_lag: Duration) -> Option<String> {
        if let Some(trouble) = &self.trouble {
            return Some(trouble.clone());
        }
        let Some((head, _)) = self.head else {
            return Some("no endpoint has shown a head yet".into());
        };
        match self.last_answer {
            Some(at) if at.elapsed() <= max_lag => {}
            Some(at) => {
                return Some(format!("no endpoint has answered for {} s", at.elapsed().as_secs()));
            }
            None => return Some("no endpoint has answered yet".into()),
        }
        if self.at_head {
            return None;
        }
        let Some((blocks, seconds)) = self.lag else {
            return Some("nothing is published yet".into());
        };
        (seconds > max_lag.as_secs())
            .then(|| format!("{blocks} blocks ({seconds} s) behind head {head}"))
    }
}
