//! A real Prometheus with the shipped configuration and rules, sped up: each of their minutes is a
//! second here.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use url::form_urlencoded::byte_serialize;

use crate::daemon::Daemon;

/// A Prometheus that scrapes every second; killed when dropped.
#[derive(Debug)]
pub struct PrometheusServer(Daemon);

impl PrometheusServer {
    /// Starts one with the files of `shipped` (`docker/prometheus`). `addresses` replace the hosts
    /// in `prometheus.yml`, for instance `("ethhook:9090", "127.0.0.1:1234")`.
    ///
    /// # Errors
    /// If `prometheus.yml` does not contain a host, or Prometheus is not installed or rejects the
    /// files.
    pub async fn spawn(shipped: &Path, addresses: &[(&str, String)]) -> Result<Self> {
        let prepare = |folder: &Path, port: u16| {
            let mut config = std::fs::read_to_string(shipped.join("prometheus.yml"))?;
            let own = [("localhost:9091", format!("127.0.0.1:{port}"))];
            for (host, address) in addresses.iter().chain(&own) {
                ensure!(config.contains(host), "prometheus.yml does not name {host}");
                config = config.replace(host, address);
            }
            std::fs::write(folder.join("prometheus.yml"), config.replace("15s", "1s"))?;
            std::fs::create_dir(folder.join("rules"))?;
            for file in std::fs::read_dir(shipped.join("rules"))? {
                let file = file?;
                let rules = hurried(&std::fs::read_to_string(file.path())?);
                std::fs::write(folder.join("rules").join(file.file_name()), rules)?;
            }
            Ok(vec![
                "--config.file=prometheus.yml".to_owned(),
                "--storage.tsdb.path=data".to_owned(),
                format!("--web.listen-address=127.0.0.1:{port}"),
                "--log.level=warn".to_owned(),
            ])
        };
        Ok(Self(Daemon::spawn("prometheus", "-/ready", prepare).await?))
    }

    /// The samples that `expression` evaluates to now, each an object with `metric` and `value`.
    ///
    /// # Errors
    /// If Prometheus rejects the expression.
    pub async fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let encoded: String = byte_serialize(expression.as_bytes()).collect();
        let data = self.api(&format!("query?query={encoded}")).await?;
        data["result"].as_array().cloned().with_context(|| format!("{expression}: no samples"))
    }

    /// All rules, each an object with `name`, `query` and, for an alert, `state` and `annotations`.
    ///
    /// # Errors
    /// If Prometheus does not answer.
    pub async fn rules(&self) -> Result<Vec<Value>> {
        let data = self.api("rules").await?;
        let groups = data["groups"].as_array().context("no groups")?;
        Ok(groups.iter().filter_map(|group| group["rules"].as_array()).flatten().cloned().collect())
    }

    /// The names of the alerts that are firing.
    ///
    /// # Errors
    /// If Prometheus does not answer.
    pub async fn firing(&self) -> Result<BTreeSet<String>> {
        let rules = self.rules().await?;
        let firing = rules.iter().filter(|rule| rule["state"] == "firing");
        Ok(firing.filter_map(|rule| Some(rule["name"].as_str()?.to_owned())).collect())
    }

    /// The names of all series that it has scraped or recorded.
    ///
    /// # Errors
    /// If Prometheus does not answer.
    pub async fn names(&self) -> Result<BTreeSet<String>> {
        Ok(serde_json::from_value(self.api("label/__name__/values").await?)?)
    }

    async fn api(&self, what: &str) -> Result<Value> {
        let (_, body) = self.0.get(&format!("api/v1/{what}")).await?;
        let mut answer: Value = serde_json::from_str(&body)?;
        ensure!(answer["status"] == "success", "{what}: {body}");
        Ok(answer["data"].take())
    }
}

/// `rules` with every duration in minutes (`[5m]`, `for: 2m`) changed to seconds.
fn hurried(rules: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut text = String::new();
    for piece in rules.split_inclusive(|c: char| !is_word(c)) {
        let (word, end) = piece.split_at(piece.trim_end_matches(|c| !is_word(c)).len());
        match word.strip_suffix('m') {
            Some(n) if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => {
                text.extend([n, "s", end]);
            }
            _ => text.push_str(piece),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_durations_are_hurried() {
        assert_eq!(
            hurried("x:increase5m[15m] offset 5m # in 5 minutes, 3m\nfor: 1m"),
            "x:increase5m[15s] offset 5s # in 5 minutes, 3s\nfor: 1s"
        );
    }
}
