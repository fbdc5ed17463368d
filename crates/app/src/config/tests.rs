//! Tables of settings and the exact results.

use std::time::Duration;

use ethhook_domain::{Proof, Secret};
use ethhook_ingest::{EndpointConfig, Fetch, StartBlock};

use super::*;

mod wrong;

/// Part of every secret; must not appear in anything that is shown.
const CANARY: &str = "c4n4ry";

const CHAIN_ON: (&str, &str) = ("LOCAL_WS_URL", "ws://127.0.0.1:8545");

fn inputs(env: &[(&str, &str)], env_file: &str, toml: &str) -> Inputs {
    Inputs {
        env: env.iter().map(|(k, v)| ((*k).to_owned(), Secret::new(*v))).collect(),
        env_file: file(".env", env_file),
        toml: file("ethhook.toml", toml),
        host_name: "host-1".to_owned(),
    }
}

fn file(path: &str, text: &str) -> Option<TextFile> {
    (!text.is_empty()).then(|| TextFile::new(path, text))
}

fn load(env: &[(&str, &str)], env_file: &str, toml: &str) -> Config {
    match Config::load(&inputs(env, env_file, toml)) {
        Ok(config) => config,
        Err(invalid) => panic!("{:#?}", lines(&invalid.problems)),
    }
}

/// The problems, with one valid chain configured as well.
fn wrong(env: &[(&str, &str)], env_file: &str, toml: &str) -> Vec<String> {
    let env: Vec<_> = env.iter().copied().chain([CHAIN_ON]).collect();
    let found = match Config::load(&inputs(&env, env_file, toml)) {
        Ok(_) => Vec::new(),
        Err(invalid) => lines(&invalid.problems),
    };
    assert!(!found.iter().any(|line| line.contains(CANARY)), "a secret is shown: {found:#?}");
    found
}

fn lines(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

fn resolved(config: &Config) -> Vec<String> {
    let squeeze =
        |line: String| line.split_whitespace().collect::<Vec<_>>().join(" ").replace(" # ", " | ");
    config.resolved.iter().map(|line| squeeze(line.to_string())).collect()
}

#[test]
fn streams_that_may_outgrow_redis_are_told_of() {
    let of = |bytes: &str| load(&[CHAIN_ON, ("STREAM_MAX_BYTES", bytes)], "", "").service;
    assert_eq!(of("300000000").oversized(Some(600_000_000), 2), None);
    assert_eq!(of("300000001").oversized(None, 2), None, "there is no maxmemory");
    let told = of("300000001").oversized(Some(600_000_000), 2).unwrap();
    assert!(
        told.contains("maxmemory of 600000000") && told.contains("at most 180000000"),
        "{told}"
    );
    let unset = load(&[CHAIN_ON], "", "").service;
    assert_eq!(unset.oversized(Some(1_000_000), 9), None);
}

#[test]
fn defaults_hold_where_nothing_is_set() {
    let config = load(&[CHAIN_ON, ("UNRELATED", "x"), ("PATH", "/bin")], "", "");
    assert_eq!(config.redis.url.reveal(), "redis://127.0.0.1:6379");
    assert_eq!((config.service.metrics_port, config.service.health_port), (9090, 8080));
    assert_eq!(config.service.bind_address.to_string(), "127.0.0.1");
    let options = &config.service.options;
    assert_eq!(options.instance_id, "host-1");
    assert_eq!(options.dedup_ttl, Duration::from_secs(86_400));
    assert_eq!(options.retention, Duration::from_secs(24 * 3600));
    assert_eq!(options.lease_ttl, Duration::from_secs(10));
    assert_eq!(config.service.ready_max_lag, Duration::from_secs(60));
    assert_eq!(options.stream_max_bytes.bytes(None), 322_122_540, "60 % of 512 MB");
    let bases =
        [("ETHEREUM_WS_URL", "ws://a"), ("BASE_WS_URL", "ws://a"), ("BSC_WS_URL", "ws://a")];
    let of_four = load(&[&[CHAIN_ON], &bases[..]].concat(), "", "").service.options;
    assert_eq!(of_four.stream_max_bytes.bytes(Some(1_000_000_000)), 150_000_000);
    assert_eq!(config.logging.format, LogFormat::Text);
    let chain = &config.chains[0];
    assert_eq!((chain.profile.name.as_str(), chain.profile.chain_id), ("local", 31_337));
    assert_eq!((chain.start, chain.end_block, chain.confirmations), (StartBlock::Latest, None, 0));
    assert!(chain.filter.contracts.is_empty() && chain.filter.topics.is_empty());
}

#[test]
fn what_kubernetes_sets_for_a_service_called_redis_is_not_ours() {
    let link = ("REDIS_PORT", "tcp://10.0.0.7:6379");
    let config = load(&[CHAIN_ON, link, ("REDIS_URL", "redis://redis")], "", "");
    assert_eq!(config.redis.url.reveal(), "redis://redis");
    let config = load(&[CHAIN_ON, link, ("METRICS_PORT", "tcp://10.0.0.8:9090")], "", "");
    assert_eq!(config.redis.url.reveal(), "redis://127.0.0.1:6379");
    assert_eq!(config.service.metrics_port, 9090);
}

#[test]
fn the_environment_wins_over_env_file_over_toml_over_defaults() {
    let toml = "metrics_port = 1\nhealth_port = 2\nlog_format = 'json'\nredis_port = 7000\n\
                [chains.local]\nstart_block = 5\nconfirmations = 3\nws_url = 'ws://c4n4ry/'";
    let config = load(
        &[("METRICS_PORT", "11"), ("LOCAL_CONFIRMATIONS", "1"), ("REDIS_PORT", "")],
        "HEALTH_PORT=22\nMETRICS_PORT=12\nLOCAL_CONFIRMATIONS=2\n",
        toml,
    );
    assert_eq!((config.service.metrics_port, config.service.health_port), (11, 22));
    assert_eq!(config.logging.format, LogFormat::Json);
    assert_eq!(config.chains[0].confirmations, 1);
    assert_eq!(config.chains[0].start, StartBlock::Number(5));
    assert_eq!(config.redis.url.reveal(), "redis://127.0.0.1:6379", "empty means not set");
    let found = resolved(&config);
    for line in [
        "METRICS_PORT=11 | env",
        "HEALTH_PORT=22 | .env",
        "LOG_FORMAT=json | ethhook.toml",
        "RETENTION_HOURS=24 | default",
        "LOCAL_WS_URL=<redacted> | ethhook.toml",
        "LOCAL_CONFIRMATIONS=1 | env",
        "LOCAL_START_BLOCK=5 | ethhook.toml",
        "LOCAL_VERIFY=receipts_root | default",
    ] {
        assert!(found.iter().any(|l| l == line), "{line} is missing in {found:#?}");
    }
    assert!(!found.iter().any(|line| line.contains(CANARY)));
}

#[test]
fn logs_may_be_fetched_where_the_operator_accepts_what_they_prove() {
    let set = [("LOCAL_VERIFY", "bloom"), ("LOCAL_FETCH", "logs"), CHAIN_ON];
    let config = load(&set, "LOCAL_BATCH_MS=250\nLOCAL_CU_PER_SECOND=330", "");
    let local = &config.chains[0];
    assert_eq!(local.fetch, Fetch::Logs);
    assert_eq!(local.batch_every, Some(Duration::from_millis(250)));
    assert_eq!(local.units_per_second.map(u32::from), Some(330));
    let config = load(&[CHAIN_ON], "", "");
    assert_eq!((config.chains[0].fetch, config.chains[0].batch_every), (Fetch::Auto, None));
}

#[test]
fn urls_pair_up_into_endpoints() {
    let config = load(
        &[
            ("BASE_WS_URL", "wss://a/1, wss://b/2"),
            ("BASE_HTTP_URL", "https://a/1,https://b/2,http://c"),
            ("POLYGON_HTTP_URL", "http://d"),
        ],
        "",
        "",
    );
    let reveal =
        |url: &Option<Secret>| url.as_ref().map_or("-".to_owned(), |u| u.reveal().to_owned());
    let shape: Vec<String> = config
        .chains
        .iter()
        .flat_map(|chain| {
            let line = |e: &EndpointConfig| {
                format!("{} {} {}", chain.profile.name, reveal(&e.ws), reveal(&e.http))
            };
            chain.endpoints.iter().map(line).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(
        shape,
        [
            "base wss://a/1 https://a/1",
            "base wss://b/2 https://b/2",
            "base - http://c",
            "polygon - http://d",
        ]
    );
}

#[test]
fn a_chain_of_the_toml_file_is_described_there_and_set_anywhere() {
    let toml = "[chains.Gnosis]\nchain_id = 100\nblock_time_ms = 5000\nfinality_depth = 20\n\
                state_sync_until = 7\nempty_without_transactions = true\nbloom_of_all_logs = true\nverify = 'structure'\n\
                contracts = ['0x00000000000000000000000000000000000000aa', '0x00000000000000000000000000000000000000bb']\n\
                [chains.local]\nchain_id = 1337\n";
    let config = load(&[("GNOSIS_WS_URL", "wss://g"), CHAIN_ON], "GNOSIS_END_BLOCK=9", toml);
    let names: Vec<_> =
        config.chains.iter().map(|c| (c.profile.name.as_str(), c.profile.chain_id)).collect();
    assert_eq!(names, [("local", 1337), ("gnosis", 100)]);
    let gnosis = &config.chains[1];
    assert_eq!(gnosis.profile.block_time, Duration::from_secs(5));
    assert_eq!(gnosis.profile.finality_depth, 20);
    assert_eq!(gnosis.profile.verify, Proof::Structure);
    assert_eq!(gnosis.profile.state_sync_until, 7);
    assert!(gnosis.profile.empty_without_transactions && gnosis.profile.bloom_of_all_logs);
    assert_eq!(gnosis.filter.contracts.len(), 2);
    assert_eq!(gnosis.end_block, Some(9));
}

#[test]
fn redis_by_parts_is_a_url_whatever_the_password_holds() {
    let env = [CHAIN_ON, ("REDIS_HOST", "::1"), ("REDIS_PASSWORD", "p@ss/w:rd#%?")];
    let config = load(&env, "REDIS_PORT=7000", "");
    let url = url::Url::parse(config.redis.url.reveal()).unwrap();
    assert_eq!(url.host_str(), Some("[::1]"));
    assert_eq!(url.port(), Some(7000));
    assert_eq!(url.username(), "");
    assert_eq!(url.password(), Some("p%40ss%2Fw%3Ard%23%25%3F"));
}

#[test]
fn a_secret_may_come_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("url");
    std::fs::write(&path, "redis://:c4n4ry@h:1\n").unwrap();
    let path = path.to_str().unwrap();
    let config = load(&[CHAIN_ON, ("REDIS_URL_FILE", path)], "", "");
    assert_eq!(config.redis.url.reveal(), "redis://:c4n4ry@h:1");
    // Overriding it does not require knowing that a lower layer set it by file.
    let config =
        load(&[CHAIN_ON, ("REDIS_URL", "redis://other")], &format!("REDIS_URL_FILE={path}"), "");
    assert_eq!(config.redis.url.reveal(), "redis://other");
    // Wrong content is reported under the file's key, without the content.
    std::fs::write(path, "c4n4ry").unwrap();
    let line = "REDIS_URL_FILE (from env): the URL must start with redis://, redis-sentinel:// or redis-cluster://, or for TLS rediss://, rediss-sentinel:// or rediss-cluster://";
    assert_eq!(wrong(&[("REDIS_URL_FILE", path)], "", ""), [line]);
}

#[test]
fn a_file_may_begin_with_a_byte_order_mark() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("url");
    std::fs::write(&path, "\u{feff}redis://h:1\n").unwrap();
    let env = [CHAIN_ON, ("REDIS_URL_FILE", path.to_str().unwrap())];
    let config = load(&env, "\u{feff}METRICS_PORT=11\n", "\u{feff}health_port = 22\n");
    assert_eq!((config.service.metrics_port, config.service.health_port), (11, 22));
    assert_eq!(config.redis.url.reveal(), "redis://h:1");
}

#[test]
fn a_client_of_the_streams_needs_no_chain() {
    let client = Client::load(&inputs(&[("LOCAL_WS_URL", "nonsense")], "", "")).unwrap();
    assert_eq!(client.on.len(), 1);
    assert_eq!(client.known.len(), ethhook_domain::Profile::built_in().len());
}

/// `.env.example` is the rendered table of keys, in both directions and including defaults.
#[test]
fn env_example_is_what_the_table_of_keys_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.env.example");
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == example(),
        "regenerate it: cargo run -p ethhook -- check-config --example > .env.example"
    );
}

#[test]
fn env_example_names_every_key_and_can_be_used_as_it_is() {
    let text = example();
    let set: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix('#')?.split_once('=').map(|(key, _)| key))
        .filter(|key| key.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .collect();
    for key in keys::names(keys::GLOBAL)
        .chain(keys::names(keys::CHAIN).map(|key| format!("ETHEREUM_{key}")))
    {
        assert!(set.contains(&key.as_str()), "{key} is missing");
    }
    // With every # removed, the file is still valid, and the only problem is that no chain is set.
    let bare: String = text
        .lines()
        .map(|line| {
            line.strip_prefix('#').filter(|rest| !rest.starts_with([' ', '-'])).unwrap_or(line)
        })
        .filter(|line| !line.starts_with("#"))
        .fold(String::new(), |text, line| text + line + "\n");
    let Err(invalid) = Config::load(&inputs(&[], &bare, "")) else { panic!("no chain is set") };
    let found = lines(&invalid.problems);
    let twice = |line: &&String| !line.contains("is set twice");
    assert_eq!(found.iter().filter(twice).count(), 1, "{found:#?}");
}

#[test]
fn the_toml_example_is_one_that_works() {
    let text = include_str!("../../../../docs/ethhook.example.toml");
    let config = load(&[], "", text);
    let names: Vec<&str> = config.chains.iter().map(|c| c.profile.name.as_str()).collect();
    assert_eq!(names, ["ethereum", "gnosis"]);
    let facts =
        |chain: &ChainConfig| Profile { name: String::new(), chain_id: 0, ..chain.profile.clone() };
    let default = Profile { block_time: Duration::from_secs(5), ..Profile::unknown("", 0) };
    assert_eq!(facts(&config.chains[1]), default, "the example shows the defaults");
    for key in keys::PROFILE {
        let lines = format!("{}{} = ", example::comment(key.help), key.name);
        assert!(text.contains(&lines), "it lacks these lines:\n{lines}");
    }
}
