//! A server program with an HTTP port: started on a free port, killed when dropped.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::redis_server::free_port;

/// Time limit for a program to start answering, and for each answer after that.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program that serves HTTP, with its own folder.
#[derive(Debug)]
pub struct Daemon {
    process: Child,
    folder: TempDir,
    port: u16,
    client: Client<HttpConnector, Empty<Bytes>>,
}

impl Daemon {
    /// Starts `program` and waits until it answers a GET of `page`. `prepare` takes its folder and
    /// port and returns its arguments; its output goes to `log` in the folder.
    ///
    /// # Errors
    /// If there is no such program, it ends, or it does not answer in time.
    pub async fn spawn(
        program: &str,
        page: &str,
        prepare: impl FnOnce(&Path, u16) -> Result<Vec<String>>,
    ) -> Result<Self> {
        let folder = TempDir::with_prefix(format!("ethhook-{program}-"))?;
        let port = free_port()?;
        let log = std::fs::File::create(folder.path().join("log"))?;
        let process = Command::new(program)
            .args(prepare(folder.path(), port)?)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{program} does not start: scripts/test.sh brings it"))?;
        let client = Client::builder(TokioExecutor::new()).build_http();
        let mut daemon = Self { process, folder, port, client };
        let deadline = Instant::now() + PATIENCE;
        while !matches!(daemon.get(page).await, Ok((200, _))) {
            if let Some(status) = daemon.process.try_wait()? {
                bail!("{program} ended: {status}\n{}", daemon.log());
            }
            if Instant::now() > deadline {
                bail!("{program} does not answer\n{}", daemon.log());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(daemon)
    }

    /// `127.0.0.1:<port>`
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its output.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Sends a GET for `/page`; returns status and body.
    ///
    /// # Errors
    /// If there is no complete answer in time.
    pub async fn get(&self, page: &str) -> Result<(u16, String)> {
        let uri = format!("http://{}/{page}", self.address()).parse()?;
        let exchange = async {
            let response = self.client.get(uri).await?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await?.to_bytes();
            anyhow::Ok((status, String::from_utf8(body.to_vec())?))
        };
        timeout(PATIENCE, exchange).await.with_context(|| format!("no answer to /{page}"))?
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended on its own; then there is nothing to do.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
