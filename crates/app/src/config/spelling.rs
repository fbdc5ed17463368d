//! Detects misspelt names of keys and chains. Variables of other programs must not prevent a start,
//! so in the process environment only near misses count.

use super::keys;

/// Variables of other programs that happen to look like ours.
const FOREIGN: &[&str] = &["INSTANCE_IP"];

/// The key that `name` probably stands for; `chains` are the known names in lower case.
pub(crate) fn nearest(name: &str, chains: &[String]) -> Option<String> {
    if FOREIGN.contains(&name) {
        return None;
    }
    nearest_key(name, keys::names(keys::GLOBAL))
        .or_else(|| misspelt_chain(name, chains))
        .or_else(|| misspelt_chain_key(name, chains))
}

/// The key among `candidates` that `name` probably misspells.
pub(crate) fn nearest_key(
    name: &str,
    candidates: impl IntoIterator<Item = String>,
) -> Option<String> {
    // Short keys of other programs differ from ours by as little: REDIS_SSL, REDIS_TTL.
    within(name, candidates, |length| match length {
        0..=3 => 0,
        4..=11 => 1,
        _ => 2,
    })
}

/// The chain among `candidates` that `name` probably misspells.
pub(crate) fn nearest_chain(
    name: &str,
    candidates: impl IntoIterator<Item = String>,
) -> Option<String> {
    within(name, candidates, |length| match length {
        0..=3 => 0,
        4..=6 => 1,
        _ => 2,
    })
}

fn within(
    name: &str,
    candidates: impl IntoIterator<Item = String>,
    tolerance: fn(usize) -> usize,
) -> Option<String> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(name, &candidate), candidate))
        .filter(|(distance, candidate)| *distance <= tolerance(candidate.len()))
        .min()
        .map(|(_, candidate)| candidate)
}

/// `ETHERUM_WS_URL`: a chain's key after nearly a chain's name.
fn misspelt_chain(name: &str, chains: &[String]) -> Option<String> {
    keys::names(keys::CHAIN).find_map(|key| {
        let prefix = name.strip_suffix(&key)?.strip_suffix('_')?;
        let chain = nearest_chain(prefix, chains.iter().map(|chain| chain.to_uppercase()))?;
        Some(format!("{chain}_{key}"))
    })
}

/// `ETHEREUM_WS_ULR`: nearly a chain's key after a chain's name.
fn misspelt_chain_key(name: &str, chains: &[String]) -> Option<String> {
    chains.iter().find_map(|chain| {
        let chain = chain.to_uppercase();
        let key = name.strip_prefix(&chain)?.strip_prefix('_')?;
        let key = nearest_key(key, keys::names(keys::CHAIN))?;
        Some(format!("{chain}_{key}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_are_told_from_foreign_names() {
        let chains: Vec<String> =
            ethhook_domain::Profile::built_in().into_iter().map(|p| p.name).collect();
        for (name, expected) in [
            ("ETHERUM_WS_URL", Some("ETHEREUM_WS_URL")),
            ("ETHREEUM_HTTP_URL", Some("ETHEREUM_HTTP_URL")),
            ("ARBITRIUM_START_BLOCK", Some("ARBITRUM_START_BLOCK")),
            ("POLYGN_WS_URL_FILE", Some("POLYGON_WS_URL_FILE")),
            ("BASSE_VERIFY", Some("BASE_VERIFY")),
            ("ETHEREUM_WS_ULR", Some("ETHEREUM_WS_URL")),
            ("ETHEREUM_HTTPS_URL", Some("ETHEREUM_HTTP_URL")),
            ("LOCAL_TOPIC", Some("LOCAL_TOPICS")),
            ("REDIS_PASSWRD", Some("REDIS_PASSWORD")),
            ("REDISURL", Some("REDIS_URL")),
            ("METRIC_PORT", Some("METRICS_PORT")),
            ("RETENTION_HOUR", Some("RETENTION_HOURS")),
            // Not ours.
            ("SSL_VERIFY", None),
            ("BASE_URL", None),
            ("BASE_DIR", None),
            ("PATH", None),
            ("PORT", None),
            ("HOSTNAME", None),
            ("DATABASE_WS_URL", None),
            ("SOLANA_WS_URL", None),
            ("GNOSIS_HTTP_URL", None),
            ("RUST_BACKTRACE", None),
            ("RUST_LOG_STYLE", None),
            ("REDIS_SERVICE_PORT", None),
            ("REDIS_SSL", None),
            ("REDIS_USER", None),
            ("INSTANCE_IP", None),
            ("LOCAL_IP", None),
        ] {
            assert_eq!(nearest(name, &chains).as_deref(), expected, "{name}");
        }
    }
}
