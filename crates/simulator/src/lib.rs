//! A chain simulator that speaks JSON-RPC: blocks that pass every check, scheduled reorgs, faults
//! on request. `ethhook simulate` runs it, and tests use it as a scripted node.
//!
//! A [`Node`] serves one or more [`Chain`]s over HTTP and WebSocket on one port. There are three
//! kinds of chains: one that follows the clock ([`Chain::scheduled`]), one that a test moves by
//! hand ([`Chain::manual`]), and one of recorded blocks ([`Chain::recorded`]).
//!
//! For every simulated block:
//! - its hash is that of its header, which has Ethereum's format since Prague;
//! - `receiptsRoot`, `logsBloom` and `gasUsed` follow from its receipts, of types 0 to 4 and of the
//!   chain's own: `0x7e` on OP Mainnet and Base, `0x6a` on Arbitrum One, `0x7f` on Polygon;
//! - its logs are events of ERC-20, ERC-721, ERC-1155 and ERC-2309;
//! - the same seed and the same steps give the same block.
//!
//! Not realistic: `transactionsRoot` is not the root of the transactions (except for the empty root
//! if there are none), transactions are not signed, `stateRoot` is made up.
//!
//! Everything that providers do wrong can be switched on: a [`Fault`] of a call and a [`HeadFault`]
//! of an announcement through [`Faults`], a certain number of times; both at random from a seed by
//! [`Chain::misbehave`]; and states that last until they are ended ([`Chain::set_lag`],
//! [`Chain::set_muted`], [`Chain::set_finalized_lie`], [`Chain::set_idle_limit`]).
//! [`Chain::behave`] ends all of it. A [`Chain::view`] is a second endpoint of the same chain with
//! its own faults.
//!
//! The last [`limits::ORPHANS`] orphaned blocks of a chain can still be requested by hash.
//!
//! In addition to Ethereum's methods there are two of the simulator's own, which are exempt from
//! faults and counters: `sim_sentAt(hash)` returns the unix microseconds at which the block was
//! announced, or null; `sim_stats()` returns the counters of what was asked and sent.

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
mod stats;

pub use block::Block;
pub use chain::{Chain, Transport};
pub use faults::{BloomLie, Fault, Faults, FinalizedLie, HeadFault, On};
pub use limits::{BatchRefusal, RangeLimits, RateLimit};
pub use manual::{Contents, Finality, ManualChain, ManualSpec};
pub use mischief::Mischief;
pub use node::{Node, NodeHandle, RunningNode};
pub use recorded::{RecordedChain, RecordedError};
pub use scheduled::{ChainSpec, SpecError};
pub use stats::Stats;
