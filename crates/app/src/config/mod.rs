//! The configuration: environment over `.env` over `ethhook.toml` over defaults.
//!
//! [`layers`] merges them; [`redis`], [`service`] and [`chains`] convert the texts to types.
//! Everything that is wrong is reported at once, as one [`Problem`] each.

mod chains;
mod example;
mod keys;
mod layers;
mod problem;
mod read;
mod redis;
mod service;
mod spelling;
mod toml;

#[cfg(test)]
mod tests;

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;

use anyhow::anyhow;
use ethhook_domain::Profile;
use ethhook_ingest::ChainConfig;
use ethhook_streams::{ConnectError, RedisConfig, Streams};

pub(crate) use example::render as example;
pub(crate) use layers::{Inputs, Origin, TextFile};
pub(crate) use problem::Problem;
pub(crate) use read::{Resolved, address, topic};
pub(crate) use service::{LogFormat, Logging, Service};

use layers::Settings;
use read::Reader;

/// Everything `ethhook ingest` needs.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) redis: RedisConfig,
    pub(crate) service: Service,
    pub(crate) logging: Logging,
    pub(crate) chains: Vec<ChainConfig>,
    /// Every effective key, for `check-config`.
    pub(crate) resolved: Vec<Resolved>,
    /// Chains that have settings but no URL.
    pub(crate) off: Vec<String>,
}

/// The configuration of commands that only look at the streams: Redis, and which chains there are.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) streams: Streams,
    pub(crate) logging: Logging,
    /// Chains built in, or described in `ethhook.toml`.
    pub(crate) known: Vec<Profile>,
    /// Those of them that have a URL.
    pub(crate) on: Vec<Profile>,
}

/// What `healthcheck` needs: the service's address.
#[derive(Debug)]
pub(crate) struct Probe {
    /// The address to ask; loopback if the service listens on all.
    pub(crate) health: SocketAddr,
}

/// An invalid configuration.
#[derive(Debug)]
pub(crate) struct Invalid {
    /// At least one.
    pub(crate) problems: Vec<Problem>,
    /// The address of Redis, if that part is valid: it can then be tried, so that its problems are
    /// reported at the same time.
    pub(crate) redis: Option<RedisConfig>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.problems.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl Error for Invalid {}

impl From<Vec<Problem>> for Invalid {
    fn from(problems: Vec<Problem>) -> Self {
        Self { problems, redis: None }
    }
}

impl From<ConnectError> for Invalid {
    fn from(error: ConnectError) -> Self {
        vec![Problem::line(error.to_string())].into()
    }
}

/// The position in `chains` of the one with this name, in any case.
fn position<'a>(
    kind: &str,
    name: &str,
    chains: impl Iterator<Item = &'a Profile> + Clone,
) -> anyhow::Result<usize> {
    let found = chains.clone().position(|chain| chain.name.eq_ignore_ascii_case(name));
    found.ok_or_else(|| {
        let names: Vec<_> = chains.map(|chain| chain.name.clone()).collect();
        let hint = match spelling::nearest_chain(&name.to_lowercase(), names.iter().cloned()) {
            Some(meant) => format!("did you mean {meant}?"),
            None => format!("there are {}", names.join(", ")),
        };
        anyhow!("there is no {kind} {name}; {hint}")
    })
}

impl Config {
    /// Removes and returns the chain of this name, in any case.
    ///
    /// # Errors
    /// If no chain of this name has a URL; lists those that have.
    pub(crate) fn take_chain(&mut self, name: &str) -> anyhow::Result<ChainConfig> {
        let profiles = self.chains.iter().map(|chain| &chain.profile);
        let position = position("configured chain", name, profiles)?;
        Ok(self.chains.swap_remove(position))
    }

    /// Reads everything.
    ///
    /// # Errors
    /// All problems.
    pub(crate) fn load(inputs: &Inputs) -> Result<Self, Invalid> {
        let (settings, problems) = Settings::read(inputs);
        let mut reader = Reader { settings: &settings, problems, resolved: Vec::new() };
        let redis = redis::read(&mut reader);
        let known = chains::known(&mut reader);
        let on = known.iter().filter(|profile| chains::is_on(&reader, &profile.name)).count();
        let service = service::read(&mut reader, on);
        let logging = service::read_logging(&mut reader);
        let chains = chains::read(&mut reader, &known);
        let is_off = |name: &&String| settings.is_mentioned(name) && !chains::is_on(&reader, name);
        let off = settings.chains.iter().filter(is_off).cloned().collect();
        let Reader { problems, resolved, .. } = reader;
        match (problems.is_empty(), redis, service, logging) {
            (true, Some(redis), Some(service), Some(logging)) => {
                Ok(Self { redis, service, logging, chains, resolved, off })
            }
            (_, redis, _, _) => Err(Invalid { problems, redis }),
        }
    }
}

impl Client {
    /// The chain of this name, in any case.
    ///
    /// # Errors
    /// If there is none; lists the existing ones.
    pub(crate) fn chain(&self, name: &str) -> anyhow::Result<&Profile> {
        let position = position("chain", name, self.known.iter())?;
        Ok(&self.known[position])
    }

    /// The chain of this name; without a name, the configured chains, or all known ones if none is
    /// configured.
    ///
    /// # Errors
    /// If there is none of this name.
    pub(crate) fn chosen(&self, name: Option<&str>) -> anyhow::Result<Vec<&Profile>> {
        match name {
            Some(name) => Ok(vec![self.chain(name)?]),
            None if self.on.is_empty() => Ok(self.known.iter().collect()),
            None => Ok(self.on.iter().collect()),
        }
    }

    /// Reads what a client of the streams needs; invalid settings of nodes do not matter.
    ///
    /// # Errors
    /// All problems with the rest.
    pub(crate) fn load(inputs: &Inputs) -> Result<Self, Invalid> {
        let (settings, problems) = Settings::read(inputs);
        let mut reader = Reader { settings: &settings, problems, resolved: Vec::new() };
        let redis = redis::read(&mut reader);
        let logging = service::read_logging(&mut reader);
        let known = chains::known(&mut reader);
        let on = known.iter().filter(|p| chains::is_on(&reader, &p.name)).cloned().collect();
        match (reader.problems.is_empty(), redis, logging) {
            (true, Some(redis), Some(logging)) => {
                Ok(Self { streams: Streams::new(redis)?, logging, known, on })
            }
            _ => Err(reader.problems.into()),
        }
    }
}

impl Probe {
    /// Reads only what it needs: the service itself reports other problems.
    ///
    /// # Errors
    /// All problems with that part.
    pub(crate) fn load(inputs: &Inputs) -> Result<Self, Invalid> {
        let (settings, _) = Settings::read(inputs);
        let mut reader = Reader { settings: &settings, problems: Vec::new(), resolved: Vec::new() };
        let health = service::health_address(&mut reader);
        health.map(|health| Self { health }).ok_or_else(|| reader.problems.into())
    }
}
