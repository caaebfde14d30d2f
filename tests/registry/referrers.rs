//! What refers to an artifact, as `ocivol inspect` shows it; and what registries warn of.

use std::process::Command;

use axum::http::{StatusCode, header};
use axum::response::IntoResponse as _;
use ocivol::demo::push::Layer;
use ocivol::oci::digest::Digest;
use ocivol::oci::media_type;
use serde_json::{Value, json};

use crate::support::node::BINARY;
use crate::support::{Node, Scripted, eventually, isolated};

const SIGNATURE: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";

fn index_of(digests: &[Digest]) -> String {
    let manifests: Vec<Value> = digests
        .iter()
        .map(|digest| json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest.to_string(), "size": 7, "artifactType": SIGNATURE}))
        .collect();
    json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests}).to_string()
}

async fn inspect(registry: &Scripted) -> Value {
    serde_json::from_slice(&printed(registry, "json").await).expect("JSON")
}

/// What `ocivol inspect` prints in this format.
async fn printed(registry: &Scripted, format: &'static str) -> Vec<u8> {
    let reference = registry.reference("m:v1");
    let host = registry.host();
    let output = tokio::task::spawn_blocking(move || {
        Command::new(BINARY).args(["--output", format, "--plain-http", &host, "inspect", &reference]).output()
    });
    let output = output.await.expect("no panic").expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn digests(found: &Value) -> Vec<&str> {
    let all = found["referrers"].as_array().expect("a list").iter();
    all.map(|referrer| referrer["digest"].as_str().expect("a digest")).collect()
}

#[test]
fn referrers_come_from_the_api_page_by_page_or_from_the_tag() {
    isolated(async {
        let registry = Scripted::start().await;
        let layers = [Layer::model_file("weight", "w", "1")];
        let digest = registry.pusher("m").model("v1", &layers).await.expect("pushed");
        assert!(digests(&inspect(&registry).await).is_empty(), "there are none");
        // A registry without the API.
        let by_tag = Digest::sha256(b"by tag");
        let tag = digest.to_string().replace(':', "-");
        let index = index_of(std::slice::from_ref(&by_tag));
        registry.pusher("m").manifest(&tag, media_type::OCI_INDEX, &index).await.expect("pushed");
        let found = inspect(&registry).await;
        assert_eq!(digests(&found), [by_tag.to_string()]);
        assert_eq!(found["referrers"][0]["artifact_type"], SIGNATURE);
        // One with it, in two pages; the second says that there is another at somebody else's.
        let (one, two) = (Digest::sha256(b"one"), Digest::sha256(b"two"));
        let pages = [index_of(std::slice::from_ref(&one)), index_of(std::slice::from_ref(&two))];
        registry.script(move |seen| {
            let rest = seen.path.strip_prefix("/v2/m/referrers/")?;
            let (at, next) = match rest.contains("last=1") {
                false => (0, format!("</v2/m/referrers/{rest}?last=1>; rel=\"next\"")),
                true => (1, "<http://127.0.0.1:1/v2/m/referrers/x>; rel=\"next\"".to_owned()),
            };
            let headers = [(header::CONTENT_TYPE, media_type::OCI_INDEX.to_owned()), (header::LINK, next)];
            Some((StatusCode::OK, headers, pages[at].clone()).into_response())
        });
        assert_eq!(digests(&inspect(&registry).await), [one.to_string(), two.to_string()]);
        // What it sends is no list: what else is to be told is told.
        registry.script(|seen| seen.path.contains("/referrers/").then(|| "<html>".into_response()));
        assert!(digests(&inspect(&registry).await).is_empty());
    });
}

#[test]
fn of_an_index_what_refers_to_it_and_to_the_chosen_manifest_is_shown() {
    isolated(async {
        let registry = Scripted::start().await;
        let pusher = registry.pusher("m");
        let chosen = pusher.model("chosen", &[Layer::model_file("weight", "w", "1")]).await.expect("pushed");
        let other = pusher.model("other", &[Layer::model_file("weight", "w", "2")]).await.expect("pushed");
        let push = async |children: &[Digest]| {
            let index =
                pusher.manifest("v1", media_type::OCI_INDEX, &index_of(children)).await.expect("pushed");
            let mut referrers = Vec::new();
            for subject in [&index, &chosen] {
                let referrer = Digest::sha256(format!("of {subject}").as_bytes());
                let list = index_of(std::slice::from_ref(&referrer));
                let tag = subject.to_string().replace(':', "-");
                pusher.manifest(&tag, media_type::OCI_INDEX, &list).await.expect("pushed");
                referrers.push(referrer.to_string());
            }
            (index, referrers)
        };
        let (index, referrers) = push(std::slice::from_ref(&chosen)).await;
        let found = inspect(&registry).await;
        assert_eq!(found["manifest"], chosen.to_string());
        assert_eq!(digests(&found), referrers);
        assert_eq!(found["referrers"][0]["subject"], index.to_string());
        assert_eq!(found["referrers"][1]["subject"], chosen.to_string());
        let text = String::from_utf8(printed(&registry, "text").await).expect("UTF-8");
        for (digest, is_of_index) in [(&referrers[0], true), (&referrers[1], false)] {
            let line = text.lines().find(|line| line.contains(digest.as_str())).expect("a line");
            assert_eq!(line.ends_with(", of the index"), is_of_index, "{line}");
        }
        // Where nothing is chosen, there is the index alone.
        let (_, referrers) = push(&[chosen.clone(), other]).await;
        let found = inspect(&registry).await;
        assert_eq!(found["manifest"], Value::Null);
        assert_eq!(digests(&found), referrers[..1]);
    });
}

#[test]
fn a_warning_of_a_registry_is_logged_once() {
    isolated(async {
        let registry = Scripted::with_model("content").await;
        let layers = [Layer::model_file("weight", "w", "other")];
        registry.pusher("other").model("v1", &layers).await.expect("pushed");
        registry.script(|seen| {
            let is_tag = seen.path.ends_with("/manifests/v1") && seen.method == axum::http::Method::HEAD;
            is_tag.then(|| {
                let warning = "299 - \"this mirror ends in June\"";
                (StatusCode::NOT_FOUND, [("warning", warning)]).into_response()
            })
        });
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        for (number, reference) in ["m:v1", "other:v1", "m:v1"].iter().enumerate() {
            let volume = node.volume(&format!("pod-{number}"));
            let reference = registry.reference(reference);
            node.publish(&volume, &reference, &[("pullPolicy", "Always")]).await.expect("published");
        }
        eventually("a warning", || node.logged().contains("this mirror ends in June")).await;
        assert_eq!(node.logged().matches("this mirror ends in June").count(), 1);
    });
}
