//! What one chain task is told to do, already validated.

use std::num::NonZeroU32;
use std::time::Duration;

use ethhook_domain::{Encoding, Filter, Profile, Secret};
use ethhook_streams::WriterOptions;

/// One chain to ingest.
#[derive(Debug, Clone)]
pub struct ChainConfig {
    /// What is known of the chain, with the operator's changes (`verify` among them) applied.
    pub profile: Profile,
    /// At least one, first preferred; an endpoint is named by its position here.
    pub endpoints: Vec<EndpointConfig>,
    /// Where the stream begins if Redis holds no cursor.
    pub start: StartBlock,
    /// The last block to publish; the chain then idles, ready.
    pub end_block: Option<u64>,
    /// Which logs become events.
    pub filter: Filter,
    /// The tip is this many blocks behind the head.
    pub confirmations: u64,
    /// Requests a second that each endpoint may be sent; none: as many as it takes.
    pub requests_per_second: Option<NonZeroU32>,
    /// What the calls to each endpoint may cost a second, in its provider's units; none: no limit.
    pub units_per_second: Option<NonZeroU32>,
    /// How a block's logs are fetched.
    pub fetch: Fetch,
    /// At the head, blocks are fetched together, once in so long; none: each as soon as it is heard of.
    pub batch_every: Option<Duration>,
}

/// How a block's logs are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetch {
    /// Receipts, or logs where an endpoint has no receipts to give; where logs prove enough,
    /// whichever cost less.
    Auto,
    /// `eth_getBlockReceipts` alone.
    Receipts,
    /// `eth_getLogs` alone; they prove the bloom at most.
    Logs,
}

/// One provider: requests go to `http` where there is one, heads come from `ws` where there is one.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    /// `http://` or `https://`.
    pub http: Option<Secret>,
    /// `ws://` or `wss://`.
    pub ws: Option<Secret>,
}

/// Where a stream begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartBlock {
    /// At the head the node shows when the chain is first started.
    Latest,
    /// At this height.
    Number(u64),
}

/// What all chains of one process share.
#[derive(Debug, Clone)]
pub struct Options {
    /// Who we are: the lease's value.
    pub instance_id: String,
    /// How many chains this process may hold at once; none: all that are configured. The others are
    /// left to instances that share the configuration.
    pub max_chains: Option<NonZeroU32>,
    /// How long the lease outlives its last renewal.
    pub lease_ttl: Duration,
    /// How long a block's dedup record lives.
    pub dedup_ttl: Duration,
    /// How entries are encoded; a stream that is encoded in another way is left alone.
    pub encoding: Encoding,
    /// How long entries are kept.
    pub retention: Duration,
    /// A group that has not read for so long, although entries wait, is an alarm.
    pub group_idle_alarm: Duration,
    /// Byte cap of one chain's event stream.
    pub stream_max_bytes: u64,
    /// How far the tip's block time may lie behind the head's for `/ready`.
    pub ready_max_lag: Duration,
}

impl Options {
    /// What of it concerns the writer of a chain.
    pub(crate) fn for_writer(&self) -> WriterOptions {
        WriterOptions {
            writer: self.instance_id.clone(),
            lease_ttl: self.lease_ttl,
            dedup_ttl: self.dedup_ttl,
            encoding: Some(self.encoding),
        }
    }
}
