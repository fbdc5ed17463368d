//! The page at `/`: three files compiled into the program, and the events that update it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use hyper::StatusCode;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval};

use crate::http::Answer;
use crate::status::live::Live;

/// Pages that may be open at once. Far fewer than connections, so that pages never block a probe. A
/// page above the limit gets no events, is told so, and polls.
const MAX_PAGES: usize = 16;
const EVENT_EVERY: Duration = Duration::from_secs(1);

/// The state behind the page; clones share it.
#[derive(Clone)]
pub(crate) struct Page {
    live: Live,
    places: Arc<Semaphore>,
}

impl Page {
    pub(crate) fn new(live: Live) -> Self {
        Self { live, places: Arc::new(Semaphore::new(MAX_PAGES)) }
    }

    /// The answer for `path`; none if it is not part of the page.
    pub(crate) async fn answer(&self, path: &str) -> Option<Answer> {
        let file = |content_type, text: &'static str| Some(Answer::file(content_type, text));
        match path {
            "/" => file("text/html; charset=utf-8", include_str!("page.html")),
            "/page.css" => file("text/css; charset=utf-8", include_str!("page.css")),
            "/page.js" => file("text/javascript; charset=utf-8", include_str!("page.js")),
            "/status.json" => Some(Answer::json(StatusCode::OK, &*self.live.report().await)),
            "/events" => Some(self.events()),
            _ => None,
        }
    }

    /// The report, once a second, as server-sent events
    /// (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
    fn events(&self) -> Answer {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            let why = "too many pages are open; /status.json still answers";
            return Answer::text(StatusCode::SERVICE_UNAVAILABLE, why);
        };
        let mut ticks = interval(EVENT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The slot is freed when the connection ends and the stream is dropped.
        let events = stream::unfold((self.live.clone(), ticks, place), async |mut state| {
            state.1.tick().await;
            let report = serde_json::to_string(&*state.0.report().await).unwrap_or_default();
            Some((format!("data: {report}\n\n"), state))
        });
        Answer::events(events)
    }
}
