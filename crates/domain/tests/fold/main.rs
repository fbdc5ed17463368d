//! Tests of the checker: every inconsistency in a stream must be reported (G1 to G4, G10).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use alloy_primitives::{Address, B256, Bytes};
use ethhook_domain::fold::{Difference, Fold, Problem};
use ethhook_domain::{EntryId, Log, Marker, Op, ProcessedEvent, Proof};
use proptest::prelude::*;

mod streams;

use streams::{CHAIN, Streams, chain, hash, number};

/// A correct stream with two reorgs, one of them there and back, and finality.
const SOUND: &str = "+1a<0a +2a<1a +3a<2a -3a<2a -2a<1a +2b<1a +3b<2b =1a +4b<3b -4b<3b +4c<3b \
                     -4c<3b +4b<3b +5b<4b =3b +6b<5b +7b<6b";
const SOUND_CHAIN: &str = "1a 2b 3b 4b 5b 6b 7b";

/// An ID between this one and any other of [`Streams`].
fn just_after(id: EntryId) -> EntryId {
    EntryId { seq: id.seq * 10 + 5, ..id }
}

#[test]
fn a_sound_stream_is_the_chain() {
    let fold = Streams::of(SOUND).fold();
    assert_eq!(fold.violations(), []);
    assert_eq!(fold.compare(&chain(SOUND_CHAIN)), []);
    assert_eq!(fold.finalized(), Some((3, hash("3b"))));
    let names: Vec<u64> = fold.canonical().iter().map(|b| b.number).collect();
    assert_eq!(names, [1, 2, 3, 4, 5, 6, 7]);
    let events: usize = fold.canonical().iter().map(|b| b.events.len()).sum();
    assert_eq!(events, 1 + 2 + 3 + 1 + 2 + 3);
}

/// The problems that a script of steps must cause, exactly.
#[track_caller]
fn check(script: &str, expected: &[Problem]) {
    let streams = Streams::of(script);
    assert_eq!(
        streams.problems(),
        expected.iter().copied().collect(),
        "{:#?}",
        streams.fold().violations()
    );
}

#[test]
fn g3_steps_in_the_wrong_order_are_reported() {
    use Problem::*;
    check("+1a<0a +3a<2a", &[Parent]);
    check("+1a<0a +2a<1b", &[Parent]);
    check("+1a<0a +2a<1a +2a<1a", &[Parent, Duplicate]);
    check("+1a<0a +2a<1a +3a<2a -2a<1a", &[NotTip]);
    check("+4a<3a +4a<3a", &[Parent, Duplicate]); // a block without logs
    check("+1a<0a +2a<1a -2a<1a -2a<1a", &[NotTip, NotLive]);
    check("+1a<0a +2a<1a -2a<1b", &[TakenBackDiffers]);
    check("+1a<0a +2a<1a =3a", &[Finalized]);
    check("+1a<0a +2a<1a =1b", &[Finalized]);
    check("+1a<0a +2a<1a =2a =1a", &[Finalized]);
    check("+1a<0a +2a<1a =2a =2a =2b", &[Finalized]);
    check("+1a<0a +2a<1a =2a -2a<1a", &[BelowFinalized]);
    // The first block's parent is not checked, but its height is.
    check("+5a<4a -5a<4a +5b<4b +6b<5b", &[]);
    check("+5a<4a -5a<4a +4b<3b", &[Parent]);
}

#[test]
fn an_operators_gap_is_a_fact_and_not_a_fault() {
    let streams = Streams::of("+1a<0a +2a<1a ~9a<2a +10a<9a =5a -10a<9a +10b<9a");
    let fold = streams.fold();
    assert_eq!(fold.violations(), []);
    assert_eq!(fold.compare(&chain("1a 2a 3a 4a 5a 6a 7a 8a 9a 10b")), []);
    assert_eq!(fold.compare(&chain("1a 2a 3a 9a 10a")).len(), 2, "10b for 10a");
    check("+1a<0a +2a<1a ~9a<1a +10a<9a", &[Problem::Parent]);
    check("+1a<0a +2a<1a ~9a<2a +11a<9a", &[Problem::Parent]);
    check("+1a<0a +2a<1a ~8a<2a -8a<2a +3a<2a", &[]);
}

/// Alters a correct stream at every place, and fails with the places where nothing was reported.
#[track_caller]
fn assert_all_reported(places: usize, alter: impl Fn(&mut Streams, usize) -> bool) {
    let sound = Streams::of(SOUND);
    let mut tried = 0;
    for place in 0..places {
        let mut streams = sound.clone();
        if !alter(&mut streams, place) {
            continue;
        }
        tried += 1;
        let fold = streams.fold();
        let differences = fold.compare(&chain(SOUND_CHAIN));
        assert!(!fold.violations().is_empty() || !differences.is_empty(), "unseen at {place}");
    }
    assert!(tried > 3, "tried at {tried} places only");
}

#[test]
fn one_entry_missing_doubled_or_swapped_is_reported() {
    let count = Streams::of(SOUND).entries.len();
    assert_all_reported(count, |streams, i| {
        streams.entries.remove(i);
        true
    });
    assert_all_reported(count, |streams, i| {
        let doubled = streams.entries[i].1.clone();
        let id = just_after(streams.entries[i].0);
        streams.entries.insert(i + 1, (id, doubled));
        true
    });
    assert_all_reported(count - 1, |streams, i| {
        let (a, b) = (streams.entries[i].1.clone(), streams.entries[i + 1].1.clone());
        (streams.entries[i].1, streams.entries[i + 1].1) = (b, a);
        true
    });
}

#[test]
fn an_entry_missing_doubled_or_swapped_is_reported_even_if_its_marker_agrees() {
    let live = |streams: &Streams, marker: usize| {
        let marker = &streams.markers[marker].1;
        marker.events > 1 && marker.op == Op::Add
    };
    let range = |streams: &Streams, marker: usize| {
        let first = streams.markers[marker].1.first_id;
        let at = streams.entries.iter().position(|(id, _)| Some(*id) == first).unwrap();
        (at, at + usize::try_from(streams.markers[marker].1.events).unwrap())
    };
    let count = Streams::of(SOUND).markers.len();
    assert_all_reported(count, |streams, m| {
        let whole = live(streams, m);
        if whole {
            let (from, _) = range(streams, m);
            streams.entries.remove(from);
            streams.markers[m].1.first_id = Some(streams.entries[from].0);
            streams.markers[m].1.events -= 1;
        }
        whole
    });
    assert_all_reported(count, |streams, m| {
        let whole = live(streams, m);
        if whole {
            let (from, to) = range(streams, m);
            let first = streams.entries[from].1.clone();
            streams.entries[to - 1].1 = first;
        }
        whole
    });
    assert_all_reported(count, |streams, m| {
        let whole = live(streams, m);
        if whole {
            let (from, _) = range(streams, m);
            let first = streams.entries[from].1.clone();
            streams.entries[from].1 = streams.entries[from + 1].1.clone();
            streams.entries[from + 1].1 = first;
        }
        whole
    });
}

/// One way to alter an entry's content.
type Alter = fn(&mut ProcessedEvent);

#[test]
fn every_altered_field_of_an_entry_is_reported() {
    let alterations: [Alter; 11] = [
        |e| e.chain_id += 1,
        |e| e.block_number += 1,
        |e| e.block_hash = B256::ZERO,
        |e| e.tx_hash = B256::ZERO,
        |e| e.tx_index += 1,
        |e| e.log_index += 1,
        |e| e.contract = Address::ZERO,
        |e| e.topics.push(B256::ZERO),
        |e| e.data = Bytes::new(),
        |e| e.timestamp += 1,
        |e| e.removed = !e.removed,
    ];
    let count = Streams::of(SOUND).entries.len();
    for alter in alterations {
        assert_all_reported(count, |streams, i| {
            alter(&mut streams.entries[i].1);
            true
        });
    }
}

#[test]
fn a_block_or_a_log_not_taken_back_is_reported() {
    let count = Streams::of(SOUND).markers.len();
    // The marker says that nothing, or one log fewer, was taken back.
    for keep in [0, 1] {
        let mut tried = 0;
        for m in 0..count {
            let mut streams = Streams::of(SOUND);
            let marker = &mut streams.markers[m].1;
            if marker.op != Op::Remove || marker.events <= keep {
                continue;
            }
            let at =
                streams.entries.iter().position(|(id, _)| Some(*id) == marker.first_id).unwrap();
            let taken = usize::try_from(marker.events - keep).unwrap();
            streams.entries.drain(at..at + taken);
            marker.events = keep;
            marker.first_id = (keep > 0).then(|| streams.entries[at].0);
            marker.last_id = streams.entries[at + usize::try_from(keep).unwrap() - 1].0;
            let problems = streams.problems();
            assert!(problems.contains(&Problem::NotTakenBack), "{problems:?}");
            tried += 1;
        }
        assert!(tried > 0, "keeping {keep}");
    }
}

#[test]
fn one_marker_missing_doubled_or_altered_is_reported() {
    let count = Streams::of(SOUND).markers.len();
    assert_all_reported(count, |streams, i| {
        streams.markers.remove(i);
        true
    });
    assert_all_reported(count - 1, |streams, i| {
        streams.markers.swap(i, i + 1);
        true
    });
    // Missing, with no gap in `seq`.
    assert_all_reported(count, |streams, i| {
        let is_finality = streams.markers[i].1.op == Op::Finalized;
        streams.markers.remove(i);
        for (seq, (_, marker)) in (1..).zip(&mut streams.markers) {
            marker.seq = seq;
        }
        !is_finality
    });
    let alterations: [fn(&mut Marker); 6] = [
        |m| m.seq += 1,
        |m| m.number += 1,
        |m| m.hash = B256::ZERO,
        |m| m.events += 1,
        |m| m.first_id = Some(EntryId { ms: 9_999, seq: 0 }),
        |m| m.op = if m.op == Op::Add { Op::Remove } else { Op::Add },
    ];
    for alter in alterations {
        assert_all_reported(count, |streams, i| {
            alter(&mut streams.markers[i].1);
            true
        });
    }
    for last_id in [EntryId::MIN, EntryId { ms: 99_999, seq: 0 }] {
        assert_all_reported(count, |streams, i| {
            let marker = &mut streams.markers[i].1;
            let differs = marker.last_id != last_id;
            marker.last_id = last_id;
            // Only a last marker without entries may have a larger `last_id`.
            differs && marker.events > 0
        });
    }
}

#[test]
fn a_block_that_is_taken_back_with_another_proof_is_reported() {
    let mut streams = Streams::of("+1a<0a +2a<1a -2a<1a");
    let removed = &mut streams.markers[2].1;
    let other = if removed.proof == Proof::Bloom { Proof::ReceiptsRoot } else { Proof::Bloom };
    removed.proof = other;
    assert_eq!(streams.problems(), BTreeSet::from([Problem::TakenBackDiffers]));
}

#[test]
fn an_entry_of_no_marker_is_reported() {
    let count = Streams::of(SOUND).entries.len();
    for i in 0..count {
        let mut streams = Streams::of(SOUND);
        let id = just_after(streams.entries[i].0);
        let foreign = ProcessedEvent { block_hash: B256::ZERO, ..streams.entries[i].1.clone() };
        streams.entries.insert(i + 1, (id, foreign));
        let problems = streams.problems();
        let expected = [Problem::OutsideMarker, Problem::EntryDiffersFromMarker];
        assert!(expected.iter().any(|p| problems.contains(p)), "{problems:?}");
    }
}

#[test]
fn a_log_that_is_live_twice_is_a_duplicate() {
    let mut streams = Streams::of("+1a<0a +2a<1a");
    streams.entries[2].1 = streams.entries[1].1.clone();
    assert_eq!(streams.problems(), BTreeSet::from([Problem::Order, Problem::Duplicate]));
}

#[test]
fn ids_that_redis_would_not_give_are_reported() {
    let mut streams = Streams::of("+1a<0a +4a<3a");
    streams.markers[1].1.parent_hash = Some(hash("1a"));
    streams.markers[1].1.number = 2;
    assert_eq!(streams.problems(), BTreeSet::new());
    streams.markers[1].0 = streams.markers[0].0;
    assert_eq!(streams.problems(), BTreeSet::from([Problem::Id]));

    let streams = Streams::of("+1a<0a");
    let (id, event) = &streams.entries[0];
    let mut fold = Fold::from_start(CHAIN);
    fold.entry(*id, event.clone());
    fold.entry(*id, event.clone());
    assert_eq!(fold.violations()[0].problem, Problem::Id);
}

#[test]
fn differences_name_block_log_and_field() {
    let fold = Streams::of("+1a<0a +2a<1a +3a<2a").fold();
    assert_eq!(
        fold.compare(&chain("1a 2a 3a 4a")),
        [Difference::BlockMissing { number: 4, hash: hash("4a") }]
    );
    assert_eq!(
        fold.compare(&chain("1a 2a")),
        [Difference::BlockUnexpected { number: 3, hash: hash("3a") }]
    );
    assert_eq!(
        fold.compare(&chain("1a 2b 3a")),
        [
            Difference::BlockUnexpected { number: 2, hash: hash("2a") },
            Difference::BlockMissing { number: 2, hash: hash("2b") },
        ]
    );
    let mut expected = chain("1a 2a 3a");
    let log = expected[2].logs.remove(1);
    assert_eq!(fold.compare(&expected), [Difference::LogUnexpected { number: 3, log_index: 1 }]);
    expected[2].logs = vec![log.clone(), Log { log_index: 3, ..log }];
    assert_eq!(
        fold.compare(&expected),
        [
            Difference::LogUnexpected { number: 3, log_index: 0 },
            Difference::LogUnexpected { number: 3, log_index: 2 },
            Difference::LogMissing { number: 3, log_index: 3 },
        ]
    );
    let mut expected = chain("1a 2a 3a");
    expected[0].logs[0].data = Bytes::from_static(b"!");
    let differences = fold.compare(&expected);
    assert_eq!(differences.len(), 1);
    assert_eq!(differences[0].to_string(), "block 1: log 0: data is 0x3161, the chain has 0x21");
    let mut expected = chain("1a 2a 3a");
    expected[1].timestamp += 1;
    let differences: Vec<_> = fold.compare(&expected).iter().map(ToString::to_string).collect();
    assert_eq!(differences, ["block 2: timestamp is 1002, the chain has 1003"]);
}

/// Retention trims entries and markers at the beginning, each up to a different place, but keeps
/// the markers of all remaining entries.
#[test]
fn a_trimmed_stream_is_whole_from_some_marker_on() {
    let sound = Streams::of(SOUND);
    let mut whole = 0;
    for cut_entries in 0..sound.entries.len() {
        for cut_markers in 0..sound.markers.len() {
            let mut streams = sound.clone();
            streams.entries.drain(..cut_entries);
            streams.markers.drain(..cut_markers);
            let fold = streams.folded_by(Fold::from_first_whole_marker(CHAIN));
            assert_eq!(fold.violations(), [], "cut {cut_entries} {cut_markers}");
            let Some(first) = fold.canonical().first() else { continue };
            let expected: Vec<_> =
                chain(SOUND_CHAIN).into_iter().filter(|b| b.number >= first.number).collect();
            assert_eq!(fold.compare(&expected), [], "cut {cut_entries} {cut_markers}");
            whole += 1;

            let mut broken = streams.clone();
            broken.entries.pop();
            let fold = broken.folded_by(Fold::from_first_whole_marker(CHAIN));
            let seen = !fold.violations().is_empty() || !fold.compare(&expected).is_empty();
            assert!(seen, "cut {cut_entries} {cut_markers}, the last entry missing");
        }
    }
    assert!(whole > 100, "{whole}");
    let mut cut = sound;
    cut.markers.remove(0);
    assert!(cut.problems().contains(&Problem::Seq), "from the start nothing may be gone");
}

proptest! {
    /// Whatever reorgs an ingestor follows, a correct stream folds to the chain at its end.
    #[test]
    fn random_reorgs_fold_to_the_chain(depths in proptest::collection::vec(0_usize..4, 1..30)) {
        let (mut script, mut names) = (String::new(), vec!["0a".to_owned()]);
        for (fork, depth) in depths.into_iter().enumerate() {
            for _ in 0..depth.min(names.len() - 1) {
                let orphaned = names.pop().unwrap();
                script += &format!("-{orphaned}<{} ", names.last().unwrap());
            }
            for _ in 0..=depth {
                let parent = names.last().unwrap().clone();
                let letters: String =
                    fork.to_string().bytes().map(|d| char::from(b'a' + d - b'0')).collect();
                let name = format!("{}{letters}", number(&parent) + 1);
                script += &format!("+{name}<{parent} ");
                names.push(name);
            }
        }
        let fold = Streams::of(&script).fold();
        prop_assert_eq!(fold.violations(), []);
        prop_assert_eq!(fold.compare(&chain(&names[1..].join(" "))), []);
    }
}

/// A reader of a long stream compares final blocks and drops them. What remains, together with what
/// was handed over, is the chain, and no fault is missed.
#[test]
fn what_is_settled_and_what_remains_are_the_chain() {
    let streams = Streams::of(SOUND);
    let mut fold = Fold::from_start(CHAIN);
    let mut settled = Vec::new();
    for (id, event) in &streams.entries {
        fold.entry(*id, event.clone());
    }
    for (id, marker) in &streams.markers {
        fold.marker(*id, marker);
        assert_eq!(fold.settle(1), [], "the newest of them stays");
        settled.extend(fold.settle(u64::MAX));
    }
    fold.finish();
    assert_eq!(fold.violations(), []);
    assert_eq!(settled.iter().map(|b| b.number).collect::<Vec<_>>(), [1, 2], "but not the newest");
    assert_eq!(fold.canonical().first().map(|b| b.number), Some(3));
    settled.extend_from_slice(fold.canonical());
    assert_eq!(ethhook_domain::fold::compare(&settled, &chain(SOUND_CHAIN)), []);
}

/// A replay from any marker finds every fault after it, even before the next event.
#[test]
fn a_replay_can_go_on_behind_any_marker() {
    let sound = Streams::of(SOUND);
    for from in 1..sound.markers.len() {
        let (_, before) = &sound.markers[from - 1];
        let mut rest = sound.clone();
        rest.markers.drain(..from);
        rest.entries.retain(|(id, _)| *id > before.last_id);
        let after = || Fold::after(CHAIN, before.seq, before.last_id);
        assert_eq!(rest.folded_by(after()).violations(), [], "behind {from}");
        if rest.entries.is_empty() {
            continue;
        }
        let mut broken = rest.clone();
        broken.entries.remove(0);
        assert_ne!(broken.folded_by(after()).violations(), [], "behind {from}, an entry missing");
        rest.markers.remove(0);
        assert_ne!(rest.folded_by(after()).violations(), [], "behind {from}, a marker missing");
    }
}
