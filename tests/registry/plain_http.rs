//! A registry without TLS that is not on this machine: whoever is on the network between may answer in its place.

use std::process::Command;

use axum::http::Method;
use ocivol::demo::push::Layer;

use crate::support::{Node, Scripted, isolated, noise};

/// An address of this network namespace that is no loopback address.
const ADDRESS: &str = "10.77.0.1";

#[test]
fn the_word_of_a_registry_without_tls_is_no_proof_of_a_right() {
    isolated(async {
        let added =
            Command::new("ip").args(["address", "add", &format!("{ADDRESS}/32"), "dev", "lo"]).status();
        assert!(added.is_ok_and(|status| status.success()), "no address");
        let content = noise(41, 100_000);
        let registry = Scripted::start_with_many_names().await;
        for repository in ["one", "two"] {
            let layer = Layer::model_file("weight", "w", content.clone());
            registry.pusher(repository).model("v1", &[layer]).await.expect("pushed");
        }
        let local = registry.host();
        let far = local.replace("127.0.0.1", ADDRESS);
        for (host, has_the_word) in [(&local, true), (&far, false)] {
            let node = Node::start(&["--plain-http", host]).await;
            // With a login, so that nothing is everybody's.
            let login = ("user", "hunter2");
            let volume = node.volume("one");
            node.publish_as(&volume, &format!("{host}/one:v1"), &[], login).await.expect("published");
            registry.forget();
            let volume = node.volume("two");
            node.publish_as(&volume, &format!("{host}/two:v1"), &[], login).await.expect("published");
            assert!(std::fs::read(volume.target.join("w")).expect("read") == content);
            let compared = registry.count(&Method::GET, "/v2/two/blobs/");
            assert_eq!(compared == 0, has_the_word, "{host}: {:?}", registry.requests());
            assert!(registry.count(&Method::GET, "/v2/two/manifests/") > 0, "{host}");
        }
    });
}
