//! Archives that tools really make, and other tools read: odd, not hostile. `docs/archives.md` is the table of this.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;

use ocivol::demo::push::Layer;
use ocivol::demo::tarball::{DIRECTORY, FIFO, FILE, HARD_LINK, Header, SYMLINK, Tarball, gzip, zstd};
use ocivol::layer::format::Profile;
use ocivol::oci::digest::Digest;
use serde_json::json;

use crate::support::layers::unpack;
use crate::support::raw::{Raw as _, block, with_checksum};
use crate::support::snapshot::{difference, paths, snapshot};
use crate::support::{Node, Scripted, isolated, noise};

/// An entry of a kind that has no content, whose header carries a size.
fn sized(name: &str, kind: u8, link: &str) -> Header {
    Header { size: 700, link: link.into(), ..Header::new(name, kind) }
}

/// A packed directory as `oras push` makes it.
fn packed(title: &str, archive: &[u8]) -> Layer {
    let mut layer = Layer::titled(title, gzip(archive).expect("gzip"));
    layer.annotations["io.deis.oras.content.unpack"] = json!("true");
    layer.annotations["io.deis.oras.content.digest"] = json!(Digest::sha256(archive).to_string());
    layer
}

#[test]
fn regression_sizes_of_what_has_no_content_mean_nothing() {
    let archive = Tarball::new()
        .directory("./")
        .entry(&sized("d", DIRECTORY, ""), b"")
        .file("d/a", b"content")
        .entry(&sized("d/h", HARD_LINK, "d/a"), b"")
        .entry(&sized("s", SYMLINK, "d/a"), b"")
        .pax(&[("size", b"512")])
        .directory("e")
        .file("last", b"x")
        .finish();
    let place = tempfile::tempdir().expect("a directory");
    unpack(place.path(), &archive, Profile::Image, 1000).expect("unpacked");
    // GNU tar's own reading.
    let theirs = tempfile::tempdir().expect("a directory");
    let file = theirs.path().join("archive.tar");
    let root = theirs.path().join("root");
    fs::write(&file, &archive).expect("a file");
    fs::create_dir(&root).expect("a directory");
    let run = Command::new("tar").arg("--numeric-owner").arg("-xpf").arg(&file).arg("-C").arg(&root).output();
    assert!(run.expect("tar").status.success());
    if let Some(difference) = difference(&snapshot(&place.path().join("fs")), &snapshot(&root), "GNU tar") {
        panic!("{difference}");
    }
    // Devices and FIFOs are left out, and what follows them is not.
    let archive = Tarball::new().entry(&sized("pipe", FIFO, ""), b"").file("last", b"x").finish();
    let place = tempfile::tempdir().expect("a directory");
    unpack(place.path(), &archive, Profile::Image, 1000).expect("unpacked");
    assert_eq!(fs::read(place.path().join("fs/last")).expect("a file"), b"x");
}

#[test]
fn regression_an_archive_ends_where_its_last_block_is_not_padded() {
    let whole = Tarball::new().file("a", b"content").file("b", b"the last").finish();
    let content_end = 3 * 512 + b"the last".len();
    for end in [content_end, content_end + 100, 4 * 512, 4 * 512 + 100, 4 * 512 + 512, whole.len()] {
        let place = tempfile::tempdir().expect("a directory");
        unpack(place.path(), &whole[..end], Profile::Image, 100)
            .unwrap_or_else(|error| panic!("{end}: {error}"));
        assert_eq!(fs::read(place.path().join("fs/b")).expect("a file"), b"the last", "{end}");
    }
    for end in [content_end - 1, 3 * 512, 3 * 512 - 1, 2 * 512 + 1, 100] {
        let place = tempfile::tempdir().expect("a directory");
        assert!(unpack(place.path(), &whole[..end], Profile::Image, 100).is_err(), "{end} was accepted");
    }
}

#[test]
fn regression_owners_with_a_sign() {
    let owned = |uid: i64, gid: i64| {
        let mut block = block(&Header::new("f", FILE));
        for (at, owner) in [(108, uid), (116, gid)] {
            block[at..at + 8].copy_from_slice(&owner.to_be_bytes());
            // GNU tar 1.13: a byte for the sign, and binary after it.
            block[at] = if owner < 0 { 0xff } else { 0x80 };
        }
        Tarball::new().raw(&with_checksum(block)).finish()
    };
    for (uid, gid, expected) in [
        (-2, -2, (4_294_967_294, 4_294_967_294)),
        (-3, 5, (4_294_967_293, 5)),
        (4_294_967_294, 0, (4_294_967_294, 0)),
    ] {
        let place = tempfile::tempdir().expect("a directory");
        unpack(place.path(), &owned(uid, gid), Profile::Image, 1000).expect("unpacked");
        let found = fs::metadata(place.path().join("fs/f")).expect("a file");
        assert_eq!((found.uid(), found.gid()), expected, "{uid} {gid}");
    }
    for (uid, gid) in [(-1, 0), (0, -1), (4_294_967_295, 0), (4_294_967_296, 0), (-2_147_483_649, 0)] {
        let place = tempfile::tempdir().expect("a directory");
        assert!(unpack(place.path(), &owned(uid, gid), Profile::Image, 1000).is_err(), "{uid} {gid}");
    }
}

#[test]
fn regression_artifacts_as_their_tools_pack_them() {
    isolated(async {
        let registry = Scripted::start().await;
        let push = async |name: &str, layers: &[Layer]| {
            registry.pusher(name).files("v1", layers).await.expect("pushed");
        };
        let script = Header { mode: 0o750, size: 10, ..Header::new("bin/run.sh", FILE) };
        let private = Header { mode: 0o600, size: 1, ..Header::new("private", FILE) };
        // `oras push ref .`: a title that is the directory itself, entries below it, and one that is it.
        let here =
            Tarball::new().directory("./").entry(&script, b"#!/bin/sh\n").entry(&private, b"x").finish();
        push("here", &[packed(".", &here)]).await;
        push("slash", &[packed("./", &here)]).await;
        let unnamed = Tarball::new().directory("").file("bin/run.sh", b"#!/bin/sh\n");
        push("unnamed", &[packed(".", &unnamed.file("private", b"x").finish())]).await;
        // From a list that has a file twice.
        let twice = Tarball::new().file("t/a", b"a").hard_link("t/a", "t/a").hard_link("t/b", "t/a").finish();
        push("twice", &[packed("t", &twice)]).await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        for name in ["here", "slash", "unnamed"] {
            let volume = node.volume(name);
            let published = node.publish(&volume, &registry.reference(&format!("{name}:v1")), &[]).await;
            published.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(paths(&volume.target), ["bin/", "bin/run.sh", "private"], "{name}");
            let mode =
                |path: &str| fs::metadata(volume.target.join(path)).expect(path).permissions().mode() & 0o777;
            // `chmod a+rX`: whoever the pod is may run what somebody may run.
            assert_eq!(mode("private"), 0o644);
            assert_eq!(mode("bin/run.sh"), if name == "unnamed" { 0o644 } else { 0o755 });
        }
        let volume = node.volume("twice");
        node.publish(&volume, &registry.reference("twice:v1"), &[]).await.expect("published");
        for name in ["t/a", "t/b"] {
            assert_eq!(fs::read(volume.target.join(name)).expect(name), b"a");
        }
        // In an image it is an error, as for umoci; and a link to what is not there is one everywhere.
        registry.pusher("image").image("v1", &[Layer::archive(twice)], &[]).await.expect("pushed");
        node.publish(&node.volume("image"), &registry.reference("image:v1"), &[]).await.expect_err("refused");
        push("missing", &[packed("t", &Tarball::new().hard_link("t/a", "t/a").finish())]).await;
        node.publish(&node.volume("missing"), &registry.reference("missing:v1"), &[])
            .await
            .expect_err("refused");
    });
}

#[test]
fn regression_images_of_other_times() {
    isolated(async {
        let registry = Scripted::start().await;
        // AUFS kept files with several names under numbers.
        let aufs = Tarball::new()
            .directory(".wh..wh.plnk")
            .file(".wh..wh.plnk/123.456", b"shared")
            .file(".wh..wh.aufs", b"")
            .hard_link("usr/a", ".wh..wh.plnk/123.456")
            .hard_link("usr/b", "./.wh..wh.plnk/123.456")
            .finish();
        // A merged /usr.
        let merged = Tarball::new().symlink("lib", "usr/lib").file("usr/lib/x/file", b"library").finish();
        let layers = [Layer::archive(aufs), Layer::archive(merged)];
        registry.pusher("image").image("v1", &layers, &[]).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let volume = node.volume("all");
        let reference = registry.reference("image:v1");
        node.publish(&volume, &reference, &[]).await.expect("published");
        assert_eq!(
            paths(&volume.target),
            ["lib", "usr/", "usr/a", "usr/b", "usr/lib/", "usr/lib/x/", "usr/lib/x/file"]
        );
        let inode = |name: &str| fs::metadata(volume.target.join(name)).expect(name).ino();
        assert_eq!(inode("usr/a"), inode("usr/b"));
        assert_eq!(fs::read(volume.target.join("usr/a")).expect("a file"), b"shared");
        let part = node.volume("part");
        node.publish(&part, &reference, &[("path", "lib/x")]).await.expect("published");
        assert_eq!(paths(&part.target), ["file"]);
    });
}

#[test]
fn regression_half_a_gibibyte_of_zeros_takes_no_space() {
    isolated(async {
        const SIZE: usize = 512 << 20;
        let registry = Scripted::start().await;
        let mut disk = vec![0; SIZE];
        disk[300 << 20..(300 << 20) + 100_000].copy_from_slice(&noise(41, 100_000));
        let archive = Tarball::new().file("disk.img", &disk).finish();
        let layers = [gzip(&archive).expect("gzip"), zstd(&archive).expect("zstd")];
        let mut node = Node::prepare(&["--plain-http", &registry.host()]);
        node.limit_store("64m");
        node.run().await;
        for (number, blob) in layers.into_iter().enumerate() {
            assert!(blob.len() < 1 << 20, "more than 512 times smaller: {}", blob.len());
            let name = format!("disk-{number}");
            registry.pusher(&name).image("v1", &[Layer::archive(blob)], &[]).await.expect("pushed");
            let volume = node.volume(&name);
            node.publish(&volume, &registry.reference(&format!("{name}:v1")), &[]).await.expect("published");
            let found = fs::metadata(volume.target.join("disk.img")).expect("a file");
            assert_eq!(found.len(), SIZE as u64);
            assert!(found.blocks() * 512 < 1 << 20, "{} blocks", found.blocks());
            assert!(fs::read(volume.target.join("disk.img")).expect("read") == disk);
            node.kubelet.unpublish(&volume).await.expect("unpublished");
        }
    });
}
