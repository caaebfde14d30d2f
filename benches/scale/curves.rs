//! The curves: what grows, and what is measured at a point.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use ocivol::demo::push::Layer;
use ocivol::demo::tarball::{Header, Tarball, gzip};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::support::disk::{Disk, FileSystem};
use crate::support::slow::{Blob, Line, push_promises};
use crate::support::{Node, Scripted, noise};

/// Something that grows.
pub struct Curve {
    pub title: &'static str,
    /// What is counted.
    pub unit: &'static str,
    /// What one of them takes, in words, and from their number and seconds.
    pub each: (&'static str, fn(u64, f64) -> f64),
    /// The environment's name for the points.
    pub variable: &'static str,
    pub points: &'static str,
    grows: Grows,
}

#[derive(Clone, Copy)]
enum Grows {
    Layers,
    Files,
    Mib,
    Volumes,
}

/// What was measured at a point: the least of all rounds, each.
#[derive(Clone, Copy)]
pub struct Measured {
    /// Until it is readable.
    pub seconds: f64,
    /// Of the plugin's time on processors.
    pub processor: f64,
    /// Bytes.
    pub peak: f64,
}

/// Files of the image whose layers grow.
const FILES: u64 = 20_000;

pub const CURVES: [Curve; 4] = [
    Curve {
        title: "Layers: 20,000 files of 512 bytes in so many layers, gzip.",
        unit: "layers",
        each: ("milliseconds each", |layers, seconds| seconds * 1e3 / layers as f64),
        variable: "LAYERS",
        points: "1 8 32 127",
        grows: Grows::Layers,
    },
    Curve {
        title: "Files: so many files of 512 bytes in two layers, gzip.",
        unit: "files",
        each: ("microseconds each", |files, seconds| seconds * 1e6 / files as f64),
        variable: "FILES",
        points: "1000 10000 100000 980000",
        grows: Grows::Files,
    },
    Curve {
        title: "Bytes: a model of one raw file.",
        unit: "MiB",
        each: ("MB/s", |mib, seconds| (mib << 20) as f64 / 1e6 / seconds),
        variable: "MIB",
        points: "64 256 1024 4096",
        grows: Grows::Mib,
    },
    Curve {
        title: "Volumes: so many pods begin at once, and all have the same model of 64 MiB, which is not on the node.",
        unit: "volumes",
        each: ("milliseconds each", |volumes, seconds| seconds * 1e3 / volumes as f64),
        variable: "VOLUMES",
        points: "1 10 50 200",
        grows: Grows::Volumes,
    },
];

impl Curve {
    /// For a plugin with one core, and for one with two.
    pub async fn measure(&self, point: u64, rounds: usize) -> [Measured; 2] {
        let registry = Scripted::start().await;
        let reference = match self.grows {
            Grows::Layers => push_image(&registry, point, FILES).await,
            Grows::Files => push_image(&registry, 2, point).await,
            Grows::Mib => push_model(&registry, point).await,
            Grows::Volumes => push_model(&registry, 64).await,
        };
        let (volumes, mib) = match self.grows {
            Grows::Layers => (1, 1024),
            // An inode has 16 KiB of the disk, and each file a block beside it.
            Grows::Files => (1, 1024 + point * 40 / 1024),
            Grows::Mib => (1, 512 + point * 9 / 8),
            Grows::Volumes => (point, 512),
        };
        let none = Measured { seconds: f64::MAX, processor: f64::MAX, peak: f64::MAX };
        let mut least = [none; 2];
        for _ in 0..rounds {
            for (cores, least) in (1..).zip(&mut least) {
                let found = publish(&registry, &reference, volumes, mib, cores).await;
                *least = Measured {
                    seconds: least.seconds.min(found.seconds),
                    processor: least.processor.min(found.processor),
                    peak: least.peak.min(found.peak),
                };
            }
        }
        least
    }
}

/// Publishes so many volumes at once, by a plugin with an empty store and so many cores.
async fn publish(registry: &Scripted, reference: &str, volumes: u64, mib: u64, cores: usize) -> Measured {
    let mut node = Node::prepare(&["--plain-http", &registry.host()]);
    let _disk = Disk::for_store(&node, FileSystem::Ext4, mib);
    node.kubelet.deadline = Duration::from_secs(600);
    launch_on(cores, &mut node);
    node.serves_or_ends().await;
    assert!(!node.has_ended(), "it ended: {}", node.logged());
    let all: Vec<_> = (0..volumes).map(|number| node.volume(&format!("pod-{number}"))).collect();
    let (began, idle) = (Instant::now(), node.cpu_time());
    let published = join_all(all.iter().map(|volume| node.publish_in_the_end(volume, reference))).await;
    let seconds = began.elapsed().as_secs_f64();
    published.into_iter().for_each(|result| result.expect("published"));
    let found = Measured {
        seconds,
        processor: (node.cpu_time() - idle).as_secs_f64(),
        peak: node.memory("VmHWM") as f64,
    };
    for volume in &all {
        node.kubelet.unpublish(volume).await.expect("unpublished");
    }
    found
}

/// Starts the plugin on the first so many processors: it has those that the thread has that starts it.
fn launch_on(cores: usize, node: &mut Node) {
    let all = sched_getaffinity(None).expect("processors");
    let mut some = CpuSet::new();
    (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).take(cores).for_each(|cpu| some.set(cpu));
    assert_eq!(some.count() as usize, cores, "this machine has fewer cores");
    sched_setaffinity(None, &some).expect("set");
    node.launch();
    sched_setaffinity(None, &all).expect("set");
}

/// An image of so many small files, which are spread over its layers and directories of a hundred.
async fn push_image(registry: &Scripted, layers: u64, files: u64) -> String {
    let words = noise(1, 1 << 20);
    let layer = |layer: u64| {
        let mut tar = Tarball::new();
        for number in (0..files).filter(|number| number * layers / files == layer) {
            let directory = format!("data/d{:05}", number / 100);
            if number % 100 == 0 {
                tar = tar.directory(&directory);
            }
            let start = (number * 641) as usize % (words.len() - 256);
            // As text compresses.
            let content: Vec<u8> = words[start..start + 256]
                .iter()
                .flat_map(|byte| format!("{byte:02x}").into_bytes())
                .collect();
            let name = format!("{directory}/file_{number}");
            tar = tar.entry(&Header { size: content.len() as u64, ..Header::new(name, b'0') }, &content);
        }
        Layer::archive(gzip(&tar.finish()).expect("memory"))
    };
    let layers: Vec<Layer> = (0..layers).map(layer).collect();
    registry.pusher("image").image("v1", &layers, &[]).await.expect("pushed");
    registry.reference("image:v1")
}

/// A model of one file that nobody has in memory.
async fn push_model(registry: &Scripted, mib: u64) -> String {
    let blob = Blob::new(noise(1, 1 << 20), (mib << 20) as usize);
    let digest = blob.digest();
    push_promises(&registry.pusher("model"), "v1", &[(digest.clone(), blob.size())]).await;
    let path = format!("/blobs/{digest}");
    registry.script(move |seen| seen.path.ends_with(&path).then(|| blob.answer(seen, &Line::fast())));
    registry.reference("model:v1")
}
