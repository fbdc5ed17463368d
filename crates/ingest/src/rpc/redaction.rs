//! Removes an endpoint's key from its provider's messages: some repeat the URL, or only the key, in
//! their errors (G11).

use ethhook_domain::Secret;
use hyper::header::HeaderValue;
use percent_encoding::percent_decode_str;
use url::Url;

use super::RpcError;
use super::basic_auth::basic_auth;
use crate::config::EndpointConfig;

/// Shorter parts of a URL are words such as `v2` or `rpc`, not keys.
const SHORTEST_KEY: usize = 6;
/// A password is never such a word; a shorter one would be found everywhere.
const SHORTEST_PASSWORD: usize = 3;
/// Some providers give each customer a host; shorter labels are names such as `eth-mainnet`.
const SHORTEST_KEY_IN_HOST: usize = 20;
const REDACTED: &str = "<redacted>";
/// Stands for [`REDACTED`] until all parts are replaced, so that no part is found in that word.
const HOLE: &str = "\0";
/// At most this much of a provider's message is kept: enough for one that suggests a range of blocks.
const SHOWN_CHARS: usize = 400;

/// The parts of an endpoint's addresses that may be secret, in lower case, the longest first.
#[derive(Clone, Default)]
pub(crate) struct Redaction(Vec<Secret>);

impl Redaction {
    pub(crate) fn of(config: &EndpointConfig) -> Self {
        let mut parts = Vec::new();
        let mut passwords = Vec::new();
        for address in config.http.iter().chain(&config.ws) {
            let Ok(url) = Url::parse(address.reveal()) else { continue };
            parts.extend(url.path_segments().into_iter().flatten().map(str::to_owned));
            parts.extend(url.query_pairs().map(|(_, value)| value.into_owned()));
            parts.extend(url.query().map(str::to_owned));
            parts.extend(url.query().into_iter().flat_map(raw_values).map(str::to_owned));
            let labels = url.host_str().into_iter().flat_map(|host| host.split('.'));
            parts.extend(labels.filter(|l| l.len() >= SHORTEST_KEY_IN_HOST).map(str::to_owned));
            parts.push(url.username().to_owned());
            parts.extend(basic_auth(address).as_ref().and_then(credentials).map(str::to_owned));
            passwords.extend(url.password().map(str::to_owned));
        }
        let parts = both_forms(parts, SHORTEST_KEY);
        let mut parts: Vec<_> = parts.chain(both_forms(passwords, SHORTEST_PASSWORD)).collect();
        // A part that contains another one must be replaced first.
        parts.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        parts.dedup();
        Self(parts.into_iter().map(Secret::new).collect())
    }

    /// `text` without these parts and without any URL; only its beginning, if it is long.
    pub(crate) fn clean(&self, text: String) -> String {
        let text = self.0.iter().fold(text, |text, part| cut_out(&text, part.reveal()));
        let text = text.replace(HOLE, REDACTED);
        let words = text.split(' ').map(|w| if w.contains("://") { "<url>" } else { w });
        words.collect::<Vec<_>>().join(" ").chars().take(SHOWN_CHARS).collect()
    }

    pub(super) fn apply(&self, error: RpcError) -> RpcError {
        let clean = |text| self.clean(text);
        match error {
            RpcError::Connection(text) => RpcError::Connection(clean(text)),
            RpcError::NotOffered(text) => RpcError::NotOffered(clean(text)),
            RpcError::Invalid(text) => RpcError::Invalid(clean(text)),
            RpcError::Answer { code, message } => {
                RpcError::Answer { code, message: clean(message) }
            }
            other => other,
        }
    }
}

/// The values in a query as they are sent, not decoded; of a pair without `=`, all of it.
fn raw_values(query: &str) -> impl Iterator<Item = &str> {
    query.split('&').map(|pair| pair.split_once('=').map_or(pair, |(_, value)| value))
}

/// User and password as the header holds them, in base64, without its padding.
fn credentials(header: &HeaderValue) -> Option<&str> {
    Some(header.to_str().ok()?.strip_prefix("Basic ")?.trim_end_matches('='))
}

/// `parts` as they are sent, and decoded, since a provider that repeats one may have decoded it; in lower case, and
/// none below the `shortest` length.
fn both_forms(parts: Vec<String>, shortest: usize) -> impl Iterator<Item = String> {
    let forms = |part: String| [percent_decode_str(&part).decode_utf8_lossy().into(), part];
    let forms = parts.into_iter().flat_map(forms).map(|part: String| part.to_ascii_lowercase());
    forms.filter(move |part| part.len() >= shortest)
}

/// `text` with a hole for each `part`, which is in lower case; `%2f` and `%2F` are the same.
fn cut_out(text: &str, part: &str) -> String {
    let lower = text.to_ascii_lowercase(); // every character stays where it is
    let mut left = String::with_capacity(text.len());
    let mut from = 0;
    for (at, _) in lower.match_indices(part) {
        left.push_str(&text[from..at]);
        left.push_str(HOLE);
        from = at + part.len();
    }
    left.push_str(&text[from..]);
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g11_keys_are_cut_out_of_whatever_a_provider_says() {
        let config = EndpointConfig {
            http: Some(Secret::new("https://user:passw0rd@node/v2/s3cretkey?token=0therkey")),
            ws: None,
        };
        let redaction = Redaction::of(&config);
        let said = "invalid key s3cretkey for node/v2/s3cretkey, token=0therkey, passw0rd; see \
                    https://elsewhere/s3cretkey";
        let error = redaction.apply(RpcError::Answer { code: 1, message: said.into() }).to_string();
        for secret in ["s3cretkey", "0therkey", "passw0rd"] {
            assert!(!error.contains(secret), "{error}");
        }
        assert!(error.contains("invalid key <redacted> for node/v2/<redacted>"), "{error}");
    }

    /// What is shown of `said` by the node at `url`.
    fn shown(url: &str, said: &str) -> String {
        let config = EndpointConfig { http: Some(Secret::new(url)), ws: None };
        Redaction::of(&config).clean(said.to_owned())
    }

    #[test]
    fn g11_a_key_is_cut_out_in_every_form_that_a_provider_may_repeat() {
        let url = "https://us%2Fer:a%40z@node/v2/p%2Fth-key/?apikey=abc%2Fdef%3Dghi123&n=two+words&b4r3k3y";
        for (said, wanted) in [
            // As it was sent, with other letters in its escapes, decoded, and in another case.
            ("key abc%2Fdef%3Dghi123.", "key <redacted>."),
            ("key abc%2fdef%3dghi123.", "key <redacted>."),
            ("key abc/def=ghi123.", "key <redacted>."),
            ("key ABC%2FDEF%3DGHI123, ABC/DEF=GHI123", "key <redacted>, <redacted>"),
            ("at p%2Fth-key, p/th-key", "at <redacted>, <redacted>"),
            ("n is two+words, two words", "n is <redacted>, <redacted>"),
            ("b4r3k3y is no key", "<redacted> is no key"),
            // User and password, even a short one, and the header made of both (`us/er:a@z`).
            ("password a%40z, a@z, A@Z", "password <redacted>, <redacted>, <redacted>"),
            ("no us%2fer", "no <redacted>"),
            ("bad header Basic dXMvZXI6YUB6", "bad header Basic <redacted>"),
            // Words of the address that are no keys, and letters outside of ASCII.
            ("node v2: unknown apikey, übergroß", "node v2: unknown apikey, übergroß"),
        ] {
            assert_eq!(shown(url, said), wanted);
        }
        // The padding of base64 is no secret; a password is not found in the word that replaces a key.
        assert_eq!(shown("https://a:bcd@node", "Basic YTpiY2Q="), "Basic <redacted>=");
        assert_eq!(
            shown("https://a:red@node/s3cretkey", "s3cretkey, Red"),
            "<redacted>, <redacted>"
        );
        // A password of two letters would be found in every other word.
        assert_eq!(shown("https://a:in@node/", "invalid"), "invalid");
    }

    #[test]
    fn g11_a_key_in_the_host_is_cut_out_and_names_are_not() {
        let url = "https://0123456789abcdef0123456789abcdef.eth-mainnet.example.com/";
        let config = EndpointConfig { http: Some(Secret::new(url)), ws: None };
        let said = "no account at 0123456789abcdef0123456789abcdef.eth-mainnet.example.com";
        let shown = Redaction::of(&config).clean(said.into());
        assert_eq!(shown, "no account at <redacted>.eth-mainnet.example.com");
    }

    #[test]
    fn g11_no_part_of_a_key_is_left_where_a_text_is_cut() {
        let config = EndpointConfig {
            http: Some(Secret::new("https://node/v2/p%40ss-s3cretkey-s3cretkey")),
            ws: None,
        };
        let redaction = Redaction::of(&config);
        // However long the text before the key is; with the key as in the URL, and decoded.
        for before in SHOWN_CHARS - 50..SHOWN_CHARS + 60 {
            for key in ["p%40ss-s3cretkey-s3cretkey", "p@ss-s3cretkey-s3cretkey"] {
                let said = format!("{} {key} {key}", "x".repeat(before));
                let shown = redaction.clean(said);
                assert!(!shown.contains("p%40") && !shown.contains("p@ss"), "{shown}");
                assert!(shown.chars().count() <= SHOWN_CHARS, "{shown}");
            }
        }
    }
}
