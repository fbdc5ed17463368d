//! Retention: a session sweeps its streams periodically, and shows how far each consumer group is.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ethhook_streams::{GroupLag, ReadError, RetentionPolicy, Swept};
use futures_util::FutureExt;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::{Running, Session, gauge};
use crate::status::{Cause, Needs};

const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// How long an ending session waits for its sweep.
const LAST_SWEEP: Duration = Duration::from_millis(500);

/// At least this part of the byte cap is written between two sweeps that the cap demands.
const LEAST_ROOM: u64 = 16;
/// Bytes of a marker, and of an entry while the stream has none.
const MARKER_BYTES: u64 = 220;
const ENTRY_BYTES: u64 = 600;

/// What a session knows of retention.
#[derive(Default)]
pub(super) struct Retention<'a> {
    pub(super) sweep: Running<'a, Result<Swept, ReadError>>,
    /// The consumer groups of the last sweep, and whether each counted as idle.
    groups: HashMap<String, bool>,
    /// What the last sweep found; none before the first.
    found: Option<Swept>,
    /// About how many bytes were written since it began.
    written: u64,
    /// Of these, those before the running sweep began.
    before_sweep: u64,
}

impl Retention<'_> {
    /// Notes a block with this many events.
    pub(super) fn wrote(&mut self, events: u64) {
        let entry_bytes = self.found.as_ref().map(|found| found.entry_bytes);
        let entry_bytes = entry_bytes.filter(|bytes| *bytes > 0).unwrap_or(ENTRY_BYTES);
        let bytes = events.saturating_mul(entry_bytes).saturating_add(MARKER_BYTES);
        self.written = self.written.saturating_add(bytes);
    }

    /// Whether so much was written since the last sweep that the byte cap may be reached, or the stream may have
    /// doubled: what an entry takes is known only from those that are there. A sweep cannot wait then.
    pub(super) fn room_is_used_up(&self) -> bool {
        self.found.as_ref().is_some_and(|found| {
            let room = left(found).min(found.bytes).max(least_room(found));
            self.written >= room
        })
    }

    /// Whether the byte cap was reached, or almost, at the last sweep.
    fn is_full(&self) -> bool {
        self.found.as_ref().is_some_and(|found| left(found) < least_room(found))
    }

    /// The group for which the streams are larger than their cap.
    fn holder(&self) -> Option<&str> {
        let above = self.found.as_ref().filter(|found| found.bytes > found.max_bytes);
        above.and_then(|found| found.held_by_group.as_deref())
    }
}

/// Bytes below the cap.
fn left(found: &Swept) -> u64 {
    found.max_bytes.saturating_sub(found.bytes)
}

/// Bytes that may be written between two sweeps even if the cap is reached.
fn least_room(found: &Swept) -> u64 {
    (found.max_bytes / LEAST_ROOM).max(1)
}

impl Session<'_> {
    /// Whether a backfill waits: for a sweep, for blocks to become final, or for a group to read.
    pub(super) fn backfill_waits(&self) -> bool {
        let retention = &self.retention;
        self.is_backfilling()
            && (retention.holder().is_some()
                || retention.room_is_used_up()
                || (retention.is_full() && self.finality.asking.is_some()))
    }

    pub(super) fn start_sweep(&mut self, now: Instant) {
        if self.retention.sweep.is_none() && now >= self.due.retention {
            self.due.retention = now + SWEEP_EVERY;
            self.retention.before_sweep = self.retention.written;
            let (id, streams) = (self.chain.id(), &self.chain.streams);
            let (keep, cap) = (self.chain.options.retention, self.chain.options.stream_max_bytes);
            let following_head = !self.is_backfilling();
            let redis_refuses_steps = self.chain.status.needs(Needs::Room);
            let sweep = async move {
                // An operator may have given Redis more memory.
                let memory = streams.memory(id).await?;
                let max_bytes = cap.bytes(memory.max);
                let policy = RetentionPolicy {
                    keep,
                    max_bytes,
                    memory,
                    redis_refuses_steps,
                    following_head,
                };
                streams.sweep(id, &policy).await
            };
            self.retention.sweep = Some(sweep.boxed());
        }
    }

    pub(super) fn swept(&mut self, swept: Result<Swept, ReadError>) {
        self.retention.sweep = None;
        self.retention.written -= std::mem::take(&mut self.retention.before_sweep);
        let metrics = &self.chain.metrics;
        let swept = match swept {
            Ok(swept) => swept,
            Err(error) => {
                metrics.redis_error(error.kind());
                warn!(%error, "retention failed");
                return;
            }
        };
        if swept.has_more {
            self.due.retention = Instant::now();
        }
        metrics.trimmed.inc_by(swept.trimmed_entries);
        metrics.stream_entries.set(gauge(swept.len));
        metrics.stream_bytes.set(gauge(swept.bytes));
        if swept.nearly_full && !self.retention.found.as_ref().is_some_and(|f| f.nearly_full) {
            warn!(
                "Redis is nearly full: the oldest blocks that no group needs go before RETENTION_HOURS"
            );
        }
        for (group, entries) in &swept.lost_unread_by_group {
            error!(
                group,
                entries, "the byte cap removed entries that the group had not acknowledged"
            );
            metrics.lost_unread(group, *entries);
            self.chain.status.update(|s| s.lost_unread += entries);
        }
        self.look_at_groups(&swept.groups);
        self.retention.found = Some(swept);
        match self.retention.holder() {
            Some(group) if self.is_backfilling() => {
                let why = format!(
                    "the byte cap is reached and the group `{group}` has not read: the backfill waits; \
                     read with it, delete it with `ethhook groups delete`, or raise STREAM_MAX_BYTES"
                );
                self.chain.status.stalled(Cause::Room, why, Needs::Operator);
            }
            _ => self.chain.status.clear(Cause::Room),
        }
    }

    /// Waits briefly for a running sweep, since only it knows which unread entries a group has lost. From then
    /// on, the chain's next writer shows the groups.
    pub(super) async fn end_sweep(&mut self) {
        if let Some(retention) = self.retention.sweep.take()
            && let Ok(swept) = timeout(LAST_SWEEP, retention).await
        {
            self.swept(swept);
        }
        self.retention.groups.drain().for_each(|(group, _)| self.chain.metrics.group_gone(&group));
    }

    /// Updates how far each consumer group is behind, and logs once when one stops reading: it
    /// blocks trimming.
    fn look_at_groups(&mut self, lags: &[GroupLag]) {
        let metrics = &self.chain.metrics;
        let mut groups = HashMap::new();
        for lag in lags {
            let is_idle = is_idle(lag, self.chain.options.group_idle_alarm);
            let was_idle = self.retention.groups.remove(&lag.group).unwrap_or(false);
            let (group, hours) = (&lag.group, lag.idle.as_secs() / 3600);
            if is_idle && !was_idle {
                warn!(group, hours, "the consumer group does not read: its entries are kept");
            } else if was_idle && !is_idle {
                info!(group, "the consumer group reads again");
            }
            metrics.group(lag, is_idle);
            groups.insert(lag.group.clone(), is_idle);
        }
        self.retention.groups.keys().for_each(|gone| metrics.group_gone(gone));
        self.retention.groups = groups;
    }
}

/// Whether entries have waited, and no consumer has read, for this long.
fn is_idle(lag: &GroupLag, alarm_after: Duration) -> bool {
    lag.waiting >= alarm_after && lag.idle >= alarm_after
}

#[cfg(test)]
mod tests {
    use ethhook_streams::{FailureKind, RedisFailure};

    use super::super::finished;
    use super::super::scene::Scene;
    use super::*;
    use crate::config::{ByteCap, ChainConfig};

    #[tokio::test]
    async fn a_group_that_is_gone_and_a_session_that_ended_show_no_lag() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        let swept = |groups: &[&str]| {
            let lag = |group: &&str| GroupLag { group: (*group).to_owned(), ..GroupLag::default() };
            Ok(Swept { groups: groups.iter().map(lag).collect(), ..Swept::default() })
        };
        let shown = |group| {
            let label = format!("group=\"{group}\"");
            let scrape = scene.scrape();
            scrape.lines().filter(|l| l.contains("_group_") && l.contains(&label)).count()
        };
        session.swept(swept(&["one", "two"]));
        assert_eq!((shown("one"), shown("two")), (3, 3));
        session.swept(swept(&["two"]));
        assert_eq!((shown("one"), shown("two")), (0, 3));
        session.end_sweep().await;
        assert_eq!(shown("two"), 0);
    }

    #[tokio::test]
    async fn a_sweep_that_ended_at_its_limit_is_followed_by_the_next_at_once() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        for has_more in [false, true] {
            session.due.retention = Instant::now();
            session.start_sweep(Instant::now());
            assert!(session.due.retention > Instant::now());
            session.swept(Ok(Swept { has_more, ..Swept::default() }));
            assert_eq!(session.due.retention <= Instant::now(), has_more);
        }
    }

    #[tokio::test]
    async fn g8_more_memory_for_redis_is_more_room_for_streams_at_once() {
        let mut scene = Scene::of(ChainConfig::local([])).await;
        scene.chain.options.stream_max_bytes = ByteCap::Share(4);
        let mut session = scene.session().await;
        for maxmemory in [100_000_000, 200_000_000, 0] {
            let set = format!("CONFIG SET maxmemory {maxmemory}");
            scene.redis.ask::<String>(&set).await.unwrap();
            session.start_sweep(session.due.retention);
            let swept = finished(&mut session.retention.sweep).await.unwrap();
            let expected = if maxmemory > 0 { maxmemory * 15 / 100 } else { 80_530_635 };
            assert_eq!(swept.max_bytes, expected, "{maxmemory}");
            session.swept(Ok(swept));
        }
    }

    #[tokio::test]
    async fn g8_a_backfill_that_waits_for_a_group_says_so_until_there_is_room() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        let told = || scene.stall().map(|(why, _)| why);
        for (bytes, group, waits) in [
            (10, None, false),
            (9, Some("slow"), false),
            (10, Some("slow"), true),
            (9, None, false),
        ] {
            let held_by_group = group.map(str::to_owned);
            session.swept(Ok(Swept { bytes, max_bytes: 9, held_by_group, ..Swept::default() }));
            assert_eq!(session.retention.holder(), group.filter(|_| waits));
            assert_eq!(told().is_some_and(|why| why.contains("the group `slow`")), waits);
        }
        session.head = Some((0, 0));
        session.hear(1..=1);
        session.publish().await;
        session.swept(Ok(Swept {
            bytes: 10,
            max_bytes: 9,
            held_by_group: Some("slow".into()),
            ..Swept::default()
        }));
        assert_eq!(told(), None, "at the head, the entries are removed");
    }

    #[tokio::test]
    async fn g8_after_a_gap_the_head_does_not_wait_for_a_group() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session_from(100).await;
        session.head = Some((100, 100));
        session.sweep(Ok(Swept {
            bytes: 10,
            max_bytes: 9,
            held_by_group: Some("slow".into()),
            ..Swept::default()
        }));
        session.hear(100..=100);
        session.publish().await;
        assert_eq!(
            scene.markers().await.len(),
            1,
            "nothing is published yet, and it is at the head"
        );
    }

    #[tokio::test]
    async fn g7_a_backfill_that_may_have_reached_the_cap_waits_for_a_sweep_at_once() {
        let mut config = ChainConfig::local([]);
        config.profile.finality_depth = 10;
        let scene = Scene::of(config).await;
        let mut session = scene.session().await;
        session.head = Some((14, 14));
        let swept = || Swept { bytes: 700, max_bytes: 1_000, ..Swept::default() };
        session.sweep(Ok(swept()));
        session.due.retention = Instant::now() + SWEEP_EVERY;
        for number in 1..=3 {
            assert_eq!(session.due.retention <= Instant::now(), number == 3);
            session.hear(number..=number);
            session.publish().await;
        }
        assert_eq!(scene.markers().await.len(), 2, "two markers take more than 300 bytes");
        session.sweep(Ok(swept()));
        session.publish().await;
        assert_eq!(scene.markers().await.len(), 3);
        // What failed says nothing, and neither does a cap that is exceeded for good forbid everything.
        session.hear(4..=4);
        session.publish().await;
        assert!(session.retention.room_is_used_up());
        let slow = RedisFailure { kind: FailureKind::Timeout, detail: "slow".to_owned() };
        session.sweep(Err(slow.into()));
        assert!(!session.backfill_waits());
        session.sweep(Ok(Swept { bytes: 9_000, max_bytes: 1_000, ..Swept::default() }));
        assert!(!session.backfill_waits());
        session.retention.wrote(1);
        assert!(session.retention.room_is_used_up(), "an entry takes some 600 bytes");
        // What is written while a sweep runs, it has perhaps not seen.
        session.start_sweep(session.due.retention);
        session.retention.wrote(1);
        session.swept(Ok(Swept { bytes: 9_000, max_bytes: 1_000, ..Swept::default() }));
        assert!(session.retention.room_is_used_up());
        // The head does not wait.
        session.head = Some((5, 5));
        session.hear(5..=5);
        session.publish().await;
        assert_eq!(scene.markers().await.len(), 5);
    }

    #[tokio::test]
    async fn g7_what_an_entry_takes_is_measured_again_before_the_stream_is_twice_as_large() {
        const CAP: u64 = 16_000;
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        for (bytes, room) in [(0, 1_000), (5_000, 5_000), (9_000, 7_000), (17_000, 1_000)] {
            session.sweep(Ok(Swept { bytes, max_bytes: CAP, ..Swept::default() }));
            for written in [room - 1, room] {
                session.retention.written = written;
                assert_eq!(session.retention.room_is_used_up(), written == room, "{bytes}");
            }
        }
        for (entry_bytes, written) in [(0, 2 * 600), (300, 2 * 300)] {
            session.sweep(Ok(Swept { entry_bytes, ..Swept::default() }));
            session.retention.wrote(2);
            assert_eq!(session.retention.written, MARKER_BYTES + written);
        }
    }

    #[test]
    fn a_group_is_idle_only_if_entries_wait_and_nobody_reads() {
        const HOUR: Duration = Duration::from_secs(3_600);
        let lag = |waiting, idle| GroupLag { waiting, idle, ..GroupLag::default() };
        assert!(is_idle(&lag(HOUR, HOUR), HOUR));
        assert!(!is_idle(&lag(HOUR, HOUR / 2), HOUR), "it reads, and is slow");
        assert!(!is_idle(&lag(HOUR / 2, 9 * HOUR), HOUR), "there was nothing to read for long");
    }
}
