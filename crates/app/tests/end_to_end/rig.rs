//! One ingestor process with its own Redis.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use ethhook_testkit::checker::Checker;
use ethhook_testkit::ingestor::Ingestor;
use ethhook_testkit::node_rpc::NodeRpc;
use ethhook_testkit::redis_server::{RedisOptions, RedisServer};
use tokio::time::{Instant, sleep};

/// Time limit for the stream to reach the head after any fault.
pub(crate) const SETTLE: Duration = Duration::from_secs(60);
/// Time limit from SIGTERM to exit, whatever is down.
const EXIT: Duration = Duration::from_secs(8);

/// A Redis and an ingestor; both end when dropped, and the log is shown if the test failed.
pub(crate) struct Rig<R = RedisServer> {
    pub(crate) redis: R,
    ingestor: Ingestor,
}

impl Rig {
    pub(crate) async fn new() -> Self {
        Self::with_redis(RedisOptions::default()).await
    }

    pub(crate) async fn with_redis(options: RedisOptions) -> Self {
        let redis = RedisServer::spawn(options).await.unwrap();
        let url = redis.url();
        Self::over(redis, &url)
    }

    pub(crate) async fn checker(&self, node: NodeRpc, chain_id: u64) -> Checker {
        Checker::connect(&self.redis.url(), node, chain_id).await.unwrap()
    }
}

impl<R> Rig<R> {
    /// With a Redis of any form, at `url`.
    pub(crate) fn over(redis: R, url: &str) -> Self {
        Self { redis, ingestor: ingestor_at(url, "rig") }
    }

    /// Starts the ingestor without waiting for anything.
    pub(crate) fn start(&mut self) {
        self.ingestor.start().unwrap();
    }

    /// Sends SIGKILL and waits for the end.
    pub(crate) async fn kill(&mut self) {
        self.ingestor.kill().await.unwrap();
    }

    /// SIGTERM; it must exit with 0 in time.
    pub(crate) async fn terminate(&mut self) {
        self.ingestor.terminate(EXIT).await.unwrap();
    }

    /// Runs another command of the program in the same folder and environment.
    pub(crate) async fn command(&self, arguments: &[&str]) -> Output {
        self.ingestor.command(arguments).await.unwrap()
    }

    /// Polls a page until `holds` is true of it.
    pub(crate) async fn wait_for(&self, page: &str, holds: impl Fn(u16, &str) -> bool) -> String {
        wait_for(&self.ingestor, page, holds).await
    }
}

impl<R> Deref for Rig<R> {
    type Target = Ingestor;

    fn deref(&self) -> &Ingestor {
        &self.ingestor
    }
}

impl<R> DerefMut for Rig<R> {
    fn deref_mut(&mut self) -> &mut Ingestor {
        &mut self.ingestor
    }
}

impl<R> Drop for Rig<R> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let last: Vec<_> = log.lines().rev().take(60).collect();
            eprintln!("---- the end of the ingestor's log");
            last.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// An additional ingestor for the same Redis.
pub(crate) fn ingestor(redis: &RedisServer, instance: &str) -> Ingestor {
    ingestor_at(&redis.url(), instance)
}

fn ingestor_at(redis_url: &str, instance: &str) -> Ingestor {
    let program = Path::new(env!("CARGO_BIN_EXE_ethhook"));
    Ingestor::new(program, redis_url, instance).unwrap()
}

/// Polls a page of an ingestor until `holds` is true of it.
pub(crate) async fn wait_for(
    ingestor: &Ingestor,
    page: &str,
    holds: impl Fn(u16, &str) -> bool,
) -> String {
    let deadline = Instant::now() + SETTLE;
    loop {
        let got = ingestor.get(page).await;
        if let Some((status, body)) = &got
            && holds(*status, body)
        {
            return body.clone();
        }
        assert!(Instant::now() < deadline, "/{page} never became what was expected: {got:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Polls until `holds` is true, with a deadline.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SETTLE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}: not within {SETTLE:?}");
        sleep(Duration::from_millis(20)).await;
    }
}
