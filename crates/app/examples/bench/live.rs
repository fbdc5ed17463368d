//! A growing chain: how soon a reader of the stream sees its entries.
//!
//! One `EXEC` writes all entries of a block, so a reader cannot see the first before the last: it reads
//! both with one request.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ethhook_streams::Keys;
use redis::Connection;
use redis::streams::{StreamId, StreamRangeReply, StreamReadOptions, StreamReadReply};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};

use crate::node::chain::PreparedChain;
use crate::redis_side::{RedisSide, XADD_KEY};

/// The percentile: the value that this many percent do not exceed.
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

/// Waits until the chain is at its head, then measures `blocks` blocks: the milliseconds from the node
/// sending a head until a reader has all entries of its block.
pub(crate) async fn watch(
    redis: &RedisSide,
    chain: &PreparedChain,
    blocks: usize,
) -> Result<Vec<f64>> {
    let mut reader = Reader::new(redis, Keys::of(chain.id).events).await?;
    let mut delays = Vec::new();
    // The first few blocks warm the caches and end the catch-up.
    let mut next = None;
    while delays.len() < blocks {
        let arrived;
        (reader, arrived) = reader.arrival().await?;
        let number = height(&arrived.newest)?;
        let entries: usize = arrived.newest.get("log_index").map_or(0, |last: usize| last + 1);
        ensure!(
            entries == chain.template(number).log_count,
            "block {number} has {entries} entries"
        );
        // Blocks that the reader skipped over have arrived too, by now at the latest.
        for number in *next.get_or_insert(number + 3)..=number {
            let sent = chain.sent_at(number).context("the node never sent this head")?;
            delays.push(arrived.at.duration_since(sent).as_secs_f64() * 1e3);
        }
        next = next.max(Some(number + 1));
    }
    Ok(delays)
}

/// The lower limit of a block's latency, in milliseconds per step: every `block_time`, a client that does
/// nothing else sends the chain's newest entries, prepared beforehand, and the same reader waits for them.
pub(crate) async fn limit(
    redis: &mut RedisSide,
    chain_id: u64,
    entries: usize,
    block_time: Duration,
    times: usize,
) -> Result<Vec<f64>> {
    let mut step = redis.prepared_step(&Keys::of(chain_id).events, entries).await?;
    let mut reader = Reader::new(redis, XADD_KEY.to_owned()).await?;
    let mut took = Vec::new();
    let mut ticks = interval(block_time);
    for _ in 0..times {
        ticks.tick().await;
        let (sent, arrival) = tokio::join!(step.send(), reader.arrival());
        let (sent_step, sent) = sent?;
        step = sent_step;
        let arrived;
        (reader, arrived) = arrival?;
        took.push(arrived.at.duration_since(sent).as_secs_f64() * 1e3);
    }
    redis.clear_limits().await?;
    Ok(took)
}

/// A reader on its own thread that waits for entries.
struct Reader {
    connection: Connection,
    stream: String,
    after: String,
}

/// The entries a reader received.
struct Arrival {
    at: Instant,
    /// The newest entry: the last of its block.
    newest: StreamId,
}

impl Reader {
    async fn new(redis: &RedisSide, stream: String) -> Result<Self> {
        Ok(Self { connection: redis.blocking_connection().await?, stream, after: "0-0".into() })
    }

    /// Waits for the next block's entries.
    async fn arrival(mut self) -> Result<(Self, Arrival)> {
        spawn_blocking(move || {
            let mut both = redis::pipe();
            both.cmd("XREAD").arg(StreamReadOptions::default().block(30_000).count(1));
            both.arg(&["STREAMS", &self.stream, &self.after]);
            both.cmd("XREVRANGE").arg(&[self.stream.as_str(), "+", "-", "COUNT", "1"]);
            let (first, newest): (Option<StreamReadReply>, StreamRangeReply) =
                both.query(&mut self.connection)?;
            let at = Instant::now();
            first.context("no entry for 30 s")?;
            let newest = newest.ids.into_iter().next().context("an empty stream")?;
            self.after.clone_from(&newest.id);
            Ok((self, Arrival { at, newest }))
        })
        .await?
    }
}

fn height(entry: &StreamId) -> Result<u64> {
    entry.get("block_number").context("no block_number")
}
