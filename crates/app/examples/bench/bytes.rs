//! Memory of an event in Redis.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use crate::Bench;
use crate::node::PreparedNode;
use crate::node::chain::{FIRST, PreparedChain};
use crate::node::template::erc20_transfers;
use crate::redis_side::{NODE_BYTES, RedisSide};
use crate::report::{Bar, Row};
use crate::subject::{Chain, FIRST_ID, Subject};

const LOGS: usize = 200;
const BLOCKS: u64 = 100;

/// One encoding of entries. To measure another encoding, add it to [`rows`].
struct Writing {
    name: &'static str,
    env: &'static [(&'static str, &'static str)],
    node_bytes: u32,
    most: Option<f64>,
}

/// Group `bytes`: ERC-20 Transfers, 200 a block.
pub(crate) async fn rows(bench: &Bench) -> Result<Vec<Row>> {
    let writings = [
        Writing { name: "default encoding", env: &[], node_bytes: NODE_BYTES, most: Some(540.0) },
        Writing {
            name: "msgpack",
            env: &[("STREAM_ENCODING", "msgpack")],
            node_bytes: NODE_BYTES,
            most: Some(280.0),
        },
        Writing {
            name: "default encoding, Redis' own stream-node-max-bytes of 4096",
            env: &[],
            node_bytes: 4_096,
            most: None,
        },
    ];
    let mut rows = Vec::new();
    for writing in writings {
        // The node size is a server setting; that of a given Redis is not changed.
        if bench.options.redis_url.is_some() && writing.node_bytes != NODE_BYTES {
            continue;
        }
        rows.extend(measure(bench, &writing).await?);
    }
    Ok(rows)
}

async fn measure(bench: &Bench, writing: &Writing) -> Result<Vec<Row>> {
    let given = bench.options.redis_url.as_deref();
    let mut redis = RedisSide::start(given, writing.node_bytes).await?;
    redis.clear(FIRST_ID).await?;
    let templates = erc20_transfers(LOGS, 8).await?.into();
    let chain = PreparedChain::new(FIRST_ID, templates, BLOCKS, Duration::ZERO);
    let node = PreparedNode::serve([chain]).await?;
    let chain = Chain::new(FIRST_ID, node.ws_url(FIRST_ID), Duration::from_secs(12));
    let mut subject = Subject::start(redis.url(), &[chain], writing.env)?;
    while redis.tip(FIRST_ID).await? < Some(FIRST + BLOCKS - 1) {
        subject.check()?;
        sleep(Duration::from_millis(10)).await;
    }
    let bytes = redis.bytes(FIRST_ID).await?;
    redis.clear(FIRST_ID).await?;
    let an_event = |bytes: u64| bytes as f64 / (BLOCKS * LOGS as u64) as f64;
    let row = |figure: &str, bytes| {
        Row::new("bytes", format!("{}: {figure}", writing.name), an_event(bytes), "B an event")
    };
    let stream = row("stream, an ERC-20 Transfer", bytes.events);
    Ok(vec![
        writing.most.map(Bar::Under).into_iter().fold(stream, Row::bar),
        row("markers, at 200 logs a block", bytes.markers),
        row("dedup, at 200 logs a block", bytes.dedup),
        row("markers and dedup", bytes.markers + bytes.dedup).bar(Bar::Under(3.0)),
    ])
}
