//! A progress bar on standard error, where that is a terminal; else nothing.

use indicatif::{ProgressBar, ProgressStyle};

/// Progress of one command.
#[derive(Debug)]
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// A bar of so many `things`. `indicatif` draws nothing where standard error is no terminal.
    pub(crate) fn new(things: &str, count: u64) -> Self {
        let bar = ProgressBar::new(count);
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
