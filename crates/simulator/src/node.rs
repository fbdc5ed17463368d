//! The server: one port for HTTP and WebSocket, `/<chain_id>` for each chain and `/` for the first.
//! Anything after the chain id in the path is ignored, like a provider's key.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fmt, io};

use futures_util::{StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY, UPGRADE,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;

use crate::chain::{Chain, lock};
use crate::limits::{CONNECTIONS, FLUSH_TIME, IDLE_TIMEOUT, REQUEST_BYTES};
use crate::rpc::{self, Reply};
use crate::socket;

/// A node that listens; it serves once it is run.
pub struct Node {
    listener: TcpListener,
    handle: NodeHandle,
    chains: Arc<[Chain]>,
}

/// A node's address and controls. Clones are of the same node.
#[derive(Clone)]
pub struct NodeHandle {
    addr: SocketAddr,
    open: watch::Sender<bool>,
    kills: watch::Sender<u64>,
}

/// A node that serves until it is dropped.
pub struct RunningNode {
    handle: NodeHandle,
    /// Owns the node's one task; dropping it ends the node.
    _task: JoinSet<()>,
}

impl NodeHandle {
    /// Address and port on which the node listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://<addr>/<chain_id>`
    #[must_use]
    pub fn http_url(&self, chain_id: u64) -> String {
        format!("http://{}/{chain_id}", self.addr)
    }

    /// `ws://<addr>/<chain_id>`
    #[must_use]
    pub fn ws_url(&self, chain_id: u64) -> String {
        format!("ws://{}/{chain_id}", self.addr)
    }

    /// Refuses new connections, like a node that is down; open ones stay. Like
    /// [`NodeHandle::resume`] it takes effect within milliseconds, not before it returns.
    pub fn pause(&self) {
        self.open.send_replace(false);
    }

    /// Listens again, on the same port.
    pub fn resume(&self) {
        self.open.send_replace(true);
    }

    /// Cuts every open connection, without a close frame.
    pub fn kill_connections(&self) {
        self.kills.send_modify(|times| *times += 1);
    }
}

impl Node {
    /// Listens on `addr`; port 0 picks a free one. Chains of different kinds must first be
    /// converted by `Chain::from`.
    ///
    /// # Errors
    /// If `addr` cannot be bound; [`io::ErrorKind::InvalidInput`] if there is no chain, or two have
    /// the same id.
    pub async fn bind<C: Into<Chain>>(
        addr: SocketAddr,
        chains: impl IntoIterator<Item = C>,
    ) -> io::Result<Self> {
        let chains: Arc<[Chain]> = chains.into_iter().map(Into::into).collect();
        let invalid = |problem: &str| io::Error::new(io::ErrorKind::InvalidInput, problem);
        if chains.is_empty() {
            return Err(invalid("a node needs at least one chain"));
        }
        let mut ids: Vec<u64> = chains.iter().map(Chain::chain_id).collect();
        ids.sort_unstable();
        if ids.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(invalid("two chains of a node have the same chain id"));
        }
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let handle =
            NodeHandle { addr, open: watch::Sender::new(true), kills: watch::Sender::new(0) };
        Ok(Self { listener, handle, chains })
    }

    /// The node's address and controls, for use while it runs.
    #[must_use]
    pub fn handle(&self) -> NodeHandle {
        self.handle.clone()
    }

    /// Address and port on which the node listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.handle.addr
    }

    /// `http://<addr>/<chain_id>`
    #[must_use]
    pub fn http_url(&self, chain_id: u64) -> String {
        self.handle.http_url(chain_id)
    }

    /// `ws://<addr>/<chain_id>`
    #[must_use]
    pub fn ws_url(&self, chain_id: u64) -> String {
        self.handle.ws_url(chain_id)
    }

    /// Runs on the current runtime until the returned value is dropped: for tests.
    #[must_use]
    pub fn spawn(self) -> RunningNode {
        let handle = self.handle();
        let mut task = JoinSet::new();
        task.spawn(self.run(CancellationToken::new()));
        RunningNode { handle, _task: task }
    }

    /// Serves until cancelled, then cuts open connections.
    pub async fn run(self, cancel: CancellationToken) {
        let Self { listener, handle, chains } = self;
        let mut listener = Some(listener);
        let mut open = handle.open.subscribe();
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let mut tasks = JoinSet::new();
        for chain in chains.iter() {
            tasks.spawn(chain.clone().follow_clock());
        }
        loop {
            let accepted = tokio::select! {
                () = cancel.cancelled() => break,
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a task of the simulator failed");
                    }
                    continue;
                }
                _ = open.changed() => {
                    listener = if *open.borrow_and_update() {
                        listen_again(handle.addr, listener).await
                    } else {
                        None
                    };
                    continue;
                }
                accepted = accept(listener.as_ref()) => accepted,
            };
            match accepted {
                Ok(stream) => {
                    // Without a free slot the stream is dropped, which closes the connection.
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                    let chains = Arc::clone(&chains);
                    let mut kills = handle.kills.subscribe();
                    tasks.spawn(async move {
                        tokio::select! {
                            () = connection(stream, &chains) => {}
                            _ = kills.changed() => {}
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    // Most likely out of file descriptors: accepting again at once would spin.
                    tracing::warn!(%error, "the simulator cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        tasks.shutdown().await;
    }
}

impl std::ops::Deref for RunningNode {
    type Target = NodeHandle;

    fn deref(&self) -> &NodeHandle {
        &self.handle
    }
}

impl fmt::Debug for NodeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeHandle").field("addr", &self.addr).finish_non_exhaustive()
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => Ok(listener.accept().await?.0),
        None => std::future::pending().await,
    }
}

async fn listen_again(addr: SocketAddr, listener: Option<TcpListener>) -> Option<TcpListener> {
    if listener.is_some() {
        return listener;
    }
    let mut last = None;
    // A client may briefly have this port as its own local port.
    for _ in 0..50 {
        match TcpListener::bind(addr).await {
            Ok(listener) => return Some(listener),
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    if let Some(error) = last {
        tracing::error!(%error, "the simulator cannot listen again");
    }
    None
}

/// A requested WebSocket upgrade, and its chain.
type Upgrade = Mutex<Option<(OnUpgrade, Chain)>>;

async fn connection(stream: TcpStream, chains: &[Chain]) {
    let upgrade = Upgrade::default();
    // Answers must not wait for the acknowledgement of earlier ones.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let service = service_fn(|request| respond(request, chains, &upgrade));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    let asked = lock(&upgrade).take();
    if let (Ok(()), Some((on_upgrade, chain))) = (served, asked)
        && let Ok(upgraded) = on_upgrade.await
    {
        socket::serve(TokioIo::new(upgraded), &chain).await;
    }
}

/// The connection is to be closed without an answer.
#[derive(Debug)]
struct CutHere;

impl fmt::Display for CutHere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cut on request")
    }
}

impl std::error::Error for CutHere {}

/// The body of a response; it fails if the connection is to be cut in the middle of it.
type Content = UnsyncBoxBody<Bytes, CutHere>;

fn whole(bytes: Bytes) -> Content {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// Announces the length of all of `text`, sends the first half, then cuts the connection.
fn half(text: String) -> Response<Content> {
    let length = text.len();
    let mut response = in_parts(text, |_| Err(CutHere));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    response
}

/// Sends `text` in two chunks; `second` makes the second from its half.
fn in_parts(
    text: String,
    second: impl FnOnce(Bytes) -> Result<Frame<Bytes>, CutHere> + Send + 'static,
) -> Response<Content> {
    let mut first = Bytes::from(text);
    let rest = first.split_off(first.len() / 2);
    let later = async {
        tokio::time::sleep(FLUSH_TIME).await;
        second(rest)
    };
    let parts = stream::once(async { Ok(Frame::data(first)) }).chain(stream::once(later));
    let mut response = with_type(StatusCode::OK, "application/json", Bytes::new());
    *response.body_mut() = StreamBody::new(parts).boxed_unsync();
    response
}

async fn respond(
    request: Request<Incoming>,
    chains: &[Chain],
    upgrade: &Upgrade,
) -> Result<Response<Content>, CutHere> {
    let Some(chain) = chain_of(request.uri().path(), chains) else {
        return Ok(plain(StatusCode::NOT_FOUND, "no such chain\n"));
    };
    if request.headers().contains_key(UPGRADE) {
        return Ok(switch_to_websocket(request, chain, upgrade));
    }
    if request.method() != Method::POST {
        return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "POST a JSON-RPC request\n"));
    }
    let Ok(body) = Limited::new(request.into_body(), REQUEST_BYTES).collect().await else {
        return Ok(plain(StatusCode::PAYLOAD_TOO_LARGE, "content length too large\n"));
    };
    match rpc::answer(chain, None, &body.to_bytes()).await {
        Reply::Text(text) | Reply::Last(text) | Reply::Whole(text) => {
            chain.stats().sent(text.len());
            let kind = if text.starts_with('<') { "text/html" } else { "application/json" };
            Ok(with_type(StatusCode::OK, kind, text.into()))
        }
        Reply::Nothing => Ok(with_type(StatusCode::OK, "application/json", Bytes::new())),
        Reply::Parts(text) => {
            chain.stats().sent(text.len());
            Ok(in_parts(text, |rest| Ok(Frame::data(rest))))
        }
        Reply::StatusWith(status, text) => {
            chain.stats().sent(text.len());
            Ok(with_type(status_code(status), "application/json", text.into()))
        }
        Reply::Half(text) => {
            chain.stats().sent(text.len() / 2);
            Ok(half(text))
        }
        Reply::Cut => Err(CutHere),
        Reply::Silence => match std::future::pending::<Infallible>().await {},
        Reply::Status(status, retry_after) => {
            let mut response = plain(status_code(status), "refused on request\n");
            if let Some(seconds) = retry_after {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            Ok(response)
        }
    }
}

fn status_code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY)
}

fn chain_of<'a>(path: &str, chains: &'a [Chain]) -> Option<&'a Chain> {
    match path.split('/').nth(1).unwrap_or_default() {
        "" => chains.first(),
        id => {
            let id: u64 = id.parse().ok()?;
            chains.iter().find(|chain| chain.chain_id() == id)
        }
    }
}

fn switch_to_websocket(
    mut request: Request<Incoming>,
    chain: &Chain,
    upgrade: &Upgrade,
) -> Response<Content> {
    let Some(key) = request.headers().get(SEC_WEBSOCKET_KEY) else {
        return plain(StatusCode::BAD_REQUEST, "not a WebSocket handshake\n");
    };
    let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) else {
        return plain(StatusCode::BAD_REQUEST, "not a WebSocket key\n");
    };
    *lock(upgrade) = Some((hyper::upgrade::on(&mut request), chain.clone()));
    let mut response = Response::new(whole(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Content> {
    with_type(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

fn with_type(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Content> {
    let mut response = Response::new(whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
