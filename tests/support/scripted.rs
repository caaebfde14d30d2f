//! A registry whose answers a test can replace, and whose requests it can count.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use axum::http::Method;
use axum::response::Response;
use ocivol::demo::push::{Layer, Pusher};
use ocivol::demo::registry::{Registry, Seen};

/// Answers a request in the registry's place, or lets it through.
pub type Script = Box<dyn FnMut(&Seen) -> Option<Response> + Send>;

/// The registry. Pushes are neither scripted nor counted.
pub struct Scripted {
    registry: Registry,
    script: Arc<Mutex<Option<Script>>>,
    requests: Arc<Mutex<Vec<Seen>>>,
}

impl Scripted {
    pub async fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST.into()).await
    }

    /// One with a model at `m:v1`, which is one file, `w`.
    pub async fn with_model(content: impl Into<bytes::Bytes>) -> Self {
        let registry = Self::start().await;
        let layers = [Layer::model_file("weight", "w", content)];
        registry.pusher("m").model("v1", &layers).await.expect("pushed");
        registry
    }

    /// Models `m0:v1`, `m1:v1` … of so many megabytes each, whose only file `w` is [`noise`] of their number.
    pub async fn with_models(megabytes: usize, count: u64) -> Self {
        let registry = Self::start().await;
        for number in 0..count {
            let layer = Layer::model_file("weight", "w", super::noise(number, megabytes << 20));
            registry.pusher(&format!("m{number}")).model("v1", &[layer]).await.expect("pushed");
        }
        registry
    }

    /// One that is as many registries as there are names for it: see [`Scripted::hosts`].
    pub async fn start_with_many_names() -> Self {
        Self::start_at(Ipv4Addr::UNSPECIFIED.into()).await
    }

    async fn start_at(address: IpAddr) -> Self {
        let script: Arc<Mutex<Option<Script>>> = Arc::default();
        let requests: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (answers, log) = (Arc::clone(&script), Arc::clone(&requests));
        let hook = move |seen: &Seen| {
            if !matches!(seen.method, Method::GET | Method::HEAD) {
                return None;
            }
            log.lock().expect("no panic").push(seen.clone());
            answers.lock().expect("no panic").as_mut().and_then(|script| script(seen))
        };
        let registry = Registry::start_at(address, Some(Box::new(hook))).await.expect("a registry");
        Self { registry, script, requests }
    }

    pub fn host(&self) -> String {
        format!("{}:{}", Ipv4Addr::LOCALHOST, self.registry.port())
    }

    /// The first `count` names of a registry that has many: addresses of the loopback interface.
    pub fn hosts(&self, count: u8) -> Vec<String> {
        (1..=count).map(|last| format!("127.0.0.{last}:{}", self.registry.port())).collect()
    }

    pub fn pusher(&self, repository: &str) -> Pusher {
        Pusher::new(&self.host(), repository)
    }

    pub fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.host())
    }

    /// From now on `script` sees every request first.
    pub fn script(&self, script: impl FnMut(&Seen) -> Option<Response> + Send + 'static) {
        *self.script.lock().expect("no panic") = Some(Box::new(script));
    }

    /// From now on the registry answers itself.
    pub fn unscript(&self) {
        *self.script.lock().expect("no panic") = None;
    }

    /// Forgets what was counted.
    pub fn forget(&self) {
        self.requests.lock().expect("no panic").clear();
    }

    pub fn requests(&self) -> Vec<Seen> {
        self.requests.lock().expect("no panic").clone()
    }

    /// Requests of a method whose path contains `part`.
    pub fn count(&self, method: &Method, part: &str) -> usize {
        self.requests().iter().filter(|seen| seen.method == *method && seen.path.contains(part)).count()
    }
}
