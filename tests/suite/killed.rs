//! The plugin dies at chosen system calls, and at any time: afterwards volumes that were published still work, what
//! was begun is begun again, and nothing is half there. I8.

use std::path::Path;
use std::time::Duration;

use ocivol::demo::kubelet::PodVolume;

use crate::support::daemonset::{DaemonNode, STORE};
use crate::support::isolated_with_network;
use crate::support::node::{mount_at, mounts_below};
use crate::support::world::{World, assert_published, assert_store_is_sound, make_volatile};

fn node_for(world: &World) -> DaemonNode {
    let mut node = DaemonNode::prepare();
    node.env.insert("OCIVOL_PLAIN_HTTP".into(), world.registry.host());
    node
}

/// Publishes and unpublishes until the plugin dies, or all is done.
async fn work(node: &DaemonNode, world: &World, round: &str) -> Vec<(String, PodVolume)> {
    let mut volumes = Vec::new();
    for name in ["model:v1", "image:one", "image:three"] {
        let volume = node.volume(&format!("{round}-{}", name.replace(':', "-")));
        let _ = node.publish(&volume, &world.reference(name), &[]).await;
        volumes.push((name.to_owned(), volume));
    }
    let _ = node.kubelet.unpublish(&volumes[0].1).await;
    let _ = node.kubelet.unpublish(&volumes[2].1).await;
    volumes
}

/// After the plugin died: whatever is mounted is whole, and everything can be had again.
async fn assert_recovers(node: &mut DaemonNode, world: &World, volumes: &[(String, PodVolume)], when: &str) {
    for (name, volume) in volumes {
        if mount_at(&volume.target).is_some() {
            assert_published(volume, &world.artifacts[name], &format!("{when}, before the restart"));
        }
    }
    node.run().await;
    for (name, volume) in volumes {
        node.publish(volume, &world.reference(name), &[])
            .await
            .unwrap_or_else(|status| panic!("{when}: {status}"));
        assert_published(volume, &world.artifacts[name], when);
    }
    assert_store_is_sound(Path::new(STORE), when);
    for (_, volume) in volumes {
        node.kubelet.unpublish(volume).await.expect(when);
        assert!(!volume.target.exists(), "{when}: the target is still there");
    }
    let left = mounts_below(&node.kubelet.directory);
    assert!(left.is_empty(), "{when}: {left:?}");
}

#[test]
fn it_dies_at_every_kind_of_step_and_goes_on() {
    isolated_with_network(async {
        let world = World::start().await;
        // Calls are counted by thread.
        let moments: [(&str, &[usize]); 10] = [
            // Records, blobs, layers and trees take their names.
            ("rename", &[1, 2, 3, 4, 5, 6, 7, 8]),
            // Files are created and linked.
            ("openat", &[5, 10, 15, 20, 30, 40]),
            ("linkat", &[1, 2, 3]),
            ("symlinkat", &[1]),
            ("mkdirat", &[1, 2, 3]),
            ("utimensat", &[1, 2, 3, 4]),
            // Volumes come and go.
            ("open_tree", &[1, 2]),
            ("move_mount", &[1, 2]),
            ("umount2", &[1, 2]),
            ("syncfs", &[1, 2, 3]),
        ];
        let mut report = Vec::new();
        for (syscall, numbers) in moments {
            let mut killed = Vec::new();
            for (turn, number) in numbers.iter().enumerate() {
                let when = format!("killed at {syscall} {number}");
                let mut node = node_for(&world);
                node.kill_at(syscall, *number);
                node.start();
                node.wait_until_it_serves();
                let volumes = work(&node, &world, "killed").await;
                if node.was_killed() {
                    killed.push(*number);
                }
                node.kill();
                // Every third time the machine goes down as well, and what was not flushed counts as lost.
                if turn % 3 == 2 {
                    make_volatile(Path::new(STORE), true);
                }
                assert_recovers(&mut node, &world, &volumes, &when).await;
            }
            report.push((syscall, killed));
        }
        println!("it was killed at {report:?}");
        for (syscall, killed) in &report {
            assert!(!killed.is_empty(), "it was never killed at {syscall}: {report:?}");
        }
    });
}

#[test]
fn it_dies_at_any_time_and_goes_on() {
    isolated_with_network(async {
        let world = World::start().await;
        let mut node = node_for(&world);
        node.run().await;
        for turn in 0..30_u32 {
            let pid = nix::unistd::Pid::from_raw(node.pid().cast_signed());
            // Not to wait for something: to be anywhere.
            let later = tokio::spawn(async move {
                tokio::time::sleep(Duration::from_micros(u64::from(turn * turn * 137 % 60_000))).await;
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            });
            let volumes = work(&node, &world, &format!("turn-{turn}")).await;
            later.await.expect("no panic");
            node.kill();
            if turn % 4 == 3 {
                make_volatile(Path::new(STORE), turn % 8 == 7);
            }
            assert_recovers(&mut node, &world, &volumes, &format!("turn {turn}")).await;
        }
    });
}
