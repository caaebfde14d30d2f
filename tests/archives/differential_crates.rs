//! Where the crates `tar` and `tar-core` read something else than ocivol: what they guess at and ocivol refuses, and what
//! ocivol reads as GNU tar, Python and Go do. What all of them accept is compared in `differential.rs` and by fuzzing.

use ocivol::demo::tarball::{DIRECTORY, FILE, Header, Tarball};

use crate::archives::differential::assert_read_alike;
use crate::support::oracles::{Entry, by_ocivol, by_tar, by_tar_core};
use crate::support::raw::{Raw as _, block, with_checksum};

/// Names and sizes in a line.
fn line(entries: &[Entry]) -> String {
    let words = entries.iter().map(|entry| format!("{}:{}", entry.name.escape_ascii(), entry.size));
    words.collect::<Vec<_>>().join(" ")
}

/// How ocivol reads an archive, how `tar` does, and how `tar-core` does; for each a line, or why it is refused.
fn readings(archive: &[u8]) -> [Result<String, String>; 3] {
    [
        by_ocivol(archive).map(|entries| line(&entries)),
        by_tar(archive).map(|reading| line(&reading.entries)),
        by_tar_core(archive).map(|reading| line(&reading.entries)),
    ]
}

/// A header in the format of GNU tar.
fn gnu(header: &Header) -> [u8; 512] {
    let mut block = block(header);
    block[257..265].copy_from_slice(b"ustar  \0");
    with_checksum(block)
}

/// Stands for a reading of an archive that is refused.
const REFUSED: &str = "refused";

fn is(reading: &Result<String, String>, expected: &str) -> bool {
    reading.as_deref().unwrap_or(REFUSED) == expected
}

#[test]
fn what_is_usual_is_read_alike() {
    let long = "l".repeat(120);
    let archive = Tarball::new()
        .directory("d/")
        .file("d/a", b"content")
        .file(&long, b"more")
        .symlink("s", &long)
        .hard_link("h", "d/a")
        .pax(&[("path", b"renamed"), ("size", b"3")])
        .entry(&Header::new("x", FILE), b"abc")
        .finish();
    let ours = by_ocivol(&archive).expect("it is sound");
    assert_eq!(ours.len(), 6);
    for reading in [by_tar(&archive), by_tar_core(&archive)] {
        let reading = reading.expect("it is sound");
        // Else nothing would be compared.
        assert_eq!(reading.odd, None);
        assert_eq!(reading.entries, ours);
    }
}

#[test]
fn what_the_crates_guess_at_is_refused() {
    let file = |name: &str| Tarball::new().file(name, b"");
    let old_sparse = {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[0] = b's';
        header.set_mode(0o644);
        header.set_entry_type(tar::EntryType::GNUSparse);
        header.set_size(3);
        let gnu = header.as_gnu_mut().expect("it is one");
        gnu.set_real_size(9);
        gnu.sparse[0].set_offset(6);
        gnu.sparse[0].set_length(3);
        header.set_cksum();
        Tarball::new().raw(header.as_bytes()).raw(b"abc")
    };
    let times = {
        let mut block = gnu(&Header::new("f", FILE));
        block[345..357].copy_from_slice(b"14000000000\0");
        with_checksum(block)
    };
    // An archive, the rule that it breaks, and what the crates read in it.
    let table = [
        (
            Tarball::new().pax(&[("path", b"a")]).extended(b'L', b"b\0").file("c", b""),
            "two names",
            "b:0",
            "a:0",
        ),
        (file("a").raw(&[0; 512]).file("b", b""), "after the end", "a:0", "a:0 b:0"),
        (file("a").raw(&[0; 1024]).file("b", b""), "after the end", "a:0", "a:0"),
        (Tarball::new().extended(b'g', b"9 path=b\n").file("a", b""), "global header", "a:0", "a:0"),
        (Tarball::new().extended(b'g', b"9 size=1\n").file("a", b""), "global header", "a:0", "a:0"),
        (
            Tarball::new().pax(&[("path", b"a")]).extended(b'g', b"").file("b", b""),
            "global header",
            "b:0",
            "b:0",
        ),
        (old_sparse, "sparse file of the old GNU kind", "s:9", "s:3"),
        (file("f/"), "ends in a slash", "f/:0", "f/:0"),
        (Tarball::new().entry(&Header::new("f", b'Z'), b""), "unknown type", "f:0", "f:0"),
        (Tarball::new().extended(b'x', b"99 path=b\n").file("a", b""), "not sound", "a:0", REFUSED),
        (Tarball::new().extended(b'x', b"x").file("a", b""), "not sound", "a:0", "a:0"),
        (Tarball::new().pax(&[("size", b"-1")]).file("a", b"x"), "number", "a:1", REFUSED),
        (Tarball::new().pax(&[("size", b"+1")]).file("a", b"x"), "number", "a:1", "a:1"),
        (Tarball::new().pax(&[("size", b"")]).file("a", b"x"), "empty name or size", "a:1", REFUSED),
        (Tarball::new().pax(&[("path", b"")]).file("a", b"x"), "empty name or size", ":1", ":1"),
        (Tarball::new().pax(&[("path", b"a\0b")]).file("a", b"x"), "NUL", "a\\x00b:1", "a\\x00b:1"),
        (
            Tarball::new().pax(&[("path", b"f")]).entry(&Header::new("d/", 0), b""),
            "by one of its names",
            "f:0",
            "f:0",
        ),
        (Tarball::new().raw(&times), "times", "f:0", "f:0"),
    ];
    let mut wrong = Vec::new();
    for (archive, rule, tar, tar_core) in table {
        let [ours, by_tar, by_tar_core] = readings(&archive.finish());
        let refusal = ours.expect_err(rule);
        let agrees = refusal.contains(rule) && is(&by_tar, tar) && is(&by_tar_core, tar_core);
        if !agrees {
            wrong.push(format!("{rule}: ocivol: {refusal}; tar: {by_tar:?}; tar-core: {by_tar_core:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_the_crates_read_in_their_own_way() {
    let prefixed = {
        let mut block = block(&Header::new("f", FILE));
        block[263..265].copy_from_slice(b"  ");
        block[345..348].copy_from_slice(b"a/b");
        with_checksum(block)
    };
    let before_posix = {
        let mut block = block(&Header { size: 9, ..Header::new("x", b'x') });
        block[257..265].fill(0);
        with_checksum(block)
    };
    let signed = {
        let mut block = block(&Header::new("\u{e9}", FILE));
        let sum: i64 = block.iter().map(|byte| i64::from(byte.cast_signed())).sum();
        let own: i64 = block[148..156].iter().map(|byte| i64::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{:07o}\0", sum - own + 8 * 32).as_bytes());
        block
    };
    // What ocivol reads, as GNU tar, Python and Go do, and what the crates do.
    let table = [
        // A directory has no content, so the entry after it is one.
        (
            Tarball::new().entry(&Header { size: 512, ..Header::new("d", DIRECTORY) }, b"").file("a", b""),
            "d:0 a:0",
            "d:512",
            "d:512",
        ),
        // POSIX: of records with the same key the last one counts.
        (Tarball::new().pax(&[("path", b"a"), ("path", b"b")]).file("c", b""), "b:0", "a:0", "b:0"),
        (Tarball::new().pax(&[("path", b"a\nb")]).file("c", b""), "a\\nb:0", "c:0", "a\\nb:0"),
        (
            Tarball::new()
                .pax(&[
                    ("GNU.sparse.size", b"9"),
                    ("GNU.sparse.numblocks", b"1"),
                    ("GNU.sparse.map", b"0,1"),
                    ("GNU.sparse.name", b"s"),
                ])
                .file("f", b"x"),
            "s:1",
            "f:1",
            "s:1",
        ),
        (Tarball::new().extended(b'L', b"a\0b").file("c", b""), "a:0", "a\\x00b:0", "a\\x00b:0"),
        (Tarball::new().raw(&prefixed), "a/b/f:0", "f:0", "f:0"),
        (Tarball::new().raw(&before_posix).raw(b"9 path=b\n").file("a", b""), "b:0", "x:9 a:0", "x:9 a:0"),
        (Tarball::new().pax(&[("mtime", b"-1")]).file("a", b""), "a:0", "a:0", REFUSED),
        (Tarball::new().raw(&signed), "\\xc3\\xa9:0", REFUSED, REFUSED),
    ];
    let mut wrong = Vec::new();
    let mut archives = Vec::new();
    for (archive, ocivol, tar, tar_core) in table {
        let archive = archive.finish();
        let [ours, by_tar, by_tar_core] = readings(&archive);
        archives.push(archive);
        if !(is(&ours, ocivol) && is(&by_tar, tar) && is(&by_tar_core, tar_core)) {
            wrong.push(format!("{ocivol}: ocivol: {ours:?}; tar: {by_tar:?}; tar-core: {by_tar_core:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_read_alike(&archives);
}
