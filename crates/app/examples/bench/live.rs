//! A chain that grows: how soon its entries are there, seen by a reader of the stream.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ethhook_streams::Keys;
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamId, StreamRangeReply, StreamReadOptions, StreamReadReply};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::node::chain::PreparedChain;
use crate::redis_side::{RedisSide, XADD_KEY};

/// Longer than any block waits for its entries.
const PATIENCE: Duration = Duration::from_secs(60);

/// From the node's send of a head to the first and the last entry of its block at a reader, in
/// milliseconds, one each a block.
#[derive(Debug, Default, Clone)]
pub(crate) struct Delays {
    pub(crate) first: Vec<f64>,
    pub(crate) last: Vec<f64>,
}

/// The value that so many of 100 do not exceed.
pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

/// Adds a block to each of `chains` every `block_time`, evenly spread, until dropped.
pub(crate) fn mine(chains: &[Arc<PreparedChain>], block_time: Duration) -> JoinSet<()> {
    let mut miners = JoinSet::new();
    let apart = block_time / u32::try_from(chains.len().max(1)).unwrap_or(1);
    for (chain, place) in chains.iter().cloned().zip(0..) {
        miners.spawn(async move {
            tokio::time::sleep(apart * place).await;
            let mut ticks = interval(block_time);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                chain.mine();
            }
        });
    }
    miners
}

/// Waits until the chain is at its head, then watches `blocks` blocks arrive.
pub(crate) async fn watch(
    redis: &mut RedisSide,
    chain: &PreparedChain,
    blocks: usize,
) -> Result<Delays> {
    let mut reader = Reader::new(redis, Keys::of(chain.id).events).await?;
    let mut delays = Delays::default();
    // The first few fill the caches and end the catch-up.
    let mut next = reader.arrival().await?.0 + 3;
    while delays.last.len() < blocks {
        let (number, first, last) = reader.arrival().await?;
        // Those that were overtaken are there as well, at the latest by now.
        for number in next..=number {
            let sent = chain.sent_at(number).context("a head that was never sent")?;
            let millis = |at: Instant| at.duration_since(sent).as_secs_f64() * 1e3;
            delays.first.push(millis(first));
            delays.last.push(millis(last));
        }
        next = next.max(number + 1);
    }
    Ok(delays)
}

/// The least that a block's last entry takes, p50 in milliseconds: a client that does nothing else sends the
/// newest entries of the chain, written beforehand, every `block_time`, and the same reader waits for them.
pub(crate) async fn limit(
    redis: &mut RedisSide,
    chain_id: u64,
    entries: usize,
    block_time: Duration,
    times: usize,
) -> Result<f64> {
    let mut step = redis.prepared_step(&Keys::of(chain_id).events, entries).await?;
    let mut reader = Reader::new(redis, XADD_KEY.to_owned()).await?;
    let mut took = Vec::new();
    let mut ticks = interval(block_time);
    for _ in 0..times {
        ticks.tick().await;
        let (sent, arrival) = tokio::join!(step.send(), reader.arrival());
        let (sent_step, sent) = sent?;
        step = sent_step;
        took.push(arrival?.2.duration_since(sent).as_secs_f64() * 1e3);
    }
    redis.clear_limits().await?;
    Ok(percentile(&took, 50))
}

struct Reader {
    connection: MultiplexedConnection,
    stream: String,
    after: String,
}

impl Reader {
    async fn new(redis: &RedisSide, stream: String) -> Result<Self> {
        let connection = redis.connect().await?;
        Ok(Self { connection, stream, after: "$".into() })
    }

    /// The next block whose entries are there: its height, when its first entry was read, and when
    /// its last one was.
    async fn arrival(&mut self) -> Result<(u64, Instant, Instant)> {
        let options = StreamReadOptions::default().block(30_000).count(1);
        let mut read = redis::cmd("XREAD");
        read.arg(&options).arg(&["STREAMS", &self.stream, &self.after]);
        let reply: Option<StreamReadReply> =
            timeout(PATIENCE, read.query_async(&mut self.connection)).await??;
        let first_at = Instant::now();
        let first = reply.and_then(|reply| reply.keys.into_iter().next());
        let first =
            first.and_then(|key| key.ids.into_iter().next()).context("no entry for 30 s")?;
        // A block's entries come in one step: what is the newest is the last of its block.
        let newest: StreamRangeReply = redis::cmd("XREVRANGE")
            .arg(&[self.stream.as_str(), "+", "-", "COUNT", "1"])
            .query_async(&mut self.connection)
            .await?;
        let last_at = Instant::now();
        let newest = newest.ids.into_iter().next().context("an empty stream")?;
        let numbers = (height(&first)?, height(&newest)?);
        self.after = newest.id;
        // Two blocks at once: the first entry of the newer one was seen no later than its last.
        Ok((numbers.1, if numbers.0 == numbers.1 { first_at } else { last_at }, last_at))
    }
}

fn height(entry: &StreamId) -> Result<u64> {
    let number = entry.get("block_number").context("no block_number")?;
    Ok(number)
}
