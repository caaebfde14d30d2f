//! What other projects' tools pushed, captured in `tests/fixtures/`, pushed to a real registry again, and mounted: the
//! volumes show what the tools themselves pull (`make interop` compares with the tools).

use tonic::Code;

use crate::support::debian_registry::DebianRegistry;
use crate::support::listing::{Case, assert_shown};
use crate::support::{Node, fixtures, isolated};

type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);

/// Pushes what `tool` made, and compares.
fn assert_tool(tool: &str, rows: &[Row<'_>]) {
    isolated(async {
        let registry = DebianRegistry::start().await;
        fixtures::push(tool, &registry.pusher(tool)).await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let case = |row: &Row<'_>| registry.reference(&format!("{tool}:{}", row.0));
        let cases: Vec<Case<'_>> = rows.iter().map(|row| (case(row), row.1, row.2)).collect();
        assert_shown(&node, &cases).await;
    });
}

const NEVER: &[(&str, &str)] = &[("unpack", "never")];
const ALWAYS: &[(&str, &str)] = &[("unpack", "always")];
const ARM: &[(&str, &str)] = &[("platform", "linux/arm64")];

#[test]
fn oras() {
    let hello: &[&str] = &["hello.txt=hello"];
    let config: &[&str] = &["config.json={\"key\":\"value\"}"];
    let tree: &[&str] = &["tree/bin/run (19)", "tree/link->readme.txt", "tree/none/", "tree/readme.txt=read"];
    assert_tool(
        "oras",
        &[
            ("file", &[], hello),
            ("files", &[], &["hello.txt=hello", "sub/dir/deep.txt=deep"]),
            ("files", &[("include", "sub/**")], &["sub/dir/deep.txt=deep"]),
            ("directory", &[], tree),
            ("directory", &[("path", "tree/bin")], &["run (19)"]),
            ("directory", NEVER, &["tree (228)"]),
            ("here", &[], &["bin/run (19)", "link->readme.txt", "none/", "readme.txt=read"]),
            ("here", &[("path", "bin")], &["run (19)"]),
            ("mixed", &[], &["hello.txt=hello", "sub/dir/deep.txt=deep"]),
            ("typed", &[], &["config.json={\"key\":\"value\"}", "hello.txt=hello"]),
            ("config", &[], hello),
            ("old", &[], hello),
            ("wasm", &[], &["module.wasm=\0asm\u{1}\0\0\0"]),
            ("wasm-bare", &[], &["module.wasm=\0asm\u{1}\0\0\0"]),
            ("index", &[("artifactType", "application/vnd.example.one.v1")], hello),
            ("index", &[("artifactType", "application/vnd.example.two.v1")], config),
            ("platforms", ARM, config),
        ],
    );
}

#[test]
fn oras_py() {
    assert_tool(
        "oras-py",
        &[
            ("files", &[], &["deep.txt=deep", "hello.txt=hello"]),
            // A packed directory that is not marked as one.
            ("directory", &[], &["tree (220)"]),
            (
                "directory",
                ALWAYS,
                &["tree/bin/run (19)", "tree/link->readme.txt", "tree/none/", "tree/readme.txt=read"],
            ),
        ],
    );
}

#[test]
fn modelpack() {
    assert_tool(
        "modelpack",
        &[
            (
                "raw",
                &[],
                &[
                    "README.md=# tiny",
                    "config.json (32)",
                    "model.safetensors (72)",
                    "vocab.json={\"hello\":0}",
                ],
            ),
            (
                "tar",
                &[],
                &[
                    "code/run.py=print(\"tiny\")",
                    "tokenizer/vocab.json={\"hello\":0}",
                    "weights/model.safetensors (72)",
                ],
            ),
            // By the names that their annotations have, which say nothing of archives.
            ("tar", NEVER, &["code (130)", "tokenizer (146)", "weights (10240)"]),
            (
                "tar",
                &[("stripComponents", "1"), ("exclude", "*.py")],
                &["model.safetensors (72)", "vocab.json={\"hello\":0}"],
            ),
        ],
    );
}

#[test]
fn helm() {
    let chart = [
        "demo/.helmignore (349)",
        "demo/Chart.yaml (109)",
        "demo/templates/_helpers.tpl (1752)",
        "demo/templates/service.yaml (352)",
        "demo/values.yaml (49)",
    ];
    assert_tool(
        "helm",
        &[
            ("demo-0.1.0", &[], &chart),
            ("demo-0.2.0", &[], &chart),
            (
                "demo-0.1.0",
                &[("stripComponents", "1"), ("include", "*.yaml"), ("exclude", "templates")],
                &["Chart.yaml (109)", "values.yaml (49)"],
            ),
            ("demo-0.2.0", NEVER, &["demo-0.2.0.tgz (1268)", "demo-0.2.0.tgz.prov (714)"]),
            ("demo-0.3.0_build.1", NEVER, &["demo-0.3.0+build.1.tgz (1272)"]),
        ],
    );
}

#[test]
fn flux() {
    assert_tool(
        "flux",
        &[
            (
                "directory",
                &[],
                &["base/configmap.yaml (73)", "base/kustomization.yaml (92)", "notes.txt=notes"],
            ),
            ("file", &[], &["configmap.yaml (73)"]),
            ("static", &[], &["content (73)"]),
            ("static-yaml", &[], &["content.yaml (73)"]),
        ],
    );
}

#[test]
fn images_of_buildah() {
    let app = [
        "app/hard.txt=one",
        "app/one.txt=one",
        "app/run=#!/bin/sh",
        "app/soft.txt->two.txt",
        "app/three.txt=three",
        "app/two.txt=changed",
        "etc/",
    ];
    assert_tool(
        "buildah",
        &[
            ("image", &[], &app),
            ("zstd", &[], &["zstd=zstd"]),
            ("index", ARM, &["arch=arm64"]),
            ("list", ARM, &["arch=arm64"]),
        ],
    );
}

#[test]
fn images_of_skopeo() {
    let app = ["app/two.txt=changed"];
    assert_tool("skopeo", &[("v2s2", &[("include", "two.txt")], &app), ("list", ARM, &["arch=arm64"])]);
}

#[test]
fn bundles_of_tekton() {
    assert_tool("tkn", &[("bundle", &[], &["greet (168)", "greeting (142)"])]);
}

#[test]
fn signatures_are_named_and_refused_and_their_blobs_can_be_had() {
    isolated(async {
        let registry = DebianRegistry::start().await;
        for tool in ["cosign", "notation"] {
            fixtures::push(tool, &registry.pusher(tool)).await;
        }
        let image = "sha256-ec8d8f81e141febdb8905545eab28a4be98dcd295498ec336d7e3a4e413822d9";
        let bundle = "sha256:a6bd245267fe93da97cd7c744a6509b9a930add90b9d84a49ba7518350b5411d";
        let referrer = |kind: &'static str| ("artifactType", kind);
        let table = [
            (format!("cosign:legacy-{image}.sig"), None, "a cosign signature"),
            (format!("cosign:legacy-{image}.att"), None, "a signed attestation"),
            (format!("cosign:legacy-{image}.sbom"), None, "an SBOM (SPDX)"),
            // Nothing in the index of referrers tells one bundle from the other.
            (format!("cosign@{bundle}"), None, "a Sigstore bundle"),
            (
                format!("cosign:referrers-{image}"),
                Some(referrer("application/vnd.dev.cosign.artifact.sig.v1+json")),
                "a cosign signature",
            ),
            (
                format!("cosign:referrers-{image}"),
                Some(referrer("application/vnd.dev.cosign.artifact.sbom.v1+json")),
                "an SBOM (SPDX)",
            ),
            (format!("notation:image-{image}"), None, "a Notation signature"),
        ];
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        for (number, (reference, choice, what)) in table.into_iter().enumerate() {
            let reference = registry.reference(&reference);
            let mut attributes: Vec<(&str, &str)> = choice.into_iter().collect();
            let volume = node.volume(&format!("pod-{number}"));
            let status = node.publish(&volume, &reference, &attributes).await.expect_err(what);
            assert_eq!(status.code(), Code::FailedPrecondition, "{reference}: {}", status.message());
            for word in [what, "layout: blobs"] {
                assert!(status.message().contains(word), "{word}: {}", status.message());
            }
            attributes.push(("layout", "blobs"));
            node.publish(&volume, &reference, &attributes).await.expect(what);
            let names = std::fs::read_dir(&volume.target).expect("a volume");
            for entry in names {
                let entry = entry.expect("an entry");
                let digest = entry.file_name().to_string_lossy().replacen('-', ":", 1);
                let content = std::fs::read(entry.path()).expect("content");
                assert_eq!(ocivol::oci::digest::Digest::sha256(&content).to_string(), digest);
            }
            node.kubelet.unpublish(&volume).await.expect("unpublished");
        }
    });
}
