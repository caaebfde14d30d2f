//! The plugin is told to end, as at every update of it, while it works: it ends soon and well, mounts stay, and the next
//! one can use the store at once.

use std::path::PathBuf;
use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use ocivol::demo::kubelet::PodVolume;
use ocivol::demo::push::Layer;
use ocivol::demo::tarball::{FILE, Header, Tarball, gzip};
use ocivol::oci::descriptor::Descriptor;
use ocivol::oci::digest::Digest;
use ocivol::oci::media_type;
use ocivol::oci::repository::Repository;
use ocivol::store::access::origin::Origin;
use ocivol::store::open::Store;
use ocivol::store::space::budget::Budget;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::support::answers::is_blob;
use crate::support::layers::descriptor;
use crate::support::node::mount_at;
use crate::support::raw::{Raw as _, block};
use crate::support::{Node, Scripted, eventually, isolated, noise};

const MIB: u64 = 1 << 20;
/// Kubernetes waits for thirty seconds, and an update of all nodes waits for each.
const SOON: Duration = Duration::from_secs(10);

/// A node with a volume that stays, and whose store is in memory.
struct Work {
    registry: Scripted,
    node: Node,
    kept: PodVolume,
}

impl Work {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same, with these variables in the plugin's environment.
    async fn start_with(environment: &[(&str, &str)]) -> Self {
        let registry = Scripted::start().await;
        let layer = Layer::model_file("weight", "w", noise(1, 100_000));
        registry.pusher("kept").model("v1", &[layer]).await.expect("pushed");
        let flags = ["--plain-http", &registry.host(), "--stall-timeout", "600"];
        let mut node = Node::prepare(&flags);
        node.limit_store("1g");
        node.env.extend(environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        node.run_registered().await;
        let kept = node.volume("kept");
        node.publish(&kept, &registry.reference("kept:v1"), &[]).await.expect("published");
        Self { registry, node, kept }
    }

    /// Begins to publish.
    fn begin(&self, rest: &str, attributes: &[(&str, &str)]) -> JoinHandle<Result<(), Status>> {
        let (kubelet, volume) = (self.node.kubelet.clone(), self.node.volume("pod"));
        let reference = self.registry.reference(rest);
        let attributes = [&[("reference", reference.as_str())], attributes].concat();
        let request = kubelet.publish_request(&volume, &attributes, &[]);
        tokio::spawn(async move { kubelet.publish(request).await })
    }

    /// The plugin is told to end while it works on this call.
    async fn assert_ends_soon(&mut self, call: JoinHandle<Result<(), Status>>) {
        let ended = tokio::time::timeout(SOON, self.node.stop()).await;
        assert!(ended.is_ok(), "it still runs {SOON:?} after it was told to end");
        let status = call.await.expect("no panic").expect_err("it was not done");
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().contains("ocivol is restarting"), "{status}");
        self.assert_kept();
        let lock = std::fs::File::open(self.node.root.join("lock")).expect("a lock");
        lock.try_lock().expect("nobody holds the store");
        drop(lock);
        // Only who has the store serves the command line, for which this waits.
        self.node.run_registered().await;
        self.assert_kept();
        self.node.kubelet.unpublish(&self.kept).await.expect("unpublished");
    }

    fn assert_kept(&self) {
        assert!(mount_at(&self.kept.target).is_some(), "the mount is gone");
        assert!(std::fs::read(self.kept.target.join("w")).expect("read") == noise(1, 100_000));
    }

    fn names(&self, directory: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.node.root.join("v1").join(directory)).expect("a directory");
        entries.map(|entry| entry.expect("an entry").path()).collect()
    }

    /// Whether something in `ingest/` has this below it.
    fn is_under_way(&self, path: &str) -> bool {
        self.names("ingest").iter().any(|directory| directory.join(path).exists())
    }
}

/// Pushes `m:v1`, whose one layer is this.
async fn push_claim(registry: &Scripted, layer: Value) {
    let pusher = registry.pusher("m");
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [] },
    });
    let config = config.to_string();
    let config_digest = pusher.blob(Bytes::from(config.clone())).await.expect("pushed");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": {
            "mediaType": media_type::OCI_IMAGE_CONFIG, "digest": config_digest.to_string(), "size": config.len(),
        },
        "layers": [layer],
    });
    pusher.manifest("v1", media_type::OCI_MANIFEST, &manifest.to_string()).await.expect("pushed");
}

/// The digest of what nobody has all of.
fn unknown() -> Digest {
    Digest::sha256(b"what nobody has all of")
}

/// A layer that is a file of so many bytes.
fn file_of(size: u64) -> Value {
    json!({
        "mediaType": "application/vnd.cncf.model.weight.v1.raw", "digest": unknown().to_string(), "size": size,
        "annotations": { "org.cncf.model.filepath": "w" },
    })
}

/// A body of `size` bytes that consists of pieces that `next` makes, as fast as they are taken.
fn endless(size: u64, next: impl FnMut() -> Bytes + Send + 'static) -> Response {
    let pieces = futures_util::stream::iter(std::iter::repeat_with(next).map(Ok::<_, std::io::Error>));
    ([(header::CONTENT_LENGTH, size)], Body::from_stream(pieces)).into_response()
}

#[test]
fn it_ends_during_a_download_and_goes_on_where_it_was() {
    isolated(async {
        const SIZE: u64 = 600 * MIB;
        let mut work = Work::start().await;
        push_claim(&work.registry, file_of(SIZE)).await;
        // More than a download is recorded after, and then no end.
        work.registry.script(|seen| {
            use futures_util::StreamExt as _;
            is_blob(seen).then(|| {
                let piece = Bytes::from(vec![7_u8; MIB as usize]);
                let pieces =
                    futures_util::stream::iter((0..100).map(move |_| Ok::<_, std::io::Error>(piece.clone())));
                let body = Body::from_stream(pieces.chain(futures_util::stream::pending()));
                ([(header::CONTENT_LENGTH, SIZE)], body).into_response()
            })
        });
        let call = work.begin("m:v1", &[]);
        eventually("all that comes is here", || {
            let files = work.names("ingest").into_iter().map(|path| path.join("data"));
            files.into_iter().any(|data| std::fs::metadata(data).is_ok_and(|found| found.len() == 100 * MIB))
        })
        .await;
        work.assert_ends_soon(call).await;
        work.registry.script(|seen| is_blob(seen).then(|| StatusCode::NOT_FOUND.into_response()));
        work.registry.forget();
        let call = work.begin("m:v1", &[]);
        assert_eq!(call.await.expect("no panic").expect_err("gone").code(), Code::NotFound);
        let requests = work.registry.requests();
        let blob = requests.iter().find(|seen| is_blob(seen)).expect("it is asked for");
        let range = blob.headers.get(header::RANGE).map(|range| range.to_str().expect("text"));
        assert_eq!(
            range,
            Some(format!("bytes={}-{}", 100 * MIB, SIZE - 1).as_str()),
            "it goes on where it was"
        );
    });
}

#[test]
fn regression_it_ends_while_it_hashes_what_an_earlier_process_left() {
    isolated(async {
        // Of zeros that take no space. To hash all of them takes minutes.
        const SIZE: u64 = 256 << 30;
        let mut work = Work::start().await;
        push_claim(&work.registry, file_of(SIZE)).await;
        work.node.stop().await;
        // All but the last byte is there.
        let blob = Descriptor { digest: unknown(), size: SIZE, ..descriptor(b"") };
        let repository = Repository { host: work.registry.host(), name: "m".to_owned() };
        let origin = Origin { repository, anonymous: true };
        let store = Store::open(&work.node.root, Budget::COMMAND).expect("a store");
        let ingest = store.ingests.open(&blob, origin).expect("a download");
        ingest.write(0, bytes::Bytes::from_static(&[0; 4096])).expect("a beginning");
        drop((ingest, store));
        let ingest = work.names("ingest");
        let directory = ingest.iter().find(|path| path.join("ranges.json").exists()).expect("a download");
        let data = std::fs::File::options().write(true).open(directory.join("data")).expect("its bytes");
        data.set_len(SIZE - 1).expect("a sparse file");
        let record = directory.join("ranges.json");
        let mut known: Value = serde_json::from_slice(&std::fs::read(&record).expect("read")).expect("JSON");
        assert_eq!(known["ranges"], json!([{ "start": 0, "end": 4096 }]), "{known}");
        known["ranges"] = json!([{ "start": 0, "end": SIZE - 1 }]);
        std::fs::write(&record, known.to_string()).expect("written");
        work.node.run_registered().await;
        let asked = |work: &Work| work.registry.requests().iter().filter(|seen| is_blob(seen)).count();
        work.registry.script(|seen| {
            is_blob(seen).then(|| {
                let range = seen.headers.get(header::RANGE).and_then(|range| range.to_str().ok());
                assert_eq!(range, Some(format!("bytes={}-{}", SIZE - 1, SIZE - 1).as_str()));
                let headers = [(header::CONTENT_RANGE, format!("bytes {}-{}/{SIZE}", SIZE - 1, SIZE - 1))];
                (StatusCode::PARTIAL_CONTENT, headers, vec![0_u8]).into_response()
            })
        });
        work.registry.forget();
        let before = work.node.bytes_read();
        let call = work.begin("m:v1", &[]);
        eventually("it hashes", || work.node.bytes_read() > before + 256 * MIB).await;
        assert!(asked(&work) <= 1);
        work.assert_ends_soon(call).await;
        assert!(work.is_under_way("ranges.json"), "and can go on");
    });
}

/// Entries of an archive that takes longer to unpack than anybody waits here.
const ENTRIES: u32 = 400_000;

fn name(number: u32) -> String {
    format!("{:03}/{number:06}", number / 1_000)
}

#[test]
fn it_ends_while_it_unpacks_what_comes() {
    isolated(async {
        const SIZE: u64 = 500 * MIB;
        let mut work = Work::start().await;
        let layer =
            json!({ "mediaType": media_type::OCI_LAYER, "digest": unknown().to_string(), "size": SIZE });
        push_claim(&work.registry, layer).await;
        work.registry.script(|seen| {
            is_blob(seen).then(|| {
                let mut number = 0;
                endless(SIZE, move || {
                    let mut piece = Vec::with_capacity(64 * 1024);
                    for _ in 0..128 {
                        piece.extend_from_slice(&block(&Header::new(name(number), FILE)));
                        number += 1;
                    }
                    piece.into()
                })
            })
        });
        let call = work.begin("m:v1", &[]);
        let unpacked = format!("fs/{}", name(20_000));
        eventually("it unpacks", || work.is_under_way(&unpacked)).await;
        work.assert_ends_soon(call).await;
        assert!(work.names("layers").is_empty(), "nothing half done has a name");
        work.node.nothing_is_left_in_ingest().await;
    });
}

/// An archive of so many empty files.
fn archive(entries: u32) -> Vec<u8> {
    let mut tar = Vec::with_capacity(512 * (entries as usize + 2));
    for number in 0..entries {
        tar.extend_from_slice(&block(&Header::new(name(number), FILE)));
    }
    gzip(&Tarball::new().raw(&tar).finish()).expect("gzip")
}

#[test]
fn regression_it_ends_while_it_unpacks_what_is_here() {
    isolated(async {
        let mut work = Work::start().await;
        let layer = [Layer::titled("archive.tar.gz", archive(ENTRIES))];
        work.registry.pusher("m").files("v1", &layer).await.expect("pushed");
        work.node
            .publish(&work.node.volume("file"), &work.registry.reference("m:v1"), &[])
            .await
            .expect("a file");
        let call = work.begin("m:v1", &[("unpack", "always")]);
        let unpacked = format!("fs/{}", name(20_000));
        eventually("it unpacks", || work.is_under_way(&unpacked)).await;
        assert!(!work.is_under_way(&format!("fs/{}", name(ENTRIES / 2))), "it has a lot to do");
        work.assert_ends_soon(call).await;
        assert!(work.names("layers").is_empty(), "nothing half done has a name");
    });
}

#[test]
fn regression_it_ends_while_it_merges() {
    isolated(async {
        const PLACES: u32 = 32;
        // One small archive, whose files are linked to so many places, with a short wait before some of them, that it takes longer than
        // anybody waits here, however many cores link.
        let mut work = Work::start_with(&[("OCIVOL_DELAYS", "1")]).await;
        let content = archive(20_000);
        let layers: Vec<Layer> = (0..PLACES)
            .map(|place| Layer::titled(&format!("place-{place:02}/archive.tar.gz"), content.clone()))
            .collect();
        work.registry.pusher("m").files("v1", &layers).await.expect("pushed");
        let call = work.begin("m:v1", &[("unpack", "always")]);
        eventually("it merges", || work.is_under_way("fs/place-01")).await;
        assert!(!work.is_under_way("fs/place-15"), "it has a lot to do");
        let trees = work.names("trees").len();
        work.assert_ends_soon(call).await;
        assert_eq!(work.names("trees").len(), trees, "nothing half done has a name");
    });
}
