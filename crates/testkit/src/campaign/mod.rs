//! Faults by the hundred, drawn from a seed, and the stream compared with the chain after each
//! round of them (G1 to G5). All URLs hold secrets, which are looked for at the end (G11).
//!
//! A *world* is a chain that is moved by hand, its node, a Redis and one or two ingestors, which are
//! the real binary, with fault proxies between. In a *round* some ten actions happen, overlapping:
//! what lasts is undone while others go on. Then all is made whole again, and the [`Checker`] must
//! find stream, cursor and chain equal, with every marker covered. After eight rounds comes another
//! world.
//!
//! The seed gives what happens and when it is begun; how processes and sockets interleave is the
//! machine's. So a seed repeats the schedule, not every microsecond.
//!
//! [`Checker`]: crate::checker::Checker

mod schedule;
mod world;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow};
use serde::Serialize;
use tokio::time::Instant;

use schedule::{Action, Schedule, WorldPlan};
use world::World;

/// Actions shown when a round fails.
const ACTIONS_SHOWN: usize = 40;
const LOG_LINES_SHOWN: usize = 80;

/// What a campaign is started with.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The binary `ethhook`.
    pub program: PathBuf,
    /// Same seed: same schedule.
    pub seed: u64,
    /// No round is begun after this.
    pub duration: Duration,
    /// The binary was built with the feature `fail-points`.
    pub fail_points: bool,
    /// Whether every action is printed when it happens.
    pub print_actions: bool,
}

/// What a campaign did and found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Tally {
    /// The plan's seed.
    pub seed: u64,
    /// How long it took.
    pub seconds: u64,
    /// Rounds after which stream and chain were compared.
    pub rounds: u64,
    /// How often each kind of fault was caused.
    pub faults: BTreeMap<String, u64>,
    /// How often each fail point ended the process.
    pub fail_points_reached: BTreeMap<&'static str, u64>,
    /// How often the node did wrong, by the simulator's name of the kind.
    pub wrongs_of_the_node: BTreeMap<&'static str, u64>,
    /// Starts refused for want of a Redis, and tried again.
    pub refused_starts: u64,
    /// Blocks compared with the chain, each once a comparison.
    pub blocks_compared: usize,
    /// Events compared with the chain, each once a comparison.
    pub events_compared: usize,
    /// Entries that took another back, as they stood at the end of each world.
    pub removed_entries: usize,
    /// Bytes of logs, pages, keys and values in which no secret was found, at the end of each world.
    pub bytes_without_secrets: usize,
    /// The longest time that a stream took to be equal to its chain, ms.
    pub slowest_settling_ms: u128,
    /// The longest time from SIGTERM to exit, ms.
    pub slowest_exit_ms: u128,
    /// Empty if all comparisons found equality.
    pub failure: String,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = if self.failure.is_empty() { "equal" } else { "FAILED" };
        writeln!(f, "{:<58} {:>7}  {:>8}", "fault", "count", "result")?;
        for (kind, count) in &self.faults {
            writeln!(f, "{kind:<58} {count:>7}  {result:>8}")?;
        }
        for (kind, count) in &self.wrongs_of_the_node {
            writeln!(
                f,
                "{:<58} {count:>7}  {result:>8}",
                format!("node's wrong answer or head: {kind}")
            )?;
        }
        for (point, count) in &self.fail_points_reached {
            writeln!(f, "{:<58} {count:>7}  {result:>8}", format!("killed itself at {point}"))?;
        }
        writeln!(
            f,
            "seed {}: {} rounds in {} s; compared {} blocks with {} events, {} \
             entries taken back; settled within {} ms; SIGTERM to exit within {} ms; {} starts \
             refused without Redis; no secret in {} bytes of logs, pages, keys and values",
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
        write!(
            f,
            "{}",
            if self.failure.is_empty() {
                "nothing lost, doubled or out of order"
            } else {
                &self.failure
            }
        )
    }
}

/// Runs until the plan's time is over or something is found; what was found stands in the tally.
pub async fn run(plan: &Plan) -> Tally {
    let started = Instant::now();
    let mut campaign = Campaign {
        plan,
        started,
        tally: Tally { seed: plan.seed, ..Tally::default() },
        last: VecDeque::new(),
    };
    if let Err(error) = campaign.run().await {
        let actions: Vec<_> = campaign.last.iter().map(|line| format!("  {line}\n")).collect();
        campaign.tally.failure = format!(
            "seed {0}, round {1}: {error:#}\nthe last actions:\n{2}repeat: ./scripts/chaos.sh --seed {0}",
            plan.seed,
            campaign.tally.rounds + 1,
            actions.concat()
        );
    }
    campaign.tally.seconds = started.elapsed().as_secs();
    campaign.tally
}

struct Campaign<'a> {
    plan: &'a Plan,
    started: Instant,
    tally: Tally,
    last: VecDeque<String>,
}

impl Campaign<'_> {
    async fn run(&mut self) -> Result<()> {
        let mut schedule = Schedule::new(self.plan.seed, self.plan.fail_points);
        while self.has_time() {
            let plan = schedule.world();
            self.say(format!("world: {plan:?}"));
            let mut world = World::new(self.plan, &plan).await?;
            let mut result = Ok(0);
            for _ in 0..plan.rounds {
                if !self.has_time() {
                    break;
                }
                result = self.round(&plan, &mut world, &schedule.round(&plan)).await;
                if result.is_err() {
                    break;
                }
            }
            self.tally.refused_starts += world.refused_starts;
            for (point, count) in &world.reached {
                *self.tally.fail_points_reached.entry(point).or_default() += count;
            }
            for (kind, count) in world.wrongs() {
                *self.tally.wrongs_of_the_node.entry(kind).or_default() += count;
            }
            let slowest = world.slowest_exit.as_millis();
            self.tally.slowest_exit_ms = self.tally.slowest_exit_ms.max(slowest);
            let result = match result {
                Ok(removed) => world.sweep_for_secrets().await.map(|searched| (removed, searched)),
                Err(error) => Err(error),
            };
            match result {
                Ok((removed, searched)) => {
                    self.tally.removed_entries += removed;
                    self.tally.bytes_without_secrets += searched;
                }
                Err(error) => {
                    return Err(anyhow!("{error:#}\n{}", world.log_tails(LOG_LINES_SHOWN)));
                }
            }
        }
        Ok(())
    }

    /// Returns how many entries took another back since the world's beginning.
    async fn round(
        &mut self,
        plan: &WorldPlan,
        world: &mut World,
        actions: &[(Action, Duration)],
    ) -> Result<usize> {
        for (action, wait) in actions {
            self.say(format!("{action:?}"));
            if world.perform(action).await? {
                *self.tally.faults.entry(action.kind(plan)).or_default() += 1;
            }
            world.pass(*wait).await?;
        }
        let settling = Instant::now();
        // Now and then the poll must do, for no head tells.
        let one_more_block = self.tally.rounds % 5 != 4;
        let report = world.settle(one_more_block).await?;
        let tally = &mut self.tally;
        tally.rounds += 1;
        tally.blocks_compared += report.blocks;
        tally.events_compared += report.events;
        let took = settling.elapsed().as_millis();
        tally.slowest_settling_ms = tally.slowest_settling_ms.max(took);
        self.say(format!("settled and equal after {took} ms: {report}"));
        Ok(report.removed)
    }

    fn has_time(&self) -> bool {
        self.started.elapsed() < self.plan.duration
    }

    fn say(&mut self, what: String) {
        let line = format!("{:>9.3}  {what}", self.started.elapsed().as_secs_f64());
        if self.plan.print_actions {
            eprintln!("{line}");
        }
        self.last.push_back(line);
        if self.last.len() > ACTIONS_SHOWN {
            self.last.pop_front();
        }
    }
}
