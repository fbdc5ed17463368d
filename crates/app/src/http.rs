//! The two small servers: `/metrics`, and `/health` with `/ready`.
//!
//! Whoever can reach a port can open connections and leave them: their number, the time for a
//! request's head and the life of a connection are bounded (G7).

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
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

/// What is said to a GET.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) content_type: &'static str,
    pub(crate) body: String,
}

impl Answer {
    /// A JSON body.
    pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Self {
        // Only a map whose keys are no texts could fail.
        let body = serde_json::to_string(body).unwrap_or_default();
        Self { status, content_type: "application/json", body: body + "\n" }
    }

    /// A line of text.
    pub(crate) fn text(status: StatusCode, body: &str) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: format!("{body}\n") }
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

async fn respond<A, F>(request: &Request<Incoming>, answer: &A) -> Response<Full<Bytes>>
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
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    if !known_method {
        headers.insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
    }
    response
}
