//! Artifacts that are odd and common: what they show to a container on a real node.

use ocivol::demo::push::{Layer, Pusher};
use ocivol::demo::tarball::{FILE, Header, Tarball, gzip};
use serde_json::json;

use super::Shared;
use crate::pod::{inline_with, merge, pod, script};
use crate::registry::REGISTRY;

/// What `oras push ref .` makes: a script that only its owner's group may run, a link to the current release, and a disk that
/// is mostly a hole.
fn packed() -> Layer {
    let run = b"#!/bin/sh\necho ran as $(id -u)\n";
    let archive = Tarball::new()
        .directory(".")
        .entry(&Header { mode: 0o750, size: run.len() as u64, ..Header::new("bin/run.sh", FILE) }, run)
        .file("releases/7/model.bin", b"seven")
        .symlink("current", "/releases/7")
        .pax(&[("GNU.sparse.size", b"1073741824"), ("GNU.sparse.map", b"0,4,1073741820,4")])
        .file("disk.img", b"headtail")
        .finish();
    let mut layer = Layer::titled(".", gzip(&archive).expect("gzip"));
    layer.annotations["io.deis.oras.content.unpack"] = json!("true");
    layer
}

pub async fn a_directory_pushed_as_a_dot_runs_and_is_sparse(node: Shared) {
    let pods = node.lock().await.cluster.namespace("odd", json!({})).await;
    Pusher::new(REGISTRY, "odd/here").files("v1", &[packed()]).await.expect("pushed");
    let reference = format!("{REGISTRY}/odd/here:v1");
    let nobody = json!({"securityContext": {"runAsNonRoot": true, "runAsUser": 65534}});

    let look = "/m/bin/run.sh; stat -c '%a %s' /m/bin/run.sh /m/disk.img; du -k /m/disk.img; \
                head -c 4 /m/disk.img; tail -c 4 /m/disk.img; echo; echo looked";
    let mut changes = script(look);
    merge(&mut changes, &nobody);
    pods.run(pod("all", inline_with(&reference, &json!({"exec": "true"})), &changes)).await;
    let printed = pods.printed("all", "looked").await;
    assert!(printed.starts_with("ran as 65534\n755 "), "{printed}");
    assert!(printed.contains(" 1073741824\n") && printed.contains("headtail"), "{printed}");
    let used = printed.lines().find_map(|line| line.strip_suffix("/m/disk.img")).expect("du");
    let used: u64 = used.trim().parse().expect("a number");
    assert!(used < 1024, "its hole takes {used} KiB");

    let mut changes = script("cat /m/model.bin; echo; echo looked");
    merge(&mut changes, &nobody);
    pods.run(pod("part", inline_with(&reference, &json!({"path": "current"})), &changes)).await;
    let printed = pods.printed("part", "looked").await;
    assert!(printed.starts_with("seven\n"), "{printed}");
    pods.clear().await;
}
