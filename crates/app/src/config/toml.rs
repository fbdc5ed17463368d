//! Reads `ethhook.toml`: keys of the process and of chains, and descriptions of chains.

use std::collections::{BTreeMap, BTreeSet};

use config::{File, FileFormat, FileSourceString, Map, Source, Value, ValueKind};
use ethhook_domain::Secret;

use super::keys;
use super::layers::{KeyPath, Origin, TextFile};
use super::problem::{Problem, one_line};
use super::spelling;

/// Reads the file, and adds the chains that it describes to `chains`.
pub(super) fn read(
    file: &TextFile,
    origin: &Origin,
    chains: &mut Vec<String>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<KeyPath, Secret> {
    let mut values = BTreeMap::new();
    let source: File<FileSourceString, FileFormat> =
        File::from_str(file.text.reveal(), FileFormat::Toml);
    let table = match source.collect() {
        Ok(table) => table,
        Err(error) => {
            problems.push(not_toml(&file.path, &error));
            return values;
        }
    };
    let mut found = Vec::new();
    for (name, value) in sorted(table) {
        match value.kind {
            ValueKind::Table(tables) if name == "chains" => {
                for (chain, value) in sorted(tables) {
                    read_chain(&chain, value, chains, &mut values, &mut found);
                }
            }
            _ if name == "chains" => {
                found.push(Problem::new(&name, "must hold tables, as in [chains.NAME]"));
            }
            kind => {
                let known = keys::names(keys::GLOBAL).map(|key| key.to_lowercase());
                let known = known.chain(["chains".to_owned()]); // handled above; near misses are told
                read_value(&name, (None, name.clone()), kind, known, &mut values, &mut found);
            }
        }
    }
    problems.extend(found.into_iter().map(|problem: Problem| problem.from(origin)));
    values
}

fn read_chain(
    name: &str,
    value: Value,
    chains: &mut Vec<String>,
    values: &mut BTreeMap<KeyPath, Secret>,
    problems: &mut Vec<Problem>,
) {
    let shown = format!("chains.{name}");
    let chain = name.to_lowercase();
    let well_formed = chain.starts_with(|c: char| c.is_ascii_lowercase())
        && chain.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !well_formed {
        let text = "a chain's name starts with a letter; letters, digits and _ may follow";
        problems.push(Problem::new(&shown, text));
        return;
    }
    let ValueKind::Table(table) = value.kind else {
        problems.push(Problem::new(&shown, "must be a table, as in [chains.NAME]"));
        return;
    };
    if values.keys().any(|(known, _)| known.as_deref() == Some(&chain)) {
        problems.push(Problem::new(&shown, "is defined twice"));
        return;
    }
    if !chains.contains(&chain) {
        chains.push(chain.clone());
    }
    for (key, value) in sorted(table) {
        let known = keys::names(keys::CHAIN).chain(keys::names(keys::PROFILE));
        let known = known.map(|key| key.to_lowercase());
        let key_path = (Some(chain.clone()), key.clone());
        read_value(&format!("{shown}.{key}"), key_path, value.kind, known, values, problems);
    }
}

fn read_value(
    shown: &str,
    key_path: KeyPath,
    kind: ValueKind,
    known: impl Iterator<Item = String>,
    values: &mut BTreeMap<KeyPath, Secret>,
    problems: &mut Vec<Problem>,
) {
    let known: BTreeSet<String> = known.collect();
    if !known.contains(&key_path.1) {
        let meant = spelling::nearest_key(&key_path.1, known);
        let hint = meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
        problems.push(Problem::new(shown, format!("is not a key{hint}")));
        return;
    }
    match text_of(kind) {
        Some(text) => {
            values.insert(key_path, Secret::new(text));
        }
        None => problems.push(Problem::new(shown, "must be one value, or a list of strings")),
    }
}

/// The library's tables are unordered, but messages must have an order.
fn sorted(table: Map<String, Value>) -> BTreeMap<String, Value> {
    table.into_iter().collect()
}

/// The value in the form that the environment uses: lists with commas.
fn text_of(kind: ValueKind) -> Option<String> {
    match kind {
        ValueKind::Boolean(value) => Some(value.to_string()),
        ValueKind::I64(value) => Some(value.to_string()),
        ValueKind::Float(value) => Some(value.to_string()),
        ValueKind::String(value) => Some(value),
        ValueKind::Array(items) => {
            let items = items.into_iter().map(|item| match item.kind {
                ValueKind::String(text) => Some(text),
                _ => None,
            });
            Some(items.collect::<Option<Vec<_>>>()?.join(","))
        }
        _ => None,
    }
}

/// The library's whole text repeats the line, which may contain a secret; its message does not.
fn not_toml(path: &str, error: &config::ConfigError) -> Problem {
    let config::ConfigError::FileParse { cause, .. } = error else {
        return Problem::file(path, "is not valid TOML");
    };
    let text = cause.to_string();
    let place = text.lines().next().and_then(|line| line.split_once(" at ")).map(|(_, at)| at);
    let place = place.map(|at| format!(" ({at})")).unwrap_or_default();
    let why = cause.downcast_ref::<toml::de::Error>().map(toml::de::Error::message);
    let why = why.map(|why| format!(": {}", one_line(why))).unwrap_or_default();
    Problem::file(path, format!("is not valid TOML{place}{why}"))
}
