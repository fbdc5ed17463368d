//! One atomic step of a chain: its content, the arguments for `step.lua`, and its outcome.

use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{B256, hex};
use ethhook_domain::event::{CodecError, write_optional_hash};
use ethhook_domain::{BlockRef, ChainId, Cursor, EntryId, Marker, Op, ProcessedEvent, Proof};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use redis::Value;
use redis::aio::MultiplexedConnection;

use crate::errors::{FailureKind, RedisFailure, WAY_OUT};
use crate::keys::Keys;
use crate::reader;
use crate::remembered::Floor;
use crate::request::{Request, StepConnection, Turn};
use crate::script::{Reply, is_unknown_script};
use crate::window::PublishedBlock;

/// How long the dedup record of a deep block is kept at most: in a backfill there are many blocks in a short time.
pub const DEEP_DEDUP_TTL: Duration = Duration::from_secs(60);

/// Events of one block, shared with requests on their way to Redis.
pub type Events = Arc<Vec<ProcessedEvent>>;

/// The next change to the chain.
#[derive(Debug, Clone, Copy)]
pub enum Step<'a> {
    /// A block joins: its parent is the tip; the first block's parent is not checked.
    Add {
        /// The block.
        block: &'a BlockRef,
        /// Its events that pass the filter, by ascending `log_index`.
        events: &'a Events,
        /// The strongest check it passed.
        proof: Proof,
        /// Digest of the filter in force.
        filter: &'a str,
        /// No reorg is expected to reach it: its dedup record is kept for [`DEEP_DEDUP_TTL`] at most.
        is_deep: bool,
    },
    /// The tip is orphaned. Its parent becomes the tip; removing the first block leaves none.
    Remove {
        /// The tip, as it was published.
        block: &'a PublishedBlock,
        /// Its events as published, in reverse order, each with `removed` set.
        events: &'a Events,
    },
    /// A published block is final; refused if a higher one already is.
    Finalized {
        /// The block.
        block: &'a BlockRef,
    },
    /// An operator skips blocks: this block, which is above the tip, becomes the tip, and no block
    /// in between is ever published.
    Gap {
        /// The last skipped block; its `parent_hash` is ignored.
        block: &'a BlockRef,
    },
    /// An operator accepts that final blocks were orphaned: finality moves back to this block,
    /// which is published or the one where the published chain now begins. The same step clears the
    /// alarm, which must be latched.
    Retreat {
        /// The new finalized block: the fork point, at or below the current one.
        to: MarkedBlock,
    },
    /// Stops the chain until an operator clears this text from the cursor; an empty text clears it.
    Alarm {
        /// Why.
        text: &'a str,
    },
}

/// What a marker records about its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkedBlock {
    /// Its height.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
    /// Hash of its parent; none if the block is no longer known.
    pub parent_hash: Option<B256>,
    /// Its time, unix seconds; 0 if the block is no longer known.
    pub timestamp: u64,
}

impl From<&BlockRef> for MarkedBlock {
    fn from(block: &BlockRef) -> Self {
        let &BlockRef { number, hash, parent_hash, timestamp } = block;
        Self { number, hash, parent_hash: Some(parent_hash), timestamp }
    }
}

/// The outcome of a step that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The step is in: written now, or by an earlier call whose answer was lost.
    Published {
        /// ID of its first entry; none if it has none.
        first_id: Option<EntryId>,
        /// The event stream's last ID after it; [`EntryId::MIN`] for an alarm, which does not read
        /// it.
        last_id: EntryId,
        /// How many entries it has.
        events: u64,
        /// ID of its marker; [`EntryId::MIN`] for an alarm, which has none.
        marker_id: EntryId,
    },
    /// The block is already in the stream; nothing was published.
    Duplicate {
        /// How many entries it has there.
        events: u64,
    },
}

/// Why a step was not applied. Nothing of it is in the stream, except that after a retryable
/// failure all of it may be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// Redis failed. If retryable, call again with the same step: if it is already in, the answer
    /// is [`Outcome::Published`].
    #[error(transparent)]
    Redis(#[from] RedisFailure),
    /// It was sent with replies off and is not in; applying it again shows why.
    #[error("the step was not applied")]
    NotIn,
    /// The cursor is not what this publisher believes: Redis was rolled back or wiped, or the
    /// cursor moved. Open again.
    #[error("the cursor moved: {}", held_text(.held.as_deref()))]
    Moved {
        /// What Redis holds; none if there is no cursor.
        held: Option<Box<Cursor>>,
    },
    /// The chain has another writer, or another process with our own id.
    #[error("the chain is written by `{writer}` under epoch {epoch}")]
    Fenced {
        /// Its `INSTANCE_ID`.
        writer: String,
        /// Its epoch.
        epoch: u64,
    },
    /// An alarm is latched in the cursor.
    #[error("the chain is stopped by an alarm: {0}")]
    Alarmed(String),
    /// The step does not fit the chain: a bug in the caller.
    #[error("refused: {0}")]
    Refused(String),
    /// The data in Redis contradicts itself.
    #[error("{0}{WAY_OUT}")]
    Inconsistent(String),
    /// The cursor cannot be read.
    #[error("the cursor is damaged: {0}")]
    Malformed(CodecError),
    /// A key does not hold the type that this program writes.
    #[error("key `{key}` holds a {found}, expected a {expected}")]
    WrongType {
        /// Its name.
        key: String,
        /// The type it holds.
        found: String,
        /// The type it should have.
        expected: String,
    },
}

impl StepError {
    /// The label of the error metric.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Redis(failure) => failure.kind.as_str(),
            Self::NotIn => "not_in",
            Self::Moved { .. } => "moved",
            Self::Fenced { .. } => "fenced",
            Self::Alarmed(_) => "alarmed",
            Self::Refused(_) => "refused",
            Self::Inconsistent(_) => "inconsistent",
            Self::Malformed(_) => "malformed",
            Self::WrongType { .. } => "wrong_type",
        }
    }

    /// Whether calling again with the same step may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Redis(failure) => failure.is_retryable(),
            Self::NotIn => true,
            _ => false,
        }
    }
}

fn held_text(held: Option<&Cursor>) -> String {
    match held {
        None => "there is none".to_owned(),
        Some(cursor) => format!("Redis holds block {} (seq {})", cursor.number, cursor.seq),
    }
}

impl<'a> Step<'a> {
    /// The cursor after this step is applied to `before`.
    pub(crate) fn after(&self, before: &Cursor) -> Cursor {
        let mut after = before.clone();
        match self {
            Self::Add { block, filter, .. } => {
                after.number = block.number;
                after.hash = Some(block.hash);
                (*filter).clone_into(&mut after.filter);
            }
            Self::Remove { block, .. } => {
                let block = &block.block;
                after.number = block.number.saturating_sub(1);
                after.hash = (block.number > before.start_number).then_some(block.parent_hash);
            }
            Self::Gap { block } => {
                after.number = block.number;
                after.hash = Some(block.hash);
            }
            Self::Finalized { block } => {
                after.finalized_number = block.number;
                after.finalized_hash = Some(block.hash);
            }
            Self::Retreat { to } => {
                after.finalized_number = to.number;
                after.finalized_hash = Some(to.hash);
                after.alarm.clear();
            }
            Self::Alarm { text } => {
                (*text).clone_into(&mut after.alarm);
                return after;
            }
        }
        after.seq += 1;
        after
    }

    pub(crate) fn op(&self) -> &'static str {
        match self {
            Self::Add { .. } => "add",
            Self::Remove { .. } => "remove",
            Self::Finalized { .. } => "finalized",
            Self::Gap { .. } => "gap",
            Self::Retreat { .. } => "retreat",
            Self::Alarm { .. } => "alarm",
        }
    }

    fn events(&self) -> &[ProcessedEvent] {
        match self {
            Self::Add { events, .. } | Self::Remove { events, .. } => events,
            _ => &[],
        }
    }

    /// Shared ownership of the events, to keep them while they are sent.
    fn shared_events(&self) -> Events {
        match self {
            Self::Add { events, .. } | Self::Remove { events, .. } => Arc::clone(events),
            _ => Events::default(),
        }
    }

    /// The marker's block, and the check that it passed. A final block's check is recorded in its `add` marker; a
    /// skipped block was not checked.
    fn block(&self) -> Option<(MarkedBlock, Proof)> {
        match self {
            Self::Add { block, proof, .. } => Some(((*block).into(), *proof)),
            Self::Remove { block, .. } => Some(((&block.block).into(), block.proof)),
            Self::Finalized { block } | Self::Gap { block } => {
                Some(((*block).into(), Proof::Structure))
            }
            Self::Retreat { to } => Some((*to, Proof::Structure)),
            Self::Alarm { .. } => None,
        }
    }

    /// Checks that the entries belong to the block.
    fn check(&self, chain: ChainId) -> Result<(), StepError> {
        let Some((block, _)) = self.block() else { return Ok(()) };
        let removed = matches!(self, Self::Remove { .. });
        let foreign = self.events().iter().find(|event| {
            event.chain_id != chain
                || event.block_hash != block.hash
                || event.block_number != block.number
                || event.timestamp != block.timestamp
                || event.removed != removed
        });
        match foreign {
            Some(event) => Err(StepError::Refused(format!(
                "{} of block {} {}: log {} of block {} (removed: {}) is not part of it",
                self.op(),
                block.number,
                block.hash,
                event.log_index,
                event.block_number,
                event.removed,
            ))),
            None => Ok(()),
        }
    }
}

/// The context of a step: the chain, the cursor it is based on, and settings.
pub(crate) struct Envelope<'a> {
    pub(crate) chain: ChainId,
    pub(crate) keys: &'a Keys,
    pub(crate) believed: &'a Cursor,
    pub(crate) dedup_ttl: Duration,
    /// The last IDs of the streams must not be below this.
    pub(crate) floor: Option<Floor>,
}

/// Applies `step` if the cursor in Redis is the one that the envelope expects.
pub(crate) async fn apply(
    connection: &MultiplexedConnection,
    envelope: &Envelope<'_>,
    step: &Step<'_>,
) -> Result<Outcome, StepError> {
    let value = request(envelope, step)?.send(connection).await.map_err(RedisFailure::from)?;
    read(&Reply::read(value)?)
}

/// The outcome, still to come, of a step that was sent.
pub(crate) type PendingOutcome = BoxFuture<'static, Result<Outcome, StepError>>;

/// Sends a step when its `turn` has come. It is sent while the outcome is polled: dropping that midway leaves the
/// connection in the middle of a transaction. The server must know the script; if it has forgotten it, the step fails
/// with a retryable error.
pub(crate) fn send(connection: StepConnection, request: Request, turn: Turn) -> PendingOutcome {
    let answer = async move {
        if request.may_be_quiet(&connection) {
            let value = request.send_without_replies(&connection.inner, turn).await;
            return quiet_outcome(&request, value.map_err(RedisFailure::from)?);
        }
        let value = request.send_in_turn(&connection.inner, turn).await.map_err(|error| {
            if is_unknown_script(&error) {
                RedisFailure::new(FailureKind::Loading, "the script is not loaded")
            } else {
                error.into()
            }
        })?;
        read(&Reply::read(value)?)
    };
    answer.boxed()
}

/// The outcome of a step, derived from the newest marker after it.
fn quiet_outcome(request: &Request, newest: Value) -> Result<Outcome, StepError> {
    // Anything else answers another command: the server no longer accepts `CLIENT REPLY`.
    let entries = reader::entries(newest)
        .map_err(|_| RedisFailure::new(FailureKind::Connection, "an answer to another command"))?;
    let newest = entries.first();
    let marker =
        newest.and_then(|entry| Some((entry.id, entry.marker(&request.keys.blocks).ok()?)));
    match marker {
        Some((marker_id, Marker { seq, op, hash, first_id, last_id, events, .. }))
            if request.mark == Some((seq, op, hash)) =>
        {
            Ok(Outcome::Published { first_id, last_id, events, marker_id })
        }
        _ => Err(StepError::NotIn),
    }
}

/// The request for `step`.
pub(crate) fn request(envelope: &Envelope<'_>, step: &Step<'_>) -> Result<Request, StepError> {
    step.check(envelope.chain)?;
    let block = match step {
        Step::Add { block, .. } => Some((Op::Add, block.hash)),
        Step::Remove { block, .. } => Some((Op::Remove, block.block.hash)),
        _ => None,
    };
    let after = step.after(envelope.believed);
    Ok(Request {
        keys: envelope.keys.clone(),
        encoding: envelope.believed.encoding,
        seen: block.map(|(_, hash)| envelope.keys.seen(hash)),
        head: head(envelope, step, &after),
        events: step.shared_events(),
        mark: block.map(|(op, hash)| (after.seq, op, hash)),
    })
}

/// The arguments before the entries, in the order that `step.lua` lists.
fn head(envelope: &Envelope<'_>, step: &Step<'_>, after: &Cursor) -> Vec<String> {
    let believed = envelope.believed;
    let mut head = vec![
        step.op().to_owned(),
        believed.writer.clone(),
        believed.epoch.to_string(),
        believed.seq.to_string(),
        write_optional_hash(believed.hash),
        envelope.floor.map(|floor| floor.to_string()).unwrap_or_default(),
    ];
    if let Step::Alarm { text } = step {
        head.push((*text).to_owned());
    }
    if let Some((block, proof)) = step.block() {
        let parent = match step {
            Step::Gap { .. } => believed.hash,
            _ => block.parent_hash,
        };
        head.extend([
            after.seq.to_string(),
            block.number.to_string(),
            hex::encode_prefixed(block.hash),
            write_optional_hash(parent),
            block.timestamp.to_string(),
            step.events().len().to_string(),
            proof.to_string(),
            after.filter.clone(),
            after.number.to_string(),
            write_optional_hash(after.hash),
            dedup_ttl(envelope, step).as_secs().max(1).to_string(),
            believed.encoding.to_string(),
        ]);
    }
    head
}

fn dedup_ttl(envelope: &Envelope<'_>, step: &Step<'_>) -> Duration {
    match step {
        Step::Add { is_deep: true, .. } => envelope.dedup_ttl.min(DEEP_DEDUP_TTL),
        _ => envelope.dedup_ttl,
    }
}

fn read(reply: &Reply) -> Result<Outcome, StepError> {
    match reply.outcome.as_str() {
        "published" => Ok(Outcome::Published {
            first_id: (!reply.text(0).is_empty()).then(|| reply.id(0)).transpose()?,
            last_id: reply.id(1)?,
            events: reply.number(2)?,
            marker_id: reply.id(3)?,
        }),
        "duplicate" => Ok(Outcome::Duplicate { events: reply.number(0)? }),
        "moved" if reply.rest.is_empty() => Err(StepError::Moved { held: None }),
        "moved" => match Cursor::from_fields(reply.fields(0)) {
            Ok(cursor) => Err(StepError::Moved { held: Some(Box::new(cursor)) }),
            Err(error) => Err(StepError::Malformed(error)),
        },
        "fenced" => Err(StepError::Fenced { writer: reply.text(0), epoch: reply.number(1)? }),
        "alarmed" => Err(StepError::Alarmed(reply.text(0))),
        "refused" => Err(StepError::Refused(reply.text(0))),
        "inconsistent" => Err(StepError::Inconsistent(reply.text(0))),
        "wrong_type" => Err(StepError::WrongType {
            key: reply.text(0),
            found: reply.text(1),
            expected: reply.text(2),
        }),
        _ => Err(RedisFailure::unexpected("a step").into()),
    }
}
