//! The power is cut at random moments, again and again: no wrong byte is ever served, and what was on the disk is still there.
//!
//! `OCIVOL_CUTS` says how often, for each file system; `make powercuts` does a thousand.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::support::disk::{Disk, FileSystem};
use crate::support::namespace::{LONGEST, isolated_for};
use crate::support::node::mount_at;
use crate::support::records::{change, is_durable, records};
use crate::support::world::{World, assert_published, assert_store_is_sound};
use crate::support::{Node, eventually};

const ARTIFACTS: [&str; 4] = ["model:v1", "image:one", "image:three", "moving:latest"];

fn cut_again_and_again(kind: FileSystem, times: u32) {
    let setting = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let times = setting("OCIVOL_CUTS").map_or(times, |cuts: u64| u32::try_from(cuts).expect("a number"));
    isolated_for(LONGEST + times * Duration::from_secs(20), async move {
        let seed = setting("OCIVOL_SEED").unwrap_or_else(rand::random);
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let mut world = World::start().await;
        let mut node = Node::prepare(&["--plain-http", &world.registry.host(), "--scrub-days", "0"]);
        let mut disk = Disk::for_store(&node, kind, 400);
        // What was on the disk for certain before a cut.
        let mut durable: BTreeSet<&str> = BTreeSet::new();
        let mut found = 0;
        for cut in 0..times {
            let when = format!("{kind:?}, seed {seed}, cut {cut}");
            node.run().await;
            // Nothing wrong, whatever is left.
            for name in ARTIFACTS {
                let volume = node.volume(&name.replace(':', "-"));
                if durable.contains(name) {
                    let never = [("pullPolicy", "Never")];
                    let here = node.publish(&volume, &world.reference(name), &never).await;
                    here.unwrap_or_else(|status| panic!("{when}: {name} was on the disk: {status}"));
                    found += 1;
                } else {
                    let pulled = node.publish(&volume, &world.reference(name), &[]).await;
                    pulled.unwrap_or_else(|status| panic!("{when}: {name}: {status}"));
                }
                assert_published(&volume, &world.artifacts[name], &when);
            }
            assert_store_is_sound(&node.root, &when);
            if random.random_range(0..3) == 0 {
                let all = || records(&node.root).iter().all(|record| is_durable(record));
                eventually("every record is durable", all).await;
                disk.sync();
                // What the tag is now is asked for each time.
                durable.extend(ARTIFACTS.iter().filter(|name| **name != "moving:latest"));
            }
            // Something new is written when it happens.
            world.move_tag(u64::from(cut)).await;
            let moving = node.volume("moving-again");
            let (kubelet, reference) = (node.kubelet.clone(), world.reference("moving:latest"));
            let request = kubelet.publish_request(&moving, &[("reference", &reference)], &[]);
            let publish = tokio::spawn(async move { kubelet.publish(request).await });
            // Not to wait for something: to be anywhere.
            let later = Duration::from_micros(random.random_range(0..40_000));
            tokio::time::sleep(later).await;
            disk.cut_power_with(random.random());
            let _ = publish.await.expect("no panic");
            node.kill();
            for pod in ["model-v1", "image-one", "image-three", "moving-latest", "moving-again"] {
                let volume = node.volume(pod);
                while mount_at(&volume.target).is_some() {
                    nix::mount::umount2(&volume.target, nix::mount::MntFlags::MNT_DETACH).expect("unmounted");
                }
            }
            disk.mount_again().await;
            if random.random() {
                // The machine was started again meanwhile.
                let boot = "00000000-0000-0000-0000-000000000000";
                std::fs::write(node.root.join("v1/boot"), boot).expect("another boot");
                for record in records(&node.root) {
                    if serde_json::from_slice::<serde_json::Value>(&std::fs::read(&record).expect("read"))
                        .is_ok()
                    {
                        change(&record, "boot_id", &boot.into());
                    }
                }
                // What the test itself wrote is not what is cut off.
                disk.sync();
            }
        }
        println!("{times} cuts; {found} times something was on the disk and still there");
        assert!(found > times / 4, "{found}");
    });
}

#[test]
fn power_cuts_on_ext4_cost_nothing_that_was_on_the_disk() {
    cut_again_and_again(FileSystem::Ext4, 40);
}

#[test]
fn power_cuts_on_xfs_cost_nothing_that_was_on_the_disk() {
    cut_again_and_again(FileSystem::Xfs, 40);
}

#[test]
fn power_cuts_on_btrfs_cost_nothing_that_was_on_the_disk() {
    cut_again_and_again(FileSystem::Btrfs, 24);
}
