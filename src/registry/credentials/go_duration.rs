//! Lengths of time as Go writes them, which is how Kubernetes does: `12h0m0s`.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

/// What each unit is in nanoseconds. Those with two letters come first: `m` begins `ms`.
const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000), // U+00B5, the sign for micro.
    ("μs", 1_000), // U+03BC, the Greek letter.
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// The nanoseconds of `text`, or `None` when it is no duration or is longer than 292 years, which is the most that Go has.
///
/// Source: `time.ParseDuration` of Go, which `metav1.Duration` of Kubernetes is read with.
pub(in crate::registry) fn nanoseconds(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut sum: i64 = 0;
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let (number, after) = rest.split_at(end);
        let (unit, after) = UNITS.iter().find_map(|(name, unit)| Some((*unit, after.strip_prefix(name)?)))?;
        sum = sum.checked_add(product(number, unit)?)?;
        rest = after;
    }
    Some(sign * sum)
}

/// `number`, which may have a fraction, of `unit`.
fn product(number: &str, unit: i64) -> Option<i64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_number = !(whole.is_empty() && fraction.is_empty());
    if !is_number || fraction.contains('.') {
        return None;
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut sum = whole.checked_mul(unit)?;
    let mut part = unit;
    for digit in fraction.chars() {
        part /= 10;
        sum = sum.checked_add(part * i64::from(digit.to_digit(10)?))?;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_that_go_reads() {
        const SECOND: i64 = 1_000_000_000;
        for (text, expected) in [
            ("12h0m0s", Some(12 * 3600 * SECOND)),
            ("0", Some(0)),
            ("-0", Some(0)),
            ("0s", Some(0)),
            ("1m30s", Some(90 * SECOND)),
            ("1.5h", Some(5400 * SECOND)),
            (".5s", Some(SECOND / 2)),
            ("1.s", Some(SECOND)),
            ("100ms", Some(SECOND / 10)),
            ("1us2µs3μs4ns", Some(6004)),
            ("+5s", Some(5 * SECOND)),
            ("-5s", Some(-5 * SECOND)),
            ("2562047h47m16.854775807s", Some(i64::MAX)),
            ("", None),
            ("-", None),
            ("5", None),
            ("h", None),
            (".s", None),
            ("1.2.3s", None),
            ("1d", None),
            ("1 h", None),
            ("1h ", None),
            ("9999999h", None),
            ("99999999999999999999s", None),
        ] {
            assert_eq!(nanoseconds(text), expected, "{text:?}");
        }
    }
}
