//! Commands' standard output and confirmation prompts. If the reader of the output goes away, a command still does
//! its work, and succeeds. If the output cannot be written for another reason, as on a full disk, it fails in the end.

use std::fmt::Arguments;
use std::io::{self, BufRead, ErrorKind, IsTerminal, Write, stdout};
use std::sync::OnceLock;

use anyhow::bail;

/// Writes a line.
macro_rules! say {
    ($($text:tt)*) => { $crate::output::line(format_args!($($text)*)) };
}
pub(crate) use say;

pub(crate) fn line(text: Arguments<'_>) {
    note(writeln!(stdout(), "{text}"));
}

/// Writes a text that already contains its line ends.
pub(crate) fn text(text: &str) {
    note(write!(stdout(), "{text}").and_then(|()| stdout().flush()));
}

/// Why the output could not be written, except that its reader is gone.
static FAILURE: OnceLock<io::Error> = OnceLock::new();

fn note(written: io::Result<()>) {
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        FAILURE.set(error).ok(); // only the first counts
    }
}

/// Ends the output of a command.
///
/// # Errors
/// If some of it could not be written although its reader is there.
pub(crate) fn end() -> anyhow::Result<()> {
    note(stdout().flush());
    match FAILURE.get() {
        Some(error) => bail!("standard output cannot be written: {error}"),
        None => Ok(()),
    }
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
