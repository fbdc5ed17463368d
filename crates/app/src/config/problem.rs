//! What is wrong with the configuration, a line each.

use std::fmt;

use super::layers::Origin;

/// One thing that is wrong, shown as `KEY=value (from): what would be right`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    key: String,
    value: Option<String>,
    origin: Option<Origin>,
    text: String,
    is_of_file: bool,
}

/// Longer values are cut: the line must stay one line.
const SHOWN_CHARS: usize = 80;

impl Problem {
    /// A problem of no single value.
    pub(crate) fn new(key: impl Into<String>, text: impl Into<String>) -> Self {
        Self { key: key.into(), value: None, origin: None, text: text.into(), is_of_file: false }
    }

    /// A line that says all by itself.
    pub(crate) fn line(text: impl Into<String>) -> Self {
        Self::new("", text)
    }

    /// A file of the configuration that cannot be understood as a whole.
    pub(crate) fn file(path: &str, text: impl Into<String>) -> Self {
        Self { is_of_file: true, ..Self::new(path, text) }
    }

    /// Whether it hides what the file says.
    pub(crate) fn is_of_file(&self) -> bool {
        self.is_of_file
    }

    /// Where the key was set.
    pub(crate) fn from(mut self, origin: &Origin) -> Self {
        self.origin = Some(origin.clone());
        self
    }

    /// The value, which the caller knows to be no secret.
    pub(crate) fn value(mut self, value: &str) -> Self {
        self.value = Some(shown(value));
        self
    }
}

/// A value that should be no secret, as it is told. A URL is hidden all the same: whoever puts one where none
/// belongs has put its password there too.
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

/// Whether a value that should be no secret has the look of a URL or of `user:password@host`.
pub(crate) fn may_hold_credentials(value: &str) -> bool {
    value.contains("://") || value.contains('@')
}

/// The text with its control characters written out: a name or a value never becomes a line.
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
