//! Repairs Redis' append-only file after a crash; `docs/adr/0008-redis-connections.md`
//! explains why it is rewritten.

use std::sync::Once;

use redis::aio::ConnectionLike;

use crate::errors::RedisFailure;

/// Logs a refusal only once per process.
static REFUSED: Once = Once::new();

/// Requests a rewrite of the append-only file, if the server has one and has not rewritten it since it started: a
/// crash may have torn off its end, leaving an open transaction that the next one would join. Best effort.
pub(crate) async fn mend(connection: &mut impl ConnectionLike) {
    match is_worth_asking(connection).await {
        Ok(true) => {}
        Ok(false) => return,
        Err(failure) => {
            tracing::debug!(%failure, "the state of the append-only file is unknown");
            return;
        }
    }
    let answer = redis::cmd("BGREWRITEAOF").exec_async(connection).await;
    match answer.map_err(RedisFailure::from) {
        Ok(()) => tracing::info!("Redis rewrites its append-only file, as after each of its starts"),
        // Another chain may already have requested it, or a snapshot is being written.
        Err(failure) if failure.detail.contains("in progress") => {}
        Err(failure) => REFUSED.call_once(|| {
            tracing::warn!(
                %failure,
                "Redis does not rewrite its append-only file: after a crash of Redis that truncated it, \
                 run BGREWRITEAOF yourself before the next restart"
            );
        }),
    }
}

async fn is_worth_asking(connection: &mut impl ConnectionLike) -> Result<bool, RedisFailure> {
    let info: String = redis::cmd("INFO").arg("persistence").query_async(connection).await?;
    let says = |line: &str| info.lines().any(|found| found.trim_end() == line);
    Ok(says("aof_enabled:1")
        && says("aof_rewrites:0")
        && says("aof_rewrite_in_progress:0")
        && says("aof_rewrite_scheduled:0"))
}
