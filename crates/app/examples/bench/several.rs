//! Several chains in one process: the cost of each, of an idle one, and how one affects another.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::Bench;
use crate::live::{mine, percentile, watch};
use crate::node::PreparedNode;
use crate::node::chain::PreparedChain;
use crate::node::template::{Template, simulated};
use crate::redis_side::{NODE_BYTES, RedisSide};
use crate::report::{Bar, Row};
use crate::subject::{Chain, FIRST_ID, Subject};

const BLOCK_TIME: Duration = Duration::from_secs(2);

/// Redis, a node with several chains, and an ingestor at the head of each.
struct Stage {
    redis: RedisSide,
    chains: Vec<Arc<PreparedChain>>,
    subject: Subject,
    _node: PreparedNode,
}

impl Stage {
    async fn set(bench: &Bench, chains: Vec<PreparedChain>) -> Result<Self> {
        let mut redis = RedisSide::start(bench.options.redis_url.as_deref(), NODE_BYTES).await?;
        let node = PreparedNode::serve(chains).await?;
        let chains: Vec<_> = node.chains().cloned().collect();
        let mut described = Vec::new();
        for chain in &chains {
            redis.clear(chain.id).await?;
            described.push(Chain::new(chain.id, node.ws_url(chain.id), BLOCK_TIME));
        }
        let mut subject = Subject::start(redis.url(), &described, &[])?;
        for chain in &chains {
            while redis.tip(chain.id).await? < Some(chain.head()) {
                subject.check()?;
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(Self { redis, chains, subject, _node: node })
    }

    async fn clear(mut self) -> Result<()> {
        drop(self.subject);
        for chain in &self.chains {
            self.redis.clear(chain.id).await?;
        }
        Ok(())
    }
}

fn chain(id: u64, templates: &Arc<[Template]>) -> PreparedChain {
    PreparedChain::new(FIRST_ID + id, Arc::clone(templates), 2, Duration::ZERO)
}

/// The sum of the heights of all chains' newest published blocks, each of which is at most one block behind.
async fn published(stage: &mut Stage) -> Result<u64> {
    let mut sum = 0;
    for chain in &stage.chains {
        let (head, tip) = (chain.head(), stage.redis.tip(chain.id).await?.unwrap_or(0));
        ensure!(tip + 1 >= head, "chain {} is at {tip} of {head}", chain.id);
        sum += tip;
    }
    Ok(sum)
}

/// Group `chains`: CPU, memory and delay of 1 to 64 chains, each of 200 logs every 2 s.
pub(crate) async fn rows(bench: &Bench) -> Result<Vec<Row>> {
    let seconds = if bench.options.quick { 6 } else { 20 };
    let templates: Arc<[Template]> = simulated(200, 8).await?.into();
    let mut rows = Vec::new();
    let mut of_one = None;
    for count in [1, 4, 16, 64] {
        let chains = (0..count).map(|id| chain(id, &templates)).collect();
        let mut stage = Stage::set(bench, chains).await?;
        let _miners = mine(&stage.chains, BLOCK_TIME);
        let first = Arc::clone(&stage.chains[0]);
        watch(&stage.redis, &first, 1).await?;
        let (blocks, cpu) = (published(&mut stage).await?, stage.subject.cpu()?);
        let watched = seconds / usize::try_from(BLOCK_TIME.as_secs()).unwrap_or(1);
        let delays = watch(&stage.redis, &first, watched).await?;
        let blocks = (published(&mut stage).await? - blocks) as f64;
        let cpu = stage.subject.cpu()?.saturating_sub(cpu).as_secs_f64() * 1e3 / blocks;
        let row = |figure: &str, ours, unit| {
            Row::new("chains", format!("{count} chains live: {figure}"), ours, unit)
        };
        let one = *of_one.get_or_insert(cpu);
        let memory = row("peak resident memory", stage.subject.peak_mb()?, "MB");
        rows.push(row("our CPU a block, beside that of one chain", cpu, "ms").of(one));
        rows.push(if count == 4 { memory.bar(Bar::Under(32.0)) } else { memory });
        rows.push(row("head to last entry, p50", percentile(&delays, 50), "ms"));
        stage.clear().await?;
    }
    Ok(rows)
}

/// Group `idle`: a chain whose head does not move.
pub(crate) async fn idle_rows(bench: &Bench) -> Result<Vec<Row>> {
    let seconds = if bench.options.quick { 5 } else { 30 };
    let templates = simulated(200, 1).await?.into();
    let stage = Stage::set(bench, vec![chain(0, &templates)]).await?;
    sleep(Duration::from_secs(2)).await;
    let cpu = stage.subject.cpu()?;
    sleep(Duration::from_secs(seconds)).await;
    let cpu = stage.subject.cpu()?.saturating_sub(cpu).as_secs_f64();
    let (share, memory) = (cpu / seconds as f64 * 100.0, stage.subject.peak_mb()?);
    stage.clear().await?;
    Ok(vec![
        Row::new("idle", "one chain, no new block: our CPU", share, "% of a core"),
        Row::new("idle", "one chain, no new block: peak resident memory", memory, "MB"),
    ])
}

/// Group `neighbour`: a chain of 200 logs every 250 ms, alone and beside blocks of 10,000 logs.
pub(crate) async fn neighbour_rows(bench: &Bench) -> Result<Vec<Row>> {
    let blocks = if bench.options.quick { 60 } else { 200 };
    let usual: Arc<[Template]> = simulated(200, 8).await?.into();
    let large = &bench.recorded.large;
    let mut stage = Stage::set(bench, vec![chain(0, &usual), chain(1, large)]).await?;
    let [small, large] = stage.chains.as_slice() else { anyhow::bail!("no chains") };
    let (small, large) = (Arc::clone(small), [Arc::clone(large)]);
    let _miner = mine(std::slice::from_ref(&small), Duration::from_millis(250));
    let alone = watch(&stage.redis, &small, blocks).await?;
    let _other = mine(&large, Duration::from_secs(1));
    let hold = Hold::watch(&stage.redis).await?;
    watch(&stage.redis, &small, 4).await.context("beside a large chain")?;
    let beside = watch(&stage.redis, &small, blocks).await?;
    let hold = hold.longest_ms();
    let (head, tip) = (large[0].head(), stage.redis.tip(large[0].id).await?.unwrap_or(0));
    ensure!(tip + 1 >= head, "the large chain is at {tip} of {head}");
    stage.clear().await?;
    let mut rows = Vec::new();
    for (figure, percent) in [("p50", 50), ("p99", 99)] {
        let (ours, alone) = (percentile(&beside, percent), percentile(&alone, percent));
        let figure = format!("beside a chain of 10,000-log blocks, against alone: {figure}");
        let row = Row::new("neighbour", figure, ours, "ms").of(alone);
        rows.push(if percent == 99 { row.bar(Bar::Under(alone + hold)) } else { row });
    }
    let figure = "longest that Redis answered nobody, its step of 10,000 logs";
    rows.push(Row::new("neighbour", figure, hold, "ms"));
    Ok(rows)
}

/// The longest time for which Redis answers nobody; measured by a `PING` every millisecond.
struct Hold {
    longest_micros: Arc<AtomicU64>,
    _asking: JoinSet<()>,
}

impl Hold {
    async fn watch(redis: &RedisSide) -> Result<Self> {
        let mut connection = redis.connect().await?;
        let longest_micros = Arc::new(AtomicU64::new(0));
        let longest = Arc::clone(&longest_micros);
        let mut asking = JoinSet::new();
        asking.spawn(async move {
            loop {
                let asked = Instant::now();
                if redis::cmd("PING").exec_async(&mut connection).await.is_err() {
                    return; // it has ended
                }
                longest.fetch_max(asked.elapsed().as_micros() as u64, Ordering::Relaxed);
                sleep(Duration::from_millis(1)).await;
            }
        });
        Ok(Self { longest_micros, _asking: asking })
    }

    fn longest_ms(&self) -> f64 {
        self.longest_micros.load(Ordering::Relaxed) as f64 / 1e3
    }
}
