//! Against Debian's `docker-registry`.

use bytes::Bytes;
use ocivol::demo::push::Layer;
use ocivol::oci::digest::Digest;
use ocivol::oci::media_type;
use ocivol::oci::platform::Platform;
use serde_json::json;
use tonic::Code;

use crate::support::debian_registry::{DebianRegistry, LOGIN};
use crate::support::{Node, isolated, noise};

fn model() -> Vec<Layer> {
    vec![
        Layer::model_file("weight", "model-00001-of-00002.safetensors", noise(1, 5 << 20)),
        Layer::model_file("weight", "model-00002-of-00002.safetensors", noise(2, 3 << 20)),
        Layer::model_file("weight.config", "config.json", "{}"),
        Layer::model_file("doc", "docs/README.md", "# model\n"),
        Layer::model_file("doc", "docs/empty", ""),
    ]
}

fn assert_holds(target: &std::path::Path, layers: &[Layer]) {
    for layer in layers {
        let annotations = &layer.annotations;
        let path = annotations["org.cncf.model.filepath"]
            .as_str()
            .or_else(|| annotations["org.cnai.model.filepath"].as_str())
            .or_else(|| annotations["org.opencontainers.image.title"].as_str())
            .expect("a name");
        assert!(std::fs::read(target.join(path)).expect(path) == layer.content, "{path} differs");
    }
}

#[test]
fn models_and_files_by_tag_and_by_digest() {
    isolated(async {
        let registry = DebianRegistry::start().await;
        let layers = model();
        let digest = registry.pusher("team/model").model("v1", &layers).await.expect("pushed");
        let files = [Layer::titled("a.txt", "a"), Layer::titled("sub/b.bin", noise(3, 1 << 20))];
        registry.pusher("files").files("v1", &files).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let cases = [
            (registry.reference("team/model:v1"), layers.as_slice()),
            (registry.reference(&format!("team/model@{digest}")), &layers),
            (registry.reference(&format!("team/model:other@{digest}")), &layers),
            (registry.reference("files:v1"), &files),
        ];
        for (number, (reference, layers)) in cases.into_iter().enumerate() {
            let volume = node.volume(&format!("pod-{number}"));
            node.publish(&volume, &reference, &[]).await.expect(&reference);
            assert_holds(&volume.target, layers);
            node.kubelet.unpublish(&volume).await.expect("unpublished");
        }
    });
}

#[test]
fn legacy_names_and_docker_manifests() {
    isolated(async {
        let registry = DebianRegistry::start().await;
        let pusher = registry.pusher("legacy");
        let mut layer = Layer::model_file("weight", "w", noise(1, 1000));
        layer.media_type = "application/vnd.cnai.model.weight.v1.raw".into();
        layer.annotations = json!({"org.cnai.model.filepath": "w"});
        let config = "application/vnd.cnai.model.config.v1+json";
        let layers = [layer];
        pusher
            .artifact("cnai", "application/vnd.cnai.model.manifest.v1+json", config, "{}", &layers)
            .await
            .expect("pushed");
        // The same layers under a Docker schema 2 manifest.
        let config_digest = Digest::sha256(b"{}").to_string();
        let docker = json!({
            "schemaVersion": 2, "mediaType": media_type::DOCKER_MANIFEST,
            "config": {"mediaType": config, "digest": config_digest, "size": 2},
            "layers": [layers[0].descriptor()],
        });
        pusher.manifest("docker", media_type::DOCKER_MANIFEST, &docker.to_string()).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        for tag in ["cnai", "docker"] {
            let volume = node.volume(tag);
            node.publish(&volume, &registry.reference(&format!("legacy:{tag}")), &[]).await.expect(tag);
            assert_holds(&volume.target, &layers);
            node.kubelet.unpublish(&volume).await.expect("unpublished");
        }
    });
}

#[test]
fn an_index_is_resolved_by_platform_and_attestations_are_ignored() {
    isolated(async {
        let registry = DebianRegistry::start().await;
        let pusher = registry.pusher("multi");
        let mut children = Vec::new();
        for platform in ["linux/arm64/v8", "linux/arm/v7", "linux/arm/v6", "linux/amd64", "linux/riscv64"] {
            let digest = pusher
                .model(&platform.replace('/', "-"), &[Layer::model_file("doc", "platform", platform)])
                .await;
            let digest = digest.expect("pushed");
            let parsed: Platform = platform.parse().expect("a platform");
            let url = format!("http://{}/v2/multi/manifests/{digest}", registry.host());
            let accept = reqwest::Client::new().get(url).header("accept", media_type::OCI_MANIFEST);
            let size = accept.send().await.expect("an answer").bytes().await.expect("a body").len();
            children.push(json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest.to_string(), "size": size, "platform": parsed}));
        }
        let mut attestation = children[0].clone();
        attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
        attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
        children.insert(0, attestation);
        for (tag, kind) in [("oci", media_type::OCI_INDEX), ("docker", media_type::DOCKER_INDEX)] {
            let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": children});
            // docker-registry checks that a Docker list names Docker manifests only by media type.
            pusher.manifest(tag, kind, &index.to_string()).await.expect("pushed");
        }
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let cases = [
            ("linux/arm64", "linux/arm64/v8"),
            ("linux/arm/v7", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("linux/amd64/v3", "linux/amd64"),
            ("linux/riscv64", "linux/riscv64"),
        ];
        for tag in ["oci", "docker"] {
            let reference = registry.reference(&format!("multi:{tag}"));
            for (wanted, expected) in cases {
                let volume = node.volume(&format!("{tag}-{}", wanted.replace('/', "-")));
                node.publish(&volume, &reference, &[("platform", wanted)]).await.expect(wanted);
                let found = std::fs::read_to_string(volume.target.join("platform")).expect("read");
                assert_eq!(found, expected);
                node.kubelet.unpublish(&volume).await.expect("unpublished");
            }
            let volume = node.volume("none");
            let status =
                node.publish(&volume, &reference, &[("platform", "windows/amd64")]).await.expect_err("none");
            assert_eq!(status.code(), Code::FailedPrecondition);
            assert!(status.message().contains("linux/riscv64"), "{}", status.message());
        }
    });
}

#[test]
fn basic_authentication_with_the_volumes_secret() {
    isolated(async {
        let registry = DebianRegistry::with_login().await;
        let layers = model();
        registry.pusher("private").model("v1", &layers).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let reference = registry.reference("private:v1");
        let volume = node.volume("pod");
        let status = node.publish(&volume, &reference, &[]).await.expect_err("no credentials");
        assert_eq!(status.code(), Code::Unauthenticated, "{}", status.message());
        assert!(status.message().contains("nodePublishSecretRef"), "{}", status.message());
        let status = node.publish_as(&volume, &reference, &[], (LOGIN.0, "guess")).await.expect_err("wrong");
        assert_eq!(status.code(), Code::Unauthenticated, "{}", status.message());
        node.publish_as(&volume, &reference, &[], LOGIN).await.expect("published");
        assert_holds(&volume.target, &layers);
        assert!(!node.logged().contains(LOGIN.1) && !node.logged().contains("guess"));
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn what_is_no_family_of_ours_is_named() {
    isolated(async {
        let registry = DebianRegistry::start().await;
        let pusher = registry.pusher("image");
        let layer = Layer {
            media_type: "application/vnd.example.layer".into(),
            content: Bytes::from_static(b"not looked at"),
            annotations: json!({}),
        };
        pusher.artifact("v1", "", media_type::OCI_IMAGE_CONFIG, "{}", &[layer]).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let volume = node.volume("pod");
        let status = node.publish(&volume, &registry.reference("image:v1"), &[]).await.expect_err("an image");
        assert_eq!(status.code(), Code::FailedPrecondition);
        for word in ["the config of a container image", media_type::OCI_IMAGE_CONFIG, "vnd.example.layer"] {
            assert!(status.message().contains(word), "{}", status.message());
        }
    });
}
