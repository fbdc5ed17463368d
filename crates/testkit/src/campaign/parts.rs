//! Parts of the campaign: each repeats one kind of fault many times under load, and compares every
//! time, or every few times.

use std::time::Duration;

use ethhook_simulator::{Contents, Mischief};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::action::{Action, Form, WorldPlan};
use super::schedule::{BLOOM, FAIL_POINTS, cut_at, encoding};

/// Reorg depths go from 1 to this.
const DEEPEST_REORG: u64 = 64;

/// Repetitions of one kind of fault.
#[derive(Debug)]
pub struct Part {
    /// Name on the command line.
    pub name: &'static str,
    /// What is repeated.
    pub about: &'static str,
    /// How many times in a full run.
    pub count: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Repeated {
        /// Repetitions between two comparisons.
        group: u64,
        /// How many actions are needed for a count.
        actions: fn(u64) -> u64,
        world: fn(&mut SmallRng, u64) -> WorldPlan,
        /// The nth action.
        action: fn(&mut SmallRng, u64, u64) -> (Action, Duration),
    },
    /// Even load for this many minutes, while memory is measured.
    Soak,
}

fn same(count: u64) -> u64 {
    count
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// All parts, in the order of a full run.
pub static PARTS: &[Part] = &[
    Part {
        name: "kill",
        about: "kill -9 of the ingestor",
        count: 200,
        kind: Kind::Repeated {
            group: 5,
            actions: same,
            world: |random, _| WorldPlan { rounds: 5, ..small(random) },
            action: |random, _, _| {
                let millis = random.random_range(0..300);
                (Action::Kill { who: 0, millis }, ms(millis + random.random_range(50..900)))
            },
        },
    },
    Part {
        name: "fail-points",
        about: "the ingestor kills itself at each named place",
        count: 100,
        kind: Kind::Repeated {
            group: 1,
            actions: same,
            // Finality of new blocks needs a new chain each time.
            world: |random, _| WorldPlan { rounds: 3, ..small(random) },
            action: |random, nth, _| {
                let point = point_of(nth);
                let count = random.random_range(1..6);
                (Action::FailPoint { who: 0, point, count }, ms(1_500))
            },
        },
    },
    Part {
        name: "sigterm",
        about: "SIGTERM under load, each out within 8 s",
        count: 30,
        kind: Kind::Repeated {
            group: 3,
            actions: same,
            world: |random, _| WorldPlan {
                blocks_per_second: 40,
                events_per_block: 40,
                ..small(random)
            },
            action: |random, _, _| {
                let millis = random.random_range(0..300);
                (Action::Terminate { who: 0, millis }, ms(millis + random.random_range(50..1_500)))
            },
        },
    },
    Part {
        name: "redis-everysec",
        about: "kill -9 of Redis, appendfsync everysec",
        count: 50,
        kind: Kind::Repeated {
            group: 1,
            actions: same,
            world: |random, _| small(random),
            action: |random, _, _| redis_killed(random),
        },
    },
    Part {
        name: "redis-always",
        about: "kill -9 of Redis, appendfsync always",
        count: 50,
        kind: Kind::Repeated {
            group: 1,
            actions: same,
            world: |random, _| WorldPlan { appendfsync: "always", ..small(random) },
            action: |random, _, _| redis_killed(random),
        },
    },
    Part {
        name: "redis-cut",
        about: "kill -9 of Redis, append-only file cut at a random byte",
        count: 50,
        kind: Kind::Repeated {
            group: 1,
            actions: same,
            world: |random, _| small(random),
            action: |random, _, _| {
                let millis = random.random_range(0..600);
                let action = Action::RedisCut { millionths: cut_at(random), millis };
                (action, ms(millis + random.random_range(300..1_200)))
            },
        },
    },
    Part {
        name: "redis-full",
        about: "Redis out of memory for a while",
        count: 10,
        kind: Kind::Repeated {
            group: 1,
            actions: same,
            world: |random, _| small(random),
            action: |random, _, _| {
                let millis = random.random_range(500..4_000);
                (Action::RedisFull { millis }, ms(millis + 500))
            },
        },
    },
    Part {
        name: "sentinel",
        about: "Sentinels fail over to a replica that lags",
        count: 10,
        kind: Kind::Repeated {
            group: 1,
            actions: same,
            world: |random, _| WorldPlan { redis: Form::Sentinel, ..small(random) },
            action: |_, _, _| (Action::RedisFailOver, ms(500)),
        },
    },
    Part {
        name: "cluster",
        about: "five chains on three masters, one of which fails over to a replica that lags",
        count: 10,
        kind: Kind::Repeated {
            group: 1,
            actions: same,
            world: |random, _| WorldPlan {
                redis: Form::Cluster,
                chains: 5,
                blocks_per_second: 10,
                ..small(random)
            },
            action: |_, _, _| (Action::RedisFailOver, ms(500)),
        },
    },
    Part {
        name: "reorg",
        about: "reorgs of depth 1 to 64, half of them while the ingestor is down",
        count: 300,
        kind: Kind::Repeated {
            group: 1,
            actions: same,
            world: |random, _| WorldPlan {
                rounds: 20,
                initial_blocks: DEEPEST_REORG + 10,
                // Blocks must be published before they are reorganised.
                blocks_per_second: 5,
                lead_ms: 0,
                ..small(random)
            },
            action: |random, nth, _| {
                let depth = nth / 2 % DEEPEST_REORG + 1;
                let millis = random.random_range(0..300);
                if nth % 2 == 1 {
                    return (Action::KillAndReorg { who: 0, depth, millis }, ms(millis));
                }
                let contents =
                    if nth % 4 == 0 { Contents::Fresh } else { Contents::SameTransactions };
                (Action::Reorg { depth, longer_by: 1, contents }, ms(millis))
            },
        },
    },
    Part {
        name: "below-finalized",
        about: "a reorg below the finalized block: alarm, nothing published, clear-alarm",
        count: 5,
        kind: Kind::Repeated {
            group: 1,
            actions: same,
            world: |random, _| WorldPlan {
                rounds: 1,
                finality_depth: 4,
                blocks_per_second: 10,
                ..small(random)
            },
            action: |_, _, _| (Action::ReorgBelowFinalized, ms(100)),
        },
    },
    Part {
        name: "takeover",
        about: "two ingestors, the owner stopped past its lease",
        count: 30,
        kind: Kind::Repeated {
            group: 1,
            actions: same,
            world: |random, _| WorldPlan { standby: true, ..small(random) },
            action: |random, _, _| (Action::PauseOwner, ms(random.random_range(0..400))),
        },
    },
    Part {
        name: "provider",
        about: "each fault of providers alone, so often that each takes effect this many times",
        count: 20,
        kind: Kind::Repeated {
            group: 1,
            actions: |_| Mischief::kinds().count() as u64,
            world: |random, nth| provider_world(small(random), kind_of(nth)),
            action: |random, nth, times| {
                let (kind, seed) = (kind_of(nth), random.random());
                (Action::GoWrong { kind, seed, times }, Duration::ZERO)
            },
        },
    },
    Part {
        name: "soak",
        about: "even load for this many minutes, retention at work, memory looked at",
        count: 20,
        kind: Kind::Soak,
    },
];

fn small(random: &mut SmallRng) -> WorldPlan {
    let http = random.random_bool(0.5);
    WorldPlan { http, encoding: encoding(random), ..WorldPlan::small(random.random()) }
}

fn redis_killed(random: &mut SmallRng) -> (Action, Duration) {
    let millis = random.random_range(0..600);
    (Action::RedisKill { millis }, ms(millis + random.random_range(300..1_200)))
}

fn index(nth: u64, of: usize) -> usize {
    usize::try_from(nth).unwrap_or_default() % of
}

fn point_of(nth: u64) -> &'static str {
    FAIL_POINTS[index(nth, FAIL_POINTS.len())]
}

fn kind_of(nth: u64) -> &'static str {
    let kinds: Vec<_> = Mischief::kinds().collect();
    kinds[index(nth, kinds.len())]
}

/// A world in which this kind of fault can take effect.
fn provider_world(small: WorldPlan, kind: &str) -> WorldPlan {
    // A new world for each kind, because an endpoint that was set aside for long would stay so.
    // Several chains, because each sets its endpoints aside separately, so that more of them are in
    // use.
    let small = WorldPlan { rounds: 1, blocks_per_second: 10, chains: 4, ..small };
    match kind {
        "http_behind" | "status" | "status_429" | "error_with_status" => {
            WorldPlan { http: true, ..small }
        }
        // Blocks fetched as logs are proven by the bloom only.
        "method_not_found" | "method_not_offered" => WorldPlan { verify: BLOOM, ..small },
        // Ranges of logs, several blocks in each.
        "range_too_wide" | "drop_block" => {
            WorldPlan { verify: BLOOM, of_chains: "fetch = 'logs'\nbatch_ms = 500", ..small }
        }
        // Only a batch has an order.
        "late_in_batch" => WorldPlan { of_chains: "batch_ms = 500", ..small },
        // A head that goes back by thousands of blocks needs a chain of thousands.
        "head_far_back" => WorldPlan { initial_blocks: 2_500, events_per_block: 1, ..small },
        // A false bloom for an empty block needs an empty block.
        "bloom_on_empty" | "head_bloom_on_empty" => WorldPlan { empty_every: 2, ..small },
        // Each chain requests it only every 30 s.
        _ if kind.starts_with("finalized") => {
            WorldPlan { chains: 10, blocks_per_second: 5, ..small }
        }
        _ => small,
    }
}

impl Part {
    /// The part with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        PARTS.iter().find(|part| part.name == name)
    }

    /// Whether it is the part with even load.
    pub(super) fn is_soak(&self) -> bool {
        matches!(self.kind, Kind::Soak)
    }
}

/// A share of a part's actions: every `of`th, from the one at `index` on. Shares may run side by side.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// Which one, from 0 on.
    pub index: u64,
    /// How many there are.
    pub of: u64,
}

impl Share {
    /// All actions.
    pub const ALL: Self = Self { index: 0, of: 1 };
}

/// A part being run.
pub(super) struct Repetition {
    part: &'static Part,
    count: u64,
    share: Share,
    random: SmallRng,
}

impl Repetition {
    pub(super) fn new(part: &'static Part, count: u64, share: Share, seed: u64) -> Self {
        Self { part, count, share, random: SmallRng::seed_from_u64(seed) }
    }

    /// Which of all actions is the nth of this share.
    fn nth(&self, nth: u64) -> u64 {
        nth * self.share.of + self.share.index
    }

    /// How many actions are left after `done`.
    pub(super) fn left(&self, done: u64) -> u64 {
        match self.part.kind {
            Kind::Repeated { actions, .. } => {
                let Share { index, of } = self.share;
                actions(self.count).saturating_sub(index).div_ceil(of).saturating_sub(done)
            }
            Kind::Soak => 0,
        }
    }

    pub(super) fn world(&mut self, done: u64) -> WorldPlan {
        match self.part.kind {
            Kind::Repeated { world, .. } => {
                let nth = self.nth(done);
                world(&mut self.random, nth)
            }
            Kind::Soak => small(&mut self.random),
        }
    }

    /// The actions before the next comparison, each with the time to wait after it.
    pub(super) fn round(&mut self, done: u64) -> Vec<(Action, Duration)> {
        match self.part.kind {
            Kind::Repeated { group, action, .. } => (done..done + group.min(self.left(done)))
                .map(|nth| {
                    let nth = self.nth(nth);
                    action(&mut self.random, nth, self.count)
                })
                .collect(),
            Kind::Soak => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn all(name: &str) -> Vec<Action> {
        let part = Part::named(name).unwrap();
        all_of(part, part.count)
    }

    fn all_of(part: &'static Part, count: u64) -> Vec<Action> {
        let mut repetition = Repetition::new(part, count, Share::ALL, 1);
        let mut actions = Vec::new();
        while repetition.left(actions.len() as u64) > 0 {
            let round = repetition.round(actions.len() as u64);
            actions.extend(round.into_iter().map(|(action, _)| action));
        }
        actions
    }

    #[test]
    fn every_name_is_there_once_and_every_part_comes_to_its_count() {
        let names: BTreeSet<_> = PARTS.iter().map(|part| part.name).collect();
        assert_eq!(names.len(), PARTS.len());
        for part in PARTS.iter().filter(|part| !part.is_soak() && part.name != "provider") {
            for count in [1, part.count, part.count + 1] {
                assert_eq!(all_of(part, count).len() as u64, count, "{}", part.name);
            }
        }
    }

    #[test]
    fn reorgs_have_every_depth_up_to_64_half_of_them_while_it_is_down() {
        let (mut up, mut down) = (BTreeSet::new(), BTreeSet::new());
        for action in all("reorg") {
            match action {
                Action::Reorg { depth, .. } => up.insert(depth),
                Action::KillAndReorg { depth, .. } => down.insert(depth),
                other => panic!("{other:?}"),
            };
        }
        assert_eq!(up, (1..=64).collect());
        assert_eq!(down, up);
    }

    #[test]
    fn every_fault_of_providers_and_every_fail_point_has_its_turn() {
        let kinds: BTreeSet<_> = all("provider")
            .into_iter()
            .filter_map(|action| match action {
                Action::GoWrong { kind, times: 20, .. } => Some(kind),
                _ => None,
            })
            .collect();
        assert_eq!(kinds, Mischief::kinds().collect());
        let points: BTreeSet<_> = all("fail-points")
            .into_iter()
            .filter_map(|action| match action {
                Action::FailPoint { point, .. } => Some(point),
                _ => None,
            })
            .collect();
        assert_eq!(points, FAIL_POINTS.iter().copied().collect());
    }
}
