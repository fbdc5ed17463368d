//! A chain of prepared blocks, of any length.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use alloy_primitives::B256;
use tokio::sync::watch;

use super::template::{Place, Template, Text};

/// The first height: numbers from here on have as many digits as mainnet's.
pub(crate) const FIRST: u64 = 0x0100_0000;
/// Seconds, 2023.
const FIRST_TIME: u64 = 0x64b0_0000;
/// Blocks below the head that are called finalized.
const FINALITY_DEPTH: u64 = 64;

/// What was asked of a chain since the last reset.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    requests: Mutex<BTreeMap<String, u64>>,
    messages: AtomicU64,
    bytes: AtomicU64,
}

/// What a chain was asked.
pub(crate) struct Counts {
    /// Calls, subscriptions left out: what a provider bills.
    pub(crate) requests: u64,
    /// Answers, one for a whole batch.
    pub(crate) messages: u64,
    /// Sent, heads included.
    pub(crate) bytes: u64,
}

impl Asked {
    pub(crate) fn note(&self, method: &str) {
        *lock(&self.requests).entry(method.to_owned()).or_default() += 1;
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn answered(&self) {
        self.messages.fetch_add(1, Ordering::Relaxed);
    }

    /// What was asked since the last time.
    pub(crate) fn take(&self) -> Counts {
        let requests = std::mem::take(&mut *lock(&self.requests));
        Counts {
            requests: requests.values().sum(),
            messages: self.messages.swap(0, Ordering::Relaxed),
            bytes: self.bytes.swap(0, Ordering::Relaxed),
        }
    }
}

struct Links {
    /// Of the blocks from [`FIRST`] on; each is linked to the one before.
    hashes: Vec<B256>,
    numbers: HashMap<B256, u64>,
}

/// A chain; its blocks repeat `templates` for ever.
pub(crate) struct PreparedChain {
    pub(crate) id: u64,
    templates: Arc<[Template]>,
    links: Mutex<Links>,
    /// The receipts of the newest block that was mined, written before its head was sent.
    prepared: Mutex<(u64, String)>,
    head: watch::Sender<u64>,
    /// When the head was sent to the first subscriber.
    sent: Mutex<HashMap<u64, Instant>>,
    /// Before each answer.
    pub(crate) delay: Duration,
    pub(crate) asked: Asked,
}

impl PreparedChain {
    /// `blocks` blocks, the last of which is the head.
    pub(crate) fn new(id: u64, templates: Arc<[Template]>, blocks: u64, delay: Duration) -> Self {
        let chain = Self {
            id,
            templates,
            links: Mutex::new(Links { hashes: Vec::new(), numbers: HashMap::new() }),
            prepared: Mutex::default(),
            head: watch::Sender::new(FIRST),
            sent: Mutex::default(),
            delay,
            asked: Asked::default(),
        };
        (0..blocks).for_each(|_| chain.link());
        chain.head.send_replace(FIRST + blocks - 1);
        chain
    }

    /// Links one more block, without telling of it.
    fn link(&self) {
        let mut links = lock(&self.links);
        let number = FIRST + links.hashes.len() as u64;
        let parent = links.hashes.last().copied().unwrap_or_default();
        let hash = self.template(number).hash_at(number, parent, time(number));
        links.hashes.push(hash);
        links.numbers.insert(hash, number);
    }

    /// Adds a block and announces it.
    pub(crate) fn mine(&self) {
        self.link();
        let (number, mut receipts) = (self.head() + 1, String::new());
        if let Some(place) = self.linked(number) {
            self.template(number).receipts.fill(&place, &mut receipts);
        }
        *lock(&self.prepared) = (number, receipts);
        self.head.send_modify(|head| *head += 1);
    }

    pub(crate) fn head(&self) -> u64 {
        *self.head.borrow()
    }

    pub(crate) fn heads(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }

    pub(crate) fn finalized(&self) -> u64 {
        self.head().saturating_sub(FINALITY_DEPTH).max(FIRST)
    }

    pub(crate) fn template(&self, number: u64) -> &Template {
        let index = number.saturating_sub(FIRST) % self.templates.len() as u64;
        &self.templates[usize::try_from(index).unwrap_or_default()]
    }

    /// Where a block stands; none above the head. Heights below the first are answered with the
    /// first: only its hash is asked for, as the genesis.
    pub(crate) fn place(&self, number: u64) -> Option<Place> {
        if number > self.head() {
            return None;
        }
        self.linked(number.max(FIRST))
    }

    fn linked(&self, number: u64) -> Option<Place> {
        let links = lock(&self.links);
        let index = usize::try_from(number - FIRST).ok()?;
        let parent = index.checked_sub(1).and_then(|below| links.hashes.get(below));
        Some(Place {
            number,
            hash: *links.hashes.get(index)?,
            parent_hash: parent.copied().unwrap_or_default(),
            timestamp: time(number),
        })
    }

    pub(crate) fn number_of(&self, hash: &B256) -> Option<u64> {
        lock(&self.links).numbers.get(hash).copied()
    }

    /// Appends one of the block's texts; false if there is no such block.
    pub(crate) fn write(
        &self,
        number: u64,
        text: impl Fn(&Template) -> &Text,
        out: &mut String,
    ) -> bool {
        let Some(place) = self.place(number) else { return false };
        text(self.template(place.number)).fill(&place, out);
        true
    }

    /// Appends the receipts of a block; false if there is no such block.
    pub(crate) fn write_receipts(&self, number: u64, out: &mut String) -> bool {
        let prepared = lock(&self.prepared);
        if prepared.0 != number {
            drop(prepared);
            return self.write(number, |template| &template.receipts, out);
        }
        out.push_str(&prepared.1);
        true
    }

    /// Logs of the blocks from the first to `number`.
    pub(crate) fn logs_up_to(&self, number: u64) -> u64 {
        let count = |template: &Template| template.log_count as u64;
        let (blocks, every) = (number + 1 - FIRST, self.templates.len() as u64);
        let round: u64 = self.templates.iter().map(count).sum();
        let rest = self.templates.iter().zip(0..blocks % every).map(|(t, _)| count(t));
        blocks / every * round + rest.sum::<u64>()
    }

    /// A head is about to be sent.
    pub(crate) fn note_sent(&self, number: u64) {
        lock(&self.sent).entry(number).or_insert_with(Instant::now);
    }

    /// When the head of `number` was first sent.
    pub(crate) fn sent_at(&self, number: u64) -> Option<Instant> {
        lock(&self.sent).get(&number).copied()
    }
}

fn time(number: u64) -> u64 {
    FIRST_TIME + 12 * (number - FIRST)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
