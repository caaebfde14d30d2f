//! What other projects' tools pushed, captured in `tests/fixtures/` as OCI image layouts, and pushed again.

use std::path::{Path, PathBuf};

use ocivol::demo::push::Pusher;
use ocivol::oci::digest::Digest;
use serde_json::Value;

/// The tag of a reference in a layout's index.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

fn directory(tool: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(tool)
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON")
}

/// Pushes all that `tool` made, under the same tags and digests.
pub async fn push(tool: &str, pusher: &Pusher) {
    for (digest, tag) in references(tool) {
        push_manifest(&directory(tool), pusher, &digest, tag.as_deref()).await;
    }
}

/// Pushes what `tool` made as `made_as`, as `tag`.
pub async fn push_one(tool: &str, made_as: &str, pusher: &Pusher, tag: &str) {
    let references = references(tool);
    let (digest, _) = references
        .iter()
        .find(|(_, known)| known.as_deref() == Some(made_as))
        .unwrap_or_else(|| panic!("{tool} made no {made_as}"));
    push_manifest(&directory(tool), pusher, digest, Some(tag)).await;
}

/// Digests of manifests, and their tags.
pub fn references(tool: &str) -> Vec<(String, Option<String>)> {
    let index = json(&read(&directory(tool).join("index.json")));
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let entries = index["manifests"].as_array().expect("manifests").iter();
    entries
        .map(|entry| (text(&entry["digest"]).expect("a digest"), text(&entry["annotations"][REF_NAME])))
        .collect()
}

/// Pushes a manifest, after all that it names.
async fn push_manifest(directory: &Path, pusher: &Pusher, digest: &str, tag: Option<&str>) {
    let bytes = blob(directory, digest);
    let manifest = json(&bytes);
    for child in manifest["manifests"].as_array().into_iter().flatten() {
        Box::pin(push_manifest(directory, pusher, child["digest"].as_str().expect("a digest"), None)).await;
    }
    let layers = manifest["layers"].as_array().into_iter().flatten();
    for layer in layers.chain(Some(&manifest["config"]).filter(|config| config.is_object())) {
        let content = blob(directory, layer["digest"].as_str().expect("a digest"));
        pusher.blob(content.into()).await.expect("pushed");
    }
    let media_type = manifest["mediaType"].as_str().unwrap_or(ocivol::oci::media_type::OCI_MANIFEST);
    let text = String::from_utf8(bytes).expect("text");
    let pushed = pusher.manifest(tag.unwrap_or(digest), media_type, &text).await.expect("pushed");
    assert_eq!(pushed.to_string(), digest, "it is the same, byte for byte");
}

fn blob(directory: &Path, digest: &str) -> Vec<u8> {
    let digest: Digest = digest.parse().expect("a digest");
    read(&directory.join("blobs").join(digest.algorithm().as_str()).join(digest.hex()))
}
