//! What registries want people to know: `Warning` headers.
//!
//! Source: distribution-spec v1.1, "Warnings": `299 - "text"`, and at most 4096 bytes of them.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::header::HeaderMap;

use crate::failure::one_line;

/// What was told already. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Warnings(Arc<Mutex<HashSet<(String, String)>>>);

/// Bytes of warnings in one answer.
const BYTES: usize = 4096;
/// Warnings of one host that are told, as long as the process lives.
const OF_A_HOST: usize = 8;
/// The same of all.
const LIMIT: usize = 1024;

impl Warnings {
    /// Tells, once, what an answer of `host` warns of.
    pub fn tell(&self, host: &str, headers: &HeaderMap) {
        for text in texts(headers) {
            let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let of_host = told.iter().filter(|(known, _)| known == host).count();
            if of_host >= OF_A_HOST || told.len() >= LIMIT {
                return;
            }
            if told.insert((host.to_owned(), text.clone())) {
                tracing::warn!(host, warning = text, "the registry warns");
            }
        }
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
}
