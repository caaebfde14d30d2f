//! Archives made of hostile entries, unpacked on a real file system: nothing outside the directory changes, and what
//! is there afterwards is what the index says.
#![no_main]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use arbitrary::Arbitrary;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use ocivol::layer::entries::Entries;
use ocivol::layer::format::{INDEX, Profile, place_of};
use ocivol::layer::index::EntryKind;
use ocivol::layer::merge::Merge;
use ocivol::unpack::directory_memory::DirectoryMemory;
use ocivol::unpack::extract::Limits;
use ocivol::unpack::pipeline::Unpack;
use ocivol::unpack::space::Space;

#[derive(Debug, Arbitrary)]
struct Case {
    image: bool,
    entries: Vec<Entry>,
    /// Written over the archive, to be odd in ways that entries cannot be.
    damage: Option<(u16, u8)>,
}

#[derive(Debug, Arbitrary)]
struct Entry {
    name: Vec<Part>,
    link: Vec<Part>,
    kind: u8,
    mode: u16,
    size: u8,
    long: bool,
    /// Zeros before and after the content, which the archive does not have.
    holes: Option<(u8, u8)>,
}

#[derive(Debug, Arbitrary, Clone, Copy)]
enum Part {
    A,
    B,
    C,
    Up,
    Here,
    Root,
    Probe,
    Whiteout,
    Opaque,
    AufsLinks,
    Byte(u8),
}

fn text(parts: &[Part], probe: &Path) -> Vec<u8> {
    let mut text = Vec::new();
    for (number, part) in parts.iter().take(12).enumerate() {
        if number > 0 && !matches!(part, Part::Byte(_)) && !text.ends_with(b".wh.") {
            text.push(b'/');
        }
        match part {
            Part::A => text.push(b'a'),
            Part::B => text.push(b'b'),
            Part::C => text.push(b'c'),
            Part::Up => text.extend_from_slice(b".."),
            Part::Here => text.push(b'.'),
            Part::Root => text.push(b'/'),
            Part::Probe => text.extend_from_slice(probe.as_os_str().as_encoded_bytes()),
            Part::Whiteout => text.extend_from_slice(b".wh."),
            Part::Opaque => text.extend_from_slice(b".wh..wh..opq"),
            Part::AufsLinks => text.extend_from_slice(b".wh..wh.plnk"),
            Part::Byte(byte) => text.push(*byte),
        }
    }
    text
}

fn archive(case: &Case, probe: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in case.entries.iter().take(40) {
        let (name, link) = (text(&entry.name, probe), text(&entry.link, probe));
        if entry.long || name.len() > 100 || link.len() > 100 {
            for (kind, value) in [(b'L', &name), (b'K', &link)] {
                all.extend_from_slice(&block(b"x", b"", kind, 0o644, value.len()));
                all.extend_from_slice(value);
                all.resize(all.len().next_multiple_of(512), 0);
            }
        }
        let kind = b"0123456500122"[usize::from(entry.kind) % 13];
        // What is no file has no content, whatever its header says.
        let size = if kind == b'0' { usize::from(entry.size) } else { 0 };
        if let (b'0', Some((before, after))) = (kind, entry.holes) {
            let (before, after) = (usize::from(before) * 3000, usize::from(after) * 3000);
            let mut records = Vec::new();
            for (key, value) in
                [("size", format!("{}", before + size + after)), ("map", format!("{before},{size}"))]
            {
                let body = format!(" GNU.sparse.{key}={value}\n");
                let length = if body.len() < 98 { body.len() + 2 } else { body.len() + 3 };
                records.extend_from_slice(format!("{length}{body}").as_bytes());
            }
            all.extend_from_slice(&block(b"x", b"", b'x', 0o644, records.len()));
            all.extend_from_slice(&records);
            all.resize(all.len().next_multiple_of(512), 0);
        }
        all.extend_from_slice(&block(&name, &link, kind, entry.mode, usize::from(entry.size)));
        all.resize(all.len() + size.next_multiple_of(512), b'x');
    }
    if let Some((at, byte)) = case.damage
        && let Some(place) = all.get_mut(usize::from(at))
    {
        *place = byte;
    }
    all.resize(all.len() + 1024, 0);
    all
}

fn block(name: &[u8], link: &[u8], kind: u8, mode: u16, size: usize) -> [u8; 512] {
    let mut block = [0_u8; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name[..name.len().min(100)]);
    put(100, format!("{:07o}\0", mode & 0o7777).as_bytes());
    put(108, b"0000000\00000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"14000000000\0        ");
    put(156, &[kind]);
    put(157, &link[..link.len().min(100)]);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fuzz_target!(|case: Case| {
    let shared = if Path::new("/dev/shm").is_dir() { Path::new("/dev/shm") } else { Path::new("/tmp") };
    let directory = tempfile::tempdir_in(shared).expect("a directory");
    let (probe, layer) = (directory.path().join("probe"), directory.path().join("layer"));
    fs::create_dir(&probe).expect("a directory");
    fs::create_dir(&layer).expect("a directory");
    fs::write(probe.join("file"), "untouched").expect("a file");
    let look = || {
        let (outer, inner) =
            (fs::metadata(&probe).expect("there"), fs::metadata(probe.join("file")).expect("there"));
        let facts =
            |found: &fs::Metadata| (found.mode(), found.mtime_nsec(), found.ctime_nsec(), found.nlink());
        (
            facts(&outer),
            facts(&inner),
            fs::read(probe.join("file")).expect("there"),
            fs::read_dir(&probe).expect("there").count(),
        )
    };
    let before = look();

    let profile = if case.image { Profile::Image } else { Profile::Archive };
    let bytes = archive(&case, &probe);
    let mut unpack = Unpack::start(
        &layer,
        profile,
        Limits { bytes: 1 << 26, space: Space::ALL, directories: DirectoryMemory::Own },
        None,
    )
    .expect("space");
    let result = unpack.push(Bytes::from(bytes)).and_then(|_| unpack.finish());

    assert_eq!(before, look(), "the probe was changed");
    assert_eq!(fs::read_dir(directory.path()).expect("there").count(), 2);
    let Ok(summary) = result else { return };
    let index = fs::read(layer.join(INDEX)).expect("an index");
    let entries =
        Entries::read(index.as_slice(), summary.index, summary.entries, index.len() as u64).expect("sound");
    assert_eq!(entries.len(), summary.entries);
    for (number, entry) in entries.iter() {
        if let EntryKind::File { size, place, .. } = &entry.kind {
            let path = layer.join(place_of(&entry.name, *place, number));
            let found = fs::symlink_metadata(path).expect("it is where the index says");
            assert!(found.is_file() && found.len() == *size && found.mode() & 0o7000 == 0);
        }
    }
    let _ = Merge::new(profile).apply(&entries, None);
});
