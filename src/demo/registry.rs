//! A registry in memory, on loopback: push, pull, ranges. Source: distribution-spec v1.1.
//!
//! A hook sees every request first and may answer it: that is how tests script faults.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::oci::digest::Digest;

/// A registry that is being served, until dropped.
pub struct Registry {
    address: SocketAddr,
    task: JoinHandle<()>,
}

/// What a hook sees of a request.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The method.
    pub method: Method,
    /// The path, with the query.
    pub path: String,
    /// All headers.
    pub headers: HeaderMap,
}

/// Answers a request in the registry's place, or lets it through.
pub type Hook = Box<dyn Fn(&Seen) -> Option<Response> + Send + Sync>;

#[derive(Default)]
struct Contents {
    /// By repository and digest.
    blobs: HashMap<(String, Digest), Bytes>,
    /// Content type and bytes, by repository and tag or digest.
    manifests: HashMap<(String, String), (String, Bytes)>,
}

struct Shared {
    contents: Mutex<Contents>,
    hook: Option<Hook>,
}

/// Bytes of one upload.
const UPLOAD_LIMIT: usize = 512 * 1024 * 1024;

impl Registry {
    /// Serves an empty registry on a free port of the loopback address.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(hook: Option<Hook>) -> std::io::Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), hook).await
    }

    /// The same at `address`, which may be that of all interfaces.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start_at(address: IpAddr, hook: Option<Hook>) -> std::io::Result<Self> {
        let listener = TcpListener::bind((address, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { contents: Mutex::default(), hook });
        let router = Router::new().fallback(handle).with_state(shared);
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the demo registry failed");
            }
        });
        Ok(Self { address, task })
    }

    /// `host:port`, as references name it.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Its port, at every address that it serves at.
    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let seen = Seen {
        method: request.method().clone(),
        path: request.uri().path_and_query().map_or_else(String::new, ToString::to_string),
        headers: request.headers().clone(),
    };
    if let Some(answer) = shared.hook.as_ref().and_then(|hook| hook(&seen)) {
        return answer;
    }
    route(&shared, request).await.unwrap_or_else(|| error(StatusCode::NOT_FOUND, "NAME_UNKNOWN"))
}

/// Names have slashes, so paths are taken apart from the right.
async fn route(shared: &Shared, request: Request) -> Option<Response> {
    let uri = request.uri().clone();
    let path = uri.path().strip_prefix("/v2/")?;
    if path.is_empty() {
        return Some(StatusCode::OK.into_response());
    }
    let method = request.method().clone();
    if let Some((name, _)) = path.rsplit_once("/blobs/uploads/") {
        return Some(upload(shared, name, &method, &uri, request.into_body()).await);
    }
    if let Some((name, digest)) = path.rsplit_once("/blobs/") {
        let key = (name.to_owned(), digest.parse().ok()?);
        let blob = shared.lock().blobs.get(&key).cloned();
        return Some(match blob {
            Some(blob) => content(&method, request.headers(), "application/octet-stream", &blob, digest),
            None => error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
        });
    }
    let (name, target) = path.rsplit_once("/manifests/")?;
    if method == Method::PUT {
        return Some(put_manifest(shared, name, target, request).await);
    }
    let found = shared.lock().manifests.get(&(name.to_owned(), target.to_owned())).cloned();
    Some(match found {
        Some((kind, bytes)) => {
            let digest = Digest::sha256(&bytes).to_string();
            content(&method, &HeaderMap::new(), &kind, &bytes, &digest)
        }
        None => error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
    })
}

async fn upload(shared: &Shared, name: &str, method: &Method, uri: &Uri, body: Body) -> Response {
    if *method == Method::POST {
        let location = format!("/v2/{name}/blobs/uploads/1");
        return (StatusCode::ACCEPTED, [(header::LOCATION, location)]).into_response();
    }
    let digest = uri.query().and_then(|query| query.split('&').find_map(|part| part.strip_prefix("digest=")));
    let digest = digest.and_then(|digest| digest.replace("%3A", ":").parse::<Digest>().ok());
    match (digest, to_bytes(body, UPLOAD_LIMIT).await) {
        (Some(digest), Ok(bytes)) if digest.matches(&bytes) => {
            shared.lock().blobs.insert((name.to_owned(), digest), bytes);
            StatusCode::CREATED.into_response()
        }
        _ => error(StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
    }
}

async fn put_manifest(shared: &Shared, name: &str, target: &str, request: Request) -> Response {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.unwrap_or(crate::oci::media_type::OCI_MANIFEST).to_owned();
    let Ok(bytes) = to_bytes(request.into_body(), crate::oci::manifest::SIZE_LIMIT).await else {
        return error(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID");
    };
    let digest = Digest::sha256(&bytes).to_string();
    let mut contents = shared.lock();
    for key in [target, &digest] {
        contents.manifests.insert((name.to_owned(), key.to_owned()), (kind.clone(), bytes.clone()));
    }
    (StatusCode::CREATED, [("docker-content-digest", digest)]).into_response()
}

/// A body with its length and digest, or the range of it that is asked for.
fn content(method: &Method, headers: &HeaderMap, kind: &str, bytes: &Bytes, digest: &str) -> Response {
    let described = [(header::CONTENT_TYPE.as_str(), kind), ("docker-content-digest", digest)];
    let range = headers.get(header::RANGE).and_then(|value| parse_range(value.to_str().ok()?, bytes.len()));
    let (status, part) = match &range {
        Some(range) => (StatusCode::PARTIAL_CONTENT, bytes.slice(range.clone())),
        None => (StatusCode::OK, bytes.clone()),
    };
    let length = part.len();
    let body = if *method == Method::HEAD { Body::empty() } else { Body::from(part) };
    let mut response = (status, described, [(header::CONTENT_LENGTH, length)], body).into_response();
    if let Some(range) = range {
        let value = format!("bytes {}-{}/{}", range.start, range.end - 1, bytes.len());
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(header::CONTENT_RANGE, value);
        }
    }
    response
}

/// `bytes=5-9`, within `length`.
pub fn parse_range(value: &str, length: usize) -> Option<std::ops::Range<usize>> {
    let (start, end) = value.strip_prefix("bytes=")?.split_once('-')?;
    let start: usize = start.parse().ok()?;
    let end: usize = if end.is_empty() { length } else { end.parse::<usize>().ok()? + 1 };
    (start < end && end <= length).then_some(start..end)
}

/// An error in the registry's own form.
pub fn error(status: StatusCode, code: &str) -> Response {
    let body = serde_json::json!({ "errors": [{ "code": code, "message": "as scripted" }] });
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
