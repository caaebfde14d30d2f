//! Plans of manifests that are as large as a registry may send: they are made, and take no memory while a registry lets a tenant
//! wait.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use axum::response::IntoResponse as _;
use bytes::Bytes;
use ocivol::oci::digest::Digest;
use ocivol::oci::media_type;

use crate::support::answers::gets_blob;
use crate::support::slow::{Blob, Line};
use crate::support::tenants::{Publishing, Stage, asked_for, is_within, settled, wide_manifest};
use crate::support::{Node, Scripted, isolated};

/// Bytes that a manifest may have.
const LARGEST: usize = 4 << 20;
const SECOND: Duration = Duration::from_secs(1);
/// Namespaces whose registry stalls.
const HOSTILE: u8 = 3;

/// A manifest of exactly as many bytes as one may have.
fn largest_manifest(number: usize, content: &Digest, config: &Digest) -> String {
    let mut manifest = wide_manifest(number, 21_500, content, config);
    assert!((3_500_000..LARGEST).contains(&manifest.len()), "{} bytes", manifest.len());
    manifest.insert_str(1, &" ".repeat(LARGEST - manifest.len()));
    manifest
}

#[test]
fn regression_t44_plans_of_a_tenant_whose_registry_stalls_leave_memory_for_those_of_others() {
    isolated(async {
        let (stalling, quiet) = (Scripted::start_with_many_names().await, Scripted::start().await);
        let hosts = [stalling.hosts(HOSTILE), vec![quiet.host()]].concat();
        let stage = Stage::start(&hosts, &["--stall-timeout", "300"]).await;
        let alone = stage.alone(&quiet, 100).await;
        let (pusher, content) = (stalling.pusher("wide"), Digest::sha256(b"never"));
        let config = pusher.blob(Bytes::from_static(b"{}")).await.expect("pushed");
        let (blob, never) = (Blob::zeros(1), content.clone());
        stalling.script(move |seen| {
            let is_content = gets_blob(seen) && seen.path.ends_with(never.hex());
            is_content.then(|| blob.answer_until(0, seen, &Line::fast()))
        });
        let mut others: Vec<Publishing> = Vec::new();
        for (number, host) in stalling.hosts(HOSTILE).iter().enumerate() {
            let manifest = largest_manifest(number, &content, &config);
            let tag = format!("v{number}");
            pusher.manifest(&tag, media_type::OCI_MANIFEST, &manifest).await.expect("pushed");
            others.push(stage.begin(&format!("hostile-{number}"), &format!("{host}/wide:{tag}")));
        }
        settled("files that do not come", 1, || asked_for(&stalling, gets_blob)).await;
        let beside = stage.pull(&quiet, "small", 100).await;
        // One that is large itself finds memory, too.
        let pusher = quiet.pusher("wide");
        let config = pusher.blob(Bytes::from_static(b"{}")).await.expect("pushed");
        let content = pusher.blob(Bytes::from_static(b"1")).await.expect("pushed");
        let manifest = wide_manifest(9, 3_000, &content, &config);
        pusher.manifest("v1", media_type::OCI_MANIFEST, &manifest).await.expect("pushed");
        let check = |target: &Path| {
            assert_eq!(std::fs::read_dir(target).expect("a directory").count(), 3_000);
        };
        let wide = stage.wait_for("wide", &quiet.reference("wide:v1"), check).await;
        println!("a manifest of {} bytes, beside some that stall: {wide:.1?}", manifest.len());
        assert!(others.iter().all(|other| !other.is_finished()), "nothing of the others came");
        assert!(is_within(SECOND, "100 bytes beside stalling plans", alone, beside), "{beside:.1?}");
        assert!(wide < 10 * SECOND, "{wide:.1?}");
    });
}

#[test]
fn a_model_of_very_many_files_comes_in_parts_and_is_used_offline() {
    isolated(async {
        const FILES: usize = 2_500;
        let registry = Scripted::start().await;
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let pusher = registry.pusher("parts");
        let config = pusher.blob(Bytes::from_static(b"{}")).await.expect("pushed");
        let contents: BTreeMap<String, Bytes> = (0..FILES)
            .map(|number| Bytes::from(format!("content {number}")))
            .map(|content| (Digest::sha256(&content).to_string(), content))
            .collect();
        let entries: Vec<String> = contents
            .iter()
            .map(|(digest, content)| {
                let (name, size) = (String::from_utf8_lossy(content), content.len());
                format!(
                    r#"{{"mediaType":"a/b","digest":"{digest}","size":{size},"annotations":{{"org.opencontainers.image.title":"{name}"}}}}"#
                )
            })
            .collect();
        let manifest = format!(
            r#"{{"schemaVersion":2,"artifactType":"a/b","config":{{"mediaType":"{}","digest":"{config}","size":2}},"layers":[{}]}}"#,
            media_type::OCI_EMPTY,
            entries.join(",")
        );
        pusher.manifest("v1", media_type::OCI_MANIFEST, &manifest).await.expect("pushed");
        registry.script(move |seen| {
            let content = contents.get(seen.path.rsplit('/').next()?)?;
            Some(content.clone().into_response())
        });
        let reference = registry.reference("parts:v1");
        let files = |target: &Path| {
            let entries =
                std::fs::read_dir(target).expect("a directory").map(|entry| entry.expect("an entry"));
            let named_as_read = |entry: &std::fs::DirEntry| {
                let content = std::fs::read(entry.path()).expect("a file");
                content == entry.file_name().as_encoded_bytes()
            };
            entries.filter(named_as_read).count()
        };
        let volume = node.volume("pod");
        node.publish_in_the_end(&volume, &reference).await.expect("published");
        assert_eq!(files(&volume.target), FILES);
        // Another tree of the same files, without the registry.
        registry.script(|_| Some(axum::http::StatusCode::SERVICE_UNAVAILABLE.into_response()));
        let volume = node.volume("pod-offline");
        let attributes = [("pullPolicy", "Never"), ("exclude", "content 7*")];
        node.publish(&volume, &reference, &attributes).await.expect("published");
        let excluded = (0..FILES).filter(|number| number.to_string().starts_with('7')).count();
        assert_eq!(files(&volume.target), FILES - excluded);
    });
}
