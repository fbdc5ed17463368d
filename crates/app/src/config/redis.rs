//! Where Redis is.

use ethhook_domain::Secret;
use url::{Host, Url};

use super::read::{Reader, check_url};

/// How to reach Redis.
#[derive(Debug, Clone)]
pub(crate) struct RedisSettings {
    /// `redis://` or `rediss://`, password included.
    pub(crate) url: Secret,
    /// Connections that all chains share.
    pub(crate) pool_size: usize,
}

/// None if something is wrong with it, which `reader` then knows.
pub(crate) fn read(reader: &mut Reader<'_>) -> Option<RedisSettings> {
    let before = reader.problems.len();
    let pool_size = reader.global("REDIS_POOL_SIZE");
    let pool_size = reader.number(&pool_size, 1..=1024);
    let by_url = reader.settings.global("REDIS_URL").given().is_some()
        || reader.settings.file_of(None, by_name("REDIS_URL")?).is_some();
    let url = if by_url { from_url(reader) } else { from_parts(reader) };
    (reader.problems.len() == before).then_some(())?;
    Some(RedisSettings { url: url?, pool_size: pool_size? })
}

fn by_name(name: &str) -> Option<&'static super::keys::Key> {
    super::keys::GLOBAL.iter().find(|key| key.name == name)
}

fn from_url(reader: &mut Reader<'_>) -> Option<Secret> {
    let mut parts = Vec::new();
    for name in ["REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD"] {
        let setting = reader.settings.global(name);
        if setting.origin != super::Origin::Default {
            parts.push(setting.key);
        }
        let file = by_name(name).and_then(|key| reader.settings.file_of(None, key));
        parts.extend(file.map(|file| file.key));
    }
    let url = reader.secret(None, "REDIS_URL")?;
    if !parts.is_empty() {
        let text = format!("{} is set as well; keep one of the two forms", parts.join(", "));
        reader.problems.push(url.problem(text));
    }
    let checked = check_url(&url.text, &["redis", "rediss"]).and_then(|checked| {
        let db = checked.path().trim_matches('/');
        let known = db.is_empty() || db.parse::<u16>().is_ok();
        known.then_some(()).ok_or_else(|| "must end in the number of a database, if any".to_owned())
    });
    match checked {
        Ok(()) => Some(Secret::new(url.text)),
        Err(why) => {
            reader.problems.push(url.problem(format!("the URL {why}")));
            None
        }
    }
}

fn from_parts(reader: &mut Reader<'_>) -> Option<Secret> {
    let host = reader.global("REDIS_HOST");
    let host = reader.parse(&host, "a host name or an IP address, without port", read_host);
    let port = reader.global("REDIS_PORT");
    let port = reader.number(&port, 1..=u16::MAX);
    let password = reader.secret(None, "REDIS_PASSWORD");
    let mut url = Url::parse(&format!("redis://{}:{}", host?, port?)).ok()?;
    if let Some(password) = password {
        url.set_password(Some(&password.text)).ok()?;
    }
    Some(Secret::new(url))
}

/// The host as it stands in a URL: an IPv6 address in brackets.
fn read_host(text: &str) -> Option<Host> {
    Host::parse(text).or_else(|_| Host::parse(&format!("[{text}]"))).ok()
}
