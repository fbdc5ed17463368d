//! Subscriptions that died in silence: the socket is there, but sends no heads any more.

use std::collections::BTreeMap;
use std::time::Instant;

use tracing::warn;

use super::Session;
use crate::rpc::Endpoint;

/// What is known of each subscription, by the endpoint's position.
pub(super) struct Silence<'a> {
    endpoints: &'a [Endpoint],
    heard: BTreeMap<usize, Heard>,
}

struct Heard {
    /// When the subscription last sent a head, or began.
    at: Instant,
    /// The newest head known then.
    head: Option<u64>,
    /// Since when a newer one is known.
    missed_since: Option<Instant>,
}

impl<'a> Silence<'a> {
    pub(super) fn new(endpoints: &'a [Endpoint]) -> Self {
        Self { endpoints, heard: BTreeMap::new() }
    }
}

impl Session<'_> {
    /// Subscribes again where a subscription has not sent the newer head that is known, from another endpoint or a
    /// poll, for as long as heads are waited for. Otherwise it would be noticed only once no other brings heads.
    pub(super) fn watch_subscriptions(&mut self, now: Instant) {
        let newest = self.head.map(|(number, _)| number);
        let Silence { endpoints, heard } = &mut self.silence;
        for endpoint in *endpoints {
            let position = endpoint.metrics.position;
            let Some((number, at)) = endpoint.announced.pushed() else {
                heard.remove(&position);
                continue;
            };
            let known = newest.map(|newest| newest.max(number));
            let fresh = || Heard { at, head: known, missed_since: None };
            let heard = heard.entry(position).or_insert_with(fresh);
            if heard.at != at || heard.head.is_none() {
                *heard = fresh();
            }
            if newest <= heard.head {
                continue;
            }
            let since = *heard.missed_since.get_or_insert(now);
            if now.duration_since(since) >= self.chain.poll_every() {
                warn!(
                    endpoint = position,
                    "the head rises, but the subscription is silent: subscribing again"
                );
                self.chain.metrics.stalls.inc();
                endpoint.resubscribe();
                (heard.head, heard.missed_since) = (newest, None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ethhook_domain::Secret;
    use tokio::time::timeout;

    use super::super::scene::Scene;
    use super::*;
    use crate::config::{ChainConfig, EndpointConfig};
    use crate::rpc::Head;
    use crate::testing::{LOCAL, mined, serve};

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_silent_subscription_is_made_anew() {
        let chain = mined(0);
        let node = serve(chain.clone()).await;
        let endpoint = EndpointConfig { ws: Some(Secret::new(node.ws_url(LOCAL))), http: None };
        let mut scene = Scene::of(ChainConfig::local([endpoint])).await;
        let subscribed = timeout(PATIENCE, scene.heads.recv()).await.unwrap();
        assert!(matches!(subscribed, Some(Head::Subscribed)));
        let is_up = || scene.metrics.endpoints("local", &[true])[0].subscribed == Some(true);
        let mut session = scene.session().await;
        let now = Instant::now();
        session.head = Some((1, 1));
        session.watch_subscriptions(now);
        session.head = Some((2, 2));
        session.watch_subscriptions(now);
        assert!(is_up() && scene.chain.metrics.stalls.get() == 0, "it may come yet");
        session.watch_subscriptions(now + scene.chain.poll_every());
        let lost = async {
            while is_up() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, lost).await.expect("the old subscription is given up");
        assert_eq!(scene.chain.metrics.stalls.get(), 1);
        assert_eq!(scene.chain.node.endpoints()[0].announced.pushed(), None);
        drop(session);
        let again = timeout(PATIENCE, scene.heads.recv()).await.unwrap();
        assert!(matches!(again, Some(Head::Subscribed)));
    }

    #[tokio::test]
    async fn each_subscription_is_measured_by_the_heads_of_all() {
        let nowhere = || EndpointConfig::http("http://127.0.0.1:1");
        let scene = Scene::of(ChainConfig::local([nowhere(), nowhere()])).await;
        let mut session = scene.session().await;
        let [first, second] = [0, 1].map(|at| &scene.chain.node.endpoints()[at].announced);
        let start = Instant::now();
        let at = |polls: u32| start + polls * scene.chain.poll_every();
        first.note_pushed(0, start);
        second.note_pushed(0, start);
        // When the first and the second sent a head, the newest head then, and the subscriptions made anew so far.
        for (polls, pushes, newest, stalls) in [
            (0, [None, None], None, 0),
            (1, [None, None], Some(7), 0), // it is known from a poll
            (9, [None, None], Some(7), 0), // blocks are rare
            (10, [None, Some(8)], Some(7), 0), // the head has not joined the chain yet
            (10, [None, None], Some(8), 0), // the first may be late
            (19, [Some(6), None], Some(8), 0), // it is, but it lives
            (20, [None, Some(9)], Some(9), 0),
            (21, [None, Some(10)], Some(10), 1), // it has missed one for long enough
            (22, [None, Some(11)], Some(11), 1),
            (23, [None, Some(12)], Some(12), 2), // its new one is silent too
        ] {
            let now = at(polls);
            for (announced, pushed) in [first, second].into_iter().zip(pushes) {
                if let Some(number) = pushed {
                    announced.note_pushed(number, now);
                }
            }
            session.head = newest.map(|number| (number, number));
            session.watch_subscriptions(now);
            assert_eq!(scene.chain.metrics.stalls.get(), stalls, "after {polls} polls");
        }
        first.unsubscribed();
        session.head = Some((99, 99));
        session.watch_subscriptions(at(40));
        session.watch_subscriptions(at(50));
        assert_eq!(scene.chain.metrics.stalls.get(), 3, "only the second is there");
    }

    #[tokio::test]
    async fn a_head_is_heard_also_where_the_queue_is_full_or_its_header_is_not_whole() {
        let chain = mined(0);
        let node = serve(chain.clone()).await;
        let endpoint = EndpointConfig { ws: Some(Secret::new(node.ws_url(LOCAL))), http: None };
        let mut scene = Scene::of(ChainConfig::local([endpoint])).await;
        assert!(matches!(scene.heads.recv().await, Some(Head::Subscribed)));
        let pushed = || scene.chain.node.endpoints()[0].announced.pushed().unwrap().0;
        assert_eq!(pushed(), 0);
        let lacking = ethhook_simulator::HeadFault::MissingField("parentHash".into());
        chain.faults().push_head(lacking, 1);
        for number in 1..=200 {
            chain.mine(1);
            let heard = async {
                while pushed() < number {
                    tokio::task::yield_now().await;
                }
            };
            timeout(PATIENCE, heard).await.expect("it is noted");
        }
    }
}
