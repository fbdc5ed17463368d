//! `ethhook tail`: prints events as JSON lines, as they arrive.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use ethhook_domain::{EntryId, Filter, ProcessedEvent, Profile};
use ethhook_streams::{EventEntry, GroupError, GroupReader, Streams, Tail};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::abi::{Abis, Decoded};
use crate::config::{Client, Inputs};
use crate::signals::Signals;
use crate::start_at::StartAt;
use crate::{Exit, logging};

/// Maximum number of events per read.
const EVENTS_PER_READ: usize = 500;
/// Maximum wait of one read, and so for noticing a lost connection.
const READ_WAIT: Duration = Duration::from_secs(5);
/// Pause before Redis is asked again after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Reads queued for printing, about one per chain; when the queue is full, a slow reader of our
/// output slows the reading.
const READS_QUEUED: usize = 8;

/// What is printed, and where reading begins.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) chain: Option<String>,
    pub(crate) from: StartAt,
    /// Group and consumer to read as, if any: what is printed is acknowledged.
    pub(crate) group: Option<(String, String)>,
    pub(crate) wanted: Wanted,
}

/// Which events are printed, and the ABIs to decode them.
#[derive(Debug)]
pub(crate) struct Wanted {
    abis: Abis,
    filter: Filter,
}

impl Wanted {
    /// Events that pass `filter` after adding to its topics those of the events called `names` in
    /// the built-in ABIs or in `files`.
    ///
    /// # Errors
    /// If a file is not an ABI, or a name is not known.
    pub(crate) fn new(
        files: &[std::path::PathBuf],
        mut filter: Filter,
        names: &[String],
    ) -> anyhow::Result<Self> {
        let abis = Abis::with_files(files)?;
        for name in names {
            filter.topics.extend(abis.topics(name)?);
        }
        Ok(Self { abis, filter })
    }

    /// The line for an event, if it is wanted.
    fn line(&self, id: EntryId, event: &ProcessedEvent) -> anyhow::Result<Option<String>> {
        if !self.filter.passes_event(event) {
            return Ok(None);
        }
        let line = Line::new(id, event, self.abis.decode(event));
        Ok(Some(serde_json::to_string(&line)? + "\n"))
    }
}

/// An event as printed: the fields of an entry under the same names, numbers as numbers.
#[derive(Debug, Serialize)]
struct Line {
    id: String,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    decoded: Option<Said>,
}

/// A decoded event.
#[derive(Debug, Serialize)]
struct Said {
    event: String,
    signature: String,
    args: Map<String, Value>,
}

impl From<Decoded> for Said {
    fn from(decoded: Decoded) -> Self {
        Self { event: decoded.name, signature: decoded.signature, args: decoded.arguments }
    }
}

impl Line {
    fn new(id: EntryId, event: &ProcessedEvent, decoded: Option<Decoded>) -> Self {
        Self {
            id: id.to_string(),
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
            decoded: decoded.map(Said::from),
        }
    }
}

/// Prints until a signal, or until the reader is gone.
///
/// # Errors
/// If the stream does not contain the place, or Redis fails in a way that is not temporary.
pub(crate) async fn run(inputs: &Inputs, options: Options) -> anyhow::Result<Exit> {
    let mut signals = Signals::new()?;
    let client = Client::load(inputs)?;
    logging::start(&client.logging)?;
    let streams = &client.streams;
    let chains = client.chosen(options.chain.as_deref())?;
    tokio::select! {
        ended = print(streams, &chains, options) => ended,
        () = signals.next() => Ok(Exit::Done),
    }
}

/// Lines, and a sender to signal that they are printed.
struct Batch {
    text: String,
    printed: oneshot::Sender<()>,
}

async fn print(streams: &Streams, chains: &[&Profile], options: Options) -> anyhow::Result<Exit> {
    let (sender, mut batches) = mpsc::channel(READS_QUEUED);
    let mut readers = JoinSet::new();
    let wanted = Arc::new(options.wanted);
    for chain in chains {
        let (name, id) = (chain.name.clone(), chain.chain_id);
        let source = match &options.group {
            Some((group, consumer)) => {
                Source::Group(streams.group_reader(id, group, consumer, READ_WAIT))
            }
            None => {
                let after = options.from.resolve(streams, chain).await?;
                Source::Tail(streams.tail(id, after, READ_WAIT))
            }
        };
        readers.spawn(read(source, name, Arc::clone(&wanted), sender.clone()));
    }
    drop(sender);
    let mut out = tokio::io::stdout();
    loop {
        tokio::select! {
            Some(batch) = batches.recv() => {
                let Batch { text, printed } = batch;
                let written = async { out.write_all(text.as_bytes()).await?; out.flush().await };
                match written.await {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Exit::Done),
                    Err(error) => bail!("standard output cannot be written: {error}"),
                }
                printed.send(()).ok(); // the receiver may be gone
            }
            Some(ended) = readers.join_next() => ended??,
            else => return Ok(Exit::Done),
        }
    }
}

/// Where events come from.
enum Source {
    Tail(Tail),
    Group(GroupReader),
}

impl Source {
    async fn next(&mut self) -> Result<Vec<EventEntry>, GroupError> {
        match self {
            Self::Tail(tail) => tail.next(EVENTS_PER_READ).await.map_err(GroupError::from),
            Self::Group(group) => group.next(EVENTS_PER_READ).await,
        }
    }

    /// Acknowledges these entries, in a group.
    async fn done(&mut self, ids: &[EntryId]) -> Result<(), GroupError> {
        match self {
            Self::Tail(_) => Ok(()),
            Self::Group(group) => group.acknowledge(ids).await,
        }
    }
}

/// Reads one chain; a temporary failure is logged once and retried. An entry that is not an event is logged, and in a
/// group acknowledged: nobody could ever process it.
async fn read(
    mut source: Source,
    chain: String,
    wanted: Arc<Wanted>,
    batches: mpsc::Sender<Batch>,
) -> anyhow::Result<()> {
    let mut told = false;
    loop {
        let entries = match source.next().await {
            Ok(entries) => entries,
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
        for (id, event) in &entries {
            match event {
                Ok(event) => text.extend(wanted.line(*id, event)?),
                Err(error) => {
                    tracing::warn!(chain, entry = %id, %error, "somebody else added an entry that is not an event");
                }
            }
        }
        if !text.is_empty() {
            let (printed, is_printed) = oneshot::channel();
            if batches.send(Batch { text, printed }).await.is_err() || is_printed.await.is_err() {
                return Ok(());
            }
        }
        let ids: Vec<_> = entries.into_iter().map(|(id, _)| id).collect();
        // If this fails, the entries are delivered again: at least once.
        match source.done(&ids).await {
            Err(error) if !error.is_retryable() => bail!("{chain}: {error}"),
            _ => {}
        }
    }
}
