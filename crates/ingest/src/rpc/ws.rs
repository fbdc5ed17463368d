//! One WebSocket to one provider: heads come in by subscription, and requests go out where the
//! endpoint has no HTTP address.
//!
//! 1. Connect, ask `eth_chainId` and subscribe to `newHeads`, all within [`CONNECT_TIMEOUT`].
//! 2. Serve: the reader never waits for an answer; requests are matched by id; a head goes to the
//!    chain's queue, and is dropped when that is full, for the next one makes the gap known.
//! 3. On any fault all that is pending fails at once and step 1 comes again, after a wait that grows
//!    from 1 to 60 seconds while it keeps failing. The gap is the chain's to fill.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use bytes::Bytes;
use ethhook_domain::block::Quantity;
use ethhook_domain::{Header, Secret};
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

use super::basic_auth::basic_auth;
use super::breaker::Breaker;
use super::redaction::Redaction;
use super::{
    Answer, CONNECT_TIMEOUT, MAX_ANSWER_BYTES, RpcError, answered_id, decode, encode, parse, text,
};
use crate::metrics::EndpointMetrics;

/// Requests that may wait for the socket, and for their answers.
const MAX_PENDING: usize = 256;
/// Silence after which a ping is sent, and after twice of which the connection is dead.
const PING_AFTER: Duration = Duration::from_secs(15);
/// Read at once at most: this much is cleared before each read, whatever comes (the default is twice as much).
const READ_BYTES: usize = 64 << 10;
/// Between two connections.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The ids of the handshake; requests begin above.
const CHAIN_ID: u64 = 1;
const SUBSCRIBE: u64 = 2;
pub(super) const FIRST_REQUEST: u64 = 16;

/// A head as a subscription told of it.
#[derive(Debug)]
pub(crate) enum Head {
    /// A complete header, whose hash its fields do not contradict.
    Header(Box<Header>),
    /// Only the height could be used.
    Number(u64),
    /// The subscription is new: heads may have been missed.
    Subscribed,
}

/// One call, or a batch of so many, numbered from `id`.
pub(super) struct Command {
    id: u64,
    calls: u64,
    text: String,
    reply: oneshot::Sender<Answer>,
}

/// Who waits for which answers, by the number of the first.
#[derive(Default)]
struct Pending(BTreeMap<u64, (u64, oneshot::Sender<Answer>)>);

impl Pending {
    fn add(&mut self, command: Command) -> String {
        self.0.insert(command.id, (command.calls, command.reply));
        command.text
    }

    /// The one who waits for the answer `id`, alone or in a batch.
    fn take(&mut self, id: u64) -> Option<oneshot::Sender<Answer>> {
        let (&first, &(calls, _)) = self.0.range(..=id).next_back()?;
        (id - first < calls).then(|| self.0.remove(&first).map(|(_, reply)| reply))?
    }

    /// The one who waits for the largest batch, of two the first: a refusal of all of it bears no number,
    /// and what is refused is mostly too large.
    fn take_batch(&mut self) -> Option<oneshot::Sender<Answer>> {
        let batches = self.0.iter().filter(|(_, (calls, _))| *calls > 1);
        let first = batches.max_by_key(|(first, (calls, _))| (*calls, Reverse(**first)));
        let first = first.map(|(first, _)| *first)?;
        self.0.remove(&first).map(|(_, reply)| reply)
    }
}

/// The handle through which requests are sent.
pub(super) struct WsClient {
    commands: mpsc::Sender<Command>,
    reconnect: Arc<Notify>,
}

/// The connection's own side: what its task needs.
pub(super) struct Connection {
    pub(super) url: Secret,
    pub(super) chain_id: u64,
    pub(super) heads: mpsc::Sender<Head>,
    pub(super) metrics: EndpointMetrics,
    redaction: Redaction,
    /// The endpoint's, where this socket is its only address.
    breaker: Option<Arc<Mutex<Breaker>>>,
    /// Since it connected it gave an answer or a head.
    served: bool,
    /// What the last connection failed with.
    failed_with: Option<RpcError>,
    commands: mpsc::Receiver<Command>,
    reconnect: Arc<Notify>,
}

impl WsClient {
    pub(super) fn new(
        url: Secret,
        chain_id: u64,
        heads: mpsc::Sender<Head>,
        metrics: EndpointMetrics,
        redaction: Redaction,
        breaker: Option<Arc<Mutex<Breaker>>>,
    ) -> (Self, Connection) {
        // One for each request that may be pending: a full queue means a dead socket.
        let (sender, commands) = mpsc::channel(MAX_PENDING);
        let reconnect = Arc::new(Notify::new());
        let client = Self { commands: sender, reconnect: Arc::clone(&reconnect) };
        (
            client,
            Connection {
                url,
                chain_id,
                heads,
                metrics,
                redaction,
                breaker,
                served: false,
                failed_with: None,
                commands,
                reconnect,
            },
        )
    }

    /// Sends a request, or a batch of `calls` numbered from `id`; the caller sets the time limit.
    pub(super) async fn request(&self, id: u64, calls: u64, text: String) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.commands
            .try_send(Command { id, calls, text, reply })
            .map_err(|_| RpcError::Connection("too many requests wait for the WebSocket".into()))?;
        answer.await.unwrap_or_else(|_| Err(RpcError::Connection("the WebSocket closed".into())))
    }

    /// Drops the connection and makes a new one: its subscription has fallen silent.
    pub(super) fn reconnect(&self) {
        self.reconnect.notify_waiters(); // one that is being made already needs no reminder
    }
}

/// The waits between connections.
struct Waits(ExponentialBackoff);

impl Waits {
    fn new() -> Self {
        let growing = ExponentialBuilder::new()
            .with_min_delay(Duration::from_secs(1))
            .with_max_delay(LONGEST_WAIT)
            .with_jitter()
            .without_max_times();
        Self(growing.build())
    }

    /// The wait after a connection that `served`, or did not: one that is made and closed again and
    /// again is not well.
    fn after(&mut self, served: bool) -> Duration {
        if served {
            *self = Self::new();
        }
        self.0.next().unwrap_or(LONGEST_WAIT)
    }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What a frame is.
#[derive(Debug)]
pub(crate) enum Frame {
    /// The answer to the request of this number, or to the batch that it begins.
    Answer(u64),
    Head(Head),
    /// An error that bears no number: a whole batch is refused.
    Refusal,
}

/// A frame that bears no number.
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
    /// Keeps a connection up until dropped.
    pub(super) async fn run(mut self) {
        let mut waits = Waits::new();
        self.metrics.socket_up(false);
        loop {
            let connected = timeout(CONNECT_TIMEOUT, self.connect()).await;
            let served = match connected.unwrap_or(Err(RpcError::Timeout(CONNECT_TIMEOUT))) {
                Ok(socket) => {
                    self.served = false;
                    self.note_health(None);
                    self.metrics.socket_up(true);
                    info!(endpoint = self.metrics.position, "subscribed to newHeads");
                    // Full: the queue holds newer heads than this connection can know.
                    self.heads.try_send(Head::Subscribed).ok();
                    let error = self.serve(socket).await;
                    let error = self.redaction.apply(error);
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

    /// Where requests go over this socket, whether it connects is what the breaker should know.
    fn note_health(&self, failure: Option<&RpcError>) {
        if let Some(breaker) = &self.breaker {
            let mut breaker = breaker.lock().unwrap_or_else(PoisonError::into_inner);
            match failure {
                None => breaker.connected(),
                Some(error) => breaker.failure(Instant::now(), rand::random(), error.clone()),
            }
            self.metrics.breaker(breaker.state());
        }
    }

    /// Waits, and fails at once whatever is asked meanwhile.
    async fn refuse_for(&mut self, wait: Duration) {
        let over = tokio::time::sleep(wait);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return,
                Some(command) = self.commands.recv() => {
                    let error = RpcError::SetAside(self.failed_with.clone().map(Box::new));
                    command.reply.send(Err(error)).ok(); // the asker may have given up
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
                    if got != self.chain_id {
                        return Err(RpcError::WrongChain { wanted: self.chain_id, got });
                    }
                    chain_ok = true;
                }
                Frame::Answer(SUBSCRIBE) => {
                    decode::<String>(&frame, SUBSCRIBE)?
                        .ok_or_else(|| RpcError::Invalid("no subscription id".into()))?;
                    subscribed = true;
                }
                // A head that overtook the answer: the first poll makes up for it.
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
        // One for the whole connection: it also hears what is said while a frame is being sent.
        let mut told_to_reconnect = pin!(reconnect.notified());
        let error = loop {
            tokio::select! {
                // Reading first: an answer that is here must not wait behind new requests.
                biased;
                message = socket.next() => {
                    last_frame = Instant::now();
                    let frame = match message {
                        Some(Ok(Message::Text(text))) => Ok(text),
                        Some(Ok(Message::Binary(bytes))) => text(bytes),
                        Some(Ok(Message::Close(_))) | None => break RpcError::Connection("closed by the node".into()),
                        Some(Ok(_)) => continue,
                        Some(Err(error)) => break describe(error),
                    };
                    let taken = frame.and_then(|f| self.take(f, &mut pending, highest_id));
                    if let Err(error) = taken {
                        break error;
                    }
                }
                Some(command) = self.commands.recv() => {
                    // Those whose asker gave up make room.
                    if pending.0.len() >= MAX_PENDING {
                        pending.0.retain(|_, (_, reply)| !reply.is_closed());
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
        for (_, reply) in pending.0.into_values() {
            reply.send(Err(error.clone())).ok(); // the asker may have given up
        }
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
            Frame::Head(head) => {
                self.served = true;
                if self.heads.try_send(head).is_err() {
                    self.metrics.heads_dropped.inc();
                }
                Ok(())
            }
            Frame::Refusal => {
                let batch = pending.take_batch();
                let asked =
                    batch.ok_or_else(|| RpcError::Invalid("a refusal of nothing".into()))?;
                asked.send(Ok(frame)).ok(); // the asker may have given up
                Ok(())
            }
        }
    }

    /// Gives an answer to the one who asked.
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
                reply.send(Ok(frame)).ok(); // the asker may have given up
                Ok(())
            }
            None if id <= highest_id => Ok(()), // its asker gave up long ago
            None => Err(RpcError::Invalid("an answer to a question never asked".into())),
        }
    }
}

/// Sorts a frame. An answer is read only as far as its number: the rest is for the one who asked.
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
        Ok(header) if header.seal != ethhook_domain::block::Seal::Differs => {
            Ok(Head::Header(Box::new(header)))
        }
        // Some subscriptions leave fields out: the block itself is asked for.
        _ => Ok(Head::Number(parse::<BareHead>(json)?.number.0)),
    }
}

/// The frame itself; of a batch, its first answer.
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
        Err(_) => Err(RpcError::Connection("the node does not read".into())),
    }
}

async fn next_frame(socket: &mut Socket) -> Answer {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => return Ok(text),
            Some(Ok(Message::Binary(bytes))) => return text(bytes),
            Some(Ok(Message::Close(_))) | None => {
                return Err(RpcError::Connection("closed by the node".into()));
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(describe(error)),
        }
    }
}

/// The fault without the URL, which some of the library's texts hold.
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
        // With up to as much again, so that not all come at once.
        for least in [1, 2, 4, 8, 16] {
            let wait = waits.after(false);
            assert!(wait >= seconds(least) && wait <= seconds(2 * least), "{least}: {wait:?}");
        }
        assert!(waits.after(true) <= seconds(2));
        assert!(waits.after(false) >= seconds(2));
    }

    #[test]
    fn a_refusal_without_a_number_is_of_the_largest_batch() {
        let mut pending = Pending::default();
        let mut ask = |id, calls| {
            let (reply, answer) = oneshot::channel();
            pending.add(Command { id, calls, text: String::new(), reply });
            answer
        };
        let mut asked = [ask(20, 5), ask(30, 1), ask(40, 6), ask(50, 6)];
        let mut told = |pending: &mut Pending| {
            let reply = pending.take_batch()?;
            reply.send(Err(RpcError::Invalid(String::new()))).ok();
            asked.iter_mut().position(|answer| answer.try_recv().is_ok())
        };
        let order: Vec<_> = (0..4).map(|_| told(&mut pending)).collect();
        assert_eq!(order, [Some(2), Some(3), Some(0), None]);
        assert!(pending.take(30).is_some(), "what is no batch is left alone");
    }
}
