//! Media types by name. Families' own types stand with their layout.

/// An OCI manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// A Docker schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// A Docker schema 2 manifest list.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// The config of an OCI container image.
pub const OCI_IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The config of a Docker container image.
pub const DOCKER_IMAGE_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// The empty JSON object, as a config that says nothing.
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// An OCI layer: a tar archive, or anything at all when a tool did not say better.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What is asked for in a manifest request, best first.
pub const ACCEPTED_MANIFESTS: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX];

/// Whether a media type is one of [`ACCEPTED_MANIFESTS`].
pub fn is_manifest_or_index(media_type: &str) -> bool {
    ACCEPTED_MANIFESTS.contains(&media_type)
}

/// Whether a media type is that of an index.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_INDEX)
}
