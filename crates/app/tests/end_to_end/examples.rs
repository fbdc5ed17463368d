//! The consumers in `examples/`, run as by a user: killed midway, next to a dead one, on a stream
//! with reorgs. Their sums must equal the chain's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::LazyLock;
use std::time::Duration;

use alloy_primitives::{B256, U256, b256};
use ethhook_simulator::{Chain, Contents, ManualSpec, Node};
use ethhook_testkit::node_rpc::NodeRpc;
use ethhook_testkit::redis_server::{RedisOptions, RedisServer};
use redis::aio::MultiplexedConnection;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::rig::{Rig, SETTLE, until};

const LOCAL: u64 = 31337;
const EVENTS: &str = "events:31337";
const TRANSFER: B256 = b256!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");
/// Longer than their blocking reads.
const EXIT: Duration = Duration::from_secs(20);

/// Sums by contract, in decimal; zero sums are left out.
type Sums = BTreeMap<String, String>;

#[derive(Debug, Clone, Copy)]
enum Language {
    Python,
    Node,
    Rust,
}

const LANGUAGES: [Language; 3] = [Language::Python, Language::Node, Language::Rust];

fn top() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// A file that `scripts/test.sh` installs under `.tools/examples`.
fn installed(path: &str) -> PathBuf {
    let path = top().join(".tools/examples").join(path);
    assert!(path.exists(), "{} is missing: ./scripts/test.sh installs it", path.display());
    path
}

/// The consumer in Rust, built once; it is separate from the workspace.
static RUST: LazyLock<PathBuf> = LazyLock::new(|| {
    let target = top().join("target/examples");
    let status = std::process::Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--manifest-path"])
        .arg(top().join("examples/rust/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .status()
        .unwrap();
    assert!(status.success(), "examples/rust does not build");
    target.join("debug/ethhook-consumer-example")
});

/// A consumer with its own group, restarted under the same or another name.
struct Reader {
    language: Language,
    finalized: bool,
    group: String,
    lives: u32,
    redis_url: String,
    folder: TempDir,
    process: Option<Child>,
}

impl Reader {
    fn new(language: Language, finalized: bool, redis_url: String) -> Self {
        let folder = TempDir::with_prefix("ethhook-example-").unwrap();
        // Modules are looked up relative to the file that imports them.
        let script = top().join("examples/node/consumer.mjs");
        std::fs::copy(script, folder.path().join("consumer.mjs")).unwrap();
        let modules = folder.path().join("node_modules");
        std::os::unix::fs::symlink(installed("node/node_modules"), modules).unwrap();
        let group = format!("{language:?}{}", if finalized { "-finalized" } else { "" });
        Self { language, finalized, group, lives: 0, redis_url, folder, process: None }
    }

    /// Starts it under its former name, or under another one like a new host.
    async fn start(&mut self, same_name: bool) {
        self.lives += u32::from(!same_name || self.lives == 0);
        self.process = Some(self.command().await.spawn().unwrap());
    }

    async fn command(&self) -> Command {
        let (program, script) = match self.language {
            Language::Python => {
                (installed("python/bin/python"), Some(top().join("examples/python/consumer.py")))
            }
            Language::Node => ("node".into(), Some(self.folder.path().join("consumer.mjs"))),
            Language::Rust => (tokio::task::spawn_blocking(|| RUST.clone()).await.unwrap(), None),
        };
        let mut command = Command::new(program);
        command
            .args(script)
            .args(self.finalized.then_some("--finalized"))
            .env("REDIS_URL", &self.redis_url)
            .env("CHAIN_ID", LOCAL.to_string())
            .env("GROUP", &self.group)
            .env("CONSUMER", format!("life-{}", self.lives))
            .env("CLAIM_IDLE_MS", "500")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn kill(&mut self) {
        self.process.take().unwrap().kill().await.unwrap();
    }

    /// SIGTERM; it must exit on its own with success.
    async fn terminate(&mut self) {
        let mut process = self.process.take().unwrap();
        let pid = process.id().unwrap().to_string();
        assert!(Command::new("kill").arg(pid).status().await.unwrap().success());
        let ended = tokio::time::timeout(EXIT, process.wait()).await;
        assert!(ended.unwrap().unwrap().success(), "{}", self.group);
    }

    fn key(&self) -> String {
        format!("sums:{{{EVENTS}}}:{}", self.group)
    }

    async fn sums(&self, redis: &mut MultiplexedConnection) -> Sums {
        let mut command = redis::cmd("HGETALL");
        let mut sums: Sums = command.arg(self.key()).query_async(redis).await.unwrap();
        sums.retain(|_, sum| sum != "0");
        sums
    }

    /// Delivers entries to a consumer of the group that never acknowledges them.
    async fn deliver_to(&self, name: &str, count: u64, redis: &mut MultiplexedConnection) {
        let create = ["XGROUP", "CREATE", EVENTS, &self.group, "0", "MKSTREAM"].map(str::to_owned);
        let _ = command(&create).exec_async(redis).await; // the group may exist
        let count = count.to_string();
        let read =
            ["XREADGROUP", "GROUP", &self.group, name, "COUNT", &count, "STREAMS", EVENTS, ">"];
        command(&read.map(str::to_owned)).exec_async(redis).await.unwrap();
    }
}

fn command(words: &[String]) -> redis::Cmd {
    let mut command = redis::cmd(&words[0]);
    command.arg(&words[1..]);
    command
}

/// The sums of the transfers of the canonical blocks up to `last`.
async fn expected(node: &NodeRpc, last: u64) -> Sums {
    let mut sums = BTreeMap::<String, U256>::new();
    for number in 0..=last {
        let Some(header) = node.header_by_number(number).await.unwrap() else { break };
        for log in node.logs_of(header.block.hash).await.unwrap() {
            if log.topics.len() == 3 && log.topics[0] == TRANSFER && log.data.len() == 32 {
                *sums.entry(format!("{:#x}", log.address)).or_default() +=
                    U256::from_be_slice(&log.data);
            }
        }
    }
    sums.into_iter()
        .filter(|(_, sum)| !sum.is_zero())
        .map(|(contract, sum)| (contract, sum.to_string()))
        .collect()
}

async fn the_sums_are_the_chains(encoding: &str) {
    let chain = Chain::manual(ManualSpec { events_per_block: 40, ..ManualSpec::new(LOCAL) });
    let node = Node::bind(([127, 0, 0, 1], 0).into(), [chain.clone()]).await.unwrap().spawn();
    let rpc = || NodeRpc::at_url(node.http_url(LOCAL));
    let mut rig = Rig::new().await;
    let toml = "[chains.tiny]\nchain_id = 31337\nblock_time_ms = 100\nfinality_depth = 200\n\
                verify = 'receipts_root'\n";
    rig.write_toml(toml).unwrap();
    rig.set("TINY_WS_URL", node.ws_url(LOCAL)).set("TINY_START_BLOCK", 0);
    rig.set("STREAM_ENCODING", encoding);
    let checker = rig.checker(rpc(), LOCAL).await;
    let mut redis = rig.redis.connection().await.unwrap();
    rig.start();
    chain.mine(40);
    checker.settle(SETTLE).await.unwrap();

    let mut readers: Vec<Reader> = LANGUAGES
        .into_iter()
        .flat_map(|language| [(language, false), (language, true)])
        .map(|(language, finalized)| Reader::new(language, finalized, rig.redis.url()))
        .collect();
    for reader in &mut readers {
        // An earlier consumer received 300 entries and died.
        reader.deliver_to("dead", 300, &mut redis).await;
        reader.start(false).await;
    }
    for round in 0..3 {
        chain.mine(6);
        chain.reorg(5, 6, if round == 1 { Contents::SameTransactions } else { Contents::Fresh });
        for reader in &mut readers {
            // Killed once it has begun: entries are then pending, in the sums, or in between.
            if !reader.finalized {
                until("the sums begin", async || !reader.sums(&mut redis).await.is_empty()).await;
            }
            reader.kill().await;
            chain.mine(1);
            reader.start(round % 2 == 0).await;
        }
    }
    checker.settle_and_check(SETTLE).await.unwrap();

    let head = rpc().block_number().await.unwrap();
    let (all, up_to_final) = (expected(&rpc(), head).await, expected(&rpc(), head - 10).await);
    assert!(all.len() > 10 && all != up_to_final, "too little to tell anything: {all:?}");
    for reader in readers.iter().filter(|reader| reader.finalized) {
        assert_eq!(
            reader.sums(&mut redis).await,
            Sums::new(),
            "{}: nothing is final",
            reader.group
        );
    }
    // After this many blocks, the ingestor asks which one is final.
    chain.set_finalized(head - 10);
    for _ in 0..1_100 {
        chain.mine_events(0);
    }
    for reader in &readers {
        let wanted = if reader.finalized { &up_to_final } else { &all };
        until(&format!("the sums of {}", reader.group), async || {
            reader.sums(&mut redis).await == *wanted
        })
        .await;
    }
    for reader in &mut readers {
        reader.terminate().await;
        let wanted = if reader.finalized { &up_to_final } else { &all };
        assert_eq!(reader.sums(&mut redis).await, *wanted, "{}", reader.group);
    }
    assert_eq!(checker.cursor().await.unwrap().unwrap().finalized_number, head - 10);
}

#[tokio::test]
async fn g2_the_sums_of_the_example_consumers_are_the_chains() {
    the_sums_are_the_chains("fields").await;
}

#[tokio::test]
async fn g2_the_sums_of_the_example_consumers_are_the_chains_when_packed() {
    the_sums_are_the_chains("msgpack").await;
}

#[tokio::test]
async fn a_reader_that_waits_for_redis_stops_when_it_is_told_to() {
    for language in LANGUAGES {
        let mut reader = Reader::new(language, false, "redis://127.0.0.1:1".to_owned());
        let mut process = reader.command().await.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = process.stderr.take().unwrap();
        let mut lines = BufReader::new(stderr).lines();
        let first = tokio::time::timeout(EXIT, lines.next_line()).await.unwrap().unwrap();
        assert!(first.is_some(), "{language:?} says nothing");
        reader.process = Some(process);
        reader.terminate().await;
    }
}

#[tokio::test]
async fn what_retention_took_from_a_reader_is_counted() {
    let redis = RedisServer::spawn(RedisOptions::default()).await.unwrap();
    let mut raw = redis.connection().await.unwrap();
    for id in 1..=4 {
        // Not a transfer, so the consumers only acknowledge it.
        let add = format!(
            "XADD {EVENTS} {id}-0 chain_id 31337 block_number 1 block_hash 0x00 tx_hash 0x00 tx_index 0 \
             log_index {id} contract 0x00 topics [] data 0x timestamp 1 removed false"
        );
        let words: Vec<String> = add.split_whitespace().map(str::to_owned).collect();
        command(&words).exec_async(&mut raw).await.unwrap();
    }
    let mut readers = LANGUAGES.map(|language| Reader::new(language, false, redis.url()));
    for reader in &readers {
        reader.deliver_to("dead", 2, &mut raw).await;
        reader.deliver_to("life-1", 1, &mut raw).await;
    }
    redis::cmd("XDEL").arg(&[EVENTS, "2-0", "3-0"]).exec_async(&mut raw).await.unwrap();
    for reader in &mut readers {
        reader.start(false).await;
        until(&format!("the losses of {}", reader.group), async || {
            let mut lost = redis::cmd("HGET");
            let lost: Option<u64> =
                lost.arg(reader.key()).arg("lost").query_async(&mut raw).await.unwrap();
            let pending: redis::streams::StreamPendingReply = redis::cmd("XPENDING")
                .arg(EVENTS)
                .arg(&reader.group)
                .query_async(&mut raw)
                .await
                .unwrap();
            lost == Some(2) && pending.count() == 0
        })
        .await;
        reader.terminate().await;
    }
}
