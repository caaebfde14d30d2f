//! Brings the manifests of an image layout into the store under their names, for everybody: as if each had been asked for by whoever
//! will.

use std::sync::Arc;

use crate::host::blocking::{self, Lane};
use crate::layout::options::Options;
use crate::oci::digest::Digest;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;
use crate::pull::choose::Choice;
use crate::pull::error::Error;
use crate::pull::progress::Snapshot;
use crate::pull::puller::{Puller, Shared};
use crate::pull::request::{PullPolicy, PullRequest, Pulled};
use crate::registry::local::tags::Named;
use crate::tenant::Tenant;
use crate::transfer::error::Error as TransferError;

/// What to load.
#[derive(Debug, Clone)]
pub struct LoadRequest {
    /// The layout: a reference without tag and digest.
    pub layout: Reference,
    /// The name of its only manifest; the names that the layout has, if not said.
    pub name: Option<Reference>,
    /// What to choose from an index.
    pub platform: Platform,
}

/// A manifest that is in the store under its name.
#[derive(Debug)]
pub struct Loaded {
    /// The name.
    pub reference: Reference,
    /// What is in the store.
    pub pulled: Arc<Pulled>,
    /// Bytes that were read from the layout.
    pub fetched: u64,
}

/// Why nothing, or not all, was loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The layout cannot be read.
    #[error(transparent)]
    Layout(#[from] crate::registry::error::Error),
    /// The names in it do not say what is meant.
    #[error("{layout} {what}")]
    Names {
        /// The layout.
        layout: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A manifest was not brought.
    #[error("{reference}: {source}")]
    Pull {
        /// Its name.
        reference: String,
        /// Why.
        source: Arc<Error>,
    },
    /// It was brought, and its name could not be noted.
    #[error(transparent)]
    Store(#[from] crate::store::error::Error),
}

/// Manifests of a layout that are loaded at a time.
const MANIFESTS: usize = 256;
/// Names that an error lists.
const LISTED: usize = 8;

impl LoadRequest {
    /// The pull of `reference`, as the command line does it.
    fn pull_of(&self, reference: Reference, policy: PullPolicy) -> PullRequest {
        PullRequest {
            tenant: Tenant::CommandLine,
            reference,
            policy,
            choice: Choice { platform: self.platform.clone(), artifact_type: None, variant: None },
            options: Options::default(),
            readable: None,
            exact_platform: false,
            credentials: Vec::new(),
            anonymous: true,
            notes: Vec::new(),
        }
    }
}

impl Puller {
    /// Loads what `request` says, one manifest after the other, and tells `progress` of each meanwhile.
    ///
    /// *Caller:* is the operator: what is loaded is everybody's, under the name that is given.
    ///
    /// # Errors
    /// [`LoadError`]. What was loaded before stays.
    pub async fn load(
        self: &Arc<Self>,
        request: &LoadRequest,
        progress: &mut (dyn FnMut(Snapshot) + Send),
    ) -> Result<Vec<Loaded>, LoadError> {
        let path = request.layout.repository();
        let (all, count) = self.registry.names_in_layout(path, &Tenant::CommandLine, MANIFESTS).await?;
        let wrong = |what| LoadError::Names { layout: request.layout.to_string(), what };
        if count > MANIFESTS {
            let what = format!("has {count} manifests, and {MANIFESTS} are loaded at a time; split it");
            return Err(wrong(what));
        }
        let named = match &request.name {
            Some(name) => one(&all, name),
            None => names(&all),
        };
        let mut loaded = Vec::new();
        for (reference, digest) in named.map_err(wrong)? {
            let failed = |source| LoadError::Pull { reference: reference.to_string(), source };
            let from = request.layout.at(digest.clone());
            let brought =
                self.bring(request, from, PullPolicy::IfNotPresent, progress).await.map_err(failed)?;
            // All that the manifest lists is everybody's first: nothing becomes so by being named in one.
            let all = request.pull_of(request.layout.at(digest.clone()), PullPolicy::IfNotPresent);
            self.bring_rest(&all).await.map_err(|error| failed(Arc::new(error)))?;
            self.preload(&reference, &digest).await?;
            // As everybody will: under its name, without asking anybody.
            let pulled =
                self.bring(request, reference.clone(), PullPolicy::Never, progress).await.map_err(failed)?;
            loaded.push(Loaded { reference, pulled, fetched: brought.fetched });
        }
        Ok(loaded)
    }

    async fn bring(
        self: &Arc<Self>,
        request: &LoadRequest,
        reference: Reference,
        policy: PullPolicy,
        progress: &mut (dyn FnMut(Snapshot) + Send),
    ) -> Shared {
        let mut pull = self.pull(request.pull_of(reference, policy));
        let state = Arc::clone(pull.state());
        let mut ticks = tokio::time::interval(std::time::Duration::from_millis(200));
        let outcome = loop {
            tokio::select! {
                outcome = pull.wait() => break outcome,
                _ = ticks.tick() => progress(state.snapshot()),
            }
        };
        outcome.unwrap_or_else(|| Err(Arc::new(TransferError::Fault.into())))
    }

    /// Notes that `digest` is what `reference` is, for everybody who does not ask a registry.
    async fn preload(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<(), crate::store::error::Error> {
        let (store, reference, digest) = (Arc::clone(&self.store), reference.clone(), digest.clone());
        blocking::run(Lane::Store, move || store.preload(&reference, &digest)).await
    }
}

/// The only manifest of a layout, under `name`.
fn one(all: &[Named], name: &Reference) -> Result<Vec<(Reference, Digest)>, String> {
    if name.is_layout() {
        return Err(
            "needs the name of a repository, as registry.example/app:v1, and not that of a layout".to_owned()
        );
    }
    let Some(first) = all.first() else { return Err("has no manifests".to_owned()) };
    if all.iter().any(|other| other.digest != first.digest) {
        return Err(format!(
            "has several manifests ({}), and one name was given; leave it out, or split the layout",
            list(all)
        ));
    }
    match name.digest() {
        Some(digest) if *digest != first.digest => {
            Err(format!("has the manifest {}, and not {digest}", first.digest))
        }
        _ => Ok(vec![(name.clone(), first.digest.clone())]),
    }
}

/// The manifests of a layout that have the names of repositories.
fn names(all: &[Named]) -> Result<Vec<(Reference, Digest)>, String> {
    let mut found: Vec<(Reference, Digest)> = Vec::new();
    for named in all {
        let Some(reference) = name_of(named) else { continue };
        match found.iter().find(|(known, _)| *known == reference) {
            Some((_, digest)) if *digest != named.digest => {
                let (one, two) = (digest, &named.digest);
                return Err(format!("has several manifests with the name {reference}: {one} and {two}"));
            }
            Some(_) => {}
            None => found.push((reference, named.digest.clone())),
        }
    }
    if found.is_empty() {
        let what = if all.is_empty() {
            "has no manifests".to_owned()
        } else {
            format!(
                "has no manifest with the name of a repository, only {}; give the name: ocivol load FILE REF",
                list(all)
            )
        };
        return Err(what);
    }
    Ok(found)
}

/// The name of a repository, and a tag. A tag alone is the name of no repository.
fn name_of(named: &Named) -> Option<Reference> {
    let whole = named.ref_name.as_ref().filter(|name| name.contains(['/', ':']));
    let names = named.image_name.iter().chain(whole);
    let parsed =
        names.filter_map(|name| name.parse::<Reference>().ok()).find(|reference| !reference.is_layout())?;
    match parsed.digest() {
        // A name with a digest is right for that manifest alone.
        Some(digest) if *digest != named.digest => None,
        _ => Some(parsed),
    }
}

fn list(all: &[Named]) -> String {
    let shown = all.iter().take(LISTED).map(|named| {
        let name: String = named.name().map_or_else(|| named.digest.to_string(), str::to_owned);
        name.chars().take(80).collect::<String>()
    });
    let more = if all.len() > LISTED { ", …" } else { "" };
    format!("{}{more}", shown.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(number: u8, ref_name: Option<&str>, image_name: Option<&str>) -> Named {
        Named {
            digest: Digest::sha256(&[number]),
            media_type: None,
            ref_name: ref_name.map(str::to_owned),
            image_name: image_name.map(str::to_owned),
        }
    }

    #[test]
    fn names_of_repositories_are_loaded_and_tags_alone_are_none() {
        let all = [
            named(1, Some("3"), Some("docker.io/library/app:3")),
            named(2, Some("r.example/x:v1"), None),
            named(3, Some("v9"), None),
            named(1, None, Some("app:3")),
        ];
        let found: Vec<String> =
            names(&all).expect("names").into_iter().map(|(name, _)| name.to_string()).collect();
        assert_eq!(found, ["docker.io/library/app:3", "r.example/x:v1"]);
        let error = names(&all[2..3]).expect_err("a tag");
        assert!(error.contains("only v9; give the name"), "{error}");
        let twice = [named(1, Some("r.example/x:v1"), None), named(2, Some("r.example/x:v1"), None)];
        assert!(names(&twice).expect_err("two").contains("several manifests with the name r.example/x:v1"));
        assert!(names(&[]).expect_err("none").contains("no manifests"));
    }

    #[test]
    fn a_name_is_for_the_only_manifest() {
        let name: Reference = "r.example/x:v1".parse().expect("a name");
        let all = [named(1, Some("a"), None), named(1, Some("b"), None)];
        assert_eq!(one(&all, &name).expect("one").len(), 1);
        assert!(
            one(&[named(1, None, None), named(2, Some("b"), None)], &name)
                .expect_err("two")
                .contains("sha256:")
        );
        let other = name.at(Digest::sha256(b"other"));
        assert!(one(&all, &other).expect_err("another").contains("and not sha256:"));
        let layout = "oci-layout:/x".parse().expect("a layout");
        assert!(one(&all, &layout).is_err() && one(&[], &name).is_err());
    }
}
