//! Failures of Redis, classified by what they mean for the caller, without URLs.

use std::fmt;

use deadpool::managed::PoolError;
use redis::{ErrorKind, RedisError};

/// Why Redis did not carry out a command. Also the label of the error metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// No answer in time: the command may have run or may still run.
    Timeout,
    /// No connection, or it broke: the command may have run.
    Connection,
    /// `OOM`: `maxmemory` is reached.
    OutOfMemory,
    /// `READONLY`: the server is now a replica.
    ReadOnly,
    /// `NOREPLICAS`: fewer replicas than `min-replicas-to-write`.
    NoReplicas,
    /// `LOADING` or `MASTERDOWN`: the server is not ready yet.
    Loading,
    /// `MOVED`, `ASK`, `TRYAGAIN`, `CLUSTERDOWN`: slots are being moved, or the Cluster is down.
    Cluster,
    /// `BUSY`: a script blocks the server.
    Busy,
    /// `MISCONF`: the server cannot write to its disk.
    Disk,
    /// The user or password was refused.
    Authentication,
    /// `NOPERM`: the user may not run this command or touch this key.
    Denied,
    /// A key that must exist does not.
    NoKey,
    /// `NOGROUP`: there is no such consumer group.
    NoGroup,
    /// `BUSYGROUP`: a consumer group of this name exists.
    GroupExists,
    /// Any other error of the server or the client library.
    Other,
}

impl FailureKind {
    /// The label: one or two lower-case words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Connection => "connection",
            Self::OutOfMemory => "out_of_memory",
            Self::ReadOnly => "read_only",
            Self::NoReplicas => "no_replicas",
            Self::Loading => "loading",
            Self::Cluster => "cluster",
            Self::Busy => "busy",
            Self::Disk => "disk",
            Self::Authentication => "authentication",
            Self::Denied => "denied",
            Self::NoKey => "no_key",
            Self::NoGroup => "no_group",
            Self::GroupExists => "group_exists",
            Self::Other => "other",
        }
    }

    /// Whether the same call may succeed later without a change of configuration.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        !matches!(
            self,
            Self::Authentication
                | Self::Denied
                | Self::NoKey
                | Self::NoGroup
                | Self::GroupExists
                | Self::Other
        )
    }
}

/// Where the rights are listed.
const RIGHTS: &str = "SETUP_GUIDE.md, Redis elsewhere";

/// What to do about data that contradicts itself.
pub(crate) const WAY_OUT: &str = ": `ethhook reset` starts the chain over";

/// One failure of Redis; its text holds no URL and no password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Redis: {detail}")]
pub struct RedisFailure {
    /// What it means for the caller.
    pub kind: FailureKind,
    /// The message, for a person.
    pub detail: String,
}

impl RedisFailure {
    pub(crate) fn new(kind: FailureKind, detail: impl fmt::Display) -> Self {
        Self { kind, detail: detail.to_string() }
    }

    /// A reply that does not have the command's format.
    pub(crate) fn unexpected(what: &'static str) -> Self {
        Self::new(FailureKind::Other, format_args!("unexpected answer to {what}"))
    }

    /// Whether the server could not be reached.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self.kind, FailureKind::Connection | FailureKind::Timeout)
    }

    /// Whether the same call may succeed later without intervention.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.kind.is_retryable()
    }
}

impl From<RedisError> for RedisFailure {
    fn from(error: RedisError) -> Self {
        let kind = kind_of(&error);
        let detail = match kind {
            FailureKind::Timeout => "no answer in time".to_owned(),
            FailureKind::Authentication => "user or password refused".to_owned(),
            FailureKind::Connection if error.is_connection_refusal() => {
                "connection refused".to_owned()
            }
            FailureKind::Connection => {
                // Errors of the system or of TLS contain no URL, for instance an unknown
                // certificate issuer.
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                match error.detail().or(cause.as_deref()) {
                    Some(detail) => format!("no connection: {}", cut(detail)),
                    None => "no connection, or it was dropped".to_owned(),
                }
            }
            FailureKind::Denied => format!("{}; required rights: {RIGHTS}", said(&error)),
            _ => said(&error),
        };
        Self { kind, detail }
    }
}

/// What the server or the client library said.
fn said(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {}", cut(detail)),
        (Some(code), None) => code.to_owned(),
        (None, Some(detail)) => cut(detail),
        (None, None) => error.category().to_owned(),
    }
}

impl From<PoolError<Self>> for RedisFailure {
    fn from(error: PoolError<Self>) -> Self {
        match error {
            PoolError::Backend(failure) => failure,
            PoolError::Timeout(_) => Self::new(FailureKind::Timeout, "no connection in time"),
            other => Self::new(FailureKind::Connection, other),
        }
    }
}

fn kind_of(error: &RedisError) -> FailureKind {
    if error.is_timeout() {
        return FailureKind::Timeout;
    }
    match error.kind() {
        ErrorKind::Io | ErrorKind::ClusterConnectionNotFound => return FailureKind::Connection,
        ErrorKind::AuthenticationFailed => return FailureKind::Authentication,
        _ => {}
    }
    match (error.code(), error.detail()) {
        // `EXECABORT` says why only in its detail.
        (Some("EXECABORT"), Some(detail)) => {
            let reason = detail.split_once("because of: ").map_or(detail, |(_, reason)| reason);
            let (code, detail) = reason.split_once(' ').unwrap_or((reason, ""));
            kind_of_code(code, detail)
        }
        (Some(code), detail) => kind_of_code(code, detail.unwrap_or_default()),
        (None, _) => FailureKind::Other,
    }
}

fn kind_of_code(code: &str, detail: &str) -> FailureKind {
    match code {
        "OOM" => FailureKind::OutOfMemory,
        // Redis sends UNBLOCKED to blocked clients when it becomes a replica.
        "READONLY" | "UNBLOCKED" => FailureKind::ReadOnly,
        "NOREPLICAS" => FailureKind::NoReplicas,
        "LOADING" | "MASTERDOWN" => FailureKind::Loading,
        "MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN" => FailureKind::Cluster,
        "BUSY" => FailureKind::Busy,
        "MISCONF" => FailureKind::Disk,
        "NOAUTH" | "WRONGPASS" => FailureKind::Authentication,
        "NOPERM" => FailureKind::Denied,
        "NOGROUP" => FailureKind::NoGroup,
        "BUSYGROUP" => FailureKind::GroupExists,
        "ERR" if detail.contains("max number of clients") => FailureKind::Connection,
        // From `XINFO` and from `XGROUP`.
        "ERR" if detail.contains("no such key") => FailureKind::NoKey,
        "ERR" if detail.contains("requires the key to exist") => FailureKind::NoKey,
        // How Redis 7.0 reports NOPERM from within a script.
        "ERR" if detail.starts_with("The user executing") => FailureKind::Denied,
        // And for a command with which the connection begins.
        "ERR" if detail.contains("has no permissions to run") => FailureKind::Denied,
        _ => FailureKind::Other,
    }
}

/// Whether `error` says that a key holds another type than expected.
pub(crate) fn is_wrong_type(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE")
}

/// At most 200 characters, without the arguments that Redis quotes for an unknown command: they
/// could be those of `AUTH`.
fn cut(detail: &str) -> String {
    let end = detail.find(", with args beginning with").unwrap_or(detail.len());
    detail[..end].chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::OpenError;
    use crate::reader::ReadError;
    use crate::step::StepError;

    fn said(line: &str) -> RedisFailure {
        let error = redis::parse_redis_value(format!("-{line}\r\n").as_bytes())
            .and_then(redis::Value::extract_error)
            .unwrap_err();
        error.into()
    }

    #[test]
    fn the_servers_codes_are_told_apart() {
        for (line, kind, retryable) in [
            ("OOM command not allowed when used memory > 'maxmemory'.", "out_of_memory", true),
            ("READONLY You can't write against a read only replica.", "read_only", true),
            ("UNBLOCKED force unblock from blocking operation", "read_only", true),
            ("NOREPLICAS Not enough good replicas to write.", "no_replicas", true),
            ("LOADING Redis is loading the dataset in memory", "loading", true),
            ("MASTERDOWN Link with MASTER is down", "loading", true),
            ("MOVED 3999 127.0.0.1:6381", "cluster", true),
            ("ASK 3999 127.0.0.1:6381", "cluster", true),
            ("TRYAGAIN Multiple keys request during rehashing of slot", "cluster", true),
            ("CLUSTERDOWN The cluster is down", "cluster", true),
            ("BUSY Redis is busy running a script.", "busy", true),
            ("EXECABORT Transaction discarded because of: OOM command", "out_of_memory", true),
            ("EXECABORT Transaction discarded because of: NOREPLICAS Not", "no_replicas", true),
            ("EXECABORT Transaction discarded because of previous errors.", "other", false),
            ("MISCONF Redis is configured to save RDB snapshots", "disk", true),
            ("ERR max number of clients reached", "connection", true),
            ("NOPERM this user has no permissions to run the 'xadd' command", "denied", false),
            ("ERR The user executing the script can't run this command", "denied", false),
            ("ERR this user has no permissions to run the 'select' command", "denied", false),
            ("NOAUTH Authentication required.", "authentication", false),
            ("WRONGPASS invalid username-password pair", "authentication", false),
            ("ERR no such key", "no_key", false),
            ("ERR The XGROUP subcommand requires the key to exist. Note that", "no_key", false),
            ("NOGROUP No such consumer group 'g' for key name 'events:1'", "no_group", false),
            ("BUSYGROUP Consumer Group name already exists", "group_exists", false),
            ("ERR syntax error", "other", false),
        ] {
            let failure = said(line);
            assert_eq!(
                (failure.kind.as_str(), failure.is_retryable()),
                (kind, retryable),
                "{line}"
            );
        }
    }

    #[test]
    fn a_missing_right_points_to_the_list_of_rights() {
        let denied = said("NOPERM this user has no permissions to run the 'xadd' command");
        assert!(
            denied
                .to_string()
                .ends_with("'xadd' command; required rights: SETUP_GUIDE.md, Redis elsewhere")
        );
        assert!(!said("ERR syntax error").to_string().contains("rights"));
    }

    #[test]
    fn data_that_contradicts_itself_is_reported_alike_by_every_operation() {
        let what = "block 1 has no entries".to_owned();
        let text = "block 1 has no entries: `ethhook reset` starts the chain over";
        assert_eq!(ReadError::Inconsistent(what.clone()).to_string(), text);
        assert_eq!(StepError::Inconsistent(what.clone()).to_string(), text);
        assert_eq!(OpenError::Inconsistent(what).to_string(), text);
    }

    #[test]
    fn quoted_arguments_are_cut_off() {
        let failure = said("ERR unknown command 'AUTH', with args beginning with: 'hunter2'");
        assert!(!failure.to_string().contains("hunter2"), "{failure}");
    }
}
