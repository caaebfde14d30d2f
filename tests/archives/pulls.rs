//! Pulls of archives that go wrong on the way, or meet others.

use std::fs;

use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt as _;
use ocivol::demo::push::Layer;
use ocivol::demo::tarball::{DIRECTORY, FILE, Header, Tarball, gzip, zstd};
use ocivol::oci::digest::Digest;
use serde_json::json;
use tonic::Code;

use crate::archives::unpacking::{directory_layer, image};
use crate::support::node::mount_at;
use crate::support::raw::block;
use crate::support::{Node, PATIENCE, Scripted, isolated, noise, zstd_with_window};

/// A blob whose first answer ends after `part` bytes.
fn cut_once(registry: &Scripted, blob: &[u8], part: usize) {
    let (start, length) = (Bytes::copy_from_slice(&blob[..part]), blob.len());
    let mut first = true;
    registry.script(move |seen| {
        if !seen.path.contains("/blobs/")
            || seen.method != Method::GET
            || !std::mem::replace(&mut first, false)
        {
            return None;
        }
        let parts = [Ok(start.clone()), Err(std::io::Error::other("cut"))];
        let body = axum::body::Body::from_stream(futures_util::stream::iter(parts));
        Some(([("content-length", length)], body).into_response())
    });
}

#[test]
fn a_broken_connection_does_not_start_a_layer_again() {
    isolated(async {
        let registry = Scripted::start().await;
        let content = noise(4, 8 << 20);
        let blob = zstd(&Tarball::new().file("big", &content).finish()).expect("zstd");
        image(&registry.pusher("image"), "v1", std::slice::from_ref(&blob)).await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        cut_once(&registry, &blob, 5 << 20);
        let volume = node.volume("pod");
        node.publish(&volume, &registry.reference("image:v1"), &[]).await.expect("published");
        assert!(fs::read(volume.target.join("big")).expect("a file") == content);
        let ranges: Vec<_> =
            registry.requests().iter().filter_map(|seen| seen.headers.get("range").cloned()).collect();
        assert_eq!(ranges.len(), 1);
        let start = ranges[0]
            .to_str()
            .expect("text")
            .trim_start_matches("bytes=")
            .split('-')
            .next()
            .expect("a start")
            .to_owned();
        assert!(start.parse::<usize>().expect("a number") > 1 << 20, "{start}");
    });
}

/// The first request for `blob` gets 1 MiB, and the rest once there was a second. These get what `further` says by their
/// number, or what they ask for.
fn wait_for_a_second(registry: &Scripted, blob: &[u8], further: fn(usize) -> Option<StatusCode>) {
    let (start, length) = (Bytes::copy_from_slice(&blob[..1 << 20]), blob.len());
    let rest = Bytes::copy_from_slice(&blob[1 << 20..]);
    let (seen, asked) = tokio::sync::watch::channel(0);
    registry.script(move |request| {
        if !request.path.contains("/blobs/") || request.method != Method::GET {
            return None;
        }
        seen.send_modify(|requests| *requests += 1);
        let number = *seen.borrow();
        if number > 1 {
            return further(number).map(IntoResponse::into_response);
        }
        let (mut asked, rest) = (asked.clone(), rest.clone());
        let later = futures_util::stream::once(async move {
            let _ = asked.wait_for(|requests| *requests > 1).await;
            Ok::<_, std::io::Error>(rest)
        });
        let body = futures_util::stream::iter([Ok(start.clone())]).chain(later);
        Some(([("content-length", length)], axum::body::Body::from_stream(body)).into_response())
    });
}

#[test]
fn a_slow_connection_is_helped_and_order_is_kept() {
    isolated(async {
        let registry = Scripted::start().await;
        let content = noise(5, 72 << 20);
        let tar = Tarball::new().file("big", &content).finish();
        image(&registry.pusher("image"), "v1", std::slice::from_ref(&tar)).await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        wait_for_a_second(&registry, &tar, |_| None);
        let volume = node.volume("pod");
        node.publish(&volume, &registry.reference("image:v1"), &[]).await.expect("published");
        assert!(fs::read(volume.target.join("big")).expect("a file") == content);
        assert!(registry.count(&Method::GET, "/blobs/") > 1, "nobody helped");
        node.nothing_is_left_in_ingest().await;
    });
}

#[test]
fn regression_a_registry_that_refuses_a_second_connection_delivers_over_the_first() {
    isolated(async {
        let registry = Scripted::start().await;
        // It can be cut once: there is one more connection.
        let content = noise(15, 62 << 20);
        let tar = Tarball::new().file("big", &content).finish();
        image(&registry.pusher("image"), "v1", std::slice::from_ref(&tar)).await;
        // Refused at once, and refused until the first one is done with its part.
        type Refusal = fn(usize) -> Option<StatusCode>;
        let table: [(Refusal, usize); 2] = [
            (|number| (number == 2).then_some(StatusCode::FORBIDDEN), 3),
            (|number| (2..=5).contains(&number).then_some(StatusCode::SERVICE_UNAVAILABLE), 6),
        ];
        for (refusal, requests) in table {
            let node = Node::start(&["--plain-http", &registry.host()]).await;
            wait_for_a_second(&registry, &tar, refusal);
            registry.forget();
            let volume = node.volume("pod");
            node.publish(&volume, &registry.reference("image:v1"), &[]).await.expect("published");
            assert!(fs::read(volume.target.join("big")).expect("a file") == content);
            assert_eq!(registry.count(&Method::GET, "/blobs/"), requests);
            node.kubelet.unpublish(&volume).await.expect("unpublished");
        }
    });
}

#[test]
fn content_that_is_not_the_right_one_is_told_from_a_bad_layer() {
    isolated(async {
        let registry = Scripted::start().await;
        let blob = gzip(&Tarball::new().file("a", &noise(6, 1 << 20)).finish()).expect("gzip");
        image(&registry.pusher("image"), "v1", std::slice::from_ref(&blob)).await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        for at in [0, 100, blob.len() / 2, blob.len() - 1] {
            let mut damaged = blob.clone();
            damaged[at] ^= 0x55;
            registry.script(move |seen| {
                let get = seen.path.contains("/blobs/") && seen.method == Method::GET;
                get.then(|| Response::new(axum::body::Body::from(damaged.clone())))
            });
            let volume = node.volume("pod");
            let status =
                node.publish(&volume, &registry.reference("image:v1"), &[]).await.expect_err("damaged");
            assert!(status.message().contains("sent wrong content"), "byte {at}: {}", status.message());
            assert!(mount_at(&volume.target).is_none());
        }
        registry.unscript();
        node.publish(&node.volume("pod"), &registry.reference("image:v1"), &[]).await.expect("published");
    });
}

#[test]
fn regression_layers_that_need_much_memory_do_not_hold_up_others() {
    isolated(async {
        let registry = Scripted::start().await;
        let layer = |number: u64| {
            zstd_with_window(
                &Tarball::new().file(format!("f{number}"), &noise(20 + number, 3 << 20)).finish(),
                25,
            )
        };
        let layers: Vec<Vec<u8>> = (0..5).map(layer).collect();
        let stalled = layer(9);
        image(&registry.pusher("image"), "v1", &layers).await;
        image(&registry.pusher("stalled"), "v1", std::slice::from_ref(&stalled)).await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        // One that comes so far and no further does not have the memory.
        let start = Bytes::copy_from_slice(&stalled[..1 << 20]);
        let length = stalled.len();
        registry.script(move |seen| {
            if !seen.path.contains("/stalled/blobs/") {
                return None;
            }
            let start = futures_util::stream::iter([Ok::<_, std::io::Error>(start.clone())]);
            let body = axum::body::Body::from_stream(start.chain(futures_util::stream::pending()));
            Some(([("content-length", length)], body).into_response())
        });
        let (kubelet, slow) = (node.kubelet.clone(), node.volume("slow"));
        let request =
            kubelet.publish_request(&slow, &[("reference", &registry.reference("stalled:v1"))], &[]);
        let waiting = tokio::spawn(async move { kubelet.publish(request).await });
        crate::support::eventually("the stalled layer is asked for", || {
            registry.count(&Method::GET, "/stalled/blobs/") > 0
        })
        .await;
        let volume = node.volume("pod");
        node.publish(&volume, &registry.reference("image:v1"), &[]).await.expect("published");
        for number in 0..5 {
            assert!(
                fs::read(volume.target.join(format!("f{number}"))).expect("a file")
                    == noise(20 + number, 3 << 20)
            );
        }
        waiting.abort();
    });
}

#[test]
fn regression_a_file_that_is_a_layer_with_a_large_window_is_unpacked_and_stays_as_it_is() {
    use std::os::unix::fs::MetadataExt as _;

    isolated(async {
        let registry = Scripted::start().await;
        let content = noise(40, 3 << 20);
        let layer = zstd_with_window(&Tarball::new().file("inside", &content).finish(), 25);
        let titled = Layer::titled("layer.tar.zst", layer.clone());
        registry.pusher("files").files("v1", &[titled]).await.expect("pushed");
        image(&registry.pusher("image"), "v1", std::slice::from_ref(&layer)).await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let (file, tree) = (node.volume("file"), node.volume("tree"));
        node.publish(&file, &registry.reference("files:v1"), &[]).await.expect("published");
        let raw = file.target.join("layer.tar.zst");
        let looked = || {
            let found = fs::metadata(&raw).expect("a file");
            (found.mtime(), found.mtime_nsec())
        };
        let before = looked();
        node.publish(&tree, &registry.reference("image:v1"), &[]).await.expect("published");
        assert!(fs::read(tree.target.join("inside")).expect("a file") == content);
        assert!(fs::read(&raw).expect("a file") == layer);
        assert_eq!(looked(), before);
        for volume in [file, tree] {
            node.kubelet.unpublish(&volume).await.expect("unpublished");
        }
    });
}

#[test]
fn regression_wrong_bytes_from_one_registry_do_not_fail_the_pull_from_another() {
    isolated(async {
        let (honest, hostile) = (Scripted::start().await, Scripted::start().await);
        let tar = Tarball::new().file("a", &noise(30, 2 << 20)).finish();
        for registry in [&honest, &hostile] {
            image(&registry.pusher("image"), "v1", std::slice::from_ref(&tar)).await;
        }
        // A file of 8 TiB: more than there is room for, and not what the digest names.
        let lie = block(&Header { size: 8 << 40, ..Header::new("a", FILE) });
        let mut wrong = lie.to_vec();
        wrong.resize(tar.len(), 0);
        let (joined, join) = (
            std::sync::Arc::new(tokio::sync::Notify::new()),
            std::sync::Arc::new(tokio::sync::Notify::new()),
        );
        let wait = std::sync::Arc::clone(&joined);
        hostile.script(move |seen| {
            if !seen.path.contains("/blobs/") || seen.method != Method::GET {
                return None;
            }
            let (wait, wrong) = (std::sync::Arc::clone(&wait), Bytes::from(wrong.clone()));
            let late = futures_util::stream::once(async move {
                wait.notified().await;
                Ok::<_, std::io::Error>(wrong)
            });
            Some(axum::body::Body::from_stream(late).into_response())
        });
        let seen = std::sync::Arc::clone(&join);
        honest.script(move |request| {
            if request.path.contains("/manifests/") {
                seen.notify_one();
            }
            None
        });
        let node = Node::start(&["--plain-http", &format!("{},{}", honest.host(), hostile.host())]).await;
        let publish = |name: &str, reference: String| {
            let (kubelet, volume) = (node.kubelet.clone(), node.volume(name));
            let request = kubelet.publish_request(&volume, &[("reference", &reference)], &[]);
            tokio::spawn(async move { kubelet.publish(request).await.map(|()| volume.target) })
        };
        let attacker = publish("attacker", hostile.reference("image:v1"));
        crate::support::eventually("the attack has begun", || hostile.count(&Method::GET, "/blobs/") > 0)
            .await;
        let victim = publish("victim", honest.reference("image:v1"));
        tokio::time::timeout(PATIENCE, join.notified()).await.expect("the victim asks for its manifest");
        joined.notify_one();
        let target = victim.await.expect("no panic").expect("the right bytes came from the own registry");
        assert!(fs::read(target.join("a")).expect("a file") == noise(30, 2 << 20));
        let _ = attacker.await.expect("no panic"); // Whatever became of it.
    });
}

#[test]
fn regression_promises_of_other_algorithms_do_not_contradict_each_other() {
    isolated(async {
        let registry = Scripted::start().await;
        let tar = Tarball::new().file("set/a", b"a").finish();
        let packed = gzip(&tar).expect("gzip");
        let pusher = registry.pusher("files");
        let long = Digest::of(ocivol::oci::digest::Algorithm::Sha512, &tar);
        let other = Digest::of(ocivol::oci::digest::Algorithm::Sha512, b"other");
        for (tag, promise) in [("long", long), ("short", Digest::sha256(&tar)), ("wrong", other)] {
            let promise = json!({ "io.deis.oras.content.digest": promise.to_string() });
            pusher.files(tag, &[directory_layer("set", packed.clone(), &promise)]).await.expect("pushed");
        }
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        for tag in ["long", "short", "long", "short"] {
            let volume = node.volume(&format!("{tag}-{}", registry.requests().len()));
            node.publish(&volume, &registry.reference(&format!("files:{tag}")), &[]).await.expect(tag);
        }
        let status = node.publish(&node.volume("wrong"), &registry.reference("files:wrong"), &[]).await;
        assert_eq!(status.expect_err("another content").code(), Code::FailedPrecondition);
    });
}

#[test]
fn regression_a_layer_that_is_named_often_is_not_held_often() {
    isolated(async {
        let registry = Scripted::start().await;
        let layer = zstd(&block(&Header::new("d", DIRECTORY)).repeat(400_000)).expect("zstd");
        image(&registry.pusher("image"), "v1", &vec![layer; 6]).await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let status = node.publish(&node.volume("pod"), &registry.reference("image:v1"), &[]).await;
        let status = status.expect_err("2.4 million entries");
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("more entries"), "{}", status.message());
    });
}

#[test]
fn t55_an_archive_of_no_use_is_fetched_once_however_many_pods_want_it() {
    isolated(async {
        let registry = Scripted::start().await;
        let layer = Tarball::new().file("../escape", b"x").finish();
        let digest = Digest::sha256(&layer).to_string();
        image(&registry.pusher("image"), "v1", &[layer]).await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        for pod in ["one", "two", "three"] {
            let refused = node.publish(&node.volume(pod), &registry.reference("image:v1"), &[]).await;
            let status = refused.expect_err("it leads out");
            assert!(status.message().contains("its name contains '..'"), "{}", status.message());
        }
        assert_eq!(registry.count(&Method::GET, &digest), 1);
    });
}
