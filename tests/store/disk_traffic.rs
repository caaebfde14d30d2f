//! How much of the disk's time a pull takes: what it brings is written once, and nothing of it is read back.
//!
//! A disk of a cloud moves 125 MB/s. Whoever writes a blob, reads it back, and writes its files keeps pods waiting three times as long as
//! the disk needs for the model.

use std::collections::HashMap;
use std::fs::File;

use axum::http::Method;
use axum::response::IntoResponse as _;
use bytes::Bytes;
use ocivol::demo::kubelet::PodVolume;
use ocivol::demo::push::Layer;
use ocivol::demo::tarball::Tarball;
use ocivol::oci::digest::Digest;
use rustix::fs::{Advice, fadvise};

use crate::support::disk::{Disk, FileSystem};
use crate::support::records::{is_durable, make_volatile, records};
use crate::support::{Node, Scripted, eventually, isolated, noise};

const MIB: u64 = 1 << 20;
/// Bytes of a model.
const SIZE: u64 = 192 * MIB;
/// What records, directories and the index of a layer take beside them, and what a file system reads of itself.
const BESIDE: u64 = MIB;

/// What the plugin has moved, by `/proc/<pid>/io`.
struct Moved {
    /// Bytes of pages that it made dirty, which the kernel writes to the disk.
    written: u64,
    /// Bytes that came from the disk.
    from_disk: u64,
    /// Bytes that it read of files, also of those that the kernel had in memory. Sockets are not counted.
    from_files: u64,
}

impl Moved {
    fn by(node: &Node) -> Self {
        Self {
            written: node.io("write_bytes"),
            from_disk: node.io("read_bytes"),
            from_files: node.bytes_read(),
        }
    }

    /// What was moved since `before` for a model of [`SIZE`] is what one pass moves.
    fn assert_one_pass(&self, before: &Self, what: &str) {
        let written = self.written - before.written;
        let most = SIZE * 102 / 100 + BESIDE;
        assert!((SIZE..=most).contains(&written), "{what}: {SIZE} bytes came, {written} were written");
        let from_disk = self.from_disk - before.from_disk;
        assert!(from_disk <= BESIDE, "{what}: {from_disk} bytes were read from the disk");
        let from_files = self.from_files - before.from_files;
        assert!(from_files <= BESIDE, "{what}: {from_files} bytes were read from files");
        println!(
            "{what}: {SIZE} bytes came, {written} were written, {from_disk} read, {from_files} of files"
        );
    }
}

/// A model of three shards, as files and in an image's only layer.
fn layers() -> (Vec<Layer>, Layer) {
    let shards: Vec<_> = (1..=3).map(|seed| Bytes::from(noise(seed, (SIZE / 3) as usize))).collect();
    let name = |number: usize| format!("model-{number}-of-3.safetensors");
    let file = |(number, shard): (usize, &Bytes)| Layer::model_file("weight", &name(number), shard.clone());
    let files = shards.iter().enumerate().map(file).collect();
    // Not the same bytes, or they would be found in memory.
    let tar = shards.iter().enumerate().fold(Tarball::new(), |tar, (number, shard)| {
        tar.file(format!("models/{}", name(number)), &shard.iter().map(|byte| !byte).collect::<Vec<_>>())
    });
    (files, Layer::archive(tar.finish()))
}

/// A registry with both, and a node with a disk of its own. The registry sends each blob as a whole: bytes that a second connection
/// brings ahead of their turn are read again.
async fn start() -> (Scripted, Node, Disk) {
    let registry = Scripted::start().await;
    let (files, archive) = layers();
    registry.pusher("files").model("v1", &files).await.expect("pushed");
    registry.pusher("image").image("v1", std::slice::from_ref(&archive), &[]).await.expect("pushed");
    let blobs: HashMap<String, Bytes> = files
        .iter()
        .chain([&archive])
        .map(|layer| (Digest::sha256(&layer.content).to_string(), layer.content.clone()))
        .collect();
    registry.script(move |seen| {
        let (_, digest) = seen.path.rsplit_once("/blobs/").filter(|_| seen.method == Method::GET)?;
        blobs.get(digest).map(|blob| blob.clone().into_response())
    });
    let mut node = Node::prepare(&["--plain-http", &registry.host()]);
    let disk = Disk::for_store(&node, FileSystem::Ext4, 3 * SIZE / MIB + 256);
    node.run().await;
    (registry, node, disk)
}

/// Publishes `name`, and waits until all of it is on the disk.
async fn publish(node: &Node, registry: &Scripted, name: &str) -> PodVolume {
    let volume = node.volume(name);
    node.publish_in_the_end(&volume, &registry.reference(&format!("{name}:v1"))).await.expect("published");
    eventually("every record is durable", || records(&node.root).iter().all(|path| is_durable(path))).await;
    volume
}

#[test]
fn a_model_is_written_once_and_nothing_of_it_is_read_back() {
    isolated(async {
        let (registry, node, _disk) = start().await;
        for name in ["files", "image"] {
            let before = Moved::by(&node);
            let volume = publish(&node, &registry, name).await;
            Moved::by(&node).assert_one_pass(&before, name);
            node.kubelet.unpublish(&volume).await.expect("unpublished");
        }
    });
}

/// What the test above would see if something was read back: the next process in the same boot, which checks what it does not know to
/// be on the disk.
#[test]
fn what_is_read_back_is_counted() {
    isolated(async {
        let (registry, mut node, disk) = start().await;
        let volume = publish(&node, &registry, "files").await;
        disk.sync();
        for entry in std::fs::read_dir(&volume.target).expect("mounted") {
            let file = File::open(entry.expect("an entry").path()).expect("a file");
            fadvise(&file, 0, None, Advice::DontNeed).expect("dropped");
        }
        node.kubelet.unpublish(&volume).await.expect("unpublished");
        node.kill();
        make_volatile(&node.root, false);
        node.run().await;
        let before = Moved::by(&node);
        publish(&node, &registry, "files").await;
        let after = Moved::by(&node);
        assert!(after.from_disk - before.from_disk >= SIZE, "{} bytes", after.from_disk - before.from_disk);
        assert!(
            after.from_files - before.from_files >= SIZE,
            "{} bytes",
            after.from_files - before.from_files
        );
        node.kubelet.unpublish(&node.volume("files")).await.expect("unpublished");
    });
}
