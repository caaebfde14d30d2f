//! Follows objects: reads those that there are, and then what becomes of them.
//!
//! Lists are read in pages, a watch goes on where the last one ended, and what the API server has forgotten meanwhile (410) is listed
//! again. An API server that a whole cluster has lost is not asked by all nodes at once: who comes back waits for a random part of a time
//! that doubles. A watch of which nothing comes any more, because its connection is half open, ends with its time.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::time::Duration;

use ::kube::client::Body;
use bytes::{Buf as _, BytesMut};
use http_body_util::BodyExt;
use hyper::Response;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use crate::host::limits;
use crate::kube::connection::{Connection, read, unreachable};
use crate::kube::error::Error;
use crate::kube::object::{Object, Resource};

/// What was seen of the objects that are followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen<T> {
    /// All that there are: others are gone.
    All(Vec<T>),
    /// One that is new, or was changed.
    Set(T),
    /// The one of this name is gone.
    Gone(String),
}

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub(in crate::kube) struct Pace {
    /// What a watch is asked to last; each lasts up to twice as long.
    pub watch: Duration,
    /// How much longer it is waited for.
    pub grace: Duration,
    /// The pause after a failure is a random part of this; it doubles with every further one.
    pub first: Duration,
    /// The most of that.
    pub longest: Duration,
}

impl Pace {
    /// Those of the plugin. When 5,000 nodes come back, with two watches each, that is less than one connection in a millisecond.
    pub const DEFAULT: Self = Self {
        watch: Duration::from_secs(290),
        grace: Duration::from_secs(20),
        first: Duration::from_secs(15),
        longest: Duration::from_secs(240),
    };
}

/// Objects of a page, at most. Where they are large it has fewer.
const PAGE: usize = 50;
/// Bytes of a line of a watch: an object, and what happened to it.
const LINE_LIMIT: usize = limits::OBJECT_BYTES;
/// The longest pause that a `Retry-After` makes.
const LONGEST_ASKED: Duration = Duration::from_secs(600);

/// Of any object, what is looked at here.
#[derive(Deserialize)]
struct Known {
    metadata: Metadata,
}

/// Of the metadata of an object, or of a list.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: String,
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    items: Vec<Value>,
}

/// A line of a watch.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
}

/// Tells `seen` of `what`, one object or all of a kind, until nobody takes it any more. What it could not read of a failing API server it
/// tells of later; a failure is logged once, until something was read again.
pub(in crate::kube) async fn follow<T: DeserializeOwned + Send>(
    connection: &Connection,
    what: &Object,
    pace: Pace,
    seen: mpsc::Sender<Seen<T>>,
) {
    let follower = Follower { connection, what, pace, seen };
    let mut version = None;
    let (mut window, mut is_told) = (pace.first, false);
    loop {
        let began = Instant::now();
        let step = async {
            match version.as_deref() {
                None => follower.list().await.map(Some),
                Some(known) => follower.watch(known).await.map(Some),
            }
        };
        let result = tokio::select! {
            () = follower.seen.closed() => return,
            result = step => result,
        };
        let was_listed = version.is_none();
        let error = match result {
            Ok(next) => {
                // A list is only half of it: of a watch that is refused nothing is seen.
                let lasted = began.elapsed();
                if !was_listed && lasted >= pace.watch / 10 {
                    (window, is_told) = (pace.first, false);
                }
                version = next;
                // Watches that end with their time end at other times than those of other nodes. Where something ends them before, as
                // an API server that stops, it ends many at once.
                if was_listed || lasted >= pace.watch {
                    continue;
                }
                None
            }
            Err(error) => Some(error),
        };
        let mut least = Duration::ZERO;
        if let Some(error) = error {
            if matches!(error, Error::Expired { .. }) {
                version = None;
            } else if !std::mem::replace(&mut is_told, true) {
                tracing::warn!(%error, "cannot follow {what}; it is tried again and again");
            }
            tracing::debug!(%error, "following {what} again");
            if let Error::Status { retry_after: Some(asked), .. } = error {
                least = asked.min(LONGEST_ASKED);
            }
        }
        let pause = least + window.mul_f64(rand::random_range(0.05..1.0));
        window = (2 * window).min(pace.longest);
        tokio::select! {
            () = follower.seen.closed() => return,
            () = sleep(pause) => {}
        }
    }
}

struct Follower<'a, T> {
    connection: &'a Connection,
    what: &'a Object,
    pace: Pace,
    seen: mpsc::Sender<Seen<T>>,
}

impl<T: DeserializeOwned + Send> Follower<'_, T> {
    /// Reads and tells of all that there are. The version from which a watch goes on.
    async fn list(&self) -> Result<String, Error> {
        if !self.what.name.is_empty() {
            let accept = self.accept("");
            let found: Value = self.connection.page(self.what, &self.what.path(), &accept).await?;
            let version = self.known(&found)?.resource_version;
            let one = self.object(found).ok_or_else(|| self.protocol("is not the JSON of one"))?;
            self.tell(Seen::All(vec![one])).await;
            return Ok(version);
        }
        let accept = self.accept("List");
        let (mut all, mut next) = (Vec::new(), String::new());
        let (most, mut count, mut limit) = (objects(self.what.resource), 0, PAGE);
        let version = loop {
            let path = format!("{}?limit={limit}{next}", self.what.collection());
            let page: Page = match self.connection.page(self.what, &path, &accept).await {
                // Objects that are few may be large.
                Err(Error::TooLarge { .. }) if limit > 1 => {
                    limit /= 2;
                    continue;
                }
                page => page?,
            };
            count += page.items.len();
            all.extend(page.items.into_iter().filter_map(|item| self.object(item)));
            if page.metadata.next.is_empty() {
                break page.metadata.resource_version;
            }
            if count >= most {
                tracing::warn!("{} is longer than the {most} that are looked at", self.what);
                break page.metadata.resource_version;
            }
            next = format!("&continue={}", encoded(&page.metadata.next));
        };
        self.tell(Seen::All(all)).await;
        Ok(version)
    }

    /// Tells of what happens after `version`, until the watch ends. The version from which the next one goes on.
    async fn watch(&self, version: &str) -> Result<String, Error> {
        let asked = self.pace.watch.mul_f64(rand::random_range(1.0..2.0));
        let only = match self.what.name.as_str() {
            "" => String::new(),
            name => format!("&fieldSelector=metadata.name%3D{name}"),
        };
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={}&resourceVersion={}{only}",
            self.what.collection(),
            asked.as_secs().max(1),
            encoded(version)
        );
        let response = self.connection.open(self.what, &path, &self.accept("")).await?;
        let end = Instant::now() + asked + self.pace.grace;
        let (mut lines, mut version) = (Lines::new(response), version.to_owned());
        loop {
            let line = match timeout_at(end, lines.next(self.what)).await {
                Ok(line) => line?,
                Err(_) => {
                    tracing::debug!("nothing came of {} for long, not even an end", self.what);
                    None
                }
            };
            let Some(line) = line else { return Ok(version) };
            let Event { kind, object } = read(self.what, &line)?;
            if kind == "ERROR" {
                return Err(self.refused(&object));
            }
            let known = self.known(&object)?;
            match kind.as_str() {
                "ADDED" | "MODIFIED" => {
                    if let Some(object) = self.object(object) {
                        self.tell(Seen::Set(object)).await;
                    }
                }
                "DELETED" => self.tell(Seen::Gone(known.name)).await,
                // A bookmark, which is a version and nothing else.
                _ => {}
            }
            version = known.resource_version;
        }
    }

    /// Of nodes only the metadata: what runs on them, and their images, are many times as much.
    fn accept(&self, list: &str) -> String {
        match self.what.resource {
            Resource::Node => {
                format!("application/json;as=PartialObjectMetadata{list};g=meta.k8s.io;v=v1,application/json")
            }
            _ => "application/json".to_owned(),
        }
    }

    async fn tell(&self, seen: Seen<T>) {
        // Who no longer takes it has the loop end.
        let _ = self.seen.send(seen).await;
    }

    /// An object; none of what a later version means by it. The others are followed nevertheless.
    fn object(&self, value: Value) -> Option<T> {
        let read = serde_json::from_value(value);
        // What serde says of it can quote a secret.
        read.inspect_err(|_| tracing::debug!("one of {} cannot be read, and is not looked at", self.what))
            .ok()
    }

    fn known(&self, object: &Value) -> Result<Metadata, Error> {
        let known = Known::deserialize(object).map_err(|_| self.protocol("has no metadata"))?;
        match known.metadata.resource_version.is_empty() {
            true => Err(self.protocol("has no resourceVersion")),
            false => Ok(known.metadata),
        }
    }

    fn refused(&self, status: &Value) -> Error {
        let code = status.get("code").and_then(Value::as_u64).unwrap_or_default();
        match u16::try_from(code).unwrap_or_default() {
            410 => Error::Expired { what: self.what.clone() },
            status => {
                Error::Status { what: self.what.clone(), status, retry_after: None, detail: String::new() }
            }
        }
    }

    fn protocol(&self, fault: &str) -> Error {
        Error::Protocol { what: self.what.clone(), fault: fault.to_owned() }
    }
}

/// The lines of an answer.
struct Lines {
    body: Body,
    buffer: BytesMut,
}

impl Lines {
    fn new(response: Response<Body>) -> Self {
        Self { body: response.into_body(), buffer: BytesMut::new() }
    }

    /// The next line, of at most [`LINE_LIMIT`] bytes; none at the end.
    async fn next(&mut self, what: &Object) -> Result<Option<BytesMut>, Error> {
        let mut searched = 0;
        loop {
            let rest = self.buffer.get(searched..).unwrap_or_default();
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(searched + end);
                self.buffer.advance(1);
                return Ok(Some(line));
            }
            searched = self.buffer.len();
            if searched > LINE_LIMIT {
                let fault = format!("has a line of more than {LINE_LIMIT} bytes, more than any object has");
                return Err(Error::Protocol { what: what.clone(), fault });
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(unreachable(what, &error)),
            }
        }
    }
}

/// Objects of a list. What comes after them is not looked at.
fn objects(resource: Resource) -> usize {
    match resource {
        // As large as Kubernetes supports a cluster to be, twice.
        Resource::Node | Resource::WholeNode | Resource::CsiNode | Resource::NodeArtifacts => 10_000,
        _ => 1000,
    }
}

/// `text` as part of a query (RFC 3986): a token is base64, whose `+` and `=` would be read as something else.
fn encoded(text: &str) -> String {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    text.bytes()
        .map(|byte| match is_plain(&byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kube::connection::Limits;
    use crate::kube::connection::tests::{Fake, Reply, SHORT};

    const QUICK: Pace = Pace {
        watch: Duration::from_secs(60),
        grace: Duration::from_secs(60),
        first: Duration::from_millis(10),
        longest: Duration::from_millis(20),
    };

    fn object(name: &str, version: u32) -> Value {
        json!({"metadata": {"name": name, "resourceVersion": version.to_string()}})
    }

    fn event(kind: &str, object: &Value) -> Value {
        json!({"type": kind, "object": object})
    }

    fn page(items: &[Value], version: &str, next: &str) -> Reply {
        Reply::Object(json!({"metadata": {"resourceVersion": version, "continue": next}, "items": items}))
    }

    async fn following(fake: &Fake, what: Object, pace: Pace) -> mpsc::Receiver<Seen<Value>> {
        let (sender, receiver) = mpsc::channel(16);
        let connection = Connection::new(fake.config(), Limits { attempt: Duration::from_secs(5), ..SHORT });
        tokio::spawn(async move { follow(&connection, &what, pace, sender).await });
        receiver
    }

    async fn next(seen: &mut mpsc::Receiver<Seen<Value>>) -> Seen<Value> {
        tokio::time::timeout(Duration::from_secs(20), seen.recv()).await.expect("in time").expect("followed")
    }

    fn artifacts() -> Object {
        Object::all(Resource::CachedArtifact)
    }

    #[tokio::test]
    async fn lists_are_read_in_pages_and_watches_go_on_where_they_ended() {
        let fake = Fake::start(|path, before| match before {
            0 => page(&[object("a", 1)], "7", "to+ken="),
            1 => page(&[object("b", 2)], "7", ""),
            2 => Reply::Lines(
                vec![
                    event("MODIFIED", &object("a", 8)),
                    event("BOOKMARK", &object("", 9)),
                    event("DELETED", &object("b", 11)),
                    event("BOOKMARK", &object("", 12)),
                ],
                true,
            ),
            _ => {
                assert!(path.contains("resourceVersion=12"), "{path}");
                Reply::Lines(vec![event("ADDED", &object("c", 13))], false)
            }
        })
        .await;
        let mut seen = following(&fake, artifacts(), QUICK).await;
        assert_eq!(next(&mut seen).await, Seen::All(vec![object("a", 1), object("b", 2)]));
        assert_eq!(next(&mut seen).await, Seen::Set(object("a", 8)));
        assert_eq!(next(&mut seen).await, Seen::Gone("b".to_owned()));
        assert_eq!(next(&mut seen).await, Seen::Set(object("c", 13)));
        let paths = fake.paths();
        let base = "/apis/ocivol.dev/v1alpha1/cachedartifacts";
        assert_eq!(paths[0], format!("{base}?limit=50"));
        assert_eq!(paths[1], format!("{base}?limit=50&continue=to%2Bken%3D"));
        assert!(paths[2].starts_with(&format!("{base}?watch=true&allowWatchBookmarks=true&timeoutSeconds=")));
        assert!(paths[2].ends_with("&resourceVersion=7"), "{}", paths[2]);
    }

    #[tokio::test]
    async fn what_the_server_has_forgotten_is_listed_again() {
        let gone = json!({"kind": "Status", "code": 410, "reason": "Expired"});
        let fake = Fake::start(move |path, before| match (path.contains("watch="), before) {
            (false, _) => page(&[object("a", 1)], &format!("{}", before + 1), ""),
            (true, 1) => Reply::Lines(vec![event("ERROR", &gone)], true),
            (true, 3) => Reply::Status(410),
            _ => Reply::Lines(vec![event("ADDED", &object("b", 9))], false),
        })
        .await;
        let mut seen = following(&fake, artifacts(), QUICK).await;
        for _ in 0..3 {
            assert_eq!(next(&mut seen).await, Seen::All(vec![object("a", 1)]));
        }
        assert_eq!(next(&mut seen).await, Seen::Set(object("b", 9)));
    }

    #[tokio::test]
    async fn failures_pass_and_what_a_busy_server_asks_for_is_waited() {
        let began = Instant::now();
        let fake = Fake::start(|path, before| match before {
            0 => Reply::Later(429, 1),
            1 => Reply::Status(403),
            2 => Reply::Bytes(b"not JSON".to_vec()),
            3 => page(&[], "1", ""),
            4 => Reply::Status(500),
            5 => Reply::Lines(vec![json!("no event")], true),
            _ => {
                // What was listed is not listed again.
                assert!(path.contains("watch="), "{path}");
                Reply::Lines(vec![event("ADDED", &object("a", 2))], false)
            }
        })
        .await;
        let mut seen = following(&fake, artifacts(), QUICK).await;
        assert_eq!(next(&mut seen).await, Seen::All(Vec::new()));
        assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
        assert_eq!(next(&mut seen).await, Seen::Set(object("a", 2)));
    }

    #[tokio::test]
    async fn a_watch_of_which_nothing_comes_any_more_ends_and_one_object_is_followed_by_its_name() {
        let fake = Fake::start(|path, before| match (path.contains("watch="), before) {
            (false, _) => Reply::Object(object("node-a", 1)),
            // Half open: the server has forgotten it, and says nothing.
            (true, 1) => Reply::Lines(vec![], false),
            _ => Reply::Lines(vec![event("MODIFIED", &object("node-a", 2))], false),
        })
        .await;
        let node = Object::of_cluster(Resource::Node, "node-a").expect("a name");
        let grace = Duration::from_millis(20);
        let mut seen = following(&fake, node, Pace { watch: grace, grace, ..QUICK }).await;
        assert_eq!(next(&mut seen).await, Seen::All(vec![object("node-a", 1)]));
        assert_eq!(next(&mut seen).await, Seen::Set(object("node-a", 2)));
        let paths = fake.paths();
        assert_eq!(paths[0], "/api/v1/nodes/node-a");
        assert!(
            paths[1].ends_with("&resourceVersion=1&fieldSelector=metadata.name%3Dnode-a"),
            "{}",
            paths[1]
        );
        drop(seen);
    }

    #[tokio::test]
    async fn large_objects_come_in_smaller_pages_and_those_that_cannot_be_read_are_left_out() {
        #[derive(Debug, PartialEq, Eq, Deserialize)]
        struct Counted {
            count: u32,
        }
        let counted =
            |count: Value| json!({"metadata": {"name": "a", "resourceVersion": "1"}, "count": count});
        let fake = Fake::start(move |path, before| match (path.contains("watch="), before) {
            (false, 0) => page(&[counted(1.into()), counted("many".into())], "7", "next"),
            (false, 1 | 2) => Reply::Bytes(vec![b' '; limits::OBJECT_BYTES + 1]),
            (false, _) => page(&[counted(2.into())], "7", ""),
            (true, _) => Reply::Lines(
                vec![event("ADDED", &counted(Value::Null)), event("ADDED", &counted(3.into()))],
                false,
            ),
        })
        .await;
        let (sender, mut seen) = mpsc::channel(16);
        let connection = Connection::new(fake.config(), Limits { attempt: Duration::from_secs(5), ..SHORT });
        tokio::spawn(async move { follow::<Counted>(&connection, &artifacts(), QUICK, sender).await });
        let mut next =
            async || tokio::time::timeout(Duration::from_secs(20), seen.recv()).await.expect("in time");
        assert_eq!(next().await, Some(Seen::All(vec![Counted { count: 1 }, Counted { count: 2 }])));
        assert_eq!(next().await, Some(Seen::Set(Counted { count: 3 })));
        let asked: Vec<String> = fake.paths().into_iter().take(4).collect();
        let limit = |path: &String| path.split("limit=").nth(1).map(|rest| rest.to_owned());
        let limits: Vec<_> = asked.iter().filter_map(limit).collect();
        assert_eq!(limits, ["50", "50&continue=next", "25&continue=next", "12&continue=next"]);
    }

    #[tokio::test]
    async fn lines_are_bounded() {
        let fake = Fake::start(|path, before| match (path.contains("watch="), before) {
            (false, _) => page(&[], "1", ""),
            (true, 1) => Reply::Lines(vec![json!("x".repeat(LINE_LIMIT + 1))], false),
            _ => Reply::Lines(vec![event("ADDED", &object("a", 2))], false),
        })
        .await;
        let mut seen = following(&fake, artifacts(), QUICK).await;
        assert_eq!(next(&mut seen).await, Seen::All(Vec::new()));
        assert_eq!(next(&mut seen).await, Seen::Set(object("a", 2)));
    }
}
