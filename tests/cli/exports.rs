//! Plain copies: `ocivol export`, and what is left of one that does not end well.

use std::os::unix::fs::PermissionsExt as _;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ocivol::demo::push::Layer;
use ocivol::demo::tarball::{Tarball, gzip};

use super::commands::{command, failure, model, ocivol, start, stdout};
use super::users::Nobody;
use crate::support::{Node, Scripted, eventually, isolated, noise};

#[test]
fn what_is_exported_is_a_plain_copy_also_without_root() {
    isolated(async {
        let registry = Scripted::start().await;
        let base = Tarball::new().file("etc/base", b"base").file("usr/x", &noise(5, 5_000)).finish();
        let top = Tarball::new().file("etc/.wh.base", b"").file("etc/top", b"top").finish();
        let layers = [Layer::archive(gzip(&base).expect("memory")), Layer::archive(top)];
        let digest = registry.pusher("app").image("v1", &layers, &[]).await.expect("pushed").to_string();
        let reference = registry.reference("app:v1");
        let user = Nobody::new();
        let home_path = &user.home;
        let as_nobody = async |arguments: &[&str]| user.ocivol(&registry, arguments).await;
        let text = stdout(&as_nobody(&["export", &reference, "out"]).await);
        let out = home_path.join("out");
        assert!(text.starts_with(&format!("{digest}\n2 files, ")), "{text}");
        assert!(text.ends_with(&format!(", in {}\n", out.display())), "{text}");
        assert_eq!(std::fs::read(out.join("etc/top")).expect("read"), b"top");
        assert_eq!(std::fs::read(out.join("usr/x")).expect("read"), noise(5, 5_000));
        assert!(!out.join("etc/base").exists());
        let mode = std::fs::metadata(out.join("etc/top")).expect("there").permissions().mode();
        assert_eq!(mode & 0o600, 0o600, "{mode:o}");
        // It is a copy: what is done to it changes nothing in the store.
        std::fs::write(out.join("etc/top"), "changed").expect("written");
        let (code, text) = failure(&as_nobody(&["export", &reference, "out"]).await);
        assert!(code == 2 && text.contains("out is not empty"), "{text}");
        let there = user.directory("there");
        stdout(&as_nobody(&["export", &reference, "there"]).await);
        assert_eq!(std::fs::read(there.join("etc/top")).expect("read"), b"top");
        // Nothing else is left.
        assert_eq!(user.names(), [".local", "ocivol", "out", "there"]);
    });
}

#[test]
fn where_a_copy_cannot_be_made_is_said_before_the_pull() {
    isolated(async {
        let (registry, reference) = model().await;
        let user = Nobody::new();
        std::fs::create_dir(user.home.join("of-root")).expect("made");
        for (verb, place, part) in [
            ("export", "absent/out", "absent: No such file or directory (os error 2); make it first"),
            ("export", "of-root/out", "of-root: Permission denied (os error 13)\n"),
            ("export", "of-root", "of-root: Permission denied (os error 13)\n"),
            ("save", "of-root/x.tar", "cannot write of-root/x.tar: Permission denied"),
        ] {
            let (code, text) = failure(&user.ocivol(&registry, &[verb, &reference, place]).await);
            assert!(code == 1 && text.contains(part) && !text.contains("--readable"), "{text}");
        }
        assert!(registry.requests().is_empty());
        // What leads root elsewhere is not followed where somebody else says where.
        let node = Node::on_host(&[]);
        let elsewhere = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink(elsewhere.path(), user.home.join("link")).expect("made");
        std::os::unix::fs::lchown(user.home.join("link"), Some(65534), None).expect("changed");
        for place in ["link", "link/out"] {
            let place = user.home.join(place);
            let words = ["export", &reference, place.to_str().expect("text")];
            let (code, text) = failure(&ocivol(&node, &registry, &words).await);
            assert!(code == 1 && text.contains("is a link in a directory of another user"), "{text}");
        }
        assert_eq!(std::fs::read_dir(elsewhere.path()).expect("listed").count(), 0);
        assert!(registry.requests().is_empty());
    });
}

#[test]
fn regression_nothing_is_left_of_a_copy_that_was_stopped() {
    isolated(async {
        let registry = Scripted::start().await;
        let node = Node::on_host(&[]);
        // So many files that it can be stopped between them.
        let layers: Vec<Layer> = (0..2)
            .map(|layer| {
                let all =
                    (0..5_000).fold(Tarball::new(), |all, file| all.file(format!("{layer}/{file}"), b"x"));
                Layer::archive(all.finish())
            })
            .collect();
        registry.pusher("app").image("v1", &layers, &[]).await.expect("pushed");
        let reference = registry.reference("app:v1");
        stdout(&ocivol(&node, &registry, &["pull", &reference]).await);
        let around = tempfile::tempdir().expect("a directory");
        let there = around.path().join("there");
        std::fs::create_dir(&there).expect("made");
        for (place, staged_in) in
            [(around.path().join("out"), around.path()), (there.clone(), there.as_path())]
        {
            let words = ["export", &reference, place.to_str().expect("text")];
            let child = start(command(&node, &registry, &words));
            let is_copying = || {
                let staged = std::fs::read_dir(staged_in).expect("listed").flatten();
                staged
                    .filter(|entry| entry.file_name().to_string_lossy().starts_with(".ocivol-export-"))
                    .any(|entry| entry.path().join("tree").exists())
            };
            eventually("it copies", is_copying).await;
            kill(Pid::from_raw(child.id().try_into().expect("a number")), Signal::SIGINT).expect("alive");
            let ended = tokio::task::spawn_blocking(move || child.wait_with_output());
            let ended = ended.await.expect("no panic").expect("an end");
            assert_eq!(ended.status.code(), Some(130), "{}", String::from_utf8_lossy(&ended.stderr));
            let names: Vec<_> = std::fs::read_dir(around.path())
                .expect("listed")
                .flatten()
                .map(|entry| entry.file_name())
                .collect();
            assert_eq!(names, ["there"]);
            assert_eq!(std::fs::read_dir(&there).expect("listed").count(), 0);
        }
    });
}
