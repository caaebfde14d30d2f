//! Which child of an index a volume wants: by platform, by artifact type, by an annotation.
//!
//! Images have platforms, and the best one for this machine is taken. An index of artifacts has none: its only child is
//! taken, and several are told apart by what they are. What is left open is not guessed.

use std::collections::{BTreeMap, HashSet};

use crate::oci::descriptor::{Descriptor, choose, is_attestation};
use crate::oci::digest::Digest;
use crate::oci::manifest::{Document, Index, Manifest};
use crate::oci::media_type;
use crate::oci::platform::Platform;
use crate::oci::reference::Reference;
use crate::pull::error::Error;

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

/// A manifest, and where it was.
#[derive(Debug)]
pub(crate) struct Found {
    pub manifest: Manifest,
    pub digest: Digest,
    pub size: u64,
    /// What it runs on, as the index says that it was chosen from.
    pub platform: Option<Platform>,
}

/// Where manifests and indexes are read from.
pub(crate) trait Documents {
    /// Why one could not be read.
    type Error: From<Error>;
    /// What is at `digest`, and its size.
    fn load(&mut self, digest: &Digest) -> impl Future<Output = Result<(Document, u64), Self::Error>> + Send;
    /// Whether there is nothing of use at a digest, now and later.
    fn is_final(error: &Self::Error) -> bool;
}

/// Indexes on the way to a manifest. BuildKit nests two.
const DEPTH_LIMIT: usize = 3;
/// Children that are read to learn what they are.
const READ_LIMIT: usize = 16;
/// Candidates that an error lists.
const LISTED: usize = 20;
/// Candidates of which an error says the whole digest.
const LISTED_WHOLE: usize = 4;

/// What an index says of its children.
enum Children {
    /// This one.
    One(Candidate),
    /// One of these, which only they can say themselves.
    Open {
        candidates: Vec<Candidate>,
        /// When it is not one.
        refusal: Refusal,
    },
}

/// A child, and what remains to be decided below it.
struct Candidate {
    digest: Digest,
    left: Choice,
    /// What an index says that it runs on.
    platform: Option<Platform>,
}

/// What an error says of an index.
struct Refusal {
    offered: String,
    platforms: bool,
}

impl Choice {
    /// Follows indexes from `digest` to the manifest that is wanted.
    ///
    /// # Errors
    /// [`Error::NoChild`] when an index has nothing that is wanted, or several, or a manifest is something else;
    /// [`Error::TooDeep`]; those of `documents`.
    pub(crate) async fn follow<D: Documents>(
        &self,
        reference: &Reference,
        digest: &Digest,
        documents: &mut D,
    ) -> Result<Found, D::Error> {
        let mut at = Candidate { digest: digest.clone(), left: self.clone(), platform: None };
        for _ in 0..=DEPTH_LIMIT {
            let index = match documents.load(&at.digest).await? {
                (Document::Manifest(manifest), size) => {
                    at.left.check(&manifest, reference)?;
                    return Ok(Found { manifest, digest: at.digest, size, platform: at.platform });
                }
                (Document::Index(index), _) => index,
            };
            let children = at.left.among(&index, reference)?;
            drop(index); // It may be large, and what follows may take long.
            at = match children {
                Children::One(child) => child,
                Children::Open { candidates, refusal } => {
                    let mut fitting = Vec::new();
                    let mut failed = None;
                    for candidate in candidates {
                        match candidate.leads_to_it(reference, documents).await {
                            Ok(true) => fitting.push(candidate),
                            Ok(false) => {}
                            // Nobody asked for this one.
                            Err(error) if D::is_final(&error) => drop(failed.get_or_insert(error)),
                            Err(error) => return Err(error),
                        }
                    }
                    match (fitting.len(), failed) {
                        (1, _) => fitting.remove(0),
                        (0, Some(error)) => return Err(error),
                        (several, _) => return Err(at.left.refuse(refusal, several, reference).into()),
                    }
                }
            };
        }
        Err(Error::TooDeep { reference: reference.to_string(), limit: DEPTH_LIMIT }.into())
    }

    /// The children of `index` that may be wanted, from what it says of them.
    fn among(&self, index: &Index, reference: &Reference) -> Result<Children, Error> {
        // Media types that nobody knows are left alone (image-index.md).
        let known = |child: &&Descriptor| {
            child.media_type.is_empty() || media_type::is_manifest_or_index(&child.media_type)
        };
        let content: Vec<&Descriptor> =
            index.manifests.iter().filter(|child| !is_attestation(child)).filter(known).collect();
        let refusal = Refusal {
            offered: list(&content),
            platforms: content.iter().any(|child| platform(child).is_some()),
        };
        let wanted = |child: &&Descriptor| self.is_wanted(child.artifact_type.as_deref(), &child.annotations);
        let mut fitting: Vec<&Descriptor> = content.iter().copied().filter(wanted).collect();
        // Children may leave their type to their manifests, and nested indexes more.
        let open = fitting.is_empty();
        if open {
            fitting = content.into_iter().filter(|child| self.may_lead_to_it(child)).collect();
        }
        let mut seen = HashSet::new();
        fitting.retain(|child| seen.insert(&child.digest));
        let best = choose(&self.platform, fitting.iter().copied()).map(|best| fitting[best]);
        let candidate = |child: &Descriptor| Candidate {
            digest: child.digest.clone(),
            left: self.without(child),
            platform: platform(child).cloned(),
        };
        if let (Some(best), false) = (best, open) {
            // Of images that fit equally the first is meant (image-index.md). Artifacts are not interchangeable.
            let equal = fitting.iter().filter(|child| child.platform == best.platform).count();
            if best.artifact_type.is_some() && equal > 1 {
                return Err(self.refuse(refusal, equal, reference));
            }
            return Ok(Children::One(candidate(best)));
        }
        // The image for this machine is one of those that may say what they are.
        fitting.retain(|child| {
            platform(child).is_none() || best.is_some_and(|best| best.digest == child.digest)
        });
        match fitting[..] {
            [only] if open || self.is_specific() || !refusal.platforms => Ok(Children::One(candidate(only))),
            [_, _, ..] if open && fitting.len() > READ_LIMIT => Err(Error::NoChild {
                reference: reference.to_string(),
                found: format!("has {} children that do not say what they are", fitting.len()),
                advice: "name the digest of one",
                offered: refusal.offered,
            }),
            [_, _, ..] if open => {
                let candidates = fitting.into_iter().map(candidate).collect();
                Ok(Children::Open { candidates, refusal })
            }
            _ => Err(self.refuse(refusal, if open { 0 } else { fitting.len() }, reference)),
        }
    }

    /// Whether only what is behind `child` can say that it is wanted.
    fn may_lead_to_it(&self, child: &Descriptor) -> bool {
        let type_may_fit = match (&self.artifact_type, &child.artifact_type) {
            (Some(wanted), Some(stated)) => wanted == stated,
            _ => true,
        };
        let variant_may_fit = match &self.variant {
            Some((key, value)) => match child.annotations.get(key) {
                Some(stated) => stated == value,
                None => media_type::is_index(&child.media_type),
            },
            None => true,
        };
        type_may_fit && variant_may_fit
    }

    /// What remains to be decided below `child`.
    fn without(&self, child: &Descriptor) -> Self {
        let mut left = self.clone();
        left.artifact_type = left.artifact_type.filter(|wanted| child.artifact_type.as_ref() != Some(wanted));
        left.variant = left.variant.filter(|(key, value)| child.annotations.get(key) != Some(value));
        left
    }

    /// Checks what no index has decided.
    fn check(&self, manifest: &Manifest, reference: &Reference) -> Result<(), Error> {
        if self.fits(manifest) {
            return Ok(());
        }
        Err(Error::NoChild {
            reference: reference.to_string(),
            found: format!("is not what is wanted: {}", self.words(false)),
            advice: "leave out artifactType and variant, or name another reference",
            offered: kind(manifest).chars().take(200).collect(),
        })
    }

    fn fits(&self, manifest: &Manifest) -> bool {
        self.is_wanted(Some(kind(manifest)), &manifest.annotations)
    }

    fn is_wanted(&self, artifact_type: Option<&str>, annotations: &BTreeMap<String, String>) -> bool {
        let type_fits = self.artifact_type.as_deref().is_none_or(|wanted| artifact_type == Some(wanted));
        type_fits && self.variant_fits(annotations)
    }

    fn variant_fits(&self, annotations: &BTreeMap<String, String>) -> bool {
        self.variant.as_ref().is_none_or(|(key, value)| annotations.get(key) == Some(value))
    }

    fn is_specific(&self) -> bool {
        self.artifact_type.is_some() || self.variant.is_some()
    }

    fn refuse(&self, index: Refusal, fitting: usize, reference: &Reference) -> Error {
        let Refusal { offered, platforms } = index;
        let found = match (fitting, self.is_specific() || platforms) {
            (0 | 1, _) => format!("has nothing for {}", self.words(platforms)),
            (several, true) => format!("has {several} for {}", self.words(platforms)),
            (several, false) => format!("is an index of {several} artifacts"),
        };
        let advice = match (platforms, self.is_specific()) {
            (true, false) => "choose one with the attribute platform",
            (true, true) => {
                "choose one with the attribute platform, artifactType or variant, or name its digest"
            }
            (false, _) => "choose one with the attribute artifactType or variant, or name its digest",
        };
        Error::NoChild { reference: reference.to_string(), found, advice, offered }
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

impl Candidate {
    /// Whether what is wanted is behind it, and nothing else.
    async fn leads_to_it<D: Documents>(
        &self,
        reference: &Reference,
        documents: &mut D,
    ) -> Result<bool, D::Error> {
        let inner = match documents.load(&self.digest).await? {
            (Document::Manifest(manifest), _) => return Ok(self.left.fits(&manifest)),
            (Document::Index(inner), _) => inner,
        };
        let children = self.left.among(&inner, reference);
        drop(inner);
        let Ok(Children::One(next)) = children else { return Ok(false) };
        let found = documents.load(&next.digest).await?;
        Ok(matches!(found, (Document::Manifest(manifest), _) if next.left.fits(&manifest)))
    }
}

/// What a manifest is: image-spec manifest.md#guidelines-for-artifact-usage.
fn kind(manifest: &Manifest) -> &str {
    manifest.artifact_type.as_deref().unwrap_or(&manifest.config.media_type)
}

/// What a child runs on. Cog says of weights beside an image that this is unknown.
fn platform(child: &Descriptor) -> Option<&Platform> {
    child.platform.as_ref().filter(|platform| platform.os != "unknown")
}

/// Children, for people who have to choose: what tells one from the other.
fn list(content: &[&Descriptor]) -> String {
    let cut = |text: &str| text.chars().take(60).collect::<String>();
    let differs = |key: &str| content.iter().any(|child| child.annotation(key) != content[0].annotation(key));
    let describe = |child: &&Descriptor| {
        let mut text = match platform(child) {
            Some(platform) => platform.to_string(),
            None if content.len() <= LISTED_WHOLE => child.digest.to_string(),
            None => child.digest.short().to_owned(),
        };
        text.extend(child.artifact_type.iter().map(|name| format!(" {}", cut(name))));
        let created = "org.opencontainers.image.created";
        let told = child.annotations.iter().filter(|(key, _)| *key != created && differs(key));
        text.extend(told.take(2).map(|(key, value)| format!(" {}={}", cut(key), cut(value))));
        text
    };
    let mut listed: Vec<String> = content.iter().take(LISTED).map(describe).collect();
    if content.len() > LISTED {
        listed.push("…".into());
    }
    if listed.is_empty() { "nothing".to_owned() } else { listed.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::plan::tests::manifest;

    fn child(
        name: &str,
        platform: Option<&str>,
        artifact_type: Option<&str>,
        variant: Option<&str>,
    ) -> Descriptor {
        Descriptor {
            media_type: media_type::OCI_MANIFEST.into(),
            digest: Digest::sha256(name.as_bytes()),
            size: 2,
            artifact_type: artifact_type.map(str::to_owned),
            platform: platform.map(|text| text.parse().expect(text)),
            annotations: variant.map(|value| ("variant".to_owned(), value.to_owned())).into_iter().collect(),
            data: None,
        }
    }

    fn index(children: &[Descriptor]) -> Document {
        let media_type = media_type::OCI_INDEX.into();
        Document::Index(Index { media_type, manifests: children.to_vec(), annotations: BTreeMap::new() })
    }

    /// Follows from the document called `top`; what no document is given for is a manifest of type `a/model`.
    async fn follow(
        documents: &[(&str, Document)],
        artifact_type: Option<&str>,
        variant: Option<&str>,
    ) -> Result<Digest, Error> {
        let choice = Choice {
            platform: "linux/amd64".parse().expect("a platform"),
            artifact_type: artifact_type.map(str::to_owned),
            variant: variant.map(|value| ("variant".to_owned(), value.to_owned())),
        };
        let reference = "r.example/x:v1".parse().expect("a reference");
        choice.follow(&reference, &Digest::sha256(b"top"), &mut &*documents).await.map(|found| found.digest)
    }

    impl Documents for &[(&str, Document)] {
        type Error = Error;
        async fn load(&mut self, digest: &Digest) -> Result<(Document, u64), Error> {
            let known = self.iter().find(|(name, _)| Digest::sha256(name.as_bytes()) == *digest);
            let other = || Document::Manifest(manifest("a/model", "a/config", &[]));
            if *digest == Digest::sha256(b"absent") {
                return Err(Error::NotPresent { reference: "absent".into() });
            }
            Ok((known.map_or_else(other, |(_, document)| document.clone()), 2))
        }

        fn is_final(_: &Error) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn one_child_is_chosen_or_all_are_listed() {
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
        let built = [
            child("b4", Some("linux/amd64"), Some("a/model"), Some("q4")),
            child("b8", Some("linux/amd64"), Some("a/model"), Some("q8")),
            child("c8", Some("linux/arm64"), Some("a/model"), Some("q8")),
        ];
        let mixed = [images[0].clone(), models[0].clone(), models[2].clone()];
        let same = [models[0].clone(), models[0].clone()];
        type Case<'a> = (&'a [Descriptor], Option<&'a str>, Option<&'a str>, Option<&'a str>);
        let table: [Case<'_>; 16] = [
            (&images, None, None, Some("amd")),
            (&images, None, Some("rocm"), Some("rocm")),
            (&images, None, Some("cuda"), None),
            (&models[..1], None, None, Some("q4")),
            (&models, None, None, None),
            (&models, Some("a/sbom"), None, Some("sbom")),
            (&models, Some("a/model"), None, None),
            (&models, Some("a/model"), Some("q8"), Some("q8")),
            (&models, None, Some("q4"), Some("q4")),
            (&mixed, None, None, None),
            (&mixed, Some("a/model"), None, Some("q4")),
            (&same, None, None, Some("q4")),
            (&built, None, None, None),
            (&built, Some("a/model"), None, None),
            (&built, None, Some("q8"), Some("b8")),
            (&built[1..], None, None, Some("b8")),
        ];
        for (number, (children, artifact_type, variant, expected)) in table.into_iter().enumerate() {
            let chosen = follow(&[("top", index(children))], artifact_type, variant).await;
            let expected = expected.map(|name| Digest::sha256(name.as_bytes()));
            assert_eq!(chosen.ok(), expected, "case {number}");
        }
        let error =
            follow(&[("top", index(&models))], Some("a/model"), None).await.expect_err("two").to_string();
        for word in
            ["has 2", "artifactType a/model", "variant=q4", "variant=q8", "a/sbom", "attribute artifactType"]
        {
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    #[tokio::test]
    async fn nested_indexes_and_children_without_a_type_are_looked_into() {
        let platforms = index(&[
            child("arm", Some("linux/arm64"), None, None),
            child("amd", Some("linux/amd64"), None, None),
        ]);
        let nested = |name: &str, variant: &str| Descriptor {
            media_type: media_type::OCI_INDEX.into(),
            ..child(name, None, None, Some(variant))
        };
        let documents = [
            ("top", index(&[nested("q4", "q4"), nested("q8", "q8")])),
            ("q4", platforms.clone()),
            ("q8", platforms),
        ];
        assert_eq!(follow(&documents, None, Some("q4")).await.ok(), Some(Digest::sha256(b"amd")));
        assert!(follow(&documents, None, Some("q5")).await.is_err());
        assert!(follow(&documents, None, None).await.is_err(), "two, and nothing says which");

        let untyped = [
            ("top", index(&[child("one", None, None, None), child("two", None, None, None)])),
            ("two", Document::Manifest(manifest("a/sbom", "a/config", &[]))),
        ];
        assert_eq!(follow(&untyped, Some("a/sbom"), None).await.ok(), Some(Digest::sha256(b"two")));
        assert_eq!(follow(&untyped, Some("a/model"), None).await.ok(), Some(Digest::sha256(b"one")));
        assert!(follow(&untyped, Some("a/other"), None).await.is_err());
        // Images, and an artifact that only its manifest tells from them; a sibling that is gone is nobody's business.
        let mixed = [
            (
                "top",
                index(&[
                    child("amd", Some("linux/amd64"), None, None),
                    child("arm", Some("linux/arm64"), None, None),
                    child("absent", None, None, None),
                    child("two", None, None, None),
                ]),
            ),
            ("two", Document::Manifest(manifest("a/sbom", "a/config", &[]))),
        ];
        assert_eq!(follow(&mixed, Some("a/sbom"), None).await.ok(), Some(Digest::sha256(b"two")));
        assert_eq!(follow(&mixed, None, None).await.ok(), Some(Digest::sha256(b"amd")));
        assert!(matches!(follow(&mixed, Some("a/other"), None).await, Err(Error::NotPresent { .. })));
        // Of two indexes only one leads there.
        let images =
            Descriptor { media_type: media_type::OCI_INDEX.into(), ..child("images", None, None, None) };
        let models =
            Descriptor { media_type: media_type::OCI_INDEX.into(), ..child("models", None, None, None) };
        let nested = [
            ("top", index(&[images, models])),
            ("images", index(&[child("two", Some("linux/amd64"), None, None)])),
            ("models", index(&[child("one", None, Some("a/model"), None)])),
            ("two", Document::Manifest(manifest("a/sbom", "a/config", &[]))),
        ];
        assert_eq!(follow(&nested, Some("a/model"), None).await.ok(), Some(Digest::sha256(b"one")));
        let many: Vec<Descriptor> =
            (0..17).map(|number| child(&number.to_string(), None, None, None)).collect();
        let error = follow(&[("top", index(&many))], Some("a/model"), None).await.expect_err("too many");
        assert!(error.to_string().contains("17 children that do not say"), "{error}");
        // What nobody knows does not count.
        let foreign = Descriptor { media_type: "a/blob".into(), ..child("foreign", None, None, None) };
        let with_foreign = [("top", index(&[foreign, child("one", None, None, None)]))];
        assert_eq!(follow(&with_foreign, None, None).await.ok(), Some(Digest::sha256(b"one")));
        // The image of this platform is what it says it is.
        let image = [("top", index(&[child("amd", Some("linux/amd64"), None, None)]))];
        assert_eq!(follow(&image, Some("a/model"), None).await.ok(), Some(Digest::sha256(b"amd")));
        assert!(follow(&image, Some("a/other"), None).await.is_err());
    }
}
