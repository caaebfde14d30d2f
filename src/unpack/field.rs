//! Values in extended headers.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

/// A name: any bytes but NUL.
pub(super) fn name(value: &[u8]) -> Result<Vec<u8>, &'static str> {
    if value.contains(&0) { Err("a name with NUL in it") } else { Ok(value.to_vec()) }
}

/// A number in decimal digits, at most what is positive with a sign.
pub(super) fn decimal(value: &[u8]) -> Result<u64, &'static str> {
    const BAD: &str = "an extended header with a number that is none";
    if value.is_empty() {
        return Err(BAD);
    }
    let number = value.iter().try_fold(0_u64, |number, digit| match digit {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    });
    // Sizes and offsets are signed everywhere else.
    number.filter(|number| i64::try_from(*number).is_ok()).ok_or(BAD)
}
