//! Platforms, and the choice among the children of an index.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Descriptor;

/// Operating system, architecture and variant, in Go's words: `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`, `windows` …
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64` …
    #[serde(default)]
    pub architecture: String,
    /// `v7` of `arm`, `v3` of `amd64` …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// The text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a platform: {0:?}; expected os/arch[/variant], such as linux/arm64")]
pub struct InvalidPlatform(String);

impl Platform {
    /// The platform of this machine.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", amd64_level()),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "x86" => ("386", None),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// How well content for `self` runs on `wanted`: the higher the better, `None` not at all.
    ///
    /// Variants `vN` are ordered: a machine runs its own and every lower one, and runs the highest of those
    /// best. No variant means the architecture's baseline.
    fn rank_on(&self, wanted: &Self) -> Option<u32> {
        if self.os != wanted.os || self.architecture != wanted.architecture {
            return None;
        }
        if self.variant == wanted.variant {
            return Some(u32::MAX);
        }
        let (own, limit) = (self.level()?, wanted.level()?);
        (own <= limit).then_some(own)
    }

    fn level(&self) -> Option<u32> {
        match &self.variant {
            Some(variant) => variant.strip_prefix('v')?.parse().ok(),
            None => Some(match self.architecture.as_str() {
                "arm64" => 8,
                "arm" => 7,
                _ => 1,
            }),
        }
    }

    /// The child of an index that runs best on `self`, by position.
    ///
    /// Attestations are no candidates. Of equally good children the first wins.
    pub fn choose<'a>(&self, children: impl IntoIterator<Item = &'a Descriptor>) -> Option<usize> {
        let mut best: Option<(u32, usize)> = None;
        for (position, child) in children.into_iter().enumerate() {
            let Some(platform) = child.platform.as_ref().filter(|_| !is_attestation(child)) else { continue };
            let Some(rank) = platform.rank_on(self) else { continue };
            if best.is_none_or(|(highest, _)| rank > highest) {
                best = Some((rank, position));
            }
        }
        best.map(|(_, position)| position)
    }
}

/// Whether an index's child is no content but a statement about another child (BuildKit's provenance).
pub fn is_attestation(child: &Descriptor) -> bool {
    child.annotation("vnd.docker.reference.type") == Some("attestation-manifest")
        || child.platform.as_ref().is_some_and(|platform| platform.os == "unknown")
}

/// The x86-64 microarchitecture level (System V psABI), as Go's `GOAMD64` names it.
fn amd64_level() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl") {
            return Some("v4");
        }
        if has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma") && has!("movbe") {
            return Some("v3");
        }
        if has!("sse4.2") && has!("ssse3") && has!("popcnt") {
            return Some("v2");
        }
    }
    None
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let part = |part: &&str| {
            !part.is_empty()
                && part.len() <= 32
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [os, architecture, variant @ ..] if variant.len() <= 1 && parts.iter().all(part) => Ok(Self {
                os: (*os).to_owned(),
                architecture: (*architecture).to_owned(),
                variant: variant.first().map(|variant| (*variant).to_owned()),
            }),
            _ => Err(InvalidPlatform(text.chars().take(100).collect())),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.os, self.architecture)?;
        if let Some(variant) = &self.variant {
            write!(out, "/{variant}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    fn children(platforms: &[&str]) -> Vec<Descriptor> {
        let child = |platform: &&str| Descriptor {
            media_type: super::super::media_type::OCI_MANIFEST.to_owned(),
            digest: Digest::sha256(platform.as_bytes()),
            size: 1,
            artifact_type: None,
            platform: (!platform.is_empty()).then(|| platform.parse().expect("a platform")),
            annotations: Default::default(),
        };
        platforms.iter().map(child).collect()
    }

    #[test]
    fn the_best_variant_that_runs_is_chosen() {
        let table: [(&str, &[&str], Option<usize>); 10] = [
            ("linux/amd64", &["linux/arm64", "linux/amd64"], Some(1)),
            ("linux/amd64/v3", &["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], Some(1)),
            ("linux/amd64/v3", &["linux/amd64", "linux/amd64/v3", "linux/amd64/v2"], Some(1)),
            ("linux/amd64", &["linux/amd64/v2"], None),
            ("linux/arm64", &["linux/arm64/v8"], Some(0)),
            ("linux/arm64/v8", &["linux/arm64"], Some(0)),
            ("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6", "linux/arm64"], Some(1)),
            ("linux/arm/v6", &["linux/arm/v7"], None),
            ("linux/amd64", &["windows/amd64", "", "unknown/unknown"], None),
            ("linux/amd64", &["linux/amd64", "linux/amd64"], Some(0)),
        ];
        for (wanted, offered, expected) in table {
            let wanted: Platform = wanted.parse().expect("a platform");
            assert_eq!(wanted.choose(&children(offered)), expected, "{wanted} of {offered:?}");
        }
    }

    #[test]
    fn attestations_are_no_candidates() {
        let mut offered = children(&["linux/amd64", "linux/amd64"]);
        offered[0].annotations.insert("vnd.docker.reference.type".into(), "attestation-manifest".into());
        assert_eq!("linux/amd64".parse::<Platform>().expect("a platform").choose(&offered), Some(1));
    }

    #[test]
    fn bad_platforms_are_refused() {
        for text in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/a b", "linux/../x y"] {
            assert!(text.parse::<Platform>().is_err(), "{text:?} was accepted");
        }
    }
}
