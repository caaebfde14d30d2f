//! What one tenant does to a node, and what it may not do to another: whatever is shared is held up by nobody.
//!
//! A tenant is a pod's namespace. Each test takes all that one can get of something, and measures what another then waits
//! for, beside what it waits for alone.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::http::Method;
use bytes::Bytes;
use ocivol::csi::v1::NodePublishVolumeResponse;
use ocivol::demo::kubelet::{Pod, PodVolume};
use ocivol::demo::push::Layer;
use ocivol::demo::registry::{Seen, parse_range};
use ocivol::demo::tarball::{CHARACTER_DEVICE, Header, Tarball, zstd};
use ocivol::oci::digest::Digest;
use ocivol::oci::media_type;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::JoinHandle;
use tonic::{Code, Request, Response, Status};

use crate::publish::listeners::probe;
use crate::support::answers::{gets_blob, is_manifest};
use crate::support::node::{BINARY, memory_of, mount_at};
use crate::support::slow::{Blob, Line, push_promises};
use crate::support::tenants::{
    LIMIT, Publishing, Stage, asked_for, distinct, is_within, settled, wide_manifest,
};
use crate::support::{Node, Scripted, eventually, isolated, noise, zstd_with_window};

const GET: Method = Method::GET;
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);

/// The digest of nothing that there is.
fn made_up(name: &str) -> Digest {
    Digest::sha256(name.as_bytes())
}

/// All names of registries.
fn hosts(of: &[&[String]]) -> Vec<String> {
    of.concat()
}

/// Pushes models of four files of 50 MiB, a model for each name of `registry`, which sends every file at 20 kB/s. Returns
/// their references.
async fn models_that_drip(registry: &Scripted, names: u8) -> Vec<String> {
    const SIZE: usize = 50 * MIB;
    let mut references = Vec::new();
    for (number, host) in registry.hosts(names).iter().enumerate() {
        let files: Vec<_> =
            (0..4).map(|file| (made_up(&format!("file {file} of model {number}")), SIZE)).collect();
        push_promises(&registry.pusher(&format!("dripping/{number}")), "v1", &files).await;
        references.push(format!("{host}/dripping/{number}:v1"));
    }
    references
}

/// What a registry sends of files that drip.
fn drip(seen: &Seen) -> axum::response::Response {
    Blob::zeros(50 * MIB).answer(seen, &Line::of(20_000))
}

#[test]
fn regression_t44_many_slow_registries_of_one_tenant_do_not_hold_up_another() {
    isolated(async {
        let (slow, quiet) = (Scripted::start_with_many_names().await, Scripted::start().await);
        let stage = Stage::start(&hosts(&[&slow.hosts(8), &[quiet.host()]]), &[]).await;
        let models = models_that_drip(&slow, 8).await;
        slow.script(|seen| gets_blob(seen).then(|| drip(seen)));
        let alone = stage.alone(&quiet, MIB).await;
        let _others: Vec<_> = models.iter().map(|model| stage.begin("hostile", model)).collect();
        settled("files that drip", 4, || asked_for(&slow, gets_blob)).await;
        let beside = stage.pull(&quiet, "victim", MIB).await;
        assert!(is_within(SECOND.max(3 * alone), "1 MiB of another registry", alone, beside));
    });
}

#[test]
fn regression_t44_large_blobs_do_not_hold_up_small_ones_of_their_registry() {
    isolated(async {
        const SIZE: usize = 50_000_000;
        let registry = Scripted::start().await;
        let stage = Stage::start(&[registry.host()], &[]).await;
        let files: Vec<_> = (0..4).map(|file| (made_up(&format!("file {file}")), SIZE)).collect();
        push_promises(&registry.pusher("large"), "v1", &files).await;
        let line = Line::of(2_000_000);
        registry.script(move |seen| {
            let large = gets_blob(seen) && seen.path.contains("/large/");
            large.then(|| Blob::zeros(SIZE).answer(seen, &line))
        });
        let alone = stage.alone(&registry, 100).await;
        let _other = stage.begin("first", &registry.reference("large:v1"));
        let large = |seen: &Seen| gets_blob(seen) && seen.path.contains("/large/");
        settled("large files", 1, || asked_for(&registry, large)).await;
        let (another, same) =
            tokio::join!(stage.pull(&registry, "second", 100), stage.pull(&registry, "first", 100));
        let bound = SECOND.max(3 * alone);
        let within = [
            is_within(bound, "100 bytes for another tenant", alone, another),
            is_within(bound, "100 bytes for the same tenant", alone, same),
        ];
        assert_eq!(within, [true, true]);
    });
}

#[test]
fn regression_t44_wrong_bytes_for_one_tenant_do_not_delay_another() {
    isolated(async {
        let (wrong, quiet) = (Scripted::start().await, Scripted::start().await);
        let stage = Stage::start(&[wrong.host(), quiet.host()], &[]).await;
        let (popular, small) = (distinct(1_001, 48 * MIB), distinct(1_002, 8 * MIB));
        let digests = [&popular, &small].map(|content| Digest::sha256(content));
        for (name, content, digest) in [("popular", &popular, &digests[0]), ("small", &small, &digests[1])] {
            push_promises(&wrong.pusher(name), "v1", &[(digest.clone(), content.len())]).await;
        }
        wrong.script(|seen| {
            let popular = seen.path.contains("/popular/");
            let (size, line) = if popular { (48, Line::of(1_400_000)) } else { (8, Line::fast()) };
            gets_blob(seen).then(|| Blob::zeros(size * MIB).answer(seen, &line))
        });
        let alone = stage.alone(&quiet, popular.len()).await;
        let _other = stage.begin("hostile", &wrong.reference("popular:v1"));
        eventually("the wrong bytes come", || wrong.count(&GET, "/popular/blobs/") > 0).await;
        let beside = stage.pull_content(&quiet, "victim", popular).await;
        let popular_in_time = is_within(2 * alone + 2 * SECOND, "48 MiB that others want", alone, beside);

        // A source is known for its wrong bytes; another pod wants it all the same, while the right ones come slowly.
        let asked = || wrong.count(&GET, &format!("/small/blobs/{}", digests[1]));
        let refused = tokio::time::timeout(LIMIT, stage.begin("hostile", &wrong.reference("small:v1")));
        let refused = refused.await.expect("in time").expect("no panic").expect_err("wrong bytes");
        assert!(refused.message().contains("sent wrong content"), "{refused}");
        let before = asked();
        let (right, digest) = (Blob::new(small.clone(), small.len()), digests[1].to_string());
        quiet.script(move |seen| {
            let small = gets_blob(seen) && seen.path.contains(&digest);
            small.then(|| right.answer(seen, &Line::of(800_000)))
        });
        let begun = std::cell::OnceCell::new();
        let again = async {
            eventually("the right bytes come", || quiet.count(&GET, &digests[1].to_string()) > 0).await;
            begun.set(stage.begin("hostile", &wrong.reference("small:v1"))).expect("once");
        };
        let (took, ()) = tokio::join!(stage.pull_content(&quiet, "second-victim", small), again);
        let more = asked() - before;
        println!(
            "{before} requests for wrong bytes until they are known, {more} in the {took:.1?} after that"
        );
        assert!(popular_in_time);
        assert_eq!(more, 0, "a source that is known for wrong bytes was asked while there was another");
    });
}

/// Pushes nothing: manifests of which a script sends what it wants. 28 come at 20 kB/s, and 16 not beyond their first
/// `stalled` bytes. Returns references to all of them, at all names of `registry`.
fn manifests_that_do_not_come(registry: &Scripted, names: u8) -> Vec<String> {
    let hosts = registry.hosts(names);
    let reference = |number: usize, tag: String| format!("{}/manifests:{tag}", hosts[number % hosts.len()]);
    let dripping = (0..28).map(|number| reference(number, format!("dripping-{number}")));
    dripping.chain((0..16).map(|number| reference(number, format!("stalled-{number}")))).collect()
}

/// What a registry sends of such a manifest.
fn part_of_a_manifest(seen: &Seen, stalled: usize) -> axum::response::Response {
    const SIZE: usize = 4 * MIB;
    let mut block = vec![b' '; 64 * KIB];
    block[0] = b'{';
    let manifest = Blob::new(block, SIZE);
    match seen.path.contains("/stalled-") {
        true => manifest.answer_until(stalled, seen, &Line::fast()),
        false => manifest.answer(seen, &Line::of(20_000)),
    }
}

#[test]
fn regression_t44_manifests_that_drip_do_not_hold_up_those_of_another_tenant() {
    isolated(async {
        let (slow, quiet) = (Scripted::start_with_many_names().await, Scripted::start().await);
        let stage = Stage::start(&hosts(&[&slow.hosts(8), &[quiet.host()]]), &[]).await;
        slow.script(|seen| is_manifest(seen).then(|| part_of_a_manifest(seen, 0)));
        // In pieces, as over a network: what comes at once with the headers waits for nothing.
        let (pusher, mut small) = (quiet.pusher("m"), BTreeMap::new());
        for (number, tag) in ["warm", "alone", "victim"].into_iter().enumerate() {
            let content = distinct(1_003 + number as u64, 100);
            let digest = pusher.blob(content).await.expect("pushed");
            let text = push_promises(&pusher, tag, &[(digest, 100)]).await;
            small.insert(format!("/v2/m/manifests/{tag}"), Blob::new(text.clone(), text.len()));
        }
        quiet.script(move |seen| Some(small.get(&seen.path)?.answer(seen, &Line::of(4_000))));
        let pull = async |tag: &str| stage.wait_for(tag, &quiet.reference(&format!("m:{tag}")), |_| {}).await;
        pull("warm").await;
        let alone = pull("alone").await;
        let manifests = manifests_that_do_not_come(&slow, 8);
        let _others: Vec<_> = manifests.iter().map(|reference| stage.begin("hostile", reference)).collect();
        settled("manifests that drip or stall", 8, || asked_for(&slow, is_manifest)).await;
        let beside = pull("victim").await;
        assert!(is_within(SECOND.max(3 * alone), "a manifest of another registry", alone, beside));
    });
}

/// Bytes that the files of downloads take, largest first.
fn unfinished(root: &Path) -> Vec<u64> {
    let mut directories = vec![root.join("v1/ingest")];
    let mut sizes = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            // It may be gone again.
            match entry.metadata() {
                Ok(found) if found.is_dir() => directories.push(entry.path()),
                Ok(found) => sizes.push(found.blocks() * 512),
                Err(_) => {}
            }
        }
    }
    sizes.sort_unstable_by(|one, two| two.cmp(one));
    sizes
}

#[test]
fn regression_t44_downloads_that_hash_what_they_have_do_not_hold_up_another() {
    isolated(async {
        // So much comes before the plugin is killed, and so much afterwards.
        const LATE: usize = 1_500 * MIB;
        const SIZE: usize = LATE + 64 * MIB;
        let (large, quiet) = (Scripted::start().await, Scripted::start().await);
        // Room for as many small pulls beside them as a slow machine makes.
        let mut stage = Stage::start_in_memory("4500m", &[large.host(), quiet.host()]).await;
        let files: BTreeMap<&str, Blob> =
            [("one", 51), ("two", 52)].map(|(name, seed)| (name, Blob::new(noise(seed, MIB), SIZE))).into();
        for (name, file) in &files {
            push_promises(&large.pusher(name), "v1", &[(file.digest(), file.size())]).await;
        }
        let script = |end: usize| {
            let files = files.clone();
            move |seen: &Seen| {
                let name = seen.path.trim_start_matches("/v2/").split('/').next().unwrap_or_default();
                let file = files.get(name).filter(|_| gets_blob(seen))?;
                Some(file.answer_until(end, seen, &Line::fast()))
            }
        };
        let begin = |stage: &Stage| -> Vec<Publishing> {
            files.keys().map(|name| stage.begin("hostile", &large.reference(&format!("{name}:v1")))).collect()
        };
        large.script(script(LATE));
        let _killed = begin(&stage);
        let is_late = |bytes: &u64| *bytes >= (LATE - MIB) as u64;
        eventually("both are nearly here", || {
            unfinished(&stage.node.root).iter().filter(|bytes| is_late(bytes)).count() == 2
        })
        .await;
        stage.node.kill();
        stage.node.run_registered().await;
        let alone = stage.alone(&quiet, 8 * MIB).await;
        large.forget();
        large.script(script(SIZE));
        let others = begin(&stage);
        let began = Instant::now();
        let (beside, pulls) = stage.beside(&others, &quiet, "victim", 8 * MIB).await;
        let within = is_within(2 * alone + SECOND * 3 / 10, "8 MiB of another registry", alone, beside);
        for other in others {
            other.await.expect("no panic").expect("published");
        }
        println!("{pulls} pulls beside; the others ended after {:.1?}", began.elapsed());
        for seen in large.requests().iter().filter(|seen| gets_blob(seen)) {
            let range = seen.headers.get("range").and_then(|range| parse_range(range.to_str().ok()?, SIZE));
            let start = range.unwrap_or(0..0).start;
            assert!(start >= LATE / 2, "it was not resumed, but asked for from byte {start} on");
        }
        assert!(within);
    });
}

#[test]
fn regression_t44_layers_that_are_slow_to_write_do_not_hold_up_another_tenant() {
    isolated(async {
        let (many, quiet) = (Scripted::start().await, Scripted::start().await);
        let stage = Stage::start(&[many.host(), quiet.host()], &[]).await;
        let layer = |number: usize| {
            let files = (0..90_000).fold(Tarball::new(), |tar, file| tar.file(format!("d/{file}"), b""));
            Layer::archive(files.directory(format!("{number}")).finish())
        };
        let layers: Vec<Layer> = (0..4).map(layer).collect();
        many.pusher("image").image("v1", &layers, &[]).await.expect("pushed");
        drop(layers);
        let alone = stage.alone(&quiet, 96 * MIB).await;
        let others = [stage.begin("hostile", &many.reference("image:v1"))];
        eventually("layers come", || many.count(&GET, "/image/blobs/") >= 2).await;
        let began = Instant::now();
        let (beside, pulls) = stage.beside(&others, &quiet, "victim", 96 * MIB).await;
        println!("{pulls} pulls beside; the others ended after {:.1?}", began.elapsed());
        // Two cores: the layers of the other tenant, and the registry of this test, work as well.
        assert!(is_within(2 * alone + SECOND * 3 / 10, "96 MiB of another registry", alone, beside));
    });
}

/// How long an answer may take when the plugin has much to do, and when it is given up.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
const GIVEN_UP_AFTER: Duration = Duration::from_secs(10);

/// Runs `ocivol ls` beside the plugin; how it ended, if it did.
async fn list(node: &Node) -> Option<ExitStatus> {
    let mut command = Command::new(BINARY);
    command.args(["--root".as_ref(), node.root.as_os_str(), "ls".as_ref()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let (mut child, began) = (command.spawn().expect("the binary starts"), Instant::now());
    while began.elapsed() < GIVEN_UP_AFTER {
        if let Some(status) = child.try_wait().expect("a child") {
            return Some(status);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child.kill().expect("it runs");
    child.wait().expect("ended");
    None
}

/// How long the plugin takes to say that it is well, to list what it has, and to unpublish `volume`.
async fn answers(node: &Node, volume: &PodVolume) -> [(&'static str, Duration); 3] {
    let took = |began: Instant, problem: Option<String>| match problem {
        Some(problem) => {
            println!("no answer: {problem}");
            GIVEN_UP_AFTER
        }
        None => began.elapsed(),
    };
    let began = Instant::now();
    let well = probe("/healthz").await.and_then(|line| match line.as_str() {
        "HTTP/1.1 200 OK" => Ok(()),
        other => Err(other.to_owned()),
    });
    let health = took(began, well.err());
    let began = Instant::now();
    let listed = list(node).await;
    let ls = took(began, (!listed.is_some_and(|status| status.success())).then(|| format!("ls: {listed:?}")));
    let began = Instant::now();
    let unpublished = tokio::time::timeout(GIVEN_UP_AFTER, node.kubelet.unpublish(volume)).await;
    let unpublished = unpublished.map_err(|late| late.to_string());
    let unpublished = unpublished.and_then(|answer| answer.map_err(|status| status.to_string()));
    let unpublish = took(began, unpublished.err());
    [("/healthz", health), ("ocivol ls", ls), ("unpublish", unpublish)]
}

#[test]
fn regression_t44_stalled_downloads_leave_threads_for_everything_else() {
    isolated(async {
        let slow = [Scripted::start().await, Scripted::start().await];
        let quiet = Scripted::start().await;
        let names = [slow[0].host(), slow[1].host(), quiet.host()];
        let stage = Stage::start(&names, &["--parallel-downloads", "64", "--stall-timeout", "300"]).await;
        let mut models = Vec::new();
        for (number, registry) in slow.iter().enumerate() {
            for model in 0..8 {
                let name = |file: usize| made_up(&format!("file {file} of {model} of {number}"));
                let files: Vec<_> = (0..8).map(|file| (name(file), MIB)).collect();
                push_promises(&registry.pusher(&format!("m{model}")), "v1", &files).await;
                models.push((format!("hostile-{number}"), registry.reference(&format!("m{model}:v1"))));
            }
            registry.script(|seen| {
                gets_blob(seen).then(|| Blob::zeros(MIB).answer_until(1, seen, &Line::fast()))
            });
        }
        let layer = Layer::model_file("weight", "w", "content");
        quiet.pusher("m").model("v1", &[layer]).await.expect("pushed");
        let volumes = ["alone", "beside"].map(|name| stage.node.volume(name));
        for volume in &volumes {
            stage.node.publish(volume, &quiet.reference("m:v1"), &[]).await.expect("published");
        }
        let alone = answers(&stage.node, &volumes[0]).await;
        let _others: Vec<_> =
            models.iter().map(|(tenant, reference)| stage.begin(tenant, reference)).collect();
        let asked = || slow.iter().map(|registry| asked_for(registry, gets_blob)).sum();
        settled("stalled files", 2, asked).await;
        let beside = answers(&stage.node, &volumes[1]).await;
        let within = alone
            .iter()
            .zip(beside)
            .map(|((what, alone), (_, beside))| is_within(ANSWERS_WITHIN, what, *alone, beside));
        assert_eq!(within.collect::<Vec<_>>(), [true; 3]);
    });
}

/// Volumes of one pod that are worked on at a time.
const OF_ONE_POD: usize = 64;

/// Has so many new pods of `namespace` publish `reference`, and waits for nothing. kubelet dials a connection for each;
/// here many share one, because the test has both ends.
async fn crowd(
    stage: &Stage,
    namespace: &str,
    pods: usize,
    reference: &str,
) -> Vec<JoinHandle<Result<Response<NodePublishVolumeResponse>, Status>>> {
    // A server of HTTP/2 allows 200.
    const CALLS: usize = 150;
    let kubelet = &stage.node.kubelet;
    let mut all = Vec::with_capacity(pods);
    while all.len() < pods {
        let client = kubelet.node().await.expect("a connection");
        for _ in 0..CALLS.min(pods - all.len()) {
            let volume =
                stage.node.volume_of(&Pod::new(namespace, &format!("{namespace}-{}", all.len())), "model");
            let mut request =
                Request::new(kubelet.publish_request(&volume, &[("reference", reference)], &[]));
            request.set_timeout(kubelet.deadline);
            let mut client = client.clone();
            all.push(tokio::spawn(async move { client.node_publish_volume(request).await }));
        }
    }
    all
}

#[test]
fn regression_t44_publishes_of_one_pod_or_tenant_leave_slots_for_others() {
    isolated(async {
        const VOLUMES: usize = 80;
        let (stalling, quiet) = (Scripted::start().await, Scripted::start().await);
        let mut stage = Stage::start(&[stalling.host(), quiet.host()], &["--stall-timeout", "300"]).await;
        stalling.script(|seen| {
            is_manifest(seen).then(|| Blob::new("{", 1_000).answer_until(1, seen, &Line::fast()))
        });
        let alone = stage.alone(&quiet, 100).await;
        let pod = Pod::new("hostile", "one-pod");
        let mut volumes: Vec<Publishing> = (0..VOLUMES)
            .map(|number| {
                let reference = stalling.reference(&format!("m:v{number}"));
                stage.begin_for(&pod, &format!("model-{number}"), &reference)
            })
            .collect();
        let ended = || volumes.iter().filter(|volume| volume.is_finished()).count();
        let all_ended = settled("volumes of one pod that are refused", VOLUMES - OF_ONE_POD, ended);
        if tokio::time::timeout(GIVEN_UP_AFTER, all_ended).await.is_err() {
            println!("volumes of one pod that are refused: {}", ended());
        }
        let refused = ended();
        for volume in volumes.extract_if(.., |volume| volume.is_finished()) {
            let status = volume.await.expect("no panic").expect_err("nothing comes");
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            for word in ["pod", &OF_ONE_POD.to_string()] {
                assert!(status.message().contains(word), "no {word:?} in: {}", status.message());
            }
        }
        let another = stage.pull(&quiet, "hostile", 100).await;
        let another_in_time = is_within(SECOND.max(3 * alone), "another pod of the tenant", alone, another);

        // A volume is mounted; the plugin starts anew, and kubelet asks for all volumes of the node again.
        let layer = Layer::model_file("weight", "w", "content");
        quiet.pusher("m").model("v1", &[layer]).await.expect("pushed");
        let (volume, reference) =
            (stage.node.volume_of(&Pod::new("victim", "mounted"), "model"), quiet.reference("m:v1"));
        stage.node.publish(&volume, &reference, &[]).await.expect("published");
        stage.node.kill();
        stage.node.run_registered().await;
        let began = Instant::now();
        stage.node.publish(&volume, &reference, &[]).await.expect("it is there");
        let alone = began.elapsed();
        raise_own_limit();
        // A tenant that may only take a part of what is free does not take the last slot, so there are several.
        let (stalled, mut others) = (stalling.reference("m:v1"), Vec::new());
        for number in 0..12 {
            let namespace = format!("hostile-{number}");
            others.extend(crowd(&stage, &namespace, (1_100 >> number) + 8, &stalled).await);
        }
        let refused_all = || others.iter().filter(|other| other.is_finished()).count();
        let many = settled("publishes that are refused, because there are too many", 1, refused_all).await;
        println!("{} publishes wait", others.len() - many);
        let began = Instant::now();
        let again = tokio::time::timeout(LIMIT, stage.node.publish(&volume, &reference, &[])).await;
        let beside = began.elapsed();
        println!("a mounted volume is published again: {again:?}");
        let again_in_time = is_within(SECOND, "a volume that is mounted already", alone, beside);
        assert!(mount_at(&volume.target).is_some(), "it stays mounted");
        again.expect("in time").expect("it needs no slot");
        assert_eq!(refused, VOLUMES - OF_ONE_POD, "volumes of one pod that are refused");
        assert!(another_in_time && again_in_time);
    });
}

/// The test holds one end of all connections.
fn raise_own_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("the hard limit");
}

/// Looks at a process's anonymous memory all the time, until it is asked for the most that there was.
struct Peak {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u64>,
}

impl Peak {
    fn of(pid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        // A sample now and then: there is no condition to wait for.
        #[allow(clippy::disallowed_methods)]
        let thread = std::thread::spawn(move || {
            let mut most = 0;
            while !stopped.load(Ordering::Relaxed) {
                most = most.max(memory_of(pid, "RssAnon"));
                std::thread::sleep(Duration::from_millis(5));
            }
            most
        });
        Self { stop, thread }
    }

    fn mib(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic").div_ceil(MIB as u64)
    }
}

/// A directory with a name of 2,800 bytes that begins with `first`.
fn long_name(first: &str) -> String {
    [first]
        .into_iter()
        .chain([["n".repeat(250).as_str(); 11].join("/").as_str()])
        .collect::<Vec<_>>()
        .join("/")
}

/// An archive of 10,000 directories, which a node has to remember by names of 2,800 bytes.
fn long_names(first: &str) -> Vec<u8> {
    let base = long_name(first);
    let mut tar = Tarball::new();
    for number in 0..10_000 {
        tar = tar.directory(format!("{base}/{number:05}"));
    }
    zstd(&tar.finish()).expect("memory")
}

/// An archive of 450,000 devices. They are left out of a volume, so no disk has to bear them; a merge has all their names
/// in memory.
fn many_names() -> Vec<u8> {
    let mut tar = Tarball::new();
    for number in 0..450_000 {
        tar = tar.entry(&Header::new(format!("d/{number}"), CHARACTER_DEVICE), b"");
    }
    zstd(&tar.finish()).expect("memory")
}

/// An archive of a file of zeros, and of `files` without content, which takes a window of `1 << window` bytes.
fn window(window: u32, name: &str, zeros: usize, files: usize) -> Vec<u8> {
    let mut tar = Tarball::new().file(name, &vec![0; zeros]);
    for number in 0..files {
        tar = tar.file(format!("{name}-{number}"), b"");
    }
    zstd_with_window(&tar.finish(), window)
}

#[test]
fn regression_t44_everything_at_once_has_bounds_of_memory_and_time() {
    isolated(async {
        const MOST_MIB: u64 = 512;
        let (slow, heavy) =
            (Scripted::start_with_many_names().await, Scripted::start_with_many_names().await);
        let quiet = Scripted::start().await;
        // A name for each, so that none waits for another's registry.
        let heavy_hosts = heavy.hosts(17);
        let mut names = heavy_hosts.iter();
        let mut at_its_own = |rest: &str| format!("{}/{rest}", names.next().expect("a name"));
        let stage = Stage::start(&hosts(&[&slow.hosts(8), &heavy_hosts, &[quiet.host()]]), &[]).await;
        // Nothing of these ever comes whole.
        let mut endless: BTreeMap<String, Blob> = BTreeMap::new();
        let mut begun: Vec<(String, String)> = Vec::new();
        for reference in models_that_drip(&slow, 8).await {
            begun.push(("slow-files".to_owned(), reference));
        }
        for reference in manifests_that_do_not_come(&slow, 8) {
            begun.push(("slow-manifests".to_owned(), reference));
        }
        slow.script(|seen| match seen.path.starts_with("/v2/manifests/") {
            true => Some(part_of_a_manifest(seen, 4 * MIB - 1)),
            false => gets_blob(seen).then(|| drip(seen)),
        });
        let wide = heavy.pusher("wide");
        let config = wide.blob(Bytes::from_static(b"{}")).await.expect("pushed");
        let content = made_up("one byte");
        endless.insert(content.to_string(), Blob::zeros(1));
        for number in 0..8 {
            let manifest = wide_manifest(number, 21_500, &content, &config);
            assert!((3_500_000..4 << 20).contains(&manifest.len()), "{} bytes", manifest.len());
            wide.manifest(&format!("v{number}"), media_type::OCI_MANIFEST, &manifest).await.expect("pushed");
            begun.push((format!("wide-{}", number / 2), at_its_own(&format!("wide:v{number}"))));
        }
        let mut images: Vec<(String, Vec<Vec<u8>>)> = Vec::new();
        for number in 0..2 {
            images.push((format!("long-{number}"), vec![long_names(&format!("{number}"))]));
        }
        for number in 0..4 {
            let layer = |layer: usize| window(23, &format!("{number}-{layer}"), 12 * MIB, 0);
            images.push((format!("window-{number}"), (0..4).map(layer).collect()));
        }
        let images_begun: Vec<String> = images.iter().map(|(tenant, _)| tenant.clone()).collect();
        for (tenant, layers) in images {
            for layer in &layers {
                endless.insert(Digest::sha256(layer).to_string(), Blob::new(layer.clone(), layer.len()));
            }
            let layers: Vec<Layer> = layers.into_iter().map(Layer::archive).collect();
            heavy.pusher(&tenant).image("v1", &layers, &[]).await.expect("pushed");
            begun.push((tenant.clone(), at_its_own(&format!("{tenant}:v1"))));
        }
        // These come whole, and then take much.
        let mut whole: Vec<(String, String)> = Vec::new();
        for number in 0..2 {
            let layer = Layer::archive(window(27, &format!("{number}"), 160 * MIB, 20_000));
            let tenant = format!("large-window-{number}");
            heavy.pusher(&tenant).image("v1", &[layer], &[]).await.expect("pushed");
            whole.push((tenant.clone(), at_its_own(&format!("{tenant}:v1"))));
        }
        let base = Tarball::new().file("a", b"1").finish();
        let layers = [base, many_names()].map(Layer::archive);
        heavy.pusher("merge").image("v1", &layers, &[]).await.expect("pushed");
        whole.push(("merge".to_owned(), at_its_own("merge:v1")));
        heavy.script(move |seen| {
            let digest = seen.path.rsplit('/').next().unwrap_or_default();
            let blob = endless.get(digest).filter(|_| gets_blob(seen))?;
            Some(blob.answer_until(blob.size().saturating_sub(20), seen, &Line::fast()))
        });

        let alone = stage.alone(&quiet, MIB).await;
        let peak = Peak::of(stage.node.pid());
        let begin = |those: &[(String, String)]| -> Vec<Publishing> {
            those.iter().map(|(tenant, reference)| stage.begin(tenant, reference)).collect()
        };
        let (others, endless_pulls) = (begin(&whole), begin(&begun));
        let asked =
            || asked_for(&slow, is_manifest) + asked_for(&slow, gets_blob) + asked_for(&heavy, gets_blob);
        settled("manifests and files that do not come", 8, asked).await;
        let (beside, pulls) = stage.beside(&others, &quiet, "victim", MIB).await;
        let (most, ever) = (peak.mib(), stage.node.memory("VmHWM") / MIB as u64);
        println!("{pulls} pulls beside; {most} MiB of anonymous memory at most, {ever} MiB of all");
        // What becomes of the others is theirs; but they have to have been there.
        let was_asked = |repository: &str| heavy.count(&Method::GET, &format!("/{repository}/blobs/")) > 0;
        let others_asked = ["wide", "large-window-0", "large-window-1", "merge"].map(str::to_owned);
        for repository in others_asked.iter().chain(&images_begun) {
            assert!(was_asked(repository), "{repository} was not there");
        }
        for ((tenant, _), other) in begun.iter().zip(endless_pulls).chain(whole.iter().zip(others)) {
            if other.is_finished() {
                println!(
                    "{tenant} ended: {:?}",
                    other.await.expect("no panic").map_err(|status| status.to_string())
                );
            }
        }
        let in_time = is_within(2 * SECOND, "1 MiB of another registry", alone, beside);
        assert!(in_time && most <= MOST_MIB, "{beside:?}, {most} MiB");
    });
}
