//! The notifications of the shipped Alertmanager: the real one, with a sink instead of Slack and
//! PagerDuty.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use ethhook_testkit::daemon::Daemon;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::rig::until;

/// Accepts every POST and keeps its path and JSON.
struct Sink {
    address: String,
    taken: Arc<Mutex<Vec<(String, Value)>>>,
    _task: JoinSet<()>,
}

impl Sink {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let taken = Arc::<Mutex<Vec<_>>>::default();
        let (mut task, into) = (JoinSet::new(), Arc::clone(&taken));
        task.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let post = take(stream).await;
                into.lock().unwrap().push(post);
            }
        });
        Self { address, taken, _task: task }
    }

    /// The messages received at `path`.
    fn said(&self, path: &str) -> Vec<Value> {
        let taken = self.taken.lock().unwrap();
        taken.iter().filter(|(at, _)| at == path).map(|(_, body)| body.clone()).collect()
    }
}

async fn take(stream: TcpStream) -> (String, Value) {
    let mut stream = BufReader::new(stream);
    let (mut path, mut length, mut line) = (String::new(), 0, String::new());
    while stream.read_line(&mut line).await.unwrap() > 2 {
        let lower = line.to_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        } else if let Some(rest) = line.strip_prefix("POST ") {
            path = rest.split(' ').next().unwrap().to_owned();
        }
        line.clear();
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    let answer: &[u8] =
        b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    stream.write_all(answer).await.unwrap();
    (path, serde_json::from_slice(&body).unwrap())
}

/// The shipped files, with secrets that lead to the sink, and shorter waits.
fn prepare(folder: &Path, port: u16, sink: &str) -> anyhow::Result<Vec<String>> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docker/alertmanager");
    std::fs::create_dir(folder.join("templates"))?;
    let template = "templates/ethhook.tmpl";
    std::fs::copy(shipped.join(template), folder.join(template))?;
    std::fs::write(folder.join("slack_url"), format!("http://{sink}/slack\n"))?;
    std::fs::write(folder.join("pagerduty_key"), "the-key\n")?;
    let config = std::fs::read_to_string(shipped.join("alertmanager.yml"))?
        .replace("/etc/alertmanager/secrets", &folder.display().to_string())
        .replace("group_wait: 30s", "group_wait: 1s");
    let config = format!("{config}\nglobal:\n  pagerduty_url: http://{sink}/pagerduty\n");
    std::fs::write(folder.join("alertmanager.yml"), config)?;
    Ok(vec![
        "--config.file=alertmanager.yml".to_owned(),
        "--storage.path=data".to_owned(),
        "--cluster.listen-address=".to_owned(),
        format!("--web.listen-address=127.0.0.1:{port}"),
    ])
}

#[tokio::test]
async fn a_page_reaches_pagerduty_and_slack_and_a_warning_slack_alone() {
    let sink = Sink::start().await;
    let alertmanager = Daemon::spawn("prometheus-alertmanager", "-/ready", |folder, port| {
        prepare(folder, port, &sink.address)
    })
    .await
    .unwrap();
    let url = format!("http://{}", alertmanager.address());
    let alert = |labels: &[&str]| {
        let annotations =
            ["summary=S.", "description=D.", "runbook=R.md"].map(|a| format!("--annotation={a}"));
        let add = ["alert", "add", "--alertmanager.url", &url];
        let status = Command::new("amtool").args(add).args(labels).args(annotations).status();
        assert!(status.expect("amtool: scripts/test.sh brings it").success());
    };
    alert(&["alertname=HeadLag", "chain=base", "severity=warn"]);
    until("the warning", async || !sink.said("/slack").is_empty()).await;
    alert(&["alertname=ChainStalled", "chain=base", "severity=page"]);
    // A consequence of the page, so nobody is notified of it.
    alert(&["alertname=WebSocketDown", "chain=base", "severity=warn"]);
    until("the page", async || {
        sink.said("/slack").len() > 1 && !sink.said("/pagerduty").is_empty()
    })
    .await;
    alert(&["alertname=WebSocketDown", "chain=optimism", "severity=warn"]);
    until("the last warning", async || sink.said("/slack").len() > 2).await;

    let slack: Vec<_> =
        sink.said("/slack").iter().map(|said| said["attachments"][0].clone()).collect();
    let titles: Vec<_> = slack.iter().map(|said| said["title"].as_str().unwrap()).collect();
    assert_eq!(
        titles,
        [
            "warning: HeadLag (base)",
            "PAGE: ChainStalled (base)",
            "warning: WebSocketDown (optimism)"
        ]
    );
    let text = slack[1]["text"].as_str().unwrap();
    assert!(text.contains("S. D. Since") && text.contains("What to do: R.md"), "{text}");
    let pages = sink.said("/pagerduty");
    assert_eq!(pages.len(), 1, "{pages:?}");
    assert_eq!(pages[0]["routing_key"], "the-key");
    assert_eq!(pages[0]["payload"]["summary"], "PAGE: ChainStalled (base)");
}
