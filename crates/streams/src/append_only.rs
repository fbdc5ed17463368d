//! Redis' append-only file after a crash: why it is written anew is told in
//! `docs/adr/0008-one-connection-one-master.md`.

use std::sync::Once;

use redis::aio::ConnectionLike;

use crate::errors::RedisFailure;

/// The refusal is told once a process.
static REFUSED: Once = Once::new();

/// Asks the server to write its append-only file anew, if it has one and has not rewritten it since
/// it started: what a crash tore off at its end may lie in it, and would be run together with what is
/// written next. Best effort.
pub(crate) async fn mend(connection: &mut impl ConnectionLike) {
    match is_worth_asking(connection).await {
        Ok(true) => {}
        Ok(false) => return,
        Err(failure) => {
            tracing::debug!(%failure, "the state of the append-only file is not known");
            return;
        }
    }
    let answer = redis::cmd("BGREWRITEAOF").exec_async(connection).await;
    match answer.map_err(RedisFailure::from) {
        Ok(()) => tracing::info!("Redis writes its append-only file anew, as after each start"),
        // Another chain may have asked meanwhile, or a snapshot is being written.
        Err(failure) if failure.detail.contains("in progress") => {}
        Err(failure) => REFUSED.call_once(|| {
            tracing::warn!(
                %failure,
                "Redis does not write its append-only file anew: after a crash of Redis that cut it, \
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
