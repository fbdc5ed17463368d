//! What is written to Redis next, and how its result is handled.

use std::time::{Duration, Instant};

use ethhook_streams::{LeaseError, StepError};
use futures_util::future::{OptionFuture, join};
use tokio::time::timeout;
use tracing::error;

use super::pipeline::{Done, Ended, Work};
use super::{Session, gauge};
use crate::chain::queue::Next;
use crate::chain::{End, RELEASE};
use crate::metrics::BlockOutcome;
use crate::status::Cause;

/// How long to wait for steps in flight when the process stops.
const DRAIN: Duration = Duration::from_secs(5);

impl Session<'_> {
    pub(super) fn start_writing(&mut self, now: Instant) {
        while self.pipeline.can_send() {
            let Some(work) = self.next_work(now) else { return };
            self.pipeline.start(work);
        }
    }

    /// What is written to Redis next. Only added blocks are sent behind those in flight.
    fn next_work(&mut self, now: Instant) -> Option<Work> {
        let is_idle = self.pipeline.nothing_in_flight();
        if let Some(text) = self.alarm.clone() {
            return is_idle.then_some(Work::Alarm(text));
        }
        if now >= self.due.renew {
            if is_idle {
                self.due.renew = now + self.chain.options.renew_every();
            }
            return is_idle.then_some(Work::Renew);
        }
        if is_idle && let Some(adding) = self.pipeline.pop_again() {
            return Some(Work::Add(adding));
        }
        if !is_idle && (!self.pipeline.has_room() || self.finality.next.is_some()) {
            return None;
        }
        // Not if the block was orphaned in the meantime.
        if let Some(block) = self.finality.next.take()
            && self.canonical.at(block.number) == Some(&block)
            && self.published.iter().any(|published| published.block == block)
        {
            return Some(Work::Finalize(block));
        }
        if self.backfill_waits() {
            return None;
        }
        if !is_idle && self.queue.undo_is_next() {
            return None;
        }
        self.next_of_queue()
    }

    fn next_of_queue(&mut self) -> Option<Work> {
        // An undo ignores any height limit.
        match self.queue.pop_ready(self.up_to()) {
            Some(Next::Add { block, heard, body }) => {
                let is_deep = self.is_deep(block.number);
                Some(Work::Add(self.pipeline.writer.pending_add(block, heard, body, is_deep)))
            }
            Some(Next::Undo(block)) => match self.published.pop_back() {
                Some(published) if published.block.hash == block.hash => {
                    Some(Work::Remove(published))
                }
                other => {
                    let found = other.map_or("nothing".to_owned(), |p| p.block.to_string());
                    self.alarm = Some(format!(
                        "{block} is to be removed, but the tip is {found}: this is a bug"
                    ));
                    self.alarm.clone().map(Work::Alarm)
                }
            },
            None => None,
        }
    }

    pub(super) fn written(&mut self, result: Result<Done, Ended>) -> Option<End> {
        match result {
            Ok(done) => self.done(done),
            Err(Ended::Refused(error)) => Some(self.refused(&error)),
            Err(Ended::LeaseLost(LeaseError::Lost { owner, epoch }))
                if self.is_namesake(&owner, epoch) =>
            {
                Some(End::Namesake)
            }
            Err(Ended::LeaseLost(_)) => Some(End::Reopen("lease")),
        }
    }

    /// Whether another process with our name writes. Our own name under a lower epoch means a Redis that lost its latest
    /// writes.
    fn is_namesake(&self, writer: &str, epoch: u64) -> bool {
        writer == self.chain.options.instance_id
            && self.pipeline.epoch().is_some_and(|ours| ours < epoch)
    }

    fn done(&mut self, done: Done) -> Option<End> {
        let metrics = &self.chain.metrics;
        if matches!(done, Done::Removed { .. } | Done::Finalized(_)) {
            self.chain.status.clear(Cause::Refusal);
        }
        match done {
            Done::Duplicate { events } => {
                metrics.duplicates.inc_by(events);
                return Some(End::Reopen("duplicate"));
            }
            Done::WillRetry | Done::Renewed | Done::RenewalFailed => {}
            Done::Added { block, heard } => {
                metrics.published.inc_by(block.events);
                metrics.block(BlockOutcome::Added);
                if let Some(heard) = heard {
                    metrics.head_to_stream.observe(heard.elapsed().as_secs_f64());
                }
                let (tip, events) = (block.block.number, block.events);
                self.chain.status.update(|status| {
                    status.tip = Some(tip);
                    status.events += events;
                });
                self.published.push_back(block);
                self.retention.wrote(events);
                if self.retention.room_is_used_up() {
                    self.due.retention = Instant::now();
                }
                self.finality.blocks_since += 1;
                // Blocks fetched earlier may be added while no endpoint answers header requests.
                self.chain.status.clear_all_but(Cause::Headers);
            }
            Done::Removed { block } => {
                metrics.removed.inc_by(block.events);
                metrics.block(BlockOutcome::Removed);
                let tip = self.published.back().map(|p| p.block.number);
                self.chain.status.update(|status| {
                    status.tip = tip;
                    status.removed += block.events;
                });
            }
            Done::Finalized(block) => {
                if self.canonical.at(block.number) != Some(&block) {
                    self.alarm =
                        Some(format!("a reorg orphaned {block} while it was being marked final"));
                    return None;
                }
                self.canonical.finalize(block.number);
                self.finality.reached = Some(block.number);
                while self.published.front().is_some_and(|p| p.block.number < block.number) {
                    self.published.pop_front();
                }
                metrics.finalized.set(gauge(block.number));
            }
            Done::Alarmed => return Some(End::Alarm),
        }
        None
    }

    fn refused(&mut self, error: &StepError) -> End {
        self.chain.metrics.redis_error(error.kind());
        error!(%error, "Redis refused a step");
        match error {
            StepError::Moved { .. } => End::Reopen("moved"),
            StepError::Fenced { writer, epoch } if self.is_namesake(writer, *epoch) => {
                End::Namesake
            }
            StepError::Fenced { .. } => End::Reopen("fenced"),
            _ => End::Refused(error.to_string()),
        }
    }

    /// Awaits the steps and the sweep in flight and releases the lease; the cursor makes it safe to drop the
    /// rest.
    pub(super) async fn drain(mut self) -> End {
        let sweep = self.retention.sweep.take();
        let sweep = timeout(DRAIN, OptionFuture::from(sweep));
        let settle = timeout(DRAIN, self.pipeline.settle()); // accepted or not: the cursor tells
        if let (_, Ok(Some(swept))) = join(settle, sweep).await {
            self.swept(swept);
        }
        self.end_sweep().await;
        self.give_lease_up().await;
        End::Cancelled
    }

    pub(super) async fn give_lease_up(&mut self) {
        timeout(RELEASE, self.pipeline.close()).await.ok(); // otherwise it expires
    }
}

#[cfg(test)]
mod tests {
    use ethhook_domain::canonical::Change;
    use ethhook_domain::marker::Op;
    use ethhook_streams::Swept;
    use futures_util::FutureExt;

    use super::super::scene::{Scene, header};
    use super::*;
    use crate::config::{ChainConfig, EndpointConfig};
    use crate::status::Needs;
    use crate::testing::{mined, serve};

    /// The next step sent alone, and how many blocks were acknowledged before it.
    async fn goes_next(session: &mut Session<'_>) -> (usize, Done) {
        let mut blocks = 0;
        loop {
            session.start_writing(Instant::now());
            let goes_alone = !session.pipeline.can_send();
            let done = session.pipeline.next().await.expect("something is under way").unwrap();
            if goes_alone {
                return (blocks, done);
            }
            assert!(session.done(done).is_none());
            blocks += 1;
        }
    }

    #[tokio::test]
    async fn g5_lease_and_finality_wait_for_what_is_on_the_wire_and_no_longer() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        session.hear(1..=1);
        session.publish().await; // a publisher's first step is sent alone
        let first = session.published.back().unwrap().block;
        session.hear(2..=40);
        session.start_writing(Instant::now());
        session.due.renew = Instant::now();
        let (blocks, done) = goes_next(&mut session).await;
        assert!(matches!(done, Done::Renewed));
        assert_eq!(blocks, 4, "those that were on the wire");
        let next = session.due.renew - Instant::now();
        assert!(!next.is_zero() && next <= scene.chain.options.renew_every(), "once in a while");
        session.start_writing(Instant::now());
        session.finality.next = Some(first);
        let (blocks, done) = goes_next(&mut session).await;
        assert!(matches!(done, Done::Finalized(block) if block == first));
        assert_eq!(blocks, 4, "those that were on the wire");
        assert!(session.done(done).is_none());
        session.publish().await;
        assert_eq!(session.published.back().unwrap().block.number, 40);
    }

    #[tokio::test]
    async fn a_refusal_is_told_until_a_step_is_taken_and_not_until_a_session_is_open() {
        let node = serve(mined(3)).await;
        let mut scene = Scene::of(ChainConfig::local([EndpointConfig::of(&node)])).await;
        let shown = |scene: &Scene| scene.stall().map(|(why, _)| why);
        for (cause, why) in [(Cause::Refusal, "no rights"), (Cause::Opening, "Redis is away")] {
            scene.chain.status.stalled(cause, why.to_owned(), Needs::Operator);
        }
        assert_eq!(shown(&scene).as_deref(), Some("Redis is away"));
        drop(scene.chain.open().await);
        assert_eq!(shown(&scene).as_deref(), Some("no rights"));
        scene.redis.ask::<String>("FLUSHALL").await.unwrap();
        let mut session = scene.session().await;
        session.hear(1..=1);
        session.publish().await;
        drop(session);
        assert_eq!(shown(&scene), None);
    }

    #[tokio::test]
    async fn a_refusal_is_over_also_where_no_block_is_added_any_more() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        session.hear(1..=2);
        session.publish().await;
        scene.chain.status.stalled(Cause::Refusal, "no rights".to_owned(), Needs::Operator);
        session.finality.next = session.published.back().map(|published| published.block);
        session.publish().await;
        assert!(scene.stall().is_none());
    }

    #[tokio::test]
    async fn block_0_waits_for_its_confirmations_too() {
        let config = ChainConfig { confirmations: 3, ..ChainConfig::local([]) };
        let scene = Scene::of(config).await;
        let mut session = scene.session_from(0).await;
        for (tip, published) in [(2, 0), (3, 1), (5, 3)] {
            session.hear(session.canonical.next_number()..=tip);
            session.publish().await;
            assert_eq!(session.published.len(), published, "{tip}");
        }
    }
    #[tokio::test]
    async fn g5_only_our_own_name_under_a_later_epoch_is_a_namesake() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        let ours = session.pipeline.epoch().unwrap();
        let mut ends = |ended: Ended| match session.written(Err(ended)) {
            Some(End::Namesake) => "namesake".to_owned(),
            Some(End::Reopen(cause)) => cause.to_owned(),
            Some(End::Refused(why)) => why,
            _ => "otherwise".to_owned(),
        };
        let lost =
            |owner: &str, epoch| Ended::LeaseLost(LeaseError::Lost { owner: owner.into(), epoch });
        assert_eq!(ends(lost("test", ours + 1)), "namesake");
        assert_eq!(ends(lost("another", ours + 1)), "lease");
        assert_eq!(ends(Ended::LeaseLost(LeaseError::Gone)), "lease");
        let fenced =
            |writer: &str, epoch| Ended::from(StepError::Fenced { writer: writer.into(), epoch });
        assert_eq!(ends(fenced("test", ours + 1)), "namesake");
        assert_eq!(ends(fenced("test", ours)), "fenced");
        assert_eq!(ends(fenced("another", ours + 1)), "fenced");
        assert_eq!(ends(StepError::Moved { held: None }.into()), "moved");
        assert_eq!(ends(StepError::Refused("no".into()).into()), "refused: no");
    }

    #[tokio::test]
    async fn g2_what_was_published_before_is_counted_and_read_again_from_the_cursor() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        let end = session.done(Done::Duplicate { events: 7 });
        assert!(matches!(end, Some(End::Reopen("duplicate"))));
        assert_eq!(scene.chain.metrics.duplicates.get(), 7);
    }

    #[tokio::test]
    async fn g10_what_a_reorg_orphans_while_it_is_marked_final_is_an_alarm() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        session.hear(1..=3);
        session.publish().await;
        let ours = header(2, 'a').block;
        assert!(session.done(Done::Finalized(ours)).is_none());
        assert!(session.alarm.is_none() && session.canonical.is_finalized());
        assert_eq!(session.published.front().unwrap().block, ours);
        // Another block is in its place, or the new branch is shorter.
        for orphan in [header(2, 'b').block, header(4, 'a').block] {
            session.alarm = None;
            assert!(session.done(Done::Finalized(orphan)).is_none());
            assert!(session.alarm.as_ref().unwrap().contains("orphaned"));
        }
        // Nothing else is written any more.
        session.hear(4..=4);
        session.start_writing(Instant::now());
        assert!(matches!(session.pipeline.next().await, Some(Ok(Done::Alarmed))));
        assert_eq!(scene.markers().await.len(), 3);
    }

    #[tokio::test]
    async fn g8_a_backfill_waits_for_room_in_a_full_stream_and_the_head_does_not() {
        let mut config = ChainConfig::local([]);
        config.profile.finality_depth = 10;
        let scene = Scene::of(config).await;
        let mut session = scene.session().await;
        session.hear(1..=1);
        session.publish().await;
        session.swept(Ok(Swept {
            bytes: 2,
            max_bytes: 1,
            held_by_group: Some("slow".to_owned()),
            ..Swept::default()
        }));
        session.head = Some((12, 12));
        session.hear(2..=2);
        session.publish().await;
        assert_eq!(scene.markers().await.len(), 1);
        session.head = Some((11, 11));
        session.publish().await;
        assert_eq!(scene.markers().await.len(), 2);
    }

    #[tokio::test]
    async fn g3_a_block_is_taken_back_alone_and_only_if_it_is_the_tip() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        session.hear(1..=1);
        session.publish().await;
        session.hear(2..=3);
        session.start_writing(Instant::now());
        let undo = |number| Change { undo: vec![header(number, 'a').block], new: vec![] };
        session.follow(undo(3), None);
        session.start_writing(Instant::now());
        assert!(session.pipeline.can_send(), "two are on the wire");
        session.publish().await;
        let markers = scene.markers().await;
        let told: Vec<_> = markers.iter().map(|marker| (marker.op, marker.number)).collect();
        assert_eq!(told, [(Op::Add, 1), (Op::Add, 2), (Op::Add, 3), (Op::Remove, 3)]);
        session.follow(undo(9), None);
        session.start_writing(Instant::now());
        assert!(matches!(session.pipeline.next().await, Some(Ok(Done::Alarmed))));
        assert!(session.alarm.unwrap().contains("the tip is 2"));
    }

    #[tokio::test]
    async fn g8_what_a_slow_sweep_took_from_a_group_is_counted_before_the_process_ends() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        let sweep = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let lost_unread_by_group = vec![("slow".to_owned(), 7)];
            Ok(Swept { lost_unread_by_group, ..Swept::default() })
        };
        session.retention.sweep = Some(sweep.boxed());
        session.drain().await;
        assert_eq!(scene.status().lost_unread, 7);
    }

    #[tokio::test]
    async fn what_is_on_the_wire_is_in_before_the_lease_is_given_up() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        session.hear(1..=1);
        session.start_writing(Instant::now());
        assert!(matches!(session.drain().await, End::Cancelled));
        assert_eq!(scene.markers().await.len(), 1);
        assert!(scene.chain.streams.lease_holder(scene.chain.id()).await.unwrap().is_none());
    }
}
