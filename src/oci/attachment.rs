//! Media types of what is said about other artifacts: signatures, attestations, SBOMs.

/// What media types begin with, and what that is.
const KINDS: [(&str, &str); 9] = [
    ("application/vnd.dev.sigstore.bundle", "a Sigstore bundle"),
    ("application/vnd.dev.cosign.simplesigning", "a cosign signature"),
    ("application/vnd.dsse.envelope", "a signed attestation (DSSE)"),
    ("application/vnd.in-toto", "an in-toto attestation"),
    ("application/vnd.cncf.notary.signature", "a Notation signature"),
    ("text/spdx", "an SBOM (SPDX)"),
    ("application/spdx", "an SBOM (SPDX)"),
    ("application/vnd.cyclonedx", "an SBOM (CycloneDX)"),
    ("application/vnd.syft", "an SBOM (Syft)"),
];

/// What a media type says something is, in words; `None` for what says nothing about another artifact.
pub fn kind_of(media_type: &str) -> Option<&'static str> {
    KINDS.iter().find(|(prefix, _)| media_type.starts_with(prefix)).map(|(_, what)| *what)
}
