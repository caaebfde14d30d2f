//! How many connections a blob gets from registries and over lines of all kinds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use futures_util::StreamExt as _;
use ocivol::demo::push::Layer;
use ocivol::demo::registry::Seen;
use ocivol::demo::tarball::Tarball;

use crate::support::slow::{Blob, Line};
use crate::support::{Node, Scripted, isolated, noise};

const MIB: usize = 1 << 20;

/// Answers that are sent at the same time.
#[derive(Clone, Default)]
struct Open(Arc<(AtomicUsize, AtomicUsize)>);

impl Open {
    fn begin(&self) -> Self {
        let (now, most) = &*self.0;
        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        self.clone()
    }

    fn end(self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }

    fn most(&self) -> usize {
        self.0.1.load(Ordering::SeqCst)
    }
}

/// Ends with the answer that has it, also when nobody reads that to its end.
struct Answer(Option<Open>);

impl Drop for Answer {
    fn drop(&mut self) {
        self.0.take().expect("once").end();
    }
}

/// The answer, whose first byte comes `late`; as long as it is sent from then on it is among the `open` ones.
fn sent(answer: Response, late: Duration, open: &Open) -> Response {
    let ((parts, body), open) = (answer.into_parts(), open.clone());
    let all = async move {
        // How late it is, is what is tested.
        tokio::time::sleep(late).await;
        let counted = Answer(Some(open.begin()));
        body.into_data_stream().map(move |piece| {
            let _ = &counted;
            piece
        })
    };
    Response::from_parts(parts, Body::from_stream(futures_util::stream::once(all).flatten()))
}

fn gets_blob(seen: &Seen) -> bool {
    seen.method == axum::http::Method::GET && seen.path.contains("/blobs/")
}

/// Has a node mount a model of one file over `line`; how many connections it had at most.
async fn pull(content: Vec<u8>, line: impl Fn() -> Line + Send + 'static, late: Duration) -> usize {
    let registry = Scripted::with_model(content.clone()).await;
    let (blob, open) = (Blob::new(content.clone(), content.len()), Open::default());
    let answers = open.clone();
    registry.script(move |seen| gets_blob(seen).then(|| sent(blob.answer(seen, &line()), late, &answers)));
    let node = Node::start(&["--plain-http", &registry.host()]).await;
    let volume = node.volume("pod");
    node.publish(&volume, &registry.reference("m:v1"), &[]).await.expect("published");
    assert!(std::fs::read(volume.target.join("w")).expect("read") == content, "parts were mixed up");
    open.most()
}

#[test]
fn a_bound_for_each_connection_is_answered_by_more_of_them() {
    isolated(async {
        // Object stores give 50 to 90 MB/s to each.
        let most = pull(noise(1, 400 * MIB), || Line::of(50_000_000), Duration::ZERO).await;
        assert!((4..=8).contains(&most), "{most}");
    });
}

#[test]
fn answers_that_begin_late_are_not_taken_for_useless() {
    isolated(async {
        const RATE: usize = 5_000_000;
        // A registry far away, and one that has to fetch a part from a cold store first.
        for (seed, late) in [(2, Duration::from_millis(200)), (3, Duration::from_secs(2))] {
            let began = Instant::now();
            let most = pull(noise(seed, 160 * MIB), || Line::of(RATE), late).await;
            let (took, alone) = (began.elapsed().as_secs_f64(), (160 * MIB) as f64 / RATE as f64);
            println!("{late:?} late: {took:.1} s, of {alone:.1} s with one connection; {most} at a time");
            // Connections that were taken for useless would have ended, and nobody tries again for ten seconds.
            assert!(took < 0.6 * alone && most >= 6, "{took:.1} of {alone:.1} s, {most} at a time");
        }
    });
}

#[test]
fn on_a_full_line_one_connection_is_enough_and_little_is_written_twice() {
    isolated(async {
        let file = noise(4, 280 * MIB);
        let archive = Tarball::new().file("w", &file).finish();
        let registry = Scripted::start().await;
        registry.pusher("i").image("v1", &[Layer::archive(archive.clone())], &[]).await.expect("pushed");
        let (blob, line, open) =
            (Blob::new(archive.clone(), archive.len()), Line::of(60_000_000), Open::default());
        let (answers, digest) = (open.clone(), blob.digest().to_string());
        registry.script(move |seen| {
            let is_layer = gets_blob(seen) && seen.path.ends_with(&digest);
            is_layer.then(|| sent(blob.answer(seen, &line), Duration::ZERO, &answers))
        });
        let node = Node::start(&["--plain-http", &registry.host()]).await;
        let volume = node.volume("pod");
        let before = node.io("wchar");
        node.publish(&volume, &registry.reference("i:v1"), &[]).await.expect("published");
        let written = (node.io("wchar") - before) as f64 / archive.len() as f64;
        assert!(std::fs::read(volume.target.join("w")).expect("read") == file);
        // One more is tried, or two, which get a part of the line for two seconds, and end.
        let asked = registry.count(&axum::http::Method::GET, "/blobs/");
        println!("{asked} requests, {} at a time; {written:.2} times the layer was written", open.most());
        assert!(open.most() <= 3 && asked <= 6, "{asked} requests, {} at a time", open.most());
        assert!(written < 1.4, "{written:.2} times the layer was written");
    });
}
