//! The checks (G6) on real blocks: all blocks pass, and no alteration of one passes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use alloy_primitives::{B256, Bloom, BloomInput, keccak256};
use ethhook_domain::block::{Body, Seal};
use ethhook_domain::verify::{Check, verify, verify_header};
use ethhook_domain::{Header, Log, Profile, Proof, Receipt};
use ethhook_testkit::chain_data::{self, RecordedBlock};
use serde_json::{Value, json};

mod alterations;

use alterations::{Alteration, LOG_ALTERATIONS, Place, RECEIPT_ALTERATIONS};

/// In a large block only this many receipts and logs are altered, each in every way.
const SAMPLES: usize = 3;

fn profile(chain_id: u64) -> Profile {
    Profile::built_in()
        .into_iter()
        .find(|profile| profile.chain_id == chain_id)
        .unwrap_or_else(|| Profile::unknown("unknown", chain_id))
}

fn strict(chain_id: u64) -> Profile {
    Profile { verify: Proof::ReceiptsRoot, ..profile(chain_id) }
}

fn receipts_of(block: &RecordedBlock) -> Vec<Receipt> {
    match block.body().unwrap() {
        Some(Body::Receipts(receipts)) => receipts,
        _ => panic!("{} has no receipts", block.name),
    }
}

/// Whether this is a receipt that the header does not commit to: an old Polygon state-sync one.
fn is_state_sync(header: &Header, receipt: &Receipt) -> bool {
    let number = header.block.number.to_be_bytes();
    receipt.tx_hash
        == keccak256([b"matic-bor-receipt-", &number[..], &header.block.hash[..]].concat())
}

/// All places in a short list; in a long one only some, including the first and the last.
fn sample(length: usize) -> Vec<usize> {
    if length <= 2 * SAMPLES {
        return (0..length).collect();
    }
    let step = length / SAMPLES;
    let mut picked: BTreeSet<_> = (0..SAMPLES).map(|i| i * step).collect();
    picked.insert(length - 1);
    picked.into_iter().collect()
}

#[test]
fn g6_every_recorded_block_passes_at_receipts_root() {
    let Some(dir) = chain_data::dir() else { return };
    let mut counts: BTreeMap<u64, [usize; 3]> = BTreeMap::new();
    for block in chain_data::blocks(&dir).unwrap() {
        let block = block.unwrap();
        let header = block.header().unwrap();
        assert_eq!(header.seal, Seal::Matches, "{}", block.name);
        let receipts = receipts_of(&block);
        let (profile, count) = (strict(block.chain_id), receipts.len());
        let expected: Vec<Log> = receipts.iter().flat_map(|r| r.logs.clone()).collect();
        let verified = verify(&profile, &header, Body::Receipts(receipts))
            .unwrap_or_else(|e| panic!("{}: {e}", block.name));
        assert_eq!(verified.proof, Proof::ReceiptsRoot);
        assert!(!verified.unhashed);
        assert_eq!(verified.logs, expected, "{}", block.name);

        let total = counts.entry(block.chain_id).or_default();
        total[0] += 1;
        total[1] += count;
        total[2] += expected.len();
    }
    for (chain_id, [blocks, receipts, logs]) in &counts {
        println!("chain {chain_id}: {blocks} blocks, {receipts} receipts, {logs} logs");
    }
    assert_eq!(counts.values().map(|c| c[0]).sum::<usize>(), 89);
    assert_eq!(counts.values().map(|c| c[2]).sum::<usize>(), 35_712);
}

#[test]
fn logs_alone_prove_the_bloom_and_no_more() {
    let Some(dir) = chain_data::dir() else { return };
    let (mut by_bloom, mut empty, mut unseen, mut logs_seen) = (0, 0, 0, 0);
    for block in chain_data::blocks(&dir).unwrap() {
        let block = block.unwrap();
        let header = block.header().unwrap();
        let logs: Vec<Log> = receipts_of(&block).into_iter().flat_map(|r| r.logs).collect();
        let weak = Profile { verify: Proof::Bloom, ..profile(block.chain_id) };
        let verified = verify(&weak, &header, Body::Logs(logs.clone())).unwrap();
        assert_eq!(verified.logs, logs);
        let strict = verify(&strict(block.chain_id), &header, Body::Logs(logs.clone()));
        match verified.proof {
            Proof::Bloom => {
                assert_eq!(strict.unwrap_err().check, Check::Unprovable);
                by_bloom += 1;
            }
            Proof::ReceiptsRoot => {
                strict.unwrap();
                empty += 1;
            }
            Proof::Structure => panic!("{} is proven by nothing", block.name),
        }
        for i in sample(logs.len()) {
            logs_seen += 1;
            unseen += usize::from(verify(&weak, &header, without_log(&logs, i)).is_ok());
        }
    }
    println!("{by_bloom} blocks by bloom, {empty} proven empty");
    println!("a log dropped: unseen by the bloom in {unseen} of {logs_seen} tries");
    assert_eq!(by_bloom + empty, 89);
}

/// README.md and the contract give these figures: why an answer of logs alone is a weak proof.
#[test]
fn most_single_logs_can_be_dropped_without_the_bloom_showing_it() {
    let Some(dir) = chain_data::dir() else { return };
    let (mut unseen, mut all) = (0, 0);
    for block in chain_data::blocks(&dir).unwrap() {
        let logs: Vec<Log> =
            receipts_of(&block.unwrap()).into_iter().flat_map(|r| r.logs).collect();
        let blooms: Vec<Bloom> = logs.iter().map(bloom_of).collect();
        let mut set_by = vec![0_u32; 8 * Bloom::len_bytes()];
        let bits = |bloom: &Bloom| {
            let bloom = *bloom;
            (0..8 * Bloom::len_bytes()).filter(move |bit| bloom[bit / 8] & (1 << (bit % 8)) != 0)
        };
        blooms.iter().flat_map(bits).for_each(|bit| set_by[bit] += 1);
        unseen += blooms.iter().filter(|bloom| bits(bloom).all(|bit| set_by[bit] > 1)).count();
        all += logs.len();
    }
    assert_eq!((unseen, all), (27_352, 35_712));
}

fn bloom_of(log: &Log) -> Bloom {
    let mut bloom = Bloom::default();
    bloom.accrue(BloomInput::Raw(log.address.as_slice()));
    log.topics.iter().for_each(|topic| bloom.accrue(BloomInput::Raw(topic.as_slice())));
    bloom
}

fn without_log(logs: &[Log], i: usize) -> Body {
    let mut logs = logs.to_vec();
    logs.remove(i);
    (0..).zip(&mut logs).for_each(|(index, log)| log.log_index = index);
    Body::Logs(logs)
}

#[test]
fn g6_every_altered_header_field_fails() {
    let Some(dir) = chain_data::dir() else { return };
    let (mut altered, mut dropped) = (0, 0);
    for block in chain_data::blocks(&dir).unwrap() {
        let block = block.unwrap();
        let profile = strict(block.chain_id);
        for field in HEADER_FIELDS {
            let Some(value) = block.block.get(field).filter(|v| !v.is_null()) else { continue };
            let mut json = block.block.clone();
            json[field] = alter_hex(value);
            assert_header_fails(&profile, &json, &format!("{} {field} altered", block.name));
            altered += 1;

            json.as_object_mut().unwrap().remove(field);
            // If a field that every header has is missing, parsing already fails.
            if serde_json::from_value::<Header>(json.clone()).is_ok() {
                let zero = value.as_str().unwrap()[2..].bytes().all(|b| b == b'0');
                if !(zero && (field == "nonce" || field == "mixHash")) {
                    assert_header_fails(&profile, &json, &format!("{} no {field}", block.name));
                }
            }
            dropped += 1;
        }
    }
    println!("{altered} header fields altered, {dropped} dropped: all seen");
    assert!(altered >= 89 * 16);
}

const HEADER_FIELDS: [&str; 24] = [
    "hash",
    "parentHash",
    "sha3Uncles",
    "miner",
    "stateRoot",
    "transactionsRoot",
    "receiptsRoot",
    "logsBloom",
    "difficulty",
    "number",
    "gasLimit",
    "gasUsed",
    "timestamp",
    "extraData",
    "mixHash",
    "nonce",
    "baseFeePerGas",
    "withdrawalsRoot",
    "blobGasUsed",
    "excessBlobGas",
    "parentBeaconBlockRoot",
    "requestsHash",
    "blockAccessListHash",
    "slotNumber",
];

fn assert_header_fails(profile: &Profile, json: &Value, what: &str) {
    let header: Header = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(header.seal, Seal::Differs, "{what}");
    assert_eq!(verify_header(profile, &header).unwrap_err().check, Check::HeaderHash, "{what}");
    let body = Body::Logs(Vec::new());
    assert_eq!(verify(profile, &header, body).unwrap_err().check, Check::HeaderHash, "{what}");
}

/// The same hex text with its last digit changed; `0x` becomes `0x00`.
fn alter_hex(value: &Value) -> Value {
    let text = value.as_str().unwrap();
    let Some(last) = text.strip_prefix("0x").unwrap().chars().last() else { return json!("0x00") };
    let digit = char::from_digit(last.to_digit(16).unwrap() ^ 1, 16).unwrap();
    json!(format!("{}{digit}", &text[..text.len() - 1]))
}

#[test]
fn a_field_we_do_not_know_is_skipped_and_reported() {
    let Some(dir) = chain_data::dir() else { return };
    let block = chain_data::blocks(&dir).unwrap().next().unwrap().unwrap();
    let profile = strict(block.chain_id);
    let mut json = block.block.clone();
    json["hash"] = alter_hex(&json["hash"]);
    json["someFutureRoot"] = Value::Null;
    let header: Header = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(header.seal, Seal::Differs, "a null is no part of the hash");
    json["someFutureRoot"] = json!(B256::ZERO);
    let header: Header = serde_json::from_value(json).unwrap();
    assert_eq!(header.seal, Seal::UnknownFields);
    verify_header(&profile, &header).unwrap();
}

#[derive(Default)]
struct Seen {
    tried: usize,
    by_check: BTreeMap<&'static str, usize>,
}

#[test]
fn g6_every_altered_receipt_and_log_fails() {
    let Some(dir) = chain_data::dir() else { return };
    let blocks: Mutex<Vec<RecordedBlock>> =
        Mutex::new(chain_data::blocks(&dir).unwrap().collect::<Result<_, _>>().unwrap());
    let seen: Mutex<Seen> = Mutex::default();
    let work = || {
        loop {
            let Some(block) = blocks.lock().unwrap().pop() else { return };
            alter_block(&block, &seen);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    let seen = seen.into_inner().unwrap();
    println!("{} alterations of receipts and logs, all seen: {:?}", seen.tried, seen.by_check);
    assert!(seen.tried > 5_000);
}

fn alter_block(block: &RecordedBlock, seen: &Mutex<Seen>) {
    let profile = strict(block.chain_id);
    let header = block.header().unwrap();
    let receipts = receipts_of(block);
    let mut places: Vec<(&[Alteration], Place)> = Vec::new();
    for receipt in sample(receipts.len()) {
        places.push((RECEIPT_ALTERATIONS, Place { receipt, log: 0 }));
    }
    let logs: Vec<Place> = (0..receipts.len())
        .flat_map(|receipt| {
            (0..receipts[receipt].logs.len()).map(move |log| Place { receipt, log })
        })
        .collect();
    places.extend(sample(logs.len()).into_iter().map(|i| (LOG_ALTERATIONS, logs[i])));

    for (alterations, at) in places {
        if is_state_sync(&header, &receipts[at.receipt]) {
            continue;
        }
        for (name, alter) in alterations {
            let mut altered = receipts.clone();
            if alter(&mut altered, at).is_none() {
                continue;
            }
            let result = verify(&profile, &header, Body::Receipts(altered));
            let check = match result {
                Err(failure) => failure.check,
                Ok(_) => panic!(
                    "{}: unseen: {name} at receipt {} log {}",
                    block.name, at.receipt, at.log
                ),
            };
            let mut seen = seen.lock().unwrap();
            seen.tried += 1;
            *seen.by_check.entry(check.as_str()).or_default() += 1;
        }
    }
}

#[test]
fn what_a_receipt_says_of_its_own_bloom_is_only_a_hint() {
    let Some(dir) = chain_data::dir() else { return };
    let mut tried = 0;
    for block in chain_data::blocks(&dir).unwrap() {
        let block = block.unwrap();
        let Some(Body::Receipts(receipts)) = block.body().unwrap() else { continue };
        let header = block.header().unwrap();
        let proof_with = |told: &dyn Fn(usize) -> Option<Box<Bloom>>| {
            let mut receipts = receipts.clone();
            for (i, receipt) in receipts.iter_mut().enumerate() {
                receipt.logs_bloom = told(i);
            }
            verify(&strict(block.chain_id), &header, Body::Receipts(receipts)).unwrap().proof
        };
        let true_one = |i: usize| receipts[i].logs_bloom.clone();
        let false_one = Some(Box::new(Bloom::repeat_byte(0xff)));
        assert!(receipts.iter().all(|receipt| receipt.logs_bloom.is_some()), "{}", block.name);
        assert_eq!(proof_with(&|_| None), Proof::ReceiptsRoot, "{}", block.name);
        assert_eq!(proof_with(&|_| false_one.clone()), Proof::ReceiptsRoot, "{}", block.name);
        let one_is_false = |i| if i == 0 { false_one.clone() } else { true_one(i) };
        assert_eq!(proof_with(&one_is_false), Proof::ReceiptsRoot, "{}", block.name);
        tried += 1;
    }
    assert!(tried > 80, "{tried}");
}

/// The header does not cover Polygon's old state-sync receipts: their content is only as reliable as
/// the node. Only their position and their block can be checked.
#[test]
fn what_cannot_be_seen_of_old_state_sync_logs() {
    let Some(dir) = chain_data::dir() else { return };
    let unseen = [
        "status or root",
        "no status and no root",
        "cumulative gas up",
        "dropped",
        "dropped, renumbered",
        "address",
        "first topic",
        "last topic",
        "topic dropped",
        "topic added",
        "topic order",
        "data",
        "data longer",
        "doubled, renumbered",
        "order, renumbered",
    ];
    let mut found = 0;
    for block in chain_data::blocks(&dir).unwrap() {
        let block = block.unwrap();
        let (profile, receipts) = (strict(block.chain_id), receipts_of(&block));
        let header = block.header().unwrap();
        if !receipts.last().is_some_and(|last| is_state_sync(&header, last)) {
            continue;
        }
        found += 1;
        let at = Place { receipt: receipts.len() - 1, log: 0 };
        let on_receipt = RECEIPT_ALTERATIONS.iter().filter(|a| a.0 != "doubled, renumbered");
        for (name, alter) in on_receipt.chain(LOG_ALTERATIONS.iter().filter(|a| a.0 != "dropped")) {
            let mut altered = receipts.clone();
            if alter(&mut altered, at).is_none() {
                continue;
            }
            let result = verify(&profile, &header, Body::Receipts(altered));
            assert_eq!(result.is_ok(), unseen.contains(name), "{}: {name}: {result:?}", block.name);
        }
        println!("{}: {} state-sync logs", block.name, receipts[at.receipt].logs.len());
    }
    println!("seen by nothing, where it is altered in an old state-sync receipt: {unseen:?}");
    assert_eq!(found, 2);
}

#[test]
fn receipts_without_headers_parse() {
    let Some(dir) = chain_data::dir() else { return };
    let (mut files, mut receipts, mut logs) = (0, 0, 0);
    for block in chain_data::receipts_only(&dir).unwrap() {
        let block = block.unwrap();
        let parsed = receipts_of(&block);
        files += 1;
        receipts += parsed.len();
        logs += parsed.iter().map(|r| r.logs.len()).sum::<usize>();
    }
    println!("{files} files, {receipts} receipts, {logs} logs");
    assert_eq!((files, receipts, logs), (12, 1726, 2814));
}

#[test]
fn the_blocks_of_the_polygon_reorgs_pass_by_their_bloom() {
    let Some(dir) = chain_data::dir() else { return };
    let profile = Profile { verify: Proof::Bloom, ..profile(137) };
    let (mut passed, mut not_asked, mut logs) = (0, 0, 0);
    for block in chain_data::polygon_reorg(&dir).unwrap() {
        let block = block.unwrap();
        let header = block.header().unwrap();
        assert_eq!(header.seal, Seal::Matches, "{}", block.name);
        let Some(body) = block.body().unwrap() else {
            not_asked += 1;
            continue;
        };
        let verified =
            verify(&profile, &header, body).unwrap_or_else(|e| panic!("{}: {e}", block.name));
        assert_ne!(verified.proof, Proof::Structure);
        passed += 1;
        logs += verified.logs.len();
    }
    println!("{passed} blocks, {logs} logs; of {not_asked} no logs were recorded");
    assert_eq!((passed + not_asked, logs), (240, 6789));
}

#[test]
fn an_empty_answer_for_a_block_that_is_not_empty_is_told_apart() {
    let Some(dir) = chain_data::dir() else { return };
    let (mut told, mut empty) = (0, 0);
    for block in chain_data::blocks(&dir).unwrap() {
        let block = block.unwrap();
        let (header, profile) = (block.header().unwrap(), strict(block.chain_id));
        let result = verify(&profile, &header, Body::Receipts(Vec::new()));
        if receipts_of(&block).is_empty() {
            assert_eq!(result.unwrap().proof, Proof::ReceiptsRoot);
            empty += 1;
        } else {
            assert_eq!(result.unwrap_err().check, Check::Empty, "{}", block.name);
            told += 1;
        }
    }
    println!("{told} told apart, {empty} really empty");
    assert_eq!(told + empty, 89);
}
