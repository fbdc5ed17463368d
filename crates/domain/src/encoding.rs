//! How an event stands in an entry: as separate fields, or packed into one.
//!
//! A stream holds one encoding from its first entry to its last, and its cursor says which. Reading
//! asks nobody: a packed entry has the one field [`PACKED`], which is none of the others' names.

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
    /// All in the field [`PACKED`]: a MessagePack array of the same values in the same order.
    /// Numbers are integers, hashes, `contract` and `data` binary, `topics` an array of binaries,
    /// `removed` a boolean. Half the memory; why no map is in ADR 12.
    Msgpack,
}

impl Encoding {
    /// As it is stored and configured.
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
    // A `Vec` takes all that is written to it, and no value of an event is refused.
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
