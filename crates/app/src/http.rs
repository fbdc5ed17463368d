//! The two small servers: `/metrics`, and `/health` with `/ready` and the page.
//!
//! Whoever can reach a port can open connections and leave them: their number, the time for a
//! request's head and the life of a connection are bounded (G7).

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Connections served at once by one port; more wait to be accepted.
const MAX_CONNECTIONS: usize = 64;
/// The time for the head of a request, and for an idle connection's next one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);
/// The life of a connection, longer than the usual time between two scrapes.
const CONNECTION_LIFE: Duration = Duration::from_secs(300);
/// The time for what is under way when a connection's life ends.
const LAST_ANSWER: Duration = Duration::from_secs(5);
/// The head of a request.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Pause after a failed accept, when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What every answer says of itself: nothing is kept, and a page made of these answers loads nothing
/// from elsewhere, is framed by none and sends no form
/// (<https://developer.mozilla.org/en-US/docs/Web/HTTP/Reference/Headers/Content-Security-Policy>).
const HEADERS: [(HeaderName, &str); 4] = [
    (CACHE_CONTROL, "no-store"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
];

/// What is said to a GET.
pub(crate) struct Answer {
    status: StatusCode,
    content_type: &'static str,
    body: Body,
}

/// Whole, or as it comes.
type Body = UnsyncBoxBody<Bytes, Infallible>;

impl Answer {
    /// A JSON body.
    pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Self {
        // Only a map whose keys are no texts could fail.
        let body = serde_json::to_string(body).unwrap_or_default();
        Self::whole(status, "application/json", body + "\n")
    }

    /// A line of text.
    pub(crate) fn text(status: StatusCode, body: &str) -> Self {
        Self::whole(status, "text/plain; charset=utf-8", format!("{body}\n"))
    }

    /// A part of the page.
    pub(crate) fn file(content_type: &'static str, text: &'static str) -> Self {
        Self::whole(StatusCode::OK, content_type, text)
    }

    /// All at once.
    pub(crate) fn whole(
        status: StatusCode,
        content_type: &'static str,
        body: impl Into<Bytes>,
    ) -> Self {
        Self { status, content_type, body: Full::new(body.into()).boxed_unsync() }
    }

    /// Server-sent events, each complete, until the connection's end.
    pub(crate) fn events(events: impl Stream<Item = String> + Send + 'static) -> Self {
        let frames = events.map(|event| Ok(Frame::data(Bytes::from(event))));
        let body = StreamBody::new(frames).boxed_unsync();
        Self { status: StatusCode::OK, content_type: "text/event-stream", body }
    }
}

/// Answers until `stop`. `answer` takes a path; what it gives none for is not found.
pub(crate) async fn serve<A, F>(listener: TcpListener, answer: A, stop: CancellationToken)
where
    A: Fn(String) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Option<Answer>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_connection(stream, answer.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

async fn serve_connection<A, F>(stream: TcpStream, answer: A)
where
    A: Fn(String) -> F,
    F: Future<Output = Option<Answer>>,
{
    let service = service_fn(|request: Request<Incoming>| {
        let answer = &answer;
        async move { Ok::<_, Infallible>(respond(&request, answer).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // How a client's connection ends is the client's affair.
    if tokio::time::timeout(CONNECTION_LIFE, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        drop(tokio::time::timeout(LAST_ANSWER, connection).await);
    }
}

async fn respond<A, F>(request: &Request<Incoming>, answer: &A) -> Response<Body>
where
    A: Fn(String) -> F,
    F: Future<Output = Option<Answer>>,
{
    let known_method = matches!(*request.method(), Method::GET | Method::HEAD);
    let Answer { status, content_type, body } = if known_method {
        answer(request.uri().path().to_owned())
            .await
            .unwrap_or_else(|| Answer::text(StatusCode::NOT_FOUND, "not found"))
    } else {
        Answer::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered")
    };
    // To a HEAD, hyper sends the head of this alone.
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if !known_method {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}
