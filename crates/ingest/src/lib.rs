//! From a node to the publisher: endpoints, the chain task, metrics and status.
//!
//! The path of a block: `rpc` receives its head, `chain::session` has the canonical chain decide,
//! `node` fetches and checks its logs, `chain::queue` holds it until its turn, and
//! `chain::session::pipeline` hands it to the publish step. One task per chain; chains share nothing
//! but Redis (G9).

mod backoff;
mod chain;
pub mod config;
pub mod inquiry;
pub mod metrics;
mod node;
mod rpc;
pub mod status;
#[cfg(test)]
mod testing;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

pub use config::{ByteCap, ChainConfig, EndpointConfig, Fetch, Options, StartBlock};
use ethhook_streams::Streams;
pub use metrics::{EndpointState, Metrics};
pub use rpc::BreakerState;
pub use status::StatusBoard;
use tokio::sync::Semaphore;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info_span};

/// A chain whose task ended unexpectedly is restarted after this long.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// Ingests `chains` until `cancel`: one supervised task each, restarted if it panics or ends on its
/// own.
pub async fn run(
    chains: Vec<ChainConfig>,
    options: Options,
    streams: Streams,
    metrics: Metrics,
    status: StatusBoard,
    cancel: CancellationToken,
) {
    let max_chains = options.max_chains.map_or(chains.len(), |most| most.get() as usize);
    let chain_permits = Arc::new(Semaphore::new(max_chains));
    let start = |config: &ChainConfig| {
        let span = info_span!("ingest", chain = config.profile.name);
        chain::Chain::run(
            config.clone(),
            options.clone(),
            streams.clone(),
            metrics.clone(),
            status.clone(),
            Arc::clone(&chain_permits),
            cancel.clone(),
        )
        .instrument(span)
    };
    let ended = |config: &ChainConfig, cause: &'static str| {
        error!(
            chain = config.profile.name,
            cause, "a chain's task ended unexpectedly: restarting it"
        );
        metrics.restarted(&config.profile.name, cause);
    };
    supervise(&chains, start, ended, &cancel).await;
}

/// Keeps one task for each of `chains` running until `cancel`. `ended` is called for each that
/// panics or ends on its own; other tasks are not affected.
async fn supervise<C, F>(
    chains: &[C],
    start: impl Fn(&C) -> F,
    ended: impl Fn(&C, &'static str),
    cancel: &CancellationToken,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    let mut owners: Vec<Id> = chains.iter().map(|chain| tasks.spawn(start(chain)).id()).collect();
    while let Some(result) = tasks.join_next_with_id().await {
        let (id, cause) = match result {
            Ok((id, ())) => (id, "ended"),
            Err(error) => (error.id(), "panic"),
        };
        let Some(index) = owners.iter().position(|owned| *owned == id) else { continue };
        if cancel.is_cancelled() {
            continue;
        }
        ended(&chains[index], cause);
        let again = start(&chains[index]);
        owners[index] = tasks
            .spawn(async move {
                tokio::time::sleep(RESTART_AFTER).await;
                again.await;
            })
            .id();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn g9_a_panic_restarts_one_chain_and_is_told() {
        let starts: Arc<[AtomicU32; 2]> = Arc::default();
        let told = AtomicU32::new(0);
        let cancel = CancellationToken::new();
        let start = |chain: &usize| {
            let (starts, cancel, chain) = (Arc::clone(&starts), cancel.clone(), *chain);
            async move {
                let before = starts[chain].fetch_add(1, Ordering::Relaxed);
                if chain == 0 && before < 2 {
                    panic!("a defect");
                }
                if chain == 0 {
                    cancel.cancel();
                }
                cancel.cancelled().await;
            }
        };
        let ended = |chain: &usize, cause: &str| {
            assert_eq!((*chain, cause), (0, "panic"));
            told.fetch_add(1, Ordering::Relaxed);
        };
        supervise(&[0, 1], start, ended, &cancel).await;
        assert_eq!(starts[0].load(Ordering::Relaxed), 3);
        assert_eq!(starts[1].load(Ordering::Relaxed), 1, "the other chain was not touched");
        assert_eq!(told.load(Ordering::Relaxed), 2);
    }
}
