//! JSON-RPC 2.0: from the text of a request, single or batch, to the text of its answer, with the
//! same errors as geth.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::chain::{Chain, lock};
use crate::faults::{Fault, Outcome};
use crate::limits::{BatchRefusal, RateLimit};
use crate::methods::{self, Seen, Vantage};

/// The `error` of an answer.
#[derive(Debug)]
pub(crate) struct RpcError {
    code: i64,
    message: Cow<'static, str>,
}

impl RpcError {
    pub(crate) fn new(code: i64, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn invalid_params(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(-32602, message)
    }

    pub(crate) fn server(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(-32000, message)
    }

    /// Whether the error is about the chain, not about the call.
    pub(crate) fn is_servers(&self) -> bool {
        self.code == -32000
    }

    pub(crate) fn no_such_method(method: &str) -> Self {
        Self::new(-32601, format!("the method {method} does not exist/is not available"))
    }
}

/// The subscriptions of one WebSocket.
#[derive(Default)]
pub(crate) struct Session {
    pub(crate) subscriptions: Mutex<BTreeSet<String>>,
    subscribed: AtomicU64,
}

impl Session {
    /// The number of subscriptions before this one.
    pub(crate) fn next_subscription(&self) -> u64 {
        self.subscribed.fetch_add(1, Ordering::Relaxed)
    }
}

/// The reply to a request.
pub(crate) enum Reply {
    Text(String),
    /// Sent instead of everything else, including a batch's other answers.
    Whole(String),
    /// The last answer of its batch.
    Last(String),
    /// In two parts, which concerns the whole batch.
    Parts(String),
    /// The first half of it is sent, then the connection is closed.
    Half(String),
    /// The request held only notifications.
    Nothing,
    Cut,
    Silence,
    Status(u16, Option<u64>),
    /// A response of HTTP with this status and an answer in it.
    StatusWith(u16, String),
}

#[derive(Deserialize)]
struct Call<'a> {
    #[serde(borrow, default)]
    jsonrpc: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
}

/// Answers one HTTP body or WebSocket message. Only a WebSocket has a session.
pub(crate) async fn answer(chain: &Chain, session: Option<&Session>, request: &[u8]) -> Reply {
    let Ok(request) = serde_json::from_slice::<&RawValue>(request) else {
        return Reply::Text(error("null", &RpcError::new(-32700, "parse error")));
    };
    // The simulator's own methods are not counted.
    if !request.get().contains("\"sim_") {
        chain.stats().message();
    }
    if !request.get().starts_with('[') {
        return match answer_call(chain, session, request).await {
            Reply::Last(text) => Reply::Text(text),
            reply => reply,
        };
    }
    let mut calls: Vec<&RawValue> = serde_json::from_str(request.get()).unwrap_or_default();
    if calls.is_empty() {
        return Reply::Text(error("null", &RpcError::new(-32600, "empty batch")));
    }
    if calls.len() > chain.batch_limit() {
        match chain.batch_refusal() {
            BatchRefusal::Error => {
                return Reply::Text(error("null", &RpcError::new(-32600, "batch too large")));
            }
            BatchRefusal::Status(status) => return Reply::Status(status, None),
            BatchRefusal::Nothing => return Reply::Text("[]".to_owned()),
            BatchRefusal::First => calls.truncate(1),
        }
    }
    // Each with whether it is to be the last.
    let mut answers: Vec<(bool, String)> = Vec::new();
    let mut in_parts = false;
    for call in calls {
        match answer_call(chain, session, call).await {
            // A fault of the transport affects the whole batch.
            whole @ (Reply::Whole(_)
            | Reply::Half(_)
            | Reply::Cut
            | Reply::Silence
            | Reply::Status(..)
            | Reply::StatusWith(..)) => {
                return whole;
            }
            Reply::Nothing => {}
            Reply::Last(text) => answers.push((true, text)),
            Reply::Text(text) => answers.push((false, text)),
            Reply::Parts(text) => {
                in_parts = true;
                answers.push((false, text));
            }
        }
    }
    if answers.is_empty() {
        return Reply::Nothing;
    }
    if !answers.is_sorted_by_key(|(is_last, _)| *is_last) {
        chain.stats().played(Fault::LateInBatch.kind());
        answers.sort_by_key(|(is_last, _)| *is_last);
    }
    let answers: Vec<_> = answers.into_iter().map(|(_, text)| text).collect();
    let text = format!("[{}]", answers.join(","));
    if in_parts { Reply::Parts(text) } else { Reply::Text(text) }
}

async fn answer_call(chain: &Chain, session: Option<&Session>, call: &RawValue) -> Reply {
    let invalid = || Reply::Text(error("null", &RpcError::new(-32600, "invalid request")));
    let Ok(call) = serde_json::from_str::<Call<'_>>(call.get()) else { return invalid() };
    let (Some("2.0"), Some(method)) = (call.jsonrpc.as_deref(), call.method) else {
        return invalid();
    };
    let Some(id) = call.id.map(RawValue::get) else { return Reply::Nothing };
    if id.starts_with(['{', '[']) {
        return invalid();
    }
    let params = call.params.map(RawValue::get);
    let stands = chain.vantage(session.is_some());
    let honest =
        |from| methods::call(&Seen::new(chain, stands.and(from)), session, &method, params);
    // The simulator's own methods are not under test: no faults, no counters.
    let outcome = if method.starts_with("sim_") {
        Outcome::Answer(honest(Vantage::default()))
    } else if let Some(RateLimit { retry_after, .. }) = chain.refuses_call() {
        chain.stats().played(Fault::HttpStatus(429, retry_after).kind());
        Outcome::Status(429, retry_after)
    } else {
        chain.stats().count(&method);
        let asks_finalized = method == "eth_getBlockByNumber"
            && params.is_some_and(|params| params.contains("\"finalized\""));
        let (outcome, fault) = chain.faults().answer(&method, asks_finalized, honest).await;
        // The last in its batch it is only among others.
        if !matches!(outcome, Outcome::LateInBatch(_)) {
            fault.inspect(|fault| chain.stats().played(fault));
        }
        outcome
    };
    match outcome {
        Outcome::Answer(result) => Reply::Text(envelope(id, result)),
        Outcome::WrongId(result) => Reply::Text(envelope("987654321", result)),
        Outcome::LateInBatch(result) => Reply::Last(envelope(id, result)),
        Outcome::Fragmented(result) => Reply::Parts(envelope(id, result)),
        Outcome::Half(result) => Reply::Half(envelope(id, result)),
        Outcome::Deaf(result) => {
            if let (Some(session), Ok(subscription)) = (session, &result) {
                lock(&session.subscriptions).remove(subscription.trim_matches('"'));
            }
            Reply::Text(envelope(id, result))
        }
        Outcome::Body(text) => Reply::Whole(text),
        Outcome::Cut => Reply::Cut,
        Outcome::Silence => Reply::Silence,
        // A WebSocket has no status.
        Outcome::ErrorWithStatus(_, problem) if session.is_some() => {
            Reply::Text(error(id, &problem))
        }
        Outcome::ErrorWithStatus(status, problem) => Reply::StatusWith(status, error(id, &problem)),
        Outcome::Status(..) if session.is_some() => {
            Reply::Text(error(id, &RpcError::new(-32005, "limit exceeded")))
        }
        Outcome::Status(status, retry_after) => Reply::Status(status, retry_after),
    }
}

fn envelope(id: &str, result: Result<String, RpcError>) -> String {
    match result {
        Ok(result) => format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#),
        Err(problem) => error(id, &problem),
    }
}

fn error(id: &str, error: &RpcError) -> String {
    let message = serde_json::Value::from(error.message.as_ref());
    let code = error.code;
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":{message}}}}}"#)
}
