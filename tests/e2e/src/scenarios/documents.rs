//! What the README shows to begin with, word for word.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::storage::v1::CSIDriver;

use super::Shared;
use crate::blocks::{commands, compare};
use crate::cluster::eventually;
use crate::machine::{directory, target};
use crate::node::Node;
use crate::pod::DRIVER;
use crate::registry::{REGISTRY, push_image};

/// The headings whose commands are typed, in this order, and the documents.
const SESSION: [(&str, &str); 2] = [("README.md", "A first volume"), ("docs/operations.md", "Uninstall")];
/// What was done already: `make e2e` begins with it.
const DONE: &str = "make image";
/// The registry of the documents.
const EXAMPLE: &str = "registry.example.com";

pub async fn the_first_volume_of_the_readme_is_what_a_new_cluster_shows(node: Shared) {
    let node = node.lock().await;
    as_new(&node).await;
    // What the example pulls from Docker Hub.
    let alpine =
        ["bin/", "dev/", "etc/", "home/", "lib/", "media/", "mnt/", "opt/", "proc/", "root/", "run/"];
    let more = ["sbin/", "srv/", "sys/", "tmp/", "usr/", "var/"];
    push_image("library/busybox", "latest", &[], &["sh", "sleep", "ls"]).await;
    push_image("library/alpine", "3", &[&alpine[..], &more].concat(), &["sh"]).await;
    docker_hub_is_here();

    let (mut assignments, mut typed) = (String::new(), 0);
    for (document, heading) in SESSION {
        let text = fs::read_to_string(checkout().join(document)).expect(document);
        for shown in commands(&text).into_iter().filter(|shown| shown.heading == heading) {
            let words = shown.words.replace(EXAMPLE, REGISTRY);
            if words.starts_with(DONE) {
                continue;
            }
            if words.starts_with("REGISTRY=") {
                assignments = format!("{words}\n");
                continue;
            }
            let printed = shell(&format!("{assignments}{words}"));
            let printed = printed.replace(REGISTRY, EXAMPLE);
            if !(shown.printed.is_empty() || compare(&shown.printed, &printed).is_ok()) {
                panic!(
                    "{document}: $ {}\n{}",
                    shown.words,
                    compare(&shown.printed, &printed).expect_err("it differs")
                );
            }
            typed += 1;
        }
    }
    assert!(typed >= 10, "only {typed} commands are found");
    eventually("kubelet forgets the driver", || async {
        (!node.cluster.drivers().await.contains(&DRIVER.to_owned())).then_some(())
    })
    .await;
    assert!(!Path::new("/var/lib/ocivol").exists());
}

/// Takes away what other scenarios have installed.
async fn as_new(node: &Node) {
    node.uninstall_if_there();
    node.cluster.pods("ocivol").gone().await;
    node.cluster.delete_if_there::<CSIDriver>(DRIVER).await;
    node.cluster.delete_if_there::<Namespace>("ocivol").await;
}

/// containerd and ocivol are told that what the registry of this node has is Docker Hub.
fn docker_hub_is_here() {
    let (hosts, usual) = (directory().join("certs.d"), Path::new("/etc/containerd/certs.d"));
    fs::create_dir_all(hosts.join("docker.io")).expect("a directory");
    let text = format!("server = \"http://{REGISTRY}\"\n");
    fs::write(hosts.join("docker.io/hosts.toml"), text).expect("a file");
    fs::create_dir_all(usual).expect("a directory");
    let none: Option<&str> = None;
    nix::mount::mount(Some(&hosts), usual, none, nix::mount::MsFlags::MS_BIND, none).expect("a mount");
    // skopeo is told of a registry without TLS as podman's users do it.
    let text = format!("[[registry]]\nlocation = \"{REGISTRY}\"\ninsecure = true\n");
    let file = directory().join(".config/containers/registries.conf");
    fs::create_dir_all(file.parent().expect("a directory")).expect("a directory");
    fs::write(file, text).expect("a file");
}

fn checkout() -> PathBuf {
    target().join("..").canonicalize().expect("the checkout")
}

/// Runs a command as somebody at a shell, in the checkout; what it prints on both outputs.
fn shell(words: &str) -> String {
    let tools = target().join("tools");
    let path = ["kubernetes", "bin"].map(|name| tools.join(name).display().to_string()).join(":");
    let output = Command::new("bash")
        .args(["-ec", &format!("exec 2>&1\n{words}")])
        .current_dir(checkout())
        .env("PATH", format!("{path}:/usr/sbin:/usr/bin:/sbin:/bin"))
        .env("KUBECONFIG", directory().join("kubeconfig"))
        .env("HOME", directory())
        .output()
        .expect("bash");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "$ {words}: {}\n{printed}", output.status);
    printed
}
