//! Round trip of everything that is written to Redis: events, markers, cursors.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use alloy_primitives::{Address, B256, Bytes, hex};
use ethhook_domain::encoding::PACKED;
use ethhook_domain::event::CodecError;
use ethhook_domain::{
    Cursor, Encoding, EntryId, Marker, Op, ProcessedEvent, Proof, cursor, event, marker,
};
use proptest::prelude::*;

fn hash() -> impl Strategy<Value = B256> {
    any::<[u8; 32]>().prop_map(B256::from)
}

fn entry_id() -> impl Strategy<Value = EntryId> {
    any::<(u64, u64)>().prop_map(|(ms, seq)| EntryId { ms, seq })
}

/// A record in the form in which Redis returns it: names and values as bytes.
fn stored<const N: usize>(names: [&str; N], values: [String; N]) -> Vec<(Vec<u8>, Vec<u8>)> {
    names.iter().map(|n| n.as_bytes().to_vec()).zip(values.map(String::into_bytes)).collect()
}

fn pairs(stored: &[(Vec<u8>, Vec<u8>)]) -> impl Iterator<Item = (&[u8], &[u8])> {
    stored.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))
}

fn packed(event: &ProcessedEvent) -> Vec<u8> {
    let mut buffer = Vec::new();
    event.write_packed(&mut buffer);
    buffer
}

fn read_packed(bytes: &[u8]) -> Result<ProcessedEvent, CodecError> {
    ProcessedEvent::from_fields([(PACKED.as_bytes(), bytes)])
}

prop_compose! {
    fn events()(
        (chain_id, block_number, tx_index, log_index, timestamp) in any::<(u64, u64, u64, u64, u64)>(),
        block_hash in hash(),
        tx_hash in hash(),
        contract in any::<[u8; 20]>(),
        topics in prop::collection::vec(hash(), 0..=4),
        data in prop::collection::vec(any::<u8>(), 0..300),
        removed in any::<bool>(),
    ) -> ProcessedEvent {
        ProcessedEvent {
            chain_id, block_number, block_hash, tx_hash, tx_index, log_index,
            contract: Address::from(contract), topics, data: Bytes::from(data), timestamp, removed,
        }
    }
}

prop_compose! {
    fn markers()(
        (seq, number, timestamp, events) in any::<(u64, u64, u64, u64)>(),
        op in prop::sample::select(vec![Op::Add, Op::Remove, Op::Finalized, Op::Gap]),
        hash in hash(),
        parent_hash in prop::option::of(hash()),
        first_id in prop::option::of(entry_id()),
        last_id in entry_id(),
        proof in prop::sample::select(vec![Proof::ReceiptsRoot, Proof::Bloom, Proof::Structure]),
        filter in "all|[0-9a-f]{16}",
    ) -> Marker {
        Marker { seq, op, number, hash, parent_hash, timestamp, events, first_id, last_id, proof, filter }
    }
}

prop_compose! {
    fn cursors()(
        (seq, number, start_number, finalized_number, epoch) in any::<(u64, u64, u64, u64, u64)>(),
        hash in prop::option::of(hash()),
        genesis_hash in prop::option::of(hash()),
        finalized_hash in prop::option::of(hash()),
        writer in ".*",
        filter in "all|[0-9a-f]{16}",
        encoding in prop::sample::select(vec![Encoding::Fields, Encoding::Msgpack]),
        alarm in ".*",
    ) -> Cursor {
        Cursor {
            schema: cursor::SCHEMA, seq, number, hash, start_number, genesis_hash, finalized_number,
            finalized_hash, writer, epoch, filter, encoding, alarm,
        }
    }
}

proptest! {
    #[test]
    fn an_event_is_read_as_it_was_written(event in events()) {
        let mut entry = stored(event::FIELDS, event.to_values());
        prop_assert_eq!(ProcessedEvent::from_fields(pairs(&entry)), Ok(event.clone()));
        // Another order, or a field that a later version adds, makes no difference.
        entry.reverse();
        entry.push((b"later".to_vec(), b"1".to_vec()));
        prop_assert_eq!(ProcessedEvent::from_fields(pairs(&entry)), Ok(event));
    }

    #[test]
    fn a_packed_event_is_read_as_it_was_written(event in events()) {
        let entry = packed(&event);
        prop_assert_eq!(read_packed(&entry), Ok(event.clone()));
        // It must be complete, with nothing after it.
        for wrong in [&entry[..entry.len() - 1], &[&entry[..], &[0xc0]].concat()] {
            prop_assert_eq!(read_packed(wrong).unwrap_err().field, PACKED);
        }
    }

    #[test]
    fn any_bytes_in_a_packed_event_never_panic(
        event in events(),
        at in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut entry = packed(&event);
        let at = at.index(entry.len());
        entry.splice(at.., bytes);
        if let Err(error) = read_packed(&entry) {
            prop_assert_eq!(error.field, PACKED);
        }
    }

    #[test]
    fn a_marker_is_read_as_it_was_written(marker in markers()) {
        let entry = stored(marker::FIELDS, marker.to_values());
        prop_assert_eq!(Marker::from_fields(pairs(&entry)), Ok(marker));
    }

    #[test]
    fn a_cursor_is_read_as_it_was_written(cursor in cursors()) {
        let mut hash = stored(cursor::FIELDS, cursor.to_values());
        hash.reverse();
        prop_assert_eq!(Cursor::from_fields(pairs(&hash)), Ok(cursor));
    }

    #[test]
    fn a_field_that_is_missing_is_named(event in events(), gone in 0..event::FIELDS.len()) {
        let mut entry = stored(event::FIELDS, event.to_values());
        entry.remove(gone);
        let error = ProcessedEvent::from_fields(pairs(&entry)).unwrap_err();
        prop_assert_eq!(error.field, event::FIELDS[gone]);
    }

    #[test]
    fn any_bytes_in_any_field_never_panic(
        event in events(),
        field in 0..event::FIELDS.len(),
        bytes in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut entry = stored(event::FIELDS, event.to_values());
        entry[field].1 = bytes;
        if let Err(error) = ProcessedEvent::from_fields(pairs(&entry)) {
            prop_assert_eq!(error.field, event::FIELDS[field]);
        }
    }
}

fn an_event() -> ProcessedEvent {
    ProcessedEvent {
        chain_id: 1,
        block_number: 15_537_394,
        block_hash: B256::repeat_byte(0xab),
        tx_hash: B256::repeat_byte(0xcd),
        tx_index: 3,
        log_index: 5,
        contract: Address::repeat_byte(0xef),
        topics: vec![B256::repeat_byte(0x11), B256::repeat_byte(0x22)],
        data: Bytes::from_static(&[0xde, 0xad]),
        timestamp: 1_663_224_179,
        removed: true,
    }
}

#[test]
fn a_packed_event_is_written_as_adr_12_says() {
    let bin = |byte: u8, len: u8| [vec![0xc4, len], vec![byte; usize::from(len)]].concat();
    let expected = [
        vec![0x9b, 0x01],                                    // eleven values; chain_id
        vec![0xce, 0x00, 0xed, 0x14, 0xf2],                  // block_number
        bin(0xab, 32),                                       // block_hash
        bin(0xcd, 32),                                       // tx_hash
        vec![0x03, 0x05],                                    // tx_index, log_index
        bin(0xef, 20),                                       // contract
        [vec![0x92], bin(0x11, 32), bin(0x22, 32)].concat(), // topics
        vec![0xc4, 0x02, 0xde, 0xad],                        // data
        vec![0xce, 0x63, 0x22, 0xc9, 0x73],                  // timestamp
        vec![0xc3],                                          // removed
    ];
    assert_eq!(hex::encode(packed(&an_event())), hex::encode(expected.concat()));
}

#[test]
fn an_event_is_written_as_the_contract_says() {
    let event = an_event();
    let (ab, cd) = ("ab".repeat(32), "cd".repeat(32));
    let (ef, one, two) = ("ef".repeat(20), "11".repeat(32), "22".repeat(32));
    assert_eq!(
        event.to_values(),
        [
            "1",
            "15537394",
            &format!("0x{ab}"),
            &format!("0x{cd}"),
            "3",
            "5",
            &format!("0x{ef}"),
            &format!("[\"0x{one}\",\"0x{two}\"]"),
            "0xdead",
            "1663224179",
            "true",
        ]
        .map(str::to_owned)
    );
    assert_eq!(event.event_id(), format!("event:1:0x{cd}:5"));
    assert_eq!(event::stream_name(event.chain_id), "events:1");
    let bare = ProcessedEvent { topics: Vec::new(), data: Bytes::new(), removed: false, ..event };
    let [.., topics, data, _, removed] = bare.to_values();
    assert_eq!((topics.as_str(), data.as_str(), removed.as_str()), ("[]", "0x", "false"));
}
