//! Commands' standard output and confirmation prompts. If the reader of the output goes away, a command still does
//! its work.

use std::fmt::Arguments;
use std::io::{BufRead, IsTerminal, Write, stdout};

use anyhow::bail;

/// Writes a line.
macro_rules! say {
    ($($text:tt)*) => { $crate::output::line(format_args!($($text)*)) };
}
pub(crate) use say;

pub(crate) fn line(text: Arguments<'_>) {
    writeln!(stdout(), "{text}").ok(); // the reader may be gone
}

/// Writes a text that already contains its line ends.
pub(crate) fn text(text: &str) {
    write!(stdout(), "{text}").and_then(|()| stdout().flush()).ok(); // the reader may be gone
}

/// Asks a person at the terminal to type `name` as a confirmation to `do_what`.
///
/// # Errors
/// If standard input is not a terminal.
pub(crate) fn confirm(name: &str, do_what: &str) -> anyhow::Result<bool> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        bail!("standard input is not a terminal: pass --yes to {do_what} without confirmation");
    }
    say!("Type {name} to {do_what}:");
    let mut answer = String::new();
    input.lock().read_line(&mut answer)?;
    Ok(answer.trim() == name)
}
