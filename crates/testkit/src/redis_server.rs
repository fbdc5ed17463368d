//! A real redis-server on a free port, with its data in its own directory.
//!
//! The environment variable `REDIS_SERVER_BIN` names the program; the default is `redis-server` in
//! the `PATH`.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rand::Rng as _;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, FromRedisValue};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::certificates::Certificates;

/// Time limit for a server to start answering.
const STARTUP: Duration = Duration::from_secs(20);
/// How many free ports are tried, because another process may take one between finding and binding
/// it.
const ATTEMPTS: usize = 5;

/// The options of a server.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// `appendfsync`: `always`, `everysec` or `no`.
    pub appendfsync: &'static str,
    /// `maxmemory`, such as `64mb`; `0` for none.
    pub maxmemory: String,
    /// `maxmemory-policy`.
    pub maxmemory_policy: &'static str,
    /// Additional directives, as on the command line, for instance `("requirepass", "secret")`;
    /// that one is included in [`RedisServer::url`].
    pub more: Vec<(String, String)>,
    /// Users in addition to `default`, each in the format of an ACL file: `ethhook on >secret ~* &* +@all`
    /// (<https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/>).
    pub users: Vec<String>,
    /// Accepts only TLS, with this certificate.
    pub tls: Option<Certificates>,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self {
            appendfsync: "everysec",
            maxmemory: "0".to_owned(),
            maxmemory_policy: "noeviction",
            more: Vec::new(),
            users: Vec::new(),
            tls: None,
        }
    }
}

impl RedisOptions {
    /// With a password for the default user.
    #[must_use]
    pub fn guarded(password: &str) -> Self {
        Self { more: vec![("requirepass".to_owned(), password.to_owned())], ..Self::default() }
    }

    pub(crate) fn password(&self) -> Option<&str> {
        let found = self.more.iter().find(|(name, _)| name == "requirepass");
        found.map(|(_, password)| password.as_str())
    }
}

/// The role of a server.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    /// Holds data.
    Data,
    /// Holds slots of a cluster.
    ClusterNode,
    /// Watches other servers: its configuration apart from its port.
    Sentinel(String),
}

/// A redis-server with an append-only file; killed when dropped.
#[derive(Debug)]
pub struct RedisServer {
    options: RedisOptions,
    part: Part,
    directory: TempDir,
    port: u16,
    /// The port on which the nodes of a cluster communicate.
    bus_port: u16,
    process: Option<Child>,
}

impl RedisServer {
    /// Starts a server and waits until it answers.
    ///
    /// # Errors
    /// If there is no `redis-server`, or none answers in time.
    pub async fn spawn(options: RedisOptions) -> anyhow::Result<Self> {
        Self::spawn_as(Part::Data, options).await
    }

    pub(crate) async fn spawn_as(part: Part, options: RedisOptions) -> anyhow::Result<Self> {
        let directory = TempDir::with_prefix("ethhook-redis-")?;
        let mut server = Self { options, part, directory, port: 0, bus_port: 0, process: None };
        let mut last = None;
        for _ in 0..ATTEMPTS {
            (server.port, server.bus_port) = (free_port()?, free_port()?);
            server.write_files()?;
            match server.start().await {
                Ok(()) => return Ok(server),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no attempt was made")?)
    }

    /// `redis://127.0.0.1:<port>/`, or `rediss://` with TLS; with the password, if one is required.
    #[must_use]
    pub fn url(&self) -> String {
        let password = self.password().map(|text| format!(":{text}@")).unwrap_or_default();
        format!("redis{}://{password}127.0.0.1:{}/", self.tls_suffix(), self.port)
    }

    /// The required password, if any.
    pub(crate) fn password(&self) -> Option<&str> {
        self.options.password()
    }

    /// The `s` in the scheme of a URL, if it uses TLS.
    pub(crate) fn tls_suffix(&self) -> &'static str {
        if self.options.tls.is_some() { "s" } else { "" }
    }

    /// The port, which never changes.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port of the cluster bus, which never changes.
    pub(crate) fn bus_port(&self) -> u16 {
        self.bus_port
    }

    /// Whether it was started and has not been killed since.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// The directory of its append-only file and log.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts the server, again on the same port and directory, and waits until it answers. Does
    /// nothing if it is running.
    ///
    /// # Errors
    /// If it exits or does not answer in time.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        if self.process.is_some() {
            return Ok(());
        }
        let program = std::env::var_os("REDIS_SERVER_BIN").unwrap_or("redis-server".into());
        let mut command = Command::new(program);
        command.args(self.arguments());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("redis-server does not start: is it installed?")?;
        self.process = Some(child);
        let deadline = Instant::now() + STARTUP;
        loop {
            if self.answers().await {
                return Ok(());
            }
            let ended = self.process.as_mut().map(Child::try_wait).transpose()?.flatten();
            if let Some(status) = ended {
                self.process = None;
                bail!("redis-server on port {} ended: {status}", self.port);
            }
            if Instant::now() > deadline {
                self.kill();
                bail!("redis-server on port {} did not answer within {STARTUP:?}", self.port);
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Writes the files that a server reads in addition to its arguments.
    fn write_files(&self) -> anyhow::Result<()> {
        let folder = self.directory.path();
        if let Part::Sentinel(watched) = &self.part {
            let port = format!("{} {}", self.port_option(), self.port);
            let more = self.options.more.iter().map(|(name, value)| format!("{name} {value}\n"));
            let more: String = more.collect();
            let text = format!("bind 127.0.0.1\n{port}\nlogfile redis.log\n{more}{watched}\n");
            std::fs::write(folder.join("sentinel.conf"), text)?;
        }
        // The file overrides `requirepass`.
        let password = self.password().map_or("nopass".to_owned(), |text| format!(">{text}"));
        let users = self.options.users.iter().map(|user| format!("user {user}\n"));
        let everybody = format!("user default on {password} ~* &* +@all\n");
        let users = std::iter::once(everybody).chain(users);
        Ok(std::fs::write(folder.join("users.acl"), users.collect::<String>())?)
    }

    fn port_option(&self) -> &'static str {
        if self.options.tls.is_some() { "tls-port" } else { "port" }
    }

    fn arguments(&self) -> Vec<OsString> {
        let folder = self.directory.path().as_os_str();
        let mut all = Vec::<OsString>::new();
        let mut set = |name: &str, value: OsString| all.extend([format!("--{name}").into(), value]);
        if let Some(tls) = &self.options.tls {
            set("port", "0".into());
            set("tls-cert-file", tls.certificate().into());
            set("tls-key-file", tls.key().into());
            set("tls-ca-cert-file", tls.authority().into());
            set("tls-auth-clients", "no".into());
            set("tls-replication", "yes".into());
        }
        if matches!(self.part, Part::Sentinel(_)) {
            let configuration = self.directory.path().join("sentinel.conf").into();
            all.insert(0, configuration);
            all.extend(["--sentinel".into(), "--dir".into(), folder.to_owned()]);
            return all;
        }
        set("bind", "127.0.0.1".into());
        set(self.port_option(), self.port.to_string().into());
        set("dir", folder.to_owned());
        set("logfile", "redis.log".into());
        set("save", "".into());
        set("appendonly", "yes".into());
        set("appendfsync", self.options.appendfsync.into());
        set("maxmemory", (&self.options.maxmemory).into());
        set("maxmemory-policy", self.options.maxmemory_policy.into());
        if !self.options.users.is_empty() {
            set("aclfile", "users.acl".into());
        }
        if matches!(self.part, Part::ClusterNode) {
            set("cluster-enabled", "yes".into());
            set("cluster-port", self.bus_port.to_string().into());
            if self.options.tls.is_some() {
                set("tls-cluster", "yes".into());
            }
        }
        for (name, value) in &self.options.more {
            set(name, value.into());
        }
        all
    }

    /// Ends the server by SIGKILL and waits until it has ended. Does nothing if it is not running.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended on its own; then there is nothing to do.
            drop(process.kill());
            drop(process.wait());
        }
    }

    /// Pauses the process by SIGSTOP: commands sent to it wait in the socket, and are executed
    /// after [`RedisServer::resume`] even if the sender has disconnected by then.
    ///
    /// # Errors
    /// If the server is not running.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.signal("-STOP")
    }

    /// Resumes a paused process.
    ///
    /// # Errors
    /// If the server is not running.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.signal("-CONT")
    }

    fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let pid = self.process.as_ref().context("redis-server does not run")?.id();
        let status = Command::new("kill").args([signal, &pid.to_string()]).status()?;
        ensure!(status.success(), "kill {signal} of redis-server failed: {status}");
        Ok(())
    }

    /// A connection with a response timeout of 20 s.
    ///
    /// # Errors
    /// If the server is not running.
    pub async fn connection(&self) -> anyhow::Result<MultiplexedConnection> {
        let timeout = Some(Duration::from_secs(20));
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(timeout)
            .set_response_timeout(timeout);
        let client = match &self.options.tls {
            Some(tls) => tls.client(&self.url())?,
            None => Client::open(self.url())?,
        };
        Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
    }

    /// Sends one command, such as `CLUSTER INFO`; words are separated by single spaces.
    ///
    /// # Errors
    /// If the server is not running, or it answers with an error.
    pub async fn ask<T: FromRedisValue>(&self, line: &str) -> anyhow::Result<T> {
        let mut command = redis::Cmd::new();
        line.split(' ').for_each(|word| {
            command.arg(word);
        });
        let answer = command.query_async(&mut self.connection().await?).await;
        answer.with_context(|| format!("`{line}` of the server on port {}", self.port))
    }

    /// Whether our own process answers, since another one may have taken the port. An answer that
    /// requires a password counts, too.
    async fn answers(&self) -> bool {
        let Ok(mut connection) = self.connection().await else { return false };
        let info = redis::cmd("INFO").arg("all").query_async::<String>(&mut connection).await;
        let pid = self.process.as_ref().map(Child::id).unwrap_or_default();
        match info {
            Ok(info) => {
                info.contains(&format!("process_id:{pid}\r\n"))
                    && !info.contains("\r\nloading:1\r\n")
            }
            Err(error) => error.code() == Some("NOAUTH"),
        }
    }
}

impl Drop for RedisServer {
    #[expect(clippy::disallowed_methods, reason = "a drop cannot await, and this is rare")]
    fn drop(&mut self) {
        self.kill();
        // A child that rewrites the append-only file ends a little later, and may add a file while
        // the directory is being removed.
        for _ in 0..100 {
            match std::fs::remove_dir_all(self.directory.path()) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(()) | Err(_) => return,
            }
        }
    }
}

/// Ports below those that the system assigns to outgoing connections: such a connection could take
/// the port of a server that is briefly down.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// A port that was free just now.
///
/// # Errors
/// If none of many tried ports was free.
pub fn free_port() -> anyhow::Result<u16> {
    (0..100)
        .map(|_| rand::rng().random_range(PORTS))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .context("no free port was found")
}
