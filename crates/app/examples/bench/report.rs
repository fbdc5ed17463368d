//! The table.

use serde_json::{Value, json};

/// The target of a figure.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bar {
    Under(f64),
    /// At least this share of the limit.
    Share(f64),
}

/// One figure.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) group: &'static str,
    pub(crate) figure: String,
    pub(crate) ours: f64,
    pub(crate) unit: &'static str,
    /// The limit of this machine, in the same unit.
    pub(crate) limit: Option<f64>,
    pub(crate) bar: Option<Bar>,
}

impl Row {
    pub(crate) fn new(
        group: &'static str,
        figure: impl Into<String>,
        ours: f64,
        unit: &'static str,
    ) -> Self {
        Self { group, figure: figure.into(), ours, unit, limit: None, bar: None }
    }

    pub(crate) fn of(self, limit: f64) -> Self {
        Self { limit: Some(limit), ..self }
    }

    pub(crate) fn bar(self, bar: Bar) -> Self {
        Self { bar: Some(bar), ..self }
    }

    fn ratio(&self) -> Option<f64> {
        self.limit.map(|limit| self.ours / limit)
    }

    fn is_met(&self) -> Option<bool> {
        match self.bar? {
            Bar::Under(most) => Some(self.ours < most),
            Bar::Share(least) => Some(self.ratio()? >= least),
        }
    }

    fn bar_text(&self) -> String {
        let bar = match self.bar {
            None => return String::new(),
            Some(Bar::Under(most)) => format!("under {}", figure(most)),
            Some(Bar::Share(least)) => format!("ratio {least}"),
        };
        match self.is_met() {
            Some(false) => format!("{bar}: MISSED"),
            _ => format!("{bar}: met"),
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "group": self.group,
            "figure": self.figure,
            "ours": self.ours,
            "unit": self.unit,
            "limit": self.limit,
            "ratio": self.ratio(),
            "met": self.is_met(),
        })
    }
}

/// At most three significant digits.
fn figure(value: f64) -> String {
    match value.abs() {
        a if a >= 100.0 => format!("{value:.0}"),
        a if a >= 10.0 => format!("{value:.1}"),
        0.0 => "0".into(),
        _ => format!("{value:.2}"),
    }
}

pub(crate) const HEADING: &str =
    "| Figure | Ours | Limit | Ratio | Bar |\n|---|---:|---:|---:|---|";

/// Prints the rows of one group.
pub(crate) fn print(rows: &[Row]) {
    for row in rows {
        let limit = row.limit.map(figure).unwrap_or_default();
        let ratio = row.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        let ours = format!("{} {}", figure(row.ours), row.unit);
        println!("| {} | {ours} | {limit} | {ratio} | {} |", row.figure, row.bar_text());
    }
}

pub(crate) fn to_json(machine: &str, rows: &[Row]) -> Value {
    json!({ "machine": machine, "rows": rows.iter().map(Row::to_json).collect::<Vec<_>>() })
}
