//! Even load for a long time, with a reader and retention, while memory is measured.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use ethhook_simulator::Contents;
use tokio::time::Instant;

use super::action::{ALL_LOGS, Action, Form, WorldPlan};
use super::tally::{Memory, Quarters};
use super::world::World;
use super::{Campaign, LOG_LINES_SHOWN};

/// Interval between two measurements of memory.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const REORG_EVERY: Duration = Duration::from_secs(20);
const READ_EVERY: Duration = Duration::from_millis(200);
/// 400 events a second, a byte cap that they reach in half a minute, dedup records kept for a
/// minute: so the memory of Redis can stay flat.
const LOAD: WorldPlan = WorldPlan {
    seed: 1,
    rounds: 1,
    redis: Form::One,
    appendfsync: "everysec",
    standby: false,
    lease_ms: 10_000,
    http: false,
    chains: 1,
    endpoints: 1,
    events_per_block: 40,
    empty_every: 7,
    encoding: "fields",
    initial_blocks: 0,
    blocks_per_second: 10,
    lead_ms: 0,
    finality_depth: 64,
    confirmations: 0,
    topics: ALL_LOGS,
    verify: "receipts_root",
    of_chains: "",
    settings: &[("STREAM_MAX_BYTES", "4000000"), ("DEDUP_TTL_SECONDS", "60")],
};

impl Campaign<'_> {
    pub(super) async fn soak(&mut self, duration: Duration) -> Result<()> {
        let plan = WorldPlan { seed: self.plan.seed, ..LOAD };
        let mut world = World::new(self.plan, &plan).await?;
        let result = self.even_load(&plan, &mut world, duration).await;
        self.take_up(&world);
        result.map_err(|error| anyhow!("{error:#}\n{}", world.log_tails(LOG_LINES_SHOWN)))
    }

    async fn even_load(
        &mut self,
        plan: &WorldPlan,
        world: &mut World,
        duration: Duration,
    ) -> Result<()> {
        let (mut ingestor, mut redis) = (Vec::new(), Vec::new());
        let (mut read, mut nth) = (0, 0);
        let end = Instant::now() + duration;
        let (mut look, mut reorg) = (Instant::now() + LOOK_EVERY, Instant::now() + REORG_EVERY);
        world.create_group().await?;
        while Instant::now() < end {
            world.pass(READ_EVERY).await?;
            read += world.read_group().await?;
            if Instant::now() >= look {
                look += LOOK_EVERY;
                let (rss, used) = world.memory().await?;
                ingestor.push(rss);
                redis.push(used);
                self.say(format!("ingestor {rss}, Redis {used} bytes; {read} entries read"));
            }
            if Instant::now() >= reorg {
                reorg += REORG_EVERY;
                nth += 1;
                let contents = Contents::Fresh;
                let action = Action::Reorg { depth: nth % 6 + 1, longer_by: 1, contents };
                if world.perform(&action).await? {
                    *self.tally.faults.entry(action.kind(plan)).or_default() += 1;
                }
            }
        }
        let trimmed = world.trimmed().await.context("no metric of trimmed entries")?;
        self.tally.removed_entries = self.settle(world, true).await?;
        loop {
            match world.read_group().await? {
                0 => break,
                more => read += more,
            }
        }
        let added = world.added().await?;
        ensure!(
            read == added,
            "the group read {read} of {added} entries: retention took the others"
        );
        self.tally.bytes_without_secrets = world.sweep_for_secrets().await?;
        let memory = Memory {
            samples: ingestor.len(),
            ingestor: Quarters::of(&ingestor),
            redis: Quarters::of(&redis),
            trimmed_entries: trimmed,
            read_entries: read,
        };
        self.tally.memory = Some(memory.clone());
        ensure!(memory.ingestor.is_flat(), "the ingestor's memory is not flat: {memory:?}");
        ensure!(memory.redis.is_flat(), "Redis' memory is not flat: {memory:?}");
        ensure!(trimmed > 0, "retention removed nothing, so a flat Redis says nothing");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_is_not_flat_and_what_warms_up_is() {
        let mib = 1 << 20;
        let grows: Vec<u64> = (0..240).map(|nth| (50 + nth / 10) * mib).collect();
        assert!(!Quarters::of(&grows).is_flat());
        let warms: Vec<u64> = (0_u64..240).map(|nth| (20 + nth.min(40)) * mib).collect();
        assert!(Quarters::of(&warms).is_flat());
        assert_eq!(Quarters::of(&warms).highest, 60 * mib);
    }
}
