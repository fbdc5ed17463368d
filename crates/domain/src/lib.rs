//! Values and state machines of the ingestor: no I/O, no clock, no runtime.
//!
//! A block passes through the modules in this order: [`block`] parses what a node sent, [`canonical`] decides which
//! blocks form the chain, [`verify`] checks a block against its header, [`filter`] and [`event`] turn logs into
//! [`ProcessedEvent`]s, and [`marker`] and [`cursor`] are the records stored alongside. [`encoding`] defines how an
//! event is written in an entry, [`entry_id`] how entries are numbered. [`fold`] replays a stream and reports whether
//! it is complete and consistent.

pub mod block;
pub mod canonical;
pub mod cursor;
pub mod encoding;
pub mod entry_id;
pub mod event;
pub mod filter;
pub mod fold;
pub mod marker;
pub mod profile;
pub mod secret;
pub mod verify;

pub use block::{BlockRef, Header, Log, Receipt};
pub use canonical::CanonicalChain;
pub use cursor::Cursor;
pub use encoding::Encoding;
pub use entry_id::EntryId;
pub use event::ProcessedEvent;
pub use filter::{BloomTest, Filter};
pub use marker::{Marker, Op, Proof};
pub use profile::Profile;
pub use secret::Secret;

/// EIP-155 chain id.
pub type ChainId = u64;
