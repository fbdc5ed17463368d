//! What a view of a chain was asked and has sent.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::chain::lock;
use crate::limits::COUNTED_METHODS;

/// Counters of requests and answers, for tests.
#[derive(Debug, Default)]
pub struct Stats {
    requests: Mutex<BTreeMap<String, u64>>,
    messages: AtomicU64,
    faults: Mutex<BTreeMap<&'static str, u64>>,
    bytes_sent: AtomicU64,
    heads_sent: AtomicU64,
}

impl Stats {
    /// Calls of this method, counting each call of a batch. `sim_` methods are not counted.
    #[must_use]
    pub fn requests(&self, method: &str) -> u64 {
        lock(&self.requests).get(method).copied().unwrap_or_default()
    }

    /// Calls of all methods.
    #[must_use]
    pub fn total_requests(&self) -> u64 {
        lock(&self.requests).values().sum()
    }

    /// Calls by method.
    #[must_use]
    pub fn by_method(&self) -> BTreeMap<String, u64> {
        lock(&self.requests).clone()
    }

    /// Bytes of answers and announcements, without the overhead of HTTP and WebSocket.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent.load(Ordering::Relaxed)
    }

    /// HTTP bodies and WebSocket messages with calls, each one call or a batch.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// Announcements sent, one for each block and subscription.
    #[must_use]
    pub fn heads_sent(&self) -> u64 {
        self.heads_sent.load(Ordering::Relaxed)
    }

    /// How often each kind of fault took effect, armed or random; see [`crate::Fault::kind`] and
    /// [`crate::HeadFault::kind`].
    #[must_use]
    pub fn faults_played(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.faults).clone()
    }

    /// Sets all counters to 0.
    pub fn reset(&self) {
        lock(&self.requests).clear();
        lock(&self.faults).clear();
        self.messages.store(0, Ordering::Relaxed);
        self.bytes_sent.store(0, Ordering::Relaxed);
        self.heads_sent.store(0, Ordering::Relaxed);
    }

    pub(crate) fn count(&self, method: &str) {
        let mut requests = lock(&self.requests);
        let full = requests.len() >= COUNTED_METHODS && !requests.contains_key(method);
        let name = if full { "other" } else { method };
        match requests.get_mut(name) {
            Some(count) => *count += 1,
            None => _ = requests.insert(name.to_owned(), 1),
        }
    }

    pub(crate) fn message(&self) {
        self.messages.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn played(&self, fault: &'static str) {
        *lock(&self.faults).entry(fault).or_default() += 1;
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn sent_head(&self, bytes: usize) {
        self.heads_sent.fetch_add(1, Ordering::Relaxed);
        self.sent(bytes);
    }
}
