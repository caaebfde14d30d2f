//! Repair: what is bad leaves the store, with every tree that shows it, and is pulled again when it is wanted. Pods that have it
//! mounted keep what they have.

use std::path::Path;

use crate::host::failpoint;
use crate::store::content::trees::Image;
use crate::store::disk::each_child;
use crate::store::durable::record;
use crate::store::error::Error;
use crate::store::key::{Entry, Name, TreeKey};
use crate::store::open::Store;

/// The trees of the store in `directory` that show something of `entry`.
///
/// # Errors
/// [`Error::Io`].
pub(in crate::store) fn trees_with(directory: &Path, entry: &Entry) -> Result<Vec<TreeKey>, Error> {
    let concerned = match entry {
        Entry::Tree(key) => return Ok(vec![key.clone()]),
        Entry::Blob(digest) => Name::content(digest),
        Entry::Layer(key) => Name::layer(key),
    };
    let mut trees = Vec::new();
    each_child(&directory.join("images"), &mut |path| {
        let key = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json"));
        let Some(key) = key.and_then(TreeKey::parse) else { return Ok(()) };
        let image = match record::read::<Image>(path) {
            Ok(Some(image)) => image,
            Ok(None) => return Ok(()),
            Err(error) => {
                tracing::warn!(%error, "a tree is left out");
                return Ok(());
            }
        };
        let layers = image.layers.iter().map(Name::layer);
        // Records of ocivol 0.1 do not say which blobs a tree shows.
        let is_unknown =
            matches!(entry, Entry::Blob(_)) && image.blobs.is_none() && image.only_layer.is_none();
        let mut parts = image.blobs.iter().flatten().map(Name::content).chain(layers);
        if is_unknown || parts.any(|part| part == concerned) {
            trees.push(key);
        }
        Ok(())
    })?;
    Ok(trees)
}

/// Takes `entry`, and the `trees` that show it, out of the store.
///
/// # Errors
/// [`Error::Io`].
pub(in crate::store) fn give_up(store: &Store, entry: &Entry, trees: &[TreeKey]) -> Result<(), Error> {
    for key in trees {
        store.trees.give_up(key)?;
        failpoint::reached("fsck.tree_given_up");
    }
    match entry {
        Entry::Blob(digest) => store.blobs.discard(digest)?,
        Entry::Layer(key) => store.layers.give_up(key)?,
        Entry::Tree(_) => {}
    }
    failpoint::reached("fsck.repaired");
    Ok(())
}
