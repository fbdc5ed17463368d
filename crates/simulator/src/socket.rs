//! One WebSocket: calls in, answers and heads out.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use crate::chain::{Chain, Heard, SocketEnd, lock};
use crate::limits::{CALLS_PER_SOCKET, FLUSH_TIME, REQUEST_BYTES, WRITE_TIMEOUT};
use crate::rpc::{self, Reply, Session};

enum Step {
    Reply(Reply),
    Head(Arc<str>),
    Request(Vec<u8>),
    End(SocketEnd),
}

/// Serves the socket until it ends, is cut, or cannot keep up.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(io: S, chain: &Chain) {
    let config = WebSocketConfig::default()
        .max_message_size(Some(REQUEST_BYTES))
        .max_frame_size(Some(REQUEST_BYTES));
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
    let session = Session::default();
    let session = &session;
    let mut heads = chain.heads();
    let mut door = chain.door();
    let ends = door.borrow_and_update().ends;
    let mut last_used = Instant::now();
    let mut calls = FuturesUnordered::new();
    loop {
        let idle_limit = door.borrow().idle_limit;
        // A cut comes first, because a test waits for it. Answers come before heads, so that the
        // answer of `eth_subscribe` is sent before the first head. New calls come last, because
        // they are bounded.
        let step = tokio::select! {
            biased;
            _ = door.changed() => {
                let door = door.borrow_and_update();
                if door.ends == ends { continue }
                Step::End(door.how)
            }
            Some(reply) = calls.next() => Step::Reply(reply),
            head = heads.recv() => match head {
                Ok(Heard::Head(head)) => Step::Head(head),
                Ok(Heard::Deaf) => {
                    lock(&session.subscriptions).clear();
                    continue;
                }
                Err(RecvError::Lagged(_)) if lock(&session.subscriptions).is_empty() => continue,
                Err(_) => Step::End(SocketEnd::Cut),
            },
            frame = socket.next(), if calls.len() < CALLS_PER_SOCKET => match frame {
                Some(Ok(Message::Text(text))) => Step::Request(text.as_bytes().to_vec()),
                Some(Ok(Message::Binary(bytes))) => Step::Request(bytes.to_vec()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => Step::End(SocketEnd::Cut),
                Some(Ok(_)) => {
                    last_used = Instant::now();
                    continue;
                }
            },
            () = unused(last_used, idle_limit) => Step::End(SocketEnd::Cut),
        };
        if !matches!(step, Step::Head(_)) || hears(chain, session) {
            last_used = Instant::now();
        }
        let sent = match step {
            Step::End(SocketEnd::Cut) | Step::Reply(Reply::Cut) => return,
            Step::End(SocketEnd::Closed) => return close(&mut socket).await,
            Step::Reply(Reply::Half(text)) => return send_half(&mut socket, text).await,
            Step::Request(request) => {
                calls.push(async move { rpc::answer(chain, Some(session), &request).await });
                true
            }
            Step::Reply(
                Reply::Nothing | Reply::Silence | Reply::Status(..) | Reply::StatusWith(..),
            ) => true,
            Step::Reply(Reply::Parts(text)) => {
                chain.stats().sent(text.len());
                send_parts(&mut socket, text).await
            }
            Step::Reply(Reply::Text(text) | Reply::Last(text) | Reply::Whole(text)) => {
                chain.stats().sent(text.len());
                send(&mut socket, Message::text(text)).await
            }
            Step::Head(head) => send_head(&mut socket, chain, session, &head).await,
        };
        if !sent {
            return;
        }
    }
}

/// Ends when nothing has been sent or received for `limit`; without a limit, never.
async fn unused(since: Instant, limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep_until(since + limit).await,
        None => std::future::pending().await,
    }
}

fn hears(chain: &Chain, session: &Session) -> bool {
    !chain.is_muted() && !lock(&session.subscriptions).is_empty()
}

async fn send_head<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    chain: &Chain,
    session: &Session,
    head: &str,
) -> bool {
    if !hears(chain, session) {
        return true;
    }
    let subscriptions: Vec<String> = lock(&session.subscriptions).iter().cloned().collect();
    for id in subscriptions {
        let text = format!(
            r#"{{"jsonrpc":"2.0","method":"eth_subscription","params":{{"subscription":"{id}","result":{head}}}}}"#
        );
        chain.stats().sent_head(text.len());
        if !send(socket, Message::text(text)).await {
            return false;
        }
    }
    true
}

/// The first frame of a message, not followed by others.
async fn send_half<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    text: String,
) {
    let mut half = text.into_bytes();
    half.truncate(half.len() / 2);
    // The socket is cut afterwards in any case.
    send(socket, Message::Frame(Frame::message(half, OpCode::Data(Data::Text), false))).await;
    tokio::time::sleep(FLUSH_TIME).await;
}

/// A message of two frames with a ping in between.
async fn send_parts<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    text: String,
) -> bool {
    let mut first = text.into_bytes();
    let second = first.split_off(first.len() / 2);
    let frame = |data, of, is_last| Message::Frame(Frame::message(data, OpCode::Data(of), is_last));
    send(socket, frame(first, Data::Text, false)).await
        && send(socket, Message::Ping("in between".into())).await
        && send(socket, frame(second, Data::Continue, true)).await
}

async fn close<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>) {
    let why = CloseFrame { code: CloseCode::Away, reason: "closed on request".into() };
    send(socket, Message::Close(Some(why))).await;
    tokio::time::sleep(FLUSH_TIME).await;
}

/// False if the other side is gone or accepts no more data.
async fn send<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    message: Message,
) -> bool {
    matches!(tokio::time::timeout(WRITE_TIMEOUT, socket.send(message)).await, Ok(Ok(())))
}
