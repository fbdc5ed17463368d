//! The two small servers: `/metrics`, and `/health` with `/ready` and the page.
//!
//! Any client that can reach a port can open connections and leave them idle: their number, the
//! time for a request's head and the lifetime of a connection are bounded (G7). When many are open, each is closed
//! after its answer, so that pages left open never keep a probe waiting.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName,
    HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Connections that one port serves at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 64;
/// When more than this many are open, none is kept open after its answer. Streams of events must be fewer.
const MAX_KEPT_OPEN: usize = MAX_CONNECTIONS / 2;
/// Time limit for a request's head, including the next one on an idle connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum lifetime of a connection, longer than the usual time between two scrapes.
const CONNECTION_LIFE: Duration = Duration::from_secs(300);
/// Time to finish the current answer when that lifetime ends.
const LAST_ANSWER: Duration = Duration::from_secs(5);
/// Maximum size of a request's head.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Pause after a failed accept, when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Headers of every answer: it must not be cached, and a page made of these answers loads nothing
/// from elsewhere, cannot be framed and sends no form
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

/// The answer to a GET.
pub(crate) struct Answer {
    status: StatusCode,
    content_type: &'static str,
    body: Body,
}

/// Complete, or streamed.
type Body = UnsyncBoxBody<Bytes, Infallible>;

impl Answer {
    /// A JSON body.
    pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Self {
        // Only a map with keys that are not strings could fail.
        let body = serde_json::to_string(body).unwrap_or_default();
        Self::whole(status, "application/json", body + "\n")
    }

    /// A line of text.
    pub(crate) fn text(status: StatusCode, body: &str) -> Self {
        Self::whole(status, "text/plain; charset=utf-8", format!("{body}\n"))
    }

    /// A file of the page.
    pub(crate) fn file(content_type: &'static str, text: &'static str) -> Self {
        Self::whole(StatusCode::OK, content_type, text)
    }

    /// A complete body.
    pub(crate) fn whole(
        status: StatusCode,
        content_type: &'static str,
        body: impl Into<Bytes>,
    ) -> Self {
        Self { status, content_type, body: Full::new(body.into()).boxed_unsync() }
    }

    /// Server-sent events, each complete, until the connection ends.
    pub(crate) fn events(events: impl Stream<Item = String> + Send + 'static) -> Self {
        let frames = events.map(|event| Ok(Frame::data(Bytes::from(event))));
        let body = StreamBody::new(frames).boxed_unsync();
        Self { status: StatusCode::OK, content_type: "text/event-stream", body }
    }
}

/// Serves until `stop`. `answer` takes a path; where it returns none, the response is 404.
pub(crate) async fn serve<A, F>(listener: TcpListener, answer: A, stop: CancellationToken)
where
    A: Fn(String) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Option<Answer>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    let crowded = Arc::<AtomicBool>::default();
    loop {
        crowded.store(connections.len() > MAX_KEPT_OPEN, Ordering::Relaxed);
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_connection(stream, answer.clone(), Arc::clone(&crowded)));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

async fn serve_connection<S, A, F>(stream: S, answer: A, crowded: Arc<AtomicBool>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: Fn(String) -> F,
    F: Future<Output = Option<Answer>>,
{
    let service = service_fn(|request: Request<Incoming>| {
        let (answer, crowded) = (&answer, &crowded);
        async move {
            let mut response = respond(&request, answer).await;
            if crowded.load(Ordering::Relaxed) {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // Only the client cares how its connection ends.
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
        Answer::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are supported")
    };
    // For a HEAD request, hyper sends only the head of this.
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

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::atomic::AtomicUsize;

    use futures_util::stream;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::net::TcpStream;
    use tokio::sync::Semaphore;
    use tokio::time::{Instant, timeout};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);
    const WHOLE: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    #[tokio::test]
    async fn g7_so_many_connections_are_served_and_the_others_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, let_go) = (Arc::<AtomicUsize>::default(), Arc::new(Semaphore::new(0)));
        let (counted, gate) = (Arc::clone(&asked), Arc::clone(&let_go));
        let answer = move |path: String| {
            counted.fetch_add(1, Ordering::Relaxed);
            let gate = Arc::clone(&gate);
            async move {
                if path == "/held" {
                    gate.acquire().await.unwrap().forget();
                }
                if path == "/events" {
                    return Some(Answer::events(stream::repeat("data: \n\n".to_owned())));
                }
                Some(Answer::text(StatusCode::OK, "here"))
            }
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, answer, CancellationToken::new()));
        let write = async |request: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            stream
        };
        let mut held = Vec::new();
        for _ in 1..MAX_CONNECTIONS {
            held.push(write("GET /held HTTP/1.1\r\nHost: x\r\n\r\n").await);
        }
        let mut last = write("GET /events HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let all_asked = async {
            while asked.load(Ordering::Relaxed) < MAX_CONNECTIONS {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, all_asked).await.unwrap();
        let mut late = write("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        // Connections already accepted are still served.
        let mut reply = [0; 1024];
        for _ in 0..20 {
            assert!(last.read(&mut reply).await.unwrap() > 0);
            assert_eq!(asked.load(Ordering::Relaxed), MAX_CONNECTIONS);
        }
        drop(last);
        let mut reply = String::new();
        timeout(PATIENCE, late.read_to_string(&mut reply)).await.unwrap().unwrap();
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        let_go.add_permits(held.len());
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn g7_clients_that_stay_after_their_answer_keep_nobody_waiting() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = |_| ready(Some(Answer::text(StatusCode::OK, "here")));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, answer, CancellationToken::new()));
        let ask = async || {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(WHOLE.as_bytes()).await.unwrap();
            let mut reply = [0; 1024];
            let length = timeout(HEAD_TIMEOUT / 2, stream.read(&mut reply)).await.unwrap().unwrap();
            let reply = String::from_utf8_lossy(&reply[..length]).into_owned();
            (stream, reply.contains("connection: close"))
        };
        let mut stay = Vec::new();
        for n in 1..=2 * MAX_CONNECTIONS {
            let (stream, is_closed) = ask().await;
            assert_eq!(is_closed, n > MAX_KEPT_OPEN, "client {n}");
            stay.push(stream);
        }
        tasks.shutdown().await;
    }

    /// The response to `request` over an in-memory connection, and the time until it ends.
    async fn served<F>(request: &str, answer: impl Fn(String) -> F) -> (String, Duration)
    where
        F: Future<Output = Option<Answer>>,
    {
        let (mut client, server) = duplex(4096);
        client.write_all(request.as_bytes()).await.unwrap();
        let (began, mut reply) = (Instant::now(), String::new());
        tokio::join!(serve_connection(server, answer, Arc::default()), async {
            client.read_to_string(&mut reply).await.unwrap();
        });
        (reply, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn g7_a_head_is_waited_for_no_longer_than_its_time() {
        for (said, is_whole) in [
            ("", false),
            ("GET / HTTP/1.1\r\nHost: x\r\n", false),
            (WHOLE, true), // and no second request
        ] {
            let answer = |_| ready(Some(Answer::text(StatusCode::OK, "here")));
            let (reply, took) = served(said, answer).await;
            assert_eq!(reply.starts_with("HTTP/1.1 200"), is_whole, "{said:?}: {reply}");
            assert_eq!(took.as_secs(), HEAD_TIMEOUT.as_secs(), "{said:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn g7_no_answer_outlives_its_connection() {
        let (reply, took) = served(WHOLE, |_| pending()).await;
        assert_eq!(reply, "");
        assert_eq!(took.as_secs(), (CONNECTION_LIFE + LAST_ANSWER).as_secs());
    }
}
