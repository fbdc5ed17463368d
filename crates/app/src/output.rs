//! What commands say on the standard output, and what they ask. Whoever reads it may go away: a command does
//! its work all the same.

use std::fmt::Arguments;
use std::io::{BufRead, IsTerminal, Write, stdout};

use anyhow::bail;

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

/// Whether a person at the terminal types `name`, so as to `do_what`.
///
/// # Errors
/// If standard input is no terminal.
pub(crate) fn confirm(name: &str, do_what: &str) -> anyhow::Result<bool> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        bail!("standard input is not a terminal: pass --yes to {do_what} without being asked");
    }
    say!("Type {name} to {do_what}:");
    let mut answer = String::new();
    input.lock().read_line(&mut answer)?;
    Ok(answer.trim() == name)
}
