//! A progress bar on standard error if that is a terminal; otherwise nothing.

use std::io::{self, Write};
use std::sync::LazyLock;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// All bars drawn on the terminal.
static SCREEN: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Progress of one command.
#[derive(Debug)]
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// A bar for `count` `things`. `indicatif` draws nothing if standard error is not a terminal.
    pub(crate) fn new(things: &str, count: u64) -> Self {
        let bar = SCREEN.add(ProgressBar::new(count));
        let template =
            format!("{{wide_bar}} {{pos}} of {{len}} {things}, {{elapsed}}, {{eta}} to go");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        Self(bar)
    }

    pub(crate) fn advance(&self, count: u64) {
        self.0.inc(count);
    }

    /// Removes the bar.
    pub(crate) fn end(self) {
        self.0.finish_and_clear();
    }
}

/// Writes to standard error while a bar may be drawn, hiding it for the time of the write.
#[derive(Debug)]
pub(crate) struct BesideBar;

impl Write for BesideBar {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        SCREEN.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
