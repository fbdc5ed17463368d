//! The command line.

use clap::Parser;

/// Measures EthHook's cost and latency, compared with the limits of this machine.
///
/// Starts its own Redis and node unless --redis-url or --node-url is given.
#[derive(Debug, Clone, Parser)]
#[command(name = "bench.sh")]
pub(crate) struct Options {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
    /// Run less, for a first look; the figures vary more.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only these groups of rows, separated by commas.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub(crate) rows: Vec<String>,
    /// Use this running Redis; the keys of chains 990000001 to 990000064 and `bench:*` are written
    /// and deleted.
    #[arg(long, value_name = "URL")]
    pub(crate) redis_url: Option<String>,
    /// Catch up from this node (ws:// or http://) instead; only measures catching up.
    #[arg(long, value_name = "URL", requires = "node_blocks")]
    pub(crate) node_url: Option<String>,
    /// The blocks to fetch from --node-url, such as 21000000-21000999.
    #[arg(long, value_name = "FIRST-LAST", value_parser = blocks)]
    pub(crate) node_blocks: Option<(u64, u64)>,
    /// Measure nothing: keep node and Redis running for another program, and count the entries of
    /// the streams it writes.
    #[arg(long)]
    pub(crate) peer: bool,
}

fn blocks(text: &str) -> Result<(u64, u64), String> {
    let ends = text.split_once('-').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    ends.filter(|(first, last)| first <= last).ok_or_else(|| "expected FIRST-LAST".into())
}
