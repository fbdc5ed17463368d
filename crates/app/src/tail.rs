//! `ethhook tail`: events as JSON lines, as they land.

use std::time::Duration;

use anyhow::bail;
use ethhook_domain::{ProcessedEvent, Profile};
use ethhook_streams::{Streams, Tail};
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::config::{Client, Inputs, Problem};
use crate::signals::Signals;
use crate::{Exit, logging, redis, tell};

/// Events that one read may give.
const EVENTS_A_READ: usize = 500;
/// How long one read waits; the wait for a lost connection is noticed no later.
const READ_WAIT: Duration = Duration::from_secs(5);
/// Pause before Redis is asked again after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Reads that wait to be printed, one a chain or so: a slow reader of ours slows the reading.
const READS_QUEUED: usize = 8;

/// One event as it is printed: the entry's fields under the entry's names, numbers as numbers.
#[derive(Debug, Serialize)]
struct Line<'a> {
    id: &'a str,
    event_id: String,
    chain_id: u64,
    block_number: u64,
    block_hash: String,
    tx_hash: String,
    tx_index: u64,
    log_index: u64,
    contract: String,
    topics: Vec<String>,
    data: String,
    timestamp: u64,
    removed: bool,
}

impl<'a> Line<'a> {
    fn new(id: &'a str, event: &ProcessedEvent) -> Self {
        Self {
            id,
            event_id: event.event_id(),
            chain_id: event.chain_id,
            block_number: event.block_number,
            block_hash: format!("{:#x}", event.block_hash),
            tx_hash: format!("{:#x}", event.tx_hash),
            tx_index: event.tx_index,
            log_index: event.log_index,
            contract: format!("{:#x}", event.contract),
            topics: event.topics.iter().map(|topic| format!("{topic:#x}")).collect(),
            data: format!("{:#x}", event.data),
            timestamp: event.timestamp,
            removed: event.removed,
        }
    }
}

/// Prints until a signal, or until nobody reads.
///
/// # Errors
/// If Redis fails in a way that does not pass.
pub(crate) async fn run(
    inputs: Result<Inputs, Vec<Problem>>,
    chain: Option<&str>,
    from: &str,
) -> anyhow::Result<Exit> {
    let mut signals = Signals::new()?;
    let client = match inputs.and_then(|inputs| Client::load(&inputs)) {
        Ok(client) => client,
        Err(problems) => {
            tell(&problems);
            return Ok(Exit::BadConfiguration);
        }
    };
    logging::start(&client.logging)?;
    let streams = match redis::open(&client.redis) {
        Ok(streams) => streams,
        Err(problem) => {
            tell(&[problem]);
            return Ok(Exit::BadConfiguration);
        }
    };
    let chains = match chain {
        Some(name) => vec![client.chain(name)?],
        None if client.on.is_empty() => client.known.iter().collect(),
        None => client.on.iter().collect(),
    };
    tokio::select! {
        ended = print(&streams, &chains, from) => ended,
        () = signals.next() => Ok(Exit::Done),
    }
}

async fn print(streams: &Streams, chains: &[&Profile], from: &str) -> anyhow::Result<Exit> {
    let (sender, mut lines) = mpsc::channel(READS_QUEUED);
    let mut readers = JoinSet::new();
    for chain in chains {
        let tail = streams.tail(chain.chain_id, from, READ_WAIT);
        readers.spawn(read(tail, chain.name.clone(), sender.clone()));
    }
    drop(sender);
    let mut out = tokio::io::stdout();
    loop {
        tokio::select! {
            Some(text) = lines.recv() => {
                let text: String = text;
                if out.write_all(text.as_bytes()).await.is_err() || out.flush().await.is_err() {
                    return Ok(Exit::Done);
                }
            }
            Some(ended) = readers.join_next() => ended??,
            else => return Ok(Exit::Done),
        }
    }
}

/// Reads one chain; passing failures are told once and waited out.
async fn read(mut tail: Tail, chain: String, lines: mpsc::Sender<String>) -> anyhow::Result<()> {
    let mut told = false;
    loop {
        let events = match tail.next(EVENTS_A_READ).await {
            Ok(events) => events,
            Err(error) if error.is_retryable() => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(chain, %error, "waiting for Redis");
                }
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            }
            Err(error) => bail!("{chain}: {error}"),
        };
        told = false;
        let mut text = String::new();
        for (id, event) in &events {
            text += &serde_json::to_string(&Line::new(id, event))?;
            text.push('\n');
        }
        if !text.is_empty() && lines.send(text).await.is_err() {
            return Ok(());
        }
    }
}
