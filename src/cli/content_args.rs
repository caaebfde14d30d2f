//! Flags that say what is wanted of a registry: the same names and meaning as a volume's attributes.

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};

use crate::failure::Failure;
use crate::oci::reference::Reference;

/// What is wanted of an index.
#[derive(Debug, Clone, Default, Args)]
pub struct ChoiceArgs {
    /// os/arch[/variant] [default: this machine's]
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// The child of an index with this artifact type
    #[arg(long, value_name = "TYPE")]
    pub artifact_type: Option<String>,
    /// The child of an index with this annotation
    #[arg(long, value_name = "KEY=VALUE")]
    pub variant: Option<String>,
}

/// Which files, and how.
#[derive(Debug, Clone, Default, Args)]
pub struct FilesArgs {
    /// How the artifact is shown: auto is the rule of its family
    #[arg(long, value_enum, ignore_case = true)]
    pub layout: Option<LayoutName>,
    /// Only files that match one of these globs; may be given several times
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// No files that match one of these globs; may be given several times
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Which archives inside artifacts are unpacked: auto is the rule of the artifact's family
    #[arg(long, value_name = "WHEN", value_enum, ignore_case = true)]
    pub unpack: Option<When>,
    /// Leading path parts removed from what archives hold
    #[arg(long, value_name = "N")]
    pub strip_components: Option<String>,
    /// Whether everybody may read the files [default: true, for container images false]
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true
    )]
    pub readable: Option<String>,
}

/// Whether the registry is asked.
#[derive(Debug, Clone, Default, Args)]
pub struct PolicyArgs {
    /// Whether the registry is asked what a tag is now, and for what is missing
    #[arg(long, value_name = "WHEN", value_enum, ignore_case = true)]
    pub pull_policy: Option<PolicyName>,
}

/// What is wanted, all of it.
#[derive(Debug, Clone, Default, Args)]
pub struct ContentArgs {
    /// What of an index.
    #[command(flatten)]
    pub choice: ChoiceArgs,
    /// Which files.
    #[command(flatten)]
    pub files: FilesArgs,
    /// Whether to ask.
    #[command(flatten)]
    pub policy: PolicyArgs,
}

impl ContentArgs {
    /// The attributes of a volume that has all of these flags.
    ///
    /// # Errors
    /// As [`attributes`].
    pub fn attributes(&self, reference: &str) -> Result<BTreeMap<String, String>, Failure> {
        attributes(reference, &self.choice, Some(&self.files), self.policy.pull_policy)
    }
}

/// Kubernetes' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PolicyName {
    /// Ask each time
    #[value(name = "Always")]
    Always,
    /// Ask only for what is not in the store
    #[value(name = "IfNotPresent", alias = "if-not-present", alias = "missing")]
    IfNotPresent,
    /// Ask nobody
    #[value(name = "Never")]
    Never,
}

/// Layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LayoutName {
    /// By the artifact's family
    Auto,
    /// Every layer under its title or digest
    Blobs,
    /// An OCI image layout directory
    OciLayout,
    /// A directory for OLLAMA_MODELS
    Ollama,
}

/// Which archives are unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// By the family's rule
    Auto,
    /// All
    Always,
    /// None
    Never,
}

/// What other tools write before references, and ocivol does not.
const TRANSPORTS: [&str; 4] = ["oci://", "docker://", "https://", "http://"];

/// The attributes of a volume that has all of these flags.
///
/// # Errors
/// When what should be a reference begins with a transport.
pub fn attributes(
    reference: &str,
    choice: &ChoiceArgs,
    files: Option<&FilesArgs>,
    policy: Option<PolicyName>,
) -> Result<BTreeMap<String, String>, Failure> {
    if let Some(transport) = TRANSPORTS.iter().find(|transport| reference.starts_with(**transport)) {
        return Err(Failure::usage(&format!("not a reference: {reference:?}: leave out {transport}")));
    }
    let list = |globs: &[String]| (!globs.is_empty()).then(|| globs.join("\n"));
    let mut given = vec![
        ("reference", Some(reference.to_owned())),
        ("pullPolicy", policy.map(name)),
        ("platform", choice.platform.clone()),
        ("artifactType", choice.artifact_type.clone()),
        ("variant", choice.variant.clone()),
    ];
    if let Some(files) = files {
        given.extend([
            ("layout", files.layout.map(name)),
            ("include", list(&files.include)),
            ("exclude", list(&files.exclude)),
            ("unpack", files.unpack.map(name)),
            ("stripComponents", files.strip_components.clone()),
            ("readable", files.readable.clone()),
        ]);
    }
    Ok(given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect())
}

/// What `pull` does when nothing is said: to pull is to get what is there now. A digest is always the same.
pub fn policy_of_pull(reference: &str, policy: Option<PolicyName>) -> Option<PolicyName> {
    let has_digest = reference.parse::<Reference>().is_ok_and(|reference| reference.digest().is_some());
    policy.or((!has_digest).then_some(PolicyName::Always))
}

fn name(value: impl ValueEnum + Copy) -> String {
    value.to_possible_value().map(|known| known.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_attributes() {
        let files = FilesArgs {
            layout: Some(LayoutName::OciLayout),
            include: vec!["*.json".into(), "a,b".into()],
            unpack: Some(When::Never),
            ..FilesArgs::default()
        };
        let found = attributes("r/x", &ChoiceArgs::default(), Some(&files), Some(PolicyName::IfNotPresent));
        let found: Vec<(String, String)> = found.expect("attributes").into_iter().collect();
        let expected = [
            ("include", "*.json\na,b"),
            ("layout", "oci-layout"),
            ("pullPolicy", "IfNotPresent"),
            ("reference", "r/x"),
            ("unpack", "never"),
        ];
        assert_eq!(found, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    #[test]
    fn transports_are_named() {
        for transport in TRANSPORTS {
            let text = format!("{transport}r.example/x:v1");
            let error = attributes(&text, &ChoiceArgs::default(), None, None).expect_err(&text);
            assert!(error.message.ends_with(&format!("leave out {transport}")), "{error}");
        }
    }

    #[test]
    fn a_pull_asks_unless_there_is_nothing_to_ask() {
        let digest = format!("r.example/x@sha256:{}", "0".repeat(64));
        assert_eq!(policy_of_pull("r.example/x:v1", None), Some(PolicyName::Always));
        assert_eq!(policy_of_pull(&digest, None), None);
        assert_eq!(policy_of_pull("r.example/x:v1", Some(PolicyName::Never)), Some(PolicyName::Never));
    }
}
