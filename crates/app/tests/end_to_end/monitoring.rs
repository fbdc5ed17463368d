//! The monitoring shipped in `docker/`: the rules and the dashboard, with a real Prometheus that
//! scrapes a real ingestor.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ethhook_simulator::{Contents, Fault, ManualChain, RunningNode};
use ethhook_testkit::daemon::Daemon;
use ethhook_testkit::prometheus_server::PrometheusServer;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::operator::manual;
use crate::rig::Rig;

/// Time limit for an alert, or a sample, to appear or disappear.
const PATIENCE: Duration = Duration::from_secs(120);

/// The alerts for a node or an ingestor that is down. Others may fire on a slow or full machine,
/// for instance because of lag.
const OF_A_STOP: [&str; 5] =
    ["EthhookDown", "ChainStalled", "WebSocketDown", "RpcErrors", "BreakerOpen"];

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn json(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(shipped(path)).unwrap()).unwrap()
}

/// A chain that keeps growing, and the monitoring of its ingestor.
struct Watched {
    chain: ManualChain,
    node: RunningNode,
    rig: Rig,
    prometheus: PrometheusServer,
    _exporters: [Daemon; 2],
}

impl Watched {
    async fn start() -> Self {
        let (chain, node, mut rig) = manual().await;
        // A fixed port, so that Prometheus finds the ingestor after a restart.
        rig.set("METRICS_PORT", ethhook_testkit::redis_server::free_port().unwrap());
        rig.start();
        chain.mine(3);
        let published = "ethhook_published_block{chain=\"local\"} 3\n";
        rig.wait_for("metrics", |_, body| body.contains(published)).await;
        let mut redis = rig.redis.connection().await.unwrap();
        let group = ["CREATE", "events:31337", "readers", "0"];
        redis::cmd("XGROUP").arg(&group).exec_async(&mut redis).await.unwrap();
        let listen = |port| format!("--web.listen-address=127.0.0.1:{port}");
        let redis_url = rig.redis.url();
        let redis_exporter = Daemon::spawn("prometheus-redis-exporter", "metrics", |_, port| {
            Ok(vec![listen(port), format!("--redis.addr={redis_url}")])
        });
        let node_exporter =
            Daemon::spawn("prometheus-node-exporter", "metrics", |_, port| Ok(vec![listen(port)]));
        let exporters = [redis_exporter.await.unwrap(), node_exporter.await.unwrap()];
        let addresses = [
            ("ethhook:9090", rig.address("metrics").unwrap()),
            ("redis-exporter:9121", exporters[0].address()),
            ("node-exporter:9100", exporters[1].address()),
        ];
        let prometheus =
            PrometheusServer::spawn(&shipped("docker/prometheus"), &addresses).await.unwrap();
        Self { chain, node, rig, prometheus, _exporters: exporters }
    }

    /// Lets the chain grow until `holds` succeeds.
    async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> Result<(), String>) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(last) = holds().await {
            assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}: {last}");
            self.chain.mine(1);
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn until_firing(&self, expected: &[&str]) {
        self.until(&format!("{expected:?} to fire"), async || {
            let firing = self.prometheus.firing().await.unwrap();
            let all = expected.iter().all(|alert| firing.contains(*alert));
            if all { Ok(()) } else { Err(format!("{firing:?} fire")) }
        })
        .await;
    }

    async fn until_silent(&self) {
        self.until("alerts to fall silent", async || {
            let mut firing = self.prometheus.firing().await.unwrap();
            firing.retain(|alert| OF_A_STOP.contains(&alert.as_str()));
            if firing.is_empty() { Ok(()) } else { Err(format!("{firing:?} fire")) }
        })
        .await;
    }
}

/// The names of series in a PromQL expression: its words without labels, functions and keywords.
fn series(expression: &str) -> BTreeSet<String> {
    const OPERATORS: [&str; 5] = ["and", "or", "unless", "offset", "bool"];
    const WITH_LABELS: [&str; 6] = ["on", "by", "without", "ignoring", "group_left", "group_right"];
    let mut names = BTreeSet::new();
    let mut rest = expression;
    while let Some(c) = rest.chars().next() {
        let end_of = |closing| rest.find(closing).map_or(rest.len(), |end: usize| end + 1);
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(length);
        rest = match c {
            '{' => &rest[end_of('}')..],
            '[' => &rest[end_of(']')..],
            '"' => rest[1..].split_once('"').map_or("", |(_, behind)| behind),
            _ if !is_word(c) => &rest[c.len_utf8()..],
            _ if OPERATORS.contains(&word) => behind,
            _ if WITH_LABELS.contains(&word) => {
                behind.split_once(')').map_or("", |(_, behind)| behind)
            }
            _ => {
                let behind = behind.trim_start();
                let called = ["(", "by", "without"].iter().any(|next| behind.starts_with(next));
                if !c.is_ascii_digit() && !called {
                    names.insert(word.to_owned());
                }
                behind
            }
        };
    }
    names
}

/// The queries of the dashboard: those of its panels, and all others.
fn dashboard() -> (Vec<(String, String)>, Vec<String>) {
    let dashboard = json("docker/grafana/dashboards/ethhook.json");
    let everything = |query: &Value| query.as_str().unwrap().replace("$chain", ".*");
    let panels = dashboard["panels"].as_array().unwrap();
    let queries = panels.iter().flat_map(|panel| {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array().into_iter().flatten();
        targets.map(move |target| (title.to_owned(), everything(&target["expr"])))
    });
    let annotations = dashboard["annotations"]["list"].as_array().unwrap();
    (queries.collect(), annotations.iter().map(|a| everything(&a["expr"])).collect())
}

#[test]
fn series_are_told_from_labels_and_functions() {
    let expression = r#"sum by (chain, le) (rate(a_bucket{b="c"}[5m])) / on (d) group_left () e:f > 0.5 or x unless y offset 5m"#;
    assert_eq!(series(expression).into_iter().collect::<Vec<_>>(), ["a_bucket", "e:f", "x", "y"]);
}

#[tokio::test]
async fn rules_and_dashboard_name_only_what_is_there_and_every_panel_has_data() {
    let watched = Watched::start().await;
    let (panels, annotations) = dashboard();
    assert!(panels.len() > 30, "{} queries", panels.len());
    // A counter with an `outcome` label exists only after that outcome.
    watched.chain.faults().push("eth_getBlockReceipts", Fault::Html, 1);
    let mut open: Vec<_> = panels.iter().collect();
    watched
        .until("every panel to have data", async || {
            // Some panels are empty until Prometheus has seen a reorg.
            watched.chain.reorg(1, 2, Contents::Fresh);
            let mut empty = Vec::new();
            for panel in std::mem::take(&mut open) {
                if watched.prometheus.query(&panel.1).await.unwrap().is_empty() {
                    empty.push(panel);
                }
            }
            open = empty;
            if open.is_empty() { Ok(()) } else { Err(format!("no data: {open:#?}")) }
        })
        .await;
    let rules = watched.prometheus.rules().await.unwrap();
    let rules = rules.iter().map(|rule| rule["query"].as_str().unwrap().to_owned());
    let expressions: Vec<_> =
        rules.chain(panels.into_iter().map(|panel| panel.1)).chain(annotations).collect();
    let named: BTreeSet<_> = expressions.iter().flat_map(|e| series(e)).collect();
    assert!(named.len() > 30, "{named:?}");
    watched
        .until("every series that is named to be there", async || {
            let mut known = watched.prometheus.names().await.unwrap();
            known.insert("ALERTS".to_owned()); // exists once an alert has fired
            let unknown: Vec<_> = named.difference(&known).collect();
            if unknown.is_empty() { Ok(()) } else { Err(format!("in no scrape: {unknown:?}")) }
        })
        .await;
    for expression in expressions {
        watched.prometheus.query(&expression).await.unwrap();
    }
}

/// A counter that appears with its first event has not increased for an alert, and an endpoint
/// without a WebSocket must not count as one whose WebSocket is down.
#[tokio::test]
async fn a_scrape_is_as_promtool_and_the_alerts_want_it() {
    let (chain, node, mut rig) = manual().await;
    let http = node.http_url(31337);
    rig.set("LOCAL_HTTP_URL", format!("{http},{http}?the-same"));
    rig.start();
    chain.mine(3);
    rig.wait_for("ready", |status, _| status == 200).await;
    let (_, scrape) = rig.get("metrics").await.unwrap();
    for expected in [
        r#"ethhook_websocket_up{chain="local",endpoint="0"} 1"#,
        r#"ethhook_breaker_state{chain="local",endpoint="1"} 0"#,
        r#"ethhook_checks_failed_total{chain="local",check="receipts_root",endpoint="1"} 0"#,
        r#"ethhook_redis_errors_total{chain="local",kind="out_of_memory"} 0"#,
    ] {
        assert!(scrape.lines().any(|line| line == expected), "no {expected} in\n{scrape}");
    }
    assert!(!scrape.contains(r#"ethhook_websocket_up{chain="local",endpoint="1"}"#));
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().expect("promtool: scripts/test.sh brings it");
    promtool.stdin.take().unwrap().write_all(scrape.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// With each minute in the rules shortened to a second.
#[tokio::test]
async fn alerts_fire_when_the_node_is_stopped_and_fall_silent_when_it_returns() {
    let mut watched = Watched::start().await;
    watched.until_silent().await;
    watched.node.pause();
    watched.node.kill_connections();
    watched.until_firing(&["ChainStalled", "WebSocketDown"]).await;
    for rule in watched.prometheus.rules().await.unwrap() {
        for alert in rule["alerts"].as_array().into_iter().flatten() {
            let annotations = alert["annotations"].to_string();
            assert!(
                !annotations.contains("<no value>") && !annotations.contains("<error"),
                "{annotations}"
            );
            let runbook = alert["annotations"]["runbook"].as_str().unwrap();
            assert!(shipped(runbook).exists(), "{runbook}");
        }
    }
    watched.node.resume();
    watched.until_silent().await;
    watched.rig.kill().await;
    watched.until_firing(&["EthhookDown"]).await;
    watched.rig.start();
    watched.until_silent().await;
}
