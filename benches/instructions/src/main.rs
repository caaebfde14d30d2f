//! How many instructions the parts of ocivol take that every byte, every file or every layer goes through, compared with the numbers that
//! are kept in `counts.tsv`. Instructions are the same on a busy machine and on an idle one, where seconds are not.
//!
//! `make instructions` runs it, and fails when a part takes 3 % more or less than it did. Then either the change was not meant, or
//! `make instructions WRITE=1` writes the numbers anew, and the commit says why.
//!
//! Each part runs on its input three times on one core, below `valgrind --tool=callgrind`, and the least of five such runs counts, because threads that
//! wait for each other take some. The start of the program is in it, a fifth of a million. What the kernel does is not counted.
//!
//! Valgrind's processor has AVX2 and no SHA instructions, and ocivol chooses by what the processor has: so SHA-256 is counted in its
//! portable form, of about 50 instructions a byte. That number says how often each byte is hashed, and what is done around it; it does not say
//! how fast SHA-256 is where the processor has instructions for it. Everything else is as it is on any processor with AVX2.
//!
//! Which functions they are in says `callgrind_annotate`, of what `valgrind --tool=callgrind target/…/instructions <part> <directory> 1` writes,
//! after `target/…/instructions <part> <directory> 0` has filled the directory.

#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "../../../tests/support/noise.rs"]
mod noise;
mod parts;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use parts::PARTS;

/// The numbers before.
const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/counts.tsv");
/// More or less than this part of a number is told.
const TOLERANCE: f64 = 0.03;
/// How often a part does its work in a run.
const TURNS: u64 = 3;
/// Runs of which the least counts.
const RUNS: usize = 5;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [name, input, turns] = arguments.as_slice() {
        let part = PARTS.iter().find(|part| part.name == name).expect("a part of this name");
        on_one_core();
        match turns.parse().expect("a number") {
            0 => (part.prepare)(Path::new(input)),
            turns => (0..turns).for_each(|_| (part.run)(Path::new(input))),
        }
        return ExitCode::SUCCESS;
    }
    let kept = read();
    let mut counts = BTreeMap::new();
    let mut differ = Vec::new();
    println!("{:16} {:>14} {:>14} {:>7}", "part", "before", "now", "");
    for part in &PARTS {
        // In memory: what waits for a disk looks again and again whether it may go on.
        let input = tempfile::tempdir_in("/dev/shm").expect("a directory");
        (part.prepare)(input.path());
        let runs = (0..RUNS).map(|_| count(part.name, input.path()) / TURNS);
        let now = runs.min().unwrap_or_default();
        counts.insert(part.name.to_owned(), now);
        let before = kept.get(part.name).copied().unwrap_or_default();
        let change = now as f64 / before as f64 - 1.0;
        println!("{:16} {before:>14} {now:>14} {:>+6.1}%", part.name, change * 100.0);
        if change.abs() > TOLERANCE {
            differ.push(part.name);
        }
    }
    if std::env::var("WRITE").is_ok_and(|write| write == "1") {
        let lines: String = counts.iter().map(|(name, count)| format!("{name}\t{count}\n")).collect();
        fs::write(KEPT, lines).expect("written");
        return ExitCode::SUCCESS;
    }
    if differ.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!(
        "not within {:.0} % of {KEPT}: {}. If that is meant, `make instructions WRITE=1` writes it anew.",
        TOLERANCE * 100.0,
        differ.join(", ")
    );
    ExitCode::FAILURE
}

/// Whatever the machine has: with more, ocivol gives work to helpers, and who waits for whom is a matter of luck.
fn on_one_core() {
    let allowed = rustix::thread::sched_getaffinity(None).expect("the cores of this process");
    let first = (0..rustix::thread::CpuSet::MAX_CPU).find(|core| allowed.is_set(*core)).expect("one");
    let mut one = rustix::thread::CpuSet::new();
    one.set(first);
    rustix::thread::sched_setaffinity(None, &one).expect("it is one of them");
}

fn read() -> BTreeMap<String, u64> {
    let text = fs::read_to_string(KEPT).unwrap_or_default();
    let line = |line: &str| {
        let (name, count) = line.split_once('\t')?;
        Some((name.to_owned(), count.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// Instructions of a program that runs `part` on `input` [`TURNS`] times.
fn count(part: &str, input: &Path) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().expect("a path"))
        .args([part.as_ref(), input.as_os_str(), TURNS.to_string().as_ref()])
        .output()
        .expect("valgrind starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // "==123== Collected : 456"
    let number = said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    number.unwrap_or_else(|| panic!("valgrind counted nothing: {said}"))
}
