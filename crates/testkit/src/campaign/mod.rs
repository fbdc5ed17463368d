//! Causes hundreds of faults drawn from a seed, and compares the stream with the chain after each
//! round of them (G1 to G5). All URLs contain secrets, which are searched for at the end (G11).
//!
//! A *world* consists of one or more chains that are moved by hand, their nodes, a Redis and one or
//! two ingestors (the real binary), with fault proxies in between. In a *round* actions happen and
//! overlap: one that lasts is undone while others happen. Then everything is repaired, and the
//! [`Checker`] must find that stream, cursor and chain agree, and that the markers cover exactly the
//! entries. After some rounds a new world begins.
//!
//! A campaign is either *mixed*, some ten actions of all kinds per round for a certain time, or one
//! of the [`PARTS`], which repeats one kind a number of times under load.
//!
//! The seed determines what happens and when it starts; how processes and sockets interleave
//! depends on the machine. So a seed repeats the schedule, not every microsecond.
//!
//! [`Checker`]: crate::checker::Checker

mod action;
mod parts;
mod record;
mod schedule;
mod soak;
mod tally;
mod world;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use tokio::time::Instant;

use action::{Action, WorldPlan};
use parts::Repetition;
pub use parts::{PARTS, Part, Share};
pub use record::{Record, render};
use schedule::{FAIL_POINTS, Schedule};
pub use tally::{Memory, Quarters, Tally};
use world::World;

/// Actions shown when a round fails.
const ACTIONS_SHOWN: usize = 40;
const LOG_LINES_SHOWN: usize = 80;
/// A part that takes longer than this ends before its count is reached.
const PART_LIMIT: Duration = Duration::from_secs(20 * 60);

/// The options of a campaign.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The binary `ethhook`.
    pub program: PathBuf,
    /// The same seed gives the same schedule.
    pub seed: u64,
    /// What happens, and how long or how often.
    pub what: What,
    /// Which share of a part.
    pub share: Share,
    /// Whether the binary was built with the feature `fail-points`.
    pub fail_points: bool,
    /// Whether every action is printed when it happens.
    pub print_actions: bool,
}

/// What happens in a campaign.
#[derive(Debug, Clone, Copy)]
pub enum What {
    /// All kinds of faults at random; no round starts after this time.
    Mixed(Duration),
    /// One kind of fault, this many times.
    Part(&'static Part, u64),
}

/// Runs until the plan is completed or a failure is found, which is then in the tally.
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
        let what = match plan.what {
            What::Mixed(_) => String::new(),
            What::Part(part, count) => format!("--part {} --count {count} ", part.name),
        };
        campaign.tally.failure = format!(
            "seed {0}, round {1}: {error:#}\nthe last actions:\n{2}\
             repeat: ./scripts/chaos.sh {what}--seed {0}",
            plan.seed,
            campaign.tally.rounds + 1,
            actions.concat()
        );
    }
    campaign.tally.seconds = started.elapsed().as_secs();
    campaign.tally
}

/// The source of the actions.
enum Script {
    Mixed(Schedule, Duration),
    Part(Repetition),
}

impl Script {
    fn new(plan: &Plan) -> Self {
        match plan.what {
            What::Mixed(duration) => {
                Self::Mixed(Schedule::new(plan.seed, plan.fail_points), duration)
            }
            What::Part(part, count) => {
                Self::Part(Repetition::new(part, count, plan.share, plan.seed))
            }
        }
    }

    fn is_over(&self, done: u64, elapsed: Duration) -> bool {
        match self {
            Self::Mixed(_, duration) => elapsed >= *duration,
            Self::Part(part) => part.left(done) == 0 || elapsed >= PART_LIMIT,
        }
    }

    fn world(&mut self, done: u64) -> WorldPlan {
        match self {
            Self::Mixed(schedule, _) => schedule.world(),
            Self::Part(part) => part.world(done),
        }
    }

    fn round(&mut self, world: &WorldPlan, done: u64) -> Vec<(Action, Duration)> {
        match self {
            Self::Mixed(schedule, _) => schedule.round(world),
            Self::Part(part) => part.round(done),
        }
    }
}

struct Campaign<'a> {
    plan: &'a Plan,
    started: Instant,
    tally: Tally,
    last: VecDeque<String>,
}

impl Campaign<'_> {
    async fn run(&mut self) -> Result<()> {
        if let What::Part(part, minutes) = self.plan.what
            && part.is_soak()
        {
            return self.soak(Duration::from_secs(60 * minutes)).await;
        }
        let mut script = Script::new(self.plan);
        while !script.is_over(self.done(), self.started.elapsed()) {
            let plan = script.world(self.done());
            self.say(format!("world: {plan:?}"));
            let mut world = World::new(self.plan, &plan).await?;
            let result = self.rounds(&mut script, &plan, &mut world).await;
            self.take_up(&world);
            result.map_err(|e| anyhow!("{e:#}\n{}", world.log_tails(LOG_LINES_SHOWN)))?;
        }
        if let What::Part(part, count) = self.plan.what {
            let left = Repetition::new(part, count, self.plan.share, 0).left(self.done());
            ensure!(left == 0, "{left} were left after {PART_LIMIT:?}");
            if part.name == "fail-points" && count >= part.count {
                let reached = &self.tally.fail_points_reached;
                let missed: Vec<_> =
                    FAIL_POINTS.iter().filter(|point| !reached.contains_key(**point)).collect();
                ensure!(missed.is_empty(), "never reached: {missed:?}");
            }
        }
        Ok(())
    }

    async fn rounds(
        &mut self,
        script: &mut Script,
        plan: &WorldPlan,
        world: &mut World,
    ) -> Result<()> {
        let mut removed = 0;
        if plan.lead_ms > 0 {
            world.warm_up().await?;
        }
        for _ in 0..plan.rounds {
            if script.is_over(self.done(), self.started.elapsed()) {
                break;
            }
            removed = self.round(plan, world, &script.round(plan, self.done())).await?;
        }
        self.tally.removed_entries += removed;
        self.tally.bytes_without_secrets += world.sweep_for_secrets().await?;
        Ok(())
    }

    /// Returns how many entries have taken back another one since the world began.
    async fn round(
        &mut self,
        plan: &WorldPlan,
        world: &mut World,
        actions: &[(Action, Duration)],
    ) -> Result<usize> {
        world.pass(Duration::from_millis(plan.lead_ms)).await?;
        for (action, wait) in actions {
            self.say(format!("{action:?}"));
            if world.perform(action).await? {
                *self.tally.faults.entry(action.kind(plan)).or_default() += 1;
            }
            world.pass(*wait).await?;
        }
        // In some rounds no head announces the last block, so that only a poll can find it.
        let one_more_block = self.tally.rounds % 5 != 4;
        self.settle(world, one_more_block).await
    }

    /// Compares all streams with their chains; returns the same as [`Campaign::round`].
    async fn settle(&mut self, world: &mut World, one_more_block: bool) -> Result<usize> {
        let settling = Instant::now();
        let compared = world.settle(one_more_block).await?;
        let took = millis(settling.elapsed());
        let tally = &mut self.tally;
        tally.rounds += 1;
        tally.blocks_compared += compared.blocks;
        tally.events_compared += compared.events;
        tally.slowest_settling_ms = tally.slowest_settling_ms.max(took);
        let done = self.done();
        self.say(format!("{done} done; settled and equal after {took} ms: {compared:?}"));
        Ok(compared.removed)
    }

    /// Adds a world's counts to the tally.
    fn take_up(&mut self, world: &World) {
        let tally = &mut self.tally;
        tally.refused_starts += world.refused_starts;
        for (point, count) in &world.reached {
            *tally.fail_points_reached.entry(point.clone()).or_default() += count;
        }
        for (kind, count) in world.wrongs() {
            *tally.wrongs_of_the_node.entry(kind).or_default() += count;
        }
        for (depth, count) in world.reorgs() {
            *tally.reorgs_by_depth.entry(depth).or_default() += count;
        }
        tally.slowest_exit_ms = tally.slowest_exit_ms.max(millis(world.slowest_exit));
        tally.slowest_takeover_ms = tally.slowest_takeover_ms.max(millis(world.slowest_takeover));
    }

    /// Faults caused so far.
    fn done(&self) -> u64 {
        self.tally.faults.values().sum()
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

fn millis(time: Duration) -> u64 {
    time.as_millis().try_into().unwrap_or(u64::MAX)
}
