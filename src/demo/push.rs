//! Pushing artifacts, for the demo and the tests. Source: distribution-spec v1.1, "Push".

use bytes::Bytes;
use reqwest::{RequestBuilder, Url, header};
use serde_json::{Value, json};

use crate::oci::digest::Digest;
use crate::oci::media_type;

/// Where to push, and as whom. Plain HTTP only: it is for registries on loopback.
#[derive(Debug, Clone)]
pub struct Pusher {
    http: reqwest::Client,
    /// `host:port`
    pub host: String,
    /// The repository.
    pub repository: String,
    /// User and password.
    pub login: Option<(String, String)>,
}

/// One layer of an artifact.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its media type.
    pub media_type: String,
    /// Its bytes.
    pub content: Bytes,
    /// Its annotations.
    pub annotations: Value,
}

/// A push failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request did not get through, or was refused.
    #[error("cannot push")]
    Http(#[from] reqwest::Error),
    /// The registry did not say where to upload to.
    #[error("the registry gave no place to upload to")]
    NoLocation,
}

impl Layer {
    /// A raw ModelPack layer: a file at `path`.
    pub fn model_file(kind: &str, path: &str, content: impl Into<Bytes>) -> Self {
        let content = content.into();
        let name = path.rsplit('/').next().unwrap_or(path);
        let metadata = json!({
            "name": name, "mode": 0o644, "uid": 0, "gid": 0, "size": content.len(),
            "mtime": "2025-01-01T00:00:00Z", "typeflag": 48
        });
        Self {
            media_type: format!("application/vnd.cncf.model.{kind}.v1.raw"),
            content,
            annotations: json!({
                "org.cncf.model.filepath": path,
                "org.cncf.model.file.metadata+json": metadata.to_string(),
            }),
        }
    }

    /// A layer as `oras push` makes it: a file under a title.
    pub fn titled(title: &str, content: impl Into<Bytes>) -> Self {
        Self {
            media_type: media_type::OCI_LAYER.to_owned(),
            content: content.into(),
            annotations: json!({ "org.opencontainers.image.title": title }),
        }
    }

    /// A layer of a container image: a tar archive, compressed as its content says.
    pub fn archive(content: impl Into<Bytes>) -> Self {
        let content = content.into();
        let compression = match content.as_ref() {
            [0x1f, 0x8b, ..] => "+gzip",
            [0x28, 0xb5, 0x2f, 0xfd, ..] => "+zstd",
            _ => "",
        };
        Self {
            media_type: format!("{}{compression}", media_type::OCI_LAYER),
            content,
            annotations: json!({}),
        }
    }

    /// The layer's descriptor.
    pub fn descriptor(&self) -> Value {
        json!({
            "mediaType": self.media_type,
            "digest": Digest::sha256(&self.content).to_string(),
            "size": self.content.len(),
            "annotations": self.annotations,
        })
    }
}

impl Pusher {
    /// Pushes to `repository` of the registry at `host`.
    pub fn new(host: &str, repository: &str) -> Self {
        Self {
            http: reqwest::Client::new(),
            host: host.to_owned(),
            repository: repository.to_owned(),
            login: None,
        }
    }

    /// Pushes a ModelPack artifact as `tag`; returns its digest.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub async fn model(&self, tag: &str, layers: &[Layer]) -> Result<Digest, Error> {
        let config = json!({
            "descriptor": { "name": "demo", "createdAt": "2025-01-01T00:00:00Z" },
            "config": { "architecture": "transformer", "format": "safetensors" },
            "modelfs": { "type": "layers", "diffIds": [] },
        });
        let artifact_type = "application/vnd.cncf.model.manifest.v1+json";
        let config_type = "application/vnd.cncf.model.config.v1+json";
        self.artifact(tag, artifact_type, config_type, &config.to_string(), layers).await
    }

    /// Pushes a container image as `tag`; returns its digest. `diff_ids` are the digests of the uncompressed layers.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub async fn image(&self, tag: &str, layers: &[Layer], diff_ids: &[Digest]) -> Result<Digest, Error> {
        let diff_ids: Vec<String> = diff_ids.iter().map(Digest::to_string).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        self.artifact(tag, "", media_type::OCI_IMAGE_CONFIG, &config.to_string(), layers).await
    }

    /// Pushes files as `oras push` does; returns the digest.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub async fn files(&self, tag: &str, layers: &[Layer]) -> Result<Digest, Error> {
        let artifact_type = "application/vnd.unknown.artifact.v1";
        self.artifact(tag, artifact_type, media_type::OCI_EMPTY, "{}", layers).await
    }

    /// Pushes config, layers and manifest; returns the manifest's digest.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub async fn artifact(
        &self,
        tag: &str,
        artifact_type: &str,
        config_type: &str,
        config: &str,
        layers: &[Layer],
    ) -> Result<Digest, Error> {
        let config_digest = self.blob(Bytes::from(config.to_owned())).await?;
        for layer in layers {
            self.blob(layer.content.clone()).await?;
        }
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": { "mediaType": config_type, "digest": config_digest.to_string(), "size": config.len() },
            "layers": layers.iter().map(Layer::descriptor).collect::<Vec<_>>(),
        });
        if !artifact_type.is_empty() {
            manifest["artifactType"] = json!(artifact_type);
        }
        self.manifest(tag, media_type::OCI_MANIFEST, &manifest.to_string()).await
    }

    /// Pushes a blob; returns its digest.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub async fn blob(&self, content: Bytes) -> Result<Digest, Error> {
        let digest = Digest::sha256(&content);
        let started = self
            .authorized(self.http.post(self.url("blobs/uploads/")))
            .header(header::CONTENT_LENGTH, 0)
            .send()
            .await?
            .error_for_status()?;
        let location = started.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let base = Url::parse(&self.url("")).map_err(|_| Error::NoLocation)?;
        let mut url = location.and_then(|location| base.join(location).ok()).ok_or(Error::NoLocation)?;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let upload = self.http.put(url).header(header::CONTENT_TYPE, "application/octet-stream");
        self.authorized(upload).body(content).send().await?.error_for_status()?;
        Ok(digest)
    }

    /// Pushes a manifest or index as `target`; returns its digest.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub async fn manifest(&self, target: &str, media_type: &str, body: &str) -> Result<Digest, Error> {
        let request = self.http.put(self.url(&format!("manifests/{target}")));
        let request = self.authorized(request).header(header::CONTENT_TYPE, media_type);
        request.body(body.to_owned()).send().await?.error_for_status()?;
        Ok(Digest::sha256(body.as_bytes()))
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/v2/{}/{path}", self.host, self.repository)
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.login {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        }
    }
}
