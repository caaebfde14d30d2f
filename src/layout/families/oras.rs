//! Files with titles: what `oras push` makes, and any artifact whose layers carry
//! `org.opencontainers.image.title`.
//!
//! A layer is written under its title as it is, whatever its media type says: ORAS gives plain files the media
//! type of a tar archive. Only the annotation `io.deis.oras.content.unpack: "true"` marks a packed directory, whose
//! entries are all in the directory that the title names. Source: oras-go v2 content/file.

use crate::layer::name::{Name, shown};
use crate::layer::rename::Rename;
use crate::layout::artifact::Artifact;
use crate::layout::error::Error;
use crate::layout::naming::{path_of, unnamed};
use crate::layout::options::{Options, Unpack};
use crate::layout::plan::{Archive, File, Item, Plan, StatedMetadata};
use crate::oci::annotation::TITLE;
use crate::oci::descriptor::Descriptor;
use crate::oci::manifest::Manifest;
use crate::oci::media_type;

/// `"true"`: the layer is a directory, packed as a tar archive.
const UNPACK: &str = "io.deis.oras.content.unpack";
/// Digest of the uncompressed archive.
const CONTENT_DIGEST: &str = "io.deis.oras.content.digest";

pub(in crate::layout) fn recognise(manifest: &Manifest) -> Option<String> {
    let titled = manifest.layers.iter().filter(|layer| layer.annotation(TITLE).is_some()).count();
    (titled > 0).then(|| format!("{titled} of {} layers have a title", manifest.layers.len()))
}

pub(in crate::layout) fn plan(artifact: &Artifact<'_>, options: &Options) -> Result<Plan, Error> {
    let layers = &artifact.manifest.layers;
    let mut items = Vec::with_capacity(layers.len());
    for layer in layers {
        let title = layer.annotation(TITLE).filter(|title| !title.is_empty());
        let title = title.ok_or_else(|| unnamed(layer, TITLE))?;
        let packed = layer.annotation(UNPACK) == Some("true");
        // What `oras push ref .` packs has the title of the directory that it was in.
        if packed && options.unpack != Unpack::Never && matches!(title, "." | "./") {
            items.push(Item::Archive(directory(layer, Name::default(), options)?));
            continue;
        }
        let path = path_of(layer, title)?;
        let unpacked = match options.unpack {
            Unpack::Never => false,
            Unpack::Auto => packed,
            Unpack::Always => packed || is_archive(layer, title),
        };
        items.push(match (unpacked, packed) {
            (false, _) => Item::File(path, File { blob: layer.bare(), metadata: StatedMetadata::default() }),
            (true, true) => {
                let within = Name::below(path.as_str().as_bytes(), b"");
                Item::Archive(directory(layer, within, options)?)
            }
            (true, false) => {
                // What is in it belongs where the archive is.
                let above = path.ancestors().last().unwrap_or_default();
                let prefix = Name::below(above.as_bytes(), b"");
                let rename = Rename { strip: options.strip, prefix, within: Name::default() };
                Item::Archive(Archive { blob: layer.bare(), rename, content: None })
            }
        });
    }
    Plan::artifact(items)
}

/// A packed directory, whose entries are all `within` the one that its title names.
fn directory(layer: &Descriptor, within: Name, options: &Options) -> Result<Archive, Error> {
    let content = layer.annotation(CONTENT_DIGEST).map(str::parse).transpose();
    let content = content.map_err(|error: crate::oci::digest::InvalidDigest| Error::Metadata {
        digest: layer.digest.clone(),
        name: shown(within.as_bytes()),
        annotation: CONTENT_DIGEST,
        reason: error.to_string(),
    })?;
    let rename = Rename { within, strip: options.strip, prefix: Name::default() };
    Ok(Archive { blob: layer.bare(), rename, content })
}

/// For `unpack: always`: what its title or its type calls an archive. The type that ORAS gives every file says
/// nothing.
fn is_archive(layer: &Descriptor, title: &str) -> bool {
    const NAMES: [&str; 5] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd"];
    const TYPES: [&str; 4] = [".tar", ".tar+gzip", ".tar+zstd", ".tar.gzip"];
    let named = NAMES.iter().any(|ending| title.ends_with(ending));
    let typed = TYPES.iter().any(|ending| layer.media_type.ends_with(ending));
    named || (typed && layer.media_type != media_type::OCI_LAYER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::plan::tests::{artifact, manifest};

    fn plan_of(media_type: &str, annotations: &[(&str, &str)], options: &Options) -> Result<Plan, Error> {
        let manifest = manifest("a/b", "a/b", &[(media_type, annotations)]);
        plan(&artifact(&manifest), options)
    }

    #[test]
    fn what_is_unpacked_and_where() {
        let with = |unpack| Options { unpack, strip: 1, ..Options::default() };
        let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
        let packed = [(TITLE, "a/b"), (UNPACK, "true")];
        let here = |title| [(TITLE, title), (UNPACK, "true")];
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Unpack, Option<(&'a [u8], &'a [u8])>);
        let table: [Case<'_>; 10] = [
            (gzip, &packed, Unpack::Auto, Some((b"a/b", b""))),
            (gzip, &here("."), Unpack::Auto, Some((b"", b""))),
            (gzip, &here("./"), Unpack::Always, Some((b"", b""))),
            (gzip, &packed, Unpack::Never, None),
            (gzip, &[(TITLE, "a/b")], Unpack::Auto, None),
            (gzip, &[(TITLE, "a/b"), (UNPACK, "True")], Unpack::Auto, None),
            (gzip, &[(TITLE, "a/b")], Unpack::Always, Some((b"", b"a"))),
            (media_type::OCI_LAYER, &[(TITLE, "README.md")], Unpack::Always, None),
            (media_type::OCI_LAYER, &[(TITLE, "db.tar.gz")], Unpack::Always, Some((b"", b""))),
            ("text/plain", &[(TITLE, "db.tar.gz")], Unpack::Auto, None),
        ];
        for (media_type, annotations, unpack, expected) in table {
            let plan = plan_of(media_type, annotations, &with(unpack)).expect("a plan");
            let found = plan.archives().next().map(|archive| &archive.rename);
            let found = found.map(|rename| (rename.within.as_bytes(), rename.prefix.as_bytes()));
            assert_eq!(found, expected, "{annotations:?} {unpack:?}");
        }
    }

    #[test]
    fn t40_a_title_or_digest_that_is_none_is_refused() {
        let auto = Options::default();
        for title in ["", "/etc/x", "../x", "a/../../x", "a\0b", "..", "/", "./.."] {
            assert!(plan_of("a/b", &[(TITLE, title), (UNPACK, "true")], &auto).is_err(), "{title:?}");
        }
        let bad = [(TITLE, "a"), (UNPACK, "true"), (CONTENT_DIGEST, "sha256:../x")];
        assert!(matches!(plan_of("a/b", &bad, &auto), Err(Error::Metadata { .. })));
    }
}
