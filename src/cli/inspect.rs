//! `ocivol inspect`: what a reference is, without pulling a layer, and what of it is in the store. Needs neither store nor plugin.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use indicatif::BinaryBytes;
use serde::Serialize;

use crate::cli::args::Common;
use crate::cli::command_args::InspectArgs;
use crate::cli::content_args::attributes;
use crate::cli::credentials::docker_config;
use crate::cli::output::{self, counted, short};
use crate::failure::Failure;
use crate::failure::{Kind, chain};
use crate::host::blocking::{self, Lane};
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

/// What a reference is.
#[derive(Serialize)]
pub(super) struct Inspected {
    pub reference: String,
    /// What the reference resolved to: an index, or the manifest itself.
    pub digest: String,
    /// The manifest; of an index, the one that was chosen, if one was.
    pub manifest: Option<String>,
    pub media_type: String,
    pub artifact_type: Option<String>,
    pub config_type: String,
    /// `None` when ocivol cannot mount it.
    pub family: Option<&'static str>,
    /// By which rule the family was chosen, or why there is none.
    pub rule: String,
    /// Bytes of the blobs that are needed, each counted once.
    pub size: u64,
    /// Bytes of it that are in the store.
    pub here: u64,
    pub files: Vec<File>,
    pub annotations: BTreeMap<String, String>,
    /// What the index has, if it is one.
    pub children: Vec<Child>,
    /// Signatures and the like, as the registry lists them.
    pub referrers: Vec<Referrer>,
    /// What the store has under this reference.
    pub store: Option<InStore>,
    /// Why no manifest was chosen from the index.
    #[serde(skip)]
    pub not_chosen: Option<Failure>,
    /// Why it cannot be mounted.
    #[serde(skip)]
    pub not_planned: Option<Failure>,
}

/// A child of an index.
#[derive(Serialize)]
pub(super) struct Child {
    digest: String,
    media_type: String,
    artifact_type: Option<String>,
    platform: Option<String>,
    size: u64,
    annotations: BTreeMap<String, String>,
}

/// What the store has.
#[derive(Serialize)]
pub(super) struct InStore {
    /// What the reference was when it was pulled.
    digest: String,
    /// Whether it is that still.
    is_current: bool,
    /// Bytes of all files.
    size: u64,
    /// Seconds since the epoch of the last publish or pull.
    last_use: u64,
}

/// Something that refers to it.
#[derive(Serialize)]
pub(super) struct Referrer {
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

/// A file, an archive, or a layer that is neither.
#[derive(Serialize)]
pub(super) struct File {
    /// Where it is; `None` for archives that are unpacked, and for layers without a place.
    path: Option<String>,
    /// Where it is unpacked.
    archive: Option<Archive>,
    media_type: String,
    size: u64,
    digest: String,
}

/// An archive that is unpacked.
#[derive(Serialize)]
pub(super) struct Archive {
    at: String,
}

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
    inspect(&registry, &attributes, &keyring, look).await
}

/// Where else is looked.
#[derive(Clone, Copy)]
struct Look<'a> {
    root: Option<&'a Path>,
    depth: Depth,
}

/// Looks as the first credential that the registry accepts, as a pull does.
async fn inspect(
    registry: &Registry,
    attributes: &Attributes,
    keyring: &Keyring,
    look: Look<'_>,
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
            Ok(fetched) => return inspect_as(registry, attributes, &asker, fetched, look).await,
            Err(error) if error.is_about_access() => {
                first.get_or_insert(error);
            }
            Err(error) => return Err(failure(&error)),
        }
    }
    Err(match first {
        Some(error) => failure(&error),
        None => Failure::internal("there is no credential to try"),
    })
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
    let mut documents = AtRegistry { registry, asker, first: Some(fetched) };
    let found =
        match (attributes.choice.follow(&attributes.reference, &digest, &mut documents).await, children) {
            (Ok(found), children) => (found, children),
            (Err(failure), Some((media_type, annotations, children)))
                if failure.kind == Kind::FailedPrecondition =>
            {
                let mut described =
                    Inspected::of_index(attributes, &digest, media_type, annotations, failure);
                described.children = children.iter().map(Child::of).collect();
                return Ok(in_store(described, look.root, None).await);
            }
            (Err(failure), _) => return Err(failure),
        };
    let (found, children) = found;
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
    described.not_planned =
        planned.as_ref().err().map(|error| Failure { kind: error.kind(), message: chain(error) });
    if look.depth == Depth::All {
        let referrers = registry.referrers(asker, artifact.digest).await;
        // What else is shown does not depend on it.
        let referrers =
            referrers.inspect_err(|error| tracing::warn!(%error, "cannot list what refers to it"));
        described.referrers = referrers.unwrap_or_default().iter().map(Referrer::of).collect();
    }
    described.children = children.iter().flat_map(|(.., children)| children).map(Child::of).collect();
    Ok(in_store(described, look.root, planned.ok()).await)
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
    let file = |path: Option<String>, archive: Option<Archive>, blob: &Descriptor| File {
        path,
        archive,
        media_type: blob.media_type.clone(),
        size: blob.size,
        digest: blob.digest.to_string(),
    };
    let family = decided.as_ref().ok().map(|decision| decision.family.name);
    let (rule, files): (String, Vec<File>) = match (&decided, planned) {
        (Ok(decision), Ok(plan)) => {
            let items = plan.items().iter().map(|item| match item {
                Item::File(path, entry) => file(Some(path.to_string()), None, &entry.blob),
                Item::Text(path, text) => File {
                    path: Some(path.to_string()),
                    archive: None,
                    media_type: String::new(),
                    size: text.len() as u64,
                    digest: item.digest().to_string(),
                },
                Item::Archive(archive) => {
                    // A packed directory has its own name in it.
                    let rename = &archive.rename;
                    let place = if rename.within.is_root() { &rename.prefix } else { &rename.within };
                    let at = if place.is_root() { "/".to_owned() } else { place.to_string() };
                    file(None, Some(Archive { at }), &archive.blob)
                }
            });
            (decision.rule.clone(), items.collect())
        }
        (Err(error), _) | (_, Err(error)) => {
            let layers = manifest.layers.iter().map(|layer| file(None, None, layer));
            (error.to_string(), layers.collect())
        }
    };
    Inspected {
        reference: attributes.reference.to_string(),
        digest: digest.to_string(),
        manifest: Some(artifact.digest.to_string()),
        media_type: manifest.media_type.clone(),
        artifact_type: manifest.artifact_type.clone(),
        config_type: manifest.config.media_type.clone(),
        family: family.filter(|_| planned.is_ok()),
        rule,
        size: size_of_blobs(planned.as_ref().ok(), manifest),
        here: 0,
        files,
        annotations: manifest.annotations.clone(),
        children: Vec::new(),
        referrers: Vec::new(),
        store: None,
        not_chosen: None,
        not_planned: None,
    }
}

/// Bytes of all blobs that are needed; of what cannot be mounted, of all layers. Each is counted once.
fn size_of_blobs(plan: Option<&Plan>, manifest: &Manifest) -> u64 {
    if let Some(plan) = plan {
        return volume::list::needed(None, plan).0;
    }
    let layers = manifest.layers.iter().map(|layer| (layer.digest.to_string(), layer.size));
    layers.collect::<BTreeMap<_, _>>().values().fold(0, |sum: u64, size| sum.saturating_add(*size))
}

fn text(found: &Inspected) -> String {
    let mut lines = vec![format!("reference  {}", found.reference), format!("digest     {}", found.digest)];
    let chosen = found.manifest.iter().filter(|digest| **digest != found.digest);
    lines.extend(chosen.map(|digest| format!("manifest   {digest} (chosen from the index)")));
    lines.push(format!("type       {}", found.artifact_type.as_deref().unwrap_or(&found.config_type)));
    match found.family {
        Some(family) => lines.push(format!("family     {family}: {}", found.rule)),
        None => lines.push(format!("family     none: {}", found.rule)),
    }
    let created = found.annotations.get("org.opencontainers.image.created");
    lines.extend(created.map(|time| format!("created    {time}")));
    if !found.files.is_empty() {
        lines.push(format!("size       {} in {}", BinaryBytes(found.size), parts(&found.files)));
    }
    for file in &found.files {
        let size = BinaryBytes(file.size).to_string();
        lines.push(format!("  {size:>11}  {}  {}", &file.digest, place(file)));
    }
    lines.push(format!("in store   {}", stored(found)));
    for child in &found.children {
        let size = BinaryBytes(child.size).to_string();
        let what = child.platform.as_deref().or(child.artifact_type.as_deref()).unwrap_or(&child.media_type);
        lines.push(format!("child      {}  {what}, {size}", child.digest));
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

/// How many files and archives there are, and nothing of what there is none of.
fn parts(files: &[File]) -> String {
    let archives = files.iter().filter(|file| file.archive.is_some()).count() as u64;
    let named = files.iter().filter(|file| file.path.is_some()).count() as u64;
    let layers = files.len() as u64 - archives - named;
    let all = [(named, "file"), (archives, "archive"), (layers, "layer")];
    let some = all.iter().filter(|(count, _)| *count > 0).map(|(count, what)| counted(*count, what));
    some.collect::<Vec<_>>().join(" and ")
}

fn place(file: &File) -> String {
    match (&file.path, &file.archive) {
        (Some(path), _) => path.clone(),
        (None, Some(archive)) if archive.at == "/" => "(archive, unpacked at the root)".to_owned(),
        (None, Some(archive)) => format!("(archive, unpacked at {})", archive.at),
        (None, None) => format!("({})", file.media_type),
    }
}

/// What of it is in the store, in words.
fn stored(found: &Inspected) -> String {
    let content = match found.here {
        0 => "nothing of its content".to_owned(),
        here if here >= found.size => "all of its content".to_owned(),
        here => format!("{} of its content", BinaryBytes(here)),
    };
    match &found.store {
        None => content,
        Some(known) if known.is_current => format!("{} (this one)", short(&known.digest)),
        Some(known) => format!("{} (older); {content}", short(&known.digest)),
    }
}

/// With what the store at `root` has of it.
async fn in_store(mut found: Inspected, root: Option<&Path>, plan: Option<Plan>) -> Inspected {
    let Some(root) = root.map(Path::to_owned) else { return found };
    let reference = found.reference.clone();
    let look = move || {
        let here = plan.map_or(0, |plan| volume::list::needed(Some(&root), &plan).1);
        // An inspection needs no store, and none that can be read.
        (here, volume::list::look(&root).unwrap_or_default())
    };
    let (here, listing) = blocking::run(Lane::Work, look).await;
    let digests = [Some(&found.digest), found.manifest.as_ref()];
    let is_current = |digest: &String| digests.contains(&Some(digest));
    let known = listing.trees.into_iter().filter(|tree| tree.references.contains(&reference));
    found.store = known.max_by_key(|tree| (is_current(&tree.digest), tree.last_use)).map(|tree| InStore {
        is_current: is_current(&tree.digest),
        digest: tree.digest,
        size: tree.size,
        last_use: tree.last_use,
    });
    found.here = here;
    found
}

impl Inspected {
    /// An index that nothing was chosen from.
    fn of_index(
        attributes: &Attributes,
        digest: &Digest,
        media_type: String,
        annotations: BTreeMap<String, String>,
        failure: Failure,
    ) -> Self {
        Self {
            reference: attributes.reference.to_string(),
            digest: digest.to_string(),
            manifest: None,
            config_type: String::new(),
            artifact_type: Some(media_type.clone()),
            media_type,
            family: None,
            rule: failure.message.clone(),
            size: 0,
            here: 0,
            files: Vec::new(),
            annotations,
            children: Vec::new(),
            referrers: Vec::new(),
            store: None,
            not_chosen: Some(failure),
            not_planned: None,
        }
    }
}

impl Child {
    fn of(descriptor: &Descriptor) -> Self {
        Self {
            digest: descriptor.digest.to_string(),
            media_type: descriptor.media_type.clone(),
            artifact_type: descriptor.artifact_type.clone(),
            platform: descriptor.platform.as_ref().map(ToString::to_string),
            size: descriptor.size,
            annotations: descriptor.annotations.clone(),
        }
    }
}

fn failure(error: &registry::error::Error) -> Failure {
    Failure { kind: error.kind(), message: chain(error) }
}
