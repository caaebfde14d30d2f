//! Credentials go to whom they belong, and to nobody else.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::http::{HeaderMap, StatusCode, header};
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
fn t29_a_challenge_asks_for_no_other_right_than_to_pull_what_is_wanted() {
    isolated(async {
        let (registry, tokens) = (Scripted::start().await, Scripted::start().await);
        registry
            .pusher("team/m")
            .model("v1", &[Layer::model_file("weight", "w", "w")])
            .await
            .expect("pushed");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen_by_test = Arc::clone(&asked);
        tokens.script(move |seen| {
            seen_by_test.lock().expect("no panic").push(seen.path.clone());
            Some(r#"{"token":"good"}"#.into_response())
        });
        let realm = format!(
            "Bearer realm=\"http://{}/token\",service=\"x&scope=repository:other:*\",scope=\"repository:other:pull,push\"",
            tokens.host()
        );
        registry.script(move |seen| {
            let good = seen.headers.get(header::AUTHORIZATION).is_some_and(|value| value == "Bearer good");
            (!good).then(|| {
                (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, realm.clone())]).into_response()
            })
        });
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let volume = node.volume("pod");
        let reference = registry.reference("team/m:v1");
        node.publish_as(&volume, &reference, &[], ("user", "hunter2")).await.expect("published");
        let asked = asked.lock().expect("no panic").clone();
        assert!(!asked.is_empty());
        for path in asked {
            let query = path.split_once('?').expect("a query").1;
            let scopes: Vec<&str> = query.split('&').filter(|pair| pair.starts_with("scope=")).collect();
            assert_eq!(scopes, ["scope=repository%3Ateam%2Fm%3Apull"], "{path}");
        }
    });
}

/// A token server that takes POST alone, and gives `good` to who sends all of `wanted`.
async fn oauth_server(wanted: &'static [&'static str]) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let host = listener.local_addr().expect("bound").to_string();
    let answer = move |headers: axum::http::HeaderMap, body: String| async move {
        let is_form = headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value == "application/x-www-form-urlencoded");
        let pairs: Vec<&str> = body.split('&').collect();
        match is_form && wanted.iter().all(|pair| pairs.contains(pair)) {
            true => (StatusCode::OK, r#"{"access_token":"good","expires_in":300}"#),
            false => (StatusCode::UNAUTHORIZED, "{}"),
        }
    };
    let router = axum::Router::new().route("/token", axum::routing::post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    host
}

/// Publishes from a registry that wants `good` from `tokens`, with the keys of a secret.
async fn publish_with_oauth(tokens: &str, secret: &[(&str, &str)]) -> Result<(), tonic::Status> {
    let registry = Scripted::start().await;
    registry
        .pusher("team/m")
        .model("v1", &[Layer::model_file("weight", "w", noise(1, 1000))])
        .await
        .expect("pushed");
    let realm = format!("Bearer realm=\"http://{tokens}/token\",service=\"registry\"");
    registry.script(move |seen| {
        let good = seen.headers.get(header::AUTHORIZATION).is_some_and(|value| value == "Bearer good");
        (!good)
            .then(|| (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, realm.clone())]).into_response())
    });
    let node = Node::start(&["--plain-http", &registry.host()]).await;
    let volume = node.volume("pod");
    let reference = registry.reference("team/m:v1");
    let docker;
    let secret: Vec<(&str, &str)> = match secret {
        [("identitytoken", token)] => {
            docker = format!(r#"{{"auths":{{"{}":{{"identitytoken":"{token}"}}}}}}"#, registry.host());
            vec![(".dockerconfigjson", &docker)]
        }
        pair => pair.to_vec(),
    };
    let request = node.kubelet.publish_request(&volume, &[("reference", &reference)], &secret);
    let published = node.kubelet.publish(request).await;
    assert!(!node.logged().contains("hunter2"));
    if published.is_ok() {
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    }
    published
}

#[test]
fn identity_tokens_and_passwords_are_posted_as_oauth2_has_it() {
    isolated(async {
        const SCOPE: &str = "scope=repository%3Ateam%2Fm%3Apull";
        let refresh: &'static [&str] = &[
            "grant_type=refresh_token",
            "refresh_token=t0ken",
            SCOPE,
            "service=registry",
            "client_id=ocivol",
        ];
        let tokens = oauth_server(refresh).await;
        publish_with_oauth(&tokens, &[("identitytoken", "t0ken")]).await.expect("published");
        let status = publish_with_oauth(&tokens, &[("identitytoken", "other")]).await.expect_err("wrong");
        assert_eq!(status.code(), Code::Unauthenticated, "{}", status.message());

        // GET is asked first, as Docker does; this server answers it with 405.
        let password: &'static [&str] =
            &["grant_type=password", "username=user", "password=hunter2", SCOPE, "service=registry"];
        let tokens = oauth_server(password).await;
        publish_with_oauth(&tokens, &[("username", "user"), ("password", "hunter2")])
            .await
            .expect("published");
        let wrong = publish_with_oauth(&tokens, &[("username", "user"), ("password", "swordfish")]).await;
        let status = wrong.expect_err("wrong");
        assert_eq!(status.code(), Code::Unauthenticated, "{}", status.message());
        assert!(!status.message().contains("swordfish"), "{}", status.message());
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

#[test]
fn an_identity_token_is_posted_for_a_bearer_token() {
    isolated(async {
        let content = noise(1, 100_000);
        let registry = Scripted::with_model(content.clone()).await;
        // Source: distribution's "OAuth2 Token Authentication".
        let posted = Arc::new(Mutex::new(Vec::new()));
        let known = Arc::clone(&posted);
        let tokens = axum::Router::new().route(
            "/token",
            axum::routing::post(move |headers: HeaderMap, body: String| async move {
                assert!(!headers.contains_key(header::AUTHORIZATION), "{headers:?}");
                known.lock().expect("no panic").push(body);
                r#"{"access_token":"good","refresh_token":"another","expires_in":300}"#
            }),
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let server = listener.local_addr().expect("bound");
        tokio::spawn(async move { axum::serve(listener, tokens).await });
        registry.script(move |seen| {
            let good = seen.headers.get(header::AUTHORIZATION).is_some_and(|value| value == "Bearer good");
            let realm = format!("Bearer realm=\"http://{server}/token\",service=\"the service\"");
            (!good).then(|| (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, realm)]).into_response())
        });
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let volume = node.volume("pod");
        let config = serde_json::json!({"auths": {registry.host(): {"identitytoken": "to refresh with"}}});
        let secrets = [(".dockerconfigjson", config.to_string())];
        let secrets = secrets.each_ref().map(|(name, value)| (*name, value.as_str()));
        let reference = registry.reference("m:v1");
        let request = node.kubelet.publish_request(&volume, &[("reference", &reference)], &secrets);
        node.kubelet.publish(request).await.expect("published");
        assert!(std::fs::read(volume.target.join("w")).expect("read") == content);
        let posted = posted.lock().expect("no panic").clone();
        let [form] = posted.as_slice() else { panic!("not one token for all requests: {posted:?}") };
        for field in [
            "grant_type=refresh_token",
            "service=the+service",
            "scope=repository%3Am%3Apull",
            "refresh_token=to+refresh+with",
        ] {
            assert!(form.split('&').any(|known| known == field), "no {field:?} in {form:?}");
        }
        assert!(!node.logged().contains("to refresh with"));
    });
}
