//! Settings shared by all chains: ports, retention, lease and logging.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use ethhook_ingest::{ByteCap, Options};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::read::Reader;

/// Settings shared by all chains.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) bind_address: IpAddr,
    /// 0: any free port.
    pub(crate) metrics_port: u16,
    /// 0: any free port.
    pub(crate) health_port: u16,
    /// The greatest difference in block time between head and tip with which `/ready` is content.
    pub(crate) ready_max_lag: Duration,
    pub(crate) options: Options,
}

impl Service {
    /// What to say if the streams of this number of `chains` may together become larger than Redis' memory.
    pub(crate) fn oversized(&self, maxmemory: Option<u64>, chains: usize) -> Option<String> {
        let (ByteCap::Bytes(each), memory) = (self.options.stream_max_bytes, maxmemory?) else {
            return None;
        };
        let chains = u64::try_from(chains.max(1)).unwrap_or(u64::MAX);
        (each.saturating_mul(chains) > memory).then(|| {
            let fitting = ByteCap::Share(chains).bytes(Some(memory));
            format!(
                "STREAM_MAX_BYTES={each} for each of {chains} chains is more than Redis' maxmemory of {memory}: Redis may \
                 be full, and the chains stand still, before old entries are removed; set at most {fitting}, or raise \
                 maxmemory"
            )
        })
    }
}

/// Which log lines are written, and how.
#[derive(Debug, Clone)]
pub(crate) struct Logging {
    /// Directives that [`EnvFilter`] has accepted.
    pub(crate) filter: String,
    pub(crate) format: LogFormat,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Maximum of any period, in hours: 100 years.
const MAX_HOURS: u64 = 24 * 366 * 100;

/// More than the number of chains worth following.
const MAX_CHAINS: u32 = 1_000;

/// Maximum length of an instance's name, which is stored in every cursor.
const MAX_INSTANCE_ID: usize = 128;

/// The settings for this number of chains; none if something is wrong, which is recorded in `reader`.
pub(crate) fn read(reader: &mut Reader<'_>, chains: usize) -> Option<Service> {
    let bind_address = bind_address(reader);
    let (metrics_port, health_port) = ports(reader);
    let dedup_ttl = number(reader, "DEDUP_TTL_SECONDS", 1, MAX_HOURS * 3600);
    let encoding = reader.global("STREAM_ENCODING");
    let encoding = reader.parse(&encoding, "fields or msgpack", |text| text.parse().ok());
    let retention = number(reader, "RETENTION_HOURS", 1, MAX_HOURS);
    let group_idle_alarm = number(reader, "GROUP_IDLE_ALARM_HOURS", 1, MAX_HOURS);
    let ready_max_lag = number(reader, "READY_MAX_LAG_SECONDS", 1, MAX_HOURS * 3600);
    let lease_ttl = number(reader, "LEASE_TTL_MS", 1_000, 600_000);
    let most = reader.global("MAX_CHAINS_PER_INSTANCE").given();
    let max_chains =
        reader.optional(most, |reader, most| NonZeroU32::new(reader.number(most, 1..=MAX_CHAINS)?));
    let stream_max_bytes = match reader.global("STREAM_MAX_BYTES").given() {
        None => Some(ByteCap::Share(u64::try_from(chains).unwrap_or(u64::MAX))),
        Some(setting) => reader.number(&setting, 1_000_000..=u64::MAX).map(ByteCap::Bytes),
    };
    let instance_id = reader.global("INSTANCE_ID");
    let must = "1 to 128 characters without spaces";
    let instance_id = reader.parse(&instance_id, must, |text| {
        let fits = (1..=MAX_INSTANCE_ID).contains(&text.len());
        (fits && text.chars().all(|c| c.is_ascii_graphic())).then(|| text.to_owned())
    });
    Some(Service {
        bind_address: bind_address?,
        metrics_port: metrics_port?,
        health_port: health_port?,
        ready_max_lag: Duration::from_secs(ready_max_lag?),
        options: Options {
            instance_id: instance_id?,
            lease_ttl: Duration::from_millis(lease_ttl?),
            max_chains: max_chains?,
            dedup_ttl: Duration::from_secs(dedup_ttl?),
            encoding: encoding?,
            retention: Duration::from_secs(retention? * 3600),
            group_idle_alarm: Duration::from_secs(group_idle_alarm? * 3600),
            stream_max_bytes: stream_max_bytes?,
        },
    })
}

/// The address of `/health` on this host; none if something is wrong, which is recorded in
/// `reader`.
pub(crate) fn health_address(reader: &mut Reader<'_>) -> Option<SocketAddr> {
    let address = bind_address(reader);
    let setting = reader.global("HEALTH_PORT");
    // Port 0 means any free one, which only the service knows.
    let port = reader.number(&setting, 1..=u16::MAX);
    let address = match address? {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    Some(SocketAddr::new(address, port?))
}

fn bind_address(reader: &mut Reader<'_>) -> Option<IpAddr> {
    let setting = reader.global("BIND_ADDRESS");
    reader.parse(&setting, "an IP address, such as 127.0.0.1 or 0.0.0.0", |text| text.parse().ok())
}

fn number(reader: &mut Reader<'_>, name: &str, least: u64, most: u64) -> Option<u64> {
    let setting = reader.global(name);
    reader.number(&setting, least..=most)
}

fn ports(reader: &mut Reader<'_>) -> (Option<u16>, Option<u16>) {
    let metrics = reader.global("METRICS_PORT");
    let metrics_port = reader.number(&metrics, 0..=u16::MAX);
    let health = reader.global("HEALTH_PORT");
    let health_port = reader.number(&health, 0..=u16::MAX);
    if metrics_port.is_some_and(|port| port != 0) && metrics_port == health_port {
        let text = format!("must differ from {}", metrics.key);
        reader.problems.push(health.problem(text));
    }
    (metrics_port, health_port)
}

/// None if something is wrong, which is recorded in `reader`.
pub(crate) fn read_logging(reader: &mut Reader<'_>) -> Option<Logging> {
    let filter = reader.global("RUST_LOG");
    // A word that is not a level would be taken for the name of the only module to log.
    let is_word = filter.text.bytes().all(|byte| byte.is_ascii_alphabetic());
    let is_right = if is_word {
        filter.text.parse::<LevelFilter>().is_ok()
    } else {
        EnvFilter::try_new(&filter.text).is_ok()
    };
    if !is_right {
        reader.problems.push(filter.problem(
            "must be error, warn, info, debug, trace or off, or directives such as \
             info,ethhook_ingest=debug",
        ));
    }
    let filter = is_right.then_some(filter.text);
    let format = reader.global("LOG_FORMAT");
    let format = reader.parse(&format, "text or json", |text| match text {
        "text" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        _ => None,
    });
    Some(Logging { filter: filter?, format: format? })
}
