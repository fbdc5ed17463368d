//! Throughput and cost of catching up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ethhook_streams::Keys;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{connect_async_with_config, tungstenite::protocol::WebSocketConfig};

use crate::Bench;
use crate::node::PreparedNode;
use crate::node::chain::{Counts, FIRST, PreparedChain};
use crate::node::template::Template;
use crate::redis_side::{NODE_BYTES, RedisSide};
use crate::report::{Bar, Row};
use crate::subject::{Chain, FIRST_ID, Subject};

const GROUP: &str = "catch-up";
/// Longer than any run takes on a suitable machine.
const DEADLINE: Duration = Duration::from_secs(600);
/// Requests in flight when measuring the node's limit, as many as the ingestor has.
const AT_ONCE: usize = 8;

/// One way of catching up. To measure another mode, add it to [`rows`].
struct Mode {
    name: &'static str,
    templates: Arc<[Template]>,
    blocks: u64,
    verify: &'static str,
    /// More keys of the chain in `ethhook.toml`.
    chain: &'static str,
    env: &'static [(&'static str, &'static str)],
    /// Least share of the `XADD` limit with the same entries.
    share: Option<f64>,
    /// Most resident memory, in MB.
    memory: Option<f64>,
}

/// Runs of each mode, each followed by a measurement of its limit. The run with the median ratio is shown,
/// with the highest memory of all runs.
const RUNS: usize = 3;

/// The result of one run.
struct Run {
    seconds: f64,
    blocks: u64,
    events: u64,
    cpu_micros: f64,
    redis_micros: f64,
    peak_mb: f64,
    /// None if the node is not the bench's own.
    asked: Option<Counts>,
}

impl Run {
    fn events_a_second(&self) -> f64 {
        self.events as f64 / self.seconds
    }
}

pub(crate) async fn rows(bench: &Bench) -> Result<Vec<Row>> {
    let events = if bench.options.quick { 150_000 } else { 600_000 };
    let recorded = &bench.recorded;
    let over = |name, templates: &Arc<[Template]>| {
        let logs: usize = templates.iter().map(|template| template.log_count).sum();
        Mode {
            name,
            templates: Arc::clone(templates),
            blocks: (events * templates.len() / logs.max(1)).max(8) as u64,
            verify: "receipts_root",
            chain: "",
            env: &[],
            share: None,
            memory: None,
        }
    };
    let modes = [
        Mode { share: Some(0.7), ..over("catch-up", &recorded.usual) },
        Mode {
            verify: "bloom",
            chain: "fetch = \"logs\"",
            ..over("catch-up, ranges of logs", &recorded.usual)
        },
        Mode {
            env: &[("STREAM_ENCODING", "msgpack")],
            share: Some(0.5),
            ..over("catch-up, msgpack", &recorded.usual)
        },
        Mode { memory: Some(96.0), ..over("catch-up, 10,000 logs a block", &recorded.large) },
    ];
    let mut rows = Vec::new();
    for mode in modes {
        rows.extend(measure(bench, mode).await?);
    }
    Ok(rows)
}

async fn measure(bench: &Bench, mode: Mode) -> Result<Vec<Row>> {
    let given = bench.options.node_url.as_deref().zip(bench.options.node_blocks);
    let mut redis = RedisSide::start(bench.options.redis_url.as_deref(), NODE_BYTES).await?;
    let node = match given {
        Some(_) => None,
        None => {
            let chain = PreparedChain::new(FIRST_ID, mode.templates, mode.blocks, Duration::ZERO);
            Some(PreparedNode::serve([chain]).await?)
        }
    };
    let ours = node.as_ref().and_then(|node| node.chains().next().cloned());
    let (url, first, last) = match (&node, given) {
        (_, Some((url, (first, last)))) => (url.to_owned(), first, last),
        (Some(node), None) => (node.ws_url(FIRST_ID), FIRST, FIRST + mode.blocks - 1),
        (None, None) => anyhow::bail!("no node"),
    };
    let limit = match &node {
        Some(node) => Some(node_limit(&node.ws_url(FIRST_ID), mode.blocks).await?),
        None => None,
    };
    let mut runs = Vec::new();
    for _ in 0..if bench.options.quick { 1 } else { RUNS } {
        if let Some(chain) = &ours {
            chain.asked.take();
        }
        let mut chain = Chain::new(FIRST_ID, url.clone(), Duration::from_secs(12));
        chain.verify = mode.verify;
        chain.more = format!("start_block = {first}\n{}", mode.chain);
        let run = run(&mut redis, chain, mode.env, last).await?;
        if let Some(chain) = &ours {
            let logs = chain.logs_up_to(last);
            ensure!(run.events == logs, "{} entries of {logs} logs", run.events);
        }
        let asked = ours.as_ref().map(|chain| chain.asked.take());
        let xadd = redis.xadd_limit(&Keys::of(FIRST_ID).events, run.events).await?;
        redis.clear(FIRST_ID).await?;
        runs.push((Run { blocks: last - first + 1, asked, ..run }, xadd));
    }
    let most = runs.iter().map(|(run, _)| run.peak_mb).fold(0.0, f64::max);
    runs.sort_by(|(a, (a_xadd, _)), (b, (b_xadd, _))| {
        (a.events_a_second() / a_xadd).total_cmp(&(b.events_a_second() / b_xadd))
    });
    let (run, xadd) = runs.swap_remove(runs.len() / 2);
    let run = Run { peak_mb: most, ..run };
    Ok(table(mode.name, &run, xadd, limit, mode.share, mode.memory))
}

/// Catches up until `last`.
async fn run(redis: &mut RedisSide, chain: Chain, env: &[(&str, &str)], last: u64) -> Result<Run> {
    let id = chain.id;
    redis.clear(id).await?;
    let redis_before = redis.cpu().await?;
    let mut subject = Subject::start(redis.url(), &[chain], env)?;
    let deadline = Instant::now() + DEADLINE;
    let mut started: Option<(Instant, u64)> = None;
    loop {
        subject.check()?;
        let tip = redis.tip(id).await?;
        let now = Instant::now();
        if let (None, Some(_)) = (started, tip) {
            started = Some((now, redis.entries(&Keys::of(id).events).await?));
        }
        if tip >= Some(last) {
            break;
        }
        ensure!(now < deadline, "not caught up within {DEADLINE:?}: at {tip:?} of {last}");
        sleep(Duration::from_millis(5)).await;
    }
    let ended = Instant::now();
    let cpu = subject.cpu()?;
    let redis_cpu = redis.cpu().await?.saturating_sub(redis_before);
    let events = redis.entries(&Keys::of(id).events).await?;
    let (started, before) = started.unwrap_or((ended, 0));
    let elapsed = ended.duration_since(started).as_secs_f64();
    // Entries that existed when the clock started are not counted.
    let counted = events.saturating_sub(before).max(1);
    let per_event = |cpu: Duration| cpu.as_secs_f64() * 1e6 / events.max(1) as f64;
    Ok(Run {
        seconds: elapsed * events as f64 / counted as f64,
        blocks: 0,
        events,
        cpu_micros: per_event(cpu),
        redis_micros: per_event(redis_cpu),
        peak_mb: subject.peak_mb()?,
        asked: None,
    })
}

fn table(
    name: &str,
    run: &Run,
    (xadd, xadd_micros): (f64, f64),
    node: Option<f64>,
    share: Option<f64>,
    memory: Option<f64>,
) -> Vec<Row> {
    let row =
        |figure: &str, ours: f64, unit| Row::new(GROUP, format!("{name}: {figure}"), ours, unit);
    let with = |row: Row, bar: Option<Bar>| bar.into_iter().fold(row, Row::bar);
    let blocks = row("blocks, beside the node's limit", run.blocks as f64 / run.seconds, "/s");
    let mut rows = vec![
        with(
            row("events, beside XADD", run.events_a_second(), "/s").of(xadd),
            share.map(Bar::Share),
        ),
        node.into_iter().fold(blocks, Row::of),
        row("our CPU an event", run.cpu_micros, "µs").bar(Bar::Under(6.0)),
        row("Redis' CPU an event, beside XADD", run.redis_micros, "µs").of(xadd_micros),
        with(row("peak resident memory", run.peak_mb, "MB"), memory.map(Bar::Under)),
    ];
    if let Some(Counts { requests, messages, bytes }) = &run.asked {
        let a_block = |count: &u64| *count as f64 / run.blocks as f64;
        rows.push(row("calls a block, headers included", a_block(requests), ""));
        rows.push(row("messages a block", a_block(messages), ""));
        rows.push(row("bytes from the node a block", a_block(bytes) / 1e3, "kB"));
    }
    rows
}

/// Blocks per second, each a header and its receipts, that a client gets if it parses nothing.
async fn node_limit(url: &str, blocks: u64) -> Result<f64> {
    let whole = 128 << 20;
    let config =
        WebSocketConfig::default().max_message_size(Some(whole)).max_frame_size(Some(whole));
    let (mut socket, _) = connect_async_with_config(url, Some(config), true).await?;
    let ask = |number: u64, method: &str| {
        let params = if method == "eth_getBlockReceipts" {
            json!([format!("{number:#x}")])
        } else {
            json!([format!("{number:#x}"), false])
        };
        json!({ "jsonrpc": "2.0", "id": number, "method": method, "params": params }).to_string()
    };
    let mut questions = (FIRST..FIRST + blocks).flat_map(|n| {
        ["eth_getBlockByNumber", "eth_getBlockReceipts"].map(|method| ask(n, method))
    });
    let started = Instant::now();
    let mut under_way = 0;
    loop {
        while under_way < AT_ONCE {
            let Some(question) = questions.next() else { break };
            socket.send(Message::text(question)).await?;
            under_way += 1;
        }
        if under_way == 0 {
            return Ok(blocks as f64 / started.elapsed().as_secs_f64());
        }
        let answer = socket.next().await;
        ensure!(matches!(answer, Some(Ok(_))), "the node closed the connection");
        under_way -= 1;
    }
}
