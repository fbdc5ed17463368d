//! A minimal client: one HTTP connection per request, so that every fault of an answer is seen
//! unchanged; and a WebSocket.

use std::net::SocketAddr;
use std::time::Duration;

use ethhook_simulator::{Chain, ManualChain, ManualSpec, Node, RunningNode};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// Long enough that only a fault of the node can exceed it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) async fn serve(chain: impl Into<Chain>) -> RunningNode {
    Node::bind(([127, 0, 0, 1], 0).into(), [chain.into()]).await.unwrap().spawn()
}

/// Chain 1 with `blocks` blocks above its genesis, and its node.
pub(crate) async fn manual(blocks: u64) -> (ManualChain, RunningNode) {
    let chain = Chain::manual(ManualSpec::new(1));
    chain.mine(blocks);
    let node = serve(chain.clone()).await;
    (chain, node)
}

/// Status line, headers and body, all as sent; empty if the connection was closed unanswered.
pub(crate) async fn post_raw(addr: SocketAddr, path: &str, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr).await?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    let mut answer = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut answer)).await??;
    Ok(answer)
}

/// The JSON of the answer to `body`.
pub(crate) async fn post(addr: SocketAddr, path: &str, body: &str) -> Value {
    let answer = post_raw(addr, path, body).await.unwrap();
    let (head, json) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"))
}

/// The whole answer of a call to the node's first chain.
pub(crate) async fn answer(node: &RunningNode, method: &str, params: Value) -> Value {
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    post(node.addr(), "/", &request.to_string()).await
}

pub(crate) async fn result(node: &RunningNode, method: &str, params: Value) -> Value {
    let mut answer = answer(node, method, params).await;
    assert!(answer.get("error").is_none(), "{answer}");
    assert_eq!((&answer["jsonrpc"], &answer["id"]), (&json!("2.0"), &json!(1)));
    answer["result"].take()
}

/// Code and message of the error.
pub(crate) async fn error(node: &RunningNode, method: &str, params: Value) -> (i64, String) {
    let answer = answer(node, method, params).await;
    let error = &answer["error"];
    (error["code"].as_i64().unwrap(), error["message"].as_str().unwrap().to_owned())
}

pub(crate) fn hex(number: u64) -> String {
    format!("{number:#x}")
}

pub(crate) fn number(value: &Value) -> u64 {
    u64::from_str_radix(&value.as_str().unwrap()[2..], 16).unwrap()
}

/// One WebSocket; subscribed to `newHeads` on request.
pub(crate) struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    pub(crate) async fn open(node: &RunningNode) -> Self {
        Self(connect_async(format!("ws://{}/", node.addr())).await.unwrap().0)
    }

    pub(crate) async fn subscribed(node: &RunningNode) -> Self {
        let mut socket = Self::open(node).await;
        let answer = socket.call("eth_subscribe", json!(["newHeads"])).await;
        assert!(answer["result"].as_str().unwrap().starts_with("0x"), "{answer}");
        socket
    }

    pub(crate) async fn send(&mut self, method: &str, params: Value) {
        let request = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
        self.0.send(Message::text(request.to_string())).await.unwrap();
    }

    pub(crate) async fn call(&mut self, method: &str, params: Value) -> Value {
        self.send(method, params).await;
        serde_json::from_str(&self.next_text().await.unwrap()).unwrap()
    }

    /// The next message; none if the socket ended.
    pub(crate) async fn next_text(&mut self) -> Option<String> {
        match timeout(DEADLINE, self.0.next()).await.unwrap()? {
            Ok(message) => Some(message.into_text().unwrap().as_str().to_owned()),
            Err(_) => None,
        }
    }

    /// The next head.
    pub(crate) async fn head(&mut self) -> Value {
        let mut message: Value = serde_json::from_str(&self.next_text().await.unwrap()).unwrap();
        assert_eq!(message["method"], "eth_subscription", "{message}");
        message["params"]["result"].take()
    }

    /// Heights and hashes of the next heads.
    pub(crate) async fn heads(&mut self, count: usize) -> Vec<(u64, String)> {
        let mut heads = Vec::new();
        for _ in 0..count {
            let head = self.head().await;
            heads.push((number(&head["number"]), head["hash"].as_str().unwrap().to_owned()));
        }
        heads
    }
}
