//! `ocivol inspect`: what a reference is, without pulling a layer, and what of it is in the store. Needs neither store nor plugin.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use serde::Deserialize;

use crate::cli::args::Common;
use crate::cli::command_args::InspectArgs;
use crate::cli::content_args::attributes;
use crate::cli::credentials::docker_config;
use crate::cli::inspect_text::text;
use crate::cli::inspected::{Child, Inspected, Referrer, describe, in_store};
use crate::cli::output;
use crate::failure::Failure;
use crate::failure::{Kind, chain};
use crate::layout::artifact::Artifact;
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::manifest::{Document, parse};
use crate::oci::media_type;
use crate::pull::remote::{self, AtRegistry};
use crate::registry::addresses::Addresses;
use crate::registry::client::{Fetched, Registry};
use crate::registry::credentials::keyring::Keyring;
use crate::registry::source::Asker;
use crate::tenant::Tenant;
use crate::volume;
use crate::volume::attributes::Attributes;

/// Asks the registry and prints what it says, and what of it is in the store.
///
/// # Errors
/// Whatever failed.
pub async fn run(common: &Common, flags: &InspectArgs) -> Result<ExitCode, Failure> {
    let attributes = attributes(&flags.reference, &flags.choice, Some(&flags.files), None)?;
    let docker_config = docker_config(common, &flags.reference).await?;
    let mut inspected = ask(common, &attributes, docker_config.as_deref(), Depth::All).await?;
    if inspected.children.is_empty()
        && let Some(failure) = inspected.not_chosen.take()
    {
        return Err(failure);
    }
    output::result(common, &inspected, || text(&inspected));
    Ok(ExitCode::SUCCESS)
}

/// What the manifest is that the reference means.
///
/// # Errors
/// Whatever failed.
pub(super) async fn look(
    common: &Common,
    attributes: &BTreeMap<String, String>,
    docker_config: Option<&str>,
) -> Result<Inspected, Failure> {
    let mut inspected = ask(common, attributes, docker_config, Depth::Store).await?;
    inspected.not_chosen.take().map_or(Ok(inspected), Err)
}

/// What else is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Nothing but what the reference is.
    Reference,
    /// What of it is in the store.
    Store,
    /// That, and what refers to it.
    All,
}

/// What the reference is; of an index also where no manifest was chosen.
///
/// # Errors
/// Whatever failed.
pub(super) async fn ask(
    common: &Common,
    attributes: &BTreeMap<String, String>,
    docker_config: Option<&str>,
    depth: Depth,
) -> Result<Inspected, Failure> {
    let attributes = Attributes::parse(attributes).map_err(volume::error::Error::from)?;
    let (mut settings, _) = common
        .pulls()
        .check(Addresses::of_a_command())
        .map_err(|error| Failure::usage(&error.to_string()))?;
    settings.layouts = settings.layouts.of_a_command();
    let registry = Registry::new(settings).map_err(|error| Failure::internal(&error.to_string()))?;
    let keyring = match docker_config {
        Some(text) => {
            Keyring::from_docker_config(text, "the Docker config").map_err(volume::error::Error::from)?
        }
        None => Keyring::default(),
    };
    // What is in the store is told where there is a place for one.
    let root = common.root().ok().filter(|_| depth != Depth::Reference);
    let look = Look { root: root.as_deref(), depth };
    let found = remote::find(&registry, &attributes.reference, &keyring, &Tenant::CommandLine, true).await?;
    inspect_as(&registry, &attributes, &found.0, found.1, look).await
}

/// Where else is looked.
#[derive(Clone, Copy)]
struct Look<'a> {
    root: Option<&'a Path>,
    depth: Depth,
}

async fn inspect_as(
    registry: &Registry,
    attributes: &Attributes,
    asker: &Asker,
    fetched: Fetched,
    look: Look<'_>,
) -> Result<Inspected, Failure> {
    let digest = fetched.digest.clone();
    let children = match parse(&fetched.bytes, fetched.content_type.as_deref()) {
        Ok(Document::Index(index)) => Some((index.media_type, index.annotations, index.manifests)),
        _ => None,
    };
    let mut documents = AtRegistry::new(registry, asker, fetched);
    let found =
        match (attributes.choice.follow(&attributes.reference, &digest, &mut documents).await, children) {
            (Ok(found), children) => (found, children),
            (Err(failure), Some((media_type, annotations, children)))
                if failure.kind == Kind::FailedPrecondition =>
            {
                let mut described =
                    Inspected::of_index(attributes, &digest, media_type, annotations, failure);
                described.children = children.iter().map(Child::of).collect();
                if look.depth == Depth::All {
                    described.referrers = referrers(registry, asker, &[&digest]).await;
                }
                return Ok(in_store(described, look.root, None).await);
            }
            (Err(failure), _) => return Err(failure),
        };
    let (found, children) = found;
    let planned = remote::plan(registry, asker, found, &attributes.options).await?;
    let (found, config, planned) = (planned.found, planned.config, planned.plan);
    let artifact = Artifact {
        manifest: &found.manifest,
        digest: &found.digest,
        size: found.size,
        config: config.as_deref(),
    };
    if let Err(error) = &planned
        && error.kind() == Kind::InvalidArgument
    {
        return Err(Failure { kind: error.kind(), message: chain(error) });
    }
    let mut described = describe(attributes, &artifact, &planned, &digest);
    described.not_planned =
        planned.as_ref().err().map(|error| Failure { kind: error.kind(), message: chain(error) });
    if look.depth == Depth::All {
        // Who signs an image of several platforms signs the index.
        let subjects = [&digest, artifact.digest];
        let subjects = if artifact.digest == &digest { &subjects[..1] } else { &subjects[..] };
        described.referrers = referrers(registry, asker, subjects).await;
        if described.created.is_none() {
            described.created = created(registry, asker, &found.manifest.config).await;
        }
    }
    described.children = children.iter().flat_map(|(.., children)| children).map(Child::of).collect();
    Ok(in_store(described, look.root, planned.ok()).await)
}

/// When an image was made, as its config says. What else is shown does not depend on it.
async fn created(registry: &Registry, asker: &Asker, config: &Descriptor) -> Option<String> {
    #[derive(Deserialize)]
    struct Config {
        created: Option<String>,
    }
    let types = [media_type::OCI_IMAGE_CONFIG, media_type::DOCKER_IMAGE_CONFIG];
    if !types.contains(&config.media_type.as_str()) {
        return None;
    }
    let read = remote::config(registry, asker, config).await;
    let read = read.inspect_err(|error| tracing::warn!(%error, "cannot read the image's config")).ok()?;
    serde_json::from_slice::<Config>(&read).ok()?.created
}

/// What refers to each of these. What else is shown does not depend on it.
async fn referrers(registry: &Registry, asker: &Asker, subjects: &[&Digest]) -> Vec<Referrer> {
    let mut found = Vec::new();
    for subject in subjects {
        match registry.referrers(asker, subject).await {
            Ok(listed) => found.extend(listed.iter().map(|referrer| Referrer::of(referrer, subject))),
            Err(error) => tracing::warn!(%error, %subject, "cannot list what refers to it"),
        }
    }
    found
}
