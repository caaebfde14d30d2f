//! Platforms, and the choice among the children of an index.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Operating system, architecture and variant, in Go's words: `linux/arm/v7`.
///
/// *Invariant:* what has several names has one here, by the rules of containerd's platforms package, so that what people
/// write and what images say can be compared: `x86_64` is `amd64`, `arm64/v8` is `arm64`, `arm` is `arm/v7`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Stated")]
pub struct Platform {
    /// `linux`, `windows` …
    pub os: String,
    /// `amd64`, `arm64` …
    pub architecture: String,
    /// `v7` of `arm`, `v3` of `amd64` …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A platform in the words of who made an image.
#[derive(Deserialize)]
struct Stated {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

/// The text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a platform: {0:?}; expected os/arch[/variant], such as linux/arm64")]
pub struct InvalidPlatform(String);

impl Platform {
    /// The platform of these words, which may be those of other tools.
    fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let [os, architecture, variant] = [os, architecture, variant].map(str::to_ascii_lowercase);
        let os = if os == "macos" { "darwin".to_owned() } else { os };
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1" | "") => ("amd64", ""),
            ("x86_64" | "x86-64", level) => ("amd64", level),
            ("aarch64" | "arm64", "" | "8" | "v8" | "8.0" | "v8.0") => ("arm64", ""),
            ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
            ("aarch64", level) => ("arm64", level),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            other => other,
        };
        let variant = Some(variant.to_owned()).filter(|variant| !variant.is_empty());
        Self { os, architecture: architecture.to_owned(), variant }
    }

    /// The platform of this machine.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", amd64_level().unwrap_or_default()),
            "x86" => ("386", ""),
            "powerpc64" => ("ppc64le", ""),
            other => (other, ""),
        };
        Self::new("linux", architecture, variant)
    }

    /// How well content for `self` runs on `wanted`: the higher the better, `None` not at all.
    ///
    /// Variants `vN` are ordered: a machine runs its own and every lower one, and runs the highest of those
    /// best. No variant means the architecture's baseline.
    pub(in crate::oci) fn rank_on(&self, wanted: &Self) -> Option<u32> {
        if self.os != wanted.os || self.architecture != wanted.architecture {
            return None;
        }
        if self.variant == wanted.variant {
            return Some(u32::MAX);
        }
        let (own, limit) = (self.level()?, wanted.level()?);
        (own <= limit).then_some(own)
    }

    /// Whether content for `other` runs where this is wanted.
    pub fn accepts(&self, other: &Self) -> bool {
        other.rank_on(self).is_some()
    }

    /// `v9.2` as 902.
    fn level(&self) -> Option<u32> {
        let Some(variant) = &self.variant else {
            return Some(if self.architecture == "arm64" { 800 } else { 100 });
        };
        let stated = variant.strip_prefix('v')?;
        let (major, minor) = stated.split_once('.').unwrap_or((stated, "0"));
        let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
        major.checked_mul(100)?.checked_add(minor.min(99))
    }
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

impl From<Stated> for Platform {
    fn from(stated: Stated) -> Self {
        let [os, architecture, variant] =
            [stated.os, stated.architecture, stated.variant].map(Option::unwrap_or_default);
        Self::new(&os, &architecture, &variant)
    }
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
            [os, architecture, variant @ ..] if variant.len() <= 1 && parts.iter().all(part) => {
                Ok(Self::new(os, architecture, variant.first().copied().unwrap_or_default()))
            }
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
    use crate::oci::descriptor::{Descriptor, choose};
    use crate::oci::digest::Digest;

    fn children(platforms: &[&str]) -> Vec<Descriptor> {
        let child = |platform: &&str| Descriptor {
            media_type: crate::oci::media_type::OCI_MANIFEST.to_owned(),
            digest: Digest::sha256(platform.as_bytes()),
            size: 1,
            artifact_type: None,
            platform: (!platform.is_empty()).then(|| platform.parse().expect("a platform")),
            annotations: Default::default(),
            data: None,
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
            assert_eq!(choose(&wanted, &children(offered)), expected, "{wanted} of {offered:?}");
        }
    }

    #[test]
    fn regression_what_has_several_names_is_one() {
        let table = [
            ("linux/x86_64", "linux/amd64"),
            ("linux/x86-64", "linux/amd64"),
            ("Linux/AMD64/v1", "linux/amd64"),
            ("linux/x86_64/v3", "linux/amd64/v3"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/8", "linux/arm64"),
            ("linux/arm64/v9.0", "linux/arm64/v9"),
            ("linux/i386", "linux/386"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/7", "linux/arm/v7"),
            ("macOS/arm64", "darwin/arm64"),
            ("linux/riscv64", "linux/riscv64"),
        ];
        for (text, expected) in table {
            let parsed: Platform = text.parse().expect(text);
            assert_eq!(parsed.to_string(), expected, "{text}");
            let mut parts = text.split('/');
            let json = serde_json::json!({
                "os": parts.next(), "architecture": parts.next(), "variant": parts.next().unwrap_or(""),
            });
            let read: Platform = serde_json::from_value(json).expect(text);
            assert_eq!(read, parsed, "{text}");
        }
        let read: Platform =
            serde_json::from_str(r#"{"os":"linux","architecture":"amd64","variant":null}"#).expect("null");
        assert_eq!(read.to_string(), "linux/amd64");
        let wanted: Platform = "linux/arm64".parse().expect("a platform");
        assert_eq!(choose(&wanted, &children(&["linux/arm64/v9", "linux/aarch64/v8"])), Some(1));
    }

    #[test]
    fn attestations_are_no_candidates() {
        let mut offered = children(&["linux/amd64", "linux/amd64"]);
        offered[0].annotations.insert("vnd.docker.reference.type".into(), "attestation-manifest".into());
        let wanted = "linux/amd64".parse::<Platform>().expect("a platform");
        assert_eq!(choose(&wanted, &offered), Some(1));
    }

    #[test]
    fn bad_platforms_are_refused() {
        for text in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/a b", "linux/../x y"] {
            assert!(text.parse::<Platform>().is_err(), "{text:?} was accepted");
        }
    }
}
