//! Measuring volumes, beside what else happens to them.

use crate::support::node::mount_at;
use crate::support::{Node, Scripted, eventually, isolated};
use ocivol::csi::v1::VolumeUsage;
use ocivol::demo::kubelet::PodVolume;
use ocivol::demo::push::Layer;
use ocivol::demo::tarball::{Tarball, gzip};
use tokio::task::JoinHandle;
use tonic::Status;

/// The answer to kubelet's question, once it is there.
type Measuring = JoinHandle<Result<Vec<VolumeUsage>, Status>>;

const DIRECTORIES: u32 = 50;
const FILES: u32 = 1_000;

/// A node, and a reference to an image of very many files in one directory.
async fn many_files() -> (Scripted, Node, String) {
    let registry = Scripted::start().await;
    let mut tar = Tarball::new();
    for directory in 0..DIRECTORIES {
        tar = tar.directory(format!("d/{directory:02}"));
        for file in 0..FILES {
            tar = tar.file(format!("d/{directory:02}/{file:04}"), b"");
        }
    }
    let layer = Layer::archive(gzip(&tar.finish()).expect("gzip"));
    registry.pusher("m").image("v1", &[layer], &[]).await.expect("pushed");
    let node = Node::start(&["--plain-http", &registry.host()]).await;
    let reference = registry.reference("m:v1");
    (registry, node, reference)
}

/// Publishes a part of the image that was not published before, and asks for how much it holds. Of a part of a tree there is no
/// record: it is measured.
async fn begin_to_measure(node: &Node, reference: &str, round: u32) -> (PodVolume, Measuring) {
    let volume = node.volume("pod");
    let left_out = format!("d/00/{round:04}");
    let part = [("path", "d"), ("exclude", left_out.as_str())];
    node.publish(&volume, reference, &part).await.expect("published");
    let (kubelet, measured) = (node.kubelet.clone(), volume.clone());
    let measure = tokio::spawn(async move { kubelet.stats(&measured).await });
    eventually("it is measured", || reads_a_volume(node.pid()) || measure.is_finished()).await;
    (volume, measure)
}

/// Files and directories without the one that is left out, and with the root.
const ALL: i64 = (DIRECTORIES * (FILES + 1)) as i64;

#[test]
fn regression_an_unpublish_is_not_refused_because_the_volume_is_being_measured() {
    isolated(async {
        let (_registry, node, reference) = many_files().await;
        let mut was_measured = false;
        // A round in which the measurement ended before the test saw it shows nothing.
        for round in 0..8 {
            let (volume, measure) = begin_to_measure(&node, &reference, round).await;
            let unpublished = node.kubelet.unpublish(&volume).await;
            unpublished.unwrap_or_else(|status| panic!("round {round}: {status}"));
            was_measured = !measure.is_finished();
            assert!(mount_at(&volume.target).is_none() && !volume.target.exists(), "round {round}");
            let usage = measure.await.expect("no panic").expect("it was there");
            assert_eq!(usage[1].used, ALL, "all of it is counted");
            if was_measured {
                break;
            }
        }
        assert!(was_measured, "nothing was unpublished while it was measured");
    });
}

#[test]
fn a_call_that_runs_is_answered_before_the_plugin_ends() {
    isolated(async {
        let (_registry, mut node, reference) = many_files().await;
        let mut was_measured = false;
        for round in 0..8 {
            let (volume, measure) = begin_to_measure(&node, &reference, round).await;
            was_measured = !measure.is_finished();
            node.stop().await;
            assert_eq!(measure.await.expect("no panic").expect("it was begun")[1].used, ALL);
            node.run().await;
            node.kubelet.unpublish(&volume).await.expect("unpublished");
            if was_measured {
                break;
            }
        }
        assert!(was_measured, "the plugin was not told to end while it measured");
    });
}

/// Whether the process reads a directory of the volume; of a mount that is attached nowhere, the kernel shows paths that begin
/// at its root.
fn reads_a_volume(pid: u32) -> bool {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the plugin runs");
    let mut open = open.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
    open.any(|path| path.to_str().is_some_and(|path| path.len() == 3 && path.starts_with('/')))
}
