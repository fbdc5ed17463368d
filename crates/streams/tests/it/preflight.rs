//! Checks of the server before anything starts.

use ethhook_domain::Secret;
use ethhook_streams::{PreflightError, RedisConfig, Streams};
use ethhook_testkit::redis_server::RedisOptions;

use crate::chain::Fixture;

#[tokio::test]
async fn a_right_server_passes_and_is_left_as_it_was() {
    let mut redis =
        Fixture::with(RedisOptions { maxmemory: "64mb".into(), ..RedisOptions::default() }).await;
    let server = redis.streams.preflight().await.unwrap();
    assert!(server.version.starts_with(|c: char| c.is_ascii_alphanumeric()), "{server:?}");
    assert_eq!(server.maxmemory, Some(64 << 20));
    assert_eq!(redis.streams.eviction_policy().await.unwrap(), None);
    assert_eq!(redis.ask::<Vec<String>>("KEYS *").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_server_that_evicts_is_refused() {
    let redis =
        Fixture::with(RedisOptions { maxmemory_policy: "allkeys-lru", ..RedisOptions::default() })
            .await;
    let error = redis.streams.preflight().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "maxmemory-policy is allkeys-lru; noeviction is required: CONFIG SET maxmemory-policy \
         noeviction"
    );
    assert!(!error.is_retryable());
    let policy = redis.streams.eviction_policy().await.unwrap();
    assert_eq!(policy.as_deref(), Some("allkeys-lru"));
}

#[tokio::test]
async fn a_server_that_is_away_may_pass_later_and_a_full_one_at_once() {
    let mut redis =
        Fixture::with(RedisOptions { maxmemory: "1mb".into(), ..RedisOptions::default() }).await;
    redis.streams.preflight().await.unwrap();
    assert_eq!(redis.ask::<Vec<String>>("KEYS *").await, Vec::<String>::new());
    redis.server.kill();
    let away = redis.streams.preflight().await.unwrap_err();
    assert!(away.is_retryable() && away.to_string().contains("connection refused"), "{away}");
    assert!(redis.streams.ping().await.is_err());
    redis.server.start().await.unwrap();
    redis.streams.ping().await.unwrap();
}

#[tokio::test]
async fn a_missing_right_is_named_and_the_password_is_not() {
    let mut redis = Fixture::new().await;
    let commands = ["xtrim", "xinfo", "xadd", "xsetid", "scan", "evalsha", "memory"];
    for denied in commands.into_iter().chain(["multi", "rename", "xdel", "hdel", "exec"]) {
        let streams = redis.as_user(&format!("~* &* +@all -{denied}")).await;
        let error = streams.preflight().await.unwrap_err();
        assert!(matches!(error, PreflightError::Probe { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(denied) && !text.contains('\n'), "{text}");
        assert_eq!(text.matches("SETUP_GUIDE.md, Redis elsewhere").count(), 1, "{text}");
        assert!(!format!("{text} {error:?}").contains("hunter2"));
    }
    // A right on the entries alone does not do: markers are lifted, too.
    for (denied, what) in [
        ("xadd", "XADD B"),
        ("xinfo", "XINFO STREAM B"),
        ("xgroup", "XGROUP CREATE B"),
        ("xsetid", "XSETID B"),
    ] {
        let streams = redis.as_user(&format!("~* &* +@all -{denied} (+{denied} ~events:*)")).await;
        let text = streams.preflight().await.unwrap_err().to_string();
        assert!(text.contains(what), "{text}");
    }
    // Without these two it is not even known whether the server is the right one.
    for denied in ["info", "role"] {
        let streams = redis.as_user(&format!("~* &* +@all -{denied}")).await;
        let error = streams.preflight().await.unwrap_err();
        let text = error.to_string();
        assert!(!error.is_retryable() && text.contains(denied), "{text}");
        assert!(text.ends_with("required rights: SETUP_GUIDE.md, Redis elsewhere"), "{text}");
    }
    let url = format!("redis://poor:wrong-hunter@127.0.0.1:{}/", redis.server.port());
    let streams = Streams::new(RedisConfig::new(Secret::new(url))).unwrap();
    let error = streams.preflight().await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("password"), "{error}");
    assert!(!format!("{error} {error:?}").contains("wrong-hunter"));
    assert_eq!(redis.ask::<Vec<String>>("KEYS *").await, Vec::<String>::new());
}
