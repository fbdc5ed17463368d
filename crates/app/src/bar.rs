//! A progress bar on standard error, where that is a terminal; else nothing.

use std::io::{self, Write};
use std::sync::LazyLock;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// What is drawn.
static SCREEN: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Progress of one command.
#[derive(Debug)]
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// A bar of so many `things`. `indicatif` draws nothing where standard error is no terminal.
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

    /// Clears the line.
    pub(crate) fn end(self) {
        self.0.finish_and_clear();
    }
}

/// Standard error, with the bar out of the way: for lines that are written while one is drawn.
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
