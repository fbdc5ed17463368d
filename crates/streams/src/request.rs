//! How a step goes to Redis: as one call of `step.lua`, or as a transaction, which Redis does not carry
//! out before all of it is there.
//!
//! A transaction has two answers an entry, and they are a tenth of what catching up costs us. So a step
//! that is sent behind others is sent quietly: Redis is told not to answer, then to answer again, and the
//! newest marker tells whether the step is in. If it is not, the step is asked for again, aloud, and the
//! answers tell why. A large one is always aloud, for it is made and sent part by part: Redis takes one
//! part in while the next is made, and a block of any size goes out of little memory.

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

static STEP: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("step.lua")));

/// Entries up to which a step is one message, which may be quiet.
const QUIET: usize = 1_000;
/// Entries of one part.
const PART: usize = 500;
/// Parts that are made before the oldest of them is answered. With the blocks that may be on the wire
/// at once they are fewer than the messages that a connection holds (50).
const PARTS_AT_ONCE: usize = 2;
/// Bytes of an entry's command that are no value of it: room for all names.
const BESIDE_VALUES: usize = 150;

/// A step's place behind those that were sent before it.
pub(crate) struct Turn {
    /// Told when all of the step before is on its way.
    pub(crate) after: Option<oneshot::Receiver<()>>,
    /// To be told when all of this one is.
    pub(crate) sent: oneshot::Sender<()>,
}

impl Turn {
    /// Waits for it; whom to tell when the step is on its way.
    async fn come(self) -> Result<oneshot::Sender<()>, RedisError> {
        if let Some(after) = self.after
            && after.await.is_err()
        {
            return Err((ErrorKind::Io, "the step before was cut short").into());
        }
        Ok(self.sent)
    }
}

/// What is to be said of a step.
pub(crate) struct Request {
    pub(crate) keys: Keys,
    pub(crate) encoding: Encoding,
    /// The dedup record that the step makes or deletes.
    pub(crate) seen: Option<String>,
    /// The arguments before the entries, in the order that `step.lua` lists.
    pub(crate) head: Vec<String>,
    pub(crate) events: Events,
    /// What the marker of a step with entries says: `seq`, what happened, and the block's hash.
    pub(crate) mark: Option<(u64, Op, B256)>,
}

/// A connection for the steps of one chain.
#[derive(Clone)]
pub(crate) struct Line {
    pub(crate) connection: MultiplexedConnection,
    /// Whether the server can be told not to answer: a proxy may not know how, or the user may not.
    pub(crate) can_be_quiet: bool,
}

impl Line {
    pub(crate) async fn new(mut connection: MultiplexedConnection) -> Self {
        let can_be_quiet = reply("ON").exec_async(&mut connection).await.is_ok();
        Self { connection, can_be_quiet }
    }
}

/// Switches the answers to all that follows.
fn reply(mode: &str) -> Cmd {
    let mut command = redis::cmd("CLIENT");
    command.arg("REPLY").arg(mode);
    command
}

impl Request {
    /// What the script answers; a server that does not know it is given its text.
    pub(crate) async fn ask(
        &self,
        connection: &MultiplexedConnection,
    ) -> Result<Value, RedisError> {
        match self.say(connection, Script::command, None).await {
            Err(error) if is_unknown_script(&error) => {
                self.say(connection, Script::first_command, None).await
            }
            other => other,
        }
    }

    /// The same of a server that knows the script, when the step's turn has come.
    ///
    /// # Errors
    /// Also if the step before was cut short.
    pub(crate) async fn ask_in_turn(
        &self,
        connection: &MultiplexedConnection,
        turn: Turn,
    ) -> Result<Value, RedisError> {
        let sent = turn.come().await?;
        self.say(connection, Script::command, Some(sent)).await
    }

    /// Whether the step may be said quietly over `line`.
    pub(crate) fn may_be_quiet(&self, line: &Line) -> bool {
        line.can_be_quiet && (1..=QUIET).contains(&self.events.len())
    }

    /// Says it quietly to a server that knows the script, when the step's turn has come. Gives what
    /// `XREVRANGE` then tells of the newest marker.
    ///
    /// # Errors
    /// Also if the step before was cut short.
    pub(crate) async fn ask_quietly(
        &self,
        connection: &MultiplexedConnection,
        turn: Turn,
    ) -> Result<Value, RedisError> {
        let sent = turn.come().await?;
        let mut pipeline = Pipeline::with_capacity(self.events.len() + 7);
        pipeline.add_command(reply("OFF"));
        self.write_part(0..self.events.len(), Script::command, &mut pipeline);
        pipeline.add_command(reply("ON"));
        pipeline.cmd("XREVRANGE").arg(&self.keys.blocks).arg(&["+", "-", "COUNT", "1"]);
        let mut connection = connection.clone();
        // `ON` is what is answered first.
        let answers =
            on_its_way(connection.req_packed_commands(&pipeline, 1, 1), Some(sent)).await?;
        answers.into_iter().next().unwrap_or(Value::Nil).extract_error()
    }

    /// `call` makes the first call of the script; a second one follows on a server that knows it.
    async fn say(
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
        answers.deciding()
    }

    /// Appends the commands of so many entries; of the first, what opens before them, and of the last,
    /// what closes behind them.
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
            pipeline.add_command(self.call(Script::command, Some("close"))).cmd("EXEC");
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

    /// The `XADD` of `event`, whose values are written to `buffer`.
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

    /// An `XADD` before its fields, with room for them.
    fn add(&self, fields: usize, bytes: usize) -> Cmd {
        let mut command = Cmd::with_capacity(4 + 2 * fields, BESIDE_VALUES + bytes);
        command.arg("XADD").arg(&self.keys.aside).arg("NOMKSTREAM").arg("*");
        command
    }
}

/// Gives `message` to the connection, tells `sent` that it is, and waits for the answer.
async fn on_its_way<T>(message: impl Future<Output = T>, sent: Option<oneshot::Sender<()>>) -> T {
    // The connection takes a message for which it has room at the first asking.
    let mut message = pin!(unconstrained(message));
    let at_once = poll!(&mut message);
    if let Some(sent) = sent {
        sent.send(()).ok(); // nobody may come behind it
    }
    match at_once {
        Poll::Ready(answer) => answer,
        Poll::Pending => message.await,
    }
}

/// What the commands of a transaction were answered.
#[derive(Default)]
struct Answers {
    /// The first that was not queued, and why.
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

    /// The first refusal. Else what the opening says, unless it opened; then the first failure, else
    /// what the closing says.
    fn deciding(self) -> Result<Value, RedisError> {
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
