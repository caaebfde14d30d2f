//! The node's registries, Debian's `docker-registry`: what is pushed to them, and what was fetched from them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use ocivol::demo::push::{Layer, Pusher};
use ocivol::oci::digest::Digest;
use serde_json::json;

use crate::machine::target;
use crate::node::{self, log_of, spawn};

/// For everybody.
pub const REGISTRY: &str = "10.99.0.1:5000";
/// Asks for [`LOGIN`].
pub const PRIVATE: &str = "10.99.0.1:5001";
/// [`REGISTRY`] behind a slow line, while a scenario has one: see [`crate::proxy`].
pub const SLOW: &str = "10.99.0.1:5002";
/// Nobody listens there.
pub const DOWN: &str = "10.99.0.1:5999";
/// Listens on the node itself, as peers of a cluster's mirrors do.
pub const MIRROR: &str = "127.0.0.1:5003";
pub const HOSTS: [&str; 4] = [REGISTRY, PRIVATE, SLOW, DOWN];
pub const LOGIN: (&str, &str) = ("alice", "wonderland");
/// bcrypt of the password above.
const HTPASSWD: &str = "alice:$2b$05$r55D3P2KXKbooEGo2CnxM.5/i9DC9gz7KOr1BYW39TpMO7Jr7lFtm\n";

/// Starts them.
pub fn start() -> Vec<(&'static str, Child)> {
    let directory = Path::new("/var/lib/registry");
    fs::write(directory.join("htpasswd"), HTPASSWD).expect("a file");
    let login = "auth: {htpasswd: {realm: e2e, path: /var/lib/registry/htpasswd}}\n";
    [("registry", REGISTRY, ""), ("private-registry", PRIVATE, login), ("mirror", MIRROR, "")]
        .map(|(name, host, auth)| {
            let config = format!(
                "version: 0.1\nlog: {{level: error}}\n\
                 storage: {{filesystem: {{rootdirectory: /var/lib/registry/{name}}}, delete: {{enabled: true}}}}\n\
                 http: {{addr: \"{host}\"}}\n{auth}"
            );
            let file = directory.join(format!("{name}.yml"));
            fs::write(&file, config).expect("a file");
            spawn(name, Path::new("docker-registry"), &["serve", &file.display().to_string()])
        })
        .into()
}

/// Pushes what every node needs: `pause`, and an image for pods.
pub async fn push_images() {
    serves().await;
    let tools = target().join("tools");
    let pause = fs::read(tools.join("kubernetes/pause")).expect("make e2e builds it");
    image("e2e/pause", &[("pause", &pause)], &[], &["/pause"]).await;
    let attempts = fs::read(tools.join("attempts")).expect("make e2e builds it");
    let busybox = fs::read("/bin/busybox").expect("busybox-static");
    let applets = ["sh", "ls", "cat", "sleep", "stat", "sha256sum", "id", "grep", "wc", "cut", "true", "env"];
    let files: [(&str, &[u8]); 2] = [("bin/busybox", &busybox), ("bin/attempts", &attempts)];
    image("e2e/pod", &files, &applets, &["/bin/sleep", "86400"]).await;
}

async fn serves() {
    let began = Instant::now();
    while tokio::net::TcpStream::connect(REGISTRY).await.is_err()
        || tokio::net::TcpStream::connect(PRIVATE).await.is_err()
        || tokio::net::TcpStream::connect(MIRROR).await.is_err()
    {
        assert!(began.elapsed() < Duration::from_secs(60), "the registries do not serve");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Pushes the image of `make image` as `tag`, its config changed by `change`.
pub async fn push_ocivol(tag: &str, change: impl FnOnce(&mut serde_json::Value)) {
    let layout = node::directory_of("image");
    let archive = format!("oci-archive:{}", target().join("ocivol-image.tar").display());
    if !layout.exists() {
        node::run(
            Command::new("skopeo")
                .args(["copy", "--quiet", &archive])
                .arg(format!("dir:{}", layout.display())),
        );
    }
    let read = |name: &str| fs::read(layout.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut manifest: serde_json::Value = serde_json::from_slice(&read("manifest.json")).expect("a manifest");
    let pusher = Pusher::new(REGISTRY, "ocivol/ocivol");
    let hex = |descriptor: &serde_json::Value| {
        descriptor["digest"]
            .as_str()
            .and_then(|digest| digest.strip_prefix("sha256:"))
            .expect("a digest")
            .to_owned()
    };
    for layer in manifest["layers"].as_array().expect("layers") {
        pusher.blob(read(&hex(layer)).into()).await.expect("pushed");
    }
    let mut config: serde_json::Value =
        serde_json::from_slice(&read(&hex(&manifest["config"]))).expect("a config");
    change(&mut config);
    let config = config.to_string();
    manifest["config"]["size"] = config.len().into();
    manifest["config"]["digest"] = pusher.blob(config.into()).await.expect("pushed").to_string().into();
    let media_type = manifest["mediaType"].as_str().expect("a media type").to_owned();
    pusher.manifest(tag, &media_type, &manifest.to_string()).await.expect("pushed");
}

/// Pushes an image of busybox with these programs and directories.
pub async fn push_image(repository: &str, tag: &str, directories: &[&str], applets: &[&str]) {
    let busybox = fs::read("/bin/busybox").expect("busybox-static");
    image_of(repository, tag, directories, &[("bin/busybox", &busybox)], applets, &["/bin/sh"]).await;
}

/// Pushes an image with all that busybox can do, a `bash` that is its shell, and the `agnhost` of Kubernetes' tests as far as it waits.
pub async fn push_shell(repository: &str, tag: &str) {
    let busybox = fs::read("/bin/busybox").expect("busybox-static");
    let listed = node::run(Command::new("/bin/busybox").arg("--list"));
    let applets: Vec<&str> = listed.lines().filter(|name| !["busybox", "bash"].contains(name)).collect();
    let directories = ["bin/", "proc/", "sys/", "dev/", "etc/", "mnt/", "opt/"];
    let bash = b"#!/bin/sh\nexec /bin/sh \"$@\"\n";
    let agnhost = b"#!/bin/sh\n[ \"$1\" = pause ] || exec \"$@\"\nexec sleep 86400\n";
    let files: [(&str, &[u8]); 3] = [("bin/busybox", &busybox), ("bin/bash", bash), ("agnhost", agnhost)];
    image_of(repository, tag, &directories, &files, &applets, &["/agnhost"]).await;
}

/// Pushes an image of one program.
pub async fn push_program(repository: &str, tag: &str, name: &str, program: &[u8]) {
    image_of(repository, tag, &[], &[(name, program)], &[], &[&format!("/{name}")]).await;
}

async fn image(repository: &str, files: &[(&str, &[u8])], applets: &[&str], entrypoint: &[&str]) {
    let directories = ["bin/", "proc/", "sys/", "dev/", "etc/", "m/"];
    image_of(repository, "v1", &directories, files, applets, entrypoint).await;
}

async fn image_of(
    repository: &str,
    tag: &str,
    directories: &[&str],
    files: &[(&str, &[u8])],
    applets: &[&str],
    entrypoint: &[&str],
) {
    let mut archive = tar::Builder::new(Vec::new());
    let header = |kind: tar::EntryType, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(size as u64);
        header
    };
    for directory in directories {
        let mut it = header(tar::EntryType::Directory, 0);
        archive.append_data(&mut it, directory, std::io::empty()).expect("an archive");
    }
    // For everybody, as /tmp is.
    let mut it = header(tar::EntryType::Directory, 0);
    it.set_mode(0o1777);
    archive.append_data(&mut it, "tmp/", std::io::empty()).expect("an archive");
    for (name, content) in files {
        archive
            .append_data(&mut header(tar::EntryType::Regular, content.len()), name, *content)
            .expect("an archive");
    }
    for applet in applets {
        let mut it = header(tar::EntryType::Symlink, 0);
        archive.append_link(&mut it, format!("bin/{applet}"), "busybox").expect("an archive");
    }
    let layer = Layer::archive(archive.into_inner().expect("an archive"));
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": entrypoint, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(&layer.content).to_string()]},
    });
    let config_type = "application/vnd.oci.image.config.v1+json";
    let pusher = Pusher::new(REGISTRY, repository);
    pusher.artifact(tag, "", config_type, &config.to_string(), &[layer]).await.expect("pushed");
}

/// Pushes a ModelPack model of a small config and `weights`; returns its reference.
pub async fn push_model(repository: &str, tag: &str, weights: Vec<u8>) -> String {
    let layers = [
        Layer::model_file("weight.config", "config.json", &br#"{"model_type": "e2e"}"#[..]),
        Layer::model_file("weight", "weights/model.safetensors", weights),
    ];
    Pusher::new(REGISTRY, repository).model(tag, &layers).await.expect("pushed");
    format!("{REGISTRY}/{repository}:{tag}")
}

/// One request that ocivol sent, from the registry's access log.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub status: u16,
    /// Bytes of the answer's body.
    pub bytes: u64,
}

/// The requests of ocivol since the registry was started; those of containerd are not among them.
pub fn requests() -> Vec<Request> {
    let log = fs::read_to_string(log_of("registry")).unwrap_or_default();
    log.lines().filter(|line| line.contains("\"ocivol/")).filter_map(parse).collect()
}

/// `10.99.0.1 - - [time] "GET /v2/… HTTP/1.1" 200 1234 "" "ocivol/0.1.0"`
fn parse(line: &str) -> Option<Request> {
    let mut quoted = line.split('"');
    let mut request = quoted.nth(1)?.split(' ');
    let mut answer = quoted.next()?.split_whitespace();
    Some(Request {
        method: request.next()?.to_owned(),
        path: request.next()?.to_owned(),
        status: answer.next()?.parse().ok()?,
        bytes: answer.next()?.parse().unwrap_or(0),
    })
}

/// Bytes that were fetched of each blob whose repository starts with `prefix`.
pub fn fetched(prefix: &str) -> BTreeMap<String, u64> {
    let mut bytes = BTreeMap::new();
    for request in requests() {
        let of_prefix = request.path.starts_with(&format!("/v2/{prefix}"));
        let sent = request.method == "GET" && (200..300).contains(&request.status);
        if let Some((_, digest)) = request.path.split_once("/blobs/").filter(|_| of_prefix && sent) {
            *bytes.entry(digest.to_owned()).or_default() += request.bytes;
        }
    }
    bytes
}
