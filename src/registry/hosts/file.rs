//! A `hosts.toml` file. Source: containerd's `docs/hosts.md`.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use toml::{Table, Value};

use crate::failure::one_line;
use crate::registry::credentials::go_duration::nanoseconds;

/// A file of the hosts directory cannot be used. A pull fails with it, because it may be what says that a mirror has to be used, or
/// whom to trust.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} cannot be used: {reason}", path.display())]
pub struct BadHosts {
    /// Which file.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

impl BadHosts {
    /// The error for what is wrong with the file at `path`.
    pub fn of(path: &Path, reason: &(impl Display + ?Sized)) -> Self {
        Self { path: path.to_owned(), reason: one_line(&reason.to_string()) }
    }
}

/// What a `hosts.toml` says.
#[derive(Debug)]
pub struct HostsFile {
    /// Mirrors, in the order of the file.
    pub mirrors: Vec<Entry>,
    /// The registry's own server, which is asked last. Without a URL it is where the registry's name leads.
    pub server: Entry,
}

/// What is said of one host.
#[derive(Debug)]
pub struct Entry {
    /// The root of its API, with a slash at its end.
    pub base: Option<Url>,
    /// Manifests by digest, and blobs, are asked for here.
    pub pulls: bool,
    /// Tags are asked for here.
    pub resolves: bool,
    /// Files with certificate authorities.
    pub authorities: Vec<PathBuf>,
    /// Client certificates with their keys, which may be in the same file.
    pub clients: Vec<(PathBuf, Option<PathBuf>)>,
    /// Whoever answers is believed to be this host.
    pub skip_verify: bool,
    /// Sent with each request.
    pub headers: HeaderMap,
    /// Wait for a connection.
    pub dial_timeout: Option<Duration>,
}

/// Hosts of a file.
const HOSTS_LIMIT: usize = 64;

impl HostsFile {
    /// Reads `text`, which is the file at `path`. Keys that are not known are ignored, as containerd ignores them.
    ///
    /// # Errors
    /// [`BadHosts`] when it is no TOML, or a value is none that containerd takes.
    pub fn parse(text: &str, path: &Path) -> Result<Self, BadHosts> {
        // The parser's own text shows the line, in which a header may have a password.
        let table: Table = toml::from_str(text).map_err(|error| {
            let line = error
                .span()
                .map(|span| 1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count());
            BadHosts::of(path, &format!("line {}: it is no TOML", line.unwrap_or_default()))
        })?;
        let bad = |reason: String| BadHosts::of(path, &reason);
        let mut mirrors = Vec::new();
        match table.get("host") {
            None => {}
            Some(Value::Table(hosts)) if hosts.len() <= HOSTS_LIMIT => {
                for (url, entry) in hosts {
                    let Value::Table(entry) = entry else {
                        return Err(bad(format!("[host.{url:?}] is no table")));
                    };
                    mirrors.push(Entry::of(Some(url), entry, path)?);
                }
            }
            Some(_) => return Err(bad(format!("[host] is no table of at most {HOSTS_LIMIT} hosts"))),
        }
        let server = match table.get("server") {
            None => None,
            Some(Value::String(server)) => Some(server.as_str()).filter(|server| !server.is_empty()),
            Some(_) => return Err(bad("server is no text".to_owned())),
        };
        Ok(Self { mirrors, server: Entry::of(server, &table, path)? })
    }
}

impl Entry {
    fn of(url: Option<&str>, table: &Table, file: &Path) -> Result<Self, BadHosts> {
        let what = url.map_or_else(String::new, |url| format!(" of {url:?}"));
        let bad = |reason: String| BadHosts::of(file, &format!("{reason}{what}"));
        let flag = |key: &str| match table.get(key) {
            None => Ok(false),
            Some(Value::Boolean(value)) => Ok(*value),
            Some(_) => Err(bad(format!("{key} is neither true nor false, "))),
        };
        let (mut pulls, mut resolves) = (true, true);
        if let Some(value) = table.get("capabilities") {
            let words = texts(value).ok_or_else(|| bad("capabilities is no list of words".to_owned()))?;
            if let Some(word) = words.iter().find(|word| {
                !["pull", "resolve", "push", "referrers"].iter().any(|known| word.eq_ignore_ascii_case(known))
            }) {
                return Err(bad(format!("capability {word:?} is none of pull, resolve, push, referrers")));
            }
            let has = |word: &str| words.iter().any(|it| it.eq_ignore_ascii_case(word));
            // An empty list is as good as none.
            (pulls, resolves) = if words.is_empty() { (true, true) } else { (has("pull"), has("resolve")) };
        }
        let beside = |text: &String| file.parent().unwrap_or(Path::new("/")).join(text);
        let authorities = match table.get("ca") {
            None => Vec::new(),
            Some(value) => {
                let names =
                    texts(value).ok_or_else(|| bad("ca is neither a path nor a list of paths".to_owned()))?;
                names.iter().map(beside).collect()
            }
        };
        let clients = match table.get("client") {
            None => Vec::new(),
            Some(value) => clients(value, beside).ok_or_else(|| {
                bad("client is neither a path, a list of paths, nor a list of pairs of them".to_owned())
            })?,
        };
        let headers = match table.get("header") {
            None => HeaderMap::new(),
            Some(value) => headers(value).map_err(bad)?,
        };
        let dial_timeout = match table.get("dial_timeout") {
            None => None,
            Some(Value::String(text)) => Some(
                nanoseconds(text)
                    .and_then(|span| u64::try_from(span).ok())
                    .map(Duration::from_nanos)
                    .ok_or_else(|| bad(format!("dial_timeout {text:?} is no time, as \"3s\"")))?,
            ),
            Some(_) => return Err(bad("dial_timeout is no text".to_owned())),
        };
        if table.contains_key("dial_addr") {
            return Err(
                bad("dial_addr, a socket of the node's, is not supported: use an address".to_owned()),
            );
        }
        let override_path = flag("override_path")?;
        let base =
            url.map(|url| api_root(url, override_path).ok_or_else(|| bad("no http or https URL".to_owned())));
        Ok(Self {
            base: base.transpose()?,
            pulls,
            resolves,
            authorities,
            clients,
            skip_verify: flag("skip_verify")?,
            headers,
            dial_timeout: dial_timeout.filter(|timeout| !timeout.is_zero()),
        })
    }
}

/// A text, or a list of them.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(values) => values.iter().map(|value| value.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

fn clients(value: &Value, beside: impl Fn(&String) -> PathBuf) -> Option<Vec<(PathBuf, Option<PathBuf>)>> {
    let Value::Array(values) = value else {
        return value.as_str().map(|path| vec![(beside(&path.to_owned()), None)]);
    };
    let pair = |value: &Value| match texts(value)?.as_slice() {
        [both] => Some((beside(both), None)),
        [certificate, key] => Some((beside(certificate), Some(beside(key)).filter(|_| !key.is_empty()))),
        _ => None,
    };
    values.iter().map(pair).collect()
}

fn headers(value: &Value) -> Result<HeaderMap, String> {
    let Value::Table(table) = value else { return Err("header is no table".to_owned()) };
    let mut headers = HeaderMap::new();
    for (name, value) in table {
        let bad = || format!("header {name:?} is no header with a text, or a list of texts");
        let parsed: HeaderName = name.parse().map_err(|_| bad())?;
        for text in texts(value).ok_or_else(bad)? {
            let mut value = HeaderValue::from_str(&text).map_err(|_| bad())?;
            value.set_sensitive(true);
            headers.append(parsed.clone(), value);
        }
    }
    Ok(headers)
}

/// The root of the API at `text`: `/v2/` below it, unless the operator says that it is the path itself.
fn api_root(text: &str, override_path: bool) -> Option<Url> {
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let mut url = Url::parse(&with_scheme).ok()?;
    let is_usable =
        matches!(url.scheme(), "http" | "https") && url.host_str().is_some_and(|host| !host.is_empty());
    if !is_usable || !url.username().is_empty() || url.password().is_some() {
        return None;
    }
    let path = url.path().trim_end_matches('/');
    let path =
        if path.ends_with("/v2") || override_path { format!("{path}/") } else { format!("{path}/v2/") };
    url.set_path(&path);
    url.set_query(None);
    url.set_fragment(None);
    Some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> HostsFile {
        HostsFile::parse(text, Path::new("/etc/certs.d/r/hosts.toml")).expect(text)
    }

    fn base(entry: &Entry) -> &str {
        entry.base.as_ref().expect("a URL").as_str()
    }

    #[test]
    fn a_file_as_containerds_documentation_has_it() {
        let file = parse(
            r#"
server = "https://registry-1.docker.io"

[host."https://z.example"]
  capabilities = ["pull"]
  ca = "certs/z.crt"
  skip_verify = true
  dial_timeout = "3s"
  something_new = 7
  [host."https://z.example".header]
    x-custom-1 = ["one", "two"]
    Authorization = "Basic Zm9v"

[host."http://a.example:5000/some/where"]
  capabilities = ["pull", "Resolve", "push"]
  ca = ["/etc/one.pem", "two.pem"]
  client = [["client.cert", "client.key"], ["both.pem", ""]]

[host."harbor.example/v2/proxy"]
  override_path = true
  client = "both.pem"
"#,
        );
        let names: Vec<_> = file.mirrors.iter().map(base).collect();
        // The order is the file's, not that of the alphabet.
        let expected = [
            "https://z.example/v2/",
            "http://a.example:5000/some/where/v2/",
            "https://harbor.example/v2/proxy/",
        ];
        assert_eq!(names, expected);
        assert_eq!(base(&file.server), "https://registry-1.docker.io/v2/");
        let [z, a, harbor] = file.mirrors.as_slice() else { panic!("{file:?}") };
        assert_eq!((z.pulls, z.resolves, z.skip_verify), (true, false, true));
        assert_eq!(z.authorities, [Path::new("/etc/certs.d/r/certs/z.crt")]);
        assert_eq!(z.dial_timeout, Some(Duration::from_secs(3)));
        assert_eq!(z.headers.get_all("x-custom-1").iter().collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!((a.pulls, a.resolves, a.skip_verify), (true, true, false));
        assert_eq!(a.authorities, [Path::new("/etc/one.pem"), Path::new("/etc/certs.d/r/two.pem")]);
        let beside = |name: &str| Path::new("/etc/certs.d/r").join(name);
        assert_eq!(
            a.clients,
            [(beside("client.cert"), Some(beside("client.key"))), (beside("both.pem"), None)]
        );
        assert_eq!(harbor.clients, [(beside("both.pem"), None)]);
        assert!(!format!("{file:?}").contains("Zm9v"), "{file:?}");
    }

    #[test]
    fn what_is_not_said_is_the_default() {
        let file = parse("ca = \"ca.crt\"\n");
        assert!(file.mirrors.is_empty() && file.server.base.is_none());
        assert_eq!((file.server.pulls, file.server.resolves, file.server.authorities.len()), (true, true, 1));
        let file = parse("capabilities = []\n[host.\"h\"]\n");
        assert!(file.server.pulls && file.mirrors[0].pulls && base(&file.mirrors[0]) == "https://h/v2/");
    }

    #[test]
    fn t41_what_cannot_be_used_is_named_without_a_header() {
        for (text, reason) in [
            ("server = ", "line 1: it is no TOML"),
            ("server = 7", "server is no text"),
            ("\n[host.\"a\".header]\nAuthorization = Basic hunter2", "line 3: it is no TOML"),
            (
                "[host.\"a\".header]\nAuthorization = [\"a\\nhunter2\"]",
                "header \"Authorization\" is no header",
            ),
            ("[host.\"ftp://a\"]", "no http or https URL of \"ftp://a\""),
            ("[host.\"https://u:p@a\"]", "no http or https URL"),
            (
                "[host.\"a\"]\ncapabilities = [\"fly\"]",
                "capability \"fly\" is none of pull, resolve, push, referrers of \"a\"",
            ),
            ("[host.\"a\"]\nskip_verify = \"yes\"", "skip_verify is neither true nor false"),
            ("[host.\"a\"]\ndial_timeout = \"soon\"", "dial_timeout \"soon\" is no time"),
            ("[host.\"a\"]\nclient = [[\"a\", \"b\", \"c\"]]", "client is neither"),
            ("host = 1", "[host] is no table"),
        ] {
            let error = HostsFile::parse(text, Path::new("/x/hosts.toml")).expect_err(text).to_string();
            assert!(error.starts_with("/x/hosts.toml cannot be used: "), "{error}");
            assert!(error.contains(reason) && !error.contains("hunter2"), "{text}: {error}");
        }
    }
}
