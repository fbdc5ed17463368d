//! `ethhook status`: asks the service on this host, or Redis if there is none, and prints the
//! report.

use std::io::IsTerminal;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::advice::{Seen, troubles};
use super::offline::standings;
use super::{Chain, Redis, Report, Trouble, table};
use crate::config::{Client, Inputs, Probe};
use crate::signals::Signals;
use crate::{Exit, healthcheck};

/// Interval between two reports of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// Moves the terminal's cursor to the top left and clears the screen
/// (<https://man7.org/linux/man-pages/man4/console_codes.4.html>).
const CLEAR: &str = "\x1b[H\x1b[2J";

/// How the report is shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// As JSON, a line per report.
    pub(crate) json: bool,
    /// Repeatedly, until a signal.
    pub(crate) watch: bool,
}

/// Prints the report; the exit code says whether all is well.
///
/// # Errors
/// If the report cannot be written.
pub(crate) async fn run(inputs: &Inputs, options: Options) -> anyhow::Result<Exit> {
    let mut signals = Signals::new()?;
    let asker = Asker { client: Client::load(inputs)?, probe: Probe::load(inputs)? };
    loop {
        let shown = async {
            let report = asker.report().await;
            show(&report, options).await.map(|()| report.ok)
        };
        let ok = tokio::select! {
            ok = shown => ok?,
            () = signals.next() => return Ok(Exit::Done),
        };
        if !options.watch {
            return Ok(if ok { Exit::Done } else { Exit::Failed });
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_EVERY) => {}
            () = signals.next() => return Ok(Exit::Done),
        }
    }
}

async fn show(report: &Report, options: Options) -> anyhow::Result<()> {
    let text = if options.json {
        format!("{}\n", serde_json::to_string(report)?)
    } else {
        let clear = options.watch && std::io::stdout().is_terminal();
        format!("{}{}", if clear { CLEAR } else { "" }, table::render(report))
    };
    let mut out = tokio::io::stdout();
    out.write_all(text.as_bytes()).await?;
    Ok(out.flush().await?)
}

/// The sources of a report.
struct Asker {
    client: Client,
    probe: Probe,
}

impl Asker {
    async fn report(&self) -> Report {
        match self.of_service().await {
            Ok(report) => report,
            Err(why) => self.of_redis(&why).await,
        }
    }

    /// The service's own report, or why there is none.
    async fn of_service(&self) -> Result<Report, String> {
        let reply = healthcheck::ask(self.probe.health, "/status.json").await;
        let reply = reply.map_err(|error| format!("{error:#}"))?;
        let report = (reply.status == 200).then(|| serde_json::from_str(&reply.body).ok());
        report.flatten().ok_or_else(|| {
            let address = self.probe.health;
            format!("http://{address}/status.json is from another version of ethhook")
        })
    }

    /// What Redis holds of the configured chains; if none is configured, of the known chains that
    /// it has.
    async fn of_redis(&self, why: &str) -> Report {
        let Client { known, on, streams, .. } = &self.client;
        let chains: Vec<_> = if on.is_empty() { known } else { on }.iter().collect();
        let (standings, failure) = standings(streams, &chains).await;
        let mut troubles_of_all = vec![Trouble::no_service(why)];
        troubles_of_all.extend(failure.iter().map(Trouble::no_redis));
        let mut shown = Vec::new();
        for (profile, standing) in chains.iter().zip(standings) {
            let Some(standing) = standing else { continue };
            if on.is_empty() && standing.cursor.is_none() {
                continue;
            }
            let mut chain = Chain::unknown(profile);
            chain.set_redis_state(standing);
            chain.troubles = troubles(&chain, &Seen::default());
            shown.push(chain);
        }
        let redis = Redis { address: streams.address(), failure: failure.map(|f| f.to_string()) };
        Report::new(None, redis, troubles_of_all, shown)
    }
}
