//! One chain's writer.

use std::fmt;
use std::time::Duration;

use ethhook_domain::{ChainId, Cursor, Encoding, EntryId};
use tokio::sync::oneshot;

use crate::append_only;
use crate::connection::Streams;
use crate::errors::{FailureKind, RedisFailure};
use crate::fail_point::fail_point;
use crate::keys::Keys;
use crate::lease::{Lease, LeaseError, OpenError};
use crate::reader::ReadError;
use crate::request::{Line, Turn};
use crate::reset;
use crate::step::{self, Answer, Envelope, Outcome, Step, StepError};
use crate::window::PublishedBlock;

/// The writer of one chain: a connection of its own, the cursor as it believes it to be, and the
/// lease. It takes one step at a time, or several that build on each other: each is sent while those
/// before it are not acknowledged, and believes that they will be. Should one of them not be in, the
/// tip check of the script refuses all behind it.
///
/// Every call may be dropped half-way or fail without an answer: the step that was on the wire is
/// then in or not, and calling [`Publisher::apply`] with it again finds out.
pub struct Publisher {
    streams: Streams,
    chain: ChainId,
    keys: Keys,
    lease: Lease,
    dedup_ttl: Duration,
    line: Option<Line>,
    /// As of the last step that was acknowledged.
    cursor: Cursor,
    /// As it is once all that was sent is in.
    sent: Cursor,
    /// Looked at with the first step only: later ones build on IDs that this stream gave.
    floor: Option<EntryId>,
    /// Told when all of the last step that was sent is on its way.
    last_sent: Option<oneshot::Receiver<()>>,
    /// The last step was taken: the connection stands, and the server knows the script.
    is_open: bool,
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
    /// Takes the lease of `chain` as `writer`, raises the epoch and reads the cursor. `first` is the
    /// cursor to begin with if Redis holds none; its writer and epoch are overwritten. A stream in
    /// another `encoding` is refused; without one, entries are written as the stream has them.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(
        streams: &Streams,
        chain: ChainId,
        writer: &str,
        lease_ttl: Duration,
        dedup_ttl: Duration,
        encoding: Option<Encoding>,
        first: Option<Cursor>,
    ) -> Result<Self, OpenError> {
        let lease = Lease { writer: writer.to_owned(), ttl: lease_ttl, encoding };
        Self::open_at(streams, chain, Keys::of(chain), lease, dedup_ttl, first).await
    }

    pub(crate) async fn open_at(
        streams: &Streams,
        chain: ChainId,
        keys: Keys,
        lease: Lease,
        dedup_ttl: Duration,
        first: Option<Cursor>,
    ) -> Result<Self, OpenError> {
        let mut line = connect(streams, &keys).await?;
        let connection = &mut line.connection;
        let cursor = match lease.take(connection, &keys, None).await {
            Err(OpenError::NoCursor) => {
                let seen = reset::first_dedup_record(connection, &keys).await?;
                if let Some(key) = seen {
                    return Err(OpenError::Leftovers { keys: vec![key] });
                }
                let Some(first) = first else { return Err(OpenError::NoCursor) };
                lease.take(connection, &keys, Some(&first)).await?
            }
            other => other?,
        };
        fail_point("lease", "taken");
        let floor = streams.floor(chain);
        streams.acknowledge(chain, cursor.seq);
        let streams = streams.clone();
        let line = Some(line);
        let sent = cursor.clone();
        Ok(Self {
            streams,
            chain,
            keys,
            lease,
            dedup_ttl,
            line,
            cursor,
            sent,
            floor,
            last_sent: None,
            is_open: false,
        })
    }

    /// The cursor as this publisher believes it to be.
    #[must_use]
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Prolongs the lease by its TTL.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub async fn renew(&mut self) -> Result<(), LeaseError> {
        let mut line = self.take_line().await?;
        let result = self.lease.renew(&mut line.connection, &self.keys, self.cursor.epoch).await;
        self.line = Some(line);
        if let Err(LeaseError::Redis(failure)) = &result {
            self.drop_line_after(failure);
        }
        result
    }

    /// Gives the lease up, so that another instance need not wait for it to run out. Should this
    /// fail, it runs out.
    pub async fn release(&mut self) {
        fail_point("before", "release");
        let result = match self.take_line().await {
            Ok(mut line) => {
                self.lease.release(&mut line.connection, &self.keys, self.cursor.epoch).await
            }
            Err(failure) => Err(failure),
        };
        if let Err(failure) = result {
            tracing::debug!(chain = self.chain, %failure, "the lease was not given up");
        }
    }

    /// Takes `step`, whole or not at all. After a retryable error call again with the same step.
    /// Nothing may be on the wire.
    ///
    /// # Errors
    /// See [`StepError`].
    pub async fn apply(&mut self, step: &Step<'_>) -> Result<Outcome, StepError> {
        let line = self.take_line().await?;
        let envelope = Envelope {
            chain: self.chain,
            keys: &self.keys,
            believed: &self.cursor,
            dedup_ttl: self.dedup_ttl,
            floor: self.floor,
        };
        fail_point("before", step.op());
        let result = step::take(&line.connection, &envelope, step).await;
        self.line = Some(line);
        self.acknowledge(step, &result);
        result
    }

    /// Sends `step` behind those that are on the wire, as its answer is polled; tell
    /// [`Publisher::acknowledge`] of the answers in the order of sending. None if the step must be applied by
    /// itself: the first one, which looks at more, and any that needs a new connection.
    ///
    /// # Errors
    /// `Refused` if the entries are not those of the block.
    pub fn send(&mut self, step: &Step<'_>) -> Result<Option<Answer>, StepError> {
        let Some(line) = self.line.as_ref().filter(|_| self.is_open) else {
            return Ok(None);
        };
        let envelope = Envelope {
            chain: self.chain,
            keys: &self.keys,
            believed: &self.sent,
            dedup_ttl: self.dedup_ttl,
            floor: None,
        };
        fail_point("before", step.op());
        let request = step::request(&envelope, step)?;
        let (sent, is_sent) = oneshot::channel();
        let turn = Turn { after: self.last_sent.replace(is_sent), sent };
        let answer = step::send(line.clone(), request, turn);
        self.sent = step.after(&self.sent);
        Ok(Some(answer))
    }

    /// Takes note of what became of the oldest step on the wire. If it is not in, forget the answers
    /// of those behind it: they are refused, or lost with the connection, and may be applied again
    /// one after the other.
    pub fn acknowledge(&mut self, step: &Step<'_>, result: &Result<Outcome, StepError>) {
        fail_point("after", step.op());
        if let Ok(Outcome::Published { last_id, .. }) = result {
            self.cursor = step.after(&self.cursor);
            self.streams.acknowledge(self.chain, self.cursor.seq);
            if !matches!(step, Step::Alarm { .. }) {
                self.floor = None;
                self.is_open = true;
                self.streams.raise_floor(self.chain, *last_id);
            }
            if self.sent.seq <= self.cursor.seq {
                self.sent = self.cursor.clone(); // nothing is on the wire
            }
            return;
        }
        match result {
            Err(StepError::Redis(failure)) => {
                self.is_open = false;
                self.drop_line_after(failure);
            }
            Err(StepError::NotIn) => self.is_open = false,
            _ => {}
        }
        self.sent = self.cursor.clone();
    }

    /// Takes the tip back: its entries are read from the stream, for no node need still have the
    /// block, and taken back in reverse. After a retryable error call again with the same block.
    ///
    /// # Errors
    /// See [`StepError`]; `Inconsistent` if the stream does not hold exactly the block's entries.
    pub async fn take_back(&mut self, block: &PublishedBlock) -> Result<Outcome, StepError> {
        let mut events =
            self.streams.block_events(self.chain, block).await.map_err(|error| match error {
                ReadError::Redis(failure) => StepError::Redis(failure),
                other => StepError::Inconsistent(other.to_string()),
            })?;
        events.reverse();
        events.iter_mut().for_each(|event| event.removed = true);
        self.apply(&Step::Remove { block, events: &events.into() }).await
    }

    /// The connection that stands, or a new one: also after a step of which not all was sent, for the
    /// rest of which that connection would wait. Put it back when it has answered.
    async fn take_line(&mut self) -> Result<Line, RedisFailure> {
        let was_cut = self.last_sent.take().is_some_and(|mut sent| sent.try_recv().is_err());
        match self.line.take().filter(|_| !was_cut) {
            Some(standing) => Ok(standing),
            None => connect(&self.streams, &self.keys).await,
        }
    }

    /// What a failed connection still carries may arrive late; the next call gets a new one, which
    /// also finds the new master after a failover. Full memory says nothing about the connection.
    fn drop_line_after(&mut self, failure: &RedisFailure) {
        if failure.kind != FailureKind::OutOfMemory {
            self.line = None;
        }
    }
}

/// A new connection, to a server that may have crashed since the last.
async fn connect(streams: &Streams, keys: &Keys) -> Result<Line, RedisFailure> {
    let mut connection = streams.connect(&keys.events, Duration::ZERO).await?;
    append_only::mend(&mut connection).await;
    Ok(Line::new(connection).await)
}
