//! The store on the file systems that it is made for: ext4, XFS and btrfs.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ocivol::demo::push::Layer;
use ocivol::demo::tarball::{FILE, Header, Tarball};
use ocivol::oci::digest::Digest;
use serde_json::Value;

use crate::support::disk::{Disk, FileSystem};
use crate::support::records::{is_durable, records};
use crate::support::wire::Line;
use crate::support::{Node, Scripted, eventually, isolated, noise};

const LOGIN: (&str, &str) = ("user", "hunter2");

fn record_of(node: &Node, content: &[u8]) -> PathBuf {
    let name = format!("{}.json", Digest::sha256(content).hex());
    node.root.join("v1/blobs/sha256").join(name)
}

/// The records of blobs.
fn blob_records(node: &Node) -> Vec<PathBuf> {
    let all = records(&node.root);
    all.into_iter()
        .filter(|path| path.parent().is_some_and(|parent| parent.ends_with("blobs/sha256")))
        .collect()
}

/// The repositories that a blob is known to be of: the one in its record, and those that were learnt of later.
fn origins(node: &Node, content: &[u8]) -> Vec<String> {
    let facts =
        node.root.join("v1/facts").join(format!("blob-sha256-{}.json", Digest::sha256(content).hex()));
    let read = |path: PathBuf| -> Value {
        serde_json::from_slice(&std::fs::read(path).unwrap_or_default()).unwrap_or_default()
    };
    let both = [read(record_of(node, content)), read(facts)];
    let origins = both.iter().flat_map(|known| known["origins"].as_array().into_iter().flatten());
    origins.filter_map(|origin| origin["repository"].as_str().map(str::to_owned)).collect()
}

/// A blob is durable, another repository has just been noted in its record, and the power is cut.
fn a_power_cut_costs_no_durable_blob(kind: FileSystem) {
    isolated(async move {
        let (shared, late) = (noise(1, 20 << 20), noise(2, 1 << 20));
        let registry = Scripted::start().await;
        let weights = Layer::model_file("weight", "w", shared.clone());
        let other = Layer::model_file("weight", "late", late.clone());
        registry.pusher("one").model("v1", std::slice::from_ref(&weights)).await.expect("pushed");
        registry.pusher("two").model("v1", &[weights, other]).await.expect("pushed");
        let line = Arc::new(Line::start(&registry.host()).await);
        let (held, never) = (Arc::clone(&line), Digest::sha256(&late).to_string());
        let blob = Digest::sha256(&shared).to_string();
        registry.script(move |seen| {
            if !seen.headers.contains_key(header::AUTHORIZATION) {
                let asked = [(header::WWW_AUTHENTICATE, "Basic realm=\"r\"")];
                return Some((StatusCode::UNAUTHORIZED, asked).into_response());
            }
            if seen.method == Method::HEAD && seen.path.contains(&blob) {
                held.hold();
            }
            seen.path.contains(&never).then(|| {
                let nothing = futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
                Response::new(Body::from_stream(nothing))
            })
        });
        let mut node = Node::prepare(&["--plain-http", &line.host(), "--stall-timeout", "600"]);
        let mut disk = Disk::for_store(&node, kind, 512);
        node.run().await;
        let volume = node.volume("one");
        let (one, two) = (line.reference("one:v1"), line.reference("two:v1"));
        node.publish_as(&volume, &one, &[], LOGIN).await.expect("published");
        let durable = || blob_records(&node).iter().all(|record| is_durable(record));
        eventually("every record is durable", durable).await;
        // And on the disk, as the records that say so are after a while, with all that was learnt of the reference.
        disk.sync();

        // The other repository is asked whether it has the blob, and has to wait for its own manifest: becoming durable
        // takes all with it that was written before.
        let (kubelet, second) = (node.kubelet.clone(), node.volume("two"));
        let secret = serde_json::json!({"auths": {line.host(): {"username": LOGIN.0, "password": LOGIN.1}}});
        let secrets = [(".dockerconfigjson", &*secret.to_string())];
        let request = kubelet.publish_request(&second, &[("reference", &two)], &secrets);
        let pull = tokio::spawn(async move { kubelet.publish(request).await });
        let asked = || registry.count(&Method::HEAD, "/two/blobs/") > 0;
        eventually("the other repository is asked", asked).await;
        assert_eq!(origins(&node, &shared), ["one"]);
        eventually("its manifest is durable", || blob_records(&node).len() == 3 && durable()).await;
        line.release();
        eventually("the other repository is noted", || origins(&node, &shared) == ["one", "two"]).await;
        disk.cut_power();

        for volume in [&volume, &second] {
            node.kubelet.unpublish(volume).await.expect("unpublish needs no disk");
        }
        assert!(pull.await.expect("no panic").is_err());
        node.kill();
        disk.mount_again().await;
        let record = std::fs::read(record_of(&node, &shared)).expect("the record is there");
        let parsed: Result<Value, _> = serde_json::from_slice(&record);
        let parsed =
            parsed.unwrap_or_else(|error| panic!("{} bytes are left of the record: {error}", record.len()));
        assert_eq!(parsed["size"], shared.len(), "{parsed}");
        assert!(is_durable(&record_of(&node, &shared)), "that it is durable is on the disk as well");
        assert_eq!(parsed["origins"][0]["repository"], "one", "{parsed}");
        // The machine was started again meanwhile.
        let boot = "00000000-0000-0000-0000-000000000000";
        std::fs::write(node.root.join("v1/boot"), boot).expect("another boot");
        node.run().await;
        registry.forget();
        node.publish_as(&volume, &one, &[("pullPolicy", "Never")], LOGIN).await.expect("it is all here");
        assert!(std::fs::read(volume.target.join("w")).expect("read") == shared, "wrong bytes reached a pod");
        assert!(registry.requests().is_empty(), "{:?}", registry.requests());
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn regression_a_power_cut_costs_no_durable_blob_on_ext4() {
    a_power_cut_costs_no_durable_blob(FileSystem::Ext4);
}

#[test]
fn regression_a_power_cut_costs_no_durable_blob_on_xfs() {
    a_power_cut_costs_no_durable_blob(FileSystem::Xfs);
}

#[test]
fn regression_a_power_cut_costs_no_durable_blob_on_btrfs() {
    a_power_cut_costs_no_durable_blob(FileSystem::Btrfs);
}

/// Where files share their content, a file that everybody may read takes no more space than one that only root may.
fn a_clone_takes_no_space(kind: FileSystem) {
    isolated(async move {
        const MIB: u64 = 1 << 20;
        let content = noise(3, 10_000_000);
        let registry = Scripted::start().await;
        let header = Header { size: content.len() as u64, mode: 0o600, ..Header::new("w", FILE) };
        let layer = Layer::archive(Tarball::new().entry(&header, &content).finish());
        registry.pusher("image").image("v1", &[layer], &[]).await.expect("pushed");
        let mut node = Node::prepare(&["--plain-http", &registry.host()]);
        let disk = Disk::for_store(&node, kind, 512);
        node.run_registered().await;
        assert!(node.logged().contains("\"reflink\":true"), "{}", node.logged());
        let (closed, open) = (node.volume("closed"), node.volume("open"));
        let reference = registry.reference("image:v1");
        node.publish(&closed, &reference, &[]).await.expect("published");
        let mode = |path: PathBuf| std::fs::metadata(path).expect("a file").permissions().mode() & 0o777;
        assert_eq!(mode(closed.target.join("w")), 0o600);
        disk.sync();

        // All is taken but what pulls leave free, a twentieth, and 5 MiB.
        let ballast = std::fs::File::create(node.root.join("ballast")).expect("a file");
        let left = || {
            disk.sync();
            let (all, free) = disk.space();
            free.saturating_sub(all / 20)
        };
        let mut taken = 0;
        for _ in 0..20 {
            let more = left().saturating_sub(5 * MIB);
            if more < MIB {
                break;
            }
            let none = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(&ballast, none, taken, more).expect("there is room");
            taken += more;
        }
        let before = left();
        assert!((4 * MIB..8 * MIB).contains(&before), "{before} bytes are left");
        registry.forget();
        node.publish(&open, &reference, &[("readable", "true")]).await.expect("it takes nothing");
        assert_eq!(registry.count(&Method::GET, "/blobs/"), 0, "the layer is here");
        assert_eq!(mode(open.target.join("w")), 0o644);
        assert!(std::fs::read(open.target.join("w")).expect("read") == content);
        let after = left();
        assert!(before - after.min(before) < MIB, "{before} bytes were left, and are {after}");
        for volume in [&closed, &open] {
            node.kubelet.unpublish(volume).await.expect("unpublished");
        }
    });
}

#[test]
fn regression_a_clone_takes_no_space_on_xfs() {
    a_clone_takes_no_space(FileSystem::Xfs);
}

#[test]
fn regression_a_clone_takes_no_space_on_btrfs() {
    a_clone_takes_no_space(FileSystem::Btrfs);
}
