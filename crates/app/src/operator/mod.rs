//! What an operator may order on a chain's live stream: `rewind`, `skip` and `clear-alarm`.
//!
//! Each works under the chain's lease, in a name of its own, so that no ingestor, not even one of
//! the same `INSTANCE_ID`, writes meanwhile: whoever holds the lease must be stopped first. Each
//! says what it will do, asks, and is told in the log.

pub(crate) mod clear_alarm;
pub(crate) mod rewind;
pub(crate) mod skip;

use std::io::{BufRead, IsTerminal};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ethhook_domain::Cursor;
use ethhook_ingest::{ChainConfig, Options};
use ethhook_streams::{OpenError, PublishedBlock, Publisher, StepError, Streams};

use crate::bar::Bar;
use crate::config::{Config, Inputs, Invalid, Problem};
use crate::output::say;
use crate::{Exit, logging, redis, tell};

/// How long a step is tried again while Redis is away.
const PATIENCE: Duration = Duration::from_secs(30);
const TRY_AGAIN: Duration = Duration::from_millis(250);

/// One chain, as the ingestor's own configuration has it.
pub(crate) struct Target {
    pub(crate) chain: ChainConfig,
    pub(crate) options: Options,
    pub(crate) streams: Streams,
}

/// What a command is told on its command line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Order<'a> {
    /// The chain's name.
    pub(crate) chain: &'a str,
    /// Do not ask.
    pub(crate) yes: bool,
}

impl Target {
    /// Reads the configuration and starts the log; none if something is wrong, which is then told.
    pub(crate) fn load(
        inputs: Result<Inputs, Vec<Problem>>,
        chain: &str,
    ) -> anyhow::Result<Option<Self>> {
        let loaded = inputs
            .and_then(|inputs| Config::load(&inputs).map_err(|Invalid { problems, .. }| problems));
        let loaded = loaded.and_then(|config| match redis::open(&config.redis) {
            Ok(streams) => Ok((config, streams)),
            Err(problem) => Err(vec![problem]),
        });
        let (config, streams) = match loaded {
            Ok(loaded) => loaded,
            Err(problems) => {
                tell(&problems);
                return Ok(None);
            }
        };
        logging::start(&config.logging)?;
        let options = config.service.options(None, config.chains.len());
        let names: Vec<_> = config.chains.iter().map(|c| c.profile.name.clone()).collect();
        let named = |c: &ChainConfig| c.profile.name.eq_ignore_ascii_case(chain);
        let Some(config) = config.chains.into_iter().find(named) else {
            bail!("chain {chain} is not configured; there are {}", names.join(", "));
        };
        Ok(Some(Self { chain: config, options, streams }))
    }

    pub(crate) fn id(&self) -> u64 {
        self.chain.profile.chain_id
    }

    pub(crate) fn name(&self) -> &str {
        &self.chain.profile.name
    }

    /// Where the stream stands.
    pub(crate) async fn cursor(&self) -> anyhow::Result<Cursor> {
        let cursor = self.streams.cursor(self.id()).await?;
        cursor.with_context(|| format!("Redis holds nothing of {}", self.name()))
    }

    /// Takes the lease, which nobody may hold, of a stream that still stands where it was `seen`.
    async fn open(&self, command: &str, seen: &Cursor) -> anyhow::Result<Writer> {
        let mut writer = self.take_lease(command).await?;
        let held = writer.publisher.cursor();
        if (held.seq, held.hash) != (seen.seq, seen.hash) {
            writer.publisher.release().await;
            bail!("the stream moved meanwhile: look again");
        }
        Ok(writer)
    }

    async fn take_lease(&self, command: &str) -> anyhow::Result<Writer> {
        let writer = format!("{}/{command}-{}", self.options.instance_id, std::process::id());
        let Options { lease_ttl, dedup_ttl, .. } = self.options;
        let (streams, as_it_is) = (&self.streams, None);
        match Publisher::open(streams, self.id(), &writer, lease_ttl, dedup_ttl, as_it_is, None)
            .await
        {
            Ok(publisher) => {
                Ok(Writer { publisher, renew_every: lease_ttl / 3, renewed: Instant::now() })
            }
            Err(OpenError::LeaseHeld { owner, .. }) => bail!(
                "`{owner}` holds the lease of {}: stop it first (a process that was killed holds it \
                 for another {} s at most)",
                self.name(),
                lease_ttl.as_secs().max(1)
            ),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks on the terminal for the chain's name.
    fn confirmed(&self, order: Order<'_>) -> anyhow::Result<bool> {
        if order.yes {
            return Ok(true);
        }
        confirm(self.name(), "do this")
    }
}

/// Whether a person at the terminal types `name`, so as to `do_what`.
///
/// # Errors
/// If standard input is no terminal.
pub(crate) fn confirm(name: &str, do_what: &str) -> anyhow::Result<bool> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        bail!("nobody can be asked here; say --yes to {do_what}");
    }
    say!("Type {name} to {do_what}:");
    let mut answer = String::new();
    input.lock().read_line(&mut answer)?;
    Ok(answer.trim() == name)
}

/// The publisher of one command, which keeps its lease.
struct Writer {
    publisher: Publisher,
    renew_every: Duration,
    renewed: Instant,
}

impl Writer {
    /// Carries out `step`, waiting a while for a Redis that is away.
    async fn step<T>(
        &mut self,
        mut step: impl AsyncFnMut(&mut Publisher) -> Result<T, StepError>,
    ) -> anyhow::Result<T> {
        if self.renewed.elapsed() >= self.renew_every {
            self.publisher.renew().await?;
            self.renewed = Instant::now();
        }
        let started = Instant::now();
        loop {
            match step(&mut self.publisher).await {
                Err(error) if error.is_retryable() && started.elapsed() < PATIENCE => {
                    tokio::time::sleep(TRY_AGAIN).await;
                }
                result => return Ok(result?),
            }
        }
    }

    /// Takes `blocks` back, ascending as they are, the highest first.
    async fn take_back(&mut self, blocks: &[PublishedBlock]) -> anyhow::Result<()> {
        let bar = Bar::new("blocks taken back", blocks.len().try_into().unwrap_or(u64::MAX));
        for block in blocks.iter().rev() {
            self.step(async |publisher| publisher.take_back(block).await).await?;
            tracing::debug!(block = %block.block, events = block.events, "taken back");
            bar.advance(1);
        }
        bar.end();
        Ok(())
    }
}

fn events(blocks: &[PublishedBlock]) -> u64 {
    blocks.iter().map(|block| block.events).sum()
}

pub(crate) fn bad_configuration() -> anyhow::Result<Exit> {
    Ok(Exit::BadConfiguration)
}
