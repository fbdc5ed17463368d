//! Endpoints that follow another branch than the stream: which of them is right, only a person can tell.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::Session;
use crate::rpc::Endpoint;

/// For how long, and how many block times, an endpoint must announce blocks of another branch until that is reported: a
/// reorg is over sooner.
const REPORTED_AFTER: Duration = Duration::from_secs(60);
const BLOCKS: u32 = 5;
/// An endpoint that is reported, and announces nothing for this many times as long, is reported no longer.
const FORGOTTEN_AFTER: u32 = 5;

/// The endpoints that are apart, by their position.
pub(super) struct Apart<'a> {
    endpoints: &'a [Endpoint],
    branches: BTreeMap<usize, Branch>,
}

struct Branch {
    /// When the first and the last block of it was announced.
    first: Instant,
    last: Instant,
    is_reported: bool,
}

impl<'a> Apart<'a> {
    pub(super) fn new(endpoints: &'a [Endpoint]) -> Self {
        Self { endpoints, branches: BTreeMap::new() }
    }
}

impl Drop for Apart<'_> {
    /// Nothing is compared after the session.
    fn drop(&mut self) {
        self.endpoints.iter().for_each(|endpoint| endpoint.metrics.apart(false));
    }
}

impl Session<'_> {
    /// Compares what each endpoint announced last with our chain. A block that we do not have, or no longer, says nothing.
    pub(super) fn compare_heads(&mut self, now: Instant) {
        let reported_after = REPORTED_AFTER.max(BLOCKS * self.chain.config.profile.block_time);
        let Apart { endpoints, branches } = &mut self.apart;
        for endpoint in *endpoints {
            let Some((theirs, announced)) = endpoint.announced.last() else { continue };
            let position = endpoint.metrics.position;
            let is_silent =
                now.saturating_duration_since(announced) >= FORGOTTEN_AFTER * reported_after;
            if branches.get(&position).is_some_and(|branch| branch.is_reported) && is_silent {
                branches.remove(&position);
                info!(endpoint = position, "nothing is known of the endpoint's branch any more");
                endpoint.metrics.apart(false);
            }
            let Some(ours) = self.canonical.at(theirs.number) else { continue };
            if ours.hash == theirs.hash {
                if branches.remove(&position).is_some_and(|branch| branch.is_reported) {
                    info!(endpoint = position, "the endpoint follows our chain again");
                    endpoint.metrics.apart(false);
                }
                continue;
            }
            let is_new = Branch { first: announced, last: announced, is_reported: false };
            let branch = branches.entry(position).or_insert(is_new);
            // After a silence, it may have been on our chain in between.
            if announced.duration_since(branch.last) > reported_after && !branch.is_reported {
                branch.first = announced;
            }
            branch.last = announced;
            if !branch.is_reported && announced.duration_since(branch.first) >= reported_after {
                branch.is_reported = true;
                warn!(endpoint = position, %theirs, %ours, "the endpoint follows another branch");
                endpoint.metrics.apart(true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ethhook_domain::BlockRef;

    use super::super::scene::{Scene, header};
    use super::*;
    use crate::config::{ChainConfig, EndpointConfig};

    #[tokio::test]
    async fn an_endpoint_that_announces_another_branch_for_a_minute_is_reported() {
        let nowhere = || EndpointConfig::http("http://127.0.0.1:1");
        let scene = Scene::of(ChainConfig::local([nowhere(), nowhere()])).await;
        let mut session = scene.session().await;
        session.hear(1..=5);
        let [first, second] = [0, 1].map(|position| &scene.chain.node.endpoints()[position]);
        let is_apart =
            |position: usize| scene.metrics.endpoints("local", &[false; 2])[position].apart;
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        first.announced.note_at(header(5, 'a').block, start);
        // The block number and branch announced, when, and whether the endpoint is apart then.
        for (number, branch, seconds, apart) in [
            (4, 'b', 0, false),
            (4, 'b', 59, false),
            (5, 'b', 60, true),
            (6, 'b', 61, true),  // we have no such block
            (5, 'a', 62, false), // it is back
            (5, 'b', 70, false),
            (6, 'b', 200, false), // nothing is known of it
            (4, 'b', 201, false), // long after the last: it may have been back
            (4, 'b', 260, false),
            (4, 'b', 261, true),
            (6, 'b', 900, true), // it still announces something
        ] {
            second.announced.note_at(header(number, branch).block, at(seconds));
            session.compare_heads(at(seconds));
            assert_eq!((is_apart(0), is_apart(1)), (false, apart), "{number}{branch} at {seconds}");
        }
        session.compare_heads(at(900 + 299));
        assert!(is_apart(1));
        session.compare_heads(at(900 + 300));
        assert!(!is_apart(1), "it may be gone");
        second.announced.note_at(header(4, 'b').block, at(2_000));
        session.compare_heads(at(2_000));
        second.announced.note_at(header(4, 'b').block, at(2_060));
        session.compare_heads(at(2_060));
        assert!(is_apart(1));
        drop(session);
        assert!(!is_apart(1), "nothing is compared any more");
    }

    #[tokio::test]
    async fn where_blocks_are_rare_it_takes_longer() {
        let mut config = ChainConfig::local([EndpointConfig::http("http://127.0.0.1:1")]);
        config.profile.block_time = Duration::from_secs(20);
        let scene = Scene::of(config).await;
        let mut session = scene.session().await;
        session.hear(1..=5);
        let start = Instant::now();
        for (seconds, apart) in [(0, false), (99, false), (100, true)] {
            let now = start + Duration::from_secs(seconds);
            scene.chain.node.endpoints()[0].announced.note_at(header(5, 'b').block, now);
            session.compare_heads(now);
            assert_eq!(scene.metrics.endpoints("local", &[false])[0].apart, apart, "{seconds}");
        }
    }

    #[tokio::test]
    async fn a_last_head_that_is_orphaned_is_no_branch() {
        let scene =
            Scene::of(ChainConfig::local([EndpointConfig::http("http://127.0.0.1:1")])).await;
        let mut session = scene.session().await;
        session.hear(1..=5);
        let orphan: BlockRef = header(5, 'b').block;
        let long_ago = Instant::now().checked_sub(Duration::from_secs(300)).unwrap();
        scene.chain.node.endpoints()[0].announced.note_at(orphan, long_ago);
        session.compare_heads(Instant::now());
        session.compare_heads(Instant::now());
        assert!(!scene.metrics.endpoints("local", &[false])[0].apart);
    }
}
