//! What a session asks, and how it takes the answers, on a real Redis.

use alloy_primitives::B256;
use ethhook_domain::Secret;
use ethhook_domain::verify::{Check, Failure};
use ethhook_simulator as simulator;

use super::super::finished;
use super::super::scene::{Scene, header};
use super::*;
use crate::config::{ChainConfig, EndpointConfig};
use crate::rpc::{Head, SocketEvent};
use crate::testing::{LOCAL, mined, serve};

/// Sends the pending request and handles the answer.
async fn ask(session: &mut Session<'_>) -> Ask {
    session.start_asking(session.due.ask);
    let (ask, answer) = finished(&mut session.asking.headers).await;
    session.answered((ask.clone(), answer));
    ask
}

#[tokio::test]
async fn every_endpoint_is_asked_for_its_head_now_and_then_only() {
    let chain = mined(3);
    let (first, second) = (simulator::Chain::from(chain.clone()), chain.view());
    let nodes = [serve(first.clone()).await, serve(second.clone()).await];
    let endpoints = nodes.each_ref().map(EndpointConfig::of);
    let asked = || [&first, &second].map(|view| view.stats().requests("eth_getBlockByNumber"));
    let scene = Scene::of(ChainConfig::local(endpoints.clone())).await;
    scene.chain.node.highest_latest(None).await.unwrap(); // each is identified
    [&first, &second].into_iter().for_each(|view| view.stats().reset());
    let mut session = scene.session().await;
    for poll in [1, 7, 8, 9, 16, 17] {
        session.canonical.doubt();
        session.asking.silent_polls = poll;
        assert_eq!(ask(&mut session).await, Ask::Latest);
    }
    assert_eq!(asked(), [6, 2], "where there is no subscription, one poll of eight");
}

#[tokio::test]
async fn with_a_subscription_every_endpoint_is_asked_once_heads_are_missed_or_differ() {
    let chain = mined(3);
    let (first, second) = (simulator::Chain::from(chain.clone()), chain.view());
    let nodes = [serve(first.clone()).await, serve(second.clone()).await];
    let mut endpoints = nodes.each_ref().map(EndpointConfig::of);
    endpoints[0].ws = Some(Secret::new(nodes[0].ws_url(LOCAL)));
    let scene = Scene::of(ChainConfig::local(endpoints)).await;
    let mut session = scene.session().await;
    scene.chain.node.highest_latest(None).await.unwrap(); // each is identified
    second.stats().reset();
    let asked = || second.stats().requests("eth_getBlockByNumber");
    for (polls, heard_otherwise, of_second) in
        [(0, false, 0), (1, false, 0), (2, false, 1), (3, false, 1), (0, true, 2), (0, false, 2)]
    {
        session.canonical.doubt();
        session.asking.silent_polls = polls;
        session.asking.heard_otherwise |= heard_otherwise;
        assert_eq!(ask(&mut session).await, Ask::Latest);
        assert_eq!(asked(), of_second, "{polls} polls, {heard_otherwise}");
    }
}

#[tokio::test]
async fn g3_without_subscriptions_a_lower_branch_of_one_endpoint_is_not_followed() {
    let (ours, other) = (mined(9), mined(9));
    other.reorg(5, 1, simulator::Contents::Fresh);
    let nodes = [serve(other).await, serve(ours.clone()).await];
    let scene = Scene::of(ChainConfig::local(nodes.each_ref().map(EndpointConfig::of))).await;
    let mut session = scene.session().await;
    for poll in 0..2 * ALL_EVERY {
        session.canonical.doubt();
        session.asking.silent_polls = poll;
        while session.ask().is_some() {
            ask(&mut session).await;
        }
        let tip = session.canonical.tip().map(|tip| tip.hash);
        assert_eq!(tip, Some(ours.block(9).unwrap().hash()), "poll {poll}");
    }
}

#[tokio::test]
async fn a_head_past_the_last_block_shows_that_the_subscription_is_alive() {
    let config = ChainConfig { end_block: Some(2), ..ChainConfig::local([]) };
    let scene = Scene::of(config).await;
    let mut session = scene.session().await;
    session.asking.silent_polls = SILENT_POLLS;
    let due = session.due.poll;
    session.head = Some((10_000, 10_000));
    session.hear(10_000..=10_000);
    assert_eq!(session.asking.silent_polls, SILENT_POLLS, "it tells nothing new");
    session.head = Some((9_999, 9_999));
    session.hear(10_000..=10_000);
    assert_eq!(session.asking.silent_polls, 0);
    assert_eq!(session.due.poll, due, "the last header must be asked for");
    assert_eq!(session.queue.len(), 0);
}

#[tokio::test]
async fn g10_past_the_end_the_last_header_is_watched_until_the_end_is_final() {
    for start in [1, 2] {
        let mut config = ChainConfig { end_block: Some(2), ..ChainConfig::local([]) };
        config.profile.finality_depth = 3;
        let scene = Scene::of(config).await;
        let mut session = scene.session_from(start).await;
        session.hear(start..=4);
        session.publish().await;
        assert_eq!(session.watched(), None, "not reached yet");
        session.hear(5..=5);
        assert_eq!(session.watched(), Some(5));
        session.answered((Ask::Latest, Ok(vec![header(9, 'a'), header(5, 'a')])));
        session.publish().await;
        assert!(session.is_at_head(), "what is above the last header does not count");
        for number in start..=2 {
            session.finality.next = Some(header(number, 'a').block);
            session.publish().await;
            assert_eq!(session.watched(), (number < 2).then_some(5), "{number} is final");
        }
    }
}

#[tokio::test]
async fn g10_a_contradiction_is_an_alarm_only_where_somebody_answers_and_nobody_holds_ours() {
    let scene = Scene::of(ChainConfig::local([])).await;
    let mut session = scene.session().await;
    let of = |number| FinalityViolation {
        finalized: header(number, 'a').block,
        theirs: header(number, 'b').block,
    };
    session.violated(of(5));
    session.violated(of(6)); // ignored while one is being judged
    let judgement = finished(&mut session.asking.judging).await;
    assert!(!judgement.asked_urgently);
    assert_eq!(judgement.violation, of(5));
    let judgement = |asked_urgently, holds| Judgement { violation: of(5), asked_urgently, holds };
    session.judged(judgement(false, Err(NodeError::Unknown)));
    assert!(session.asking.judging.is_none() && session.alarm.is_none());
    session.judged(judgement(false, Ok(Holds::Someone)));
    assert!(session.asking.heard_otherwise && session.alarm.is_none());
    assert!(scene.stall().is_some());
    session.answered((Ask::Latest, Ok(vec![header(1, 'a')])));
    assert!(scene.stall().is_none(), "the node no longer says so");
    // One that may have it cannot be asked for now.
    let not_known = || Ok(Holds::NotKnown(RpcError::RateLimited(None).into()));
    session.judged(judgement(false, not_known()));
    assert!(scene.stall().is_some() && session.alarm.is_none());
    // In the end all are asked, even those that asked us to wait.
    let asks_urgently = async |session: &mut Session<'_>| {
        session.violated(of(5));
        assert!(session.due.ask > Instant::now(), "not at once");
        finished(&mut session.asking.judging).await.asked_urgently
    };
    session.asking.judging = None;
    assert!(!asks_urgently(&mut session).await);
    session.judged(judgement(false, Ok(Holds::Someone)));
    assert!(!asks_urgently(&mut session).await, "it was there a moment ago");
    session.judged(judgement(false, not_known()));
    *session.asking.violated_since.as_mut().unwrap() -= VIOLATION_DOUBTED;
    assert!(asks_urgently(&mut session).await);
    session.judged(judgement(true, not_known()));
    assert_eq!(session.alarm.take(), Some(of(5).to_string()));
    session.judged(judgement(false, Ok(Holds::Nobody)));
    assert_eq!(session.alarm.take(), Some(of(5).to_string()));
    let other_chain = RpcError::WrongGenesis { wanted: B256::ZERO, got: B256::ZERO };
    let ended = session.judged(judgement(false, Err(other_chain.into())));
    assert!(matches!(ended, Some(End::Reopen("genesis"))) && session.alarm.is_none());
}

#[tokio::test]
async fn g7_headers_are_asked_for_as_far_as_there_is_room_for_them() {
    let scene = Scene::of(ChainConfig::local([EndpointConfig::http("http://127.0.0.1:1")])).await;
    let mut session = scene.session().await;
    session.answered((Ask::Latest, Ok(vec![header(9_000, 'a')])));
    assert_eq!(ask(&mut session).await, Ask::Numbers(1..=512));
    session.hear(1..=384);
    assert_eq!(ask(&mut session).await, Ask::Numbers(385..=512));
    session.hear(385..=385);
    assert!(!session.asks_something(), "fewer than are worth a message");
    session.answered((Ask::Latest, Ok(vec![header(390, 'a')])));
    assert!(session.asks_something(), "unless there are no more");
}

#[tokio::test]
async fn g7_blocks_at_the_head_wait_no_further_than_there_is_room_for_them() {
    let scene = Scene::of(ChainConfig::local([])).await;
    let mut session = scene.session().await;
    session.hear(1..=600);
    assert_eq!((session.queue.len(), session.canonical.next_number()), (512, 513));
    // A polled head does not add to the queue either, but the head is known.
    session.answered((Ask::Latest, Ok(vec![header(513, 'a')])));
    assert_eq!((session.queue.len(), session.head), (512, Some((513, 513))));
    assert!(!session.asks_something());
    session.publish().await;
    assert_eq!(session.ask(), Some(Ask::Numbers(513..=600)));
    session.answered((Ask::Numbers(513..=600), Ok((513..=600).map(|n| header(n, 'a')).collect())));
    session.publish().await;
    assert_eq!(scene.markers().await.len(), 600);
}

fn said(code: i64) -> NodeError {
    RpcError::Answer { code, message: "unknown block".into() }.into()
}

#[tokio::test]
async fn g1_a_branch_whose_parent_nobody_has_is_forgotten_also_where_that_is_an_error() {
    let scene = Scene::of(ChainConfig::local([])).await;
    let mut session = scene.session().await;
    session.hear(1..=3);
    session.publish().await;
    session.answered((Ask::Latest, Ok(vec![header(3, 'b')])));
    let ask = session.ask().unwrap();
    assert!(matches!(ask, Ask::Hash(_)));
    for _ in 0..2 {
        session.answered((ask.clone(), Err(said(-32000))));
        assert_eq!(session.ask().as_ref(), Some(&ask), "it may have been a hiccup");
    }
    session.answered((ask, Err(said(-32000))));
    assert_eq!(session.ask(), None);
    session.hear(4..=4);
    session.publish().await;
    assert_eq!(scene.markers().await.len(), 4);
}

#[tokio::test]
async fn g6_a_chain_whose_questions_have_no_answer_is_not_ready_and_says_why() {
    let scene = Scene::of(ChainConfig::local([])).await;
    let mut session = scene.session().await;
    session.hear(1..=3);
    session.publish().await;
    let latest = |answer| (Ask::Latest, answer);
    session.answered(latest(Ok(vec![header(3, 'a')])));
    let unready = |session: &Session<'_>| {
        session.report();
        scene.status().unready(Duration::from_secs(60)).map(|why| why.to_string())
    };
    for failed in 1..=TROUBLE_AFTER {
        assert_eq!(unready(&session), None);
        session.heard(Head::Number(3 + u64::from(failed)));
        let detail = "the fields do not hash to it".to_owned();
        let lie = Failure { check: Check::HeaderHash, detail };
        session.answered(latest(Err(lie.into())));
    }
    let why = unready(&session).unwrap();
    assert!(why.contains("the head is not available: check `header_hash` failed"), "{why}");
    // A block that is added meanwhile does not clear the failed requests.
    session.hear(4..=4);
    session.publish().await;
    assert!(unready(&session).is_some());
    session.answered(latest(Ok(vec![header(3, 'a')])));
    assert_eq!(unready(&session), None);
}

#[tokio::test]
async fn a_question_that_is_refused_for_long_is_asked_rarely_and_at_once_when_a_head_comes() {
    let scene = Scene::of(ChainConfig::local([])).await;
    let mut session = scene.session().await;
    session.hear(1..=3);
    let wait = |session: &Session<'_>| session.due.ask - Instant::now();
    let refused = RpcError::Answer { code: -32000, message: "no".into() };
    for refusals in 1..=30 {
        session.answered((Ask::Latest, Err(refused.clone().into())));
        assert_eq!(wait(&session) > ASK_AGAIN, refusals > 20, "{refusals}");
    }
    assert!(wait(&session) > Duration::from_secs(20));
    session.hear(4..=4);
    assert!(wait(&session) <= ASK_AGAIN);
    session.answered((Ask::Latest, Err(refused.into())));
    assert!(wait(&session) > Duration::from_secs(20), "it does not");
    session.answered((Ask::Latest, Ok(vec![header(4, 'a')])));
    session.answered((Ask::Latest, Err(RpcError::Timeout(Duration::ZERO).into())));
    assert!(wait(&session) <= ASK_AGAIN);
}

#[tokio::test]
async fn g1_a_next_block_that_no_endpoint_has_is_no_end_of_the_chain() {
    let scene = Scene::of(ChainConfig::local([])).await;
    let mut session = scene.session().await;
    let status = |session: &Session<'_>| {
        session.report();
        scene.status()
    };
    let why = |session: &Session<'_>| {
        status(session).unready(Duration::from_secs(3_600)).map(|why| why.to_string())
    };
    let missing = |session: &mut Session<'_>| {
        let Some(ask @ Ask::Numbers(_)) = session.ask() else { panic!("{:?}", session.ask()) };
        session.answered((ask, Ok(Vec::new())));
    };
    let long_ago = |session: &mut Session<'_>| {
        *session.asking.missing_since.as_mut().unwrap() -= MISSING_AFTER;
    };
    // With and without published blocks, and whether a poll or a subscription shows a higher one.
    for (published, was_told) in [(0, true), (3, true), (3, false)] {
        session.hear(1..=published);
        session.publish().await;
        let show = |session: &mut Session<'_>| match was_told {
            true => drop(session.answered((Ask::Latest, Ok(vec![header(9_000, 'a')])))),
            false => drop(session.heard(Head::Number(9_000))),
        };
        show(&mut session);
        missing(&mut session);
        assert_eq!(session.ask(), None);
        if was_told {
            assert!(!status(&session).at_head, "the head is higher");
        }
        long_ago(&mut session);
        show(&mut session);
        missing(&mut session);
        let told = why(&session).unwrap();
        assert!(told.contains(&format!("no endpoint has block {},", published + 1)), "{told}");
        // It comes after all, or was never there.
        match (published, was_told) {
            (0, _) => drop(session.answered((Ask::Numbers(1..=1), Ok(vec![header(1, 'a')])))),
            (_, true) => drop(session.answered((Ask::Latest, Ok(vec![header(3, 'a')])))),
            (_, false) => session.hear(4..=4),
        }
        assert!(!why(&session).is_some_and(|why| why.contains("no endpoint has block")));
    }
    assert!(session.asking.missing_since.is_none());
}

#[tokio::test]
async fn a_false_head_is_corrected_though_heads_keep_coming() {
    let scene = Scene::of(ChainConfig::local([])).await;
    let mut session = scene.session().await;
    session.hear(1..=3);
    session.publish().await;
    session.answered((Ask::Latest, Ok(vec![header(9_000, 'a')])));
    session.answered((Ask::Numbers(4..=9_000), Ok(Vec::new())));
    for number in 4..=6 {
        let due = session.due.poll;
        session.hear(number..=number);
        session.publish().await;
        assert_eq!(session.due.poll, due, "the poll is not postponed");
        assert!(!session.is_at_head());
        session.answered((Ask::Latest, Ok(vec![header(number, 'a')])));
    }
    assert!(session.is_at_head(), "three times told otherwise");
    let due = session.due.poll;
    session.hear(7..=7);
    assert!(session.due.poll > due);
}

#[tokio::test]
async fn g10_a_doubt_is_over_once_the_chain_grows() {
    let scene = Scene::of(ChainConfig::local([])).await;
    let mut session = scene.session().await;
    session.hear(1..=3);
    let violation =
        FinalityViolation { finalized: header(1, 'a').block, theirs: header(1, 'b').block };
    let not_known = || Ok(Holds::NotKnown(RpcError::RateLimited(None).into()));
    session.judged(Judgement { violation, asked_urgently: false, holds: not_known() });
    *session.asking.violated_since.as_mut().unwrap() -= VIOLATION_DOUBTED;
    session.hear(4..=4);
    session.violated(violation);
    let judgement = finished(&mut session.asking.judging).await;
    assert!(!judgement.asked_urgently, "the doubt of then says nothing about now");
}

#[tokio::test]
async fn a_question_that_failed_is_asked_again_after_a_while() {
    let scene = Scene::of(ChainConfig::local([])).await;
    let mut session = scene.session().await;
    session.start_asking(Instant::now());
    assert!(session.asking.headers.is_some());
    session.answered((Ask::Latest, Err(RpcError::Timeout(ASK_AGAIN).into())));
    session.start_asking(Instant::now());
    assert!(session.asking.headers.is_none());
    session.start_asking(session.due.ask);
    assert!(session.asking.headers.take().is_some());
    session.hear(1..=1);
    session.answered((Ask::Latest, Ok(vec![header(1, 'a')])));
    session.start_asking(session.due.ask);
    assert!(session.asking.headers.is_none(), "there is nothing to ask");
}

#[tokio::test]
async fn an_address_of_another_chain_needs_an_operator_and_any_other_failure_only_time() {
    let scene = Scene::of(ChainConfig::local([])).await;
    let wrong = || RpcError::WrongChain { wanted: 1, got: 2 };
    let silent = || RpcError::Timeout(ASK_AGAIN);
    let set_aside = |cause| RpcError::SetAside(Some(Box::new(cause)));
    for (error, needs) in [
        (silent(), Some(Needs::Time)),
        (set_aside(silent()), None), // the failure itself has been told
        (wrong(), Some(Needs::Operator)),
        (set_aside(wrong()), Some(Needs::Operator)),
    ] {
        let mut session = scene.session().await;
        for _ in 0..TROUBLE_AFTER {
            assert!(session.answered((Ask::Latest, Err(error.clone().into()))).is_none());
        }
        assert_eq!(scene.stall().map(|(_, needs)| needs), needs, "{error}");
        scene.chain.status.clear(Cause::Headers);
    }
}

#[tokio::test]
async fn g8_one_node_that_lags_moves_the_head_back_no_more_than_one_that_insists() {
    let scene = Scene::of(ChainConfig::local([])).await;
    let mut session = scene.session().await;
    let told = [900, 5, 5, 901, 5, 5, 5, 6].map(|number| {
        session.answered((Ask::Latest, Ok(vec![header(number, 'a')])));
        session.head.unwrap().0
    });
    assert_eq!(told, [900, 900, 900, 901, 901, 901, 5, 6]);
}

#[tokio::test]
async fn only_a_head_that_says_something_new_ends_the_silence() {
    let scene = Scene::of(ChainConfig::local([])).await;
    let mut session = scene.session().await;
    session.hear(1..=3);
    session.asking.silent_polls = 5;
    session.due.poll = Instant::now();
    let due = session.due.poll;
    session.hear(3..=3);
    session.heard(Head::Number(2));
    session.told_by_socket(SocketEvent::Subscribed);
    assert_eq!((session.asking.silent_polls, session.due.poll), (5, due));
    session.hear(4..=4);
    assert!(session.asking.silent_polls == 0 && session.due.poll > due);
}

#[tokio::test]
async fn a_node_that_never_names_its_head_is_told() {
    let scene = Scene::of(ChainConfig::local([])).await;
    let mut session = scene.session().await;
    for _ in 0..TROUBLE_AFTER {
        assert!(scene.stall().is_none());
        session.answered((Ask::Latest, Err(NodeError::Unknown)));
    }
    let (why, needs) = scene.stall().unwrap();
    assert_eq!(
        (why.as_str(), needs),
        ("the head is not available: no endpoint has it", Needs::Time)
    );
}

#[tokio::test]
async fn a_head_that_stays_below_the_published_block_is_told_until_it_has_passed_it() {
    let scene = Scene::of(ChainConfig::local([])).await;
    let mut session = scene.session().await;
    session.hear(1..=3);
    session.publish().await;
    let answer = |session: &mut Session<'_>, number| {
        session.answered((Ask::Latest, Ok(vec![header(number, 'a')])));
    };
    answer(&mut session, 3);
    for _ in 0..SIGHTINGS {
        assert!(session.asking.below_since.is_none());
        answer(&mut session, 1);
        assert!(std::mem::take(&mut session.asking.heard_otherwise), "all are asked next");
    }
    assert!(scene.stall().is_none());
    *session.asking.below_since.as_mut().unwrap() -= MISSING_AFTER;
    answer(&mut session, 2);
    let (why, _) = scene.stall().unwrap();
    assert!(why.starts_with("the node's head 2 is below the published block 3"), "{why}");
    answer(&mut session, 3);
    assert!(scene.stall().is_none());
}

#[tokio::test]
async fn a_branch_that_cannot_be_followed_is_told_until_the_chain_grows() {
    let scene = Scene::of(ChainConfig::local([])).await;
    let mut session = scene.session().await;
    session.hear(1..=3);
    session.publish().await;
    for _ in 0..TROUBLE_AFTER {
        assert!(scene.stall().is_none());
        session.answered((Ask::Latest, Ok(vec![header(9, 'b')])));
        let ask = session.ask().unwrap();
        session.answered((ask, Ok(vec![header(4, 'b')])));
        let ask = session.ask().unwrap();
        assert_eq!(ask, Ask::Hash(header(3, 'b').block.hash));
        session.answered((ask, Err(NodeError::Unknown)));
    }
    let (why, _) = scene.stall().unwrap();
    assert!(why.starts_with("the node is on another branch, whose block 0x"), "{why}");
    session.answered((Ask::Latest, Ok(vec![header(3, 'a')])));
    assert!(scene.stall().is_some(), "it may come back");
    session.hear(4..=4);
    assert!(scene.stall().is_none());
}

#[tokio::test]
async fn what_is_announced_while_the_head_is_asked_for_is_not_forgotten() {
    let chain = mined(3);
    let node = serve(chain).await;
    let scene = Scene::of(ChainConfig::local([EndpointConfig::of(&node)])).await;
    for (announced, asks) in [
        (header(2, 'a'), false),
        (header(3, 'a'), false),
        (header(3, 'b'), true),
        (header(4, 'b'), true),
    ] {
        let mut session = scene.session().await;
        session.hear(1..=3);
        session.publish().await;
        session.canonical.doubt();
        session.start_asking(session.due.ask);
        assert!(session.asking.headers.is_some());
        session.heard(Head::Header(Box::new(announced)));
        session.answered((Ask::Latest, Ok(vec![header(3, 'a')])));
        assert_eq!(session.ask() == Some(Ask::Latest), asks);
        assert_eq!(session.asking.heard_otherwise, asks);
        drop(session);
        scene.redis.ask::<String>("FLUSHALL").await.unwrap();
    }
    // Nor while blocks are asked for that the node does not have.
    for (announced, asks) in [(3, false), (4, true)] {
        let mut session = scene.session().await;
        session.hear(1..=3);
        session.publish().await;
        session.heard(Head::Number(9));
        session.start_asking(session.due.ask);
        session.heard(Head::Number(announced));
        session.answered((Ask::Numbers(4..=9), Ok(Vec::new())));
        assert_eq!(session.ask() == Some(Ask::Latest), asks, "{announced}");
        drop(session);
        scene.redis.ask::<String>("FLUSHALL").await.unwrap();
    }
}
