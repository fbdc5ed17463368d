//! A TCP proxy in front of a node or a Redis that can cut, stall, delay or slice the traffic.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Chunks in flight in one direction of a connection.
const CHUNKS_IN_FLIGHT: usize = 256;
const CHUNK_BYTES: usize = 16 << 10;

/// How bytes pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Open,
    /// New connections are closed at once.
    Cut,
    /// Connections stay open, but nothing passes.
    Blackhole,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    mode: Mode,
    delay: Duration,
    /// Every byte is written separately.
    sliced: bool,
    /// Connections of an earlier generation have been cut.
    generation: u64,
}

/// Instead of a number of bytes: no cut is requested.
const NEVER: u64 = u64::MAX;

/// A proxy on a free port of 127.0.0.1; dropping it closes all its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    connections: Arc<AtomicU64>,
    until_cut: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Starts a proxy in front of `upstream`.
    ///
    /// # Errors
    /// If no port can be bound.
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("proxy's port")?;
        let address = listener.local_addr()?;
        let open = State { mode: Mode::Open, delay: Duration::ZERO, sliced: false, generation: 0 };
        let (state, watcher) = watch::channel(open);
        let connections = Arc::new(AtomicU64::new(0));
        let until_cut = Arc::new(AtomicU64::new(NEVER));
        let mut tasks = JoinSet::new();
        let link = Link {
            upstream,
            state: watcher,
            connections: Arc::clone(&connections),
            until_cut: Arc::clone(&until_cut),
        };
        tasks.spawn(accept(listener, link));
        Ok(Self { address, state, connections, until_cut, _tasks: tasks })
    }

    /// The address to connect to instead.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections have been passed on so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Resets every connection now, and new ones at once.
    pub fn cut(&self) {
        self.state.send_modify(|state| {
            state.mode = Mode::Cut;
            state.generation += 1;
        });
    }

    /// Resets every connection once; new ones pass.
    pub fn drop_connections(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }

    /// Stalls all traffic while connections stay open and new ones are accepted: a half-open link.
    pub fn blackhole(&self) {
        self.state.send_modify(|state| state.mode = Mode::Blackhole);
    }

    /// Lets everything pass. Data stalled by a blackhole arrives late, as after a lost route.
    pub fn restore(&self) {
        self.state.send_modify(|state| state.mode = Mode::Open);
    }

    /// Delays every byte by `delay`, in both directions, without loss of throughput.
    pub fn delay(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// Whether every byte is sent separately, in both directions: breaks a reader that takes what
    /// it receives for a whole message. Costs about one system call per byte.
    pub fn slice(&self, sliced: bool) {
        self.state.send_modify(|state| state.sliced = sliced);
    }

    /// Lets `bytes` more from upstream pass, over all connections, then resets the one over which
    /// the last of them passed: an answer cut in the middle. Only once: later traffic passes.
    pub fn cut_after(&self, bytes: u64) {
        self.until_cut.store(bytes, Ordering::Relaxed);
    }

    /// Whether the cut requested by [`Proxy::cut_after`] is still to come.
    #[must_use]
    pub fn will_cut(&self) -> bool {
        self.until_cut.load(Ordering::Relaxed) != NEVER
    }
}

/// State shared by all connections.
#[derive(Debug, Clone)]
struct Link {
    upstream: SocketAddr,
    state: watch::Receiver<State>,
    connections: Arc<AtomicU64>,
    /// Bytes from upstream that may still pass before a cut, or [`NEVER`].
    until_cut: Arc<AtomicU64>,
}

impl Link {
    /// How many of `bytes` from upstream may pass, and whether the connection is then cut.
    fn share(&self, bytes: usize) -> (usize, bool) {
        let count = bytes as u64;
        let less = |left: u64| match left {
            NEVER => None,
            left if left <= count => Some(NEVER),
            left => Some(left - count),
        };
        match self.until_cut.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) {
            Ok(left) if left <= count => (usize::try_from(left).unwrap_or(bytes), true),
            _ => (bytes, false),
        }
    }
}

async fn accept(listener: TcpListener, link: Link) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                if link.state.borrow().mode == Mode::Cut {
                    reset(&client);
                    continue;
                }
                if client.set_nodelay(true).is_err() {
                    continue;
                }
                open.spawn(pass(client, link.clone()));
            }
            Some(_) = open.join_next() => {}
        }
    }
}

/// Handles one connection until both sides have closed it or it is cut.
async fn pass(mut client: TcpStream, link: Link) {
    let mut cut = link.state.clone();
    let generation = cut.borrow_and_update().generation;
    let to_cut = cut.wait_for(|state| state.generation != generation);
    tokio::pin!(to_cut);
    let server = tokio::select! {
        _ = &mut to_cut => None,
        server = connect(link.upstream, link.state.clone()) => server,
    };
    let Some(mut server) = server else { return reset(&client) };
    link.connections.fetch_add(1, Ordering::Relaxed);
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let cut_here = Notify::new();
    let up = one_way(from_client, to_server, &link.state, |bytes| (bytes, false), &cut_here);
    let down = one_way(from_server, to_client, &link.state, |bytes| link.share(bytes), &cut_here);
    let is_cut = tokio::select! {
        _ = to_cut => true,
        () = cut_here.notified() => true,
        _ = async { tokio::join!(up, down) } => false,
    };
    if is_cut {
        reset(&client);
        reset(&server);
    }
}

async fn connect(upstream: SocketAddr, mut state: watch::Receiver<State>) -> Option<TcpStream> {
    state.wait_for(|state| state.mode != Mode::Blackhole).await.ok()?;
    let server = TcpStream::connect(upstream).await.ok()?;
    server.set_nodelay(true).ok()?;
    Some(server)
}

/// Makes dropping the socket reset the connection.
fn reset(socket: &TcpStream) {
    let _ = socket.set_zero_linger();
}

/// Passes chunks on, each when it is due. Reading continues in the meantime, so that a delay costs
/// no throughput.
async fn one_way(
    from: ReadHalf<'_>,
    to: WriteHalf<'_>,
    state: &watch::Receiver<State>,
    share: impl Fn(usize) -> (usize, bool),
    cut_here: &Notify,
) {
    let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let write = async {
        if write(to, receiver, state.clone(), share).await == Written::Cut {
            cut_here.notify_one();
            // The connection is ended from outside, abruptly.
            std::future::pending::<()>().await;
        }
    };
    tokio::join!(read(from, sender, state.clone()), write);
}

async fn read(
    mut from: ReadHalf<'_>,
    sender: mpsc::Sender<(Instant, Vec<u8>)>,
    state: watch::Receiver<State>,
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let due = Instant::now() + state.borrow().delay;
        if sender.send((due, buffer[..count].to_vec())).await.is_err() {
            return;
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Written {
    Everything,
    Cut,
}

async fn write(
    mut to: WriteHalf<'_>,
    mut receiver: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut state: watch::Receiver<State>,
    share: impl Fn(usize) -> (usize, bool),
) -> Written {
    while let Some((due, chunk)) = receiver.recv().await {
        tokio::time::sleep_until(due).await;
        if state.wait_for(|state| state.mode != Mode::Blackhole).await.is_err() {
            return Written::Everything;
        }
        let (bytes, is_cut) = share(chunk.len());
        let sliced = state.borrow().sliced;
        for slice in chunk[..bytes].chunks(if sliced { 1 } else { CHUNK_BYTES }) {
            // Nothing is buffered here: every write goes to the socket.
            if to.write_all(slice).await.is_err() {
                return Written::Everything;
            }
            if sliced {
                // Lets a reader in this process receive it before the next byte.
                tokio::task::yield_now().await;
            }
        }
        if is_cut {
            return Written::Cut;
        }
    }
    let _ = to.shutdown().await;
    Written::Everything
}
