//! Signatures, attestations and SBOMs: statements about other artifacts, not volumes.
//!
//! They have no names to appear under, and nobody who names one by mistake should get a volume of signatures. As ORAS
//! files, with a title and without a subject, they are files like others.
//! Source: sigstore/cosign specs/SIGNATURE_SPEC.md, BUNDLE_SPEC.md; notaryproject/specifications
//! signature-specification.md; image-spec manifest.md#subject.

use crate::layout::artifact::Artifact;
use crate::layout::error::Error;
use crate::layout::options::Options;
use crate::layout::plan::Plan;
use crate::oci::annotation::TITLE;
use crate::oci::attachment::kind_of;
use crate::oci::manifest::Manifest;

pub(in crate::layout) fn recognise(manifest: &Manifest) -> Option<String> {
    let is_file = |title: Option<&str>| title.is_some_and(|title| !title.is_empty());
    if !manifest.has_subject && manifest.layers.iter().all(|layer| is_file(layer.annotation(TITLE))) {
        return None;
    }
    let of_artifact =
        [manifest.artifact_type.as_deref(), Some(&*manifest.config.media_type)].into_iter().flatten();
    let of_layers = manifest.layers.iter().map(|layer| layer.media_type.as_str());
    let what = of_artifact.clone().find_map(kind_of).or_else(|| {
        let mut kinds = of_layers.clone().map(kind_of);
        let first = kinds.next().flatten()?;
        kinds.all(|other| other.is_some()).then_some(first)
    })?;
    let named = of_artifact.chain(of_layers).find(|name| kind_of(name) == Some(what))?;
    Some(format!("{what} ({named})"))
}

pub(in crate::layout) fn plan(artifact: &Artifact<'_>, _: &Options) -> Result<Plan, Error> {
    let what = recognise(artifact.manifest).unwrap_or_default();
    Err(Error::Attachment { what })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::plan::tests::manifest;
    use crate::oci::media_type;

    #[test]
    fn statements_are_told_from_files() {
        let image = media_type::OCI_IMAGE_CONFIG;
        let empty = media_type::OCI_EMPTY;
        let bundle = "application/vnd.dev.sigstore.bundle.v0.3+json";
        let notation = "application/vnd.cncf.notary.signature";
        let titled = &[(TITLE, "sbom.json")][..];
        let table = [
            (
                "",
                image,
                "application/vnd.dev.cosign.simplesigning.v1+json",
                &[][..],
                false,
                "cosign signature",
            ),
            ("", image, "application/vnd.dsse.envelope.v1+json", &[], false, "attestation"),
            ("", image, "text/spdx", &[], false, "SPDX"),
            ("", image, "application/vnd.cyclonedx+json", &[], false, "CycloneDX"),
            (bundle, empty, bundle, &[], true, "Sigstore bundle"),
            (notation, empty, "application/jose+json", &[], true, "Notation"),
            ("", notation, "application/cose", &[], true, "Notation"),
            ("application/spdx+json", empty, "application/spdx+json", titled, true, "SPDX"),
            ("application/spdx+json", empty, "application/spdx+json", titled, false, ""),
            ("a/b", empty, "application/spdx+json", titled, false, ""),
            ("a/b", empty, "a/b", &[], true, ""),
        ];
        for (artifact_type, config, layer, annotations, subject, expected) in table {
            let mut manifest = manifest(artifact_type, config, &[(layer, annotations)]);
            manifest.has_subject = subject;
            let found = recognise(&manifest).unwrap_or_default();
            assert!(found.contains(expected) && found.is_empty() == expected.is_empty(), "{layer}: {found}");
        }
    }
}
