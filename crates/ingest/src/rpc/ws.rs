//! One WebSocket to one provider: it receives heads by subscription, and carries requests if the
//! endpoint has no HTTP address.
//!
//! 1. Connect, ask `eth_chainId` and subscribe to `newHeads`, all within [`CONNECT_TIMEOUT`].
//! 2. Serve: the reader never waits for an answer; answers are matched to requests by id. A head
//!    goes to the chain's queue, or is dropped if that is full: the next head reveals the gap.
//! 3. On any failure, all pending requests fail at once, and step 1 is repeated after a wait that
//!    grows from 1 to 60 seconds while it keeps failing. The chain fills the gap.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backon::ExponentialBackoff;
use bytes::Bytes;
use ethhook_domain::block::Quantity;
use ethhook_domain::verify::verify_header;
use ethhook_domain::{Header, Profile, Secret};
use futures_util::{SinkExt, StreamExt};
use hyper::header::AUTHORIZATION;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};
use tracing::{info, warn};

use super::announced::Announced;
use super::basic_auth::basic_auth;
use super::pending::{Command, MAX_PENDING, Pending};
use super::redaction::Redaction;
use super::shared_breaker::SharedBreaker;
use super::{
    Answer, CONNECT_TIMEOUT, MAX_ANSWER_BYTES, RpcError, answered_id, decode, encode, parse, text,
};
use crate::backoff::endless_backoff;
use crate::metrics::EndpointMetrics;

/// A ping is sent after this much silence; after twice as much, the connection counts as dead.
const PING_AFTER: Duration = Duration::from_secs(15);
/// Size of the read buffer: all of it is zeroed before each read, however little arrives (the default is twice as
/// much).
const READ_BYTES: usize = 64 << 10;
/// Longest wait between two connections.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The ids of the handshake; those of requests are higher.
const CHAIN_ID: u64 = 1;
const SUBSCRIBE: u64 = 2;
pub(super) const FIRST_REQUEST: u64 = 16;

/// A head reported by a subscription.
#[derive(Debug)]
pub(crate) enum Head {
    /// A complete header; those handed on have passed their check.
    Header(Box<Header>),
    /// Only the height could be used.
    Number(u64),
}

/// What a subscription tells the chain.
#[derive(Debug)]
pub(crate) enum SocketEvent {
    /// It has begun: heads may have been missed.
    Subscribed,
    Head(Head),
}

/// The handle through which requests are sent.
pub(super) struct WsClient {
    commands: mpsc::Sender<Command>,
    reconnect: Arc<Notify>,
}

/// What belongs to the endpoint.
pub(super) struct Shared {
    /// False from each connection on: it may be another node.
    pub(super) identified: Arc<AtomicBool>,
    pub(super) announced: Arc<Announced>,
    pub(super) breaker: SharedBreaker,
    /// Whether this socket is its only address, so that requests use it.
    pub(super) is_only: bool,
}

/// Keeps an endpoint's WebSocket connected; owned by the chain's task.
pub(crate) struct Connection {
    pub(super) url: Secret,
    profile: Profile,
    pub(super) heads: mpsc::Sender<SocketEvent>,
    pub(super) metrics: EndpointMetrics,
    redaction: Redaction,
    shared: Shared,
    /// Whether an answer or a head arrived since it connected.
    served: bool,
    /// The error that ended the last connection.
    failed_with: Option<RpcError>,
    commands: mpsc::Receiver<Command>,
    reconnect: Arc<Notify>,
}

impl WsClient {
    pub(super) fn new(
        url: Secret,
        profile: Profile,
        heads: mpsc::Sender<SocketEvent>,
        metrics: EndpointMetrics,
        redaction: Redaction,
        shared: Shared,
    ) -> (Self, Connection) {
        // Room for every request that may be pending: a full queue means a dead socket.
        let (sender, commands) = mpsc::channel(MAX_PENDING);
        let reconnect = Arc::new(Notify::new());
        let client = Self { commands: sender, reconnect: Arc::clone(&reconnect) };
        (
            client,
            Connection {
                url,
                profile,
                heads,
                metrics,
                redaction,
                shared,
                served: false,
                failed_with: None,
                commands,
                reconnect,
            },
        )
    }

    /// Sends a request, or a batch of `calls` numbered from `id`; the caller sets the timeout.
    pub(super) async fn request(&self, id: u64, calls: u64, text: String) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(Command { id, calls, text, reply }).map_err(|_| too_many())?;
        answer.await.unwrap_or_else(|_| Err(RpcError::Connection("the WebSocket closed".into())))
    }

    /// Drops the connection and makes a new one, because its subscription has fallen silent.
    pub(super) fn reconnect(&self) {
        self.reconnect.notify_waiters(); // not needed if a new one is already being made
    }
}

/// The growing waits between connections.
struct Waits(ExponentialBackoff);

impl Waits {
    fn new() -> Self {
        Self(endless_backoff(Duration::from_secs(1), LONGEST_WAIT))
    }

    /// The wait after a connection that `served`, or did not: a connection that is accepted and
    /// closed over and over is a failure.
    fn after(&mut self, served: bool) -> Duration {
        if served {
            *self = Self::new();
        }
        self.0.next().unwrap_or(LONGEST_WAIT)
    }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// The kind of a frame.
#[derive(Debug)]
pub(crate) enum Frame {
    /// The answer to the request with this id, or to the batch that begins with it.
    Answer(u64),
    Head(Head),
    /// An error without an id: a whole batch is refused.
    Refusal,
}

/// A frame without an id.
#[derive(Deserialize)]
struct Unnumbered<'a> {
    #[serde(borrow, default)]
    params: Option<Notification<'a>>,
    #[serde(default)]
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Notification<'a> {
    #[serde(borrow)]
    result: &'a RawValue,
}

#[derive(Deserialize)]
struct BareHead {
    number: Quantity,
}

impl Connection {
    /// Keeps the connection up until dropped.
    pub(crate) async fn run(mut self) {
        let mut waits = Waits::new();
        self.metrics.socket_up(false);
        loop {
            let connected = timeout(CONNECT_TIMEOUT, self.connect()).await;
            let served = match connected.unwrap_or(Err(RpcError::Timeout(CONNECT_TIMEOUT))) {
                Ok(socket) => {
                    self.served = false;
                    self.shared.identified.store(false, Ordering::Relaxed);
                    self.note_health(None);
                    self.metrics.socket_up(true);
                    self.shared.announced.note_subscribed(Instant::now());
                    info!(endpoint = self.metrics.position, "subscribed to newHeads");
                    // If the queue is full, it holds newer heads than this connection can know.
                    self.heads.try_send(SocketEvent::Subscribed).ok();
                    let error = self.serve(socket).await;
                    let error = self.redaction.apply(error);
                    self.shared.announced.note_unsubscribed();
                    self.metrics.socket_up(false);
                    warn!(endpoint = self.metrics.position, %error, "WebSocket lost");
                    self.failed_with = Some(error);
                    self.served
                }
                Err(error) => {
                    let error = self.redaction.apply(error);
                    self.note_health(Some(&error));
                    warn!(endpoint = self.metrics.position, %error, "WebSocket not connected");
                    self.failed_with = Some(error);
                    false
                }
            };
            self.metrics.reconnects.inc();
            self.refuse_for(waits.after(served)).await;
        }
    }

    /// If requests use this socket, reports to the breaker whether it connects.
    fn note_health(&self, failure: Option<&RpcError>) {
        if self.shared.is_only {
            self.shared.breaker.with(|breaker| match failure {
                None => breaker.connected(),
                Some(error) => breaker.failure(Instant::now(), rand::random(), error.clone()),
            });
        }
    }

    /// Waits; requests made in the meantime fail at once.
    async fn refuse_for(&mut self, wait: Duration) {
        let over = tokio::time::sleep(wait);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return,
                Some(command) = self.commands.recv() => {
                    let error = RpcError::SetAside(self.failed_with.clone().map(Box::new));
                    command.reply.send(Err(error)).ok(); // the caller may have given up
                }
            }
        }
    }

    async fn connect(&self) -> Result<Socket, RpcError> {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .max_message_size(Some(MAX_ANSWER_BYTES))
            .max_frame_size(Some(MAX_ANSWER_BYTES));
        let mut request = self.url.reveal().into_client_request().map_err(describe)?;
        if let Some(said) = basic_auth(&self.url) {
            request.headers_mut().insert(AUTHORIZATION, said);
        }
        let (mut socket, _) =
            connect_async_with_config(request, Some(config), true).await.map_err(describe)?;
        let none: [(); 0] = [];
        for text in [
            encode(CHAIN_ID, "eth_chainId", &none)?,
            encode(SUBSCRIBE, "eth_subscribe", &["newHeads"])?,
        ] {
            socket.send(Message::text(text)).await.map_err(describe)?;
        }
        let (mut chain_ok, mut subscribed) = (false, false);
        while !(chain_ok && subscribed) {
            let frame = next_frame(&mut socket).await?;
            match read_frame(&frame)? {
                Frame::Answer(CHAIN_ID) => {
                    let got = decode::<Quantity>(&frame, CHAIN_ID)?.map_or(0, |q| q.0);
                    let wanted = self.profile.chain_id;
                    if got != wanted {
                        return Err(RpcError::WrongChain { wanted, got });
                    }
                    chain_ok = true;
                }
                Frame::Answer(SUBSCRIBE) => {
                    decode::<String>(&frame, SUBSCRIBE)?
                        .ok_or_else(|| RpcError::Invalid("no subscription id".into()))?;
                    subscribed = true;
                }
                // A head that arrived before the answer is ignored: the first poll makes up for it.
                _ => {}
            }
        }
        Ok(socket)
    }

    /// Serves until the connection breaks.
    async fn serve(&mut self, mut socket: Socket) -> RpcError {
        let mut pending = Pending::default();
        let mut highest_id = FIRST_REQUEST;
        let mut last_frame = Instant::now();
        let mut ticks = interval(PING_AFTER / 3);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reconnect = Arc::clone(&self.reconnect);
        // One for the whole connection, so that a request made while a frame is being sent is noticed.
        let mut told_to_reconnect = pin!(reconnect.notified());
        let error = loop {
            tokio::select! {
                // Reads first: an available answer must not wait behind new requests.
                biased;
                message = socket.next() => {
                    last_frame = Instant::now();
                    let taken = match frame_of(message) {
                        Ok(Some(frame)) => self.take(frame, &mut pending, highest_id),
                        Ok(None) => Ok(()),
                        Err(error) => Err(error),
                    };
                    if let Err(error) = taken {
                        break error;
                    }
                }
                Some(command) = self.commands.recv() => {
                    if !pending.has_room() {
                        command.reply.send(Err(too_many())).ok(); // the caller may have given up
                        continue;
                    }
                    highest_id = highest_id.max(command.id + command.calls - 1);
                    let text = pending.add(command);
                    if let Err(error) = send(&mut socket, Message::text(text)).await {
                        break error;
                    }
                }
                () = &mut told_to_reconnect => break RpcError::Connection("subscription fell silent".into()),
                _ = ticks.tick() => {
                    let silence = last_frame.elapsed();
                    if silence > 2 * PING_AFTER {
                        break RpcError::Connection("no pong".into());
                    }
                    if silence > PING_AFTER
                        && let Err(error) = send(&mut socket, Message::Ping(Bytes::new())).await
                    {
                        break error;
                    }
                }
            }
        };
        pending.fail(&error);
        error
    }

    fn take(
        &mut self,
        frame: Utf8Bytes,
        pending: &mut Pending,
        highest_id: u64,
    ) -> Result<(), RpcError> {
        match read_frame(&frame)? {
            Frame::Answer(id) => self.hand_on(id, frame, pending, highest_id),
            // Another chain under the same id tells nothing of ours.
            Frame::Head(_) if self.shared.breaker.with(|b| b.is_of_another_chain()) => {
                self.served = true;
                Ok(())
            }
            Frame::Head(head) => {
                self.served = true;
                let head = match head {
                    // Only its height is of use.
                    Head::Header(header) if verify_header(&self.profile, &header).is_err() => {
                        Head::Number(header.block.number)
                    }
                    head => head,
                };
                let announced = &self.shared.announced;
                match &head {
                    Head::Header(header) => {
                        announced.note(header.block);
                        announced.note_pushed(header.block.number, Instant::now());
                    }
                    Head::Number(number) => announced.note_pushed(*number, Instant::now()),
                }
                if self.heads.try_send(SocketEvent::Head(head)).is_err() {
                    self.metrics.heads_dropped.inc();
                }
                Ok(())
            }
            Frame::Refusal => {
                let batch = pending.take_batch();
                let asked =
                    batch.ok_or_else(|| RpcError::Invalid("an error without a request".into()))?;
                asked.send(Ok(frame)).ok(); // the caller may have given up
                Ok(())
            }
        }
    }

    /// Passes an answer to the request that waits for it.
    fn hand_on(
        &mut self,
        id: u64,
        frame: Utf8Bytes,
        pending: &mut Pending,
        highest_id: u64,
    ) -> Result<(), RpcError> {
        match pending.take(id) {
            Some(reply) => {
                self.served = true;
                reply.send(Ok(frame)).ok(); // the caller may have given up
                Ok(())
            }
            None if id <= highest_id => Ok(()), // its caller gave up long ago
            None => Err(RpcError::Invalid("an answer to an unknown request".into())),
        }
    }
}

/// Classifies a frame. An answer is parsed only as far as its id; the caller of the request parses
/// the rest.
pub(crate) fn read_frame(frame: &str) -> Result<Frame, RpcError> {
    if let Some(id) = answered_id(frame) {
        return Ok(Frame::Answer(id));
    }
    match first_of(frame)? {
        Unnumbered { params: Some(told), .. } => read_head(told.result.get()).map(Frame::Head),
        Unnumbered { error: Some(_), .. } => Ok(Frame::Refusal),
        _ => Err(RpcError::Invalid("neither an answer nor a head".into())),
    }
}

fn read_head(json: &str) -> Result<Head, RpcError> {
    match serde_json::from_str::<Header>(json) {
        Ok(header) => Ok(Head::Header(Box::new(header))),
        // Some subscriptions leave fields out; the block itself is then requested.
        _ => Ok(Head::Number(parse::<BareHead>(json)?.number.0)),
    }
}

/// The frame itself, or the first answer of a batch.
fn first_of(frame: &str) -> Result<Unnumbered<'_>, RpcError> {
    if !frame.trim_ascii_start().starts_with('[') {
        return parse(frame);
    }
    let answers: Vec<Unnumbered<'_>> = parse(frame)?;
    answers.into_iter().next().ok_or_else(|| RpcError::Invalid("an empty batch".into()))
}

async fn send(socket: &mut Socket, message: Message) -> Result<(), RpcError> {
    match timeout(CONNECT_TIMEOUT, socket.send(message)).await {
        Ok(sent) => sent.map_err(describe),
        Err(_) => Err(RpcError::Connection("the node does not read its requests".into())),
    }
}

async fn next_frame(socket: &mut Socket) -> Answer {
    loop {
        if let Some(frame) = frame_of(socket.next().await)? {
            return Ok(frame);
        }
    }
}

/// The text in a message; none in a ping or pong.
fn frame_of(message: Option<Result<Message, Error>>) -> Result<Option<Utf8Bytes>, RpcError> {
    match message {
        Some(Ok(Message::Text(text))) => Ok(Some(text)),
        Some(Ok(Message::Binary(bytes))) => text(bytes).map(Some),
        Some(Ok(Message::Close(_))) | None => {
            Err(RpcError::Connection("closed by the node".into()))
        }
        Some(Ok(_)) => Ok(None),
        Some(Err(error)) => Err(describe(error)),
    }
}

fn too_many() -> RpcError {
    RpcError::Connection("too many requests wait for the WebSocket".into())
}

/// The error without the URL, which some of the library's messages contain.
fn describe(error: Error) -> RpcError {
    match error {
        Error::Io(io) => RpcError::Connection(io.kind().to_string()),
        Error::Http(response) => RpcError::Status(response.status().as_u16()),
        Error::Capacity(_) => RpcError::TooLarge(MAX_ANSWER_BYTES),
        Error::ConnectionClosed | Error::AlreadyClosed => {
            RpcError::Connection("closed by the node".into())
        }
        Error::Protocol(error) => RpcError::Connection(error.to_string()),
        Error::Tls(_) => RpcError::Connection("TLS failed".into()),
        Error::Url(_) | Error::HttpFormat(_) => {
            RpcError::Connection("the URL is not usable".into())
        }
        Error::Utf8(_) => RpcError::Invalid("a text frame that is not UTF-8".into()),
        _ => RpcError::Connection("the WebSocket broke".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_wait_longer_each_time_until_one_has_served() {
        let (mut waits, seconds) = (Waits::new(), Duration::from_secs);
        // Up to twice as long at random, so that not all connect at once.
        for least in [1, 2, 4, 8, 16] {
            let wait = waits.after(false);
            assert!(wait >= seconds(least) && wait <= seconds(2 * least), "{least}: {wait:?}");
        }
        assert!(waits.after(true) <= seconds(2));
        assert!(waits.after(false) >= seconds(2));
    }
}
