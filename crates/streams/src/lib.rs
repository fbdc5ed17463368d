//! Redis as the ingestor uses it: every key, every script, publish and retention.
//!
//! One [`Publisher`] writes a chain's stream and holds the chain's lease. Everything it writes is a [`Step`], applied
//! by one transaction: a block's entries, its marker, its dedup record and the cursor change together or not at all
//! (G4), and only if writer, epoch, `seq` and tip hash are what the publisher believes them to be (G5). So a step
//! whose answer was lost can simply be repeated, and a Redis that lost its latest writes refuses the next step: the
//! publisher then opens again and continues from the cursor it finds.
//!
//! [`Streams`] reads what was written, trims streams ([`RetentionPolicy`]) and checks the server before anything
//! starts ([`Streams::preflight`]). No error of this crate contains the Redis URL.

mod append_only;
mod connection;
mod errors;
mod fail_point;
mod group;
mod info;
mod keys;
mod lease;
mod location;
mod memory;
mod preflight;
mod publisher;
mod reader;
mod remembered;
mod replay;
mod request;
mod reset;
mod retention;
mod script;
mod search;
mod servers;
mod size;
mod standing;
mod step;
mod tail;
mod window;

pub use connection::{ConnectError, RedisConfig, Streams};
pub use errors::{FailureKind, RedisFailure};
pub use fail_point::fail_point;
pub use group::{Consumer, Group, GroupError, GroupLag, GroupReader};
pub use keys::Keys;
pub use lease::{Holder, LeaseError, OpenError, WriterOptions};
pub use memory::Memory;
pub use preflight::{PreflightError, ServerInfo};
pub use publisher::Publisher;
pub use reader::{EventEntry, ReadError};
pub use replay::{Replay, ReplayError, ReplaySpec};
pub use reset::{Inventory, ResetError};
pub use retention::{RetentionPolicy, Swept};
pub use search::StreamPosition;
pub use standing::Standing;
pub use step::{DEEP_DEDUP_TTL, Events, MarkedBlock, Outcome, Step, StepError};
pub use tail::Tail;
pub use window::PublishedBlock;
