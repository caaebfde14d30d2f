//! `ocivol inspect`: what a reference is, without pulling a layer.

use ocivol::demo::push::Layer;
use ocivol::demo::tarball::Tarball;
use ocivol::oci::media_type;
use serde_json::Value;

use super::commands::{json, model, ocivol, stdout};
use crate::support::{Node, Scripted, isolated};

#[test]
fn inspect_pulls_no_layer_and_needs_no_store() {
    isolated(async {
        let (registry, reference) = model().await;
        let node = Node::on_host(&[]);
        let text = stdout(&ocivol(&node, &registry, &["inspect", &reference]).await);
        for part in ["family     modelpack: artifactType is", "3.00 MiB in 2 files", "config.json"] {
            assert!(text.contains(part), "{text}");
        }
        let json: Value = serde_json::from_str(&stdout(
            &ocivol(&node, &registry, &["inspect", &reference, "--output", "json"]).await,
        ))
        .expect("JSON");
        assert_eq!(json["files"].as_array().map(Vec::len), Some(2));
        assert_eq!(registry.count(&axum::http::Method::GET, "/blobs/"), 0);
        assert!(!node.root.exists());
    });
}

/// What says where something is.
#[derive(Clone, Copy)]
enum Place {
    Path,
    Archive,
}

#[test]
fn inspect_names_the_family_its_rule_and_the_files() {
    isolated(async {
        let registry = Scripted::start().await;
        let node = Node::on_host(&[]);
        let layer = |kind: &str, content: &'static str| Layer {
            media_type: format!("application/{kind}"),
            content: content.into(),
            annotations: serde_json::json!({}),
        };
        let chart = "vnd.cncf.helm.chart.content.v1.tar+gzip";
        let config = r#"{"name":"app","version":"1.2.3"}"#;
        type Row<'a> = (&'a str, &'a str, Vec<Layer>, &'a [&'a str], &'a str, &'a str, Place, &'a [&'a str]);
        use Place::{Archive, Path};
        let table: [Row<'_>; 6] = [
            (
                "vnd.cncf.helm.config.v1+json",
                config,
                vec![layer(chart, "tgz")],
                &[],
                "helm",
                "config is",
                Archive,
                &["/"],
            ),
            (
                "vnd.cncf.helm.config.v1+json",
                config,
                vec![layer(chart, "tgz")],
                &["--unpack", "never"],
                "helm",
                "config is",
                Path,
                &["app-1.2.3.tgz"],
            ),
            (
                "vnd.docker.container.image.v1+json",
                "{}",
                vec![layer("vnd.ollama.image.model", "GGUF"), layer("vnd.ollama.image.license", "MIT")],
                &[],
                "ollama",
                "is application/vnd.ollama.image.model",
                Path,
                &["model.gguf", "license.txt"],
            ),
            (
                "vnd.docker.ai.model.config.v0.1+json",
                "{}",
                vec![layer("vnd.docker.ai.gguf.v3", "GGUF")],
                &[],
                "docker-model",
                "config is",
                Path,
                &["model.gguf"],
            ),
            (
                "vnd.oci.empty.v1+json",
                "{}",
                vec![Layer::titled("a/b", "1"), Layer::titled("c", "2")],
                &["--include", "c"],
                "files",
                "2 of 2 layers have a title",
                Path,
                &["c"],
            ),
            (
                "x",
                "{}",
                vec![layer("y", "1")],
                &["--layout", "oci-layout"],
                "oci-layout",
                "asked for",
                Path,
                &["oci-layout", "index.json"],
            ),
        ];
        for (number, (config_type, config, layers, flags, family, rule, kind, files)) in
            table.into_iter().enumerate()
        {
            let pusher = registry.pusher(&format!("a/{number}"));
            let config_type = format!("application/{config_type}");
            pusher.artifact("v1", "", &config_type, config, &layers).await.expect("pushed");
            registry.forget();
            let reference = registry.reference(&format!("a/{number}:v1"));
            let mut arguments = vec!["inspect", "--output", "json", &reference];
            arguments.extend_from_slice(flags);
            let found: Value =
                serde_json::from_str(&stdout(&ocivol(&node, &registry, &arguments).await)).expect("JSON");
            assert_eq!(found["family"], family, "{found}");
            assert!(found["rule"].as_str().is_some_and(|text| text.contains(rule)), "{found}");
            for (at, path) in files.iter().enumerate() {
                let file = &found["files"][at];
                let (place, other) = match kind {
                    Path => (&file["path"], &file["archive"]),
                    Archive => (&file["archive"]["at"], &file["path"]),
                };
                assert_eq!((place.as_str(), other.is_null()), (Some(*path), true), "{found}");
                assert!(found["files"][at]["size"].as_u64().is_some_and(|size| size > 0), "{found}");
                let digest = found["files"][at]["digest"].as_str().expect("a digest");
                assert!(digest.parse::<ocivol::oci::digest::Digest>().is_ok(), "{digest}");
            }
            for layer in &layers {
                let blob = ocivol::oci::digest::Digest::sha256(&layer.content).to_string();
                assert_eq!(registry.count(&axum::http::Method::GET, &blob), 0, "a layer was pulled");
            }
        }
        assert!(!node.root.exists() || std::fs::read_dir(&node.root).expect("a store").next().is_none());
    });
}

#[test]
fn inspect_shows_annotations_platforms_and_when_it_was_made() {
    isolated(async {
        let registry = Scripted::start().await;
        let node = Node::on_host(&[]);
        let pusher = registry.pusher("app");
        let layer = pusher.blob(Tarball::new().file("a", b"a").finish().into()).await.expect("pushed");
        let mut children = Vec::new();
        for architecture in ["amd64", "arm64"] {
            let config = serde_json::json!({
                "os": "linux", "architecture": architecture, "created": "2026-05-04T03:02:01Z",
                "rootfs": { "type": "layers", "diff_ids": [layer.to_string()] },
            });
            let config = config.to_string();
            let size = config.len();
            let config = pusher.blob(config.into()).await.expect("pushed");
            let manifest = serde_json::json!({
                "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
                "annotations": { "org.example.team": "a\nb", "org.example.long": "x".repeat(200) },
                "config": { "mediaType": media_type::OCI_IMAGE_CONFIG, "digest": config, "size": size },
                "layers": [{ "mediaType": media_type::OCI_LAYER, "digest": layer, "size": 2048 }],
            });
            let manifest = manifest.to_string();
            let digest = pusher.manifest(architecture, media_type::OCI_MANIFEST, &manifest).await;
            children.push(serde_json::json!({
                "mediaType": media_type::OCI_MANIFEST, "digest": digest.expect("pushed"), "size": manifest.len(),
                "platform": { "os": "linux", "architecture": architecture }, "annotations": { "variant": "plain" },
            }));
        }
        let index = serde_json::json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": children });
        pusher.manifest("v1", media_type::OCI_INDEX, &index.to_string()).await.expect("pushed");
        let reference = registry.reference("app:v1");
        let words = ["inspect", &reference, "--platform", "linux/amd64"];
        let text = stdout(&ocivol(&node, &registry, &words).await);
        let cut = format!("annotation org.example.long={}…\n", "x".repeat(100));
        for part in [
            "created    2026-05-04T03:02:01Z\n",
            "annotation org.example.team=a\u{fffd}b\n",
            &cut,
            "  linux/amd64, ",
            "  linux/arm64, ",
            ", variant=plain\n",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        let found = json(&ocivol(&node, &registry, &[&words[..], &["--output", "json"]].concat()).await);
        assert_eq!(found["created"], "2026-05-04T03:02:01Z");
    });
}
