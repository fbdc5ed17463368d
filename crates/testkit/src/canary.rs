//! Secrets that are planted in order to be searched for: none may appear anywhere (G11).
//!
//! There is one for each place in a URL that can hold a secret. [`sweep`] searches everything that
//! a reader can access: the logs (which include panics), the pages of the servers, and every key
//! and value in Redis.

use anyhow::{Context as _, Result, bail, ensure};
use redis::aio::MultiplexedConnection;

use crate::ingestor::Ingestor;
use crate::redis_server::RedisServer;

/// Contained in each of them.
pub const MARK: &str = "c4n4ry";
/// In the path of a node's URL, where providers have their keys.
pub const PATH: &str = "c4n4ry-in-the-path";
/// The password of Redis.
pub const REDIS_PASSWORD: &str = "c4n4ry-of-redis";
/// Stream entries read at once.
const PAGE: usize = 2_000;

/// `url`, which must end with a path, with secrets as user, as password, in the path and in the
/// query.
#[must_use]
pub fn node_url(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    format!("{scheme}://{MARK}-user:{MARK}-password@{rest}/v3/{PATH}?key={MARK}-in-the-query")
}

/// Searches what the ingestors logged and serve, and everything in `redis`. Returns the number of
/// bytes searched.
///
/// # Errors
/// If a secret is found (the error shows its surroundings), or Redis cannot be read.
pub async fn sweep(ingestors: &[&Ingestor], redis: &RedisServer) -> Result<usize> {
    let mut searched = 0;
    for ingestor in ingestors {
        searched += search("the log", ingestor.log().as_bytes())?;
        if ingestor.is_started() && ingestor.address("health").is_some() {
            for page in ["metrics", "health", "ready", "status.json"] {
                let (_, body) =
                    ingestor.get(page).await.with_context(|| format!("no answer for /{page}"))?;
                searched += search(page, body.as_bytes())?;
            }
        }
    }
    Ok(searched + sweep_redis(&mut redis.connection().await?).await?)
}

async fn sweep_redis(redis: &mut MultiplexedConnection) -> Result<usize> {
    let mut searched = 0;
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(redis).await?;
    for key in keys {
        searched += search("a key", key.as_bytes())?;
        let kind: String = redis::cmd("TYPE").arg(&key).query_async(redis).await?;
        match kind.as_str() {
            "stream" => searched += sweep_stream(redis, &key).await?,
            "hash" => {
                let fields: Vec<Vec<u8>> =
                    redis::cmd("HGETALL").arg(&key).query_async(redis).await?;
                searched += search(&key, &fields.concat())?;
            }
            "string" => {
                let value: Vec<u8> = redis::cmd("GET").arg(&key).query_async(redis).await?;
                searched += search(&key, &value)?;
            }
            // It may have expired just now.
            other => ensure!(other == "none", "`{key}` is a {other}, which is none of ours"),
        }
    }
    Ok(searched)
}

async fn sweep_stream(redis: &mut MultiplexedConnection, key: &str) -> Result<usize> {
    let (mut searched, mut from) = (0, "-".to_owned());
    loop {
        let mut command = redis::cmd("XRANGE");
        command.arg(key).arg(&from).arg("+").arg("COUNT").arg(PAGE);
        let entries: Vec<(String, Vec<Vec<u8>>)> = command.query_async(redis).await?;
        let Some((last, _)) = entries.last() else { return Ok(searched) };
        from = format!("({last}");
        for (_, fields) in &entries {
            searched += search(key, &fields.concat())?;
        }
    }
}

/// Searches `text` and returns its length in bytes.
fn search(place: &str, text: &[u8]) -> Result<usize> {
    /// Bytes before and after a secret that are shown, to tell where it came from.
    const AROUND: usize = 120;
    if let Some(at) = String::from_utf8_lossy(text).find(MARK) {
        let around = &text[at.saturating_sub(AROUND)..text.len().min(at + AROUND)];
        bail!("a secret shows in {place}: ...{}...", String::from_utf8_lossy(around));
    }
    Ok(text.len())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_planted_secret_is_found() {
        let url = node_url("ws://127.0.0.1:1/5");
        assert_eq!(url.matches(MARK).count(), 4);
        assert!(url.contains("@127.0.0.1:1/5/v3/"), "{url}");
        assert_eq!(search("here", b"nothing").unwrap(), 7);
        let found = search("here", format!("not connected: {url}").as_bytes()).unwrap_err();
        assert!(found.to_string().contains("not connected"), "{found}");
    }
}
