//! The real binary as a process: starting, killing, pausing and terminating it.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

/// An `ethhook ingest` process with its environment and folder; killed when dropped.
#[derive(Debug)]
pub struct Ingestor {
    program: PathBuf,
    env: Vec<(String, String)>,
    folder: TempDir,
    process: Option<Child>,
    /// Bytes of the log written by earlier processes.
    log_before: usize,
    started: Instant,
}

impl Ingestor {
    /// An ingestor that is not started yet. `program` is the binary; its ports are free ones.
    ///
    /// # Errors
    /// If its folder cannot be created.
    pub fn new(program: &Path, redis_url: &str, instance: &str) -> Result<Self> {
        let env = [
            ("REDIS_URL", redis_url),
            ("METRICS_PORT", "0"),
            ("HEALTH_PORT", "0"),
            ("INSTANCE_ID", instance),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        Ok(Self {
            program: program.to_owned(),
            env,
            folder: TempDir::with_prefix("ethhook-ingestor-")?,
            process: None,
            log_before: 0,
            started: Instant::now(),
        })
    }

    /// Sets a variable for the next start.
    pub fn set(&mut self, name: &str, value: impl ToString) -> &mut Self {
        self.unset(name);
        self.env.push((name.to_owned(), value.to_string()));
        self
    }

    /// Removes a variable for the next start.
    pub fn unset(&mut self, name: &str) {
        self.env.retain(|(known, _)| known != name);
    }

    /// Writes an `ethhook.toml` to the process's folder.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_toml(&self, text: &str) -> Result<()> {
        Ok(std::fs::write(self.folder.path().join("ethhook.toml"), text)?)
    }

    /// The output of this process and its predecessors.
    #[must_use]
    pub fn log(&self) -> String {
        let log = std::fs::read(self.folder.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The output of the current or last process.
    #[must_use]
    pub fn log_of_this_process(&self) -> String {
        self.log().get(self.log_before..).unwrap_or_default().to_owned()
    }

    /// When the current or last process was started.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Whether a process was started and not ended by us. It may have ended on its own: see
    /// [`Ingestor::ended`].
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.process.is_some()
    }

    /// The id of the current process.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(Child::id)
    }

    /// Starts it without waiting for anything. Does nothing if it is running.
    ///
    /// # Errors
    /// If there is no such program.
    pub fn start(&mut self) -> Result<()> {
        if self.process.is_some() {
            return Ok(());
        }
        self.log_before = self.log().len();
        self.started = Instant::now();
        let path = self.folder.path().join("log");
        let log = File::options().create(true).append(true).open(path)?;
        let process = Command::new(&self.program)
            .arg("ingest")
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} does not start", self.program.display()))?;
        self.process = Some(process);
        Ok(())
    }

    /// Its exit status, if it ended on its own since the last call.
    ///
    /// # Errors
    /// If the system cannot tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.process.as_mut().map(Child::try_wait).transpose()?.flatten();
        if status.is_some() {
            self.process = None;
        }
        Ok(status)
    }

    /// Sends SIGKILL and waits for the end. Does nothing if it is not running.
    ///
    /// # Errors
    /// If the system refuses.
    pub async fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill().await.context("kill"),
            None => Ok(()),
        }
    }

    /// Sends a signal, such as `STOP` or `CONT`. Does nothing if it is not running.
    ///
    /// # Errors
    /// If the signal cannot be sent.
    pub async fn signal(&mut self, signal: &str) -> Result<()> {
        let Some(pid) = self.process.as_ref().and_then(Child::id) else { return Ok(()) };
        let status = Command::new("kill")
            .args([format!("-{signal}"), pid.to_string()])
            .stderr(Stdio::null())
            .status()
            .await?;
        // It may have ended just now.
        ensure!(status.success() || self.ended()?.is_some(), "kill -{signal}: {status}");
        Ok(())
    }

    /// Sends SIGTERM; returns how long it took to end.
    ///
    /// # Errors
    /// If that took longer than `limit`, or it did not exit with 0. A process that was not
    /// listening yet may end with any status.
    pub async fn terminate(&mut self, limit: Duration) -> Result<Duration> {
        let started = Instant::now();
        self.signal("TERM").await?;
        let Some(mut process) = self.process.take() else { return Ok(Duration::ZERO) };
        let Ok(status) = timeout(limit, process.wait()).await else {
            bail!("still there {limit:?} after SIGTERM");
        };
        let status = status?;
        let listened = self.log_of_this_process().contains("listening");
        ensure!(
            status.success() || !listened,
            "ended with {status} (signal {:?}) on SIGTERM",
            status.signal()
        );
        Ok(started.elapsed())
    }
}

impl Ingestor {
    /// Runs another command of the program, such as `["reset", "--chain", "local"]`, in the same
    /// folder and environment. If this is dropped early, the command is killed.
    ///
    /// # Errors
    /// If there is no such program.
    pub async fn command(&self, arguments: &[&str]) -> Result<Output> {
        Command::new(&self.program)
            .args(arguments)
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("{} does not start", self.program.display()))
    }

    /// Sends a GET for a page of one of the process's own servers, such as `metrics`, `ready` or `status.json`.
    /// Returns status and body; none if the server is not listening.
    pub async fn get(&self, page: &str) -> Option<(u16, String)> {
        let server = if page == "metrics" { "metrics" } else { "health" };
        http_get(&self.address(server)?, page).await
    }

    /// The address and port of one of its servers, `metrics` or `health`.
    #[must_use]
    pub fn address(&self, server: &str) -> Option<String> {
        let log = self.log_of_this_process();
        let listening = log.lines().rfind(|line| line.contains("listening"))?;
        let url = listening.split('"').find(|part| part.ends_with(&format!("/{server}")))?;
        url.strip_prefix("http://")?.split('/').next().map(str::to_owned)
    }

    /// The value of a metric, such as `events_published_total{chain="local"}`.
    pub async fn metric(&self, line: &str) -> Option<f64> {
        let (_, body) = self.get("metrics").await?;
        body.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok())
    }
}

async fn http_get(address: &str, page: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET /{page} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}
