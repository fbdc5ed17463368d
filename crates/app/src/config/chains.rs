//! Which chains are on, and their settings.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::Duration;

use ethhook_domain::{Filter, Profile, Proof, Secret};
use ethhook_ingest::{ChainConfig, EndpointConfig, Fetch, StartBlock};

use super::keys;
use super::layers::{Origin, Setting, env_name};
use super::problem::Problem;
use super::read::{Reader, address, topic};

/// With more confirmations than this, the chain would hold more headers than it ever needs.
const MAX_CONFIRMATIONS: u64 = 4096;
/// More than any provider sells per key.
const MAX_RPS: u32 = 10_000;
const MAX_UNITS: u32 = 10_000_000;
/// With a longer interval, a chain would no longer follow its head.
const MAX_BATCH_MS: u64 = 60_000;

/// The profiles of all known chains: built in, or described in `ethhook.toml`.
pub(crate) fn known(reader: &mut Reader<'_>) -> Vec<Profile> {
    let built_in = Profile::built_in();
    let names = reader.settings.chains.clone();
    names
        .iter()
        .filter_map(|name| profile(reader, name, built_in.iter().find(|p| p.name == *name)))
        .collect()
}

fn profile(reader: &mut Reader<'_>, name: &str, built_in: Option<&Profile>) -> Option<Profile> {
    let before = reader.problems.len();
    let chain_id = chain_id(reader, name, built_in);
    // The other keys are read even if the chain id is wrong, to report all errors at once.
    let mut profile = built_in.cloned().unwrap_or_else(|| Profile::unknown(name, 0));
    profile.chain_id = chain_id.unwrap_or(profile.chain_id);
    if let Some(ms) = set_number(reader, name, "block_time_ms", 1..=3_600_000) {
        profile.block_time = Duration::from_millis(ms);
    }
    if let Some(depth) = set_number(reader, name, "finality_depth", 1..=1_000_000) {
        profile.finality_depth = depth;
    }
    for (key, field) in [
        ("empty_without_transactions", &mut profile.empty_without_transactions),
        ("bloom_of_all_logs", &mut profile.bloom_of_all_logs),
    ] {
        let value = set(reader, name, key)
            .and_then(|flag| reader.parse(&flag, "true or false", |text| text.parse().ok()));
        if let Some(value) = value {
            *field = value;
        }
    }
    if let Some(first) = set_number(reader, name, "state_sync_until", 0..=u64::MAX / 2) {
        profile.state_sync_until = first;
    }
    let verify = set(reader, name, "VERIFY").and_then(|level| {
        reader.parse(&level, "receipts_root, bloom or structure", |text| text.parse().ok())
    });
    if let Some(verify) = verify {
        profile.verify = verify;
    }
    (reader.problems.len() == before).then_some(profile)
}

/// None if it is missing or wrong, which is recorded in `reader`.
fn chain_id(reader: &mut Reader<'_>, name: &str, built_in: Option<&Profile>) -> Option<u64> {
    match (set(reader, name, "chain_id"), built_in) {
        (Some(setting), _) => {
            let set = reader.number(&setting, 1..=u64::MAX / 2)?;
            // A dev node may have any chain id.
            if let Some(known) = built_in.filter(|known| known.chain_id != set && name != "local") {
                let text = format!(
                    "{name} is built in and has chain id {}; give chain {set} another name, as in \
                     [chains.my_{name}]",
                    known.chain_id
                );
                reader.problems.push(setting.problem(text));
                return None;
            }
            Some(set)
        }
        (None, Some(built_in)) => Some(built_in.chain_id),
        (None, None) => {
            reader.problems.push(Problem::new(
                format!("chains.{name}.chain_id"),
                "is missing: a chain that is not built in needs its chain id",
            ));
            None
        }
    }
}

/// A value only if it is set: the table's default must not override the profile's.
fn set(reader: &Reader<'_>, chain: &str, name: &str) -> Option<Setting> {
    let setting = reader.settings.chain(chain, name);
    (setting.origin != Origin::Default).then_some(setting)
}

/// The same for a number in `range`.
fn set_number(
    reader: &mut Reader<'_>,
    chain: &str,
    name: &str,
    range: RangeInclusive<u64>,
) -> Option<u64> {
    let setting = set(reader, chain, name)?;
    reader.number(&setting, range)
}

/// Whether a chain is on: it has a URL, valid or not.
pub(crate) fn is_on(reader: &Reader<'_>, chain: &str) -> bool {
    let mut urls = keys::CHAIN.iter().filter(|key| key.secret);
    urls.any(|key| reader.settings.is_given(Some(chain), key.name))
}

/// All chains that are on and correctly configured.
pub(crate) fn read(reader: &mut Reader<'_>, known: &[Profile]) -> Vec<ChainConfig> {
    let on: Vec<String> =
        reader.settings.chains.iter().filter(|name| is_on(reader, name)).cloned().collect();
    // A file that could not be read may have set one.
    if on.is_empty() && reader.problems.iter().all(|problem| !problem.is_of_file()) {
        let names: Vec<String> = reader.settings.chains.iter().map(|n| n.to_uppercase()).collect();
        reader.problems.push(Problem::new(
            "no chain is set",
            format!(
                "set <NAME>_WS_URL or <NAME>_HTTP_URL, as in ETHEREUM_WS_URL=wss://...; NAME is \
                 one of {}, or a [chains.NAME] of ethhook.toml",
                names.join(", ")
            ),
        ));
    }
    let mut chains = Vec::new();
    let mut followed: Vec<&Profile> = Vec::new();
    for name in on {
        let profile = known.iter().find(|profile| profile.name == name);
        // The rest of a chain is read even if one part is wrong, to report all errors at once.
        chains.extend(chain(reader, &name, profile));
        let Some(profile) = profile else { continue };
        let id = profile.chain_id;
        if let Some(same) = followed.iter().find(|other| other.chain_id == id) {
            let other = &same.name;
            reader.problems.push(Problem::new(
                env_name(Some(&name), "*"),
                format!("chain {name} has the chain id {id} of chain {other}; keep one of them"),
            ));
        }
        followed.push(profile);
    }
    chains
}

fn chain(reader: &mut Reader<'_>, name: &str, profile: Option<&Profile>) -> Option<ChainConfig> {
    let endpoints = endpoints(reader, name);
    let start = reader.chain(name, "START_BLOCK")?;
    let start_block = reader.parse(&start, "latest or a block number", |text| match text {
        "latest" => Some(StartBlock::Latest),
        text => text.parse().ok().map(StartBlock::Number),
    });
    let end = reader.chain(name, "END_BLOCK");
    let end_block = reader.optional(end, |reader, end| {
        let number = reader.parse(end, "a block number", |text| text.parse().ok())?;
        if let Some(StartBlock::Number(first)) = start_block
            && number < first
        {
            let text = format!("must not be below {}={first}", start.key);
            reader.problems.push(end.problem(text));
        }
        Some(number)
    });
    let contracts = reader.chain(name, "CONTRACTS");
    let contracts = reader.list(contracts.as_ref(), address);
    let topics = reader.chain(name, "TOPICS");
    let topics = reader.list(topics.as_ref(), topic);
    let confirmations = reader.chain(name, "CONFIRMATIONS")?;
    let confirmations = reader.number(&confirmations, 0..=MAX_CONFIRMATIONS);
    let rps = reader.chain(name, "RPS");
    let requests_per_second =
        reader.optional(rps, |reader, rps| NonZeroU32::new(reader.number(rps, 1..=MAX_RPS)?));
    let units = reader.chain(name, "CU_PER_SECOND");
    let units_per_second = reader
        .optional(units, |reader, units| NonZeroU32::new(reader.number(units, 1..=MAX_UNITS)?));
    let batch = reader.chain(name, "BATCH_MS");
    let batch_every = reader.optional(batch, |reader, ms| {
        reader.number(ms, 1..=MAX_BATCH_MS).map(Duration::from_millis)
    });
    let fetch = fetch(reader, name, profile);
    let profile = profile?;
    reader.resolve_verify(name, profile);
    Some(ChainConfig {
        profile: profile.clone(),
        endpoints: endpoints?,
        start: start_block?,
        end_block: end_block?,
        filter: Filter {
            contracts: contracts?.into_iter().collect(),
            topics: topics?.into_iter().collect(),
        },
        confirmations: confirmations?,
        requests_per_second: requests_per_second?,
        units_per_second: units_per_second?,
        fetch: fetch?,
        batch_every: batch_every?,
    })
}

/// Only `VERIFY` can lower a check, so that one key tells how blocks are checked.
fn fetch(reader: &mut Reader<'_>, name: &str, profile: Option<&Profile>) -> Option<Fetch> {
    let setting = reader.chain(name, "FETCH")?;
    let fetch = reader.parse(&setting, "auto, receipts or logs", |text| match text {
        "auto" => Some(Fetch::Auto),
        "receipts" => Some(Fetch::Receipts),
        "logs" => Some(Fetch::Logs),
        _ => None,
    })?;
    if fetch == Fetch::Logs && profile.is_some_and(|p| p.verify == Proof::ReceiptsRoot) {
        let verify = env_name(Some(name), "VERIFY");
        let text = format!(
            "logs cannot prove the receipts root, which {verify}=receipts_root requires; set \
             {verify}=bloom, or fetch receipts"
        );
        reader.problems.push(setting.problem(text));
    }
    Some(fetch)
}

/// The first WebSocket URL and the first HTTP URL are one endpoint, and so on.
fn endpoints(reader: &mut Reader<'_>, name: &str) -> Option<Vec<EndpointConfig>> {
    let ws = reader.secret(Some(name), "WS_URL");
    let ws = reader.urls(ws.as_ref(), ["ws", "wss"]);
    let http = reader.secret(Some(name), "HTTP_URL");
    let http = reader.urls(http.as_ref(), ["http", "https"]);
    let (ws, http): (Vec<Secret>, Vec<Secret>) = (ws?, http?);
    let at = |list: &[Secret], i: usize| list.get(i).cloned();
    let endpoints = (0..ws.len().max(http.len()))
        .map(|i| EndpointConfig { http: at(&http, i), ws: at(&ws, i) })
        .collect();
    Some(endpoints)
}
