//! Cost and latency of the service, compared with the limits of this machine: `./scripts/bench.sh`.
//! The bench starts its own node and Redis. The node serves recorded blocks (or else simulated ones)
//! as a chain of any length: their number, parent and time are rewritten and the hashes recomputed,
//! so that every check still passes.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the table is the product")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of events and blocks, far below the types' ends"
)]

mod bytes;
mod catch_up;
mod latency;
mod live;
mod node;
mod options;
mod peer;
mod redis_side;
mod report;
mod several;
mod subject;

use std::future::Future;
use std::pin::Pin;

use anyhow::{Result, ensure};
use clap::Parser as _;
use node::template::Recorded;
use options::Options;
use report::Row;

/// Shared by all groups of rows.
struct Bench {
    options: Options,
    recorded: Recorded,
}

type Rows<'a> = Pin<Box<dyn Future<Output = Result<Vec<Row>>> + 'a>>;
type Group = (&'static str, for<'a> fn(&'a Bench) -> Rows<'a>);

/// The groups of rows, in the order of the table.
const GROUPS: [Group; 7] = [
    ("catch-up", |bench| Box::pin(catch_up::rows(bench))),
    ("latency", |bench| Box::pin(latency::rows(bench))),
    ("live-cost", |bench| Box::pin(latency::cost_rows(bench))),
    ("bytes", |bench| Box::pin(bytes::rows(bench))),
    ("chains", |bench| Box::pin(several::rows(bench))),
    ("neighbour", |bench| Box::pin(several::neighbour_rows(bench))),
    ("idle", |bench| Box::pin(several::idle_rows(bench))),
];

#[tokio::main]
async fn main() -> Result<()> {
    let mut options = Options::parse();
    let known = GROUPS.map(|(name, _)| name);
    if options.node_url.is_some() && options.rows.is_empty() {
        options.rows.push("catch-up".into());
    }
    let unknown = options.rows.iter().find(|row| !known.contains(&row.as_str()));
    ensure!(
        unknown.is_none(),
        "--rows {}: no such group; known are {}",
        unknown.cloned().unwrap_or_default(),
        known.join(",")
    );
    let recorded = node::template::mainnet().await?;
    let machine = machine(recorded.is_real);
    let bench = Bench { options, recorded };
    if bench.options.peer {
        return peer::serve(&bench).await;
    }
    if !bench.options.json {
        println!("{machine}\n\n{}", report::HEADING);
    }
    let wanted = &bench.options.rows;
    let mut all = Vec::new();
    for (name, rows) in GROUPS {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        let rows = rows(&bench).await?;
        if !bench.options.json {
            report::print(&rows);
        }
        all.extend(rows);
    }
    if bench.options.json {
        println!("{:#}", report::to_json(&machine, &all));
    }
    Ok(())
}

/// The machine and input that the figures depend on.
fn machine(is_real: bool) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or("?").to_owned();
    let blocks = if is_real { "recorded Ethereum blocks" } else { "simulated blocks" };
    format!(
        "{cores} cores of {}, shared by node, Redis, reader and ingestor; load before: {load}; {blocks}",
        model.unwrap_or("unknown make").trim()
    )
}
