//! One configured chain, for the commands that work on it.

use std::time::{Duration, Instant};

use anyhow::Context;
use ethhook_domain::Cursor;
use ethhook_ingest::{ChainConfig, Options};
use ethhook_streams::Streams;

use crate::config::{Config, Inputs, Invalid};
use crate::logging;

/// How long to keep retrying while Redis is unreachable.
const PATIENCE: Duration = Duration::from_secs(30);
const TRY_AGAIN: Duration = Duration::from_millis(250);

/// One chain, as configured for the ingestor.
pub(crate) struct Target {
    pub(crate) chain: ChainConfig,
    pub(crate) options: Options,
    pub(crate) streams: Streams,
}

impl Target {
    /// Reads the configuration and starts logging.
    ///
    /// # Errors
    /// [`Invalid`], or if there is no such chain.
    pub(crate) fn load(inputs: &Inputs, chain: &str) -> anyhow::Result<Self> {
        let mut config = Config::load(inputs)?;
        let streams = Streams::new(config.redis.clone()).map_err(Invalid::from)?;
        logging::start(&config.logging)?;
        Ok(Self { chain: config.take_chain(chain)?, options: config.service.options, streams })
    }

    pub(crate) fn id(&self) -> u64 {
        self.chain.profile.chain_id
    }

    pub(crate) fn name(&self) -> &str {
        &self.chain.profile.name
    }

    /// The stream's cursor.
    pub(crate) async fn cursor(&self) -> anyhow::Result<Cursor> {
        let cursor = self.streams.cursor(self.id()).await?;
        cursor.with_context(|| {
            format!("Redis has no cursor of {}: it was never ingested, or reset", self.name())
        })
    }
}

/// Retries `act` for a while if `may_pass` is true of its error.
pub(crate) async fn patiently<T, E>(
    mut act: impl AsyncFnMut() -> Result<T, E>,
    may_pass: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let started = Instant::now();
    loop {
        match act().await {
            Err(error) if may_pass(&error) && started.elapsed() < PATIENCE => {
                tokio::time::sleep(TRY_AGAIN).await;
            }
            result => return result,
        }
    }
}
