//! Where Redis is according to its URL: one server, a master under Sentinel, or a Cluster.

use std::fmt;

use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, RedisError,
    TlsCertificates,
};
use url::Url;

/// The port of a Sentinel whose address has none.
const SENTINEL_PORT: u16 = 26_379;

/// The accepted forms of a URL, for messages.
const FORMS: &str = "redis://, redis-sentinel:// or redis-cluster://, or for TLS rediss://, \
                     rediss-sentinel:// or rediss-cluster://";

/// Host and port of one server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// How the servers of a [`Location`] are related.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Form {
    /// One server, which is the master.
    Standalone,
    /// The nodes are Sentinels, which know the master by this name.
    Sentinel(String),
    /// The nodes are some of those of a Cluster.
    Cluster,
}

/// Where Redis is, and the credentials for it.
#[derive(Clone)]
pub(crate) struct Location {
    pub(crate) form: Form,
    /// The servers in the URL, at least one.
    pub(crate) nodes: Vec<Address>,
    /// Connection settings without the address: TLS, credentials, database.
    server: ConnectionInfo,
    /// Credentials for the Sentinels.
    sentinel: RedisConnectionInfo,
}

impl Location {
    /// Parses a URL:
    ///
    /// ```text
    /// redis[s]://[user:password@]host[:port][/database]
    /// redis[s]-sentinel://[user:password@]host[:port],…/master[/database][?sentinel_user=…&sentinel_password=…]
    /// redis[s]-cluster://[user:password@]host[:port],…
    /// ```
    ///
    /// # Errors
    /// What is wrong with it, as the rest of a sentence after "the URL"; never its content.
    pub(crate) fn read(url: &str) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let scheme = scheme.to_ascii_lowercase();
        let (plain, form) = scheme.split_once('-').unwrap_or((&scheme, ""));
        if !matches!(plain, "redis" | "rediss") || !matches!(form, "" | "sentinel" | "cluster") {
            return Err(format!("must start with {FORMS}"));
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (format!("{user}@"), hosts),
            None => (String::new(), authority),
        };
        // Everything after the hosts is parsed once, together with the first host; what the path
        // means depends on the form.
        let first = hosts.split(',').next().unwrap_or_default();
        let whole = parse(&format!("{plain}://{user}{first}{path}"))?;
        if whole.fragment().is_some() {
            return Err("must have nothing after a #".to_owned());
        }
        let (form, database) = read_path(form, &whole)?;
        let sentinel = read_query(&form, &whole)?;
        let hosts: Vec<_> = hosts.split(',').collect();
        if form == Form::Standalone && hosts.len() > 1 {
            return Err(
                "has several hosts: that needs redis-sentinel:// or redis-cluster://".into()
            );
        }
        let default_port = if matches!(form, Form::Sentinel(_)) { SENTINEL_PORT } else { 6379 };
        let mut nodes = Vec::new();
        for (i, host) in hosts.iter().enumerate() {
            let which = |why| {
                if hosts.len() == 1 { why } else { format!("is wrong in host {}: it {why}", i + 1) }
            };
            let url = parse(&format!("{plain}://{host}")).map_err(which)?;
            nodes.push(address(&url, default_port).map_err(which)?);
        }
        let server = connection_info(&format!("{plain}://{user}{first}"))?;
        let settings = server.redis_settings().clone().set_db(database);
        Ok(Self { form, nodes, server: server.set_redis_settings(settings), sentinel })
    }

    /// Whether TLS is used.
    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self.server.addr(), ConnectionAddr::TcpTls { .. })
    }

    /// Trusts only the authorities in `pem` from now on.
    ///
    /// # Errors
    /// If that is not PEM, or TLS is not used.
    pub(crate) fn trust(&mut self, pem: Vec<u8>) -> Result<(), RedisError> {
        let certificates = TlsCertificates { client_tls: None, root_cert: Some(pem) };
        let client = Client::build_with_tls(self.server.clone(), certificates)?;
        self.server = client.get_connection_info().clone();
        Ok(())
    }

    /// Connection settings for a server that holds data.
    pub(crate) fn server(&self, address: &Address) -> ConnectionInfo {
        let Address { host, port } = address.clone();
        let address = match self.server.addr().clone() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure, tls_params }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        self.server.clone().set_addr(address)
    }

    /// Connection settings for a Sentinel.
    pub(crate) fn sentinel(&self, address: &Address) -> ConnectionInfo {
        self.server(address).set_redis_settings(self.sentinel.clone())
    }
}

impl fmt::Display for Location {
    /// Hosts and ports and their form, without user or password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<_> = self.nodes.iter().map(Address::to_string).collect();
        let nodes = nodes.join(", ");
        match &self.form {
            Form::Standalone => write!(f, "{nodes}"),
            Form::Sentinel(name) => write!(f, "`{name}` of the Sentinels {nodes}"),
            Form::Cluster => write!(f, "the Cluster of {nodes}"),
        }
    }
}

fn parse(text: &str) -> Result<Url, String> {
    match Url::parse(text) {
        Ok(url) if url.host_str().is_some_and(|host| !host.is_empty()) => Ok(url),
        Ok(_) => Err("has no host".to_owned()),
        // The parser's messages contain only the kind of error, never the text.
        Err(error) => Err(format!("is not a URL: {error}")),
    }
}

/// The database from the path, and for a Sentinel URL also the master's name.
fn read_path(form: &str, url: &Url) -> Result<(Form, i64), String> {
    let mut parts = url.path().split('/').filter(|part| !part.is_empty());
    let form = match form {
        "sentinel" => {
            let name = parts.next().ok_or(
                "must name the master after the hosts: redis-sentinel://host:port,host:port/NAME",
            )?;
            Form::Sentinel(name.to_owned())
        }
        "cluster" => Form::Cluster,
        _ => Form::Standalone,
    };
    let database = match (parts.next(), parts.next()) {
        (None, _) => 0,
        (Some(number), None) => number.parse::<u16>().unwrap_or(u16::MAX),
        _ => u16::MAX,
    };
    match (&form, database) {
        (_, u16::MAX) => Err("must end in the number of a database, 0 to 65534, if any".to_owned()),
        (Form::Cluster, 1..) => Err("must not name a database: a Cluster has only 0".to_owned()),
        _ => Ok((form, database.into())),
    }
}

/// The credentials for the Sentinels: none, unless the query has some.
fn read_query(form: &Form, url: &Url) -> Result<RedisConnectionInfo, String> {
    let mut info = RedisConnectionInfo::default();
    // A `+` is taken literally, as in the password before the `@`.
    let query = url.query().unwrap_or_default().replace('+', "%2B");
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        info = match (form, name.as_ref()) {
            (Form::Sentinel(_), "sentinel_user") => info.set_username(value),
            (Form::Sentinel(_), "sentinel_password") => info.set_password(value),
            (Form::Sentinel(_), _) => {
                return Err(
                    "must have only sentinel_user and sentinel_password after the ?".to_owned()
                );
            }
            _ => return Err("must have nothing after a ?".to_owned()),
        };
    }
    Ok(info)
}

fn address(url: &Url, default_port: u16) -> Result<Address, String> {
    let port = url.port().unwrap_or(default_port);
    match connection_info(url.as_str())?.addr() {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => {
            Ok(Address { host: host.clone(), port })
        }
        _ => Err("has no host".to_owned()),
    }
}

/// As parsed by the library: decoded, and IPv6 addresses without brackets.
fn connection_info(url: &str) -> Result<ConnectionInfo, String> {
    url.into_connection_info().map_err(|_| "is not valid".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(url: &str) -> String {
        match Location::read(url) {
            Ok(location) => {
                let (node, settings) = (&location.nodes[0], location.server.redis_settings());
                let way = location.server(node);
                let user = settings.username().unwrap_or("-");
                let password = settings.password().unwrap_or("-");
                let encrypted = if location.is_encrypted() { " tls" } else { "" };
                format!(
                    "{location}{encrypted} {user} {password} {} at {}",
                    settings.db(),
                    way.addr()
                )
            }
            Err(why) => why,
        }
    }

    #[test]
    fn every_form_is_read() {
        for (url, read) in [
            ("redis://h", "h:6379 - - 0 at h:6379"),
            ("rediss://u:p%40%2F@h:1/2", "h:1 tls u p@/ 2 at h:1"),
            ("REDIS://:p@[::1]:7/", "[::1]:7 - p 0 at ::1:7"),
            (
                "redis-sentinel://a,b:2,[::1]:3/main",
                "`main` of the Sentinels a:26379, b:2, [::1]:3 - - 0 at a:26379",
            ),
            ("rediss-sentinel://u:p@a:1/m/3", "`m` of the Sentinels a:1 tls u p 3 at a:1"),
            ("redis-cluster://:p@a:1,b", "the Cluster of a:1, b:6379 - p 0 at a:1"),
            ("rediss-cluster://a/", "the Cluster of a:6379 tls - - 0 at a:6379"),
        ] {
            assert_eq!(shown(url), read, "{url}");
        }
    }

    #[test]
    fn sentinels_have_a_password_of_their_own() {
        let url = "redis-sentinel://u:p@a/m?sentinel_user=w&sentinel_password=%23+s";
        let location = Location::read(url).unwrap();
        let way = location.sentinel(&location.nodes[0]);
        let settings = way.redis_settings();
        assert_eq!((settings.username(), settings.password()), (Some("w"), Some("#+s")));
        let location = Location::read("redis-sentinel://u:p@a/m/2").unwrap();
        let way = location.sentinel(&location.nodes[0]);
        assert_eq!((way.redis_settings().password(), way.redis_settings().db()), (None, 0));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_value() {
        for (url, why) in [
            (
                "c4n4ry",
                "must start with redis://, redis-sentinel:// or redis-cluster://, or for TLS",
            ),
            ("redis-x://c4n4ry", "must start with redis://"),
            ("redis://:c4n4ry@", "is not a URL: empty host"),
            ("redis://:c4n4ry@h:99999", "is not a URL: invalid port number"),
            ("redis://h/c4n4ry", "must end in the number of a database, 0 to 65534, if any"),
            ("redis://h/99999", "must end in the number of a database, 0 to 65534"),
            ("redis://h?c4n4ry", "must have nothing after a ?"),
            ("redis://h#c4n4ry", "must have nothing after a #"),
            ("redis://:c4n4ry@a,b", "has several hosts: that needs redis-sentinel://"),
            ("redis-sentinel://:c4n4ry@a:1,b:2", "must name the master after the hosts"),
            ("redis-sentinel://a/m/c4n4ry", "must end in the number of a database"),
            ("redis-sentinel://a/m?c4n4ry=1", "must have only sentinel_user and sentinel_password"),
            (
                "redis-cluster://:c4n4ry@a:1,b:99999",
                "is wrong in host 2: it is not a URL: invalid port number",
            ),
            ("redis-cluster://:c4n4ry@a,,b", "is wrong in host 2: it has no host"),
            ("redis-cluster://:c4n4ry@a/1", "must not name a database"),
        ] {
            let said = shown(url);
            assert!(said.starts_with(why) && !said.contains("c4n4ry"), "{url}: {said}");
        }
    }
}
