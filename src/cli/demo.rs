//! `ocivol demo`: a model and an image go from a registry into read-only directories, through the real sockets.

use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use bytes::Bytes;
use indicatif::BinaryBytes;
use tokio::sync::watch;

use crate::cli::args::Common;
use crate::cli::context;
use crate::cli::{namespace, output};
use crate::demo::kubelet::{Kubelet, PodVolume};
use crate::demo::push::{Layer, Pusher};
use crate::demo::registry::Registry;
use crate::demo::tarball;
use crate::demo::tarball::Tarball;
use crate::failure::Failure;
use crate::mount::locked::Lock;
use crate::mount::mountinfo::Table;
use crate::node::config::NodeFlags;
use crate::node::credential_flags::CredentialFlags;
use crate::node::disk_flags::DiskFlags;
use crate::node::pull_flags::PullFlags;
use crate::node::warm_flags::WarmFlags;
use crate::oci::digest::Digest;
use crate::store::space::budget::Budget;

/// Bytes of the demo's weights.
const WEIGHTS: usize = 64 * 1024 * 1024;

/// Runs the demo in a mount namespace of its own and a temporary directory; both are gone afterwards.
///
/// # Errors
/// The step that failed, and why.
pub fn run(common: &Common) -> Result<ExitCode, Failure> {
    let is_root = rustix::process::geteuid().is_root();
    namespace::enter()?;
    let directory = tempfile::Builder::new()
        .prefix("ocivol-demo-")
        .tempdir()
        .map_err(|error| Failure::internal(&format!("cannot make a temporary directory: {error}")))?;
    let who = if is_root { "root" } else { "an ordinary user, in a user namespace" };
    output::line(&format!(
        "ocivol {} as {who}, in {}",
        env!("CARGO_PKG_VERSION"),
        directory.path().display()
    ));
    let began = Instant::now();
    context::run_command(show(common, directory.path()))?;
    output::line(&format!("\ndone in {:.0?}; everything is removed again", began.elapsed()));
    Ok(ExitCode::SUCCESS)
}

/// Says what was done and how long it took.
struct Steps {
    number: usize,
    began: Instant,
}

impl Steps {
    fn done(&mut self, what: &str) {
        self.number += 1;
        output::line(&format!("{:2}. {what}  [{:.1?}]", self.number, self.began.elapsed()));
        self.began = Instant::now();
    }
}

async fn show(common: &Common, directory: &Path) -> Result<(), Failure> {
    let mut steps = Steps { number: 0, began: Instant::now() };
    let failed = |what: &str, why: &dyn std::fmt::Display| Failure::internal(&format!("{what}: {why}"));

    let registry = Registry::start(None).await.map_err(|error| failed("cannot start a registry", &error))?;
    let host = registry.host();
    steps.done(&format!("a registry serves on {host}"));

    let reference = format!("{host}/models/tiny:v1");
    let pusher = Pusher::new(&host, "models/tiny");
    let digest = pusher.model("v1", &model()).await;
    let digest = digest.map_err(|error| failed("cannot push", &crate::failure::chain(&error)))?;
    steps.done(&format!("pushed a ModelPack model, {reference}, {}", digest));

    let image = format!("{host}/images/hello:v1");
    let (layers, diff_ids) = two_layers().map_err(|error| failed("cannot make an image", &error))?;
    let pushed = Pusher::new(&host, "images/hello").image("v1", &layers, &diff_ids).await;
    pushed.map_err(|error| failed("cannot push", &crate::failure::chain(&error)))?;
    steps.done(&format!("pushed a container image of two layers, {image}"));

    let kubelet_dir = directory.join("kubelet");
    let registry_dir = kubelet_dir.join("plugins_registry");
    std::fs::create_dir_all(&registry_dir).map_err(|error| failed("cannot make directories", &error))?;
    let socket = directory.join("csi.sock");
    let flags = NodeFlags {
        root: directory.join("store"),
        endpoint: format!("unix://{}", socket.display()),
        node_id: "demo-node".into(),
        driver_name: "csi.ocivol.dev".into(),
        kubelet_dir: kubelet_dir.clone(),
        registration_dir: None,
        health_addr: String::new(),
        metrics_addr: String::new(),
        target_roots: Vec::new(),
        with_controller: false,
        allow_writers: false,
        lock: Lock::All,
        disk: DiskFlags::default(),
        scrub_days: 0,
        pins: Vec::new(),
        otlp_endpoint: String::new(),
        prepull_bytes_per_second: None,
        credentials: CredentialFlags::default(),
        pulls: PullFlags { plain_http: vec![host], ..common.pulls() },
        warm: WarmFlags::default(),
    };
    let mut config = flags.check().map_err(|error| failed("bad flags", &error))?;
    // It runs on any machine, however full its disk is.
    config.budget = Budget::COMMAND;
    let registration = registry_dir.join("csi.ocivol.dev-reg.sock");
    let (stop, stopped) = watch::channel(false);
    let plugin = tokio::spawn(crate::node::run::run(config, stopped));
    wait_until(|| registration.exists(), &plugin).await?;
    steps.done("the node plugin serves on its CSI socket and asks kubelet to register it");

    let kubelet = Kubelet::new(&kubelet_dir, &socket);
    let info = kubelet.register(&registration).await.map_err(|status| failed("registration", &status))?;
    steps.done(&format!("kubelet registered {} {}", info.r#type, info.name));

    let volume = publish(&kubelet, &mut steps, "pod-1", &reference).await?;
    read(&volume.target).map_err(|error| failed("cannot read the volume", &error))?;
    steps.done(&format!("the pod reads the weights, {}, and the config", BinaryBytes(WEIGHTS as u64)));

    let usage = kubelet.stats(&volume).await.map_err(|status| failed("NodeGetVolumeStats", &status))?;
    let bytes = usage.first().map_or(0, |usage| usage.used);
    steps.done(&format!("NodeGetVolumeStats says {}", BinaryBytes(u64::try_from(bytes).unwrap_or(0))));

    match std::fs::write(volume.target.join("config.json"), "mine") {
        Err(error) if error.raw_os_error() == Some(libc::EROFS) => {
            steps.done(&format!("the pod tries to write: {error}"));
        }
        other => return Err(failed("a volume could be written to", &format!("{other:?}"))),
    }

    let second = publish(&kubelet, &mut steps, "pod-2", &reference).await?;
    let third = publish(&kubelet, &mut steps, "pod-3", &image).await?;
    read_image(&third.target).map_err(|error| failed("the image is wrong", &error))?;
    steps.done("the upper layer wrote through the lower one's symlink lib -> usr/lib, and hid etc/old");
    for volume in [&volume, &second, &third] {
        kubelet.unpublish(volume).await.map_err(|status| failed("NodeUnpublishVolume", &status))?;
    }
    let left = Table::read().map_err(|error| failed("mountinfo", &error))?;
    if left.iter().any(|mount| mount.mount_point.starts_with(&kubelet_dir)) || volume.target.exists() {
        return Err(Failure::internal("a mount was left behind"));
    }
    steps.done("NodeUnpublishVolume for all: nothing is mounted any more");

    stop.send_replace(true);
    match plugin.await {
        Ok(result) => result?,
        Err(error) => return Err(failed("the plugin", &error)),
    }
    if registration.exists() {
        return Err(Failure::internal("the registration socket was left behind"));
    }
    steps.done("the plugin unregistered and ended");
    Ok(())
}

async fn publish(
    kubelet: &Kubelet,
    steps: &mut Steps,
    pod: &str,
    reference: &str,
) -> Result<PodVolume, Failure> {
    let volume = kubelet
        .prepare(pod, "model")
        .map_err(|error| Failure::internal(&format!("cannot make {pod}: {error}")))?;
    let request = kubelet.publish_request(&volume, &[("reference", reference)], &[]);
    kubelet
        .publish(request)
        .await
        .map_err(|status| Failure::internal(&format!("NodePublishVolume for {pod}: {}", status.message())))?;
    let table = Table::read().map_err(|error| Failure::internal(&error.to_string()))?;
    let path = volume.target.canonicalize().unwrap_or_else(|_| volume.target.clone());
    let flags = table.at(&path).map_or("nothing", |mount| mount.options.as_str());
    steps.done(&format!("NodePublishVolume for {pod}: mounted {flags}"));
    Ok(volume)
}

fn model() -> [Layer; 3] {
    // Something that does not compress, like weights, and is the same each time.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let weights = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let weights: Vec<u8> = weights.take(WEIGHTS / 8).flatten().collect();
    [
        Layer::model_file("weight", "model.safetensors", Bytes::from(weights)),
        Layer::model_file("weight.config", "config.json", r#"{"model_type":"tiny"}"#),
        Layer::model_file("doc", "docs/README.md", "# A tiny model\n"),
    ]
}

fn read(target: &Path) -> std::io::Result<()> {
    let mut config = String::new();
    std::fs::File::open(target.join("config.json"))?.read_to_string(&mut config)?;
    let weights = std::fs::File::open(target.join("model.safetensors"))?;
    let length = std::io::copy(&mut &weights, &mut std::io::sink())?;
    if config.contains("tiny") && length == WEIGHTS as u64 {
        return Ok(());
    }
    Err(std::io::Error::other("the files are not those that were pushed"))
}

/// An image whose upper layer changes what the lower one has.
fn two_layers() -> std::io::Result<(Vec<Layer>, Vec<Digest>)> {
    let lower = Tarball::new()
        .directory("usr/lib")
        .symlink("lib", "usr/lib")
        .file("usr/lib/greeting", b"hello from below\n")
        .file("etc/old", b"not any more\n")
        .finish();
    let upper = Tarball::new().file("lib/greeting", b"hello\n").file("etc/.wh.old", b"").finish();
    let diff_ids = [&lower, &upper].map(|content| Digest::sha256(content));
    let layers = vec![Layer::archive(tarball::gzip(&lower)?), Layer::archive(tarball::zstd(&upper)?)];
    Ok((layers, diff_ids.to_vec()))
}

fn read_image(target: &Path) -> std::io::Result<()> {
    let greeting = std::fs::read_to_string(target.join("usr/lib/greeting"))?;
    if greeting == "hello\n" && target.join("lib").is_symlink() && !target.join("etc/old").exists() {
        return Ok(());
    }
    Err(std::io::Error::other("the files are not those that were pushed"))
}

async fn wait_until(
    condition: impl Fn() -> bool,
    plugin: &tokio::task::JoinHandle<Result<(), Failure>>,
) -> Result<(), Failure> {
    let began = Instant::now();
    while !condition() {
        if plugin.is_finished() || began.elapsed().as_secs() > 10 {
            return Err(Failure::internal("the plugin did not start; run with -v to see why"));
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    Ok(())
}
