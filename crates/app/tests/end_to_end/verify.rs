//! `ethhook verify`: equality, and every way in which a stream can differ.

use std::process::{Output, Stdio};

use redis::aio::MultiplexedConnection;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use crate::operator::{checker, clear_alarm, done, manual, published, refused};
use crate::rig::{Rig, SETTLE, until};

/// An entry: its ID, and names and values alternating.
type Entry = (String, Vec<String>);

async fn entries(redis: &mut MultiplexedConnection) -> Vec<Entry> {
    let mut range = redis::cmd("XRANGE");
    range.arg("events:31337").arg("-").arg("+").query_async(redis).await.unwrap()
}

/// Replaces the stream's entries.
async fn replace(redis: &mut MultiplexedConnection, entries: &[Entry]) {
    let mut pipe = redis::pipe();
    pipe.del("events:31337");
    for (id, fields) in entries {
        pipe.cmd("XADD").arg("events:31337").arg(id).arg(fields);
    }
    let _: Vec<redis::Value> = pipe.query_async(redis).await.unwrap();
}

/// The differences listed for a stream, followed by the summary.
fn differences(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    text.lines().skip(1).map(str::to_owned).collect()
}

#[tokio::test]
async fn verify_finds_every_kind_of_planted_difference() {
    let (chain, _node, mut rig, checker) = published(40).await;
    chain.reorg(3, 4, ethhook_simulator::Contents::Fresh);
    checker.settle_and_check(SETTLE).await.unwrap();
    let verify = ["verify", "--chain", "local", "--from", "1", "--to", "41"];
    let same = "No differences: 41 blocks with 410 events.\n";
    assert!(done(&rig.command(&verify).await).ends_with(same), "while the ingestor runs");
    let told = done(&rig.command(&["verify", "--chain", "local"]).await);
    assert!(told.ends_with("No differences: 42 blocks with 410 events.\n"), "none is final yet");
    let told = refused(&rig.command(&["verify", "--chain", "local", "--to", "42"]).await);
    assert!(told.contains("the stream ends with block 41"), "{told}");
    rig.terminate().await;

    let mut redis = rig.redis.connection().await.unwrap();
    let whole = entries(&mut redis).await;
    // Block n has 10 logs and starts at 10 * (n - 1).
    let check = async |redis: &mut MultiplexedConnection, planted: &[Entry], found: &[&str]| {
        replace(redis, planted).await;
        let told = differences(&rig.command(&verify).await);
        assert_eq!(told.len(), found.len() + 2, "{told:#?}");
        for part in found {
            assert!(told.iter().any(|line| line.contains(part)), "{part} in {told:#?}");
        }
        assert!(told[told.len() - 2].contains("rewind") && told[told.len() - 1].contains("final"));
    };
    let mut altered = whole.clone();
    let data = altered[117].1.iter().position(|field| field == "data").unwrap() + 1;
    altered[117].1[data] = "0xbad0".into();
    check(&mut redis, &altered, &["block 12: log 7: data is 0xbad0, the chain has 0x"]).await;

    let mut missing = whole.clone();
    missing.remove(204);
    let found = [
        "the marker does not agree with its entries: says 10",
        "block 21: log 4 is missing in the stream",
    ];
    check(&mut redis, &missing, &found).await;

    let mut extra = whole.clone();
    let (ms, seq) = extra.last().unwrap().0.split_once('-').unwrap();
    let behind_all = format!("{ms}-{}", seq.parse::<u64>().unwrap() + 1);
    extra.push((behind_all.clone(), whole[55].1.clone()));
    let found = format!("at {behind_all}: the entry belongs to no marker: new log 5 of block 6");
    check(&mut redis, &extra, &[&found]).await;

    let mut foreign = whole.clone();
    let nonsense = vec!["foo".to_owned(), "bar".to_owned()];
    let ms = |entry: &Entry| entry.0.split_once('-').unwrap().0.to_owned();
    let last_of_its_ms = whole.windows(2).position(|pair| ms(&pair[0]) != ms(&pair[1])).unwrap();
    let between = format!("{}-999", ms(&whole[last_of_its_ms]));
    foreign.insert(last_of_its_ms + 1, (between.clone(), nonsense.clone()));
    foreign.push((behind_all.clone(), nonsense));
    let said = "the entry is not an event of this program: field `chain_id` is missing";
    let found = [&between, &behind_all].map(|id| format!("at {id}: {said}"));
    check(&mut redis, &foreign, &found.each_ref().map(String::as_str)).await;

    let mut swapped = whole.clone();
    let fields = std::mem::replace(&mut swapped[301].1, whole[302].1.clone());
    swapped[302].1 = fields;
    let found =
        ["in the wrong order: ", "log 1 is missing", "log 1 is in the stream but not in the chain"];
    check(&mut redis, &swapped, &found).await;

    // The chain is not read outside the range, but the stream is replayed.
    replace(&mut redis, &altered).await;
    let beside = ["verify", "--chain", "local", "--from", "13", "--to", "30"];
    assert!(
        done(&rig.command(&beside).await).contains("No differences: 18 blocks with 180 events.")
    );
    replace(&mut redis, &whole).await;
    assert!(done(&rig.command(&verify).await).ends_with(same));
    rig.set("LOCAL_TOPICS", format!("0x{}", "ab".repeat(32)));
    let told = rig.command(&verify).await;
    assert!(refused(&told).contains("there is nothing to compare: configure the filter"));
    rig.unset("LOCAL_TOPICS");
}

#[tokio::test]
async fn a_rewind_mends_altered_entries_and_says_that_it_cannot_mend_missing_ones() {
    let (_chain, _node, mut rig, checker) = published(20).await;
    rig.terminate().await;
    let verify = ["verify", "--chain", "local", "--from", "1", "--to", "20"];
    let rewind = ["rewind", "--chain", "local", "--to", "11", "--yes"];
    let mut redis = rig.redis.connection().await.unwrap();
    let mut altered = entries(&mut redis).await;
    let last = &mut altered.last_mut().unwrap().1;
    let data = last.iter().position(|field| field == "data").unwrap() + 1;
    last[data] = "0xbad0".into();
    replace(&mut redis, &altered).await;
    assert!(differences(&rig.command(&verify).await)[0].contains("data is 0xbad0"));
    done(&rig.command(&rewind).await);
    rig.start();
    checker.settle(SETTLE).await.unwrap();
    let same = "No differences: 20 blocks with 200 events.\n";
    assert!(done(&rig.command(&verify).await).ends_with(same), "mended");
    rig.terminate().await;
    let mut move_cursor = async |by| {
        let mut add = redis::cmd("HINCRBY");
        add.arg("cursor:{events:31337}").arg("seq").arg(by).exec_async(&mut redis).await.unwrap();
    };
    move_cursor(1).await;
    let told = differences(&rig.command(&verify).await);
    assert!(told[0].contains("markers are missing at the end"), "{told:?}");
    move_cursor(-1).await;

    let mut missing = entries(&mut redis).await;
    missing.pop();
    replace(&mut redis, &missing).await;
    let told = refused(&rig.command(&rewind).await);
    assert!(told.contains("has 10 entries by its marker, the stream holds 9"), "{told}");
    assert!(told.contains("ethhook reset"), "{told}");
}

/// On a terminal (created by `script`), with a node so slow that its socket is cut while the bar is
/// drawn.
#[tokio::test]
async fn a_log_line_takes_the_progress_bar_out_of_its_way() {
    let (_chain, node, rig, _checker) = published(150).await;
    let verify =
        format!("{} verify --chain local --from 1 --to 150", env!("CARGO_BIN_EXE_ethhook"));
    let env = [("REDIS_URL", rig.redis.url()), ("LOCAL_WS_URL", node.ws_url(31337))];
    let more = [("LOCAL_RPS", "100"), ("TERM", "xterm"), ("PATH", "/usr/bin:/bin")];
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--command", &verify, "/dev/null"])
        .env_clear()
        .envs(env.into_iter().chain(more.map(|(name, value)| (name, value.to_owned()))))
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut shown, mut is_cut) = (Vec::new(), false);
    let mut output = child.stdout.take().unwrap();
    while tokio::time::timeout(SETTLE, output.read_buf(&mut shown)).await.unwrap().unwrap() > 0 {
        if !is_cut && String::from_utf8_lossy(&shown).contains(" of 150 blocks") {
            is_cut = true;
            node.kill_connections();
        }
    }
    assert!(child.wait().await.unwrap().success());
    let shown = String::from_utf8_lossy(&shown);
    assert!(shown.contains("No differences: 150 blocks"), "{shown}");
    let lines = shown.split(['\n', '\r']).flat_map(|line| line.split("\x1b[2K"));
    let lost: Vec<_> = lines.filter(|line| line.contains("WebSocket lost")).collect();
    assert!(!lost.is_empty(), "no log line: {shown}");
    assert!(lost.iter().all(|line| !line.contains(" of 150 blocks")), "{lost:?}");
}

/// A long chain: final blocks are compared and dropped on the way, and skipped blocks are not
/// compared.
#[tokio::test]
async fn verify_reads_a_long_stream_with_a_gap_to_its_final_block() {
    let (chain, node, mut rig) = manual().await;
    final_after_four(&rig);
    rig.set("LOCAL_WS_URL", node.ws_url(31337));
    rig.start();
    chain.mine(20);
    let checker = checker(&rig, &node).await;
    checker.settle(SETTLE).await.unwrap();
    rig.terminate().await;
    chain.mine(30);
    done(&rig.command(&["skip", "--chain", "local", "--to", "50", "--yes"]).await);
    chain.mine(1_100);
    rig.start();
    checker.settle(SETTLE).await.unwrap();
    let finalized = async || checker.cursor().await.unwrap().unwrap().finalized_number;
    until("a finalized block", async || finalized().await >= 1_000).await;
    rig.terminate().await; // it moves no more
    let finalized = finalized().await;
    let told = done(&rig.command(&["verify", "--chain", "local"]).await);
    let (first, blocks) = (0, finalized + 1 - 30);
    assert!(told.contains(&format!("blocks {first} to {finalized}")), "{told}");
    assert!(
        told.contains(&format!(
            "No differences: {blocks} blocks with {} events",
            10 * (blocks - 1)
        ))
    );
}

/// Makes blocks of the chain `local` final after four more.
pub(crate) fn final_after_four<R>(rig: &Rig<R>) {
    let toml = "[chains.local]\nblock_time_ms = 100\nfinality_depth = 4\n";
    rig.write_toml(toml).unwrap();
}

#[tokio::test]
async fn verify_compares_what_a_rewind_published_under_the_present_filter() {
    let (_chain, node, mut rig, _checker) = published(20).await;
    rig.terminate().await;
    let mut redis = rig.redis.connection().await.unwrap();
    let (_, fields) = entries(&mut redis).await.swap_remove(5);
    let contract = fields.iter().position(|field| field == "contract").unwrap() + 1;
    rig.set("LOCAL_CONTRACTS", &fields[contract]);
    done(&rig.command(&["rewind", "--chain", "local", "--to", "10", "--yes"]).await);
    rig.start();
    let checker = checker(&rig, &node).await;
    until("block 20", async || checker.cursor().await.unwrap().is_some_and(|c| c.number == 20))
        .await;
    rig.terminate().await;
    let verify = async |from| {
        rig.command(&["verify", "--chain", "local", "--from", from, "--to", "20"]).await
    };
    assert!(done(&verify("11").await).contains("No differences: 10 blocks"));
    // The rest of the range is compared nevertheless.
    let told = done(&verify("8").await);
    assert!(
        told.contains("3 of these blocks were published with another filter (LOCAL_CONTRACTS,")
    );
    assert!(told.contains("No differences: 10 blocks"), "{told}");
    let mut all = entries(&mut redis).await;
    all.pop();
    replace(&mut redis, &all).await;
    let told = differences(&verify("8").await);
    assert!(told[0].contains("the marker does not agree with its entries"), "{told:?}");
}

#[tokio::test]
async fn verify_tells_an_operators_order_from_a_difference() {
    let (chain, node, mut rig) = manual().await;
    // The finalized block is requested once the head is reached; with this block time, again after
    // minutes.
    rig.write_toml("[chains.local]\nblock_time_ms = 12000\n").unwrap();
    chain.set_finalized(530);
    chain.mine(600);
    rig.start();
    let checker = checker(&rig, &node).await;
    checker.settle_and_check(SETTLE).await.unwrap();
    // More blocks than are read at once: those before the order are compared before the order is
    // read.
    let finalized = async || checker.cursor().await.unwrap().unwrap().finalized_number;
    until("finality", async || finalized().await >= 530).await;
    chain.mine(300);
    checker.settle_and_check(SETTLE).await.unwrap();
    chain.reorg(420, 430, ethhook_simulator::Contents::Fresh);
    rig.wait_for("ready", |status, body| status == 503 && body.contains("alarm")).await;
    clear_alarm(&rig, "local").await;
    checker.settle(SETTLE).await.unwrap();
    let told =
        done(&rig.command(&["verify", "--chain", "local", "--from", "0", "--to", "910"]).await);
    assert!(told.contains("An operator moved finality back to block 480"), "{told}");
    assert!(told.ends_with("No differences: 911 blocks with 9100 events.\n"), "{told}");
    rig.terminate().await;
}

#[tokio::test]
async fn verify_says_that_retention_has_overtaken_it() {
    let (chain, node, mut rig) = manual().await;
    chain.set_finalized(600);
    chain.mine(1_100);
    rig.start();
    let checker = checker(&rig, &node).await;
    let cursor = async || checker.cursor().await.unwrap();
    until("finality", async || cursor().await.is_some_and(|c| c.finalized_number > 0)).await;
    chain.mine(300);
    until("the tip", async || cursor().await.is_some_and(|c| c.number == 1_400)).await;
    rig.terminate().await;
    let mut redis = rig.redis.connection().await.unwrap();
    // Final blocks are compared, at this rate, before the rest is read.
    rig.set("LOCAL_RPS", 100);
    let verify = ["verify", "--chain", "local", "--to", "1400"];
    let asked = chain.stats().requests("eth_getBlockReceipts");
    let overtake = async {
        let mut command = redis::cmd("XTRIM");
        command.arg("blocks:{events:31337}").arg("MAXLEN").arg(50);
        let compares = || chain.stats().requests("eth_getBlockReceipts") > asked;
        until("it to compare", async || compares()).await;
        let _: u64 = command.query_async(&mut redis).await.unwrap();
    };
    let (told, ()) = tokio::join!(rig.command(&verify), overtake);
    let told = refused(&told);
    assert!(
        told.contains("retention has removed entries that were to be compared, at block"),
        "{told}"
    );
}
