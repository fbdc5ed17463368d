//! A chain, its node, a Redis and one or two ingestors, with proxies between them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ethhook_simulator::{Chain, Contents, ManualChain, ManualSpec, Mischief, Node, RunningNode};
use tokio::time::{Instant, sleep};

use super::Plan;
use super::schedule::{Action, LinkFault, Side, WorldPlan};
use crate::canary;
use crate::checker::{Checker, Report};
use crate::ingestor::Ingestor;
use crate::node_rpc::NodeRpc;
use crate::proxy::Proxy;
use crate::redis_server::{RedisOptions, RedisServer};

const CHAIN_ID: u64 = 31_337;
/// The chain's blocks are final at this depth; no branch forks off so deep.
const FINALITY_DEPTH: u64 = 100;
const DEEPEST_FORK: u64 = 90;
/// Above this no more long runs of empty blocks are mined: each check reads the whole chain.
const LONG_CHAIN: u64 = 1_200;
/// More blocks than pass before the ingestor, catching up, asks for the finalized one.
const UNTIL_FINALITY: u64 = 1_100;
const LEASE: Duration = Duration::from_millis(2_000);
const TERMINATION: Duration = Duration::from_secs(8);
/// How long a stream may take to be equal to the chain once all faults are off.
pub(super) const SETTLE: Duration = Duration::from_secs(90);
/// The ingestor believes these for a minute, which is more than a round should wait.
const LATCHED: &[&str] = &["method_not_found", "method_not_offered"];
/// SIGABRT, by which a process ends itself at a fail point.
const SIGABRT: i32 = 6;

/// What is undone later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lift {
    Link(Side, LinkFault),
    StartRedis,
    FreeMemory,
    ResumeRedis,
    Start(usize),
    Resume(usize),
}

/// One of the two ingestors.
struct Member {
    process: Ingestor,
    /// The fail point that it was started with.
    fail_point: Option<&'static str>,
    paused: bool,
}

pub(super) struct World {
    chain: ManualChain,
    node: RunningNode,
    node_link: Proxy,
    redis_link: Proxy,
    redis: RedisServer,
    /// Its append-only file was cut since it was last started.
    torn: bool,
    members: Vec<Member>,
    lifts: Vec<(Instant, Lift)>,
    /// Height of the highest head so far: nothing forks off deep below it.
    peak: u64,
    /// First height of the branch that the last reorg replaced.
    replaced_from: Option<u64>,
    redis_faults: u32,
    redis_sound_since: Instant,
    pub(super) slowest_exit: Duration,
    /// Fail points passed for the last time, by name.
    pub(super) reached: BTreeMap<&'static str, u64>,
    /// Starts that Redis' absence refused, as documented.
    pub(super) refused_starts: u64,
}

impl World {
    pub(super) async fn new(plan: &Plan, world: &WorldPlan) -> Result<Self> {
        let chain = Chain::manual(ManualSpec {
            seed: world.seed,
            events_per_block: world.events_per_block,
            empty_every: world.empty_every,
            ..ManualSpec::new(CHAIN_ID)
        });
        let node = Node::bind(([127, 0, 0, 1], 0).into(), [chain.clone()]).await?.spawn();
        let node_link = Proxy::start(node.addr()).await?;
        let options = RedisOptions {
            appendfsync: world.appendfsync,
            more: vec![("requirepass".into(), canary::REDIS_PASSWORD.into())],
            ..RedisOptions::default()
        };
        let redis = RedisServer::spawn(options).await?;
        let redis_link = Proxy::start(SocketAddr::from(([127, 0, 0, 1], redis.port()))).await?;
        let node_url = |scheme: &str| {
            canary::node_url(&format!("{scheme}://{}/{CHAIN_ID}", node_link.address()))
        };
        let mut members = Vec::new();
        for instance in if world.standby { &["one", "two"][..] } else { &["one"] } {
            let url = format!("redis://:{}@{}/", canary::REDIS_PASSWORD, redis_link.address());
            let mut process = Ingestor::new(&plan.program, &url, instance)?;
            process.write_toml(&format!(
                "[chains.local]\nblock_time_ms = 200\nfinality_depth = {FINALITY_DEPTH}\n"
            ))?;
            process
                .set("LOCAL_START_BLOCK", 0)
                .set("LOCAL_WS_URL", node_url("ws"))
                .set("LEASE_TTL_MS", LEASE.as_millis())
                .set("STREAM_ENCODING", world.encoding)
                // Not a share of maxmemory, which is 1 byte for a while.
                .set("STREAM_MAX_BYTES", 1_u64 << 30)
                .set("RUST_LOG", "info");
            if world.http {
                process.set("LOCAL_HTTP_URL", node_url("http"));
            }
            process.start()?;
            members.push(Member { process, fail_point: None, paused: false });
        }
        Ok(Self {
            chain,
            node,
            node_link,
            redis_link,
            redis,
            torn: false,
            members,
            lifts: Vec::new(),
            peak: 0,
            replaced_from: None,
            redis_faults: 0,
            redis_sound_since: Instant::now(),
            slowest_exit: Duration::ZERO,
            reached: BTreeMap::new(),
            refused_starts: 0,
        })
    }

    /// Lets time pass: what is due is undone, and who died is looked at.
    pub(super) async fn pass(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            let now = Instant::now();
            while let Some(position) = self.lifts.iter().position(|(due, _)| *due <= now) {
                let (_, lift) = self.lifts.swap_remove(position);
                self.lift(lift).await?;
            }
            self.supervise()?;
            if now >= end {
                return Ok(());
            }
            sleep(Duration::from_millis(10).min(end - now)).await;
        }
    }

    /// Does `action`; false if it means nothing as things are, such as killing a dead Redis.
    pub(super) async fn perform(&mut self, action: &Action) -> Result<bool> {
        let later = |millis: u64| Instant::now() + Duration::from_millis(millis);
        match *action {
            Action::Link { side, fault, millis } => self.disturb(side, fault, later(millis)),
            Action::RedisKill { millis } => return Ok(self.kill_redis(later(millis))),
            Action::RedisCut { millionths, millis } => {
                if !self.kill_redis(later(millis)) {
                    return Ok(false);
                }
                self.cut_append_only_file(millionths)?;
                self.torn = true;
            }
            Action::RedisFull { millis } => {
                if !self.redis_is_up() {
                    return Ok(false);
                }
                self.set_maxmemory("1").await?;
                self.redis_fault(later(millis), Lift::FreeMemory);
            }
            Action::RedisPause { millis } => {
                if !self.redis_is_up() {
                    return Ok(false);
                }
                self.redis.pause()?;
                self.redis_fault(later(millis), Lift::ResumeRedis);
            }
            Action::Kill { who, millis } => return self.kill(who, later(millis)).await,
            Action::KillAndReorg { who, depth, millis } => {
                if !self.kill(who, later(millis)).await? {
                    return Ok(false);
                }
                self.reorg(depth, 1, Contents::Fresh);
            }
            Action::Pause { who, millis } => return self.pause(who, later(millis)).await,
            Action::PausePastLease { who } => {
                let past = LEASE + Duration::from_millis(1_500);
                if !self.pause(who, Instant::now() + past).await? {
                    return Ok(false);
                }
                // Blocks for the other to publish meanwhile.
                for _ in 0..7 {
                    self.chain.mine(2);
                    self.pass(Duration::from_millis(500)).await?;
                }
            }
            Action::Terminate { who, millis } => return self.terminate(who, later(millis)).await,
            Action::FailPoint { who, point, count } => self.arm(who, point, count).await?,
            _ => return Ok(self.move_chain(action)),
        }
        Ok(true)
    }

    fn move_chain(&mut self, action: &Action) -> bool {
        match action {
            Action::Mine { blocks } => drop(self.chain.mine(*blocks)),
            Action::MineEmpty { blocks } => {
                (0..*blocks).for_each(|_| drop(self.chain.mine_events(0)));
            }
            Action::MineLarge { events } => drop(self.chain.mine_events(*events)),
            Action::Reorg { depth, longer_by, contents } => {
                return self.reorg(*depth, *longer_by, *contents);
            }
            Action::SwitchBack => {
                let Some(from) = self.replaced_from else { return false };
                if from <= self.peak.saturating_sub(DEEPEST_FORK) {
                    return false;
                }
                self.chain.switch_back();
            }
            Action::MuteHeads => self.chain.set_muted(true),
            Action::ShuffleHeads { blocks, first } => {
                self.chain.set_announcing(false);
                let mined = self.chain.mine(*blocks);
                let first = first % mined.len().max(1);
                for block in mined.iter().skip(first).chain(mined.iter().rev()) {
                    self.chain.announce(block.hash());
                }
                self.chain.set_announcing(true);
            }
            Action::CutSockets => self.chain.cut_sockets(),
            Action::Provider { fault, method, calls } => {
                self.chain.faults().push(*method, fault.clone(), *calls);
            }
            Action::Misbehave { seed, per_mille } => {
                self.chain.misbehave(Mischief::mixed(*seed, *per_mille).without(LATCHED));
            }
            _ => {}
        }
        self.peak = self.peak.max(self.chain.head_number());
        true
    }

    fn reorg(&mut self, depth: u64, longer_by: u64, contents: Contents) -> bool {
        let head = self.chain.head_number();
        let lowest = self.peak.max(head).saturating_sub(DEEPEST_FORK);
        let depth = depth.min(head.saturating_sub(lowest));
        if depth == 0 {
            return false;
        }
        self.chain.reorg(depth, depth + longer_by, contents);
        self.replaced_from = Some(head - depth + 1);
        self.peak = self.peak.max(self.chain.head_number());
        true
    }

    fn disturb(&mut self, side: Side, fault: LinkFault, until: Instant) {
        let link = self.link(side);
        match fault {
            LinkFault::Cut => link.cut(),
            LinkFault::Drop => link.drop_connections(),
            LinkFault::CutAnswer(bytes) => link.cut_after(bytes),
            LinkFault::Slices => link.slice(true),
            LinkFault::HalfOpen => link.blackhole(),
            LinkFault::Delay(millis) => link.delay(Duration::from_millis(millis)),
        }
        let lift = Lift::Link(side, fault);
        match side {
            Side::Node => self.lifts.push((until, lift)),
            Side::Redis => self.redis_fault(until, lift),
        }
    }

    fn link(&self, side: Side) -> &Proxy {
        match side {
            Side::Node => &self.node_link,
            Side::Redis => &self.redis_link,
        }
    }

    // ---- Redis ----------------------------------------------------------------------------

    fn redis_fault(&mut self, until: Instant, lift: Lift) {
        self.redis_faults += 1;
        self.lifts.push((until, lift));
    }

    fn redis_fault_is_over(&mut self) {
        self.redis_faults -= 1;
        self.redis_sound_since = Instant::now();
    }

    fn redis_is_up(&self) -> bool {
        !self.lifts.iter().any(|(_, lift)| matches!(lift, Lift::StartRedis | Lift::ResumeRedis))
    }

    fn kill_redis(&mut self, until: Instant) -> bool {
        if !self.redis_is_up() {
            return false;
        }
        self.redis.kill();
        self.redis_fault(until, Lift::StartRedis);
        true
    }

    /// Cuts the newest file to `millionths` of its length: what a crashed machine may leave of it.
    fn cut_append_only_file(&self, millionths: u64) -> Result<()> {
        let folder = self.redis.directory().join("appendonlydir");
        let files = std::fs::read_dir(&folder).context("appendonlydir")?;
        let mut files: Vec<_> = files.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
        files.retain(|path| path.to_string_lossy().ends_with(".incr.aof"));
        // Their names end with `.<number>.incr.aof`.
        let number = |path: &PathBuf| {
            let name = path.file_name()?.to_str()?;
            name.split('.').rev().nth(2)?.parse::<u64>().ok()
        };
        let newest = files.into_iter().max_by_key(number).context("no append-only file")?;
        let file = std::fs::File::options().write(true).open(newest)?;
        let length = file.metadata()?.len();
        Ok(file.set_len(length * millionths / 1_000_000)?)
    }

    /// What a careful operator does after such a restart. Redis 7.0 leaves the head of a torn
    /// transaction in the file (where the cut is within a command, it cuts back to the last whole
    /// command, not to the `MULTI` before it), and the restart after the next runs that head together
    /// with the transaction that follows: writes come back that no reader ever saw.
    async fn rewrite_append_only_file(&self) -> Result<()> {
        let mut redis = self.redis.connection().await?;
        redis::cmd("BGREWRITEAOF").exec_async(&mut redis).await?;
        loop {
            let info: String =
                redis::cmd("INFO").arg("persistence").query_async(&mut redis).await?;
            if ["aof_rewrite_in_progress:0", "aof_rewrite_scheduled:0"]
                .iter()
                .all(|line| info.contains(line))
            {
                return Ok(());
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn set_maxmemory(&self, value: &str) -> Result<()> {
        let mut redis = self.redis.connection().await?;
        redis::cmd("CONFIG").arg(&["SET", "maxmemory", value]).exec_async(&mut redis).await?;
        Ok(())
    }

    // ---- ingestors ------------------------------------------------------------------------

    async fn kill(&mut self, who: usize, until: Instant) -> Result<bool> {
        let member = &mut self.members[who];
        if !member.process.is_started() {
            return Ok(false);
        }
        (member.fail_point, member.paused) = (None, false);
        member.process.kill().await?;
        self.lifts.push((until, Lift::Start(who)));
        Ok(true)
    }

    async fn pause(&mut self, who: usize, until: Instant) -> Result<bool> {
        let member = &mut self.members[who];
        if !member.process.is_started() || member.paused {
            return Ok(false);
        }
        member.process.signal("STOP").await?;
        member.paused = true;
        self.lifts.push((until, Lift::Resume(who)));
        Ok(true)
    }

    async fn terminate(&mut self, who: usize, until: Instant) -> Result<bool> {
        let member = &mut self.members[who];
        if !member.process.is_started() {
            return Ok(false);
        }
        if std::mem::take(&mut member.paused) {
            member.process.signal("CONT").await?;
        }
        let took = member.process.terminate(TERMINATION).await;
        if member.fail_point.take().is_none() {
            self.slowest_exit = self.slowest_exit.max(took?);
        }
        self.lifts.push((until, Lift::Start(who)));
        Ok(true)
    }

    /// Starts the ingestor anew with a fail point, and gives it reason to pass it.
    async fn arm(&mut self, who: usize, point: &'static str, count: u32) -> Result<()> {
        let member = &mut self.members[who];
        member.process.kill().await?;
        member.paused = false;
        member.fail_point = Some(point);
        // A start passes these once at most.
        let once = ["lease-taken", "before-release", "before-finalized", "after-finalized"];
        let count = if once.contains(&point) { 1 } else { count };
        member.process.set("ETHHOOK_FAIL_POINT", format!("{point}:{count}")).start()?;
        member.process.unset("ETHHOOK_FAIL_POINT");
        match point {
            "before-finalized" | "after-finalized" => {
                if self.chain.head_number() < LONG_CHAIN {
                    (0..UNTIL_FINALITY).for_each(|_| drop(self.chain.mine_events(0)));
                }
            }
            "before-remove" | "after-remove" => {
                // Only a published block can be taken back.
                self.pass(Duration::from_millis(700)).await?;
                self.reorg(8, 1, Contents::Fresh);
            }
            "before-release" => {
                self.pass(Duration::from_millis(500)).await?;
                // Unless it could not start, and runs again without the fail point.
                if self.members[who].fail_point.is_some() {
                    self.members[who].process.signal("TERM").await?;
                }
            }
            _ => drop(self.chain.mine(8)),
        }
        self.peak = self.peak.max(self.chain.head_number());
        Ok(())
    }

    /// Looks at who ended by itself. That is meant to happen at a fail point, and at a start without
    /// Redis; else it is a finding.
    fn supervise(&mut self) -> Result<()> {
        for who in 0..self.members.len() {
            let member = &mut self.members[who];
            let Some(status) = member.process.ended()? else { continue };
            member.paused = false;
            match member.fail_point.take() {
                Some(point) if status.signal() == Some(SIGABRT) => {
                    *self.reached.entry(point).or_default() += 1;
                }
                // It had no lease to release.
                Some("before-release") if status.success() => {}
                _ => {
                    let listened = member.process.log_of_this_process().contains("listening");
                    let unsound =
                        self.redis_faults > 0 || self.redis_sound_since >= member.process.started();
                    let refused = !listened && unsound && status.code().is_some_and(|c| c != 0);
                    ensure!(refused, "ingestor {who} ended by itself: {status}");
                    self.refused_starts += 1;
                }
            }
            self.lifts.push((Instant::now() + Duration::from_millis(200), Lift::Start(who)));
        }
        Ok(())
    }

    // ---- undoing --------------------------------------------------------------------------

    async fn lift(&mut self, lift: Lift) -> Result<()> {
        match lift {
            Lift::Link(side, fault) => {
                match fault {
                    LinkFault::Delay(_) => self.link(side).delay(Duration::ZERO),
                    LinkFault::Slices => self.link(side).slice(false),
                    LinkFault::CutAnswer(_) => self.link(side).cut_after(u64::MAX),
                    LinkFault::Drop => {}
                    LinkFault::Cut | LinkFault::HalfOpen => self.link(side).restore(),
                }
                if side == Side::Redis {
                    self.redis_fault_is_over();
                }
            }
            Lift::StartRedis => {
                self.redis.start().await?;
                if std::mem::take(&mut self.torn) {
                    self.rewrite_append_only_file().await?;
                }
                self.redis_fault_is_over();
            }
            Lift::FreeMemory => {
                if self.lifts.iter().any(|(_, lift)| *lift == Lift::ResumeRedis) {
                    // A stopped Redis hears nothing.
                    let again = Instant::now() + Duration::from_millis(100);
                    self.lifts.push((again, Lift::FreeMemory));
                    return Ok(());
                }
                // After a restart it is free anyway.
                if self.redis_is_up() {
                    self.set_maxmemory("0").await?;
                }
                self.redis_fault_is_over();
            }
            Lift::ResumeRedis => {
                self.redis.resume()?;
                self.redis_fault_is_over();
            }
            Lift::Start(who) => self.members[who].process.start()?,
            Lift::Resume(who) => {
                // A process started since then was never paused.
                if std::mem::take(&mut self.members[who].paused) {
                    self.members[who].process.signal("CONT").await?;
                }
            }
        }
        Ok(())
    }

    /// Takes all faults away, waits until the stream has reached the head and compares it with the
    /// chain.
    pub(super) async fn settle(&mut self, one_more_block: bool) -> Result<Report> {
        // Memory is freed last: that needs a Redis that answers.
        self.lifts.sort_by_key(|(_, lift)| *lift == Lift::FreeMemory);
        for (_, lift) in std::mem::take(&mut self.lifts) {
            self.lift(lift).await?;
        }
        for link in [&self.node_link, &self.redis_link] {
            link.restore();
            link.delay(Duration::ZERO);
            link.slice(false);
        }
        self.chain.behave();
        for member in &mut self.members {
            // A fail point that was not passed must not be passed later.
            if member.fail_point.take().is_some() {
                member.process.kill().await?;
            }
            member.process.start()?;
        }
        if one_more_block {
            self.chain.mine(1);
            self.peak = self.peak.max(self.chain.head_number());
        }
        let node = NodeRpc::at_url(self.node.http_url(CHAIN_ID));
        let checker = Checker::connect(&self.redis.url(), node, CHAIN_ID).await?;
        let report = {
            let check = checker.settle_and_check(SETTLE);
            tokio::pin!(check);
            loop {
                tokio::select! {
                    report = &mut check => break report?,
                    passed = self.pass(Duration::from_millis(50)) => passed?,
                }
            }
        };
        for (who, member) in self.members.iter().enumerate() {
            ensure!(!member.process.log().contains("panicked at"), "ingestor {who} panicked");
        }
        Ok(report)
    }

    /// Looks for the secrets of the world's URLs in all that can be read; returns how many bytes
    /// that were.
    pub(super) async fn sweep_for_secrets(&self) -> Result<usize> {
        let members: Vec<_> = self.members.iter().map(|member| &member.process).collect();
        canary::sweep(&members, &self.redis).await
    }

    /// How often the node did wrong, by kind.
    pub(super) fn wrongs(&self) -> BTreeMap<&'static str, u64> {
        self.chain.stats().faults_played()
    }

    /// The ends of the ingestors' logs, for whoever looks for the cause of a failure.
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
