//! Consumer groups of a live stream: creating, reading and cleaning up.

mod lag;
mod reader;

use std::sync::LazyLock;
use std::time::Duration;

use ethhook_domain::{ChainId, EntryId};

use crate::connection::Streams;
use crate::errors::{FailureKind, RedisFailure};
use crate::keys::Keys;
use crate::reader::{ReadError, last_id, now_ms, query};
use crate::script::{Call, Script};
use crate::search::entries_up_to;
use crate::size::length;

pub use lag::{Consumer, Group, GroupLag};
pub(crate) use lag::{Hold, groups, look_at_groups, pending};
pub use reader::GroupReader;

use lag::consumers;

static PRUNE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("prune.lua")));

/// Why creating, reading or cleaning up a group failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// There is no stream yet that could have groups.
    #[error("`{0}` does not exist: nothing has been published yet")]
    NoStream(String),
    /// There is no such group.
    #[error(
        "there is no group `{0}`: `ethhook groups list` shows all, `ethhook groups create` makes one"
    )]
    NoGroup(String),
    /// A group of this name already exists.
    #[error("group `{0}` already exists")]
    Exists(String),
    /// Reading failed.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl GroupError {
    /// Whether the same call may succeed later without intervention.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Read(error) if error.is_retryable())
    }

    /// Translates Redis' refusal for `group` of the stream `key`.
    fn of(error: ReadError, key: &str, group: &str) -> Self {
        let ReadError::Redis(failure) = &error else { return error.into() };
        match failure.kind {
            FailureKind::GroupExists => Self::Exists(group.to_owned()),
            FailureKind::NoGroup => Self::NoGroup(group.to_owned()),
            FailureKind::NoKey => Self::NoStream(key.to_owned()),
            _ => error.into(),
        }
    }
}

impl From<RedisFailure> for GroupError {
    fn from(failure: RedisFailure) -> Self {
        Self::Read(failure.into())
    }
}

impl Streams {
    /// The groups of `chain`'s live stream, and their lag.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn groups(&self, chain: ChainId) -> Result<Vec<GroupLag>, ReadError> {
        let keys = Keys::of(chain);
        let connection = &mut *self.pooled(&keys).await?;
        let now_ms = now_ms(connection).await?;
        let len = length(connection, &keys.events).await?;
        Ok(look_at_groups(connection, &keys.events, len, now_ms).await?.1)
    }

    /// The consumers of a group.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub async fn consumers(
        &self,
        chain: ChainId,
        group: &str,
    ) -> Result<Vec<Consumer>, GroupError> {
        let keys = Keys::of(chain);
        let key = &keys.events;
        let found = consumers(&mut *self.pooled(&keys).await?, key, group.as_bytes()).await;
        found.map_err(|error| GroupError::of(error, key, group))
    }

    /// Creates a group that starts after `after_id`; none to start at the stream's end. Redis is told how many
    /// entries come before that ID; otherwise it could not report the group's lag until everything is read
    /// (`ENTRIESREAD` of <https://redis.io/docs/latest/commands/xgroup-create/>).
    ///
    /// # Errors
    /// See [`GroupError`].
    pub async fn create_group(
        &self,
        chain: ChainId,
        group: &str,
        after_id: Option<EntryId>,
    ) -> Result<(), GroupError> {
        let keys = Keys::of(chain);
        let key = &keys.events;
        let connection = &mut *self.pooled(&keys).await?;
        // An actual ID instead of `$`, for which nobody could count the entries before it.
        let after = match after_id {
            Some(id) => id,
            None => last_id(connection, key).await?,
        };
        let mut command = redis::cmd("XGROUP");
        command.arg("CREATE").arg(key).arg(group).arg(after.to_string());
        // At the stream's beginning Redis needs no count.
        if after > EntryId::MIN
            && let Some(before) = entries_up_to(connection, &keys, after).await?
        {
            command.arg("ENTRIESREAD").arg(before);
        }
        let made: Result<(), _> = query(&command, connection, key).await;
        made.map_err(|error| GroupError::of(error, key, group))
    }

    /// Deletes a group; the stream no longer keeps entries for it.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub async fn delete_group(&self, chain: ChainId, group: &str) -> Result<(), GroupError> {
        let keys = Keys::of(chain);
        let key = &keys.events;
        let mut command = redis::cmd("XGROUP");
        command.arg("DESTROY").arg(key).arg(group);
        match query::<u64>(&command, &mut *self.pooled(&keys).await?, key).await {
            Ok(0) => Err(GroupError::NoGroup(group.to_owned())),
            Ok(_) => Ok(()),
            Err(error) => Err(GroupError::of(error, key, group)),
        }
    }

    /// Removes the consumers of a group that have nothing pending and have not tried to read for
    /// `idle`; returns their names. A consumer with pending entries stays: deleting it would lose
    /// them.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub async fn prune_consumers(
        &self,
        chain: ChainId,
        group: &str,
        idle: Duration,
    ) -> Result<Vec<String>, GroupError> {
        let keys = Keys::of(chain);
        let key = &keys.events;
        let idle_ms = idle.as_millis().to_string();
        let arguments = [group.as_bytes(), idle_ms.as_bytes()];
        let connection = &mut *self.pooled(&keys).await?;
        let call = Call { keys: &[key], arguments: &arguments };
        let reply = PRUNE.call(connection, call).await;
        let reply = reply.map_err(|failure| GroupError::of(failure.into(), key, group))?;
        Ok(reply.rest)
    }
}
