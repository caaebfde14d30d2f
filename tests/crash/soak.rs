//! Bounded load: forty references from a registry with faults, a store at its limit, restarts. At the end descriptors, threads, memory,
//! mounts and disk are where they were. `OCIVOL_SOAK_MINUTES` says how long it goes on; `make soak` makes it hours.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::http::{Method, StatusCode};
use axum::response::IntoResponse as _;
use ocivol::demo::push::Layer;
use ocivol::demo::tarball::{Tarball, gzip};
use ocivol::host::blocking;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::RwLock;
use tonic::Code;

use crate::support::namespace::{LONGEST, isolated_for};
use crate::support::node::{mount_at, mounts_below};
use crate::support::{Node, Scripted, eventually, noise};

const REFERENCES: u64 = 40;
const PODS: u64 = 8;
/// Samples of a run.
const SAMPLES: u32 = 60;
/// The longest time between two restarts: so long that what a process keeps of each volume would be seen.
const RESTART_EVERY: Duration = Duration::from_secs(10 * 60);

/// Threads of the runtime that run async code, at most.
const WORKERS: u64 = 4;
/// Threads of the runtime at most.
const POOL: u64 = WORKERS + blocking::THREADS as u64;
/// Threads beside those of the runtime when nothing is to be done: the first one, the one that flushes the store, and one that looks
/// through the content.
const IDLE: u64 = 3;

/// A value of a sample.
type Value = fn(&Sample) -> u64;

/// What a process takes, and the node with it.
#[derive(Debug, Clone, Copy)]
struct Sample {
    descriptors: u64,
    /// Those that are made for one piece of work each.
    own_threads: u64,
    /// Of the runtime: as many as had work at one time since the process began. They stay for a while without work.
    pooled_threads: u64,
    anonymous: u64,
    mounts: u64,
    disk: u64,
    inodes: u64,
}

fn sample(node: &Node) -> Sample {
    let pid = node.pid();
    let count = |path: String| fs::read_dir(path).map_or(0, |entries| entries.count() as u64);
    let names: Vec<String> = fs::read_dir(format!("/proc/{pid}/task"))
        .map(|threads| {
            threads
                .flatten()
                .filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok())
                .collect()
        })
        .unwrap_or_default();
    let pooled = names.iter().filter(|name| name.trim_end() == "tokio-rt-worker").count();
    let found = rustix::fs::statvfs(&node.root).expect("a disk");
    Sample {
        descriptors: count(format!("/proc/{pid}/fd")),
        own_threads: (names.len() - pooled) as u64,
        pooled_threads: pooled as u64,
        anonymous: node.memory("RssAnon") >> 10,
        mounts: fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default().lines().count()
            as u64,
        disk: ((found.f_blocks - found.f_bfree) * found.f_frsize) >> 10,
        inodes: found.f_files - found.f_ffree,
    }
}

/// The middle of a value in some samples.
fn middle(samples: &[Sample], of: Value) -> u64 {
    let mut values: Vec<u64> = samples.iter().map(of).collect();
    values.sort_unstable();
    values[values.len() / 2]
}

async fn registry() -> (Scripted, BTreeMap<u64, Vec<u8>>) {
    let registry = Scripted::start().await;
    let mut contents = BTreeMap::new();
    for number in 0..REFERENCES {
        let content = noise(number, (1 << 20) + 70_000 * usize::try_from(number).expect("few"));
        let pusher = registry.pusher(&format!("r{number}"));
        if number % 4 == 0 {
            let tar = (0..200)
                .fold(Tarball::new().file("w", &content), |tar, file| tar.file(format!("f/{file}"), b"1"));
            let layer = Layer::archive(gzip(&tar.finish()).expect("gzip"));
            pusher.image("v1", &[layer], &[]).await.expect("pushed");
        } else {
            pusher.model("v1", &[Layer::model_file("weight", "w", content.clone())]).await.expect("pushed");
        }
        contents.insert(number, content);
    }
    (registry, contents)
}

#[test]
fn nothing_grows_under_bounded_load() {
    let minutes = std::env::var("OCIVOL_SOAK_MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let time = Duration::from_secs(minutes * 60);
    isolated_for(time + LONGEST, async move {
        let (sample_every, restart_every) = (time / SAMPLES, (time / 4).min(RESTART_EVERY));
        let (registry, contents) = registry().await;
        let flags = ["--gc-min-age", "1", "--gc-start", "85%", "--gc-stop", "70%", "--keep-free", "10%"];
        let mut node = Node::prepare(
            &[&["--plain-http", &registry.host(), "--stall-timeout", "2"], &flags[..]].concat(),
        );
        // A third of what there is fits.
        node.limit_store("40m");
        node.run_registered().await;
        let faults = AtomicU64::new(0);
        let mut random = StdRng::seed_from_u64(7);
        registry.script(move |seen| {
            if seen.method != Method::GET || random.random_range(0..100) >= 6 {
                return None;
            }
            Some(match faults.fetch_add(1, Ordering::Relaxed) % 3 {
                0 => StatusCode::SERVICE_UNAVAILABLE.into_response(),
                1 => vec![9_u8; 1000].into_response(),
                _ => axum::response::Response::new(axum::body::Body::from_stream(
                    futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>(),
                )),
            })
        });
        let (kubelet, registry, contents) = (node.kubelet.clone(), Arc::new(registry), Arc::new(contents));
        let volumes: Vec<_> = (0..PODS).map(|pod| node.volume(&format!("pod-{pod}"))).collect();
        let (over, published) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        // Held by who restarts the plugin.
        let running = Arc::new(RwLock::new(()));
        let pods: Vec<_> = volumes
            .iter()
            .cloned()
            .zip(0..)
            .map(|(volume, pod)| {
                let (kubelet, registry, contents) =
                    (kubelet.clone(), Arc::clone(&registry), Arc::clone(&contents));
                let (over, published, running) =
                    (Arc::clone(&over), Arc::clone(&published), Arc::clone(&running));
                tokio::spawn(async move {
                    let mut random = StdRng::seed_from_u64(pod);
                    while !over.load(Ordering::Relaxed) {
                        let _running = running.read().await;
                        let number = random.random_range(0..REFERENCES);
                        let reference = registry.reference(&format!("r{number}:v1"));
                        let request = kubelet.publish_request(&volume, &[("reference", &reference)], &[]);
                        match kubelet.publish(request).await {
                            Ok(()) => {
                                assert!(
                                    fs::read(volume.target.join("w")).expect("read") == contents[&number],
                                    "{number}"
                                );
                                published.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(status) => assert!(
                                matches!(
                                    status.code(),
                                    Code::Unavailable
                                        | Code::ResourceExhausted
                                        | Code::FailedPrecondition
                                        | Code::DeadlineExceeded
                                        | Code::NotFound
                                ),
                                "{status}"
                            ),
                        }
                        kubelet.unpublish(&volume).await.expect("unpublished");
                        assert!(mount_at(&volume.target).is_none());
                    }
                })
            })
            .collect();
        let until = Instant::now() + time;
        let (mut samples, mut restarts, mut next_restart) =
            (Vec::new(), 0_u64, Instant::now() + restart_every);
        while Instant::now() < until {
            tokio::time::sleep(sample_every).await;
            if Instant::now() >= next_restart {
                let _nobody = running.write().await;
                if restarts % 2 == 0 {
                    node.stop().await;
                } else {
                    node.kill();
                }
                node.run_registered().await;
                restarts += 1;
                next_restart = Instant::now() + restart_every;
                continue; // It has just begun, and holds nothing yet.
            }
            samples.push(sample(&node));
        }
        over.store(true, Ordering::Relaxed);
        for pod in pods {
            pod.await.expect("no panic");
        }
        assert!(mounts_below(&node.kubelet.directory).is_empty());
        // A thread that waits for what never comes is still there when those without work have gone.
        let most = samples.iter().map(|it| it.pooled_threads).max().unwrap_or(0);
        assert!(most <= POOL, "{most} threads of the runtime");
        eventually("the end of the threads without work", || sample(&node).pooled_threads <= WORKERS + 1)
            .await;
        eventually("the end of the threads that were made for one thing", || {
            sample(&node).own_threads <= IDLE
        })
        .await;
        let (first, last) = samples.split_at(samples.len() / 2);
        println!(
            "{minutes} minutes, {} volumes, {restarts} restarts, {} samples",
            published.load(Ordering::Relaxed),
            samples.len()
        );
        let values: [(&str, Value, u64); 6] = [
            ("descriptors", |it| it.descriptors, 8),
            ("threads", |it| it.own_threads, 8),
            ("KiB of anonymous memory", |it| it.anonymous, 4096),
            ("mounts", |it| it.mounts, 4),
            ("KiB of the disk", |it| it.disk, 4096),
            ("inodes", |it| it.inodes, 1024),
        ];
        for (what, of, slack) in values {
            let (before, after) = (middle(first, of), middle(last, of));
            println!("{before:>8} {after:>8}  {what}");
            assert!(
                after <= before + before / 10 + slack,
                "{what}: {before} in the first half, {after} in the second"
            );
        }
    });
}
