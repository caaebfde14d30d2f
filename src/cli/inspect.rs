//! `ocivol inspect`: what a reference is, without pulling a layer. Needs neither store nor plugin.

use std::collections::BTreeMap;
use std::process::ExitCode;

use indicatif::BinaryBytes;
use serde::Serialize;

use super::args::{Common, ContentArgs};
use super::{internal, output, usage};
use crate::control::Failure;
use crate::failure::{Kind, chain};
use crate::layout::{self, Item, family};
use crate::oci::Manifest;
use crate::oci::manifest::{Document, parse};
use crate::pull::resolve::{DEPTH_LIMIT, choose};
use crate::registry::transport::Source;
use crate::registry::{self, Keyring, Registry};
use crate::volume::{self, Attributes};

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
    let attributes = Attributes::parse(&flags.attributes()).map_err(volume::Error::from)?;
    let (settings, _) = common.pulls().check().map_err(|error| usage(&error.to_string()))?;
    let registry = Registry::new(settings).map_err(|error| internal(&error.to_string()))?;
    let keyring = match common.docker_config()? {
        Some(text) => Keyring::from_docker_config(&text, "the Docker config").map_err(volume::Error::from)?,
        None => Keyring::default(),
    };
    let inspected = inspect(&registry, &attributes, &keyring).await?;
    output::result(common, &inspected, || text(&inspected));
    Ok(ExitCode::SUCCESS)
}

async fn inspect(
    registry: &Registry,
    attributes: &Attributes,
    keyring: &Keyring,
) -> Result<Inspected, Failure> {
    let reference = &attributes.reference;
    let credential = keyring.matching(reference).into_iter().next();
    let source = Source::new(reference, credential);
    let mut fetched =
        registry.manifest(&source, &reference.target()).await.map_err(|error| failure(&error))?;
    let digest = fetched.digest.clone();
    for _ in 0..=DEPTH_LIMIT {
        let document = parse(&fetched.bytes, fetched.content_type.as_deref())
            .map_err(|error| Failure { kind: Kind::FailedPrecondition, message: chain(&error) })?;
        match document {
            Document::Manifest(manifest) => {
                let chosen = (fetched.digest != digest).then(|| fetched.digest.to_string());
                return Ok(describe(attributes, manifest, digest.to_string(), chosen));
            }
            Document::Index(index) => {
                let child = choose(&index, &attributes.platform, reference)
                    .map_err(|error| Failure { kind: error.kind(), message: chain(&error) })?;
                fetched =
                    registry.manifest(&source, &child.to_string()).await.map_err(|error| failure(&error))?;
            }
        }
    }
    Err(Failure { kind: Kind::FailedPrecondition, message: format!("{reference} is an index of indexes") })
}

fn describe(
    attributes: &Attributes,
    manifest: Manifest,
    digest: String,
    chosen: Option<String>,
) -> Inspected {
    let planned = layout::plan(&manifest, &attributes.options);
    let (family, rule) = match family::decide(&manifest) {
        Ok(decision) => (Some(decision.family.as_str()), decision.rule),
        Err(error) => (None, error.to_string()),
    };
    let file = |path: String, blob: &crate::oci::Descriptor| File {
        path,
        size: blob.size,
        digest: blob.digest.to_string(),
    };
    let (rule, files): (String, Vec<File>) = match &planned {
        Ok(plan) => {
            let items = plan.items().iter().map(|item| match item {
                Item::File(path, entry) => file(path.to_string(), &entry.blob),
                Item::Archive(archive) => {
                    file(format!("(archive {})", archive.blob.media_type), &archive.blob)
                }
            });
            (rule, items.collect())
        }
        Err(error) => {
            let layers = manifest.layers.iter().map(|layer| file(format!("({})", layer.media_type), layer));
            (error.to_string(), layers.collect())
        }
    };
    Inspected {
        reference: attributes.reference.to_string(),
        digest,
        manifest: chosen,
        media_type: manifest.media_type,
        artifact_type: manifest.artifact_type,
        config_type: manifest.config.media_type,
        family: family.filter(|_| planned.is_ok()),
        rule,
        size: files.iter().fold(0, |sum, file| sum.saturating_add(file.size)),
        files,
        annotations: manifest.annotations,
    }
}

fn text(found: &Inspected) -> String {
    let mut lines = vec![format!("reference  {}", found.reference), format!("digest     {}", found.digest)];
    lines.extend(found.manifest.iter().map(|digest| format!("manifest   {digest} (chosen by platform)")));
    lines.push(format!("type       {}", found.artifact_type.as_deref().unwrap_or(&found.config_type)));
    match found.family {
        Some(family) => lines.push(format!("family     {family}: {}", found.rule)),
        None => lines.push(format!("family     none: {}", found.rule)),
    }
    lines.push(format!("size       {} in {} blobs", BinaryBytes(found.size), found.files.len()));
    for file in &found.files {
        let size = BinaryBytes(file.size).to_string();
        lines.push(format!("  {size:>11}  {}  {}", &file.digest, file.path));
    }
    // Names and types are the registry's words: they must not speak to the terminal.
    let safe = lines
        .iter()
        .map(|line| line.chars().map(|it| if it.is_control() { '\u{fffd}' } else { it }).collect());
    safe.collect::<Vec<String>>().join("\n")
}

fn failure(error: &registry::Error) -> Failure {
    Failure { kind: error.kind(), message: chain(error) }
}
