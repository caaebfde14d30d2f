//! What `ocivol inspect` knows of a reference, in the words of its JSON.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::failure::Failure;
use crate::host::blocking::{self, Lane};
use crate::layout::artifact::Artifact;
use crate::layout::plan::{Item, Plan};
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;
use crate::volume::attributes::Attributes;
use crate::{layout, volume};

/// The annotation that says when something was made.
pub(super) const CREATED: &str = "org.opencontainers.image.created";

/// What a reference is.
#[derive(Serialize)]
pub(super) struct Inspected {
    pub reference: String,
    /// What the reference resolved to: an index, or the manifest itself.
    pub digest: String,
    /// The manifest; of an index, the one that was chosen, if one was.
    pub manifest: Option<String>,
    pub media_type: String,
    pub artifact_type: Option<String>,
    pub config_type: String,
    /// `None` when ocivol cannot mount it.
    pub family: Option<&'static str>,
    /// By which rule the family was chosen, or why there is none.
    pub rule: String,
    /// Bytes of the blobs that are needed, each counted once.
    pub size: u64,
    /// Bytes of it that are in the store.
    pub here: u64,
    /// When it was made, as an annotation or the config of an image says.
    pub created: Option<String>,
    pub files: Vec<File>,
    pub annotations: BTreeMap<String, String>,
    /// What the index has, if it is one.
    pub children: Vec<Child>,
    /// Signatures and the like, as the registry lists them.
    pub referrers: Vec<Referrer>,
    /// What the store has under this reference.
    pub store: Option<InStore>,
    /// Why no manifest was chosen from the index.
    #[serde(skip)]
    pub not_chosen: Option<Failure>,
    /// Why it cannot be mounted.
    #[serde(skip)]
    pub not_planned: Option<Failure>,
}

/// A child of an index.
#[derive(Serialize)]
pub(super) struct Child {
    pub digest: String,
    pub media_type: String,
    pub artifact_type: Option<String>,
    pub platform: Option<String>,
    pub size: u64,
    pub annotations: BTreeMap<String, String>,
}

/// What the store has.
#[derive(Serialize)]
pub(super) struct InStore {
    /// What the reference was when it was pulled.
    pub digest: String,
    /// Whether it is that still.
    pub is_current: bool,
    /// Bytes of all files.
    pub size: u64,
    /// Seconds since the epoch of the last publish or pull.
    pub last_use: u64,
}

/// Something that refers to it.
#[derive(Serialize)]
pub(super) struct Referrer {
    pub digest: String,
    /// What it refers to: the index, or the manifest that was chosen from it.
    pub subject: String,
    pub media_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    pub size: u64,
}

/// A file, an archive, or a layer that is neither.
#[derive(Serialize)]
pub(super) struct File {
    /// Where it is; `None` for archives that are unpacked, and for layers without a place.
    pub path: Option<String>,
    /// Where it is unpacked.
    pub archive: Option<Archive>,
    pub media_type: String,
    pub size: u64,
    pub digest: String,
}

/// An archive that is unpacked.
#[derive(Serialize)]
pub(super) struct Archive {
    pub at: String,
}

/// What is known of an artifact from its manifest, and what its files would be.
pub(super) fn describe(
    attributes: &Attributes,
    artifact: &Artifact<'_>,
    planned: &Result<Plan, layout::error::Error>,
    digest: &Digest,
) -> Inspected {
    let manifest: &Manifest = artifact.manifest;
    let decided = layout::decide::decide(manifest, &attributes.options.layout);
    let file = |path: Option<String>, archive: Option<Archive>, blob: &Descriptor| File {
        path,
        archive,
        media_type: blob.media_type.clone(),
        size: blob.size,
        digest: blob.digest.to_string(),
    };
    let family = decided.as_ref().ok().map(|decision| decision.family.name);
    let (rule, files): (String, Vec<File>) = match (&decided, planned) {
        (Ok(decision), Ok(plan)) => {
            let items = plan.items().iter().map(|item| match item {
                Item::File(path, entry) => file(Some(path.to_string()), None, &entry.blob),
                Item::Text(path, text) => File {
                    path: Some(path.to_string()),
                    archive: None,
                    media_type: String::new(),
                    size: text.len() as u64,
                    digest: item.digest().to_string(),
                },
                Item::Archive(archive) => {
                    // A packed directory has its own name in it.
                    let rename = &archive.rename;
                    let place = if rename.within.is_root() { &rename.prefix } else { &rename.within };
                    let at = if place.is_root() { "/".to_owned() } else { place.to_string() };
                    file(None, Some(Archive { at }), &archive.blob)
                }
            });
            (decision.rule.clone(), items.collect())
        }
        (Err(error), _) | (_, Err(error)) => {
            let layers = manifest.layers.iter().map(|layer| file(None, None, layer));
            (error.to_string(), layers.collect())
        }
    };
    Inspected {
        reference: attributes.reference.to_string(),
        digest: digest.to_string(),
        manifest: Some(artifact.digest.to_string()),
        media_type: manifest.media_type.clone(),
        artifact_type: manifest.artifact_type.clone(),
        config_type: manifest.config.media_type.clone(),
        family: family.filter(|_| planned.is_ok()),
        rule,
        size: size_of_blobs(planned.as_ref().ok(), manifest),
        here: 0,
        created: manifest.annotations.get(CREATED).cloned(),
        files,
        annotations: manifest.annotations.clone(),
        children: Vec::new(),
        referrers: Vec::new(),
        store: None,
        not_chosen: None,
        not_planned: None,
    }
}

/// Bytes of all blobs that are needed; of what cannot be mounted, of all layers. Each is counted once.
fn size_of_blobs(plan: Option<&Plan>, manifest: &Manifest) -> u64 {
    if let Some(plan) = plan {
        return volume::list::needed(None, plan).0;
    }
    let layers = manifest.layers.iter().map(|layer| (layer.digest.to_string(), layer.size));
    layers.collect::<BTreeMap<_, _>>().values().fold(0, |sum: u64, size| sum.saturating_add(*size))
}

/// With what the store at `root` has of it.
pub(super) async fn in_store(mut found: Inspected, root: Option<&Path>, plan: Option<Plan>) -> Inspected {
    let Some(root) = root.map(Path::to_owned) else { return found };
    let reference = found.reference.clone();
    let look = move || {
        let here = plan.map_or(0, |plan| volume::list::needed(Some(&root), &plan).1);
        // An inspection needs no store, and none that can be read.
        (here, volume::list::look(&root).unwrap_or_default())
    };
    let (here, listing) = blocking::run(Lane::Work, look).await;
    let digests = [Some(&found.digest), found.manifest.as_ref()];
    let is_current = |digest: &String| digests.contains(&Some(digest));
    let known = listing.trees.into_iter().filter(|tree| tree.references.contains(&reference));
    found.store = known.max_by_key(|tree| (is_current(&tree.digest), tree.last_use)).map(|tree| InStore {
        is_current: is_current(&tree.digest),
        digest: tree.digest,
        size: tree.size,
        last_use: tree.last_use,
    });
    found.here = here;
    found
}

impl Inspected {
    /// An index that nothing was chosen from.
    pub fn of_index(
        attributes: &Attributes,
        digest: &Digest,
        media_type: String,
        annotations: BTreeMap<String, String>,
        failure: Failure,
    ) -> Self {
        Self {
            reference: attributes.reference.to_string(),
            digest: digest.to_string(),
            manifest: None,
            config_type: String::new(),
            artifact_type: Some(media_type.clone()),
            media_type,
            family: None,
            rule: failure.message.clone(),
            size: 0,
            here: 0,
            created: annotations.get(CREATED).cloned(),
            files: Vec::new(),
            annotations,
            children: Vec::new(),
            referrers: Vec::new(),
            store: None,
            not_chosen: Some(failure),
            not_planned: None,
        }
    }
}

impl Child {
    pub fn of(descriptor: &Descriptor) -> Self {
        Self {
            digest: descriptor.digest.to_string(),
            media_type: descriptor.media_type.clone(),
            artifact_type: descriptor.artifact_type.clone(),
            platform: descriptor.platform.as_ref().map(ToString::to_string),
            size: descriptor.size,
            annotations: descriptor.annotations.clone(),
        }
    }
}

impl Referrer {
    pub fn of(descriptor: &Descriptor, subject: &Digest) -> Self {
        Self {
            digest: descriptor.digest.to_string(),
            subject: subject.to_string(),
            media_type: descriptor.media_type.clone(),
            artifact_type: descriptor.artifact_type.clone(),
            size: descriptor.size,
        }
    }
}
