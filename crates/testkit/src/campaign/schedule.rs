//! Draws what happens and when from one seed, so that a seed repeats it.

use std::time::Duration;

use ethhook_simulator::{Contents, Fault};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::action::{ALL_LOGS, Action, FILTERS, LinkFault, Side, Topics, WorldPlan};

/// Points where the binary can be made to abort itself, with the feature `fail-points`.
pub(super) const FAIL_POINTS: &[&str] = &[
    "block-in-flight",
    "before-add",
    "between-parts",
    "after-add",
    "before-remove",
    "after-remove",
    "before-finalized",
    "after-finalized",
    "lease-taken",
    "before-release",
];
/// The level of `VERIFY` at which logs may be fetched without their receipts.
pub(super) const BLOOM: &str = "bloom";
/// Calls that faults are armed for.
const METHODS: &[&str] = &["eth_getBlockReceipts", "eth_getBlockByNumber", "eth_getBlockByHash"];

/// Draws worlds and rounds without end.
pub(super) struct Schedule {
    random: SmallRng,
    worlds: u32,
    fail_points: bool,
}

impl Schedule {
    pub(super) fn new(seed: u64, fail_points: bool) -> Self {
        Self { random: SmallRng::seed_from_u64(seed), worlds: 0, fail_points }
    }

    pub(super) fn world(&mut self) -> WorldPlan {
        self.worlds += 1;
        let random = &mut self.random;
        // Only the bloom proves logs that are fetched without their receipts.
        let (verify, of_chains) = [
            ("receipts_root", ""),
            ("receipts_root", ""),
            ("receipts_root", "batch_ms = 300"),
            (BLOOM, "fetch = 'logs'"),
            (BLOOM, "fetch = 'logs'\nbatch_ms = 300"),
        ][random.random_range(0..5)];
        let confirmations = [0, 0, 0, 1, 3, 12][random.random_range(0..6)];
        WorldPlan {
            rounds: 4,
            appendfsync: if self.worlds.is_multiple_of(2) { "always" } else { "everysec" },
            standby: !(self.worlds / 2).is_multiple_of(2),
            lease_ms: 2_000,
            http: random.random_bool(0.5),
            chains: if random.random_bool(0.25) { 2 } else { 1 },
            endpoints: random.random_range(1..=3),
            events_per_block: random.random_range(1..40),
            empty_every: [0, 2, 3, 7][random.random_range(0..4)],
            encoding: encoding(random),
            confirmations,
            // There must be a block to publish.
            initial_blocks: confirmations,
            topics: topics(random),
            verify,
            of_chains,
            blocks_per_second: 0,
            lead_ms: 0,
            ..WorldPlan::small(random.random())
        }
    }

    /// The actions of a round, each with the time to wait after it.
    pub(super) fn round(&mut self, world: &WorldPlan) -> Vec<(Action, Duration)> {
        let count = self.random.random_range(8..16);
        (0..count)
            .map(|_| {
                let action = self.action(world);
                let longest = if self.random.random_bool(0.3) { 1_000 } else { 250 };
                (action, Duration::from_millis(self.random.random_range(0..longest)))
            })
            .collect()
    }

    fn action(&mut self, world: &WorldPlan) -> Action {
        let random = &mut self.random;
        let who = if world.standby { random.random_range(0..2) } else { 0 };
        let at = random.random_range(0..world.endpoints);
        let millis = random.random_range(20..1_500);
        match random.random_range(0..100) {
            0..16 => Action::Mine { blocks: random.random_range(1..30) },
            16..18 => Action::MineEmpty { blocks: random.random_range(1..8) },
            18..20 => Action::MineLarge { events: random.random_range(1_000..4_000) },
            20..30 => {
                let contents = if random.random_bool(0.5) {
                    Contents::Fresh
                } else {
                    Contents::SameTransactions
                };
                let longer_by = random.random_range(0..4);
                Action::Reorg { depth: depth(random), longer_by, contents }
            }
            30..33 => Action::SwitchBack,
            33..34 => Action::Part { at, depth: random.random_range(1..=6), millis },
            34..36 => Action::MuteHeads { at },
            36..38 => {
                let blocks = random.random_range(2..8);
                Action::ShuffleHeads { at, blocks, first: random.random_range(0..8) }
            }
            38..39 => Action::CutSockets { at },
            39..43 => Action::Misbehave {
                at,
                seed: random.random(),
                per_mille: random.random_range(20..400),
            },
            43..51 => provider(random, at, world.verify),
            51..59 => link(random, at, millis),
            59..64 => Action::RedisKill { millis },
            64..67 => Action::RedisCut { millionths: cut_at(random), millis },
            67..69 => Action::RedisFull { millis },
            69..71 => Action::RedisPause { millis },
            71..78 => Action::Kill { who, millis },
            78..80 => Action::Refilter { who, topics: topics(random), millis },
            80..86 => Action::KillAndReorg { who, depth: depth(random), millis },
            86..88 => Action::Pause { who, millis },
            88..91 if world.standby => Action::PausePastLease { who },
            88..94 => Action::Terminate { who, millis },
            _ => {
                let point = FAIL_POINTS.choose(random).copied().unwrap_or(FAIL_POINTS[0]);
                let count = random.random_range(1..6);
                if self.fail_points {
                    Action::FailPoint { who, point, count }
                } else {
                    Action::Kill { who, millis }
                }
            }
        }
    }
}

pub(super) fn encoding(random: &mut SmallRng) -> &'static str {
    if random.random_bool(0.5) { "msgpack" } else { "fields" }
}

/// Most chains are not filtered.
fn topics(random: &mut SmallRng) -> Topics {
    let filtered = random.random_bool(0.4);
    FILTERS.choose(random).copied().filter(|_| filtered).unwrap_or(ALL_LOGS)
}

/// Shallow reorgs are the most common; none is deeper than 64.
fn depth(random: &mut SmallRng) -> u64 {
    let deepest = if random.random_bool(0.5) { 6 } else { 64 };
    random.random_range(1..=deepest)
}

/// Usually the last writes are lost, sometimes any part.
pub(super) fn cut_at(random: &mut SmallRng) -> u64 {
    let from = if random.random_bool(0.7) { 900_000 } else { 0 };
    random.random_range(from..1_000_000)
}

fn link(random: &mut SmallRng, at: usize, millis: u64) -> Action {
    let side = if random.random_bool(0.5) { Side::Node(at) } else { Side::Redis };
    let fault = match random.random_range(0..6) {
        0 => LinkFault::Cut,
        1 => LinkFault::Drop,
        2 => LinkFault::HalfOpen,
        3 => LinkFault::CutAnswer(random.random_range(1..20_000)),
        4 => LinkFault::Slices,
        _ => LinkFault::Delay(random.random_range(5..300)),
    };
    Action::Link { side, fault, millis }
}

fn provider(random: &mut SmallRng, at: usize, verify: &str) -> Action {
    let mut faults = vec![
        Fault::Null,
        Fault::Empty,
        Fault::DropReceipt,
        Fault::OtherBranch,
        Fault::Error(-32000, "header not found".into()),
        Fault::Error(-32005, "limit exceeded".into()),
        Fault::Error(-32603, "internal error".into()),
        Fault::Html,
        Fault::InvalidJson,
        Fault::WrongId,
        Fault::Cut,
        Fault::NoAnswer,
        Fault::Delay(Duration::from_millis(random.random_range(50..800))),
        Fault::HttpStatus(429, Some(1)),
        Fault::HttpStatus(503, None),
    ];
    if verify != BLOOM {
        faults.extend([Fault::DropLog, Fault::AlterLog]);
    }
    let fault = faults.choose(random).cloned().unwrap_or(Fault::Null);
    // Only receipts contain what these faults remove or alter.
    let method = match fault {
        Fault::DropReceipt | Fault::DropLog | Fault::AlterLog => METHODS[0],
        _ => METHODS.choose(random).copied().unwrap_or(METHODS[0]),
    };
    Action::Provider { at, fault, method, calls: random.random_range(1..6) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn drawn(seed: u64, fail_points: bool) -> Vec<(WorldPlan, Vec<(Action, Duration)>)> {
        let mut schedule = Schedule::new(seed, fail_points);
        let mut worlds = Vec::new();
        for _ in 0..40 {
            let world = schedule.world();
            let rounds = (0..world.rounds).flat_map(|_| schedule.round(&world)).collect();
            worlds.push((world, rounds));
        }
        worlds
    }

    #[test]
    fn a_seed_repeats_its_schedule_and_another_has_another() {
        assert_eq!(drawn(1, true), drawn(1, true));
        assert_ne!(drawn(1, true), drawn(2, true));
    }

    #[test]
    fn everything_is_drawn_and_fail_points_only_where_they_are_compiled() {
        let kinds = |fail_points| -> BTreeSet<String> {
            let worlds = drawn(1, fail_points);
            let kinds = |(world, round): &(WorldPlan, Vec<_>)| {
                round.iter().map(|(action, _): &(Action, _)| action.kind(world)).collect::<Vec<_>>()
            };
            worlds.iter().flat_map(kinds).collect()
        };
        let points = |kinds: &BTreeSet<String>| {
            kinds.iter().filter(|kind| kind.starts_with("fail point")).count()
        };
        let (with, without) = (kinds(true), kinds(false));
        assert_eq!((points(&with), points(&without)), (FAIL_POINTS.len(), 0));
        for part in [
            "kill -9",
            "SIGTERM",
            "past its lease",
            "always",
            "everysec",
            "cut",
            "memory",
            "old branch",
            "another filter",
        ] {
            assert!(without.iter().any(|kind| kind.contains(part)), "{part}: {without:?}");
        }
    }

    #[test]
    fn no_reorg_is_deeper_than_64() {
        for (_, round) in drawn(3, false) {
            for (action, _) in round {
                if let Action::Reorg { depth, .. } | Action::KillAndReorg { depth, .. } = action {
                    assert!((1..=64).contains(&depth), "{depth}");
                }
            }
        }
    }
}
