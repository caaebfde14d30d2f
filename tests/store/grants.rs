//! Who may have what is in the store already: I9.

use std::time::{Duration, Instant};

use axum::http::{Method, StatusCode, header};
use axum::response::IntoResponse;
use ocivol::demo::kubelet::Kubelet;
use ocivol::demo::push::Layer;
use ocivol::demo::registry::parse_range;
use tonic::Code;

use crate::support::answers::broken;
use crate::support::{Node, PATIENCE, Scripted, isolated, noise};

/// Lets through only who logs in as one of `users`, each with the password `pw`.
fn require_login(registry: &Scripted, users: &'static [&'static str]) {
    use base64::Engine as _;
    registry.script(move |seen| {
        let allowed = users.iter().any(|user| {
            let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:pw"));
            seen.headers.get(header::AUTHORIZATION).is_some_and(|value| value == &format!("Basic {pair}"))
        });
        (!allowed).then(|| {
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"r\"")]).into_response()
        })
    });
}

fn blob_gets(registry: &Scripted) -> usize {
    registry.count(&Method::GET, "/blobs/")
}

#[test]
fn t39_cached_private_content_is_for_those_with_credentials() {
    isolated(async {
        let registry = Scripted::start().await;
        let layers = [Layer::model_file("weight", "w", noise(1, 2 << 20))];
        let digest = registry.pusher("private").model("v1", &layers).await.expect("pushed");
        require_login(&registry, &["a", "c"]);
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let reference = registry.reference("private:v1");
        let pinned = registry.reference(&format!("private@{digest}"));
        let pod = |name: &str| node.volume(name);
        node.publish_as(&pod("a"), &reference, &[], ("a", "pw")).await.expect("A may");
        assert_eq!(blob_gets(&registry), 1);

        for reference in [&reference, &pinned] {
            for policy in ["IfNotPresent", "Always", "Never"] {
                let attributes = [("pullPolicy", policy)];
                let expected = if policy == "Never" { Code::NotFound } else { Code::Unauthenticated };
                let status = node.publish(&pod("b"), reference, &attributes).await.expect_err("B may not");
                assert_eq!(status.code(), expected, "{policy}: {}", status.message());
                let wrong = node.publish_as(&pod("b"), reference, &attributes, ("a", "guess")).await;
                assert_eq!(wrong.expect_err("nor with a guess").code(), expected, "{policy}");
            }
        }
        // The answer to Never is the same for what is not there at all.
        let absent = registry.reference("absent:v1");
        let never = [("pullPolicy", "Never")];
        let status = node.publish(&pod("b"), &absent, &never).await.expect_err("absent");
        let theirs = node.publish(&pod("b"), &reference, &never).await.expect_err("not theirs");
        assert_eq!(status.message().replace("absent", "private"), theirs.message());

        node.publish_as(&pod("c"), &reference, &[], ("c", "pw")).await.expect("C may");
        assert_eq!(blob_gets(&registry), 1, "and nothing is pulled again");

        registry.forget();
        node.publish_as(&pod("a2"), &reference, &[], ("a", "pw")).await.expect("A again");
        assert!(registry.requests().is_empty(), "what A has shown is believed for a while");
        for name in ["a", "c", "a2"] {
            node.kubelet.unpublish(&pod(name)).await.expect("unpublished");
        }
    });
}

#[test]
fn a_registry_that_is_down_serves_those_who_showed_their_right_before() {
    isolated(async {
        let registry = Scripted::start().await;
        let layers = [Layer::model_file("weight", "w", "private")];
        registry.pusher("private").model("v1", &layers).await.expect("pushed");
        require_login(&registry, &["a"]);
        let mut node = Node::start(&["--plain-http", &registry.host()]).await;
        let reference = registry.reference("private:v1");
        node.publish_as(&node.volume("a"), &reference, &[], ("a", "pw")).await.expect("A may");
        drop(registry);
        node.kill(); // What was shown survives the process.
        node.run().await;
        node.publish_as(&node.volume("a2"), &reference, &[], ("a", "pw")).await.expect("A again");
        let status = node.publish(&node.volume("b"), &reference, &[]).await.expect_err("B may not");
        assert_eq!(status.code(), Code::Unavailable, "{}", status.message());
        for name in ["a", "a2"] {
            node.kubelet.unpublish(&node.volume(name)).await.expect("unpublished");
        }
    });
}

#[test]
fn a_manifest_is_no_proof_of_its_blobs() {
    isolated(async {
        let secret = noise(2, 1 << 20);
        let private = Scripted::start().await;
        private
            .pusher("private")
            .model("v1", &[Layer::model_file("weight", "w", secret.clone())])
            .await
            .expect("pushed");
        require_login(&private, &["a"]);
        // The attacker knows the digest, and has a registry whose manifests name it.
        let attacker = Scripted::start().await;
        let own = Layer::model_file("weight", "own", "own");
        attacker
            .pusher("evil")
            .model("v1", &[own, Layer::model_file("weight", "w", secret.clone())])
            .await
            .expect("pushed");
        let stolen = ocivol::oci::digest::Digest::sha256(&secret).to_string();
        let lie = stolen.clone();
        attacker.script(move |seen| {
            // It cannot send the bytes; it says it has them.
            let asked = seen.path.contains(&lie);
            asked.then(|| {
                if seen.method == Method::HEAD { StatusCode::OK } else { StatusCode::NOT_FOUND }
                    .into_response()
            })
        });
        let hosts = format!("{},{}", private.host(), attacker.host());
        let node = Node::start(&["--plain-http", &hosts]).await;
        node.publish_as(&node.volume("a"), &private.reference("private:v1"), &[], ("a", "pw"))
            .await
            .expect("A may");
        let evil = attacker.reference("evil:v1");
        // A harmless part first: the right to a part is no right to the rest.
        let part = [("include", "own")];
        node.publish(&node.volume("part"), &evil, &part).await.expect("their own file");
        let status = node.publish(&node.volume("evil"), &evil, &[]).await.expect_err("not theirs");
        assert_eq!(status.code(), Code::NotFound, "{}", status.message());
        assert_eq!(attacker.count(&Method::HEAD, &stolen), 0, "its word is not asked for");

        // Who can send the bytes has them already: then the store's copy serves.
        let sent = secret.clone();
        attacker.script(move |seen| seen.path.contains(&stolen).then(|| sent.clone().into_response()));
        node.publish(&node.volume("evil"), &evil, &[]).await.expect("they have it");
        for name in ["a", "part", "evil"] {
            node.kubelet.unpublish(&node.volume(name)).await.expect("unpublished");
        }
    });
}

#[test]
fn another_repository_of_the_same_registry_proves_with_a_head() {
    isolated(async {
        let registry = Scripted::start().await;
        let weights = noise(3, 1 << 20);
        for (repository, doc) in [("one", "1"), ("two", "2")] {
            let layers =
                [Layer::model_file("weight", "w", weights.clone()), Layer::model_file("doc", "d", doc)];
            registry.pusher(repository).model("v1", &layers).await.expect("pushed");
        }
        require_login(&registry, &["a"]);
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let (one, two) = (registry.reference("one:v1"), registry.reference("two:v1"));
        node.publish_as(&node.volume("one"), &one, &[], ("a", "pw")).await.expect("published");
        registry.forget();
        node.publish_as(&node.volume("two"), &two, &[], ("a", "pw")).await.expect("published");
        let digest = ocivol::oci::digest::Digest::sha256(&weights).to_string();
        assert_eq!(registry.count(&Method::GET, &digest), 0, "not pulled again");
        // Asked twice: the first answer is a challenge.
        assert!((1..=2).contains(&registry.count(&Method::HEAD, &digest)));
        for name in ["one", "two"] {
            node.kubelet.unpublish(&node.volume(name)).await.expect("unpublished");
        }
    });
}

#[test]
fn what_was_fetched_anonymously_is_for_everybody() {
    isolated(async {
        let public = Scripted::start().await;
        let weights = noise(4, 1 << 20);
        let layer = Layer::model_file("weight", "w", weights.clone());
        public.pusher("m").model("v1", std::slice::from_ref(&layer)).await.expect("pushed");
        let other = Scripted::start().await;
        other.pusher("m").model("v1", &[layer]).await.expect("pushed");
        let hosts = format!("{},{}", public.host(), other.host());
        let node = Node::start(&["--plain-http", &hosts]).await;
        node.publish(&node.volume("one"), &public.reference("m:v1"), &[]).await.expect("published");
        node.publish(&node.volume("two"), &other.reference("m:v1"), &[]).await.expect("published");
        assert_eq!(other.count(&Method::GET, "/blobs/"), 0);
        for name in ["one", "two"] {
            node.kubelet.unpublish(&node.volume(name)).await.expect("unpublished");
        }
    });
}

#[test]
fn a_failing_source_is_replaced_by_another_waiters() {
    isolated(async {
        let weights = noise(5, 600_000);
        let layer = Layer::model_file("weight", "w", weights.clone());
        let (bad, good) = (Scripted::start().await, Scripted::start().await);
        for registry in [&bad, &good] {
            registry.pusher("m").model("v1", std::slice::from_ref(&layer)).await.expect("pushed");
        }
        // The bad one takes the request and answers only when the good one's pod waits as well.
        let (joined, gate) = tokio::sync::watch::channel(false);
        // Then it asks for patience: longer than the other needs to join.
        let mut asked = false;
        bad.script(move |seen| {
            seen.path.contains("/blobs/").then(|| {
                if std::mem::replace(&mut asked, true) {
                    return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "5")]).into_response();
                }
                let mut gate = gate.clone();
                let body = futures_util::stream::once(async move {
                    let _ = gate.wait_for(|open| *open).await;
                    Err::<bytes::Bytes, _>(std::io::Error::other("gone"))
                });
                ([(header::CONTENT_LENGTH, 600_000)], axum::body::Body::from_stream(body)).into_response()
            })
        });
        let hosts = format!("{},{}", bad.host(), good.host());
        let node = Node::start(&["--plain-http", &hosts]).await;
        let (first, second) = (node.volume("first"), node.volume("second"));
        let start = |volume, reference: &str| {
            let kubelet = node.kubelet.clone();
            let request = kubelet.publish_request(volume, &[("reference", reference)], &[]);
            tokio::spawn(async move { kubelet.publish(request).await })
        };
        let one = start(&first, &bad.reference("m:v1"));
        crate::support::eventually("the bad registry is asked", || bad.count(&Method::GET, "/blobs/") > 0)
            .await;
        let two = start(&second, &good.reference("m:v1"));
        crate::support::eventually("the other pod's manifest is read", || {
            good.count(&Method::GET, "/manifests/") > 0
        })
        .await;
        joined.send_replace(true);
        two.await.expect("no panic").expect("the good registry serves");
        one.await.expect("no panic").expect("and so does what is in the store");
        assert_eq!(std::fs::read(first.target.join("w")).expect("read"), weights);
        for volume in [&first, &second] {
            node.kubelet.unpublish(volume).await.expect("unpublished");
        }
    });
}

#[test]
fn regression_names_in_a_private_layer_are_not_told_to_who_waits_for_it() {
    use ocivol::demo::tarball::Tarball;
    isolated(async {
        let (private, open) = (Scripted::start().await, Scripted::start().await);
        let tar = Tarball::new().file("secret/../name", &noise(6, 6_000_000)).finish();
        let layer = Layer::archive(tar.clone());
        for registry in [&private, &open] {
            registry.pusher("m").image("v1", std::slice::from_ref(&layer), &[]).await.expect("pushed");
        }
        // The private one breaks off in the middle of the layer. Asked for the rest, it waits for somebody else who wants
        // the layer; who waits for an answer to begin is not slow.
        let (joined, gate) = tokio::sync::watch::channel(false);
        let mut is_asked_again = false;
        private.script(move |seen| {
            seen.path.contains("/blobs/").then(|| {
                let length = tar.len();
                if !std::mem::replace(&mut is_asked_again, true) {
                    return broken(&tar[..length / 2], length, false);
                }
                let range = seen.headers.get(header::RANGE).and_then(|range| range.to_str().ok());
                let range = range.and_then(|range| parse_range(range, length)).expect("a range");
                let (mut gate, rest) = (gate.clone(), bytes::Bytes::copy_from_slice(&tar[range.clone()]));
                let body = futures_util::stream::once(async move {
                    let _ = gate.wait_for(|open| *open).await;
                    Ok::<_, std::io::Error>(rest)
                });
                let stated = format!("bytes {}-{}/{length}", range.start, range.end - 1);
                let headers = [(header::CONTENT_RANGE, stated)];
                (StatusCode::PARTIAL_CONTENT, headers, axum::body::Body::from_stream(body)).into_response()
            })
        });
        open.script(|seen| seen.path.contains("/blobs/").then(|| StatusCode::NOT_FOUND.into_response()));
        let hosts = format!("{},{}", private.host(), open.host());
        let node = Node::start(&["--plain-http", &hosts, "--stall-timeout", "600"]).await;
        let start = |name: &str, reference: String| {
            let (kubelet, volume) = (node.kubelet.clone(), node.volume(name));
            let request = kubelet.publish_request(&volume, &[("reference", &reference)], &[]);
            tokio::spawn(async move { kubelet.publish(request).await })
        };
        let owner = start("owner", private.reference("m:v1"));
        let asked = || private.count(&Method::GET, "/blobs/") > 1;
        crate::support::eventually("the rest of the layer is asked for", asked).await;
        let strangers: Vec<_> =
            (0..3).map(|number| start(&format!("stranger-{number}"), open.reference("m:v1"))).collect();
        // Nobody but the private registry sends anything of the layer: who has some of it has joined the owner's download.
        // One more stranger, whose call ends soon, is told how far the pull is that all of them share.
        let probe = node.volume("probe");
        let soon = Kubelet { deadline: Duration::from_secs(4), ..node.kubelet.clone() };
        let began = Instant::now();
        loop {
            let reference = open.reference("m:v1");
            let request = soon.publish_request(&probe, &[("reference", &reference)], &[]);
            let status = soon.publish(request).await.expect_err("it waits");
            assert_eq!(status.code(), Code::DeadlineExceeded, "{}", status.message());
            let told = status.message();
            if told.contains(": 0 of 1 layers, ") && !told.contains("layers, 0% of") {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "nobody joins: {}", status.message());
        }
        joined.send_replace(true);
        let told = owner.await.expect("no panic").expect_err("a bad name");
        assert!(told.message().contains("secret"), "{}", told.message());
        for stranger in strangers {
            let told = stranger.await.expect("no panic").expect_err("not theirs");
            assert!(!told.message().contains("secret"), "{}", told.message());
            assert_eq!(told.code(), Code::NotFound, "{}", told.message());
        }
        // Who came too late for that pull would have begun another.
        let log = node.logged();
        let of_strangers = |line: &&str| line.contains("pull failed") && line.contains(&open.host());
        assert_eq!(log.lines().filter(of_strangers).count(), 1, "{log}");
        // A second failure of the kind would not be logged, but counted.
        let metrics = crate::support::metrics::scrape().await;
        let is_failure = |series: &str| series.starts_with("ocivol_pulls_total{result=\"error\"");
        let failures = metrics.series.iter().filter(|(series, _)| is_failure(series));
        assert_eq!(failures.map(|(_, count)| count).sum::<f64>(), 2.0, "{}", metrics.text);
    });
}

#[test]
fn regression_a_wrong_promise_does_not_tell_what_is_cached() {
    use ocivol::demo::tarball::{Tarball, gzip};
    isolated(async {
        let registry = Scripted::start().await;
        let tar = Tarball::new().file("set/secret", &noise(5, 10_000)).finish();
        let content = gzip(&tar).expect("gzip");
        let real = ocivol::oci::digest::Digest::sha256(&tar).to_string();
        let layer = |promise: &str| Layer {
            annotations: serde_json::json!({
                "org.opencontainers.image.title": "set",
                "io.deis.oras.content.unpack": "true",
                "io.deis.oras.content.digest": promise,
            }),
            ..Layer::archive(content.clone())
        };
        registry.pusher("private").files("v1", &[layer(&real)]).await.expect("pushed");
        // The manifest is public; its repository has the blob only until the attacker may not read it any more.
        let wrong = ocivol::oci::digest::Digest::sha256(b"wrong").to_string();
        registry.pusher("open").files("v1", &[layer(&wrong)]).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        use base64::Engine as _;
        let pair = base64::engine::general_purpose::STANDARD.encode("a:pw");
        registry.script(move |seen| {
            let known = seen
                .headers
                .get(header::AUTHORIZATION)
                .is_some_and(|value| value == &format!("Basic {pair}"));
            if seen.path.contains("/open/blobs/") {
                return Some(StatusCode::NOT_FOUND.into_response());
            }
            (seen.path.contains("/private/") && !known).then(|| {
                (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"r\"")]).into_response()
            })
        });
        let reference = registry.reference("private:v1");
        node.publish_as(&node.volume("a"), &reference, &[], ("a", "pw")).await.expect("A may");
        let open = registry.reference("open:v1");
        for policy in ["Always", "Never"] {
            let attributes = [("pullPolicy", policy)];
            let status = node.publish(&node.volume("b"), &open, &attributes).await.expect_err("B may not");
            assert_eq!(status.code(), Code::NotFound, "{policy}: {}", status.message());
            assert!(!status.message().contains(&real), "{}", status.message());
        }
    });
}
