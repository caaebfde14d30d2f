//! Answers, for image layouts, what registries are asked: manifests and blobs by name. Source: distribution-spec v1.1, "Pull".

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use crate::failure::one_line;
use crate::host::blocking::{self, Lane};
use crate::host::fair_queue::FairQueue;
use crate::host::limits;
use crate::oci::digest::Digest;
use crate::oci::reference::OCI_LAYOUT;
use crate::registry::error::Error;
use crate::registry::local::archive::Archive;
use crate::registry::local::body::body;
use crate::registry::local::layout::{Content, Found, Layout, archive_error, io_error, shown};
use crate::registry::local::places::{Opened, Places, Refused};
use crate::registry::local::tags::Named;
use crate::tenant::Tenant;
use reqwest::header::{self, HeaderValue};
use reqwest::{Response, ResponseBuilderExt as _, StatusCode, Url};

/// The image layouts of this node. Cheap to clone.
#[derive(Clone)]
pub(in crate::registry) struct Layouts {
    places: Places,
    /// Names of the archives that were asked last.
    archives: Arc<Mutex<Archives>>,
    /// Turns to read the names of an archive.
    turns: FairQueue,
    /// Bytes of indexes that are read, and of manifests.
    indexes: FairQueue,
}

/// What a layout is asked for.
pub(in crate::registry) struct LayoutRequest<'a> {
    /// The path of the layout.
    pub layout: &'a str,
    /// On whose behalf.
    pub tenant: &'a Tenant,
    /// As in a registry: `manifests/<tag or digest>` or `blobs/<digest>`.
    pub path: &'a str,
    /// Only what there is to say of it is wanted.
    pub is_head: bool,
    /// These bytes of it.
    pub range: Option<Range<u64>>,
    /// Who answers.
    pub url: Url,
}

/// Archives whose names are kept: each takes 200 KiB at most.
const ARCHIVES: usize = 4;

type Archives = VecDeque<(Identity, Arc<Archive>)>;

/// What says that a file is the same, and unchanged: device, inode, size, and the times of the last changes to content and inode.
type Identity = [i128; 5];

impl Layouts {
    /// Those in `places`. The bytes of their indexes are counted in `indexes`.
    pub fn new(places: Places, indexes: FairQueue) -> Self {
        Self { places, archives: Arc::default(), turns: FairQueue::new(limits::ARCHIVE_READS), indexes }
    }

    /// Answers as a registry would: 200 with the content, 206 with a part of it.
    ///
    /// # Errors
    /// [`Error::Layout`] when the path is not for this process to read, [`Error::NotFound`] when there is no such thing,
    /// [`Error::Protocol`] when what is there is no image layout.
    pub async fn answer(&self, asked: LayoutRequest<'_>) -> Result<Response, Error> {
        let LayoutRequest { layout, tenant, path, is_head, range, url } = asked;
        let opened = self.open(layout, tenant).await?;
        // In an archive of very many entries each name is looked for, which takes as long as reading all names.
        let _turn = match opened.is_searched() {
            true => Some(self.turns.acquire(tenant, layout, 1).await),
            false => None,
        };
        let Found { digest, media_type, content } = match path.split_once('/') {
            Some(("manifests", target)) => {
                let target = target.to_owned();
                self.read_index(opened, tenant, move |layout| layout.manifest(&target)).await?
            }
            Some(("blobs", name)) => {
                let digest: Digest = name.parse().map_err(|error| no_such(layout, &format!("{error}")))?;
                let (wanted, media_type) = (digest.clone(), None);
                let content = blocking::run(lane_of(&opened), move || opened.blob(&wanted)).await?;
                Found { digest, media_type, content }
            }
            _ => return Err(no_such(layout, path)),
        };
        response(&digest, media_type, content, is_head, range, url)
            .map_err(|what| Error::Protocol { host: shown(layout), what })
    }

    /// The first `limit` manifests that the layout at `path` names, and how many there are.
    ///
    /// # Errors
    /// As [`Layouts::answer`].
    pub async fn names(
        &self,
        path: &str,
        tenant: &Tenant,
        limit: usize,
    ) -> Result<(Vec<Named>, usize), Error> {
        let opened = self.open(path, tenant).await?;
        self.read_index(opened, tenant, move |layout| layout.all(limit)).await
    }

    /// Does what may read the index of `layout`, when there is room for it in memory.
    async fn read_index<T: Send + 'static>(
        &self,
        layout: Layout,
        tenant: &Tenant,
        read: impl FnOnce(&Layout) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let looked_at = layout.clone();
        let size = blocking::run(Lane::Store, move || looked_at.index_size()).await?;
        let turn = self.indexes.acquire(tenant, OCI_LAYOUT, size).await;
        blocking::run(lane_of(&layout), move || {
            let _turn = turn;
            read(&layout)
        })
        .await
    }

    /// Opens a layout. The names of an archive are read first, if they are not known.
    async fn open(&self, path: &str, tenant: &Tenant) -> Result<Layout, Error> {
        let (places, name) = (self.places.clone(), path.to_owned());
        let opened = {
            let (places, name) = (places.clone(), name.clone());
            let open = move || {
                let opened = places.open(&name, None)?;
                let identity = match &opened {
                    Ok(Opened::File(file, size)) => Some(identity(&name, file, *size)?),
                    _ => None,
                };
                Ok::<_, Error>((opened, identity))
            };
            blocking::run(Lane::Store, open).await?
        };
        let not_opened = |what: &str| Err(Error::Protocol { host: shown(path), what: what.to_owned() });
        let (file, size, identity) = match opened {
            (Ok(Opened::File(file, size)), Some(identity)) => (Arc::new(file), size, identity),
            (Ok(_), _) => return Ok(Layout::new(places, name, None)),
            (Err(Refused::NotFound), _) => return Err(no_such(path, "the directory or archive")),
            (Err(Refused::NoFile), _) => return not_opened("is neither a directory nor an archive"),
            (Err(Refused::LeadsOut), _) => {
                let reason = "a symbolic link in it leads out of where image layouts may lie".to_owned();
                return Err(Error::Layout { path: path.to_owned(), reason });
            }
            (Err(Refused::Io(error)), _) => return Err(io_error(path, "opening it", &error.into())),
        };
        let archive = match known(&self.archives, &identity) {
            Some(archive) => archive,
            None => {
                let turn = self.turns.acquire(tenant, path, 1).await;
                let (name, file) = (name.clone(), Arc::clone(&file));
                let archives = Arc::clone(&self.archives);
                // They are kept although nobody may wait any more.
                blocking::run(Lane::Work, move || {
                    let _turn = turn;
                    names_of(&archives, identity, &name, &file, size)
                })
                .await?
            }
        };
        Ok(Layout::new(places, name, Some((file, size, archive))))
    }
}

/// Where names of `layout` are looked up.
fn lane_of(layout: &Layout) -> Lane {
    if layout.is_searched() { Lane::Work } else { Lane::Store }
}

/// What says that `file` is still the same.
fn identity(path: &str, file: &File, size: u64) -> Result<Identity, Error> {
    let status = file.metadata().map_err(|error| io_error(path, "the archive", &error))?;
    let time = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    Ok([
        status.dev().into(),
        status.ino().into(),
        size.into(),
        time(status.mtime(), status.mtime_nsec()),
        time(status.ctime(), status.ctime_nsec()),
    ])
}

/// The names of the archive that is `identity`, if they are known.
fn known(archives: &Mutex<Archives>, identity: &Identity) -> Option<Arc<Archive>> {
    let mut archives = archives.lock().unwrap_or_else(PoisonError::into_inner);
    // What was asked for last is forgotten last.
    let found = archives.iter().position(|(known, _)| known == identity)?;
    let found = archives.remove(found)?;
    let archive = Arc::clone(&found.1);
    archives.push_front(found);
    Some(archive)
}

/// The names of an archive, as somebody else has read them meanwhile, or read anew and kept.
fn names_of(
    archives: &Mutex<Archives>,
    identity: Identity,
    path: &str,
    file: &File,
    size: u64,
) -> Result<Arc<Archive>, Error> {
    if let Some(archive) = known(archives, &identity) {
        return Ok(archive);
    }
    let archive = Arc::new(Archive::read(file, size).map_err(|error| archive_error(path, error))?);
    let mut archives = archives.lock().unwrap_or_else(PoisonError::into_inner);
    archives.retain(|(known, _)| *known != identity);
    archives.truncate(ARCHIVES - 1);
    archives.push_front((identity, Arc::clone(&archive)));
    Ok(archive)
}

fn no_such(path: &str, what: &str) -> Error {
    Error::NotFound { host: shown(path), what: one_line(what), detail: String::new() }
}

fn response(
    digest: &Digest,
    media_type: Option<String>,
    content: Content,
    is_head: bool,
    range: Option<Range<u64>>,
    url: Url,
) -> Result<Response, String> {
    let size = content.size;
    // A range that begins after the end is the whole: whoever asked sees that there is less than the manifest says.
    let part = range.map(|range| range.start..range.end.min(size)).filter(|range| range.start < range.end);
    let bytes = part.clone().unwrap_or(0..size);
    let mut builder = http::Response::builder()
        .url(url)
        .status(if part.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK })
        .header(header::CONTENT_LENGTH, bytes.end - bytes.start)
        .header("docker-content-digest", digest.to_string());
    if part.is_some() {
        let range = format!("bytes {}-{}/{size}", bytes.start, bytes.end.saturating_sub(1));
        builder = builder.header(header::CONTENT_RANGE, range);
    }
    if let Some(value) = media_type.and_then(|text| HeaderValue::from_str(&text).ok()) {
        builder = builder.header(header::CONTENT_TYPE, value);
    }
    let body = if is_head { reqwest::Body::default() } else { body(content, bytes) };
    let built = builder.body(body).map_err(|error| format!("has an answer that cannot be made: {error}"))?;
    Ok(built.into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::demo::tarball::{FILE, Header, Tarball, gzip};
    use crate::failure::Kind;
    use crate::oci::reference::ONLY;
    use crate::registry::local::archive::KEPT;

    const MARKER: &str = r#"{"imageLayoutVersion": "1.0.0"}"#;
    const MANIFEST: &[u8] = b"{\"schemaVersion\": 2}";

    /// The files of a layout with one manifest, tagged `v1`, and one blob.
    fn files(blob: &[u8]) -> Vec<(String, Vec<u8>)> {
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": Digest::sha256(MANIFEST).to_string(),
            "size": MANIFEST.len(),
            "annotations": {"org.opencontainers.image.ref.name": "v1"},
        }]});
        vec![
            ("oci-layout".to_owned(), MARKER.into()),
            ("index.json".to_owned(), index.to_string().into_bytes()),
            (name_of(MANIFEST), MANIFEST.to_vec()),
            (name_of(blob), blob.to_vec()),
        ]
    }

    fn name_of(blob: &[u8]) -> String {
        format!("blobs/sha256/{}", Digest::sha256(blob).hex())
    }

    fn directory(at: &Path, files: &[(String, Vec<u8>)]) {
        for (name, content) in files {
            let path = at.join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, content).expect("written");
        }
    }

    fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
        files.iter().fold(Tarball::new(), |tar, (name, content)| tar.file(name, content)).finish()
    }

    struct Place {
        directory: tempfile::TempDir,
        layouts: Layouts,
    }

    impl Place {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            fs::create_dir(directory.path().join("in")).expect("made");
            let layouts =
                Layouts::new(Places::below(vec![directory.path().join("in")]), FairQueue::new(1 << 20));
            Self { directory, layouts }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join("in").join(name)
        }

        async fn ask(&self, name: &str, path: &str, range: Option<Range<u64>>) -> Result<Response, Error> {
            self.ask_as(&Tenant::Unnamed, name, path, range).await
        }

        async fn ask_as(
            &self,
            tenant: &Tenant,
            name: &str,
            path: &str,
            range: Option<Range<u64>>,
        ) -> Result<Response, Error> {
            let layout = self.path(name);
            let url = Url::parse("https://oci-layout/v2/").expect("a URL");
            let layout = layout.to_str().expect("text");
            self.layouts.answer(LayoutRequest { layout, tenant, path, is_head: false, range, url }).await
        }

        async fn refusal(&self, name: &str, path: &str) -> (Kind, String) {
            let error = self.ask(name, path, None).await.expect_err("a refusal");
            (error.kind(), error.to_string())
        }
    }

    async fn assert_refused(place: &Place, name: &str, path: &str, kind: Kind, words: &str) {
        let (got, text) = place.refusal(name, path).await;
        assert!(got == kind && text.contains(words), "{path} of {name}: {got:?} {text}");
    }

    #[tokio::test]
    async fn directories_and_archives_answer_as_registries_do() {
        let place = Place::new();
        let blob: Vec<u8> = (0..700_000_u32).flat_map(u32::to_le_bytes).collect();
        let files = files(&blob);
        directory(&place.path("x"), &files);
        fs::write(place.path("x.tar"), archive(&files)).expect("written");
        let dotted: Vec<_> =
            files.iter().map(|(name, content)| (format!("./{name}"), content.clone())).collect();
        fs::write(place.path("dotted.tar"), archive(&dotted)).expect("written");
        for name in ["x", "x.tar", "dotted.tar"] {
            let manifest = Digest::sha256(MANIFEST).to_string();
            for target in ["v1", ONLY, &manifest] {
                let response = place.ask(name, &format!("manifests/{target}"), None).await.expect(target);
                assert_eq!(response.headers()["docker-content-digest"], manifest.as_str());
                assert_eq!(response.content_length(), Some(MANIFEST.len() as u64));
                assert_eq!(response.bytes().await.expect("a body"), MANIFEST, "{name} {target}");
            }
            let path = format!("blobs/{}", Digest::sha256(&blob));
            let response = place.ask(name, &path, None).await.expect("a blob");
            assert_eq!((response.status(), response.content_length()), (StatusCode::OK, Some(2_800_000)));
            assert!(response.bytes().await.expect("a body") == blob, "{name}");
            let response = place.ask(name, &path, Some(1_000_000..2_000_001)).await.expect("a part");
            assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
            assert_eq!(response.headers()[header::CONTENT_RANGE], "bytes 1000000-2000000/2800000");
            assert!(response.bytes().await.expect("a body") == blob[1_000_000..2_000_001], "{name}");
            assert_refused(&place, name, "manifests/v9", Kind::NotFound, "it has v1").await;
            let missing = format!("blobs/{}", Digest::sha256(b"other"));
            assert_refused(&place, name, &missing, Kind::NotFound, "was it copied whole?").await;
        }
        assert_refused(&place, "nothing", "manifests/v1", Kind::NotFound, "does not exist in oci-layout:")
            .await;
    }

    #[tokio::test]
    async fn what_is_no_layout_is_named() {
        let place = Place::new();
        let whole = files(b"blob");
        let without = |name: &str| -> Vec<_> { whole.iter().filter(|(it, _)| it != name).cloned().collect() };
        let with = |name: &str, content: &[u8]| -> Vec<_> {
            let mut files = without(name);
            files.push((name.to_owned(), content.to_vec()));
            files
        };
        let table = [
            ("marker", without("oci-layout"), Kind::FailedPrecondition, "it has no file oci-layout"),
            (
                "version",
                with("oci-layout", br#"{"imageLayoutVersion": "2.0"}"#),
                Kind::FailedPrecondition,
                "only 1.0.0",
            ),
            ("index", without("index.json"), Kind::FailedPrecondition, "has no index.json"),
            ("json", with("index.json", b"{"), Kind::FailedPrecondition, "index.json that cannot be read"),
            ("manifest", without(&name_of(MANIFEST)), Kind::NotFound, "does not exist in oci-layout:"),
            ("other", with(&name_of(MANIFEST), b"{}"), Kind::FailedPrecondition, "sent wrong content"),
        ];
        for (name, files, kind, words) in table {
            directory(&place.path(name), &files);
            fs::write(place.path(&format!("{name}.tar")), archive(&files)).expect("written");
            for name in [name.to_owned(), format!("{name}.tar")] {
                assert_refused(&place, &name, "manifests/v1", kind, words).await;
            }
        }
        let tar = archive(&whole);
        fs::write(place.path("gz"), gzip(&tar).expect("memory")).expect("written");
        assert_refused(&place, "gz", "manifests/v1", Kind::FailedPrecondition, "compressed with gzip").await;
        fs::write(place.path("text"), "x".repeat(1000)).expect("written");
        assert_refused(&place, "text", "manifests/v1", Kind::FailedPrecondition, "is no tar archive").await;
        // Within the content of the last entry, and within its header.
        for length in [tar.len() - 1024 - 512 + 1, tar.len() - 1024 - 512 - 100] {
            fs::write(place.path("cut"), &tar[..length]).expect("written");
            assert_refused(&place, "cut", "manifests/v1", Kind::FailedPrecondition, "cut off").await;
        }
        let huge = Header { size: (1 << 33) - 1, ..Header::new("index.json", FILE) };
        fs::write(place.path("huge"), Tarball::new().entry(&huge, b"{}").finish()).expect("written");
        assert_refused(&place, "huge", "manifests/v1", Kind::FailedPrecondition, "cut off").await;
    }

    #[tokio::test]
    async fn no_name_leads_out_and_nothing_but_files_is_read() {
        let place = Place::new();
        let secret = place.directory.path().join("secret");
        directory(&secret, &files(b"secret"));
        let blob = format!("blobs/{}", Digest::sha256(b"secret"));
        std::os::unix::fs::symlink(&secret, place.path("absolute")).expect("linked");
        std::os::unix::fs::symlink("../secret", place.path("relative")).expect("linked");
        for name in ["absolute", "relative"] {
            assert_refused(&place, name, "manifests/v1", Kind::InvalidArgument, "leads out").await;
        }
        assert_refused(&place, "../secret", "manifests/v1", Kind::InvalidArgument, "leads out").await;
        for outside in [place.directory.path().join("secret"), PathBuf::from("/etc")] {
            let name = outside.to_str().expect("text");
            assert_refused(&place, name, "manifests/v1", Kind::InvalidArgument, "as --oci-layout-dir says")
                .await;
        }
        let nowhere = Place {
            directory: tempfile::tempdir().expect("made"),
            layouts: Layouts::new(Places::default(), FairQueue::new(1)),
        };
        assert_refused(
            &nowhere,
            "x",
            "manifests/v1",
            Kind::InvalidArgument,
            "no directory for image layouts",
        )
        .await;

        // A blob that is a link, a FIFO, a directory.
        directory(&place.path("x"), &files(b"blob"));
        let at = place.path("x").join(name_of(b"secret"));
        std::os::unix::fs::symlink(secret.join(name_of(b"secret")), &at).expect("linked");
        assert_refused(&place, "x", &blob, Kind::FailedPrecondition, "leads out").await;
        fs::remove_file(&at).expect("removed");
        rustix::fs::mkfifoat(rustix::fs::CWD, &at, 0o644.into()).expect("a FIFO");
        assert_refused(&place, "x", &blob, Kind::FailedPrecondition, "no regular file").await;
        fs::remove_file(&at).expect("removed");
        fs::create_dir(&at).expect("made");
        assert_refused(&place, "x", &blob, Kind::FailedPrecondition, "a directory").await;
        rustix::fs::mkfifoat(rustix::fs::CWD, place.path("fifo"), 0o644.into()).expect("a FIFO");
        assert_refused(&place, "fifo", "manifests/v1", Kind::FailedPrecondition, "neither a directory nor")
            .await;
        // What stays below is followed.
        std::os::unix::fs::symlink("x", place.path("y")).expect("linked");
        assert!(place.ask("y", "manifests/v1", None).await.is_ok());
        assert!(place.ask("x", "blobs/../../secret", None).await.is_err());
    }

    #[tokio::test]
    async fn an_archive_of_very_many_entries_is_read_in_bounded_memory() {
        let place = Place::new();
        let mut files = files(b"first");
        files.extend((0..100_000_u32).map(|number| {
            let content = number.to_le_bytes().to_vec();
            (name_of(&content), content)
        }));
        let last = 99_999_u32.to_le_bytes();
        // The one that counts comes last.
        let marker = files.remove(0);
        files.push(marker);
        fs::write(place.path("x.tar"), archive(&files)).expect("written");
        assert!(place.ask("x.tar", "manifests/v1", None).await.is_ok());
        let response = place.ask("x.tar", &format!("blobs/{}", Digest::sha256(&last)), None).await;
        assert_eq!(response.expect("a blob").bytes().await.expect("a body"), last.as_slice());
        let missing = format!("blobs/{}", Digest::sha256(b"none"));
        assert_refused(&place, "x.tar", &missing, Kind::NotFound, "blob sha256:").await;
        let known = place.layouts.archives.lock().expect("not poisoned");
        assert_eq!(known.len(), 1, "it was read once");
        assert_eq!(known[0].1.kept(), KEPT);
    }

    /// One tenant has as many turns, and as many bytes of indexes, as it may have: it waits, and another does not.
    #[tokio::test]
    async fn a_tenant_whose_archives_are_read_holds_up_no_other() {
        let place = Place::new();
        let [loud, quiet] = ["loud", "quiet"].map(|name| Tenant::of_namespace(Some(name)));
        for name in ["loud", "quiet"] {
            fs::write(place.path(&format!("{name}.tar")), archive(&files(b"blob"))).expect("written");
        }
        let wait = std::time::Duration::from_millis(200);
        let held: Vec<_> =
            [(&place.layouts.turns, limits::ARCHIVE_READS / 2), (&place.layouts.indexes, (1 << 20) / 2)]
                .into_iter()
                .map(|(queue, units)| queue.acquire(&loud, OCI_LAYOUT, units))
                .collect();
        let held = futures_util::future::join_all(held).await;
        let waits = place.ask_as(&loud, "loud.tar", "manifests/v1", None);
        assert!(tokio::time::timeout(wait, waits).await.is_err(), "it is the tenant's turns that are held");
        assert!(place.ask_as(&quiet, "quiet.tar", "manifests/v1", None).await.is_ok());
        // Its names are known now; its index has to be read still.
        let waits = place.ask_as(&loud, "quiet.tar", "manifests/v1", None);
        assert!(tokio::time::timeout(wait, waits).await.is_err(), "it is the tenant's bytes that are held");
        assert!(place.ask_as(&quiet, "quiet.tar", "manifests/v1", None).await.is_ok());
        drop(held);
        assert!(place.ask_as(&loud, "loud.tar", "manifests/v1", None).await.is_ok());
    }

    #[tokio::test]
    async fn an_archive_that_changed_is_read_again() {
        let place = Place::new();
        fs::write(place.path("x.tar"), archive(&files(b"one"))).expect("written");
        let path = format!("blobs/{}", Digest::sha256(b"other"));
        assert!(place.ask("x.tar", &path, None).await.is_err());
        fs::write(place.path("x.tar"), archive(&files(b"other"))).expect("written");
        assert!(place.ask("x.tar", &path, None).await.is_ok());
        for number in 0..10 {
            fs::write(place.path(&format!("{number}.tar")), archive(&files(b"other"))).expect("written");
            assert!(place.ask(&format!("{number}.tar"), &path, None).await.is_ok());
        }
        assert_eq!(place.layouts.archives.lock().expect("not poisoned").len(), ARCHIVES);
    }
}
