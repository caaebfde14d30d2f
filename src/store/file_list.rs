//! Files of archives against the list that their artifact's config has of them.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::layers::Layer;
use super::link::Source;
use super::{Error, error::io};
use crate::layer::{Entry, Kind, Refused};
use crate::layout::Plan;
use crate::layout::cog::Listed;
use crate::oci::Digest;

/// Checks that the layers of `plan` hold the files that `list` has, and no others. `entries` are those of an item.
///
/// Each file is read once more, from the page cache as a rule: the digests of a layer and of the list are known to be right
/// before, but not that they speak of the same.
///
/// # Errors
/// [`Error::Refused`] for the first file that is not as the list says, [`Error::Io`].
pub(super) fn check<'a>(
    plan: &Plan,
    sources: &'a [Source],
    entries: impl Fn(usize) -> &'a [Entry],
    list: &BTreeMap<Vec<u8>, Listed>,
    manifest: &Digest,
) -> Result<(), Error> {
    let mut seen = HashSet::new();
    for (number, (item, source)) in plan.items().iter().zip(sources).enumerate() {
        let Source::Layer(layer) = source else { continue };
        for (at, entry) in (0_u32..).zip(entries(number)) {
            let refused = |rule: String| Error::Refused {
                digest: item.digest(),
                source: Refused { name: entry.name.clone(), rule },
            };
            let Kind::File { size, place, .. } = &entry.kind else {
                // Another name of a file, or a link, would be a file that the list does not have.
                if matches!(entry.kind, Kind::HardLink { .. } | Kind::Symlink { .. }) {
                    return Err(refused("it is a link, which no list of files has".to_owned()));
                }
                continue;
            };
            let Some(listed) = list.get(entry.name.as_bytes()) else {
                return Err(refused("the artifact's config does not list it".to_owned()));
            };
            if !seen.insert(entry.name.as_bytes()) {
                return Err(refused("another entry has the same name".to_owned()));
            }
            let path = layer.directory.join(Layer::place(&entry.name, *place, at));
            check_file(&path, *size, listed)?.map_or(Ok(()), |rule| Err(refused(rule)))?;
        }
    }
    match list.keys().find(|name| !seen.contains(name.as_slice())) {
        None => Ok(()),
        Some(missing) => {
            let name = crate::layer::Name::below(missing, b"");
            let rule = "the artifact's config lists it, and no layer has it".to_owned();
            Err(Error::Refused { digest: manifest.clone(), source: Refused { name, rule } })
        }
    }
}

/// Why a file is not what the list says.
fn check_file(path: &Path, size: u64, listed: &Listed) -> Result<Option<String>, Error> {
    if size != listed.size {
        return Ok(Some(format!("it has {size} bytes, where the artifact's config says {}", listed.size)));
    }
    let mut file = File::open(path).map_err(io("open", path))?;
    let mut hasher = listed.digest.algorithm().hasher();
    let mut buffer = vec![0_u8; 256 * 1024];
    loop {
        match file.read(&mut buffer).map_err(io("read", path))? {
            0 => break,
            length => hasher.update(&buffer[..length]),
        }
    }
    let got = hasher.finish();
    let same = got == listed.digest;
    Ok((!same).then(|| format!("its digest is {got}, where the artifact's config says {}", listed.digest)))
}
