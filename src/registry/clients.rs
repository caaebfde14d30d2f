//! HTTP clients, one for each [reach](Reach): a connection that one may have is not there for another.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Proxy, Url};
use tokio::sync::OnceCell;

use crate::failure;
use crate::host::blocking::{self, Lane};
use crate::registry::addresses::{Addresses, NamedBy, Reach, Refused, address_of};
use crate::registry::error::Error;
use crate::registry::hosts::tls::HostTls;
use crate::registry::http::host_and_port;
use crate::registry::proxy::Proxies;
use crate::registry::resolver::Resolver;

/// The clients. Cheap to clone.
#[derive(Clone)]
pub(super) struct Clients {
    addresses: Arc<Addresses>,
    /// Names of the HTTP proxies that the operator has set. Whatever their addresses are, they are connected to.
    proxies: Arc<[String]>,
    maker: Maker,
    made: Arc<Made>,
}

/// Those that were needed so far: each has the certificates of all authorities in memory.
#[derive(Default)]
struct Made {
    public: OnceCell<reqwest::Client>,
    private: OnceCell<reqwest::Client>,
    loopback: OnceCell<reqwest::Client>,
    /// Those for hosts of which the operator says more: by that.
    special: Mutex<HashMap<(Reach, [u8; 32]), Special>>,
}

type Special = Arc<OnceCell<reqwest::Client>>;

/// Clients for hosts of which the operator says more; beyond, all are made anew.
const SPECIAL_LIMIT: usize = 64;

/// Makes clients.
#[derive(Clone)]
struct Maker {
    resolver: Resolver,
    connect_timeout: Duration,
    proxies: Arc<Proxies>,
}

impl Clients {
    /// # Errors
    /// When no TLS configuration can be made.
    pub fn new(addresses: Addresses, connect_timeout: Duration) -> Result<Self, reqwest::Error> {
        let (addresses, all) = (Arc::new(addresses), Proxies::of_environment());
        let proxies: Arc<[String]> = all.names().into();
        let resolver = Resolver::new(Arc::clone(&addresses), Arc::clone(&proxies));
        let maker = Maker { resolver, connect_timeout, proxies: Arc::new(all) };
        // That there are no usable certificates is said at the start.
        let private = OnceCell::from(maker.client(Reach::Private, &HostTls::default())?);
        Ok(Self { addresses, proxies, maker, made: Arc::new(Made { private, ..Made::default() }) })
    }

    /// The client for `url`, whose host is named by who is said, and connected to as `tls` says.
    ///
    /// # Errors
    /// [`Error::Address`] when the URL itself shows that it is not connected to; of a name that is seen when it is looked up.
    /// [`Error::Tls`] when the first client of its reach cannot be made.
    pub async fn of(&self, named_by: NamedBy, url: &Url, tls: &HostTls) -> Result<reqwest::Client, Error> {
        let reach = self.addresses.reach(named_by, url);
        let is_proxy = url.domain().is_some_and(|name| self.proxies.iter().any(|proxy| proxy == name));
        let checked = match address_of(url) {
            Some(address) => self.addresses.check(reach, address),
            // What a proxy's name leads to is not looked at.
            None if is_proxy && reach < Reach::Loopback => Err(Refused::Proxy),
            None => Ok(()),
        };
        checked.map_err(|reason| Error::Address { host: host_and_port(url), reason })?;
        let special = tls.key().map(|key| self.made.special((reach, key)));
        let made = match (&special, reach) {
            (Some(special), _) => special,
            (None, Reach::Public) => &self.made.public,
            (None, Reach::Private) => &self.made.private,
            (None, Reach::Loopback) => &self.made.loopback,
        };
        let make = || async {
            let (maker, tls) = (self.maker.clone(), tls.clone());
            blocking::run(Lane::Work, move || maker.client(reach, &tls)).await
        };
        let client = made.get_or_try_init(make).await;
        client.cloned().map_err(|error| Error::Tls { reason: failure::chain(&error) })
    }

    /// Whether the operator has named the host of `url`.
    pub fn names(&self, url: &Url) -> bool {
        self.addresses.names(url)
    }
}

impl Made {
    fn special(&self, key: (Reach, [u8; 32])) -> Special {
        let mut special = self.special.lock().unwrap_or_else(PoisonError::into_inner);
        if special.len() >= SPECIAL_LIMIT && !special.contains_key(&key) {
            special.clear();
        }
        Arc::clone(special.entry(key).or_default())
    }
}

impl Maker {
    fn client(&self, reach: Reach, tls: &HostTls) -> Result<reqwest::Client, reqwest::Error> {
        let proxies = Arc::clone(&self.proxies);
        let client = reqwest::Client::builder()
            .proxy(Proxy::custom(move |url| proxies.of_url(url).cloned()))
            .user_agent(concat!("ocivol/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.connect_timeout)
            .dns_resolver(Arc::new(self.resolver.reaching(reach)))
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            .pool_max_idle_per_host(8)
            .pool_idle_timeout(Duration::from_secs(30))
            // Over HTTP/2 all requests would share one connection, and its windows would be memory to bound. It is no faster
            // for small blobs and slower for large ones: `make bench-http2`.
            .http1_only();
        tls.apply(client)?.build()
    }
}
