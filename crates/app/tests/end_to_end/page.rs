//! The page in a real browser: its numbers are those of Redis and of `ethhook status`.
//!
//! Chromium is driven over its DevTools protocol
//! (<https://chromedevtools.github.io/devtools-protocol/>). `ETHHOOK_PAGE_PNG` names a file that the
//! screenshot of the README is written to.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use ethhook_simulator::{Chain, ChainSpec, ManualChain, Node, RunningNode};
use futures_util::{SinkExt, StreamExt};
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::operator::{checker, manual};
use crate::rig::{SETTLE, until};
use crate::status::found;

/// Chromium with one page.
struct Browser {
    child: Child,
    _folder: tempfile::TempDir,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    session: String,
    last_id: u64,
}

impl Browser {
    async fn open(url: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new("chromium")
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--remote-debugging-port=0", "about:blank"])
            .arg(format!("--user-data-dir={}", folder.path().display()))
            .env("HOME", folder.path())
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("chromium is installed by scripts/test.sh");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = async {
            loop {
                let line = lines.next_line().await.unwrap().expect("chromium ended");
                if let Some(url) = line.strip_prefix("DevTools listening on ") {
                    return url.to_owned();
                }
            }
        };
        let address = timeout(SETTLE, address).await.unwrap();
        tokio::task::spawn_local(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let (socket, _) = connect_async(address).await.unwrap();
        let mut browser =
            Self { child, _folder: folder, socket, session: String::new(), last_id: 0 };
        let target = browser.call("Target.createTarget", json!({ "url": url })).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach).await;
        browser.session = session["sessionId"].as_str().unwrap().to_owned();
        browser
    }

    /// Ends it before its folder is removed, which it would go on filling.
    async fn close(mut self) {
        self.child.kill().await.unwrap();
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let mut request = json!({ "id": self.last_id, "method": method, "params": params });
        if !self.session.is_empty() {
            request["sessionId"] = json!(self.session);
        }
        self.socket.send(Message::text(request.to_string())).await.unwrap();
        let answer = async {
            loop {
                let message = self.socket.next().await.unwrap().unwrap();
                let Ok(text) = message.to_text() else { continue };
                let answer: Value = serde_json::from_str(text).unwrap_or_default();
                if answer["id"] == self.last_id {
                    assert!(answer["error"].is_null(), "{method}: {answer}");
                    return answer["result"].clone();
                }
            }
        };
        timeout(SETTLE, answer).await.unwrap()
    }

    /// The value of an expression in the page.
    async fn value(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true });
        self.call("Runtime.evaluate", params).await["result"]["value"].clone()
    }

    /// The text of a field of the chain `local`.
    async fn field(&mut self, name: &str) -> String {
        let field =
            format!("document.querySelector('#chain-local [data-field={name}]')?.textContent");
        self.value(&field).await.as_str().unwrap_or_default().to_owned()
    }

    async fn text(&mut self) -> String {
        let text = self.value("document.body?.innerText").await;
        text.as_str().unwrap_or_default().to_owned()
    }

    async fn screen(&mut self, width: u32, height: u32) {
        let params = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600,
        });
        self.call("Emulation.setDeviceMetricsOverride", params).await;
    }

    async fn png(&mut self) -> Vec<u8> {
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png" })).await;
        let shot = shot["data"].as_str().unwrap();
        base64::engine::general_purpose::STANDARD.decode(shot).unwrap()
    }
}

/// Chains with a consumer group each.
const GROUPS: [(u64, &str); 3] = [(31_337, "indexer"), (1, "wallets"), (8_453, "price-alerts")];

/// Two additional chains, so that there is something to see.
async fn lively() -> RunningNode {
    let chain = |chain_id| {
        Chain::scheduled(ChainSpec {
            chain_id,
            block_time: Duration::from_millis(700),
            events_per_block: 30,
            empty_every: 9,
            reorg_every: 12,
            reorg_depth: 2,
            seed: chain_id,
            genesis_time: std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() - 120,
        })
        .unwrap()
    };
    let address = ([127, 0, 0, 1], 0).into();
    Node::bind(address, vec![chain(1), chain(8_453)]).await.unwrap().spawn()
}

#[tokio::test]
async fn the_page_shows_in_a_browser_what_redis_and_status_say() {
    tokio::task::LocalSet::new().run_until(shows_what_redis_and_status_say()).await;
}

async fn shows_what_redis_and_status_say() {
    let (chain, node, mut rig) = manual().await;
    let lively = lively().await;
    rig.set("ETHEREUM_WS_URL", lively.ws_url(1)).set("BASE_WS_URL", lively.ws_url(8_453));
    rig.start();
    found(&mut rig).await;
    chain.mine(123);
    let checker = checker(&rig, &node).await;
    checker.settle_and_check(SETTLE).await.unwrap();
    let mut redis = rig.redis.connection().await.unwrap();
    for (chain, group) in GROUPS {
        let mut create = redis::cmd("XGROUP");
        create.arg("CREATE").arg(format!("events:{chain}")).arg(group).arg("0");
        until("a stream", async || create.exec_async(&mut redis).await.is_ok()).await;
    }
    let mut browser = Browser::open(&format!("http://{}/", rig.address("health").unwrap())).await;
    browser.screen(1_200, 620).await;
    until("the page to show the head", async || browser.field("published").await == "123").await;
    until("the page to show the group", async || browser.text().await.contains("1,230")).await;

    let report = rig.command(&["status", "--json"]).await;
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    let is_local = |chain: &&Value| chain["name"] == "local";
    let shown = report["chains"].as_array().unwrap().iter().find(is_local).unwrap();
    let cursor = checker.cursor().await.unwrap().unwrap();
    assert_eq!(browser.field("published").await, cursor.number.to_string());
    assert_eq!(browser.field("head").await, shown["head"].to_string());
    assert_eq!(browser.field("lag").await, "0 blocks, 0 s");
    assert_eq!(browser.field("reorgs").await, shown["counts"]["reorgs"].to_string());
    let length: u64 = redis::cmd("XLEN").arg("events:31337").query_async(&mut redis).await.unwrap();
    let entries = browser.field("entries").await.replace(',', "");
    assert!(entries.starts_with(&length.to_string()) && length == 1_230, "{entries}");
    let text = browser.text().await;
    assert!(text.contains("All is well.") && text.contains("at its head"), "{text}");
    let points = browser.value("document.querySelector('svg polyline').getAttribute('points')");
    assert!(points.await.as_str().unwrap().contains(','));

    // It updates on its own, and shows what is wrong.
    chain.mine(1);
    chain.reorg(2, 3, ethhook_simulator::Contents::Fresh);
    until("the reorg to show", async || browser.field("reorgs").await == "1").await;
    until("the new head to show", async || browser.field("published").await == "125").await;
    if let Some(path) = std::env::var_os("ETHHOOK_PAGE_PNG") {
        std::fs::write(Path::new(&path), picture(&mut browser, &chain, &mut redis).await).unwrap();
    }
    check_looks(&mut browser).await;
    let group = ["CREATE", "events:31337", "<b>readers</b>", "0"];
    redis::cmd("XGROUP").arg(&group).exec_async(&mut redis).await.unwrap();
    until("a group's name as text, never as markup", async || {
        browser.text().await.contains("<b>readers</b>")
    })
    .await;
    rig.redis.kill();
    until("Redis to be missed", async || {
        browser.text().await.contains("the data in Redis cannot be read")
    })
    .await;
    assert!(browser.text().await.contains("What to do: nothing is lost"));
    rig.kill().await;
    until("the service to be missed", async || {
        browser.text().await.contains("No update from the service")
    })
    .await;
    browser.close().await;
}

/// Takes the screenshot once there is something to see: growing chains and reading groups.
async fn picture(
    browser: &mut Browser,
    chain: &ManualChain,
    redis: &mut MultiplexedConnection,
) -> Vec<u8> {
    for points in [50, 100] {
        until("a graph", async || {
            chain.mine(1);
            for (chain, group) in GROUPS {
                let key = format!("events:{chain}");
                let mut read = redis::cmd("XREADGROUP");
                read.arg("GROUP").arg(group).arg("one").arg("COUNT").arg(3).arg("NOACK");
                read.arg("STREAMS").arg(key).arg(">").exec_async(redis).await.unwrap();
            }
            let length = "document.querySelector('svg polyline').points.length";
            browser.value(length).await.as_u64() >= Some(points)
        })
        .await;
    }
    browser.png().await
}

/// On a desktop and on a phone, in light and dark mode.
async fn check_looks(browser: &mut Browser) {
    let ground = "getComputedStyle(document.body).backgroundColor";
    let light = browser.value(ground).await;
    let heads = "[...document.querySelectorAll('th')].every(head => head.offsetHeight < 36)";
    assert_eq!(browser.value(heads).await, true, "a table's head has one line");
    let picture = browser.png().await;
    assert!(picture.starts_with(b"\x89PNG") && picture.len() < 200_000, "{}", picture.len());
    let dark = json!({ "features": [{ "name": "prefers-color-scheme", "value": "dark" }] });
    browser.call("Emulation.setEmulatedMedia", dark).await;
    assert_ne!(browser.value(ground).await, light, "dark mode");
    browser.screen(360, 740).await;
    let fits = "document.documentElement.scrollWidth <= window.innerWidth";
    assert_eq!(browser.value(fits).await, true, "no sideways scrolling on a phone");
    assert_eq!(browser.value(heads).await, true, "a table's head has one line on a phone");
}

/// The whole reply to a GET, which must end.
async fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    timeout(SETTLE, stream.read_to_string(&mut reply)).await.unwrap().unwrap();
    reply
}

/// A connection to the events, and the beginning of its reply.
async fn subscribe(address: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut read = String::new();
    let mut buffer = [0; 4_096];
    let begun = |read: &str| read.contains("data: {") || read.contains("too many pages");
    while !begun(&read) {
        let count = timeout(SETTLE, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(count > 0, "{read}");
        read += &String::from_utf8_lossy(&buffer[..count]);
    }
    (stream, read)
}

#[tokio::test]
async fn g7_so_many_pages_and_no_more_and_probes_are_answered_all_the_same() {
    let (_chain, _node, mut rig) = manual().await;
    rig.start();
    found(&mut rig).await;
    let address = rig.address("health").unwrap();
    let page = get(&address, "/").await;
    let policy = "content-security-policy: default-src 'none'; script-src 'self'";
    assert!(page.starts_with("HTTP/1.1 200") && page.contains(policy), "{page}");
    for other in ["http://", "https://", "//"] {
        assert!(!page.contains(&format!("src=\"{other}")), "no asset from elsewhere");
    }
    let mut open = Vec::new();
    for _ in 0..16 {
        let (stream, begun) = subscribe(&address).await;
        assert!(begun.contains("text/event-stream"), "{begun}");
        open.push(stream);
    }
    let (_, refused) = subscribe(&address).await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(get(&address, "/health").await.starts_with("HTTP/1.1 200"));
    // Closing a page frees its slot.
    open.pop();
    until("a place", async || subscribe(&address).await.1.starts_with("HTTP/1.1 200")).await;
    tokio::time::timeout(Duration::from_secs(60), rig.terminate()).await.unwrap();
}
