//! A disk that is full, read-only, or fails: a clear answer, nothing half there, and the service goes on.

use std::fs::{self, File};
use std::process::Command;

use ocivol::demo::push::Layer;
use tonic::Code;

use crate::support::disk::{Disk, FileSystem};
use crate::support::records::records;
use crate::support::world::{World, assert_published, assert_store_is_sound};
use crate::support::{Node, eventually, isolated, noise};

/// Every place where something is written, and the errors that the kernel may answer there.
const ERRORS: [(&str, Code); 5] = [
    ("ENOSPC", Code::ResourceExhausted),
    ("EDQUOT", Code::ResourceExhausted),
    ("EIO", Code::Unavailable),
    ("EROFS", Code::Unavailable),
    ("EMFILE", Code::Unavailable),
];

/// The writes that can be made to fail, from the code.
fn writes() -> Vec<String> {
    let mut found = std::collections::BTreeSet::new();
    let mut waiting = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(
                fs::read_dir(path).expect("a directory").map(|entry| entry.expect("an entry").path()),
            );
            continue;
        }
        let text = fs::read_to_string(&path).expect("a source file");
        for part in text.split("failpoint::fails(\"").skip(1) {
            found.insert(part.split('"').next().expect("a name").to_owned());
        }
    }
    found.into_iter().collect()
}

#[test]
fn an_error_at_any_write_is_told_and_leaves_nothing() {
    isolated(async {
        let world = World::start().await;
        let large = noise(5, 40 << 20);
        let layer = Layer::model_file("weight", "w", large.clone());
        world.registry.pusher("large").model("v1", &[layer]).await.expect("pushed");
        let writes = writes();
        assert!(writes.len() >= 8, "{writes:?}");
        for write in &writes {
            let mut seen = false;
            for (error, code) in ERRORS {
                let when = format!("{error} at {write}");
                let mut node = Node::prepare(&["--plain-http", &world.registry.host(), "--scrub-days", "0"]);
                // The first time, and what follows is as it should be.
                node.env.insert("OCIVOL_FAILS_AT".into(), format!("{write}:{error}"));
                node.run_registered().await;
                for name in ["image:three", "model:v1"] {
                    let volume = node.volume(&name.replace(':', "-"));
                    let first = node.publish(&volume, &world.reference(name), &[]).await;
                    if let Err(status) = first {
                        seen = true;
                        assert_eq!(status.code(), code, "{when}: {status}");
                        assert!(!volume.target.join("etc").exists(), "{when}: something is mounted");
                        assert_store_is_sound(&node.root, &when);
                        let again = node.publish(&volume, &world.reference(name), &[]).await;
                        again.unwrap_or_else(|status| panic!("{when}, again: {status}"));
                    }
                    assert_published(&volume, &world.artifacts[name], &when);
                    node.kubelet.unpublish(&volume).await.expect(&when);
                }
                seen |= node.logged().contains("OCIVOL_FAILS_AT");
                node.nothing_is_left_in_ingest().await;
            }
            assert!(seen, "{write} was never reached");
        }
        println!("failed at {writes:?}");
    });
}

/// It was never tried again: the next process had to check everything that was pulled while the disk was full.
#[test]
fn regression_what_could_not_be_noted_as_durable_is_noted_when_there_is_room() {
    isolated(async {
        let world = World::start().await;
        let mut node = Node::prepare(&["--plain-http", &world.registry.host()]);
        node.env.insert("OCIVOL_FAILS_AT".into(), "durable.mark:ENOSPC".into());
        node.run_registered().await;
        node.publish(&node.volume("one"), &world.reference("image:one"), &[]).await.expect("published");
        eventually("it failed", || node.logged().contains("cannot record durability")).await;
        all_is_durable(&node).await;
    });
}

async fn all_is_durable(node: &Node) {
    eventually("all is durable", || {
        records(&node.root).iter().all(|record| crate::support::records::is_durable(record))
    })
    .await;
}

/// What the file system itself says when it is full, and ext4 when it has made itself read-only.
fn full(kind: FileSystem) {
    isolated(async move {
        let world = World::start().await;
        let large = noise(5, 40 << 20);
        let layer = Layer::model_file("weight", "w", large.clone());
        world.registry.pusher("large").model("v1", &[layer]).await.expect("pushed");
        // Nothing is kept free, so that the kernel is who says it.
        let flags = ["--keep-free", "0", "--keep-free-inodes", "0", "--scrub-days", "0"];
        let mut node = Node::prepare(&[&["--plain-http", &world.registry.host()], &flags[..]].concat());
        let disk = Disk::for_store(&node, kind, 400);
        node.run_registered().await;
        let mounted = node.volume("mounted");
        node.publish(&mounted, &world.reference("image:one"), &[]).await.expect("published");
        disk.sync();
        let ballast = node.root.join("ballast");
        let file = File::create(&ballast).expect("created");
        // As much as there is, whatever the file system says of itself.
        let mut step = 64_u64 << 20;
        let mut length = 0;
        while step >= 4096 {
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), length, step) {
                Ok(()) => length += step,
                Err(_) => step /= 2,
            }
        }
        disk.sync();
        for name in ["large:v1", "image:three"] {
            let volume = node.volume(&name.replace(':', "-"));
            let status = node.publish(&volume, &world.reference(name), &[]).await.expect_err("it is full");
            assert_eq!(status.code(), Code::ResourceExhausted, "{kind:?}: {status}");
            assert!(fs::read_dir(&volume.target).is_err() || !volume.target.join("w").exists());
        }
        assert_published(&mounted, &world.artifacts["image:one"], "on a full disk");
        assert_store_is_sound(&node.root, "on a full disk");
        drop(file);
        fs::remove_file(&ballast).expect("removed");
        disk.sync();
        let volume = node.volume("large-v1");
        let published = node.publish_in_the_end(&volume, &world.reference("large:v1")).await;
        published.unwrap_or_else(|status| panic!("{kind:?}: there is room again: {status}"));
        assert!(fs::read(volume.target.join("w")).expect("read") == large);

        all_is_durable(&node).await;
        if kind != FileSystem::Ext4 {
            for volume in [&mounted, &volume] {
                node.kubelet.unpublish(volume).await.expect("unpublished");
            }
            return;
        }
        // What ext4 does when it finds that it is damaged.
        let aborted = Command::new("mount").args(["-o", "remount,abort"]).arg(&node.root).status();
        assert!(aborted.is_ok_and(|status| status.success()));
        let other = node.volume("image-three");
        let status = node.publish(&other, &world.reference("image:three"), &[]).await.expect_err("read-only");
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().contains("Read-only file system"), "{status}");
        assert_published(&mounted, &world.artifacts["image:one"], "on a read-only disk");
        for volume in [&mounted, &volume] {
            node.kubelet.unpublish(volume).await.expect("unpublish needs no disk");
        }
    });
}

#[test]
fn a_full_and_a_read_only_ext4_are_told() {
    full(FileSystem::Ext4);
}

#[test]
fn a_full_xfs_is_told() {
    full(FileSystem::Xfs);
}

#[test]
fn a_full_btrfs_is_told() {
    full(FileSystem::Btrfs);
}
