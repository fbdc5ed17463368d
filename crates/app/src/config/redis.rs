//! The address of Redis.

use ethhook_domain::Secret;
use ethhook_streams::{ConnectError, RedisConfig, Streams};
use url::{Host, Url};

use super::layers::Setting;
use super::read::Reader;

/// None if something is wrong, which is recorded in `reader`.
pub(crate) fn read(reader: &mut Reader<'_>) -> Option<RedisConfig> {
    let before = reader.problems.len();
    let pool_size = reader.global("REDIS_POOL_SIZE");
    let pool_size = reader.number(&pool_size, 1..=1024);
    let by_url = reader.settings.is_given(None, "REDIS_URL");
    let url_setting = if by_url { from_url(reader) } else { None };
    let url = match &url_setting {
        Some(setting) => Some(Secret::new(&setting.text)),
        None if by_url => None,
        None => from_parts(reader),
    };
    let authorities_setting = reader.given("REDIS_CA_FILE");
    let authorities =
        authorities_setting.as_ref().and_then(|setting| read_authorities(reader, setting));
    let mut config = RedisConfig { authorities, ..RedisConfig::new(url?) };
    let wrong = match Streams::new(config.clone()) {
        Err(ConnectError::Url(why)) => url_setting.map(|s| s.problem(format!("the URL {why}"))),
        Err(ConnectError::Authorities(why)) => authorities_setting.map(|s| s.problem(why)),
        _ => None,
    };
    reader.problems.extend(wrong);
    config.pool_size = pool_size?;
    (reader.problems.len() == before).then_some(config)
}

fn read_authorities(reader: &mut Reader<'_>, setting: &Setting) -> Option<Vec<u8>> {
    match std::fs::read(&setting.text) {
        Ok(pem) => Some(pem),
        Err(e) => {
            reader.problems.push(setting.problem(format!("this file cannot be read: {e}")));
            None
        }
    }
}

fn from_url(reader: &mut Reader<'_>) -> Option<Setting> {
    let mut parts = Vec::new();
    for name in ["REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD"] {
        let setting = reader.settings.global(name);
        if setting.origin != super::Origin::Default {
            parts.push(setting.key);
        }
        parts.extend(reader.settings.file_of(None, name).map(|file| file.key));
    }
    let url = reader.secret(None, "REDIS_URL")?;
    if !parts.is_empty() {
        let text = format!("{} is set as well; keep one of the two forms", parts.join(", "));
        reader.problems.push(url.problem(text));
    }
    Some(url)
}

fn from_parts(reader: &mut Reader<'_>) -> Option<Secret> {
    let host = reader.global("REDIS_HOST");
    let host = reader.parse(&host, "a host name or an IP address, without port", read_host);
    let port = reader.global("REDIS_PORT");
    let port = reader.number(&port, 1..=u16::MAX);
    let password = reader.secret(None, "REDIS_PASSWORD");
    let mut url = Url::parse(&format!("redis://{}:{}", host?, port?)).ok()?;
    if let Some(password) = password {
        // The password is literal: what looks percent-encoded in it is part of it.
        url.set_password(Some(&password.text.replace('%', "%25"))).ok()?;
    }
    Some(Secret::new(url))
}

/// The host in URL form: an IPv6 address in brackets.
fn read_host(text: &str) -> Option<Host> {
    Host::parse(text).or_else(|_| Host::parse(&format!("[{text}]"))).ok()
}
