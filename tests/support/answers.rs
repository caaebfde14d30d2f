//! What a registry answers when it does not do what it should.

use axum::body::Body;
use axum::http::{Method, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use ocivol::demo::push::Layer;
use ocivol::demo::registry::Seen;

use super::{Node, Scripted};

/// A registry with one raw layer of `content` as `m:v1`, a node, and the model's reference.
pub async fn setup(content: &[u8]) -> (Scripted, Node, String) {
    setup_with(content, &[]).await
}

/// The same with further flags for the plugin.
pub async fn setup_with(content: &[u8], flags: &[&str]) -> (Scripted, Node, String) {
    let registry = Scripted::start().await;
    let layer = Layer::model_file("weight", "w", content.to_vec());
    registry.pusher("m").model("v1", &[layer]).await.expect("pushed");
    let node = Node::start(&[&["--plain-http", &registry.host()], flags].concat()).await;
    let reference = registry.reference("m:v1");
    (registry, node, reference)
}

pub fn is_blob(seen: &Seen) -> bool {
    seen.path.contains("/blobs/")
}

/// A GET of a blob: what is mostly scripted.
pub fn gets_blob(seen: &Seen) -> bool {
    seen.method == Method::GET && is_blob(seen)
}

pub fn is_manifest(seen: &Seen) -> bool {
    seen.path.contains("/manifests/")
}

/// A body that says it has `length` bytes, sends `part`, and breaks or hangs.
pub fn broken(part: &[u8], length: usize, hang: bool) -> Response {
    use futures_util::StreamExt as _;
    let first = futures_util::stream::iter([Ok(Bytes::copy_from_slice(part))]);
    let body = if hang {
        Body::from_stream(first.chain(futures_util::stream::pending()))
    } else {
        let end = futures_util::stream::iter([Err(std::io::Error::other("cut"))]);
        Body::from_stream(first.chain(end))
    };
    ([(header::CONTENT_LENGTH, length)], body).into_response()
}

/// Answers the first `times` requests that fit with `answer`.
pub fn first(
    times: usize,
    fits: fn(&Seen) -> bool,
    answer: impl Fn(&Seen) -> Response + Send + 'static,
) -> impl FnMut(&Seen) -> Option<Response> + Send + 'static {
    let mut left = times;
    move |seen| {
        if left == 0 || !fits(seen) {
            return None;
        }
        left -= 1;
        Some(answer(seen))
    }
}
