//! How much memory the plugin takes: I6.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, header};
use axum::response::IntoResponse;
use bytes::Bytes;
use ocivol::demo::push::Layer;
use ocivol::demo::registry::parse_range;
use ocivol::oci::digest::{Algorithm, Digest};
use ocivol::oci::media_type;
use serde_json::json;

use crate::support::{Node, Scripted, isolated, noise};

const MIB: u64 = 1024 * 1024;

#[test]
fn a_layer_of_four_gib_takes_less_than_64_mib_and_idling_less_than_8() {
    isolated(async {
        const SIZE: u64 = 4096 * MIB;
        let block = Bytes::from(noise(1, MIB as usize));
        let mut hasher = Algorithm::Sha256.hasher();
        for _ in 0..SIZE / MIB {
            hasher.update(&block);
        }
        let digest = hasher.finish();
        let registry = Scripted::start().await;
        let pusher = registry.pusher("m");
        let config = pusher.blob(Bytes::from_static(b"{}")).await.expect("pushed");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "config": {"mediaType": media_type::OCI_EMPTY, "digest": config.to_string(), "size": 2},
            "layers": [{"mediaType": "application/vnd.cncf.model.weight.v1.raw", "digest": digest.to_string(),
                "size": SIZE, "annotations": {"org.cncf.model.filepath": "weights"}}],
        });
        pusher.manifest("v1", media_type::OCI_MANIFEST, &manifest.to_string()).await.expect("pushed");
        let path = format!("/blobs/{digest}");
        registry.script(move |seen| {
            if !seen.path.ends_with(&path) || seen.method != Method::GET {
                return None;
            }
            let range = seen
                .headers
                .get(header::RANGE)
                .and_then(|value| parse_range(value.to_str().ok()?, SIZE as usize));
            let asked = range.clone().unwrap_or(0..SIZE as usize);
            let block = block.clone();
            let (mut at, end) = (asked.start, asked.end);
            let parts = std::iter::from_fn(move || {
                let within = at % block.len();
                let part = block.slice(within..block.len().min(within + end - at));
                at += part.len();
                (!part.is_empty()).then_some(Ok::<_, std::io::Error>(part))
            });
            let body = Body::from_stream(futures_util::stream::iter(parts));
            let length = [(header::CONTENT_LENGTH, asked.len().to_string())];
            Some(match range {
                Some(range) => {
                    let value = format!("bytes {}-{}/{SIZE}", range.start, range.end - 1);
                    (axum::http::StatusCode::PARTIAL_CONTENT, length, [(header::CONTENT_RANGE, value)], body)
                        .into_response()
                }
                None => (length, body).into_response(),
            })
        });
        let mut node = Node::start(&["--plain-http", &registry.host()]).await;
        node.register().await;
        // Its own: what is resident of a program that was built for tests is five sixths of all, and no measure of anything.
        let idle = node.memory("RssAnon");
        assert!(idle < 8 * MIB, "idle: {} MiB", idle / MIB);
        // And with it no more than what the sum of all bounds has for that.
        let whole = node.memory("VmRSS");
        assert!(whole < 28 * MIB, "idle: {} MiB with the program", whole / MIB);
        node.kubelet.deadline = Duration::from_secs(120);
        let volume = node.volume("pod");
        node.publish_in_the_end(&volume, &registry.reference("m:v1")).await.expect("published");
        let peak = node.memory("VmHWM");
        assert!(peak < 64 * MIB, "peak: {} MiB", peak / MIB);
        assert_eq!(std::fs::metadata(volume.target.join("weights")).expect("a file").len(), SIZE);
        node.kubelet.unpublish(&volume).await.expect("unpublished");
        let after = node.memory("VmRSS");
        println!("idle {} MiB, peak {} MiB, after {} MiB", idle / MIB, peak / MIB, after / MIB);
    });
}

#[test]
fn an_image_of_many_layers_takes_less_than_128_mib() {
    use ocivol::demo::push::Layer;
    use ocivol::demo::tarball::{Tarball, gzip, zstd};
    isolated(async {
        let registry = Scripted::start().await;
        let layers: Vec<Layer> = (0..10)
            .map(|number: u64| {
                let mut tar = Tarball::new().file(format!("big/{number}"), &noise(number, 24 << 20));
                for file in 0..2000 {
                    tar = tar.file(format!("small/{number}/{file}"), &noise(file, 500));
                }
                let tar = tar.finish();
                Layer::archive(
                    if number.is_multiple_of(2) { gzip(&tar) } else { zstd(&tar) }.expect("memory"),
                )
            })
            .collect();
        registry.pusher("image").image("v1", &layers, &[]).await.expect("pushed");
        let mut node = Node::start(&["--plain-http", &registry.host()]).await;
        node.kubelet.deadline = Duration::from_secs(120);
        let volume = node.volume("pod");
        node.publish_in_the_end(&volume, &registry.reference("image:v1")).await.expect("published");
        assert_eq!(std::fs::read_dir(volume.target.join("big")).expect("a directory").count(), 10);
        let peak = node.memory("VmHWM");
        assert!(peak < 128 * MIB, "peak: {} MiB", peak / MIB);
        println!("peak {} MiB", peak / MIB);
    });
}

/// Publishes all at once; each is refused for two files of one name.
async fn assert_refused_in_256_mib(registry: &Scripted, references: &[String]) {
    let node = Node::start(&["--plain-http", &registry.host()]).await;
    let volumes: Vec<_> = (0..references.len()).map(|number| node.volume(&format!("pod-{number}"))).collect();
    let publishes =
        volumes.iter().zip(references).map(|(volume, reference)| node.publish(volume, reference, &[]));
    for result in futures_util::future::join_all(publishes).await {
        let status = result.expect_err("two files of one name");
        assert!(status.message().contains("already a file"), "{}", status.message());
    }
    let peak = node.memory("VmHWM");
    println!("peak {} MiB", peak / MIB);
    assert!(peak < 256 * MIB, "peak: {} MiB", peak / MIB);
}

#[test]
fn regression_manifests_of_long_names_take_less_than_256_mib() {
    isolated(async {
        let registry = Scripted::start().await;
        let mut references = Vec::new();
        for number in 0..16 {
            // As many names as fit, each as long and as deep as is allowed; the last one is there already.
            let title = |layer: usize| {
                let first = format!("{number}-{layer:05}");
                let rest = "/aaaaaaaaaaaaaaaaaaaaaaa".repeat(126);
                first + &rest
            };
            let titles = (0..1250).map(title).chain([title(0)]);
            let layers: Vec<Layer> = titles.map(|title| Layer::titled(&title, "x")).collect();
            let name = format!("deep/{number}");
            registry.pusher(&name).files("v1", &layers).await.expect("pushed");
            references.push(registry.reference(&format!("{name}:v1")));
        }
        assert_refused_in_256_mib(&registry, &references).await;
    });
}

#[test]
fn regression_manifests_of_very_many_names_take_less_than_256_mib() {
    isolated(async {
        let registry = Scripted::start().await;
        let pusher = registry.pusher("many");
        let layer = Layer::titled("x", "x");
        let (digest, config) = (Digest::sha256(&layer.content), Digest::sha256(b"{}"));
        let mut references = Vec::new();
        for number in 0..8 {
            // As many entries as fit; the last one has a name that is there already.
            let entry = |at: usize| {
                format!(
                    r#"{{"mediaType":"a/b","digest":"{digest}","size":1,"annotations":{{"org.opencontainers.image.title":"{number}{at:x}"}}}}"#
                )
            };
            let count = 22_000;
            let entries: Vec<String> = (0..count).chain([0]).map(entry).collect();
            let manifest = format!(
                r#"{{"schemaVersion":2,"artifactType":"a/b","config":{{"mediaType":"{}","digest":"{config}","size":2}},"layers":[{}]}}"#,
                media_type::OCI_EMPTY,
                entries.join(",")
            );
            assert!((3_500_000..4 << 20).contains(&manifest.len()), "{} bytes", manifest.len());
            let tag = format!("v{number}");
            pusher.manifest(&tag, media_type::OCI_MANIFEST, &manifest).await.expect("pushed");
            references.push(registry.reference(&format!("many:{tag}")));
        }
        assert_refused_in_256_mib(&registry, &references).await;
    });
}

#[test]
fn regression_ten_thousand_files_are_mounted() {
    isolated(async {
        let registry = Scripted::start().await;
        let pusher = registry.pusher("many");
        // Twenty contents under ten thousand names: what is tried is the manifest.
        let contents: Vec<Layer> = (0..20).map(|number| Layer::titled("x", format!("{number}"))).collect();
        for layer in &contents {
            pusher.blob(layer.content.clone()).await.expect("pushed");
        }
        let layers: Vec<_> = (0..10_000)
            .map(|number: usize| {
                let mut layer = contents[number % 20].descriptor();
                layer["annotations"]["org.opencontainers.image.title"] =
                    format!("d{}/{number:05}.bin", number % 100).into();
                layer
            })
            .collect();
        let config = pusher.blob("{}".into()).await.expect("pushed").to_string();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "artifactType": "a/b", "layers": layers,
            "config": {"mediaType": media_type::OCI_EMPTY, "digest": config, "size": 2},
        });
        pusher.manifest("v1", media_type::OCI_MANIFEST, &manifest.to_string()).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let volume = node.volume("pod");
        node.publish_in_the_end(&volume, &registry.reference("many:v1")).await.expect("published");
        assert_eq!(std::fs::read_to_string(volume.target.join("d99/09999.bin")).expect("a file"), "19");
        assert_eq!(crate::support::snapshot::paths(&volume.target).len(), 10_100);
    });
}

#[test]
fn the_kernel_holds_the_plugin_to_the_sum_of_all_bounds() {
    isolated(async {
        let node = Node::start(&[]).await;
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", node.pid())).expect("it runs");
        let line = limits.lines().find(|line| line.starts_with("Max data size")).expect("a line");
        let soft: u64 = line.split_whitespace().nth(3).and_then(|text| text.parse().ok()).expect("a number");
        assert_eq!(soft, ocivol::host::limits::data_limit(), "{line}");
        // With room: what is reserved at the start is no reason to end.
        let used = node.memory("VmData");
        println!("{} of {} MiB of address space are taken when it is idle", used / MIB, soft / MIB);
        assert!(used < soft / 2, "{} MiB", used / MIB);
    });
}
