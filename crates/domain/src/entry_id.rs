//! IDs of stream entries: `<milliseconds>-<sequence>`, ordered as Redis orders them.

use std::fmt;
use std::str::FromStr;

/// The ID of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// When Redis took the entry in, unix milliseconds (unless the clock went back).
    pub ms: u64,
    /// Position among the entries of that millisecond.
    pub seq: u64,
}

impl EntryId {
    /// Below every entry: Redis never gives it.
    pub const MIN: Self = Self { ms: 0, seq: 0 };
    /// Above every entry but one that no clock will reach.
    pub const MAX: Self = Self { ms: u64::MAX, seq: u64::MAX };

    /// The smallest ID above this one.
    #[must_use]
    pub fn next(self) -> Self {
        match self.seq.checked_add(1) {
            Some(seq) => Self { ms: self.ms, seq },
            None => Self { ms: self.ms.saturating_add(1), seq: 0 },
        }
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

impl FromStr for EntryId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (ms, seq) = text.split_once('-').ok_or(())?;
        Ok(Self { ms: ms.parse().map_err(|_| ())?, seq: seq.parse().map_err(|_| ())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_ordered_by_number_not_by_text() {
        let id = |text: &str| text.parse::<EntryId>().unwrap();
        assert!(id("9-0") < id("10-0"));
        assert!(id("10-9") < id("10-10"));
        assert_eq!(id("10-9").next(), id("10-10"));
        assert_eq!(id(&format!("10-{}", u64::MAX)).next(), id("11-0"));
        assert_eq!(id("10-9").to_string(), "10-9");
        assert!("10".parse::<EntryId>().is_err());
    }
}
