//! Measuring volumes, beside what else happens to them.

use ocivol::demo::push::Layer;
use ocivol::demo::tarball::{Tarball, gzip};
use tonic::Code;

use crate::support::node::mount_at;
use crate::support::{Node, Scripted, isolated};

const DIRECTORIES: u32 = 50;
const FILES: u32 = 1_000;

/// Whether the plugin has something open on the volume at `target`.
fn is_being_read(node: &Node, target: &std::path::Path) -> bool {
    let open = std::fs::read_dir(format!("/proc/{}/fd", node.pid())).expect("it runs");
    let target = target.strip_prefix("/").expect("absolute").display().to_string();
    // The container's root is somewhere else.
    let links = open.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.into_iter().any(|link| link.display().to_string().contains(&target))
}

#[test]
fn regression_an_unpublish_is_not_refused_because_the_volume_is_being_measured() {
    isolated(async {
        let registry = Scripted::start().await;
        let mut tar = Tarball::new();
        for directory in 0..DIRECTORIES {
            tar = tar.directory(format!("{directory:02}"));
            for file in 0..FILES {
                tar = tar.file(format!("{directory:02}/{file:04}"), b"");
            }
        }
        let layer = Layer::archive(gzip(&tar.finish()).expect("gzip"));
        registry.pusher("m").image("v1", &[layer], &[]).await.expect("pushed");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let reference = registry.reference("m:v1");
        let all = u64::from(DIRECTORIES * (FILES + 1) + 1);
        for round in 0..8 {
            let volume = node.volume("pod");
            // Of a part of a tree there is no record: it is measured, by a mount that keeps nobody from unmounting.
            let part = [("path", if round % 2 == 0 { "/" } else { "07" })];
            let all = if round % 2 == 0 { all } else { u64::from(FILES + 1) };
            node.publish(&volume, &reference, &part).await.expect("published");
            let usage = node.kubelet.stats(&volume).await.expect("stats");
            assert_eq!(usage[1].used, i64::try_from(all).expect("a number"), "all of it is counted");
            let measures: Vec<_> = (0..3)
                .map(|_| {
                    let (kubelet, volume) = (node.kubelet.clone(), volume.clone());
                    tokio::spawn(async move {
                        loop {
                            if let Err(status) = kubelet.stats(&volume).await {
                                return status;
                            }
                        }
                    })
                })
                .collect();
            assert!(!is_being_read(&node, &volume.target), "what is known is not measured");
            let unpublished = node.kubelet.unpublish(&volume).await;
            unpublished.unwrap_or_else(|status| panic!("round {round}: {status}"));
            assert!(mount_at(&volume.target).is_none() && !volume.target.exists(), "round {round}");
            for measure in measures {
                let status = measure.await.expect("no panic");
                assert_eq!(status.code(), Code::NotFound, "round {round}: {status}");
            }
        }
    });
}
