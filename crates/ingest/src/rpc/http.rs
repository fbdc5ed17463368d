//! JSON-RPC over HTTP/1.1 with keep-alive and TLS.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ethhook_domain::Secret;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER,
};
use hyper::{Request, Response, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::basic_auth::basic_auth;
use super::{Answer, CONNECT_TIMEOUT, RpcError, text};

/// Idle connections are kept for the next block, but no longer than proxies usually keep them.
const IDLE: Duration = Duration::from_secs(50);

pub(crate) struct HttpClient {
    url: Secret,
    /// Whether a connection may have been kept since an earlier answer.
    kept: AtomicBool,
    authorization: Option<HeaderValue>,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl HttpClient {
    pub(crate) fn new(url: Secret) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let tls = HttpsConnectorBuilder::new()
            .with_webpki_roots()
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .build(tls);
        Self { authorization: basic_auth(&url), url, kept: AtomicBool::new(false), client }
    }

    /// A request whose answer does not begin is sent once more if its connection may have been kept from an earlier
    /// one: the server may have closed it at that moment. All our requests only read.
    async fn send(&self, body: Bytes) -> Result<Response<Incoming>, RpcError> {
        loop {
            let may_be_stale = self.kept.load(Ordering::Relaxed);
            match self.client.request(self.request(body.clone())?).await {
                Ok(response) => {
                    self.kept.store(true, Ordering::Relaxed);
                    return Ok(response);
                }
                Err(error) if may_be_stale && !error.is_connect() => {
                    self.kept.store(false, Ordering::Relaxed);
                }
                Err(error) => return Err(RpcError::Connection(reason(&error))),
            }
        }
    }

    fn request(&self, body: Bytes) -> Result<Request<Full<Bytes>>, RpcError> {
        let mut request = Request::post(self.url.reveal())
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT_ENCODING, "identity")
            .body(Full::new(body))
            .map_err(|_| RpcError::Connection("the URL is not usable for HTTP".into()))?;
        if let Some(said) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, said.clone());
        }
        Ok(request)
    }

    /// Posts `body` and returns the answer's body, at most `max_bytes`; the caller sets the
    /// timeout.
    pub(crate) async fn post(&self, body: String, max_bytes: usize) -> Answer {
        let response = self.send(body.into()).await?;
        let status = response.status();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        if status == StatusCode::TOO_MANY_REQUESTS {
            return Err(RpcError::RateLimited(retry_after));
        }
        let encoding = response.headers().get(CONTENT_ENCODING);
        if encoding.is_some_and(|encoding| encoding != "identity") {
            return Err(RpcError::Invalid("it is compressed, which was not asked for".into()));
        }
        let body =
            Limited::new(response.into_body(), max_bytes).collect().await.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    RpcError::TooLarge(max_bytes)
                } else {
                    RpcError::Connection("the answer was cut".into())
                }
            })?;
        let body = body.to_bytes();
        // Some providers send JSON-RPC errors with an error status.
        if !status.is_success() && !body.trim_ascii_start().starts_with(b"{") {
            return Err(RpcError::Status(status.as_u16()));
        }
        text(body)
    }
}

/// The innermost cause, which contains no address.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    match cause.downcast_ref::<std::io::Error>() {
        Some(io) => io.kind().to_string(),
        None => cause.to_string().split("://").next().unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

    /// A server that gives these answers in turn, of which an empty one ends the connection; and its URL.
    async fn serve(answers: &'static [&'static str]) -> (JoinSet<()>, Secret) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Secret::new(format!("http://{}", listener.local_addr().unwrap()));
        let next = AtomicUsize::new(0);
        let mut server = JoinSet::new();
        server.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = vec![0; 4_096];
                while let Ok(1..) = stream.read(&mut request).await {
                    let answer = answers[next.fetch_add(1, Ordering::Relaxed)];
                    if answer.is_empty() || stream.write_all(answer.as_bytes()).await.is_err() {
                        break;
                    }
                }
            }
        });
        (server, url)
    }

    async fn post(client: &HttpClient) -> Result<String, String> {
        let answer = client.post("{}".to_owned(), 1_000).await;
        answer.map(|text| text.to_string()).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_request_on_a_connection_that_the_server_has_just_closed_is_sent_again_once() {
        let (_server, url) = serve(&[OK, "", OK, OK, "", "", "", OK]).await;
        let client = HttpClient::new(url);
        let ok = Ok("{}".to_owned());
        assert_eq!(post(&client).await, ok);
        assert_eq!(post(&client).await, ok, "closed, then answered");
        assert_eq!(post(&client).await, ok);
        let closed = |answer: Result<String, String>| answer.unwrap_err().contains("closed");
        assert!(closed(post(&client).await), "closed twice: that is the server's way");
        assert!(closed(post(&client).await), "no connection was kept");
        assert_eq!(post(&client).await, ok);
    }

    #[tokio::test]
    async fn what_is_not_understood_is_named() {
        const ZIPPED: &str =
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x0b";
        const MOVED: &str =
            "HTTP/1.1 308 Permanent Redirect\r\nLocation: http://key/\r\nContent-Length: 0\r\n\r\n";
        let (_server, url) = serve(&[ZIPPED, MOVED]).await;
        let client = HttpClient::new(url);
        let said = post(&client).await.unwrap_err();
        assert_eq!(said, "invalid answer: it is compressed, which was not asked for");
        let said = post(&client).await.unwrap_err();
        assert_eq!(said, "HTTP status 308: the URL has moved, and redirects are not followed");
    }
}
