//! Removes an endpoint's key from its provider's messages: some repeat the URL, or only the key, in
//! their errors (G11).

use ethhook_domain::Secret;
use percent_encoding::percent_decode_str;
use url::Url;

use super::RpcError;
use crate::config::EndpointConfig;

/// Shorter parts of a URL are words such as `v2` or `rpc`, not keys.
const SHORTEST_KEY: usize = 6;
/// Some providers give each customer a host; shorter labels are names such as `eth-mainnet`.
const SHORTEST_KEY_IN_HOST: usize = 20;
const REDACTED: &str = "<redacted>";
/// At most this much of a provider's message is shown.
const SHOWN_CHARS: usize = 200;

/// The parts of an endpoint's addresses that may be secret.
#[derive(Clone, Default)]
pub(crate) struct Redaction(Vec<Secret>);

impl Redaction {
    pub(crate) fn of(config: &EndpointConfig) -> Self {
        let mut parts = Vec::new();
        for url in config.http.iter().chain(&config.ws).filter_map(|u| Url::parse(u.reveal()).ok())
        {
            parts.extend(url.path_segments().into_iter().flatten().map(str::to_owned));
            parts.extend(url.query_pairs().map(|(_, value)| value.into_owned()));
            parts.extend(url.query().map(str::to_owned));
            let labels = url.host_str().into_iter().flat_map(|host| host.split('.'));
            parts.extend(labels.filter(|l| l.len() >= SHORTEST_KEY_IN_HOST).map(str::to_owned));
            parts.push(url.username().to_owned());
            parts.extend(url.password().map(str::to_owned));
        }
        // A provider that repeats a part may have decoded it.
        let decoded = parts.iter().map(|part| percent_decode_str(part).decode_utf8_lossy().into());
        let decoded: Vec<String> = decoded.collect();
        parts.extend(decoded);
        parts.retain(|part| part.len() >= SHORTEST_KEY);
        // A part that contains another one must be replaced first.
        parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
        Self(parts.into_iter().map(Secret::new).collect())
    }

    /// `text` without these parts and without any URL; only its beginning, if it is long.
    pub(crate) fn clean(&self, text: String) -> String {
        let text = self.0.iter().fold(text, |text, secret| text.replace(secret.reveal(), REDACTED));
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
        for before in 150..260 {
            for key in ["p%40ss-s3cretkey-s3cretkey", "p@ss-s3cretkey-s3cretkey"] {
                let said = format!("{} {key} {key}", "x".repeat(before));
                let shown = redaction.clean(said);
                assert!(!shown.contains("p%40") && !shown.contains("p@ss"), "{shown}");
                assert!(shown.chars().count() <= 200, "{shown}");
            }
        }
    }
}
