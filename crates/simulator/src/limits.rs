//! Every limit of the simulator. A node on a test machine must not grow without bound either,
//! whatever a client does.

use std::time::Duration;

/// Bytes of one request, as in geth.
pub const REQUEST_BYTES: usize = 5 * 1024 * 1024;

/// Calls in one batch, as in geth.
pub const BATCH_CALLS: usize = 1_000;

/// Open connections; further ones are closed as soon as they are accepted.
pub const CONNECTIONS: usize = 512;

/// Calls in progress on one WebSocket; at the limit, the socket is not read.
pub const CALLS_PER_SOCKET: usize = 128;

/// Subscriptions on one WebSocket.
pub const SUBSCRIPTIONS_PER_SOCKET: usize = 16;

/// Heads a subscriber may be behind before it is disconnected, as by real nodes. More than the
/// deepest reorg announces at once.
pub const HEADS_QUEUED: usize = 256;

/// Orphaned blocks per chain that can still be requested by hash.
pub const ORPHANS: usize = 512;

/// Blocks per chain whose rendered receipts are kept. A block of 200 logs takes about 250 kB, so
/// this is only for those being requested at the moment.
pub const RENDERED_RECEIPTS: usize = 8;

/// Bytes of rendered receipts that are kept per chain: those of a block of 50,000 logs take 40 MB.
pub const RENDERED_BYTES: usize = 64 << 20;

/// Heads held back to be announced late.
pub const HEADS_HELD: usize = 256;

/// Announced blocks per chain whose time of sending is kept.
pub const SENT_TIMES: usize = 4_096;

/// Methods that are counted by name; further ones count as `other`.
pub const COUNTED_METHODS: usize = 64;

/// Blocks of a scheduled chain from its genesis to now. Each takes about 40 bytes of memory.
pub const HISTORY_BLOCKS: u64 = 10_000_000;

/// Blocks from the head down to the finalized one.
pub const FINALITY_DEPTH: u64 = 64;

/// Blocks from the head down to the safe one.
pub const SAFE_DEPTH: u64 = 32;

/// Different block bodies of one chain: enough that neighbouring blocks differ, few enough to keep.
pub const BODIES: usize = 64;

/// A connection that is silent between requests is closed after this long, as geth does.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Wait between the first half of an answer and the cut, so that the half is sent.
pub const FLUSH_TIME: Duration = Duration::from_millis(20);

/// A subscriber that accepts no data for this long is disconnected.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Limits of one `eth_getLogs` by range. By block hash there is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeLimits {
    /// Blocks in the range.
    pub blocks: u64,
    /// Logs in the answer.
    pub logs: usize,
}

/// How many calls a node answers within one second, those of a batch counted one by one. It refuses further ones with
/// the status 429; on a WebSocket, which has none, with the error -32005.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Calls answered per second.
    pub calls: u32,
    /// The `Retry-After` of a refusal, in seconds.
    pub retry_after: Option<u64>,
}

/// How a node refuses a batch that is too large.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BatchRefusal {
    /// The error -32600.
    #[default]
    Error,
    /// An HTTP status; on a WebSocket, which has none, the error -32005.
    Status(u16),
    /// An empty array.
    Nothing,
    /// Only the answer to its first call.
    First,
}
