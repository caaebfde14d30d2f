//! Credentials go to whom they belong, and to nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use ocivol::demo::push::Layer;
use tonic::Code;

use crate::support::answers::{is_blob, setup};
use crate::support::{Node, Scripted, isolated, noise};

#[test]
fn bearer_tokens_are_fetched_once_and_per_credential() {
    isolated(async {
        let registry = Scripted::start().await;
        let layers: Vec<Layer> = (0..8)
            .map(|number| Layer::model_file("weight", &format!("w{number}"), noise(number, 1000)))
            .collect();
        registry.pusher("team/m").model("v1", &layers).await.expect("pushed");
        let tokens = Scripted::start().await;
        let fetched = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&fetched);
        tokens.script(move |seen| {
            count.fetch_add(1, Ordering::SeqCst);
            assert!(seen.path.contains("scope=repository%3Ateam%2Fm%3Apull"), "{}", seen.path);
            assert!(seen.path.contains("service=the+service") || seen.path.contains("service=the%20service"));
            let good = seen
                .headers
                .get(header::AUTHORIZATION)
                .is_some_and(|value| value == "Basic dXNlcjpodW50ZXIy");
            Some(if good {
                r#"{"token":"good","expires_in":300}"#.into_response()
            } else {
                StatusCode::UNAUTHORIZED.into_response()
            })
        });
        let realm = format!("Bearer realm=\"http://{}/token\",service=\"the service\"", tokens.host());
        registry.script(move |seen| {
            let good = seen.headers.get(header::AUTHORIZATION).is_some_and(|value| value == "Bearer good");
            (!good).then(|| {
                (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, realm.clone())]).into_response()
            })
        });
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let reference = registry.reference("team/m:v1");
        let volume = node.volume("pod");
        node.publish_as(&volume, &reference, &[], ("user", "hunter2")).await.expect("published");
        assert_eq!(fetched.load(Ordering::SeqCst), 1, "one token for nine requests");
        let other = node.volume("other");
        let status = node.publish_as(&other, &reference, &[], ("user", "wrong")).await.expect_err("wrong");
        assert_eq!(status.code(), Code::Unauthenticated, "{}", status.message());
        assert!(!status.message().contains("hunter2") && !node.logged().contains("hunter2"));
        let status = node.publish(&other, &reference, &[]).await.expect_err("anonymous");
        assert_eq!(status.code(), Code::Unauthenticated, "{}", status.message());
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn t26_redirects_carry_no_credentials_elsewhere() {
    isolated(async {
        let content = noise(6, 500_000);
        let (registry, node, reference) = setup(&content).await;
        let store = Scripted::start().await;
        let sent = content.clone();
        store.script(move |_| Some(sent.clone().into_response()));
        let elsewhere = format!("http://{}/signed?token=x", store.host());
        registry.script(move |seen| {
            let authorized = seen.headers.contains_key(header::AUTHORIZATION);
            if !authorized {
                let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"r\"")];
                return Some((StatusCode::UNAUTHORIZED, challenge).into_response());
            }
            is_blob(seen).then(|| {
                (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, elsewhere.clone())]).into_response()
            })
        });
        let volume = node.volume("pod");
        node.publish_as(&volume, &reference, &[], ("user", "secret")).await.expect("published");
        assert_eq!(std::fs::read(volume.target.join("w")).expect("read"), content);
        assert!(!store.requests().is_empty());
        for seen in store.requests() {
            assert!(!seen.headers.contains_key(header::AUTHORIZATION), "{seen:?}");
        }
        node.kubelet.unpublish(&volume).await.expect("unpublished");

        // A loop ends.
        let again = format!("http://{}/v2/loop", registry.host());
        registry
            .script(move |_| Some((StatusCode::FOUND, [(header::LOCATION, again.clone())]).into_response()));
        let other = registry.reference("m:v9");
        let status = node.publish(&volume, &other, &[]).await.expect_err("a loop");
        assert!(status.message().contains("redirects more than"), "{}", status.message());
    });
}

#[test]
fn regression_t28_a_redirect_target_cannot_ask_for_credentials() {
    isolated(async {
        let (registry, node, reference) = setup(b"content").await;
        let (storage, harvester) = (Scripted::start().await, Scripted::start().await);
        let realm = format!("Bearer realm=\"http://{}/token\"", harvester.host());
        storage.script(move |_| {
            Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, realm.clone())]).into_response())
        });
        let elsewhere = format!("http://{}/blob", storage.host());
        registry.script(move |seen| {
            is_blob(seen).then(|| {
                (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, elsewhere.clone())]).into_response()
            })
        });
        let volume = node.volume("pod");
        let status =
            node.publish_as(&volume, &reference, &[], ("user", "hunter2")).await.expect_err("refused");
        assert_eq!(status.code(), Code::Unavailable, "{}", status.message());
        assert!(status.message().contains(&format!("redirects to {}", storage.host())), "{status}");
        assert!(!storage.requests().is_empty() && !harvester.requests().is_empty());
        for seen in storage.requests().iter().chain(&harvester.requests()) {
            assert!(!seen.headers.contains_key(header::AUTHORIZATION), "{seen:?}");
        }
    });
}
