//! Container images: the file system that their layers make, one applied after the other.
//!
//! OCI and Docker. Their configs say the digests of the uncompressed layers (`rootfs.diff_ids`), and nothing else
//! in them is read. Source: image-spec config.md, layer.md; Docker image manifest version 2, schema 2.

use crate::layout::error::unsupported;
use serde::Deserialize;

use crate::layer::rename::Rename;
use crate::layout::artifact::Artifact;

use crate::layout::error::Error;
use crate::layout::options::{Options, Unpack};
use crate::layout::plan::{Archive, Plan};
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;
use crate::oci::media_type;
use crate::oci::platform::Platform;

/// The name of the family.
pub const NAME: &str = "image";

/// Layers that are archives of files, whatever their compression is called.
const LAYERS: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];
const COMPRESSIONS: [&str; 5] = ["", "+gzip", "+zstd", ".gzip", ".zstd"];

pub(in crate::layout) fn recognise(manifest: &Manifest) -> Option<String> {
    let layers = manifest.layers.iter().all(|layer| is_layer(&layer.media_type));
    (has_image_config(manifest) && layers).then(|| format!("config is {}", manifest.config.media_type))
}

/// Why a manifest that looks like an image is none, in words.
pub(in crate::layout) fn almost(manifest: &Manifest) -> Option<&'static str> {
    has_image_config(manifest).then_some("it has the config of a container image, and layers that are none")
}

fn has_image_config(manifest: &Manifest) -> bool {
    let config = manifest.config.media_type.as_str();
    [media_type::OCI_IMAGE_CONFIG, media_type::DOCKER_IMAGE_CONFIG].contains(&config)
        && manifest.artifact_type.is_none()
}

pub(in crate::layout) fn plan(artifact: &Artifact<'_>, options: &Options) -> Result<Plan, Error> {
    let manifest = artifact.manifest;
    if options.unpack == Unpack::Never {
        return Err(unsupported(manifest, "a container image, of which unpack: never leaves nothing"));
    }
    if options.strip > 0 {
        return Err(Error::NotForImages { attribute: "stripComponents" });
    }
    let archive = |layer: &crate::oci::descriptor::Descriptor| Archive {
        blob: layer.bare(),
        rename: Rename::default(),
        content: None,
    };
    Ok(Plan::image(manifest.layers.iter().map(archive)))
}

/// The digests of the uncompressed layers, lowest first, as the config says them.
///
/// # Errors
/// [`Error::Config`] when it is no image config.
pub fn diff_ids(config: &[u8]) -> Result<Vec<Digest>, Error> {
    #[derive(Deserialize)]
    struct Config {
        rootfs: RootFs,
    }
    #[derive(Deserialize)]
    struct RootFs {
        #[serde(default)]
        diff_ids: Vec<Digest>,
    }
    let config: Config = serde_json::from_slice(config).map_err(Error::Config)?;
    Ok(config.rootfs.diff_ids)
}

/// What an image is for, as its config says; `None` where it does not.
///
/// # Errors
/// [`Error::Config`] when it is no image config.
pub fn platform(config: &[u8]) -> Result<Option<Platform>, Error> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        os: String,
        #[serde(default)]
        architecture: String,
    }
    let said: Config = serde_json::from_slice(config).map_err(Error::Config)?;
    if said.os.is_empty() || said.architecture.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(config).map(Some).map_err(Error::Config)
}

fn is_layer(media_type: &str) -> bool {
    LAYERS.iter().any(|layer| {
        media_type.strip_prefix(layer).is_some_and(|compression| COMPRESSIONS.contains(&compression))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_of_all_tools_are_known() {
        for known in [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ] {
            assert!(is_layer(known), "{known}");
        }
        for other in
            ["", "application/vnd.dev.cosign.simplesigning.v1+json", "application/vnd.ollama.image.model"]
        {
            assert!(!is_layer(other), "{other}");
        }
    }

    #[test]
    fn what_an_image_is_for_is_said_by_its_config() {
        let read = |text: &str| platform(text.as_bytes()).expect(text).map(|found| found.to_string());
        assert_eq!(
            read(r#"{"os":"linux","architecture":"aarch64","rootfs":{}}"#).as_deref(),
            Some("linux/arm64")
        );
        assert_eq!(
            read(r#"{"os":"linux","architecture":"arm","variant":"v6"}"#).as_deref(),
            Some("linux/arm/v6")
        );
        for silent in ["{}", r#"{"os":"linux"}"#, r#"{"os":"","architecture":""}"#] {
            assert_eq!(read(silent), None);
        }
        assert!(platform(b"[").is_err());
    }

    #[test]
    fn t16_diff_ids_are_read_and_nothing_else() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let config = format!(
            r#"{{"config":{{"Volumes":{{"/../../":{{}}}},"Labels":{{"a":"b\nc"}}}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#
        );
        assert_eq!(diff_ids(config.as_bytes()).expect("a config").len(), 1);
        assert!(diff_ids(b"{}").is_err());
        assert!(diff_ids(br#"{"rootfs":{"diff_ids":["sha256:../../x"]}}"#).is_err());
    }
}
