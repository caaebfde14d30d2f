//! Layers made to do harm by names, links and metadata. Every archive is written byte by byte, pushed to a registry, and
//! published by the real binary. Whatever it holds, a file outside of the store stays as it was; what is refused is
//! refused for good, by name, and leaves nothing behind.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ocivol::demo::push::Layer;
use ocivol::demo::tarball;
use ocivol::demo::tarball::{FILE, Header, Tarball, gzip};
use ocivol::layer::format::Profile;
use ocivol::layer::rename::Rename;
use ocivol::oci::digest::Digest;
use serde_json::json;
use tonic::Code;

use crate::support::attack::{Attack, attack, one};
use crate::support::eventually;
use crate::support::layers::{Layers, unpack};
use crate::support::node::{mount_at, mounts_below};
use crate::support::raw::{Raw as _, block, with_checksum};

#[test]
fn t01_names_that_lead_up_are_refused() {
    attack(async |mut attack| {
        for name in ["../../probe", "a/../../probe", "./..//probe", "..", "a/.."] {
            attack.refuse_image(&[one(name)], &[name, "'..'"]).await;
            attack.refuse_model(&[one(name)], &[name, "'..'"]).await;
        }
        // Other pulls go on.
        let good = attack.image(&[one("good")]).await.expect("published");
        assert_eq!(fs::read(good.join("good")).expect("a file"), b"2");
    });
}

#[test]
fn t02_absolute_names_are_relative_to_the_root() {
    attack(async |mut attack| {
        let outside = attack.outside();
        let archive = Tarball::new()
            .file("/etc/probe", b"1")
            .file("//etc/other", b"2")
            .file(format!("{outside}/file"), b"3")
            .finish();
        for target in [attack.image(std::slice::from_ref(&archive)).await, attack.model(&[archive]).await] {
            let target = target.expect("published");
            assert_eq!(fs::read(target.join("etc/probe")).expect("a file"), b"1");
            assert_eq!(fs::read(target.join("etc/other")).expect("a file"), b"2");
            assert_eq!(fs::read(target.join(&outside[1..]).join("file")).expect("a file"), b"3");
        }
    });
}

#[test]
fn t03_a_symlink_of_the_same_layer_is_followed_inside_only() {
    attack(async |mut attack| {
        let outside = attack.outside();
        for link in [outside.as_str(), "../../..", "/", "../../../../tmp"] {
            let archive = Tarball::new().symlink("d", link).file("d/file", b"inside").finish();
            let target = attack.image(std::slice::from_ref(&archive)).await.expect("published");
            let end = link.trim_start_matches(['/', '.']);
            assert_eq!(fs::read(target.join(end).join("file")).expect("inside"), b"inside");
            assert_eq!(fs::read_link(target.join("d")).expect("the link"), Path::new(link));
        }
        attack.node.kill();
        let mut attack = Attack::start(&[]).await;
        for link in [outside.as_str(), "../../..", "sub"] {
            let archive = Tarball::new().directory("sub").symlink("d", link).file("d/file", b"x").finish();
            attack.refuse_model(&[archive], &["d/file", "symbolic link"]).await;
        }
    });
}

#[test]
fn t04_a_symlink_of_a_lower_layer_is_followed_inside_only() {
    attack(async |mut attack| {
        let outside = attack.outside();
        for link in [outside.as_str(), "../../..", "/"] {
            let lower = Tarball::new().symlink("d", link).finish();
            let upper = Tarball::new().file("d/file", b"inside").finish();
            let target = attack.image(&[lower, upper]).await.expect("published");
            let end = link.trim_start_matches(['/', '.']);
            assert_eq!(fs::read(target.join(end).join("file")).expect("inside"), b"inside");
        }
        attack.node.kill();
        let mut attack = Attack::start(&[]).await;
        let lower = Tarball::new().symlink("d", &outside).finish();
        let upper = Tarball::new().file("d/file", b"x").finish();
        attack.refuse_model(&[lower, upper], &["d/file", "symbolic link"]).await;
    });
}

#[test]
fn t05_a_race_in_the_staging_directory_leads_nowhere() {
    let directory = tempfile::tempdir().expect("a directory");
    let (probe, layer) = (directory.path().join("probe"), directory.path().join("layer"));
    fs::create_dir(&probe).expect("a directory");
    fs::create_dir(&layer).expect("a directory");
    let mut tar = Tarball::new();
    for number in 0..400 {
        // Each goes back to a directory that is not open any more.
        tar = tar.file(format!("d{}/f{number}", number % 40), b"x");
    }
    let archive = tar.finish();
    let running = AtomicBool::new(true);
    let swapped = std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swapped = 0_u32;
            while running.load(Ordering::SeqCst) {
                for number in 0..40 {
                    let (there, aside) =
                        (layer.join(format!("fs/d{number}")), layer.join(format!("swapped-{number}")));
                    if fs::rename(&there, &aside).is_ok() {
                        // The directory is in the way of what was created meanwhile, or the symlink is.
                        let linked = std::os::unix::fs::symlink(&probe, &there).is_ok();
                        swapped += u32::from(linked);
                        if linked && fs::remove_file(&there).is_ok() {
                            let _ = fs::rename(&aside, &there);
                        }
                    }
                }
            }
            swapped
        });
        for _ in 0..20 {
            // It fails where a directory is gone; what it must not do is write to the probe.
            let _ = unpack(&layer, &archive, Profile::Image, 4096);
            assert_eq!(fs::read_dir(&probe).expect("a directory").count(), 0, "written outside");
            for entry in fs::read_dir(&layer).expect("a directory") {
                let path = entry.expect("an entry").path();
                let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
            }
        }
        running.store(false, Ordering::SeqCst);
        swapper.join().expect("no panic")
    });
    assert!(swapped > 0, "nothing was swapped");
}

#[test]
fn t06_metadata_is_not_set_through_a_symlink() {
    attack(async |mut attack| {
        let outside = attack.outside();
        for name in ["foo", "foo/.", "foo/"] {
            let directory = Header { mode: 0o777, ..Header::new(name, tarball::DIRECTORY) };
            let archive = Tarball::new().symlink("foo", &outside).entry(&directory, b"").finish();
            let target = attack.image(std::slice::from_ref(&archive)).await.expect("published");
            let found = fs::symlink_metadata(target.join("foo")).expect("a directory");
            assert!(found.is_dir() && found.mode() & 0o7777 == 0o777);
            let target = attack.model(&[archive]).await.expect("published");
            assert!(fs::symlink_metadata(target.join("foo")).expect("a directory").is_dir());
        }
    });
}

#[test]
fn t07_hard_links_to_what_the_image_does_not_hold_are_refused() {
    attack(async |mut attack| {
        let outside = format!("{}/file", attack.outside());
        // In the store's own file system, where it could be linked; the plugin's directory is `/`.
        let neighbour = attack.node.root.join("neighbour");
        fs::write(&neighbour, "untouched").expect("a file");
        let absolute = neighbour.to_str().expect("text").to_owned();
        let relative = absolute.trim_start_matches('/').to_owned();
        for link in ["/etc/passwd", outside.as_str(), absolute.as_str(), relative.as_str(), "file", "."] {
            let archive = Tarball::new().hard_link("x", link).finish();
            attack.refuse_image(std::slice::from_ref(&archive), &["\"x\"", "hard link"]).await;
            attack.refuse_model(&[archive], &["\"x\"", "hard link"]).await;
        }
        let archive = Tarball::new().hard_link("x", "../../probe").finish();
        attack.refuse_image(&[archive], &["\"x\"", "'..'"]).await;
        let archive = Tarball::new().directory("d").hard_link("x", "d").finish();
        attack.refuse_image(&[archive], &["\"x\"", "is a directory"]).await;
        assert_eq!(fs::metadata(&neighbour).expect("it is there").nlink(), 1);
    });
}

#[test]
fn t08_a_hard_link_to_a_symlink_is_a_symlink() {
    attack(async |mut attack| {
        let outside = format!("{}/file", attack.outside());
        let archive = Tarball::new()
            .symlink("s", &outside)
            .hard_link("h", "s")
            .file("h", b"replaced")
            .hard_link("again", "s")
            .finish();
        let target = attack.image(&[archive]).await.expect("published");
        assert_eq!(fs::read(target.join("h")).expect("a file"), b"replaced");
        let inode = |name: &str| fs::symlink_metadata(target.join(name)).expect("a link").ino();
        assert_eq!(inode("again"), inode("s"));
        assert_eq!(fs::read_link(target.join("again")).expect("a link"), Path::new(&outside));
    });
}

#[test]
fn t09_the_root_stays_a_directory() {
    attack(async |mut attack| {
        for name in [".", "./", "/"] {
            for archive in [Tarball::new().symlink(name, "/"), Tarball::new().hard_link(name, "a")] {
                attack.refuse_image(&[archive.finish()], &["the root is no directory"]).await;
            }
        }
        attack.refuse_image(&[Tarball::new().file(".", b"x").finish()], &["the root is no directory"]).await;
        // With a slash at the end a file is nothing that all tools agree on.
        attack.refuse_image(&[Tarball::new().file("./", b"x").finish()], &["ends in a slash"]).await;
        let root = Header { mode: 0o750, ..Header::new("./", tarball::DIRECTORY) };
        let target = attack.image(&[Tarball::new().entry(&root, b"").finish()]).await.expect("published");
        assert_eq!(fs::metadata(target).expect("the root").mode() & 0o7777, 0o750);
    });
}

#[test]
fn t10_devices_and_fifos_are_left_out() {
    attack(async |mut attack| {
        let mut device = block(&Header::new("dev/mem", tarball::CHARACTER_DEVICE));
        device[329..337].copy_from_slice(b"0000001\0");
        device[337..345].copy_from_slice(b"0000001\0");
        let archive = Tarball::new()
            .raw(&with_checksum(device))
            .entry(&Header::new("dev/sda", tarball::BLOCK_DEVICE), b"")
            .entry(&Header::new("etc/passwd", tarball::FIFO), b"")
            .hard_link("etc/shadow", "etc/passwd")
            .file("etc/hosts", b"x")
            .entry(&Header::new("etc/hosts", tarball::FIFO), b"")
            .file("kept", b"x")
            .finish();
        for target in [attack.image(std::slice::from_ref(&archive)).await, attack.model(&[archive]).await] {
            let target = target.expect("published");
            assert_eq!(fs::read_dir(target.join("etc")).expect("a directory").count(), 0);
            assert_eq!(fs::read_dir(target.join("dev")).expect("a directory").count(), 0);
            assert!(target.join("kept").is_file());
        }
        // One of a lower layer's file takes its place as well.
        let upper = Tarball::new().entry(&Header::new("good", tarball::FIFO), b"").finish();
        let target = attack.image(&[one("good"), upper]).await.expect("published");
        assert!(!target.join("good").exists() && target.join("before").exists());
    });
}

#[test]
fn t11_setuid_setgid_and_sticky_are_dropped() {
    attack(async |mut attack| {
        let with = |mode, name: &str, kind| Header { mode, size: 0, ..Header::new(name, kind) };
        let archive = Tarball::new()
            .entry(&with(0o4755, "su", FILE), b"")
            .entry(&with(0o2755, "sg", FILE), b"")
            .entry(&with(0o107_777, "all", FILE), b"")
            .entry(&with(0o1777, "tmp", tarball::DIRECTORY), b"")
            .finish();
        let lower = one("x");
        for layers in [vec![archive.clone()], vec![lower, archive]] {
            let target = attack.image(&layers).await.expect("published");
            let mode =
                |name: &str| fs::metadata(target.join(name)).expect(name).permissions().mode() & 0o7777;
            assert_eq!([mode("su"), mode("sg"), mode("all"), mode("tmp")], [0o755, 0o755, 0o777, 0o777]);
            assert!(mount_at(&target).expect("a mount").has("nosuid"));
        }
        // It is counted, and said.
        let listed = std::process::Command::new(crate::support::node::BINARY)
            .args(["ls", "--output", "json", "--root"])
            .arg(&attack.node.root)
            .output()
            .expect("it runs");
        let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("JSON");
        assert_eq!(listed[0]["dropped"]["mode_bits"], 4, "{listed}");
    });
}

#[test]
fn t12_only_user_attributes_are_kept() {
    attack(async |mut attack| {
        let archive = Tarball::new()
            .pax(&[
                ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\xff\xff\xff\xff"),
                ("SCHILY.xattr.trusted.overlay.redirect", b"/.."),
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("SCHILY.xattr.user.overlay.whiteout", b"y"),
                ("SCHILY.xattr.system.posix_acl_access", b"\x02\0\0\0"),
                ("SCHILY.xattr.user.kept", b"\0value=\n"),
            ])
            .file("file", b"x")
            .finish();
        for target in [attack.image(std::slice::from_ref(&archive)).await, attack.model(&[archive]).await] {
            let file = target.expect("published").join("file");
            let mut names = vec![0_u8; 4096];
            let length = rustix::fs::listxattr(&file, &mut names[..]).expect("a list");
            assert_eq!(&names[..length], b"user.kept\0");
            let mut value = [0_u8; 100];
            let length = rustix::fs::getxattr(&file, "user.kept", &mut value[..]).expect("a value");
            assert_eq!(&value[..length], b"\0value=\n");
        }
    });
}

#[test]
fn t13_whiteouts_hide_only_what_lower_layers_have() {
    attack(async |mut attack| {
        for (name, rule) in [
            (".wh.", "whiteout of nothing"),
            (".wh..", "whiteout of nothing"),
            (".wh...", "whiteout of nothing"),
            ("a/.wh...", "whiteout of nothing"),
            (".wh.../x", "inside a whiteout"),
            (".wh.a/x", "inside a whiteout"),
        ] {
            attack.refuse_image(&[one(name)], &[name, rule]).await;
        }
        let directory = Tarball::new().directory("a/.wh..wh..opq").finish();
        attack.refuse_image(&[directory], &["a whiteout is a file"]).await;
        let symlink = Tarball::new().symlink(".wh.a", "/").finish();
        attack.refuse_image(&[symlink], &["a whiteout is a file"]).await;
        // Through a symlink that leads out.
        let outside = attack.outside();
        let lower = Tarball::new().symlink("a", &outside).file("b/c", b"x").finish();
        let upper =
            Tarball::new().file("a/.wh.file", b"").file("a/.wh..wh..opq", b"").file(".wh.b", b"").finish();
        let target = attack.image(&[lower.clone(), upper]).await.expect("published");
        assert!(fs::symlink_metadata(target.join("a")).expect("the link").is_symlink());
        assert!(!target.join("b").exists());
        let upper = Tarball::new().file(".wh.a", b"").file(".wh..wh..opq", b"").file("new", b"x").finish();
        let target = attack.image(&[lower, upper]).await.expect("published");
        assert_eq!(fs::read_dir(&target).expect("a directory").count(), 1);
        // A device 0:0 is how overlayfs writes a whiteout; in an archive it is a device.
        let device = Tarball::new().entry(&Header::new("before", tarball::CHARACTER_DEVICE), b"").finish();
        let target = attack.image(&[one("x"), device]).await.expect("published");
        assert!(!target.join("before").exists());
        // In an archive of an artifact it is a name like others.
        let target = attack.model(&[one(".wh.x")]).await.expect("published");
        assert_eq!(fs::read(target.join(".wh.x")).expect("a file"), b"2");
    });
}

#[test]
fn t40_nothing_in_a_config_is_obeyed() {
    attack(async |mut attack| {
        let layer = one("x");
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": {
                "Volumes": { "/../../probe": {}, "/etc": {} }, "Labels": { "a\nb": "c\u{1b}[31m" },
                "Entrypoint": ["/bin/sh", "-c", "touch /probe"], "User": "0", "WorkingDir": "../../..",
            },
            "rootfs": { "type": "layers", "diff_ids": ["sha256:../../x"] },
        });
        attack.number += 1;
        let pusher = attack.registry.pusher("hostile/config");
        let kind = "application/vnd.oci.image.config.v1+json";
        pusher.artifact("v1", "", kind, &config.to_string(), &[Layer::archive(layer)]).await.expect("pushed");
        let target = attack.publish("hostile/config", &[]).await.expect("published");
        assert_eq!(fs::read_dir(&target).expect("a directory").count(), 2);
        assert_eq!(mounts_below(&target).len(), 1);
        // Titles are names, too.
        for title in ["../../x", "/etc/x", "a/../../x", "", &"a".repeat(5000), "a\0b"] {
            attack.number += 1;
            let repository = format!("hostile/{}", attack.number);
            let layer = Layer {
                annotations: json!({
                    "org.opencontainers.image.title": title, "io.deis.oras.content.unpack": "true",
                }),
                ..Layer::archive(one("x"))
            };
            attack.registry.pusher(&repository).files("v1", &[layer]).await.expect("pushed");
            let status = attack.publish(&repository, &[]).await.expect_err("a bad title");
            assert_eq!(status.code(), Code::FailedPrecondition, "{}", status.message());
        }
        // Entries outside of the directory that the title names.
        let layer = Layer {
            annotations: json!({
                "org.opencontainers.image.title": "dir", "io.deis.oras.content.unpack": "true",
            }),
            ..Layer::archive(Tarball::new().file("dir/a", b"x").file("dirt/b", b"x").finish())
        };
        let content = layer.content.clone();
        attack.number += 1;
        attack.registry.pusher("hostile/title").files("v1", &[layer]).await.expect("pushed");
        let result = attack.publish("hostile/title", &[]).await;
        let status = result.expect_err("outside");
        for word in ["dirt/b", "\"dir\"", &Digest::sha256(&content).to_string()] {
            assert!(status.message().contains(word), "{}", status.message());
        }
    });
}

#[test]
fn t48_the_last_of_several_entries_counts() {
    attack(async |mut attack| {
        let outside = attack.outside();
        let archive = Tarball::new()
            .file("a", b"1")
            .file("a", b"22")
            .file("b", b"1")
            .directory("b")
            .file("b/c", b"x")
            .directory("d")
            .file("d/e", b"x")
            .symlink("d", &outside)
            .symlink("f", &outside)
            .file("f", b"file")
            .file("Case", b"1")
            .file("case", b"2")
            .file("e\u{301}", b"1")
            .file("\u{e9}", b"2")
            .finish();
        for target in [attack.image(std::slice::from_ref(&archive)).await, attack.model(&[archive]).await] {
            let target = target.expect("published");
            let read = |name: &str| fs::read(target.join(name)).expect(name);
            assert_eq!(
                (read("a"), read("b/c"), read("f")),
                (b"22".to_vec(), b"x".to_vec(), b"file".to_vec())
            );
            assert!(fs::symlink_metadata(target.join("d")).expect("a link").is_symlink());
            assert_eq!((read("Case"), read("case")), (b"1".to_vec(), b"2".to_vec()));
            assert_eq!((read("e\u{301}"), read("\u{e9}")), (b"1".to_vec(), b"2".to_vec()));
        }
    });
}

#[test]
fn t49_names_are_bytes_with_bounds() {
    attack(async |mut attack| {
        let widest = "w".repeat(255);
        let archive = Tarball::new()
            .file(b"not-utf8-\xff\xfe", b"1")
            .file("new\nline\u{1b}[31m", b"2")
            .file(&widest, b"3")
            .file(format!("{widest}/{widest}").replace('w', "d"), b"4")
            .directory("slash///")
            .finish();
        let target = attack.image(&[archive]).await.expect("published");
        use std::os::unix::ffi::OsStrExt as _;
        let raw = std::ffi::OsStr::from_bytes(b"not-utf8-\xff\xfe");
        assert_eq!(fs::read(target.join(raw)).expect("a file"), b"1");
        assert_eq!(fs::read(target.join("new\nline\u{1b}[31m")).expect("a file"), b"2");
        assert_eq!(fs::read(target.join(&widest)).expect("a file"), b"3");
        assert!(target.join("slash").is_dir());
        attack.node.kill();
        let mut attack = Attack::start(&[]).await;
        attack.refuse_image(&[one("w".repeat(256))], &["longer than 255 bytes"]).await;
        attack.refuse_image(&[one("p/".repeat(2500) + "x")], &["longer than 3072 bytes"]).await;
        attack.refuse_image(&[one("a\n\u{1b}[31m/../b")], &["a\\n\\u{1b}[31m", "'..'"]).await;
        attack.refuse_image(&[Tarball::new().symlink("s", "x".repeat(5000)).finish()], &["4095"]).await;
    });
}

#[test]
fn t54_nothing_out_of_an_image_is_loaded_or_run() {
    attack(async |mut attack| {
        let touch = format!("#!/bin/sh\ntouch {}/ran\n", attack.outside());
        let mut tar = Tarball::new();
        for name in
            ["usr/bin/unpigz", "usr/bin/igzip", "usr/bin/tar", "lib/libnss_files.so.2", "lib/libnss_x.so"]
        {
            let header = Header { size: touch.len() as u64, mode: 0o755, ..Header::new(name, FILE) };
            tar = tar.entry(&header, touch.as_bytes());
        }
        let layer = gzip(&tar.finish()).expect("gzip");
        // At its start it makes two processes, to lock flags of mounts, and executes no program in them.
        let control = attack.node.root.join("control.sock");
        eventually("the end of the start", || std::os::unix::net::UnixStream::connect(&control).is_ok())
            .await;
        let pid = attack.node.pid();
        let faults_of_children = || {
            // `man 5 proc_pid_stat`, cminflt.
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
            stat.rsplit_once(") ")
                .and_then(|(_, fields)| fields.split(' ').nth(8)?.parse::<u64>().ok())
                .expect(&stat)
        };
        let before = faults_of_children();
        let target = attack.image(&[layer.clone(), gzip(&one("x")).expect("gzip")]).await.expect("published");
        assert!(target.join("usr/bin/unpigz").exists() && !attack.probe.join("ran").exists());
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
        let store = attack.node.root.display().to_string();
        assert!(!maps.contains(&store), "{maps}");
        for task in fs::read_dir(format!("/proc/{pid}/task")).expect("tasks") {
            let children = task.expect("a task").path().join("children");
            assert_eq!(fs::read_to_string(children).unwrap_or_default(), "");
        }
        // Nor was there one that has ended: it would have had page faults.
        assert_eq!(faults_of_children(), before);
        let root = fs::read_link(format!("/proc/{pid}/root")).expect("a root");
        assert_eq!(root, attack.root, "as it was at the start");
    });
}

#[test]
fn a_rename_applies_to_the_targets_of_hard_links() {
    let layers = Layers::new();
    let archive =
        Tarball::new().file("top/a", b"1").hard_link("top/b", "top/a").file("left-out", b"x").finish();
    let rename = Rename {
        strip: 1,
        prefix: ocivol::layer::name::Name::parse(b"p/q").expect("safe"),
        ..Rename::default()
    };
    let tree = layers.archive(&archive, rename).expect("a tree");
    let inode = |name: &str| fs::metadata(tree.join("p/q").join(name)).expect(name).ino();
    assert_eq!(inode("a"), inode("b"));
    assert_eq!(fs::read_dir(tree.join("p/q")).expect("a directory").count(), 2);
}
