//! The service's own report: from the status of its chains, its endpoints and Redis.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ethhook_domain::Profile;
use ethhook_ingest::status::{ChainStatus, Needs, Stall, UnreadyChain};
use ethhook_ingest::{ChainConfig, Metrics, StatusBoard};
use ethhook_streams::{RedisFailure, Streams};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::advice::{Seen, troubles};
use super::offline::standings;
use super::{Chain, Counts, Endpoint, Redis, Report, Service, State, Trouble};

/// How long a report is reused, so that all clients together cost Redis at most one query round a
/// second.
const REPORT_AGE: Duration = Duration::from_millis(900);
/// How often it is checked that Redis still evicts nothing.
const POLICY_EVERY: Duration = Duration::from_secs(60);
/// Seconds for which rates are kept.
const RATES: usize = 120;

/// A chain, and which of its endpoints have a WebSocket.
#[derive(Debug, Clone)]
struct Known {
    profile: Profile,
    sockets: Vec<bool>,
}

/// The number of events published at the last count, and in each second before.
#[derive(Debug, Default)]
struct Rate {
    events: u64,
    seconds: VecDeque<u64>,
}

type Made = Option<(Instant, Arc<Report>)>;

/// Everything that reports are made from; clones share it.
#[derive(Clone)]
pub(crate) struct Live {
    service: Service,
    streams: Streams,
    board: StatusBoard,
    metrics: Metrics,
    chains: Arc<[Known]>,
    max_lag: Duration,
    stopping: CancellationToken,
    rates: Arc<Mutex<HashMap<String, Rate>>>,
    last: Arc<tokio::sync::Mutex<Made>>,
    /// Redis' `maxmemory-policy`, if it evicts keys.
    evicting: Arc<Mutex<Option<String>>>,
}

impl Live {
    /// Reports on `chains`, using `board` and `metrics`; the service is stopping once `stopping` is cancelled.
    pub(crate) fn new(
        instance: &str,
        streams: Streams,
        board: StatusBoard,
        metrics: Metrics,
        chains: &[ChainConfig],
        max_lag: Duration,
        stopping: CancellationToken,
    ) -> Self {
        let known = |chain: &ChainConfig| Known {
            profile: chain.profile.clone(),
            sockets: chain.endpoints.iter().map(|endpoint| endpoint.ws.is_some()).collect(),
        };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self {
            service: Service { version, instance: instance.to_owned() },
            streams,
            board,
            metrics,
            chains: chains.iter().map(known).collect(),
            max_lag,
            stopping,
            rates: Arc::default(),
            last: Arc::default(),
            evicting: Arc::default(),
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// The chains that are not ready, and why.
    pub(crate) fn not_ready(&self) -> Vec<UnreadyChain> {
        self.board.not_ready(self.max_lag)
    }

    /// Checks that Redis answers.
    ///
    /// # Errors
    /// Its failure.
    pub(crate) async fn ping(&self) -> Result<(), RedisFailure> {
        self.streams.ping().await
    }

    /// Counts each second's events; never returns.
    pub(crate) async fn count(self) {
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
            for (name, status) in self.board.snapshot() {
                let rate = rates.entry(name).or_default();
                let events = status.events.saturating_sub(rate.events);
                rate.events = status.events;
                rate.seconds.push_back(events);
                if rate.seconds.len() > RATES {
                    rate.seconds.pop_front();
                }
            }
        }
    }

    /// Watches Redis' `maxmemory-policy`, which was right at the start; never returns.
    pub(crate) async fn watch_policy(self) {
        loop {
            tokio::time::sleep(POLICY_EVERY).await;
            self.check_policy().await;
        }
    }

    /// Logs each change once.
    async fn check_policy(&self) {
        // A Redis that does not answer is reported elsewhere.
        let Ok(found) = self.streams.eviction_policy().await else { return };
        let mut known = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
        if *known == found {
            return;
        }
        match &found {
            Some(policy) => tracing::error!(
                policy,
                "Redis evicts keys when memory is full, and published events with them: run CONFIG SET \
                 maxmemory-policy noeviction"
            ),
            None => tracing::info!("Redis evicts nothing any more"),
        }
        *known = found;
    }

    /// The current report; concurrent callers wait for the same one.
    pub(crate) async fn report(&self) -> Arc<Report> {
        let mut last = self.last.lock().await;
        if let Some((at, report)) = &*last
            && at.elapsed() < REPORT_AGE
        {
            return Arc::clone(report);
        }
        let report = Arc::new(self.make().await);
        *last = Some((Instant::now(), Arc::clone(&report)));
        report
    }

    async fn make(&self) -> Report {
        let profiles: Vec<_> = self.chains.iter().map(|known| &known.profile).collect();
        let (standings, failure) = standings(&self.streams, &profiles).await;
        let board: HashMap<_, _> = self.board.snapshot().into_iter().collect();
        let chain = |(known, standing): (&Known, Option<_>)| {
            let mut chain = Chain::unknown(&known.profile);
            let status = board.get(&known.profile.name).cloned().unwrap_or_default();
            // The last published block, in case Redis does not answer.
            chain.published = status.tip;
            if let Some(standing) = standing {
                chain.set_redis_state(standing);
            }
            self.set_live_status(&mut chain, &status, &known.sockets);
            chain
        };
        let chains = self.chains.iter().zip(standings).map(chain).collect();
        let mut wrong: Vec<_> = failure.iter().map(Trouble::no_redis).collect();
        let evicting = self.evicting.lock().unwrap_or_else(PoisonError::into_inner).clone();
        wrong.extend(evicting.as_deref().map(Trouble::evicting));
        if self.is_stopping() {
            wrong.push(Trouble::stopping());
        }
        let redis =
            Redis { address: self.streams.address(), failure: failure.map(|f| f.to_string()) };
        Report::new(Some(self.service.clone()), redis, wrong, chains)
    }

    /// Adds the status of the chain's own task.
    fn set_live_status(&self, chain: &mut Chain, status: &ChainStatus, sockets: &[bool]) {
        chain.state = match status.stall() {
            Some(Stall { needs: Needs::Turn, .. }) => State::StandingBy,
            Some(_) => State::Stalled,
            None if status.at_head => State::Following,
            None => State::CatchingUp,
        };
        chain.head = status.head;
        (chain.lag_blocks, chain.lag_seconds) =
            status.lag.map(|lag| (lag.blocks, lag.seconds)).unzip();
        let (published, taken_back, reorgs) = (status.events, status.removed, status.reorgs);
        chain.counts = Some(Counts { published, taken_back, reorgs });
        let rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rate) = rates.get(&chain.name) {
            chain.rates = rate.seconds.iter().copied().collect();
            chain.events_per_second = mean(&chain.rates);
        }
        drop(rates);
        let states = self.metrics.endpoints(&chain.name, sockets);
        chain.endpoints = states
            .into_iter()
            .enumerate()
            .map(|(position, state)| Endpoint {
                position,
                breaker: state.breaker,
                subscribed: state.subscribed,
                failed_checks: state.failed_checks,
                apart: state.apart,
                calls_per_second: state.pace.map(|pace| (pace * 10.0).round() / 10.0),
            })
            .collect();
        let seen = Seen {
            unready: status.unready(self.max_lag),
            cause: status.stalls.keys().next().copied(),
            lost_unread: status.lost_unread,
        };
        chain.troubles = troubles(chain, &seen);
    }
}

/// Mean, rounded to a tenth.
fn mean(rates: &[u64]) -> Option<f64> {
    let seconds = u32::try_from(rates.len()).ok().filter(|seconds| *seconds > 0)?;
    let tenths = u32::try_from(rates.iter().sum::<u64>() * 10 / u64::from(seconds)).ok()?;
    Some(f64::from(tenths) / 10.0)
}

#[cfg(test)]
mod tests {
    use ethhook_domain::Secret;
    use ethhook_streams::RedisConfig;
    use ethhook_testkit::redis_server::{RedisOptions, RedisServer};
    use prometheus::Registry;

    use super::*;

    #[tokio::test]
    async fn a_policy_that_evicts_is_a_trouble_until_it_is_right_again() {
        let redis = RedisServer::spawn(RedisOptions::default()).await.unwrap();
        let mut connection = redis.connection().await.unwrap();
        let streams = Streams::new(RedisConfig::new(Secret::new(redis.url()))).unwrap();
        let metrics = Metrics::register(&Registry::new()).unwrap();
        let (board, stopping) = (StatusBoard::new([]), CancellationToken::new());
        let live = Live::new("one", streams, board, metrics, &[], Duration::MAX, stopping);
        for (policy, is_ok) in [("noeviction", true), ("allkeys-lru", false), ("noeviction", true)]
        {
            let set = ["SET", "maxmemory-policy", policy];
            redis::cmd("CONFIG").arg(&set).exec_async(&mut connection).await.unwrap();
            live.check_policy().await;
            let report = live.make().await;
            assert_eq!(report.ok, is_ok, "{report:?}");
            let told = report.troubles.first().map(|trouble| trouble.what.contains(policy));
            assert_eq!(told, (!is_ok).then_some(true), "{report:?}");
        }
    }

    #[test]
    fn the_mean_is_of_all_seconds() {
        assert_eq!(mean(&[]), None);
        assert_eq!(mean(&[10, 0, 0]), Some(3.3));
    }
}
