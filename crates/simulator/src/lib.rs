//! A chain simulator that speaks JSON-RPC: blocks that check, reorgs on schedule, faults on
//! request. It is what `ethhook simulate` runs, and the scripted node of the tests.
//!
//! A [`Node`] serves one or more [`Chain`]s over HTTP and WebSocket on one port. A chain is one of
//! three kinds: it follows the clock ([`Chain::scheduled`]), a test moves it by hand
//! ([`Chain::manual`]), or it consists of blocks that others recorded ([`Chain::recorded`]).
//!
//! What holds of every simulated block:
//! - its hash is that of its header, and its header is one of Ethereum's since Prague;
//! - `receiptsRoot`, `logsBloom` and `gasUsed` follow from its receipts, of types 0 to 4 and of the
//!   chain's own: `0x7e` on OP Mainnet and Base, `0x6a` on Arbitrum One, `0x7f` on Polygon;
//! - its logs are events of ERC-20, ERC-721, ERC-1155 and ERC-2309;
//! - the same seed and the same steps give the same block.
//!
//! What does not: `transactionsRoot` is not the root of the transactions (though it is the empty
//! root where there are none), nobody signed them, `stateRoot` is made up.
//!
//! Everything that providers do wrong can be switched on: a [`Fault`] of a call and a [`HeadFault`]
//! of an announcement through [`Faults`], a certain number of times; both at random from a seed by
//! [`Chain::misbehave`]; and states that last until they are ended ([`Chain::set_lag`],
//! [`Chain::set_muted`], [`Chain::set_finalized_lie`], [`Chain::set_idle_limit`]).
//! [`Chain::behave`] ends it all. A [`Chain::view`] is a second endpoint of the same chain that goes
//! wrong, or not, on its own.
//!
//! Orphaned blocks stay servable by hash, the last [`limits::ORPHANS`] of a chain.
//!
//! Beside Ethereum's methods there are two of its own, which no fault touches and no counter
//! counts: `sim_sentAt(hash)` gives the unix microseconds at which the block was announced, or
//! null; `sim_stats()` gives what was asked and sent so far.

pub mod limits;
pub mod recorded;

mod block;
mod body;
mod chain;
mod events;
mod faults;
mod json;
mod manual;
mod methods;
mod mischief;
mod node;
mod rpc;
mod scheduled;
mod seed;
mod socket;

pub use block::Block;
pub use chain::{Chain, Stats, Transport};
pub use faults::{BloomLie, Fault, Faults, FinalizedLie, HeadFault, On};
pub use limits::{BatchRefusal, RangeLimits};
pub use manual::{Contents, Finality, ManualChain, ManualSpec};
pub use mischief::Mischief;
pub use node::{Node, NodeHandle, RunningNode};
pub use recorded::{RecordedChain, RecordedError};
pub use scheduled::{ChainSpec, SpecError};
