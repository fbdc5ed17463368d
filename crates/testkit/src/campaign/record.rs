//! Results as lines of a file, and the tables in `docs/reliability.md` generated from them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::parts::PARTS;
use super::tally::{Quarters, Tally};

/// One run: a line of JSON.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When and on what it ran.
    pub about: String,
    /// The part's name; none for all kinds, mixed.
    pub part: Option<String>,
    /// The requested count of the part, or minutes.
    pub wanted: u64,
    /// The result.
    pub tally: Tally,
}

/// The tables for `records`, in Markdown.
#[must_use]
pub fn render(records: &[Record]) -> String {
    let mut page = String::new();
    about(&mut page, records);
    parts(&mut page, records);
    figures(&mut page, records);
    wrongs(&mut page, records);
    fail_points(&mut page, records);
    mixed(&mut page, records);
    page
}

fn about(page: &mut String, records: &[Record]) {
    let mut abouts: Vec<_> = records.iter().map(|record| record.about.as_str()).collect();
    abouts.sort_unstable();
    abouts.dedup();
    let sum = |of: fn(&Tally) -> u64| records.iter().map(|record| of(&record.tally)).sum::<u64>();
    let failed = records.iter().filter(|record| !record.tally.failure.is_empty()).count();
    let _ = writeln!(
        page,
        "{} runs, {} minutes in all, {} comparisons of streams with chains: {} blocks and {} events, \
         each once a comparison. **{}**\n\nRun on: {}.\n",
        records.len(),
        sum(|tally| tally.seconds).div_ceil(60),
        sum(|tally| tally.rounds),
        thousands(sum(|tally| tally.blocks_compared as u64)),
        thousands(sum(|tally| tally.events_compared as u64)),
        match failed {
            0 => "Nothing lost, nothing doubled, nothing out of order in any.".to_owned(),
            _ => format!("{failed} of the runs FAILED."),
        },
        abouts.join("; ")
    );
}

fn parts(page: &mut String, records: &[Record]) {
    table(
        page,
        "Part | Fault | Count | Comparisons | Blocks | Events | Slowest | Result",
        "ll#####l",
    );
    for part in PARTS {
        for record in records.iter().filter(|record| record.part.as_deref() == Some(part.name)) {
            let tally = &record.tally;
            let faults: Vec<_> = tally.faults.iter().collect();
            for (position, (fault, count)) in faults.iter().enumerate() {
                let (fault, count) = match part.name {
                    "provider" => (
                        format!("{count} kinds of faults of providers, each alone"),
                        format!("{} each", record.wanted),
                    ),
                    _ => ((*fault).clone(), count.to_string()),
                };
                let first = |text: String| if position == 0 { text } else { String::new() };
                row(
                    page,
                    &[
                        first(format!("`{}`", part.name)),
                        fault,
                        count,
                        first(tally.rounds.to_string()),
                        first(thousands(tally.blocks_compared as u64)),
                        first(thousands(tally.events_compared as u64)),
                        first(format!("{:.1} s", seconds(tally.slowest_settling_ms))),
                        tally.result().to_owned(),
                    ],
                );
            }
        }
    }
    page.push_str(
        "\nSlowest: the longest that a stream took to be equal to its chain after the faults ended, \
         the comparison itself included.\n",
    );
}

/// Measurements other than equality.
fn figures(page: &mut String, records: &[Record]) {
    let of = |name: &'static str| {
        records
            .iter()
            .filter(move |record| record.part.as_deref() == Some(name))
            .map(|record| &record.tally)
    };
    let mut lines = Vec::new();
    if let Some(slowest) = records.iter().map(|record| record.tally.slowest_exit_ms).max() {
        lines.push(format!("slowest exit after a SIGTERM {:.1} s", seconds(slowest)));
    }
    if let Some(slowest) = of("takeover").map(|tally| tally.slowest_takeover_ms).max() {
        lines.push(format!(
            "slowest takeover from a stopped owner {:.1} s (its lease lasts 1 s)",
            seconds(slowest)
        ));
    }
    let mut depths = BTreeMap::new();
    for (depth, count) in of("reorg").flat_map(|tally| &tally.reorgs_by_depth) {
        *depths.entry(depth).or_insert(0) += count;
    }
    if let Some((first, last)) = depths.keys().next().zip(depths.keys().next_back()) {
        let counts = (**first..=**last).map(|depth| depths.get(&depth).copied().unwrap_or(0));
        let fewest: u64 = counts.min().unwrap_or_default();
        lines.push(format!(
            "reorgs of every depth from {first} to {last}, {fewest} of each at least"
        ));
    }
    let searched: usize = records.iter().map(|record| record.tally.bytes_without_secrets).sum();
    if searched > 0 {
        let searched = thousands(searched as u64);
        lines.push(format!("no secret in {searched} bytes of logs, pages, keys and values"));
    }
    let refused: u64 = records.iter().map(|record| record.tally.refused_starts).sum();
    lines.push(format!(
        "{refused} starts refused because Redis was away at that moment, as documented, and tried again"
    ));
    for (tally, memory) in of("soak").filter_map(|tally| Some((tally, tally.memory.as_ref()?))) {
        let medians = |quarters: Quarters| {
            format!(
                "{} then {} (highest {})",
                mib(quarters.second),
                mib(quarters.last),
                mib(quarters.highest)
            )
        };
        lines.push(format!(
            "memory over {} minutes of even load, medians of the second and of the last quarter: \
             ingestor {}, Redis {}; {} entries read by a group, {} trimmed",
            tally.seconds / 60,
            medians(memory.ingestor),
            medians(memory.redis),
            thousands(memory.read_entries),
            thousands(memory.trimmed_entries),
        ));
    }
    page.push_str("\nMeasured beside it: ");
    page.push_str(&lines.join("; "));
    page.push_str(".\n");
}

fn wrongs(page: &mut String, records: &[Record]) {
    let mut rows: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
    for record in records {
        let column = match record.part.as_deref() {
            Some("provider") => 0,
            None => 1,
            Some(_) => continue,
        };
        for (kind, count) in &record.tally.wrongs_of_the_node {
            rows.entry(kind).or_default()[column] += count;
        }
    }
    if rows.is_empty() {
        return;
    }
    page.push_str(
        "\nWrong answers and heads of nodes, counted where they took effect (names as in \
         `Fault::kind` and `HeadFault::kind` of the simulator):\n\n",
    );
    table(page, "Wrong answer or head | Alone | Mixed", "l##");
    for (kind, [alone, mixed]) in rows {
        row(page, &[format!("`{kind}`"), alone.to_string(), mixed.to_string()]);
    }
}

fn fail_points(page: &mut String, records: &[Record]) {
    let mut rows: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
    for tally in records.iter().map(|record| &record.tally) {
        for (fault, count) in &tally.faults {
            if let Some(point) = fault.strip_prefix("fail point: ") {
                rows.entry(point).or_default()[0] += count;
            }
        }
        for (point, count) in &tally.fail_points_reached {
            rows.entry(point).or_default()[1] += count;
        }
    }
    if rows.is_empty() {
        return;
    }
    page.push_str(
        "\nNamed places at which the process killed itself (armed: it was started with the fail \
         point; other faults may have come first):\n\n",
    );
    table(page, "Fail point | Armed | Reached", "l##");
    for (point, [armed, reached]) in rows {
        row(page, &[format!("`{point}`"), armed.to_string(), reached.to_string()]);
    }
}

fn mixed(page: &mut String, records: &[Record]) {
    let all: Vec<_> =
        records.iter().filter(|record| record.part.is_none()).map(|record| &record.tally).collect();
    if all.is_empty() {
        return;
    }
    let mut rows: BTreeMap<&str, u64> = BTreeMap::new();
    for (fault, count) in all.iter().flat_map(|tally| &tally.faults) {
        if !fault.starts_with("fail point: ") {
            *rows.entry(fault).or_default() += count;
        }
    }
    let seeds: Vec<_> = all.iter().map(|tally| tally.seed.to_string()).collect();
    let rounds: u64 = all.iter().map(|tally| tally.rounds).sum();
    let minutes = all.iter().map(|tally| tally.seconds).sum::<u64>().div_ceil(60);
    let failed = all.iter().find(|tally| !tally.failure.is_empty());
    let result = failed.or(all.first()).map_or("equal", |tally| tally.result());
    let _ = writeln!(
        page,
        "\nAll kinds mixed, one to three endpoints a chain, one or two ingestors (seeds {}; {minutes} \
         minutes, {rounds} rounds):\n",
        seeds.join(", ")
    );
    table(page, "Fault | Count | Result", "l#l");
    for (fault, count) in rows {
        row(page, &[fault.to_owned(), count.to_string(), result.to_owned()]);
    }
}

/// The head of a table; `#` in `alignment` means a column of numbers.
fn table(page: &mut String, columns: &str, alignment: &str) {
    if !page.ends_with("\n\n") {
        page.push('\n');
    }
    let _ = writeln!(page, "| {columns} |");
    let rules: Vec<_> =
        alignment.chars().map(|column| if column == '#' { "---:" } else { "---" }).collect();
    let _ = writeln!(page, "|{}|", rules.join("|"));
}

fn row(page: &mut String, cells: &[String]) {
    let _ = writeln!(page, "| {} |", cells.join(" | "));
}

fn seconds(millis: u64) -> f64 {
    u32::try_from(millis).map_or(f64::INFINITY, f64::from) / 1_000.0
}

fn mib(bytes: u64) -> String {
    let tenths = bytes * 10 / (1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn record(part: Option<&str>, tally: Tally) -> Record {
        Record { about: "here".into(), part: part.map(str::to_owned), wanted: 2, tally }
    }

    #[test]
    fn a_failure_is_never_hidden() {
        let faults = BTreeMap::from([("ingestor: kill -9".to_owned(), 2)]);
        let good = Tally { faults: faults.clone(), rounds: 1, ..Tally::default() };
        let bad = Tally { failure: "lost".into(), ..good.clone() };
        let page = render(&[record(Some("kill"), good.clone()), record(None, good.clone())]);
        assert!(page.contains("| `kill` | ingestor: kill -9 | 2 | 1 |"), "{page}");
        assert!(page.contains("Nothing lost") && !page.contains("FAILED"), "{page}");
        for records in [
            [record(Some("kill"), bad.clone()), record(None, good.clone())],
            [record(Some("kill"), good.clone()), record(None, bad.clone())],
        ] {
            let page = render(&records);
            assert!(!page.contains("Nothing lost"), "{page}");
            assert_eq!(page.matches("FAILED").count(), 2, "{page}");
        }
        for mixed in [[&bad, &good], [&good, &bad]] {
            let page = render(&mixed.map(|tally| record(None, tally.clone())));
            assert!(page.contains("| ingestor: kill -9 | 4 | FAILED |"), "{page}");
        }
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(mib(3 << 19), "1.5 MiB");
    }

    /// `scripts/chaos.sh --render docs/reliability.jsonl` generates the page's tables; they are not
    /// written by hand.
    #[test]
    fn the_page_shows_what_the_results_say() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
        let lines = std::fs::read_to_string(docs.join("reliability.jsonl")).unwrap();
        let records: Vec<Record> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let page = std::fs::read_to_string(docs.join("reliability.md")).unwrap();
        assert!(page.contains(&render(&records)), "run scripts/chaos.sh --render");
    }
}
