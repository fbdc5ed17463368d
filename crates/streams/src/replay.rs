//! Writes a range of a chain to a separate stream, once, block by block, for a consumer that starts over.
//!
//! Next to the stream `STREAM`, the hash `replay:{STREAM}` holds `chain_id`, `from`, `filter`, `encoding`, `last` and
//! `hash` of the last block written, and the number of `events`. Entries and position change in one step, so that a
//! killed replay resumes where it stopped, and a finished one writes nothing. Live streams are never touched.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use alloy_primitives::{B256, hex};
use ethhook_domain::encoding::PACKED;
use ethhook_domain::{BlockRef, ChainId, Encoding, ProcessedEvent, event};
use redis::aio::MultiplexedConnection;

use crate::connection::Streams;
use crate::errors::RedisFailure;
use crate::keys;
use crate::reader::{ReadError, query};
use crate::script::{Call, Script};
use crate::size::length;

static REPLAY: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("replay.lua")));

/// Maximum length of a stream's name.
const MAX_NAME: usize = 200;

/// What a replayed stream contains, from its first block on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplaySpec {
    /// The chain.
    pub chain: ChainId,
    /// Its first block.
    pub from: u64,
    /// Digest of the filter.
    pub filter: String,
    /// The encoding of its entries.
    pub encoding: Encoding,
}

/// Why a replay cannot write to a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// The name is one that the ingestor uses for its own keys.
    #[error(
        "`{0}` is reserved for the ingestor's keys: give --into another name; to repair a live \
         stream, use `ethhook rewind`"
    )]
    Live(String),
    /// The name cannot be the hash tag of its position's key.
    #[error(
        "a stream's name must be 1 to {MAX_NAME} printable characters without spaces or braces"
    )]
    Name,
    /// The key exists, but no replay wrote it.
    #[error("`{0}` exists and was not written by a replay: give --into another name")]
    Foreign(String),
    /// The stream contains something else.
    #[error("the stream holds {0}: give --into another name, or delete it with its `replay:` key")]
    Other(String),
    /// Its entries are gone, but not its position.
    #[error(
        "`{stream}` was deleted, but `{position}` was not: delete that key too, and run this again"
    )]
    Gone {
        /// The stream.
        stream: String,
        /// The key of its position.
        position: String,
    },
    /// Another replay moved the position.
    #[error("another replay is writing this stream")]
    Moved,
    /// Redis failed.
    #[error(transparent)]
    Redis(#[from] RedisFailure),
    /// The position cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl ReplayError {
    /// Whether the same call may succeed later without intervention.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Redis(failure) => failure.is_retryable(),
            Self::Read(error) => error.is_retryable(),
            _ => false,
        }
    }
}

/// The writer of one replayed stream.
pub struct Replay {
    streams: Streams,
    connection: Option<MultiplexedConnection>,
    stream: String,
    position: String,
    spec: ReplaySpec,
    last: Option<(u64, B256)>,
    events: u64,
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replay").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl Streams {
    /// Opens `stream` for `spec`: a new stream, or one that a replay of the same chain, filter and
    /// encoding began at or below `spec.from` and continued at least up to the block before it.
    ///
    /// # Errors
    /// See [`ReplayError`].
    pub async fn replay_into(
        &self,
        stream: &str,
        mut spec: ReplaySpec,
    ) -> Result<Replay, ReplayError> {
        check_name(stream)?;
        let position = keys::replay_position(stream);
        let mut connection = self.connect(stream, Duration::ZERO).await?;
        let mut held = redis::cmd("HGETALL");
        held.arg(&position);
        let held: HashMap<String, String> = query(&held, &mut connection, &position).await?;
        let mut kind = redis::cmd("TYPE");
        let kind: String = query(kind.arg(stream), &mut connection, stream).await?;
        let exists = kind != "none";
        let (mut last, mut events) = (None, 0);
        if held.is_empty() {
            // A consumer may have made its group, and with it an empty stream.
            if exists && (kind != "stream" || length(&mut connection, stream).await? > 0) {
                return Err(ReplayError::Foreign(stream.to_owned()));
            }
        } else {
            let Held { from, last: held_last, events: held_events } = check_held(&held, &spec)?;
            if held_events > 0 && !exists {
                return Err(ReplayError::Gone { stream: stream.to_owned(), position });
            }
            (spec.from, last, events) = (from, Some(held_last), held_events);
        }
        let streams = self.clone();
        let (connection, stream) = (Some(connection), stream.to_owned());
        Ok(Replay { streams, connection, stream, position, spec, last, events })
    }
}

/// Rejects names of the ingestor's own keys, and those that cannot be a hash tag.
fn check_name(stream: &str) -> Result<(), ReplayError> {
    if keys::is_reserved(stream) {
        return Err(ReplayError::Live(stream.to_owned()));
    }
    let fits = |c: char| c.is_ascii_graphic() && c != '{' && c != '}';
    let fits = (1..=MAX_NAME).contains(&stream.len()) && stream.chars().all(fits);
    fits.then_some(()).ok_or(ReplayError::Name)
}

/// The content of a position.
struct Held {
    from: u64,
    last: (u64, B256),
    events: u64,
}

/// Checks that the position can be continued as `spec` asks.
fn check_held(held: &HashMap<String, String>, spec: &ReplaySpec) -> Result<Held, ReplayError> {
    let text = |name: &str| held.get(name).cloned().unwrap_or_default();
    let damaged = || ReplayError::Other("an unreadable position".to_owned());
    let number = |name: &str| text(name).parse::<u64>().map_err(|_| damaged());
    let (chain, from, last) = (number("chain_id")?, number("from")?, number("last")?);
    let hash = text("hash").parse().map_err(|_| damaged())?;
    if chain != spec.chain {
        return Err(ReplayError::Other(format!("chain {chain}")));
    }
    if text("filter") != spec.filter {
        return Err(ReplayError::Other("events of other contracts or topics".to_owned()));
    }
    if text("encoding") != spec.encoding.as_str() {
        return Err(ReplayError::Other(format!("entries encoded as {}", text("encoding"))));
    }
    if spec.from < from || spec.from > last.saturating_add(1) {
        let what = format!("blocks {from} to {last}, which --from {} does not continue", spec.from);
        return Err(ReplayError::Other(what));
    }
    Ok(Held { from, last: (last, hash), events: number("events")? })
}

impl Replay {
    /// The next block to append.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.last.map_or(self.spec.from, |(number, _)| number + 1)
    }

    /// The hash of the last block appended: the next block's parent.
    #[must_use]
    pub fn tip(&self) -> Option<B256> {
        self.last.map(|(_, hash)| hash)
    }

    /// How many events were written to the stream in total.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Appends the next block with its events. After a retryable error, call again with the same
    /// block.
    ///
    /// # Errors
    /// See [`ReplayError`].
    pub async fn append(
        &mut self,
        block: &BlockRef,
        events: &[ProcessedEvent],
    ) -> Result<(), ReplayError> {
        let mut arguments: Vec<Vec<u8>> = [
            self.spec.chain.to_string(),
            self.spec.from.to_string(),
            self.spec.filter.clone(),
            block.number.to_string(),
            hex::encode_prefixed(block.hash),
            events.len().to_string(),
            self.spec.encoding.to_string(),
        ]
        .map(String::into_bytes)
        .into();
        match self.spec.encoding {
            Encoding::Fields => {
                arguments.push(event::FIELDS.len().to_string().into());
                arguments.extend(event::FIELDS.map(|name| name.into()));
                arguments.extend(events.iter().flat_map(|e| e.to_values().map(String::into_bytes)));
            }
            Encoding::Msgpack => {
                arguments.extend([b"1".to_vec(), PACKED.into()]);
                arguments.extend(events.iter().map(|event| {
                    let mut packed = Vec::new();
                    event.write_packed(&mut packed);
                    packed
                }));
            }
        }
        let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
        let keys = [self.stream.as_str(), self.position.as_str()];
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.streams.connect(&self.stream, Duration::ZERO).await?,
        };
        let call = Call { keys: &keys, arguments: &arguments };
        let reply = REPLAY.call(&mut connection, call).await?;
        self.connection = Some(connection);
        match reply.outcome.as_str() {
            "written" => {
                self.last = Some((block.number, block.hash));
                self.events += events.len() as u64;
                Ok(())
            }
            "gone" => {
                let (stream, position) = (self.stream.clone(), self.position.clone());
                Err(ReplayError::Gone { stream, position })
            }
            "foreign" => Err(ReplayError::Foreign(reply.text(0))),
            _ => Err(ReplayError::Moved),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_keys_and_names_that_cannot_be_tags_are_refused() {
        for live in [
            "events:1",
            "events:77",
            "blocks:{events:1}",
            "cursor:{events:1}",
            "lease:{events:1}",
            "aside:{events:1}",
            "seen:{events:1}:0x",
        ] {
            let refused = check_name(live).unwrap_err();
            assert!(refused.to_string().contains("ethhook rewind"), "{live}: {refused}");
        }
        for bad in ["", "a b", "a{b}", "replay:{x}", "a\n", &"x".repeat(201)] {
            assert_eq!(check_name(bad), Err(ReplayError::Name), "{bad}");
        }
        assert_eq!(check_name("history:1"), Ok(()));
    }
}
