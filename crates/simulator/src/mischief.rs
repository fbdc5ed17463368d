//! Faults drawn from a seed, of one kind or mixed: the same on every run.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::body::to_index;
use crate::faults::{BloomLie, Fault, FinalizedLie, HeadFault};
use crate::limits::COUNTED_METHODS;
use crate::seed::{Bits, mix};

/// Bytes that no client should accept in one answer: geth's own limit for a WebSocket frame was 15
/// MiB, common libraries have 16.
const TOO_LONG: usize = 17 << 20;

/// Random but reproducible faults of a node: whether and how the nth call of a method, or the nth
/// head, fails depends only on the seed, the chain's id, the method and n. So it does not matter in
/// which order calls of several methods arrive.
///
/// A drawn fault may find nothing to alter (such as the bloom lie for empty blocks, in a block that
/// is not empty); the node then answers correctly.
#[derive(Debug, Clone)]
pub struct Mischief {
    seed: u64,
    per_mille: u32,
    calls: Vec<&'static CallTrick>,
    heads: Vec<&'static HeadTrick>,
}

impl Mischief {
    /// All kinds of faults; `per_mille` of 1,000 calls and heads are affected.
    #[must_use]
    pub fn mixed(seed: u64, per_mille: u32) -> Self {
        Self { seed, per_mille, calls: CALLS.iter().collect(), heads: HEADS.iter().collect() }
    }

    /// Only one kind, affecting `per_mille` of the 1,000 calls or heads that it applies to; none if
    /// no kind has this name.
    #[must_use]
    pub fn alone(kind: &str, seed: u64, per_mille: u32) -> Option<Self> {
        let mut mischief = Self::mixed(seed, per_mille);
        mischief.calls.retain(|trick| trick.kind == kind);
        mischief.heads.retain(|trick| trick.kind == kind);
        let found = !mischief.calls.is_empty() || !mischief.heads.is_empty();
        found.then_some(mischief)
    }

    /// The same without these kinds.
    #[must_use]
    pub fn without(mut self, kinds: &[&str]) -> Self {
        self.calls.retain(|trick| !kinds.contains(&trick.kind));
        self.heads.retain(|trick| !kinds.contains(&trick.kind));
        self
    }

    /// The names of all kinds: those of calls, then those of heads. See [`Fault::kind`] and
    /// [`HeadFault::kind`].
    pub fn kinds() -> impl Iterator<Item = &'static str> {
        CALLS.iter().map(|trick| trick.kind).chain(HEADS.iter().map(|trick| trick.kind))
    }
}

/// A kind of fault of a call.
#[derive(Debug)]
struct CallTrick {
    kind: &'static str,
    /// Relative to the sum of the weights of all kinds that apply to a call. Faults that delay a
    /// client have less.
    weight: u64,
    /// The methods it applies to, or `finalized` for the block of that tag; empty for all calls.
    of: &'static [&'static str],
    /// Makes the fault; the second argument is the finalized height when the mischief began.
    make: fn(&mut Bits, u64) -> Fault,
}

/// A kind of fault of a head.
#[derive(Debug)]
struct HeadTrick {
    kind: &'static str,
    weight: u64,
    make: fn(&mut Bits) -> HeadFault,
}

const ALL: &[&str] = &[];
const BLOCKS: &[&str] = &["eth_getBlockByNumber", "eth_getBlockByHash"];
const RECEIPTS: &[&str] = &["eth_getBlockReceipts"];
const LOGS: &[&str] = &["eth_getLogs"];
const CONTENTS: &[&str] = &["eth_getBlockReceipts", "eth_getLogs"];
const FROM_CHAIN: &[&str] = &[
    "eth_blockNumber",
    "eth_getBlockByNumber",
    "eth_getBlockByHash",
    "eth_getBlockReceipts",
    "eth_getLogs",
];
const FINALIZED: &[&str] = &["finalized"];
const SUBSCRIBE: &[&str] = &["eth_subscribe"];

const fn call(
    kind: &'static str,
    weight: u64,
    of: &'static [&'static str],
    make: fn(&mut Bits, u64) -> Fault,
) -> CallTrick {
    CallTrick { kind, weight, of, make }
}

const fn head(kind: &'static str, weight: u64, make: fn(&mut Bits) -> HeadFault) -> HeadTrick {
    HeadTrick { kind, weight, make }
}

fn one_of<T: Copy>(bits: &mut Bits, these: &[T]) -> T {
    these[to_index(bits.below(these.len() as u64))]
}

fn error(code: i64, message: &str) -> Fault {
    Fault::Error(code, message.to_owned())
}

static CALLS: &[CallTrick] = &[
    call("delay", 2, ALL, |bits, _| Fault::Delay(Duration::from_millis(20 + bits.below(1_500)))),
    call("no_answer", 1, ALL, |_, _| Fault::NoAnswer),
    call("cut", 4, ALL, |_, _| Fault::Cut),
    call("cut_mid_answer", 4, ALL, |_, _| Fault::CutMidAnswer),
    call("html", 4, ALL, |_, _| Fault::Html),
    call("invalid_json", 4, ALL, |_, _| Fault::InvalidJson),
    call("wrong_id", 2, ALL, |_, _| Fault::WrongId),
    call("status_429", 2, ALL, |bits, _| Fault::HttpStatus(429, Some(bits.below(2)))),
    call("status", 4, ALL, |bits, _| Fault::HttpStatus(one_of(bits, &[500, 502, 503, 504]), None)),
    call("limit_exceeded", 4, ALL, |_, _| error(-32005, "limit exceeded")),
    call("error", 4, ALL, |_, _| error(-32000, "header not found")),
    call("error_with_status", 4, ALL, |bits, _| {
        let (status, code, message) = one_of(
            bits,
            &[
                (400, -32000, "header not found"),
                (404, -32000, "unknown block"),
                (429, -32005, "limit exceeded"),
                (500, -32603, "internal error"),
            ],
        );
        Fault::ErrorWithStatus(status, code, message.to_owned())
    }),
    call("late_in_batch", 4, ALL, |_, _| Fault::LateInBatch),
    call("fragmented", 4, ALL, |_, _| Fault::Fragmented),
    call("deaf_subscription", 16, SUBSCRIBE, |_, _| Fault::DeafSubscription),
    call("padded", 1, CONTENTS, |_, _| Fault::Padded(TOO_LONG)),
    call("range_too_wide", 4, LOGS, |_, _| error(-32602, "block range too wide")),
    call("method_not_found", 2, CONTENTS, |_, _| error(-32601, "the method does not exist")),
    call("method_not_offered", 2, CONTENTS, |_, _| error(-32001, "the method is not offered")),
    call("null", 8, FROM_CHAIN, |_, _| Fault::Null),
    call("empty", 8, CONTENTS, |_, _| Fault::Empty),
    call("drop_receipt", 8, RECEIPTS, |_, _| Fault::DropReceipt),
    call("drop_log", 8, CONTENTS, |_, _| Fault::DropLog),
    call("alter_log", 8, CONTENTS, |_, _| Fault::AlterLog),
    call("foreign_logs", 8, CONTENTS, |_, _| Fault::ForeignLogs),
    call("foreign_log", 8, CONTENTS, |_, _| Fault::ForeignLog),
    call("drop_block", 8, LOGS, |_, _| Fault::DropBlock),
    call("log_index_per_transaction", 8, CONTENTS, |_, _| Fault::LogIndexPerTransaction),
    call("doubled_log_index", 8, CONTENTS, |_, _| Fault::DoubledLogIndex),
    call("unknown_as_empty", 8, CONTENTS, |bits, _| Fault::UnknownAsEmpty(1 + bits.below(3))),
    call("bloom_zero", 8, BLOCKS, |_, _| Fault::Bloom(BloomLie::Zero)),
    call("bloom_ones", 8, BLOCKS, |_, _| Fault::Bloom(BloomLie::Ones)),
    call("bloom_on_empty", 8, BLOCKS, |_, _| Fault::Bloom(BloomLie::OnEmpty)),
    call("behind", 8, FROM_CHAIN, |bits, _| Fault::Behind(1 + bits.below(3))),
    call("other_branch", 8, FROM_CHAIN, |_, _| Fault::OtherBranch),
    call("far_behind", 4, FROM_CHAIN, |bits, _| Fault::Behind(1_000 + bits.below(9_000))),
    call("finalized_back", 16, FINALIZED, |bits, _| {
        Fault::Finalized(FinalizedLie::Back(1 + bits.below(64)))
    }),
    call("finalized_latest", 16, FINALIZED, |_, _| Fault::Finalized(FinalizedLie::Latest)),
    call("finalized_stalls", 16, FINALIZED, |_, height| Fault::Finalized(FinalizedLie::At(height))),
];

static HEADS: &[HeadTrick] = &[
    head("head_skipped", 8, |_| HeadFault::Skip),
    head("head_doubled", 8, |_| HeadFault::Double),
    head("head_late", 8, |bits| HeadFault::Late(one_of(bits, &[1, 2, 50]))),
    head("head_back", 8, |bits| HeadFault::Back(1 + bits.below(5))),
    head("head_far_back", 4, |bits| HeadFault::Back(1_000 + bits.below(9_000))),
    head("head_field_missing", 8, |bits| HeadFault::MissingField(one_of(bits, &FIELDS).to_owned())),
    head("head_bloom_zero", 4, |_| HeadFault::Bloom(BloomLie::Zero)),
    head("head_bloom_ones", 4, |_| HeadFault::Bloom(BloomLie::Ones)),
    head("head_bloom_on_empty", 4, |_| HeadFault::Bloom(BloomLie::OnEmpty)),
    head("subscriptions_die", 1, |_| HeadFault::Deaf),
    head("sockets_dropped", 2, |_| HeadFault::Drop),
    head("sockets_closed", 2, |_| HeadFault::Close),
    head("http_behind", 8, |bits| HeadFault::HttpBehind(1 + bits.below(5))),
];

const FIELDS: [&str; 8] = [
    "hash",
    "parentHash",
    "number",
    "timestamp",
    "logsBloom",
    "receiptsRoot",
    "withdrawalsRoot",
    "gasUsed",
];

/// A mischief in progress.
pub(crate) struct Playing {
    mischief: Mischief,
    chain_id: u64,
    /// The finalized height when it began.
    finalized: u64,
    /// Number of calls by method (or `finalized`), and of `head`s, so far.
    asked: BTreeMap<String, u64>,
}

impl Playing {
    pub(crate) fn new(mischief: Mischief, chain_id: u64, finalized: u64) -> Self {
        Self { mischief, chain_id, finalized, asked: BTreeMap::new() }
    }

    /// The fault for this call of `what`, a method or `finalized`.
    pub(crate) fn for_call(&mut self, what: &str) -> Option<Fault> {
        let is_for = |trick: &&&'static CallTrick| trick.of.is_empty() || trick.of.contains(&what);
        let tricks: Vec<_> = self.mischief.calls.iter().filter(is_for).copied().collect();
        let mut bits = self.hit(what)?;
        let trick = weighted(&mut bits, &tricks, |trick| trick.weight)?;
        Some((trick.make)(&mut bits, self.finalized))
    }

    /// The fault for this head.
    pub(crate) fn for_head(&mut self) -> Option<HeadFault> {
        let mut bits = self.hit("head")?;
        let trick = weighted(&mut bits, &self.mischief.heads, |trick| trick.weight)?;
        Some((trick.make)(&mut bits))
    }

    /// The random bits that decide how it fails, if it does.
    fn hit(&mut self, what: &str) -> Option<Bits> {
        let full = self.asked.len() >= COUNTED_METHODS && !self.asked.contains_key(what);
        let what = if full { "other" } else { what };
        let count = self.asked.entry(what.to_owned()).or_default();
        *count += 1;
        let name: Vec<u64> = what.bytes().map(u64::from).collect();
        let mut bits = Bits::of(&[self.mischief.seed, self.chain_id, mix(&name), *count]);
        (bits.below(1_000) < u64::from(self.mischief.per_mille)).then_some(bits)
    }
}

/// One of `tricks`, at random by weight.
fn weighted<T>(
    bits: &mut Bits,
    tricks: &[&'static T],
    weight: impl Fn(&T) -> u64,
) -> Option<&'static T> {
    let total: u64 = tricks.iter().map(|trick| weight(trick)).sum();
    let mut left = bits.below(total);
    tricks.iter().copied().find(|trick| {
        let found = left < weight(trick);
        left = left.saturating_sub(weight(trick));
        found
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_kind_makes_faults_of_its_name() {
        let mut bits = Bits::of(&[1]);
        for trick in CALLS {
            assert_eq!((trick.make)(&mut bits, 5).kind(), trick.kind);
        }
        for trick in HEADS {
            assert_eq!((trick.make)(&mut bits).kind(), trick.kind);
        }
        let names: BTreeSet<_> = Mischief::kinds().collect();
        assert_eq!(names.len(), Mischief::kinds().count());
    }

    fn drawn(mischief: &Mischief, asked: &[&str]) -> Vec<(String, Option<Fault>)> {
        let mut playing = Playing::new(mischief.clone(), 1, 5);
        asked.iter().map(|what| ((*what).to_owned(), playing.for_call(what))).collect()
    }

    #[test]
    fn what_goes_wrong_follows_from_the_seed_and_not_from_the_order() {
        let apart = [["eth_getLogs"; 500], ["finalized"; 500]].concat();
        let mixed: Vec<&str> = (0..500).flat_map(|_| ["finalized", "eth_getLogs"]).collect();
        let sorted = |mischief: &Mischief, asked: &[&str]| {
            let mut all = drawn(mischief, asked);
            all.sort_by(|a, b| b.0.cmp(&a.0));
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        };
        let mischief = Mischief::mixed(3, 200);
        assert_eq!(sorted(&mischief, &apart), sorted(&mischief, &mixed));
        assert_ne!(sorted(&mischief, &apart), sorted(&Mischief::mixed(4, 200), &apart));
        let hit = drawn(&mischief, &apart).iter().filter(|(_, fault)| fault.is_some()).count();
        assert!((130..270).contains(&hit), "{hit} of 1,000");
    }

    #[test]
    fn every_kind_is_drawn_but_those_left_out() {
        let left_out = ["padded", "head_back"];
        let mischief = Mischief::mixed(1, 1_000).without(&left_out);
        let mut playing = Playing::new(mischief, 1, 5);
        let mut kinds = BTreeSet::new();
        let asked = [FROM_CHAIN, FINALIZED, SUBSCRIBE].concat();
        for what in asked.iter().cycle().take(10_000) {
            let fault = playing.for_call(what).unwrap();
            assert!(CALLS.iter().any(|trick| trick.kind == fault.kind()
                && (trick.of.is_empty() || trick.of.contains(what))));
            kinds.insert(fault.kind());
            kinds.insert(playing.for_head().unwrap().kind());
        }
        let expected: BTreeSet<_> =
            Mischief::kinds().filter(|kind| !left_out.contains(kind)).collect();
        assert_eq!(kinds, expected);
    }

    #[test]
    fn one_kind_alone_hits_nothing_else() {
        let alone = Mischief::alone("drop_log", 1, 1_000).unwrap();
        let mut playing = Playing::new(alone, 1, 5);
        assert_eq!(playing.for_call("eth_getLogs"), Some(Fault::DropLog));
        assert_eq!(playing.for_call("eth_blockNumber"), None);
        assert_eq!(playing.for_head(), None);
        let mut playing = Playing::new(Mischief::alone("head_skipped", 1, 1_000).unwrap(), 1, 5);
        assert_eq!(playing.for_head(), Some(HeadFault::Skip));
        assert_eq!(playing.for_call("eth_getLogs"), None);
        assert!(Mischief::alone("no such kind", 1, 1_000).is_none());
    }
}
