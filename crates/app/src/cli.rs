//! The command line.

mod examples;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use alloy_primitives::{Address, B256};
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use ethhook_domain::Filter;

use crate::config::{address, topic};
use crate::operator::skip::To;
use crate::start_at::StartAt;
use crate::{Exit, output, tail};

/// Self-hosted, multi-chain EVM event ingestor: every log, verified, in order, exactly once, in
/// Redis Streams.
#[derive(Debug, Parser)]
#[command(name = "ethhook", version, after_help = examples::PROGRAM, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) files: Files,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The files of the configuration.
#[derive(Debug, Args)]
pub(crate) struct Files {
    /// TOML file to read [default: ethhook.toml, if it exists].
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,
    /// File of KEY=value lines to read [default: .env, if it exists].
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) env_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Ingests every configured chain until stopped.
    #[command(after_help = examples::INGEST)]
    Ingest {
        /// Print a line per second for each chain.
        #[arg(long)]
        progress: bool,
    },
    /// Serves simulated chains, or recorded blocks, as a node would.
    #[command(after_help = examples::SIMULATE)]
    Simulate(Simulate),
    /// Prints the configuration with secrets redacted, or every error in it.
    #[command(after_help = examples::CHECK_CONFIG)]
    CheckConfig {
        /// Print every key with its default instead, in the form of .env.example.
        #[arg(long)]
        example: bool,
    },
    /// Checks whether the service on this host is alive: exits with 0 if it is, else with 1.
    #[command(after_help = examples::HEALTHCHECK)]
    Healthcheck {
        /// Check instead whether it is ready: every chain at its head.
        #[arg(long)]
        ready: bool,
    },
    /// Shows the state of the service and each chain, what is wrong and what to do about it.
    ///
    /// Asks the service on this host; if none answers, shows what is in Redis. Exits with 1 if
    /// something is wrong.
    #[command(after_help = examples::STATUS)]
    Status {
        /// Print one line of JSON, the same as /status.json.
        #[arg(long)]
        json: bool,
        /// Refresh every two seconds until Ctrl-C.
        #[arg(long)]
        watch: bool,
    },
    /// Prints events as JSON lines as they arrive, decoded if their ABI is known.
    #[command(after_help = examples::TAIL)]
    Tail(TailOptions),
    /// Lists, creates, prunes and deletes consumer groups of the live streams.
    Groups {
        #[command(subcommand)]
        command: GroupsCommand,
    },
    /// Prints shell completions.
    #[command(after_help = examples::COMPLETIONS)]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Compares the stream with the chain and lists every difference.
    ///
    /// Fetches and checks the blocks as the ingestor does. Changes nothing; the ingestor may keep
    /// running.
    #[command(after_help = examples::VERIFY)]
    Verify {
        /// The chain.
        #[arg(long, value_name = "NAME")]
        chain: String,
        /// First block [default: the first one retained in the stream].
        #[arg(long, value_name = "N")]
        from: Option<u64>,
        /// Last block [default: the newest final one, or if none is final yet, the newest one].
        #[arg(long, value_name = "N")]
        to: Option<u64>,
    },
    /// Fetches a range of final blocks again, checks them and writes them to a separate stream.
    ///
    /// For a consumer that starts over, or a contract added later. To continue after a stop, or up
    /// to a higher --to, run it again: no block is written twice. To repair a live stream, use
    /// `rewind` instead. Nothing trims the stream: once it is read, delete it and the key
    /// replay:{STREAM}.
    #[command(after_help = examples::REPLAY)]
    Replay {
        /// The chain.
        #[arg(long, value_name = "NAME")]
        chain: String,
        /// First block.
        #[arg(long, value_name = "N")]
        from: u64,
        /// Last block; it must be final.
        #[arg(long, value_name = "N")]
        to: u64,
        /// Name of the stream to write.
        #[arg(long, value_name = "STREAM")]
        into: String,
        #[command(flatten)]
        selection: Selection,
    },
    /// Takes back every event above a block, in order; the ingestor then publishes the blocks again.
    ///
    /// Repairs a live stream. The ingestor must be stopped. Final blocks cannot be taken back.
    #[command(after_help = examples::REWIND)]
    Rewind {
        /// The chain.
        #[arg(long, value_name = "NAME")]
        chain: String,
        /// The highest block to keep.
        #[arg(long, value_name = "N")]
        to: u64,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
    /// Skips blocks: they are never published, and a `gap` marker records it.
    ///
    /// For a block that no node has any more. The ingestor must be stopped. The last skipped block
    /// counts as final: choose a final one, or `latest` and accept that a reorg of it stops the
    /// chain with an alarm.
    #[command(after_help = examples::SKIP)]
    Skip {
        /// The chain.
        #[arg(long, value_name = "NAME")]
        chain: String,
        /// The last block to skip; latest: the head minus the chain's confirmations.
        #[arg(long, value_name = "latest|N")]
        to: To,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
    /// Clears the alarm raised by a reorg below the finalized block.
    ///
    /// Takes back the orphaned blocks, even finalized ones, as far as the stream retains them; if
    /// the fork point is older, then skips to the node's finalized block. The ingestor may keep
    /// running: it is waiting for this.
    #[command(after_help = examples::CLEAR_ALARM)]
    ClearAlarm {
        /// The chain.
        #[arg(long, value_name = "NAME")]
        chain: String,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
    /// Shows all data of a chain in Redis and deletes it after confirmation.
    #[command(after_help = examples::RESET)]
    Reset {
        /// The chain.
        #[arg(long, value_name = "NAME")]
        chain: String,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
}

/// What to print.
#[derive(Debug, Args)]
pub(crate) struct TailOptions {
    /// Only this chain [default: every configured one, or all known ones if none is].
    #[arg(long, value_name = "NAME")]
    chain: Option<String>,
    /// $: only new events; 0: everything retained; a block number; an entry ID to start after; or a
    /// time, such as 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "PLACE", default_value = "$")]
    from: StartAt,
    /// Read as a consumer of this group, from its position; all events that are read are acknowledged, also those that are
    /// not selected.
    #[arg(long, value_name = "NAME", conflicts_with = "from")]
    group: Option<String>,
    /// Name of that consumer. Two readers must not share a name.
    #[arg(long, value_name = "NAME", default_value = "ethhook-tail", requires = "group")]
    consumer: String,
    #[command(flatten)]
    selection: Selection,
    /// Only events with this name or signature, such as 'Deposit(address,uint256)'; may be repeated.
    #[arg(long = "event", value_name = "NAME")]
    events: Vec<String>,
    /// File with a contract's ABI, in addition to the built-in ERC-20, ERC-721 and ERC-1155; may be
    /// repeated.
    #[arg(long = "abi", value_name = "FILE")]
    abis: Vec<PathBuf>,
}

impl TailOptions {
    /// Reads the ABIs.
    ///
    /// # Errors
    /// If a file is not an ABI, or an event's name is not known.
    pub(crate) fn read(self) -> anyhow::Result<tail::Options> {
        let filter = self.selection.filter().unwrap_or_default();
        let wanted = tail::Wanted::new(&self.abis, filter, &self.events)?;
        let group = self.group.map(|group| (group, self.consumer));
        Ok(tail::Options { chain: self.chain, from: self.from, group, wanted })
    }
}

/// What to do with groups.
#[derive(Debug, Subcommand)]
pub(crate) enum GroupsCommand {
    /// Lists the groups, with their lag and consumers.
    #[command(after_help = examples::GROUPS_LIST)]
    List {
        /// Only this chain [default: every configured one, or all known ones if none is].
        #[arg(long, value_name = "NAME")]
        chain: Option<String>,
        /// Print a line of JSON for each group.
        #[arg(long)]
        json: bool,
    },
    /// Creates a group that starts at a block, at a time, or with the next event.
    #[command(after_help = examples::GROUPS_CREATE)]
    Create {
        /// The chain.
        #[arg(long, value_name = "NAME")]
        chain: String,
        /// The group's name.
        #[arg(long, value_name = "NAME", value_parser = group_name)]
        group: String,
        /// $: only new events; 0: everything retained; a block number; an entry ID to start after;
        /// or a time, such as 2026-01-31T12:00:00Z.
        #[arg(long, value_name = "PLACE", default_value = "$")]
        from: StartAt,
    },
    /// Removes idle consumers of a group that have no pending entries.
    ///
    /// An idle one with pending entries is listed and kept: removing it would lose them.
    #[command(after_help = examples::GROUPS_PRUNE)]
    Prune {
        /// The chain.
        #[arg(long, value_name = "NAME")]
        chain: String,
        /// The group's name.
        #[arg(long, value_name = "NAME")]
        group: String,
        /// Only consumers that have not tried to read for this many minutes.
        #[arg(long = "idle-minutes", value_name = "MINUTES", default_value = "60",
              value_parser = minutes)]
        idle: Duration,
    },
    /// Shows a group and deletes it after confirmation.
    ///
    /// Its position and pending entries are lost, and retention no longer keeps entries for it.
    #[command(after_help = examples::GROUPS_DELETE)]
    Delete {
        /// The chain.
        #[arg(long, value_name = "NAME")]
        chain: String,
        /// The group's name.
        #[arg(long, value_name = "NAME")]
        group: String,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
}

fn group_name(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err("must not be empty".to_owned()) } else { Ok(text.to_owned()) }
}

fn minutes(text: &str) -> Result<Duration, String> {
    let minutes = text.parse().ok().filter(|minutes| *minutes <= 1_000_000);
    minutes
        .map(|minutes: u64| Duration::from_secs(60 * minutes))
        .ok_or_else(|| "must be a whole number up to 1000000".to_owned())
}

/// Selects some of the events.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// Only events of this contract; may be repeated.
    #[arg(long = "contract", value_name = "ADDRESS", value_parser = address)]
    pub(crate) contracts: Vec<Address>,
    /// Only events with this first topic; may be repeated.
    #[arg(long = "topic", value_name = "HASH", value_parser = topic)]
    pub(crate) topics: Vec<B256>,
}

impl Selection {
    /// None if nothing was selected.
    pub(crate) fn filter(&self) -> Option<Filter> {
        let filter = Filter {
            contracts: self.contracts.iter().copied().collect(),
            topics: self.topics.iter().copied().collect(),
        };
        (filter != Filter::default()).then_some(filter)
    }
}

/// What to serve.
#[derive(Debug, Args)]
pub(crate) struct Simulate {
    /// Address to listen on; port 0 takes any free one.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8545")]
    pub(crate) listen: SocketAddr,
    /// Chain ids, separated by commas; each is served at the path of its id, such as /42161.
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
    /// Blocks between two reorgs; 0: no reorgs.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) reorg_every: u64,
    /// Maximum depth of a reorg.
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u64).range(1..=64))]
    pub(crate) reorg_depth: u64,
    /// The same seed gives the same chain.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Answer 1 call in 20, and send 1 head in 20, wrongly, late or not at all, based on this seed.
    #[arg(long, value_name = "SEED")]
    pub(crate) faults: Option<u64>,
    /// Time of block 0 in Unix seconds, which determines the height [default: now].
    #[arg(long, value_name = "UNIX_SECONDS")]
    pub(crate) genesis_time: Option<u64>,
    /// Serve the recorded blocks in this folder instead.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["chains", "genesis_time"])]
    pub(crate) recorded: Option<PathBuf>,
}

/// Limited to the number of events in the largest real blocks.
fn events(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|events| *events <= 50_000)
        .ok_or_else(|| "must be a whole number up to 50000".to_owned())
}

/// Writes the completions of every command to standard output.
pub(crate) fn completions(shell: Shell) -> Exit {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ethhook", &mut text);
    output::text(&String::from_utf8_lossy(&text));
    Exit::Done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
