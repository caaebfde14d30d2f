//! Which child of an index a volume wants: by platform, by artifact type, by an annotation.
//!
//! Images have platforms, and the best one for this machine is taken. An index of artifacts has none: its only child is
//! taken, and several are told apart by what they are. What is left open is not guessed.

use super::Error;
use crate::oci::platform::is_attestation;
use crate::oci::{Descriptor, Digest, Index, Manifest, Platform, Reference};

/// What a volume says of the child it wants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Choice {
    /// `platform`; this machine's if nothing is said.
    pub platform: Platform,
    /// `artifactType`
    pub artifact_type: Option<String>,
    /// `variant`: an annotation's key and value.
    pub variant: Option<(String, String)>,
}

/// Candidates that an error lists.
const LISTED: usize = 20;

impl Choice {
    /// The child of `index` to use.
    ///
    /// # Errors
    /// [`Error::NoChild`] when none is what is wanted, or several are; it lists what there is.
    pub(crate) fn of(&self, index: &Index, reference: &Reference) -> Result<Digest, Error> {
        let content: Vec<&Descriptor> =
            index.manifests.iter().filter(|child| !is_attestation(child)).collect();
        let mut wanted = content.clone();
        wanted.retain(|child| self.is_wanted(child.artifact_type.as_deref(), &child.annotations));
        if let Some(position) = self.platform.choose(wanted.iter().copied()) {
            return Ok(wanted[position].digest.clone());
        }
        wanted.retain(|child| child.platform.is_none());
        wanted.dedup_by(|one, two| one.digest == two.digest);
        match wanted[..] {
            [only] if self.is_specific() || content.iter().all(|child| child.platform.is_none()) => {
                Ok(only.digest.clone())
            }
            _ => Err(self.refuse(&content, wanted.len(), reference)),
        }
    }

    /// Checks that `manifest`, which came without an index, is what is wanted.
    ///
    /// # Errors
    /// [`Error::NoChild`] when it is something else.
    pub(crate) fn check(&self, manifest: &Manifest, reference: &Reference) -> Result<(), Error> {
        let kind = manifest.artifact_type.as_deref().unwrap_or(&manifest.config.media_type);
        if self.is_wanted(Some(kind), &manifest.annotations) {
            return Ok(());
        }
        Err(Error::NoChild {
            reference: reference.to_string(),
            found: format!("is no index, and not what is wanted: {}", self.words(false)),
            offered: kind.to_owned(),
            advice: "leave out artifactType and variant, or name another reference",
        })
    }

    fn is_wanted(
        &self,
        artifact_type: Option<&str>,
        annotations: &std::collections::BTreeMap<String, String>,
    ) -> bool {
        let type_fits = self.artifact_type.as_deref().is_none_or(|wanted| artifact_type == Some(wanted));
        let variant_fits =
            self.variant.as_ref().is_none_or(|(key, value)| annotations.get(key) == Some(value));
        type_fits && variant_fits
    }

    fn is_specific(&self) -> bool {
        self.artifact_type.is_some() || self.variant.is_some()
    }

    fn refuse(&self, content: &[&Descriptor], fitting: usize, reference: &Reference) -> Error {
        let mut offered: Vec<String> = content.iter().take(LISTED).map(|child| describe(child)).collect();
        if content.len() > LISTED {
            offered.push("…".into());
        }
        if offered.is_empty() {
            offered.push("nothing".into());
        }
        let platforms = content.iter().any(|child| child.platform.is_some());
        let found = match (fitting, self.is_specific() || platforms) {
            (0 | 1, _) => format!("has nothing for {}", self.words(platforms)),
            (several, true) => format!("has {several} for {}", self.words(platforms)),
            (several, false) => format!("is an index of {several} artifacts"),
        };
        let advice = if platforms && !self.is_specific() {
            "choose one with the attribute platform"
        } else {
            "choose one with the attribute artifactType or variant, or name its digest"
        };
        Error::NoChild { reference: reference.to_string(), found, offered: offered.join(", "), advice }
    }

    /// What is wanted, for people.
    fn words(&self, with_platform: bool) -> String {
        let mut words = Vec::new();
        if with_platform {
            words.push(format!("platform {}", self.platform));
        }
        words.extend(self.artifact_type.iter().map(|name| format!("artifactType {name}")));
        words.extend(self.variant.iter().map(|(key, value)| format!("variant {key}={value}")));
        words.join(", ")
    }
}

/// A child, for people who have to choose.
fn describe(child: &Descriptor) -> String {
    if let Some(platform) = &child.platform {
        return platform.to_string();
    }
    let mut text = child.digest.to_string();
    if let Some(artifact_type) = &child.artifact_type {
        text += &format!(" {artifact_type}");
    }
    for (key, value) in child.annotations.iter().take(4) {
        text += &format!(" {key}={value}");
    }
    text.chars().take(400).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child(
        name: &str,
        platform: Option<&str>,
        artifact_type: Option<&str>,
        variant: Option<&str>,
    ) -> Descriptor {
        Descriptor {
            media_type: crate::oci::media_type::OCI_MANIFEST.into(),
            digest: Digest::sha256(name.as_bytes()),
            size: 2,
            artifact_type: artifact_type.map(str::to_owned),
            platform: platform.map(|text| text.parse().expect(text)),
            annotations: variant.map(|value| ("variant".to_owned(), value.to_owned())).into_iter().collect(),
        }
    }

    fn choose(
        children: &[Descriptor],
        artifact_type: Option<&str>,
        variant: Option<&str>,
    ) -> Result<Digest, Error> {
        let choice = Choice {
            platform: "linux/amd64".parse().expect("a platform"),
            artifact_type: artifact_type.map(str::to_owned),
            variant: variant.map(|value| ("variant".to_owned(), value.to_owned())),
        };
        let index = Index {
            media_type: crate::oci::media_type::OCI_INDEX.into(),
            manifests: children.to_vec(),
            annotations: Default::default(),
        };
        choice.of(&index, &"r.example/x:v1".parse().expect("a reference"))
    }

    #[test]
    fn one_child_is_chosen_or_all_are_listed() {
        let named = |name: &str| Some(Digest::sha256(name.as_bytes()));
        let images = [
            child("arm", Some("linux/arm64"), None, None),
            child("amd", Some("linux/amd64"), None, None),
            child("rocm", Some("linux/amd64"), None, Some("rocm")),
        ];
        let models = [
            child("q4", None, Some("a/model"), Some("q4")),
            child("q8", None, Some("a/model"), Some("q8")),
            child("sbom", None, Some("a/sbom"), None),
        ];
        let mixed = [images[0].clone(), models[0].clone(), models[2].clone()];
        let same = [models[0].clone(), models[0].clone()];
        type Case<'a> = (&'a [Descriptor], Option<&'a str>, Option<&'a str>, Option<Digest>);
        let table: [Case<'_>; 12] = [
            (&images, None, None, named("amd")),
            (&images, None, Some("rocm"), named("rocm")),
            (&images, None, Some("cuda"), None),
            (&models[..1], None, None, named("q4")),
            (&models, None, None, None),
            (&models, Some("a/sbom"), None, named("sbom")),
            (&models, Some("a/model"), None, None),
            (&models, Some("a/model"), Some("q8"), named("q8")),
            (&models, None, Some("q4"), named("q4")),
            (&mixed, None, None, None),
            (&mixed, Some("a/model"), None, named("q4")),
            (&same, None, None, named("q4")),
        ];
        for (number, (children, artifact_type, variant, expected)) in table.into_iter().enumerate() {
            let chosen = choose(children, artifact_type, variant);
            assert_eq!(chosen.ok(), expected, "case {number}");
        }
        let error = choose(&models, Some("a/model"), None).expect_err("two").to_string();
        for word in
            ["has 2", "artifactType a/model", "variant=q4", "variant=q8", "a/sbom", "attribute artifactType"]
        {
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}
