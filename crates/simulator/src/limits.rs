//! Every limit of the simulator. A node on a test's machine must not grow without bound either,
//! whatever a client does to it.

use std::time::Duration;

/// Bytes of one request, as geth has it.
pub const REQUEST_BYTES: usize = 5 * 1024 * 1024;

/// Calls in one batch, as geth has it.
pub const BATCH_CALLS: usize = 1_000;

/// Open connections; one more is closed as soon as it is accepted.
pub const CONNECTIONS: usize = 512;

/// Calls in progress on one WebSocket; beyond it the socket is not read.
pub const CALLS_PER_SOCKET: usize = 128;

/// Subscriptions on one WebSocket.
pub const SUBSCRIPTIONS_PER_SOCKET: usize = 16;

/// Heads a subscriber may be behind before it is disconnected, as real nodes do. More than the
/// deepest reorg announces at once.
pub const HEADS_QUEUED: usize = 256;

/// Orphaned blocks that stay servable by hash, a chain.
pub const ORPHANS: usize = 512;

/// Blocks whose rendered receipts are kept, a chain. A block of 200 logs takes about 250 kB, so
/// this is only for those that are being asked for just now.
pub const RENDERED_RECEIPTS: usize = 8;

/// Bytes of rendered receipts that are kept, a chain: a block of 50,000 logs has 40 MB of them.
pub const RENDERED_BYTES: usize = 64 << 20;

/// Heads that are held back to be announced late.
pub const HEADS_HELD: usize = 256;

/// Announced blocks whose time of sending is remembered, a chain.
pub const SENT_TIMES: usize = 4_096;

/// Names of methods that are counted apart; further ones count as `other`.
pub const COUNTED_METHODS: usize = 64;

/// Blocks of a scheduled chain from its genesis to now. Each holds about 40 bytes of memory.
pub const HISTORY_BLOCKS: u64 = 10_000_000;

/// Blocks from the head down to the finalized one.
pub const FINALITY_DEPTH: u64 = 64;

/// Blocks from the head down to the safe one.
pub const SAFE_DEPTH: u64 = 32;

/// Different block bodies of one chain: enough that neighbours differ, few enough to keep.
pub const BODIES: usize = 64;

/// A connection that is silent between requests is closed after this long, as geth does.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Between the first half of an answer and the cut, so that the half is on its way by then.
pub const FLUSH_TIME: Duration = Duration::from_millis(20);

/// A subscriber that takes nothing for this long is disconnected.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// How much one `eth_getLogs` by range may ask for. By block hash there is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeLimits {
    /// Blocks in the range.
    pub blocks: u64,
    /// Logs in the answer.
    pub logs: usize,
}

/// How a node refuses a batch that is too large for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BatchRefusal {
    /// The error -32600.
    #[default]
    Error,
    /// An HTTP status; on a WebSocket, which has none, the error -32005.
    Status(u16),
    /// An empty array.
    Nothing,
    /// The answer to its first call alone.
    First,
}
