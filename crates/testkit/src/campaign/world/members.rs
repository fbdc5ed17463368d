//! The world's ingestors: starting, killing and pausing them, and checking how they end.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use ethhook_simulator::Contents;
use tokio::time::Instant;

use super::super::Plan;
use super::super::action::WorldPlan;
use super::subject::Subject;
use super::{Lift, World};
use crate::ingestor::Ingestor;

pub(super) const INSTANCES: [&str; 2] = ["one", "two"];
const TERMINATION: Duration = Duration::from_secs(8);
/// On chains longer than this, no more long runs of empty blocks are mined: each check reads the
/// whole chain.
const LONG_CHAIN: u64 = 1_200;
/// More blocks than the ingestor publishes, while catching up, before it asks for the finalized
/// one.
pub(super) const UNTIL_FINALITY: u64 = 1_100;
/// SIGABRT, by which a process aborts itself at a fail point.
const SIGABRT: i32 = 6;

/// One of the ingestors.
pub(super) struct Member {
    pub(super) process: Ingestor,
    /// The fail point with which it was started.
    pub(super) fail_point: Option<&'static str>,
    pub(super) paused: bool,
}

impl Member {
    pub(super) fn start(
        plan: &Plan,
        world: &WorldPlan,
        redis_url: &str,
        subjects: &[Subject],
        instance: &str,
    ) -> Result<Self> {
        let mut process = Ingestor::new(&plan.program, redis_url, instance)?;
        let sections: Vec<_> = subjects.iter().map(|subject| subject.section(world)).collect();
        process.write_toml(&sections.concat())?;
        process
            .set("LEASE_TTL_MS", world.lease_ms)
            .set("STREAM_ENCODING", world.encoding)
            // A fixed value instead of a share of maxmemory, which is temporarily 1 byte.
            .set("STREAM_MAX_BYTES", 1_u64 << 30)
            .set("RUST_LOG", "info");
        for (name, value) in subjects.iter().flat_map(|subject| subject.settings(world)) {
            process.set(&name, value);
        }
        for (name, value) in world.settings {
            process.set(name, value);
        }
        process.start()?;
        Ok(Self { process, fail_point: None, paused: false })
    }
}

impl World {
    pub(super) async fn kill(&mut self, who: usize, until: Instant) -> Result<bool> {
        let member = &mut self.members[who];
        if !member.process.is_started() {
            return Ok(false);
        }
        (member.fail_point, member.paused) = (None, false);
        member.process.kill().await?;
        self.lifts.push((until, Lift::Start(who)));
        Ok(true)
    }

    pub(super) async fn pause(&mut self, who: usize, until: Instant) -> Result<bool> {
        let member = &mut self.members[who];
        if !member.process.is_started() || member.paused {
            return Ok(false);
        }
        member.process.signal("STOP").await?;
        member.paused = true;
        self.lifts.push((until, Lift::Resume(who)));
        Ok(true)
    }

    pub(super) async fn resume(&mut self, who: usize) -> Result<()> {
        // A process started since then is not paused.
        if std::mem::take(&mut self.members[who].paused) {
            self.members[who].process.signal("CONT").await?;
        }
        Ok(())
    }

    pub(super) async fn terminate(&mut self, who: usize, until: Instant) -> Result<bool> {
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

    /// Restarts the ingestor with a fail point, and causes what makes it pass that point.
    pub(super) async fn arm(&mut self, who: usize, point: &'static str, count: u32) -> Result<()> {
        let member = &mut self.members[who];
        member.process.kill().await?;
        member.paused = false;
        member.fail_point = Some(point);
        // Each start passes these at most once.
        let once = ["lease-taken", "before-release", "before-finalized", "after-finalized"];
        let count = if once.contains(&point) { 1 } else { count };
        member.process.set("ETHHOOK_FAIL_POINT", format!("{point}:{count}")).start()?;
        member.process.unset("ETHHOOK_FAIL_POINT");
        match point {
            "before-finalized" | "after-finalized" => {
                let subject = self.subject();
                if subject.chain.head_number() < LONG_CHAIN {
                    subject.mine_empty(UNTIL_FINALITY);
                }
            }
            "before-remove" | "after-remove" => {
                // Only a published block can be taken back.
                self.pass(Duration::from_millis(700)).await?;
                self.subject().reorg(8, 1, Contents::Fresh);
            }
            "before-release" => {
                self.pass(Duration::from_millis(500)).await?;
                // Not if it could not start and was restarted without the fail point.
                if self.members[who].fail_point.is_some() {
                    self.members[who].process.signal("TERM").await?;
                }
            }
            // Only a block with more than 1,000 entries is always sent in parts.
            "between-parts" => {
                (0..count).for_each(|_| drop(self.subject().chain.mine_events(1_200)))
            }
            _ => self.subject().mine(8),
        }
        Ok(())
    }

    /// Checks for ingestors that ended on their own. That is expected at a fail point, and at a
    /// start without Redis; otherwise it is a failure.
    pub(super) fn supervise(&mut self) -> Result<()> {
        for who in 0..self.members.len() {
            let member = &mut self.members[who];
            let Some(status) = member.process.ended()? else { continue };
            member.paused = false;
            match member.fail_point.take() {
                Some(point) if status.signal() == Some(SIGABRT) => {
                    *self.reached.entry(point.to_owned()).or_default() += 1;
                }
                // It had no lease to release.
                Some("before-release") if status.success() => {}
                _ => {
                    let listened = member.process.log_of_this_process().contains("listening");
                    let unsound = !self.store.was_sound_since(member.process.started());
                    let refused = !listened && unsound && status.code().is_some_and(|c| c != 0);
                    ensure!(refused, "ingestor {who} ended by itself: {status}");
                    self.refused_starts += 1;
                }
            }
            self.lifts.push((Instant::now() + Duration::from_millis(200), Lift::Start(who)));
        }
        Ok(())
    }
}
