//! What is pushed, and what a pod must see of it: for tests that break things and look whether all is still true.

use std::collections::BTreeMap;
use std::path::Path;

use ocivol::demo::kubelet::PodVolume;
use ocivol::demo::push::Layer;
use ocivol::demo::tarball::{Tarball, gzip, zstd};

use super::node::mount_at;
use super::records::{is_durable, records};
use super::{Scripted, noise};

/// Files of a volume by path.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Artifacts of a registry, and what they hold.
pub struct World {
    pub registry: Scripted,
    /// By what a pod's reference ends in.
    pub artifacts: BTreeMap<String, Files>,
}

impl World {
    /// A model, an image of one layer, one of three layers that share the first, and a tag that moves.
    pub async fn start() -> Self {
        let registry = Scripted::start().await;
        let mut world = Self { registry, artifacts: BTreeMap::new() };
        let files = |pairs: &[(&str, Vec<u8>)]| -> Files {
            pairs.iter().map(|(path, content)| ((*path).to_owned(), content.clone())).collect()
        };
        let weights = noise(1, 300_000);
        let model = [
            Layer::model_file("weight", "model.gguf", weights.clone()),
            Layer::model_file("doc", "a/README", "text"),
        ];
        world.registry.pusher("model").model("v1", &model).await.expect("pushed");
        world
            .artifacts
            .insert("model:v1".into(), files(&[("model.gguf", weights), ("a/README", b"text".to_vec())]));

        let base = Tarball::new()
            .file("etc/base", &noise(2, 50_000))
            .symlink("lib", "usr/lib")
            .file("usr/lib/x", b"1");
        let base = base.hard_link("usr/lib/y", "usr/lib/x").finish();
        let middle = Tarball::new()
            .file("lib/x", b"2")
            .file("etc/.wh.base", b"")
            .file("more/z", &noise(3, 9_000))
            .finish();
        let top = Tarball::new().file("more/z", b"top").finish();
        let packed =
            [gzip(&base), zstd(&middle), Ok(top)].map(|layer| Layer::archive(layer.expect("memory")));
        let pusher = world.registry.pusher("image");
        pusher.image("one", &packed[..1], &[]).await.expect("pushed");
        pusher.image("three", &packed, &[]).await.expect("pushed");
        let one =
            [("etc/base", noise(2, 50_000)), ("usr/lib/x", b"1".to_vec()), ("usr/lib/y", b"1".to_vec())];
        world.artifacts.insert("image:one".into(), files(&one));
        let three = [("usr/lib/x", b"2".to_vec()), ("usr/lib/y", b"1".to_vec()), ("more/z", b"top".to_vec())];
        world.artifacts.insert("image:three".into(), files(&three));
        world.move_tag(0).await;
        world
    }

    /// Pushes another content as `moving:latest`.
    pub async fn move_tag(&mut self, number: u64) {
        let content = noise(100 + number, 20_000);
        let layer = [Layer::titled("data", content.clone())];
        self.registry.pusher("moving").files("latest", &layer).await.expect("pushed");
        self.artifacts.insert("moving:latest".into(), Files::from([("data".to_owned(), content)]));
    }

    pub fn reference(&self, name: &str) -> String {
        self.registry.reference(name)
    }
}

/// The volume is mounted, with its flags, and holds exactly `files`.
pub fn assert_published(volume: &PodVolume, files: &Files, when: &str) {
    let mount = mount_at(&volume.target).unwrap_or_else(|| panic!("{when}: nothing is mounted"));
    for flag in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(mount.has(flag), "{when}: {}", mount.options);
    }
    assert_eq!(read(&volume.target), *files, "{when}");
}

/// All regular files below a directory.
fn read(root: &Path) -> Files {
    let mut found = Files::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let kind = std::fs::symlink_metadata(&path).expect("metadata");
            if kind.is_dir() {
                waiting.push(path);
            } else if kind.is_file() {
                let name = path.strip_prefix(root).expect("below").display().to_string();
                found.insert(name, std::fs::read(path).expect("content"));
            }
        }
    }
    found
}

/// What is in the store and has a record is complete; everything else is in `ingest/` or retired. Returns nothing:
/// it panics.
pub fn assert_store_is_sound(root: &Path, when: &str) {
    let names = |name: &str| -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(root.join("v1").join(name)) else { return Vec::new() };
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    };
    for directory in ["blobs/sha256", "layers"] {
        let all = names(directory);
        for record in all.iter().filter_map(|name| name.strip_suffix(".json")) {
            assert!(all.iter().any(|name| name == record), "{when}: {directory}/{record} has only a record");
        }
    }
    // What is not durable is looked at before it is used, and not before.
    for record in records(root).iter().filter(|record| is_durable(record)) {
        let blob = record.with_extension("");
        if blob.is_file() {
            let name = blob.file_name().expect("a name").to_string_lossy().into_owned();
            let content = std::fs::read(&blob).expect("content");
            assert_eq!(ocivol::oci::digest::Digest::sha256(&content).hex(), name, "{when}");
        }
    }
}
