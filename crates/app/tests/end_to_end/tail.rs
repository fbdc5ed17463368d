//! `ethhook tail` and `ethhook groups` on streams written by the tests.

use std::io::Read as _;
use std::process::Stdio;

use ethhook_testkit::chain_data;
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::operator::{done, published, refused};
use crate::rig::{Rig, SETTLE, until};

/// The first `count` lines that `ethhook` prints with these arguments.
async fn lines(rig: &Rig, arguments: &[&str], count: usize) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_ethhook"))
        .args(arguments)
        .env_clear()
        .env("REDIS_URL", rig.redis.url())
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let read = async {
        let mut lines = Vec::new();
        while lines.len() < count {
            let line = out.next_line().await.unwrap().expect("it ended too early");
            lines.push(serde_json::from_str(&line).unwrap());
        }
        lines
    };
    timeout(SETTLE, read).await.unwrap()
}

/// Recorded logs, and how others decoded them.
fn recorded() -> Option<(Vec<Value>, Value)> {
    let dir = chain_data::dir()?;
    let file = std::fs::File::open(dir.join("decoded_expected.jsonl.gz")).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    let logs = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let abis = std::fs::read_to_string(dir.join("decoded_abis.json")).unwrap();
    Some((logs, serde_json::from_str(&abis).unwrap()))
}

/// Adds logs to the stream of the chain `local` in the ingestor's format.
async fn publish(redis: &mut MultiplexedConnection, logs: &[Value]) {
    for logs in logs.chunks(500) {
        let mut pipe = redis::pipe();
        for log in logs {
            let text = |name: &str| log[name].as_str().unwrap().to_owned();
            pipe.cmd("XADD").arg("events:31337").arg("*").arg(&[
                ("chain_id", "31337".to_owned()),
                ("block_number", log["blockNumber"].to_string()),
                ("block_hash", text("blockHash")),
                ("tx_hash", text("transactionHash")),
                ("tx_index", "0".to_owned()),
                ("log_index", log["logIndex"].to_string()),
                ("contract", text("address")),
                ("topics", log["topics"].to_string()),
                ("data", text("data")),
                ("timestamp", "1".to_owned()),
                ("removed", "false".to_owned()),
            ]);
        }
        let _: Vec<redis::Value> = pipe.query_async(redis).await.unwrap();
    }
}

#[tokio::test]
async fn tail_decodes_4127_recorded_logs_as_others_did() {
    let Some((logs, abis)) = recorded() else { return };
    assert_eq!(logs.len(), 4_127);
    let rig = Rig::new().await;
    publish(&mut rig.redis.connection().await.unwrap(), &logs).await;
    let folder = tempfile::tempdir().unwrap();
    let items: Vec<_> = abis.as_array().unwrap().iter().map(|entry| &entry["abi"]).collect();
    let file = folder.path().join("abi.json");
    // In the form of a compiler artifact.
    std::fs::write(&file, json!({ "abi": items, "bytecode": "0x__$unlinked$__" }).to_string())
        .unwrap();
    let file = file.to_str().unwrap();
    let tail = ["tail", "--chain", "local", "--from", "0"];
    let all = lines(&rig, &[&tail[..], &["--abi", file]].concat(), logs.len()).await;
    for (line, log) in all.iter().zip(&logs) {
        assert_eq!(line["decoded"]["signature"], log["event"], "{line}");
        assert_eq!(line["decoded"]["args"], log["args"], "{log}");
    }
    // Without the file, only the events of the three standards are named.
    let built_in = lines(&rig, &tail, logs.len()).await;
    let standards = ["ERC-20", "ERC-721", "ERC-721/1155", "ERC-1155"];
    for (line, log) in built_in.iter().zip(&logs) {
        if standards.contains(&log["standard"].as_str().unwrap()) {
            assert_eq!(line["decoded"]["args"], log["args"], "{log}");
        } else {
            assert!(line["decoded"].is_null(), "{line}");
        }
    }
    // By name, by signature, by topic and by contract.
    let is = |log: &&Value, name: &str| log["event"].as_str().unwrap().starts_with(name);
    let count = |name: &str| logs.iter().filter(|log| is(log, name)).count();
    for (filter, name) in [
        (["--event", "Transfer"], "Transfer("),
        (["--event", "Sync(uint112, uint112)"], "Sync("),
        (["--topic", abis[24]["topic0"].as_str().unwrap()], "Swap(address,address,int256"),
    ] {
        let found = lines(&rig, &[&tail[..], &filter].concat(), count(name)).await;
        assert!(found.iter().all(|line| {
            let topics = |log: &Value, field: &str| log[field][0] == line["topics"][0];
            logs.iter().filter(|log| is(log, name)).any(|log| topics(log, "topics"))
        }));
    }
    let contract = logs[0]["address"].as_str().unwrap();
    let of_contract = logs.iter().filter(|log| log["address"] == contract).count();
    let found = lines(&rig, &[&tail[..], &["--contract", contract]].concat(), of_contract).await;
    assert!(found.iter().all(|line| line["contract"] == contract));
    let named = ["tail", "--event", "Swap"];
    let told = refused(&rig.command(&named).await);
    assert!(told.contains("no event Swap is known") && told.contains("URI: give --abi"), "{told}");
    let told = refused(&rig.command(&["tail", "--abi", "nowhere.json"]).await);
    assert!(told.contains("nowhere.json"), "{told}");
}

#[tokio::test]
async fn a_group_begins_with_a_block_is_read_and_tidied_up() {
    let (chain, _node, rig, checker) = published(30).await;
    chain.reorg(2, 3, ethhook_simulator::Contents::Fresh);
    checker.settle_and_check(SETTLE).await.unwrap();
    let create = async |group: &str, from: &str| {
        let create = ["groups", "create", "--chain", "local", "--group", group, "--from", from];
        rig.command(&create).await
    };
    done(&create("readers", "21").await);
    let told = refused(&create("readers", "$").await);
    assert!(told.contains("group `readers` already exists"), "{told}");
    let told = refused(&create("late", "99").await);
    assert!(told.contains("block 99 is not published yet"), "{told}");
    let told = refused(&create("late", "1764294000000000").await);
    assert!(told.contains("is after the stream's last entry"), "{told}");
    assert_eq!(create("wrong", "yesterday").await.status.code(), Some(2));
    let time = chain.block(25).unwrap().timestamp();
    let time = jiff::Timestamp::from_second(time.try_into().unwrap()).unwrap().to_string();
    done(&create("timed", &time).await);

    let list = ["groups", "list", "--chain", "local", "--json"];
    let listed = async || -> Vec<Value> {
        let text = done(&rig.command(&list).await);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let mut redis = rig.redis.connection().await.unwrap();
    let mut range = redis::cmd("XRANGE");
    range.arg("events:31337").arg("-").arg("+").arg("COUNT").arg(9);
    let early: Vec<(String, redis::Value)> = range.query_async(&mut redis).await.unwrap();
    // Redis takes any bytes as a name.
    let raw: [&[u8]; 4] = [b"CREATE", b"events:31337", b"raw\xff", early[8].0.as_bytes()];
    redis::cmd("XGROUP").arg(&raw).exec_async(&mut redis).await.unwrap();
    let groups = listed().await;
    // After block 20 there are blocks 21 to 31, and two blocks that were added and taken back: 11 *
    // 10 + 40. For a group not created by `groups create`, Redis cannot tell the lag (`XINFO
    // GROUPS`).
    let behind: Vec<_> = groups.iter().map(|g| (&g["group"], &g["behind"])).collect();
    let known = [(&json!("raw\u{fffd}"), &Value::Null), (&json!("readers"), &json!(150))];
    assert_eq!(behind, [&known[..], &[(&json!("timed"), &json!(110))]].concat());
    let tail = ["tail", "--chain", "local", "--group", "readers"];
    let first = lines(&rig, &tail, 150).await;
    assert_eq!(first[0]["block_number"], 21);
    let from_block = lines(&rig, &["tail", "--chain", "local", "--from", "21"], 150).await;
    assert_eq!(first, from_block);
    let told = refused(&rig.command(&["tail", "--chain", "local", "--group", "none"]).await);
    assert!(told.contains("no group `none`") && told.contains("groups create"), "{told}");

    let mut read = async |consumer: &str| {
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg("timed").arg(consumer).arg("COUNT").arg(3);
        read.arg("STREAMS").arg("events:31337").arg(">");
        read.exec_async(&mut redis).await.unwrap();
    };
    read("holds").await;
    let idle = ["CREATECONSUMER", "events:31337", "timed", "gone"];
    redis::cmd("XGROUP").arg(&idle).exec_async(&mut redis).await.unwrap();
    let prune = ["groups", "prune", "--chain", "local", "--group", "timed", "--idle-minutes"];
    let told = done(&rig.command(&[&prune[..], &["60"]].concat()).await);
    assert_eq!(told, "No consumer was removed.\n");
    let told = done(&rig.command(&[&prune[..], &["0"]].concat()).await);
    assert!(told.starts_with("Removed: gone.\nholds is kept: it has 3 pending entries"), "{told}");
    let groups = listed().await;
    assert_eq!(groups[2]["consumers"][0]["name"], "holds");
    assert_eq!((&groups[2]["pending"], &groups[2]["behind"]), (&json!(3), &json!(110)));
    let text = done(&rig.command(&["groups", "list"]).await);
    assert!(text.contains("local timed: 110 entries to read or acknowledge, 3 of them pending"));
    assert!(
        text.contains("local raw\u{fffd}: entries to read that Redis has not counted, 0 of"),
        "{text}"
    );
    // A reader with the name of a dead consumer first receives that one's pending entries.
    let again = ["tail", "--chain", "local", "--group", "timed", "--consumer", "holds"];
    assert_eq!(lines(&rig, &again, 110).await.len(), 110);

    let delete = ["groups", "delete", "--chain", "local", "--group", "timed"];
    let told = refused(&rig.command(&delete).await);
    assert!(told.contains("--yes"), "{told}");
    assert_eq!(listed().await.len(), 3);
    let told = done(&rig.command(&[&delete[..], &["--yes"]].concat()).await);
    assert!(told.starts_with("local timed: ") && told.ends_with("Deleted.\n"), "{told}");
    assert_eq!(listed().await.len(), 2);
    let told = refused(&rig.command(&[&delete[..], &["--yes"]].concat()).await);
    assert!(told.contains("no group `timed`"), "{told}");
}

#[tokio::test]
async fn a_full_disk_is_not_a_reader_that_is_gone() {
    let (_chain, _node, rig, _checker) = published(3).await;
    let tail = Command::new(env!("CARGO_BIN_EXE_ethhook"))
        .args(["tail", "--chain", "local", "--from", "0"])
        .env_clear()
        .env("REDIS_URL", rig.redis.url())
        .stdin(Stdio::null())
        .stdout(std::fs::File::create("/dev/full").unwrap())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let ended = timeout(SETTLE, tail.wait_with_output()).await.unwrap().unwrap();
    assert!(refused(&ended).contains("standard output cannot be written"), "{ended:?}");
}

#[tokio::test]
async fn an_entry_that_somebody_else_added_is_reported_and_passed_over() {
    let (chain, _node, rig, checker) = published(2).await;
    let mut redis = rig.redis.connection().await.unwrap();
    let add = ["events:31337", "*", "foo", "bar"];
    let foreign: String = redis::cmd("XADD").arg(&add).query_async(&mut redis).await.unwrap();
    chain.mine(1);
    let is_published = async || checker.cursor().await.unwrap().unwrap().number == 3;
    until("block 3", is_published).await;
    let create = ["groups", "create", "--chain", "local", "--group", "g", "--from", "0"];
    done(&rig.command(&create).await);
    let mut tail = Command::new(env!("CARGO_BIN_EXE_ethhook"))
        .args(["tail", "--chain", "local", "--group", "g"])
        .env_clear()
        .env("REDIS_URL", rig.redis.url())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut out = BufReader::new(tail.stdout.take().unwrap()).lines();
    for index in 0..30 {
        let line = timeout(SETTLE, out.next_line()).await.unwrap().unwrap().unwrap();
        let event: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["block_number"], index / 10 + 1);
    }
    let list = ["groups", "list", "--chain", "local", "--json"];
    let is_done = async || done(&rig.command(&list).await).contains(r#""behind":0"#);
    until("all is acknowledged", is_done).await;
    tail.kill().await.unwrap();
    let told = tail.wait_with_output().await.unwrap().stderr;
    let told = String::from_utf8(told).unwrap();
    assert!(told.contains("not an event") && told.contains(&foreign), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
}
