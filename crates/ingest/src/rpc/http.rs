//! JSON-RPC over HTTP/1.1 with keep-alive and TLS.

use std::time::Duration;

use bytes::Bytes;
use ethhook_domain::Secret;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Request, StatusCode};
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
        Self { authorization: basic_auth(&url), url, client }
    }

    /// Posts `body` and returns the answer's body, at most `max_bytes`; the caller sets the
    /// timeout.
    pub(crate) async fn post(&self, body: String, max_bytes: usize) -> Answer {
        let mut request = Request::post(self.url.reveal())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from(body))
            .map_err(|_| RpcError::Connection("the URL is not usable for HTTP".into()))?;
        if let Some(said) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, said.clone());
        }
        let response = self
            .client
            .request(request)
            .await
            .map_err(|error| RpcError::Connection(reason(&error)))?;
        let status = response.status();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        if status == StatusCode::TOO_MANY_REQUESTS {
            return Err(RpcError::RateLimited(retry_after));
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
