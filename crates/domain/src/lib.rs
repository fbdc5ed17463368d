//! Values and state machines of the ingestor: no I/O, no clock, no runtime.
//!
//! A block travels through this crate in the order of its modules: [`block`] parses what a node
//! said, [`canonical`] decides which blocks the chain consists of, [`verify`] holds a block against
//! its header, [`filter`] and [`event`] turn logs into [`ProcessedEvent`]s, and [`marker`] and
//! [`cursor`] are what is stored beside them; [`encoding`] says how an event stands in an entry, and
//! [`entry_id`] how entries are numbered. [`fold`] replays a stream and says whether it is whole.

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
