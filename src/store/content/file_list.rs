//! Files of archives against the list that their artifact's config has of them.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use crate::layer::format::place_of;
use crate::layer::index::{Entry, EntryKind};
use crate::layer::merge::Refused;
use crate::layer::name::Name;
use crate::layout::artifact::CONFIG_LIMIT;
use crate::layout::families::cog;
use crate::layout::families::cog::Listed;
use crate::layout::plan::Item;
use crate::oci::digest::Digest;
use crate::store::content::blobs::Blobs;
use crate::store::content::build::Build;
use crate::store::content::holes::read_with_holes;
use crate::store::content::layer::Layer;
use crate::store::content::link::TreeSource;
use crate::store::error::Error;

/// Bytes that a list may have for each byte of the layers: what is made for use is compressed far less.
const RATIO_LIMIT: u64 = 200;
/// Bytes of memory of one check, about: the config, what it lists, and which of that was seen.
pub const MEMORY: u64 = 6 * CONFIG_LIMIT as u64;

/// Checks that the layers of a plan hold the files that its config lists, and no others. Without a list there is nothing
/// to check.
///
/// Each file is read once more: the digests of layers and list are known to be right before, but not that they speak of the
/// same. This may take minutes. *Caller:* bounds how many do.
///
/// # Errors
/// [`Error::Refused`] for the first file that is not as the list says, [`Error::Damaged`], [`Error::Io`].
pub(in crate::store) fn check(blobs: &Blobs, sources: &[TreeSource], build: &Build) -> Result<(), Error> {
    let Some(config) = build.plan.file_list() else { return Ok(()) };
    let gone = || Error::Damaged(format!("blob {config} is gone"));
    let bytes = blobs.read(config, CONFIG_LIMIT)?.ok_or_else(gone)?;
    let list = cog::files(&bytes, config)?;
    drop(bytes);
    let refused = |digest: &Digest, name: Name, rule: String| Error::Refused {
        digest: digest.clone(),
        source: Refused { name, rule },
    };
    let total = list.values().fold(0_u64, |sum, file| sum.saturating_add(file.size));
    let packed = sources.iter().fold(0_u64, |sum, source| match source {
        TreeSource::Layer(layer) => sum.saturating_add(layer.size),
        _ => sum,
    });
    if total / RATIO_LIMIT > packed {
        let rule = format!("its config lists {total} bytes, and its layers have {packed}");
        return Err(refused(&build.manifest, Name::default(), rule));
    }
    let mut seen = HashSet::new();
    for (item, source) in build.plan.items().iter().zip(sources) {
        let (Item::Archive(archive), TreeSource::Layer(layer)) = (item, source) else { continue };
        for (number, entry) in (0_u32..).zip(layer.read_entries()?) {
            let entry = entry.map_err(|error| Error::Damaged(format!("layer {}: {error}", layer.key)))?;
            if let Some(rule) = check_entry(layer, &entry, number, &list, &mut seen)? {
                return Err(refused(&archive.blob.digest, entry.name, rule));
            }
        }
    }
    match list.keys().find(|name| !seen.contains(name.as_slice())) {
        None => Ok(()),
        Some(missing) => {
            let rule = "the artifact's config lists it, and no layer has it".to_owned();
            Err(refused(&build.manifest, Name::below(missing, b""), rule))
        }
    }
}

/// Why an entry is not what the list says.
fn check_entry(
    layer: &Layer,
    entry: &Entry,
    number: u32,
    list: &BTreeMap<Vec<u8>, Listed>,
    seen: &mut HashSet<Vec<u8>>,
) -> Result<Option<String>, Error> {
    let (size, place) = match &entry.kind {
        EntryKind::Directory => return Ok(None),
        EntryKind::File { size, place, .. } => (*size, *place),
        _ => return Ok(Some("it is neither file nor directory, and lists have only files".to_owned())),
    };
    let Some(listed) = list.get(entry.name.as_bytes()) else {
        return Ok(Some("the artifact's config does not list it".to_owned()));
    };
    if !seen.insert(entry.name.as_bytes().to_vec()) {
        return Ok(Some("another entry has the same name".to_owned()));
    }
    if size != listed.size {
        return Ok(Some(format!("it has {size} bytes, where the artifact's config says {}", listed.size)));
    }
    let got = digest(&layer.directory.join(place_of(&entry.name, place, number)), &listed.digest)?;
    let same = got == listed.digest;
    Ok((!same).then(|| format!("its digest is {got}, where the artifact's config says {}", listed.digest)))
}

/// The digest of a file, by the algorithm of `like`.
fn digest(path: &Path, like: &Digest) -> Result<Digest, Error> {
    let mut hasher = like.algorithm().hasher();
    read_with_holes(path, &mut |piece| hasher.update(piece))?;
    Ok(hasher.finish())
}
