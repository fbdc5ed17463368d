//! How far a session is, and how far behind.

use super::{Session, gauge};
use crate::status::Lag;

impl Session<'_> {
    /// Whether the chain is known up to the newest head, as far as it is of interest.
    pub(super) fn has_reached_head(&self) -> bool {
        let last = self.last_header();
        self.head.is_some_and(|(head, _)| head.min(last) < self.canonical.next_number())
    }

    /// Whether everything up to the node's head that the configuration allows is published.
    pub(super) fn is_at_head(&self) -> bool {
        self.has_reached_head()
            && self.pipeline.nothing_to_send()
            && self.ask().is_none()
            && self.up_to().is_none_or(|up_to| !self.queue.wants_any(up_to))
    }

    /// Whether the tip is so far behind the head that the newest block is not urgent; true until the
    /// node's head is known.
    pub(super) fn is_backfilling(&self) -> bool {
        let depth = self.chain.config.profile.finality_depth;
        self.blocks_behind().is_none_or(|blocks| blocks > depth)
    }

    /// The newest block that should be published, as far as is known.
    fn wanted(&self) -> Option<u64> {
        let wanted = self.head?.0.saturating_sub(self.chain.config.confirmations);
        Some(self.end_block.map_or(wanted, |end| wanted.min(end)))
    }

    /// How many blocks are still to be published or skipped; `None` while the head is unknown.
    pub(super) fn blocks_behind(&self) -> Option<u64> {
        let done = self.published.back().map_or(self.opened_at, |tip| tip.block.number);
        Some(self.wanted()?.saturating_sub(done))
    }

    /// How far the tip is behind the newest block that should be published; `None` while head or tip is
    /// unknown.
    pub(super) fn lag(&self) -> Option<Lag> {
        let ((_, head_time), tip) = (self.head?, self.published.back()?.block);
        let time = self.canonical.at(self.wanted()?).map_or(head_time, |block| block.timestamp);
        let blocks = self.blocks_behind()?;
        let seconds = if blocks == 0 { 0 } else { time.saturating_sub(tip.timestamp) };
        Some(Lag { blocks, seconds })
    }

    pub(super) fn report(&self) {
        let metrics = &self.chain.metrics;
        let (head, at_head) = (self.head.map(|(number, _)| number), self.is_at_head());
        metrics.queue.set(gauge(self.queue.len() as u64));
        if let Some(head) = head {
            metrics.head.set(gauge(head));
        }
        if let Some(tip) = self.published.back().map(|p| p.block) {
            metrics.tip.set(gauge(tip.number));
        }
        let lag = self.lag();
        if let Some(Lag { blocks, seconds }) = lag {
            metrics.lag_blocks.set(gauge(blocks));
            metrics.lag_seconds.set(u32::try_from(seconds).unwrap_or(u32::MAX).into());
        }
        let polled_every = self.poll_every();
        self.chain.status.update(|status| {
            status.polled_every = polled_every;
            status.head = head.or(status.head);
            status.lag = lag.or(status.lag);
            status.at_head = at_head;
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ethhook_domain::canonical::Ask;

    use super::super::scene::{Scene, header};
    use super::*;
    use crate::config::ChainConfig;

    #[tokio::test]
    async fn what_may_be_published_and_the_lag_end_at_the_confirmations_and_the_end_block() {
        // The tip is block 6, and three blocks are known above it.
        for (confirmations, end_block, up_to, lag) in [
            (0, None, 9, (3, 3)),
            (2, None, 7, (1, 1)),
            (3, None, 6, (0, 0)),
            (0, Some(8), 8, (2, 2)),
            (2, Some(8), 7, (1, 1)),
            (0, Some(6), 6, (0, 0)),
        ] {
            let config = ChainConfig { confirmations, end_block, ..ChainConfig::local([]) };
            let scene = Scene::of(config).await;
            let mut session = scene.session().await;
            session.hear(1..=6 + confirmations);
            session.publish().await;
            session.hear(7 + confirmations..=9);
            let Lag { blocks, seconds } = session.lag().unwrap();
            assert_eq!((session.up_to(), (blocks, seconds)), (Some(up_to), lag));
        }
    }

    #[tokio::test]
    async fn the_time_of_a_head_that_is_not_reached_counts_until_the_wanted_block_is_known() {
        let mut config = ChainConfig { confirmations: 4, ..ChainConfig::local([]) };
        config.profile.finality_depth = 10;
        let scene = Scene::of(config).await;
        let mut session = scene.session().await;
        assert!(session.is_backfilling(), "the head is not known");
        session.hear(1..=9);
        session.publish().await; // up to 5
        for (head, blocks, seconds, is_backfilling) in [(19, 10, 14, false), (20, 11, 15, true)] {
            session.answered((Ask::Latest, Ok(vec![header(head, 'a')])));
            let lag = session.lag().unwrap();
            assert_eq!((lag.blocks, lag.seconds), (blocks, seconds));
            assert_eq!(session.is_backfilling(), is_backfilling, "{head}");
        }
    }

    #[tokio::test]
    async fn a_session_is_at_the_head_once_all_is_published_and_nothing_is_in_doubt() {
        let scene = Scene::of(ChainConfig::local([])).await;
        let mut session = scene.session().await;
        let latest = |number| (Ask::Latest, Ok(vec![header(number, 'a')]));
        session.hear(1..=2);
        session.answered(latest(2));
        assert!(!session.is_at_head(), "blocks wait");
        session.publish().await;
        assert!(session.is_at_head());
        session.canonical.doubt();
        assert!(!session.is_at_head(), "the head may be another");
        session.answered(latest(2));
        assert!(session.is_at_head());
        session.hear(3..=3);
        session.start_writing(Instant::now());
        assert!(session.queue.len() == 0 && !session.is_at_head(), "a block is on the wire");
        session.publish().await;
        assert!(session.is_at_head());
        session.head = None;
        assert!(!session.is_at_head());
    }
}
