//! How an event is written in an entry: as separate fields, or packed into one.
//!
//! A stream has one encoding throughout, recorded in its cursor. A reader does not need the cursor:
//! a packed entry has the single field [`PACKED`], a name that the other encoding does not use.

use std::fmt;
use std::str::FromStr;

use crate::ProcessedEvent;
use crate::event::CodecError;

/// The one field of a packed entry.
pub const PACKED: &str = "e";

/// How a stream's entries are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// A field for each value, as text: [`crate::event::FIELDS`].
    #[default]
    Fields,
    /// All values in the field [`PACKED`]: a MessagePack array in the same order. Numbers are
    /// integers, hashes, `contract` and `data` binary, `topics` an array of binaries, `removed` a
    /// boolean. Takes half the memory; ADR 12 explains why it is not a map.
    Msgpack,
}

impl Encoding {
    /// The name used in storage and configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fields => "fields",
            Self::Msgpack => "msgpack",
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Encoding {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        [Self::Fields, Self::Msgpack].into_iter().find(|known| known.as_str() == s).ok_or(())
    }
}

/// Appends `event` as MessagePack to `buffer`.
pub(crate) fn pack(event: &ProcessedEvent, buffer: &mut Vec<u8>) {
    // Writing to a `Vec` cannot fail, and every value of an event can be encoded.
    let written = rmp_serde::encode::write(buffer, event);
    debug_assert!(written.is_ok(), "{written:?}");
}

pub(crate) fn unpack(mut packed: &[u8]) -> Result<ProcessedEvent, CodecError> {
    let error = |problem| CodecError { field: PACKED, problem };
    let event = rmp_serde::from_read(&mut packed)
        .map_err(|e| error(format!("is not a MessagePack event: {e}")))?;
    match packed.len() {
        0 => Ok(event),
        more => Err(error(format!("has {more} bytes after its event"))),
    }
}
