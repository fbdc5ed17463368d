//! Actions of several steps whose effect must be observed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ethhook_simulator::{Contents, Finality, Mischief};
use tokio::time::Instant;

use super::super::action::Topics;
use super::members::{INSTANCES, UNTIL_FINALITY};
use super::subject::list;
use super::{Lift, World};

/// Time limit for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time limit for a fault to take effect often enough, since some kinds occur rarely.
const STRIKES: Duration = Duration::from_secs(240);
const BEAT: Duration = Duration::from_millis(50);

impl World {
    pub(super) async fn kill_and_reorg(
        &mut self,
        who: usize,
        depth: u64,
        until: Instant,
    ) -> Result<bool> {
        if !self.kill(who, until).await? {
            return Ok(false);
        }
        self.subject().reorg(depth, 1, Contents::Fresh);
        Ok(true)
    }

    /// The endpoint at `at` stays on the branch that a reorg replaces.
    pub(super) fn part(&mut self, at: usize, depth: u64, until: Instant) -> bool {
        let chain = self.turn % self.subjects.len();
        let parted = self.subjects[chain].part(at, depth);
        if parted {
            self.lifts.push((until, Lift::Rejoin(chain, at)));
        }
        parted
    }

    /// Restarts an ingestor with another filter for all chains.
    pub(super) async fn refilter(
        &mut self,
        who: usize,
        topics: Topics,
        until: Instant,
    ) -> Result<bool> {
        if !self.kill(who, until).await? {
            return Ok(false);
        }
        for subject in &self.subjects {
            self.members[who].process.set(&subject.topics_key(), list(topics));
        }
        Ok(true)
    }

    pub(super) async fn pause_past_lease(&mut self, who: usize) -> Result<bool> {
        let past = Duration::from_millis(3_500);
        if !self.pause(who, Instant::now() + past).await? {
            return Ok(false);
        }
        // Blocks for the other ingestor to publish in the meantime.
        for _ in 0..7 {
            self.subject().mine(2);
            self.pass(Duration::from_millis(500)).await?;
        }
        Ok(true)
    }

    /// Pauses the holder of the first chain's lease until the other ingestor has taken it and
    /// published, then resumes it.
    pub(super) async fn pause_owner(&mut self) -> Result<bool> {
        let owner = self.writer().await?;
        let Some(who) = INSTANCES.iter().position(|instance| *instance == owner) else {
            return Ok(false);
        };
        let paused = Instant::now();
        if !self.pause(who, paused + PATIENCE).await? {
            return Ok(false);
        }
        while self.writer().await? == owner {
            ensure!(paused.elapsed() < PATIENCE, "nobody took over from the stopped `{owner}`");
            self.pass(BEAT).await?;
        }
        self.slowest_takeover = self.slowest_takeover.max(paused.elapsed());
        let taken_at = self.tip().await?;
        while self.tip().await? <= taken_at {
            ensure!(paused.elapsed() < PATIENCE, "the new owner does not publish");
            self.pass(BEAT).await?;
        }
        self.lifts.retain(|(_, lift)| *lift != Lift::Resume(who));
        let taken = self.first_cursor().await?.map(|cursor| (cursor.writer, cursor.epoch));
        self.resume(who).await?;
        let resumed = Instant::now();
        loop {
            self.pass(Duration::from_millis(100)).await?;
            let ready = self.members[who].process.get("ready").await;
            if ready.is_some_and(|(_, why)| why.contains("standing by")) {
                break;
            }
            ensure!(resumed.elapsed() < PATIENCE, "`{owner}` does not stand by once it is resumed");
        }
        let writes = self.first_cursor().await?.map(|cursor| (cursor.writer, cursor.epoch));
        ensure!(writes == taken, "the chain of {taken:?} is now written by {writes:?}");
        Ok(true)
    }

    /// The last writer to take the first chain's lease.
    async fn writer(&self) -> Result<String> {
        let cursor = self.first_cursor().await?;
        Ok(cursor.map(|cursor| cursor.writer).unwrap_or_default())
    }

    async fn tip(&self) -> Result<u64> {
        Ok(self.first_cursor().await?.map_or(0, |cursor| cursor.number))
    }

    pub(super) async fn first_cursor(&self) -> Result<Option<ethhook_domain::Cursor>> {
        let subject = &self.subjects[0];
        let url = self.store.direct_url(subject.id()).await?;
        subject.checker(&url).await?.cursor().await
    }

    /// Loses the last acknowledged writes together with the master, because its replica never
    /// received them.
    pub(super) async fn fail_over_redis(&mut self) -> Result<()> {
        let chain = self.subject().id();
        self.store.cut_replication(chain).await?;
        self.pass(Duration::from_millis(500)).await?;
        self.store.fault_begins();
        // Blocks to be written while there is no master.
        self.subjects.iter_mut().for_each(|subject| subject.mine(10));
        let failed_over = self.store.fail_over(chain).await;
        self.store.fault_is_over();
        failed_over
    }

    /// The chain must stop with an alarm and without another entry, and continue after the
    /// operator's order.
    pub(super) async fn reorg_below_finalized(&mut self) -> Result<()> {
        let finalized = self.has_finalized().await?;
        let load = self.load.take();
        let chain = &self.subjects[0].chain;
        let depth = chain.head_number() - finalized + 3;
        chain.reorg(depth, depth + 5, Contents::Fresh);
        let begun = Instant::now();
        let alarmed = loop {
            let cursor = self.first_cursor().await?.context("the cursor is gone")?;
            if !cursor.alarm.is_empty() {
                break cursor;
            }
            ensure!(begun.elapsed() < PATIENCE, "no alarm");
            self.pass(BEAT).await?;
        };
        ensure!(alarmed.finalized_number >= finalized, "finality moved back by itself");
        loop {
            let ready = self.members[0].process.get("ready").await;
            if ready.is_some_and(|(status, body)| status == 503 && body.contains("alarm")) {
                break;
            }
            ensure!(begun.elapsed() < PATIENCE, "/ready does not tell of the alarm");
            self.pass(BEAT).await?;
        }
        // The node's chain grows, but the stream must not.
        self.subjects[0].mine(5);
        self.pass(Duration::from_secs(1)).await?;
        let later = self.first_cursor().await?.context("the cursor is gone")?;
        ensure!(
            (later.seq, later.hash) == (alarmed.seq, alarmed.hash),
            "published under the alarm"
        );
        self.clear_alarm().await?;
        self.finality_moved_back += 1;
        self.load = load;
        Ok(())
    }

    /// Waits until a block well above the genesis is final.
    async fn has_finalized(&mut self) -> Result<u64> {
        let before = self.first_cursor().await?.map_or(0, |cursor| cursor.finalized_number);
        self.subjects[0].chain.set_finality(Finality::Depth(4));
        self.subjects[0].mine_empty(UNTIL_FINALITY);
        let begun = Instant::now();
        loop {
            let now = self.first_cursor().await?.map_or(0, |cursor| cursor.finalized_number);
            if now > before {
                return Ok(now);
            }
            ensure!(begun.elapsed() < PATIENCE, "nothing becomes final above {before}");
            self.pass(BEAT).await?;
        }
    }

    async fn clear_alarm(&mut self) -> Result<()> {
        let name = self.subjects[0].name();
        let begun = Instant::now();
        loop {
            let arguments = ["clear-alarm", "--chain", &name, "--yes"];
            let output = self.members[0].process.command(&arguments).await?;
            if output.status.success() {
                return Ok(());
            }
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(told.contains("holds the lease"), "clear-alarm: {told}");
            ensure!(begun.elapsed() < PATIENCE, "clear-alarm never had the lease: {told}");
            self.pass(BEAT).await?;
        }
    }

    /// Makes every chain's first endpoint misbehave in one way until that has taken effect this
    /// many times.
    pub(super) async fn go_wrong(
        &mut self,
        kind: &'static str,
        seed: u64,
        times: u64,
    ) -> Result<()> {
        for subject in &self.subjects {
            let view = &subject.endpoints[0].view;
            // A client that receives every head requests few blocks.
            view.set_muted(kind.starts_with("bloom"));
            let mischief = Mischief::alone(kind, seed, per_mille(kind));
            view.misbehave(mischief.with_context(|| format!("no kind `{kind}`"))?);
        }
        let begun = Instant::now();
        let mut played = 0;
        while played < times {
            ensure!(begun.elapsed() < STRIKES, "{kind} took effect {played} times only");
            if kind == "deaf_subscription" {
                self.subjects.iter().for_each(|subject| subject.endpoints[0].view.cut_sockets());
            }
            if kind == "other_branch" {
                for subject in &mut self.subjects {
                    subject.reorg(2, 1, Contents::Fresh);
                }
            }
            self.pass(Duration::from_millis(500)).await?;
            if ["method_not_found", "method_not_offered"].contains(&kind) {
                // The ingestor remembers the refusal; a new process has to discover it again.
                self.kill(0, Instant::now()).await?;
            }
            let wrongs = self.wrongs().filter(|(wrong, _)| wrong == kind);
            played = wrongs.map(|(_, count)| count).sum();
        }
        Ok(())
    }
}

/// How many of 1,000 calls or heads fail: fewer for faults that delay everything.
fn per_mille(kind: &str) -> u32 {
    match kind {
        "subscriptions_die" | "sockets_dropped" | "sockets_closed" => 60,
        "padded" => 100,
        "head_far_back" | "deaf_subscription" | "method_not_found" | "method_not_offered" => 700,
        _ if kind.starts_with("finalized") => 1_000,
        _ => 300,
    }
}
