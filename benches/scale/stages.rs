//! What the stages take on one core that bytes and files go through: how fast a node can be at most, whatever its network.

use std::fs::{self, File};
use std::io::IoSlice;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use ocivol::layer::checksum::Checksum;
use ocivol::oci::digest::Algorithm;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use crate::support::noise;

/// Bytes that are hashed and written, at a time and in all.
const PIECE: usize = 256 << 10;
const BYTES: u64 = 1 << 30;
/// Bytes of a large file, how many are written at a time, and where they begin in memory.
const LARGE: u64 = 2 << 30;
const LARGE_PIECE: usize = 1 << 20;
const ALIGNED: usize = 4096;
const ROUNDS: usize = 3;
/// Files that are made and linked, a hundred in each directory.
const FILES: usize = 20_000;

/// Measures and prints them. What is written goes where tests write.
pub fn print() {
    let place = tempfile::Builder::new().prefix("ocivol-bench-").tempdir().expect("a directory");
    let piece = noise(1, PIECE);
    let pieces = BYTES / PIECE as u64;
    let mut hasher = Algorithm::Sha256.hasher();
    let hash = took(|| (0..pieces).for_each(|_| hasher.update(&piece)));
    std::hint::black_box(hasher.finish());
    let checksum = took(|| {
        for _ in 0..pieces {
            std::hint::black_box(Checksum::of(&piece));
        }
    });
    let file = File::create_new(place.path().join("file")).expect("a file");
    let write = took(|| {
        for number in 0..pieces {
            file.write_all_at(&piece, number * PIECE as u64).expect("written");
        }
    });
    drop(file);
    println!("On one core, of this process' time on it:\n\n| stage | |\n|---|---|");
    for (stage, time) in [("SHA-256", hash), ("XXH3-128", checksum), ("write into the page cache", write)] {
        println!("| {stage} | {:.2} GB/s |", BYTES as f64 / 1e9 / time.as_secs_f64());
    }
    let (made, linked) = (place.path().join("made"), place.path().join("linked"));
    let of_one = |time: Duration, count: usize| time.as_secs_f64() * 1e6 / count as f64;
    let directories = took(|| directories(&linked)) + took(|| directories(&made));
    println!("| make a directory | {:.1} µs |", of_one(directories, FILES / 100 * 2));
    println!("| make a file of 512 bytes | {:.1} µs |", of_one(took(|| files(&made)), FILES));
    println!("| link a file | {:.1} µs |", of_one(took(|| links(&made, &linked)), FILES));
    print_ways(place.path());
}

/// A way to write a large file: its name, flags of the descriptor, and flags of each write.
type Way = (&'static str, OFlags, ReadWriteFlags);

/// RWF_DONTCACHE of linux/fs.h, from Linux 6.14 on: what was written does not stay in the page cache once it is on the disk.
const DONTCACHE: u32 = 0x80;

/// What it takes until a large file is on the disk, by way: whether it is in memory afterwards differs.
fn print_ways(place: &Path) {
    let ways: [Way; 3] = [
        ("through the page cache", OFlags::empty(), ReadWriteFlags::empty()),
        (
            "the same, not kept there (`RWF_DONTCACHE`)",
            OFlags::empty(),
            ReadWriteFlags::from_bits_retain(DONTCACHE),
        ),
        ("past it (`O_DIRECT`)", OFlags::DIRECT, ReadWriteFlags::empty()),
    ];
    println!(
        "\n| {} GiB to the disk, {ROUNDS} times each | seconds | CPU seconds |\n|---|---|---|",
        LARGE >> 30
    );
    let mut times: [Vec<(f64, f64)>; 3] = Default::default();
    for _ in 0..ROUNDS {
        for ((_, open, flags), times) in ways.iter().zip(&mut times) {
            rustix::fs::sync();
            let began = Instant::now();
            let mut written = Ok(());
            let cpu = took(|| written = write(&place.join("large"), *open, *flags));
            if written.is_ok() {
                times.push((began.elapsed().as_secs_f64(), cpu.as_secs_f64()));
            }
            let _ = fs::remove_file(place.join("large")); // It may not have been made.
        }
    }
    for ((name, ..), mut times) in ways.iter().zip(times) {
        if times.len() < ROUNDS {
            println!("| {name} | not with this kernel and file system | |");
            continue;
        }
        times.sort_by(|one, two| one.0.total_cmp(&two.0));
        let (least, (_, cpu), most) = (times[0].0, times[ROUNDS / 2], times[ROUNDS - 1].0);
        println!("| {name} | {least:.2}–{most:.2} | {cpu:.2} |");
    }
}

fn write(path: &Path, open: OFlags, flags: ReadWriteFlags) -> Result<(), Errno> {
    // Where O_DIRECT wants it: at the begin of a page.
    let room = noise(2, LARGE_PIECE + ALIGNED);
    let begin = room.as_ptr().align_offset(ALIGNED);
    let piece = &room[begin..begin + LARGE_PIECE];
    let flags_of_file = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | open;
    let file = rustix::fs::openat(CWD, path, flags_of_file, Mode::from_raw_mode(0o600))?;
    let mut position = 0;
    while position < LARGE {
        let written = rustix::io::pwritev2(&file, &[IoSlice::new(piece)], position, flags)?;
        position += written as u64;
    }
    rustix::fs::fsync(&file)
}

fn directories(root: &Path) {
    fs::create_dir(root).expect("a directory");
    (0..FILES / 100).for_each(|number| fs::create_dir(root.join(number.to_string())).expect("a directory"));
}

/// With the calls that unpacking makes for each file.
fn files(root: &Path) {
    let content = [b'x'; 512];
    each_directory(root, &mut |directory, name| {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644)).expect("a file");
        rustix::io::pwrite(&file, &content, 0).expect("written");
        let time = rustix::fs::Timespec { tv_sec: 1000, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::futimens(&file, &times).expect("set");
    });
}

/// Between open directories, by short names, as trees are linked.
fn links(from: &Path, to: &Path) {
    for number in 0..FILES / 100 {
        let [from, to] = [from, to].map(|root| open(&root.join(number.to_string())));
        for file in 0..100 {
            let name = format!("file_{file}");
            rustix::fs::linkat(&from, &name, &to, &name, AtFlags::empty()).expect("linked");
        }
    }
}

fn each_directory(root: &Path, make: &mut dyn FnMut(&rustix::fd::OwnedFd, &str)) {
    for number in 0..FILES / 100 {
        let directory = open(&root.join(number.to_string()));
        (0..100).for_each(|file| make(&directory, &format!("file_{file}")));
    }
}

fn open(path: &Path) -> rustix::fd::OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).expect("a directory")
}

/// What this thread took of the processor's time for `work`.
fn took(work: impl FnOnce()) -> Duration {
    let now = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::try_from(time).expect("a time")
    };
    let began = now();
    work();
    now() - began
}
