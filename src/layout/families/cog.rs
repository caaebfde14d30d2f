//! Cog's managed weights: archives of files, and a config that lists every file with its layer, size and digest.
//!
//! Names are relative to the directory of the weights, which is the volume's root. Each file is checked against the list
//! when the tree is built. Source: replicate/cog pkg/model/weight_manifest_v1.go, pkg/weights, `specs/weights.md`.

use crate::layout::error::unsupported;
use std::collections::BTreeMap;

use serde::Deserialize;

use crate::layer::name::shown;
use crate::layout::artifact::Artifact;

use crate::layout::error::Error;
use crate::layout::naming::at_root;
use crate::layout::options::{Options, Unpack};
use crate::layout::plan::Plan;
use crate::layout::tree_path::TreePath;
use crate::oci::digest::Digest;
use crate::oci::manifest::Manifest;

const ARTIFACT: &str = "application/vnd.cog.weight.v1";
const CONFIG: &str = "application/vnd.cog.weight.config.v1+json";

/// What is read of the config.
#[derive(Deserialize)]
struct Config {
    files: Vec<Listed>,
}

/// What one file has to be.
#[derive(Debug, Deserialize)]
pub struct Listed {
    path: String,
    /// Its bytes.
    pub size: u64,
    /// Their digest.
    pub digest: Digest,
}

pub(in crate::layout) fn recognise(manifest: &Manifest) -> Option<String> {
    if manifest.artifact_type.as_deref() == Some(ARTIFACT) {
        return Some(format!("artifactType is {ARTIFACT}"));
    }
    let config = manifest.config.media_type.as_str();
    [CONFIG, ARTIFACT].contains(&config).then(|| format!("config is {config}"))
}

pub(in crate::layout) fn plan(artifact: &Artifact<'_>, options: &Options) -> Result<Plan, Error> {
    let manifest = artifact.manifest;
    if options.unpack == Unpack::Never {
        return Err(unsupported(manifest, "weights of Cog, of which unpack: never leaves no file"));
    }
    files(artifact.config.ok_or(Error::NeedsConfig)?, &manifest.config.digest)?;
    let plan = Plan::artifact(manifest.layers.iter().map(|layer| at_root(layer, options)).collect())?;
    Ok(plan.with_file_list(manifest.config.digest.clone()))
}

/// The files that `config`, whose digest is given for errors, lists: what each has to be, by its name in the archives.
///
/// # Errors
/// [`Error::Config`], [`Error::UnsafeName`], [`Error::Collision`].
pub fn files(config: &[u8], digest: &Digest) -> Result<BTreeMap<Vec<u8>, Listed>, Error> {
    let config: Config = serde_json::from_slice(config).map_err(Error::Config)?;
    let mut files = BTreeMap::new();
    for file in config.files {
        let path = TreePath::new(&file.path).map_err(|reason| {
            let name = shown(file.path.as_bytes());
            Error::UnsafeName { digest: digest.clone(), name, reason }
        })?;
        let name = shown(path.as_str().as_bytes());
        if files.insert(path.as_str().as_bytes().to_vec(), file).is_some() {
            return Err(Error::Collision { digest: digest.clone(), name, there: "listed" });
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::plan::tests::{artifact, manifest};

    #[test]
    fn the_config_says_what_the_files_have_to_be() {
        let layers: [(&str, &[_]); 2] = [
            ("application/vnd.oci.image.layer.v1.tar", &[]),
            ("application/vnd.oci.image.layer.v1.tar+gzip", &[]),
        ];
        let manifest = manifest(ARTIFACT, CONFIG, &layers);
        assert!(recognise(&manifest).is_some());
        let digest = Digest::sha256(b"x");
        let of = |config: &str| {
            plan(&Artifact { config: Some(config.as_bytes()), ..artifact(&manifest) }, &Options::default())
        };
        let config = format!(
            r#"{{"name":"z","target":"/src/weights","files":[{{"path":"a/b","layer":"{digest}","size":1,"digest":"{digest}"}}]}}"#
        );
        let found = of(&config).expect("a plan");
        assert_eq!(found.archives().count(), 2);
        assert_eq!(found.file_list(), Some(&manifest.config.digest));
        let listed = files(config.as_bytes(), &digest).expect("a list");
        assert_eq!(listed.get(&b"a/b"[..]).map(|file| (file.size, &file.digest)), Some((1, &digest)));
        for bad in ["{}", "[]", &config.replace("a/b", "../b"), &config.replace("sha256:", "md5:")] {
            assert!(of(bad).is_err(), "{bad}");
        }
        assert!(matches!(plan(&artifact(&manifest), &Options::default()), Err(Error::NeedsConfig)));
    }
}
