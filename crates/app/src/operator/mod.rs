//! Operator commands on a chain's live stream: `rewind`, `skip` and `clear-alarm`.
//!
//! Each takes the chain's lease under an owner name of its own, so that no ingestor, not even one
//! with the same `INSTANCE_ID`, writes in the meantime; a current holder must be stopped first.
//! Each prints what it will do, asks for confirmation, and is logged.

pub(crate) mod clear_alarm;
pub(crate) mod rewind;
pub(crate) mod skip;

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use ethhook_domain::Cursor;
use ethhook_ingest::Options;
use ethhook_streams::{LeaseError, OpenError, PublishedBlock, Publisher, StepError, WriterOptions};

use crate::bar::Bar;
use crate::output::confirm;
use crate::target::{Target, patiently};

/// The arguments of a command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Order<'a> {
    /// The chain's name.
    pub(crate) chain: &'a str,
    /// Do not ask.
    pub(crate) yes: bool,
}

impl Target {
    /// Takes the lease, which must be free, of a stream that has not moved since the cursor `seen`
    /// was read.
    async fn open(&self, command: &str, seen: &Cursor) -> anyhow::Result<Writer> {
        let mut writer = self.take_lease(command).await?;
        let held = writer.publisher.cursor();
        if (held.seq, held.hash) != (seen.seq, seen.hash) {
            writer.publisher.release().await;
            bail!("the stream has changed in the meantime: run the command again");
        }
        Ok(writer)
    }

    async fn take_lease(&self, command: &str) -> anyhow::Result<Writer> {
        let writer = format!("{}/{command}-{}", self.options.instance_id, std::process::id());
        let Options { lease_ttl, dedup_ttl, .. } = self.options;
        // Keeps the stream's encoding.
        let options = WriterOptions { writer, lease_ttl, dedup_ttl, encoding: None };
        match Publisher::open(&self.streams, self.id(), options, None).await {
            Ok(publisher) => {
                Ok(Writer { publisher, renew_every: lease_ttl / 3, renewed: Instant::now() })
            }
            Err(OpenError::LeaseHeld(holder)) => {
                bail!("{}: {holder}: stop that process first", self.name())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Asks the operator to type the chain's name.
    fn confirmed(&self, order: Order<'_>) -> anyhow::Result<bool> {
        if order.yes {
            return Ok(true);
        }
        confirm(self.name(), "do this")
    }
}

/// The publisher of one command, with lease renewal.
struct Writer {
    publisher: Publisher,
    renew_every: Duration,
    renewed: Instant,
}

impl Writer {
    /// Applies `step`, retrying for a while if Redis is unreachable.
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

    /// Takes `blocks`, which are ascending, back from the highest down.
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

/// Fails if the chain is stopped by an alarm, which another command must clear first.
fn ensure_no_alarm(cursor: &Cursor) -> anyhow::Result<()> {
    ensure!(
        cursor.alarm.is_empty(),
        "the chain is stopped by an alarm ({}): run `ethhook clear-alarm` first",
        cursor.alarm
    );
    Ok(())
}

fn events(blocks: &[PublishedBlock]) -> u64 {
    blocks.iter().map(|block| block.events).sum()
}

#[cfg(test)]
mod tests {
    use ethhook_domain::Secret;
    use ethhook_testkit::redis_server::{RedisOptions, RedisServer};

    use super::*;
    use crate::config::{Config, Inputs};

    const LEASE: &str = "lease:{events:31337}";
    const CURSOR: &str = "cursor:{events:31337}";

    /// The chain `local`, with its node at `http_url` and its own Redis.
    pub(super) async fn target(http_url: &str) -> (RedisServer, Target) {
        let redis = RedisServer::spawn(RedisOptions::default()).await.unwrap();
        let env = [("REDIS_URL", &*redis.url()), ("LOCAL_HTTP_URL", http_url)]
            .map(|(name, value)| (name.to_owned(), Secret::new(value)));
        let host_name = "host-1".to_owned();
        let inputs = Inputs { env: env.into(), env_file: None, toml: None, host_name };
        let mut config = Config::load(&inputs).unwrap();
        let streams = ethhook_streams::Streams::new(config.redis.clone()).unwrap();
        let chain = config.take_chain("local").unwrap();
        (redis, Target { chain, options: config.service.options, streams })
    }

    /// The same with an empty stream.
    pub(super) async fn begun(http_url: &str) -> (RedisServer, Target) {
        let (redis, target) = target(http_url).await;
        publisher(&target, 1).await.release().await;
        (redis, target)
    }

    /// The writer of a stream that begins at block `start`.
    pub(super) async fn publisher(target: &Target, start: u64) -> Publisher {
        let first = Cursor::starting_at(start, None, "all".to_owned());
        let Options { lease_ttl, dedup_ttl, encoding, .. } = target.options;
        let (writer, encoding) = ("one".to_owned(), Some(encoding));
        let options = WriterOptions { writer, lease_ttl, dedup_ttl, encoding };
        Publisher::open(&target.streams, target.id(), options, Some(first)).await.unwrap()
    }

    #[tokio::test]
    async fn a_stream_that_moved_since_it_was_looked_at_is_left_alone() {
        let (redis, target) = begun("http://127.0.0.1:1").await;
        let seen = target.cursor().await.unwrap();
        let marker = "XADD blocks:{events:31337} * seq 1 last_id 0-0";
        redis.ask::<String>(marker).await.unwrap();
        // Another block, then another block with the same `seq`.
        for change in [format!("HINCRBY {CURSOR} seq 1"), format!("HSET {CURSOR} hash 0x{:064}", 7)]
        {
            let before = target.cursor().await.unwrap();
            redis.ask::<i64>(&change).await.unwrap();
            for seen in [&seen, &before] {
                let error = target.open("rewind", seen).await.err().unwrap();
                assert!(error.to_string().contains("run the command again"), "{error}");
                assert!(!redis.ask::<bool>(&format!("EXISTS {LEASE}")).await.unwrap());
            }
        }
        let now = target.cursor().await.unwrap();
        assert!(target.open("rewind", &now).await.is_ok());
    }

    #[tokio::test]
    async fn g5_a_command_that_takes_long_keeps_its_lease_or_stops() {
        let (redis, target) = begun("http://127.0.0.1:1").await;
        let mut writer = target.open("rewind", &target.cursor().await.unwrap()).await.unwrap();
        // Whether the lease has a TTL. Removes the TTL, so that only a renewal restores it.
        let ends = async || {
            let left: i64 = redis.ask(&format!("PTTL {LEASE}")).await.unwrap();
            redis.ask::<i64>(&format!("PERSIST {LEASE}")).await.unwrap();
            left > 0
        };
        assert!(ends().await);
        writer.step(async |_| Ok(())).await.unwrap();
        assert!(!ends().await, "not at every step");
        writer.renew_every = Duration::ZERO;
        writer.step(async |_| Ok(())).await.unwrap();
        assert!(ends().await);
        redis.ask::<i64>(&format!("HINCRBY {CURSOR} epoch 1")).await.unwrap(); // another writer took it
        let mut stepped = false;
        let lost = writer.step(async |_| {
            stepped = true;
            Ok(())
        });
        assert!(lost.await.is_err() && !stepped);
    }
}
