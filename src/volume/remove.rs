//! Takes away what somebody names: a name of a tree, or the tree, unless it is in use.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::host::blocking;
use crate::oci::reference::Reference;
use crate::store::collect::report::{Reason, Report};
use crate::store::collect::rules::Wanted;
use crate::store::content::trees::Tree;
use crate::store::error::Error as StoreError;
use crate::volume::error::Error;
use crate::volume::list::{look, names};
use crate::volume::volumes::Volumes;

/// What went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Names that were taken from trees that stay under others.
    pub untagged: Vec<String>,
    /// Digests of the manifests whose trees went.
    pub removed: Vec<String>,
    /// Bytes that became free.
    pub freed: u64,
}

/// Hexadecimal digits of a digest that is cut short: as many as `ocivol ls` shows.
const SHORT: usize = 12;

impl Volumes {
    /// Takes `name` from the store: a reference, or a digest, whole or as `ocivol ls` shows it. A tree that has other names only loses
    /// this one; a digest means the trees with all their names.
    ///
    /// # Errors
    /// [`Error::NotInStore`], [`Error::InUse`]; then no name is changed.
    pub async fn remove(&self, name: &str) -> Result<Removed, Error> {
        let store = Arc::clone(self.puller().await?.store());
        let (collector, root) = (Arc::clone(&self.collector), self.store_root().to_owned());
        let name = name.to_owned();
        let remove = move || {
            let wanted = Name::parse(&name);
            let (mut untag, mut take, mut digests) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
            let mut manifest = None;
            for tree in store.trees.all()? {
                let matched = wanted.of(&tree);
                if !matches!(matched, Match::Nothing) {
                    manifest = Some(tree.image.manifest.clone());
                }
                match matched {
                    Match::Nothing => {}
                    Match::OneOfItsNames(reference) => untag.push((tree.key, reference)),
                    Match::All => {
                        digests.insert(tree.image.manifest.to_string());
                        take.insert(tree.key);
                    }
                }
            }
            if untag.is_empty() && take.is_empty() {
                return Err(Error::NotInStore { name });
            }
            let collect = |is_dry_run| {
                let is_wanted = |tree: &Tree| take.contains(&tree.key);
                collector.collect(&store, &Wanted::Named, &is_wanted, is_dry_run)
            };
            let mut report = Report::default();
            // What is in use at the first look lets nothing go; what came into use since then stays alone.
            for is_dry_run in [true, false] {
                if take.is_empty() {
                    break;
                }
                report = collect(is_dry_run)?;
                if report.stays > 0 {
                    let reasons = report.items.iter().filter(|item| !item.goes);
                    let reasons = reasons.map(|item| (item.name.as_str(), &item.reason));
                    let by = users(&root, reasons)?;
                    let stay = usize::try_from(report.stays).unwrap_or(usize::MAX);
                    let removed = if is_dry_run { 0 } else { take.len().saturating_sub(stay) };
                    return Err(Error::InUse { name, by, removed });
                }
            }
            // Only now: what is in use keeps its name.
            for (key, reference) in &untag {
                store.trees.unname(key, reference)?;
            }
            if let Name::Reference(text) = &wanted
                && let (Ok(reference), Some(manifest)) = (text.parse::<Reference>(), manifest)
            {
                store.forget_tag(&reference, &manifest)?;
            }
            let untagged: BTreeSet<String> = untag.into_iter().map(|(_, reference)| reference).collect();
            Ok(Removed {
                untagged: untagged.into_iter().collect(),
                removed: digests.into_iter().collect(),
                freed: report.freed.bytes,
            })
        };
        let no_thread = |source| StoreError::Io {
            action: "start a thread to remove from",
            path: "the store".into(),
            source,
        };
        blocking::on_own_thread("remove", remove).await.map_err(no_thread)?
    }
}

/// Who has the trees that stay, in words.
fn users<'a>(
    root: &std::path::Path,
    reasons: impl Iterator<Item = (&'a str, &'a Reason)>,
) -> Result<String, Error> {
    let listed = look(root)?.trees;
    let mut words = BTreeSet::new();
    for (tree, reason) in reasons {
        let mounted = listed.iter().find(|known| known.tree == tree).map(|known| &known.mounted_by);
        match (reason, mounted) {
            (Reason::Mounted | Reason::Leased(_), Some(by)) if !by.is_empty() => {
                words.insert(format!("mounted by {}", some_of(by)));
            }
            (reason, _) => drop(words.insert(reason.to_string())),
        }
    }
    Ok(words.into_iter().collect::<Vec<_>>().join("; "))
}

/// The first of them, and how many more there are.
fn some_of(all: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = all.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match all.len().checked_sub(SHOWN) {
        Some(more @ 1..) => format!("{shown} and {more} more"),
        _ => shown,
    }
}

/// What is named.
enum Name {
    /// A reference, in the form in which it is noted.
    Reference(String),
    /// A digest, or its beginning.
    Digest(String),
}

enum Match {
    Nothing,
    OneOfItsNames(String),
    All,
}

impl Name {
    fn parse(text: &str) -> Self {
        let hex = text.split_once(':').filter(|(algorithm, _)| matches!(*algorithm, "sha256" | "sha512"));
        let is_digest = hex
            .is_some_and(|(_, hex)| hex.len() >= SHORT && hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if is_digest {
            return Self::Digest(text.to_ascii_lowercase());
        }
        Self::Reference(text.parse().map_or_else(|_| text.to_owned(), |known: Reference| known.to_string()))
    }

    fn of(&self, tree: &Tree) -> Match {
        match self {
            Self::Digest(digest) => {
                let resolved = tree.usage.resolved.values().map(|known| &known.digest);
                let mut all = resolved.chain([&tree.image.manifest]).map(ToString::to_string);
                if all.any(|known| known.starts_with(digest)) { Match::All } else { Match::Nothing }
            }
            Self::Reference(reference) => {
                let names = names(tree);
                if !tree.usage.references.contains(reference) {
                    Match::Nothing
                } else if names.iter().all(|name| *name == reference) || !names.contains(&reference) {
                    Match::All
                } else {
                    Match::OneOfItsNames(reference.clone())
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_told_from_a_reference() {
        let short = "sha256:0123456789ab";
        assert!(matches!(Name::parse(short), Name::Digest(text) if text == short));
        for reference in ["sha256:v1", "sha256:0123", "r.example/x:v1", "alpine"] {
            assert!(matches!(Name::parse(reference), Name::Reference(_)), "{reference}");
        }
        assert!(
            matches!(Name::parse("alpine:3"), Name::Reference(text) if text == "docker.io/library/alpine:3")
        );
    }

    #[test]
    fn of_many_users_some_are_said() {
        let users: Vec<String> = (0..6).map(|number| number.to_string()).collect();
        assert_eq!(some_of(&users), "0, 1, 2, 3 and 2 more");
        assert_eq!(some_of(&users[..2]), "0, 1");
    }
}
