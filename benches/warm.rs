//! How much sooner an engine has read a model that is cached, but not in memory, when it is read into memory while the engine starts.
//!
//! `make bench-warm` runs it, as root. The engine does nothing for two seconds, and then reads all of the model. Medians of `ROUNDS` (3) for
//! each way, which take turns; once on the disk as it is, and once held to 125 MB/s, as cloud disks are.

#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "../tests/support/mod.rs"]
#[allow(dead_code, unused_imports)]
mod support;

#[path = "compare/held_disk.rs"]
mod held_disk;

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use held_disk::{HeldDisk, device_of};
use ocivol::demo::push::Layer;
use rustix::fs::{Advice, fadvise};
use support::Node;
use support::debian_registry::DebianRegistry;
use support::disk::{Disk, FileSystem};
use support::namespace::separate_mounts;

const MIB: u64 = 1 << 20;
/// What an engine does before it reads: imports, and the start of its device.
const START: Duration = Duration::from_secs(2);
/// Bytes a second of a disk that is held to them.
const HELD: u64 = 125_000_000;

fn main() {
    separate_mounts();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        println!("| model | disk | `warm: never` | `warm: auto` | ratio | of it reading |");
        println!("|---|---|---|---|---|---|");
        for (mib, held) in [(2048, None), (256, Some(HELD)), (2048, Some(HELD))] {
            measure(mib, held).await;
        }
    });
}

/// Seconds from the publish to the end of the first read, and of that read alone.
type Times = Vec<(f64, f64)>;

async fn measure(mib: u64, held: Option<u64>) {
    let registry = DebianRegistry::start().await;
    let weights = support::noise(1, usize::try_from(mib * MIB).expect("in memory"));
    let layers = [Layer::model_file("weight", "model.safetensors", weights)];
    registry.pusher("m").model("v1", &layers).await.expect("pushed");
    let reference = format!("{}/m:v1", registry.host());
    let mut node = Node::prepare(&["--plain-http", &registry.host()]);
    let disk = Disk::for_store(&node, FileSystem::Ext4, mib * 5 / 4 + 512);
    read_from_disk(&node.root);
    node.run().await;
    let first = node.volume("first");
    node.publish_in_the_end(&first, &reference).await.expect("published");
    disk.sync();
    let held_disk = held.map(|rate| HeldDisk::hold(&node.root, rate, &[std::process::id(), node.pid()]));
    let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let mut times: [Times; 2] = Default::default();
    for round in 0..rounds {
        for (warm, times) in ["never", "auto"].into_iter().zip(&mut times) {
            drop_from_memory(&first.target);
            let volume = node.volume(&format!("{warm}-{round}"));
            let began = Instant::now();
            node.publish(&volume, &reference, &[("warm", warm)]).await.expect("published");
            let target = volume.target.clone();
            let read = tokio::task::spawn_blocking(move || {
                #[allow(clippy::disallowed_methods)] // Nothing is waited for: the engine takes this time.
                std::thread::sleep(START);
                let began = Instant::now();
                read(&target);
                began.elapsed()
            });
            let read = read.await.expect("read");
            times.push((began.elapsed().as_secs_f64(), read.as_secs_f64()));
            node.kubelet.unpublish(&volume).await.expect("unpublished");
        }
    }
    drop(held_disk);
    let [never, auto] = times.map(|mut times| {
        times.sort_by(|one, two| one.0.total_cmp(&two.0));
        times[times.len() / 2]
    });
    let what = held.map_or("as it is".to_owned(), |rate| format!("{} MB/s", rate / 1_000_000));
    println!(
        "| {mib} MiB | {what} | {:.2} s | {:.2} s | {:.2} | {:.2} s, {:.2} s |",
        never.0,
        auto.0,
        auto.0 / never.0,
        never.1,
        auto.1
    );
}

/// As an engine, a large piece at a time.
fn read(directory: &Path) {
    let mut buffer = vec![0; 4 << 20];
    for entry in fs::read_dir(directory).expect("mounted") {
        let mut file = File::open(entry.expect("an entry").path()).expect("a file");
        while file.read(&mut buffer).expect("read") > 0 {}
    }
}

fn drop_from_memory(directory: &Path) {
    for entry in fs::read_dir(directory).expect("mounted") {
        let file = File::open(entry.expect("an entry").path()).expect("a file");
        fadvise(&file, 0, None, Advice::DontNeed).expect("dropped");
    }
}

/// Makes the loop device below `root` read from the disk and not from memory.
fn read_from_disk(root: &Path) {
    let name = fs::read_link(format!("/sys/dev/block/{}", device_of(root))).expect("a device");
    let path = Path::new("/dev").join(name.file_name().expect("a name"));
    let changed = Command::new("losetup").arg("--direct-io=on").arg(path).status();
    assert!(changed.is_ok_and(|status| status.success()), "losetup --direct-io=on");
}
