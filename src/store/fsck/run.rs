//! Looks at the whole store, or goes on with it.

use std::collections::{BTreeSet, BinaryHeap, HashSet};
use std::path::{Path, PathBuf};

use crate::layer::format::FILES;
use crate::oci::digest::Digest;
use crate::store::collect::report::Kind;
use crate::store::content::trees::{Image, TreeFacts};
use crate::store::content::{blobs, layers};
use crate::store::disk::{FORMAT, each_child};
use crate::store::durable::record::{self, Stamp};
use crate::store::error::Error;
use crate::store::fsck::cursor::Cursor;
use crate::store::fsck::layer::End;
use crate::store::fsck::read::Pace;
use crate::store::fsck::repair::{give_up, trees_with};
use crate::store::fsck::report::{Damage, Finding, Problem, Report};
use crate::store::fsck::{blob, layer, tree};
use crate::store::key::{Entry, LayerKey, TreeKey};
use crate::store::open::Store;

/// Names of entries in memory at a time.
const BATCH: usize = 512;
/// References that are said of a finding.
const REFERENCES: usize = 8;
/// Kinds of entries, in their order, and the directories of their records.
const KINDS: [(Kind, &str); 4] = [
    (Kind::Blob, "blobs/sha256"),
    (Kind::Blob, "blobs/sha512"),
    (Kind::Layer, "layers"),
    (Kind::Tree, "images"),
];

/// A look at a store.
pub struct Fsck<'a> {
    directory: PathBuf,
    /// Told how many bytes were read; ends the look when it says false.
    pace: &'a Pace<'a>,
    /// Told what is found, at once.
    found: &'a dyn Fn(&Finding),
    /// Where what is bad is taken out of, to be pulled again.
    repair: Option<&'a Store>,
    report: Report,
}

impl<'a> Fsck<'a> {
    /// Looks at the store at `root`, which may be open in another process; or repairs the one that is open here.
    pub fn new(
        root: &Path,
        pace: &'a Pace<'a>,
        found: &'a dyn Fn(&Finding),
        repair: Option<&'a Store>,
    ) -> Self {
        Self { directory: root.join(FORMAT), pace, found, repair, report: Report::default() }
    }

    /// Looks at everything after `cursor`; tells `at` where it is. Ends early when the pace says so.
    ///
    /// # Errors
    /// [`Error::Io`] when a directory cannot be listed, or the store cannot be changed.
    pub fn run(mut self, cursor: Cursor, at: &mut dyn FnMut(&Cursor)) -> Result<Report, Error> {
        let mut cursor = cursor;
        for (number, (kind, records)) in (0_u8..).zip(KINDS).skip(usize::from(cursor.kind)) {
            if number != cursor.kind {
                cursor = Cursor { kind: number, after: String::new() };
            }
            loop {
                let batch = self.next(records, &cursor.after)?;
                let Some(last) = batch.last().cloned() else { break };
                for name in batch {
                    if !self.look_at(kind, records, &name)? {
                        return Ok(self.report);
                    }
                    cursor.after = name;
                    at(&cursor);
                }
                cursor.after = last;
            }
        }
        Ok(self.report)
    }

    /// Looks at these entries alone, each once.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn only(mut self, entries: impl IntoIterator<Item = Entry>) -> Result<Report, Error> {
        let mut seen = HashSet::new();
        for entry in entries.into_iter().filter(|entry| seen.insert(entry.clone())) {
            let (kind, records, name) = match &entry {
                Entry::Blob(digest) => {
                    let algorithm = digest.algorithm().as_str();
                    (Kind::Blob, format!("blobs/{algorithm}"), digest.hex().to_owned())
                }
                Entry::Layer(key) => (Kind::Layer, "layers".to_owned(), key.to_string()),
                Entry::Tree(key) => (Kind::Tree, "images".to_owned(), key.to_string()),
            };
            if !self.look_at(kind, &records, &name)? {
                break;
            }
        }
        Ok(self.report)
    }

    /// The next names of records, in order.
    fn next(&self, records: &str, after: &str) -> Result<Vec<String>, Error> {
        let mut first: BinaryHeap<String> = BinaryHeap::new();
        each_child(&self.directory.join(records), &mut |path| {
            let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json"));
            if let Some(name) = name.filter(|name| *name > after) {
                first.push(name.to_owned());
                if first.len() > BATCH {
                    first.pop();
                }
            }
            Ok(())
        })?;
        Ok(first.into_sorted_vec())
    }

    /// Looks at one entry; false when it was told to end.
    fn look_at(&mut self, kind: Kind, records: &str, name: &str) -> Result<bool, Error> {
        let looked = match kind {
            Kind::Blob => {
                let algorithm = records.strip_prefix("blobs/").unwrap_or(records);
                match format!("{algorithm}:{name}").parse() {
                    Ok(digest) => self.blob(&digest),
                    Err(_) => return Ok(true),
                }
            }
            Kind::Layer => match LayerKey::parse(name) {
                Some(key) => self.layer(&key),
                None => return Ok(true),
            },
            Kind::Tree | Kind::Download | Kind::Leftover => match TreeKey::parse(name) {
                Some(key) => self.tree(&key),
                None => return Ok(true),
            },
        };
        match looked {
            Err(End::Stopped) => Ok(false),
            // A record that the disk does not give, for example: the rest is looked at.
            Err(End::Error(error)) if self.repair.is_none() || error.is_loss() => {
                tracing::warn!(%error, name, "an entry of the store cannot be looked at");
                self.report.skipped += 1;
                Ok(true)
            }
            Err(End::Error(error)) => Err(error),
            Ok(()) | Err(End::Damage(_)) => Ok(true),
        }
    }

    fn blob(&mut self, digest: &Digest) -> Result<(), End> {
        let entry = Entry::Blob(digest.clone());
        let path = self.directory.join(entry.record());
        let Some((size, stamp)) = blobs::recorded(&path)? else {
            return self.no_record(&entry, digest.hex());
        };
        self.report.blobs += 1;
        let pace = self.counted();
        let file = path.with_extension("");
        let checked = match blob::check(&file, digest, size, &pace) {
            Ok(Some(damage)) => damage.map_or(Ok(()), |damage| Err(End::Damage(damage))),
            Ok(None) => Err(End::Stopped),
            Err(error) => Err(End::Error(error)),
        };
        let name = digest.to_string();
        self.judge(&entry, &stamp, &name, &name, size, checked)
    }

    fn layer(&mut self, key: &LayerKey) -> Result<(), End> {
        let entry = Entry::Layer(key.clone());
        let Some((layer, profile, stamp)) = layers::recorded(&self.directory, key)? else {
            return self.no_record(&entry, key.as_str());
        };
        self.report.layers += 1;
        let checked = layer::check(&layer, profile, &self.counted());
        let shows = layer.digest.to_string();
        self.judge(&entry, &stamp, key.as_str(), &shows, layer.summary.bytes, checked)
    }

    fn tree(&mut self, key: &TreeKey) -> Result<(), End> {
        let entry = Entry::Tree(key.clone());
        let Some(image) = record::read::<Image>(&self.directory.join(entry.record()))? else {
            return self.no_record(&entry, key.as_str());
        };
        self.report.trees += 1;
        let directory = match &image.only_layer {
            Some(layer) => self.directory.join("layers").join(layer.as_str()),
            None => self.directory.join("trees").join(key.as_str()),
        };
        let blob =
            |digest: &Digest| self.directory.join(Entry::Blob(digest.clone()).record()).with_extension("");
        let checked = match image.index {
            Some(index) => tree::check(&directory, index, &blob, &self.counted()),
            // Nothing is known of what it should hold: it is a layer, or was made by ocivol 0.1.
            None if directory.join(FILES).is_dir() => Ok(()),
            None => Err(End::Damage(Damage::whole(Problem::Missing))),
        };
        let shows = self.reference(key).unwrap_or_else(|| image.manifest.to_string());
        let stamp = image.stamp().clone();
        self.judge(&entry, &stamp, key.as_str(), &shows, 0, checked)
    }

    /// A record that was there a moment ago says nothing.
    fn no_record(&mut self, entry: &Entry, name: &str) -> Result<(), End> {
        let path = self.directory.join(entry.record());
        // Taken away and made again meanwhile it would be another one.
        let is_damaged = path.exists() && record::read::<Stamp>(&path)?.is_none() && path.exists();
        if is_damaged {
            self.found(entry, name, name, Damage::whole(Problem::Record))?;
        }
        Ok(())
    }

    /// Notes what is damaged, if it is still the same entry.
    fn judge(
        &mut self,
        entry: &Entry,
        stamp: &Stamp,
        name: &str,
        shows: &str,
        bytes: u64,
        checked: Result<(), End>,
    ) -> Result<(), End> {
        self.report.bytes += bytes;
        let damage = match checked {
            Ok(()) => return Ok(()),
            Err(End::Stopped) => return Err(End::Stopped),
            Err(End::Damage(damage)) => damage,
            Err(End::Error(error)) if error.is_loss() => {
                tracing::warn!(%error, name, "the disk does not give an entry of the store");
                Damage::whole(Problem::Unreadable)
            }
            // That says nothing of the entry.
            Err(End::Error(error)) => {
                tracing::warn!(%error, name, "an entry of the store cannot be looked at");
                self.report.skipped += 1;
                return Ok(());
            }
        };
        let now: Option<Stamp> = record::read(&self.directory.join(entry.record()))?;
        if now.is_none_or(|now| now.generation != stamp.generation) {
            return Ok(()); // It was taken away, or is another one.
        }
        self.found(entry, name, shows, damage)
    }

    fn found(&mut self, entry: &Entry, name: &str, shows: &str, damage: Damage) -> Result<(), End> {
        let kind = match entry {
            Entry::Blob(_) => Kind::Blob,
            Entry::Layer(_) => Kind::Layer,
            Entry::Tree(_) => Kind::Tree,
        };
        let trees = trees_with(&self.directory, entry)?;
        let references: BTreeSet<String> = trees.iter().filter_map(|tree| self.reference(tree)).collect();
        let references = references.into_iter().take(REFERENCES).collect();
        if let Some(store) = self.repair {
            give_up(store, entry, &trees)?;
        }
        let is_repaired = self.repair.is_some();
        let finding = self.report.add(kind, name, shows, damage, (&trees, references), is_repaired);
        (self.found)(&finding);
        Ok(())
    }

    /// What a tree was pulled as, where that is known.
    fn reference(&self, tree: &TreeKey) -> Option<String> {
        let name = format!("{}.json", Entry::Tree(tree.clone()).file_name());
        let facts: TreeFacts = record::read(&self.directory.join("facts").join(name)).ok()??;
        facts.references.into_iter().next()
    }

    fn counted(&self) -> impl Fn(u64) -> bool + use<'a> {
        let pace = self.pace;
        move |bytes| pace(bytes)
    }
}
