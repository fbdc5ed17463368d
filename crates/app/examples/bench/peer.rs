//! A node and a Redis for another program, with a count of what it writes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::time::sleep;

use crate::Bench;
use crate::node::PreparedNode;
use crate::node::chain::{Counts, FIRST, PreparedChain};
use crate::redis_side::{NODE_BYTES, RedisSide};

/// A chain id that other programs know.
const MAINNET: u64 = 1;
const EVENTS: u64 = 600_000;

/// Serves until Ctrl-C.
pub(crate) async fn serve(bench: &Bench) -> Result<()> {
    let mut redis = RedisSide::start(bench.options.redis_url.as_deref(), NODE_BYTES).await?;
    let templates = std::sync::Arc::clone(&bench.recorded.usual);
    let logs: usize = templates.iter().map(|template| template.log_count).sum();
    let blocks = EVENTS * templates.len() as u64 / logs.max(1) as u64;
    let chain = PreparedChain::new(MAINNET, templates, blocks, Duration::ZERO);
    let node = PreparedNode::serve([chain]).await?;
    let chain = node.chains().next().cloned().context("no chain")?;
    println!("node    {}   {}", node.http_url(MAINNET), node.ws_url(MAINNET));
    println!("blocks  {FIRST} to {}, {} logs", chain.head(), chain.logs_up_to(chain.head()));
    println!("redis   {}   (streams are counted here; Ctrl-C ends)", redis.url());
    let mut before: BTreeMap<String, u64> = BTreeMap::new();
    let mut at = Instant::now();
    loop {
        sleep(Duration::from_secs(1)).await;
        let seconds = at.elapsed().as_secs_f64();
        at = Instant::now();
        let Counts { requests, bytes, .. } = chain.asked.take();
        if requests > 0 {
            println!(
                "{:.0} requests/s, {:.1} MB/s",
                requests as f64 / seconds,
                bytes as f64 / seconds / 1e6
            );
        }
        for (name, length) in redis.streams().await? {
            let grown = length - before.get(&name).copied().unwrap_or(0).min(length);
            if grown > 0 {
                println!("{name}: {length} entries, {:.0}/s", grown as f64 / seconds);
            }
            before.insert(name, length);
        }
    }
}
