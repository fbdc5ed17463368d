//! Each problem is reported in one line that names the key, the place and what would be right.

use super::*;

/// Key, value, and the first line of the resulting problem.
const WRONG_VALUES: &[(&str, &str, &str)] = &[
    (
        "METRICS_PORT",
        "99999",
        "METRICS_PORT=99999 (from env): must be a whole number from 0 to 65535",
    ),
    ("METRICS_PORT", "-1", "METRICS_PORT=-1 (from env): must be a whole number from 0 to 65535"),
    ("METRICS_PORT", "8080", "HEALTH_PORT=8080: must differ from METRICS_PORT"),
    ("HEALTH_PORT", "9090", "HEALTH_PORT=9090 (from env): must differ from METRICS_PORT"),
    (
        "BIND_ADDRESS",
        "localhost",
        "BIND_ADDRESS=localhost (from env): must be an IP address, such as 127.0.0.1 or 0.0.0.0",
    ),
    (
        "DEDUP_TTL_SECONDS",
        "1d",
        "DEDUP_TTL_SECONDS=1d (from env): must be a whole number from 1 to 3162240000",
    ),
    ("STREAM_ENCODING", "MsgPack", "STREAM_ENCODING=MsgPack (from env): must be fields or msgpack"),
    (
        "RETENTION_HOURS",
        "0",
        "RETENTION_HOURS=0 (from env): must be a whole number from 1 to 878400",
    ),
    (
        "READY_MAX_LAG_SECONDS",
        "1.5",
        "READY_MAX_LAG_SECONDS=1.5 (from env): must be a whole number from 1 to 3162240000",
    ),
    (
        "STREAM_MAX_BYTES",
        "1G",
        "STREAM_MAX_BYTES=1G (from env): must be a whole number from 1000000 to 18446744073709551615",
    ),
    (
        "LEASE_TTL_MS",
        "10",
        "LEASE_TTL_MS=10 (from env): must be a whole number from 1000 to 600000",
    ),
    (
        "INSTANCE_ID",
        "a b",
        "INSTANCE_ID=a b (from env): must be 1 to 128 characters without spaces",
    ),
    (
        "INSTANCE_ID",
        "a\nb",
        "INSTANCE_ID=a\\nb (from env): must be 1 to 128 characters without spaces",
    ),
    ("LOG_FORMAT", "xml", "LOG_FORMAT=xml (from env): must be text or json"),
    ("REDIS_POOL_SIZE", "0", "REDIS_POOL_SIZE=0 (from env): must be a whole number from 1 to 1024"),
    ("REDIS_PORT", "0", "REDIS_PORT=0 (from env): must be a whole number from 1 to 65535"),
    (
        "REDIS_HOST",
        "a b",
        "REDIS_HOST=a b (from env): must be a host name or an IP address, without port",
    ),
    (
        "REDIS_HOST",
        "redis://:c4n4ry@h",
        "REDIS_HOST=<redacted> (from env): must be a host name or an IP address, without port",
    ),
    (
        "REDIS_HOST",
        "u:c4n4ry@h",
        "REDIS_HOST=<redacted> (from env): must be a host name or an IP address, without port",
    ),
    (
        "REDIS_URL",
        "c4n4ry",
        "REDIS_URL (from env): the URL must start with redis://, redis-sentinel:// or redis-cluster://, or for TLS rediss://, rediss-sentinel:// or rediss-cluster://",
    ),
    ("REDIS_URL", "redis://:c4n4ry@", "REDIS_URL (from env): the URL is not a URL: empty host"),
    (
        "REDIS_URL",
        "redis://:c4n4ry@h:99999",
        "REDIS_URL (from env): the URL is not a URL: invalid port number",
    ),
    (
        "REDIS_URL",
        "redis://h/c4n4ry",
        "REDIS_URL (from env): the URL must end in the number of a database, 0 to 65534, if any",
    ),
    (
        "REDIS_URL",
        "redis-sentinel://:c4n4ry@a,b?sentinel_password=c4n4ry",
        "REDIS_URL (from env): the URL must name the master after the hosts: redis-sentinel://host:port,host:port/NAME",
    ),
    (
        "REDIS_URL",
        "redis-cluster://:c4n4ry@a:1,b:99999",
        "REDIS_URL (from env): the URL is wrong in host 2: it is not a URL: invalid port number",
    ),
    (
        "REDIS_CA_FILE",
        "/nowhere/at/all",
        "REDIS_CA_FILE=/nowhere/at/all (from env): this file cannot be read: No such file or directory (os error 2)",
    ),
    (
        "REDIS_CA_FILE",
        "/dev/null",
        "REDIS_CA_FILE=/dev/null (from env): need a URL with TLS, rediss…://",
    ),
    (
        "REDIS_URL_FILE",
        "/nowhere/at/all",
        "REDIS_URL_FILE=/nowhere/at/all (from env): this file cannot be read: No such file or directory (os error 2)",
    ),
    (
        "REDIS_PASSWRD",
        "c4n4ry",
        "REDIS_PASSWRD (from env): is not a key; did you mean REDIS_PASSWORD?",
    ),
    (
        "ETHERUM_WS_URL",
        "wss://h/c4n4ry",
        "ETHERUM_WS_URL (from env): is not a key; did you mean ETHEREUM_WS_URL?",
    ),
    (
        "ETHEREUM_WS_URI",
        "wss://h/c4n4ry",
        "ETHEREUM_WS_URI (from env): is not a key; did you mean ETHEREUM_WS_URL?",
    ),
    (
        "ETHEREUM_WS_URL",
        "h/c4n4ry",
        "ETHEREUM_WS_URL (from env): the URL must start with ws:// or wss://",
    ),
    (
        "ETHEREUM_WS_URL",
        "https://h/c4n4ry",
        "ETHEREUM_WS_URL (from env): the URL must start with ws:// or wss://",
    ),
    ("ETHEREUM_WS_URL", "wss://", "ETHEREUM_WS_URL (from env): the URL is not a URL: empty host"),
    (
        "ETHEREUM_HTTP_URL",
        "http://h/c4n4ry,,ftp://c4n4ry",
        "ETHEREUM_HTTP_URL (from env): URL 2 of 3 is empty",
    ),
    (
        "ETHEREUM_HTTP_URL",
        "http://h/c4n4ry http://g/c4n4ry",
        "ETHEREUM_HTTP_URL (from env): the URL contains a space; separate URLs with a comma",
    ),
    (
        "ETHEREUM_HTTP_URL",
        "http://g,http://h/c4n4ry, http://h/c4n4ry",
        "ETHEREUM_HTTP_URL (from env): URL 3 of 3 is URL 2 again",
    ),
    (
        "LOCAL_START_BLOCK",
        "newest",
        "LOCAL_START_BLOCK=newest (from env): must be latest or a block number",
    ),
    ("LOCAL_END_BLOCK", "latest", "LOCAL_END_BLOCK=latest (from env): must be a block number"),
    (
        "LOCAL_CONFIRMATIONS",
        "5000",
        "LOCAL_CONFIRMATIONS=5000 (from env): must be a whole number from 0 to 4096",
    ),
    ("LOCAL_FETCH", "blocks", "LOCAL_FETCH=blocks (from env): must be auto, receipts or logs"),
    ("LOCAL_BATCH_MS", "0", "LOCAL_BATCH_MS=0 (from env): must be a whole number from 1 to 60000"),
    (
        "LOCAL_CU_PER_SECOND",
        "-1",
        "LOCAL_CU_PER_SECOND=-1 (from env): must be a whole number from 1 to 10000000",
    ),
    (
        "LOCAL_VERIFY",
        "none",
        "LOCAL_VERIFY=none (from env): must be receipts_root, bloom or structure",
    ),
    (
        "LOCAL_CONTRACTS",
        "0x12",
        "LOCAL_CONTRACTS=0x12 (from env): item 1 `0x12` must be 0x and 40 hex digits",
    ),
    (
        "LOCAL_CONTRACTS",
        "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913,0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02914",
        "LOCAL_CONTRACTS=0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913,0x833589fCD6eDb6E08f4c7C32D4f71b54bdA... \
         (from env): item 2 `0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02914` does not match its checksum (EIP-55): a digit or \
         its case is wrong; if the address is right, write it in lower case",
    ),
    (
        "LOCAL_CONTRACTS",
        "wss://host/v3/key",
        "LOCAL_CONTRACTS=<redacted> (from env): item 1 `<redacted>` must be 0x and 40 hex digits",
    ),
    (
        "LOCAL_TOPICS",
        "transfer",
        "LOCAL_TOPICS=transfer (from env): item 1 `transfer` must be 0x and 64 hex digits",
    ),
    (
        "LOCAL_TOPICS",
        "Transfer(address,address,uint256)",
        "LOCAL_TOPICS=Transfer(address,address,uint256) (from env): item 1 `Transfer(address,address,uint256)` must be \
         0x and 64 hex digits: the keccak256 hash of the event's signature; of this one, \
         0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef",
    ),
    (
        "LOCAL_TOPICS",
        "URI(string value, uint256 id)",
        "LOCAL_TOPICS=URI(string value, uint256 id) (from env): item 1 `URI(string value, uint256 id)` must be 0x and \
         64 hex digits: the keccak256 hash of the event's signature; write types only, without spaces, as in \
         Transfer(address,address,uint256)",
    ),
];

#[test]
fn each_wrong_value_in_the_environment_is_told_in_one_line() {
    for &(key, value, line) in WRONG_VALUES {
        assert_eq!(
            wrong(&[(key, value)], "", "").first().map(String::as_str),
            Some(line),
            "{key}={value}"
        );
    }
}

#[test]
fn a_wrong_log_filter_is_told() {
    for filter in ["info,=x=", "loud", "Warning"] {
        let found = wrong(&[("RUST_LOG", filter)], "", "");
        let must = "must be error, warn, info, debug, trace or off, or directives such as \
                    info,ethhook_ingest=debug";
        assert_eq!(found, [format!("RUST_LOG={filter} (from env): {must}")]);
    }
    for filter in ["off", "WARN", "info,hyper=off", "hyper=trace"] {
        assert!(wrong(&[("RUST_LOG", filter)], "", "").is_empty(), "{filter}");
    }
}

#[test]
fn values_that_contradict_each_other_are_told() {
    for (env, line) in [
        (
            vec![
                ("REDIS_URL", "redis://:c4n4ry@h"),
                ("REDIS_HOST", "h"),
                ("REDIS_PASSWORD", "c4n4ry"),
            ],
            "REDIS_URL (from env): REDIS_HOST, REDIS_PASSWORD is set as well; keep one of the two forms",
        ),
        (
            vec![("REDIS_PASSWORD", "c4n4ry"), ("REDIS_PASSWORD_FILE", "/dev/null")],
            "REDIS_PASSWORD_FILE=/dev/null (from env): REDIS_PASSWORD is set as well; keep one of the two",
        ),
        (
            vec![("REDIS_PASSWORD_FILE", "/dev/null")],
            "REDIS_PASSWORD_FILE=/dev/null (from env): this file is empty",
        ),
        (
            vec![("REDIS_PASSWORD_FILE", "/dev/zero")],
            "REDIS_PASSWORD_FILE=/dev/zero (from env): this file cannot be read: it is longer than 65536 bytes",
        ),
        (
            vec![("LOCAL_START_BLOCK", "10"), ("LOCAL_END_BLOCK", "9")],
            "LOCAL_END_BLOCK=9 (from env): must not be below LOCAL_START_BLOCK=10",
        ),
        (
            vec![("LOCAL_FETCH", "logs")],
            "LOCAL_FETCH=logs (from env): logs cannot prove the receipts root, which \
             LOCAL_VERIFY=receipts_root requires; set LOCAL_VERIFY=bloom, or fetch receipts",
        ),
    ] {
        assert_eq!(wrong(&env, "", ""), [line], "{env:?}");
    }
}

#[test]
fn the_env_file_is_strict_and_told_by_line() {
    for (text, line) in [
        ("METRICS_PORT=x", "METRICS_PORT=x (from .env): must be a whole number from 0 to 65535"),
        ("FOO=c4n4ry", "FOO (from .env): is not a key; .env.example lists all keys"),
        ("REDIS_PORTS=1", "REDIS_PORTS (from .env): is not a key; did you mean REDIS_PORT?"),
        (
            "GNOSIS_WS_URL=wss://h/c4n4ry",
            "GNOSIS_WS_URL (from .env): is not a key; a chain that is not built in needs [chains.gnosis] with chain_id in ethhook.toml",
        ),
        (
            "LOG_FORMAT=text\nLOG_FORMAT=json",
            "LOG_FORMAT (from .env): is set twice; keep one of the lines",
        ),
        (
            "LOG_FORMAT=text\nREDIS_PASSWORD=c4n4ry with spaces\n",
            ".env line 2: must be KEY=value; put a value with spaces, quotes, # or $ in single quotes",
        ),
    ] {
        assert_eq!(wrong(&[], text, ""), [line], "{text}");
    }
}

#[test]
fn the_env_file_may_hold_what_compose_reads() {
    let text = "COMPOSE_PROFILES=monitoring\nREDIS_MAXMEMORY=512mb\nREDIS_MEMORY_LIMIT=640m\n\
                REDIS_EXPORTER_ADDR=redis://h:6379";
    assert_eq!(wrong(&[], text, ""), [""; 0]);
    // Every variable it reads is in the table, or is ours.
    let file = include_str!("../../../../../docker-compose.yml");
    let names = file.split("${").skip(1).filter_map(|rest| rest.split([':', '}']).next());
    for name in names {
        assert_eq!(wrong(&[], &format!("{name}="), ""), [""; 0], "{name}");
    }
    for key in keys::COMPOSE {
        assert!(file.contains(&format!("${{{}:-", key.name)), "{} is not read", key.name);
    }
}

#[test]
fn toml_keys_are_told_by_their_full_path() {
    for (text, line) in [
        (
            "metrics_port = 70000",
            "metrics_port=70000 (from ethhook.toml): must be a whole number from 0 to 65535",
        ),
        ("METRICS_PORT = 1", "METRICS_PORT (from ethhook.toml): is not a key"),
        ("\"a\\nb\" = 1", "a\\nb (from ethhook.toml): is not a key"),
        (
            "metric_port = 1",
            "metric_port (from ethhook.toml): is not a key; did you mean metrics_port?",
        ),
        ("[redis]\nurl = 'c4n4ry'", "redis (from ethhook.toml): is not a key"),
        (
            "[chain.gnosis]\nchain_id = 100",
            "chain (from ethhook.toml): is not a key; did you mean chains?",
        ),
        ("chains = 1", "chains (from ethhook.toml): must hold tables, as in [chains.NAME]"),
        (
            "[chains]\nethereum = 1",
            "chains.ethereum (from ethhook.toml): must be a table, as in [chains.NAME]",
        ),
        (
            "[chains.ethereum]\nws_ulr = 'wss://c4n4ry'",
            "chains.ethereum.ws_ulr (from ethhook.toml): is not a key; did you mean ws_url?",
        ),
        (
            "[chains.gnosis]\nws_url = 'wss://h/c4n4ry'",
            "chains.gnosis.chain_id: is missing: a chain that is not built in needs its chain id",
        ),
        (
            "[chains.ethereum]\nchain_id = 5",
            "chains.ethereum.chain_id=5 (from ethhook.toml): ethereum is built in and has chain id 1; give chain 5 another name, as in [chains.my_ethereum]",
        ),
        (
            "[chains.gnosis]\nchain_id = 0",
            "chains.gnosis.chain_id=0 (from ethhook.toml): must be a whole number from 1 to 9223372036854775807",
        ),
        (
            "[chains.gno-sis]\nchain_id = 100",
            "chains.gno-sis (from ethhook.toml): a chain's name starts with a letter; letters, digits and _ may follow",
        ),
        (
            "[chains.gnosis]\nchain_id = 100\n[chains.GNOSIS]\nchain_id = 100",
            "chains.gnosis (from ethhook.toml): is defined twice",
        ),
        (
            "[chains.gnosis]\nchain_id = 100\nblock_time_ms = 0",
            "chains.gnosis.block_time_ms=0 (from ethhook.toml): must be a whole number from 1 to 3600000",
        ),
        (
            "[chains.gnosis]\nchain_id = 100\nbloom_of_all_logs = 'yes'",
            "chains.gnosis.bloom_of_all_logs=yes (from ethhook.toml): must be true or false",
        ),
        (
            "[chains.gnosis]\nchain_id = { a = 1 }",
            "chains.gnosis.chain_id (from ethhook.toml): must be one value, or a list of strings",
        ),
        (
            "[chains.gnosis]\nchain_id = 31337\nhttp_url = 'http://h/c4n4ry'",
            "GNOSIS_*: chain gnosis has the chain id 31337 of chain local; keep one of them",
        ),
        (
            "redis_password = c4n4ry",
            "ethhook.toml: is not valid TOML (line 1, column 18): string values must be quoted, expected literal string",
        ),
    ] {
        let found = wrong(&[], "", text);
        assert_eq!(found.first().map(String::as_str), Some(line), "{text}");
    }
}

#[test]
fn all_that_is_wrong_with_a_chain_is_told_at_once() {
    let keys = "ws_url = 'c4n4ry'\nhttp_url = 'c4n4ry'\nstart_block = 'x'\nend_block = 'x'\n\
                contracts = ['0x1']\ntopics = ['0x1']\nconfirmations = -1\nrps = 0\n\
                cu_per_second = 0\nbatch_ms = 0\nfetch = 'x'\nverify = 'x'\nblock_time_ms = 0\n\
                finality_depth = -1\nstate_sync_until = 'x'\nempty_without_transactions = 'x'\n\
                bloom_of_all_logs = 'x'\nchain_id = 0";
    for name in ["ethereum", "gnosis"] {
        let found = wrong(&[], "", &format!("[chains.{name}]\n{keys}"));
        for key in keys.lines().filter_map(|line| line.split(' ').next()) {
            let told = format!("chains.{name}.{key}");
            assert!(found.iter().any(|line| line.starts_with(&told)), "{told}: {found:#?}");
        }
        assert_eq!(found.len(), keys.lines().count(), "{found:#?}");
    }
}

#[test]
fn each_signature_among_the_topics_is_one_problem() {
    let topics = format!("A(uint256,bool), 0x{},B((bool,bool),bool)", "0".repeat(64));
    let found = wrong(&[("LOCAL_TOPICS", &topics)], "", "");
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].contains("item 1 `A(uint256,bool)` must"), "{found:#?}");
    assert!(found[1].contains("item 3 `B((bool,bool),bool)` must"), "{found:#?}");
}

/// `wrong` looks for the canary in every line.
#[test]
fn what_is_wrong_with_the_syntax_is_told_without_the_text() {
    for text in [
        "c4n4ry",
        "c4n4ry = ",
        "= 'c4n4ry'",
        "redis_password = 'c4n4ry",
        "redis_password = \"c4n4ry\\q\"",
        "redis_password = \"\"\"c4n4ry",
        "redis_password = 'c4n4ry' 'c4n4ry'",
        "redis_password = 'c4n4ry'c4n4ry",
        "redis_password = 7c4n4ry",
        "redis_password = +c4n4ry",
        "redis_password = 0xc4n4ry",
        "redis_password = 1979-c4n4ry",
        "redis_password = ['c4n4ry'",
        "redis_password = { c4n4ry",
        "redis_password = { c4n4ry = 1, c4n4ry = 1 }",
        "redis_password : c4n4ry",
        "redis password = 'c4n4ry'",
        "c4n4ry = 1\nc4n4ry = 2",
        "c4n4ry = 1\nc4n4ry.a = 2",
        "c4n4ry = 1\n[c4n4ry]",
        "[c4n4ry]\n[c4n4ry]",
        "[c4n4ry",
        "[c4n4ry] c4n4ry",
        "\u{1}c4n4ry",
    ] {
        let found = wrong(&[], "", text);
        let (_, why) = found[0].split_once("): ").unwrap_or_default();
        assert!(
            found[0].starts_with("ethhook.toml: is not valid TOML (line ") && !why.is_empty(),
            "{text}: {found:?}"
        );
    }
}

#[test]
fn a_chain_id_used_twice_is_told_even_if_a_url_is_wrong() {
    let toml = "[chains.gnosis]\nchain_id = 31337\nhttp_url = 'c4n4ry'";
    let found = wrong(&[], "", toml);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[1].contains("has the chain id 31337 of chain local"), "{found:#?}");
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let found = wrong(
        &[("METRICS_PORT", "x"), ("ETHERUM_WS_URL", "wss://c4n4ry"), ("LOCAL_VERIFY", "y")],
        "HEALTH_PORT=z",
        "log_format = 'w'\nunknown = 1\nother = 2",
    );
    let keys: Vec<&str> = found.iter().map(|line| line.split(['=', ' ']).next().unwrap()).collect();
    for key in [
        "METRICS_PORT",
        "ETHERUM_WS_URL",
        "LOCAL_VERIFY",
        "HEALTH_PORT",
        "log_format",
        "unknown",
        "other",
    ] {
        assert!(keys.contains(&key), "{key} is missing in {found:#?}");
    }
    assert_eq!(found.len(), 7, "{found:#?}");
}

#[test]
fn no_chain_is_told_with_how_to_set_one() {
    let Err(invalid) = Config::load(&inputs(&[], "", "")) else { panic!("started with nothing") };
    assert_eq!(
        lines(&invalid.problems),
        ["no chain is set: set <NAME>_WS_URL or <NAME>_HTTP_URL, as in \
          ETHEREUM_WS_URL=wss://...; NAME is one of ETHEREUM, ARBITRUM, OPTIMISM, BASE, POLYGON, \
          BSC, SEPOLIA, LOCAL, or a [chains.NAME] of ethhook.toml"]
    );
    assert!(invalid.redis.is_some(), "Redis can be tried all the same");
}
