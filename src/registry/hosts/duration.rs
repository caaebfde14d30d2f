//! Spans of time as Go writes them: `1h15m`, `500ms`, `1.5s`. Source: Go's `time.ParseDuration`, and `metav1.Duration`, which is the
//! same as text.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::time::Duration;

/// Units, longest name first: `ms` is no `m`.
const UNITS: [(&str, f64); 8] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("\u{b5}s", 1e-6),
    ("\u{3bc}s", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];
/// Spans above are cut: a hundred years.
const LONGEST: f64 = 100.0 * 365.0 * 24.0 * 3600.0;

/// The span that `text` says; `None` when it says none, or one below zero.
pub fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let end = rest.find(|character: char| !character.is_ascii_digit() && character != '.')?;
        let (number, after) = rest.split_at(end);
        let number: f64 = number.parse().ok()?;
        let (unit, each) = UNITS.iter().find(|(unit, _)| after.starts_with(unit))?;
        seconds += number * each;
        rest = after.strip_prefix(unit)?;
    }
    (!text.is_empty()).then(|| Duration::from_secs_f64(seconds.min(LONGEST)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_as_go_writes_them() {
        for (text, milliseconds) in [
            ("0", 0),
            ("0s", 0),
            ("500ms", 500),
            ("3s", 3000),
            ("1.5s", 1500),
            ("1h15m30.918s", 4_530_918),
            ("12h0m0s", 43_200_000),
            ("100us", 0),
        ] {
            assert_eq!(parse(text).map(|it| it.as_millis()), Some(milliseconds), "{text}");
        }
        for text in ["", " ", "3", "-1s", "s", "1x", "1s2", "1..2s", "one second"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert!(parse("99999999999999h").is_some());
    }
}
