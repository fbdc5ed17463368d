//! What each fuzz target does with its bytes. None may panic, whatever the bytes are; what must hold
//! of the outcome is asserted.
//!
//! `scripts/fuzz.sh` tries bytes of libFuzzer's making. `crates/app/tests/fuzz_corpora.rs` compiles
//! this very file and tries the seeds, and pieces of them, with all other tests.

use ethhook_domain::block::{Body, Quantity, Seal};
use ethhook_domain::encoding::PACKED;
use ethhook_domain::{
    Cursor, Filter, Header, Log, Marker, ProcessedEvent, Profile, Proof, Receipt, Secret, cursor,
    event, marker, verify,
};
use ethhook_ingest::{EndpointConfig, wire};
use ethhook_streams::{ConnectError, RedisConfig, Streams};
use serde_json::from_slice;
use url::Url;

/// A target and its name, which is also that of its seeds' folder.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 8] = [
    ("answers", answers),
    ("frames", frames),
    ("headers", headers),
    ("receipts", receipts),
    ("logs", logs),
    ("records", records),
    ("configuration", configuration),
    ("urls", urls),
];

/// The id of the request that is answered.
const ID: u64 = 7;
/// Longer ones cannot be told from words such as `rpc`: they are not redacted.
const SHORTEST_KEY: usize = 6;

/// An answer of a node, whatever it should have been.
pub fn answers(bytes: &[u8]) {
    told(wire::answer::<Header>(bytes, ID));
    told(wire::answer::<Vec<Receipt>>(bytes, ID));
    told(wire::answer::<Vec<Log>>(bytes, ID));
    told(wire::answer::<Quantity>(bytes, ID));
    told(wire::answer::<String>(bytes, ID));
}

/// A frame of a WebSocket.
pub fn frames(bytes: &[u8]) {
    told(wire::head(bytes));
}

/// An error is a line of bounded length.
fn told<T>(result: Result<T, String>) {
    if let Err(why) = result {
        assert!(why.chars().count() <= 4_200, "{why}");
        assert!(!why.chars().any(char::is_control), "{why:?}");
    }
}

/// A header alone.
pub fn headers(bytes: &[u8]) {
    let Ok(header) = from_slice::<Header>(bytes) else { return };
    for profile in profiles() {
        let passed = verify::verify_header(&profile, &header).is_ok();
        assert!(passed || header.seal == Seal::Differs);
        let all = Filter::default().bloom_test();
        if let Some(free) = verify::without_fetching(&profile, &header, &all) {
            assert!(header.seal == Seal::Matches && header.logs_bloom.is_zero());
            assert!(free.logs.is_empty() && !free.unhashed);
        }
    }
}

/// A header, and after a line feed the receipts that are said to be its block's.
pub fn receipts(bytes: &[u8]) {
    let Some((header, body)) = lines(bytes) else { return };
    let Ok(receipts) = from_slice::<Vec<Receipt>>(body) else { return };
    block(header, &Body::Receipts(receipts));
}

/// A header, and after a line feed the logs that are said to be its block's.
pub fn logs(bytes: &[u8]) {
    let Some((header, body)) = lines(bytes) else { return };
    let Ok(logs) = from_slice::<Vec<Log>>(body) else { return };
    block(header, &Body::Logs(logs));
}

fn lines(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// Whatever passes is in order, of this block, and proven as the chain asks (G6).
fn block(header: &[u8], body: &Body) {
    let Ok(header) = from_slice::<Header>(header) else { return };
    for profile in profiles() {
        let Ok(verified) = verify::verify(&profile, &header, body.clone()) else { continue };
        assert!(!verified.proof.is_weaker_than(profile.verify));
        let mut transaction = 0;
        for (index, log) in (0..).zip(&verified.logs) {
            assert_eq!((log.log_index, log.removed), (index, false));
            assert_eq!(log.block_hash, header.block.hash);
            assert_eq!(log.block_number, header.block.number);
            assert!(log.tx_index >= transaction);
            transaction = log.tx_index;
        }
    }
}

/// One of each kind: by level, and with state-sync logs.
fn profiles() -> Vec<Profile> {
    let levels = [Proof::ReceiptsRoot, Proof::Bloom, Proof::Structure];
    let mut profiles = Profile::built_in();
    profiles.extend(levels.map(|verify| Profile { verify, ..Profile::unknown("any", 5) }));
    profiles
}

/// Fields of a record in Redis: the kind, then names and values, with zero bytes between; of a packed
/// event the one value, as it is.
pub fn records(bytes: &[u8]) {
    let mut parts = bytes.split(|byte| *byte == 0);
    let kind = parts.next().unwrap_or_default();
    let texts: Vec<&[u8]> = parts.collect();
    let fields = || texts.chunks_exact(2).map(|pair| (pair[0], pair[1]));
    match kind {
        b"packed" => {
            let packed = bytes.get(kind.len() + 1..).unwrap_or_default();
            if let Ok(read) = ProcessedEvent::from_fields([(PACKED.as_bytes(), packed)]) {
                let mut again = Vec::new();
                read.write_packed(&mut again);
                let fields = [(PACKED.as_bytes(), again.as_slice())];
                assert_eq!(ProcessedEvent::from_fields(fields), Ok(read));
            }
        }
        b"event" => {
            if let Ok(read) = ProcessedEvent::from_fields(fields()) {
                let values = read.to_values();
                assert_eq!(ProcessedEvent::from_fields(named(&event::FIELDS, &values)), Ok(read));
            }
        }
        b"marker" => {
            if let Ok(read) = Marker::from_fields(fields()) {
                let values = read.to_values();
                assert_eq!(Marker::from_fields(named(&marker::FIELDS, &values)), Ok(read));
            }
        }
        b"cursor" => {
            if let Ok(read) = Cursor::from_fields(fields()) {
                let _next = read.next_number();
                let values = read.to_values();
                assert_eq!(Cursor::from_fields(named(&cursor::FIELDS, &values)), Ok(read));
            }
        }
        _ => {}
    }
}

fn named<'a>(
    names: &'a [&'static str],
    values: &'a [String],
) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
    names.iter().map(|name| name.as_bytes()).zip(values.iter().map(String::as_bytes))
}

/// Lines of the environment, the text of `.env` and that of `ethhook.toml`, with zero bytes between.
pub fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // A file that never ends is no business of this target.
    if text.contains("/dev") || text.contains("/proc") {
        return;
    }
    let mut parts = text.split('\0');
    let env = parts.next().unwrap_or_default();
    let env = env.lines().filter_map(|line| line.split_once('='));
    let env: Vec<_> = env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let (env_file, toml) = (parts.next(), parts.next());
    let told = ethhook::read_configuration(env, env_file, toml);
    for line in told.unwrap_or_else(|problems| problems) {
        assert!(!line.chars().any(char::is_control), "more than a line: {line:?}");
    }
}

/// A URL: that of a node, whose provider repeats all parts of it, and that of Redis.
pub fn urls(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let secret = Secret::new(text);
    let config = EndpointConfig { http: Some(secret.clone()), ws: None };
    if let Ok(url) = Url::parse(text) {
        let keys = keys(&url);
        let said = keys.iter().fold(format!("bad key; see {text}"), |said, key| {
            format!("{said} or {key}: ({key}) {}", key.to_owned() + "x")
        });
        let shown = wire::redacted(&config, &said);
        assert!(shown.chars().count() <= 200, "{shown}");
        for key in keys {
            // Words of ours may be somebody's key.
            let ours = "bad key; see or <redacted> <url>".contains(&key);
            assert!(ours || !shown.contains(&key), "{key} in {shown}");
        }
    } else {
        let _shown = wire::redacted(&config, text);
    }
    match Streams::new(RedisConfig::new(secret)) {
        Ok(streams) => {
            let shown = format!("{streams:?} {}", streams.address());
            let password = Url::parse(text).ok();
            let password = password.as_ref().and_then(Url::password).unwrap_or_default();
            let host = Url::parse(text).ok().and_then(|url| url.host_str().map(str::to_owned));
            let ours = host.is_some_and(|host| host.contains(password));
            assert!(password.len() < SHORTEST_KEY || ours || !shown.contains(password), "{shown}");
        }
        // Which says in our own words what is wrong with it.
        Err(error) => assert!(matches!(error, ConnectError::Url(_)), "{error}"),
    }
}

/// The parts of a URL that may be a key.
fn keys(url: &Url) -> Vec<String> {
    let mut keys: Vec<String> =
        url.path_segments().into_iter().flatten().map(str::to_owned).collect();
    keys.extend(url.query_pairs().map(|(_, value)| value.into_owned()));
    keys.push(url.username().to_owned());
    keys.extend(url.password().map(str::to_owned));
    keys.retain(|key| key.len() >= SHORTEST_KEY);
    keys
}
