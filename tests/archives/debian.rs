//! A Debian root file system, made into an image by buildah, pushed to a real registry, and mounted: equal to what
//! umoci unpacks.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::debian_registry::DebianRegistry;
use crate::support::layers::umoci_unpack;
use crate::support::snapshot::{Snapshot, assert_equal, snapshot};
use crate::support::{Node, isolated};

/// Small packages that bring what root file systems have: symlinks instead of directories, hard links, setuid
/// programs, names of all kinds.
const PACKAGES: [&str; 9] =
    ["base-files", "bash", "coreutils", "libc6", "login", "mount", "passwd", "perl-base", "tzdata"];

fn run(program: &str, arguments: &[&str], directory: &Path) -> String {
    let run = Command::new(program).args(arguments).current_dir(directory).output();
    let run = run.unwrap_or_else(|error| panic!("{program} cannot be started: {error}; run `make test`"));
    assert!(run.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).expect("text").trim().to_owned()
}

/// The packages' files, fetched once per checkout.
fn packages() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
    std::fs::create_dir_all(&directory).expect("a directory");
    let list = || -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&directory).expect("a directory");
        entries
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|it| it == "deb"))
            .collect()
    };
    if list().len() < PACKAGES.len() {
        let mut arguments =
            vec!["-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=5", "download"];
        arguments.extend(PACKAGES);
        // A package list that is old names files that are not there any more.
        if std::process::Command::new("apt-get")
            .args(&arguments)
            .current_dir(&directory)
            .output()
            .is_ok_and(|it| !it.status.success())
        {
            run("apt-get", &["-q", "update"], &directory);
            run("apt-get", &arguments, &directory);
        }
    }
    list()
}

/// By rule neither has privileged bits, and umoci's clock is not compared.
fn comparable(mut snapshot: Snapshot) -> Snapshot {
    for node in snapshot.values_mut() {
        node.mode &= 0o777;
        node.xattrs.retain(|name, _| name.starts_with("user."));
    }
    snapshot
}

#[test]
fn a_debian_image_of_buildah_is_what_umoci_unpacks() {
    let packages = packages(); // Before there is no network any more.
    isolated(async {
        let work = tempfile::Builder::new().prefix("ocivol-debian-").tempdir().expect("a directory");
        let base = work.path();
        let rootfs = base.join("rootfs");
        std::fs::create_dir(&rootfs).expect("a directory");
        // As Debian has it since version 12: the directories of old are links.
        for name in ["bin", "sbin", "lib", "lib64"] {
            std::fs::create_dir_all(rootfs.join("usr").join(name)).expect("a directory");
            std::os::unix::fs::symlink(format!("usr/{name}"), rootfs.join(name)).expect("a link");
        }
        for package in packages {
            // tar keeps the links, which dpkg-deb -x replaces.
            let unpacked = base.join("package.tar");
            let file = std::fs::File::create(&unpacked).expect("a file");
            let status = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(&package).stdout(file).status();
            assert!(status.expect("dpkg-deb").success());
            let tar = unpacked.display().to_string();
            run(
                "tar",
                &["-xpf", &tar, "--keep-directory-symlink", "-C", &rootfs.display().to_string()],
                base,
            );
        }

        let registry = DebianRegistry::start().await;
        let storage = base.join("storage").display().to_string();
        let buildah = |arguments: &[&str]| {
            let mut all = vec!["--root", &storage, "--runroot", &storage, "--storage-driver", "vfs"];
            all.extend(arguments);
            run("buildah", &all, base)
        };
        let first = buildah(&["from", "scratch"]);
        buildah(&["copy", &first, &rootfs.display().to_string(), "/"]);
        buildah(&["commit", "--quiet", &first, "one"]);
        // A second layer that removes, replaces, and goes through a link.
        let second = buildah(&["from", "--pull-never", "localhost/one"]);
        let mounted = PathBuf::from(buildah(&["mount", &second]));
        std::fs::remove_dir_all(mounted.join("usr/share/doc")).expect("removed");
        std::fs::remove_file(mounted.join("usr/share/zoneinfo/UTC")).expect("removed");
        std::fs::create_dir(mounted.join("usr/share/zoneinfo/UTC")).expect("replaced");
        std::fs::write(mounted.join("usr/bin/new"), "#!/bin/sh\n").expect("written");
        std::fs::remove_file(mounted.join("sbin")).expect("removed");
        std::fs::create_dir(mounted.join("sbin")).expect("a directory instead of a link");
        std::fs::write(mounted.join("sbin/own"), "x").expect("written");
        buildah(&["umount", &second]);
        buildah(&["commit", "--quiet", &second, "two"]);

        let node = Node::start(&["--plain-http", &registry.host()]).await;
        for name in ["one", "two"] {
            let remote = format!("docker://{}", registry.reference(&format!("debian:{name}")));
            buildah(&["push", "--quiet", "--tls-verify=false", &format!("localhost/{name}"), &remote]);
            let place = base.join(name);
            std::fs::create_dir(&place).expect("a directory");
            let layout = format!("oci:{}:it", place.join("layout").display());
            run("skopeo", &["copy", "--quiet", "--src-tls-verify=false", &remote, &layout], base);
            let theirs = umoci_unpack(layout.trim_start_matches("oci:"), &place).expect("umoci");
            let volume = node.volume(name);
            node.publish(&volume, &registry.reference(&format!("debian:{name}")), &[])
                .await
                .expect("published");
            let ours = comparable(snapshot(&volume.target));
            assert!(ours.len() > 3000, "{} files", ours.len());
            assert_equal(&ours, &comparable(snapshot(&theirs)), "umoci");
        }
    });
}
