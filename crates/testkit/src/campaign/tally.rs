//! What a campaign did and found.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What a campaign did and found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// The plan's seed.
    pub seed: u64,
    /// How long it ran, in seconds.
    pub seconds: u64,
    /// Rounds after which stream and chain were compared.
    pub rounds: u64,
    /// How often each kind of fault was caused.
    pub faults: BTreeMap<String, u64>,
    /// How often each fail point aborted the process.
    pub fail_points_reached: BTreeMap<String, u64>,
    /// How often the node misbehaved, by the simulator's name of the fault.
    pub wrongs_of_the_node: BTreeMap<String, u64>,
    /// Number of reorgs of each depth.
    pub reorgs_by_depth: BTreeMap<u64, u64>,
    /// Starts that failed because Redis was down, and were repeated.
    pub refused_starts: u64,
    /// Blocks compared with the chain; a block counts once in each comparison.
    pub blocks_compared: usize,
    /// Events compared with the chain; an event counts once in each comparison.
    pub events_compared: usize,
    /// Entries that took back another one, counted at the end of each world.
    pub removed_entries: usize,
    /// Bytes of logs, pages, keys and values searched at the end of each world without finding a
    /// secret.
    pub bytes_without_secrets: usize,
    /// The longest time until a stream was equal to its chain, ms.
    pub slowest_settling_ms: u64,
    /// The longest time from SIGTERM to exit, ms.
    pub slowest_exit_ms: u64,
    /// The longest time from the pause of a lease holder to the first step of another, ms.
    pub slowest_takeover_ms: u64,
    /// Memory over time, if it was measured.
    pub memory: Option<Memory>,
    /// Empty if every comparison succeeded.
    pub failure: String,
}

/// Memory of a long run under even load: medians of its second and its last quarter.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Samples taken, evenly over the run.
    pub samples: usize,
    /// Resident memory of the ingestor, bytes.
    pub ingestor: Quarters,
    /// `used_memory` of Redis, bytes.
    pub redis: Quarters,
    /// Entries that retention removed in that time.
    pub trimmed_entries: u64,
    /// Entries that the group read and acknowledged.
    pub read_entries: u64,
}

/// Medians of a series.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarters {
    /// Median of the second quarter: the first is for warming up.
    pub second: u64,
    /// Median of the last quarter.
    pub last: u64,
    /// The highest of all samples.
    pub highest: u64,
}

impl Quarters {
    /// Allowed difference between two medians that count as equal: an allocator keeps memory it
    /// once obtained.
    const SLACK: u64 = 2 << 20;

    /// From samples in chronological order.
    #[must_use]
    pub fn of(samples: &[u64]) -> Self {
        let quarter = samples.len() / 4;
        let median = |samples: &[u64]| {
            let mut sorted = samples.to_vec();
            sorted.sort_unstable();
            sorted.get(sorted.len() / 2).copied().unwrap_or_default()
        };
        Self {
            second: median(&samples[quarter..2 * quarter]),
            last: median(&samples[samples.len() - quarter..]),
            highest: samples.iter().copied().max().unwrap_or_default(),
        }
    }

    /// Whether the last quarter's median is at most 5 % and 2 MiB above the second's.
    #[must_use]
    pub fn is_flat(self) -> bool {
        self.last <= self.second + self.second / 20 + Self::SLACK
    }
}

impl Tally {
    /// The text for the last column of the table.
    #[must_use]
    pub fn result(&self) -> &'static str {
        if self.failure.is_empty() { "equal" } else { "FAILED" }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = self.result();
        let mut line = |what: &str, count: u64| writeln!(f, "{what:<62} {count:>7}  {result:>6}");
        for (kind, count) in &self.faults {
            line(kind, *count)?;
        }
        for (kind, count) in &self.wrongs_of_the_node {
            line(&format!("node's wrong answer or head: {kind}"), *count)?;
        }
        for (point, count) in &self.fail_points_reached {
            line(&format!("killed itself at {point}"), *count)?;
        }
        if let Some(memory) = &self.memory {
            writeln!(f, "{memory:?}")?;
        }
        writeln!(
            f,
            "seed {}: {} rounds in {} s; compared {} blocks with {} events, {} entries taken back; \
             settled within {} ms; SIGTERM to exit within {} ms; {} starts refused without Redis; no secret in {} bytes",
            self.seed,
            self.rounds,
            self.seconds,
            self.blocks_compared,
            self.events_compared,
            self.removed_entries,
            self.slowest_settling_ms,
            self.slowest_exit_ms,
            self.refused_starts,
            self.bytes_without_secrets
        )?;
        let equal = self.failure.is_empty();
        f.write_str(if equal { "nothing lost, doubled or out of order" } else { &self.failure })
    }
}
