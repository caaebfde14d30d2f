//! Layers of tenants that use up what there is to unpack layers while they come: others' are unpacked all the same.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use ocivol::demo::push::Layer;
use ocivol::demo::tarball::{Tarball, gzip};
use ocivol::layer::format::EARLY;
use ocivol::oci::digest::Digest;

use crate::support::answers::gets_blob;
use crate::support::node::mount_at;
use crate::support::slow::{Blob, Line};
use crate::support::tenants::{Publishing, Stage, asked_for, is_within, settled};
use crate::support::{Scripted, eventually, isolated, noise, zstd_with_window};

const MIB: usize = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);
/// Namespaces, each with a registry of its own, that hold all they can get.
const HOSTILE: u8 = 12;

/// A layer with one file of noise.
fn layer(name: &str, seed: u64, size: usize) -> Vec<u8> {
    gzip(&Tarball::new().file(name, &noise(seed, size)).finish()).expect("memory")
}

/// Has every hostile namespace pull an image of two large and two small layers, none of which ever comes whole.
async fn take_all_turns(stage: &Stage, stalling: &Scripted) -> Vec<Publishing> {
    let (mut blobs, mut publishing) = (BTreeMap::new(), Vec::new());
    let mut references = Vec::new();
    for (number, host) in stalling.hosts(HOSTILE).iter().enumerate() {
        let sizes = [6 * MIB, 6 * MIB, MIB / 2, MIB / 2];
        let layers = (0..).zip(sizes).map(|(at, size)| layer("f", 100 + 4 * number as u64 + at, size));
        let layers: Vec<Vec<u8>> = layers.collect();
        for layer in &layers {
            blobs.insert(Digest::sha256(layer).to_string(), Blob::new(layer.clone(), layer.len()));
        }
        let layers: Vec<Layer> = layers.into_iter().map(Layer::archive).collect();
        stalling.pusher(&format!("image-{number}")).image("v1", &layers, &[]).await.expect("pushed");
        references.push((format!("hostile-{number}"), format!("{host}/image-{number}:v1")));
    }
    stalling.script(move |seen| {
        let blob = blobs.get(seen.path.rsplit('/').next()?).filter(|_| gets_blob(seen))?;
        Some(blob.answer_until(blob.size() - 20, seen, &Line::fast()))
    });
    for (tenant, reference) in &references {
        publishing.push(stage.begin(tenant, reference));
    }
    // Three blobs of each namespace: of both sizes somebody has all, and others are kept in files.
    settled("layers that stall", 3 * usize::from(HOSTILE), || asked_for(stalling, gets_blob)).await;
    publishing
}

async fn start(stalling: &Scripted, quiet: &Scripted) -> Stage {
    let hosts = [stalling.hosts(HOSTILE), vec![quiet.host()]].concat();
    Stage::start(&hosts, &["--stall-timeout", "300"]).await
}

#[test]
fn regression_t44_layers_that_stall_do_not_hold_up_those_of_another_tenant() {
    isolated(async {
        let (stalling, quiet) = (Scripted::start_with_many_names().await, Scripted::start().await);
        let stage = start(&stalling, &quiet).await;
        let pusher = quiet.pusher("image");
        let sizes = [6 * MIB, 5 * MIB, MIB, MIB / 4];
        let check = |first: u64| {
            move |target: &Path| {
                for (at, size) in sizes.iter().enumerate() {
                    let read = std::fs::read(target.join(format!("f{at}"))).expect("a file");
                    assert!(read == noise(first + at as u64, *size), "layer {at}");
                }
            }
        };
        for first in [500, 510, 520, 530, 540, 550, 570] {
            let mut layers: Vec<Layer> = (0..3)
                .map(|at| Layer::archive(layer(&format!("f{at}"), first + at as u64, sizes[at])))
                .collect();
            layers.push(Layer::archive(zstd_with_window(
                &Tarball::new().file("f3", &noise(first + 3, sizes[3])).finish(),
                25,
            )));
            pusher.image(&format!("v{first}"), &layers, &[]).await.expect("pushed");
        }
        let pull = async |first: u64| {
            let reference = quiet.reference(&format!("image:v{first}"));
            stage.wait_for(&format!("victim-{first}"), &reference, check(first)).await
        };
        pull(500).await;
        let alone = pull(510).await.max(pull(520).await);
        let others = take_all_turns(&stage, &stalling).await;
        let waiting = archives(&stage.node.root);
        let mut waits = Vec::new();
        for first in [530, 540, 550] {
            waits.push(pull(first).await);
        }
        waits.sort_unstable();
        let beside = waits[1];
        // None of them found a turn to be unpacked while it came: a large one is a file while it does.
        let line = Line::of(8_000_000);
        let slow = layer("f0", 570, sizes[0]);
        let digest = Digest::sha256(&slow);
        let slow = Blob::new(slow.clone(), slow.len());
        quiet.script(move |seen| {
            (gets_blob(seen) && seen.path.contains(digest.hex())).then(|| slow.answer(seen, &line))
        });
        let late = stage.begin("victim-late", &quiet.reference("image:v570"));
        eventually("a layer that is a file", || {
            assert!(!late.is_finished(), "it was none");
            archives(&stage.node.root) > waiting
        })
        .await;
        late.await.expect("no panic").expect("published");
        assert!(others.iter().all(|other| !other.is_finished()), "nothing of the others came whole");
        assert!(is_within(SECOND.max(3 * alone), "an image of four layers", alone, beside));
    });
}

#[test]
fn what_is_unpacked_when_it_is_here_is_checked_all_the_same() {
    isolated(async {
        let (stalling, quiet) = (Scripted::start_with_many_names().await, Scripted::start().await);
        let stage = start(&stalling, &quiet).await;
        let _others = take_all_turns(&stage, &stalling).await;
        let before = unfinished(&stage.node.root);
        assert!(before > 0);
        for (number, size) in [6 * MIB, MIB / 2].into_iter().enumerate() {
            let pusher = quiet.pusher(&format!("image-{number}"));
            let good = layer("f", 600 + number as u64, size);
            let mut cut = good.clone();
            cut.truncate(size / 2);
            for (tag, blob) in [("good", &good), ("cut", &cut)] {
                pusher.image(tag, &[Layer::archive(blob.clone())], &[]).await.expect("pushed");
            }
            let publish = async |tag: &str| {
                let volume = stage.node.volume(&format!("victim-{number}-{tag}"));
                let reference = quiet.reference(&format!("image-{number}:{tag}"));
                let published = stage.node.publish(&volume, &reference, &[]).await;
                assert_eq!(mount_at(&volume.target).is_some(), published.is_ok());
                published.map_err(|status| status.message().to_owned())
            };
            // The right bytes, which are no layer.
            let refused = publish("cut").await.expect_err("it ends in the middle");
            assert!(
                refused.contains(&Digest::sha256(&cut).to_string()) && !refused.contains("wrong content"),
                "{refused}"
            );
            // A layer, and the wrong one.
            let (other, digest) = (layer("f", 700, size), Digest::sha256(&good).to_string());
            let other = Blob::new(other.clone(), good.len());
            quiet.script(move |seen| {
                (gets_blob(seen) && seen.path.contains(&digest)).then(|| other.answer(seen, &Line::fast()))
            });
            let refused = publish("good").await.expect_err("other bytes");
            assert!(refused.contains("sent wrong content"), "{refused}");
            quiet.unscript();
            publish("good").await.expect("published");
        }
        eventually("what was downloaded is removed", || unfinished(&stage.node.root) == before).await;
    });
}

/// An image layer of so many directories, that begins with them.
fn many_directories(name: &str, count: usize, rest: usize) -> Vec<u8> {
    let base = format!("{name}/{}", "n".repeat(200));
    let tar = (0..count).fold(Tarball::new(), |tar, number| tar.directory(format!("{base}/{number:05}")));
    gzip(&tar.file("last", &noise(800, rest)).finish()).expect("memory")
}

#[test]
fn regression_t44_layers_of_many_directories_that_stall_do_not_fail_those_of_another_tenant() {
    isolated(async {
        let (stalling, quiet) = (Scripted::start_with_many_names().await, Scripted::start().await);
        let stage = start(&stalling, &quiet).await;
        // What all share is 16 MiB; 12,000 such directories take 7.
        let (mut blobs, mut references) = (BTreeMap::new(), Vec::new());
        for (number, host) in stalling.hosts(5).iter().enumerate() {
            let layer = many_directories(&format!("{number}"), 12_000, 5 * MIB);
            blobs.insert(Digest::sha256(&layer).to_string(), Blob::new(layer.clone(), layer.len()));
            let layers = [Layer::archive(layer)];
            stalling.pusher(&format!("many-{number}")).image("v1", &layers, &[]).await.expect("pushed");
            references.push((format!("hostile-{number}"), format!("{host}/many-{number}:v1")));
        }
        stalling.script(move |seen| {
            let blob = blobs.get(seen.path.rsplit('/').next()?).filter(|_| gets_blob(seen))?;
            Some(blob.answer_until(blob.size() - 20, seen, &Line::fast()))
        });
        let others: Vec<_> =
            references.iter().map(|(tenant, reference)| stage.begin(tenant, reference)).collect();
        settled("layers that stall", 5, || asked_for(&stalling, gets_blob)).await;
        let count = 9_600;
        let layer = many_directories("victim", count, MIB);
        quiet.pusher("image").image("v1", &[Layer::archive(layer)], &[]).await.expect("pushed");
        let check = |target: &Path| {
            let base = target.join("victim").join("n".repeat(200));
            assert_eq!(std::fs::read_dir(base).expect("a directory").count(), count);
        };
        let took = stage.wait_for("victim", &quiet.reference("image:v1"), check).await;
        println!("{count} directories in {took:.1?}");
        assert!(others.iter().all(|other| !other.is_finished()), "nothing of the others came whole");
    });
}

/// Layers of which something is kept in a file, to be unpacked later.
fn archives(root: &Path) -> usize {
    let all = std::fs::read_dir(root.join("v1/ingest")).expect("a directory").flatten();
    all.filter(|entry| entry.path().join(EARLY).exists()).count()
}

/// Layers that are not there whole.
fn unfinished(root: &Path) -> usize {
    let all = std::fs::read_dir(root.join("v1/ingest")).expect("a directory").flatten();
    all.filter(|entry| entry.file_name().to_string_lossy().starts_with("tmp-")).count()
}
