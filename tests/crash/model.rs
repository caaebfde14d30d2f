//! Random operations against the real plugin and a model in memory; after each one, everything that must hold is looked
//! at. The seed is printed; `OCIVOL_SEED` repeats a run, `OCIVOL_OPERATIONS` makes it longer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::Command;

use axum::http::{Method, StatusCode};
use axum::response::IntoResponse as _;
use ocivol::demo::kubelet::PodVolume;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tonic::Code;

use crate::support::node::{BINARY, mount_at};
use crate::support::records::make_volatile;
use crate::support::world::{Files, World, assert_published, assert_store_is_sound};
use crate::support::{Node, isolated};

const PODS: u32 = 10;
/// Seeds, and how many operations of each are run every time. One that fails is added here, and stays.
const KEPT: [(u64, usize); 4] = [(1, 500), (2, 500), (3, 500), (4, 500)];
const ARTIFACTS: [&str; 4] = ["model:v1", "image:one", "image:three", "moving:latest"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Every answer is an error.
    Down,
    /// Blobs have other bytes than their digests say.
    Wrong,
}

#[derive(Debug, Clone)]
enum Operation {
    Publish {
        pod: u32,
        artifact: &'static str,
    },
    Unpublish {
        pod: u32,
    },
    Stats {
        pod: u32,
    },
    Pull {
        artifact: &'static str,
    },
    MoveTag,
    Fault(Fault),
    /// What is unused goes.
    Collect,
    /// Something else takes all of the disk, or gives it back.
    Disk {
        full: bool,
    },
    Restart,
    Kill,
    /// The machine goes down, and what was not on disk is lost.
    Reboot,
    /// A file of the store is damaged before it was on disk.
    Corrupt,
}

struct Run {
    world: World,
    node: Node,
    random: StdRng,
    /// What each pod has mounted: the artifact, and what it was then.
    mounted: BTreeMap<u32, (&'static str, Files)>,
    /// What needs no registry: it was published here, and nothing was lost since.
    known: BTreeSet<&'static str>,
    fault: Fault,
    full: bool,
    tag: u64,
}

impl Run {
    async fn start(seed: u64) -> Self {
        let world = World::start().await;
        let mut node = Node::prepare(&[]);
        node.env.insert("OCIVOL_PLAIN_HTTP".into(), world.registry.host());
        node.env.insert("OCIVOL_GC_MIN_AGE".into(), "0".into());
        // So small that it can be filled, and so large that all artifacts fit many times.
        node.limit_store("32m");
        node.run_registered().await;
        let random = StdRng::seed_from_u64(seed);
        Self {
            world,
            node,
            random,
            mounted: BTreeMap::new(),
            known: BTreeSet::new(),
            fault: Fault::None,
            full: false,
            tag: 0,
        }
    }

    fn choose(&mut self) -> Operation {
        let pod = self.random.random_range(0..PODS);
        let artifact = ARTIFACTS[self.random.random_range(0..ARTIFACTS.len())];
        match self.random.random_range(0..1000) {
            0..480 => Operation::Publish { pod, artifact },
            480..800 => Operation::Unpublish { pod },
            800..850 => Operation::Stats { pod },
            850..865 => Operation::Collect,
            865..880 => Operation::Disk { full: !self.full },
            880..890 => Operation::Pull { artifact },
            890..920 => Operation::MoveTag,
            920..960 => {
                let fault = if self.fault == Fault::None {
                    [Fault::Down, Fault::Wrong][self.random.random_range(0..2)]
                } else {
                    Fault::None
                };
                Operation::Fault(fault)
            }
            960..975 => Operation::Restart,
            975..990 => Operation::Kill,
            990..995 => Operation::Reboot,
            _ => Operation::Corrupt,
        }
    }

    fn volume(&self, pod: u32) -> PodVolume {
        self.node.volume(&format!("pod-{pod}"))
    }

    async fn apply(&mut self, operation: &Operation, when: &str) {
        match operation {
            Operation::Publish { pod, artifact } => self.publish(*pod, artifact, when).await,
            Operation::Unpublish { pod } => {
                let volume = self.volume(*pod);
                self.node
                    .kubelet
                    .unpublish(&volume)
                    .await
                    .unwrap_or_else(|status| panic!("{when}: {status}"));
                assert!(!volume.target.exists(), "{when}: the target is still there");
                self.mounted.remove(pod);
            }
            Operation::Stats { pod } => {
                let result = self.node.kubelet.stats(&self.volume(*pod)).await;
                match self.mounted.get(pod) {
                    Some((_, files)) => {
                        let bytes: usize = files.values().map(Vec::len).sum();
                        let used = result.unwrap_or_else(|status| panic!("{when}: {status}"))[0].used;
                        assert!(used.cast_unsigned() >= bytes as u64, "{when}: {used} of {bytes}");
                    }
                    None => assert_eq!(result.expect_err(when).code(), Code::NotFound, "{when}"),
                }
            }
            Operation::Pull { artifact } => {
                let reference = self.world.reference(artifact);
                let pull = tokio::task::spawn_blocking(move || {
                    Command::new(BINARY).args(["pull", &reference]).output().expect("it runs")
                });
                let pull = pull.await.expect("no panic");
                let error = String::from_utf8_lossy(&pull.stderr).into_owned();
                let may_fail = self.fault != Fault::None || self.full;
                assert!(pull.status.success() || may_fail, "{when}: {error}");
                self.after_looking_for_room();
            }
            Operation::MoveTag => {
                self.tag += 1;
                self.world.move_tag(self.tag).await;
                self.known.remove("moving:latest");
            }
            Operation::Fault(fault) => self.set_fault(*fault),
            Operation::Collect => {
                let collect =
                    tokio::task::spawn_blocking(|| Command::new(BINARY).arg("gc").output().expect("it runs"));
                let collect = collect.await.expect("no panic");
                let error = String::from_utf8_lossy(&collect.stderr).into_owned();
                assert!(collect.status.success(), "{when}: {error}");
                // I5: what is mounted stays.
                self.only_mounted_is_known();
            }
            Operation::Disk { full } => self.set_full(*full),
            Operation::Restart => {
                self.node.stop().await;
                self.node.run_registered().await;
            }
            Operation::Kill => {
                self.node.kill();
                self.node.run_registered().await;
            }
            Operation::Reboot => {
                self.node.kill();
                for pod in std::mem::take(&mut self.mounted).into_keys() {
                    nix::mount::umount(&self.volume(pod).target).expect("it was mounted");
                }
                make_volatile(&self.node.root, true);
                self.known.clear();
                self.node.run_registered().await;
            }
            Operation::Corrupt => {
                for pod in 0..PODS {
                    self.node.kubelet.unpublish(&self.volume(pod)).await.expect(when);
                }
                self.mounted.clear();
                self.node.kill();
                make_volatile(&self.node.root, false);
                self.damage();
                self.known.clear();
                self.node.run_registered().await;
            }
        }
    }

    async fn publish(&mut self, pod: u32, artifact: &'static str, when: &str) {
        let (volume, reference) = (self.volume(pod), self.world.reference(artifact));
        let result = self.node.publish(&volume, &reference, &[]).await;
        match (self.mounted.get(&pod), result) {
            (Some((there, _)), Ok(())) => assert_eq!(*there, artifact, "{when}: another volume was there"),
            (Some((there, _)), Err(status)) => {
                assert_ne!(*there, artifact, "{when}: {status}");
                assert_eq!(status.code(), Code::AlreadyExists, "{when}: {status}");
            }
            (None, Ok(())) => {
                self.mounted.insert(pod, (artifact, self.world.artifacts[artifact].clone()));
                self.known.insert(artifact);
            }
            (None, Err(status)) => {
                let is_full = self.full && status.code() == Code::ResourceExhausted;
                assert!(self.fault != Fault::None || is_full, "{when}: {status}");
                let needs_registry = artifact == "moving:latest" || !self.known.contains(artifact);
                assert!(needs_registry, "{when}: it is known, and needs no registry: {status}");
            }
        }
        self.after_looking_for_room();
    }

    /// On a full disk what is unused makes room for what is not here.
    fn after_looking_for_room(&mut self) {
        if self.full {
            self.only_mounted_is_known();
        }
    }

    fn only_mounted_is_known(&mut self) {
        let mounted: BTreeSet<_> = self.mounted.values().map(|(artifact, _)| *artifact).collect();
        self.known.retain(|artifact| mounted.contains(artifact));
    }

    fn set_full(&mut self, full: bool) {
        self.full = full;
        let ballast = self.node.root.join("ballast");
        if !full {
            return std::fs::remove_file(ballast).expect("removed");
        }
        let found = rustix::fs::statvfs(&self.node.root).expect("a disk");
        // Records still fit, as they do on a disk where a share is kept free.
        let length = (found.f_bavail * found.f_frsize).saturating_sub(1 << 20);
        let file = std::fs::File::create(ballast).expect("created");
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length).expect("room");
    }

    fn set_fault(&mut self, fault: Fault) {
        self.fault = fault;
        match fault {
            Fault::None => self.world.registry.unscript(),
            Fault::Down => self
                .world
                .registry
                .script(|_| Some(ocivol::demo::registry::error(StatusCode::NOT_FOUND, "DOWN"))),
            Fault::Wrong => self.world.registry.script(|seen| {
                let blob = seen.path.contains("/blobs/") && seen.method == Method::GET;
                blob.then(|| vec![9_u8; 1000].into_response())
            }),
        }
    }

    /// Damages one file of a blob or a layer.
    fn damage(&mut self) {
        let mut files: Vec<PathBuf> = Vec::new();
        let mut waiting = vec![self.node.root.join("v1/blobs"), self.node.root.join("v1/layers")];
        while let Some(directory) = waiting.pop() {
            for entry in std::fs::read_dir(directory).expect("a directory") {
                let path = entry.expect("an entry").path();
                let kind = std::fs::symlink_metadata(&path).expect("metadata");
                let record = path.extension().is_some_and(|extension| extension == "json");
                if kind.is_dir() {
                    waiting.push(path);
                } else if kind.is_file() && kind.len() > 0 && !record {
                    files.push(path);
                }
            }
        }
        files.sort();
        if files.is_empty() {
            return;
        }
        let path = &files[self.random.random_range(0..files.len())];
        let mut content = std::fs::read(path).expect("content");
        let modified = std::fs::metadata(path).expect("metadata").modified().expect("a time");
        if self.random.random() {
            let at = self.random.random_range(0..content.len());
            content[at] ^= 1;
        } else {
            content.truncate(content.len() / 2);
        }
        std::fs::write(path, content).expect("written");
        std::fs::File::open(path).expect("a file").set_modified(modified).expect("a time");
    }

    /// I1, I2, I4, I8: what is mounted is what was asked for, all of it, and nothing else is mounted.
    fn check(&self, when: &str) {
        for pod in 0..PODS {
            let volume = self.volume(pod);
            match self.mounted.get(&pod) {
                Some((artifact, files)) => {
                    assert_published(&volume, files, &format!("{when}: pod {pod}, {artifact}"));
                }
                None => assert!(mount_at(&volume.target).is_none(), "{when}: pod {pod} has a volume"),
            }
        }
    }
}

async fn run(seed: u64, operations: usize) {
    let mut run = Run::start(seed).await;
    let probe = Path::new("/var/lib/kubelet/probe");
    std::fs::write(probe, "untouched").expect("a file");
    for number in 0..operations {
        let operation = run.choose();
        let when = format!("seed {seed}, operation {number}, {operation:?}");
        run.apply(&operation, &when).await;
        run.check(&when);
        if number % 50 == 0 {
            assert_store_is_sound(&run.node.root, &when);
            assert_eq!(std::fs::read(probe).expect("the probe"), b"untouched", "{when}");
        }
    }
    run.set_fault(Fault::None);
    if run.full {
        run.set_full(false);
    }
    for pod in 0..PODS {
        run.apply(&Operation::Unpublish { pod }, "at the end").await;
    }
    assert!(crate::support::node::mounts_below(&run.node.kubelet.directory).is_empty());
}

#[test]
fn kept_sequences_agree_with_a_model() {
    isolated(async {
        for (seed, operations) in KEPT {
            run(seed, operations).await;
        }
    });
}

#[test]
fn random_operations_agree_with_a_model() {
    isolated(async {
        let setting = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
        let seed = setting("OCIVOL_SEED").unwrap_or_else(rand::random);
        let operations = setting("OCIVOL_OPERATIONS").unwrap_or(8000);
        println!("seed {seed}");
        run(seed, usize::try_from(operations).expect("a number")).await;
    });
}
