//! JSON-RPC 2.0 to one provider, over HTTP or a WebSocket.
//!
//! An answer is raw JSON until the caller knows what it should be; whatever is wrong with it ends in
//! an [`RpcError`], whose text never holds the provider's address (G11).

mod breaker;
mod endpoint;
mod http;
mod latency;
mod redaction;
mod ws;

use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::error::Category;
use serde_json::value::RawValue;

pub(crate) use breaker::State as BreakerState;
pub(crate) use endpoint::Endpoint;
pub(crate) use ws::Head;

/// Longest time from request to answer.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest time to a connection, TLS and upgrade included.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer: the receipts of a block with 100,000 logs, with room to spare.
pub(crate) const MAX_ANSWER_BYTES: usize = 128 << 20;

/// Why a request has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum RpcError {
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The connection could not be made or broke.
    #[error("connection failed: {0}")]
    Connection(String),
    /// An HTTP status other than 200 without a JSON-RPC error in it.
    #[error("HTTP status {0}")]
    Status(u16),
    /// The provider asks for patience: 429, or -32005.
    #[error("rate limited")]
    RateLimited(Option<Duration>),
    /// The provider does not offer this method: -32601, or -32001.
    #[error("method not offered: {0}")]
    NotOffered(String),
    /// Any other error answer.
    #[error("error {code}: {message}")]
    Answer {
        /// JSON-RPC error code.
        code: i64,
        /// The provider's words, cut to a line.
        message: String,
    },
    /// Not JSON, not JSON-RPC, another id, or not of the expected shape.
    #[error("invalid answer: {0}")]
    Invalid(String),
    /// Over [`MAX_ANSWER_BYTES`].
    #[error("answer over {} MiB", MAX_ANSWER_BYTES >> 20)]
    TooLarge,
    /// The endpoint is set aside; the next probe is due then.
    #[error("set aside for another {} ms", .0.as_millis())]
    SetAside(Duration),
    /// The endpoint serves another chain.
    #[error("the endpoint serves chain id {got}, but {wanted} is configured")]
    WrongChain {
        /// As configured.
        wanted: u64,
        /// As the endpoint says.
        got: u64,
    },
}

impl RpcError {
    /// The value of the metrics' `outcome` label.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::Timeout(_) => "timeout",
            Self::Connection(_) => "connection",
            Self::Status(_) => "http_status",
            Self::RateLimited(_) => "rate_limited",
            Self::NotOffered(_) => "not_offered",
            Self::Answer { .. } => "error",
            Self::Invalid(_) => "invalid",
            Self::TooLarge => "too_large",
            Self::SetAside(_) => "set_aside",
            Self::WrongChain { .. } => "wrong_chain",
        }
    }

    /// Whether it speaks against the endpoint: an error answer to one request does not.
    pub(crate) fn is_endpoint_failure(&self) -> bool {
        !matches!(self, Self::Answer { .. } | Self::NotOffered(_) | Self::SetAside(_))
    }
}

#[derive(Serialize)]
struct Request<'a, P> {
    jsonrpc: &'static str,
    id: u64,
    method: &'a str,
    params: P,
}

/// One request as text.
fn encode(id: u64, method: &str, params: &impl Serialize) -> Result<String, RpcError> {
    serde_json::to_string(&Request { jsonrpc: "2.0", id, method, params })
        .map_err(|error| RpcError::Invalid(error.to_string()))
}

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(default)]
    id: Option<u64>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<ErrorObject>,
}

#[derive(Deserialize)]
struct ErrorObject {
    code: i64,
    #[serde(default)]
    message: String,
}

impl ErrorObject {
    fn into_error(self) -> RpcError {
        let message: String = self.message.chars().filter(|c| !c.is_control()).take(200).collect();
        match self.code {
            -32601 | -32001 => RpcError::NotOffered(message),
            -32005 | 429 => RpcError::RateLimited(None),
            code => RpcError::Answer { code, message },
        }
    }
}

/// The answer to request `id` in `body`: none for `null`.
fn decode<T: DeserializeOwned>(body: &[u8], id: u64) -> Result<Option<T>, RpcError> {
    let response: Response<'_> = parse(body)?;
    if let Some(error) = response.error {
        return Err(error.into_error());
    }
    if response.id != Some(id) {
        return Err(RpcError::Invalid("the id is not the request's".into()));
    }
    response.result.map_or(Ok(None), |raw| parse(raw.get().as_bytes()).map(Some))
}

/// `serde_json`'s own words quote what they found, which may be a key; the place is enough.
fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, RpcError> {
    serde_json::from_slice(body).map_err(|error| {
        let what = if body.trim_ascii_start().starts_with(b"<") { "HTML, " } else { "" };
        let kind = match error.classify() {
            Category::Data => "not of the expected shape",
            Category::Eof => "cut short",
            Category::Syntax | Category::Io => "no JSON",
        };
        let (line, column) = (error.line(), error.column());
        RpcError::Invalid(format!("{what}{kind} at line {line} column {column}"))
    })
}

/// An answer on its way to the one who asked.
type Answer = Result<Bytes, RpcError>;
