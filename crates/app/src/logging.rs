//! Log lines, on standard error.

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, filter};

use crate::bar::BesideBar;
use crate::config::{LogFormat, Logging};

/// Starts logging. Only our own crates are logged, whatever the filter says: a library's debug
/// lines may contain the URL it connects to, which is a secret (G11).
///
/// # Errors
/// If the filter is invalid, or logging was already started.
pub(crate) fn start(logging: &Logging) -> anyhow::Result<()> {
    let ours = filter::filter_fn(|event| event.target().starts_with("ethhook"));
    let lines = tracing_subscriber::fmt::layer().with_writer(|| BesideBar);
    let lines = match logging.format {
        LogFormat::Text => {
            let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
            lines.with_ansi(colour).with_target(false).boxed()
        }
        LogFormat::Json => lines.json().flatten_event(true).with_ansi(false).boxed(),
    };
    tracing_subscriber::registry()
        .with(EnvFilter::try_new(&logging.filter)?)
        .with(lines.with_filter(ours))
        .try_init()?;
    Ok(())
}
