//! What registries want people to know: `Warning` headers.
//!
//! Source: distribution-spec v1.1, "Warnings": `299 - "text"`, and at most 4096 bytes of them.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::HeaderMap;

use crate::failure::one_line;
use crate::registry::place::Place;
use crate::tenant::Tenant;

/// What registries have said. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Warnings(Arc<Mutex<Said>>);

#[derive(Default)]
struct Said {
    /// What is in the log already, by the host that said it.
    logged: HashSet<(String, String)>,
    /// What those who asked are to be told, by the registry: it may speak of what only they may know.
    askers: HashMap<(String, Tenant), Untold>,
}

#[derive(Default)]
struct Untold {
    texts: Vec<String>,
    told: Option<Instant>,
}

/// Bytes of warnings in one answer.
const BYTES: usize = 4096;
/// Warnings of one host that are told, as long as the process lives.
const OF_A_HOST: usize = 8;
/// The same of all, and tenants and registries that are known.
const LIMIT: usize = 1024;
/// A tenant is told once in this time what one registry warns of.
const EVERY: Duration = Duration::from_secs(3600);

impl Warnings {
    /// Logs, once, what an answer of `place` warns of, and keeps it for who asked there.
    pub fn hear(&self, place: &Place, headers: &HeaderMap) {
        let host = place.host();
        for text in texts(headers) {
            let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            said.keep(&place.registry, &place.tenant, &text, Instant::now());
            let of_host = said.logged.iter().filter(|(known, _)| known == host).count();
            if of_host >= OF_A_HOST || said.logged.len() >= LIMIT {
                continue;
            }
            if said.logged.insert((host.to_owned(), text.clone())) {
                tracing::warn!(host, warning = text, "the registry warns");
            }
        }
    }

    /// What `registry` has warned `tenant` of. Once an hour: who takes it tells it.
    pub fn take(&self, registry: &str, tenant: &Tenant) -> Vec<String> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.take(registry, tenant, Instant::now())
    }
}

impl Said {
    fn keep(&mut self, registry: &str, tenant: &Tenant, text: &str, now: Instant) {
        let key = (registry.to_owned(), tenant.clone());
        if self.askers.len() >= LIMIT && !self.askers.contains_key(&key) {
            self.askers.retain(|_, untold| untold.is_recent(now));
            if self.askers.len() >= LIMIT {
                return;
            }
        }
        let untold = self.askers.entry(key).or_default();
        if !untold.is_recent(now)
            && untold.texts.len() < OF_A_HOST
            && !untold.texts.iter().any(|it| it == text)
        {
            untold.texts.push(text.to_owned());
        }
    }

    fn take(&mut self, registry: &str, tenant: &Tenant, now: Instant) -> Vec<String> {
        let Some(untold) = self.askers.get_mut(&(registry.to_owned(), tenant.clone())) else {
            return Vec::new();
        };
        let texts = std::mem::take(&mut untold.texts);
        if !texts.is_empty() {
            untold.told = Some(now);
        }
        texts
    }
}

impl Untold {
    /// Whether it was told within the hour.
    fn is_recent(&self, now: Instant) -> bool {
        self.told.is_some_and(|told| now.saturating_duration_since(told) < EVERY)
    }
}

/// The texts of code 299 and no agent.
fn texts(headers: &HeaderMap) -> Vec<String> {
    let mut left = BYTES;
    let mut found = Vec::new();
    for value in headers.get_all("warning") {
        let Some(rest) = left.checked_sub(value.len()) else { break };
        left = rest;
        let text =
            value.to_str().ok().and_then(|value| value.trim().strip_prefix("299 - \"")?.strip_suffix('"'));
        found.extend(text.and_then(unescaped).map(|text| one_line(&text)));
    }
    found
}

/// What is between the quotes; `None` when it ends before: a date follows, and there is to be none.
fn unescaped(quoted: &str) -> Option<String> {
    let (mut text, mut characters) = (String::with_capacity(quoted.len()), quoted.chars());
    while let Some(character) = characters.next() {
        match character {
            '"' => return None,
            '\\' => text.push(characters.next()?),
            character => text.push(character),
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_of_code_299_are_told_and_others_are_not() {
        let mut headers = HeaderMap::new();
        for value in [
            r#"299 - "your plan ends \"soon\"""#,
            r#"199 - "x""#,
            r#"299 proxy "x""#,
            r#"299 - "x" "Tue, 15 Nov 1994 08:12:31 GMT""#,
            "299 - x",
            r#"299 - "second""#,
        ] {
            headers.append("warning", value.parse().expect("a value"));
        }
        assert_eq!(texts(&headers), [r#"your plan ends "soon""#, "second"]);
        headers.append("warning", format!("299 - \"{}\"", "x".repeat(BYTES)).parse().expect("a value"));
        assert_eq!(texts(&headers).len(), 2, "too much");
    }

    #[test]
    fn who_asked_is_told_once_an_hour_and_nobody_else_is() {
        let (mut said, now) = (Said::default(), Instant::now());
        let [one, two] = ["one", "two"].map(|name| Tenant::of_namespace(Some(name)));
        said.keep("r", &one, "a", now);
        said.keep("r", &one, "a", now);
        said.keep("r", &one, "b", now);
        assert!(said.take("r", &two, now).is_empty());
        assert_eq!(said.take("r", &one, now), ["a", "b"]);
        said.keep("r", &one, "a", now);
        assert!(said.take("r", &one, now).is_empty(), "within the hour");
        said.keep("other", &one, "c", now);
        assert_eq!(said.take("other", &one, now), ["c"]);
        let later = now + EVERY;
        said.keep("r", &one, "a", later);
        assert_eq!(said.take("r", &one, later), ["a"]);
        for number in 0..2 * LIMIT {
            said.keep(&number.to_string(), &two, "x", later);
        }
        assert!(said.askers.len() <= LIMIT);
    }
}
