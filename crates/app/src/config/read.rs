//! Parses single values: from text to a type, or a problem.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;

use alloy_primitives::{Address, B256, keccak256};
use ethhook_domain::{Profile, Secret};
use url::Url;

use super::keys;
use super::layers::{Origin, Setting, Settings, env_name};
use super::problem::{Problem, may_hold_credentials, one_line, shown};

/// Maximum size of a secret in a file, in bytes: enough for a list of URLs, and more.
const LONGEST_SECRET: u64 = 64 << 10;

/// A resolved key, as `check-config` prints it: `KEY=value`, with a secret's value redacted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    key: String,
    shown: String,
    origin: Origin,
}

impl fmt::Display for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = format!("{}={}", self.key, self.shown);
        write!(f, "{line:<60} # {}", self.origin)
    }
}

/// Reads values from the settings and collects problems and resolved keys.
pub(crate) struct Reader<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) problems: Vec<Problem>,
    pub(crate) resolved: Vec<Resolved>,
}

impl Reader<'_> {
    /// A key of the process.
    pub(crate) fn global(&mut self, name: &str) -> Setting {
        let setting = self.settings.global(name);
        self.resolve(name, &setting);
        setting
    }

    /// A key of the process; none if it is not set and has no default.
    pub(crate) fn given(&mut self, name: &str) -> Option<Setting> {
        let setting = self.settings.global(name).given()?;
        self.resolve(name, &setting);
        Some(setting)
    }

    /// A key of a chain; none if it is not set and has no default.
    pub(crate) fn chain(&mut self, chain: &str, name: &str) -> Option<Setting> {
        let setting = self.settings.chain(chain, name).given()?;
        self.resolve(&env_name(Some(chain), name), &setting);
        Some(setting)
    }

    /// A secret, from its key or from the file named by `<KEY>_FILE`. None if neither is set, or if
    /// the file cannot be used, which is reported as a problem.
    pub(crate) fn secret(&mut self, chain: Option<&str>, name: &str) -> Option<Setting> {
        let direct = self.settings.value(chain, name).given();
        let file = self.settings.file_of(chain, name);
        match (direct, file) {
            (Some(direct), Some(file)) => {
                let text = format!("{} is set as well; keep one of the two", direct.key);
                self.problems.push(file.problem(text));
                None
            }
            (Some(direct), None) => {
                self.resolve(&env_name(chain, name), &direct);
                Some(direct)
            }
            (None, Some(file)) => self.read_file(chain, name, file),
            (None, None) => None,
        }
    }

    fn read_file(&mut self, chain: Option<&str>, name: &str, file: Setting) -> Option<Setting> {
        let name = format!("{}{}", env_name(chain, name), keys::FILE_SUFFIX);
        self.resolve(&name, &file);
        match read_secret_file(Path::new(&file.text)) {
            Ok(text) if text.trim().is_empty() => {
                self.problems.push(file.problem("this file is empty"));
                None
            }
            Ok(text) => Some(Setting { text: text.trim().to_owned(), secret: true, ..file }),
            Err(e) => {
                self.problems.push(file.problem(format!("this file cannot be read: {e}")));
                None
            }
        }
    }

    /// Records the check that applies to a chain, whether set or from its profile.
    pub(crate) fn resolve_verify(&mut self, chain: &str, profile: &Profile) {
        let set = self.settings.chain(chain, "VERIFY");
        self.resolved.push(Resolved {
            key: env_name(Some(chain), "VERIFY"),
            shown: profile.verify.to_string(),
            origin: set.origin,
        });
    }

    fn resolve(&mut self, key: &str, setting: &Setting) {
        let shown = match (setting.secret, setting.text.as_str()) {
            (true, text) => vec!["<redacted>"; text.split(',').count()].join(","),
            (false, text) if may_hold_credentials(text) => "<redacted>".to_owned(),
            (false, text) => one_line(text),
        };
        let key = key.to_owned();
        self.resolved.push(Resolved { key, shown, origin: setting.origin.clone() });
    }

    /// The parsed value; otherwise records a problem that says what it `must` be.
    pub(crate) fn parse<T>(
        &mut self,
        setting: &Setting,
        must: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let value = parse(&setting.text);
        if value.is_none() {
            self.problems.push(setting.problem(format!("must be {must}")));
        }
        value
    }

    /// A whole number in `range`.
    pub(crate) fn number<T>(&mut self, setting: &Setting, range: RangeInclusive<T>) -> Option<T>
    where
        T: FromStr + PartialOrd + fmt::Display,
    {
        let must = format!("a whole number from {} to {}", range.start(), range.end());
        self.parse(setting, &must, |text| text.parse().ok().filter(|number| range.contains(number)))
    }

    /// The value that `read` makes of a setting: `Some(None)` if it is not set, `None` if it is wrong.
    pub(crate) fn optional<T>(
        &mut self,
        setting: Option<Setting>,
        read: impl FnOnce(&mut Self, &Setting) -> Option<T>,
    ) -> Option<Option<T>> {
        match setting {
            Some(setting) => read(self, &setting).map(Some),
            None => Some(None),
        }
    }

    /// A comma-separated list; `read` parses an item, or returns what is wrong with it.
    pub(crate) fn list<T>(
        &mut self,
        setting: Option<&Setting>,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let Some(setting) = setting else { return Some(Vec::new()) };
        let mut values = Vec::new();
        let before = self.problems.len();
        for (i, item) in items(&setting.text).enumerate() {
            match read(item) {
                Ok(value) => values.push(value),
                Err(wrong) => {
                    let which = format!("item {} `{}`", i + 1, shown(item));
                    self.problems.push(setting.problem(format!("{which} {wrong}")));
                }
            }
        }
        (self.problems.len() == before).then_some(values)
    }

    /// A comma-separated list of URLs with one of two schemes; none if the list is invalid.
    pub(crate) fn urls(
        &mut self,
        setting: Option<&Setting>,
        schemes: [&str; 2],
    ) -> Option<Vec<Secret>> {
        let Some(setting) = setting else { return Some(Vec::new()) };
        let items: Vec<&str> = setting.text.split(',').map(str::trim).collect();
        let before = self.problems.len();
        for (i, item) in items.iter().enumerate() {
            // Asking the same provider twice gives no second opinion.
            let first = items[..i].iter().position(|earlier| earlier == item);
            let wrong = check_url(item, &schemes).err();
            let wrong = wrong.or(first.map(|first| format!("is URL {} again", first + 1)));
            if let Some(why) = wrong {
                let which = if items.len() == 1 {
                    "the URL".to_owned()
                } else {
                    format!("URL {} of {}", i + 1, items.len())
                };
                self.problems.push(setting.problem(format!("{which} {why}")));
            }
        }
        let with_small_scheme = |item: &str| match item.split_once("://") {
            Some((scheme, rest)) => Secret::new(format!("{}://{rest}", scheme.to_lowercase())),
            None => Secret::new(item),
        };
        (self.problems.len() == before).then(|| items.into_iter().map(with_small_scheme).collect())
    }
}

/// The items of a comma-separated list. A comma in parentheses separates nothing: an event's signature
/// given as a topic is one wrong item, not several.
fn items(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    let separates = move |c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    };
    text.split(separates).map(str::trim)
}

/// A contract's address. One in mixed case has a checksum (EIP-55), which reveals a wrong digit.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn address(text: &str) -> Result<Address, String> {
    let address: Address = hex(text, 40)?;
    let has = |case: fn(&char) -> bool| text.chars().skip(2).any(|digit| case(&digit));
    let is_mixed = has(char::is_ascii_lowercase) && has(char::is_ascii_uppercase);
    if is_mixed && address.to_checksum(None) != text {
        return Err("does not match its checksum (EIP-55): a digit or its case is wrong; if the \
                    address is right, write it in lower case"
            .to_owned());
    }
    Ok(address)
}

/// A log's first topic.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn topic(text: &str) -> Result<B256, String> {
    hex(text, 64).map_err(|must| {
        if !text.contains('(') {
            return must;
        }
        // With names of parameters or spaces, the hash would be another one.
        let hash = match text.contains(char::is_whitespace) {
            true => "write types only, without spaces, as in Transfer(address,address,uint256)"
                .to_owned(),
            false => format!("of this one, {}", keccak256(text)),
        };
        format!("{must}: the keccak256 hash of the event's signature; {hash}")
    })
}

fn hex<T: FromStr>(text: &str, digits: usize) -> Result<T, String> {
    text.strip_prefix("0x")
        .filter(|hex| hex.len() == digits)
        .and_then(|_| text.parse().ok())
        .ok_or_else(|| format!("must be 0x and {digits} hex digits"))
}

/// The text of a file that should contain one line. Reads a limited amount, in case a device or a
/// log was named by mistake.
fn read_secret_file(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LONGEST_SECRET + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST_SECRET {
        return Err(std::io::Error::other(format!("it is longer than {LONGEST_SECRET} bytes")));
    }
    Ok(text.trim_start_matches('\u{feff}').to_owned()) // a byte order mark
}

/// Checks a URL. The error says what is wrong, never what the URL contains.
pub(crate) fn check_url(text: &str, schemes: &[&str]) -> Result<Url, String> {
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    if !scheme.is_some_and(|scheme| schemes.contains(&scheme.as_str())) {
        return Err(format!("must start with {}://", schemes.join(":// or ")));
    }
    if text.contains(char::is_whitespace) {
        return Err("contains a space; separate URLs with a comma".to_owned());
    }
    match Url::parse(text) {
        Ok(url) if url.host_str().is_some_and(|host| !host.is_empty()) => Ok(url),
        Ok(_) => Err("has no host".to_owned()),
        // The parser's messages contain only the kind of error, never the text.
        Err(e) => Err(format!("is not a URL: {e}")),
    }
}
