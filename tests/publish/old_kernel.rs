//! Kernels before 6.8 are asked for all mounts to find one: volumes are what they are on newer ones.

use std::fs;

use nix::mount::{MsFlags, mount, umount};
use ocivol::csi::v1::volume_capability::AccessMode;
use ocivol::csi::v1::volume_capability::access_mode::Mode;
use ocivol::demo::kubelet::PodVolume;
use ocivol::demo::push::Layer;
use tonic::Code;

use crate::support::node::mount_at;
use crate::support::{Node, Scripted, isolated};

/// All that needs to know what is mounted at a target.
async fn the_life_of_volumes(lacking: Option<&str>) {
    let registry = Scripted::start().await;
    let layers = [Layer::model_file("weight", "d/w", "content")];
    registry.pusher("m").model("v1", &layers).await.expect("pushed");
    let reference = registry.reference("m:v1");
    let mut node = Node::prepare(&["--plain-http", &registry.host()]);
    node.env.extend(lacking.map(|what| ("OCIVOL_LACKS".to_owned(), what.to_owned())));
    node.run().await;
    let volume = node.volume("pod");
    node.publish(&volume, &reference, &[]).await.expect("published");
    let first = mount_at(&volume.target).expect("mounted");
    node.publish(&volume, &reference, &[]).await.expect("it is there");
    assert_eq!(mount_at(&volume.target), Some(first), "it was mounted once");
    let usage = node.kubelet.stats(&volume).await.expect("measured");
    assert_eq!(usage.first().map(|usage| usage.used), Some(7));
    // Of a part there is no record: it is counted.
    let part = node.volume("part");
    node.publish(&part, &reference, &[("path", "d")]).await.expect("published");
    let usage = node.kubelet.stats(&part).await.expect("measured");
    assert_eq!(usage.first().map(|usage| usage.used), Some(7));

    // A claim that is used without readOnly is an overlay.
    let overlay = node.volume("overlay");
    let mut request = node.kubelet.publish_request(&overlay, &[("reference", &reference)], &[]);
    request.volume_context.insert("csi.storage.k8s.io/ephemeral".into(), "false".into());
    request.readonly = false;
    if let Some(capability) = &mut request.volume_capability {
        capability.access_mode = Some(AccessMode { mode: Mode::MultiNodeReaderOnly.into() });
    }
    node.kubelet.publish(request.clone()).await.expect("published");
    node.kubelet.publish(request).await.expect("it is there");
    assert!(mount_at(&overlay.target).is_some_and(|mount| mount.is_overlay));

    // What is not ours is neither taken for a volume nor unmounted, below or on top of one.
    let none: Option<&str> = None;
    let foreign = |volume: &PodVolume| {
        mount(Some(&volume.target), &volume.target, none, MsFlags::MS_BIND, none).expect("bound");
        mount(Some("x"), &volume.target, Some("tmpfs"), MsFlags::empty(), none).expect("mounted");
    };
    let other = node.volume("other");
    fs::create_dir(&other.target).expect("a directory");
    foreign(&other);
    let refused = node.publish(&other, &reference, &[]).await.expect_err("occupied");
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    let refused = node.kubelet.unpublish(&other).await.expect_err("not ours");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(node.kubelet.stats(&other).await.is_err());
    for _ in 0..2 {
        umount(&other.target).expect("unmounted");
    }

    // Volumes that another process published are known, without a store as well.
    node.stop().await;
    node.run().await;
    node.publish(&volume, &reference, &[]).await.expect("it is there");
    for volume in [&volume, &part, &overlay, &other] {
        node.kubelet.unpublish(volume).await.expect("unpublished");
        assert!(!volume.target.exists());
        node.kubelet.unpublish(volume).await.expect("again");
    }
}

#[test]
fn volumes_are_found_one_by_one() {
    isolated(the_life_of_volumes(None));
}

#[test]
fn volumes_are_found_in_the_table_where_the_kernel_knows_nothing_else() {
    isolated(the_life_of_volumes(Some("statmount")));
}

/// Linux 6.8 and newer.
fn has_statmount() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(8))
}

#[test]
fn regression_what_a_call_costs_does_not_grow_with_the_volumes() {
    isolated(async {
        let registry = Scripted::with_model("content").await;
        let reference = registry.reference("m:v1");
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let volume = node.volume("pod");
        let read_by_a_life = async || {
            let before = node.bytes_read();
            for _ in 0..2 {
                node.publish(&volume, &reference, &[]).await.expect("published");
            }
            node.kubelet.stats(&volume).await.expect("measured");
            node.kubelet.unpublish(&volume).await.expect("unpublished");
            node.bytes_read() - before
        };
        read_by_a_life().await;
        let few = read_by_a_life().await;
        for number in 0..200 {
            let other = node.volume(&format!("other-{number}"));
            node.publish(&other, &reference, &[]).await.expect("published");
        }
        let table = fs::read("/proc/self/mountinfo").expect("a table").len() as u64;
        let many = read_by_a_life().await;
        let told = format!("{many} bytes were read with the volumes, {few} without, of a table of {table}");
        match has_statmount() {
            // Not once is the whole table read.
            true => assert!(many < few + table, "{told}"),
            false => assert!(many > few + table, "{told}"),
        }
    });
}
