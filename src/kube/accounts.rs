//! Facts on service accounts, kept for a minute.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use crate::kube::connection::Connection;
use crate::kube::error::Error;
use crate::kube::object::{Object, Resource};

/// What is known of a service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountFacts {
    /// Its UID: tells it from another account of that name.
    pub uid: String,
    /// Its annotations, which say how clouds know it.
    pub annotations: BTreeMap<String, String>,
}

/// Accounts that were read within the last minute.
#[derive(Default)]
pub(in crate::kube) struct Accounts {
    kept: Mutex<HashMap<(String, String), Kept>>,
}

/// An account, and when it was read.
struct Kept {
    facts: AccountFacts,
    since: Instant,
}

/// For how long an account is kept. So late is seen that its annotations were changed.
const AGE: Duration = Duration::from_secs(60);
/// Accounts that are kept: some for each pod that a node can have.
const KEPT: usize = 512;
/// Bytes of an account that is kept; larger ones are read each time. With [`KEPT`] that makes 4 MiB.
const SIZE: usize = 8 * 1024;

/// Of a service account, what is looked at.
#[derive(Deserialize)]
struct AccountObject {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    uid: String,
    annotations: Option<BTreeMap<String, String>>,
}

impl Accounts {
    /// The facts on an account: what was read within the last minute, or what is read now, until `deadline`.
    ///
    /// # Errors
    /// When it cannot be read. That is not kept.
    pub async fn facts(
        &self,
        connection: &Connection,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<AccountFacts, Error> {
        let object = Object::new(Resource::ServiceAccount, namespace, name)?;
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(facts) = self.fresh(&key) {
            return Ok(facts);
        }
        let since = Instant::now();
        let AccountObject { metadata } = connection.get(&object, deadline).await?;
        if metadata.uid.is_empty() {
            return Err(Error::Protocol { what: object, fault: "has no UID".to_owned() });
        }
        let facts = AccountFacts { uid: metadata.uid, annotations: metadata.annotations.unwrap_or_default() };
        self.keep(key, Kept { facts: facts.clone(), since });
        Ok(facts)
    }

    fn fresh(&self, key: &(String, String)) -> Option<AccountFacts> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(key).filter(|kept| kept.since.elapsed() < AGE).map(|kept| kept.facts.clone())
    }

    /// Keeps an account unless it is large. When there are many, those go that are over, or else the oldest.
    fn keep(&self, key: (String, String), account: Kept) {
        let pairs = account.facts.annotations.iter();
        let size =
            account.facts.uid.len() + pairs.map(|(name, value)| name.len() + value.len()).sum::<usize>();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.remove(&key);
        if size > SIZE {
            return;
        }
        if kept.len() >= KEPT {
            kept.retain(|_, kept| kept.since.elapsed() < AGE);
        }
        if kept.len() >= KEPT
            && let Some(oldest) = kept.iter().min_by_key(|(_, kept)| kept.since).map(|(key, _)| key.clone())
        {
            kept.remove(&oldest);
        }
        kept.insert(key, account);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kube::connection::Limits;
    use crate::kube::connection::tests::{Fake, Reply};

    fn account(uid: &str, annotation: &str) -> Reply {
        Reply::Object(json!({"metadata": {"uid": uid, "annotations": {"role": annotation}}}))
    }

    async fn ask(accounts: &Accounts, connection: &Connection, name: &str) -> Result<AccountFacts, Error> {
        accounts.facts(connection, "shop", name, connection.deadline()).await
    }

    #[tokio::test]
    async fn accounts_are_kept_for_a_minute() {
        let fake = Fake::start(|_, before| account(&format!("uid-{before}"), "arn:x")).await;
        let connection = Connection::new(fake.config(), Limits::DEFAULT);
        let accounts = Accounts::default();
        let facts = ask(&accounts, &connection, "app").await.expect("read");
        assert_eq!((facts.uid.as_str(), facts.annotations["role"].as_str()), ("uid-0", "arn:x"));
        assert_eq!(ask(&accounts, &connection, "app").await.expect("kept"), facts);
        assert_eq!(fake.paths(), ["/api/v1/namespaces/shop/serviceaccounts/app"]);
        for kept in accounts.kept.lock().expect("no panic").values_mut() {
            kept.since = Instant::now().checked_sub(AGE).expect("the clock runs since longer");
        }
        assert_eq!(ask(&accounts, &connection, "app").await.expect("read").uid, "uid-1");
    }

    #[tokio::test]
    async fn failures_and_large_accounts_are_not_kept() {
        let fake = Fake::start(|_, before| match before {
            0 => Reply::Status(403),
            _ => account("uid", &"x".repeat(SIZE)),
        });
        let fake = fake.await;
        let connection = Connection::new(fake.config(), Limits::DEFAULT);
        let accounts = Accounts::default();
        let error = ask(&accounts, &connection, "app").await.expect_err("forbidden");
        assert!(error.to_string().contains("get serviceaccounts"), "{error}");
        for _ in 0..2 {
            ask(&accounts, &connection, "app").await.expect("read");
        }
        assert_eq!(fake.paths().len(), 3);
        assert!(accounts.kept.lock().expect("no panic").is_empty());
    }

    #[test]
    fn no_more_than_the_bound_are_kept() {
        let accounts = Accounts::default();
        for number in 0..KEPT + 10 {
            let facts = AccountFacts { uid: number.to_string(), annotations: BTreeMap::new() };
            let key = ("shop".to_owned(), number.to_string());
            accounts.keep(key, Kept { facts, since: Instant::now() });
        }
        assert_eq!(accounts.kept.lock().expect("no panic").len(), KEPT);
        let key = |number: usize| ("shop".to_owned(), number.to_string());
        assert!(accounts.fresh(&key(0)).is_none() && accounts.fresh(&key(KEPT + 9)).is_some());
    }
}
