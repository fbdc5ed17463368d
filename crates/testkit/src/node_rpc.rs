//! A small JSON-RPC client over HTTP, so that tests see a node independently of the ingestor.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ethhook_domain::block::Quantity;
use ethhook_domain::{Header, Log};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, header};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum size of an answer in bytes; no test needs more.
const MAX_ANSWER: usize = 256 << 20;

/// The error object of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RpcError {
    /// The code according to JSON-RPC 2.0 and EIP-1474.
    pub code: i64,
    /// The node's message.
    pub message: String,
}

impl std::fmt::Display for RpcError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for RpcError {}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    result: Value,
    error: Option<RpcError>,
}

/// A node's HTTP endpoint.
#[derive(Debug)]
pub struct NodeRpc {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
    next_id: AtomicU64,
}

impl NodeRpc {
    /// The node at `address`, at the root path.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self::at_url(format!("http://{address}/"))
    }

    /// The node at an `http://` URL.
    #[must_use]
    pub fn at_url(url: impl Into<String>) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { client, url: url.into(), next_id: AtomicU64::new(1) }
    }

    /// Calls `method` and reads its result.
    ///
    /// # Errors
    /// An [`RpcError`] (by `downcast_ref`) if the node answers with one; otherwise whatever failed.
    pub async fn call<T: DeserializeOwned>(&self, method: &str, params: Value) -> Result<T> {
        let result = tokio::time::timeout(TIMEOUT, self.send(method, params))
            .await
            .with_context(|| format!("{method}: no answer within {TIMEOUT:?}"))?
            .with_context(|| method.to_owned())?;
        serde_json::from_value(result).with_context(|| format!("{method}: unexpected result"))
    }

    async fn send(&self, method: &str, params: Value) -> Result<Value> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let body = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.url)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.to_string())))?;
        let response = self.client.request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|e| anyhow::anyhow!("reading the answer: {e}"))?.to_bytes();
        let Ok(answer) = serde_json::from_slice::<Answer>(&body) else {
            bail!("status {status}, no JSON-RPC answer");
        };
        match answer.error {
            Some(error) => Err(error.into()),
            None => Ok(answer.result),
        }
    }

    /// Height of the head.
    ///
    /// # Errors
    /// As [`NodeRpc::call`].
    pub async fn block_number(&self) -> Result<u64> {
        Ok(self.call::<Quantity>("eth_blockNumber", json!([])).await?.0)
    }

    /// The canonical header at `number`; `None` above the head.
    ///
    /// # Errors
    /// As [`NodeRpc::call`].
    pub async fn header_by_number(&self, number: u64) -> Result<Option<Header>> {
        self.call("eth_getBlockByNumber", json!([Quantity(number), false])).await
    }

    /// The header of the block with this hash; `None` if the node does not know it, or no longer.
    ///
    /// # Errors
    /// As [`NodeRpc::call`].
    pub async fn header_by_hash(&self, hash: alloy_primitives::B256) -> Result<Option<Header>> {
        self.call("eth_getBlockByHash", json!([hash, false])).await
    }

    /// The header at a tag such as `latest` or `finalized`; `None` if there is none.
    ///
    /// # Errors
    /// As [`NodeRpc::call`].
    pub async fn header_by_tag(&self, tag: &str) -> Result<Option<Header>> {
        self.call("eth_getBlockByNumber", json!([tag, false])).await
    }

    /// All logs of the block with this hash.
    ///
    /// # Errors
    /// As [`NodeRpc::call`].
    pub async fn logs_of(&self, hash: alloy_primitives::B256) -> Result<Vec<Log>> {
        self.call("eth_getLogs", json!([{ "blockHash": hash }])).await
    }
}
