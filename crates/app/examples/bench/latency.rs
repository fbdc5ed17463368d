//! Latency from head to stream, and the cost of a live block.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::Bench;
use crate::live::{limit, mine, percentile, watch};
use crate::node::PreparedNode;
use crate::node::chain::{Counts, PreparedChain};
use crate::node::template::{Template, simulated};
use crate::redis_side::{NODE_BYTES, RedisSide};
use crate::report::{Bar, Row};
use crate::subject::{Chain, FIRST_ID, Subject};

/// Logs of the block that represents large ones: the recorded block, if available.
const LARGE: usize = 10_000;

/// One kind of live chain. To measure another mode, add it to the lists below.
#[derive(Clone)]
struct Live {
    logs: usize,
    block_time: Duration,
    /// Delay before each answer of the node.
    delay: Duration,
    blocks: usize,
}

const fn live(logs: usize, block_time_ms: u64, delay_ms: u64, blocks: usize) -> Live {
    Live {
        logs,
        block_time: Duration::from_millis(block_time_ms),
        delay: Duration::from_millis(delay_ms),
        blocks,
    }
}

/// Fewer values have no 99th percentile.
const ENOUGH: usize = 100;

/// Group `latency`.
pub(crate) async fn rows(bench: &Bench) -> Result<Vec<Row>> {
    const LIVE: [Live; 8] = [
        live(200, 250, 0, 200),
        live(200, 250, 20, 100),
        live(200, 250, 100, 100),
        live(50, 250, 0, 100),
        live(1_000, 250, 0, 100),
        live(LARGE, 2_000, 0, 20),
        live(200, 2_000, 0, 20),
        live(200, 12_000, 0, 5),
    ];
    let mut rows = Vec::new();
    for live in LIVE.iter().take(if bench.options.quick { 6 } else { LIVE.len() }) {
        let templates: Arc<[Template]> = match live.logs {
            LARGE => Arc::clone(&bench.recorded.large),
            logs => simulated(logs, 8).await?.into(),
        };
        let logs = templates.first().map_or(live.logs, |template| template.log_count);
        let live = Live { logs, ..live.clone() };
        let mut redis = RedisSide::start(bench.options.redis_url.as_deref(), NODE_BYTES).await?;
        let seen = see(&mut redis, &live, templates).await?;
        // The pause between two steps lets caches go cold; a longer one changes nothing.
        let pause = live.block_time.min(Duration::from_millis(500));
        let steps = if live.blocks >= 2 * ENOUGH { ENOUGH } else { live.blocks.min(30) };
        let limit = limit(&mut redis, FIRST_ID, logs, pause, steps).await?;
        redis.clear(FIRST_ID).await?;
        rows.extend(table(&live, &seen, &limit));
    }
    Ok(rows)
}

/// Group `live-cost`: requests, bytes and CPU of a live block of 2 s.
pub(crate) async fn cost_rows(bench: &Bench) -> Result<Vec<Row>> {
    let live = live(200, 2_000, 0, if bench.options.quick { 10 } else { 60 });
    let mut redis = RedisSide::start(bench.options.redis_url.as_deref(), NODE_BYTES).await?;
    let seen = see(&mut redis, &live, simulated(live.logs, 8).await?.into()).await?;
    redis.clear(FIRST_ID).await?;
    let row = |figure: &str, ours, unit| {
        Row::new("live-cost", format!("live, 200 logs every 2 s: {figure}"), ours, unit)
    };
    Ok(vec![
        row("requests a block, polls and tags included", seen.requests, "").bar(Bar::Under(1.05)),
        row("bytes from the node a block", seen.bytes / 1e3, "kB"),
        row("our CPU a block", seen.cpu_millis, "ms"),
    ])
}

struct Seen {
    /// From a head to its entries, in ms.
    delays: Vec<f64>,
    peak_mb: f64,
    requests: f64,
    bytes: f64,
    cpu_millis: f64,
}

async fn see(redis: &mut RedisSide, live: &Live, templates: Arc<[Template]>) -> Result<Seen> {
    redis.clear(FIRST_ID).await?;
    let chain = PreparedChain::new(FIRST_ID, templates, 2, live.delay);
    let node = PreparedNode::serve([chain]).await?;
    let chain = node.chains().next().cloned().context("no chain")?;
    let subject = Chain::new(FIRST_ID, node.ws_url(FIRST_ID), live.block_time);
    let subject = Subject::start(redis.url(), &[subject], &[])?;
    let _miner = mine(std::slice::from_ref(&chain), live.block_time);
    watch(redis, &chain, 1).await?;
    chain.asked.take();
    let (head, cpu) = (chain.head(), subject.cpu()?);
    let delays = watch(redis, &chain, live.blocks).await?;
    let (Counts { requests, bytes, .. }, blocks) = (chain.asked.take(), chain.head() - head);
    let cpu = subject.cpu()?.saturating_sub(cpu);
    let peak_mb = subject.peak_mb()?;
    let a_block = |count: f64| count / blocks.max(1) as f64;
    Ok(Seen {
        delays,
        peak_mb,
        requests: a_block(requests as f64),
        bytes: a_block(bytes as f64),
        cpu_millis: a_block(cpu.as_secs_f64() * 1e3),
    })
}

/// `limit`: the delays without node and ingestor, in ms.
fn table(live: &Live, seen: &Seen, limit: &[f64]) -> Vec<Row> {
    let Seen { delays, peak_mb, .. } = seen;
    let Live { logs, block_time, delay, .. } = live;
    let usual = *logs == 200;
    let delay_ms = delay.as_secs_f64() * 1e3;
    let name = format!(
        "head to stream, {logs} logs every {} ms, RPC delay {delay_ms} ms",
        block_time.as_millis()
    );
    let row = |figure: &str, ours| Row::new("latency", format!("{name}: {figure}"), ours, "ms");
    let mut rows = Vec::new();
    let bars = match (usual, delay.is_zero()) {
        (true, true) => [Some(4.0), Some(10.0), None],
        (true, false) => [Some(delay_ms + 8.0), None, None],
        (false, _) if *logs >= LARGE => [None, None, Some(150.0)],
        (false, _) => [None; 3],
    };
    let [p50, p99, max] = bars;
    // Of few values the greatest stands for the 99th percentile too.
    let figures = if delays.len() < ENOUGH {
        vec![("p50", 50, p50), ("max", 100, p99.or(max))]
    } else {
        vec![("p50", 50, p50), ("p99", 99, p99), ("max", 100, max)]
    };
    for (figure, percent, bar) in figures {
        let row = row(&format!("first and last entry, {figure}"), percentile(delays, percent));
        // The limit: the time of Redis and the reader alone, plus the node's delay.
        let row = if percent == 99 && limit.len() < ENOUGH {
            row
        } else {
            row.of(percentile(limit, percent) + delay_ms)
        };
        rows.push(bar.map(Bar::Under).into_iter().fold(row, Row::bar));
    }
    rows.push(Row::new("latency", format!("{name}: peak resident memory"), *peak_mb, "MB"));
    rows
}
