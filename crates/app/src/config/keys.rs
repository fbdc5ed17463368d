//! The only table of configuration keys. Parsing, `check-config`, the detection of misspelt names
//! and `.env.example` all use it, so that a key cannot exist in only some of them.

/// One key of the configuration.
#[derive(Debug)]
pub(crate) struct Key {
    /// Name in the environment; lower case in `ethhook.toml`. A chain's key is given without
    /// `<NAME>_`.
    pub(crate) name: &'static str,
    /// The value if it is not set; empty if there is none.
    pub(crate) default: &'static str,
    /// One or more lines of help for the user.
    pub(crate) help: &'static str,
    /// Whether the value is never shown, and may come from the file named by `<KEY>_FILE`.
    pub(crate) secret: bool,
}

const fn key(name: &'static str, default: &'static str, help: &'static str) -> Key {
    Key { name, default, help, secret: false }
}

/// A fact about a chain; its default is in [`ethhook_domain::Profile`].
const fn fact(name: &'static str, help: &'static str) -> Key {
    key(name, "", help)
}

const fn secret(name: &'static str, help: &'static str) -> Key {
    Key { name, default: "", help, secret: true }
}

/// Keys of the process.
pub(crate) const GLOBAL: &[Key] = &[
    secret(
        "REDIS_URL",
        "Redis, as redis://[user:password@]host[:port][/db],\n\
         under Sentinel redis-sentinel://[user:password@]host[:port],host[:port]/master[/db],\n\
         as a Cluster redis-cluster://[user:password@]host[:port],host[:port];\n\
         for TLS rediss://, rediss-sentinel://, rediss-cluster://.\n\
         If the Sentinels need a password: ?sentinel_user=USER&sentinel_password=PASSWORD at the end.\n\
         Set either this or REDIS_HOST, REDIS_PORT and REDIS_PASSWORD.",
    ),
    key("REDIS_HOST", "127.0.0.1", "Host of Redis."),
    key("REDIS_PORT", "6379", "Port of Redis."),
    secret("REDIS_PASSWORD", "Password of Redis."),
    key(
        "REDIS_CA_FILE",
        "",
        "PEM file of the certificate authorities that signed Redis' certificate, if they are not\n\
         public; only with TLS.",
    ),
    key(
        "REDIS_POOL_SIZE",
        "8",
        "Connections to Redis, 1 to 1024: shared by all chains, or in a Cluster, per chain.",
    ),
    key(
        "DEDUP_TTL_SECONDS",
        "86400",
        "How long a block's dedup record is kept; that of a block far below the head a minute at most.\n\
         This only limits memory: correctness depends on the cursor.",
    ),
    key(
        "STREAM_ENCODING",
        "fields",
        "How entries are written: fields, each value as text in its own field, or msgpack, all values\n\
         packed into one field, with half the memory (docs/consumers.md). A stream keeps the encoding\n\
         it started with: to change it, `ethhook reset` the chain.",
    ),
    key(
        "RETENTION_HOURS",
        "24",
        "How long events are kept after they were published. Those that a consumer group has not\n\
         acknowledged stay longer.",
    ),
    key(
        "GROUP_IDLE_ALARM_HOURS",
        "24",
        "A consumer group that has not read for this long although entries are waiting is reported in\n\
         the log and by ethhook_group_idle: it keeps retention from removing those entries.",
    ),
    key(
        "STREAM_MAX_BYTES",
        "",
        "Hard limit of one chain's streams, entries and markers, in bytes, at least 1000000. Not set: the\n\
         chains share 60 % of Redis' maxmemory (of 512 MB where it has none). Where over 90 % of\n\
         maxmemory is used, the oldest blocks that no consumer group needs go earlier, down to half of\n\
         this limit.",
    ),
    key("METRICS_PORT", "9090", "Port of /metrics; 0 takes any free port."),
    key("HEALTH_PORT", "8080", "Port of /health and /ready; 0 takes any free port."),
    key("BIND_ADDRESS", "127.0.0.1", "Address that both ports listen on."),
    key(
        "READY_MAX_LAG_SECONDS",
        "60",
        "/ready returns 503 if a chain's tip is further behind the head than this, or no endpoint\n\
         has answered for this long, or for two polls (up to 60 s) if that is longer.",
    ),
    key(
        "INSTANCE_ID",
        "",
        "Name under which this process holds its leases. Not set: the host name. Two processes\n\
         must never share a name. 1 to 128 characters, no spaces.",
    ),
    key(
        "LEASE_TTL_MS",
        "10000",
        "How long a lease remains valid after its owner last renewed it, 1000 to 600000.",
    ),
    key(
        "MAX_CHAINS_PER_INSTANCE",
        "",
        "How many chains this process may ingest at once; the others are left to other instances\n\
         with the same configuration, 1 to 1000. Not set: all.",
    ),
    key(
        "RUST_LOG",
        "info",
        "Which log lines are written: error, warn, info, debug, trace, off, or by part:\n\
         info,ethhook_ingest=debug.",
    ),
    key("LOG_FORMAT", "text", "Log lines as text or as json."),
];

/// Keys of one chain; in the environment each is prefixed with `<NAME>_`.
pub(crate) const CHAIN: &[Key] = &[
    secret(
        "WS_URL",
        "ws:// or wss://: one URL, or several separated by commas, the first preferred. Heads are\n\
         received from these.",
    ),
    secret(
        "HTTP_URL",
        "http:// or https://, likewise. Requests are sent here if set, else over the WebSocket. The\n\
         first of these and the first WebSocket URL form one endpoint, and so on. Without a WebSocket\n\
         URL, the head is polled once per block time, and at least every 12 s.",
    ),
    key(
        "START_BLOCK",
        "latest",
        "First block to publish: latest, or a number. A cursor in Redis overrides it.",
    ),
    key(
        "END_BLOCK",
        "",
        "Last block to publish, or the newest published one if that is higher. Not set: no end.",
    ),
    key(
        "CONTRACTS",
        "",
        "Only logs of these contracts, separated by commas. Not set: of all contracts.",
    ),
    key(
        "TOPICS",
        "",
        "Only logs whose first topic is one of these, separated by commas. Not set: all logs.",
    ),
    key(
        "CONFIRMATIONS",
        "0",
        "Publish a block once this many blocks follow it, up to 4096. For consumers that ignore\n\
         `removed`.",
    ),
    key(
        "RPS",
        "",
        "Maximum requests per second to each endpoint of the chain, 1 to 10000. Not set: no limit.",
    ),
    key(
        "CU_PER_SECOND",
        "",
        "Maximum per second of what the calls to each endpoint of the chain count against its provider's\n\
         rate limit (compute units, credits), as published by Alchemy, Infura, QuickNode, Ankr and\n\
         Moralis; for any other provider, a call counts one. At Alchemy that may be more than is billed:\n\
         500 for a block's receipts, of which 20 are. Not set: no limit.",
    ),
    key(
        "FETCH",
        "auto",
        "How logs are fetched: receipts, only with eth_getBlockReceipts; logs, only with eth_getLogs, in\n\
         ranges of blocks while catching up: proves at most the bloom, so it needs VERIFY=bloom or\n\
         structure; auto: receipts, or if VERIFY allows logs, whichever costs less.",
    ),
    key(
        "BATCH_MS",
        "",
        "For chains with more than one block per second: fetch blocks at the head together, once per\n\
         this many milliseconds, up to 60000. Not set: each block immediately.",
    ),
    key(
        "VERIFY",
        "",
        "Weakest check that suffices to publish a block: receipts_root, bloom or structure (README).\n\
         Not set: the chain's default.",
    ),
];

/// Keys only allowed under `[chains.NAME]` in `ethhook.toml`: facts about a chain that is not built
/// in, or that differs from a built-in one. Lower case, as written there; `docs/ethhook.example.toml` has their help.
pub(crate) const PROFILE: &[Key] = &[
    fact("chain_id", "EIP-155 chain id; required for a chain that is not built in."),
    fact("block_time_ms", "Usual time between blocks."),
    fact(
        "finality_depth",
        "A block is final only if at least this many blocks follow it. If the node gives no `finalized` tag, or\n\
         one that is more than 8 times this depth behind the head, the depth alone decides.",
    ),
    fact(
        "state_sync_until",
        "Polygon before PIP-74: below this block, the roots do not cover some logs.",
    ),
    fact(
        "empty_without_transactions",
        "A block without transactions has no logs, so nothing is fetched for it.",
    ),
    fact(
        "bloom_of_all_logs",
        "The header's bloom covers all logs, so nothing is fetched if it excludes the filter.",
    ),
];

/// Keys that Docker Compose reads from the same `.env`, in addition to all that begin with
/// `COMPOSE_`.
pub(crate) const COMPOSE: &[Key] = &[
    key("REDIS_MAXMEMORY", "256mb", "maxmemory of the Redis of Compose."),
    key("REDIS_MEMORY_LIMIT", "320m", "Memory limit of its container: a quarter more."),
    key("REDIS_EXPORTER_ADDR", "", "The Redis to monitor, if not that of REDIS_URL."),
];

/// Whether `name` belongs to Compose.
pub(crate) fn is_for_compose(name: &str) -> bool {
    name.starts_with("COMPOSE_") || COMPOSE.iter().any(|key| key.name == name)
}

/// The key `name` of a chain, or of the process.
pub(crate) fn find(of_chain: bool, name: &str) -> &'static Key {
    let (table, more) = if of_chain { (CHAIN, PROFILE) } else { (GLOBAL, [].as_slice()) };
    let Some(key) = table.iter().chain(more).find(|key| key.name == name) else {
        unreachable!("{name} is not in the table of keys")
    };
    key
}

/// Suffix of a secret's key, for the key that holds the path of a file with its value.
pub(crate) const FILE_SUFFIX: &str = "_FILE";

/// All names of a table's keys, including the `_FILE` forms of secrets.
pub(crate) fn names(table: &'static [Key]) -> impl Iterator<Item = String> {
    table.iter().flat_map(|key| {
        let file = key.secret.then(|| format!("{}{FILE_SUFFIX}", key.name));
        std::iter::once(key.name.to_owned()).chain(file)
    })
}
