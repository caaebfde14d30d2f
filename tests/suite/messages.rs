//! The README's troubleshooting section quotes what a pod's event shows: each message here is there, word for word.

use axum::http::Method;
use axum::response::IntoResponse;
use ocivol::demo::push::Layer;

use crate::support::debian_registry::{DebianRegistry, LOGIN};
use crate::support::{Node, Scripted, isolated, noise};

/// Fails unless the README quotes `message`, with what differs from run to run replaced by `replacements`.
fn assert_quoted(what: &str, message: &str, replacements: &[(&str, &str)]) {
    let mut text = message.to_owned();
    for (from, to) in replacements {
        text = text.replace(from, to);
    }
    let readme = include_str!("../../README.md");
    let section = readme.split("## Troubleshooting").nth(1).expect("a section on troubleshooting");
    let section = section.split("\n## ").next().expect("its text");
    // The README breaks lines where it likes.
    let flat = |text: &str| {
        let text = text.replace("&lt;", "<").replace("&gt;", ">");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert!(flat(section).contains(&flat(&text)), "{what}: the README does not quote\n{text}");
}

#[test]
fn the_readme_quotes_what_the_pods_event_shows() {
    isolated(async {
        let registry = DebianRegistry::with_login().await;
        let layers = [Layer::model_file("weight", "model.gguf", noise(1, 1000))];
        registry.pusher("models/llama").model("v1", &layers).await.expect("pushed");
        let scripted = Scripted::start().await;
        let content = noise(2, 30 << 20);
        let digest = ocivol::oci::Digest::sha256(&content).to_string();
        let large = [Layer::model_file("weight", "model.gguf", content)];
        scripted.pusher("models/llama").model("v1", &large).await.expect("pushed");
        let (host, other) = (registry.host(), scripted.host());
        let hosts = format!("{host},{other}");
        let mut node = Node::start(&["--plain-http", &hosts]).await;
        let volume = node.volume("pod");
        let replacements =
            [(host.as_str(), "registry.example.com"), (other.as_str(), "registry.example.com")];
        let good = registry.reference("models/llama:v1");

        let tag = registry.reference("models/llama:v2");
        let status = node.publish_as(&volume, &tag, &[], LOGIN).await.expect_err("a wrong tag");
        assert_quoted("wrong tag", status.message(), &replacements);

        let status =
            node.publish(&volume, "registry.invalid/models/llama:v1", &[]).await.expect_err("a wrong host");
        // Resolvers word it differently; what comes before and after does not.
        let reason = status
            .message()
            .split("cannot reach registry.invalid: ")
            .nth(1)
            .and_then(|rest| rest.split("; check").next());
        let reason = reason.unwrap_or_else(|| panic!("{}", status.message())).to_owned();
        assert_quoted(
            "wrong host",
            status.message(),
            &[(&reason, "<reason>"), ("registry.invalid", "registry.example.com")],
        );

        let status = node.publish(&volume, &good, &[]).await.expect_err("no password");
        assert_quoted("no credentials", status.message(), &replacements);
        let status =
            node.publish_as(&volume, &good, &[], (LOGIN.0, "guess")).await.expect_err("a wrong password");
        assert_quoted("wrong password", status.message(), &replacements);

        let status =
            node.publish(&volume, &good, &[("pulPolicy", "Always")]).await.expect_err("an unknown attribute");
        assert_quoted("unknown attribute", status.message(), &replacements);

        scripted.script(|seen| {
            let blob = seen.path.contains("/blobs/") && seen.method == Method::GET;
            blob.then(|| vec![0_u8; 30 << 20].into_response())
        });
        let status = node
            .publish(&volume, &scripted.reference("models/llama:v1"), &[])
            .await
            .expect_err("wrong bytes");
        let zeros = ocivol::oci::Digest::sha256(&vec![0_u8; 30 << 20]).to_string();
        let digests = [
            (other.as_str(), "registry.example.com"),
            (digest.as_str(), "sha256:<wanted>"),
            (&zeros, "sha256:<got>"),
        ];
        assert_quoted("wrong digest", status.message(), &digests);
        scripted.unscript();

        let bad = ocivol::demo::tarball::Tarball::new().file("a/../../etc/passwd", b"x").finish();
        let bad = Layer::archive(bad);
        scripted.pusher("images/app").image("v1", std::slice::from_ref(&bad), &[]).await.expect("pushed");
        let status = node
            .publish(&node.volume("image"), &scripted.reference("images/app:v1"), &[])
            .await
            .expect_err("a bad layer");
        let layer = ocivol::oci::Digest::sha256(&bad.content).to_string();
        assert_quoted("bad layer", status.message(), &[(&layer, "sha256:<layer>")]);

        node.kill();
        let mut full = Node::prepare(&["--plain-http", &hosts]);
        full.limit_store("16m");
        full.run().await;
        let volume = full.volume("pod");
        let status = full
            .publish(&volume, &scripted.reference("models/llama:v1"), &[])
            .await
            .expect_err("a full disk");
        let free = status.message().split("are needed, ").nth(1).and_then(|rest| rest.split(" bytes").next());
        let free = free.unwrap_or_else(|| panic!("{}", status.message())).to_owned();
        let store = full.root.join("v1").display().to_string();
        let changes = [(store.as_str(), "/var/lib/ocivol/v1"), (&free, "<free>"), ("31457280", "<size>")];
        assert_quoted("full disk", status.message(), &changes);
        full.stop().await;
        nix::mount::umount(&full.root).expect("unmounted");
    });
}
