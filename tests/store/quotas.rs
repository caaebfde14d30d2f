//! What one namespace may have on a node that no other uses.

use ocivol::demo::kubelet::{Pod, PodVolume};
use ocivol::demo::push::Layer;
use ocivol::demo::tarball::{Tarball, gzip};
use tonic::{Code, Status};

use crate::support::{Node, Scripted, isolated};

async fn node(registry: &Scripted, flags: &[&str]) -> Node {
    let host = registry.host();
    let mut node = Node::prepare(&[&["--plain-http", &host, "--gc-min-age", "0"], flags].concat());
    node.run_registered().await;
    node
}

/// Publishes the model with this number in a pod of `namespace`.
async fn publish(
    node: &Node,
    registry: &Scripted,
    namespace: &str,
    number: u64,
) -> Result<PodVolume, Status> {
    let volume = node.volume_of(&Pod::new(namespace, &format!("{namespace}-{number}")), "model");
    node.publish(&volume, &registry.reference(&format!("m{number}:v1")), &[]).await.map(|()| volume)
}

#[test]
fn a_namespace_has_so_much_and_what_it_shares_is_nobodys() {
    isolated(async {
        let registry = Scripted::with_models(4, 6).await;
        let node = node(&registry, &["--quota-bytes", "9MiB"]).await;
        let first = publish(&node, &registry, "one", 0).await.expect("published");
        publish(&node, &registry, "one", 1).await.expect("published");
        let status = publish(&node, &registry, "one", 2).await.expect_err("two of four are mounted");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(status.message().contains("namespace one has as many bytes"), "{status}");
        // Its neighbour has a quota of its own, and what both use is nobody's.
        publish(&node, &registry, "two", 3).await.expect("published");
        publish(&node, &registry, "two", 0).await.expect("published");
        publish(&node, &registry, "one", 2).await.expect("one of its two is shared");
        // What it does not use goes for what it wants.
        node.kubelet.unpublish(&first).await.expect("unpublished");
        let unused = node.volume_of(&Pod::new("one", "one-1"), "model");
        node.kubelet.unpublish(&unused).await.expect("unpublished");
        registry.forget();
        publish(&node, &registry, "one", 4).await.expect("published");
        publish(&node, &registry, "two", 0).await.expect("still here");
        assert_eq!(registry.count(&axum::http::Method::GET, "/blobs/"), 1, "nobody else paid for it");
    });
}

#[test]
fn a_namespace_has_so_many_trees_and_files() {
    isolated(async {
        let registry = Scripted::with_models(1, 6).await;
        let limited = node(&registry, &["--quota-trees", "2"]).await;
        let first = publish(&limited, &registry, "one", 0).await.expect("published");
        publish(&limited, &registry, "one", 1).await.expect("published");
        let status = publish(&limited, &registry, "one", 2).await.expect_err("both are mounted");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(status.message().contains("different volumes"), "{status}");
        limited.kubelet.unpublish(&first).await.expect("unpublished");
        publish(&limited, &registry, "one", 2).await.expect("one is unused");
        drop(limited);

        let limited = node(&registry, &["--quota-inodes", "1000"]).await;
        let files = (0..2000).fold(Tarball::new(), |tar, number| tar.file(number.to_string(), b"1"));
        let layers = [Layer::archive(gzip(&files.finish()).expect("gzip"))];
        registry.pusher("files").image("v1", &layers, &[]).await.expect("pushed");
        let volume = limited.volume_of(&Pod::new("one", "files"), "model");
        // How many files an archive has is known only afterwards.
        limited.publish(&volume, &registry.reference("files:v1"), &[]).await.expect("published");
        let status = publish(&limited, &registry, "one", 0).await.expect_err("too many files");
        assert!(status.message().contains("as many files"), "{status}");
        publish(&limited, &registry, "two", 0).await.expect("published");
        limited.kubelet.unpublish(&volume).await.expect("unpublished");
        publish(&limited, &registry, "one", 0).await.expect("they are not in use any more");
    });
}

/// The inodes of a node can be taken without a download, by leaving out another file each time.
#[test]
fn regression_t43_other_choices_of_one_image_are_bounded() {
    isolated(async {
        let registry = Scripted::start().await;
        let files = (0..200).fold(Tarball::new(), |tar, number| tar.file(format!("{number}/f"), b"1"));
        let layers = [Layer::archive(gzip(&files.finish()).expect("gzip"))];
        registry.pusher("files").image("v1", &layers, &[]).await.expect("pushed");
        let reference = registry.reference("files:v1");
        let trees = |node: &Node| std::fs::read_dir(node.root.join("v1/trees")).expect("a directory").count();
        for (flags, namespaces) in [(["--gc-min-age", "0"], 2), (["--gc-min-age", "600"], 1)] {
            let host = registry.host();
            let mut node = Node::prepare(&[&["--plain-http", &host], &flags[..]].concat());
            node.run_registered().await;
            let choose = async |namespace: &str, number: u64| {
                let volume = node.volume_of(&Pod::new(namespace, namespace), "model");
                let exclude = format!("{number}/**");
                node.publish(&volume, &reference, &[("exclude", &exclude)]).await?;
                node.kubelet.unpublish(&volume).await
            };
            let mut refused = 0;
            for number in 0..90 {
                for namespace in ["one", "two"].iter().take(namespaces) {
                    let number = if *namespace == "one" { number } else { 100 + number };
                    if let Err(status) = choose(namespace, number).await {
                        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                        assert!(status.message().contains("different volumes of sha256:"), "{status}");
                        refused += 1;
                    }
                }
            }
            assert!(trees(&node) <= 65 * namespaces, "{} trees", trees(&node));
            // What was unused for some time makes place; what was in use a moment ago does not, and the next one is refused.
            assert_eq!(refused > 0, flags[1] == "600", "{refused}");
            // Another namespace is not concerned.
            choose("three", 7).await.expect("published");
        }
    });
}
