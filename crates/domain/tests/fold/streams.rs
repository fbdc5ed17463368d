//! Streams as a correct ingestor writes them, from a script of steps.

use std::collections::BTreeSet;

use alloy_primitives::{Address, B256, Bytes, keccak256};
use ethhook_domain::fold::{ExpectedBlock, Fold, Problem};
use ethhook_domain::{BlockRef, EntryId, Log, Marker, Op, ProcessedEvent, Proof};

pub(crate) const CHAIN: u64 = 5;

/// The two streams of a chain, as a correct ingestor writes them.
#[derive(Clone, Default)]
pub(crate) struct Streams {
    pub(crate) entries: Vec<(EntryId, ProcessedEvent)>,
    pub(crate) markers: Vec<(EntryId, Marker)>,
    pub(crate) clock: u64,
}

/// A block named like `4a`: height and fork letter. [`parents`] gives its parent.
pub(crate) fn block(name: &str, parent: &str) -> BlockRef {
    BlockRef {
        number: number(name),
        hash: hash(name),
        parent_hash: hash(parent),
        timestamp: 1_000 + number(name),
    }
}

pub(crate) fn number(name: &str) -> u64 {
    name.trim_end_matches(char::is_alphabetic).parse().unwrap()
}

pub(crate) fn hash(name: &str) -> B256 {
    keccak256(name)
}

/// The number of logs is the height modulo 4, so that some blocks have none.
pub(crate) fn logs(name: &str) -> Vec<Log> {
    (0..number(name) % 4)
        .map(|i| Log {
            address: Address::repeat_byte(7),
            topics: vec![hash(&format!("topic {i} of {name}"))],
            data: Bytes::from(name.as_bytes().to_vec()),
            block_hash: hash(name),
            block_number: number(name),
            tx_hash: hash(&format!("tx of {name}")),
            tx_index: 0,
            log_index: i,
            removed: false,
        })
        .collect()
}

impl Streams {
    /// Steps like `+4a<3a`, `-4a<3a`, `=2a` (finalized) and `~9a<4a` (a gap to 9a).
    pub(crate) fn of(script: &str) -> Self {
        let mut streams = Self::default();
        for step in script.split_whitespace() {
            let (name, parent) = step[1..].split_once('<').unwrap_or((&step[1..], ""));
            match &step[..1] {
                "+" => streams.publish(Op::Add, name, parent, false),
                "-" => streams.publish(Op::Remove, name, parent, true),
                "=" => streams.mark(Op::Finalized, name, None, None, 0),
                "~" => streams.mark(Op::Gap, name, Some(hash(parent)), None, 0),
                other => panic!("{other}"),
            }
        }
        streams
    }

    pub(crate) fn next_id(&mut self) -> EntryId {
        self.clock += 1;
        EntryId { ms: self.clock / 3, seq: self.clock % 3 }
    }

    pub(crate) fn publish(&mut self, op: Op, name: &str, parent: &str, removed: bool) {
        let mut logs = logs(name);
        if removed {
            logs.reverse();
        }
        let (mut first_id, count) = (None, logs.len() as u64);
        for log in logs {
            let event = ProcessedEvent::new(CHAIN, &block(name, parent), log);
            let id = self.next_id();
            first_id.get_or_insert(id);
            self.entries.push((id, ProcessedEvent { removed, ..event }));
        }
        self.mark(op, name, Some(hash(parent)), first_id, count);
    }

    pub(crate) fn mark(
        &mut self,
        op: Op,
        name: &str,
        parent_hash: Option<B256>,
        first_id: Option<EntryId>,
        events: u64,
    ) {
        let last_id = self.entries.last().map_or(EntryId::MIN, |(id, _)| *id);
        let marker = Marker {
            seq: self.markers.len() as u64 + 1,
            op,
            number: number(name),
            hash: hash(name),
            parent_hash,
            timestamp: 1_000 + number(name),
            events,
            first_id,
            last_id,
            proof: Proof::ReceiptsRoot,
            filter: "all".to_owned(),
        };
        self.markers.push((EntryId { ms: marker.seq, seq: 0 }, marker));
    }

    pub(crate) fn folded_by(&self, mut fold: Fold) -> Fold {
        let mut entries = self.entries.iter().peekable();
        for (id, marker) in &self.markers {
            // Marker by marker, as a reader of a long stream would.
            while let Some((entry_id, event)) =
                entries.next_if(|(entry_id, _)| *entry_id <= marker.last_id)
            {
                fold.entry(*entry_id, event.clone());
            }
            fold.marker(*id, marker);
        }
        entries.for_each(|(id, event)| fold.entry(*id, event.clone()));
        fold.finish();
        fold
    }

    pub(crate) fn fold(&self) -> Fold {
        self.folded_by(Fold::from_start(CHAIN))
    }

    pub(crate) fn problems(&self) -> BTreeSet<Problem> {
        self.fold().violations().iter().map(|v| v.problem).collect()
    }
}

pub(crate) fn chain(names: &str) -> Vec<ExpectedBlock> {
    names
        .split_whitespace()
        .map(|name| ExpectedBlock {
            number: number(name),
            hash: hash(name),
            timestamp: 1_000 + number(name),
            logs: logs(name),
        })
        .collect()
}
