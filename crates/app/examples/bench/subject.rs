//! The ingestor being measured: its configuration and its cost.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ethhook_testkit::ingestor::Ingestor;

use crate::node::chain::FIRST;

/// Chain ids that no real chain has, so that a given Redis keeps its streams.
pub(crate) const FIRST_ID: u64 = 990_000_001;

/// One `ethhook ingest`; killed when dropped.
pub(crate) struct Subject {
    ingestor: Ingestor,
}

/// A chain to ingest.
pub(crate) struct Chain {
    pub(crate) id: u64,
    pub(crate) url: String,
    pub(crate) block_time: Duration,
    pub(crate) verify: &'static str,
    /// More keys of the chain, such as `fetch = "logs"`.
    pub(crate) more: String,
}

impl Chain {
    pub(crate) fn new(id: u64, url: String, block_time: Duration) -> Self {
        let more = format!("start_block = {FIRST}\n");
        Self { id, url, block_time, verify: "receipts_root", more }
    }
}

impl Subject {
    /// Starts the `ethhook` binary built with this one; `env` is its whole environment.
    pub(crate) fn start(redis_url: &str, chains: &[Chain], env: &[(&str, &str)]) -> Result<Self> {
        let here = std::env::current_exe()?;
        let program =
            here.parent().and_then(|p| p.parent()).context("no parent folder")?.join("ethhook");
        ensure!(program.exists(), "{} is not built: run ./scripts/bench.sh", program.display());
        let mut ingestor = Ingestor::new(&program, redis_url, "bench")?;
        ingestor.set("RUST_LOG", "warn");
        // So that retention removes nothing: the entries are counted, and compared with the node's logs.
        ingestor.set("STREAM_MAX_BYTES", 1_u64 << 40);
        for (name, value) in env {
            ingestor.set(name, value);
        }
        let mut toml = String::new();
        for Chain { id, url, block_time, verify, more } in chains {
            let transport = if url.starts_with("ws") { "ws_url" } else { "http_url" };
            write!(
                toml,
                "[chains.bench{id}]\nchain_id = {id}\n{transport} = \"{url}\"\n\
                 block_time_ms = {}\nfinality_depth = 64\nverify = \"{verify}\"\n{more}",
                block_time.as_millis().max(1)
            )?;
        }
        ingestor.write_toml(&toml)?;
        ingestor.start()?;
        Ok(Self { ingestor })
    }

    /// Fails with the end of its log if it exited.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.ingestor.ended()? {
            anyhow::bail!("the ingestor ended with {status}:\n{}", self.ingestor.log());
        }
        Ok(())
    }

    /// CPU time of all its threads so far (`schedstat`: nanoseconds).
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let mut nanos = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.pid()?))? {
            // The thread may have just ended.
            let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else {
                continue;
            };
            nanos += text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0u64);
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// Peak resident memory, in MB.
    pub(crate) fn peak_mb(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("no VmHWM")?;
        let kilobytes: f64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
        Ok(kilobytes * 1024.0 / 1e6)
    }

    fn pid(&self) -> Result<u32> {
        self.ingestor.pid().context("the ingestor is not running")
    }
}
