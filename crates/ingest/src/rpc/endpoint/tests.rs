//! What is learned of an endpoint, and when it is asked, on simulated nodes.

use std::num::NonZeroU32;
use std::pin::pin;

use alloy_primitives::B256;
use ethhook_domain::{Header, Proof, Secret};
use ethhook_simulator::{BloomLie, Fault, HeadFault, ManualChain, RunningNode};
use futures_util::future::{Either, select};
use futures_util::poll;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;
use crate::config::EndpointConfig;
use crate::rpc::{Attempt, Head};
use crate::testing::{LOCAL, mined, serve, unread};

fn endpoint(config: &ChainConfig) -> Endpoint {
    let (heads, metrics) = unread();
    let (mut endpoints, _) = connect(config, &heads, &metrics, &Genesis::default());
    endpoints.remove(0)
}

async fn ask(endpoint: &Endpoint) -> Result<Option<String>, RpcError> {
    let none: [(); 0] = [];
    Attempt::with(endpoint).call("eth_blockNumber", &none).await
}

/// A chain with three blocks, its node, and an endpoint that uses it.
async fn scene() -> (ManualChain, RunningNode, Endpoint) {
    let chain = mined(3);
    let node = serve(chain.clone()).await;
    let endpoint = endpoint(&ChainConfig::local([EndpointConfig::of(&node)]));
    (chain, node, endpoint)
}

#[test]
fn g7_one_message_asks_for_no_more_than_a_second_may_cost() {
    // At Alchemy, a call for receipts costs 500, one for a header 20, and a range of logs is
    // one call.
    let alchemy = EndpointConfig::http("https://eth-mainnet.g.alchemy.com/v2/KEY");
    let at_once = |rate, budget| {
        let mut config = ChainConfig::local([alchemy.clone()]);
        config.requests_per_second = NonZeroU32::new(rate);
        config.units_per_second = NonZeroU32::new(budget);
        let endpoint = endpoint(&config);
        [Method::Headers, Method::Receipts, Method::Logs].map(|method| {
            (0..9).for_each(|_| endpoint.with_batch_size(method, |size| size.took(128, 0)));
            endpoint.blocks_at_once(method)
        })
    };
    assert_eq!(at_once(0, 0), [128, 64, 128], "no limit but its own");
    assert_eq!(at_once(50, 0), [50, 50, 128]);
    assert_eq!(at_once(0, 2_000), [100, 4, 128]);
    assert_eq!(at_once(3, 2_000), [3, 3, 128]);
    assert_eq!(at_once(0, 499), [24, 1, 128], "one is asked for, whatever it costs");
}

#[tokio::test]
async fn one_that_asks_for_patience_is_left_alone_for_as_long() {
    let (chain, _node, endpoint) = scene().await;
    chain.faults().push("eth_blockNumber", Fault::HttpStatus(429, Some(300)), 1);
    assert!(ask(&endpoint).await.is_err());
    let why = ask(&endpoint).await.unwrap_err().to_string();
    assert_eq!(why, "rate limited (set aside for a while)");
    // The breaker's own wait would be one second.
    let left = endpoint.breaker.with(|b| b.admit(Instant::now())).unwrap_err();
    assert!(left > Duration::from_secs(200), "{left:?}");
}

#[tokio::test]
async fn what_its_subscription_announces_is_remembered_if_it_passes_its_check() {
    let chain = mined(3);
    let node = serve(chain.clone()).await;
    for (verify, is_checked) in [(Proof::Bloom, true), (Proof::Structure, false)] {
        let ws = Some(Secret::new(node.ws_url(LOCAL)));
        let mut config = ChainConfig::local([EndpointConfig { http: None, ws }]);
        config.profile.verify = verify;
        let (heads, mut heard) = mpsc::channel(8);
        let (endpoints, sockets) = connect(&config, &heads, &unread().1, &Genesis::default());
        let mut running = JoinSet::new();
        sockets.into_iter().for_each(|socket| _ = running.spawn(socket.run()));
        assert!(matches!(heard.recv().await, Some(SocketEvent::Subscribed)));
        assert!(endpoints[0].announced.last().is_none());
        let block = chain.mine(1).remove(0);
        assert!(matches!(heard.recv().await, Some(SocketEvent::Head(Head::Header(_)))));
        assert_eq!(endpoints[0].announced.last().unwrap().0.hash, block.hash());

        chain.faults().push_head(HeadFault::Bloom(BloomLie::Ones), 1);
        let other = chain.mine(1).remove(0);
        let head = heard.recv().await;
        assert_eq!(
            matches!(head, Some(SocketEvent::Head(Head::Number(n))) if n == other.number()),
            is_checked
        );
        let last = if is_checked { block } else { other };
        assert_eq!(endpoints[0].announced.last().unwrap().0.hash, last.hash());
    }
}

#[tokio::test]
async fn heads_of_another_chain_under_the_same_id_are_not_heard() {
    let chain = mined(3);
    let node = serve(chain.clone()).await;
    let ws = Some(Secret::new(node.ws_url(LOCAL)));
    let config = ChainConfig::local([EndpointConfig { http: None, ws }]);
    let (heads, mut heard) = mpsc::channel(8);
    let genesis = Genesis::default();
    let (endpoints, sockets) = connect(&config, &heads, &unread().1, &genesis);
    let mut running = JoinSet::new();
    sockets.into_iter().for_each(|socket| _ = running.spawn(socket.run()));
    assert!(matches!(heard.recv().await, Some(SocketEvent::Subscribed)));
    genesis.expect(Some(B256::ZERO));
    endpoints[0].identify_again(true);
    assert!(ask(&endpoints[0]).await.unwrap_err().is_wrong_genesis());
    chain.mine(1);
    assert!(timeout(Duration::from_millis(300), heard.recv()).await.is_err());
    genesis.expect(chain.block(0).map(|block| block.hash()));
    endpoints[0].identify_again(true);
    endpoints[0].probe(true);
    ask(&endpoints[0]).await.unwrap();
    let block = chain.mine(1).remove(0);
    let head = heard.recv().await;
    assert!(
        matches!(head, Some(SocketEvent::Head(Head::Header(header))) if header.block.hash == block.hash())
    );
}

#[tokio::test]
async fn a_refusal_sets_the_pace_by_what_was_accepted_before() {
    let (chain, _node, endpoint) = scene().await;
    for _ in 0..18 {
        ask(&endpoint).await.unwrap(); // the first is preceded by two that identify the endpoint
    }
    assert_eq!(endpoint.blocks_at_once(Method::Headers), 8);
    chain.faults().push("eth_blockNumber", Fault::HttpStatus(429, Some(1)), 1);
    assert!(ask(&endpoint).await.is_err());
    // 882 if all were asked within a second; 42 after none.
    let per_minute = endpoint.pacer.with(|pace| pace.per_minute()).unwrap();
    assert!((200..=882).contains(&per_minute), "{per_minute}");
    assert_eq!(endpoint.blocks_at_once(Method::Headers), (per_minute / 240).max(1) as usize);
}

#[tokio::test]
async fn calls_refused_within_a_batch_set_the_pace_too() {
    let (chain, _node, endpoint) = scene().await;
    let headers = ["0x1", "0x2", "0x3"].map(|number| json!([number, false]));
    let method = Method::Headers.name();
    let ask_each =
        async || Attempt::with(&endpoint).call_each::<Header>(Method::Headers, &headers).await;
    assert!(ask_each().await.unwrap().iter().all(Result::is_ok));
    assert_eq!(endpoint.pacer.with(|pace| pace.per_minute()), None);
    chain.faults().push(method, Fault::Error(-32005, "limit exceeded".into()), 1);
    assert_eq!(ask_each().await.unwrap().iter().filter(|item| item.is_err()).count(), 1);
    let counted = |outcome| endpoint.metrics.requests(method, outcome);
    assert_eq!((counted("ok"), counted("rate_limited")), (6, 1), "with the one that identifies it");
    assert_eq!(endpoint.metrics.messages(method), 3);
    // 336 if all were asked within a second, with two to identify it: 70 % of one more than 7.
    let per_minute = endpoint.pacer.with(|pace| pace.per_minute()).unwrap();
    assert!((127..=336).contains(&per_minute), "{per_minute}");
}

#[tokio::test]
async fn what_is_held_back_is_sent_one_after_the_other() {
    let (chain, _node, endpoint) = scene().await;
    endpoint.pacer.note_refused(Instant::now(), Duration::from_secs(1));
    // Three messages: the first two identify it. At this pace, 1.4 s lie between two.
    let (mut first, mut second) = (Box::pin(ask(&endpoint)), Box::pin(ask(&endpoint)));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    let answered = select(first, second).await;
    let (Either::Left((answer, other)) | Either::Right((answer, other))) = answered;
    assert!(answer.is_ok());
    assert_eq!((endpoint.delayed(), chain.stats().requests("eth_blockNumber")), (1, 1));
    assert!(endpoint.pacer.with(|pace| pace.wait(Instant::now())) > Some(Duration::ZERO));
    drop(other);
    assert_eq!(endpoint.delayed(), 0);
}

#[tokio::test]
async fn what_is_held_back_is_not_sent_once_the_endpoint_is_set_aside() {
    let (chain, _node, endpoint) = scene().await;
    ask(&endpoint).await.unwrap();
    endpoint.pacer.note_refused(Instant::now(), Duration::from_secs(1));
    let (mut first, mut second) = (pin!(ask(&endpoint)), pin!(ask(&endpoint)));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    assert_eq!(endpoint.delayed(), 2);
    endpoint.set_aside(Duration::from_secs(300), None);
    for held in [first.await, second.await] {
        assert!(matches!(held, Err(RpcError::SetAside(_))), "{held:?}");
    }
    assert_eq!((endpoint.delayed(), chain.stats().requests("eth_blockNumber")), (0, 1));
}

#[tokio::test]
async fn answers_that_were_not_waited_for_count_only_in_a_row() {
    let (_chain, _node, endpoint) = scene().await;
    (1..UNANSWERED).for_each(|_| endpoint.note_slow(Duration::from_millis(250)));
    assert_eq!(ask(&endpoint).await.unwrap().as_deref(), Some("0x3"));
    // From the third in a row on, each counts as a failure, and five of these open the breaker.
    for _ in 0..6 {
        endpoint.note_slow(Duration::from_millis(250));
        assert!(!endpoint.is_set_aside());
    }
    endpoint.note_slow(Duration::from_millis(250));
    assert!(endpoint.is_set_aside());
    let why = ask(&endpoint).await.unwrap_err().to_string();
    assert_eq!(why, "no answer within 0.25 s (set aside for a while)");
}
