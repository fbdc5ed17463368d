//! One chain: from its endpoints' heads to its stream.
//!
//! [`Chain::run`] opens a session on what Redis holds, drives it until it ends, and opens the next
//! one. The stream is the log: whatever happened to Redis, the lease or the process, the cursor
//! says where to continue (G4).

mod open;
mod queue;
mod session;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ethhook_domain::ChainId;
use ethhook_streams::Streams;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, error, info, warn};

use crate::config::{ChainConfig, Options};
use crate::metrics::ChainMetrics;
use crate::node::Node;
use crate::rpc::SocketEvent;
use crate::status::{Cause, ChainBoard, Needs};
use crate::{Metrics, StatusBoard};

/// Heads that may be queued for the chain; dropped ones are noticed by the gap that they leave.
const MAX_HEADS: usize = 64;

/// Time limit for releasing a lease.
const RELEASE: Duration = Duration::from_secs(1);

/// Waits between two sessions.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The wait after a session that lasted this long, when the last wait was `wait`. Prevents a hot loop, whatever the
/// cause.
fn wait_after(wait: Duration, lasted: Duration) -> Duration {
    if lasted > LONGEST_WAIT { FIRST_WAIT } else { (2 * wait).min(LONGEST_WAIT) }
}

/// Why a session ended.
enum End {
    /// The process is stopping.
    Cancelled,
    /// What the session began with no longer holds; the next one finds out more.
    Reopen(&'static str),
    /// Redis refused a step that should have been valid; why.
    Refused(String),
    /// The node's chain shares no block with ours: first check whether it is the same chain at all.
    Replaced,
    /// An alarm is latched in the cursor: the chain continues when an operator has cleared it.
    Alarm,
    /// Another process wrote with our own `INSTANCE_ID` and a later epoch.
    Namesake,
}

/// One chain's task with all its state; it shares nothing but Redis with other chains.
pub(crate) struct Chain {
    config: ChainConfig,
    options: Options,
    streams: Streams,
    node: Arc<Node>,
    metrics: ChainMetrics,
    status: ChainBoard,
    /// The start block that this process resolved or found in a cursor: after a wipe of Redis the stream starts there
    /// again, after a reset it does not.
    resolved_start: Option<u64>,
    /// Whether this process has seen the stream; a reset ends it.
    has_begun: bool,
    /// The epoch of our last lease.
    epoch: Option<u64>,
    /// When the chain was last reset, as far as known.
    last_reset: Option<String>,
    /// The last session ended because another branch replaced all of its blocks; since then the genesis block was
    /// checked.
    may_be_replaced: bool,
    /// A permit for each chain that this process may hold; one is taken before the lease.
    chain_permits: Arc<Semaphore>,
}

impl Chain {
    /// Ingests until `cancel`.
    pub(crate) async fn run(
        config: ChainConfig,
        options: Options,
        streams: Streams,
        metrics: Metrics,
        status: StatusBoard,
        chain_permits: Arc<Semaphore>,
        cancel: CancellationToken,
    ) {
        let metrics = ChainMetrics::new(&metrics, &config.profile.name);
        metrics.verify_lowered.set(config.profile.is_lowered().into());
        let (heads_in, mut heads) = mpsc::channel(MAX_HEADS);
        let (node, running) = Node::new(&config, &heads_in, &metrics);
        let mut sockets = JoinSet::new();
        for socket in running {
            sockets.spawn(socket.run().instrument(Span::current()));
        }
        let node = Arc::new(node);
        let status = status.chain(&config.profile.name);
        let mut chain = Self {
            config,
            options,
            streams,
            node,
            metrics,
            status,
            resolved_start: None,
            has_begun: false,
            epoch: None,
            last_reset: None,
            may_be_replaced: false,
            chain_permits,
        };
        let sessions = chain.sessions(&mut heads, &cancel);
        tokio::select! {
            () = sessions => {}
            // A socket's task never ends on its own.
            Some(ended) = sockets.join_next() => error!(?ended, "a WebSocket task ended: the chain restarts"),
        }
    }

    async fn sessions(
        &mut self,
        heads: &mut mpsc::Receiver<SocketEvent>,
        cancel: &CancellationToken,
    ) {
        let mut wait = FIRST_WAIT;
        let mut last_namesake: Option<Instant> = None;
        loop {
            let opened = tokio::select! {
                opened = self.open() => opened,
                () = cancel.cancelled() => return self.release_lease().await,
            };
            let started = Instant::now();
            let cursor = opened.publisher.cursor();
            info!(
                tip = cursor.number,
                start = cursor.start_number,
                epoch = cursor.epoch,
                "session opened"
            );
            let end = self.drive(opened, heads, cancel).await;
            self.may_be_replaced = matches!(end, End::Replaced);
            let cause = match end {
                End::Cancelled => return,
                End::Reopen(cause) => cause,
                End::Replaced => "replaced",
                End::Alarm => "alarm",
                End::Refused(why) => {
                    self.status.stalled(Cause::Refusal, self.advising(why), Needs::Operator);
                    "refused"
                }
                End::Namesake => {
                    // Once may be our own request arriving late; twice is another process.
                    let window = 3 * self.options.lease_ttl;
                    if last_namesake.is_some_and(|at| at.elapsed() < window) {
                        let why = format!(
                            "another process with INSTANCE_ID `{}` has taken this chain: give each \
                             its own; this one continues when the other ends",
                            self.options.instance_id
                        );
                        self.status.stalled(Cause::Opening, why, Needs::Operator);
                        tokio::select! {
                            () = self.lease_runs_out() => {}
                            () = cancel.cancelled() => return,
                        }
                    }
                    last_namesake = Some(Instant::now());
                    "namesake"
                }
            };
            warn!(cause, "session ended: continuing from the cursor in Redis");
            self.metrics.restart(cause);
            wait = wait_after(wait, started.elapsed());
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = cancel.cancelled() => return self.release_lease().await,
            }
        }
    }

    /// Releases a lease that the last session has left, so that an operator's command need not wait until it expires.
    async fn release_lease(&self) {
        let Some(epoch) = self.epoch else { return };
        let options = self.options.for_writer();
        let released = self.streams.release_lease(self.id(), &options, epoch);
        timeout(RELEASE, released).await.ok(); // otherwise it expires
    }

    /// Waits until the lease is no longer held under our own name.
    async fn lease_runs_out(&self) {
        loop {
            tokio::time::sleep(self.options.renew_every()).await;
            if let Ok(holder) = self.streams.lease_holder(self.id()).await
                && holder.is_none_or(|holder| holder.owner != self.options.instance_id)
            {
                return;
            }
        }
    }

    /// What is wrong, with the chain's name in the command that it advises.
    fn advising(&self, why: impl ToString) -> String {
        let command = format!("`ethhook reset --chain {}`", self.config.profile.name);
        why.to_string().replace("`ethhook reset`", &command)
    }

    fn id(&self) -> ChainId {
        self.config.profile.chain_id
    }
}

#[cfg(test)]
mod tests {
    use super::session::scene::Scene;
    use super::*;

    #[tokio::test]
    async fn a_chain_that_is_stalled_gives_its_own_lease_up_when_it_is_stopped() {
        let mut scene = Scene::of(ChainConfig::local([])).await;
        let ours = scene.publisher().await.cursor().epoch;
        let later = scene.publisher().await.cursor().epoch;
        let cancel = CancellationToken::new();
        cancel.cancel();
        let (_heads_in, mut heads) = mpsc::channel(1);
        for (epoch, is_left) in [(None, true), (Some(ours), true), (Some(later), false)] {
            scene.chain.epoch = epoch;
            scene.chain.sessions(&mut heads, &cancel).await;
            let holder = scene.chain.streams.lease_holder(scene.chain.id()).await.unwrap();
            assert_eq!(holder.is_some(), is_left, "{epoch:?}");
        }
    }

    #[tokio::test]
    async fn g5_a_namesake_is_waited_for_until_nobody_holds_the_lease_in_our_name() {
        let mut scene = Scene::of(ChainConfig::local([])).await;
        scene.chain.options.lease_ttl = Duration::from_millis(90);
        let set = async |owner: &str| {
            let set = format!("SET lease:{{events:31337}} {owner}");
            scene.redis.ask::<String>(&set).await.unwrap();
        };
        let waits = async || timeout(Duration::from_secs(1), scene.chain.lease_runs_out()).await;
        set("test").await;
        assert!(waits().await.is_err(), "it holds it");
        set("another").await;
        assert!(waits().await.is_ok(), "another took it over");
        set("test").await;
        scene.redis.ask::<u64>("DEL lease:{events:31337}").await.unwrap();
        assert!(waits().await.is_ok(), "nobody holds it");
    }

    #[test]
    fn sessions_that_end_soon_wait_longer_each_time_and_one_that_lasted_starts_over() {
        let mut wait = FIRST_WAIT;
        let mut waits = |lasted| {
            wait = wait_after(wait, lasted);
            wait.as_millis()
        };
        let soon: Vec<_> = (0..8).map(|_| waits(Duration::from_secs(1))).collect();
        assert_eq!(soon, [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
        assert_eq!(waits(Duration::from_secs(11)), 100);
        assert_eq!(waits(Duration::ZERO), 200);
    }
}
