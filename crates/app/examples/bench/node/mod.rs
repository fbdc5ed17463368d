//! A node that costs as little as it can: its answers are written beforehand, and one task a
//! connection sends them. HTTP and WebSocket on one port, `/<chain_id>`.

pub(crate) mod chain;
mod rpc;
pub(crate) mod template;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use chain::PreparedChain;
use futures_util::stream::FuturesUnordered;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

type Chains = BTreeMap<u64, Arc<PreparedChain>>;

/// A node that serves until it is dropped.
pub(crate) struct PreparedNode {
    address: SocketAddr,
    chains: Chains,
    _task: JoinSet<()>,
}

impl PreparedNode {
    pub(crate) async fn serve(chains: impl IntoIterator<Item = PreparedChain>) -> Result<Self> {
        let chains: Chains = chains.into_iter().map(|c| (c.id, Arc::new(c))).collect();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let mut task = JoinSet::new();
        task.spawn(accept(listener, chains.clone()));
        Ok(Self { address, chains, _task: task })
    }

    pub(crate) fn ws_url(&self, chain_id: u64) -> String {
        format!("ws://{}/{chain_id}", self.address)
    }

    pub(crate) fn http_url(&self, chain_id: u64) -> String {
        format!("http://{}/{chain_id}", self.address)
    }

    pub(crate) fn chains(&self) -> impl Iterator<Item = &Arc<PreparedChain>> {
        self.chains.values()
    }
}

async fn accept(listener: TcpListener, chains: Chains) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                // Answers must not wait for the acknowledgement of the ones before.
                if stream.set_nodelay(true).is_ok() {
                    connections.spawn(connection(stream, chains.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// A WebSocket that was asked for: the way to its bytes, and its chain.
type Asked = Mutex<Option<(OnUpgrade, Arc<PreparedChain>)>>;

async fn connection(stream: TcpStream, chains: Chains) {
    let asked = Asked::default();
    let service = service_fn(|request| respond(request, &chains, &asked));
    let served =
        http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
    let upgrade = asked.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let (Ok(()), Some((upgrade, chain))) = (served, upgrade)
        && let Ok(io) = upgrade.await
    {
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, None).await;
        socket_loop(socket, &chain).await;
    }
}

async fn respond(
    mut request: Request<Incoming>,
    chains: &Chains,
    asked: &Asked,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::default());
    let id = request.uri().path().split('/').nth(1).and_then(|id| id.parse().ok());
    let Some(chain) = id.map_or_else(|| chains.values().next(), |id: u64| chains.get(&id)) else {
        *response.status_mut() = StatusCode::NOT_FOUND;
        return Ok(response);
    };
    if let Some(key) = request.headers().get(SEC_WEBSOCKET_KEY) {
        let accept = derive_accept_key(key.as_bytes()).parse();
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(UPGRADE, hyper::header::HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, hyper::header::HeaderValue::from_static("upgrade"));
        headers.extend(accept.ok().map(|accept| (SEC_WEBSOCKET_ACCEPT, accept)));
        let upgrade = hyper::upgrade::on(&mut request);
        *asked.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrade, Arc::clone(chain)));
        return Ok(response);
    }
    match request.into_body().collect().await {
        Ok(body) => {
            sleep(chain.delay).await;
            let (text, _) = rpc::answer(chain, &body.to_bytes());
            *response.body_mut() = Full::from(text);
        }
        Err(_) => *response.status_mut() = StatusCode::BAD_REQUEST,
    }
    Ok(response)
}

/// Serves a WebSocket until it ends.
async fn socket_loop<S>(mut socket: WebSocketStream<S>, chain: &PreparedChain)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut heads = chain.heads();
    let mut told = *heads.borrow_and_update();
    let mut subscribed = false;
    let mut waiting = FuturesUnordered::new();
    loop {
        let due = tokio::select! {
            biased;
            Some(request) = waiting.next() => request,
            Ok(()) = heads.changed(), if subscribed => {
                let head = *heads.borrow_and_update();
                for number in told + 1..=head {
                    if !send_head(&mut socket, chain, number).await {
                        return;
                    }
                }
                told = head;
                continue;
            }
            message = socket.next() => {
                let request = match message {
                    Some(Ok(Message::Text(text))) => Bytes::from(text),
                    Some(Ok(Message::Binary(bytes))) => bytes,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    Some(Ok(_)) => continue,
                };
                if chain.delay.is_zero() {
                    request
                } else {
                    waiting.push(async { sleep(chain.delay).await; request });
                    continue;
                }
            }
        };
        let (text, subscribes) = rpc::answer(chain, &due);
        if subscribes {
            (subscribed, told) = (true, chain.head());
        }
        if socket.send(Message::text(text)).await.is_err() {
            return;
        }
    }
}

async fn send_head<S>(socket: &mut WebSocketStream<S>, chain: &PreparedChain, number: u64) -> bool
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let start =
        r#"{"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"0x1","result":"#;
    let mut text = start.to_owned();
    chain.write(number, |template| &template.head, &mut text);
    text.push_str("}}");
    chain.asked.sent(text.len());
    chain.note_sent(number);
    socket.send(Message::text(text)).await.is_ok()
}
