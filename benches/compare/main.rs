//! Whole-process comparison: from a registry on this machine to files on this disk.
//!
//! `make bench` runs it, and `docs/benchmarks.md` has its tables. Every tool starts with nothing, in turns, and the order
//! changes each round; the medians are compared. Two times count: until the tool returns, and until a `sync`
//! after it returns, because some tools wait for the disk and some do not.
//!
//! `ROUNDS` (5), `WORKLOADS` (`model,tar,tar-gzip,image-gzip,image-zstd,many-small,shared`), `BENCH_DIR` (where the tools store; a file
//! system with a journal, or ext4 gets slower with every round) and `BASELINE` (another ocivol, which alone is compared) are
//! taken from the environment; and for a disk as clouds have them `HELD`, the MB a second that the disk of `BENCH_DIR` is held to, and
//! `WEIGHT_MIB` (512), the size of each of a model's four large files.

#![allow(clippy::print_stdout, clippy::print_stderr, clippy::cast_possible_truncation)]

#[path = "../../tests/support/mod.rs"]
#[allow(dead_code, unused_imports)]
mod support;

mod held_disk;
mod tools;
mod workloads;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use held_disk::HeldDisk;
use nix::sys::resource::{UsageWho, getrusage};
use support::debian_registry::DebianRegistry;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tools::Tool;
use workloads::Workload;

#[derive(Clone, Copy)]
struct Measured {
    wall: Duration,
    synced: Duration,
    cpu: Duration,
    /// Of the registry, which has the same cores.
    registry: Duration,
}

fn main() {
    let setting = |name: &str| std::env::var(name).ok();
    let rounds: usize = setting("ROUNDS").and_then(|text| text.parse().ok()).unwrap_or(5);
    let wanted = setting("WORKLOADS")
        .unwrap_or_else(|| "model,tar,tar-gzip,image-gzip,image-zstd,many-small,shared".into());
    let baseline = setting("BASELINE");
    let held: Option<u64> = setting("HELD").map(|text| text.parse().expect("HELD: MB a second"));
    let place = setting("BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let registry = runtime.block_on(DebianRegistry::start());
    let interrupted = interrupted(&runtime);
    println!("{}, medians of {rounds} rounds", machine(&place));
    let mut sums = Vec::new();
    for name in wanted.split(',') {
        let workload = runtime.block_on(Workload::push(name, &registry));
        let base = tempfile::Builder::new().prefix("ocivol-bench-").tempdir_in(&place).expect("a directory");
        let tools = tools::of(&workload, &registry.host(), baseline.as_deref());
        let mut results: Vec<Vec<Measured>> = vec![Vec::new(); tools.len()];
        for round in 0..rounds {
            for turn in 0..tools.len() {
                assert!(!interrupted.load(Ordering::Relaxed), "interrupted");
                let number = (round + turn) % tools.len();
                let held = held.map(|rate| HeldDisk::hold(&place, rate * 1_000_000, &[std::process::id()]));
                let measured = measure(&tools[number], &registry, &base.path().join("run"));
                drop(held);
                results[number].push(measured);
                eprintln!(
                    "{name}, round {round}: {}: {:.2} s",
                    tools[number].name,
                    measured.wall.as_secs_f64()
                );
            }
        }
        println!("\n{}\n", workload.description);
        print_table(&tools, &results);
        sums.push(sum(name, &tools, &results));
    }
    println!("\nSeconds until the files can be read and are on the disk.\n");
    println!(
        "The cores are busy for so much of that time, with ocivol and with the registry, which sends and is on the same machine.\n"
    );
    println!(
        "| workload | ocivol | of | cores busy | containerd at its best | ratio | CPU | one verified pass | ratio |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    sums.iter().for_each(|line| println!("{line}"));
}

/// Becomes true when somebody wants it to end. The tool that runs ends by the same signal, and what was made for it is removed:
/// gigabytes, mounts, and a limit of the disk.
fn interrupted(runtime: &Runtime) -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&interrupted);
    runtime.spawn(async move {
        let mut terminate = signal(SignalKind::terminate()).expect("a signal");
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        told.store(true, Ordering::Relaxed);
    });
    interrupted
}

/// A line of the last table: ocivol, the fastest containerd, and what passes over the bytes once and verifies them.
fn sum(name: &str, tools: &[Tool], results: &[Vec<Measured>]) -> String {
    let seconds = |at: usize| median(&results[at], |it| it.synced);
    let best = |is_meant: fn(&str) -> bool| {
        let meant = (0..tools.len()).filter(|at| is_meant(&tools[*at].name));
        meant.min_by(|one, two| seconds(*one).total_cmp(&seconds(*two)))
    };
    let shown = |at: usize| (format!("{:.2}", seconds(at)), format!("{:.2}", seconds(0) / seconds(at)));
    let none = || ("–".to_owned(), "–".to_owned());
    let containerd = best(|name| name.starts_with("containerd"));
    let pass = best(|name| name == tools::ONE_PASS || name.starts_with("curl and openssl"));
    let cpu = |at: usize| median(&results[at], |it| it.cpu);
    let cpus = containerd.map_or_else(|| none().0, |at| format!("{:.2}", cpu(0) / cpu(at)));
    let (theirs, ratio) = containerd.map_or_else(none, shown);
    let (passes, of_pass) = pass.map_or_else(none, shown);
    let all = results[0].iter().map(|it| it.synced.as_secs_f64());
    let (least, most) = (all.clone().fold(f64::INFINITY, f64::min), all.fold(0.0, f64::max));
    let ours = seconds(0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let busy = (cpu(0) + median(&results[0], |it| it.registry)) / (ours * cores) * 100.0;
    format!(
        "| {name} | {ours:.2} | {least:.2}–{most:.2} | {busy:.0} % | {theirs} | {ratio} | {cpus} | {passes} | {of_pass} |"
    )
}

/// The day, the processor, the kernel, and where the files go.
fn machine(place: &Path) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (cpus, kernel) = (read("/proc/cpuinfo"), read("/proc/sys/kernel/osrelease"));
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let disk = Command::new("findmnt").args(["-n", "-o", "FSTYPE,SOURCE", "-T"]).arg(place).output();
    let disk = disk.map(|found| String::from_utf8_lossy(&found.stdout).into_owned()).unwrap_or_default();
    format!(
        "{:.10}: {} x {}, Linux {}, {}",
        jiff::Timestamp::now().to_string(),
        cores,
        model.map_or("an unknown processor", |(_, name)| name),
        kernel.trim(),
        disk.split_whitespace().collect::<Vec<_>>().join(" on ")
    )
}

fn measure(tool: &Tool, registry: &DebianRegistry, directory: &Path) -> Measured {
    remove(directory);
    fs::create_dir_all(directory).expect("a directory");
    let emptied = Emptied(directory);
    // A daemon is running before the clock starts, and counts towards the CPU time when it ends.
    let daemon = tool.daemon.as_ref().map(|daemon| daemon.start(directory));
    if let Some(script) = &tool.before {
        run(tool, script, directory);
    }
    sync();
    let before = children_cpu() + daemon.as_ref().map_or(Duration::ZERO, |daemon| daemon.cpu());
    let sent = registry.cpu_time();
    let began = Instant::now();
    run(tool, &tool.script, directory);
    let wall = began.elapsed();
    sync();
    let synced = began.elapsed();
    let registry = registry.cpu_time() - sent;
    drop(daemon);
    let cpu = children_cpu().saturating_sub(before);
    drop(emptied);
    Measured { wall, synced, cpu, registry }
}

/// A directory of which nothing is left when it is dropped, also when a tool fails.
struct Emptied<'a>(&'a Path);

impl Drop for Emptied<'_> {
    fn drop(&mut self) {
        remove(self.0);
    }
}

fn run(tool: &Tool, script: &str, directory: &Path) {
    let status = Command::new("bash")
        .args(["-o", "pipefail", "-ec", script])
        .env("DIR", directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .expect("bash starts");
    assert!(status.success(), "{} failed: {script}", tool.name);
}

/// Removes what a tool has left, mounts first.
fn remove(directory: &Path) {
    let mounts = support::node::mounts_below(directory);
    for mount in mounts.iter().rev() {
        let _ = nix::mount::umount2(&mount.mount_point, nix::mount::MntFlags::MNT_DETACH);
    }
    let _ = fs::remove_dir_all(directory);
}

fn sync() {
    assert!(Command::new("sync").status().expect("sync starts").success());
}

fn children_cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("usage");
    let time = |value: nix::sys::time::TimeVal| {
        Duration::from_micros((value.tv_sec() * 1_000_000 + value.tv_usec()).unsigned_abs())
    };
    time(usage.user_time()) + time(usage.system_time())
}

fn median(values: &[Measured], of: fn(&Measured) -> Duration) -> f64 {
    let mut seconds: Vec<f64> = values.iter().map(|value| of(value).as_secs_f64()).collect();
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn print_table(tools: &[Tool], results: &[Vec<Measured>]) {
    let ours = median(&results[0], |it| it.wall);
    let ours_synced = median(&results[0], |it| it.synced);
    println!("| tool | seconds | of ocivol's | until synced | of ocivol's | CPU seconds |");
    println!("|---|---|---|---|---|---|");
    for (tool, values) in tools.iter().zip(results) {
        let (wall, synced) = (median(values, |it| it.wall), median(values, |it| it.synced));
        println!(
            "| {} | {wall:.2} | {:.1}x | {synced:.2} | {:.1}x | {:.1} |",
            tool.name,
            wall / ours,
            synced / ours_synced,
            median(values, |it| it.cpu)
        );
    }
}
