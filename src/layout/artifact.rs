//! What is laid out: a manifest, its digest, and its config where that is needed.

use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;

/// Changes whenever a manifest would be laid out differently than before: trees made by other versions of the
/// rules are then not reused.
pub const LAYOUT_VERSION: u32 = 6;

/// Bytes of a config: containerd's bound for everything that is read whole.
pub const CONFIG_LIMIT: usize = 8 * 1024 * 1024;

/// What is laid out.
#[derive(Debug, Clone, Copy)]
pub struct Artifact<'a> {
    /// The manifest.
    pub manifest: &'a Manifest,
    /// Its digest.
    pub digest: &'a Digest,
    /// Its bytes.
    pub size: u64,
    /// Its config; needed only after [`NeedsConfig`](crate::layout::error::Error::NeedsConfig).
    pub config: Option<&'a [u8]>,
}

impl Artifact<'_> {
    /// The manifest as content: it is in the store as it came.
    pub(in crate::layout) fn as_blob(&self) -> Descriptor {
        Descriptor {
            media_type: self.manifest.media_type.clone(),
            digest: self.digest.clone(),
            size: self.size,
            artifact_type: None,
            platform: None,
            annotations: Default::default(),
            data: None,
        }
    }
}
