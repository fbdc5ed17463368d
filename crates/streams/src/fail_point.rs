//! Named points at which the process can abort itself, to prove that nothing is lost there.
//! Compiled only with the feature `fail-points`, which no release has; see `scripts/chaos.sh`.

/// Aborts the process on the n-th pass of this point, if `ETHHOOK_FAIL_POINT` is
/// `<when>-<what>:<n>`.
#[cfg(feature = "fail-points")]
pub fn fail_point(when: &str, what: &str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static ARMED: LazyLock<Option<(String, AtomicU32)>> = LazyLock::new(|| {
        let armed = std::env::var("ETHHOOK_FAIL_POINT").ok()?;
        let (name, count) = armed.split_once(':')?;
        Some((name.to_owned(), AtomicU32::new(count.parse().ok()?)))
    });
    if let Some((name, left)) = ARMED.as_ref()
        && name.strip_prefix(when).and_then(|rest| rest.strip_prefix('-')) == Some(what)
        && left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        std::process::abort();
    }
}

/// Does nothing.
#[cfg(not(feature = "fail-points"))]
#[inline]
pub fn fail_point(_when: &str, _what: &str) {}
