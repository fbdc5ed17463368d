//! Which endpoint is asked, and how blocks are fetched, on simulated nodes.

use ethhook_domain::Proof;
use ethhook_simulator::{BloomLie, Chain, Contents, Fault, ManualChain, RunningNode};
use futures_util::{FutureExt, poll};
use tokio::time::timeout;

use super::blocks::FetchWay;
use super::*;
use crate::config::EndpointConfig;
use crate::rpc::REQUEST_TIMEOUT;
use crate::testing::{mined, serve, unread};

const LOGS: &str = Method::Logs.name();
const RECEIPTS: &str = Method::Receipts.name();

/// A chain without logs behind three endpoints; no single one of them is believed that there are none.
struct Scene {
    views: [Chain; 3],
    node: Node,
    _nodes: Vec<RunningNode>,
}

impl Scene {
    async fn new() -> Self {
        let chain = mined(0);
        (0..3).for_each(|_| _ = chain.mine_with(vec![vec![]]));
        let views = [chain.clone().into(), chain.view(), chain.view()];
        let mut nodes = Vec::new();
        for view in &views {
            nodes.push(serve(view.clone()).await);
        }
        let mut config = ChainConfig::local(nodes.iter().map(EndpointConfig::of));
        (config.fetch, config.profile.verify) = (Fetch::Logs, Proof::Bloom);
        let (heads, metrics) = unread();
        let (node, _) = Node::new(&config, &heads, &metrics);
        node.highest_latest(None).await.unwrap(); // each is identified
        views.iter().for_each(|view| view.stats().reset());
        Self { views, node, _nodes: nodes }
    }

    /// How often each endpoint was asked since the last call of this.
    fn asked(&self, method: &str) -> [u64; 3] {
        self.views.each_ref().map(|view| {
            let asked = view.stats().requests(method);
            view.stats().reset();
            asked
        })
    }
}

#[tokio::test]
async fn an_empty_answer_is_held_against_one_other_or_a_second_one_of_the_same() {
    let scene = Scene::new().await;
    let headers = scene.node.by_numbers(1..=3).await.unwrap();
    assert_eq!((headers.len(), scene.asked("eth_getBlockByNumber")), (3, [3, 0, 0]));
    let tells_nothing = |endpoint: usize| scene.views[endpoint].faults().push(LOGS, Fault::Null, 1);
    for blocks in [&headers[..1], &headers] {
        let ask = async || {
            let outcomes = scene.node.blocks(blocks).await.unwrap();
            assert!(outcomes.iter().all(|outcome| outcome.as_ref().unwrap().logs.is_empty()));
            scene.asked(LOGS)
        };
        assert_eq!(ask().await, [1, 1, 0]);
        tells_nothing(1);
        assert_eq!(ask().await, [1, 1, 1], "the next, if one does not tell");
        [1, 2].into_iter().for_each(tells_nothing);
        assert_eq!(ask().await, [2, 1, 1], "itself, if no other tells");
    }
}

#[tokio::test]
async fn what_each_endpoint_calls_latest_is_remembered() {
    let scene = Scene::new().await;
    let latest = scene.views[0].block(3).unwrap().hash();
    let announced = |endpoint: &Endpoint| endpoint.announced.last().unwrap().0.hash;
    assert!(scene.node.endpoints().iter().all(|endpoint| announced(endpoint) == latest));
    scene.node.by_numbers(1..=1).await.unwrap();
    scene.node.finalized().await.unwrap();
    assert!(scene.node.endpoints().iter().all(|endpoint| announced(endpoint) == latest));
}

#[tokio::test]
async fn the_endpoint_where_a_message_has_to_wait_least_is_asked_first() {
    let scene = Scene::new().await;
    let endpoints = scene.node.endpoints();
    let order = || {
        let position = |endpoint: &&Endpoint| endpoint.metrics.position;
        scene.node.by_wait().iter().map(position).collect::<Vec<_>>()
    };
    let headers = scene.node.by_numbers(1..=3).await.unwrap();
    endpoints[0].note_batch_too_large(Method::Logs, 4);
    assert_eq!((order(), scene.node.plan().blocks), (vec![0, 1, 2], 2));
    endpoints[0].fall_behind(300);
    assert_eq!((order(), scene.node.plan().blocks), (vec![1, 2, 0], 4));
    endpoints[1].fall_behind(600);
    assert_eq!(order(), [2, 0, 1]);
    let held = || endpoints.iter().map(Endpoint::delayed).sum::<u32>();
    for (asked, is_held, what) in [
        (scene.node.block(&headers[0]).map(drop).boxed(), 0, "a block"),
        (scene.node.blocks(&headers).map(drop).boxed(), 0, "several"),
        (scene.node.by_numbers(1..=3).map(drop).boxed(), 0, "headers in a row"),
        (scene.node.by_numbers(2..=2).map(drop).boxed(), 1, "a header whose branch counts"),
        (scene.node.latest().map(drop).boxed(), 1, "the head of the first"),
    ] {
        let mut asked = asked;
        assert!(poll!(&mut asked).is_pending());
        assert_eq!(held(), is_held, "{what}");
    }
    endpoints[2].fall_behind(900);
    assert_eq!(order(), [0, 1, 2], "none accepts one now");
}

#[test]
fn of_several_failures_the_one_that_tells_most_is_told_whichever_came_first() {
    let wrong_chain = RpcError::WrongChain { wanted: 1, got: 2 };
    let ascending: [NodeError; 5] = [
        RpcError::SetAside(Some(Box::new(wrong_chain))).into(),
        RpcError::SetAside(None).into(),
        NodeError::Unknown,
        RpcError::Timeout(REQUEST_TIMEOUT).into(),
        Failure { check: Check::Empty, detail: "no logs".to_owned() }.into(),
    ];
    for pair in ascending.windows(2) {
        for order in [[0, 1], [1, 0]] {
            let told = NodeError::most_telling(order.map(|first| pair[first].clone()));
            assert_eq!(told.to_string(), pair[1].to_string());
        }
    }
    assert!(matches!(NodeError::most_telling([]), NodeError::Unknown));
}

#[tokio::test]
async fn one_that_does_not_answer_at_first_is_not_waited_for_where_there_is_another() {
    let chain = mined(3);
    let views: [Chain; 2] = [chain.clone().into(), chain.view()];
    let nodes = [serve(views[0].clone()).await, serve(views[1].clone()).await];
    let config = ChainConfig::local(nodes.iter().map(EndpointConfig::of));
    let (heads, metrics) = unread();
    let (node, _) = Node::new(&config, &heads, &metrics);
    views[0].faults().push("eth_chainId", Fault::NoAnswer, 1);
    let latest = timeout(REQUEST_TIMEOUT / 2, node.latest()).await;
    assert_eq!(latest.expect("an answer").unwrap().block.number, 3);
    let counted = |outcome| node.endpoints[0].metrics.requests("eth_chainId", outcome);
    assert_eq!(["abandoned", "ok"].map(counted), [1, 0]);
}

#[tokio::test]
async fn of_two_branches_that_grow_side_by_side_ours_is_kept() {
    let (ours, other) = (mined(5), mined(5));
    let nodes = [serve(ours.clone()).await, serve(other.clone()).await];
    let config = ChainConfig::local(nodes.iter().map(EndpointConfig::of));
    let (heads, metrics) = unread();
    let (node, _) = Node::new(&config, &heads, &metrics);
    let hash = |chain: &ManualChain, number| chain.block(number).unwrap().hash();
    let (tip, base) = (hash(&ours, 5), hash(&ours, 4));
    let highest = async |tip| node.highest_latest(Some(tip)).await.unwrap().block.hash;
    other.reorg(1, 1, Contents::Fresh);
    assert_eq!(highest(tip).await, tip);
    assert_eq!(highest(hash(&other, 5)).await, hash(&other, 5));
    other.mine(1);
    assert_eq!(highest(tip).await, tip, "one above ours");
    assert_eq!(highest(hash(&other, 5)).await, hash(&other, 6), "its child");
    assert_eq!(highest(base).await, tip, "a child of ours");
    other.mine(1);
    assert_eq!(highest(tip).await, hash(&other, 7), "two above ours");
}

#[tokio::test]
async fn g7_one_message_asks_for_as_many_blocks_as_the_endpoint_takes() {
    let scene = Scene::new().await;
    let headers = scene.node.by_numbers(1..=3).await.unwrap();
    scene.views[0].stats().reset();
    for method in [Method::Headers, Method::Logs] {
        scene.node.endpoints[0].note_batch_too_large(method, 4);
    }
    assert_eq!(scene.node.plan().blocks, 2);
    assert_eq!(scene.node.by_numbers(1..=3).await.unwrap(), headers[..2]);
    assert_eq!(scene.asked("eth_getBlockByNumber"), [2, 0, 0]);
    assert_eq!(scene.node.blocks(&headers).await.unwrap().len(), 3);
    assert_eq!(scene.views[0].stats().requests(LOGS), 2, "two blocks, and one");
}

#[tokio::test]
async fn g7_what_is_refused_together_is_asked_for_in_smaller_parts_and_what_is_there_is_kept() {
    let chain = mined(3);
    let served = serve(chain.clone()).await;
    let mut config = ChainConfig::local([EndpointConfig::of(&served)]);
    (config.fetch, config.profile.verify) = (Fetch::Logs, Proof::Bloom);
    let (heads, metrics) = unread();
    let (node, _) = Node::new(&config, &heads, &metrics);
    assert_eq!(node.by_numbers(2..=9).await.unwrap().len(), 2, "no more are there");
    assert!(node.by_numbers(4..=9).await.unwrap().is_empty());
    let headers = node.by_numbers(1..=3).await.unwrap();
    // A range would be of others, too.
    let apart = [headers[0].clone(), headers[2].clone()];
    assert!(node.blocks(&apart).await.unwrap().iter().all(Result::is_ok));
    chain.set_batch_limit(1);
    assert_eq!(node.by_numbers(1..=3).await.unwrap(), headers[..1]);
    chain.faults().push("eth_getBlockByNumber", Fault::Error(-32000, "no".into()), 1);
    assert!(node.by_numbers(1..=3).await.is_err(), "of one");
    let asked = async |faults: &[Fault]| {
        chain.stats().reset();
        faults.iter().for_each(|fault| chain.faults().push(LOGS, fault.clone(), 1));
        let outcomes = node.blocks(&headers).await;
        let are_there = outcomes.map(|all| all.iter().map(Result::is_ok).collect::<Vec<_>>());
        (are_there.ok(), chain.stats().requests(LOGS))
    };
    let (refused, given) = (Fault::Error(-32000, "no".into()), Fault::Delay(Duration::ZERO));
    assert_eq!(
        asked(std::slice::from_ref(&refused)).await,
        (Some(vec![true; 3]), 4),
        "all, and each alone"
    );
    assert_eq!(asked(std::slice::from_ref(&refused)).await, (None, 1), "it is not for the size");
    let first = Some(vec![true, false, false]);
    assert_eq!(asked(&[given, refused]).await, (first, 2));
}

#[tokio::test]
async fn g7_a_batch_of_which_most_is_refused_was_too_large() {
    let chain = mined(8);
    let served = serve(chain.clone()).await;
    let mut config = ChainConfig::local([EndpointConfig::of(&served)]);
    config.fetch = Fetch::Receipts;
    let (heads, metrics) = unread();
    for (refused, next) in [(0, 16), (4, 16), (5, 4)] {
        let (node, _) = Node::new(&config, &heads, &metrics);
        let headers = node.by_numbers(1..=8).await.unwrap();
        for fine in [1, 2, 4] {
            node.blocks(&headers[..fine]).await.unwrap();
        }
        assert_eq!(node.plan().blocks, 8);
        chain.faults().push(RECEIPTS, Fault::Error(-32000, "no".into()), refused);
        let outcomes = node.blocks(&headers).await.unwrap();
        let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        assert_eq!((outcomes.len(), failed), (8, refused as usize));
        assert_eq!(node.plan().blocks, next, "{refused} of 8");
        assert!(node.endpoints[0].offers_receipts());
    }
}

#[tokio::test]
async fn a_method_that_is_not_offered_is_asked_for_once_where_another_will_do() {
    let chain = mined(2);
    let served = serve(chain.clone()).await;
    let mut config = ChainConfig::local([EndpointConfig::of(&served)]);
    config.profile.verify = Proof::Bloom;
    let (heads, metrics) = unread();
    for (fetch, asked) in [(Fetch::Auto, [1, 2]), (Fetch::Receipts, [2, 0])] {
        config.fetch = fetch;
        let (node, _) = Node::new(&config, &heads, &metrics);
        let headers = node.by_numbers(1..=2).await.unwrap();
        chain.stats().reset();
        chain.faults().push(RECEIPTS, Fault::Error(-32601, "no such method".into()), 2);
        for header in &headers {
            assert_eq!(node.block(header).await.is_ok(), fetch == Fetch::Auto);
        }
        let requests = [RECEIPTS, LOGS].map(|method| chain.stats().requests(method));
        assert_eq!(requests, asked, "{fetch:?}");
        chain.faults().clear();
    }
}

#[tokio::test]
async fn where_logs_prove_too_little_who_refuses_receipts_is_asked_last_and_for_nothing_else() {
    let chain = mined(12);
    let views = [Chain::from(chain.clone()), chain.view()];
    let nodes = [serve(views[0].clone()).await, serve(views[1].clone()).await];
    let config = ChainConfig::local(nodes.each_ref().map(EndpointConfig::of));
    let (heads, metrics) = unread();
    let (node, _) = Node::new(&config, &heads, &metrics);
    let headers = node.by_numbers(1..=12).await.unwrap();
    let asked = || views.each_ref().map(|view| [RECEIPTS, LOGS].map(|m| view.stats().requests(m)));
    views[0].faults().push(RECEIPTS, Fault::Error(-32601, "no such method".into()), 99);
    for header in &headers {
        node.block(header).await.unwrap();
    }
    let blocks = headers.len() as u64;
    assert!(blocks > 2);
    assert_eq!(asked(), [[1, 0], [blocks, 0]]);
    // If nobody offers them, the reason is told, and each is asked again.
    views[1].faults().push(RECEIPTS, Fault::Error(-32601, "no such method".into()), 99);
    for _ in 0..2 {
        let error = node.block(&headers[0]).await.unwrap_err().to_string();
        assert!(error.contains("method not offered"), "{error}");
    }
    assert_eq!(asked(), [[3, 0], [blocks + 2, 0]]);
    // One that is set aside comes after all others.
    let (node, _) = Node::new(&config, &heads, &metrics);
    let first = || node.for_contents()[0].metrics.position;
    node.endpoints[0].note_receipts_refused();
    assert_eq!(first(), 1);
    node.endpoints[1].set_aside(Duration::from_secs(60), None);
    assert_eq!(first(), 0);
}

#[tokio::test]
async fn blocks_are_fetched_in_the_cheapest_way_that_proves_enough() {
    const EQUAL: &str = "http://127.0.0.1:1";
    const LOGS_CHEAPER: &str = "https://mainnet.infura.io/v3/key";
    let (heads, metrics) = unread();
    let node_of = |fetch, verify, url| {
        let mut config = ChainConfig::local([EndpointConfig::http(url)]);
        (config.fetch, config.profile.verify) = (fetch, verify);
        Node::new(&config, &heads, &metrics).0
    };
    for (fetch, verify, url, blocks, way) in [
        (Fetch::Receipts, Proof::Bloom, LOGS_CHEAPER, 8, FetchWay::Receipts),
        (Fetch::Logs, Proof::ReceiptsRoot, EQUAL, 1, FetchWay::Logs),
        (Fetch::Auto, Proof::ReceiptsRoot, LOGS_CHEAPER, 8, FetchWay::Receipts),
        (Fetch::Auto, Proof::Bloom, LOGS_CHEAPER, 1, FetchWay::Logs),
        (Fetch::Auto, Proof::Bloom, EQUAL, 1, FetchWay::Receipts), // which prove more
        (Fetch::Auto, Proof::Bloom, EQUAL, 2, FetchWay::Logs),
    ] {
        let node = node_of(fetch, verify, url);
        let endpoint = &node.endpoints[0];
        assert_eq!(node.way(endpoint, blocks), way, "{fetch:?} {verify:?} {url} {blocks}");
        endpoint.note_receipts_refused();
        let only = if node.needs_receipts() { FetchWay::Receipts } else { FetchWay::Logs };
        assert_eq!(node.way(endpoint, blocks), only, "{fetch:?} {verify:?} {url} {blocks}");
    }
    let plan = |fetch| node_of(fetch, Proof::Bloom, EQUAL).plan();
    assert_eq!(plan(Fetch::Logs), Plan { blocks: 4, in_a_row: true });
    assert_eq!(plan(Fetch::Receipts), Plan { blocks: 1, in_a_row: false });
}

#[test]
fn one_that_is_much_slower_than_the_fastest_is_asked_later() {
    let nowhere = EndpointConfig::http("http://127.0.0.1:1");
    let (heads, metrics) = unread();
    for (took, first) in [(30, 0), (31, 1)] {
        let config = ChainConfig::local([nowhere.clone(), nowhere.clone()]);
        let (node, _) = Node::new(&config, &heads, &metrics);
        for _ in 0..8 {
            node.endpoints[0].note_latency(Duration::from_millis(took));
            node.endpoints[1].note_latency(Duration::from_millis(10));
        }
        assert!(std::ptr::eq(node.by_preference()[0], &raw const node.endpoints[first]));
    }
}

#[tokio::test]
async fn another_is_asked_soon_for_one_block_and_later_for_several() {
    const HEADERS: &str = Method::Headers.name();
    let scene = Scene::new().await;
    for _ in 0..8 {
        scene.node.latest().await.unwrap(); // its usual latency is known now
    }
    scene.asked(HEADERS);
    for (numbers, of_second) in [(1..=3, 0), (1..=1, 1)] {
        let slow = Fault::Delay(Duration::from_millis(500));
        scene.views[0].faults().push(HEADERS, slow, 1);
        scene.node.by_numbers(numbers).await.unwrap();
        assert_eq!(scene.asked(HEADERS)[1], of_second);
    }
}

#[tokio::test]
async fn the_heads_of_all_are_asked_for_once_each_and_any_other_question_of_one() {
    let scene = Scene::new().await;
    let highest = scene.node.highest_latest(None).await.unwrap();
    assert_eq!(scene.asked("eth_getBlockByNumber"), [1, 1, 1]);
    let holds = scene.node.anyone_holds(&highest.block, false).await.unwrap();
    assert!(matches!(holds, Holds::Someone));
    assert_eq!(scene.asked("eth_getBlockByNumber"), [2, 2, 2], "and for the genesis block");
    // Its usual latency is not known yet, so its answer is awaited.
    let slow = Fault::Delay(Duration::from_millis(30));
    scene.views[0].faults().push("eth_getBlockByNumber", slow, 1);
    scene.node.latest().await.unwrap();
    scene.node.finalized().await.unwrap();
    assert_eq!(scene.asked("eth_getBlockByNumber"), [2, 0, 0]);
    scene.node.by_hash(highest.block.hash).await.unwrap();
    assert_eq!(scene.asked("eth_getBlockByHash"), [1, 0, 0]);
}

#[tokio::test]
async fn g6_whoever_lies_about_its_head_is_set_aside_if_another_does_not() {
    let lies = |view: &Chain| {
        view.faults().push("eth_getBlockByNumber", Fault::Bloom(BloomLie::Ones), 1);
    };
    for (liars, told) in [(1, true), (3, false)] {
        for tag in ["latest", "finalized"] {
            let scene = Scene::new().await;
            scene.views[..liars].iter().for_each(lies);
            let answered = match tag {
                "latest" => scene.node.highest_latest(None).await.is_ok(),
                _ => scene.node.each_finalized().await.is_ok(),
            };
            let aside = scene.node.endpoints.iter().map(Endpoint::is_set_aside);
            assert_eq!(answered, told);
            assert_eq!(aside.collect::<Vec<_>>(), [told, false, false], "{tag}");
        }
    }
}

#[tokio::test]
async fn g1_a_block_with_more_logs_than_are_answered_is_asked_for_by_its_receipts() {
    let mut scene = Scene::new().await;
    let headers = scene.node.by_numbers(1..=1).await.unwrap();
    scene.node.endpoints.truncate(1);
    scene.node.endpoints[0].cost_as("https://mainnet.infura.io/v3/key");
    let ask = async |scene: &Scene| {
        let too_many = "query returned more than 10000 results".to_owned();
        scene.views[0].faults().push(LOGS, Fault::Error(-32000, too_many), 1);
        let answer = scene.node.block(&headers[0]).await.map(|verified| verified.proof);
        (answer.ok(), scene.asked(LOGS)[0], scene.views[0].faults().left())
    };
    assert_eq!(ask(&scene).await, (None, 1, 0), "where the operator wants logs");
    scene.node.fetch = Fetch::Auto;
    assert_eq!(ask(&scene).await, (Some(Proof::ReceiptsRoot), 1, 0));
    // Any other refusal is final, and receipts are not requested.
    let unknown = Fault::Error(-32000, "unknown block".to_owned());
    scene.views[0].faults().push(LOGS, unknown, 1);
    let refused = scene.node.block(&headers[0]).await.unwrap_err().to_string();
    assert!(refused.contains("unknown block"), "{refused}");
}

#[tokio::test]
async fn g10_only_a_block_speaks_for_or_against_a_final_one() {
    let mut scene = Scene::new().await;
    let block = scene.node.by_numbers(2..=2).await.unwrap()[0].block;
    scene.node.endpoints.truncate(2);
    // Each is also asked for the genesis block.
    let says = |view: usize, fault: Fault| {
        scene.views[view].faults().push("eth_getBlockByNumber", fault, 2);
    };
    let null = |view| says(view, Fault::Null);
    null(0);
    let holds = scene.node.anyone_holds(&block, false).await.unwrap();
    assert!(matches!(holds, Holds::Someone), "the other tells");
    (0..2).for_each(null);
    assert!(matches!(scene.node.anyone_holds(&block, false).await, Err(NodeError::Unknown)));
    let other = BlockRef { hash: B256::ZERO, ..block };
    null(0);
    assert!(matches!(scene.node.anyone_holds(&other, false).await.unwrap(), Holds::Nobody));
    // One that is set aside is asked, too; one that asked us to wait, only if that is urgent.
    let rate_limited = || Some(RpcError::RateLimited(None));
    for (cause, urgent, holds) in
        [(None, false, true), (rate_limited(), false, false), (rate_limited(), true, true)]
    {
        let mut scene = Scene::new().await;
        scene.node.endpoints.truncate(1);
        scene.node.latest().await.unwrap();
        scene.node.endpoints[0].set_aside(Duration::from_secs(300), cause);
        let found = scene.node.anyone_holds(&block, urgent).await;
        assert_eq!(matches!(found, Ok(Holds::Someone)), holds, "{found:?}");
    }
    says(0, Fault::Error(-32000, "busy".into()));
    assert!(matches!(scene.node.anyone_holds(&other, false).await.unwrap(), Holds::NotKnown(_)));
}

#[tokio::test]
async fn a_node_that_does_not_offer_what_is_old_has_no_genesis_and_one_error_is_no_missing_tag() {
    let mut scene = Scene::new().await;
    scene.node.endpoints.truncate(1);
    let says = |code| {
        let fault = Fault::Error(code, "resource not found".into());
        scene.views[0].faults().push("eth_getBlockByNumber", fault, 1);
    };
    for code in [-32000, -32001] {
        says(code);
        assert_eq!(scene.node.identify(None).await.unwrap(), None, "{code}");
    }
    let is_missing = async || match scene.node.finalized().await {
        Ok(tag) => tag.is_none(),
        Err(_) => false,
    };
    for (code, missing) in [(-32601, true), (-32602, true), (-32000, false), (-32603, false)] {
        says(code);
        assert_eq!(is_missing().await, missing, "{code}");
    }
    says(-32603);
    assert!(is_missing().await, "the third in a row");
    assert!(!is_missing().await, "it is there");
    says(-32603);
    assert!(!is_missing().await, "the first again");
    is_missing().await;
    // `null` for once proves as little as an error.
    for missing in [false, false, true] {
        scene.views[0].faults().push("eth_getBlockByNumber", Fault::Null, 1);
        assert_eq!(is_missing().await, missing);
    }
}

#[tokio::test]
async fn an_endpoint_over_its_quota_does_not_hide_that_the_other_has_no_finalized_block() {
    let scene = Scene::new().await;
    for is_none in [false, false, true] {
        scene.views[0].faults().push("eth_getBlockByNumber", Fault::Null, 1);
        for view in &scene.views[1..] {
            let quota = Fault::HttpStatus(429, Some(0));
            view.faults().push("eth_getBlockByNumber", quota, 1);
        }
        let told = scene.node.finalized().await;
        assert_eq!(matches!(told, Ok(None)), is_none, "{told:?}");
        scene.node.endpoints.iter().for_each(|endpoint| endpoint.probe(true));
    }
}

#[tokio::test]
async fn g11_what_a_provider_says_of_one_call_of_a_batch_is_redacted_too() {
    let chain = mined(3);
    let node = serve(chain.clone()).await;
    let key = "s3cretkey0123456789";
    let config =
        ChainConfig::local([EndpointConfig::http(format!("{}/{key}", node.http_url(31_337)))]);
    let (heads, metrics) = unread();
    let (node, _) = Node::new(&config, &heads, &metrics);
    node.latest().await.unwrap(); // identifies it
    for numbers in [1..=3, 1..=1] {
        let error = Fault::Error(-32000, format!("project {key} is over quota"));
        chain.faults().push("eth_getBlockByNumber", error, 1);
        let told = node.by_numbers(numbers).await.unwrap_err().to_string();
        assert_eq!(told, "error -32000: project <redacted> is over quota");
    }
}

#[tokio::test]
async fn g10_a_node_that_fails_to_name_its_finalized_block_again_and_again_has_none() {
    let chain = mined(3);
    chain.set_finalized(2);
    let running = serve(chain.clone()).await;
    let config = ChainConfig::local([EndpointConfig::of(&running)]);
    for (fault, has_none) in [
        (Fault::HttpStatus(400, None), true),
        (Fault::InvalidJson, true),
        (Fault::HttpStatus(429, Some(0)), false),
    ] {
        let (heads, metrics) = unread();
        let (node, _) = Node::new(&config, &heads, &metrics);
        node.latest().await.unwrap();
        for failed in 0..=REFUSED_TAGS {
            chain.faults().push("eth_getBlockByNumber", fault.clone(), 1);
            let told = node.finalized().await;
            let is_none = matches!(told, Ok(None));
            assert_eq!(is_none, has_none && failed == REFUSED_TAGS, "{fault:?}: {told:?}");
        }
        chain.faults().clear();
    }
}

#[tokio::test]
async fn g6_receipts_by_number_serve_if_they_are_of_the_asked_block() {
    let chain = mined(3);
    let running = serve(chain.clone()).await;
    let config = ChainConfig::local([EndpointConfig::of(&running)]);
    let (heads, metrics) = unread();
    let (node, _) = Node::new(&config, &heads, &metrics);
    let header = node.by_numbers(3..=3).await.unwrap().remove(0);
    let only_numbers = || {
        chain.stats().reset();
        chain.faults().push(RECEIPTS, Fault::Error(-32602, "invalid block number".into()), 1);
    };
    only_numbers();
    assert_eq!(node.block(&header).await.unwrap().proof, Proof::ReceiptsRoot);
    assert_eq!(chain.stats().requests(RECEIPTS), 2);
    // It is known from then on, in batches too, until it is no longer so.
    let headers = node.by_numbers(2..=3).await.unwrap();
    assert_eq!(node.blocks(&headers).await.unwrap().len(), 2);
    assert_eq!(node.block(&header).await.unwrap().proof, Proof::ReceiptsRoot);
    assert_eq!(chain.stats().requests(RECEIPTS), 5);
    let takes_numbers = || node.endpoints[0].takes_numbers();
    only_numbers();
    assert_eq!(node.block(&header).await.unwrap().proof, Proof::ReceiptsRoot);
    assert!(!takes_numbers());
    only_numbers();
    node.block(&header).await.unwrap();
    assert!(takes_numbers());
    // At that height, the node now has another block.
    let is_of_another = |told: &FetchedBlock| matches!(told, Err(NodeError::Check(f)) if f.check == Check::BlockHash);
    chain.reorg(1, 2, Contents::Fresh);
    let told = node.blocks(&headers).await.unwrap();
    assert!(told[0].is_ok() && is_of_another(&told[1]), "{told:?}");
    for asked_by_number in [true, false] {
        assert_eq!(takes_numbers(), asked_by_number);
        if !asked_by_number {
            only_numbers();
        }
        let told = node.block(&header).await;
        assert!(is_of_another(&told), "{told:?}");
    }
    assert!(!takes_numbers());
}
