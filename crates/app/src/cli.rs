//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::operator::skip::To;

const EXAMPLES: &str = "\
Examples:
  Ingest Ethereum into the Redis on this machine:
    ETHEREUM_WS_URL=wss://... ethhook ingest --progress
  Try it without a node:
    ethhook simulate --chains 1,10
    ETHEREUM_WS_URL=ws://127.0.0.1:8545/1 ethhook ingest --progress
  See what is configured, and where each value came from:
    ethhook check-config
  Watch the events of one chain:
    ethhook tail --chain ethereum

Configuration: environment, then .env, then ethhook.toml, then defaults; `ethhook check-config
--example` prints every key.

Exit codes: 0 done; 1 failed, trying again may help; 2 wrong command line; 78 wrong configuration.";

const STATUS: &str = "\
Examples:
  ethhook status
  ethhook status --watch
  ethhook status --json | jq '.chains[] | {name, lag_blocks}'
  docker compose exec ethhook ethhook status

Exit codes: 0 all is well; 1 something is wrong, or no service answers; 78 wrong configuration.";

/// Self-hosted, multi-chain EVM event ingestor: every log, verified, in order, exactly once, in
/// Redis Streams.
#[derive(Debug, Parser)]
#[command(name = "ethhook", version, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) files: Files,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The files of the configuration.
#[derive(Debug, Args)]
pub(crate) struct Files {
    /// TOML file to read; else ethhook.toml, if there is one.
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,
    /// File of KEY=value lines to read; else .env, if there is one.
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) env_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Ingests every configured chain until it is told to stop.
    Ingest {
        /// Print a line a second for each chain.
        #[arg(long)]
        progress: bool,
    },
    /// Serves simulated chains, or recorded blocks, as a node would.
    Simulate(Simulate),
    /// Prints the configuration, secrets redacted, or everything that is wrong with it.
    CheckConfig {
        /// Print every key with its default instead, as .env.example has them.
        #[arg(long)]
        example: bool,
    },
    /// Asks the service on this host whether it is alive: exit 0 if it is, else 1.
    Healthcheck {
        /// Ask whether every chain is at its head instead.
        #[arg(long)]
        ready: bool,
    },
    /// Shows how the service and each chain are, what is wrong and what to do about it.
    ///
    /// Asks the service on this host; where none answers, shows what Redis holds. Exits with 1 if
    /// something is wrong.
    #[command(after_help = STATUS)]
    Status {
        /// One line of JSON, as /status.json has it.
        #[arg(long)]
        json: bool,
        /// Every two seconds, until Ctrl-C.
        #[arg(long)]
        watch: bool,
    },
    /// Prints events as JSON lines as they land.
    Tail {
        /// Only this chain; else every configured one, or all known ones if none is.
        #[arg(long, value_name = "NAME")]
        chain: Option<String>,
        /// Entry ID to start behind; $: only what lands from now on; 0: all that is kept.
        #[arg(long, value_name = "ID", default_value = "$", value_parser = entry_id)]
        from: String,
    },
    /// Takes back every event above a block, in order; the ingestor then publishes them anew.
    ///
    /// The way to mend a live stream. The ingestor must be stopped. Nothing final is taken back.
    Rewind {
        /// The chain.
        #[arg(long, value_name = "NAME")]
        chain: String,
        /// The highest block that stays.
        #[arg(long, value_name = "N")]
        to: u64,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Skips blocks: they are never published, and a `gap` marker says so.
    ///
    /// The way past a block that no node can give any more. The ingestor must be stopped. The block
    /// skipped to counts as final: choose one that is, or `latest` and accept that a reorg of it
    /// stops the chain with an alarm.
    Skip {
        /// The chain.
        #[arg(long, value_name = "NAME")]
        chain: String,
        /// The last block to skip; latest: the head, less the chain's confirmations.
        #[arg(long, value_name = "latest|N")]
        to: To,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Clears the alarm that a reorg below the finalized block latched.
    ///
    /// Takes back what the node's chain orphaned, also below the finalized block, as far as the
    /// stream still holds it; where it no longer does, skips to the node's finalized block. The
    /// ingestor may run: it stands still.
    ClearAlarm {
        /// The chain.
        #[arg(long, value_name = "NAME")]
        chain: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Deletes all that Redis holds of a chain, after saying what and asking.
    Reset {
        /// The chain.
        #[arg(long, value_name = "NAME")]
        chain: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

/// What to serve.
#[derive(Debug, Args)]
pub(crate) struct Simulate {
    /// Address to listen on; port 0 takes any free one.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8545")]
    pub(crate) listen: SocketAddr,
    /// Chain ids, with commas between; each is served under its id: /42161.
    #[arg(long, value_name = "IDS", value_delimiter = ',', default_value = "1,42161,10,8453",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) chains: Vec<u64>,
    /// Time between blocks.
    #[arg(long, value_name = "MS", default_value_t = 1000,
          value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub(crate) block_time_ms: u64,
    /// Events in each block.
    #[arg(long, value_name = "N", default_value_t = 50,
          value_parser = events)]
    pub(crate) events_per_block: usize,
    /// A reorg every so many blocks; 0: none.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) reorg_every: u64,
    /// How deep reorgs go at most.
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u64).range(1..=64))]
    pub(crate) reorg_depth: u64,
    /// Same seed, same chain.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Answer one call in twenty wrongly, late or not at all, and one head alike: by this seed.
    #[arg(long, value_name = "SEED")]
    pub(crate) faults: Option<u64>,
    /// Time of block 0 in unix seconds, from which the height follows; else now.
    #[arg(long, value_name = "UNIX_SECONDS")]
    pub(crate) genesis_time: Option<u64>,
    /// Serve the recorded blocks of this folder instead.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["chains", "genesis_time"])]
    pub(crate) recorded: Option<PathBuf>,
}

/// As many as the largest blocks have.
fn events(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|events| *events <= 50_000)
        .ok_or_else(|| "must be a whole number up to 50000".to_owned())
}

/// `$`, `0`, or an entry ID as Redis has them: `<ms>` or `<ms>-<seq>`.
fn entry_id(text: &str) -> Result<String, String> {
    let number = |part: &str| part.parse::<u64>().is_ok();
    let fits = match text.split_once('-') {
        Some((ms, seq)) => number(ms) && number(seq),
        None => text == "$" || number(text),
    };
    fits.then(|| text.to_owned())
        .ok_or_else(|| "must be $, 0 or an entry ID, as 1700000000000-0".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn entry_ids_are_told_from_other_texts() {
        for good in ["$", "0", "0-0", "1700000000000", "1700000000000-12"] {
            assert_eq!(entry_id(good).as_deref(), Ok(good));
        }
        for bad in ["", "-", "1-", "-1", "x", "1-x", "+", ">"] {
            assert!(entry_id(bad).is_err(), "{bad}");
        }
    }
}
