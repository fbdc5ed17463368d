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
         Sentinels that ask for a password: ?sentinel_user=USER&sentinel_password=PASSWORD at the end.\n\
         Set either this or REDIS_HOST, REDIS_PORT and REDIS_PASSWORD.",
    ),
    key("REDIS_HOST", "127.0.0.1", "Host of Redis."),
    key("REDIS_PORT", "6379", "Port of Redis."),
    secret("REDIS_PASSWORD", "Password of Redis."),
    key(
        "REDIS_CA_FILE",
        "",
        "PEM file of the certificate authorities that Redis' certificate is by, where it is not a\n\
         public one; only with TLS.",
    ),
    key(
        "REDIS_POOL_SIZE",
        "8",
        "Connections to Redis that all chains share, 1 to 1024; in a Cluster, that each chain has.",
    ),
    key(
        "DEDUP_TTL_SECONDS",
        "86400",
        "How long a block's dedup record is kept. It only bounds memory: correctness rests on the\n\
         cursor.",
    ),
    key(
        "STREAM_ENCODING",
        "fields",
        "How entries are written: fields, each value a field of its own as text, or msgpack, all of\n\
         them packed into one field, at half the memory (docs/consumers.md). A stream keeps the one\n\
         it began with: to change it, `ethhook reset` the chain.",
    ),
    key(
        "RETENTION_HOURS",
        "24",
        "How long events are kept. What a consumer group has not acknowledged stays longer.",
    ),
    key(
        "GROUP_IDLE_ALARM_HOURS",
        "24",
        "A consumer group that has not read for so long, although entries wait, is told in the log\n\
         and in ethhook_group_idle: it holds back what retention would remove.",
    ),
    key(
        "STREAM_MAX_BYTES",
        "",
        "Hard cap of one chain's event stream in bytes. Not set: the chains share 60 % of Redis'\n\
         maxmemory (of 512 MB where it has none).",
    ),
    key("METRICS_PORT", "9090", "Port of /metrics; 0 takes any free port."),
    key("HEALTH_PORT", "8080", "Port of /health and /ready; 0 takes any free port."),
    key("BIND_ADDRESS", "127.0.0.1", "Address that both ports listen on."),
    key(
        "READY_MAX_LAG_SECONDS",
        "60",
        "/ready is 503 once a chain's tip lies further behind the head than this, or no endpoint\n\
         has answered for as long.",
    ),
    key(
        "INSTANCE_ID",
        "",
        "Name under which this process holds its leases. Not set: the host name. Two processes\n\
         must never share one.",
    ),
    key(
        "LEASE_TTL_MS",
        "10000",
        "How long a lease outlives its owner's last sign of life, 1000 to 600000.",
    ),
    key(
        "MAX_CHAINS_PER_INSTANCE",
        "",
        "How many chains one process may hold at once; the others are left to instances with the\n\
         same configuration. Not set: all.",
    ),
    key("RUST_LOG", "info", "Which log lines are written: error, warn, info, debug, trace."),
    key("LOG_FORMAT", "text", "Log lines as text or as json."),
];

/// Keys of one chain; in the environment each is prefixed with `<NAME>_`.
pub(crate) const CHAIN: &[Key] = &[
    secret(
        "WS_URL",
        "ws:// or wss://, one URL or several with commas between, first preferred. Heads come\n\
         from here.",
    ),
    secret(
        "HTTP_URL",
        "http:// or https://, likewise. Requests go here if set, else over the WebSocket. The\n\
         first of these and the first WebSocket URL are one endpoint, and so on.",
    ),
    key(
        "START_BLOCK",
        "latest",
        "First block to publish: latest, or a number. A cursor that Redis holds wins over it.",
    ),
    key(
        "END_BLOCK",
        "",
        "Last block to publish; one below what is published counts as that. Not set: goes on for ever.",
    ),
    key(
        "CONTRACTS",
        "",
        "Only logs of these contracts, with commas between. Not set: of all contracts.",
    ),
    key(
        "TOPICS",
        "",
        "Only logs whose first topic is one of these, with commas between. Not set: all logs.",
    ),
    key(
        "CONFIRMATIONS",
        "0",
        "Publish a block once this many stand above it, up to 4096. For consumers that ignore\n\
         `removed`.",
    ),
    key(
        "RPS",
        "",
        "Requests a second that each endpoint of the chain may be sent, 1 to 10000. Not set: no limit.",
    ),
    key(
        "CU_PER_SECOND",
        "",
        "What the calls to each endpoint of the chain may cost a second, in its provider's units\n\
         (compute units, credits), by the published prices of Alchemy, Infura, QuickNode, Ankr and\n\
         Moralis; with any other a call is one unit. Not set: no limit.",
    ),
    key(
        "FETCH",
        "auto",
        "How logs are fetched: receipts, by eth_getBlockReceipts alone; logs, by eth_getLogs alone,\n\
         behind the head by ranges of blocks, which proves the bloom at most and so needs VERIFY=bloom or\n\
         structure; auto, receipts, or where VERIFY allows logs whichever cost less.",
    ),
    key(
        "BATCH_MS",
        "",
        "For chains with more than a block a second: blocks at the head are fetched together, once in\n\
         so many milliseconds, up to 60000. Not set: each block at once.",
    ),
    key(
        "VERIFY",
        "",
        "Weakest check with which a block may be published: receipts_root, bloom or structure.\n\
         Not set: as the chain allows.",
    ),
];

/// Keys only allowed under `[chains.NAME]` in `ethhook.toml`: facts about a chain that is not built
/// in. Lower case, as written there.
pub(crate) const PROFILE: &[Key] = &[
    key("chain_id", "", "EIP-155 chain id; required for a chain that is not built in."),
    key("block_time_ms", "2000", "Usual time between blocks."),
    key("finality_depth", "128", "A block is final only when this many stand above it."),
    key("state_sync_logs", "false", "Polygon before PIP-74: some logs stand outside the roots."),
    key(
        "empty_without_transactions",
        "false",
        "A block without transactions has no logs, so nothing is fetched for it.",
    ),
    key(
        "bloom_of_all_logs",
        "false",
        "The header's bloom holds all logs, so nothing is fetched where it rules the filter out.",
    ),
];

/// Keys that Docker Compose reads from the same `.env`, in addition to all that begin with
/// `COMPOSE_`.
pub(crate) const COMPOSE: &[Key] = &[
    key("REDIS_MAXMEMORY", "256mb", "What the Redis of Compose may hold."),
    key("REDIS_MEMORY_LIMIT", "320m", "What its container may take: a quarter more."),
    key("REDIS_EXPORTER_ADDR", "", "Which Redis the monitoring watches, if not that of REDIS_URL."),
];

/// Whether `name` belongs to Compose.
pub(crate) fn is_for_compose(name: &str) -> bool {
    name.starts_with("COMPOSE_") || COMPOSE.iter().any(|key| key.name == name)
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
