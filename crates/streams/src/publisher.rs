//! One chain's writer.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use ethhook_domain::{ChainId, Cursor};
use futures_util::future::ready;
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::oneshot;

use crate::append_only;
use crate::connection::Streams;
use crate::errors::{FailureKind, RedisFailure};
use crate::fail_point::fail_point;
use crate::keys::Keys;
use crate::lease::{LeaseError, OpenError, WriterOptions};
use crate::reader::ReadError;
use crate::remembered::Floor;
use crate::request::{StepConnection, Turn};
use crate::reset;
use crate::step::{self, Envelope, Outcome, PendingOutcome, Step, StepError};
use crate::window::PublishedBlock;

/// The writer of one chain: a dedicated connection, the cursor as it believes it to be, and the lease. It applies one
/// step at a time ([`Publisher::apply`]), or pipelines several that build on each other ([`Publisher::send`],
/// [`Publisher::next_outcome`]): each is sent before the previous ones are acknowledged, assuming that they will be.
/// If one of them is not in, the tip check of the script refuses all those behind it.
///
/// Any call may be dropped midway or fail without an answer. The step on the wire is then in or not; calling
/// [`Publisher::apply`] with the same step again finds out.
pub struct Publisher {
    streams: Streams,
    chain: ChainId,
    keys: Keys,
    options: WriterOptions,
    connection: Option<StepConnection>,
    /// The cursor after the last acknowledged step.
    cursor: Cursor,
    /// Steps sent but not acknowledged, oldest first.
    sent: VecDeque<Sent>,
    /// One for each of `sent`.
    outcomes: FuturesOrdered<PendingOutcome>,
    /// Checked with the first step only: later ones build on IDs that these streams assigned.
    floor: Option<Floor>,
    /// Signalled when the last step has been sent completely.
    last_sent: Option<oneshot::Receiver<()>>,
    /// The last step succeeded: the connection is up, and the server knows the script.
    may_pipeline: bool,
}

/// What is kept of a step until its outcome is known.
struct Sent {
    op: &'static str,
    /// The cursor after the step.
    after: Cursor,
}

impl Sent {
    fn of(step: &Step<'_>, before: &Cursor) -> Self {
        Self { op: step.op(), after: step.after(before) }
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("chain", &self.chain)
            .field("cursor", &self.cursor)
            .finish_non_exhaustive()
    }
}

impl Publisher {
    /// Takes the lease of `chain`, increments the epoch and reads the cursor. `first` is the initial cursor if Redis
    /// holds none; its writer and epoch are overwritten.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(
        streams: &Streams,
        chain: ChainId,
        options: WriterOptions,
        first: Option<Cursor>,
    ) -> Result<Self, OpenError> {
        Self::open_at(streams, chain, Keys::of(chain), options, first).await
    }

    pub(crate) async fn open_at(
        streams: &Streams,
        chain: ChainId,
        keys: Keys,
        options: WriterOptions,
        first: Option<Cursor>,
    ) -> Result<Self, OpenError> {
        let mut connection = connect(streams, &keys).await?;
        let inner = &mut connection.inner;
        let cursor = match options.take(inner, &keys, None).await {
            Err(OpenError::NoCursor) => {
                let seen = reset::first_dedup_record(inner, &keys).await?;
                if let Some(key) = seen {
                    return Err(OpenError::Leftovers { keys: vec![key] });
                }
                let Some(first) = first else { return Err(OpenError::NoCursor) };
                options.take(inner, &keys, Some(&first)).await?
            }
            other => other?,
        };
        fail_point("lease", "taken");
        let floor = streams.floor(chain);
        streams.remember_seq(chain, cursor.seq);
        Ok(Self {
            streams: streams.clone(),
            chain,
            keys,
            options,
            connection: Some(connection),
            cursor,
            sent: VecDeque::new(),
            outcomes: FuturesOrdered::new(),
            floor,
            last_sent: None,
            may_pipeline: false,
        })
    }

    /// The cursor as this publisher believes it to be.
    #[must_use]
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Extends the lease by its TTL. No step may be on the wire.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub async fn renew(&mut self) -> Result<(), LeaseError> {
        let mut connection = self.take_connection().await?;
        let result = self.options.renew(&mut connection.inner, &self.keys, &self.cursor).await;
        self.connection = Some(connection);
        if let Err(LeaseError::Redis(failure)) = &result {
            self.drop_connection_after(failure);
        }
        result
    }

    /// Releases the lease, so that another instance need not wait until it expires. If this fails,
    /// it expires.
    pub async fn release(&mut self) {
        fail_point("before", "release");
        let result = match self.take_connection().await {
            Ok(mut connection) => {
                self.options.release(&mut connection.inner, &self.keys, self.cursor.epoch).await
            }
            Err(failure) => Err(failure),
        };
        if let Err(failure) = result {
            tracing::debug!(chain = self.chain, %failure, "the lease was not released");
        }
    }

    /// Applies `step` as a whole or not at all. After a retryable error, call again with the same
    /// step.
    ///
    /// # Errors
    /// See [`StepError`]; `Refused` while other steps are on the wire.
    pub async fn apply(&mut self, step: &Step<'_>) -> Result<Outcome, StepError> {
        if !self.sent.is_empty() {
            return Err(StepError::Refused("other steps are on the wire".into()));
        }
        let connection = self.take_connection().await?;
        let envelope = Envelope {
            chain: self.chain,
            keys: &self.keys,
            believed: &self.cursor,
            dedup_ttl: self.options.dedup_ttl,
            floor: self.floor,
        };
        fail_point("before", step.op());
        let result = step::apply(&connection.inner, &envelope, step).await;
        self.connection = Some(connection);
        self.acknowledge(Sent::of(step, &self.cursor), &result);
        result
    }

    /// Sends `step` behind those on the wire; [`Publisher::next_outcome`] returns its outcome. Returns false, and
    /// sends nothing, if the step must be applied alone: the first one, which has more checks, and any that needs a
    /// new connection.
    pub fn send(&mut self, step: &Step<'_>) -> bool {
        let Some(connection) = self.connection.as_ref().filter(|_| self.may_pipeline) else {
            return false;
        };
        let believed = self.sent.back().map_or(&self.cursor, |last| &last.after);
        let envelope = Envelope {
            chain: self.chain,
            keys: &self.keys,
            believed,
            dedup_ttl: self.options.dedup_ttl,
            floor: None,
        };
        fail_point("before", step.op());
        let outcome = match step::request(&envelope, step) {
            Ok(request) => {
                let (sent, is_sent) = oneshot::channel();
                let turn = Turn { after: self.last_sent.replace(is_sent), sent };
                step::send(connection.clone(), request, turn)
            }
            // A step refused before it is sent is reported in its turn.
            Err(error) => ready(Err(error)).boxed(),
        };
        let sent = Sent::of(step, believed);
        self.sent.push_back(sent);
        self.outcomes.push_back(outcome);
        true
    }

    /// The outcome of the oldest step on the wire; none if there is none. Steps are sent while this is polled; it may
    /// be dropped and called again. If a step is not in, neither are those behind it: they are refused, or lost with
    /// the connection. They may be applied again one by one.
    pub async fn next_outcome(&mut self) -> Option<Result<Outcome, StepError>> {
        let result = self.outcomes.next().await?;
        let sent = self.sent.pop_front()?;
        self.acknowledge(sent, &result);
        if !matches!(result, Ok(Outcome::Published { .. })) {
            self.sent.clear();
            self.outcomes = FuturesOrdered::new();
        }
        Some(result)
    }

    /// Records the outcome of a step.
    fn acknowledge(&mut self, sent: Sent, result: &Result<Outcome, StepError>) {
        fail_point("after", sent.op);
        match result {
            Ok(Outcome::Published { last_id, marker_id, .. }) => {
                // Only an alarm leaves `seq` as it is; it skips the checks that the first step must make.
                if sent.after.seq > self.cursor.seq {
                    self.floor = None;
                    self.may_pipeline = true;
                    self.streams.raise_floor(self.chain, *last_id, *marker_id);
                }
                self.cursor = sent.after;
                self.streams.remember_seq(self.chain, self.cursor.seq);
            }
            Err(StepError::Redis(failure)) => {
                self.may_pipeline = false;
                self.drop_connection_after(failure);
            }
            Err(StepError::NotIn) => self.may_pipeline = false,
            Ok(Outcome::Duplicate { .. }) | Err(_) => {}
        }
    }

    /// Takes the tip back: its entries are read from the stream, since a node need not still have the block, and
    /// taken back in reverse order. After a retryable error, call again with the same block.
    ///
    /// # Errors
    /// See [`StepError`]; `Inconsistent` if the stream does not hold exactly the block's entries although the cursor
    /// is as expected.
    pub async fn take_back(&mut self, block: &PublishedBlock) -> Result<Outcome, StepError> {
        let mut events = match self.streams.block_events(self.chain, block).await {
            Ok(events) => events,
            Err(ReadError::Redis(failure)) => return Err(failure.into()),
            Err(other) => return Err(self.why_not_there(other).await),
        };
        events.reverse();
        events.iter_mut().for_each(|event| event.removed = true);
        self.apply(&Step::Remove { block, events: &events.into() }).await
    }

    /// Why the tip's entries are missing: Redis was rolled back, or its data contradicts itself.
    async fn why_not_there(&mut self, error: ReadError) -> StepError {
        match self.streams.cursor(self.chain).await {
            Ok(held) if held.as_ref() != Some(&self.cursor) => {
                StepError::Moved { held: held.map(Box::new) }
            }
            Err(ReadError::Redis(failure)) => failure.into(),
            _ => StepError::Inconsistent(match error {
                ReadError::Inconsistent(what) => what,
                other => other.to_string(),
            }),
        }
    }

    /// The current connection, or a new one if there is none or the last step was not sent completely: the old
    /// connection would wait for the rest of it. Put it back after its answer.
    async fn take_connection(&mut self) -> Result<StepConnection, RedisFailure> {
        let was_cut = self.last_sent.take().is_some_and(|mut sent| sent.try_recv().is_err());
        match self.connection.take().filter(|_| !was_cut) {
            Some(standing) => Ok(standing),
            None => connect(&self.streams, &self.keys).await,
        }
    }

    /// What is still on a failed connection may arrive late. The next call gets a new one, which
    /// also finds the new master after a failover. Full memory says nothing about the connection.
    fn drop_connection_after(&mut self, failure: &RedisFailure) {
        if failure.kind != FailureKind::OutOfMemory {
            self.connection = None;
        }
    }
}

/// A new connection; the server may have crashed since the last one.
async fn connect(streams: &Streams, keys: &Keys) -> Result<StepConnection, RedisFailure> {
    let mut connection = streams.connect(&keys.events, Duration::ZERO).await?;
    append_only::mend(&mut connection).await;
    Ok(StepConnection::new(connection).await)
}
