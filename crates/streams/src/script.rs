//! Scripts: called by `EVALSHA`, or by `EVAL` if the server does not know the script yet.

use ethhook_domain::EntryId;
use redis::aio::ConnectionLike;
use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, Value};

use crate::errors::RedisFailure;

/// One Lua script and its SHA-1, by which a server that has cached it can be asked to run it.
pub(crate) struct Script {
    code: &'static str,
    sha1: String,
}

/// The keys and arguments of one call.
pub(crate) struct Call<'a> {
    pub(crate) keys: &'a [&'a str],
    pub(crate) arguments: &'a [&'a [u8]],
}

impl Script {
    pub(crate) fn new(code: &'static str) -> Self {
        Self { code, sha1: redis::Script::new(code).get_hash().to_owned() }
    }

    /// The call for a server that knows the script.
    pub(crate) fn evalsha(&self, call: &Call<'_>) -> Cmd {
        command("EVALSHA", &self.sha1, call)
    }

    /// The call that includes the script's text.
    pub(crate) fn eval(&self, call: &Call<'_>) -> Cmd {
        command("EVAL", self.code, call)
    }

    /// Runs the script. Only the first call on a server sends the script's text.
    pub(crate) async fn call(
        &self,
        connection: &mut impl ConnectionLike,
        call: Call<'_>,
    ) -> Result<Reply, RedisFailure> {
        let answer = self.evalsha(&call).query_async(connection).await;
        let value: Value = match answer {
            Err(error) if is_unknown_script(&error) => {
                self.eval(&call).query_async(connection).await?
            }
            other => other?,
        };
        Reply::read(value)
    }
}

/// Whether the server has never seen the script, or has forgotten it.
pub(crate) fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

fn command(name: &str, script: &str, call: &Call<'_>) -> Cmd {
    let bytes = call.arguments.iter().map(|a| a.len()).sum::<usize>() + script.len() + 512;
    let mut command = Cmd::with_capacity(call.keys.len() + call.arguments.len() + 3, bytes);
    command.arg(name).arg(script).arg(call.keys.len());
    call.keys.iter().for_each(|key| {
        command.arg(*key);
    });
    call.arguments.iter().for_each(|argument| {
        command.arg(*argument);
    });
    command
}

/// The reply of our scripts: a word for the outcome, and the texts that belong to it.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) outcome: String,
    pub(crate) rest: Vec<String>,
}

impl Reply {
    pub(crate) fn read(value: Value) -> Result<Self, RedisFailure> {
        let unexpected = || RedisFailure::unexpected("a script");
        let mut words: Vec<String> = redis::from_redis_value(value).map_err(|_| unexpected())?;
        if words.is_empty() {
            return Err(unexpected());
        }
        let outcome = words.remove(0);
        Ok(Self { outcome, rest: words })
    }

    /// The text at `index` after the outcome; empty if there is none.
    pub(crate) fn text(&self, index: usize) -> String {
        self.rest.get(index).cloned().unwrap_or_default()
    }

    /// The number at `index` after the outcome.
    pub(crate) fn number(&self, index: usize) -> Result<u64, RedisFailure> {
        self.text(index).parse().map_err(|_| RedisFailure::unexpected("a script"))
    }

    /// The entry's ID at `index` after the outcome.
    pub(crate) fn id(&self, index: usize) -> Result<EntryId, RedisFailure> {
        self.text(index).parse().map_err(|()| RedisFailure::unexpected("a script"))
    }

    /// The texts from `index` on as pairs of names and values.
    pub(crate) fn fields(&self, index: usize) -> impl Iterator<Item = (&[u8], &[u8])> {
        let fields = self.rest.get(index..).unwrap_or_default();
        fields.chunks_exact(2).map(|pair| (pair[0].as_bytes(), pair[1].as_bytes()))
    }
}
