//! Layers unpacked and merged in this process, without a registry; and the same by umoci.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use ocivol::failure::chain;
use ocivol::layer::format::{Profile, Summary};
use ocivol::layer::rename::Rename;
use ocivol::layout::options::Options;
use ocivol::layout::plan::{Archive, Item, Plan};
use ocivol::oci::descriptor::Descriptor;
use ocivol::oci::digest::Digest;
use ocivol::oci::repository::Repository;
use ocivol::store::access::origin::Origin;
use ocivol::store::content::build::Build;
use ocivol::store::key::{LayerKey, TreeKey};
use ocivol::store::open::Store;
use ocivol::store::space::budget::Budget;
use ocivol::unpack::directory_memory::DirectoryMemory;
use ocivol::unpack::extract::Limits;
use ocivol::unpack::pipeline::Unpack;
use ocivol::unpack::space::Space;
use serde_json::json;
use tempfile::TempDir;

/// A store of the test's own.
pub struct Layers {
    pub store: Arc<Store>,
    _directory: TempDir,
}

impl Drop for Layers {
    fn drop(&mut self) {
        // What becomes durable in the background writes records, and the directory is about to go.
        self.store.flush();
    }
}

/// What a layer is unpacked with.
pub const LIMITS: Limits = Limits { bytes: 1 << 40, space: Space::ALL, directories: DirectoryMemory::Own };

pub fn descriptor(blob: &[u8]) -> Descriptor {
    Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
        digest: Digest::sha256(blob),
        size: blob.len() as u64,
        artifact_type: None,
        platform: None,
        annotations: BTreeMap::new(),
        data: None,
    }
}

/// Unpacks `blob` into `directory`, in pieces of `step` bytes.
pub fn unpack(directory: &Path, blob: &[u8], profile: Profile, step: usize) -> Result<Summary, String> {
    let mut unpack = Unpack::start(directory, profile, LIMITS, None).map_err(|error| chain(&error))?;
    for piece in blob.chunks(step) {
        let rest = unpack.push(Bytes::copy_from_slice(piece)).map_err(|error| chain(&error))?;
        assert!(rest.is_none(), "it needs a large window");
    }
    unpack.finish().map_err(|error| chain(&error))
}

impl Layers {
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("ocivol-layers-").tempdir().expect("a directory");
        let store = Store::open(&directory.path().join("store"), Budget::COMMAND).expect("a store");
        Self { store, _directory: directory }
    }

    /// Brings `blob` into the store as a layer.
    pub fn add(&self, blob: &[u8], profile: Profile) -> Result<(), String> {
        let descriptor = descriptor(blob);
        let key = LayerKey::new(&descriptor.digest, profile);
        if self.store.layers.get(&key).expect("a store").is_some() {
            return Ok(());
        }
        let repository = Repository { host: "test".into(), name: "test".into() };
        let origin = Origin { repository, anonymous: true };
        let ingest = self.store.layers.ingest(&descriptor, profile, vec![origin]).expect("space");
        let summary = unpack(ingest.directory(), blob, profile, 64 * 1024)?;
        ingest.publish(summary, None).map_err(|error| chain(&error)).map(drop)
    }

    /// The tree of an image.
    pub fn image(&self, blobs: &[Vec<u8>]) -> Result<PathBuf, String> {
        let archives = blobs.iter().map(|blob| Archive {
            blob: descriptor(blob),
            rename: Rename::default(),
            content: None,
        });
        self.tree(Plan::image(archives), &Options::default(), false)
    }

    /// The tree of an artifact of one archive.
    pub fn archive(&self, blob: &[u8], rename: Rename) -> Result<PathBuf, String> {
        let item = Item::Archive(Archive { blob: descriptor(blob), rename, content: None });
        let plan = Plan::artifact(vec![item]).expect("a plan");
        self.tree_of(&[blob.to_vec()], plan, &Options::default(), true)
    }

    fn tree(&self, plan: Plan, options: &Options, readable: bool) -> Result<PathBuf, String> {
        self.tree_of(&[], plan, options, readable)
    }

    /// The tree of a plan, after adding `blobs`.
    pub fn tree_of(
        &self,
        blobs: &[Vec<u8>],
        plan: Plan,
        options: &Options,
        readable: bool,
    ) -> Result<PathBuf, String> {
        for blob in blobs {
            self.add(blob, plan.profile())?;
        }
        let manifest = Digest::sha256(format!("{plan:?}").as_bytes());
        let build = Build {
            merge_bytes: ocivol::host::limits::MERGE_BYTES,
            key: TreeKey::new(&manifest, options, readable, false),
            plan,
            options: options.clone(),
            readable,
            manifest,
            family: "test".into(),
            platform: None,
            filter: String::new(),
        };
        self.store.trees.build(&build).map(|tree| tree.root).map_err(|error| chain(&error))
    }

    /// Adds the layers of an image, and makes its tree.
    pub fn stack(&self, blobs: &[Vec<u8>]) -> Result<PathBuf, String> {
        for blob in blobs {
            self.add(blob, Profile::Image)?;
        }
        self.image(blobs)
    }
}

/// Writes an OCI image layout with one image, and has umoci unpack it to a directory.
pub fn umoci(blobs: &[Vec<u8>], directory: &Path) -> Result<PathBuf, String> {
    let layout = directory.join("layout");
    let put = |bytes: &[u8]| {
        let digest = Digest::sha256(bytes);
        let place = layout.join("blobs/sha256");
        std::fs::create_dir_all(&place).expect("a directory");
        std::fs::write(place.join(digest.hex()), bytes).expect("a blob");
        json!({ "digest": digest.to_string(), "size": bytes.len() })
    };
    let typed = |mut descriptor: serde_json::Value, media_type: &str| {
        descriptor["mediaType"] = json!(media_type);
        descriptor
    };
    let digests: Vec<String> = blobs.iter().map(|blob| Digest::sha256(blob).to_string()).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": digests },
    });
    let layer = "application/vnd.oci.image.layer.v1.tar";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": typed(put(config.to_string().as_bytes()), "application/vnd.oci.image.config.v1+json"),
        "layers": blobs.iter().map(|blob| typed(put(blob), layer)).collect::<Vec<_>>(),
    });
    let mut entry = typed(put(manifest.to_string().as_bytes()), "application/vnd.oci.image.manifest.v1+json");
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "it" });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    std::fs::write(layout.join("index.json"), index.to_string()).expect("an index");
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a marker");
    umoci_unpack(&format!("{}:it", layout.display()), directory)
}

/// Has umoci unpack `image`, an image layout and a tag.
pub fn umoci_unpack(image: &str, directory: &Path) -> Result<PathBuf, String> {
    let rootfs = directory.join("rootfs");
    let run = Command::new("umoci").args(["raw", "unpack", "--image", image]).arg(&rootfs).output();
    let run = run.unwrap_or_else(|error| {
        panic!("umoci cannot be started: {error}; run `apt-get install umoci`, or `make test`")
    });
    if run.status.success() { Ok(rootfs) } else { Err(String::from_utf8_lossy(&run.stderr).into_owned()) }
}
