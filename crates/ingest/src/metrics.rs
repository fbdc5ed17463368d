//! Every metric of the service. Labels: `chain` is the chain's name, `endpoint` the position of an
//! endpoint in its list (never its address); all others are short fixed words, except `group`, the
//! consumer group's name.

use std::time::Duration;

use ethhook_domain::verify::Check;
use ethhook_streams::{FailureKind, GroupLag};
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

use crate::rpc::BreakerState;

/// 1 ms to 10 s, fine enough to distinguish 3 ms from 4.
const LATENCY_BUCKETS: [f64; 24] = [
    0.001, 0.002, 0.003, 0.004, 0.005, 0.0065, 0.008, 0.01, 0.0125, 0.015, 0.02, 0.03, 0.04, 0.05,
    0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0,
];
const DEPTH_BUCKETS: [f64; 9] = [1.0, 2.0, 3.0, 5.0, 8.0, 16.0, 32.0, 64.0, 256.0];

macro_rules! metrics {
    ($($field:ident: $type:ident($name:literal, $help:literal, [$($label:literal),*] $(, $buckets:expr)?);)+) => {
        /// Handles to all metrics; cheap to clone.
        #[derive(Debug, Clone)]
        pub struct Metrics { $(pub(crate) $field: metrics!(@type $type),)+ }

        impl Metrics {
            /// Registers every metric.
            ///
            /// # Errors
            /// If a name is already registered.
            pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
                Ok(Self { $($field: {
                    let metric = metrics!(@new $type, $name, $help, [$($label),*] $(, $buckets)?)?;
                    registry.register(Box::new(metric.clone()))?;
                    metric
                },)+ })
            }
        }

        /// Name, kind, labels and help of every metric.
        #[cfg(test)]
        const ALL: &[(&str, &str, &[&str], &str)] =
            &[$(($name, stringify!($type), &[$($label),*], $help)),+];
    };
    (@type counter) => { IntCounterVec };
    (@type gauge) => { IntGaugeVec };
    (@type seconds) => { GaugeVec };
    (@type histogram) => { HistogramVec };
    (@new counter, $n:literal, $h:literal, [$($l:literal),*]) => { IntCounterVec::new(Opts::new($n, $h), &[$($l),*]) };
    (@new gauge, $n:literal, $h:literal, [$($l:literal),*]) => { IntGaugeVec::new(Opts::new($n, $h), &[$($l),*]) };
    (@new seconds, $n:literal, $h:literal, [$($l:literal),*]) => { GaugeVec::new(Opts::new($n, $h), &[$($l),*]) };
    (@new histogram, $n:literal, $h:literal, [$($l:literal),*], $b:expr) => {
        HistogramVec::new(HistogramOpts::new($n, $h).buckets($b.to_vec()), &[$($l),*])
    };
}

metrics! {
    ingested: counter("events_ingested_total", "Logs that passed the chain's checks and filter.", ["chain"]);
    published: counter("events_published_total", "Entries added to the event stream, not counting those that take one back.", ["chain"]);
    duplicates: counter("deduplication_hits_total", "Events skipped because the dedup record shows them as published.", ["chain"]);
    reconnects: counter("websocket_reconnects_total", "WebSocket connections that were lost or failed.", ["chain"]);
    removed: counter("ethhook_events_removed_total", "Entries that take an earlier one back.", ["chain"]);
    blocks: counter("ethhook_blocks_total", "Blocks by outcome.", ["chain", "outcome"]);
    head: gauge("ethhook_head_block", "Height of the newest head.", ["chain"]);
    tip: gauge("ethhook_published_block", "Height of the newest published block.", ["chain"]);
    finalized: gauge("ethhook_finalized_block", "Height of the newest block marked final.", ["chain"]);
    lag_blocks: gauge("ethhook_head_lag_blocks", "Blocks that the tip is behind the head minus confirmations, or behind the end block.", ["chain"]);
    lag_seconds: seconds("ethhook_head_lag_seconds", "The same lag in seconds, by block timestamps.", ["chain"]);
    reorg_depth: histogram("ethhook_reorg_depth_blocks", "Blocks orphaned by a reorg.", ["chain"], DEPTH_BUCKETS);
    checks_failed: counter("ethhook_checks_failed_total", "Answers that failed a check.", ["chain", "endpoint", "check"]);
    headers_unhashed: counter("ethhook_headers_unhashed_total", "Blocks whose header hash was not verified: unknown fields, or VERIFY=structure.", ["chain"]);
    rpc_requests: counter("ethhook_rpc_requests_total", "Calls by outcome; each call of a batch counts. Abandoned: no longer needed, mostly because another endpoint answered first.", ["chain", "endpoint", "method", "outcome"]);
    rpc_units: counter("ethhook_rpc_compute_units_total", "Cost of the calls in the provider's units, by its published prices; one unit per call if they are unknown.", ["chain", "endpoint", "method"]);
    rpc_seconds: histogram("ethhook_rpc_request_seconds", "Time from request to parsed answer.", ["chain", "endpoint", "method"], LATENCY_BUCKETS);
    hedges: counter("ethhook_rpc_hedges_total", "Requests also sent to the next endpoint because the answer was slow.", ["chain", "endpoint"]);
    pace: seconds("ethhook_rpc_pace", "Calls per second that an endpoint was found to accept, by its refusals; 0 while no limit is known.", ["chain", "endpoint"]);
    silent_subscriptions: counter("ethhook_stalls_total", "Subscriptions that sent no heads while the chain advanced.", ["chain"]);
    breaker: gauge("ethhook_breaker_state", "Breaker of an endpoint: 0 closed, 1 half-open, 2 open.", ["chain", "endpoint"]);
    socket: gauge("ethhook_websocket_up", "1 while subscribed to newHeads; only for endpoints with a WebSocket.", ["chain", "endpoint"]);
    apart: gauge("ethhook_endpoint_apart", "1 while an endpoint announces blocks of another branch than the stream's, for over a minute.", ["chain", "endpoint"]);
    heads_dropped: counter("ethhook_heads_dropped_total", "Heads dropped because the queue was full, as on a standby; their blocks are still fetched.", ["chain"]);
    publish_seconds: histogram("ethhook_publish_seconds", "Duration of a publish step, including retries.", ["chain"], LATENCY_BUCKETS);
    head_to_stream: histogram("ethhook_head_to_stream_seconds", "Time from a head's arrival until all entries of its block are in the stream.", ["chain"], LATENCY_BUCKETS);
    redis_errors: counter("ethhook_redis_errors_total", "Failed calls to Redis by kind.", ["chain", "kind"]);
    rollbacks: counter("ethhook_redis_rollbacks_total", "Times that Redis lost acknowledged steps.", ["chain"]);
    wipes: counter("ethhook_redis_wipes_total", "Times that Redis lost all data of the chain.", ["chain"]);
    queue: gauge("ethhook_queue_blocks", "Blocks known but not yet published.", ["chain"]);
    stream_entries: gauge("ethhook_stream_entries", "Length of the event stream.", ["chain"]);
    stream_bytes: gauge("ethhook_stream_bytes", "Estimated memory of the chain's streams in Redis: entries and markers.", ["chain"]);
    trimmed: counter("ethhook_entries_trimmed_total", "Entries that retention removed.", ["chain"]);
    lost_unread: counter("ethhook_entries_lost_unread_total", "Entries removed by the byte cap before a group acknowledged them.", ["chain", "group"]);
    group_entries: seconds("ethhook_group_lag_entries", "Entries that a consumer group has not read or not acknowledged; NaN if Redis does not know.", ["chain", "group"]);
    group_seconds: seconds("ethhook_group_lag_seconds", "Age of the oldest entry that a consumer group has not read or not acknowledged.", ["chain", "group"]);
    group_idle: gauge("ethhook_group_idle", "1 if a consumer group has not read for GROUP_IDLE_ALARM_HOURS although entries are waiting.", ["chain", "group"]);
    alarm: gauge("ethhook_alarm", "1 while the chain is stopped by a latched alarm.", ["chain"]);
    verify_lowered: gauge("ethhook_verify_lowered", "1 if the operator lowered the chain's checks.", ["chain"]);
    restarts: counter("ethhook_chain_restarts_total", "Restarts of a chain's task or session, by cause.", ["chain", "cause"]);
}

/// The state of one endpoint, for display.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EndpointState {
    /// Whether it is in use.
    pub breaker: BreakerState,
    /// Whether it is subscribed to `newHeads`; none if it has no WebSocket.
    pub subscribed: Option<bool>,
    /// Answers of it that failed a check, since the process started.
    pub failed_checks: u64,
    /// Whether it follows another branch than the stream.
    pub apart: bool,
    /// Calls per second that it was found to accept, by its refusals; none while no limit is known.
    pub pace: Option<f64>,
}

impl Metrics {
    /// The state of the endpoints of `chain`, by position; `sockets` says which have a WebSocket.
    #[must_use]
    pub fn endpoints(&self, chain: &str, sockets: &[bool]) -> Vec<EndpointState> {
        let state = |(position, has_socket): (usize, &bool)| {
            let position = position.to_string();
            let labels = [chain, position.as_str()];
            let failed = |check: &Check| {
                let labels = [chain, position.as_str(), check.as_str()];
                self.checks_failed.with_label_values(&labels).get()
            };
            let subscribed = || self.socket.with_label_values(&labels).get() == 1;
            let breaker = self.breaker.with_label_values(&labels).get();
            EndpointState {
                breaker: BreakerState::shown_as(breaker),
                subscribed: has_socket.then(subscribed),
                failed_checks: Check::ALL.iter().map(failed).sum(),
                apart: self.apart.with_label_values(&labels).get() == 1,
                pace: Some(self.pace.with_label_values(&labels).get()).filter(|pace| *pace > 0.0),
            }
        };
        sockets.iter().enumerate().map(state).collect()
    }

    pub(crate) fn restarted(&self, chain: &str, cause: &str) {
        self.restarts.with_label_values(&[chain, cause]).inc();
    }
}

/// What became of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) enum BlockOutcome {
    Added,
    Removed,
    /// It was no longer wanted before it was published.
    Skipped,
    /// It failed a check, and is fetched again.
    Refused,
}

impl BlockOutcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Skipped => "skipped",
            Self::Refused => "refused",
        }
    }
}

/// The metrics of one chain.
#[derive(Debug, Clone)]
pub(crate) struct ChainMetrics {
    all: Metrics,
    chain: String,
    pub(crate) ingested: IntCounter,
    pub(crate) published: IntCounter,
    pub(crate) duplicates: IntCounter,
    pub(crate) removed: IntCounter,
    pub(crate) rollbacks: IntCounter,
    pub(crate) wipes: IntCounter,
    pub(crate) unhashed: IntCounter,
    pub(crate) head: IntGauge,
    pub(crate) tip: IntGauge,
    pub(crate) finalized: IntGauge,
    pub(crate) lag_blocks: IntGauge,
    pub(crate) lag_seconds: Gauge,
    pub(crate) reorg_depth: Histogram,
    pub(crate) publish_seconds: Histogram,
    pub(crate) head_to_stream: Histogram,
    pub(crate) queue: IntGauge,
    pub(crate) stream_entries: IntGauge,
    pub(crate) stream_bytes: IntGauge,
    pub(crate) trimmed: IntCounter,
    pub(crate) silent_subscriptions: IntCounter,
    pub(crate) alarm: IntGauge,
    pub(crate) verify_lowered: IntGauge,
}

impl ChainMetrics {
    pub(crate) fn new(all: &Metrics, chain: &str) -> Self {
        let l = &[chain];
        // Initialized, so that alerts see an increase from 0 and not a new series.
        let out_of_memory = FailureKind::OutOfMemory.as_str();
        all.redis_errors.with_label_values(&[chain, out_of_memory]).inc_by(0);
        Self {
            ingested: all.ingested.with_label_values(l),
            published: all.published.with_label_values(l),
            duplicates: all.duplicates.with_label_values(l),
            removed: all.removed.with_label_values(l),
            rollbacks: all.rollbacks.with_label_values(l),
            wipes: all.wipes.with_label_values(l),
            unhashed: all.headers_unhashed.with_label_values(l),
            head: all.head.with_label_values(l),
            tip: all.tip.with_label_values(l),
            finalized: all.finalized.with_label_values(l),
            lag_blocks: all.lag_blocks.with_label_values(l),
            lag_seconds: all.lag_seconds.with_label_values(l),
            reorg_depth: all.reorg_depth.with_label_values(l),
            publish_seconds: all.publish_seconds.with_label_values(l),
            head_to_stream: all.head_to_stream.with_label_values(l),
            queue: all.queue.with_label_values(l),
            stream_entries: all.stream_entries.with_label_values(l),
            stream_bytes: all.stream_bytes.with_label_values(l),
            trimmed: all.trimmed.with_label_values(l),
            silent_subscriptions: all.silent_subscriptions.with_label_values(l),
            alarm: all.alarm.with_label_values(l),
            verify_lowered: all.verify_lowered.with_label_values(l),
            all: all.clone(),
            chain: chain.to_owned(),
        }
    }

    pub(crate) fn block(&self, outcome: BlockOutcome) {
        self.all.blocks.with_label_values(&[&self.chain, outcome.as_str()]).inc();
    }

    pub(crate) fn redis_error(&self, kind: &str) {
        self.all.redis_errors.with_label_values(&[&self.chain, kind]).inc();
    }

    pub(crate) fn lost_unread(&self, group: &str, entries: u64) {
        self.all.lost_unread.with_label_values(&[&self.chain, group]).inc_by(entries);
    }

    /// Exports a group's lag and whether it counts as idle.
    pub(crate) fn group(&self, lag: &GroupLag, is_idle: bool) {
        let labels = [self.chain.as_str(), &lag.group];
        // Far below 2^53, so exact.
        #[allow(clippy::cast_precision_loss, reason = "a metric")]
        let entries = lag.entries.map_or(f64::NAN, |entries| entries as f64);
        self.all.group_entries.with_label_values(&labels).set(entries);
        self.all.group_seconds.with_label_values(&labels).set(lag.waiting.as_secs_f64());
        self.all.group_idle.with_label_values(&labels).set(is_idle.into());
        // Initialized, so that alerts see an increase from 0 and not a new series.
        self.lost_unread(&lag.group, 0);
    }

    /// Removes the metrics of a group that no longer exists.
    pub(crate) fn group_gone(&self, group: &str) {
        let labels = [self.chain.as_str(), group];
        // An error only means that there was no such series.
        self.all.group_entries.remove_label_values(&labels).ok();
        self.all.group_seconds.remove_label_values(&labels).ok();
        self.all.group_idle.remove_label_values(&labels).ok();
    }

    pub(crate) fn restart(&self, cause: &str) {
        self.all.restarted(&self.chain, cause);
    }

    pub(crate) fn endpoint(&self, position: usize) -> EndpointMetrics {
        let label = position.to_string();
        // Initialized, so that alerts see an increase from 0 and not a new series.
        for check in Check::ALL {
            let labels = [self.chain.as_str(), &label, check.as_str()];
            self.all.checks_failed.with_label_values(&labels).inc_by(0);
        }
        self.all.apart.with_label_values(&[&self.chain, &label]).set(0);
        self.all.pace.with_label_values(&[&self.chain, &label]).set(0.0);
        EndpointMetrics {
            position,
            reconnects: self.all.reconnects.with_label_values(&[&self.chain]),
            heads_dropped: self.all.heads_dropped.with_label_values(&[&self.chain]),
            hedges: self.all.hedges.with_label_values(&[&self.chain, &label]),
            breaker: self.all.breaker.with_label_values(&[&self.chain, &label]),
            all: self.all.clone(),
            chain: self.chain.clone(),
            label,
        }
    }
}

/// The metrics of one endpoint.
#[derive(Debug, Clone)]
pub(crate) struct EndpointMetrics {
    all: Metrics,
    chain: String,
    label: String,
    /// Its position in the list, which is its name in logs.
    pub(crate) position: usize,
    pub(crate) reconnects: IntCounter,
    pub(crate) heads_dropped: IntCounter,
    pub(crate) hedges: IntCounter,
    breaker: IntGauge,
}

impl EndpointMetrics {
    /// Counts calls, answered or not.
    pub(crate) fn requested(&self, method: &str, calls: u32, outcome: &str) {
        let labels = [self.chain.as_str(), &self.label, method, outcome];
        self.all.rpc_requests.with_label_values(&labels).inc_by(calls.into());
    }

    /// How long a message took.
    pub(crate) fn took(&self, method: &str, took: Duration) {
        let labels = [self.chain.as_str(), &self.label, method];
        self.all.rpc_seconds.with_label_values(&labels).observe(took.as_secs_f64());
    }

    /// How many messages about `method` there were.
    #[cfg(test)]
    pub(crate) fn messages(&self, method: &str) -> u64 {
        let labels = [self.chain.as_str(), &self.label, method];
        self.all.rpc_seconds.with_label_values(&labels).get_sample_count()
    }

    /// How many calls of `method` ended so.
    #[cfg(test)]
    pub(crate) fn requests(&self, method: &str, outcome: &str) -> u64 {
        let labels = [self.chain.as_str(), &self.label, method, outcome];
        self.all.rpc_requests.with_label_values(&labels).get()
    }

    pub(crate) fn spent(&self, method: &str, units: u64) {
        self.all.rpc_units.with_label_values(&[&self.chain, &self.label, method]).inc_by(units);
    }

    pub(crate) fn check_failed(&self, check: &str) {
        self.all.checks_failed.with_label_values(&[&self.chain, &self.label, check]).inc();
    }

    pub(crate) fn breaker(&self, state: BreakerState) {
        self.breaker.set(state as i64);
    }

    pub(crate) fn apart(&self, apart: bool) {
        self.all.apart.with_label_values(&[&self.chain, &self.label]).set(i64::from(apart));
    }

    /// Calls per minute; none for no limit.
    pub(crate) fn pace(&self, per_minute: Option<u32>) {
        let per_second = f64::from(per_minute.unwrap_or_default()) / 60.0;
        self.all.pace.with_label_values(&[&self.chain, &self.label]).set(per_second);
    }

    pub(crate) fn socket_up(&self, up: bool) {
        self.all.socket.with_label_values(&[&self.chain, &self.label]).set(i64::from(up));
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    #[test]
    fn the_guide_lists_every_metric() {
        let mut table = "| Metric | Kind | Labels | |\n|---|---|---|---|\n".to_owned();
        for (name, kind, labels, help) in ALL {
            let kind = if *kind == "seconds" { "gauge" } else { kind };
            let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
            writeln!(table, "| `{name}` | {kind} | {} | {help} |", labels.join(", ")).unwrap();
        }
        let checks: Vec<_> =
            Check::ALL.iter().map(|check| format!("`{}`", check.as_str())).collect();
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
        let guide = std::fs::read_to_string(file).unwrap();
        for part in [table, checks.join(", ")] {
            assert!(
                guide.replace('\n', " ").contains(&part.replace('\n', " ")),
                "{file} lacks:\n{part}"
            );
        }
    }
}
