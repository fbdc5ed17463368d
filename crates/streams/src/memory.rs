//! How full Redis is.

use ethhook_domain::ChainId;

use crate::connection::Streams;
use crate::info::field;
use crate::keys::Keys;
use crate::reader::{ReadError, query};

/// The memory of a master, in bytes (<https://redis.io/docs/latest/commands/info/>).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// What counts against `maxmemory`.
    pub used: u64,
    /// `maxmemory`; none if there is no limit.
    pub max: Option<u64>,
}

impl Memory {
    /// Nearly full: more than this many percent are used.
    const NEARLY_FULL: u64 = 90;
    /// The same while Redis refuses a step for lack of memory. In a transaction, an entry takes three times as much
    /// until it is in the stream: a large block may need more than a tenth.
    const FULL_FOR_A_STEP: u64 = 75;

    pub(crate) fn of(info: &str) -> Self {
        let bytes = |name| field(info, name).and_then(|bytes| bytes.parse::<u64>().ok());
        let used = bytes("used_memory").unwrap_or(0);
        let exempt = bytes("mem_not_counted_for_evict").unwrap_or(0);
        Self {
            used: used.saturating_sub(exempt),
            max: bytes("maxmemory").filter(|bytes| *bytes > 0),
        }
    }

    /// Bytes that a chain using `held` bytes should free: its share of what exceeds the threshold.
    pub(crate) fn part_in_excess(&self, held: u64, redis_refuses_steps: bool) -> u64 {
        let Some(max) = self.max else { return 0 };
        let percent = if redis_refuses_steps { Self::FULL_FOR_A_STEP } else { Self::NEARLY_FULL };
        let excess = self.used.saturating_sub(max / 100 * percent);
        let part = u128::from(excess) * u128::from(held) / u128::from(self.used.max(1));
        part.try_into().unwrap_or(u64::MAX)
    }
}

impl Streams {
    /// The memory of the chain's master.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn memory(&self, chain: ChainId) -> Result<Memory, ReadError> {
        let keys = Keys::of(chain);
        let mut command = redis::cmd("INFO");
        command.arg("memory");
        let info: String = query(&command, &mut *self.pooled(&keys).await?, &keys.events).await?;
        Ok(Memory::of(&info))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_replicas_and_the_append_only_file_take_does_not_count() {
        let of = |max| {
            let info = format!(
                "# Memory\r\nused_memory:1500\r\nused_memory_peak:9000\r\nmaxmemory:{max}\r\n\
                 mem_not_counted_for_evict:500\r\n"
            );
            Memory::of(&info)
        };
        assert_eq!(of(2_000), Memory { used: 1_000, max: Some(2_000) });
        assert_eq!(of(0), Memory { used: 1_000, max: None });
    }

    #[test]
    fn only_what_is_used_beyond_nearly_full_is_shared_out() {
        let part = |used, max, held| Memory { used, max }.part_in_excess(held, false);
        assert_eq!(part(900, Some(1_000), 450), 0);
        assert_eq!(part(1_000, Some(1_000), 500), 50);
        assert_eq!(part(1_000, Some(1_000), 1_000), 100);
        assert_eq!(part(1_000, None, 500), 0);
        assert_eq!(Memory { used: 900, max: Some(1_000) }.part_in_excess(450, true), 75);
        assert_eq!(part(0, Some(1_000), 500), 0);
        assert_eq!(part(u64::MAX, Some(100), u64::MAX), u64::MAX - 90);
    }
}
