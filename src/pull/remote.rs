//! What a reference is at its registry now, for who only asks: without a store, and without a layer.

use bytes::Bytes;

use crate::failure::{Failure, Kind, one_line};
use crate::host::blocking::{self, Lane};
use crate::layout;
use crate::layout::artifact::{Artifact, CONFIG_LIMIT};
use crate::layout::options::Options;
use crate::layout::plan::Plan;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::manifest::{Document, parse};
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;
use crate::pull;
use crate::pull::choose::{Documents, Found};
use crate::registry;
use crate::registry::client::{Fetched, Registry};
use crate::registry::credentials::keyring::Keyring;
use crate::registry::source::{Asker, Source};
use crate::tenant::Tenant;

/// The manifest or index that `reference` names, as the first credential that the registry accepts and last without one, as a pull
/// does; and who may read it. Without one nobody is asked unless `anonymous`.
///
/// # Errors
/// Of the first credential.
pub(crate) async fn find(
    registry: &Registry,
    reference: &Reference,
    keyring: &Keyring,
    tenant: &Tenant,
    anonymous: bool,
) -> Result<(Asker, Fetched), Failure> {
    let mut first = None;
    let without = anonymous.then_some(None);
    for credential in keyring.matching(reference).into_iter().map(Some).chain(without) {
        let asker = Asker { source: Source::new(reference, credential), tenant: tenant.clone() };
        match registry.manifest(&asker, &reference.target()).await {
            Ok(fetched) => return Ok((asker, fetched)),
            Err(error) if error.is_about_access() => drop(first.get_or_insert(error)),
            // What is wrong without a credential says nothing of why those that were given are refused.
            Err(error) => return Err(failure(first.as_ref().unwrap_or(&error))),
        }
    }
    let Some(error) = first else {
        return Err(pull::error::Error::NoCredentials { reference: reference.to_string() }.into());
    };
    let mut failure = failure(&error);
    if let Some(note) = keyring.note_of_helper(reference) {
        failure.message = one_line(&format!("{}; {note}", failure.message));
    }
    Err(failure)
}

/// What was found, what of it would be mounted, and its config where it was needed to know that.
pub(crate) struct Planned {
    pub found: Found,
    pub plan: Result<Plan, layout::error::Error>,
    pub config: Option<Bytes>,
}

/// Says what of `found` would be mounted.
///
/// # Errors
/// When the config cannot be read.
pub(crate) async fn plan(
    registry: &Registry,
    asker: &Asker,
    found: Found,
    options: &Options,
) -> Result<Planned, Failure> {
    let planned = plan_with(found, options.clone(), None).await;
    if matches!(planned.plan, Err(layout::error::Error::NeedsConfig)) {
        let read = config(registry, asker, &planned.found.manifest.config).await?;
        return Ok(plan_with(planned.found, options.clone(), Some(read)).await);
    }
    Ok(planned)
}

/// Thousands of names and patterns are work for a thread that may take its time.
async fn plan_with(found: Found, options: Options, config: Option<Bytes>) -> Planned {
    let work = move || {
        let artifact = Artifact {
            manifest: &found.manifest,
            digest: &found.digest,
            size: found.size,
            config: config.as_deref(),
        };
        let plan = layout::decide::plan(&artifact, &options);
        Planned { found, plan, config }
    };
    blocking::run(Lane::Work, work).await
}

/// A manifest's config.
///
/// # Errors
/// When it is larger than configs are, or the registry does not have it.
pub(crate) async fn config(
    registry: &Registry,
    asker: &Asker,
    config: &Descriptor,
) -> Result<Bytes, Failure> {
    if let Some(data) = config.embedded() {
        return Ok(data.clone());
    }
    registry.small_blob(asker, config, CONFIG_LIMIT).await.map_err(|error| failure(&error))
}

/// Platforms of an index that are remembered. One is enough that has something for it.
const PLATFORMS: usize = 8;

/// The manifests of a registry, of which the first was read already.
pub(crate) struct AtRegistry<'a> {
    registry: &'a Registry,
    asker: &'a Asker,
    first: Fetched,
    platforms: Vec<Platform>,
}

impl<'a> AtRegistry<'a> {
    /// `first` was read already.
    pub(crate) fn new(registry: &'a Registry, asker: &'a Asker, first: Fetched) -> Self {
        Self { registry, asker, first, platforms: Vec::new() }
    }

    /// The first platforms that the indexes have named which were read.
    pub(crate) fn platforms(&self) -> &[Platform] {
        &self.platforms
    }
}

impl Documents for AtRegistry<'_> {
    type Error = Failure;

    async fn load(&mut self, digest: &Digest) -> Result<(Document, u64), Failure> {
        let fetched;
        let (bytes, content_type) = if *digest == self.first.digest {
            (self.first.bytes.clone(), self.first.content_type.clone())
        } else {
            let read = self.registry.manifest(self.asker, &digest.to_string()).await;
            fetched = read.map_err(|error| failure(&error))?;
            (fetched.bytes.clone(), fetched.content_type.clone())
        };
        let size = bytes.len() as u64;
        let document = blocking::run(Lane::Work, move || parse(&bytes, content_type.as_deref())).await;
        let document = document.map_err(|error| Failure::new(Kind::FailedPrecondition, &error))?;
        if let Document::Index(index) = &document {
            for platform in index.manifests.iter().filter_map(|child| child.platform.as_ref()) {
                if self.platforms.len() < PLATFORMS && !self.platforms.contains(platform) {
                    self.platforms.push(platform.clone());
                }
            }
        }
        Ok((document, size))
    }

    fn is_final(error: &Failure) -> bool {
        matches!(error.kind, Kind::NotFound | Kind::FailedPrecondition)
    }
}

impl From<pull::error::Error> for Failure {
    fn from(error: pull::error::Error) -> Self {
        Self::new(error.kind(), &error)
    }
}

fn failure(error: &registry::error::Error) -> Failure {
    Failure::new(error.kind(), error)
}
