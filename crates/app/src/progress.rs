//! `--progress`: a line per second for each chain, on standard output.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ethhook_ingest::StatusBoard;
use ethhook_ingest::status::{ChainStatus, Lag};
use tokio::io::AsyncWriteExt;
use tokio::time::{MissedTickBehavior, interval};

/// Prints until the reader is gone.
pub(crate) async fn print(status: StatusBoard) {
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let now = Instant::now();
    let mut before: HashMap<String, (u64, Instant)> =
        status.snapshot().into_iter().map(|(name, chain)| (name, (chain.events, now))).collect();
    let mut out = tokio::io::stdout();
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let chains = status.snapshot();
        let width = chains.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        let mut lines = String::new();
        for (name, chain) in chains {
            let (events, at) = before.insert(name.clone(), (chain.events, now)).unwrap_or((0, now));
            let elapsed = now.duration_since(at);
            let events = chain.events.saturating_sub(events);
            lines += &line(&name, width, &chain, events, elapsed);
        }
        // Not by `std`: a reader that pauses must not block a worker of the runtime.
        if out.write_all(lines.as_bytes()).await.is_err() || out.flush().await.is_err() {
            return;
        }
    }
}

fn line(name: &str, width: usize, chain: &ChainStatus, events: u64, elapsed: Duration) -> String {
    let height = |at: Option<u64>| at.map_or_else(|| "-".to_owned(), |height| height.to_string());
    let rate =
        if elapsed.is_zero() { 0 } else { u128::from(events) * 1000 / elapsed.as_millis().max(1) };
    let lag = match chain.lag {
        Some(Lag { blocks, seconds }) => format!("lag {blocks:>4} blocks {seconds:>5} s"),
        None => format!("lag {:>4} blocks {:>5} s", "-", "-"),
    };
    let why = chain.stall().map(|s| format!("  {}", s.why)).unwrap_or_default();
    format!(
        "{name:<width$}  head {:>10}  published {:>10}  {rate:>6} events/s  {lag}{why}\n",
        height(chain.head),
        height(chain.tip),
    )
}

#[cfg(test)]
mod tests {
    use ethhook_ingest::status::{Cause, Needs, Stall};

    use super::*;

    #[test]
    fn lines_are_aligned_whatever_is_known() {
        let stall = Stall { why: "no endpoint answers".to_owned(), needs: Needs::Time };
        let starting =
            ChainStatus { stalls: [(Cause::Opening, stall)].into(), ..ChainStatus::default() };
        let running = ChainStatus {
            head: Some(21_000_002),
            tip: Some(21_000_000),
            lag: Some(Lag { blocks: 2, seconds: 24 }),
            ..ChainStatus::default()
        };
        let second = Duration::from_millis(1_000);
        assert_eq!(
            line("base", 8, &starting, 0, Duration::ZERO)
                + &line("ethereum", 8, &running, 300, second / 2)
                + &line("ethereum", 8, &running, 300, second * 2),
            "base      head          -  published          -       0 events/s  lag    - blocks     - s  no endpoint answers\n\
             ethereum  head   21000002  published   21000000     600 events/s  lag    2 blocks    24 s\n\
             ethereum  head   21000002  published   21000000     150 events/s  lag    2 blocks    24 s\n"
        );
    }
}
