//! The command line.

mod examples;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use alloy_primitives::{Address, B256};
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use ethhook_domain::Filter;

use crate::config::{address, topic};
use crate::operator::skip::To;
use crate::place::Place;
use crate::{Exit, tail};

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
    /// TOML file to read [default: ethhook.toml, if there is one].
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,
    /// File of KEY=value lines to read [default: .env, if there is one].
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) env_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Ingests every configured chain until it is told to stop.
    #[command(after_help = examples::INGEST)]
    Ingest {
        /// Print a line a second for each chain.
        #[arg(long)]
        progress: bool,
    },
    /// Serves simulated chains, or recorded blocks, as a node would.
    #[command(after_help = examples::SIMULATE)]
    Simulate(Simulate),
    /// Prints the configuration, secrets redacted, or everything that is wrong with it.
    #[command(after_help = examples::CHECK_CONFIG)]
    CheckConfig {
        /// Print every key with its default instead, as .env.example has them.
        #[arg(long)]
        example: bool,
    },
    /// Asks the service on this host whether it is alive: exit 0 if it is, else 1.
    #[command(after_help = examples::HEALTHCHECK)]
    Healthcheck {
        /// Ask whether every chain is at its head instead.
        #[arg(long)]
        ready: bool,
    },
    /// Shows how the service and each chain are, what is wrong and what to do about it.
    ///
    /// Asks the service on this host; where none answers, shows what Redis holds. Exits with 1 if
    /// something is wrong.
    #[command(after_help = examples::STATUS)]
    Status {
        /// One line of JSON, as /status.json has it.
        #[arg(long)]
        json: bool,
        /// Refresh every two seconds until Ctrl-C.
        #[arg(long)]
        watch: bool,
    },
    /// Prints events as JSON lines as they land, decoded where their ABI is known.
    #[command(after_help = examples::TAIL)]
    Tail(TailOptions),
    /// Lists, makes and tidies up the consumer groups of the live streams.
    Groups {
        #[command(subcommand)]
        command: GroupsCommand,
    },
    /// Prints completions for a shell.
    #[command(after_help = examples::COMPLETIONS)]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Compares the stream with the chain and lists every difference.
    ///
    /// Fetches and checks the blocks as the ingestor does; changes nothing; the ingestor may run.
    #[command(after_help = examples::VERIFY)]
    Verify {
        /// The chain.
        #[arg(long, value_name = "NAME")]
        chain: String,
        /// First block; else the first that the stream keeps.
        #[arg(long, value_name = "N")]
        from: Option<u64>,
        /// Last block; else the newest final one.
        #[arg(long, value_name = "N")]
        to: Option<u64>,
    },
    /// Fetches a final range of the chain again, checks it, and writes it to a stream of its own.
    ///
    /// For a consumer that starts anew, or a contract added late. Run it again to go on after a stop,
    /// or with a higher --to; what the stream holds already is not written twice. A live stream is
    /// mended by `rewind`, never by this. Nothing trims the stream: delete it, and replay:{STREAM}
    /// beside it, once it is read.
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
        /// Name of the stream.
        #[arg(long, value_name = "STREAM")]
        into: String,
        #[command(flatten)]
        selection: Selection,
    },
    /// Takes back every event above a block, in order; the ingestor then publishes them anew.
    ///
    /// The way to mend a live stream. The ingestor must be stopped. Nothing final is taken back.
    #[command(after_help = examples::REWIND)]
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
    #[command(after_help = examples::SKIP)]
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
    #[command(after_help = examples::CLEAR_ALARM)]
    ClearAlarm {
        /// The chain.
        #[arg(long, value_name = "NAME")]
        chain: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Deletes all that Redis holds of a chain, after saying what and asking.
    #[command(after_help = examples::RESET)]
    Reset {
        /// The chain.
        #[arg(long, value_name = "NAME")]
        chain: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

/// What to print.
#[derive(Debug, Args)]
pub(crate) struct TailOptions {
    /// Only this chain; else every configured one, or all known ones if none is.
    #[arg(long, value_name = "NAME")]
    chain: Option<String>,
    /// $: only what lands from now on; 0: all that is kept; a block, whose first event comes first;
    /// an entry ID to start behind; or a time, as 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "PLACE", default_value = "$")]
    from: Place,
    /// Read as a consumer of this group, from where it stands: what is printed is acknowledged.
    #[arg(long, value_name = "NAME", conflicts_with = "from")]
    group: Option<String>,
    /// Name of that consumer. Two readers must not share one.
    #[arg(long, value_name = "NAME", default_value = "ethhook-tail", requires = "group")]
    consumer: String,
    #[command(flatten)]
    selection: Selection,
    /// Only events of this name, or with this signature, as 'Deposit(address,uint256)'; give it
    /// again for another.
    #[arg(long = "event", value_name = "NAME")]
    events: Vec<String>,
    /// File with the ABI of a contract, beside the built-in ones of ERC-20, ERC-721 and ERC-1155; give
    /// it again for another.
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
    /// Lists the groups, how far each is behind, and its consumers.
    #[command(after_help = examples::GROUPS_LIST)]
    List {
        /// Only this chain; else every configured one, or all known ones if none is.
        #[arg(long, value_name = "NAME")]
        chain: Option<String>,
        /// A line of JSON for each group.
        #[arg(long)]
        json: bool,
    },
    /// Makes a group that begins with a block, at a time, or with what comes next.
    #[command(after_help = examples::GROUPS_CREATE)]
    Create {
        /// The chain.
        #[arg(long, value_name = "NAME")]
        chain: String,
        /// The group's name.
        #[arg(long, value_name = "NAME", value_parser = group_name)]
        group: String,
        /// $: what lands from now on; 0: all that is kept; a block; an entry ID to start behind; or
        /// a time, as 2026-01-31T12:00:00Z.
        #[arg(long, value_name = "PLACE", default_value = "$")]
        from: Place,
    },
    /// Removes the consumers of a group that are gone and hold nothing.
    ///
    /// One that holds entries is named and stays: with it they would be lost.
    #[command(after_help = examples::GROUPS_PRUNE)]
    Prune {
        /// The chain.
        #[arg(long, value_name = "NAME")]
        chain: String,
        /// The group's name.
        #[arg(long, value_name = "NAME")]
        group: String,
        /// Only consumers that have not tried to read for so many minutes.
        #[arg(long = "idle-minutes", value_name = "MINUTES", default_value = "60",
              value_parser = minutes)]
        idle: Duration,
    },
    /// Deletes a group, after saying what it holds.
    ///
    /// What waits for it is forgotten: retention keeps nothing for it any more.
    #[command(after_help = examples::GROUPS_DELETE)]
    Delete {
        /// The chain.
        #[arg(long, value_name = "NAME")]
        chain: String,
        /// The group's name.
        #[arg(long, value_name = "NAME")]
        group: String,
        /// Do not ask.
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

/// Which events are meant, where not all.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// Only of this contract; give it again for another.
    #[arg(long = "contract", value_name = "ADDRESS", value_parser = address)]
    pub(crate) contracts: Vec<Address>,
    /// Only with this first topic; give it again for another.
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
    // The reader may have closed the pipe, as `head` does.
    std::io::stdout().write_all(&text).ok();
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
