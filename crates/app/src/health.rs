//! `/health`: the process answers. `/ready`: Redis answers and every chain is close to its head.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use serde_json::json;
use tokio::sync::Mutex;

use crate::http::Answer;
use crate::page::Page;
use crate::status::live::Live;

/// How long a reply of Redis is reused, so that probes cost it at most one PING a second.
const PING_AGE: Duration = Duration::from_secs(1);
/// Timeout of a PING: shorter than the usual timeout of a probe.
const PING_TIMEOUT: Duration = Duration::from_millis(900);

/// The result of a PING.
struct Ping {
    at: Instant,
    answer: Result<(), String>,
}

/// The state behind `/health` and `/ready`, and the page; clones share it.
#[derive(Clone)]
pub(crate) struct Health {
    live: Live,
    page: Page,
    last_ping: Arc<Mutex<Option<Ping>>>,
}

impl Health {
    pub(crate) fn new(live: Live) -> Self {
        Self { page: Page::new(live.clone()), live, last_ping: Arc::default() }
    }

    /// The answer for `path`; none if there is no such path.
    pub(crate) async fn answer(self, path: String) -> Option<Answer> {
        match path.as_str() {
            "/health" => Some(Answer::json(StatusCode::OK, &json!({ "alive": true }))),
            "/ready" => Some(self.ready().await),
            other => self.page.answer(other).await,
        }
    }

    async fn ready(&self) -> Answer {
        let mut why = Vec::new();
        let no_chain = |why: String| json!({ "chain": null, "why": why });
        if self.live.is_stopping() {
            why.push(no_chain("shutting down".to_owned()));
        } else {
            if let Err(error) = self.ping().await {
                why.push(no_chain(error));
            }
            why.extend(self.live.not_ready().into_iter().map(|not| json!(not)));
        }
        let ready = why.is_empty();
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Answer::json(status, &json!({ "ready": ready, "why": why }))
    }

    /// Concurrent probes share one PING.
    async fn ping(&self) -> Result<(), String> {
        let mut last = self.last_ping.lock().await;
        if let Some(ping) = &*last
            && ping.at.elapsed() < PING_AGE
        {
            return ping.answer.clone();
        }
        let answer = match tokio::time::timeout(PING_TIMEOUT, self.live.ping()).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err("Redis: no answer in time".to_owned()),
        };
        *last = Some(Ping { at: Instant::now(), answer: answer.clone() });
        answer
    }
}
