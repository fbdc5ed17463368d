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
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::chain::{Chain, Heard, lock};
use crate::limits::{CALLS_PER_SOCKET, FLUSH_TIME, REQUEST_BYTES, WRITE_TIMEOUT};
use crate::rpc::{self, Reply, Session};

enum Step {
    Reply(Reply),
    Head(Arc<str>),
    Request(Vec<u8>),
    End,
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
    let cuts = door.borrow_and_update().cuts;
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
                if door.borrow_and_update().cuts == cuts { continue }
                Step::End
            }
            Some(reply) = calls.next() => Step::Reply(reply),
            head = heads.recv() => match head {
                Ok(Heard::Head(head)) => Step::Head(head),
                Ok(Heard::Deaf) => {
                    lock(&session.subscriptions).clear();
                    continue;
                }
                Err(RecvError::Lagged(_)) if lock(&session.subscriptions).is_empty() => continue,
                Err(_) => Step::End,
            },
            frame = socket.next(), if calls.len() < CALLS_PER_SOCKET => match frame {
                Some(Ok(Message::Text(text))) => Step::Request(text.as_bytes().to_vec()),
                Some(Ok(Message::Binary(bytes))) => Step::Request(bytes.to_vec()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => Step::End,
                Some(Ok(_)) => {
                    last_used = Instant::now();
                    continue;
                }
            },
            () = unused(last_used, idle_limit) => Step::End,
        };
        if !matches!(step, Step::Head(_)) || hears(chain, session) {
            last_used = Instant::now();
        }
        let sent = match step {
            Step::End | Step::Reply(Reply::Cut) => return,
            Step::Reply(Reply::Half(text)) => return send_half(&mut socket, text).await,
            Step::Request(request) => {
                calls.push(async move { rpc::answer(chain, Some(session), &request).await });
                true
            }
            Step::Reply(Reply::Nothing | Reply::Silence | Reply::Status(..)) => true,
            Step::Reply(Reply::Text(text) | Reply::Whole(text)) => {
                chain.stats().sent(text.len());
                send(&mut socket, text).await
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
        if !send(socket, text).await {
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
    let frame = Frame::message(half, OpCode::Data(Data::Text), false);
    // The socket is cut afterwards in any case.
    let _ = tokio::time::timeout(WRITE_TIMEOUT, socket.send(Message::Frame(frame))).await;
    tokio::time::sleep(FLUSH_TIME).await;
}

/// False if the other side is gone or accepts no more data.
async fn send<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    text: String,
) -> bool {
    matches!(
        tokio::time::timeout(WRITE_TIMEOUT, socket.send(Message::text(text))).await,
        Ok(Ok(()))
    )
}
