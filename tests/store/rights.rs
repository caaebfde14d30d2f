//! Rights to what is here: how long they are believed, what needs none, and what nobody is told.

use axum::http::{Method, StatusCode, header};
use axum::response::IntoResponse;
use ocivol::demo::push::Layer;
use ocivol::oci::digest::Digest;
use ocivol::oci::media_type;
use tonic::Code;

use crate::support::node::BINARY;
use crate::support::{Node, Scripted, isolated, noise};

/// A registry with a private model, which `a` may read with the password `pw`.
async fn private(content: &[u8]) -> (Scripted, String, Digest) {
    let registry = Scripted::start().await;
    let layers = [Layer::model_file("weight", "w", content.to_vec())];
    let digest = registry.pusher("private").model("v1", &layers).await.expect("pushed");
    want_password(&registry, None);
    let reference = registry.reference("private:v1");
    (registry, reference, digest)
}

/// Has `registry` serve only `a` with the password `pw`, and `gone` nobody.
fn want_password(registry: &Scripted, gone: Option<String>) {
    registry.script(move |seen| {
        let shown = seen.headers.get(header::AUTHORIZATION);
        let allowed = shown.is_some_and(|value| value == "Basic YTpwdw==");
        if gone.as_ref().is_some_and(|gone| allowed && seen.path.contains(gone)) {
            return Some((StatusCode::NOT_FOUND, "gone").into_response());
        }
        (!allowed).then(|| {
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"r\"")]).into_response()
        })
    });
}

/// A manifest of a blob that whoever writes it need not have.
fn manifest_that_lists(digest: &Digest, size: u64) -> String {
    serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "artifactType": "application/vnd.example",
        "config": { "mediaType": media_type::OCI_EMPTY, "size": 2, "digest": Digest::sha256(b"{}").to_string() },
        "layers": [{ "mediaType": "a/b", "digest": digest.to_string(), "size": size,
            "annotations": { "org.opencontainers.image.title": "w" } }],
    })
    .to_string()
}

/// Makes all grants and tags of a store a month old.
fn age(node: &Node) {
    let mut waiting = vec![node.root.join("v1/proofs"), node.root.join("v1/tags")];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                waiting.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a record");
            if let Some(shown) = text.strip_prefix("{\"shown\":").and_then(|rest| rest.strip_suffix('}')) {
                let then = shown.parse::<u64>().expect("seconds") - 30 * 24 * 3600;
                std::fs::write(&path, format!("{{\"shown\":{then}}}")).expect("written");
            }
            let month = std::time::Duration::from_secs(30 * 24 * 3600);
            let file = std::fs::File::open(&path).expect("a file");
            file.set_modified(std::time::SystemTime::now() - month).expect("touched");
        }
    }
}

#[test]
fn regression_what_was_shown_does_not_rot() {
    isolated(async {
        let (registry, reference, digest) = private(b"weights").await;
        let mut node = Node::start(&["--plain-http", &registry.host()]).await;
        node.publish_as(&node.volume("first"), &reference, &[], ("a", "pw")).await.expect("A may");
        node.kill();
        age(&node);
        node.run().await;
        registry.forget();
        for (name, policy) in [("never", "Never"), ("here", "IfNotPresent")] {
            let volume = node.volume(name);
            let attributes = [("pullPolicy", policy)];
            node.publish_as(&volume, &reference, &attributes, ("a", "pw")).await.expect(policy);
            node.kubelet.unpublish(&volume).await.expect("unpublished");
        }
        assert!(registry.requests().is_empty(), "{:?}", registry.requests());
        // By its digest: what a tag is, is known for a credential alone.
        let pinned = registry.reference(&format!("private@{digest}"));
        let other = node.publish(&node.volume("other"), &pinned, &[("pullPolicy", "Never")]).await;
        assert_eq!(other.expect_err("not without it").code(), Code::NotFound);
        node.kubelet.unpublish(&node.volume("first")).await.expect("unpublished");
    });
}

#[test]
fn an_operator_can_bound_how_long_a_right_is_believed() {
    isolated(async {
        let (registry, reference, _) = private(b"weights").await;
        for (flags, asks_at_once) in [(["--grant-ttl", "3600"], false), (["--always-verify", "-v"], true)] {
            let host = registry.host();
            let flags = [&["--plain-http", &host][..], &flags[..]].concat();
            let mut node = Node::start(&flags).await;
            node.publish_as(&node.volume("one"), &reference, &[], ("a", "pw")).await.expect("A may");
            registry.forget();
            node.publish_as(&node.volume("two"), &reference, &[], ("a", "pw")).await.expect("again");
            assert_eq!(!registry.requests().is_empty(), asks_at_once, "{flags:?}: {:?}", registry.requests());
            node.kill();
            age(&node);
            node.run().await;
            registry.forget();
            node.publish_as(&node.volume("three"), &reference, &[], ("a", "pw")).await.expect("later");
            assert!(!registry.requests().is_empty(), "{flags:?}: the registry is asked again");
            for name in ["one", "two", "three"] {
                node.kubelet.unpublish(&node.volume(name)).await.expect("unpublished");
            }
            node.stop().await;
        }
    });
}

#[test]
fn regression_what_everybody_may_read_needs_no_second_word() {
    isolated(async {
        let registry = Scripted::start().await;
        let layers = [Layer::model_file("weight", "w", "public")];
        let digest = registry.pusher("public").model("v1", &layers).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let pinned = registry.reference(&format!("public@{digest}"));
        node.publish(&node.volume("one"), &pinned, &[]).await.expect("published");
        std::fs::remove_dir_all(node.root.join("v1/proofs")).expect("removed");
        std::fs::create_dir(node.root.join("v1/proofs")).expect("made");
        registry.forget();
        // Another credential has shown nothing, and needs to show nothing.
        node.publish_as(&node.volume("two"), &pinned, &[("pullPolicy", "Never")], ("b", "x"))
            .await
            .expect("public");
        node.publish(&node.volume("three"), &pinned, &[]).await.expect("public");
        assert!(registry.requests().is_empty(), "{:?}", registry.requests());
        for name in ["one", "two", "three"] {
            node.kubelet.unpublish(&node.volume(name)).await.expect("unpublished");
        }
    });
}

#[test]
fn regression_a_manifest_that_anybody_can_write_gives_no_right_to_private_blobs() {
    isolated(async {
        let secret = noise(5, 1 << 20);
        let (registry, reference, _) = private(&secret).await;
        let attacker = Scripted::start().await;
        let hosts = format!("{},{}", registry.host(), attacker.host());
        let node = Node::start(&["--plain-http", &hosts]).await;
        node.publish_as(&node.volume("owner"), &reference, &[], ("a", "pw")).await.expect("A may");
        // A public manifest that lists a blob of another repository: the pull fails for want of the blob, the manifest stays.
        let manifest = manifest_that_lists(&Digest::sha256(&secret), secret.len() as u64);
        let pusher = attacker.pusher("evil");
        pusher.blob("{}".into()).await.expect("pushed");
        let digest = pusher.manifest("v1", media_type::OCI_MANIFEST, &manifest).await.expect("pushed");
        let evil = attacker.reference("evil:v1");
        node.publish(&node.volume("evil"), &evil, &[]).await.expect_err("its registry has no such blob");
        let kept = node.root.join("v1/blobs/sha256").join(digest.hex());
        assert!(kept.exists(), "the manifest is here");
        assert!(attacker.count(&Method::GET, "/manifests/") > 0, "{:?}", attacker.requests());
        // Nor is it a manifest of the repository that has the blob.
        let stolen = registry.reference(&format!("private@{digest}"));
        for policy in ["Never", "IfNotPresent"] {
            let volume = node.volume(policy);
            let published = node.publish(&volume, &stolen, &[("pullPolicy", policy)]).await;
            published.expect_err("nobody has shown a right to it there");
            assert!(!volume.target.join("w").exists());
        }
        node.kubelet.unpublish(&node.volume("owner")).await.expect("unpublished");
    });
}

#[test]
fn regression_a_tag_whose_content_is_gone_is_asked_for_again() {
    isolated(async {
        let registry = Scripted::start().await;
        let push = |content: &'static str| {
            let pusher = registry.pusher("model");
            async move { pusher.model("v1", &[Layer::model_file("weight", "w", content)]).await.expect("pushed") }
        };
        let old = push("old").await;
        let mut node = Node::start(&["--plain-http", &registry.host()]).await;
        let reference = registry.reference("model:v1");
        node.publish(&node.volume("first"), &reference, &[]).await.expect("published");
        node.kubelet.unpublish(&node.volume("first")).await.expect("unpublished");
        // As after a power cut: what the tag was is known, and not here. The registry has forgotten it as well.
        node.kill();
        let hex = old.hex().to_owned();
        for name in [format!("{hex}.json"), hex.clone()] {
            std::fs::remove_file(node.root.join("v1/blobs/sha256").join(name)).expect("removed");
        }
        push("new").await;
        registry.script(move |seen| {
            seen.path.contains(&hex).then(|| (StatusCode::NOT_FOUND, "gone").into_response())
        });
        node.run().await;
        let volume = node.volume("second");
        node.publish(&volume, &reference, &[("pullPolicy", "IfNotPresent")]).await.expect("published");
        assert_eq!(std::fs::read(volume.target.join("w")).expect("a file"), b"new");
        node.kubelet.unpublish(&volume).await.expect("unpublished");
    });
}

#[test]
fn regression_a_tag_whose_content_is_no_longer_known_to_be_the_askers_is_asked_for_again() {
    isolated(async {
        let registry = Scripted::start().await;
        let push = async |repository: &str, content: &'static str| {
            let layers = [Layer::model_file("weight", "w", content)];
            registry.pusher(repository).model("v1", &layers).await.expect("pushed").hex().to_owned()
        };
        let old = push("another", "old").await;
        assert_eq!(push("model", "old").await, old);
        want_password(&registry, None);
        let mut node = Node::start(&["--plain-http", &registry.host()]).await;
        let publish = async |node: &Node, repository: &str| {
            let (volume, reference) = (node.volume("pod"), registry.reference(&format!("{repository}:v1")));
            let attributes = [("pullPolicy", "IfNotPresent")];
            node.publish_as(&volume, &reference, &attributes, ("a", "pw")).await.expect("published");
            let content = std::fs::read(volume.target.join("w")).expect("a file");
            node.kubelet.unpublish(&volume).await.expect("unpublished");
            content
        };
        publish(&node, "another").await;
        publish(&node, "model").await;
        // What was learnt of it later is lost: that it is in the second repository as well.
        node.kill();
        std::fs::remove_dir_all(node.root.join("v1/facts")).expect("removed");
        registry.unscript();
        push("model", "new").await;
        want_password(&registry, Some(old));
        node.run().await;
        assert_eq!(publish(&node, "model").await, b"new");
    });
}

#[test]
fn regression_t39_free_space_tells_nothing_of_what_is_here() {
    isolated(async {
        let secret = noise(3, 1 << 20);
        let (registry, reference, _) = private(&secret).await;
        let attacker = Scripted::start().await;
        let hosts = format!("{},{}", registry.host(), attacker.host());
        let node = Node::start(&["--plain-http", &hosts]).await;
        node.publish_as(&node.volume("owner"), &reference, &[], ("a", "pw")).await.expect("A may");
        // A manifest with a size that cannot be: of a blob that is here, and of one that is not.
        let mut answers = Vec::new();
        for (tag, content) in [("here", secret.clone()), ("absent", noise(4, 1 << 20))] {
            let digest = Digest::sha256(&content);
            let manifest = manifest_that_lists(&digest, 1 << 60);
            let pusher = attacker.pusher("evil");
            pusher.manifest(tag, media_type::OCI_MANIFEST, &manifest).await.expect("pushed");
            let volume = node.volume(tag);
            let status = node.publish(&volume, &attacker.reference(&format!("evil:{tag}")), &[]).await;
            let status = status.expect_err("too large");
            answers.push((status.code(), status.message().replace(tag, "TAG")));
        }
        assert_eq!(answers[0], answers[1]);
        assert_eq!(answers[0].0, Code::ResourceExhausted);
        let text = &answers[0].1;
        let is_silent = !text.chars().any(|letter| letter.is_ascii_digit()) && !text.contains("/var/lib");
        assert!(is_silent, "{text}");
        node.kubelet.unpublish(&node.volume("owner")).await.expect("unpublished");
    });
}

#[test]
fn regression_t32_an_error_tells_nothing_of_another_origin() {
    isolated(async {
        let registry = Scripted::start().await;
        let inside = Scripted::start().await;
        let answer = "the answer of something that only the node reaches";
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        // Shorter, of the right length with another digest, and longer than an answer that does not say how long it is.
        for size in [1, answer.len(), 2 * answer.len()] {
            inside.script(move |_| {
                let pieces = [Ok::<_, std::io::Error>(answer)];
                let body = if size > answer.len() {
                    axum::body::Body::from_stream(futures_util::stream::iter(pieces))
                } else {
                    axum::body::Body::from(answer)
                };
                Some((StatusCode::OK, [("x-secret", "yes")], body).into_response())
            });
            let content = vec![b'x'; size];
            let tag = format!("v{size}");
            let layer = Layer::titled("w", content.clone());
            registry.pusher("evil").files(&tag, &[layer]).await.expect("pushed");
            let location = format!("http://{}/latest/meta-data", inside.host());
            registry.script(move |seen| {
                let to = [(header::LOCATION, location.clone())];
                seen.path.contains("/blobs/").then(|| (StatusCode::TEMPORARY_REDIRECT, to).into_response())
            });
            let reference = registry.reference(&format!("evil:{tag}"));
            let status = node.publish(&node.volume(&tag), &reference, &[]).await.expect_err("other bytes");
            let text = status.message();
            let got = Digest::sha256(answer.as_bytes());
            assert!(!text.contains(got.hex()) && !text.contains(&got.hex()[..12]), "{text}");
            let length = answer.len();
            let lengths = [format!("{length} bytes"), format!("byte {length}")];
            assert!(
                !lengths.iter().any(|length| text.contains(length)) && !text.contains("x-secret"),
                "{text}"
            );
            registry.unscript();
        }
        assert!(!inside.requests().is_empty());
        // The same of manifests: text, and what nearly is one.
        let location = format!("http://{}/latest/meta-data", inside.host());
        registry.script(move |seen| {
            let to = [(header::LOCATION, location.clone())];
            seen.path.contains("/manifests/").then(|| (StatusCode::TEMPORARY_REDIRECT, to).into_response())
        });
        for answer in ["some secret", r#"{"secret": "some secret"}"#, r#"{"schemaVersion": "some secret"}"#] {
            inside.script(move |_| {
                let kind = [(header::CONTENT_TYPE, "text/secret"), (header::CONTENT_ENCODING, "secret")];
                Some((StatusCode::OK, kind, answer).into_response())
            });
            for target in [":v1".to_owned(), format!("@{}", Digest::sha256(b"other"))] {
                let reference = registry.reference(&format!("evil{target}"));
                let volume = node.volume("manifest");
                let status = node.publish(&volume, &reference, &[]).await.expect_err("no manifest");
                let (text, got) = (status.message(), Digest::sha256(answer.as_bytes()));
                assert!(!text.contains("secret") && !text.contains(&got.hex()[..12]), "{text}");
            }
        }
    });
}

#[test]
fn regression_mount_asks_once_and_what_a_command_has_mounted_is_kept_for_it() {
    isolated(async {
        let registry = Scripted::start().await;
        let layers = [Layer::model_file("weight", "w", "content")];
        registry.pusher("m").model("v1", &layers).await.expect("pushed");
        let mut node = Node::on_host(&["--plain-http", &registry.host()]);
        node.run().await;
        let socket = node.root.join("control.sock");
        crate::support::eventually("the control socket", || socket.exists()).await;
        let directory = node.directory.path().join("here");
        std::fs::create_dir(&directory).expect("a directory");
        let run = |arguments: Vec<String>| {
            let mut command = std::process::Command::new(BINARY);
            command.args(["--root".as_ref(), node.root.as_os_str()]).env("DOCKER_CONFIG", "/nonexistent");
            command.args(["--plain-http", &registry.host()]).args(arguments);
            command
        };
        let place = directory.display().to_string();
        let reference = registry.reference("m:v1");
        let mount = vec!["mount".to_owned(), "--pull-policy=Always".into(), reference.clone(), place.clone()];
        let mut command = run(mount);
        let mounted = tokio::task::spawn_blocking(move || command.status().expect("it runs"));
        assert!(mounted.await.expect("no panic").success());
        let asked =
            registry.count(&Method::GET, "/manifests/") + registry.count(&Method::HEAD, "/manifests/");
        assert_eq!(asked, 1, "{:?}", registry.requests());
        let mut command = run(vec!["umount".into(), place.clone()]);
        let unmounted = tokio::task::spawn_blocking(move || command.status().expect("it runs"));
        assert!(unmounted.await.expect("no panic").success());

        // A command of its own is a process that holds what it has mounted.
        let script = "read line; cat \"$0/w\"".to_owned();
        let arguments = [
            "mount".to_owned(),
            reference,
            place.clone(),
            "--".into(),
            "sh".into(),
            "-c".into(),
            script,
            place,
        ];
        let mut command = run(arguments.to_vec());
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().expect("it runs");
        let leases = || std::fs::read_dir(node.root.join("v1/leases")).expect("leases").count();
        crate::support::eventually("a lease", || leases() == 1).await;
        let lease = std::fs::read_dir(node.root.join("v1/leases"))
            .expect("leases")
            .next()
            .expect("one")
            .expect("one");
        let text = std::fs::read_to_string(lease.path()).expect("a lease");
        assert!(text.contains(&format!("\"pid\":{}", child.id())), "{text}");
        drop(child.stdin.take());
        let output = tokio::task::spawn_blocking(move || child.wait_with_output().expect("it ends"));
        assert_eq!(output.await.expect("no panic").stdout, b"content");
        node.stop().await;
    });
}
