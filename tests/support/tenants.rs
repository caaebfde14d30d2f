//! Tenants of one node: victims, whose pulls are timed, and others, who take what they can get.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ocivol::demo::kubelet::Pod;
use ocivol::demo::push::Layer;
use ocivol::demo::registry::Seen;
use ocivol::oci::digest::Digest;
use ocivol::oci::media_type;
use tokio::task::JoinHandle;
use tonic::Status;

use super::{Node, PATIENCE, Scripted, noise};

/// How long a victim is waited for: far beyond every bound, so that a test that fails says by how much, and ends.
pub const LIMIT: Duration = Duration::from_secs(40);
/// How long nothing new is seen when somebody has all that he gets.
const QUIET: Duration = Duration::from_secs(1);
/// The only file of what victims pull.
const FILE: &str = "w";

/// A node, and the pods of its tenants.
pub struct Stage {
    pub node: Node,
    /// What was made, so that everything has another name.
    number: AtomicU64,
}

/// What becomes of a publish that goes on beside the test.
pub type Publishing = JoinHandle<Result<(), Status>>;

impl Stage {
    /// A node whose plugin is registered, and speaks to `hosts` without TLS.
    pub async fn start(hosts: &[String], flags: &[&str]) -> Self {
        Self::start_on(Node::prepare(&[&["--plain-http", &hosts.join(",")], flags].concat())).await
    }

    /// The same with a store in memory, of this size: for what a disk that writes gigabytes would blur.
    pub async fn start_in_memory(size: &str, hosts: &[String]) -> Self {
        let node = Node::prepare(&["--plain-http", &hosts.join(",")]);
        node.limit_store(size);
        Self::start_on(node).await
    }

    async fn start_on(mut node: Node) -> Self {
        node.run_registered().await;
        Self { node, number: AtomicU64::new(0) }
    }

    fn next(&self) -> u64 {
        self.number.fetch_add(1, Ordering::Relaxed)
    }

    /// Has a new pod of `namespace` publish `reference`, and waits for nothing.
    pub fn begin(&self, namespace: &str, reference: &str) -> Publishing {
        let pod = Pod::new(namespace, &format!("{namespace}-{}", self.next()));
        self.begin_for(&pod, "model", reference)
    }

    /// The same for the volume `name` of `pod`.
    pub fn begin_for(&self, pod: &Pod, name: &str, reference: &str) -> Publishing {
        let (kubelet, volume) = (self.node.kubelet.clone(), self.node.volume_of(pod, name));
        let request = kubelet.publish_request(&volume, &[("reference", reference)], &[]);
        tokio::spawn(async move { kubelet.publish(request).await })
    }

    /// How long a new pod of `namespace` waits for `size` bytes from `registry` that are new as well.
    pub async fn pull(&self, registry: &Scripted, namespace: &str, size: usize) -> Duration {
        self.pull_content(registry, namespace, distinct(self.next(), size)).await
    }

    /// The same for given bytes.
    pub async fn pull_content(&self, registry: &Scripted, namespace: &str, content: Bytes) -> Duration {
        let repository = format!("{namespace}/{}", self.next());
        let layer = Layer::model_file("weight", FILE, content.clone());
        registry.pusher(&repository).model("v1", &[layer]).await.expect("pushed");
        let reference = registry.reference(&format!("{repository}:v1"));
        let check = |target: &Path| {
            let read = std::fs::read(target.join(FILE)).expect("a file");
            assert!(read == content, "{namespace}: other bytes than were pushed");
        };
        self.wait_for(namespace, &reference, check).await
    }

    /// How long a new pod of `namespace` waits for `reference`; what it then has is checked, and unpublished. Who waits for
    /// [`LIMIT`] gives up.
    pub async fn wait_for(&self, namespace: &str, reference: &str, check: impl FnOnce(&Path)) -> Duration {
        let pod = Pod::new(namespace, &format!("{namespace}-{}", self.next()));
        let volume = self.node.volume_of(&pod, "model");
        let began = Instant::now();
        let published = tokio::time::timeout(LIMIT, self.node.publish(&volume, reference, &[])).await;
        let took = began.elapsed();
        match published {
            Ok(published) => {
                published.unwrap_or_else(|status| panic!("{namespace}: {status}"));
                check(&volume.target);
                self.node.kubelet.unpublish(&volume).await.expect("unpublished");
            }
            Err(_) => println!("{namespace}: given up after {took:.1?}"),
        }
        took
    }

    /// The longest of three such waits, while nobody else wants anything. The first that a plugin ever has takes longer,
    /// and does not count.
    pub async fn alone(&self, registry: &Scripted, size: usize) -> Duration {
        self.pull(registry, "alone", size).await;
        let mut longest = Duration::ZERO;
        for _ in 0..3 {
            longest = longest.max(self.pull(registry, "alone", size).await);
        }
        longest
    }

    /// The median of such waits, one after the other, until what `others` do has ended; and how many there were. Who is held up is
    /// held up each time; a single long one is the machine's, which runs other tests as well.
    pub async fn beside(
        &self,
        others: &[Publishing],
        registry: &Scripted,
        namespace: &str,
        size: usize,
    ) -> (Duration, usize) {
        let (began, mut waits) = (Instant::now(), Vec::new());
        while waits.is_empty() || (began.elapsed() < LIMIT && !others.iter().all(JoinHandle::is_finished)) {
            waits.push(self.pull(registry, namespace, size).await);
        }
        waits.sort_unstable();
        (waits[waits.len() / 2], waits.len())
    }
}

/// Bytes that nothing else has, the same for the same number.
pub fn distinct(number: u64, size: usize) -> Bytes {
    let block = noise(7_000 + number, size.min(1 << 20));
    let mut all = block.repeat(size.div_ceil(block.len().max(1)));
    all.truncate(size);
    all.into()
}

/// How many things, by registry and path, were asked for in requests that fit.
pub fn asked_for(registry: &Scripted, fits: fn(&Seen) -> bool) -> usize {
    let host = |seen: &Seen| seen.headers.get("host").map(|host| host.as_bytes().to_vec());
    let requests = registry.requests();
    let distinct = requests.iter().filter(|seen| fits(seen)).map(|seen| (host(seen), seen.path.clone()));
    distinct.collect::<BTreeSet<_>>().len()
}

/// Waits until `count` is `at_least` so much, and then has not changed for a second: who is behind it has all that he gets,
/// however much that is. Returns it.
pub async fn settled(what: &str, at_least: usize, mut count: impl FnMut() -> usize) -> usize {
    let began = Instant::now();
    let (mut known, mut since) = (count(), began);
    while known < at_least || since.elapsed() < QUIET {
        assert!(
            began.elapsed() < PATIENCE,
            "{what}: {known} in {PATIENCE:?}, at least {at_least} are expected"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = count();
        if now != known {
            (known, since) = (now, Instant::now());
        }
    }
    println!("{what}: {known}");
    known
}

/// Prints what was measured; whether it is within `bound`.
#[must_use]
pub fn is_within(bound: Duration, what: &str, alone: Duration, beside: Duration) -> bool {
    println!("{what}: {beside:.3?} beside the others, {alone:.3?} alone, {bound:.3?} allowed");
    beside <= bound
}

/// A manifest of as many small files, all of the same content: one byte.
pub fn wide_manifest(number: usize, files: usize, content: &Digest, config: &Digest) -> String {
    let entry = |at: usize| {
        format!(
            r#"{{"mediaType":"a/b","digest":"{content}","size":1,"annotations":{{"org.opencontainers.image.title":"{number}-{at:x}"}}}}"#
        )
    };
    let entries: Vec<String> = (0..files).map(entry).collect();
    let config_type = media_type::OCI_EMPTY;
    format!(
        r#"{{"schemaVersion":2,"artifactType":"a/b","config":{{"mediaType":"{config_type}","digest":"{config}","size":2}},"layers":[{}]}}"#,
        entries.join(",")
    )
}
