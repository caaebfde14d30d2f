//! Pins: trees that an operator wants to be on this node, whether a volume has them or not. They outlive the process: what is kept must not
//! go because the API server, which knows of it, cannot be asked after a restart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::oci::digest::Digest;
use crate::store::disk::{Disk, children, remove};
use crate::store::durable::record;
use crate::store::error::Error;
use crate::store::key::TreeKey;

/// The owner of `pins/`.
#[derive(Debug)]
pub struct Pins {
    disk: Arc<Disk>,
}

/// A tree, and for whose sake it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The name of the CachedArtifact.
    pub artifact: String,
    /// What it was pulled as.
    pub reference: String,
    /// The attributes that it was pulled with.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// Whether it is kept. If not, only that it was pulled is noted.
    pub is_kept: bool,
    /// What the reference was.
    pub digest: Digest,
    /// Bytes of its files.
    pub bytes: u64,
    /// The tree.
    pub tree: TreeKey,
}

impl Pins {
    pub(in crate::store) fn new(disk: Arc<Disk>) -> Self {
        Self { disk }
    }

    /// All of them.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn all(&self) -> Result<Vec<Pin>, Error> {
        let mut found = Vec::new();
        for path in children(&self.directory())? {
            found.extend(record::read::<Pin>(&path)?);
        }
        Ok(found)
    }

    /// Keeps `pin`, instead of what was kept for the same artifact. The new one is there before the old one goes.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn set(&self, pin: &Pin) -> Result<(), Error> {
        // Records are not replaced: one that says something else is another file.
        let Pin { reference, attributes, is_kept, tree, .. } = pin;
        let what = Digest::sha256(format!("{reference} {tree} {is_kept} {attributes:?}").as_bytes());
        let path = self.directory().join(format!("{}-{}.json", of(&pin.artifact), what.hex()));
        if record::read::<Pin>(&path)?.as_ref() != Some(pin) {
            record::write(&self.disk, &path, pin)?;
        }
        self.remove_but(&pin.artifact, Some(&path))
    }

    /// Keeps nothing more for `artifact`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, artifact: &str) -> Result<(), Error> {
        self.remove_but(artifact, None)
    }

    fn remove_but(&self, artifact: &str, kept: Option<&Path>) -> Result<(), Error> {
        let own = format!("{}-", of(artifact));
        for path in children(&self.directory())? {
            let is_own =
                path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(own.as_bytes()));
            if is_own && Some(path.as_path()) != kept {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn directory(&self) -> PathBuf {
        self.disk.directory().join("pins")
    }
}

/// An artifact's name in the name of a file: a hash, as it may be longer than that.
fn of(artifact: &str) -> String {
    Digest::sha256(artifact.as_bytes()).hex().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::open::Store;
    use crate::store::space::budget::Budget;

    #[test]
    fn a_pin_takes_the_place_of_the_one_before_and_outlives_the_process() {
        let root = tempfile::tempdir().expect("a directory");
        let open = || Store::open(&root.path().join("store"), Budget::COMMAND).expect("a store");
        let pin = |artifact: &str, reference: &str, digit: &str| Pin {
            artifact: artifact.to_owned(),
            reference: reference.to_owned(),
            attributes: [("include".to_owned(), "*.json".to_owned())].into(),
            is_kept: true,
            digest: Digest::sha256(digit.as_bytes()),
            bytes: 7,
            tree: TreeKey::parse(&digit.repeat(64)).expect("a key"),
        };
        let sorted = |store: &Store| {
            let mut all = store.pins.all().expect("readable");
            all.sort_by(|one, two| one.artifact.cmp(&two.artifact));
            all
        };
        let store = open();
        for pin in [pin("a", "r/x:v1", "1"), pin("b", "r/x:v1", "1"), pin("a", "r/x:v2", "2")] {
            store.pins.set(&pin).expect("written");
            store.pins.set(&pin).expect("again");
        }
        let expected = [pin("a", "r/x:v2", "2"), pin("b", "r/x:v1", "1")];
        assert_eq!(sorted(&store), expected);
        drop(store);
        let store = open();
        assert_eq!(sorted(&store), expected);
        store.pins.remove("a").expect("removed");
        store.pins.remove("nobody").expect("nothing");
        assert_eq!(sorted(&store), expected[1..]);
    }
}
