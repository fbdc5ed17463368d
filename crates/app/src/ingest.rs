//! `ethhook ingest`: checks everything and reports all problems at once, then runs, then drains on
//! a signal.

use std::io::ErrorKind;
use std::time::Duration;

use ethhook_ingest::{Metrics, StatusBoard};
use ethhook_streams::{RedisConfig, ServerInfo, Streams};
use hyper::StatusCode;
use prometheus::{Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Inputs, Invalid, Problem, Service};
use crate::health::Health;
use crate::http::{self, Answer};
use crate::process_metrics::ProcessMetrics;
use crate::signals::Signals;
use crate::status::live::Live;
use crate::{Exit, logging, progress, tell};

/// Time limit for steps on the wire to Redis; an exit may take 8 s, so the rest is a reserve.
const DRAIN: Duration = Duration::from_secs(7);

/// Runs until a signal. Problems found before the start are printed on standard error, a line each.
pub(crate) async fn run(inputs: &Inputs, with_progress: bool) -> anyhow::Result<Exit> {
    // Before anything else, so that no signal ends the process unhandled.
    let mut signals = Signals::new()?;
    let ready = tokio::select! {
        ready = Ready::prepare(inputs) => ready,
        () = signals.next() => return Ok(Exit::Done),
    };
    match ready {
        Ok(ready) => ready.run(signals, with_progress).await,
        Err(NotReady { problems, exit: Exit::BadConfiguration }) => {
            Err(Invalid::from(problems).into())
        }
        Err(NotReady { problems, exit }) => {
            tell(&problems);
            Ok(exit)
        }
    }
}

/// Everything that can fail has been tried; nothing is running yet.
struct Ready {
    config: Config,
    streams: Streams,
    server: ServerInfo,
    metrics_listener: TcpListener,
    health_listener: TcpListener,
}

/// Why nothing was started.
struct NotReady {
    problems: Vec<Problem>,
    exit: Exit,
}

impl Ready {
    /// Tries configuration and Redis, or with a right configuration Redis and ports: a problem with one does not hide
    /// those with another.
    async fn prepare(inputs: &Inputs) -> Result<Self, NotReady> {
        let bad = |problems| NotReady { problems, exit: Exit::BadConfiguration };
        let config = match Config::load(inputs) {
            Ok(config) => config,
            Err(mut invalid) => {
                if let Some(redis) = invalid.redis {
                    invalid.problems.extend(try_redis(redis).await.err().map(|(p, _)| p));
                }
                return Err(bad(invalid.problems));
            }
        };
        if let Err(error) = logging::start(&config.logging) {
            return Err(bad(vec![Problem::new("RUST_LOG", format!("{error:#}"))]));
        }
        let mut problems = Vec::new();
        let mut exit = Exit::Failed;
        let metrics = listen(&config.service, "METRICS_PORT", config.service.metrics_port).await;
        let health = listen(&config.service, "HEALTH_PORT", config.service.health_port).await;
        let streams = try_redis(config.redis.clone()).await;
        let metrics_listener = metrics.map_err(|problem| problems.push(problem)).ok();
        let health_listener = health.map_err(|problem| problems.push(problem)).ok();
        let streams = streams
            .map_err(|(problem, is_retryable)| {
                problems.push(problem);
                if !is_retryable {
                    exit = Exit::BadConfiguration;
                }
            })
            .ok();
        match (streams, metrics_listener, health_listener) {
            (Some((streams, server)), Some(metrics_listener), Some(health_listener)) => {
                Ok(Self { config, streams, server, metrics_listener, health_listener })
            }
            _ => Err(NotReady { problems, exit }),
        }
    }

    async fn run(self, mut signals: Signals, with_progress: bool) -> anyhow::Result<Exit> {
        let Self { config, streams, server, metrics_listener, health_listener } = self;
        if !server.appends {
            tracing::warn!(
                "Redis has no append-only file: a restart of Redis loses all streams, and each chain starts \
                 over at its first block; run CONFIG SET appendonly yes"
            );
        }
        if let Some(warning) = config.service.oversized(server.maxmemory, config.chains.len()) {
            tracing::warn!("{warning}");
        }
        let registry = Registry::new();
        let metrics = Metrics::register(&registry)?;
        let process = ProcessMetrics::register(&registry)?;
        let status = StatusBoard::new(&config.chains);
        let stopping = CancellationToken::new();
        announce(&metrics_listener, &health_listener);

        // Both servers keep answering until the very end.
        let mut servers = JoinSet::new();
        let live = Live::new(
            &config.service.options.instance_id,
            streams.clone(),
            status.clone(),
            metrics.clone(),
            &config.chains,
            config.service.ready_max_lag,
            stopping.clone(),
        );
        servers.spawn(live.clone().count());
        servers.spawn(live.clone().watch_policy());
        let health = Health::new(live);
        let end = CancellationToken::new();
        servers.spawn(http::serve(
            health_listener,
            move |path| health.clone().answer(path),
            end.clone(),
        ));
        servers.spawn(http::serve(
            metrics_listener,
            move |path| std::future::ready(scrape(&path, &registry, &process)),
            end.clone(),
        ));
        if with_progress {
            servers.spawn(progress::print(status.clone()));
        }
        let mut ingestor = JoinSet::new();
        ingestor.spawn(ethhook_ingest::run(
            config.chains,
            config.service.options,
            streams,
            metrics,
            status,
            stopping.clone(),
        ));

        let exit = tokio::select! {
            () = signals.next() => {
                tracing::info!("stopping: waiting for the steps sent to Redis");
                stopping.cancel();
                drain(&mut ingestor, &mut signals).await
            }
            ended = ingestor.join_next() => {
                tracing::error!(?ended, "the ingestor ended unexpectedly");
                Exit::Failed
            }
        };
        end.cancel();
        Ok(exit)
    }
}

/// Waits for the ingestor for a limited time: thanks to the cursor, an abrupt end is safe.
async fn drain(ingestor: &mut JoinSet<()>, signals: &mut Signals) -> Exit {
    tokio::select! {
        ended = ingestor.join_next() => {
            if let Some(Err(error)) = ended {
                tracing::error!(%error, "the ingestor failed while stopping");
            }
            tracing::info!("stopped");
        }
        () = tokio::time::sleep(DRAIN) => {
            tracing::warn!("Redis has not answered in time; the next start continues from the cursor");
        }
        () = signals.next() => tracing::warn!("stopped immediately at the second signal"),
    }
    Exit::Done
}

async fn listen(service: &Service, key: &'static str, port: u16) -> Result<TcpListener, Problem> {
    let address = service.bind_address;
    TcpListener::bind((address, port)).await.map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => {
            Problem::new(key, format!("{port} is already in use: choose another"))
        }
        ErrorKind::PermissionDenied => Problem::new(
            key,
            format!("{port} needs privileges that this user lacks: choose one above 1023"),
        ),
        ErrorKind::AddrNotAvailable => {
            Problem::new("BIND_ADDRESS", format!("{address} is not an address of this machine"))
        }
        _ => Problem::new(key, format!("cannot listen on {address}:{port}: {error}")),
    })
}

/// If a configured port is 0, only this line tells which port is used.
fn announce(metrics: &TcpListener, health: &TcpListener) {
    let url = |listener: &TcpListener, path| {
        listener.local_addr().map_or_else(|e| e.to_string(), |at| format!("http://{at}/{path}"))
    };
    tracing::info!(
        metrics = url(metrics, "metrics"),
        health = url(health, "health"),
        ready = url(health, "ready"),
        "listening"
    );
}

/// On failure, the problem and whether trying again may help.
async fn try_redis(config: RedisConfig) -> Result<(Streams, ServerInfo), (Problem, bool)> {
    let streams = Streams::new(config).map_err(|e| (Problem::line(e.to_string()), false))?;
    match streams.preflight().await {
        Ok(server) => Ok((streams, server)),
        Err(error) => Err((Problem::line(error.to_string()), error.is_retryable())),
    }
}

fn scrape(path: &str, registry: &Registry, process: &ProcessMetrics) -> Option<Answer> {
    if path != "/metrics" {
        return None;
    }
    process.refresh();
    let text = TextEncoder::new().encode_to_string(&registry.gather());
    Some(match text {
        Ok(body) => Answer::whole(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body),
        Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    })
}
