//! The fault campaign from the command line; see `scripts/chaos.sh`.
#![allow(clippy::print_stdout, reason = "the tables are the product")]

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use ethhook_testkit::campaign::{self, PARTS, Part, Plan, Record, Share, What};

/// The tables made from results are between these lines of the page.
const BEGIN: &str = "<!-- results: made by scripts/chaos.sh --render -->\n";
const END: &str = "<!-- end of results -->\n";

/// Injects faults and compares the streams with the chain after each round.
#[derive(Debug, Parser)]
struct Arguments {
    /// The binary to test, built with the feature `fail-points`.
    #[arg(long, required_unless_present_any = ["render", "list"])]
    program: Option<PathBuf>,
    /// Repeats the schedule of another run [default: random].
    #[arg(long)]
    seed: Option<u64>,
    /// How long to run with all kinds of faults, mixed.
    #[arg(long, default_value_t = 10.0, conflicts_with = "part")]
    minutes: f64,
    /// Only this kind of fault, repeatedly; --list names them.
    #[arg(long)]
    part: Option<String>,
    /// How often [default: as in a full run].
    #[arg(long, requires = "part")]
    count: Option<u64>,
    /// Lists the parts and their counts in a full run.
    #[arg(long)]
    list: bool,
    /// Adds the results to this file, as a line of JSON.
    #[arg(long)]
    append: Option<PathBuf>,
    /// Date and machine, recorded with the results.
    #[arg(long, default_value = "")]
    about: String,
    /// Prints the tables of the results in this file.
    #[arg(long)]
    render: Option<PathBuf>,
    /// Writes the tables into this page instead.
    #[arg(long, requires = "render")]
    into: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.list {
        for part in PARTS {
            println!("{:<16} {:>4}  {}", part.name, part.count, part.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(results) = &arguments.render {
        render(results, arguments.into.as_deref())?;
        return Ok(ExitCode::SUCCESS);
    }
    run(&arguments).await
}

async fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let what = match &arguments.part {
        None => {
            What::Mixed(Duration::try_from_secs_f64(arguments.minutes * 60.0).context("--minutes")?)
        }
        Some(name) => {
            let part = Part::named(name).context("no such part; see --list")?;
            What::Part(part, arguments.count.unwrap_or(part.count))
        }
    };
    let program = arguments.program.as_deref().unwrap_or(Path::new("ethhook"));
    let plan = Plan {
        program: program.canonicalize().context("--program")?,
        seed: arguments.seed.unwrap_or_else(rand::random),
        what,
        share: Share::ALL,
        fail_points: true,
        print_actions: true,
    };
    println!("seed {}", plan.seed);
    let tally = campaign::run(&plan).await;
    println!("{tally}");
    let sound = tally.failure.is_empty();
    if let Some(path) = &arguments.append {
        let wanted = match what {
            What::Mixed(_) => 0,
            What::Part(_, count) => count,
        };
        let record =
            Record { about: arguments.about.clone(), part: arguments.part.clone(), wanted, tally };
        let mut file = File::options().create(true).append(true).open(path)?;
        writeln!(file, "{}", serde_json::to_string(&record)?)?;
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn render(results: &Path, into: Option<&Path>) -> anyhow::Result<()> {
    let lines = std::fs::read_to_string(results)?;
    let records: Vec<Record> =
        lines.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("--render")?;
    let tables = campaign::render(&records);
    let Some(page) = into else {
        println!("{tables}");
        return Ok(());
    };
    let text = std::fs::read_to_string(page)?;
    let (before, rest) = text
        .split_once(BEGIN)
        .context("--into: the page has no line for the start of the results")?;
    let (_, after) =
        rest.split_once(END).context("--into: the page has no line for the end of the results")?;
    Ok(std::fs::write(page, format!("{before}{BEGIN}\n{tables}\n{END}{after}"))?)
}
