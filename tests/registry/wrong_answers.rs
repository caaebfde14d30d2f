//! What registries say that is not true: nothing of it reaches a pod, or harms another pull.

use axum::body::Body;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use ocivol::demo::push::Layer;
use ocivol::demo::registry::Seen;
use ocivol::oci::digest::{Algorithm, Digest};
use ocivol::oci::media_type;
use tonic::Code;

use crate::support::answers::{broken, is_blob, is_manifest, setup};
use crate::support::node::mount_at;
use crate::support::{Node, Scripted, eventually, isolated, noise};

const GET: Method = Method::GET;

#[test]
fn t45_a_registry_that_ignores_or_confuses_ranges_harms_nothing() {
    isolated(async {
        let content = noise(3, 3_000_000);
        let whole = content.clone();
        let moved = content.clone();
        type Answer = Box<dyn Fn(&Seen) -> Response + Send>;
        let table: Vec<(&str, Answer, bool)> = vec![
            ("200 for a range", Box::new(move |_| whole.clone().into_response()), true),
            (
                "another range than asked for",
                Box::new(move |_| {
                    let headers = [(header::CONTENT_RANGE, "bytes 7-2999999/3000000")];
                    (StatusCode::PARTIAL_CONTENT, headers, moved[7..].to_vec()).into_response()
                }),
                false,
            ),
            (
                "no Content-Range",
                Box::new(|_| (StatusCode::PARTIAL_CONTENT, vec![0_u8; 100]).into_response()),
                false,
            ),
            (
                "another size",
                Box::new(|_| {
                    let headers = [(header::CONTENT_RANGE, "bytes 1000000-2999999/4000000")];
                    (StatusCode::PARTIAL_CONTENT, headers, vec![0_u8; 2_000_000]).into_response()
                }),
                false,
            ),
        ];
        for (name, answer, works) in table {
            let (registry, node, reference) = setup(&content).await;
            let part = content[..1_000_000].to_vec();
            let mut broke = false;
            registry.script(move |seen| {
                if !is_blob(seen) {
                    return None;
                }
                if !std::mem::replace(&mut broke, true) {
                    return Some(broken(&part, 3_000_000, false));
                }
                Some(answer(seen))
            });
            let volume = node.volume("pod");
            let result = node.publish(&volume, &reference, &[]).await;
            if works {
                result.unwrap_or_else(|status| panic!("{name}: {status}"));
                assert_eq!(std::fs::read(volume.target.join("w")).expect("read"), content, "{name}");
                node.kubelet.unpublish(&volume).await.expect("unpublished");
            } else {
                assert_eq!(result.expect_err(name).code(), Code::FailedPrecondition, "{name}");
                assert!(!volume.target.exists());
            }
        }
    });
}

#[test]
fn t25_wrong_bytes_are_refused_and_leave_nothing() {
    isolated(async {
        let content = noise(4, 1_000_000);
        let (registry, node, reference) = setup(&content).await;
        let mut wrong = content.clone();
        wrong[500_000] ^= 1;
        let lie = Digest::sha256(&content).to_string();
        registry.script(move |seen| {
            let headers = [("docker-content-digest", lie.clone())];
            is_blob(seen).then(|| (headers, wrong.clone()).into_response())
        });
        let volume = node.volume("pod");
        let status = node.publish(&volume, &reference, &[]).await.expect_err("wrong bytes");
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains(&Digest::sha256(&content).to_string()), "{}", status.message());
        assert!(!volume.target.exists() && mount_at(&volume.target).is_none());
        node.nothing_is_left_in_ingest().await;
        registry.unscript();
        node.publish(&volume, &reference, &[]).await.expect("the right bytes are taken");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn t25_a_manifest_that_is_not_the_digest_asked_for_is_refused() {
    isolated(async {
        let (registry, node, _) = setup(b"content").await;
        let other = registry.pusher("m").model("v2", &[Layer::model_file("weight", "w", "other")]).await;
        let other = other.expect("pushed");
        let asked = Digest::sha256(b"what the user pinned");
        let body =
            reqwest::get(format!("http://{}/v2/m/manifests/{other}", registry.host())).await.expect("got");
        let body = body.bytes().await.expect("a body");
        let lie = asked.to_string();
        registry.script(move |seen| {
            let headers = [
                ("content-type", media_type::OCI_MANIFEST.to_owned()),
                ("docker-content-digest", lie.clone()),
            ];
            is_manifest(seen).then(|| (headers, body.clone()).into_response())
        });
        let volume = node.volume("pod");
        let reference = registry.reference(&format!("m@{asked}"));
        let status = node.publish(&volume, &reference, &[]).await.expect_err("another manifest");
        assert_eq!(status.code(), Code::FailedPrecondition, "{}", status.message());
    });
}

#[test]
fn t18_sizes_that_lie_are_refused() {
    isolated(async {
        let content = noise(5, 100_000);
        for (name, claimed) in [("too large", 100_001_u64), ("too small", 99_999), ("zero", 0)] {
            let registry = Scripted::start().await;
            let pusher = registry.pusher("m");
            let digest = pusher.blob(Bytes::from(content.clone())).await.expect("pushed");
            let config = pusher.blob(Bytes::from_static(b"{}")).await.expect("pushed");
            let manifest = serde_json::json!({
                "schemaVersion": 2,
                "mediaType": media_type::OCI_MANIFEST,
                "config": {"mediaType": media_type::OCI_EMPTY, "digest": config.to_string(), "size": 2},
                "layers": [{"mediaType": "a/b", "digest": digest.to_string(), "size": claimed,
                    "annotations": {"org.opencontainers.image.title": "f"}}],
            });
            pusher.manifest("v1", media_type::OCI_MANIFEST, &manifest.to_string()).await.expect("pushed");
            let node = Node::start(&["--plain-http", &registry.host()]).await;
            let volume = node.volume("pod");
            let status = node.publish(&volume, &registry.reference("m:v1"), &[]).await.expect_err(name);
            assert_eq!(status.code(), Code::FailedPrecondition, "{name}: {}", status.message());
            assert!(!volume.target.exists());
        }
    });
}

#[test]
fn t27_what_a_layer_names_as_its_urls_is_not_asked() {
    isolated(async {
        let (registry, elsewhere) = (Scripted::start().await, Scripted::start().await);
        let pusher = registry.pusher("m");
        let here = pusher.blob(Bytes::from_static(b"here")).await.expect("pushed");
        let config = pusher.blob(Bytes::from_static(b"{}")).await.expect("pushed");
        let absent = Digest::sha256(b"absent");
        let url = |digest: &Digest| format!("http://{}/v2/m/blobs/{digest}", elsewhere.host());
        for (tag, digest, size) in [("v1", &here, 4), ("v2", &absent, 6)] {
            let manifest = serde_json::json!({
                "schemaVersion": 2,
                "mediaType": media_type::OCI_MANIFEST,
                "config": {"mediaType": media_type::OCI_EMPTY, "digest": config.to_string(), "size": 2},
                "layers": [{"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar",
                    "digest": digest.to_string(), "size": size, "urls": [url(digest)],
                    "annotations": {"org.opencontainers.image.title": "f"}}],
            });
            pusher.manifest(tag, media_type::OCI_MANIFEST, &manifest.to_string()).await.expect("pushed");
        }
        let hosts = format!("{},{}", registry.host(), elsewhere.host());
        let node = Node::start(&["--plain-http", &hosts]).await;
        let volume = node.volume("pod");
        node.publish(&volume, &registry.reference("m:v1"), &[]).await.expect("published");
        assert_eq!(std::fs::read(volume.target.join("f")).expect("read"), b"here");
        let status = node.publish(&node.volume("other"), &registry.reference("m:v2"), &[]).await;
        assert_eq!(status.expect_err("it is not there").code(), Code::NotFound);
        assert!(elsewhere.requests().is_empty());
    });
}

#[test]
fn t17_endless_manifests_are_cut_off() {
    isolated(async {
        let (registry, node, reference) = setup(b"content").await;
        registry.script(|seen| {
            is_manifest(seen).then(|| {
                let block = Bytes::from(vec![b' '; 64 * 1024]);
                let endless =
                    futures_util::stream::repeat_with(move || Ok::<_, std::io::Error>(block.clone()));
                ([("content-type", media_type::OCI_MANIFEST)], Body::from_stream(endless)).into_response()
            })
        });
        let volume = node.volume("pod");
        let status = node.publish(&volume, &reference, &[]).await.expect_err("endless");
        assert_eq!(status.code(), Code::FailedPrecondition, "{}", status.message());
        assert!(status.message().contains("4194304 bytes"), "{}", status.message());
    });
}

#[test]
fn t17_t19_t20_hostile_documents_are_refused() {
    isolated(async {
        let registry = Scripted::start().await;
        let pusher = registry.pusher("m");
        let descriptor = |digest: &Digest, size: usize| {
            serde_json::json!({"mediaType": media_type::OCI_INDEX, "digest": digest.to_string(), "size": size,
                "platform": {"os": "linux", "architecture": "amd64"}})
        };
        // Indexes in indexes, one deeper than anything real.
        let mut inner = pusher.model("leaf", &[Layer::model_file("weight", "w", "x")]).await.expect("pushed");
        for depth in 0..5 {
            let index = serde_json::json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX,
                "manifests": [descriptor(&inner, 1)]})
            .to_string();
            inner = pusher
                .manifest(&format!("deep{depth}"), media_type::OCI_INDEX, &index)
                .await
                .expect("pushed");
        }
        let both = serde_json::json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "config": descriptor(&inner, 1), "layers": [], "manifests": []});
        pusher.manifest("both", media_type::OCI_MANIFEST, &both.to_string()).await.expect("pushed");
        let wide = serde_json::json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX,
            "manifests": vec![descriptor(&inner, 1); 10_000]});
        pusher.manifest("wide", media_type::OCI_INDEX, &wide.to_string()).await.expect("pushed");
        let typed = serde_json::json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "config": descriptor(&inner, 1), "layers": []});
        pusher.manifest("typed", media_type::OCI_INDEX, &typed.to_string()).await.expect("pushed");
        pusher.manifest("junk", media_type::OCI_MANIFEST, "not json").await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let volume = node.volume("pod");
        let platform = [("platform", "linux/amd64")];
        for tag in ["deep4", "both", "wide", "typed", "junk"] {
            let status = node.publish(&volume, &registry.reference(&format!("m:{tag}")), &platform).await;
            let status = status.expect_err(tag);
            assert_eq!(status.code(), Code::FailedPrecondition, "{tag}: {}", status.message());
        }
        node.publish(&volume, &registry.reference("m:deep1"), &platform).await.expect("two deep is real");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn t22_sha512_is_checked_as_sha512() {
    isolated(async {
        let content = noise(8, 300_000);
        let digest = Digest::of(Algorithm::Sha512, &content);
        let registry = Scripted::start().await;
        let pusher = registry.pusher("m");
        let config = pusher.blob(Bytes::from_static(b"{}")).await.expect("pushed");
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": {"mediaType": media_type::OCI_EMPTY, "digest": config.to_string(), "size": 2},
            "layers": [{"mediaType": "a/b", "digest": digest.to_string(), "size": content.len(),
                "annotations": {"org.opencontainers.image.title": "f"}}],
        });
        pusher.manifest("v1", media_type::OCI_MANIFEST, &manifest.to_string()).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let (volume, reference) = (node.volume("pod"), registry.reference("m:v1"));
        let mut wrong = content.clone();
        wrong[7] ^= 1;
        registry.script(move |seen| is_blob(seen).then(|| wrong.clone().into_response()));
        let status = node.publish(&volume, &reference, &[]).await.expect_err("wrong bytes");
        assert_eq!(status.code(), Code::FailedPrecondition, "{}", status.message());
        let right = content.clone();
        registry.script(move |seen| is_blob(seen).then(|| right.clone().into_response()));
        node.publish(&volume, &reference, &[]).await.expect("published");
        assert_eq!(std::fs::read(volume.target.join("f")).expect("read"), content);
        assert!(node.root.join("v1/blobs/sha512").join(digest.hex()).exists());
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn regression_a_head_does_not_move_a_pinned_digest() {
    isolated(async {
        let registry = Scripted::start().await;
        let pusher = registry.pusher("m");
        let pinned = pusher.model("a", &[Layer::model_file("doc", "which", "pinned")]).await.expect("pushed");
        let other = pusher.model("b", &[Layer::model_file("doc", "which", "other")]).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let reference = registry.reference(&format!("m@{pinned}"));
        let (first, second) = (node.volume("first"), node.volume("second"));
        node.publish(&first, &reference, &[]).await.expect("published");
        let lie = other.to_string();
        registry.script(move |seen| {
            let head = seen.method == Method::HEAD && is_manifest(seen);
            head.then(|| [("docker-content-digest", lie.clone())].into_response())
        });
        node.publish(&second, &reference, &[("pullPolicy", "Always")]).await.expect("published");
        assert_eq!(std::fs::read_to_string(second.target.join("which")).expect("read"), "pinned");
        for volume in [&first, &second] {
            node.kubelet.unpublish(volume).await.expect("unpublished");
        }
    });
}

#[test]
fn regression_a_large_blob_is_not_read_as_a_manifest() {
    isolated(async {
        let registry = Scripted::start().await;
        let pusher = registry.pusher("m");
        let weights = noise(10, 200 << 20);
        let digest = Digest::sha256(&weights);
        pusher.model("v1", &[Layer::model_file("weight", "w", weights)]).await.expect("pushed");
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [
            {"mediaType": media_type::OCI_MANIFEST, "digest": digest.to_string(), "size": 100}]});
        pusher.manifest("trap", media_type::OCI_INDEX, &index.to_string()).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let volume = node.volume("pod");
        node.publish(&volume, &registry.reference("m:v1"), &[]).await.expect("published");
        let trap = node.volume("trap");
        node.publish(&trap, &registry.reference("m:trap"), &[]).await.expect_err("no manifest");
        let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("it runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line");
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
        assert!(peak < 64 * 1024, "{peak} kB");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn regression_a_manifest_that_lies_about_a_size_spoils_no_other_download() {
    isolated(async {
        let content = noise(11, 500_000);
        let (registry, node, reference) = setup(&content).await;
        let evil = Scripted::start().await;
        let pusher = evil.pusher("m");
        let config = pusher.blob(Bytes::from_static(b"{}")).await.expect("pushed");
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "config": {"mediaType": media_type::OCI_EMPTY, "digest": config.to_string(), "size": 2},
            "layers": [{"mediaType": "a/b", "digest": Digest::sha256(&content).to_string(), "size": 1,
                "annotations": {"org.opencontainers.image.title": "f"}}],
        });
        pusher.manifest("v1", media_type::OCI_MANIFEST, &manifest.to_string()).await.expect("pushed");
        evil.script(|seen| is_blob(seen).then(|| broken(b"", 1, true)));
        let mut node = node;
        node.stop().await;
        drop(node);
        let hosts = format!("{},{}", registry.host(), evil.host());
        let node = Node::start(&["--plain-http", &hosts, "--stall-timeout", "60"]).await;
        let (trap, volume) = (node.volume("trap"), node.volume("pod"));
        let (kubelet, evil_reference) = (node.kubelet.clone(), evil.reference("m:v1"));
        let request = kubelet.publish_request(&trap, &[("reference", &evil_reference)], &[]);
        let waiting = tokio::spawn(async move { kubelet.publish(request).await });
        eventually("the lie is being fetched", || evil.count(&GET, "/blobs/") > 0).await;
        node.publish(&volume, &reference, &[]).await.expect("published");
        assert_eq!(std::fs::read(volume.target.join("w")).expect("read"), content);
        node.kubelet.unpublish(&trap).await.expect("unpublished");
        let _ = waiting.await;
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}
