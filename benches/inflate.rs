//! What inflating costs: with `zlib-rs`, with `flate2` that has it below, and with ocivol's own decoder, which adds bounds; and with
//! ISA-L's `igzip`, where that is installed, a process of its own. On one thread, without disk or network.
//!
//! `cargo bench --bench inflate` prints megabytes that come out in a second of the processor, and ratios. The content is what
//! this machine has in /usr, and weights of a model, `MEGABYTES` (200) of each in `PARTS`, each compressed by gzip. Every way to
//! inflate has its turn with a part before the next part comes, and all of it is repeated in `ROUNDS` (15). The least time for each
//! part counts: what else the machine does can only add to it.

#![allow(clippy::print_stdout)]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use ocivol::demo::tarball::{Tarball, gzip};
use ocivol::unpack::decompress::{Buffer, Decoder, Piece};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Bytes that come from a socket at once, and of a buffer that is filled: those of `unpack::pipeline`.
const PIECE: usize = 64 * 1024;
const BUFFER: usize = 256 * 1024;

/// How many times the content is cut, for turns that are short.
const PARTS: usize = 10;

/// A way to inflate so much: what it took of the processor's time.
type Way = fn(&Bytes, u64) -> Duration;

const WAYS: [(&str, Way); 4] = [
    ("zlib-rs", |packed, length| timed(by_zlib_rs, packed, length)),
    ("flate2", |packed, length| timed(by_flate2, packed, length)),
    ("unpack::decompress", |packed, length| timed(by_decoder, packed, length)),
    ("igzip (ISA-L)", by_igzip),
];

fn main() {
    let setting = |name: &str, default| {
        std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok()).unwrap_or(default)
    };
    let (megabytes, rounds) = (setting("MEGABYTES", 200), setting("ROUNDS", 15));
    let has_igzip = Command::new("igzip").arg("--version").stdout(Stdio::null()).status().is_ok();
    let ways = &WAYS[..WAYS.len() - usize::from(!has_igzip)];
    for (what, content) in
        [("/usr", content(megabytes * 1_000_000)), ("weights", weights(megabytes * 1_000_000))]
    {
        compare(what, &content, ways, rounds);
    }
}

/// Gives every way its turns, and prints what they took.
fn compare(what: &str, content: &[u8], ways: &[(&str, Way)], rounds: usize) {
    let parts: Vec<(Bytes, usize)> = content
        .chunks(content.len().div_ceil(PARTS))
        .map(|part| (Bytes::from(gzip(part).expect("memory")), part.len()))
        .collect();
    let packed: usize = parts.iter().map(|(packed, _)| packed.len()).sum();
    println!("{:.0} MB of {what}, {:.0} MB compressed", content.len() as f64 / 1e6, packed as f64 / 1e6);
    let mut least = vec![[Duration::MAX; PARTS]; ways.len()];
    for round in 0..rounds {
        for (number, (packed, length)) in parts.iter().enumerate() {
            for turn in 0..ways.len() {
                let way = (round + turn) % ways.len();
                let took = ways[way].1(packed, *length as u64);
                least[way][number] = least[way][number].min(took);
            }
        }
    }
    let seconds: Vec<f64> =
        least.iter().map(|times| times[..parts.len()].iter().sum::<Duration>().as_secs_f64()).collect();
    for ((name, _), time) in ways.iter().zip(&seconds) {
        let (speed, ratio) = (content.len() as f64 / 1e6 / time, time / seconds[0]);
        println!("{name:20} {speed:6.0} MB/s  {ratio:.3} times the time of {}", ways[0].0);
    }
}

/// An archive of files of this machine, in the order of their names.
fn content(length: usize) -> Vec<u8> {
    let (mut tar, mut taken) = (Tarball::new(), 0);
    let mut waiting = vec![PathBuf::from("/usr")];
    while let Some(path) = waiting.pop() {
        let Ok(found) = std::fs::symlink_metadata(&path) else { continue };
        if found.is_dir() {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            let mut below: Vec<_> = entries.map(|entry| entry.path()).collect();
            below.sort();
            waiting.extend(below.into_iter().rev());
        } else if found.is_file()
            && let Ok(bytes) = std::fs::read(&path)
        {
            tar = tar.file(path.display().to_string(), &bytes[..bytes.len().min(length - taken)]);
            taken += bytes.len().min(length - taken);
        }
        if taken == length {
            break;
        }
    }
    tar.finish()
}

/// Numbers of bfloat16 whose exponents are alike, which is what gzip finds in them.
fn weights(length: usize) -> Vec<u8> {
    let mut content = vec![0; length];
    StdRng::seed_from_u64(1).fill_bytes(&mut content);
    content.iter_mut().skip(1).step_by(2).for_each(|high| *high = 0x38 | (*high & 0x87));
    content
}

/// What `inflate` takes in this thread.
fn timed(inflate: fn(&Bytes) -> u64, packed: &Bytes, length: u64) -> Duration {
    let began = processor_time();
    assert_eq!(inflate(packed), length);
    processor_time() - began
}

/// Another process; its start counts as well, some milliseconds.
fn by_igzip(packed: &Bytes, _length: u64) -> Duration {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(packed).expect("written");
    let began = children_time();
    let status = Command::new("igzip").arg("-dc").arg(file.path()).stdout(Stdio::null()).status();
    assert!(status.expect("igzip starts").success());
    children_time() - began
}

fn by_zlib_rs(packed: &Bytes) -> u64 {
    let mut inflate = zlib_rs::Inflate::new(true, 16 + 15);
    let mut buffer = vec![0; BUFFER];
    for piece in packed.chunks(PIECE) {
        let mut read = 0;
        while read < piece.len() {
            let before = inflate.total_in();
            let flush = zlib_rs::InflateFlush::NoFlush;
            inflate.decompress(&piece[read..], &mut buffer, flush).expect("sound");
            read += usize::try_from(inflate.total_in() - before).expect("a length");
        }
    }
    inflate.total_out()
}

fn by_flate2(packed: &Bytes) -> u64 {
    let mut inflate = flate2::Decompress::new_gzip(15);
    let mut buffer = vec![0; BUFFER];
    for piece in packed.chunks(PIECE) {
        let mut read = 0;
        while read < piece.len() {
            let before = inflate.total_in();
            let flush = flate2::FlushDecompress::None;
            inflate.decompress(&piece[read..], &mut buffer, flush).expect("sound");
            read += usize::try_from(inflate.total_in() - before).expect("a length");
        }
    }
    inflate.total_out()
}

fn by_decoder(packed: &Bytes) -> u64 {
    let mut decoder = Decoder::default();
    let mut buffer = Buffer::new(BUFFER);
    let mut length = 0;
    let mut emit = |piece: Piece<'_>| {
        if let Piece::Buffer(buffer) = piece {
            length += buffer.content().len() as u64;
            buffer.clear();
        }
        Ok(())
    };
    for start in (0..packed.len()).step_by(PIECE) {
        let piece = packed.slice(start..packed.len().min(start + PIECE));
        decoder.push(piece, &mut buffer, &mut emit).expect("sound");
    }
    decoder.finish(&mut buffer, &mut emit).expect("sound");
    length
}

/// What this thread took of the processor's time.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("a time")
}

/// What processes took that this one started, and that have ended.
fn children_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("usage");
    let time = usage.user_time() + usage.system_time();
    Duration::from_micros(time.num_microseconds().unsigned_abs())
}
