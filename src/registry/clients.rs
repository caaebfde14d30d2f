//! HTTP clients, one for each [reach](Reach): a connection that one may have is not there for another.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;

use crate::registry::addresses::{Addresses, NamedBy, Reach, Refused, address_of};
use crate::registry::error::Error;
use crate::registry::http::host_and_port;
use crate::registry::resolver::Resolver;

/// The clients. Cheap to clone.
#[derive(Clone)]
pub(super) struct Clients {
    addresses: Arc<Addresses>,
    public: reqwest::Client,
    private: reqwest::Client,
    loopback: reqwest::Client,
    /// Names of the HTTP proxies that the operator has set. Whatever their addresses are, they are connected to.
    proxies: Arc<[String]>,
}

impl Clients {
    /// # Errors
    /// When no TLS configuration can be made.
    pub fn new(addresses: Addresses, connect_timeout: Duration) -> Result<Self, reqwest::Error> {
        let (addresses, proxies): (_, Arc<[String]>) = (Arc::new(addresses), proxies().into());
        let resolver = Resolver::new(Arc::clone(&addresses), Arc::clone(&proxies));
        let client = |reach| {
            reqwest::Client::builder()
                .user_agent(concat!("ocivol/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(connect_timeout)
                .dns_resolver(Arc::new(resolver.reaching(reach)))
                .redirect(reqwest::redirect::Policy::none())
                .tcp_nodelay(true)
                .pool_max_idle_per_host(8)
                .pool_idle_timeout(Duration::from_secs(30))
                // Over HTTP/2 all requests would share one connection, and its windows would be memory to bound.
                .http1_only()
                .build()
        };
        let (public, private, loopback) =
            (client(Reach::Public)?, client(Reach::Private)?, client(Reach::Loopback)?);
        Ok(Self { addresses, public, private, loopback, proxies })
    }

    /// The client for `url`, whose host is named by who is said.
    ///
    /// # Errors
    /// [`Error::Address`] when the URL itself shows that it is not connected to; of a name that is seen when it is looked up.
    pub fn of(&self, named_by: NamedBy, url: &Url) -> Result<&reqwest::Client, Error> {
        let reach = self.addresses.reach(named_by, url);
        let is_proxy = url.domain().is_some_and(|name| self.proxies.iter().any(|proxy| proxy == name));
        let checked = match address_of(url) {
            Some(address) => self.addresses.check(reach, address),
            // What a proxy's name leads to is not looked at.
            None if is_proxy && reach < Reach::Loopback => Err(Refused::Proxy),
            None => Ok(()),
        };
        checked.map_err(|reason| Error::Address { host: host_and_port(url), reason })?;
        Ok(match reach {
            Reach::Public => &self.public,
            Reach::Private => &self.private,
            Reach::Loopback => &self.loopback,
        })
    }

    /// Whether the operator has named the host of `url`.
    pub fn names(&self, url: &Url) -> bool {
        self.addresses.names(url)
    }
}

/// The names of proxies in the environment, as reqwest reads it.
fn proxies() -> Vec<String> {
    let names = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    let values = names.iter().filter_map(|name| std::env::var(name).ok());
    let urls = values.filter_map(|value| {
        let with_scheme = if value.contains("://") { value } else { format!("http://{value}") };
        Url::parse(&with_scheme).ok()
    });
    urls.filter_map(|url| url.domain().map(str::to_owned)).collect()
}
