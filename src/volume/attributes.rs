//! The attributes of a volume: what users write under `volumeAttributes`.

use crate::layout::decide::layout_named;
use std::collections::BTreeMap;

use crate::layout::options::{Layout, Options, Unpack};
use crate::layout::select::{InvalidPattern, Selection};
use crate::layout::tree_path::TreePath;
use crate::oci::platform::{InvalidPlatform, Platform};
use crate::oci::reference::{InvalidReference, Reference};
use crate::pull::choose::Choice;
use crate::pull::request::PullPolicy;

/// What a volume shows, and how. Every attribute was checked.
#[derive(Debug, Clone)]
pub struct Attributes {
    /// `reference`
    pub reference: Reference,
    /// `pullPolicy`
    pub pull_policy: PullPolicy,
    /// `platform`, `artifactType`, `variant`
    pub choice: Choice,
    /// Whether `platform` was given.
    pub platform_given: bool,
    /// `layout`, `include`, `exclude`, `unpack`, `stripComponents`
    pub options: Options,
    /// `path`; `None` is all of the tree.
    pub path: Option<TreePath>,
    /// `readable`; without it the artifact's family decides.
    pub readable: Option<bool>,
    /// `exec`
    pub exec: bool,
    /// `warm`
    pub warm: Warm,
    /// `readOnlyForWriters`: access modes for writing are accepted, and the mount is read-only all the same.
    pub read_only_for_writers: bool,
}

/// What a volume wants of the page cache: the attribute `warm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Warm {
    /// Models are warmed.
    #[default]
    Auto,
    /// Nothing is.
    Never,
    /// What it shows is warmed, and kept in memory as long as it is published, within the operator's budget.
    Pinned,
}

/// Why attributes are refused: names the key, the value, and what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a key at all.
    #[error("unknown volume attribute {key:?}; known are {}", KEYS.join(", "))]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// The one key that is needed.
    #[error("volume attribute reference is missing; set it to host[:port]/name[:tag][@digest]")]
    NoReference,
    /// A bad reference.
    #[error("volume attribute reference: {0}")]
    Reference(#[from] InvalidReference),
    /// A bad platform.
    #[error("volume attribute platform: {0}")]
    Platform(#[from] InvalidPlatform),
    /// A bad glob.
    #[error("volume attribute include or exclude: {0}")]
    Pattern(#[from] InvalidPattern),
    /// A bad path.
    #[error("volume attribute path: {value:?} is no path inside the volume: {reason}")]
    Path {
        /// The value.
        value: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// `layout` shows archives as they are.
    #[error(
        "volume attribute {key} is {value:?}, and layout: {layout} unpacks nothing; leave out one of them"
    )]
    Unpacked {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// The layout.
        layout: String,
    },
    /// Not one of the words allowed.
    #[error("volume attribute {key} is {value:?}; allowed are {allowed}")]
    Word {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// The words.
        allowed: &'static str,
    },
}

/// The keys users may write.
pub const KEYS: [&str; 15] = [
    "reference",
    "pullPolicy",
    "platform",
    "artifactType",
    "variant",
    "layout",
    "include",
    "exclude",
    "unpack",
    "stripComponents",
    "path",
    "readable",
    "exec",
    "warm",
    "readOnlyForWriters",
];
/// Leading parts that can be removed: as many as a name can have.
const STRIP_LIMIT: usize = crate::layer::name::DEPTH_LIMIT;
/// Keys that kubelet and the provisioner add. No attribute is read from them: a pod author can forge those that
/// kubelet does not overwrite.
const IGNORED_PREFIXES: [&str; 2] = ["csi.storage.k8s.io/", "storage.kubernetes.io/"];

/// Whether `key` is the cluster's and not the user's.
pub fn is_ignored(key: &str) -> bool {
    IGNORED_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

impl Attributes {
    /// Reads the map that kubelet passes.
    ///
    /// # Errors
    /// When a key is unknown, `reference` is missing, or a value is bad.
    pub fn parse(map: &BTreeMap<String, String>) -> Result<Self, Error> {
        let unknown = |key: &&String| !is_ignored(key) && !KEYS.contains(&key.as_str());
        if let Some(key) = map.keys().find(unknown) {
            return Err(Error::UnknownKey { key: key.chars().take(100).collect() });
        }
        let value = |key: &str| map.get(key).map(|value| value.trim()).filter(|value| !value.is_empty());
        let reference: Reference = value("reference").ok_or(Error::NoReference)?.parse()?;
        Ok(Self {
            pull_policy: match value("pullPolicy") {
                None => default_policy(&reference),
                Some("Always") => PullPolicy::Always,
                Some("IfNotPresent") => PullPolicy::IfNotPresent,
                Some("Never") => PullPolicy::Never,
                Some(other) => return Err(word("pullPolicy", other, "Always, IfNotPresent, Never")),
            },
            choice: Choice {
                platform: value("platform").map_or_else(|| Ok(Platform::host()), str::parse)?,
                artifact_type: value("artifactType").map(str::to_owned),
                variant: value("variant").map(variant).transpose()?,
            },
            platform_given: value("platform").is_some(),
            options: Options {
                layout: layout(&value, &reference)?,
                selection: Selection::new(
                    map.get("include").map_or("", String::as_str),
                    map.get("exclude").map_or("", String::as_str),
                )?,
                unpack: match value("unpack") {
                    None | Some("auto") => Unpack::Auto,
                    Some("always") => Unpack::Always,
                    Some("never") => Unpack::Never,
                    Some(other) => return Err(word("unpack", other, "auto, always, never")),
                },
                strip: value("stripComponents").map_or(Ok(0), |text| {
                    let number = text.parse().ok().filter(|number| *number <= STRIP_LIMIT);
                    number.ok_or_else(|| word("stripComponents", text, "whole numbers from 0 to 128"))
                })?,
            },
            path: match value("path").map(|path| path.trim_start_matches('/')) {
                None | Some("" | ".") => None,
                Some(path) => Some(
                    TreePath::new(path).map_err(|reason| Error::Path { value: path.to_owned(), reason })?,
                ),
            },
            readable: flag("readable", value("readable"))?,
            exec: flag("exec", value("exec"))?.unwrap_or(false),
            warm: match value("warm") {
                None | Some("auto") => Warm::Auto,
                Some("never") => Warm::Never,
                Some("pinned") => Warm::Pinned,
                Some(other) => return Err(word("warm", other, "auto, never, pinned")),
            },
            read_only_for_writers: flag("readOnlyForWriters", value("readOnlyForWriters"))?.unwrap_or(false),
            reference,
        })
    }
}

/// Kubernetes' rule for images, and digests cannot move.
fn default_policy(reference: &Reference) -> PullPolicy {
    match (reference.digest(), reference.tag()) {
        (None, None | Some("latest")) => PullPolicy::Always,
        _ => PullPolicy::IfNotPresent,
    }
}

/// An annotation, as `key=value`.
fn variant(text: &str) -> Result<(String, String), Error> {
    let parts = text.split_once('=').filter(|(key, value)| !key.is_empty() && !value.is_empty());
    let (key, value) = parts.ok_or_else(|| word("variant", text, "annotations, as key=value"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// The layout, and that nothing is asked of it that only archives have.
fn layout<'a>(value: &impl Fn(&str) -> Option<&'a str>, reference: &Reference) -> Result<Layout, Error> {
    let name = value("layout").unwrap_or("auto");
    let layout = layout_named(name, reference).ok_or_else(|| word("layout", name, Layout::NAMES))?;
    if layout != Layout::Auto {
        for (key, without) in [("unpack", ["auto", "never"]), ("stripComponents", ["0", "0"])] {
            if let Some(value) = value(key).filter(|value| !without.contains(value)) {
                return Err(Error::Unpacked {
                    key,
                    value: value.chars().take(100).collect(),
                    layout: name.to_owned(),
                });
            }
        }
    }
    Ok(layout)
}

fn flag(key: &'static str, value: Option<&str>) -> Result<Option<bool>, Error> {
    match value {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(other) => Err(word(key, other, "true, false")),
    }
}

fn word(key: &'static str, value: &str, allowed: &'static str) -> Error {
    Error::Word { key, value: value.chars().take(100).collect(), allowed }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Attributes, Error> {
        let map = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Attributes::parse(&map)
    }

    #[test]
    fn defaults() {
        let policy = |reference: &str| parse(&[("reference", reference)]).expect(reference).pull_policy;
        assert_eq!(policy("r.example/x"), PullPolicy::Always);
        assert_eq!(policy("r.example/x:latest"), PullPolicy::Always);
        assert_eq!(policy("r.example/x:v1"), PullPolicy::IfNotPresent);
        let digest = format!("r.example/x@sha256:{}", "0".repeat(64));
        assert_eq!(policy(&digest), PullPolicy::IfNotPresent);
        let plain = parse(&[("reference", "r.example/x"), ("path", "/")]).expect("valid");
        assert!(plain.readable.is_none() && !plain.exec && plain.path.is_none());
        assert!(plain.options.selection.is_all() && plain.options.strip == 0);
        assert_eq!(plain.options.unpack, Unpack::Auto);
    }

    #[test]
    fn bad_attributes_are_named_with_what_is_allowed() {
        let reference = ("reference", "r.example/x");
        let table: [(&[(&str, &str)], &str); 17] = [
            (&[], "reference is missing"),
            (&[("reference", " ")], "reference is missing"),
            (&[("reference", "r.example/UPPER")], "UPPER"),
            (&[reference, ("referense", "x")], "known are reference, pullPolicy"),
            (&[reference, ("pullPolicy", "always")], "Always, IfNotPresent, Never"),
            (&[reference, ("exec", "yes")], "true, false"),
            (&[reference, ("unpack", "yes")], "auto, always, never"),
            (&[reference, ("stripComponents", "-1")], "0 to 128"),
            (&[reference, ("stripComponents", "129")], "0 to 128"),
            (&[reference, ("path", "../etc")], "'..'"),
            (&[reference, ("platform", "linux")], "os/arch"),
            (&[reference, ("layout", "tar")], "auto, blobs, oci-layout, ollama"),
            (&[reference, ("layout", "blobs"), ("unpack", "always")], "unpacks nothing"),
            (&[reference, ("layout", "ollama"), ("stripComponents", "1")], "unpacks nothing"),
            (&[reference, ("warm", "true")], "auto, never, pinned"),
            (&[reference, ("variant", "q4")], "key=value"),
            (&[reference, ("variant", "=q4")], "key=value"),
        ];
        for (pairs, expected) in table {
            let error = parse(pairs).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn t37_the_clusters_keys_are_neither_read_nor_refused() {
        let attributes = parse(&[
            ("reference", "r.example/x"),
            ("csi.storage.k8s.io/pod.namespace", "forged"),
            ("csi.storage.k8s.io/serviceAccount.tokens", "forged"),
            ("storage.kubernetes.io/csiProvisionerIdentity", "x"),
        ]);
        assert!(attributes.is_ok());
    }
}
