//! The fault campaign from the command line: `./scripts/chaos.sh --seed N --minutes M`.
#![allow(clippy::print_stdout, reason = "the table is the product")]

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use ethhook_testkit::campaign::{self, Plan};

/// Causes faults for a while and compares the streams with the chain after each round of them.
#[derive(Debug, Parser)]
struct Arguments {
    /// The binary to try, built with the feature `fail-points`.
    #[arg(long)]
    program: PathBuf,
    /// Repeats the schedule of another run. Not given: a new one.
    #[arg(long)]
    seed: Option<u64>,
    /// How long to go on.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Adds the results to this file, as a line of JSON.
    #[arg(long)]
    append: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let plan = Plan {
        program: arguments.program.canonicalize().context("--program")?,
        seed: arguments.seed.unwrap_or_else(rand::random),
        duration: Duration::try_from_secs_f64(arguments.minutes * 60.0).context("--minutes")?,
        fail_points: true,
        print_actions: true,
    };
    println!("seed {}", plan.seed);
    let tally = campaign::run(&plan).await;
    println!("{tally}");
    if let Some(path) = arguments.append {
        let mut file = File::options().create(true).append(true).open(path)?;
        writeln!(file, "{}", serde_json::to_string(&tally)?)?;
    }
    Ok(if tally.failure.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
