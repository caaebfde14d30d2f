//! Image layouts on the disk: directories and archives, made without the code that reads them.

use std::collections::BTreeMap;
use std::path::Path;

use ocivol::demo::push::Layer;
use ocivol::demo::tarball::Tarball;
use ocivol::oci::digest::Digest;
use ocivol::oci::media_type;
use serde_json::{Value, json};

/// A layout: its blobs, and the descriptors of its index.
#[derive(Default, Clone)]
pub struct ImageLayout {
    pub blobs: BTreeMap<String, Vec<u8>>,
    pub manifests: Vec<Value>,
}

impl ImageLayout {
    /// Adds a container image of `layers` under the name `name`; returns its digest.
    pub fn image(&mut self, name: &str, layers: &[Layer]) -> Digest {
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": [] },
        });
        self.artifact(name, None, media_type::OCI_IMAGE_CONFIG, &config, layers)
    }

    /// Adds a raw model of `layers` under the name `name`; returns its digest.
    pub fn model(&mut self, name: &str, layers: &[Layer]) -> Digest {
        let config = json!({
            "descriptor": { "name": "demo", "createdAt": "2025-01-01T00:00:00Z" },
            "config": { "architecture": "transformer", "format": "safetensors" },
            "modelfs": { "type": "layers", "diffIds": [] },
        });
        let artifact_type = Some("application/vnd.cncf.model.manifest.v1+json");
        self.artifact(name, artifact_type, "application/vnd.cncf.model.config.v1+json", &config, layers)
    }

    fn artifact(
        &mut self,
        name: &str,
        artifact_type: Option<&str>,
        config_type: &str,
        config: &Value,
        layers: &[Layer],
    ) -> Digest {
        let config = config.to_string().into_bytes();
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": {
                "mediaType": config_type,
                "digest": Digest::sha256(&config).to_string(),
                "size": config.len(),
            },
            "layers": layers.iter().map(Layer::descriptor).collect::<Vec<_>>(),
        });
        if let Some(artifact_type) = artifact_type {
            manifest["artifactType"] = json!(artifact_type);
        }
        self.blob(&config);
        for layer in layers {
            self.blob(&layer.content);
        }
        let manifest = manifest.to_string().into_bytes();
        let digest = self.blob(&manifest);
        self.manifests.push(json!({
            "mediaType": media_type::OCI_MANIFEST,
            "digest": digest.to_string(),
            "size": manifest.len(),
            "annotations": { "org.opencontainers.image.ref.name": name },
        }));
        digest
    }

    fn blob(&mut self, content: &[u8]) -> Digest {
        let digest = Digest::sha256(content);
        self.blobs.insert(blob_name(&digest), content.to_vec());
        digest
    }

    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        let mut files = self.blobs.clone();
        files.insert("oci-layout".into(), br#"{"imageLayoutVersion": "1.0.0"}"#.to_vec());
        files.insert("index.json".into(), index.to_string().into_bytes());
        files
    }

    /// Writes it as a directory.
    pub fn write_directory(&self, path: &Path) {
        for (name, content) in self.files() {
            let path = path.join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, content).expect("written");
        }
    }

    /// Writes it as an archive.
    pub fn write_archive(&self, path: &Path) {
        let tar = self.files().iter().fold(Tarball::new(), |tar, (name, content)| tar.file(name, content));
        std::fs::write(path, tar.finish()).expect("written");
    }
}

/// Where a layout has a blob.
pub fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
