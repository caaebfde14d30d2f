//! Addresses of hosts, and only those that may be connected to.
//!
//! The system's look-up blocks a thread for as long as name servers take, and cannot be ended; so there is a bound of its own for
//! them, and no host whose name server does not answer takes the threads of anything else.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;

use crate::host::blocking::LOOKUPS;
use crate::registry::addresses::{Addresses, Reach};

/// The system's look-up, `man 3 getaddrinfo`, for connections that may reach so far.
#[derive(Debug, Clone)]
pub(super) struct Resolver {
    turns: Arc<Semaphore>,
    addresses: Arc<Addresses>,
    reach: Reach,
    /// Names for which the operator answers.
    proxies: Arc<[String]>,
}

impl Resolver {
    pub fn new(addresses: Arc<Addresses>, proxies: Arc<[String]>) -> Self {
        Self { turns: Arc::new(Semaphore::new(LOOKUPS)), addresses, reach: Reach::Public, proxies }
    }

    /// The same for connections that may reach so far, with the same turns.
    pub fn reaching(&self, reach: Reach) -> Self {
        Self { reach, ..self.clone() }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let turn = Arc::clone(&resolver.turns).acquire_owned().await?;
            let host = name.as_str().to_owned();
            let look_up = move || {
                let _turn = turn; // Until the system has answered, also when nobody waits any more.
                // The port is the URL's.
                (name.as_str(), 0).to_socket_addrs()
            };
            let found = tokio::task::spawn_blocking(look_up).await??;
            if resolver.proxies.iter().any(|proxy| proxy.eq_ignore_ascii_case(&host)) {
                return Ok(Box::new(found) as Addrs);
            }
            let check = |address: &SocketAddr| resolver.addresses.check(resolver.reach, address.ip());
            let (allowed, refused): (Vec<_>, Vec<_>) = found.partition(|address| check(address).is_ok());
            let reasons = refused.iter().filter_map(|address| check(address).err());
            let Some(reason) = reasons.max() else { return Ok(Box::new(allowed.into_iter()) as Addrs) };
            // Which they are is for the log alone.
            let first = refused.first().map(SocketAddr::ip);
            tracing::info!(host, ?first, addresses = refused.len(), %reason, "not connected to");
            if allowed.is_empty() { Err(reason.into()) } else { Ok(Box::new(allowed.into_iter()) as Addrs) }
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::registry::addresses::Refused;

    fn resolver(reach: Reach) -> Resolver {
        Resolver::new(Arc::default(), Arc::new([])).reaching(reach)
    }

    #[tokio::test]
    async fn t28_a_name_has_the_addresses_that_may_be_connected_to() {
        let found = resolver(Reach::Private).resolve("localhost".parse().expect("a name")).await;
        let error = found.err().expect("it is a loopback address");
        assert_eq!(error.downcast_ref(), Some(&Refused::Loopback));
        let proxies = Arc::new(["LocalHost".to_owned()]);
        let resolver = Resolver::new(Arc::default(), proxies).reaching(Reach::Public);
        assert!(resolver.resolve("localhost".parse().expect("a name")).await.is_ok());
    }

    #[tokio::test]
    async fn names_are_looked_up_and_turns_given_back() {
        let resolver = resolver(Reach::Loopback);
        let name = |text: &str| text.parse::<Name>().expect("a name");
        let found = resolver.resolve(name("localhost")).await.expect("known everywhere");
        assert!(found.into_iter().all(|address| address.ip().is_loopback()));
        assert!(resolver.resolve(name("nowhere.invalid")).await.is_err());
        assert_eq!(resolver.turns.available_permits(), LOOKUPS);
    }

    #[tokio::test]
    async fn regression_look_ups_have_a_bound_of_their_own() {
        let resolver = resolver(Reach::Loopback);
        let all = Arc::clone(&resolver.turns).acquire_many_owned(LOOKUPS as u32).await.expect("free");
        let mut waits = resolver.resolve("localhost".parse().expect("a name"));
        assert!(waits.as_mut().now_or_never().is_none());
        drop(all);
        assert!(waits.await.is_ok());
    }
}
