//! Subscriptions that died in silence: the socket is there, but sends no heads any more.

use std::collections::BTreeMap;
use std::time::Instant;

use tracing::warn;

use super::Session;
use crate::rpc::{Endpoint, Pushed};

/// A head this far above the newest known one says nothing.
const FAR_ABOVE: u64 = 1_000;
/// The wait for the heads of a subscription doubles this many times at most.
const DOUBLINGS: u32 = 6;

/// What is known of each subscription, by the endpoint's position.
pub(super) struct Silence<'a> {
    endpoints: &'a [Endpoint],
    heard: BTreeMap<usize, Heard>,
}

#[derive(Default)]
struct Heard {
    /// When the subscription last sent a head, or began; none without one.
    at: Option<Instant>,
    /// The newest head known then.
    head: Option<u64>,
    /// Since when a newer one is known.
    missed_since: Option<Instant>,
    /// Reconnects since its last head.
    reconnects: u32,
}

impl<'a> Silence<'a> {
    pub(super) fn new(endpoints: &'a [Endpoint]) -> Self {
        Self { endpoints, heard: BTreeMap::new() }
    }
}

impl Session<'_> {
    /// Subscribes again where a subscription has not sent the newer head that is known, from another endpoint or a
    /// poll, for as long as heads are waited for, and longer each time in a row. Otherwise it would be noticed only once
    /// no other brings heads.
    pub(super) fn watch_subscriptions(&mut self, now: Instant) {
        let newest = self.head.map(|(number, _)| number);
        let Silence { endpoints, heard } = &mut self.silence;
        for endpoint in *endpoints {
            let position = endpoint.metrics.position;
            let heard = heard.entry(position).or_default();
            let pushed = endpoint.announced.pushed();
            let is_new = heard.at != pushed.map(|pushed| pushed.at);
            heard.at = pushed.map(|pushed| pushed.at);
            let (Some(newest), Some(Pushed { at, number })) = (newest, pushed) else { continue };
            if is_new && number.is_some() {
                heard.reconnects = 0;
            }
            // A subscription that has just begun need not send what came before.
            let begins = number.is_none() && now.duration_since(at) < self.chain.poll_every();
            let went_back = heard.head.is_some_and(|head| head > newest.saturating_add(FAR_ABOVE));
            if is_new || begins || went_back || heard.head.is_none() {
                let ahead = number.filter(|number| *number <= newest.saturating_add(FAR_ABOVE));
                heard.head = ahead.max(Some(newest));
                heard.missed_since = None;
            }
            if Some(newest) <= heard.head {
                continue;
            }
            let since = *heard.missed_since.get_or_insert(now);
            let patience = self.chain.poll_every() * 2_u32.pow(heard.reconnects.min(DOUBLINGS));
            if now.duration_since(since) >= patience {
                warn!(
                    endpoint = position,
                    "the head rises, but the subscription is silent: subscribing again"
                );
                self.chain.metrics.silent_subscriptions.inc();
                endpoint.resubscribe();
                heard.reconnects += 1;
                (heard.head, heard.missed_since) = (Some(newest), None);
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
    use crate::rpc::SocketEvent;
    use crate::testing::{LOCAL, mined, serve};

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_silent_subscription_is_made_anew() {
        let chain = mined(0);
        let node = serve(chain.clone()).await;
        let endpoint = EndpointConfig { ws: Some(Secret::new(node.ws_url(LOCAL))), http: None };
        let mut scene = Scene::of(ChainConfig::local([endpoint])).await;
        let subscribed = timeout(PATIENCE, scene.heads.recv()).await.unwrap();
        assert!(matches!(subscribed, Some(SocketEvent::Subscribed)));
        let is_up = || scene.metrics.endpoints("local", &[true])[0].subscribed == Some(true);
        let mut session = scene.session().await;
        let now = Instant::now() + scene.chain.poll_every();
        session.head = Some((1, 1));
        session.watch_subscriptions(now);
        session.head = Some((2, 2));
        session.watch_subscriptions(now);
        assert!(is_up() && scene.chain.metrics.silent_subscriptions.get() == 0, "it may come yet");
        session.watch_subscriptions(now + scene.chain.poll_every());
        let lost = async {
            while is_up() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, lost).await.expect("the old subscription is given up");
        assert_eq!(scene.chain.metrics.silent_subscriptions.get(), 1);
        assert_eq!(scene.chain.node.endpoints()[0].announced.pushed(), None);
        drop(session);
        let again = timeout(PATIENCE, scene.heads.recv()).await.unwrap();
        assert!(matches!(again, Some(SocketEvent::Subscribed)));
    }

    #[tokio::test]
    async fn each_subscription_is_measured_by_the_heads_of_all() {
        let nowhere = || EndpointConfig::http("http://127.0.0.1:1");
        let scene = Scene::of(ChainConfig::local([nowhere(), nowhere()])).await;
        let mut session = scene.session().await;
        let [first, second] = [0, 1].map(|at| &scene.chain.node.endpoints()[at].announced);
        let start = Instant::now();
        let at = |polls: u32| start + polls * scene.chain.poll_every();
        first.note_subscribed(start);
        second.note_subscribed(start);
        // When the first and the second sent a head, the newest head then, and the subscriptions made anew so far.
        for (polls, pushes, newest, found) in [
            (0, [None, None], None, 0),
            (1, [None, None], Some(7), 0), // it is known from a poll
            (9, [None, None], Some(7), 0), // blocks are rare
            (10, [None, Some(8)], Some(7), 0), // the head has not joined the chain yet
            (10, [None, None], Some(8), 0), // the first may be late
            (19, [Some(6), None], Some(8), 0), // it is, but it lives
            (20, [None, Some(9)], Some(9), 0),
            (21, [None, Some(10)], Some(10), 1), // it has missed one for long enough
            (22, [None, Some(11)], Some(11), 1),
            (23, [None, Some(12)], Some(12), 1), // and once more it is waited for
            (24, [None, Some(13)], Some(13), 2), // twice as long
            (25, [None, Some(14)], Some(14), 2),
            (27, [None, Some(15)], Some(15), 2),
            (29, [None, Some(16)], Some(16), 3),
            (30, [Some(17), None], Some(17), 3), // it lives
            (31, [None, Some(18)], Some(18), 3),
            (32, [None, Some(19)], Some(19), 4), // the first time anew
            (33, [Some(9_000), None], Some(20), 4), // which says nothing
            (34, [None, Some(21)], Some(21), 4),
            (35, [None, Some(22)], Some(22), 5),
        ] {
            let now = at(polls);
            for (announced, pushed) in [first, second].into_iter().zip(pushes) {
                if let Some(number) = pushed {
                    announced.note_pushed(number, now);
                }
            }
            session.head = newest.map(|number| (number, number));
            session.watch_subscriptions(now);
            assert_eq!(
                scene.chain.metrics.silent_subscriptions.get(),
                found,
                "after {polls} polls"
            );
        }
        first.note_unsubscribed();
        session.head = Some((99, 99));
        session.watch_subscriptions(at(40));
        session.watch_subscriptions(at(50));
        assert_eq!(scene.chain.metrics.silent_subscriptions.get(), 6, "only the second is there");
    }

    #[tokio::test]
    async fn what_came_before_a_subscription_or_was_never_there_is_not_missed() {
        let scene =
            Scene::of(ChainConfig::local([EndpointConfig::http("http://127.0.0.1:1")])).await;
        let mut session = scene.session().await;
        let announced = &scene.chain.node.endpoints()[0].announced;
        let (start, poll) = (Instant::now(), scene.chain.poll_every());
        announced.note_subscribed(start);
        let mut found = |halves: u32, newest| {
            session.head = Some((newest, newest));
            session.watch_subscriptions(start + halves * poll / 2);
            scene.chain.metrics.silent_subscriptions.get()
        };
        // It was mined before the subscription began, and is known from a poll only now.
        assert_eq!([found(0, 7), found(1, 8), found(6, 8)], [0; 3]);
        // The head was false, and is corrected.
        announced.note_pushed(9, start + 4 * poll);
        assert_eq!([found(8, 9_000), found(9, 10), found(10, 11), found(12, 12)], [0, 0, 0, 1]);
    }

    #[tokio::test]
    async fn a_head_is_heard_also_where_the_queue_is_full_or_its_header_is_not_whole() {
        let chain = mined(0);
        let node = serve(chain.clone()).await;
        let endpoint = EndpointConfig { ws: Some(Secret::new(node.ws_url(LOCAL))), http: None };
        let mut scene = Scene::of(ChainConfig::local([endpoint])).await;
        assert!(matches!(scene.heads.recv().await, Some(SocketEvent::Subscribed)));
        let pushed = || scene.chain.node.endpoints()[0].announced.pushed().unwrap().number;
        assert_eq!(pushed(), None);
        let lacking = ethhook_simulator::HeadFault::MissingField("parentHash".into());
        chain.faults().push_head(lacking, 1);
        for number in 1..=200 {
            chain.mine(1);
            let heard = async {
                while pushed() < Some(number) {
                    tokio::task::yield_now().await;
                }
            };
            timeout(PATIENCE, heard).await.expect("it is noted");
        }
    }
}
