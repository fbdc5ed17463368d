//! Merges environment, `.env` and `ethhook.toml` into one set of settings: the `config` crate
//! overlays the layers and records where each value came from.
//!
//! Values are read key by key, using the table in [`super::keys`], not into a derived struct: serde
//! would stop at the first error and lose the origin.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use config::{Map, Source, Value, ValueKind};
use ethhook_domain::{Profile, Secret};

use super::Invalid;
use super::keys::{self, FILE_SUFFIX};
use super::problem::Problem;
use super::{spelling, toml};

/// Where a value came from, in order of precedence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The process environment.
    Env,
    /// The `.env` file, at this path.
    EnvFile(Arc<str>),
    /// `ethhook.toml`, at this path.
    Toml(Arc<str>),
    /// The table of keys.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Env => "env",
            Self::EnvFile(path) | Self::Toml(path) => path,
            Self::Default => "default",
        })
    }
}

/// The content of a file.
#[derive(Debug, Clone)]
pub(crate) struct TextFile {
    /// Its path, as shown in messages.
    pub(crate) path: Arc<str>,
    pub(crate) text: Secret,
}

impl TextFile {
    /// Without the byte order mark that some editors begin a file with.
    pub(crate) fn new(path: impl Into<Arc<str>>, text: &str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self { path: path.into(), text: Secret::new(text) }
    }
}

/// All inputs, before parsing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inputs {
    /// The environment; bytes that are not UTF-8 are replaced.
    pub(crate) env: Vec<(String, Secret)>,
    /// The `.env` file.
    pub(crate) env_file: Option<TextFile>,
    /// `ethhook.toml`.
    pub(crate) toml: Option<TextFile>,
    /// The host's name, the default of `INSTANCE_ID`.
    pub(crate) host_name: String,
}

impl Inputs {
    /// Reads the environment and both files; a file that is neither named nor present is skipped.
    ///
    /// # Errors
    /// A problem for each file that cannot be read.
    pub(crate) fn of_process(
        toml: Option<&Path>,
        env_file: Option<&Path>,
    ) -> Result<Self, Invalid> {
        let mut problems = Vec::new();
        let mut read = |named: Option<&Path>, usual: &str| {
            let path = named.map_or_else(|| PathBuf::from(usual), Path::to_owned);
            let (read, path) = (std::fs::read_to_string(&path), path.display().to_string());
            match read {
                Ok(text) => Some(TextFile::new(path, &text)),
                Err(e) if named.is_none() && e.kind() == std::io::ErrorKind::NotFound => None,
                Err(e) => {
                    problems.push(Problem::new(path, format!("cannot be read: {e}")));
                    None
                }
            }
        };
        let toml = read(toml, "ethhook.toml");
        let env_file = read(env_file, ".env");
        if !problems.is_empty() {
            return Err(problems.into());
        }
        let env = std::env::vars_os()
            .map(|(name, value)| {
                (name.to_string_lossy().into_owned(), Secret::new(value.to_string_lossy()))
            })
            .collect();
        let host_name = gethostname::gethostname().to_string_lossy().into_owned();
        Ok(Self { env, env_file, toml, host_name })
    }
}

/// One value with its origin. Has no `Debug`, which could show a secret (G11).
#[derive(Clone)]
pub(crate) struct Setting {
    /// The key as its origin spells it: `ETHEREUM_WS_URL` or `chains.ethereum.ws_url`.
    pub(crate) key: String,
    /// The text, trimmed; empty if nothing is set and there is no default.
    pub(crate) text: String,
    /// Where it came from.
    pub(crate) origin: Origin,
    /// Whether the text must never be shown.
    pub(crate) secret: bool,
}

impl Setting {
    /// None if nothing is set and there is no default.
    pub(crate) fn given(self) -> Option<Self> {
        (!self.text.is_empty()).then_some(self)
    }

    /// A problem with this setting.
    pub(crate) fn problem(&self, text: impl Into<String>) -> Problem {
        let problem = Problem::new(&self.key, text);
        let problem = match &self.origin {
            Origin::Default => problem,
            set => problem.from(set),
        };
        if self.secret { problem } else { problem.value(&self.text) }
    }
}

/// A key of the process (no chain) or of a chain (by its lower-case name); the key in lower case.
pub(super) type KeyPath = (Option<String>, String);

/// One layer, with its names resolved but its values not parsed.
#[derive(Debug, Clone)]
struct Layer {
    /// Its position in [`Settings::origins`].
    index: usize,
    values: BTreeMap<KeyPath, Secret>,
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        let origin = self.index.to_string();
        let entry = |(key_path, value): (&KeyPath, &Secret)| {
            (dotted(key_path), Value::new(Some(&origin), value.reveal().to_owned()))
        };
        Ok(self.values.iter().map(entry).collect())
    }
}

fn dotted((chain, key): &KeyPath) -> String {
    match chain {
        Some(chain) => format!("chains.{chain}.{key}"),
        None => key.clone(),
    }
}

/// All layers merged. Has no `Debug`, which would show secrets (G11): `config` holds plain strings.
pub(crate) struct Settings {
    merged: config::Config,
    /// The layers above the defaults, the highest first.
    origins: Vec<Origin>,
    /// Names of all known chains, built-in ones first, lower case.
    pub(crate) chains: Vec<String>,
    host_name: String,
}

impl Settings {
    /// Resolves the names in all layers.
    ///
    /// # Errors
    /// Returns, in addition to the settings, a problem for each unknown name.
    pub(crate) fn read(inputs: &Inputs) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut chains: Vec<String> = Profile::built_in().into_iter().map(|p| p.name).collect();
        // The other layers, too, may have keys of chains that the file describes.
        let toml = inputs.toml.as_ref().map(|file| {
            let origin = Origin::Toml(Arc::clone(&file.path));
            let values = toml::read(file, &origin, &mut chains, &mut problems);
            (origin, values)
        });
        let key_paths = key_paths_by_name(&chains);
        let env_file = inputs.env_file.as_ref().map(|file| {
            let origin = Origin::EnvFile(Arc::clone(&file.path));
            let values = read_env_file(file, &origin, &key_paths, &chains, &mut problems);
            (origin, values)
        });
        let env = (Origin::Env, read_env(&inputs.env, &key_paths, &chains, &mut problems));

        let (origins, mut layers): (Vec<_>, Vec<_>) =
            [Some(env), env_file, toml].into_iter().flatten().unzip();
        hide_other_forms(&mut layers);
        // The builder expects the lowest layer first.
        let builder = layers
            .into_iter()
            .enumerate()
            .rev()
            .map(|(index, values)| Layer { index, values })
            .fold(config::Config::builder(), |builder, layer| builder.add_source(layer));
        let merged = builder.build().unwrap_or_else(|e| {
            problems.push(Problem::new("configuration", e.to_string()));
            config::Config::default()
        });
        (Self { merged, origins, chains, host_name: inputs.host_name.clone() }, problems)
    }

    /// The value of a key of the process.
    pub(crate) fn global(&self, name: &str) -> Setting {
        self.value(None, name)
    }

    /// The value of a key of a chain.
    pub(crate) fn chain(&self, chain: &str, name: &str) -> Setting {
        self.value(Some(chain), name)
    }

    /// The value of a key of a chain, or of the process.
    pub(crate) fn value(&self, chain: Option<&str>, name: &str) -> Setting {
        let key = keys::find(chain.is_some(), name);
        let default = if name == "INSTANCE_ID" { &self.host_name } else { key.default };
        self.get(chain, key.name, default, key.secret)
    }

    /// The path in `<KEY>_FILE` of a secret key, if set.
    pub(crate) fn file_of(&self, chain: Option<&str>, name: &str) -> Option<Setting> {
        self.get(chain, &format!("{name}{FILE_SUFFIX}"), "", false).given()
    }

    /// Whether a secret key is set, directly or by a file.
    pub(crate) fn is_given(&self, chain: Option<&str>, name: &str) -> bool {
        self.value(chain, name).given().is_some() || self.file_of(chain, name).is_some()
    }

    /// Whether anything is set for a chain.
    pub(crate) fn is_mentioned(&self, chain: &str) -> bool {
        keys::names(keys::CHAIN).any(|name| !self.get(Some(chain), &name, "", true).text.is_empty())
    }

    /// `config`'s own getters go through serde, which loses the origin.
    fn lookup(&self, (chain, key): &KeyPath) -> Option<&Value> {
        fn step<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
            match &value.kind {
                ValueKind::Table(table) => table.get(key),
                _ => None,
            }
        }
        match chain {
            Some(chain) => step(step(step(&self.merged.cache, "chains")?, chain)?, key),
            None => step(&self.merged.cache, key),
        }
    }

    fn get(&self, chain: Option<&str>, name: &str, default: &str, secret: bool) -> Setting {
        let key_path = (chain.map(str::to_owned), name.to_lowercase());
        let found = self.lookup(&key_path);
        let origin = found.and_then(Value::origin);
        let text = match found.map(|value| &value.kind) {
            Some(ValueKind::String(text)) => text.as_str(),
            _ => "",
        };
        let text = text.trim();
        if text.is_empty() {
            let key = chain.map_or_else(|| name.to_owned(), |chain| env_name(Some(chain), name));
            return Setting { key, text: default.to_owned(), origin: Origin::Default, secret };
        }
        let origin = origin
            .and_then(|index| self.origins.get(index.parse::<usize>().ok()?))
            .unwrap_or(&Origin::Default)
            .clone();
        let key = match origin {
            Origin::Toml(_) => dotted(&key_path),
            _ => env_name(chain, name),
        };
        Setting { key, text: text.to_owned(), origin, secret }
    }
}

/// The name of a key in the environment.
pub(crate) fn env_name(chain: Option<&str>, key: &str) -> String {
    chain.map_or_else(|| key.to_owned(), |chain| format!("{}_{key}", chain.to_uppercase()))
}

/// Every name that the environment may contain, with the key it stands for.
fn key_paths_by_name(chains: &[String]) -> BTreeMap<String, KeyPath> {
    let global = keys::names(keys::GLOBAL).map(|key| (key.clone(), (None, key.to_lowercase())));
    let of_chains = chains.iter().flat_map(|chain| {
        keys::names(keys::CHAIN).map(move |key| {
            (env_name(Some(chain), &key), (Some(chain.clone()), key.to_lowercase()))
        })
    });
    global.chain(of_chains).collect()
}

/// Unknown variables in the environment are ignored, except near misses of our names.
fn read_env(
    env: &[(String, Secret)],
    key_paths: &BTreeMap<String, KeyPath>,
    chains: &[String],
    problems: &mut Vec<Problem>,
) -> BTreeMap<KeyPath, Secret> {
    let mut values = BTreeMap::new();
    // A service called `redis` beside ours in Kubernetes sets REDIS_PORT=tcp://10.0.0.7:6379, and so did Docker's links.
    let is_link = |name: &str, value: &Secret| {
        name.ends_with("_PORT") && value.reveal().starts_with("tcp://")
    };
    for (name, value) in env.iter().filter(|(name, value)| !is_link(name, value)) {
        if let Some(key_path) = key_paths.get(name) {
            values.insert(key_path.clone(), value.clone());
        } else if let Some(meant) = spelling::nearest(name, chains) {
            problems.push(
                Problem::new(name, format!("is not a key; did you mean {meant}?"))
                    .from(&Origin::Env),
            );
        }
    }
    values
}

/// The file is only for us and Docker Compose, so every name in it must be known.
fn read_env_file(
    file: &TextFile,
    origin: &Origin,
    key_paths: &BTreeMap<String, KeyPath>,
    chains: &[String],
    problems: &mut Vec<Problem>,
) -> BTreeMap<KeyPath, Secret> {
    let mut values = BTreeMap::new();
    for line in dotenvy::from_read_iter(file.text.reveal().as_bytes()) {
        let (name, value) = match line {
            Ok(pair) => pair,
            Err(error) => {
                problems.push(env_file_problem(file, &error));
                continue;
            }
        };
        if keys::is_for_compose(&name) {
            continue;
        }
        let Some(key_path) = key_paths.get(&name) else {
            let meant = spelling::nearest(&name, chains)
                .map_or_else(|| unknown_hint(&name), |meant| format!("did you mean {meant}?"));
            problems.push(Problem::new(&name, format!("is not a key; {meant}")).from(origin));
            continue;
        };
        if values.insert(key_path.clone(), Secret::new(value)).is_some() {
            problems.push(Problem::new(&name, "is set twice; keep one of the lines").from(origin));
        }
    }
    values
}

/// A chain's key after an unknown chain name probably means a chain that has yet to be described.
fn unknown_hint(name: &str) -> String {
    let chain = keys::names(keys::CHAIN)
        .find_map(|key| Some(name.strip_suffix(&key)?.strip_suffix('_')?.to_lowercase()));
    match chain {
        Some(chain) if !chain.is_empty() => format!(
            "a chain that is not built in needs [chains.{chain}] with chain_id in ethhook.toml"
        ),
        _ => ".env.example lists all keys".to_owned(),
    }
}

/// The library's own message repeats the line, which may contain a secret.
fn env_file_problem(file: &TextFile, error: &dotenvy::Error) -> Problem {
    let dotenvy::Error::LineParse(bad, _) = error else {
        return Problem::new(&*file.path, "cannot be read as text");
    };
    let bad = bad.lines().next().unwrap_or_default();
    let number = file
        .text
        .reveal()
        .lines()
        .position(|line| !bad.is_empty() && line.ends_with(bad.trim_end()))
        .map(|i| i + 1);
    let at = number.map(|number| format!(" line {number}")).unwrap_or_default();
    Problem::new(
        format!("{}{at}", file.path),
        "must be KEY=value; put a value with spaces, quotes, # or $ in single quotes",
    )
}

/// A layer that sets a secret by value hides the `_FILE` form in the layers below, and vice versa:
/// overriding a secret must not require knowing in which form it was set.
fn hide_other_forms(layers: &mut [BTreeMap<KeyPath, Secret>]) {
    let suffix = FILE_SUFFIX.to_lowercase();
    for upper in 0..layers.len() {
        let others: Vec<KeyPath> = layers[upper]
            .keys()
            .map(|(chain, key)| {
                let other = key.strip_suffix(&suffix).map(str::to_owned);
                (chain.clone(), other.unwrap_or_else(|| format!("{key}{suffix}")))
            })
            .collect();
        for layer in &mut layers[upper + 1..] {
            for other in &others {
                layer.remove(other);
            }
        }
    }
}
