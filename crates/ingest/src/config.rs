//! The validated configuration of the chain tasks.

use std::num::NonZeroU32;
use std::time::Duration;

use ethhook_domain::{Encoding, Filter, Profile, Secret};
use ethhook_streams::WriterOptions;

/// One chain to ingest.
#[derive(Debug, Clone)]
pub struct ChainConfig {
    /// Profile of the chain, with the operator's changes (`verify` among them) applied.
    pub profile: Profile,
    /// At least one, in order of preference; an endpoint is named by its position here.
    pub endpoints: Vec<EndpointConfig>,
    /// Where the stream begins if Redis holds no cursor.
    pub start: StartBlock,
    /// The last block to publish; the chain then idles, ready.
    pub end_block: Option<u64>,
    /// Which logs become events.
    pub filter: Filter,
    /// How many blocks the tip stays behind the head.
    pub confirmations: u64,
    /// Requests per second that may be sent to each endpoint; none for no limit.
    pub requests_per_second: Option<NonZeroU32>,
    /// Cost per second of the calls to each endpoint, in its provider's units; none for no limit.
    pub units_per_second: Option<NonZeroU32>,
    /// How a block's logs are fetched.
    pub fetch: Fetch,
    /// At the head, blocks are fetched together at this interval; none to fetch each as soon as its head arrives.
    pub batch_every: Option<Duration>,
}

/// How a block's logs are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetch {
    /// Receipts, or logs if an endpoint does not offer receipts. If logs are proof enough,
    /// whichever costs less.
    Auto,
    /// Only `eth_getBlockReceipts`.
    Receipts,
    /// Only `eth_getLogs`; they prove the bloom at most.
    Logs,
}

/// One provider: requests go to `http` if set, heads come from `ws` if set.
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
    /// At the node's head when the chain is first started.
    Latest,
    /// At this height.
    Number(u64),
}

/// The byte cap of one chain's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteCap {
    /// This many bytes.
    Bytes(u64),
    /// An even part of what all streams may take of Redis' memory, for this many chains.
    Share(u64),
}

impl ByteCap {
    /// What all streams together may take of `maxmemory`, in percent. The rest is for dedup records, groups, and the copy
    /// that Redis makes while it rewrites its append-only file.
    const PERCENT: u64 = 60;
    /// Assumed memory of a Redis without `maxmemory`: 512 MB.
    const UNBOUNDED: u64 = 512 * 1024 * 1024;

    /// In bytes, where Redis has this limit (none if unlimited).
    #[must_use]
    pub fn bytes(self, maxmemory: Option<u64>) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Share(chains) => {
                maxmemory.unwrap_or(Self::UNBOUNDED) / 100 * Self::PERCENT / chains.max(1)
            }
        }
    }
}

/// Options shared by all chains of a process.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of this instance: the value of the lease.
    pub instance_id: String,
    /// How many chains this process may hold at once; none for all configured ones. The others are
    /// left to other instances with the same configuration.
    pub max_chains: Option<NonZeroU32>,
    /// How long the lease lasts after its last renewal.
    pub lease_ttl: Duration,
    /// How long a block's dedup record is kept.
    pub dedup_ttl: Duration,
    /// How entries are encoded; a stream with another encoding is not written.
    pub encoding: Encoding,
    /// How long entries are kept.
    pub retention: Duration,
    /// A group that has not read for this long, although entries wait, raises an alarm.
    pub group_idle_alarm: Duration,
    /// Byte cap of one chain's streams.
    pub stream_max_bytes: ByteCap,
}

impl Options {
    /// How often a lease is renewed.
    pub(crate) fn renew_every(&self) -> Duration {
        self.lease_ttl / 3
    }

    /// The options that the writer of a chain needs.
    pub(crate) fn for_writer(&self) -> WriterOptions {
        WriterOptions {
            writer: self.instance_id.clone(),
            lease_ttl: self.lease_ttl,
            dedup_ttl: self.dedup_ttl,
            encoding: Some(self.encoding),
        }
    }
}
