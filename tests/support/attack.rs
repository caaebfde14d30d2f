//! A node under attack: layers are pushed and published, and a file outside of the store has to stay as it was.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ocivol::demo::push::Layer;
use ocivol::demo::tarball::Tarball;
use ocivol::oci::digest::Digest;
use serde_json::json;
use tonic::{Code, Status};

use super::node::mount_at;
use super::{Node, Scripted, isolated};

/// A node, a registry, and files that nothing may touch.
pub struct Attack {
    pub node: Node,
    pub registry: Scripted,
    pub probe: PathBuf,
    /// The plugin's root directory, as the kernel names it.
    pub root: PathBuf,
    pub number: usize,
}

/// What must not change of a file.
type Facts = (u32, i64, i64, u64, u64, Option<Vec<u8>>);

fn facts(path: &Path) -> Facts {
    let found: Metadata = fs::symlink_metadata(path).expect("the probe is there");
    let content = if found.is_file() { fs::read(path).ok() } else { None };
    (found.mode(), found.mtime_nsec(), found.ctime_nsec(), found.nlink(), found.ino(), content)
}

impl Attack {
    pub async fn start(flags: &[&str]) -> Self {
        let registry = Scripted::start().await;
        let mut all = vec!["--plain-http".to_owned(), registry.host()];
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let mut node = Node::prepare(&all);
        // Where the container sees it under the same name.
        let probe = node.kubelet.directory.join("pods/probe");
        fs::create_dir(&probe).expect("a directory");
        fs::write(probe.join("file"), "untouched").expect("a file");
        node.run().await;
        let root = fs::read_link(format!("/proc/{}/root", node.pid())).expect("a root");
        Self { node, registry, probe, root, number: 0 }
    }

    fn probes(&self) -> Vec<Facts> {
        [self.probe.clone(), self.probe.join("file")].iter().map(|path| facts(path)).collect()
    }

    /// Publishes an image of these layers; the target, when that succeeds.
    pub async fn image(&mut self, layers: &[Vec<u8>]) -> Result<PathBuf, Status> {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::sha256(layer)).collect();
        let layers: Vec<Layer> = layers.iter().map(|layer| Layer::archive(layer.clone())).collect();
        self.number += 1;
        let repository = format!("hostile/{}", self.number);
        let pusher = self.registry.pusher(&repository);
        pusher.image("v1", &layers, &diff_ids).await.expect("pushed");
        self.publish(&repository, &[]).await
    }

    /// Publishes a ModelPack artifact of these archives.
    pub async fn model(&mut self, layers: &[Vec<u8>]) -> Result<PathBuf, Status> {
        let media_type = "application/vnd.cncf.model.weight.v1.tar".to_owned();
        let layer = |content: &Vec<u8>| Layer {
            media_type: media_type.clone(),
            content: content.clone().into(),
            annotations: json!({}),
        };
        let layers: Vec<Layer> = layers.iter().map(layer).collect();
        self.number += 1;
        let repository = format!("hostile/{}", self.number);
        self.registry.pusher(&repository).model("v1", &layers).await.expect("pushed");
        self.publish(&repository, &[]).await
    }

    pub async fn publish(&self, repository: &str, attributes: &[(&str, &str)]) -> Result<PathBuf, Status> {
        let before = self.probes();
        let volume = self.node.volume(&format!("pod-{}", self.number));
        let reference = self.registry.reference(&format!("{repository}:v1"));
        let result = self.node.publish(&volume, &reference, attributes).await;
        assert_eq!(before, self.probes(), "the probe was touched");
        if result.is_err() {
            assert!(mount_at(&volume.target).is_none(), "something is mounted");
        }
        result.map(|()| volume.target)
    }

    /// The refusal names the layer, the entry and the rule, and leaves nothing.
    async fn assert_refused(&self, result: Result<PathBuf, Status>, layer: &[u8], words: &[&str]) {
        let status = result.expect_err("it was published");
        assert_eq!(status.code(), Code::FailedPrecondition, "{}", status.message());
        let digest = Digest::sha256(layer).to_string();
        for word in words.iter().chain([&digest.as_str()]) {
            assert!(status.message().contains(word), "no {word:?} in: {}", status.message());
        }
        assert!(status.message().chars().all(|letter| !letter.is_control()), "{:?}", status.message());
        self.assert_nothing_left().await;
    }

    async fn assert_nothing_left(&self) {
        self.node.nothing_is_left_in_ingest().await;
        let store = self.node.root.join("v1");
        let names = |name: &str| -> Vec<String> {
            let entries = fs::read_dir(store.join(name)).expect("a directory");
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
        };
        // What is there has a record, and is thus verified.
        let layers = names("layers");
        for key in layers.iter().filter(|name| !name.ends_with(".json")) {
            assert!(layers.contains(&format!("{key}.json")), "{key} has no record");
        }
        assert_eq!(names("trees").len() + names("images").len(), 0);
    }

    pub async fn refuse_image(&mut self, layers: &[Vec<u8>], words: &[&str]) {
        let result = self.image(layers).await;
        self.assert_refused(result, layers.last().expect("a layer"), words).await;
    }

    pub async fn refuse_model(&mut self, layers: &[Vec<u8>], words: &[&str]) {
        let result = self.model(layers).await;
        self.assert_refused(result, layers.last().expect("a layer"), words).await;
    }

    /// Bytes of a path, for links that lead out.
    pub fn outside(&self) -> String {
        self.probe.display().to_string()
    }
}

/// Every test is an attack on a node of its own.
pub fn attack(test: impl AsyncFnOnce(Attack)) {
    attack_with(&[], test);
}

pub fn attack_with(flags: &[&str], test: impl AsyncFnOnce(Attack)) {
    isolated(async {
        let attack = Attack::start(flags).await;
        test(attack).await;
    });
}

/// An archive of two files, of which one has this name.
pub fn one(name: impl AsRef<[u8]>) -> Vec<u8> {
    Tarball::new().file("before", b"1").file(name, b"2").finish()
}
