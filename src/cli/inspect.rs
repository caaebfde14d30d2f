//! `ocivol inspect`: what a reference is, without pulling a layer. Needs neither store nor plugin.

use std::collections::BTreeMap;
use std::process::ExitCode;

use indicatif::BinaryBytes;
use serde::Serialize;

use crate::cli::args::{Common, ContentArgs};
use crate::cli::output;
use crate::failure::Failure;
use crate::failure::{Kind, chain};
use crate::layout::artifact::Artifact;
use crate::layout::plan::{Item, Plan};
use crate::oci::descriptor::Descriptor;
use crate::oci::digest::Digest;
use crate::oci::manifest::{Document, Manifest, parse};
use crate::pull::choose::Documents;
use crate::registry::addresses::Addresses;
use crate::registry::client::{Fetched, Registry};
use crate::registry::credentials::keyring::Keyring;
use crate::registry::source::{Asker, Source};
use crate::tenant::Tenant;
use crate::volume::attributes::Attributes;
use crate::{layout, pull, registry, volume};

#[derive(Serialize)]
struct Inspected {
    reference: String,
    digest: String,
    /// The manifest chosen from an index.
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest: Option<String>,
    media_type: String,
    artifact_type: Option<String>,
    config_type: String,
    /// `None` when ocivol cannot mount it.
    family: Option<&'static str>,
    /// By which rule the family was chosen, or why there is none.
    rule: String,
    size: u64,
    files: Vec<File>,
    annotations: BTreeMap<String, String>,
    /// Signatures and the like, as the registry lists them.
    referrers: Vec<Referrer>,
}

#[derive(Serialize)]
struct Referrer {
    digest: String,
    media_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    size: u64,
}

impl Referrer {
    fn of(descriptor: &Descriptor) -> Self {
        Self {
            digest: descriptor.digest.to_string(),
            media_type: descriptor.media_type.clone(),
            artifact_type: descriptor.artifact_type.clone(),
            size: descriptor.size,
        }
    }
}

#[derive(Serialize)]
struct File {
    path: String,
    size: u64,
    digest: String,
}

/// Asks the registry and prints what it says.
///
/// # Errors
/// Whatever failed.
pub async fn run(common: &Common, flags: &ContentArgs) -> Result<ExitCode, Failure> {
    let attributes = Attributes::parse(&flags.attributes()).map_err(volume::error::Error::from)?;
    let (mut settings, _) = common
        .pulls()
        .check(Addresses::of_a_command())
        .map_err(|error| Failure::usage(&error.to_string()))?;
    settings.layouts = settings.layouts.of_a_command();
    let registry = Registry::new(settings).map_err(|error| Failure::internal(&error.to_string()))?;
    let keyring = match common.docker_config()? {
        Some(text) => {
            Keyring::from_docker_config(&text, "the Docker config").map_err(volume::error::Error::from)?
        }
        None => Keyring::default(),
    };
    let inspected = inspect(&registry, &attributes, &keyring).await?;
    output::result(common, &inspected, || text(&inspected));
    Ok(ExitCode::SUCCESS)
}

/// Looks as the first credential that the registry accepts, as a pull does.
async fn inspect(
    registry: &Registry,
    attributes: &Attributes,
    keyring: &Keyring,
) -> Result<Inspected, Failure> {
    let reference = &attributes.reference;
    let mut credentials: Vec<_> = keyring.matching(reference).into_iter().map(Some).collect();
    if credentials.is_empty() {
        credentials.push(None);
    }
    let mut first = None;
    for credential in credentials {
        let source = Source::new(reference, credential);
        let asker = Asker { source, tenant: Tenant::CommandLine };
        match registry.manifest(&asker, &reference.target()).await {
            Ok(fetched) => return inspect_as(registry, attributes, &asker, fetched).await,
            Err(error) if error.is_about_access() => {
                first.get_or_insert(error);
            }
            Err(error) => return Err(failure(&error)),
        }
    }
    let notes: Vec<String> = keyring.note_of_helper(reference).into_iter().collect();
    Err(match first {
        Some(error) => failure(&error.with_notes(&notes)),
        None => Failure::internal("there is no credential to try"),
    })
}

async fn inspect_as(
    registry: &Registry,
    attributes: &Attributes,
    asker: &Asker,
    fetched: Fetched,
) -> Result<Inspected, Failure> {
    let digest = fetched.digest.clone();
    let mut documents = AtRegistry { registry, asker, first: Some(fetched) };
    let found = attributes.choice.follow(&attributes.reference, &digest, &mut documents).await?;
    let mut artifact =
        Artifact { manifest: &found.manifest, digest: &found.digest, size: found.size, config: None };
    let mut planned = layout::decide::plan(&artifact, &attributes.options);
    let config;
    if matches!(planned, Err(layout::error::Error::NeedsConfig)) {
        let described = &found.manifest.config;
        config = match described.embedded() {
            Some(data) => data.clone(),
            None => {
                let read = registry.small_blob(asker, described, layout::artifact::CONFIG_LIMIT).await;
                read.map_err(|error| failure(&error))?
            }
        };
        artifact.config = Some(&config);
        planned = layout::decide::plan(&artifact, &attributes.options);
    }
    if let Err(error) = &planned
        && error.kind() == Kind::InvalidArgument
    {
        return Err(Failure { kind: error.kind(), message: chain(error) });
    }
    let mut described = describe(attributes, &artifact, &planned, &digest);
    let referrers = registry.referrers(asker, artifact.digest).await;
    // What else is shown does not depend on it.
    let referrers = referrers.inspect_err(|error| tracing::warn!(%error, "cannot list what refers to it"));
    described.referrers = referrers.unwrap_or_default().iter().map(Referrer::of).collect();
    Ok(described)
}

/// The manifests of a registry, of which the first was read already.
struct AtRegistry<'a> {
    registry: &'a Registry,
    asker: &'a Asker,
    first: Option<Fetched>,
}

impl Documents for AtRegistry<'_> {
    type Error = Failure;

    async fn load(&mut self, digest: &Digest) -> Result<(Document, u64), Failure> {
        let fetched = match self.first.take() {
            Some(first) => first,
            None => {
                let read = self.registry.manifest(self.asker, &digest.to_string()).await;
                read.map_err(|error| failure(&error))?
            }
        };
        let document = parse(&fetched.bytes, fetched.content_type.as_deref())
            .map_err(|error| Failure { kind: Kind::FailedPrecondition, message: chain(&error) })?;
        Ok((document, fetched.bytes.len() as u64))
    }

    fn is_final(error: &Failure) -> bool {
        matches!(error.kind, Kind::NotFound | Kind::FailedPrecondition)
    }
}

impl From<pull::error::Error> for Failure {
    fn from(error: pull::error::Error) -> Self {
        Self { kind: error.kind(), message: chain(&error) }
    }
}

fn describe(
    attributes: &Attributes,
    artifact: &Artifact<'_>,
    planned: &Result<Plan, layout::error::Error>,
    digest: &Digest,
) -> Inspected {
    let manifest: &Manifest = artifact.manifest;
    let decided = layout::decide::decide(manifest, &attributes.options.layout);
    let file = |path: String, size: u64, digest: &Digest| File { path, size, digest: digest.to_string() };
    let family = decided.as_ref().ok().map(|decision| decision.family.name);
    let (rule, files): (String, Vec<File>) = match (&decided, planned) {
        (Ok(decision), Ok(plan)) => {
            let items = plan.items().iter().map(|item| match item {
                Item::File(path, entry) => file(path.to_string(), entry.blob.size, &entry.blob.digest),
                Item::Text(path, text) => file(path.to_string(), text.len() as u64, &item.digest()),
                Item::Archive(archive) => {
                    // A packed directory has its own name in it.
                    let rename = &archive.rename;
                    let place = if rename.within.is_root() { &rename.prefix } else { &rename.within };
                    let place = if place.is_root() { "the root".to_owned() } else { place.to_string() };
                    let what = format!("(archive, unpacked at {place})");
                    file(what, archive.blob.size, &archive.blob.digest)
                }
            });
            (decision.rule.clone(), items.collect())
        }
        (Err(error), _) | (_, Err(error)) => {
            let layers = manifest.layers.iter();
            let layers =
                layers.map(|layer| file(format!("({})", layer.media_type), layer.size, &layer.digest));
            (error.to_string(), layers.collect())
        }
    };
    Inspected {
        reference: attributes.reference.to_string(),
        digest: digest.to_string(),
        manifest: (artifact.digest != digest).then(|| artifact.digest.to_string()),
        media_type: manifest.media_type.clone(),
        artifact_type: manifest.artifact_type.clone(),
        config_type: manifest.config.media_type.clone(),
        family: family.filter(|_| planned.is_ok()),
        rule,
        size: files.iter().fold(0, |sum, file| sum.saturating_add(file.size)),
        files,
        annotations: manifest.annotations.clone(),
        referrers: Vec::new(),
    }
}

fn text(found: &Inspected) -> String {
    let mut lines = vec![format!("reference  {}", found.reference), format!("digest     {}", found.digest)];
    lines.extend(found.manifest.iter().map(|digest| format!("manifest   {digest} (chosen from the index)")));
    lines.push(format!("type       {}", found.artifact_type.as_deref().unwrap_or(&found.config_type)));
    match found.family {
        Some(family) => lines.push(format!("family     {family}: {}", found.rule)),
        None => lines.push(format!("family     none: {}", found.rule)),
    }
    lines.push(format!("size       {} in {} files and archives", BinaryBytes(found.size), found.files.len()));
    for file in &found.files {
        let size = BinaryBytes(file.size).to_string();
        lines.push(format!("  {size:>11}  {}  {}", &file.digest, file.path));
    }
    for referrer in &found.referrers {
        let size = BinaryBytes(referrer.size).to_string();
        let kind = referrer.artifact_type.as_deref().unwrap_or(&referrer.media_type);
        lines.push(format!("referrer   {}  {kind}, {size}", referrer.digest));
    }
    // Names and types are the registry's words: they must not speak to the terminal.
    let safe = lines
        .iter()
        .map(|line| line.chars().map(|it| if it.is_control() { '\u{fffd}' } else { it }).collect());
    safe.collect::<Vec<String>>().join("\n")
}

fn failure(error: &registry::error::Error) -> Failure {
    Failure { kind: error.kind(), message: chain(error) }
}
