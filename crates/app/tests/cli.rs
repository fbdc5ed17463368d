//! The binary as seen by a user, without Redis or a node: help, configuration, exit codes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

/// Part of every secret; must not appear in anything that is printed.
const CANARY: &str = "c4n4ry";

/// Runs the binary in an empty folder with nothing but `env` in its environment.
fn ethhook(folder: &Path, env: &[(&str, &str)], args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ethhook"))
        .args(args)
        .current_dir(folder)
        .env_clear()
        .envs(env.iter().copied())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn help_shows_commands_examples_and_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let output = ethhook(folder.path(), &[], &["--help"]);
    assert!(output.status.success());
    let text = stdout(&output);
    for part in ["ingest", "simulate", "check-config", "reset", "Examples:", "78"] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    for command in [
        "ingest",
        "simulate",
        "check-config",
        "healthcheck",
        "status",
        "tail",
        "groups list",
        "groups create",
        "groups prune",
        "groups delete",
        "verify",
        "replay",
        "rewind",
        "skip",
        "clear-alarm",
        "reset",
        "completions",
    ] {
        let arguments: Vec<_> = command.split(' ').chain(["--help"]).collect();
        let text = stdout(&ethhook(folder.path(), &[], &arguments));
        assert!(text.contains(&format!("Examples:\n  ethhook {command}")), "{command}:\n{text}");
    }
    assert_eq!(ethhook(folder.path(), &[], &["nonsense"]).status.code(), Some(2));
}

#[test]
fn check_config_prints_what_holds_and_where_it_came_from() {
    let folder = tempfile::tempdir().unwrap();
    let secret_file = folder.path().join("redis-password");
    std::fs::write(&secret_file, CANARY).unwrap();
    std::fs::write(
        folder.path().join(".env"),
        format!("METRICS_PORT=1111\nHEALTH_PORT=2222\nBASE_WS_URL=wss://node/{CANARY}\n"),
    )
    .unwrap();
    std::fs::write(
        folder.path().join("ethhook.toml"),
        format!("health_port = 3333\nlog_format = 'json'\n[chains.gnosis]\nchain_id = 100\nhttp_url = 'https://u:{CANARY}@node'\n"),
    )
    .unwrap();
    let env = [("METRICS_PORT", "4444"), ("REDIS_PASSWORD_FILE", secret_file.to_str().unwrap())];
    let output = ethhook(folder.path(), &env, &["check-config"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    let squeezed: Vec<String> =
        text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in [
        "METRICS_PORT=4444 # env",
        "HEALTH_PORT=2222 # .env",
        "LOG_FORMAT=json # ethhook.toml",
        "RETENTION_HOURS=24 # default",
        "BASE_WS_URL=<redacted> # .env",
        "GNOSIS_HTTP_URL=<redacted> # ethhook.toml",
        "# base: chain id 8453, stream events:8453, a block every 2s, final 450 blocks below the head",
        "# gnosis: chain id 100, stream events:100, a block every 2s, final 128 blocks below the head",
    ] {
        assert!(squeezed.iter().any(|l| l == line), "{line} is missing in:\n{text}");
    }
    assert!(!text.contains(CANARY) && !stderr(&output).contains(CANARY));
}

#[test]
fn every_error_is_told_at_once_and_ends_with_78() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ethhook.toml"), "[chains.base]\nws_ulr = 'wss://c4n4ry'\n")
        .unwrap();
    let env = [
        ("ETHERUM_WS_URL", "wss://node/c4n4ry"),
        ("ETHEREUM_HTTP_URL", "node/c4n4ry"),
        ("REDIS_URL", "http://:c4n4ry@host"),
        ("METRICS_PORT", "80800"),
        ("ETHEREUM_CONTRACTS", "0x1"),
    ];
    for command in ["check-config", "ingest"] {
        let output = ethhook(folder.path(), &env, &[command]);
        assert_eq!(output.status.code(), Some(78), "{command}");
        assert!(output.stdout.is_empty());
        let text = stderr(&output);
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                "ethhook: chains.base.ws_ulr (from ethhook.toml): is not a key; did you mean ws_url?",
                "ethhook: ETHERUM_WS_URL (from env): is not a key; did you mean ETHEREUM_WS_URL?",
                "ethhook: REDIS_URL (from env): the URL must start with redis://, redis-sentinel:// or redis-cluster://, or for TLS rediss://, rediss-sentinel:// or rediss-cluster://",
                "ethhook: METRICS_PORT=80800 (from env): must be a whole number from 0 to 65535",
                "ethhook: ETHEREUM_HTTP_URL (from env): the URL must start with http:// or https://",
                "ethhook: ETHEREUM_CONTRACTS=0x1 (from env): item 1 `0x1` must be 0x and 40 hex digits",
            ],
            "{command}"
        );
        assert!(!text.contains(CANARY));
    }
}

#[test]
fn every_command_that_reads_it_ends_with_78_where_the_configuration_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let env = [
        ("REDIS_URL", "http://host"),
        ("HEALTH_PORT", "80800"),
        ("LOCAL_WS_URL", "ws://127.0.0.1:1"),
    ];
    for command in [
        "healthcheck",
        "status",
        "tail",
        "groups list",
        "verify --chain local",
        "replay --chain local --from 1 --to 2 --into other",
        "rewind --chain local --to 1 --yes",
        "skip --chain local --to 1 --yes",
        "clear-alarm --chain local --yes",
        "reset --chain local --yes",
    ] {
        let arguments: Vec<_> = command.split(' ').collect();
        let output = ethhook(folder.path(), &env, &arguments);
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(78), "{command}: {told}");
        assert!(told.contains("REDIS_URL") || told.contains("HEALTH_PORT"), "{command}: {told}");
    }
}

#[test]
fn a_named_file_must_be_there() {
    let folder = tempfile::tempdir().unwrap();
    let output = ethhook(
        folder.path(),
        &[],
        &["check-config", "--config", "no.toml", "--env-file", "no.env"],
    );
    assert_eq!(output.status.code(), Some(78));
    let text = stderr(&output);
    assert!(
        text.contains("no.toml: cannot be read") && text.contains("no.env: cannot be read"),
        "{text}"
    );
}

#[test]
fn what_is_wrong_in_a_named_file_is_told_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("my.toml"), "log_level = debug").unwrap();
    std::fs::write(path("my.env"), "LOG_LEVEL=info\nLOG FORMAT=json").unwrap();
    let arguments = ["check-config", "--config", &path("my.toml"), "--env-file", &path("my.env")];
    let text = stderr(&ethhook(folder.path(), &[], &arguments));
    assert!(text.contains(&format!("{}: is not valid TOML (line 1", path("my.toml"))), "{text}");
    assert!(text.contains(&format!("{} line 2: must be KEY=value", path("my.env"))), "{text}");
    assert!(!text.contains("no chain is set"), "nobody knows: {text}");

    // A file that can be parsed is named as well, in the message on each wrong key.
    std::fs::write(path("my.toml"), "log_levle = 'debug'").unwrap();
    std::fs::write(path("my.env"), "HEALTH_PORT=x").unwrap();
    let text = stderr(&ethhook(folder.path(), &[], &arguments));
    let [toml, env] = [path("my.toml"), path("my.env")];
    assert!(text.contains(&format!("log_levle (from {toml}): is not a key")), "{text}");
    assert!(text.contains(&format!("HEALTH_PORT=x (from {env}): must be")), "{text}");
}

#[test]
fn the_example_is_the_one_in_the_repository() {
    let folder = tempfile::tempdir().unwrap();
    let output = ethhook(folder.path(), &[], &["check-config", "--example"]);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.env.example");
    assert_eq!(stdout(&output), std::fs::read_to_string(file).unwrap());
    // Unchanged, it sets nothing.
    std::fs::write(folder.path().join(".env"), stdout(&output)).unwrap();
    let output = ethhook(folder.path(), &[], &["check-config"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).starts_with("ethhook: no chain is set"), "{}", stderr(&output));
}

/// As ARCHITECTURE.md says: each guarantee has tests with its number in their names, and the tests
/// that it lists exist.
#[test]
fn every_guarantee_has_tests_that_bear_its_number() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut sources = String::new();
    let mut folders = vec![top.join("crates")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    for guarantee in 1..=11 {
        let tests = sources.matches(&format!("fn g{guarantee}_")).count();
        assert!(tests >= 3, "G{guarantee} has {tests} tests");
    }
    let text = std::fs::read_to_string(top.join("ARCHITECTURE.md")).unwrap();
    let is_test = |word: &&str| word.starts_with('g') && word.contains('_') && !word.contains(' ');
    let named: Vec<_> = text.split('`').filter(is_test).collect();
    assert!(named.len() >= 4, "{named:?}");
    for test in named {
        assert!(sources.contains(&format!("fn {test}()")), "there is no test {test}");
    }
}

#[test]
fn an_unknown_chain_is_told_with_the_known_ones() {
    let folder = tempfile::tempdir().unwrap();
    let output = ethhook(folder.path(), &[], &["reset", "--chain", "etherum", "--yes"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "ethhook: there is no chain etherum; did you mean ethereum?\n");
}

#[test]
fn an_output_that_nobody_reads_is_no_failure() {
    use std::process::Stdio;
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_ethhook"))
        .args(["check-config", "--example"])
        .current_dir(folder.path())
        .env_clear()
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn an_output_that_cannot_be_written_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let outputs = [&["check-config", "--example"][..], &["completions", "bash"], &["check-config"]];
    for args in outputs {
        let output = Command::new(env!("CARGO_BIN_EXE_ethhook"))
            .args(args)
            .current_dir(folder.path())
            .env_clear()
            .env("LOCAL_WS_URL", "ws://127.0.0.1:8545")
            .stdout(std::fs::File::create("/dev/full").unwrap())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let told = "ethhook: standard output cannot be written: No space left on device";
        assert!(stderr(&output).starts_with(told), "{args:?}: {output:?}");
    }
}

#[test]
fn completions_name_every_command_of_the_shell_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    for (shell, begins) in
        [("bash", "_ethhook()"), ("zsh", "#compdef ethhook"), ("fish", "# Print")]
    {
        let output = ethhook(folder.path(), &[], &["completions", shell]);
        let text = stdout(&output);
        assert!(output.status.success() && text.starts_with(begins), "{shell}: {text}");
        for command in ["verify", "replay", "groups", "clear-alarm"] {
            assert!(text.contains(command), "{shell} lacks {command}");
        }
    }
    assert_eq!(ethhook(folder.path(), &[], &["completions", "tcsh"]).status.code(), Some(2));
}

#[test]
fn wrong_orders_are_told_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let env = [("LOCAL_WS_URL", "ws://127.0.0.1:1"), ("REDIS_URL", "redis://127.0.0.1:1")];
    for (arguments, code, part) in [
        ("verify --chain lokal", 1, "there is no configured chain lokal; did you mean local?"),
        ("replay --chain local --from 1 --to 2", 2, "--into <STREAM>"),
        ("replay --chain local --from 1 --to 2 --into events:1", 1, "ethhook rewind"),
        ("tail --contract 0x12", 2, "must be 0x and 40 hex digits"),
        (
            "tail --contract 0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02914",
            2,
            "does not match its checksum (EIP-55)",
        ),
        ("tail --topic 0x12", 2, "must be 0x and 64 hex digits"),
        ("tail --from yesterday", 2, "must be $, 0, a block number"),
        ("tail --group g --from 0", 2, "cannot be used with"),
        ("groups list", 1, "Redis: 127.0.0.1:1: connection refused"),
        ("groups create --chain etherum --group g", 1, "did you mean ethereum?"),
        ("groups prune --chain local", 2, "--group <NAME>"),
        ("groups prune --chain local --group g --idle-minutes x", 2, "up to 1000000"),
        ("groups create --chain local --group= ", 2, "must not be empty"),
        (
            "simulate --recorded none",
            1,
            "ethhook: cannot read none: No such file or directory (os error 2)\n",
        ),
        ("simulate --listen 127.0.0.1:0 --chains 1,10,1", 1, "--chains names 1 twice"),
    ] {
        let arguments: Vec<_> = arguments.split(' ').collect();
        let output = ethhook(folder.path(), &env, &arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{arguments:?}: {}", stderr(&output));
    }
}
