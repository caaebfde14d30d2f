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
    /// What those who asked are to be told, by the registry that they asked for: it may speak of what only they may know.
    askers: HashMap<(Tenant, String), Untold>,
}

#[derive(Default)]
struct Untold {
    /// With the host that said it, which may be a mirror.
    texts: Vec<String>,
    told: Option<Instant>,
}

/// Bytes of warnings in one answer.
const BYTES: usize = 4096;
/// Warnings of one host that are told, as long as the process lives.
const OF_A_HOST: usize = 8;
/// The same of all.
const LIMIT: usize = 1024;
/// Registries of all who asked, for which texts are kept: 256 KiB of texts.
const ASKERS: usize = 256;
/// Registries of one tenant for which texts are kept. Who names more is not told of them all.
const OF_A_TENANT: usize = 16;
/// Texts that are kept for each, and the characters of each: an event is one line.
const TEXTS: usize = 4;
const CHARACTERS: usize = 200;
/// A tenant is told once in this time what one registry warns of.
const EVERY: Duration = Duration::from_secs(3600);

impl Warnings {
    /// Logs, once, what an answer of `place` warns of, and keeps it for who asked there.
    pub fn hear(&self, place: &Place, headers: &HeaderMap) {
        let host = place.host();
        for text in texts(headers) {
            let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            said.keep(&place.tenant, &place.registry, &format!("{host} warns: {text}"), Instant::now());
            let of_host = said.logged.iter().filter(|(known, _)| known == host).count();
            if of_host >= OF_A_HOST || said.logged.len() >= LIMIT {
                continue;
            }
            if said.logged.insert((host.to_owned(), text.clone())) {
                tracing::warn!(host, warning = text, "the registry warns");
            }
        }
    }

    /// Has `tell` tell `tenant` what `registry` warned it of, once an hour. What `tell` says it has not told is told the next time.
    pub fn tell(&self, tenant: &Tenant, registry: &str, tell: impl FnMut(&str) -> bool) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.tell(tenant, registry, Instant::now(), tell);
    }
}

impl Said {
    fn keep(&mut self, tenant: &Tenant, registry: &str, text: &str, now: Instant) {
        let key = (tenant.clone(), registry.to_owned());
        if !self.askers.contains_key(&key) && !self.make_room(tenant, now) {
            return;
        }
        let text: String = text.chars().take(CHARACTERS).collect();
        let untold = self.askers.entry(key).or_default();
        if !untold.is_recent(now) && untold.texts.len() < TEXTS && !untold.texts.contains(&text) {
            untold.texts.push(text);
        }
    }

    /// Whether there is room for one more registry of `tenant`. Who has the most makes it.
    fn make_room(&mut self, tenant: &Tenant, now: Instant) -> bool {
        self.askers.retain(|_, untold| !untold.texts.is_empty() || untold.is_recent(now));
        let mut counts: HashMap<&Tenant, usize> = HashMap::new();
        self.askers.keys().for_each(|(tenant, _)| *counts.entry(tenant).or_default() += 1);
        let own = counts.get(tenant).copied().unwrap_or_default();
        if own >= OF_A_TENANT {
            return false;
        }
        if self.askers.len() < ASKERS {
            return true;
        }
        let largest = counts.into_iter().max_by_key(|(_, count)| *count);
        let Some((largest, _)) = largest.filter(|(_, count)| *count > own) else { return false };
        let one = self.askers.keys().find(|(tenant, _)| tenant == largest).cloned();
        one.is_some_and(|one| self.askers.remove(&one).is_some())
    }

    fn tell(&mut self, tenant: &Tenant, registry: &str, now: Instant, mut tell: impl FnMut(&str) -> bool) {
        let Some(untold) = self.askers.get_mut(&(tenant.clone(), registry.to_owned())) else { return };
        let before = untold.texts.len();
        untold.texts.retain(|text| !tell(text));
        if untold.texts.len() < before {
            untold.told = Some(now);
        }
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

    fn told(said: &mut Said, tenant: &Tenant, registry: &str, now: Instant) -> Vec<String> {
        let mut all = Vec::new();
        said.tell(tenant, registry, now, |text| {
            all.push(text.to_owned());
            true
        });
        all
    }

    #[test]
    fn who_asked_is_told_once_an_hour_and_nobody_else_is() {
        let (mut said, now) = (Said::default(), Instant::now());
        let [one, two] = ["one", "two"].map(|name| Tenant::of_namespace(Some(name)));
        for text in ["a", "a", "b"] {
            said.keep(&one, "r", text, now);
        }
        assert!(told(&mut said, &two, "r", now).is_empty());
        // What could not be told is told the next time.
        said.tell(&one, "r", now, |_| false);
        assert_eq!(told(&mut said, &one, "r", now), ["a", "b"]);
        said.keep(&one, "r", "a", now);
        assert!(told(&mut said, &one, "r", now).is_empty(), "within the hour");
        said.keep(&one, "other", "c", now);
        assert_eq!(told(&mut said, &one, "other", now), ["c"]);
        let later = now + EVERY;
        said.keep(&one, "r", "a", later);
        assert_eq!(told(&mut said, &one, "r", later), ["a"]);
    }

    #[test]
    fn who_names_very_many_registries_keeps_nobody_from_being_told() {
        let (mut said, now) = (Said::default(), Instant::now());
        let tenant = |number: usize| Tenant::of_namespace(Some(&format!("n{number}")));
        for number in 0..100 {
            for registry in 0..100 {
                for text in 0..2 * TEXTS {
                    said.keep(&tenant(number), &registry.to_string(), &text.to_string().repeat(1000), now);
                }
                // Told or not, it takes a place.
                if registry % 2 == 0 {
                    told(&mut said, &tenant(number), &registry.to_string(), now);
                }
            }
            said.keep(&tenant(1000 + number), "r", "mine", now);
            assert_eq!(told(&mut said, &tenant(1000 + number), "r", now), ["mine"]);
        }
        assert!(said.askers.len() <= ASKERS, "{}", said.askers.len());
        let bytes = said.askers.values().flat_map(|untold| &untold.texts).map(String::len).sum::<usize>();
        assert!(bytes <= ASKERS * TEXTS * CHARACTERS, "{bytes}");
    }
}
