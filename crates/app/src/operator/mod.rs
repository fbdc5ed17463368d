//! What an operator may order on a chain's live stream: `rewind`, `skip` and `clear-alarm`.
//!
//! Each works under the chain's lease, in a name of its own, so that no ingestor, not even one of
//! the same `INSTANCE_ID`, writes meanwhile: whoever holds the lease must be stopped first. Each
//! says what it will do, asks, and is told in the log.

pub(crate) mod clear_alarm;
pub(crate) mod rewind;
pub(crate) mod skip;

use std::time::{Duration, Instant};

use anyhow::bail;
use ethhook_domain::Cursor;
use ethhook_ingest::Options;
use ethhook_streams::{LeaseError, OpenError, PublishedBlock, Publisher, StepError};

use crate::bar::Bar;
use crate::output::confirm;
use crate::target::{Target, patiently};

/// What a command is told on its command line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Order<'a> {
    /// The chain's name.
    pub(crate) chain: &'a str,
    /// Do not ask.
    pub(crate) yes: bool,
}

impl Target {
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
            let renew = async || self.publisher.renew().await;
            patiently(renew, LeaseError::is_retryable).await?;
            self.renewed = Instant::now();
        }
        let done = patiently(async || step(&mut self.publisher).await, StepError::is_retryable);
        Ok(done.await?)
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
