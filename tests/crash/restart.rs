//! A restart of the plugin, on a node that has much.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::time::{Duration, Instant};

use ocivol::oci::digest::Digest;
use serde_json::json;

use crate::support::node::mount_at;
use crate::support::world::{World, assert_published};
use crate::support::{Node, isolated};

const VOLUMES: usize = 200;
/// Blobs of a gigabyte each.
const BLOBS: u64 = 1024;

/// A terabyte of content, as the store has it that has been flushed: sparse files, their records, and that they are durable.
fn fill(node: &Node) {
    let blobs = node.root.join("v1/blobs/sha256");
    for number in 0..BLOBS {
        let name = Digest::sha256(&number.to_le_bytes()).hex().to_owned();
        File::create(blobs.join(&name)).and_then(|file| file.set_len(1 << 30)).expect("a sparse file");
        let record = json!({"size": 1_u64 << 30, "origins": [], "boot_id": "", "generation": number + 1});
        fs::write(blobs.join(format!("{name}.json")), record.to_string()).expect("written");
        let marker = format!("v1/durable/blob-sha256-{name}-{:016x}", number + 1);
        fs::write(node.root.join(marker), "").expect("written");
    }
}

#[test]
fn a_plugin_with_two_hundred_volumes_and_a_terabyte_is_ready_within_a_second() {
    isolated(async {
        let world = World::start().await;
        let mut node = Node::prepare(&["--plain-http", &world.registry.host(), "--scrub-days", "0"]);
        node.run_registered().await;
        for number in 0..VOLUMES {
            let name = ["image:one", "image:three", "model:v1"][number % 3];
            let volume = node.volume(&format!("pod-{number}"));
            node.publish(&volume, &world.reference(name), &[]).await.expect("published");
        }
        fill(&node);
        world.registry.forget();
        let mut times = Vec::new();
        for _ in 0..5 {
            node.kill();
            let started = Instant::now();
            node.run().await;
            node.register().await;
            // Ready for kubelet, which asks for all of them again, and for new ones.
            let volume = node.volume("pod-0");
            node.publish(&volume, &world.reference("image:one"), &[]).await.expect("already there");
            let new = node.volume("new");
            node.publish(&new, &world.reference("image:three"), &[]).await.expect("published");
            times.push(started.elapsed());
            node.kubelet.unpublish(&new).await.expect("unpublished");
        }
        times.sort_unstable();
        println!("ready after {:?} to {:?}", times[0], times[4]);
        // The machine may have other work; twice it had less.
        assert!(times[1] < Duration::from_secs(1), "{times:?}");
        assert!(world.registry.requests().is_empty(), "no registry was asked");
    });
}

#[test]
fn stacked_mounts_and_records_without_mounts_are_put_right() {
    isolated(async {
        let world = World::start().await;
        let mut node = Node::prepare(&["--plain-http", &world.registry.host(), "--scrub-days", "0"]);
        node.run_registered().await;
        let reference = world.reference("image:three");
        let volumes: Vec<_> =
            ["stacked", "no-mount", "no-record", "half-made"].map(|pod| node.volume(pod)).into();
        for volume in &volumes[..3] {
            node.publish(volume, &reference, &[]).await.expect("published");
        }
        node.kill();
        let records = |node: &Node| -> BTreeSet<_> {
            let all = fs::read_dir(node.root.join("v1/volumes")).expect("records").flatten();
            all.map(|entry| entry.file_name()).collect()
        };
        assert_eq!(records(&node).len(), 3);
        // Twice at one target, as two processes at once leave it; unmounted by hand; a record that was lost; a directory alone.
        let none: Option<&str> = None;
        let bind = nix::mount::MsFlags::MS_BIND;
        let first = &volumes[0].target;
        nix::mount::mount(Some(first), first, none, bind, none).expect("mounted");
        nix::mount::umount(&volumes[1].target).expect("unmounted");
        let record = Digest::sha256(volumes[2].target.as_os_str().as_encoded_bytes());
        fs::remove_file(node.root.join("v1/volumes").join(format!("{}.json", record.hex())))
            .expect("removed");
        fs::create_dir_all(&volumes[3].target).expect("made");
        node.run_registered().await;
        assert_eq!(records(&node).len(), 1, "what is not mounted has no record");
        for volume in &volumes {
            node.publish(volume, &reference, &[]).await.expect("published");
            assert_published(volume, &world.artifacts["image:three"], "after the restart");
            node.kubelet.unpublish(volume).await.expect("unpublished");
            assert!(mount_at(&volume.target).is_none() && !volume.target.exists());
        }
        assert_eq!(records(&node).len(), 0);
    });
}
