//! User and password from a provider's address: neither client sends them on its own.

use data_encoding::BASE64;
use ethhook_domain::Secret;
use hyper::header::HeaderValue;
use percent_encoding::percent_decode_str;
use url::Url;

/// The `Authorization` header for `user:password@` in an address (RFC 7617); none if there is no user.
pub(super) fn basic_auth(address: &Secret) -> Option<HeaderValue> {
    let url = Url::parse(address.reveal()).ok()?;
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let mut said: Vec<u8> = percent_decode_str(url.username()).collect();
    said.push(b':');
    said.extend(percent_decode_str(url.password().unwrap_or_default()));
    let mut header = HeaderValue::from_str(&format!("Basic {}", BASE64.encode(&said))).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_password_are_sent_as_they_are_meant() {
        let header = |url: &str| basic_auth(&Secret::new(url));
        // The example of RFC 7617.
        let said = header("wss://Aladdin:open%20sesame@node/v2").unwrap();
        assert_eq!(said, "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert!(said.is_sensitive());
        assert_eq!(header("https://a@node").unwrap(), "Basic YTo=");
        assert_eq!(header("https://node/a:b@c"), None);
    }
}
