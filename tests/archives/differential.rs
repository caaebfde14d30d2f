//! What ocivol accepts as a tar archive, GNU tar and Python read in the same way: the same names, kinds, metadata
//! and content. On archives that these tools made, and on the same archives with damage. The crates `tar` and `tar-core` are
//! asked, too; what they read in their own way is in `differential_crates.rs`.

use std::path::{Path, PathBuf};
use std::process::Command;

use ocivol::demo::tarball::{Header, Tarball};
use ocivol::layer::format::Profile;
use ocivol::unpack::tar::{Archive, Type};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use serde_json::{Value, json};

use crate::support::layers::unpack;
use crate::support::oracles;
use crate::support::raw::{Raw as _, block, with_checksum};
use crate::support::snapshot::{difference, snapshot};

/// The entries as ocivol reads them, in the form of `listing.py`; or why it does not.
fn ours(bytes: &[u8]) -> Result<Vec<Value>, String> {
    let mut archive = Archive::new(bytes);
    let mut entries = Vec::new();
    while let Some(header) = archive.next_entry().map_err(|error| error.to_string())? {
        let content = expanded(&header, &oracles::stored(&mut archive)?);
        let end = header.name.iter().rposition(|byte| *byte != b'/').map_or(0, |end| end + 1);
        let link = if matches!(header.kind, Type::HardLink | Type::Symlink) { &header.link[..] } else { &[] };
        entries.push(json!({
            "name": hex(&header.name[..end]), "kind": format!("{:?}", header.kind), "link": hex(link),
            "mode": header.mode, "uid": header.uid, "gid": header.gid, "mtime": header.mtime,
            "content": ocivol::oci::digest::Digest::sha256(&content).hex(),
        }));
    }
    Ok(entries)
}

/// The content of a file with its holes.
fn expanded(header: &ocivol::unpack::tar::Header, stored: &[u8]) -> Vec<u8> {
    let mut content = vec![0; header.size as usize];
    let mut at = 0;
    for (offset, length) in header.map.pieces() {
        let (offset, length) = (offset as usize, length as usize);
        let end = stored.len().min(at + length);
        content[offset..offset + (end - at)].copy_from_slice(&stored[at..end]);
        at = end;
    }
    content
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What Python and GNU tar say of each file.
fn theirs(files: &[PathBuf]) -> Vec<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/listing.py");
    let run = Command::new("python3").arg(script).args(files).output().expect("python3; run `make test`");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let lines = String::from_utf8(run.stdout).expect("JSON");
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Compares what was accepted; returns the first difference.
fn compare(bytes: &[u8], accepted: &[Value], theirs: &Value) -> Option<String> {
    let names: Vec<&Value> = accepted.iter().map(|entry| &entry["name"]).collect();
    if theirs["python"]["entries"] != json!(accepted) {
        return Some(format!("ocivol: {accepted:?}\npython: {}", theirs["python"]));
    }
    // GNU tar has read an archive without entries when it says so.
    if theirs["gnu"]["names"] != json!(names) && !bytes.is_empty() {
        return Some(format!("ocivol: {names:?}\nGNU tar: {}", theirs["gnu"]));
    }
    oracles::difference(bytes)
}

/// Fails the test when GNU tar or Python reads one of these archives in another way than ocivol.
pub fn assert_read_alike(archives: &[Vec<u8>]) {
    let directory = tempfile::tempdir().expect("a directory");
    let files: Vec<PathBuf> =
        (0..archives.len()).map(|number| directory.path().join(format!("{number}.tar"))).collect();
    for (file, bytes) in files.iter().zip(archives) {
        std::fs::write(file, bytes).expect("a file");
    }
    for (bytes, theirs) in archives.iter().zip(theirs(&files)) {
        let accepted = ours(bytes).unwrap_or_else(|error| panic!("{}: {error}", bytes.escape_ascii()));
        assert_eq!(compare(bytes, &accepted, &theirs), None);
    }
}

/// A directory with what archives have trouble with.
fn tree(directory: &Path) {
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::{PermissionsExt, symlink};
    std::fs::create_dir_all(directory.join("d/deep")).expect("directories");
    let long = "l".repeat(120);
    for (name, content) in [("plain", "content"), ("empty", ""), ("d/new\nline", "x"), ("d/deep/\u{e9}", "y")]
    {
        std::fs::write(directory.join(name), content).expect("a file");
    }
    std::fs::write(directory.join(std::ffi::OsStr::from_bytes(b"d/not-\xff-utf8")), "z").expect("a file");
    std::fs::write(directory.join("big"), vec![7; 100_000]).expect("a file");
    symlink("d/deep", directory.join("link")).expect("a link");
    std::fs::hard_link(directory.join("plain"), directory.join("same")).expect("a link");
    std::fs::set_permissions(directory.join("plain"), PermissionsExt::from_mode(0o640)).expect("a mode");
    std::fs::create_dir(directory.join(&long)).expect("a directory");
    std::fs::write(directory.join(&long).join(&long), "long").expect("a file");
    symlink("x".repeat(150), directory.join("far")).expect("a link");
    let epoch = std::time::UNIX_EPOCH;
    let file = std::fs::File::open(directory.join("empty")).expect("a file");
    file.set_modified(epoch + std::time::Duration::new(1_234_567_890, 5)).expect("a time");
}

/// Archives of that directory, in every format that GNU tar and Python write.
fn archives(directory: &Path) -> Vec<PathBuf> {
    let source = directory.join("source");
    tree(&source);
    let mut made = Vec::new();
    for format in ["v7", "oldgnu", "gnu", "ustar", "posix"] {
        let archive = directory.join(format!("{format}.tar"));
        let short = ["v7", "ustar", "oldgnu"].contains(&format);
        let mut tar = Command::new("tar");
        tar.arg(format!("--format={format}"))
            .arg("--sort=name")
            .arg("-C")
            .arg(&source)
            .arg("-cf")
            .arg(&archive);
        if short {
            // What these formats cannot hold.
            tar.arg("--exclude=./far").arg("--exclude=./lll*");
        }
        let run = tar.arg(".").output().expect("tar");
        assert!(run.status.success(), "{format}: {}", String::from_utf8_lossy(&run.stderr));
        made.push(archive);
    }
    for format in ["GNU", "PAX"] {
        let archive = directory.join(format!("python-{format}.tar"));
        let program = format!(
            "import sys, tarfile\nwith tarfile.open(sys.argv[1], 'w', format=tarfile.{format}_FORMAT) as t: t.add(sys.argv[2], '.')"
        );
        let run = Command::new("python3")
            .args(["-c", &program])
            .arg(&archive)
            .arg(&source)
            .output()
            .expect("python3");
        assert!(run.status.success(), "{format}: {}", String::from_utf8_lossy(&run.stderr));
        made.push(archive);
    }
    made
}

#[test]
fn archives_of_other_tools_are_read_as_they_read_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let made = archives(directory.path());
    for (path, theirs) in made.iter().zip(theirs(&made)) {
        let bytes = std::fs::read(path).expect("an archive");
        let accepted = ours(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(accepted.len() > 10);
        if let Some(difference) = compare(&bytes, &accepted, &theirs) {
            panic!("{}\n{difference}", path.display());
        }
    }
}

#[test]
fn regression_sparse_files_are_read_as_gnu_tar_writes_them() {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};
    let directory = tempfile::tempdir().expect("a directory");
    let source = directory.path().join("source");
    std::fs::create_dir_all(source.join("long")).expect("directories");
    for (name, size, data) in [
        ("disk.img", 40 << 20, &[0, 5_000_000, 39 << 20][..]),
        ("hole-at-end", 1_000_000, &[0]),
        ("hole-at-start", 1_000_001, &[999_000]),
        ("only-a-hole", 3 << 20, &[]),
        (&format!("long/{}", "l".repeat(120)), 700_000, &[300_000]),
    ] {
        let file = std::fs::File::create(source.join(name)).expect("a file");
        file.set_len(size).expect("a size");
        for offset in data {
            file.write_at(b"some data", *offset).expect("data");
        }
    }
    std::fs::write(source.join("plain"), "no hole").expect("a file");
    let mut made = Vec::new();
    for version in ["0.0", "0.1", "1.0"] {
        let archive = directory.path().join(format!("{version}.tar"));
        let mut tar = Command::new("tar");
        tar.args(["--format=posix", "--sparse", "--sort=name", "--sparse-version", version]);
        // Of two names of a sparse file, both in extended headers, GNU tar takes the one and Python the other.
        tar.arg("--exclude=./long");
        let run = tar.arg("-C").arg(&source).arg("-cf").arg(&archive).arg(".").output().expect("tar");
        assert!(run.status.success(), "{version}: {}", String::from_utf8_lossy(&run.stderr));
        made.push(archive);
    }
    for (path, theirs) in made.iter().zip(theirs(&made)) {
        let bytes = std::fs::read(path).expect("an archive");
        assert!(bytes.len() < 1 << 20, "it has no holes");
        let accepted = ours(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(accepted.len(), 6);
        if let Some(difference) = compare(&bytes, &accepted, &theirs) {
            panic!("{}\n{difference}", path.display());
        }
        let mut tar = Command::new("tar");
        tar.args(["--format=posix", "--sparse", "--sparse-version"])
            .arg(path.file_stem().expect("a version"));
        let all = tar.arg("-C").arg(&source).args(["-c", "."]).output().expect("tar");
        assert!(all.status.success(), "{}", String::from_utf8_lossy(&all.stderr));
        let bytes = all.stdout;
        let place = tempfile::tempdir().expect("a directory");
        unpack(place.path(), &bytes, Profile::Image, 1000).expect("unpacked");
        if let Some(difference) =
            difference(&snapshot(&place.path().join("fs")), &snapshot(&source), "the source")
        {
            panic!("{}: {difference}", path.display());
        }
        let taken = std::fs::metadata(place.path().join("fs/disk.img")).expect("a file").blocks() * 512;
        assert!(taken <= 3 * 64 * 1024, "holes stay holes: {taken} bytes");
    }
}

#[test]
fn archives_of_other_tools_are_unpacked_as_gnu_tar_does() {
    let directory = tempfile::tempdir().expect("a directory");
    for path in archives(directory.path()) {
        let (one, two) = (directory.path().join("ours"), directory.path().join("theirs"));
        for place in [&one, &two] {
            let _ = std::fs::remove_dir_all(place);
            std::fs::create_dir(place).expect("a directory");
        }
        let bytes = std::fs::read(&path).expect("an archive");
        unpack(&one, &bytes, Profile::Image, 1000)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let run =
            Command::new("tar").arg("--numeric-owner").arg("-xpf").arg(&path).arg("-C").arg(&two).output();
        assert!(run.expect("tar").status.success());
        if let Some(difference) = difference(&snapshot(&one.join("fs")), &snapshot(&two), "GNU tar") {
            panic!("{}: {difference}", path.display());
        }
    }
}

/// A change to an archive.
#[derive(Debug, Clone)]
struct Damage {
    archive: usize,
    at: usize,
    byte: u8,
    /// Makes the header's checksum right again.
    hide: bool,
}

fn seeds() -> Vec<Vec<u8>> {
    let long = "n".repeat(130);
    let gnu = |header: Header| {
        let mut block = block(&header);
        block[257..265].copy_from_slice(b"ustar  \0");
        with_checksum(block)
    };
    let prefixed = {
        let mut block = block(&Header::new("name", b'0'));
        block[345..348].copy_from_slice(b"a/b");
        with_checksum(block)
    };
    vec![
        Tarball::new().file("a", b"content").directory("d").symlink("s", "a").hard_link("h", "a").finish(),
        Tarball::new()
            .pax(&[("path", b"renamed"), ("size", b"3"), ("mtime", b"12.5")])
            .file("x", b"abc")
            .finish(),
        Tarball::new().extended(b'g', b"20 comment=whatever\n").file("x", b"abc").file("y", b"").finish(),
        Tarball::new()
            .extended(b'L', format!("{long}\0").as_bytes())
            .raw(&gnu(Header { size: 2, ..Header::new("short", b'0') }))
            .raw(b"ok")
            .finish(),
        Tarball::new().raw(&prefixed).file("z", b"1").finish(),
        // What is no file has no content, whatever its header says. (GNU tar takes a symlink's for content when it lists, and
        // not when it extracts.)
        Tarball::new()
            .entry(&Header { size: 512, ..Header::new("d", b'5') }, b"")
            .file("a", b"content")
            .entry(&Header { size: 7, link: b"a".to_vec(), ..Header::new("h", b'1') }, b"")
            .finish(),
        Tarball::new()
            .pax(&[
                ("GNU.sparse.size", b"9"),
                ("GNU.sparse.numblocks", b"2"),
                ("GNU.sparse.offset", b"1"),
                ("GNU.sparse.numbytes", b"2"),
                ("GNU.sparse.offset", b"8"),
                ("GNU.sparse.numbytes", b"1"),
            ])
            .file("zero", b"abc")
            .pax(&[
                ("GNU.sparse.major", b"0"),
                ("GNU.sparse.minor", b"1"),
                ("GNU.sparse.name", b"one"),
                ("GNU.sparse.size", b"9"),
                ("GNU.sparse.numblocks", b"2"),
                ("GNU.sparse.map", b"1,2,8,1"),
            ])
            .file("made/up", b"abc")
            .finish(),
        {
            let mut content = b"2\n1\n2\n8\n1\n".to_vec();
            content.resize(512, 0);
            content.extend_from_slice(b"abc");
            Tarball::new()
                .pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.name", b"ten"),
                    ("GNU.sparse.realsize", b"9"),
                ])
                .file("made/up", &content)
                .file("after", b"x")
                .finish()
        },
    ]
}

#[test]
fn what_is_accepted_of_damaged_archives_has_one_reading() {
    let seeds = seeds();
    let damage = (0..seeds.len(), any::<prop::sample::Index>(), any::<u8>(), any::<bool>()).prop_map({
        let lengths: Vec<usize> = seeds.iter().map(Vec::len).collect();
        move |(archive, at, byte, hide)| Damage { archive, at: at.index(lengths[archive] - 512), byte, hide }
    });
    // Numbers and letters make more sense than any byte.
    let damage = (damage, prop::option::of(prop::sample::select(b"0127xgLK5 /.=\0".to_vec())))
        .prop_map(|(damage, byte)| Damage { byte: byte.unwrap_or(damage.byte), ..damage });
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let directory = tempfile::tempdir().expect("a directory");
    let (mut files, mut accepted, mut damages) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..6000 {
        let damage = damage.new_tree(&mut runner).expect("a case").current();
        let mut bytes = seeds[damage.archive].clone();
        bytes[damage.at] = damage.byte;
        if damage.hide {
            let start = damage.at / 512 * 512;
            let block: [u8; 512] = bytes[start..start + 512].try_into().expect("a block");
            bytes[start..start + 512].copy_from_slice(&with_checksum(block));
        }
        let Ok(entries) = ours(&bytes) else { continue };
        let path = directory.path().join(format!("{number}.tar"));
        std::fs::write(&path, &bytes).expect("a file");
        files.push(path);
        accepted.push((bytes, entries));
        damages.push(damage);
    }
    assert!(files.len() > 500, "only {} of 6000 are accepted", files.len());
    let mut differences = Vec::new();
    for (((bytes, entries), theirs), damage) in accepted.iter().zip(theirs(&files)).zip(&damages) {
        differences.extend(compare(bytes, entries, &theirs).map(|text| format!("{damage:?}\n{text}")));
    }
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences[..differences.len().min(12)].join("\n\n")
    );
}
