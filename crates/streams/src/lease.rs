//! The lease: who may write a chain's stream. Correctness rests on the epoch that it increments,
//! not on its TTL: a writer that lost it while suspended is refused by the step.

use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

use ethhook_domain::cursor::{FIELDS, SCHEMA};
use ethhook_domain::event::CodecError;
use ethhook_domain::{ChainId, Cursor, Encoding};
use redis::aio::ConnectionLike;

use crate::connection::Streams;
use crate::errors::{RedisFailure, WAY_OUT};
use crate::keys::Keys;
use crate::reader::{ReadError, query};
use crate::script::{Call, Reply, Script};

static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(include_str!("common.lua"), include_str!("take_lease.lua")))
});
static RENEW: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("renew_lease.lua")));
static RELEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("release_lease.lua")));

/// Who holds a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its `INSTANCE_ID`.
    pub owner: String,
    /// Time until it expires; none if it does not expire.
    pub remaining: Option<Duration>,
}

impl Holder {
    /// From the owner and the reply to `PTTL`, which is negative for a key that does not expire.
    fn new(owner: String, pttl: i64) -> Self {
        Self { owner, remaining: pttl.try_into().ok().map(Duration::from_millis) }
    }

    /// From a script's reply `held`, which contains both.
    pub(crate) fn of(reply: &Reply) -> Self {
        Self::new(reply.text(0), reply.text(1).parse().unwrap_or(-1))
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owner = &self.owner;
        match self.remaining {
            Some(left) => {
                let ms = left.as_millis();
                write!(f, "`{owner}` holds the lease for another {ms} ms unless it is renewed")
            }
            None => write!(f, "`{owner}` holds the lease, which does not expire"),
        }
    }
}

/// Why a chain's stream could not be opened for writing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Another instance writes it.
    #[error("{0}")]
    LeaseHeld(Holder),
    /// Redis holds no cursor, and the caller gave no initial one.
    #[error("Redis has no cursor for this chain")]
    NoCursor,
    /// There is no cursor, but there is data.
    #[error(
        "no cursor, but data is left in {}: `ethhook reset` deletes it",
        .keys.join(", ")
    )]
    Leftovers {
        /// The keys that hold data; of dedup records only the first.
        keys: Vec<String>,
    },
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
    /// The cursor was written by a program with another layout.
    #[error("the cursor has schema `{found}`, this version of ethhook uses {SCHEMA}")]
    Schema {
        /// The cursor's schema.
        found: String,
    },
    /// The stream's entries have another encoding, and a stream never mixes encodings.
    #[error(
        "the stream's entries have encoding `{found}`, STREAM_ENCODING is `{wanted}`: set it back to \
         `{found}`, or start the chain over in `{wanted}` with `ethhook reset`"
    )]
    Encoding {
        /// The cursor's encoding.
        found: String,
        /// The caller's encoding.
        wanted: Encoding,
    },
    /// The data in Redis contradicts itself.
    #[error("{0}{WAY_OUT}")]
    Inconsistent(String),
    /// The cursor cannot be read.
    #[error("the cursor is damaged: {0}")]
    Malformed(CodecError),
    /// Redis failed.
    #[error(transparent)]
    Redis(#[from] RedisFailure),
}

impl OpenError {
    /// The label of the error metric.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Redis(failure) => failure.kind.as_str(),
            Self::LeaseHeld(_) => "lease_held",
            Self::NoCursor => "no_cursor",
            Self::Leftovers { .. } => "leftovers",
            Self::WrongType { .. } => "wrong_type",
            Self::Schema { .. } => "schema",
            Self::Encoding { .. } => "encoding",
            Self::Inconsistent(_) => "inconsistent",
            Self::Malformed(_) => "malformed",
        }
    }

    /// Whether opening may succeed later without intervention: a lease expires, Redis recovers.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::LeaseHeld(_) => true,
            Self::Redis(failure) => failure.is_retryable(),
            _ => false,
        }
    }
}

/// Why the lease was not renewed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// Another writer has taken over: another id, or our own id with a higher epoch.
    #[error("the lease was lost to `{owner}` (epoch {epoch})")]
    Lost {
        /// The current writer.
        owner: String,
        /// The cursor's epoch.
        epoch: u64,
    },
    /// Redis lost steps that it had acknowledged.
    #[error("Redis holds the stream up to seq {held}, and had acknowledged seq {acknowledged}")]
    RolledBack {
        /// The cursor's `seq`.
        held: u64,
        /// Of the last acknowledged step.
        acknowledged: u64,
    },
    /// The cursor no longer exists.
    #[error("the cursor is gone: Redis was wiped, or the chain reset")]
    Gone,
    /// Redis failed: the lease was not renewed and may expire.
    #[error(transparent)]
    Redis(#[from] RedisFailure),
}

impl LeaseError {
    /// The label of the error metric.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Redis(failure) => failure.kind.as_str(),
            Self::Lost { .. } | Self::Gone => "lease_lost",
            Self::RolledBack { .. } => "rolled_back",
        }
    }

    /// Whether another attempt may renew it.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Redis(failure) if failure.is_retryable())
    }
}

impl Streams {
    /// Who holds the lease of `chain`, if anybody does.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn lease_holder(&self, chain: ChainId) -> Result<Option<Holder>, ReadError> {
        let keys = Keys::of(chain);
        let connection = &mut *self.pooled(&keys).await?;
        let lease = &keys.lease;
        let owner: Option<String> = query(redis::cmd("GET").arg(lease), connection, lease).await?;
        let Some(owner) = owner else { return Ok(None) };
        let pttl: i64 = query(redis::cmd("PTTL").arg(lease), connection, lease).await?;
        Ok(Some(Holder::new(owner, pttl)))
    }

    /// Releases the lease that a writer with these `options` took under `epoch`, if it still has it.
    ///
    /// # Errors
    /// If Redis fails.
    pub async fn release_lease(
        &self,
        chain: ChainId,
        options: &WriterOptions,
        epoch: u64,
    ) -> Result<(), RedisFailure> {
        let keys = Keys::of(chain);
        options.release(&mut *self.pooled(&keys).await?, &keys, epoch).await
    }
}

/// Identity and settings of a chain's writer.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// Its `INSTANCE_ID`.
    pub writer: String,
    /// How long its lease lasts without renewal.
    pub lease_ttl: Duration,
    /// How long a block's dedup record is kept.
    pub dedup_ttl: Duration,
    /// The encoding that the stream must have, or opening is refused; none accepts whatever it has.
    pub encoding: Option<Encoding>,
}

impl WriterOptions {
    /// Takes the lease and returns the cursor, created from `first` if there was none.
    pub(crate) async fn take(
        &self,
        connection: &mut impl ConnectionLike,
        keys: &Keys,
        first: Option<&Cursor>,
    ) -> Result<Cursor, OpenError> {
        let (ttl, schema) = (millis(self.lease_ttl), SCHEMA.to_string());
        let values = first.map(Cursor::to_values);
        let encoding = self.encoding.map_or("", Encoding::as_str);
        let mut arguments: Vec<&[u8]> =
            vec![self.writer.as_bytes(), ttl.as_bytes(), schema.as_bytes(), encoding.as_bytes()];
        for (name, value) in FIELDS.iter().zip(values.iter().flatten()) {
            arguments.extend([name.as_bytes(), value.as_bytes()]);
        }
        let probe = keys.seen_probe();
        let Keys { lease, cursor, events, blocks, aside, .. } = keys;
        let key_list = [lease, cursor, events, blocks, &probe, aside].map(String::as_str);
        let reply = TAKE.call(connection, Call { keys: &key_list, arguments: &arguments }).await?;
        match reply.outcome.as_str() {
            "taken" => Cursor::from_fields(reply.fields(0)).map_err(OpenError::Malformed),
            "held" => Err(OpenError::LeaseHeld(Holder::of(&reply))),
            "no_cursor" => Err(OpenError::NoCursor),
            "leftovers" => Err(OpenError::Leftovers { keys: reply.rest }),
            "inconsistent" => Err(OpenError::Inconsistent(reply.text(0))),
            "schema" => Err(OpenError::Schema { found: reply.text(0) }),
            "encoding" => {
                let wanted = self.encoding.unwrap_or_default();
                Err(OpenError::Encoding { found: reply.text(0), wanted })
            }
            "wrong_type" => Err(OpenError::WrongType {
                key: reply.text(0),
                found: reply.text(1),
                expected: reply.text(2),
            }),
            _ => Err(RedisFailure::unexpected("taking the lease").into()),
        }
    }

    pub(crate) async fn renew(
        &self,
        connection: &mut impl ConnectionLike,
        keys: &Keys,
        cursor: &Cursor,
    ) -> Result<(), LeaseError> {
        let (seq, ttl) = (cursor.seq.to_string(), millis(self.lease_ttl));
        let more = [seq.as_bytes(), ttl.as_bytes()];
        let reply = self.call(&RENEW, connection, keys, cursor.epoch, &more).await?;
        match reply.outcome.as_str() {
            "renewed" => Ok(()),
            "rolled_back" => {
                Err(LeaseError::RolledBack { held: reply.number(0)?, acknowledged: cursor.seq })
            }
            "lost" if reply.text(0).is_empty() => Err(LeaseError::Gone),
            "lost" => Err(LeaseError::Lost { owner: reply.text(0), epoch: reply.number(1)? }),
            _ => Err(RedisFailure::unexpected("renewing the lease").into()),
        }
    }

    pub(crate) async fn release(
        &self,
        connection: &mut impl ConnectionLike,
        keys: &Keys,
        epoch: u64,
    ) -> Result<(), RedisFailure> {
        self.call(&RELEASE, connection, keys, epoch, &[]).await.map(drop)
    }

    async fn call(
        &self,
        script: &Script,
        connection: &mut impl ConnectionLike,
        keys: &Keys,
        epoch: u64,
        more: &[&[u8]],
    ) -> Result<Reply, RedisFailure> {
        let epoch = epoch.to_string();
        let arguments = [&[self.writer.as_bytes(), epoch.as_bytes()], more].concat();
        let keys = [keys.lease.as_str(), keys.cursor.as_str()];
        script.call(connection, Call { keys: &keys, arguments: &arguments }).await
    }
}

fn millis(ttl: Duration) -> String {
    ttl.as_millis().max(1).to_string()
}
