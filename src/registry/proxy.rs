//! The node's HTTP proxies, from the environment as Go's programs read it: container runtimes and kubelet are some, and what is set for
//! them is set for this one. Source: `golang.org/x/net/http/httpproxy`.
//!
//! `HTTPS_PROXY` is for `https://`, `HTTP_PROXY` for `http://`, each in lower case as well. `NO_PROXY` is a list of names (with all below
//! them; with a dot before only those), addresses and networks, each but a network with a port if it is for that alone, or `*`. What is
//! on the machine itself is never asked through a proxy.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::net::IpAddr;

use ipnet::IpNet;
use reqwest::Url;

/// The proxies of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Proxies {
    http: Option<Url>,
    https: Option<Url>,
    not: Vec<Exception>,
}

/// Who is asked without a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    All,
    Network(IpNet),
    Address(IpAddr, Option<u16>),
    /// A name; whether only names below it are meant.
    Name(String, bool, Option<u16>),
}

/// Schemes of proxies that are spoken to.
const SCHEMES: [&str; 2] = ["http", "https"];

impl Proxies {
    /// Those of the environment.
    pub fn of_environment() -> Self {
        Self::of(|name| std::env::var(name).ok())
    }

    fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let first = |upper: &str| {
            let value = variable(upper).filter(|value| !value.is_empty());
            value.or_else(|| variable(&upper.to_ascii_lowercase())).unwrap_or_default()
        };
        let proxy = |name: &'static str| {
            let value = first(name);
            let with_scheme = if value.contains("://") { value.clone() } else { format!("http://{value}") };
            let url = Url::parse(&with_scheme).ok().filter(|url| SCHEMES.contains(&url.scheme()));
            if url.is_none() && !value.is_empty() {
                // It may hold a password.
                tracing::warn!(variable = name, "it names no proxy with http:// or https://, and is ignored");
            }
            url.filter(|_| !value.is_empty())
        };
        let not = first("NO_PROXY");
        let not =
            not.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(Exception::of).collect();
        Self { http: proxy("HTTP_PROXY"), https: proxy("HTTPS_PROXY"), not }
    }

    /// The proxy through which `url` is asked.
    pub fn of_url(&self, url: &Url) -> Option<&Url> {
        let proxy = if url.scheme() == "https" { self.https.as_ref() } else { self.http.as_ref() }?;
        let host = url.host_str()?.trim_matches(['[', ']']).trim_end_matches('.');
        let address: Option<IpAddr> = host.parse().ok();
        if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return None;
        }
        let port = url.port_or_known_default();
        self.not.iter().all(|exception| !exception.is_for(host, address, port)).then_some(proxy)
    }

    /// The names of proxies, for which the operator answers.
    pub fn names(&self) -> Vec<String> {
        let all = [&self.http, &self.https].into_iter().flatten();
        all.filter_map(|url| url.domain().map(str::to_owned)).collect()
    }
}

impl Exception {
    fn of(entry: &str) -> Self {
        if entry == "*" {
            return Self::All;
        }
        if let Ok(network) = entry.parse() {
            return Self::Network(network);
        }
        let (host, port) = match entry.rsplit_once(':') {
            // One of IPv6 has colons of its own.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port.parse().ok()),
            _ => (entry, None),
        };
        let host = host.trim_matches(['[', ']']);
        match host.parse() {
            Ok(address) => Self::Address(address, port),
            Err(_) => {
                let host = host.strip_prefix('*').unwrap_or(host).to_ascii_lowercase();
                let below = host.strip_prefix('.');
                Self::Name(below.unwrap_or(&host).to_owned(), below.is_some(), port)
            }
        }
    }

    fn is_for(&self, host: &str, address: Option<IpAddr>, port: Option<u16>) -> bool {
        let is_port = |stated: &Option<u16>| stated.is_none() || *stated == port;
        match self {
            Self::All => true,
            Self::Network(network) => address.is_some_and(|address| network.contains(&address)),
            Self::Address(stated, at) => address == Some(*stated) && is_port(at),
            Self::Name(name, only_below, at) => {
                let rest = host.strip_suffix(name.as_str());
                let is_name = rest.is_some_and(|rest| match rest {
                    "" => !only_below,
                    rest => rest.ends_with('.'),
                });
                address.is_none() && is_name && is_port(at)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(pairs: &[(&str, &str)]) -> Proxies {
        Proxies::of(|name| {
            pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn through(proxies: &Proxies, url: &str) -> Option<String> {
        proxies.of_url(&url.parse().expect(url)).map(|proxy| proxy.host_str().unwrap_or_default().to_owned())
    }

    #[test]
    fn each_scheme_has_its_own_in_capitals_or_not() {
        let both = proxies(&[
            ("HTTPS_PROXY", "http://u:p@tls:3128"),
            ("http_proxy", "plain:3128"),
            ("ALL_PROXY", "x"),
        ]);
        assert_eq!(through(&both, "https://r.example/").as_deref(), Some("tls"));
        assert_eq!(through(&both, "http://r.example/").as_deref(), Some("plain"));
        assert_eq!(both.names(), ["plain", "tls"]);
        let upper = proxies(&[("HTTPS_PROXY", "one"), ("https_proxy", "two")]);
        assert_eq!(through(&upper, "https://r.example/").as_deref(), Some("one"));
        for nothing in ["", "socks5://s:1080", "http://", "::"] {
            assert_eq!(
                through(&proxies(&[("HTTPS_PROXY", nothing)]), "https://r.example/"),
                None,
                "{nothing}"
            );
        }
    }

    #[test]
    fn no_proxy_as_go_reads_it() {
        let table: [(&str, &[&str], &[&str]); 9] = [
            (
                "",
                &["https://localhost/", "https://127.0.0.1:1/", "https://[::1]/"],
                &["https://r.example/", "https://10.0.0.1/"],
            ),
            ("*", &["https://r.example/"], &[]),
            (
                "r.example",
                &["https://r.example/", "https://a.R.example/"],
                &["https://xr.example/", "https://example/"],
            ),
            (".r.example", &["https://a.r.example/"], &["https://r.example/"]),
            ("*.r.example", &["https://a.r.example/"], &["https://r.example/"]),
            ("r.example:5000", &["https://r.example:5000/"], &["https://r.example/"]),
            ("10.0.0.0/8, fd00::/8", &["https://10.1.2.3/", "https://[fd00::1]/"], &["https://11.0.0.1/"]),
            (
                "10.0.0.1:443,[fd00::1]:5000",
                &["https://10.0.0.1/", "https://[fd00::1]:5000/"],
                &["https://10.0.0.1:5000/", "https://[fd00::1]/"],
            ),
            ("fd00::1, ,", &["https://[fd00::1]:7/"], &["https://[fd00::2]/", "https://r.example/"]),
        ];
        for (not, without, with) in table {
            let all = proxies(&[("HTTPS_PROXY", "p"), ("NO_PROXY", not)]);
            for url in without {
                assert_eq!(through(&all, url), None, "{not:?} {url}");
            }
            for url in with {
                assert_eq!(through(&all, url).as_deref(), Some("p"), "{not:?} {url}");
            }
        }
    }
}
