//! What commands say on the standard output. Whoever reads it may go away: a command does its work all the
//! same.

use std::fmt::Arguments;
use std::io::{Write, stdout};

/// Writes a line.
macro_rules! say {
    ($($text:tt)*) => { $crate::output::line(format_args!($($text)*)) };
}
pub(crate) use say;

pub(crate) fn line(text: Arguments<'_>) {
    writeln!(stdout(), "{text}").ok(); // nobody listens any more
}

/// Writes a text that has its line ends.
pub(crate) fn text(text: &str) {
    write!(stdout(), "{text}").and_then(|()| stdout().flush()).ok(); // nobody listens any more
}
