//! JSON-RPC 2.0 to one provider, over HTTP or a WebSocket.
//!
//! An answer is raw JSON until the caller knows what it should be. Whatever is wrong with it
//! becomes an [`RpcError`], whose text never contains the provider's address (G11).

mod announced;
mod attempt;
mod basic_auth;
mod batch;
mod batch_size;
mod breaker;
mod cost;
mod endpoint;
mod genesis;
mod http;
mod latency;
mod pace;
mod pending;
mod redaction;
mod shared_breaker;
mod streak;
mod throttle;
mod ws;

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use alloy_primitives::B256;
use bytes::Bytes;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::error::Category;
use tokio_tungstenite::tungstenite::Utf8Bytes;

pub(crate) use announced::Pushed;
pub(crate) use attempt::Attempt;
pub use breaker::State as BreakerState;
#[cfg(test)]
pub(crate) use endpoint::MANY_LACKS;
pub(crate) use endpoint::{Endpoint, Method, connect};
pub(crate) use genesis::Genesis;
pub(crate) use redaction::Redaction;
pub(crate) use streak::Streak;
pub(crate) use ws::{Connection, Frame, Head, SocketEvent, read_frame};

/// Timeout of a request.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Timeout of a connection attempt, including TLS and upgrade.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer accepted: enough for the receipts of a block with 100,000 logs.
pub(crate) const MAX_ANSWER_BYTES: usize = 128 << 20;
/// Largest answer about several blocks accepted over HTTP: a larger one is requested in parts.
pub(crate) const MAX_SPAN_BYTES: usize = 8 << 20;

/// The code for an unknown parameter, such as a tag or a hash where the node expects a number (JSON-RPC 2.0, "Error
/// object").
pub(crate) const INVALID_PARAMS: i64 = -32602;

/// Why a request has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum RpcError {
    /// No answer in time.
    #[error("no answer within {} s", (.0.as_secs_f64() * 1e3).round() / 1e3)]
    Timeout(Duration),
    /// The connection failed or broke.
    #[error("connection failed: {0}")]
    Connection(String),
    /// An HTTP status that is not 2xx, without a JSON-RPC error in the body.
    #[error("HTTP status {0}{moved}", moved = if (300..400).contains(.0) { ": the URL has moved, and redirects are not followed" } else { "" })]
    Status(u16),
    /// The provider asks us to wait: 429, or -32005.
    #[error("rate limited")]
    RateLimited(Option<Duration>),
    /// The provider does not support this method: -32601, or -32001.
    #[error("method not offered: {0}")]
    NotOffered(String),
    /// Any other error in an answer.
    #[error("error {code}: {message}")]
    Answer {
        /// JSON-RPC error code.
        code: i64,
        /// The provider's message, on one line.
        message: String,
    },
    /// Not JSON, not JSON-RPC, the wrong id, or not of the expected shape.
    #[error("invalid answer: {0}")]
    Invalid(String),
    /// The answer is larger than this many bytes.
    #[error("answer over {} MiB", .0 >> 20)]
    TooLarge(usize),
    /// The endpoint is set aside, because of this last failure; none if an answer of it failed a
    /// check.
    #[error("{} (set aside for a while)", .0.as_ref().map_or("an answer failed a check".to_owned(), ToString::to_string))]
    SetAside(Option<Box<RpcError>>),
    /// The endpoint serves another chain.
    #[error(
        "the endpoint serves chain id {got}, but {wanted} is configured: give it a URL of chain {wanted}, \
         or correct chain_id"
    )]
    WrongChain {
        /// The configured id.
        wanted: u64,
        /// The endpoint's id.
        got: u64,
    },
    /// The endpoint serves another chain under the same id.
    #[error(
        "the node's genesis block is {got}, but the stream holds a chain with genesis {wanted}"
    )]
    WrongGenesis {
        /// Hash of the stream's block 0.
        wanted: B256,
        /// Hash of the endpoint's.
        got: B256,
    },
}

impl RpcError {
    /// Why the endpoint is set aside, if it is; else the error itself.
    pub(crate) fn reason(&self) -> &Self {
        match self {
            Self::SetAside(Some(reason)) => reason,
            other => other,
        }
    }

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
            Self::TooLarge(_) => "too_large",
            Self::SetAside(_) => "set_aside",
            Self::WrongChain { .. } | Self::WrongGenesis { .. } => "wrong_chain",
        }
    }

    /// Whether the endpoint's URL is for another chain, which only an operator can correct.
    pub(crate) fn is_wrong_chain(&self) -> bool {
        match self {
            Self::WrongChain { .. } | Self::WrongGenesis { .. } => true,
            Self::SetAside(Some(cause)) => cause.is_wrong_chain(),
            _ => false,
        }
    }

    /// Whether it serves another chain under the same id.
    pub(crate) fn is_wrong_genesis(&self) -> bool {
        match self {
            Self::WrongGenesis { .. } => true,
            Self::SetAside(Some(cause)) => cause.is_wrong_genesis(),
            _ => false,
        }
    }

    /// Whether this counts against the endpoint: an error answer to one request does not, nor does
    /// an answer larger than we accept.
    pub(crate) fn is_endpoint_failure(&self) -> bool {
        !matches!(
            self,
            Self::Answer { .. }
                | Self::NotOffered(_)
                | Self::SetAside(_)
                | Self::TooLarge(..MAX_ANSWER_BYTES)
        )
    }

    /// Whether a smaller request may succeed, if the message was about several blocks. Providers refuse too many
    /// blocks, or any batch, with any code or status, or by not answering in time; some answer a batch as if it were
    /// one call.
    pub(crate) fn may_be_of_size(&self) -> bool {
        matches!(
            self,
            Self::Answer { .. }
                | Self::RateLimited(_)
                | Self::TooLarge(_)
                | Self::Timeout(_)
                | Self::Status(_)
                | Self::Invalid(_)
        )
    }

    /// Whether the answer to a request about one block is too large, by our limit or according to the provider.
    pub(crate) fn is_too_large(&self) -> bool {
        match self {
            Self::TooLarge(_) => true,
            Self::Answer { message, .. } => speaks_of_size(message),
            _ => false,
        }
    }

    /// How many blocks the provider says it would accept: several name a range, as in `this block
    /// range should work: [0x10, 0x1f]`, or a number, as in `up to a 500 block range`.
    pub(crate) fn suggested_blocks(&self) -> Option<u64> {
        let Self::Answer { message, .. } = self else { return None };
        let bounds = message.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
        if let Some((first, last)) = bounds.and_then(|(bounds, _)| bounds.split_once(',')) {
            let quantity =
                |text: &str| u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok();
            return quantity(last)?.checked_add(1)?.checked_sub(quantity(first)?);
        }
        let words: Vec<&str> = message.split_whitespace().collect();
        let number = |word: &str| word.replace([',', '.'], "").parse().ok();
        let pairs = words.windows(2).filter(|pair| pair[1].starts_with("block"));
        pairs.filter_map(|pair| number(pair[0])).next()
    }
}

#[derive(Serialize)]
struct Request<'a, P> {
    jsonrpc: &'static str,
    id: u64,
    method: &'a str,
    params: P,
}

/// One request as JSON.
fn encode(id: u64, method: &str, params: &impl Serialize) -> Result<String, RpcError> {
    serde_json::to_string(&Request { jsonrpc: "2.0", id, method, params })
        .map_err(|error| RpcError::Invalid(error.to_string()))
}

/// The answer to a request.
#[derive(Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
struct Response<T> {
    #[serde(default)]
    id: Option<u64>,
    #[serde(default = "none")]
    result: Option<T>,
    #[serde(default)]
    error: Option<ErrorObject>,
}

fn none<T>() -> Option<T> {
    None
}

#[derive(Deserialize)]
struct ErrorObject {
    code: i64,
    #[serde(default)]
    message: String,
}

impl ErrorObject {
    fn into_error(self) -> RpcError {
        let message = beginning(&self.message);
        match self.code {
            -32601 | -32001 => RpcError::NotOffered(message),
            -32005 | 429 if !speaks_of_size(&message) => RpcError::RateLimited(None),
            code => RpcError::Answer { code, message },
        }
    }
}

/// The beginning of a text that may be long. It is cut again, shorter, after the keys in it are
/// redacted ([`Redaction`]); the other way round, half of a key might remain.
fn beginning(said: &str) -> String {
    const CHARS: usize = 4_096;
    let mut rest = said.chars().filter(|c| !c.is_control());
    let mut text: String = rest.by_ref().take(CHARS).collect();
    if rest.next().is_some() {
        text.truncate(text.rfind(' ').unwrap_or_default());
    }
    text
}

/// Whether -32005, which usually means rate limiting, is about too many blocks or results at once:
/// `query returned more than 10000 results`, `block range too wide`.
fn speaks_of_size(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["range", "results", "logs", "blocks", "response size"]
        .iter()
        .any(|word| message.contains(word))
}

impl<T> Response<T> {
    /// The result: none for `null`.
    fn into_result(self) -> Result<Option<T>, RpcError> {
        self.error.map_or(Ok(self.result), |error| Err(error.into_error()))
    }
}

/// The result in `body` for request `id`: none for `null`. One pass over the text, because the
/// receipts of a block are half a megabyte, and parsing them is most of the cost of catching up.
pub(crate) fn decode<T: DeserializeOwned>(body: &str, id: u64) -> Result<Option<T>, RpcError> {
    let response: Response<T> = parse(body)?;
    if response.error.is_none() && response.id != Some(id) {
        return Err(RpcError::Invalid("the id differs from the request's".into()));
    }
    response.into_result()
}

/// The id of the answer in `body`, or of the first answer of a batch, without parsing further than
/// that: most nodes put it first. None for a notification, and for anything that is not an answer.
fn answered_id(body: &str) -> Option<u64> {
    let mut id = None;
    // Parsing stops with an error as soon as the id is found: the caller of the request parses the
    // rest.
    serde_json::Deserializer::from_str(body).deserialize_any(IdVisitor(&mut id)).ok();
    id
}

struct IdVisitor<'a>(&'a mut Option<u64>);

impl<'de> Visitor<'de> for IdVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON-RPC answer")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            if name == "id" {
                *self.0 = map.next_value()?;
                return Err(de::Error::custom("found"));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut batch: A) -> Result<(), A::Error> {
        batch.next_element_seed(self)?;
        Err(de::Error::custom("its first answer has no id"))
    }
}

impl<'de> DeserializeSeed<'de> for IdVisitor<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, answer: D) -> Result<(), D::Error> {
        answer.deserialize_map(self)
    }
}

/// Checks `bytes` for invalid UTF-8 once, instead of again for each string.
pub(crate) fn text(bytes: Bytes) -> Answer {
    Utf8Bytes::try_from(bytes).map_err(|error| {
        RpcError::Invalid(format!("not text: byte {} is not UTF-8", error.valid_up_to()))
    })
}

/// `serde_json`'s own message quotes what it found, which may be a key; the position is enough.
fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, RpcError> {
    serde_json::from_str(text).map_err(|error| {
        let what = if text.trim_ascii_start().starts_with('<') { "HTML, " } else { "" };
        let kind = match error.classify() {
            Category::Data => "not of the expected shape",
            Category::Eof => "cut short",
            Category::Syntax | Category::Io => "no JSON",
        };
        let (line, column) = (error.line(), error.column());
        // Other messages may repeat what was sent.
        let said = error.to_string();
        let missing = said.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
        let missing = missing.map(|field| format!(": no `{field}`")).unwrap_or_default();
        RpcError::Invalid(format!("{what}{kind} at line {line} column {column}{missing}"))
    })
}

/// The text of an answer, before it is parsed.
type Answer = Result<Utf8Bytes, RpcError>;

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: i64, message: &str) -> RpcError {
        ErrorObject { code, message: message.to_owned() }.into_error()
    }

    #[test]
    fn a_missing_field_is_named_and_what_was_sent_is_not_repeated() {
        #[derive(Debug, Deserialize)]
        struct Log {
            #[serde(rename = "blockHash")]
            _block_hash: u64,
        }
        let said = |text| parse::<Log>(text).unwrap_err().to_string();
        let shape = "invalid answer: not of the expected shape at line 1 column";
        assert_eq!(said("{}"), format!("{shape} 2: no `blockHash`"));
        assert_eq!(said(r#"{"blockHash":"k3y"}"#), format!("{shape} 18"));
    }

    #[test]
    fn a_range_that_is_too_wide_is_told_from_a_rate_by_its_words() {
        for (code, message) in [
            (
                -32005,
                "query returned more than 10000 results. Try with this block range [0x1, 0xA].",
            ),
            (-32005, "Log response size exceeded"),
            (-32005, "block range too wide"),
            (-32602, "Log response size exceeded. this block range should work: [0x0, 0x1]"),
            (-32000, "eth_getLogs is limited to a 10,000 range"),
            (35, "ranges over 10000 blocks are not supported on freetier"),
        ] {
            let error = error(code, message);
            assert!(
                matches!(error, RpcError::Answer { .. }) && error.may_be_of_size(),
                "{message}"
            );
        }
        for message in ["daily request count exceeded, request rate limited", "limit exceeded", ""]
        {
            assert!(matches!(error(-32005, message), RpcError::RateLimited(None)), "{message}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_told_by_their_place() {
        assert_eq!(text(Bytes::from_static("{é}".as_bytes())).unwrap(), "{é}");
        match text(Bytes::from_static(b"{\"a\":\"\xff\"}")) {
            Err(RpcError::Invalid(why)) => assert_eq!(why, "not text: byte 6 is not UTF-8"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_id_of_an_answer_is_read_no_further_than_it_stands() {
        for (text, id) in [
            (r#"{"jsonrpc":"2.0","id":7,"result":[cut"#, Some(7)),
            (r#"{"result":{"id":1},"id":8}"#, Some(8)),
            (r#" [ {"jsonrpc":"2.0","id":9,"result":null},cut"#, Some(9)),
            (r#"[{"error":{}},{"id":9}]"#, None),
            (r#"{"id":null,"error":{}}"#, None),
            (r#"{"method":"eth_subscription","params":{"result":{"id":3}}}"#, None),
            (r"[[7]]", None),
            ("[]", None),
            ("7", None),
            ("<html>", None),
            ("", None),
        ] {
            assert_eq!(answered_id(text), id, "{text}");
        }
    }

    #[test]
    fn what_a_provider_suggests_is_understood() {
        /// As it is, and as it is left when it has been searched for keys.
        const ALCHEMY: &str = "Log response size exceeded. You can make eth_getLogs requests with up to a 2K block range \
            and no limit on the response size, or you can request any block range with a cap of 10K logs in the \
            response. Based on your parameters and the response size limit, this block range should work: [0x1000000, \
            0x10fffff]";
        assert_eq!(Redaction::default().clean(ALCHEMY.to_owned()), ALCHEMY);
        for (message, blocks) in [
            ("this block range should work: [0x10, 0x1f]", Some(16)),
            (ALCHEMY, Some(0x10_0000)),
            ("Try with this block range [0x5B0F1A, 0x5B0F1A].", Some(1)),
            ("You can make eth_getLogs requests with up to a 500 block range.", Some(500)),
            ("ranges over 10,000 blocks are not supported", Some(10_000)),
            ("wrong way round: [0x1f, 0x10]", None),
            ("at most [many, more]", None),
            ("query returned more than 10000 results", None),
            ("exceed maximum block range", None),
        ] {
            assert_eq!(error(-32602, message).suggested_blocks(), blocks, "{message}");
        }
        let most = format!("[0x0, 0x{:x}]", u64::MAX);
        assert_eq!(error(-32602, &most).suggested_blocks(), None);
    }
}
