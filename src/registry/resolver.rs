//! Addresses of hosts. The system's look-up blocks a thread for as long as name servers take, and cannot be ended; so there is a
//! bound of its own for them, and no host whose name server does not answer takes the threads of anything else.

use std::net::ToSocketAddrs as _;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;

use crate::host::blocking::LOOKUPS;

/// The system's look-up, `man 3 getaddrinfo`.
#[derive(Debug)]
pub(super) struct Resolver {
    turns: Arc<Semaphore>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self { turns: Arc::new(Semaphore::new(LOOKUPS)) }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let turns = Arc::clone(&self.turns);
        Box::pin(async move {
            let turn = turns.acquire_owned().await?;
            let look_up = move || {
                let _turn = turn; // Until the system has answered, also when nobody waits any more.
                // The port is the URL's.
                (name.as_str(), 0).to_socket_addrs().map(|found| Box::new(found) as Addrs)
            };
            Ok(tokio::task::spawn_blocking(look_up).await??)
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn names_are_looked_up_and_turns_given_back() {
        let resolver = Resolver::default();
        let name = |text: &str| text.parse::<Name>().expect("a name");
        let found = resolver.resolve(name("localhost")).await.expect("known everywhere");
        assert!(found.into_iter().all(|address| address.ip().is_loopback()));
        assert!(resolver.resolve(name("nowhere.invalid")).await.is_err());
        assert_eq!(resolver.turns.available_permits(), LOOKUPS);
    }

    #[tokio::test]
    async fn regression_look_ups_have_a_bound_of_their_own() {
        let resolver = Resolver::default();
        let all = Arc::clone(&resolver.turns).acquire_many_owned(LOOKUPS as u32).await.expect("free");
        let mut waits = resolver.resolve("localhost".parse().expect("a name"));
        assert!(waits.as_mut().now_or_never().is_none());
        drop(all);
        assert!(waits.await.is_ok());
    }
}
