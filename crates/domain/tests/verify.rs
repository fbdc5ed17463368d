//! What passes at each level of checking (G6), on one small real block: Ethereum 15537393, the last
//! before the Merge, with one receipt and one log.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use alloy_primitives::{Address, B256, Bloom, b256, keccak256};
use ethhook_domain::block::{Body, Seal};
use ethhook_domain::verify::Verified;
use ethhook_domain::verify::{Check, verify, verify_header, verify_range, without_fetching};
use ethhook_domain::{BlockRef, Filter, Header, Log, Profile, Proof, Receipt};
use serde::Deserialize;

const EMPTY_ROOT: B256 = b256!("56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421");

#[derive(Deserialize)]
struct Recorded {
    block: Header,
    receipts: Vec<Receipt>,
}

fn recorded() -> (Header, Vec<Receipt>) {
    let json = include_str!("data/ethereum-15537393.json");
    let Recorded { block, receipts } = serde_json::from_str(json).unwrap();
    (block, receipts)
}

fn at(level: Proof) -> Profile {
    Profile { verify: level, ..Profile::unknown("test", 1) }
}

fn logs(receipts: Vec<Receipt>) -> Body {
    Body::Logs(receipts.into_iter().flat_map(|r| r.logs).collect())
}

/// The outcome in one word: the proof if it passed, otherwise the failed check.
fn outcome(level: Proof, header: &Header, body: Body) -> &'static str {
    match verify(&at(level), header, body) {
        Ok(verified) => verified.proof.as_str(),
        Err(failure) => failure.check.as_str(),
    }
}

/// Outcomes at `receipts_root`, `bloom` and `structure`.
#[track_caller]
fn check(header: &Header, body: &Body, expected: [&str; 3]) {
    let levels = [Proof::ReceiptsRoot, Proof::Bloom, Proof::Structure];
    assert_eq!(levels.map(|level| outcome(level, header, body.clone())), expected);
}

#[test]
fn the_strongest_proof_is_tried_at_every_level() {
    let (header, receipts) = recorded();
    check(&header, &Body::Receipts(receipts.clone()), ["receipts_root"; 3]);
    check(&header, &logs(receipts), ["unprovable", "bloom", "bloom"]);
}

#[test]
fn a_level_lets_pass_what_it_does_not_ask_for() {
    let (header, mut receipts) = recorded();
    receipts[0].logs[0].data = vec![1].into();
    check(&header, &Body::Receipts(receipts.clone()), ["receipts_root", "bloom", "bloom"]);
    receipts[0].logs[0].topics.clear();
    check(&header, &Body::Receipts(receipts.clone()), ["receipts_root", "bloom", "structure"]);
    check(&header, &logs(receipts.clone()), ["bloom", "bloom", "structure"]);
    receipts[0].logs[0].log_index = 1;
    check(&header, &Body::Receipts(receipts.clone()), ["indices"; 3]);
    receipts[0].logs[0].removed = true;
    check(&header, &logs(receipts), ["removed"; 3]);
}

#[test]
fn an_empty_answer_is_no_lie_but_no_proof_either() {
    let (header, _) = recorded();
    check(&header, &Body::Receipts(Vec::new()), ["empty"; 3]);
    check(&header, &Body::Logs(Vec::new()), ["empty", "empty", "structure"]);

    // A zero bloom: transactions without logs. An empty list of logs is then correct.
    let silent = Header { logs_bloom: Box::default(), ..header };
    check(&silent, &Body::Receipts(Vec::new()), ["empty"; 3]);
    check(&silent, &Body::Logs(Vec::new()), ["unprovable", "bloom", "bloom"]);

    let empty = Header { receipts_root: EMPTY_ROOT, gas_used: 0, ..silent };
    check(&empty, &Body::Receipts(Vec::new()), ["receipts_root"; 3]);
    check(&empty, &Body::Logs(Vec::new()), ["receipts_root"; 3]);

    let set_on_empty = Header { logs_bloom: Box::new(Bloom::repeat_byte(0xff)), ..empty };
    check(&set_on_empty, &Body::Receipts(Vec::new()), ["empty", "empty", "receipts_root"]);
}

#[test]
fn g6_the_root_of_nothing_proves_nothing_where_the_header_is_not_trusted() {
    let (header, _) = recorded();
    let empty = Header { receipts_root: EMPTY_ROOT, logs_bloom: Box::default(), ..header };
    let unknown = Header { seal: Seal::UnknownFields, ..empty };
    check(&unknown, &Body::Logs(Vec::new()), ["receipts_root", "receipts_root", "bloom"]);
    let without_gas = Header { gas_used: 0, ..unknown };
    check(&without_gas, &Body::Receipts(Vec::new()), ["receipts_root", "receipts_root", "bloom"]);
}

#[test]
fn a_header_that_does_not_hash_fails_but_at_structure() {
    let (header, receipts) = recorded();
    let differs = Header { seal: Seal::Differs, ..header.clone() };
    let body = Body::Receipts(receipts.clone());
    check(&differs, &body, ["header_hash", "header_hash", "receipts_root"]);
    assert_eq!(
        verify_header(&at(Proof::Bloom), &differs).unwrap_err().check,
        Check::HeaderHash,
        "also alone"
    );

    let unknown = Header { seal: Seal::UnknownFields, ..header.clone() };
    check(&unknown, &body, ["receipts_root"; 3]);
    let passed = |header| verify(&at(Proof::Structure), header, body.clone()).unwrap();
    assert_eq!(
        [&header, &unknown, &differs].map(|header| passed(header).unhashed),
        [false, true, true]
    );
}

#[test]
fn a_failure_says_what_was_asked_and_what_came() {
    let (header, mut receipts) = recorded();
    receipts[0].block_hash = B256::repeat_byte(7);
    let failure = verify(&at(Proof::Bloom), &header, Body::Receipts(receipts)).unwrap_err();
    let text = failure.to_string();
    assert!(text.starts_with("check `block_hash` failed: receipt 0 is of block 0x0707"), "{text}");
    assert!(text.contains(&header.block.hash.to_string()), "{text}");
}

#[test]
fn old_state_sync_logs_are_kept_and_stand_outside_the_commitments() {
    let (header, mut receipts) = recorded();
    let number = header.block.number.to_be_bytes();
    let hash = keccak256([b"matic-bor-receipt-", &number[..], &header.block.hash[..]].concat());
    let mut sync = receipts[0].clone();
    (sync.tx_hash, sync.tx_index, sync.tx_type, sync.cumulative_gas_used) = (hash, 1, 0, 0);
    (sync.logs[0].tx_hash, sync.logs[0].tx_index, sync.logs[0].log_index) = (hash, 1, 1);
    sync.logs[0].topics = vec![B256::repeat_byte(9)];
    receipts.push(sync);

    let polygon = Profile { state_sync_until: header.block.number + 1, ..at(Proof::ReceiptsRoot) };
    let verified = verify(&polygon, &header, Body::Receipts(receipts.clone())).unwrap();
    assert_eq!((verified.logs.len(), verified.proof), (2, Proof::ReceiptsRoot));
    let by_bloom = Profile { verify: Proof::Bloom, ..polygon.clone() };
    let verified = verify(&by_bloom, &header, logs(receipts.clone())).unwrap();
    assert_eq!((verified.logs.len(), verified.proof), (2, Proof::Bloom));

    // Later, such a receipt is a provider's invention.
    let later = Profile { state_sync_until: header.block.number, ..polygon.clone() };
    let failure = verify(&later, &header, Body::Receipts(receipts.clone())).unwrap_err();
    assert_eq!(failure.check, Check::GasUsed);
    // On any other chain, or with the separate type of PIP-74, it is covered by the header.
    assert_eq!(outcome(Proof::Bloom, &header, Body::Receipts(receipts.clone())), "gas_used");
    assert_eq!(outcome(Proof::Bloom, &header, logs(receipts.clone())), "bloom");
    receipts[1].tx_type = 0x7f;
    receipts[1].cumulative_gas_used = header.gas_used;
    let failure = verify(&polygon, &header, Body::Receipts(receipts)).unwrap_err();
    assert_eq!(failure.check, Check::ReceiptsRoot);
}

#[test]
fn one_false_block_of_a_range_fails_them_all() {
    let (header, receipts) = recorded();
    let log = receipts[0].logs[0].clone();
    let height = header.block.number;
    let at_height = |number: u64, bloom: &Bloom| {
        let hash = keccak256(number.to_be_bytes());
        let block = BlockRef { number, hash, ..header.block };
        Header { block, logs_bloom: Box::new(*bloom), ..header.clone() }
    };
    // A block with the log, one without any, another with the log.
    let headers = [
        header.clone(),
        at_height(height + 1, &Bloom::ZERO),
        at_height(height + 2, &header.logs_bloom),
    ];
    let log_of = |header: &Header| Log {
        block_hash: header.block.hash,
        block_number: header.block.number,
        ..log.clone()
    };
    let range = |logs: &[Log]| {
        let verified = verify_range(&at(Proof::Bloom), &headers, logs.to_vec());
        let counts = |verified: Vec<Verified>| verified.iter().map(|v| v.logs.len()).collect();
        verified.map(counts).map_err(|failure| failure.check)
    };
    let (first, third) = (log_of(&headers[0]), log_of(&headers[2]));
    assert_eq!(range(&[first.clone(), third.clone()]), Ok(vec![1, 0, 1]));
    assert_eq!(range(&[third.clone(), first.clone()]), Ok(vec![1, 0, 1]), "in any order");
    // What fails in one block fails all: the others may lack logs, too.
    assert_eq!(range(std::slice::from_ref(&first)), Err(Check::Empty), "cut short");
    let fork = Log { block_hash: B256::repeat_byte(5), ..third.clone() };
    assert_eq!(range(&[first.clone(), fork]), Err(Check::BlockHash));
    let second = log_of(&headers[1]);
    assert_eq!(range(&[first.clone(), second, third.clone()]), Err(Check::Bloom));
    for stray in [height - 1, height + 3, 0, u64::MAX] {
        let stray = Log { block_number: stray, ..first.clone() };
        assert_eq!(range(&[first.clone(), stray, third.clone()]), Err(Check::BlockHash));
    }
}

#[test]
fn only_a_proven_header_without_anything_needs_no_call() {
    let (header, _) = recorded();
    let profile = Profile { empty_without_transactions: true, ..at(Proof::ReceiptsRoot) };
    let everything = Filter::default().bloom_test();
    let proof = |profile: &Profile, header: &Header| {
        without_fetching(profile, header, &everything).map(|verified| verified.proof)
    };
    let empty = Header {
        transactions_root: EMPTY_ROOT,
        receipts_root: EMPTY_ROOT,
        logs_bloom: Box::default(),
        gas_used: 0,
        ..header.clone()
    };
    assert_eq!(proof(&profile, &empty), Some(Proof::ReceiptsRoot));
    assert_eq!(proof(&at(Proof::ReceiptsRoot), &empty), None, "the profile decides");
    for not_empty in [
        Header { transactions_root: header.transactions_root, ..empty.clone() },
        Header { receipts_root: header.receipts_root, ..empty.clone() },
        Header { logs_bloom: header.logs_bloom.clone(), ..empty.clone() },
        Header { gas_used: 1, ..empty.clone() },
        Header { seal: Seal::UnknownFields, ..empty.clone() },
    ] {
        assert_eq!(proof(&profile, &not_empty), None);
    }
}

#[test]
fn a_bloom_without_room_for_the_filter_needs_no_call() {
    let (header, receipts) = recorded();
    let log = &receipts[0].logs[0];
    let trusted = |verify| Profile { bloom_of_all_logs: true, ..at(verify) };
    let proof = |profile: &Profile, header: &Header, contract, topic| {
        let filter = Filter { contracts: [contract].into(), topics: [topic].into() };
        without_fetching(profile, header, &filter.bloom_test()).map(|verified| verified.proof)
    };
    let (here, topic) = (log.address, log.topics[0]);
    let (elsewhere, other) = (Address::repeat_byte(3), B256::repeat_byte(4));
    for level in [Proof::ReceiptsRoot, Proof::Bloom] {
        let profile = trusted(level);
        assert_eq!(proof(&profile, &header, here, topic), None, "it is there");
        assert_eq!(proof(&profile, &header, elsewhere, topic), Some(Proof::Bloom));
        assert_eq!(proof(&profile, &header, here, other), Some(Proof::Bloom));
        let unknown = Header { seal: Seal::UnknownFields, ..header.clone() };
        assert_eq!(proof(&profile, &unknown, elsewhere, other), None, "the bloom is not proven");
        assert_eq!(proof(&at(level), &header, elsewhere, other), None, "the profile decides");
    }
    assert_eq!(proof(&trusted(Proof::Structure), &header, elsewhere, other), None);
    // Without a filter, only the empty bloom excludes all logs.
    let everything = Filter::default().bloom_test();
    assert!(without_fetching(&trusted(Proof::Bloom), &header, &everything).is_none());
    let bare = Header { logs_bloom: Box::default(), ..header };
    let proof = without_fetching(&trusted(Proof::Bloom), &bare, &everything).map(|v| v.proof);
    assert_eq!(proof, Some(Proof::Bloom));
}

#[test]
fn nodes_that_leave_out_or_null_what_is_optional_are_understood() {
    let json = include_str!("data/ethereum-15537393.json");
    let mut json: serde_json::Value = serde_json::from_str(json).unwrap();
    let receipt = &mut json["receipts"][0];
    receipt["type"] = serde_json::Value::Null;
    receipt["root"] = serde_json::Value::Null;
    let logs = receipt["logs"].take();
    receipt["someFutureField"] = serde_json::json!({ "a": [1, null] });
    let parsed: Receipt = serde_json::from_value(receipt.clone()).unwrap();
    assert_eq!((parsed.tx_type, parsed.root, parsed.logs.len()), (0, None, 0));
    receipt["root"] = "0x".into();
    receipt["logs"] = logs;
    receipt["logs"][0]["removed"] = serde_json::Value::Null;
    let parsed: Receipt = serde_json::from_value(receipt.clone()).unwrap();
    assert_eq!((parsed.root, parsed.logs.len(), parsed.logs[0].removed), (None, 1, false));
    receipt["root"] = "0x1234".into();
    assert!(serde_json::from_value::<Receipt>(receipt.clone()).is_err());
    receipt["root"] = serde_json::Value::Null;
    for wrong in ["0x", "1", "+1", "0x+1", "0x10000000000000000", "0xg"] {
        receipt["transactionIndex"] = wrong.into();
        assert!(serde_json::from_value::<Receipt>(receipt.clone()).is_err(), "{wrong}");
    }
}

#[test]
fn gas_is_checked_also_where_the_root_is_not() {
    let (header, mut receipts) = recorded();
    receipts[0].cumulative_gas_used += 1;
    check(&header, &Body::Receipts(receipts.clone()), ["gas_used"; 3]);
    // Two receipts whose cumulative gas decreases to the header's value.
    let mut second = receipts[0].clone();
    (second.tx_index, second.cumulative_gas_used) = (1, header.gas_used);
    second.logs.clear();
    receipts.push(second);
    check(&header, &Body::Receipts(receipts.clone()), ["gas_used"; 3]);
    receipts[0].cumulative_gas_used = 0;
    check(&header, &Body::Receipts(receipts), ["receipts_root", "bloom", "bloom"]);
}

#[test]
fn logs_alone_must_agree_on_their_transactions() {
    let (header, receipts) = recorded();
    let log = receipts[0].logs[0].clone();
    let with = |tx_index, tx_hash| {
        let next = Log { log_index: 1, tx_index, tx_hash, ..log.clone() };
        outcome(Proof::Structure, &header, Body::Logs(vec![log.clone(), next]))
    };
    let other = B256::repeat_byte(1);
    assert_eq!(with(0, log.tx_hash), "bloom");
    assert_eq!(with(2, other), "bloom");
    assert_eq!(with(0, other), "indices", "one place, two transactions");
    assert_eq!(with(1, log.tx_hash), "indices", "one transaction, two places");
    let back = Log { tx_index: 1, ..log.clone() };
    let first = Log { log_index: 1, tx_hash: other, ..log.clone() };
    assert_eq!(outcome(Proof::Structure, &header, Body::Logs(vec![back, first])), "indices");
}

#[test]
fn whatever_stands_for_a_receipts_bloom_is_no_reason_to_refuse_it() {
    for told in ["null", "true", "7", "-7", "0.5", "[[1]]", r#"{"a":{}}"#, r#""0x""#, r#""bloom""#]
    {
        let text = format!(
            r#"{{"transactionHash":"{0}","transactionIndex":"0x0","blockHash":"{0}",
                "cumulativeGasUsed":"0x1","logsBloom":{told},"logs":[]}}"#,
            B256::ZERO
        );
        let receipt: Receipt =
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{told}: {e}"));
        assert_eq!(receipt.logs_bloom, None, "{told}");
    }
}
