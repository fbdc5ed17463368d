//! What the service costs and how soon an event is in the stream, measured on this machine against
//! a Redis and a simulated node of its own: `./scripts/bench.sh`.
#![allow(clippy::print_stdout, reason = "the table is the product")]

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use alloy_primitives::B256;
use anyhow::{Context, ensure};
use ethhook_simulator::{Chain, ChainSpec, Node};
use ethhook_testkit::redis_server::{RedisOptions, RedisServer};
use redis::AsyncConnectionConfig;
use redis::streams::{StreamReadOptions, StreamReadReply};
use tokio::process::{Child, Command};

/// The chains of the second part, by the names that the ingestor knows them under.
const CHAINS: [(&str, u64); 4] =
    [("ETHEREUM", 1), ("ARBITRUM", 42161), ("OPTIMISM", 10), ("BASE", 8453)];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let seconds = match std::env::args().nth(1) {
        None => 200,
        Some(text) => text.parse().with_context(|| {
            format!(
                "usage: bench [SECONDS]; `{text}` is not the length of the second part in seconds"
            )
        })?,
    };
    println!("head to last entry in the stream, 200 logs a block, a block every 100 ms, loopback");
    latency(300).await?;
    println!("\nfour chains, 400 logs a block, a block every 2 s, for {seconds} s");
    cost(seconds).await
}

/// Prints how long after the node's send of a head a reader holds the last entry of its block.
async fn latency(blocks: usize) -> anyhow::Result<()> {
    const EVENTS: usize = 200;
    let chain = Chain::scheduled(spec(1, Duration::from_millis(100), EVENTS))?;
    let node = Node::bind(([127, 0, 0, 1], 0).into(), vec![chain.clone()]).await?.spawn();
    let redis = RedisServer::spawn(RedisOptions::default()).await?;
    let _ingestor = ingestor(&redis, &[("ETHEREUM_WS_URL".into(), node.ws_url(1))])?;

    let waits = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(60)));
    let client = redis::Client::open(redis.url())?;
    let mut reader = client.get_multiplexed_async_connection_with_config(&waits).await?;
    let options = StreamReadOptions::default().block(30_000).count(10_000);
    let mut after = "0".to_owned();
    let mut micros = Vec::new();
    while micros.len() < blocks + 20 {
        let reply: Option<StreamReadReply> = redis::cmd("XREAD")
            .arg(&options)
            .arg("STREAMS")
            .arg("events:1")
            .arg(&after)
            .query_async(&mut reader)
            .await?;
        let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?;
        let keys = reply.context("no entry for 30 s")?.keys;
        for entry in keys.into_iter().flat_map(|key| key.ids) {
            let last: usize = entry.get("log_index").context("log_index")?;
            if last == EVENTS - 1 {
                let hash: B256 =
                    entry.get::<String>("block_hash").context("block_hash")?.parse()?;
                micros.extend(chain.sent_at(hash).map(|sent| now.saturating_sub(sent)));
            }
            after = entry.id;
        }
    }
    let mut micros = micros.split_off(20); // the first few fill the caches
    micros.sort_unstable();
    let at = |share: f64| {
        let index = (micros.len() - 1) as f64 * share;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "within the list"
        )]
        let micros = micros[index as usize];
        micros as f64 / 1000.0
    };
    println!(
        "  p50 {:.1} ms   p99 {:.1} ms   max {:.1} ms   ({} blocks)",
        at(0.5),
        at(0.99),
        at(1.0),
        micros.len()
    );
    Ok(())
}

/// Prints requests a block, counted at the node, and resident memory.
async fn cost(seconds: u64) -> anyhow::Result<()> {
    let chains = CHAINS
        .map(|(_, id)| Chain::scheduled(spec(id, Duration::from_secs(2), 400)))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    let node = Node::bind(([127, 0, 0, 1], 0).into(), chains.clone()).await?.spawn();
    let redis = RedisServer::spawn(RedisOptions::default()).await?;
    let urls = CHAINS.map(|(name, id)| (format!("{name}_WS_URL"), node.ws_url(id)));
    let ingestor = ingestor(&redis, &urls)?;
    let pid = ingestor.id().context("the ingestor ended")?;

    tokio::time::sleep(Duration::from_secs(4)).await; // the start has its own requests
    let start: Vec<_> =
        chains.iter().map(|c| (c.head_number(), c.stats().total_requests())).collect();
    let (end, mut most) = (Instant::now() + Duration::from_secs(seconds), 0);
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(500)).await;
        most = most.max(resident_bytes(pid)?);
    }
    for ((chain, (name, id)), (head, requests)) in chains.iter().zip(CHAINS).zip(start) {
        let blocks = chain.head_number() - head;
        ensure!(blocks > 0, "the simulated chain {id} did not grow");
        let requests = chain.stats().total_requests() - requests;
        let share = requests as f64 / blocks as f64;
        println!("  {name:<9} {requests} requests for {blocks} blocks: {share:.3} a block");
    }
    println!("  resident memory, highest seen: {:.1} MB", most as f64 / 1e6);
    Ok(())
}

fn spec(chain_id: u64, block_time: Duration, events_per_block: usize) -> ChainSpec {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    ChainSpec {
        chain_id,
        block_time,
        events_per_block,
        empty_every: 0,
        reorg_every: 0,
        reorg_depth: 0,
        seed: 1,
        genesis_time: now - 10,
    }
}

/// The binary beside this one, with nothing of the environment but what is given.
fn ingestor(redis: &RedisServer, urls: &[(String, String)]) -> anyhow::Result<Child> {
    let here = std::env::current_exe()?;
    let binary: PathBuf =
        here.parent().and_then(|p| p.parent()).context("no parent folder")?.join("ethhook");
    ensure!(binary.exists(), "{} is not built: run ./scripts/bench.sh", binary.display());
    Command::new(binary)
        .arg("ingest")
        .env_clear()
        .env("REDIS_URL", redis.url())
        .env("METRICS_PORT", "0")
        .env("HEALTH_PORT", "0")
        .env("RUST_LOG", "error")
        .envs(urls.iter().map(|(name, url)| (name, url)))
        .current_dir(redis.directory()) // no .env or ethhook.toml of the caller's
        .kill_on_drop(true)
        .spawn()
        .context("the ingestor does not start")
}

/// `VmRSS` of a process.
fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
    Ok(kilobytes * 1024)
}
