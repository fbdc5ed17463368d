//! The program `ethhook`: reads environment, files and arguments, and connects the crates.
//!
//! It is a library only to give tests and fuzz targets access; `main.rs` is the binary.

mod abi;
mod bar;
mod check_config;
mod cli;
mod config;
mod groups;
mod health;
mod healthcheck;
mod http;
mod ingest;
mod logging;
mod node;
mod operator;
mod output;
mod page;
mod process_metrics;
mod progress;
mod replay;
mod reset;
mod signals;
mod simulate;
mod start_at;
mod status;
mod tail;
mod target;
mod verify;

use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use config::{Config, Inputs, Invalid, Problem, TextFile};
use ethhook_domain::Secret;
use operator::Order;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Success.
    Done,
    /// Failed; trying again may help.
    Failed,
    /// The stream differs from the chain.
    Differs,
    /// The configuration is wrong (`EX_CONFIG` of `sysexits.h`): trying again does not help.
    BadConfiguration,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Differs => 3,
            Exit::BadConfiguration => 78,
        })
    }
}

/// Carries out the command line.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli).and_then(|exit| output::end().map(|()| exit)) {
        Ok(exit) => exit.into(),
        Err(error) => match error.downcast_ref::<Invalid>() {
            Some(invalid) => {
                tell(&invalid.problems);
                Exit::BadConfiguration.into()
            }
            None => {
                eprintln!("ethhook: {error:#}");
                Exit::Failed.into()
            }
        },
    }
}

fn run(cli: Cli) -> anyhow::Result<Exit> {
    let files = cli.files;
    let inputs = || Inputs::of_process(files.config.as_deref(), files.env_file.as_deref());
    match cli.command {
        Command::CheckConfig { example: true } => Ok(check_config::example()),
        Command::CheckConfig { example: false } => Ok(check_config::run(&inputs()?)?),
        Command::Ingest { progress } => in_runtime(ingest::run(&inputs()?, progress)),
        Command::Simulate(options) => in_runtime(simulate::run(options)),
        Command::Healthcheck { ready } => in_runtime(healthcheck::run(&inputs()?, ready)),
        Command::Status { json, watch } => {
            in_runtime(status::run(&inputs()?, status::Options { json, watch }))
        }
        Command::Verify { chain, from, to } => {
            in_runtime(verify::run(&inputs()?, &chain, verify::Range { from, to }))
        }
        Command::Replay { chain, from, to, into, selection } => {
            let order = replay::Order { from, to, into, filter: selection.filter() };
            in_runtime(replay::run(&inputs()?, &chain, order))
        }
        Command::Tail(options) => in_runtime(tail::run(&inputs()?, options.read()?)),
        Command::Groups { command } => in_runtime(groups::run(&inputs()?, command)),
        Command::Completions { shell } => Ok(cli::completions(shell)),
        Command::Rewind { chain, to, yes } => {
            in_runtime(operator::rewind::run(&inputs()?, Order { chain: &chain, yes }, to))
        }
        Command::Skip { chain, to, yes } => {
            in_runtime(operator::skip::run(&inputs()?, Order { chain: &chain, yes }, to))
        }
        Command::ClearAlarm { chain, yes } => {
            in_runtime(operator::clear_alarm::run(&inputs()?, Order { chain: &chain, yes }))
        }
        Command::Reset { chain, yes } => in_runtime(reset::run(&inputs()?, &chain, yes)),
    }
}

/// Threads that run tasks: more are of no use, and a container's limit of threads holds for them and for each health check
/// beside them.
const MAX_WORKERS: usize = 8;

/// Runs `command` on its own runtime and does not wait for that to shut down: a hanging read of
/// standard input or name lookup must not delay the exit.
fn in_runtime(command: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(cores.min(MAX_WORKERS)).enable_all().build()?;
    let exit = runtime.block_on(command);
    runtime.shutdown_background();
    exit
}

/// Reads a configuration from these texts only (and the files named by `_FILE` keys). Returns the
/// lines that `check-config` prints.
///
/// # Errors
/// All problems, a line each.
pub fn read_configuration(
    env: Vec<(String, String)>,
    env_file: Option<&str>,
    toml: Option<&str>,
) -> Result<Vec<String>, Vec<String>> {
    let file = |path: &str, text: Option<&str>| text.map(|text| TextFile::new(path, text));
    let inputs = Inputs {
        env: env.into_iter().map(|(name, value)| (name, Secret::new(value))).collect(),
        env_file: file(".env", env_file),
        toml: file("ethhook.toml", toml),
        host_name: "localhost".to_owned(),
    };
    match Config::load(&inputs) {
        Ok(config) => Ok(config.resolved.iter().map(ToString::to_string).collect()),
        Err(invalid) => Err(invalid.problems.iter().map(ToString::to_string).collect()),
    }
}

/// Prints all problems, a line each.
pub(crate) fn tell(problems: &[Problem]) {
    for problem in problems {
        eprintln!("ethhook: {problem}");
    }
}
