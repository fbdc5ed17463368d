//! IDs of stream entries: `<milliseconds>-<sequence>`, ordered as Redis orders them.

use std::fmt;
use std::str::FromStr;

/// The ID of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId {
    /// When Redis added the entry, unix milliseconds (inexact if the clock went back).
    pub ms: u64,
    /// Position among the entries of that millisecond.
    pub seq: u64,
}

impl EntryId {
    /// Below every entry: Redis never assigns it.
    pub const MIN: Self = Self { ms: 0, seq: 0 };
    /// Above every entry that a real clock can produce.
    pub const MAX: Self = Self { ms: u64::MAX, seq: u64::MAX };

    /// The smallest ID above this one, unless it is [`EntryId::MAX`].
    #[must_use]
    pub fn next(self) -> Self {
        match self.seq.checked_add(1) {
            Some(seq) => Self { ms: self.ms, seq },
            None if self.ms < u64::MAX => Self { ms: self.ms + 1, seq: 0 },
            None => self,
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
        let number = |text: &str| {
            // `parse` would accept a leading `+`.
            let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
            if is_number { text.parse().map_err(|_| ()) } else { Err(()) }
        };
        Ok(Self { ms: number(ms)?, seq: number(seq)? })
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
        assert_eq!(EntryId::MAX.next(), EntryId::MAX);
        for bad in ["10", "10-", "-1", "+1-0", "1-+0", "a-0", ""] {
            assert!(bad.parse::<EntryId>().is_err(), "{bad}");
        }
    }
}
