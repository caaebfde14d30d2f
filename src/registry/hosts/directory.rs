//! The directory of hosts: which file is for which registry.
//!
//! `<dir>/registry.example_5000_/hosts.toml`, or `<dir>/registry.example:5000/hosts.toml`, else `<dir>/_default/hosts.toml`. Where there
//! is a directory without that file, what is in it are Docker's files: `*.crt` are authorities, `*.cert` with `*.key` a client's.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::{BTreeSet, HashMap};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::Url;

use crate::host::blocking::{self, Lane};
use crate::oci::reference::{DOCKER_HUB, OCI_LAYOUT};
use crate::oci::repository::host_identity;
use crate::registry::hosts::endpoint::{Endpoint, Role};
use crate::registry::hosts::file::{BadHosts, Entry, HostsFile};
use crate::registry::hosts::tls::HostTls;
use crate::registry::http::host_and_port;

/// What an operator says of hosts.
#[derive(Debug, Clone, Default)]
pub struct HostsSettings {
    /// containerd's directory, if there is one.
    pub directory: Option<PathBuf>,
    /// Hosts, with port, that are spoken to without TLS where no file says how.
    pub plain_http: BTreeSet<String>,
    /// Mirrors, with port, whose content is for whoever may ask them; `*` is every mirror.
    pub authoritative: BTreeSet<String>,
}

/// The places where a registry's content is, by the registry's name. Cheap to clone.
#[derive(Clone)]
pub struct Hosts {
    settings: Arc<HostsSettings>,
    known: Arc<Mutex<Known>>,
}

/// What was read, and when, by the registry's name.
type Known = HashMap<String, (Instant, Arc<Places>)>;

/// Where the content of one registry is.
#[derive(Debug)]
pub struct Places {
    /// In the order in which they are asked: mirrors, then the registry itself.
    pub all: Vec<Arc<Endpoint>>,
    /// Whether the operator has named the registry, and not only said what holds for all. Others may be anybody's, and lie.
    pub is_named: bool,
}

/// What was read counts so long; then the files are read again.
const FRESH: Duration = Duration::from_secs(5);
/// Registries that are known at a time; more are read again.
const LIMIT: usize = 1024;
/// Bytes of a `hosts.toml`.
const FILE_LIMIT: u64 = 1 << 20;
/// Files of Docker's that are read in one directory.
const CERTIFICATES_LIMIT: usize = 64;

impl Hosts {
    /// What `settings` say. Files are read when their registry is asked, and again when they are older than five seconds.
    pub fn new(settings: HostsSettings) -> Self {
        Self { settings: Arc::new(settings), known: Arc::default() }
    }

    /// The places for `registry`, the host of a reference. There is at least one.
    ///
    /// # Errors
    /// [`BadHosts`].
    pub async fn of(&self, registry: &str) -> Result<Arc<Places>, BadHosts> {
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, places)) = lock().get(registry)
            && read.elapsed() < FRESH
        {
            return Ok(Arc::clone(places));
        }
        let (settings, name) = (Arc::clone(&self.settings), registry.to_owned());
        let places = match &self.settings.directory {
            // Nobody has a mirror of what is on this node.
            Some(_) if registry != OCI_LAYOUT => {
                Arc::new(blocking::run(Lane::Store, move || settings.read(&name)).await?)
            }
            _ => Arc::new(Places {
                all: vec![Arc::new(settings.server(&name, None, false)?)],
                is_named: false,
            }),
        };
        let mut known = lock();
        if known.len() >= LIMIT {
            known.clear();
        }
        known.insert(registry.to_owned(), (Instant::now(), Arc::clone(&places)));
        Ok(places)
    }
}

impl HostsSettings {
    /// The registries that are named here: by a directory of their own, in the order of the alphabet, and as spoken to without TLS.
    /// *Caller:* may block.
    pub fn registries(&self) -> Vec<String> {
        let listed = self.directory.as_deref().and_then(|root| std::fs::read_dir(root).ok());
        let entries = listed.into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let of_name = |name: String| match name.strip_suffix('_').and_then(|rest| rest.rsplit_once('_')) {
            Some((host, port)) => format!("{host}:{port}"),
            None => name,
        };
        let mut all: Vec<String> = names.filter(|name| !name.starts_with(['_', '.'])).map(of_name).collect();
        all.sort();
        all.extend(self.plain_http.iter().cloned());
        all.into_iter().map(|name| host_identity(&name)).collect()
    }

    fn read(&self, registry: &str) -> Result<Places, BadHosts> {
        let found = match self.directory.as_deref() {
            Some(root) => directory_of(root, registry)?,
            None => None,
        };
        let Some((directory, is_named)) = found else {
            return Ok(Places { all: vec![Arc::new(self.server(registry, None, false)?)], is_named: false });
        };
        let path = directory.join("hosts.toml");
        let text = match read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(BadHosts::of(&path, &error)),
        };
        if text.is_empty() {
            let entry = dockers_files(&directory)?;
            return Ok(Places {
                all: vec![Arc::new(self.server(registry, Some(&entry), is_named)?)],
                is_named,
            });
        }
        let file = HostsFile::parse(&text, &path)?;
        let mut server = self.server(registry, Some(&file.server), is_named)?;
        let mut all = Vec::with_capacity(file.mirrors.len() + 1);
        for entry in &file.mirrors {
            match self.place(registry, entry, &server) {
                Ok(place) => all.extend(place),
                // Others may do: the registry, at last.
                Err(error) => tracing::warn!(registry, %error, "a mirror is not used"),
            }
        }
        if !is_named {
            // What is for all is for no registry in particular: whoever names it in a pod would be it, with its headers and certificates.
            let of_registry = all.iter_mut().filter(|place| place.role == Role::Server);
            of_registry.chain([&mut server]).for_each(Endpoint::forget_identity);
        }
        let mut all: Vec<Arc<Endpoint>> = all.into_iter().map(Arc::new).collect();
        // Who has said more of the registry itself in an entry of its own has said how it is asked.
        if !all.iter().any(|place| place.role == Role::Server) {
            all.push(Arc::new(server));
        }
        Ok(Places { all, is_named })
    }

    /// The registry's own server: where its name leads, if the operator says nothing else.
    fn server(&self, registry: &str, entry: Option<&Entry>, is_named: bool) -> Result<Endpoint, BadHosts> {
        let stated = entry.and_then(|entry| entry.base.clone());
        let host = if registry == DOCKER_HUB { "registry-1.docker.io" } else { registry };
        let scheme = if self.plain_http.contains(registry) { "http" } else { "https" };
        let usual = Url::parse(&format!("{scheme}://{host}/v2/"))
            .map_err(|error| BadHosts::of(Path::new(registry), &format!("it is no host for a URL: {error}")));
        let base = match &stated {
            Some(base) => base.clone(),
            None => usual?,
        };
        let namespace = namespace(registry, &base);
        // Where the server is as its name says, that name is what people know it by.
        let name = if namespace.is_none() { registry.to_owned() } else { host_and_port(&base) };
        Ok(Endpoint {
            name,
            role: Role::Server,
            pulls: entry.is_none_or(|entry| entry.pulls),
            resolves: entry.is_none_or(|entry| entry.resolves),
            namespace,
            headers: entry.map(|entry| entry.headers.clone()).unwrap_or_default(),
            tls: entry.map_or_else(|| Ok(HostTls::default()), tls)?,
            is_named: is_named || stated.is_some(),
            base,
        })
    }

    /// A place with an entry of its own: a mirror, or the registry itself, of which more is said there.
    fn place(&self, registry: &str, entry: &Entry, server: &Endpoint) -> Result<Option<Endpoint>, BadHosts> {
        let Some(base) = entry.base.clone().filter(|_| entry.pulls || entry.resolves) else {
            return Ok(None);
        };
        let name = host_and_port(&base);
        let namespace = namespace(registry, &base);
        let (name, role) = if namespace.is_none() || name == host_and_port(&server.base) {
            (server.name.clone(), Role::Server)
        } else {
            let authoritative = self.authoritative.contains("*") || self.authoritative.contains(&name);
            (name, Role::Mirror { authoritative })
        };
        Ok(Some(Endpoint {
            name,
            role,
            pulls: entry.pulls,
            resolves: entry.resolves,
            namespace,
            headers: entry.headers.clone(),
            tls: tls(entry)?,
            is_named: true,
            base,
        }))
    }
}

fn tls(entry: &Entry) -> Result<HostTls, BadHosts> {
    HostTls::read(&entry.authorities, &entry.clients, entry.skip_verify, entry.dial_timeout)
}

/// The registry's name as `base` has to be told it: it is not the host that the registry's name leads to.
fn namespace(registry: &str, base: &Url) -> Option<String> {
    let host = host_and_port(base);
    let is_own = host == registry || (registry == DOCKER_HUB && host == "registry-1.docker.io");
    (!is_own).then(|| registry.to_owned())
}

/// The directory for `registry`, and whether it is that registry's own. One that cannot be looked at is not taken for none: mirrors
/// and authorities may be in it.
fn directory_of(root: &Path, registry: &str) -> Result<Option<(PathBuf, bool)>, BadHosts> {
    // A reference's host has no slash; one of only dots would be a directory above.
    if registry.contains('/') || registry.starts_with('.') {
        return Ok(None);
    }
    let with_port = registry.rsplit_once(':').filter(|(_, port)| port.bytes().all(|it| it.is_ascii_digit()));
    let names = [with_port.map(|(host, port)| format!("{host}_{port}_")), Some(registry.to_owned())];
    let own = names.into_iter().flatten().map(|name| (root.join(name), true));
    for (path, is_named) in own.chain([(root.join("_default"), false)]) {
        match std::fs::metadata(&path) {
            Ok(found) if found.is_dir() => return Ok(Some((path, is_named))),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(error) => return Err(BadHosts::of(&path, &error)),
        }
    }
    Ok(None)
}

fn read(path: &Path) -> std::io::Result<String> {
    let size = std::fs::metadata(path)?.len();
    if size > FILE_LIMIT {
        let reason = format!("it has {size} bytes, more than {FILE_LIMIT}");
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, reason));
    }
    std::fs::read_to_string(path)
}

/// Docker's files in `directory`.
fn dockers_files(directory: &Path) -> Result<Entry, BadHosts> {
    let entries = std::fs::read_dir(directory).map_err(|error| BadHosts::of(directory, &error))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let ending = |end: &'static str| {
        let has = move |path: &&PathBuf| path.extension().is_some_and(|extension| extension == end);
        paths.iter().filter(has).take(CERTIFICATES_LIMIT).cloned().collect::<Vec<_>>()
    };
    let clients = ending("cert").into_iter().map(|path| {
        let key = path.with_extension("key");
        (path, Some(key))
    });
    Ok(Entry {
        base: None,
        pulls: true,
        resolves: true,
        authorities: ending("crt"),
        clients: clients.collect(),
        skip_verify: false,
        headers: reqwest::header::HeaderMap::new(),
        dial_timeout: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(root: &Path, authoritative: &[&str]) -> Hosts {
        Hosts::new(HostsSettings {
            directory: Some(root.to_owned()),
            plain_http: ["r:5000".to_owned()].into(),
            authoritative: authoritative.iter().map(|name| (*name).to_owned()).collect(),
        })
    }

    fn write(root: &Path, directory: &str, text: &str) {
        std::fs::create_dir_all(root.join(directory)).expect("made");
        std::fs::write(root.join(directory).join("hosts.toml"), text).expect("written");
    }

    async fn bases(hosts: &Hosts, registry: &str) -> Vec<String> {
        let places = hosts.of(registry).await.expect(registry);
        places.all.iter().map(|place| place.url("x/y").expect("a URL").to_string()).collect()
    }

    #[tokio::test]
    async fn directories_are_found_as_containerd_finds_them() {
        let root = tempfile::tempdir().expect("a directory");
        let mirror = |name: &str| format!("[host.\"https://{name}\"]\n");
        write(root.path(), "r.example_5000_", &mirror("underscore"));
        write(root.path(), "r.example:5000", &mirror("colon"));
        write(root.path(), "other.example", &mirror("other"));
        write(root.path(), "docker.io", &mirror("hub"));
        std::fs::create_dir(root.path().join("empty.example")).expect("made");
        let hosts = hosts(root.path(), &[]);
        let expected = ["https://underscore/v2/x/y?ns=r.example%3A5000", "https://r.example:5000/v2/x/y"];
        assert_eq!(bases(&hosts, "r.example:5000").await, expected);
        let expected = ["https://hub/v2/x/y?ns=docker.io", "https://registry-1.docker.io/v2/x/y"];
        assert_eq!(bases(&hosts, "docker.io").await, expected);
        assert_eq!(bases(&hosts, "empty.example").await, ["https://empty.example/v2/x/y"]);
        assert_eq!(bases(&hosts, "r:5000").await, ["http://r:5000/v2/x/y"]);
        assert_eq!(bases(&hosts, "none.example").await, ["https://none.example/v2/x/y"]);
        write(root.path(), "_default", &mirror("default"));
        let expected = ["https://default/v2/x/y?ns=new.example", "https://new.example/v2/x/y"];
        assert_eq!(bases(&hosts, "new.example").await, expected);
        assert!(!hosts.of("new.example").await.expect("read").is_named);
        assert!(hosts.of("docker.io").await.expect("read").is_named);
        let named =
            ["docker.io", "empty.example", "other.example", "r.example:5000", "r.example:5000", "r:5000"];
        assert_eq!(hosts.settings.registries(), named);
    }

    #[tokio::test]
    async fn a_server_that_is_stated_is_the_registry() {
        let root = tempfile::tempdir().expect("a directory");
        write(root.path(), "r.example", "server = \"http://10.0.0.1:5000\"\n[host.\"m\"]\n[host.\"n:1\"]\n");
        let places = hosts(root.path(), &["n:1"]).of("r.example").await.expect("read");
        let roles: Vec<_> = places.all.iter().map(|place| (place.name.as_str(), place.role)).collect();
        let mirror = |authoritative| Role::Mirror { authoritative };
        assert_eq!(roles, [("m", mirror(false)), ("n:1", mirror(true)), ("10.0.0.1:5000", Role::Server)]);
        assert!(
            places.all.iter().all(|place| place.is_named && place.namespace.as_deref() == Some("r.example"))
        );
    }

    #[tokio::test]
    async fn an_entry_for_the_registry_itself_is_no_mirror() {
        let root = tempfile::tempdir().expect("a directory");
        let roles = async |registry: &str| {
            let places = hosts(root.path(), &[]).of(registry).await.expect("read");
            places.all.iter().map(|place| (place.base.to_string(), place.role)).collect::<Vec<_>>()
        };
        write(root.path(), "r.example", "[host.\"http://r.example\"]\n");
        assert_eq!(roles("r.example").await, [("http://r.example/v2/".to_owned(), Role::Server)]);
        write(
            root.path(),
            "s.example",
            "server = \"https://10.0.0.1\"\n[host.\"m\"]\n[host.\"https://10.0.0.1\"]\n",
        );
        let mirror = Role::Mirror { authoritative: false };
        let expected =
            [("https://m/v2/".to_owned(), mirror), ("https://10.0.0.1/v2/".to_owned(), Role::Server)];
        assert_eq!(roles("s.example").await, expected);
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_an_error_and_not_the_default() {
        let root = tempfile::tempdir().expect("a directory");
        write(root.path(), "r.example", "ca = \"gone.crt\"\n");
        let error = hosts(root.path(), &[]).of("r.example").await.expect_err("no such file").to_string();
        assert!(error.contains("r.example/gone.crt cannot be used: No such file"), "{error}");
        std::fs::write(root.path().join("r.example/gone.crt"), "no PEM").expect("written");
        let error = hosts(root.path(), &[]).of("r.example").await.expect_err("no PEM").to_string();
        assert!(error.contains("it has no certificate in PEM"), "{error}");
        std::fs::remove_file(root.path().join("r.example/hosts.toml")).expect("removed");
        std::fs::rename(root.path().join("r.example/gone.crt"), root.path().join("r.example/a.cert"))
            .expect("renamed");
        let error = hosts(root.path(), &[]).of("r.example").await.expect_err("no key").to_string();
        assert!(error.contains("r.example/a.key cannot be used"), "{error}");
    }

    #[tokio::test]
    async fn no_registry_leads_out_of_the_directory() {
        let root = tempfile::tempdir().expect("a directory");
        write(root.path(), "in", "");
        for registry in ["..", ".", "../x", "."] {
            let found = directory_of(&root.path().join("in"), registry).expect("looked at");
            assert_eq!(found, None, "{registry}");
        }
    }

    #[test]
    fn regression_a_directory_that_cannot_be_looked_at_is_not_taken_for_none() {
        let root = tempfile::tempdir().expect("a directory");
        // What the kernel says is the same for a directory that is another user's; root may look everywhere.
        let place = root.path().join("loop");
        std::os::unix::fs::symlink("loop", &place).expect("a link");
        let error = directory_of(&place, "r.example").expect_err("it cannot be looked at");
        assert!(error.to_string().contains("loop/r.example"), "{error}");
        assert_eq!(directory_of(&root.path().join("absent"), "r.example").expect("looked at"), None);
    }
}
