//! PAX extended headers: `length key=value\n`, as often as there are keys.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use crate::unpack::field::{decimal, name};
use crate::unpack::sparse;

/// What an extended header says of the entry after it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Extended {
    pub path: Option<Vec<u8>>,
    pub linkpath: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Seconds, and nanoseconds after them.
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where its holes are.
    pub sparse: Option<sparse::Stated>,
}

const SPARSE: &[u8] = b"GNU.sparse.";
const XATTR: &[u8] = b"SCHILY.xattr.";
/// Attributes of one entry.
const XATTR_LIMIT: usize = 32;

/// Reads the header of one entry.
pub(super) fn parse(bytes: &[u8]) -> Result<Extended, &'static str> {
    let mut extended = Extended::default();
    for record in records(bytes) {
        let (key, value) = record?;
        // An empty value takes a key back, or is a name or size that is empty: tools do not agree.
        if value.is_empty() && [&b"path"[..], b"linkpath", b"size"].contains(&key) {
            return Err("an extended header with an empty name or size");
        }
        let stated = (!value.is_empty()).then_some(value);
        match key {
            b"path" => extended.path = stated.map(name).transpose()?,
            b"linkpath" => extended.linkpath = stated.map(name).transpose()?,
            b"size" => extended.size = stated.map(decimal).transpose()?,
            b"uid" => extended.uid = stated.map(owner).transpose()?,
            b"gid" => extended.gid = stated.map(owner).transpose()?,
            b"mtime" => extended.mtime = stated.map(time).transpose()?,
            _ => {
                if let Some(key) = key.strip_prefix(SPARSE) {
                    extended.sparse.get_or_insert_default().record(key, value)?;
                }
                if let Some(attribute) = key.strip_prefix(XATTR) {
                    extended.xattrs.retain(|(known, _)| known != attribute);
                    if extended.xattrs.len() >= XATTR_LIMIT {
                        return Err("more than 32 extended attributes");
                    }
                    if attribute.is_empty() || attribute.contains(&0) {
                        return Err("an extended attribute without a name");
                    }
                    extended.xattrs.push((attribute.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(extended)
}

/// Checks a global header. Tools disagree on whether it changes the entries after it, so it must not want to;
/// `git archive` leaves a comment in one.
pub(super) fn check_global(bytes: &[u8]) -> Result<(), &'static str> {
    for record in records(bytes) {
        let (key, _) = record?;
        let changes = [&b"path"[..], b"linkpath", b"size", b"uid", b"gid", b"mtime"].contains(&key)
            || key.starts_with(XATTR)
            || key.starts_with(SPARSE);
        if changes {
            return Err("a global header that changes the entries after it");
        }
    }
    Ok(())
}

type Record<'a> = Result<(&'a [u8], &'a [u8]), &'static str>;

fn records(mut bytes: &[u8]) -> impl Iterator<Item = Record<'_>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let result = record(bytes);
        bytes = result.map_or(&[], |(_, rest)| rest);
        Some(result.map(|(record, _)| record))
    })
}

type Split<'a> = ((&'a [u8], &'a [u8]), &'a [u8]);

fn record(bytes: &[u8]) -> Result<Split<'_>, &'static str> {
    const BAD: &str = "an extended header that is not sound";
    let space = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or(BAD)?;
    let (stated, _) = bytes.split_at_checked(space).ok_or(BAD)?;
    let length = usize::try_from(decimal(stated)?).map_err(|_| BAD)?;
    let (record, rest) = bytes.split_at_checked(length).ok_or(BAD)?;
    let body = record.get(space + 1..).and_then(|body| body.strip_suffix(b"\n")).ok_or(BAD)?;
    let equals = body.iter().position(|byte| *byte == b'=').ok_or(BAD)?;
    let (key, value) = body.split_at_checked(equals).ok_or(BAD)?;
    if key.is_empty() || key.contains(&0) {
        return Err(BAD);
    }
    Ok(((key, value.get(1..).unwrap_or_default()), rest))
}

/// Some tools write 32 bits with a sign. But -1 tells chown(2) to leave the owner.
fn owner(value: &[u8]) -> Result<u32, &'static str> {
    let number = match value.strip_prefix(b"-") {
        Some(digits) => {
            let number = i32::try_from(decimal(digits)?).map_err(|_| "an owner that is none")?;
            u64::from((-number).cast_unsigned())
        }
        None => decimal(value)?,
    };
    u32::try_from(number).ok().filter(|id| *id != u32::MAX).ok_or("an owner that is none")
}

/// `-1.5` is half a second after -2.
fn time(value: &[u8]) -> Result<(i64, u32), &'static str> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let dot = value.iter().position(|byte| *byte == b'.').unwrap_or(value.len());
    let whole = value.get(..dot).unwrap_or_default();
    let seconds = i64::try_from(decimal(whole)?).map_err(|_| "a time that is none")?;
    let mut nanos = 0_u32;
    let mut unit = 100_000_000;
    for digit in value.get(dot + 1..).unwrap_or_default() {
        if !digit.is_ascii_digit() {
            return Err("a time that is none");
        }
        nanos += unit * u32::from(digit - b'0');
        unit /= 10;
    }
    Ok(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(key: &str, value: &str) -> String {
        let body = format!(" {key}={value}\n");
        let mut length = body.len() + 1;
        while format!("{length}{body}").len() != length {
            length += 1;
        }
        format!("{length}{body}")
    }

    #[test]
    fn records_are_read() {
        let text = line("path", "a=b\nc")
            + &line("mtime", "-1.5")
            + &line("size", "8589934592")
            + &line("SCHILY.xattr.user.a", "x")
            + &line("SCHILY.xattr.user.a", "y")
            + &line("comment", "")
            + &line("gid", "-2")
            + &line("uid", "7")
            + &line("uid", "");
        let extended = parse(text.as_bytes()).expect("sound");
        assert_eq!(extended.path.as_deref(), Some(&b"a=b\nc"[..]));
        assert_eq!(extended.mtime, Some((-2, 500_000_000)));
        assert_eq!((extended.size, extended.uid), (Some(8_589_934_592), None));
        assert_eq!(extended.gid, Some(4_294_967_294));
        assert_eq!(extended.xattrs, [(b"user.a".to_vec(), b"y".to_vec())]);
    }

    #[test]
    fn t46_what_is_malformed_is_refused() {
        for bad in [
            "x",
            "5 a=b",
            "6 a=b\nx",
            "99 a=b\n",
            "0 a=b\n",
            "3 \n",
            "6 =ab\n",
            "-6 a=b\n",
            " a=b\n",
            "5 abc\n",
            "00000000000000000000000006 a=b\n",
            "18446744073709551622 a=b\n",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad:?} was accepted");
        }
        for (key, value) in [
            ("size", "-1"),
            ("size", "x"),
            ("size", "9223372036854775808"),
            ("uid", "4294967295"),
            ("uid", "-1"),
            ("uid", "--2"),
            ("gid", "-2147483649"),
            ("path", "a\0b"),
            ("mtime", "1.2.3"),
            ("mtime", "."),
            ("GNU.sparse.major", "x"),
            ("SCHILY.xattr.", "x"),
        ] {
            assert!(parse(line(key, value).as_bytes()).is_err(), "{key}={value:?} was accepted");
        }
        assert!(check_global(line("comment", "x").as_bytes()).is_ok());
        assert!(check_global(line("path", "x").as_bytes()).is_err());
    }
}
