//! `ethhook healthcheck`: asks the service on this host for its health, for containers without a
//! shell.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Exit;
use crate::config::{Inputs, Probe};
use crate::output::say;

/// Timeout of the request: `/ready` itself waits less than a second for Redis.
const PATIENCE: Duration = Duration::from_secs(3);
/// Size limit of a reply: more than the report for a hundred chains.
const MAX_REPLY: u64 = 1024 * 1024;

/// Asks `/health`, or `/ready`, and prints the answer.
pub(crate) async fn run(inputs: &Inputs, ready: bool) -> anyhow::Result<Exit> {
    let probe = Probe::load(inputs)?;
    let path = if ready { "/ready" } else { "/health" };
    let reply = ask(probe.health, path).await?;
    let body = reply.body.trim();
    let url = format!("http://{}{path}", probe.health);
    if body.starts_with('<') {
        bail!(
            "{url} is a page of another server: set HEALTH_PORT and BIND_ADDRESS as for the service"
        );
    }
    if reply.status != 200 {
        bail!("{url} answers {}: {body}", reply.status);
    }
    say!("{body}");
    Ok(Exit::Done)
}

/// A reply of the service.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// Sends a GET to the service on this host.
///
/// # Errors
/// If there is no reply in time, or one that is not HTTP.
pub(crate) async fn ask(address: SocketAddr, path: &str) -> anyhow::Result<Reply> {
    let url = format!("http://{address}{path}");
    let reply = tokio::time::timeout(PATIENCE, get(address, path))
        .await
        .with_context(|| format!("{url} does not answer within {} s", PATIENCE.as_secs()))?
        .with_context(|| format!("{url} cannot be reached"))?;
    let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((&reply, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.with_context(|| format!("{url} does not speak HTTP"))?;
    Ok(Reply { status, body: body.to_owned() })
}

async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut reply = String::new();
    stream.take(MAX_REPLY).read_to_string(&mut reply).await?;
    Ok(reply)
}
