//! The report as lines for a terminal.

use std::fmt::Write;
use std::time::Duration;

use ethhook_domain::event;

use super::{Chain, Level, Report, State, Trouble, spoken};

const HEADINGS: [&str; 8] =
    ["CHAIN", "STATE", "HEAD", "PUBLISHED", "FINALIZED", "LAG", "EVENTS/S", "REORGS"];

/// The whole report; the last line sums it up.
pub(super) fn render(report: &Report) -> String {
    let mut text = match &report.service {
        Some(service) => format!("ethhook {} runs as {}", service.version, service.instance),
        None => "ethhook is not running here".to_owned(),
    };
    let _ = writeln!(text, ", Redis at {}\n", report.redis.address);
    let rows: Vec<_> = report.chains.iter().map(row).collect();
    let mut widths = HEADINGS.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in std::iter::once(HEADINGS.map(str::to_owned)).chain(rows) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text += line.trim_end();
        text.push('\n');
    }
    report.chains.iter().for_each(|chain| details(&mut text, chain));
    text.push('\n');
    let of_chains = report.chains.iter().flat_map(|chain| {
        chain.troubles.iter().map(move |trouble| (Some(chain.name.as_str()), trouble))
    });
    let all: Vec<_> = report.troubles.iter().map(|t| (None, t)).chain(of_chains).collect();
    all.iter().for_each(|(chain, trouble)| tell(&mut text, *chain, trouble));
    if all.is_empty() {
        text += "All is well.\n";
    }
    text
}

fn row(chain: &Chain) -> [String; HEADINGS.len()] {
    let lag = match (chain.lag_blocks, chain.lag_seconds) {
        (Some(blocks), Some(seconds)) => {
            format!("{blocks} blocks, {}", spoken(Duration::from_secs(seconds)))
        }
        _ => "-".to_owned(),
    };
    [
        chain.name.clone(),
        state(chain.state).to_owned(),
        number(chain.head),
        number(chain.published),
        number(chain.finalized),
        lag,
        chain.events_per_second.map_or("-".to_owned(), |rate| format!("{rate:.1}")),
        number(chain.counts.map(|counts| counts.reorgs)),
    ]
}

fn details(text: &mut String, chain: &Chain) {
    let _ = write!(text, "\n{}: {}", chain.name, event::stream_name(chain.chain_id));
    if let (Some(entries), Some(bytes)) = (chain.entries, chain.bytes) {
        let _ = write!(text, " holds {entries} entries, {:.1} MB", in_megabytes(bytes));
    }
    if let Some(seconds) = chain.last_step_seconds {
        let _ = write!(text, "; last written {} ago", spoken(Duration::from_secs(seconds)));
    }
    if let Some(writer) = &chain.writer {
        let _ = write!(text, "; written by {writer}");
    }
    text.push('\n');
    for endpoint in &chain.endpoints {
        let subscribed = match endpoint.subscribed {
            Some(true) => ", subscribed",
            Some(false) => ", not subscribed",
            None => "",
        };
        let _ = write!(
            text,
            "  endpoint {}: breaker {}{subscribed}, {} failed checks",
            endpoint.position, endpoint.breaker, endpoint.failed_checks
        );
        if let Some(calls) = endpoint.calls_per_second {
            let _ = write!(text, ", accepts about {calls} calls a second");
        }
        text.push('\n');
    }
    for group in &chain.groups {
        let behind = match group.behind {
            Some(behind) => format!("{behind} to read or acknowledge"),
            None => "entries to read, not counted by Redis".to_owned(),
        };
        let _ = writeln!(
            text,
            "  group {}: {behind}, the oldest for {}, {} pending, {} consumers",
            group.name,
            spoken(Duration::from_secs(group.waiting_seconds)),
            group.pending,
            group.consumers
        );
    }
}

fn tell(text: &mut String, chain: Option<&str>, trouble: &Trouble) {
    let level = match trouble.level {
        Level::Warning => "Warning",
        Level::Error => "ERROR",
    };
    let whose = chain.map(|chain| format!("{chain}: ")).unwrap_or_default();
    let _ = writeln!(text, "{level}: {whose}{}\n  What to do: {}", trouble.what, trouble.to_do);
}

fn state(state: State) -> &'static str {
    match state {
        State::Following => "following",
        State::CatchingUp => "catching up",
        State::StandingBy => "standing by",
        State::Stalled => "STALLED",
        State::Unknown => "unknown",
    }
}

fn number(number: Option<u64>) -> String {
    number.map_or("-".to_owned(), |number| number.to_string())
}

#[allow(clippy::cast_precision_loss, reason = "shown to a tenth of a megabyte")]
fn in_megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use ethhook_domain::Profile;

    use super::super::{Counts, Endpoint, Group, Redis, Service};
    use ethhook_ingest::BreakerState;

    use super::*;

    #[test]
    fn all_that_is_known_is_shown_and_what_is_not_is_a_dash() {
        let unknown = Chain::unknown(&Profile::unknown("tiny", 7));
        let known = Chain {
            name: "ethereum".into(),
            state: State::Following,
            head: Some(21_000_002),
            published: Some(21_000_000),
            lag_blocks: Some(2),
            lag_seconds: Some(24),
            events_per_second: Some(16.25),
            counts: Some(Counts { published: 9, taken_back: 3, reorgs: 1 }),
            entries: Some(1_000),
            bytes: Some(612_000),
            writer: Some("host".into()),
            endpoints: vec![Endpoint {
                position: 0,
                breaker: BreakerState::Closed,
                subscribed: Some(true),
                failed_checks: 0,
                apart: false,
                calls_per_second: Some(2.5),
            }],
            groups: vec![Group {
                name: "readers".into(),
                consumers: 1,
                pending: 4,
                behind: Some(10),
                waiting_seconds: 3,
            }],
            troubles: vec![Trouble {
                level: Level::Warning,
                what: "this".into(),
                to_do: "that".into(),
            }],
            ..unknown.clone()
        };
        let service = Service { version: "1.0".into(), instance: "host".into() };
        let redis = Redis { address: "redis:6379".into(), failure: None };
        let report = Report::new(Some(service), redis, Vec::new(), vec![known, unknown]);
        assert!(report.ok, "a warning is no error");
        let text = render(&report);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "ethhook 1.0 runs as host, Redis at redis:6379",
                "",
                "CHAIN     STATE      HEAD      PUBLISHED  FINALIZED  LAG             EVENTS/S  REORGS",
                "ethereum  following  21000002  21000000   -          2 blocks, 24 s  16.2      1",
                "tiny      unknown    -         -          -          -               -         -",
                "",
                "ethereum: events:7 holds 1000 entries, 0.6 MB; written by host",
                "  endpoint 0: breaker closed, subscribed, 0 failed checks, accepts about 2.5 calls a second",
                "  group readers: 10 to read or acknowledge, the oldest for 3 s, 4 pending, 1 consumers",
                "",
                "tiny: events:7",
                "",
                "Warning: ethereum: this",
                "  What to do: that",
            ]
        );
    }
}
