//! Sums the ERC-20 transfers of a chain by contract, exactly once each, even if killed at any moment.
//!
//! An entry delivered to this consumer is pending until it is acknowledged. Only pending entries are
//! processed, and the sums and the acknowledgements are written in one MULTI/EXEC: an entry is pending
//! exactly as long as it is not in the sums, so that a kill neither loses it nor counts it twice.
//!
//!     CHAIN_ID=1 GROUP=sums CONSUMER=one cargo run [-- --finalized]
//!
//! With `--finalized`, an entry waits until its block is final. Use one reader per group in that case:
//! the entries that take a block back must go to the consumer that holds the block's entries.

use std::collections::{BTreeMap, HashMap};
use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use num_bigint::{BigInt, Sign};
use redis::io::tcp::TcpSettings;
use redis::{Client, Connection, IntoConnectionInfo as _, cmd, pipe};
use serde::Deserialize;
use serde_bytes::ByteBuf;
use socket2::TcpKeepalive;

const BATCH: usize = 1000;
const TRANSFER: &str = "ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";

/// An ID and the fields, or `None` if retention trimmed the entry before we processed it.
type Entry = (String, Option<HashMap<String, Vec<u8>>>);

/// The values in the order of the fields; not all are used here.
#[derive(Deserialize)]
#[allow(dead_code)]
struct Event {
    chain_id: u64,
    block_number: u64,
    block_hash: ByteBuf,
    tx_hash: ByteBuf,
    tx_index: u64,
    log_index: u64,
    contract: ByteBuf,
    topics: Vec<ByteBuf>,
    data: ByteBuf,
    timestamp: u64,
    removed: bool,
}

/// An entry of either encoding.
fn read_event(fields: &HashMap<String, Vec<u8>>) -> Result<Event> {
    if let Some(packed) = fields.get("e") {
        return Ok(rmp_serde::from_slice(packed)?);
    }
    let text = |name: &str| -> Result<&str> {
        Ok(std::str::from_utf8(fields.get(name).with_context(|| name.to_owned())?)?)
    };
    let binary = |hex: &str| -> Result<ByteBuf> {
        Ok(ByteBuf::from(hex::decode(hex.trim_start_matches("0x"))?))
    };
    let topics: Vec<String> = serde_json::from_str(text("topics")?)?;
    Ok(Event {
        chain_id: text("chain_id")?.parse()?,
        block_number: text("block_number")?.parse()?,
        block_hash: binary(text("block_hash")?)?,
        tx_hash: binary(text("tx_hash")?)?,
        tx_index: text("tx_index")?.parse()?,
        log_index: text("log_index")?.parse()?,
        contract: binary(text("contract")?)?,
        topics: topics.iter().map(|topic| binary(topic)).collect::<Result<_>>()?,
        data: binary(text("data")?)?,
        timestamp: text("timestamp")?.parse()?,
        removed: text("removed")?.parse()?,
    })
}

struct Consumer {
    redis: Connection,
    events: String,
    blocks: String,
    /// A hash; the braces put it in its stream's slot on a Cluster.
    sums: String,
    group: String,
    name: String,
    claim_idle_ms: u64,
    finalized_only: bool,
}

impl Consumer {
    fn connect(client: &Client, finalized_only: bool) -> Result<Self> {
        let variable = |name: &str, default: &str| env::var(name).unwrap_or(default.to_owned());
        // No read timeout: with one, a signal would interrupt a blocking read. Keepalive notices a host that is gone.
        let redis = client.get_connection()?;
        let events = format!("events:{}", variable("CHAIN_ID", "1"));
        let group = variable("GROUP", "sums");
        let mut consumer = Self {
            redis,
            blocks: format!("blocks:{{{events}}}"),
            sums: format!("sums:{{{events}}}:{group}"),
            events,
            group,
            name: variable("CONSUMER", "one"),
            // A consumer that has not acknowledged for this long is considered dead. Must exceed the
            // time that any batch takes.
            claim_idle_ms: variable("CLAIM_IDLE_MS", "60000").parse()?,
            finalized_only,
        };
        let mut create = cmd("XGROUP");
        create.arg("CREATE").arg(&consumer.events).arg(&consumer.group).arg("0").arg("MKSTREAM");
        match create.exec(&mut consumer.redis) {
            Err(error) if error.code() != Some("BUSYGROUP") => Err(error.into()),
            _ => Ok(consumer),
        }
    }

    /// Entries of this consumer: `>` has new ones delivered, an ID returns the pending ones above it.
    fn read(&mut self, after: &str, wait_ms: Option<u64>) -> Result<Vec<Entry>> {
        let mut command = cmd("XREADGROUP");
        command.arg("GROUP").arg(&self.group).arg(&self.name).arg("COUNT").arg(BATCH);
        if let Some(wait_ms) = wait_ms {
            command.arg("BLOCK").arg(wait_ms);
        }
        command.arg("STREAMS").arg(&self.events).arg(after);
        let streams: Option<Vec<(String, Vec<Entry>)>> = command.query(&mut self.redis)?;
        Ok(streams.into_iter().flatten().next().map(|(_, entries)| entries).unwrap_or_default())
    }

    /// Entries delivered to us and not acknowledged, oldest first: one batch, or all of them if entries
    /// wait until they are final.
    fn pending(&mut self) -> Result<Vec<Entry>> {
        let (mut entries, mut after) = (Vec::new(), "0".to_owned());
        loop {
            let page = self.read(&after, None)?;
            let is_last = page.len() < BATCH || !self.finalized_only;
            if let Some((id, _)) = page.last() {
                after.clone_from(id);
            }
            entries.extend(page);
            if is_last {
                return Ok(entries);
            }
        }
    }

    /// Adds pending entries to the sums, only up to block `last` if that is set.
    fn work(&mut self, last: Option<i64>) -> Result<()> {
        loop {
            // If another consumer claims an entry of ours and applies it, the sums change and this
            // transaction fails.
            cmd("WATCH").arg(&self.sums).exec(&mut self.redis)?;
            let (mut ids, mut changes, mut lost) = (Vec::new(), BTreeMap::new(), 0);
            for (id, fields) in self.pending()? {
                let Some(fields) = fields else {
                    ids.push(id);
                    lost += 1;
                    continue;
                };
                let event = read_event(&fields).with_context(|| format!("entry {id}"))?;
                if last
                    .is_some_and(|last| i64::try_from(event.block_number).is_ok_and(|n| n > last))
                {
                    continue;
                }
                ids.push(id);
                let is_transfer =
                    event.topics.len() == 3 && hex::encode(&event.topics[0]) == TRANSFER;
                if is_transfer && event.data.len() == 32 {
                    let value = BigInt::from_bytes_be(Sign::Plus, &event.data);
                    let contract = format!("0x{}", hex::encode(&event.contract));
                    // A removed one undoes an earlier entry.
                    *changes.entry(contract).or_insert_with(BigInt::default) +=
                        if event.removed { -value } else { value };
                }
            }
            if ids.is_empty() {
                return Ok(cmd("UNWATCH").exec(&mut self.redis)?);
            }
            let mut step = pipe();
            step.atomic();
            for (contract, change) in changes {
                let mut get = cmd("HGET");
                let held: Option<String> =
                    get.arg(&self.sums).arg(&contract).query(&mut self.redis)?;
                let sum = held.map_or(Ok(BigInt::default()), |held| held.parse())? + change;
                step.hset(&self.sums, contract, sum.to_string()).ignore();
            }
            if lost > 0 {
                step.hincr(&self.sums, "lost", lost).ignore();
            }
            step.cmd("XACK").arg(&self.events).arg(&self.group).arg(ids).ignore();
            // The reply is empty if the sums changed: check again what is still ours.
            let _taken: Option<()> = step.query(&mut self.redis)?;
        }
    }

    /// Takes over entries that another consumer has not acknowledged for too long.
    fn claim_from_dead_consumers(&mut self) -> Result<()> {
        let mut start = "0-0".to_owned();
        loop {
            let mut command = cmd("XAUTOCLAIM");
            command.arg(&self.events).arg(&self.group).arg(&self.name).arg(self.claim_idle_ms);
            command.arg(&start).arg("COUNT").arg(BATCH).arg("JUSTID");
            let (next, _claimed, trimmed): (String, Vec<String>, Vec<String>) =
                command.query(&mut self.redis)?;
            if !trimmed.is_empty() {
                // Removed from the stream before anyone processed them: a loss.
                eprintln!("{} entries were lost to retention", trimmed.len());
                let mut count = cmd("HINCRBY");
                count.arg(&self.sums).arg("lost").arg(trimmed.len()).exec(&mut self.redis)?;
            }
            if next == "0-0" {
                return Ok(());
            }
            start = next;
        }
    }

    /// Read from the chain's markers; -1 while no block is final.
    fn newest_final_block(&mut self) -> Result<i64> {
        let mut before = "+".to_owned();
        loop {
            let mut command = cmd("XREVRANGE");
            command.arg(&self.blocks).arg(&before).arg("-").arg("COUNT").arg(BATCH);
            let page: Vec<(String, HashMap<String, String>)> = command.query(&mut self.redis)?;
            for (_, marker) in &page {
                if marker.get("op").is_some_and(|op| op == "finalized") {
                    return Ok(marker.get("number").context("a marker without number")?.parse()?);
                }
            }
            match page.last() {
                Some((id, _)) if page.len() == BATCH => before = format!("({id}"),
                _ => return Ok(-1),
            }
        }
    }

    /// Returns the block up to which pending entries were processed; `done` is the previous round's.
    fn round(&mut self, done: Option<i64>) -> Result<Option<i64>> {
        self.claim_from_dead_consumers()?;
        self.read(">", Some(1_000))?;
        let mut last = None;
        if self.finalized_only {
            last = Some(self.newest_final_block()?);
            // The entries that took a block back precede the marker that made its successor final.
            while !self.read(">", None)?.is_empty() {}
        }
        if last.is_none() || last != done {
            self.work(last)?;
        }
        Ok(last)
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let finalized_only = match arguments.as_slice() {
        [] => false,
        [only] if only == "--finalized" => true,
        _ => bail!("the only argument is --finalized"),
    };
    // The current round is finished first: what was delivered is processed.
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stopping))?;
    }
    let is_running = || !stopping.load(Ordering::Relaxed);
    let url = env::var("REDIS_URL").unwrap_or("redis://127.0.0.1:6379".to_owned());
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    let settings = TcpSettings::default().set_keepalive(keepalive);
    let client = Client::open(url.into_connection_info()?.set_tcp_settings(settings))?;
    while is_running() {
        let result = Consumer::connect(&client, finalized_only).and_then(|mut consumer| {
            let mut done = None;
            while is_running() {
                done = consumer.round(done)?;
            }
            Ok(())
        });
        if let Err(error) = result {
            eprintln!("retrying: {error:#}");
            sleep(Duration::from_secs(1));
        }
    }
    Ok(())
}
