//! The service between a real Redis and the simulator: what prevents its start, what its ports
//! answer, and how it ends.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use ethhook_testkit::redis_server::{RedisOptions, RedisServer};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::timeout;

/// Longer than anything here takes, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time limit of an exit.
const EXIT: Duration = Duration::from_secs(8);

fn command(folder: &Path, env: &[(&str, &str)], args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ethhook"));
    command
        .args(args)
        .current_dir(folder)
        .env_clear()
        .envs([("METRICS_PORT", "0"), ("HEALTH_PORT", "0"), ("LOG_FORMAT", "json")])
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs a command until it ends, and returns its output.
async fn output(env: &[(&str, &str)], args: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    timeout(PATIENCE, command(folder.path(), env, args).output()).await.unwrap().unwrap()
}

/// The messages on standard error, without log lines.
fn told(output: &Output) -> Vec<String> {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    text.lines().filter(|line| line.starts_with("ethhook: ")).map(str::to_owned).collect()
}

async fn redis() -> RedisServer {
    RedisServer::spawn(RedisOptions::default()).await.unwrap()
}

/// A port that nothing listens on.
async fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

async fn signal(child: &Child, name: &str) {
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args([name, &pid]).status().await.unwrap().success());
}

/// `ethhook simulate` on a free port.
struct Simulator {
    _child: Child,
    _folder: tempfile::TempDir,
    ws_url: String,
}

impl Simulator {
    async fn start(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // A reorg of the first block would end a session, which would then wait for Redis.
        let fixed = "simulate --listen 127.0.0.1:0 --chains 31337 --reorg-every 0";
        let args: Vec<&str> = fixed.split(' ').chain(options.iter().copied()).collect();
        let mut child = command(folder.path(), &[], &args).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ws_url = loop {
            let line = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
            if let Some(url) = line.strip_prefix("LOCAL_WS_URL=") {
                break url.to_owned();
            }
        };
        Self { _child: child, _folder: folder, ws_url }
    }
}

/// `ethhook ingest`, started and listening.
struct Service {
    child: Child,
    _folder: tempfile::TempDir,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: Lines<BufReader<ChildStderr>>,
    health: String,
    metrics: String,
}

impl Service {
    async fn start(redis_url: &str, node_url: &str) -> Self {
        Self::start_with(&[("REDIS_URL", redis_url), ("LOCAL_WS_URL", node_url)]).await
    }

    async fn start_with(env: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let env = [&[("INSTANCE_ID", "test")], env].concat();
        let mut child = command(folder.path(), &env, &["ingest", "--progress"]).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        loop {
            let line = timeout(PATIENCE, stderr.next_line()).await.unwrap().unwrap();
            let line = line.unwrap_or_else(|| panic!("the service ended"));
            let Ok(line) = serde_json::from_str::<serde_json::Value>(&line) else {
                panic!("told instead of started: {line}")
            };
            if line["message"] == "listening" {
                let address = |field: &str| {
                    let url = line[field].as_str().unwrap();
                    url.strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned()
                };
                let (health, metrics) = (address("health"), address("metrics"));
                return Self { child, _folder: folder, stdout, stderr, health, metrics };
            }
        }
    }

    async fn until_ready(&self) {
        self.until(&self.health, "/ready", |reply| reply.starts_with("HTTP/1.1 200")).await;
    }

    /// Polls until the answer is as expected.
    async fn until(&self, address: &str, path: &str, fits: impl Fn(&str) -> bool) -> String {
        let mut last = String::new();
        let ask = async {
            loop {
                last = get(address, path).await;
                if fits(&last) {
                    return last.clone();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        match timeout(PATIENCE, ask).await {
            Ok(reply) => reply,
            Err(_) => panic!("{path} still says {last}"),
        }
    }

    /// Its exit code and how long the exit took.
    async fn ended(self) -> (Option<i32>, Duration) {
        let from = Instant::now();
        let (code, _) = self.ended_with_text().await;
        (code, from.elapsed())
    }

    /// Its exit code and all its output since it began to listen.
    async fn ended_with_text(mut self) -> (Option<i32>, String) {
        // Keeps reading, so that a full pipe does not block it.
        let logs = async {
            let mut text = String::new();
            while let Ok(Some(line)) = self.stderr.next_line().await {
                text = text + &line + "\n";
            }
            text
        };
        let lines = async {
            let mut text = String::new();
            while let Ok(Some(line)) = self.stdout.next_line().await {
                text = text + &line + "\n";
            }
            text
        };
        let ended = async { tokio::join!(self.child.wait(), logs, lines) };
        let (status, logs, lines) = timeout(PATIENCE, ended).await.unwrap();
        (status.unwrap().code(), logs + &lines)
    }
}

/// The whole reply to a GET.
async fn get(address: &str, path: &str) -> String {
    request(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
}

async fn request(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut reply)).await.unwrap().unwrap();
    reply
}

#[tokio::test]
async fn a_redis_that_may_evict_is_refused() {
    let options = RedisOptions { maxmemory_policy: "allkeys-lru", ..RedisOptions::default() };
    let redis = RedisServer::spawn(options).await.unwrap();
    let env = [("REDIS_URL", &*redis.url()), ("LOCAL_WS_URL", "ws://127.0.0.1:1")];
    let output = output(&env, &["ingest"]).await;
    let told = told(&output);
    assert_eq!(output.status.code(), Some(78), "{told:?}");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("allkeys-lru") && told[0].contains("noeviction"), "{told:?}");
}

#[tokio::test]
async fn a_redis_that_is_not_there_is_told_and_worth_another_try() {
    let url = format!("redis://:c4n4ry@127.0.0.1:{}", closed_port().await);
    let env = [("REDIS_URL", url.as_str()), ("LOCAL_WS_URL", "ws://127.0.0.1:1")];
    let output = output(&env, &["ingest"]).await;
    let told = told(&output);
    assert_eq!(output.status.code(), Some(1), "{told:?}");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("ethhook: Redis at 127.0.0.1:"), "{told:?}");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("c4n4ry"));
}

#[tokio::test]
async fn configuration_and_redis_are_told_together() {
    let url = format!("redis://127.0.0.1:{}", closed_port().await);
    let env = [("REDIS_URL", url.as_str()), ("LOCAL_WS_URL", "nonsense")];
    let output = output(&env, &["ingest"]).await;
    let told = told(&output);
    assert_eq!(output.status.code(), Some(78), "{told:?}");
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("LOCAL_WS_URL") && told[1].contains("Redis at"), "{told:?}");
}

#[tokio::test]
async fn ports_that_are_taken_are_told_both_at_once() {
    let redis = redis().await;
    let taken = [
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    ];
    let ports = taken.each_ref().map(|listener| listener.local_addr().unwrap().port().to_string());
    let env = [
        ("REDIS_URL", &*redis.url()),
        ("LOCAL_WS_URL", "ws://127.0.0.1:1"),
        ("METRICS_PORT", &ports[0]),
        ("HEALTH_PORT", &ports[1]),
    ];
    let output = output(&env, &["ingest"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        told(&output),
        [
            format!("ethhook: METRICS_PORT: {} is already in use: choose another", ports[0]),
            format!("ethhook: HEALTH_PORT: {} is already in use: choose another", ports[1]),
        ]
    );
}

#[tokio::test]
async fn the_ports_say_what_is_and_sigterm_ends_it() {
    let redis = redis().await;
    let simulator = Simulator::start(&["--block-time-ms", "200", "--events-per-block", "20"]).await;
    let mut service = Service::start(&redis.url(), &simulator.ws_url).await;
    let alive = get(&service.health, "/health").await;
    assert!(alive.starts_with("HTTP/1.1 200") && alive.ends_with("{\"alive\":true}\n"), "{alive}");
    service.until_ready().await;
    let published = |text: &str| {
        text.lines().any(|line| {
            line.strip_prefix("events_published_total{chain=\"local\"} ")
                .is_some_and(|count| count.parse::<u64>().unwrap() > 0)
        })
    };
    let metrics = service.until(&service.metrics, "/metrics", published).await;
    for name in [
        "ethhook_build_info{version=",
        "ethhook_process_resident_memory_bytes",
        "ethhook_process_cpu_seconds_total",
    ] {
        assert!(metrics.contains(name), "{name} is missing in:\n{metrics}");
    }
    for (address, path) in
        [(&service.health, "/metrics"), (&service.metrics, "/"), (&service.metrics, "/health")]
    {
        assert!(get(address, path).await.starts_with("HTTP/1.1 404"), "{path}");
    }
    let post = request(
        &service.health,
        "POST /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    assert!(post.starts_with("HTTP/1.1 405"), "{post}");
    let line = timeout(PATIENCE, service.stdout.next_line()).await.unwrap().unwrap().unwrap();
    assert!(line.starts_with("local  head "), "{line}");

    signal(&service.child, "-TERM").await;
    let (code, took) = service.ended().await;
    assert_eq!(code, Some(0));
    assert!(took < EXIT, "{took:?}");
}

#[tokio::test]
async fn healthcheck_tells_alive_and_ready_by_its_exit_code() {
    let mut redis = redis().await;
    let simulator = Simulator::start(&["--block-time-ms", "100"]).await;
    let service = Service::start(&redis.url(), &simulator.ws_url).await;
    service.until_ready().await;
    let port = service.health.rsplit(':').next().unwrap().to_owned();
    // There is no chain, and other problems are left to the service to report.
    let here = [("HEALTH_PORT", &*port), ("BIND_ADDRESS", "0.0.0.0"), ("METRICS_PORT", "wrong")];
    let alive = output(&here, &["healthcheck"]).await;
    assert_eq!(alive.status.code(), Some(0), "{:?}", told(&alive));
    assert_eq!(alive.stdout, b"{\"alive\":true}\n");
    assert_eq!(output(&here, &["healthcheck", "--ready"]).await.status.code(), Some(0));

    redis.kill();
    service.until(&service.health, "/ready", |reply| reply.starts_with("HTTP/1.1 503")).await;
    assert_eq!(output(&here, &["healthcheck"]).await.status.code(), Some(0));
    let unready = output(&here, &["healthcheck", "--ready"]).await;
    assert_eq!(unready.status.code(), Some(1));
    let line = told(&unready).remove(0);
    assert!(line.contains("/ready answers 503: {") && line.contains("Redis"), "{line}");

    signal(&service.child, "-TERM").await;
    assert_eq!(service.ended().await.0, Some(0));
    let gone = output(&here, &["healthcheck"]).await;
    assert_eq!(gone.status.code(), Some(1));
    assert!(told(&gone)[0].contains("/health cannot be reached: "), "{:?}", told(&gone));
    // Another server, which answers every path.
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = other.local_addr().unwrap().port().to_string();
    let here = [("HEALTH_PORT", &*port)];
    let page = async {
        let (mut asked, _) = other.accept().await.unwrap();
        asked.write_all(b"HTTP/1.1 200 OK\r\n\r\n<html>").await.unwrap();
        asked.shutdown().await.unwrap();
        asked.read_to_end(&mut Vec::new()).await.ok();
    };
    let (_, another) = tokio::join!(page, output(&here, &["healthcheck"]));
    assert_eq!(another.status.code(), Some(1));
    assert!(told(&another)[0].contains("is a page of another server"), "{:?}", told(&another));
    let unknown = output(&[("HEALTH_PORT", "0")], &["healthcheck"]).await;
    assert_eq!(unknown.status.code(), Some(78), "{:?}", told(&unknown));
}

#[tokio::test]
async fn g7_a_connection_that_says_nothing_does_not_keep_others_out() {
    let redis = redis().await;
    let simulator = Simulator::start(&[]).await;
    let service = Service::start(&redis.url(), &simulator.ws_url).await;
    let mut idle = Vec::new();
    for _ in 0..60 {
        idle.push(TcpStream::connect(&service.health).await.unwrap());
    }
    assert!(get(&service.health, "/health").await.starts_with("HTTP/1.1 200"));
    // An endless head is cut off, not stored.
    let mut endless = TcpStream::connect(&service.health).await.unwrap();
    endless.write_all(b"GET /health HTTP/1.1\r\nX: ").await.unwrap();
    let chunk = [b'x'; 4096];
    let mut sent = 0;
    while sent < 1 << 20 && endless.write_all(&chunk).await.is_ok() {
        sent += chunk.len();
        tokio::task::yield_now().await;
    }
    let mut reply = Vec::new();
    drop(timeout(PATIENCE, endless.read_to_end(&mut reply)).await.unwrap());
    assert!(
        reply.is_empty() || reply.starts_with(b"HTTP/1.1 431"),
        "{}",
        String::from_utf8_lossy(&reply)
    );
}

#[tokio::test]
async fn sigterm_ends_it_in_time_although_redis_is_away() {
    let mut redis = redis().await;
    let simulator = Simulator::start(&["--block-time-ms", "100"]).await;
    let service = Service::start(&redis.url(), &simulator.ws_url).await;
    service.until_ready().await;
    redis.kill();
    let reply =
        service.until(&service.health, "/ready", |reply| reply.starts_with("HTTP/1.1 503")).await;
    assert!(reply.contains("{\"chain\":null,\"why\":\"Redis"), "{reply}");
    assert!(get(&service.health, "/health").await.starts_with("HTTP/1.1 200"));
    signal(&service.child, "-TERM").await;
    let (code, took) = service.ended().await;
    assert_eq!(code, Some(0));
    assert!(took < EXIT, "{took:?}");
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let redis = redis().await;
    let simulator = Simulator::start(&["--block-time-ms", "20"]).await;
    let mut service = Service::start(&redis.url(), &simulator.ws_url).await;
    service.until_ready().await;
    // Redis accepts data but does not answer: the exit waits for steps on the wire.
    redis.pause().unwrap();
    let waiting = |text: &str| {
        let mut counts =
            text.lines().filter_map(|l| l.strip_prefix("ethhook_queue_blocks{chain=\"local\"} "));
        counts.any(|count| count.parse::<u64>().unwrap() >= 8)
    };
    service.until(&service.metrics, "/metrics", waiting).await;
    signal(&service.child, "-TERM").await;
    loop {
        let line = timeout(PATIENCE, service.stderr.next_line()).await.unwrap().unwrap();
        if line.expect("it logs that it stops").contains("stopping: ") {
            break;
        }
    }
    signal(&service.child, "-INT").await;
    let (code, text) = service.ended_with_text().await;
    assert_eq!(code, Some(0));
    assert!(text.contains("stopped immediately at the second signal"), "{text}");
}

#[tokio::test]
async fn a_signal_ends_it_while_redis_has_not_answered_yet() {
    // A server that accepts connections but never answers.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", mute.local_addr().unwrap());
    let env = [("REDIS_URL", url.as_str()), ("LOCAL_WS_URL", "ws://127.0.0.1:1")];
    let folder = tempfile::tempdir().unwrap();
    let mut child = command(folder.path(), &env, &["ingest"]).spawn().unwrap();
    let asked = timeout(PATIENCE, mute.accept()).await.unwrap().unwrap();
    signal(&child, "-TERM").await;
    assert_eq!(timeout(PATIENCE, child.wait()).await.unwrap().unwrap().code(), Some(0));
    drop(asked);
}

#[tokio::test]
async fn tail_prints_events_and_reset_deletes_them() {
    let redis = redis().await;
    let redis_url = redis.url();
    let simulator = Simulator::start(&["--block-time-ms", "100", "--events-per-block", "5"]).await;
    let service = Service::start(&redis_url, &simulator.ws_url).await;

    let folder = tempfile::tempdir().unwrap();
    let env = [("REDIS_URL", redis_url.as_str())];
    let args = ["tail", "--chain", "LOCAL", "--from", "0"];
    let mut tail = command(folder.path(), &env, &args).spawn().unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    for _ in 0..50 {
        let line = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["chain_id"], 31337, "{line}");
        assert!(event["event_id"].as_str().unwrap().starts_with("event:31337:0x"), "{line}");
        assert!(event["topics"].is_array() && event["removed"].is_boolean(), "{line}");
    }
    // It ends when the reader closes the pipe, as `head` does.
    drop(lines);
    assert_eq!(timeout(PATIENCE, tail.wait()).await.unwrap().unwrap().code(), Some(0));
    let mut tail = command(folder.path(), &env, &["tail"]).spawn().unwrap();
    let mut first = [0; 1];
    timeout(PATIENCE, tail.stdout.as_mut().unwrap().read_exact(&mut first)).await.unwrap().unwrap();
    signal(&tail, "-INT").await;
    assert_eq!(timeout(PATIENCE, tail.wait()).await.unwrap().unwrap().code(), Some(0));

    let reset = ["reset", "--chain", "local"];
    let refused = output(&env, &["reset", "--chain", "local", "--yes"]).await;
    assert_eq!(refused.status.code(), Some(1));
    let told_of = told(&refused).concat();
    assert!(
        told_of.starts_with("ethhook: local: `test` holds the lease for another "),
        "{told_of}"
    );
    assert!(told_of.ends_with(" ms unless it is renewed: stop that process first"), "{told_of}");
    signal(&service.child, "-TERM").await;
    assert_eq!(service.ended().await.0, Some(0));
    let unasked = output(&env, &reset).await;
    assert_eq!(unasked.status.code(), Some(1));
    assert_eq!(
        told(&unasked),
        [
            "ethhook: standard input is not a terminal: pass --yes to delete all of this without confirmation"
        ]
    );
    assert!(String::from_utf8_lossy(&unasked.stdout).contains("events:31337"));
    let mut connection = redis.connection().await.unwrap();
    let count: u64 = redis::cmd("DBSIZE").query_async(&mut connection).await.unwrap();
    assert!(count >= 3, "{count} keys");
    let deleted = output(&env, &["reset", "--chain", "local", "--yes"]).await;
    assert_eq!(deleted.status.code(), Some(0), "{:?}", told(&deleted));
    let left: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.unwrap();
    assert_eq!(left, ["reset:{events:31337}"]);
}

/// G11: keys in paths, queries and user info, a password in Redis' URL, and every level of log.
#[tokio::test]
async fn g11_secrets_are_in_nothing_that_it_writes() {
    const CANARY: &str = "c4n4ry";
    let mut redis = redis().await;
    let mut connection = redis.connection().await.unwrap();
    let user = ["SETUSER", "ingest", "on", ">c4n4ry", "~*", "&*", "+@all"];
    redis::cmd("ACL").arg(&user).exec_async(&mut connection).await.unwrap();
    let redis_url = redis.url().replace("redis://", "redis://ingest:c4n4ry@");
    let simulator = Simulator::start(&["--block-time-ms", "100"]).await;
    let closed = closed_port().await;
    let ws_urls = format!("{}?key=c4n4ry,ws://127.0.0.1:{closed}/c4n4ry", simulator.ws_url);
    let http_urls = format!(
        "{}?key=c4n4ry,http://u:c4n4ry@127.0.0.1:{closed}/c4n4ry",
        simulator.ws_url.replace("ws://", "http://")
    );
    let service = Service::start_with(&[
        ("REDIS_URL", &redis_url),
        ("LOCAL_WS_URL", &ws_urls),
        ("LOCAL_HTTP_URL", &http_urls),
        ("RUST_LOG", "trace"),
    ])
    .await;
    service.until_ready().await;
    let broke = |text: &str| {
        let name = "websocket_reconnects_total{chain=\"local\"} ";
        text.lines().any(|line| line.strip_prefix(name).is_some_and(|count| count != "0"))
    };
    let mut seen = service.until(&service.metrics, "/metrics", broke).await;
    redis.kill();
    let not_ready = |reply: &str| reply.starts_with("HTTP/1.1 503");
    seen += &service.until(&service.health, "/ready", not_ready).await;
    signal(&service.child, "-TERM").await;
    let (code, text) = service.ended_with_text().await;
    assert_eq!(code, Some(0));
    seen += &text;
    assert!(text.contains("\"INFO\""), "nothing was logged:\n{text}");
    let shown: Vec<&str> = seen.lines().filter(|line| line.contains(CANARY)).collect();
    assert!(shown.is_empty(), "{shown:#?}");
}
