//! How a step goes to Redis: as one call of `step.lua`, or as a transaction, which Redis runs only once it has
//! received all of it.
//!
//! A transaction has two replies per entry, which make up a tenth of our cost of catching up. So a step sent behind
//! others is sent quietly: with replies turned off and then on again, after which the newest marker shows whether the
//! step is in. If it is not, the step is sent again with replies on, and these show why. A large step is never quiet,
//! because it is built and sent in parts: Redis receives one part while the next is built, and a block of any size
//! needs little memory.

use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::sync::LazyLock;
use std::task::Poll;

use alloy_primitives::B256;
use ethhook_domain::encoding::PACKED;
use ethhook_domain::{Encoding, Op, ProcessedEvent, event};
use futures_util::{StreamExt, poll, stream};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, ErrorKind, Pipeline, RedisError, ServerError, Value};
use tokio::sync::oneshot;
use tokio::task::unconstrained;

use crate::fail_point::fail_point;
use crate::keys::Keys;
use crate::script::{Call, Script, is_unknown_script};
use crate::step::Events;

static STEP: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("common.lua"), include_str!("step.lua"))));

/// Up to this many entries, a step is one message and may be sent quietly.
const QUIET: usize = 1_000;
/// Entries per part.
const PART: usize = 500;
/// Parts built before the oldest of them is answered. Together with the blocks that may be on the wire at once, these
/// are fewer than the messages that a connection can queue (50).
const PARTS_AT_ONCE: usize = 2;
/// Bytes of an entry's command besides its values: room for all names.
const BESIDE_VALUES: usize = 150;

/// A step's place in the order of sending.
pub(crate) struct Turn {
    /// Signalled when the previous step has been sent completely.
    pub(crate) after: Option<oneshot::Receiver<()>>,
    /// To be signalled when this step has been sent completely.
    pub(crate) sent: oneshot::Sender<()>,
}

impl Turn {
    /// Waits for the turn; returns the sender to signal when the step has been sent.
    async fn wait(self) -> Result<oneshot::Sender<()>, RedisError> {
        if let Some(after) = self.after
            && after.await.is_err()
        {
            return Err((ErrorKind::Io, "the previous step was interrupted").into());
        }
        Ok(self.sent)
    }
}

/// Everything that is sent for a step.
pub(crate) struct Request {
    pub(crate) keys: Keys,
    pub(crate) encoding: Encoding,
    /// The dedup record that the step writes or deletes.
    pub(crate) seen: Option<String>,
    /// The arguments before the entries, in the order listed in `step.lua`.
    pub(crate) head: Vec<String>,
    pub(crate) events: Events,
    /// What the marker of a step with entries will say: `seq`, op and block hash.
    pub(crate) mark: Option<(u64, Op, B256)>,
}

/// A connection for the steps of one chain.
#[derive(Clone)]
pub(crate) struct StepConnection {
    pub(crate) inner: MultiplexedConnection,
    /// Whether replies can be turned off: a proxy may not support it, or the user lack the right.
    pub(crate) can_be_quiet: bool,
}

impl StepConnection {
    pub(crate) async fn new(mut inner: MultiplexedConnection) -> Self {
        let can_be_quiet = client_reply("ON").exec_async(&mut inner).await.is_ok();
        Self { inner, can_be_quiet }
    }
}

/// Turns replies on or off for all following commands.
fn client_reply(mode: &str) -> Cmd {
    let mut command = redis::cmd("CLIENT");
    command.arg("REPLY").arg(mode);
    command
}

impl Request {
    /// Sends the step and returns the script's answer; loads the script if the server does not know it.
    pub(crate) async fn send(
        &self,
        connection: &MultiplexedConnection,
    ) -> Result<Value, RedisError> {
        match self.send_parts(connection, Script::evalsha, None).await {
            Err(error) if is_unknown_script(&error) => {
                self.send_parts(connection, Script::eval, None).await
            }
            other => other,
        }
    }

    /// The same for a server that knows the script, when the step's turn has come.
    ///
    /// # Errors
    /// Also if the previous step was cut short.
    pub(crate) async fn send_in_turn(
        &self,
        connection: &MultiplexedConnection,
        turn: Turn,
    ) -> Result<Value, RedisError> {
        let sent = turn.wait().await?;
        self.send_parts(connection, Script::evalsha, Some(sent)).await
    }

    /// Whether the step may be sent quietly over `connection`.
    pub(crate) fn may_be_quiet(&self, connection: &StepConnection) -> bool {
        connection.can_be_quiet && (1..=QUIET).contains(&self.events.len())
    }

    /// Sends the step quietly to a server that knows the script, when its turn has come. Returns
    /// the answer of `XREVRANGE` for the newest marker.
    ///
    /// # Errors
    /// Also if the previous step was cut short.
    pub(crate) async fn send_without_replies(
        &self,
        connection: &MultiplexedConnection,
        turn: Turn,
    ) -> Result<Value, RedisError> {
        let sent = turn.wait().await?;
        let mut pipeline = Pipeline::with_capacity(self.events.len() + 7);
        pipeline.add_command(client_reply("OFF"));
        self.write_part(0..self.events.len(), Script::evalsha, &mut pipeline);
        pipeline.add_command(client_reply("ON"));
        pipeline.cmd("XREVRANGE").arg(&self.keys.blocks).arg(&["+", "-", "COUNT", "1"]);
        let mut connection = connection.clone();
        // The reply to `ON` comes first, and is skipped.
        let answers =
            on_its_way(connection.req_packed_commands(&pipeline, 1, 1), Some(sent)).await?;
        answers.into_iter().next().unwrap_or(Value::Nil).extract_error()
    }

    /// Sends the step. `call` builds the first call of the script; by the second, the server knows
    /// it.
    async fn send_parts(
        &self,
        connection: &MultiplexedConnection,
        call: fn(&Script, &Call<'_>) -> Cmd,
        mut sent: Option<oneshot::Sender<()>>,
    ) -> Result<Value, RedisError> {
        if self.events.is_empty() {
            let command = self.call(call, None);
            let mut connection = connection.clone();
            let answer = on_its_way(connection.req_packed_command(&command), sent).await?;
            return answer.extract_error();
        }
        let count = self.events.len();
        let parts = (0..count).step_by(PART).map(|first| {
            let part = first..count.min(first + PART);
            let sent = if part.end == count { sent.take() } else { None };
            let mut pipeline = Pipeline::with_capacity(part.len() + 4);
            self.write_part(part, call, &mut pipeline);
            let mut connection = connection.clone();
            async move {
                on_its_way(connection.req_packed_commands(&pipeline, 0, pipeline.len()), sent).await
            }
        });
        let mut parts = stream::iter(parts).buffered(PARTS_AT_ONCE);
        let mut answers = Answers::default();
        while let Some(part) = parts.next().await {
            part?.into_iter().for_each(|answer| answers.note(answer));
        }
        answers.outcome()
    }

    /// Appends the commands of a range of entries, preceded by the opening call in the first part and followed by the
    /// closing call in the last.
    fn write_part(
        &self,
        part: Range<usize>,
        call: fn(&Script, &Call<'_>) -> Cmd,
        pipeline: &mut Pipeline,
    ) {
        if part.start > 0 {
            fail_point("between", "parts");
        } else {
            pipeline.cmd("MULTI").add_command(self.call(call, Some("open")));
        }
        let is_last = part.end == self.events.len();
        let mut values = Vec::new();
        for event in &self.events[part] {
            pipeline.add_command(self.entry(event, &mut values));
        }
        if is_last {
            pipeline.add_command(self.call(Script::evalsha, Some("close"))).cmd("EXEC");
        }
    }

    /// A call of the script, for one `half` of a step with entries.
    fn call(&self, call: fn(&Script, &Call<'_>) -> Cmd, half: Option<&str>) -> Cmd {
        let Keys { events, blocks, cursor, aside, .. } = &self.keys;
        let mut keys = vec![events.as_str(), blocks, cursor];
        keys.extend(self.seen.as_deref());
        let mut arguments: Vec<&[u8]> = self.head.iter().map(String::as_bytes).collect();
        if let Some(half) = half {
            keys.push(aside);
            arguments.push(half.as_bytes());
        }
        call(&STEP, &Call { keys: &keys, arguments: &arguments })
    }

    /// The `XADD` of `event`; `buffer` is scratch space for its values.
    fn entry(&self, event: &ProcessedEvent, buffer: &mut Vec<u8>) -> Cmd {
        buffer.clear();
        match self.encoding {
            Encoding::Fields => {
                let ends = event.write_values(buffer);
                let mut command = self.add(ends.len(), buffer.len());
                let mut from = 0;
                for (name, end) in event::FIELDS.iter().zip(ends) {
                    command.arg(name).arg(&buffer[from..end]);
                    from = end;
                }
                command
            }
            Encoding::Msgpack => {
                event.write_packed(buffer);
                let mut command = self.add(1, buffer.len());
                command.arg(PACKED).arg(&buffer[..]);
                command
            }
        }
    }

    /// An `XADD` without its fields, with capacity for them.
    fn add(&self, fields: usize, bytes: usize) -> Cmd {
        let mut command = Cmd::with_capacity(4 + 2 * fields, BESIDE_VALUES + bytes);
        command.arg("XADD").arg(&self.keys.aside).arg("NOMKSTREAM").arg("*");
        command
    }
}

/// Hands `message` to the connection, signals `sent`, and waits for the answer.
async fn on_its_way<T>(message: impl Future<Output = T>, sent: Option<oneshot::Sender<()>>) -> T {
    // If the connection has room for a message, the first poll hands it over.
    let mut message = pin!(unconstrained(message));
    let at_once = poll!(&mut message);
    if let Some(sent) = sent {
        sent.send(()).ok(); // there may be no next step
    }
    match at_once {
        Poll::Ready(answer) => answer,
        Poll::Pending => message.await,
    }
}

/// The replies to the commands of a transaction.
#[derive(Default)]
struct Answers {
    /// The error of the first command that was not queued.
    refused: Option<ServerError>,
    last: Option<Value>,
}

impl Answers {
    fn note(&mut self, answer: Value) {
        if let (None, Some(Value::ServerError(error))) = (&self.refused, self.last.take()) {
            self.refused = Some(error);
        }
        self.last = Some(answer);
    }

    /// The reply that decides the outcome: the first command that was not queued; else the opening's answer, if it
    /// did not open; else the first failure; else the closing's answer.
    fn outcome(self) -> Result<Value, RedisError> {
        if let Some(error) = self.refused {
            return Err(error.into());
        }
        let results = match self.last {
            Some(Value::Array(results)) => results,
            Some(Value::ServerError(error)) => return Err(error.into()),
            _ => return Err((ErrorKind::UnexpectedReturnType, "unexpected answer to EXEC").into()),
        };
        let mut results = results.into_iter();
        let opening = results.next().unwrap_or(Value::Nil).extract_error()?;
        if !matches!(&opening, Value::Array(words) if *words == [Value::BulkString(b"open".into())])
        {
            return Ok(opening);
        }
        results.try_fold(opening, |_, result| result.extract_error())
    }
}
