//! Writes an image layout as a tar archive (image-spec image-layout.md): the same bytes whenever and wherever it is written.

use std::fs::File;
use std::io;
use std::io::{Read, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::cli::interrupt;
use crate::control::request::{Blob, Saved};
use crate::oci::digest::{Digest, Hasher};
use crate::oci::media_type::OCI_INDEX;
use crate::oci::reference::Reference;

/// Why an archive was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A blob of the store is not what its name says.
    #[error("blob {0} in the store is damaged; `ocivol fsck --repair` takes it out, and it is fetched again")]
    Damaged(Digest),
    /// The kernel's.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes what is `saved`, whose blobs are in the store at `root`, and calls `written` with the bytes of blobs so far. `oci-layout` and
/// `index.json` come first, then the manifest, its config and its layers. Every blob is compared with its digest once more.
pub(super) fn write(
    out: impl Write,
    root: &Path,
    saved: &Saved,
    written: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    let mut archive = tar::Builder::new(out);
    let text = |archive: &mut tar::Builder<_>, name: &str, value: &Value| {
        let text = value.to_string();
        archive.append_data(&mut header(text.len() as u64), name, text.as_bytes())
    };
    text(&mut archive, "oci-layout", &json!({ "imageLayoutVersion": "1.0.0" }))?;
    text(&mut archive, "index.json", &index(saved))?;
    let mut total = 0;
    for blob in &saved.blobs {
        let Blob { digest, size, path } = blob;
        let name = format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex());
        let file = File::open(root.join(path))?;
        let mut content =
            Hashed { input: file.take(*size), hasher: digest.algorithm().hasher(), read: 0, total, written };
        archive.append_data(&mut header(*size), name, &mut content)?;
        if content.read != *size || content.hasher.finish() != *digest {
            return Err(Error::Damaged(digest.clone()));
        }
        total += size;
    }
    archive.into_inner()?.flush()?;
    Ok(())
}

/// The index of an archive with this one manifest. Its names are those that containerd, Docker and `ocivol load` read.
fn index(saved: &Saved) -> Value {
    let mut annotations = serde_json::Map::new();
    let manifest = saved.blobs.first();
    if let Ok(reference) = saved.reference.parse::<Reference>() {
        if let Some(tag) = reference.tag().or((reference.digest().is_none()).then_some("latest")) {
            annotations.insert("org.opencontainers.image.ref.name".to_owned(), tag.into());
        }
        if !reference.is_layout() {
            // The digest may be that of an index, of which only one manifest is here.
            let (host, repository) = (reference.host(), reference.repository());
            let name = match (reference.tag(), reference.digest(), manifest) {
                (None, Some(_), Some(manifest)) => format!("{host}/{repository}@{}", manifest.digest),
                (tag, ..) => format!("{host}/{repository}:{}", tag.unwrap_or("latest")),
            };
            annotations.insert("io.containerd.image.name".to_owned(), name.into());
        }
    }
    let described = manifest.map(|manifest| {
        let (digest, size) = (manifest.digest.to_string(), manifest.size);
        json!({ "mediaType": saved.media_type, "digest": digest, "size": size, "annotations": annotations })
    });
    json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": described.into_iter().collect::<Vec<_>>() })
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Content that is hashed while it is read.
struct Hashed<'a, R> {
    input: R,
    hasher: Hasher,
    read: u64,
    /// Bytes before it.
    total: u64,
    written: &'a mut dyn FnMut(u64),
}

impl<R: Read> Read for Hashed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        interrupt::check()?;
        let length = self.input.read(buffer)?;
        self.hasher.update(buffer.get(..length).unwrap_or_default());
        self.read += length as u64;
        (self.written)(self.total + self.read);
        Ok(length)
    }
}
