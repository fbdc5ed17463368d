//! The reply to `INFO` (<https://redis.io/docs/latest/commands/info/>).

/// The value of a field.
pub(crate) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'))
}
