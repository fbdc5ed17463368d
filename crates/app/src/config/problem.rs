//! Problems with the configuration, a line each.

use std::fmt;

use super::layers::Origin;

/// One problem, shown as `KEY=value (from): what would be right`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    key: String,
    value: Option<String>,
    origin: Option<Origin>,
    text: String,
    is_of_file: bool,
}

/// Longer values are cut, to keep the line short.
const SHOWN_CHARS: usize = 80;

impl Problem {
    /// A problem that concerns no particular value.
    pub(crate) fn new(key: impl Into<String>, text: impl Into<String>) -> Self {
        Self { key: key.into(), value: None, origin: None, text: text.into(), is_of_file: false }
    }

    /// A problem whose text is the whole line.
    pub(crate) fn line(text: impl Into<String>) -> Self {
        Self::new("", text)
    }

    /// A configuration file that cannot be parsed at all.
    pub(crate) fn file(path: &str, text: impl Into<String>) -> Self {
        Self { is_of_file: true, ..Self::new(path, text) }
    }

    /// Whether it hides the settings in a file.
    pub(crate) fn is_of_file(&self) -> bool {
        self.is_of_file
    }

    /// Adds where the key was set.
    pub(crate) fn from(mut self, origin: &Origin) -> Self {
        self.origin = Some(origin.clone());
        self
    }

    /// Adds the value, which must not be a secret.
    pub(crate) fn value(mut self, value: &str) -> Self {
        self.value = Some(shown(value));
        self
    }
}

/// A value that should not be secret, as shown in messages. A URL is hidden all the same: one put in the
/// wrong place may contain a password.
pub(crate) fn shown(value: &str) -> String {
    if may_hold_credentials(value) {
        "<redacted>".to_owned()
    } else if value.chars().count() > SHOWN_CHARS {
        let cut: String = value.chars().take(SHOWN_CHARS).collect();
        format!("{}...", cut.escape_debug())
    } else {
        value.escape_debug().to_string()
    }
}

/// Whether a value that should not be secret looks like a URL or `user:password@host`.
pub(crate) fn may_hold_credentials(value: &str) -> bool {
    value.contains("://") || value.contains('@')
}

/// Escapes control characters, so that a name or a value cannot start a new line.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_debug()) } else { line.push(c) }
    }
    line
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.key))?;
        if let Some(value) = &self.value {
            write!(f, "={value}")?;
        }
        if let Some(origin) = &self.origin {
            write!(f, " (from {origin})")?;
        }
        if !self.key.is_empty() {
            f.write_str(": ")?;
        }
        f.write_str(&self.text)
    }
}
