//! Names of files, as annotations and rules give them.

use crate::layer::name::shown;
use crate::layer::rename::Rename;
use crate::layout::error::Error;
use crate::layout::options::Options;
use crate::layout::plan::{Archive, File, Item, StatedMetadata};
use crate::layout::tree_path::TreePath;
use crate::oci::descriptor::Descriptor;

/// `name`, which an annotation of `layer` or a rule gave it, as a path of the volume.
pub(in crate::layout) fn path_of(layer: &Descriptor, name: &str) -> Result<TreePath, Error> {
    TreePath::new(name).map_err(|reason| Error::UnsafeName {
        digest: layer.digest.clone(),
        name: shown(name.as_bytes()),
        reason,
    })
}

/// `layer` as it is, as the file `name`.
pub(in crate::layout) fn file(layer: &Descriptor, name: &str) -> Result<Item, Error> {
    Ok(Item::File(path_of(layer, name)?, File { blob: layer.bare(), metadata: StatedMetadata::default() }))
}

/// `layer` as an archive that is unpacked at the root.
pub(in crate::layout) fn at_root(layer: &Descriptor, options: &Options) -> Item {
    let rename = Rename { strip: options.strip, ..Rename::default() };
    Item::Archive(Archive { blob: layer.bare(), rename, content: None })
}

/// `layer` has no name; `expected` would be one.
pub(in crate::layout) fn unnamed(layer: &Descriptor, expected: &'static str) -> Error {
    Error::Unnamed { digest: layer.digest.clone(), media_type: layer.media_type.clone(), expected }
}

/// The name of part `number` (from 0) of `total`, as models are sharded: `model.gguf`, `model-00001-of-00002.gguf`.
pub(in crate::layout) fn sharded(name: &str, extension: &str, number: usize, total: usize) -> String {
    match total {
        0 | 1 => format!("{name}.{extension}"),
        _ => format!("{name}-{:05}-of-{total:05}.{extension}", number + 1),
    }
}

/// The name of one of several texts: `license.txt`, `license-2.txt`.
pub(in crate::layout) fn numbered(name: &str, extension: &str, number: usize) -> String {
    match number {
        0 => format!("{name}.{extension}"),
        _ => format!("{name}-{}.{extension}", number + 1),
    }
}
