//! Chains, their nodes, a Redis and one or two ingestors, with proxies between them.

mod members;
mod scenes;
mod store;
mod subject;
mod watch;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ethhook_domain::fold::Problem;
use tokio::time::{Instant, sleep};

use super::Plan;
use super::action::{Action, LinkFault, Side, WorldPlan};
use crate::checker::Report;
use crate::proxy::Proxy;
use members::{INSTANCES, Member};
use store::Store;
use subject::Subject;

/// Time limit for a stream to become equal to the chain after all faults are ended.
const SETTLE: Duration = Duration::from_secs(90);

/// Something to be undone later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lift {
    /// The number is the chain's position, if the link leads to a node.
    Link(usize, Side, LinkFault),
    StartRedis,
    FreeMemory,
    ResumeRedis,
    Start(usize),
    Resume(usize),
    /// A node follows the chain again: the chain's position, and the endpoint's.
    Rejoin(usize, usize),
}

/// Blocks that are mined automatically.
struct Load {
    every: Duration,
    next: Instant,
}

/// The totals of a comparison of all chains.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Compared {
    pub(super) blocks: usize,
    pub(super) events: usize,
    /// Entries that take another back.
    pub(super) removed: usize,
}

pub(super) struct World {
    subjects: Vec<Subject>,
    /// Counts actions, to choose the chain whose turn it is.
    turn: usize,
    store: Store,
    members: Vec<Member>,
    lifts: Vec<(Instant, Lift)>,
    load: Option<Load>,
    /// Whether retention trims the beginnings of streams.
    trims: bool,
    /// `DEDUP_TTL_SECONDS`, if it is set.
    dedup_ttl: Option<Duration>,
    /// How many times an operator moved finality back.
    finality_moved_back: usize,
    pub(super) slowest_exit: Duration,
    pub(super) slowest_takeover: Duration,
    /// How often each fail point was reached, by name.
    pub(super) reached: BTreeMap<String, u64>,
    /// Starts that failed because Redis was down, as documented.
    pub(super) refused_starts: u64,
}

impl World {
    pub(super) async fn new(plan: &Plan, world: &WorldPlan) -> Result<Self> {
        let mut subjects = Vec::new();
        for position in 0..world.chains {
            subjects.push(Subject::new(position, world).await?);
        }
        let store = Store::new(world).await?;
        let instances = if world.standby { &INSTANCES[..] } else { &INSTANCES[..1] };
        let start = |instance: &&str| Member::start(plan, world, &store.url(), &subjects, instance);
        let members = instances.iter().map(start).collect::<Result<_>>()?;
        let load = (world.blocks_per_second > 0).then(|| Load {
            every: Duration::from_secs(1) / world.blocks_per_second,
            next: Instant::now(),
        });
        Ok(Self {
            subjects,
            turn: 0,
            store,
            members,
            lifts: Vec::new(),
            load,
            trims: world.setting("STREAM_MAX_BYTES").is_some(),
            dedup_ttl: world
                .setting("DEDUP_TTL_SECONDS")
                .map(|seconds| seconds.parse().map(Duration::from_secs))
                .transpose()?,
            finality_moved_back: 0,
            slowest_exit: Duration::ZERO,
            slowest_takeover: Duration::ZERO,
            reached: BTreeMap::new(),
            refused_starts: 0,
        })
    }

    fn subject(&mut self) -> &mut Subject {
        let position = self.turn % self.subjects.len();
        &mut self.subjects[position]
    }

    /// Lets time pass under load, undoes what is due, and checks whether an ingestor has died.
    pub(super) async fn pass(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            if let Some(load) = &mut self.load
                && load.next <= Instant::now()
            {
                // Missed blocks are not made up for.
                load.next = Instant::now() + load.every;
                self.subjects.iter_mut().for_each(|subject| subject.mine(1));
            }
            self.wait_until(end.min(Instant::now() + Duration::from_millis(10))).await?;
            if Instant::now() >= end {
                return Ok(());
            }
        }
    }

    /// Waits until every chain is being published.
    pub(super) async fn warm_up(&mut self) -> Result<()> {
        let begun = Instant::now();
        for position in 0..self.subjects.len() {
            let subject = &self.subjects[position];
            let url = self.store.direct_url(subject.id()).await?;
            let checker = subject.checker(&url).await?;
            while checker.cursor().await?.is_none_or(|cursor| cursor.number == 0) {
                ensure!(begun.elapsed() < SETTLE, "chain{position} does not begin");
                self.pass(Duration::from_millis(20)).await?;
            }
        }
        Ok(())
    }

    async fn wait_until(&mut self, end: Instant) -> Result<()> {
        let now = Instant::now();
        while let Some(position) = self.lifts.iter().position(|(due, _)| *due <= now) {
            let (_, lift) = self.lifts.swap_remove(position);
            self.lift(lift).await?;
        }
        self.supervise()?;
        sleep(end.saturating_duration_since(Instant::now())).await;
        Ok(())
    }

    /// Performs `action`; false if it is not possible at the moment, such as killing a Redis that
    /// is down.
    pub(super) async fn perform(&mut self, action: &Action) -> Result<bool> {
        self.turn += 1;
        let later = |millis: u64| Instant::now() + Duration::from_millis(millis);
        match *action {
            Action::Link { side, fault, millis } => self.disturb(side, fault, later(millis)),
            Action::RedisKill { millis } => return Ok(self.kill_redis(later(millis))),
            Action::RedisCut { millionths, millis } => {
                if !self.kill_redis(later(millis)) {
                    return Ok(false);
                }
                self.store.cut_append_only_file(millionths)?;
            }
            Action::RedisFull { millis } => {
                if !self.redis_is_up() {
                    return Ok(false);
                }
                self.store.set_maxmemory("1").await?;
                self.redis_fault(later(millis), Lift::FreeMemory);
            }
            Action::RedisPause { millis } => {
                if !self.redis_is_up() {
                    return Ok(false);
                }
                self.store.pause()?;
                self.redis_fault(later(millis), Lift::ResumeRedis);
            }
            Action::RedisFailOver => self.fail_over_redis().await?,
            Action::Kill { who, millis } => return self.kill(who, later(millis)).await,
            Action::KillAndReorg { who, depth, millis } => {
                return self.kill_and_reorg(who, depth, later(millis)).await;
            }
            Action::Pause { who, millis } => return self.pause(who, later(millis)).await,
            Action::PausePastLease { who } => return self.pause_past_lease(who).await,
            Action::PauseOwner => return self.pause_owner().await,
            Action::Terminate { who, millis } => return self.terminate(who, later(millis)).await,
            Action::FailPoint { who, point, count } => self.arm(who, point, count).await?,
            Action::Part { at, depth, millis } => return Ok(self.part(at, depth, later(millis))),
            Action::Refilter { who, topics, millis } => {
                return self.refilter(who, topics, later(millis)).await;
            }
            Action::ReorgBelowFinalized => self.reorg_below_finalized().await?,
            Action::GoWrong { kind, seed, times } => self.go_wrong(kind, seed, times).await?,
            _ => return Ok(self.subject().perform(action)),
        }
        Ok(true)
    }

    // ---- links and Redis ------------------------------------------------------------------

    fn disturb(&mut self, side: Side, fault: LinkFault, until: Instant) {
        let chain = self.turn % self.subjects.len();
        let link = self.link(chain, side);
        match fault {
            LinkFault::Cut => link.cut(),
            LinkFault::Drop => link.drop_connections(),
            LinkFault::CutAnswer(bytes) => link.cut_after(bytes),
            LinkFault::Slices => link.slice(true),
            LinkFault::HalfOpen => link.blackhole(),
            LinkFault::Delay(millis) => link.delay(Duration::from_millis(millis)),
        }
        let lift = Lift::Link(chain, side, fault);
        match side {
            Side::Node(_) => self.lifts.push((until, lift)),
            Side::Redis => self.redis_fault(until, lift),
        }
    }

    fn link(&self, chain: usize, side: Side) -> &Proxy {
        match side {
            Side::Node(at) => &self.subjects[chain].endpoints[at].link,
            Side::Redis => &self.store.link,
        }
    }

    fn redis_fault(&mut self, until: Instant, lift: Lift) {
        self.store.fault_begins();
        self.lifts.push((until, lift));
    }

    fn redis_is_up(&self) -> bool {
        !self.lifts.iter().any(|(_, lift)| matches!(lift, Lift::StartRedis | Lift::ResumeRedis))
    }

    fn kill_redis(&mut self, until: Instant) -> bool {
        if !self.redis_is_up() {
            return false;
        }
        self.store.kill();
        self.redis_fault(until, Lift::StartRedis);
        true
    }

    // ---- undoing --------------------------------------------------------------------------

    async fn lift(&mut self, lift: Lift) -> Result<()> {
        match lift {
            Lift::Link(chain, side, fault) => {
                let link = self.link(chain, side);
                match fault {
                    LinkFault::Delay(_) => link.delay(Duration::ZERO),
                    LinkFault::Slices => link.slice(false),
                    LinkFault::CutAnswer(_) => link.cut_after(u64::MAX),
                    LinkFault::Drop => {}
                    LinkFault::Cut | LinkFault::HalfOpen => link.restore(),
                }
                if side == Side::Redis {
                    self.store.fault_is_over();
                }
            }
            Lift::StartRedis => {
                self.store.start().await?;
                self.store.fault_is_over();
            }
            Lift::FreeMemory => {
                if self.lifts.iter().any(|(_, lift)| *lift == Lift::ResumeRedis) {
                    // A paused Redis cannot execute commands.
                    let again = Instant::now() + Duration::from_millis(100);
                    self.lifts.push((again, Lift::FreeMemory));
                    return Ok(());
                }
                // After a restart the limit is gone anyway.
                if self.redis_is_up() {
                    self.store.set_maxmemory("0").await?;
                }
                self.store.fault_is_over();
            }
            Lift::ResumeRedis => {
                self.store.resume()?;
                self.store.fault_is_over();
            }
            Lift::Start(who) => self.members[who].process.start()?,
            Lift::Resume(who) => self.resume(who).await?,
            Lift::Rejoin(chain, at) => {
                self.subjects[chain].endpoints[at].view.set_on_other_branch(false);
            }
        }
        Ok(())
    }

    /// Ends all faults and the load, waits until the streams have reached the heads, and compares
    /// them with the chains.
    pub(super) async fn settle(&mut self, one_more_block: bool) -> Result<Compared> {
        // Memory is freed last, because that needs a Redis that answers.
        self.lifts.sort_by_key(|(_, lift)| *lift == Lift::FreeMemory);
        for (_, lift) in std::mem::take(&mut self.lifts) {
            self.lift(lift).await?;
        }
        self.store.link.restore();
        self.store.link.delay(Duration::ZERO);
        self.store.link.slice(false);
        for member in &mut self.members {
            // A fail point that has not been reached must not take effect later.
            if member.fail_point.take().is_some() {
                member.process.kill().await?;
            }
            member.process.start()?;
        }
        for subject in &mut self.subjects {
            subject.behave();
            if one_more_block {
                subject.mine(1);
            }
        }
        let mut compared = Compared::default();
        for position in 0..self.subjects.len() {
            let report =
                self.compare(position).await.with_context(|| format!("chain{position}"))?;
            compared.blocks += report.blocks;
            compared.events += report.events;
            compared.removed += report.removed;
        }
        for (who, member) in self.members.iter().enumerate() {
            ensure!(!member.process.log().contains("panicked at"), "ingestor {who} panicked");
        }
        Ok(compared)
    }

    /// Waits for one chain's stream and compares it.
    async fn compare(&mut self, position: usize) -> Result<Report> {
        let url = self.store.direct_url(self.subjects[position].id()).await?;
        let mut checker = self.subjects[position].checker(&url).await?;
        if self.trims {
            checker = checker.with_trimmed_beginning();
        }
        if let Some(ttl) = self.dedup_ttl {
            checker = checker.with_dedup_ttl(ttl);
        }
        let check = async {
            checker.settle(SETTLE).await?;
            checker.check().await
        };
        tokio::pin!(check);
        let mut report = loop {
            tokio::select! {
                report = &mut check => break report?,
                waited = self.wait_until(Instant::now() + Duration::from_millis(20)) => waited?,
            }
        };
        // Only an operator's order may move finality back.
        let by_order = |violation: &&_| is_finality(violation);
        if report.violations.iter().filter(by_order).count() == self.finality_moved_back {
            report.violations.retain(|violation| !is_finality(violation));
        }
        report.into_clean()
    }

    /// Searches everything readable for the secrets in the world's URLs; returns the number of
    /// bytes searched.
    pub(super) async fn sweep_for_secrets(&self) -> Result<usize> {
        let members: Vec<_> = self.members.iter().map(|member| &member.process).collect();
        self.store.sweep_for_secrets(&members).await
    }

    /// How often each chain was reorganised to each depth.
    pub(super) fn reorgs(&self) -> impl Iterator<Item = (u64, u64)> {
        self.subjects.iter().flat_map(|subject| subject.reorgs.clone())
    }

    /// How often the nodes misbehaved, by kind.
    pub(super) fn wrongs(&self) -> impl Iterator<Item = (String, u64)> {
        self.subjects.iter().flat_map(Subject::wrongs)
    }

    /// The ends of the ingestors' logs, to find the cause of a failure.
    pub(super) fn log_tails(&self, lines: usize) -> String {
        let mut text = String::new();
        for (who, member) in self.members.iter().enumerate() {
            let log = member.process.log();
            let skipped = log.lines().count().saturating_sub(lines);
            text.push_str(&format!("---- the end of ingestor {who}'s log\n"));
            log.lines().skip(skipped).for_each(|line| text.push_str(&format!("{line}\n")));
        }
        text
    }
}

fn is_finality(violation: &ethhook_domain::fold::Violation) -> bool {
    violation.problem == Problem::Finalized
}
