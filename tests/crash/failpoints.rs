//! The plugin dies at every named moment, and at any time: afterwards (I8) volumes that were published still work, and
//! are whole (I1) and read-only (I2); what was begun is begun again, and pulled once (I7), with bounded memory (I6);
//! nothing outside of store and targets has changed (I3), and unpublish deletes nothing (I4).

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use ocivol::demo::kubelet::PodVolume;
use ocivol::demo::push::Layer;
use ocivol::demo::registry::parse_range;

use crate::support::node::{BINARY, mount_at, mounts_below};
use crate::support::records::make_volatile;
use crate::support::world::{World, assert_published, assert_store_is_sound};
use crate::support::{Node, eventually, isolated, noise};

const SMALL: &[&str] = &["model:v1", "image:one", "image:three"];
/// What takes time to pull.
const LARGE: &[&str] = &["large:v1", "image:one"];
/// More than a download is recorded after.
const LARGE_SIZE: usize = 65 << 20;
/// Bytes of memory a plugin may ever have had: I6.
const MEMORY: u64 = 128 << 20;

/// The world, and a model so large that its download is recorded on the way.
async fn world() -> World {
    let mut world = World::start().await;
    let weights = noise(7, LARGE_SIZE);
    let layer = Layer::model_file("weight", "model.gguf", weights.clone());
    world.registry.pusher("large").model("v1", &[layer]).await.expect("pushed");
    world.artifacts.insert("large:v1".into(), BTreeMap::from([("model.gguf".to_owned(), weights)]));
    world
}

fn node_for(world: &World) -> Node {
    let mut node = Node::prepare(&[]);
    std::fs::write(node.kubelet.directory.join("pods/probe"), "untouched").expect("a probe");
    node.env.insert("OCIVOL_PLAIN_HTTP".into(), world.registry.host());
    node.env.insert("OCIVOL_GC_MIN_AGE".into(), "0".into());
    node
}

/// The pods' volumes, of which nothing is published yet.
fn prepare(node: &Node, round: &str, artifacts: &[&str]) -> Vec<(String, PodVolume)> {
    let volume = |name: &str| node.volume(&format!("{round}-{}", name.replace(':', "-")));
    artifacts.iter().map(|name| ((*name).to_owned(), volume(name))).collect()
}

/// Publishes, unpublishes and collects until the plugin dies, or all is done. Whether it is.
async fn work(node: &Node, world: &World, volumes: &[(String, PodVolume)]) -> bool {
    let mut done = true;
    for (name, volume) in volumes {
        done &= node.publish(volume, &world.reference(name), &[]).await.is_ok();
    }
    for (_, volume) in [&volumes[0], &volumes[volumes.len() - 1]] {
        done &= node.kubelet.unpublish(volume).await.is_ok();
    }
    // Without the plugin it would work on the store itself, and not die.
    if done {
        let collect =
            tokio::task::spawn_blocking(|| Command::new(BINARY).arg("gc").output().expect("it runs"));
        done &= collect.await.expect("no panic").status.success();
    }
    done
}

/// After the plugin died: whatever is mounted is whole, everything can be had again, and nothing `outside` changed.
async fn assert_recovers(
    node: &mut Node,
    world: &World,
    volumes: &[(String, PodVolume)],
    before: &Outside,
    when: &str,
) {
    // I3.
    assert_eq!(*before, outside(node, volumes), "{when}, before the restart");
    for (name, volume) in volumes {
        if mount_at(&volume.target).is_some() {
            assert_published(volume, &world.artifacts[name], &format!("{when}, before the restart"));
        }
    }
    node.run_registered().await;
    // Only now: a request that the plugin sent before it died may have been on its way.
    world.registry.forget();
    for (name, volume) in volumes {
        node.publish(volume, &world.reference(name), &[])
            .await
            .unwrap_or_else(|status| panic!("{when}: {status}"));
        assert_published(volume, &world.artifacts[name], when);
    }
    assert_store_is_sound(&node.root, when);
    // I7: what is pulled again is pulled once. A large blob on a slow connection is helped by others.
    for (blob, ranges) in downloads(world) {
        let most = if blob == large_blob() { 6 } else { 1 };
        assert!(ranges.len() <= most, "{when}: {blob}: {ranges:?}");
    }
    // I6.
    let peak = node.memory("VmHWM");
    assert!(peak < MEMORY, "{when}: {} MiB", peak >> 20);
    for (_, volume) in volumes {
        node.kubelet.unpublish(volume).await.expect(when);
        assert!(!volume.target.exists(), "{when}: the target is still there");
    }
    let left = mounts_below(&node.kubelet.directory);
    assert!(left.is_empty(), "{when}: {left:?}");
    assert_eq!(*before, outside(node, volumes), "{when}");
}

/// What is on the node beside the store, targets and sockets, with the content of files.
type Outside = BTreeMap<PathBuf, Option<Vec<u8>>>;

fn outside(node: &Node, volumes: &[(String, PodVolume)]) -> Outside {
    let mut found = BTreeMap::new();
    let mut waiting = vec![PathBuf::from("/var/lib")];
    while let Some(path) = waiting.pop() {
        let kind = std::fs::symlink_metadata(&path).expect("metadata").file_type();
        if path == node.root || volumes.iter().any(|(_, volume)| volume.target == path) || kind.is_socket() {
            continue;
        }
        if kind.is_dir() {
            waiting.extend(
                std::fs::read_dir(&path).expect("a directory").map(|it| it.expect("an entry").path()),
            );
        }
        let content = kind.is_file().then(|| std::fs::read(&path).expect("content"));
        found.insert(path, content);
    }
    found
}

/// For each blob, which bytes of it were asked for, each time: none for all.
fn downloads(world: &World) -> BTreeMap<String, Vec<Option<String>>> {
    let mut found: BTreeMap<String, Vec<Option<String>>> = BTreeMap::new();
    for seen in world.registry.requests() {
        if seen.method == axum::http::Method::GET && seen.path.contains("/blobs/") {
            // The same blob in two repositories is the same download.
            let digest = seen.path.rsplit('/').next().expect("a digest").to_owned();
            let range = seen.headers.get("range").map(|range| range.to_str().expect("text").to_owned());
            found.entry(digest).or_default().push(range);
        }
    }
    found
}

/// The digest of the large model's weights.
fn large_blob() -> &'static str {
    static DIGEST: LazyLock<String> =
        LazyLock::new(|| ocivol::oci::digest::Digest::sha256(&noise(7, LARGE_SIZE)).to_string());
    &DIGEST
}

/// The moments that there are in the code.
fn moments() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting
                .extend(std::fs::read_dir(path).expect("a directory").map(|it| it.expect("an entry").path()));
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a source file");
        for part in text.split("failpoint::reached(\"").skip(1) {
            found.insert(part.split('"').next().expect("a name").to_owned());
        }
    }
    found
}

#[test]
fn it_dies_at_every_moment_and_goes_on() {
    isolated(async {
        let world = world().await;
        let moments = moments();
        for step in ["pull.", "unpack.", "merge.", "publish.", "unpublish.", "collect."] {
            assert!(moments.iter().any(|moment| moment.starts_with(step)), "{step}: {moments:?}");
        }
        // Those of fsck are reached where something is damaged: see `store::fsck`.
        for moment in moments.iter().filter(|moment| !moment.starts_with("fsck.")) {
            let artifacts = if moment.starts_with("pull.") { LARGE } else { SMALL };
            // After the twelfth record 48 MiB are known.
            let late = (moment == "pull.recorded").then_some((12, false));
            for (times, reboot) in [(1, false), (1, true), (2, false), (5, false)].into_iter().chain(late) {
                let when = format!("killed at {moment}:{times}, reboot {reboot}");
                let mut node = node_for(&world);
                node.env.insert("OCIVOL_KILLED_AT".into(), format!("{moment}:{times}"));
                node.launch();
                let volumes = prepare(&node, "killed", artifacts);
                let before = outside(&node, &volumes);
                node.serves_or_ends().await;
                let done = work(&node, &world, &volumes).await;
                if times == 1 || !done {
                    // What happens in the background happens soon.
                    eventually(&when, || node.was_killed()).await;
                }
                node.was_killed(); // If it has ended, then by that.
                node.kill();
                node.env.remove("OCIVOL_KILLED_AT");
                // The machine goes down as well, and what was not flushed counts as lost.
                if reboot {
                    make_volatile(&node.root, true);
                }
                assert_recovers(&mut node, &world, &volumes, &before, &when).await;
                if moment == "pull.recorded" && matches!(times, 1 | 12) && !reboot {
                    let ranges = &downloads(&world)[large_blob()];
                    let asked = |range: &Option<String>| match range {
                        Some(range) => parse_range(range, LARGE_SIZE).expect("a range").len(),
                        None => LARGE_SIZE,
                    };
                    let asked: usize = ranges.iter().map(asked).sum();
                    assert!(
                        asked <= LARGE_SIZE - times * (4 << 20),
                        "{when}: it goes on where it was: {ranges:?}"
                    );
                }
            }
        }
        println!("killed at {moments:?}");
    });
}

#[test]
fn it_dies_at_any_time_and_goes_on() {
    isolated(async {
        let world = world().await;
        let mut node = node_for(&world);
        node.run_registered().await;
        for turn in 0..30_u32 {
            let pid = nix::unistd::Pid::from_raw(node.pid().cast_signed());
            // Not to wait for something: to be anywhere.
            let later = tokio::spawn(async move {
                tokio::time::sleep(Duration::from_micros(u64::from(turn * turn * 137 % 60_000))).await;
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            });
            let volumes = prepare(&node, &format!("turn-{turn}"), SMALL);
            let before = outside(&node, &volumes);
            work(&node, &world, &volumes).await;
            later.await.expect("no panic");
            node.kill();
            if turn % 4 == 3 {
                make_volatile(&node.root, turn % 8 == 7);
            }
            assert_recovers(&mut node, &world, &volumes, &before, &format!("turn {turn}")).await;
        }
    });
}
