//! What the controller makes of claims, and that nodes mount it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ocivol::csi::transport;
use ocivol::csi::v1::controller_client::ControllerClient;
use ocivol::csi::v1::identity_client::IdentityClient;
use ocivol::csi::v1::volume_capability::access_mode::Mode;
use ocivol::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use ocivol::csi::v1::{
    CapacityRange, CreateVolumeRequest, DeleteVolumeRequest, GetPluginCapabilitiesRequest, Volume,
    VolumeCapability,
};
use ocivol::demo::push::Layer;
use ocivol::oci::digest::Digest;
use serde_json::json;
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::support::debian_registry::{DebianRegistry, LOGIN};
use crate::support::node::BINARY;
use crate::support::{Node, Scripted, eventually, isolated, noise};

/// The controller's process, as an ordinary user has it: it has no store.
struct Controller {
    process: Child,
    socket: PathBuf,
    _directory: TempDir,
}

impl Controller {
    async fn start(flags: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("ocivol-c-").tempdir().expect("a directory");
        let socket = directory.path().join("csi.sock");
        let process = Command::new(BINARY)
            .arg("controller")
            .args(["--endpoint", &format!("unix://{}", socket.display()), "--health-addr", ""])
            .args(flags)
            .stdin(Stdio::null())
            .spawn()
            .expect("it starts");
        eventually("the socket", || std::os::unix::net::UnixStream::connect(&socket).is_ok()).await;
        Self { process, socket, _directory: directory }
    }

    async fn create(&self, request: CreateVolumeRequest) -> Result<Volume, Status> {
        let channel = transport::connect(&self.socket).await.expect("it serves");
        let answer = ControllerClient::new(channel).create_volume(request).await?;
        Ok(answer.into_inner().volume.expect("a volume"))
    }

    /// As Kubernetes ends it.
    async fn stop(mut self) {
        kill(Pid::from_raw(self.process.id() as i32), Signal::SIGTERM).expect("it runs");
        let mut ended = None;
        eventually("its end", || {
            ended = self.process.try_wait().expect("a child");
            ended.is_some()
        })
        .await;
        assert!(ended.is_some_and(|status| status.success()) && !self.socket.exists());
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What external-provisioner sends for a claim `model` in `shop` with `ReadOnlyMany`.
fn claim(parameters: &[(&str, &str)]) -> CreateVolumeRequest {
    let told = [
        ("csi.storage.k8s.io/pv/name", "pvc-6f1c3c1e"),
        ("csi.storage.k8s.io/pvc/name", "model"),
        ("csi.storage.k8s.io/pvc/namespace", "shop"),
    ];
    let all = parameters.iter().chain(&told);
    CreateVolumeRequest {
        name: "pvc-6f1c3c1e".into(),
        capacity_range: Some(CapacityRange { required_bytes: 1 << 30, limit_bytes: 0 }),
        volume_capabilities: vec![capability(Mode::MultiNodeReaderOnly)],
        parameters: all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        ..Default::default()
    }
}

fn capability(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

async fn push(registry: &DebianRegistry, seed: u64) -> Digest {
    let layers = [Layer::model_file("weight", "model.safetensors", noise(seed, 1 << 16))];
    registry.pusher("models/model").model("v1", &layers).await.expect("pushed")
}

#[test]
fn all_nodes_mount_what_the_tag_was_when_the_volume_was_made() {
    isolated(async {
        let registry = DebianRegistry::start().await;
        let host = registry.host();
        let controller = Controller::start(&["--plain-http", &host]).await;
        let digest = push(&registry, 1).await;
        let reference = format!("{host}/models/${{pvc.metadata.name}}:v1");
        let mut request = claim(&[("reference", &reference), ("readOnlyForWriters", "true")]);
        request.volume_capabilities = vec![capability(Mode::SingleNodeWriter)];
        let volume = controller.create(request.clone()).await.expect("made");
        let expected: HashMap<String, String> = [
            ("reference", format!("{host}/models/model:v1@{digest}")),
            ("readOnlyForWriters", "true".to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        assert_eq!((volume.volume_context.clone(), volume.capacity_bytes), (expected, 0));
        // The same claim is the same volume.
        assert_eq!(controller.create(request).await.expect("made").volume_id, volume.volume_id);

        // The tag moves, and the volume does not.
        assert_ne!(push(&registry, 2).await, digest);
        let node = Node::start(&["--plain-http", &host, "--with-controller"]).await;
        let target = node.volume("pod-1");
        let mut publish = node.kubelet.publish_request(&target, &[], &[]);
        publish.volume_context.remove("csi.storage.k8s.io/ephemeral");
        publish.volume_context.extend(volume.volume_context);
        publish.volume_id.clone_from(&volume.volume_id);
        publish.volume_capability = Some(capability(Mode::SingleNodeWriter));
        publish.readonly = false;
        node.kubelet.publish(publish).await.expect("published");
        let weights = target.target.join("model.safetensors");
        assert!(std::fs::read(&weights).expect("read") == noise(1, 1 << 16));
        let error = std::fs::write(&weights, "x").expect_err("read-only").kind();
        assert_eq!(error, std::io::ErrorKind::ReadOnlyFilesystem);
        node.kubelet.unpublish(&target).await.expect("unpublished");

        // Every instance says that there is a controller.
        for socket in [&controller.socket, &node.socket] {
            let channel = transport::connect(socket).await.expect("it serves");
            let answer = IdentityClient::new(channel)
                .get_plugin_capabilities(GetPluginCapabilitiesRequest {})
                .await
                .expect("capabilities");
            assert_eq!(answer.into_inner().capabilities.len(), 1, "{}", socket.display());
        }
        let channel = transport::connect(&controller.socket).await.expect("it serves");
        let delete = DeleteVolumeRequest { volume_id: volume.volume_id };
        ControllerClient::new(channel).delete_volume(delete).await.expect("deleted");
        controller.stop().await;
    });
}

#[test]
fn of_several_platforms_the_index_is_pinned() {
    isolated(async {
        let registry = DebianRegistry::start().await;
        let controller = Controller::start(&["--plain-http", &registry.host()]).await;
        let pusher = registry.pusher("app");
        let layer =
            Layer::archive(ocivol::demo::tarball::Tarball::new().file("f", b"content of a file").finish());
        let mut children = Vec::new();
        // None of them is for this machine.
        for architecture in ["s390x", "ppc64le"] {
            let config = json!({
                "architecture": architecture, "os": "linux", "config": {},
                "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(&layer.content).to_string()]},
            });
            let digest = pusher
                .artifact(
                    architecture,
                    "",
                    "application/vnd.oci.image.config.v1+json",
                    &config.to_string(),
                    std::slice::from_ref(&layer),
                )
                .await
                .expect("pushed");
            let manifest = format!("http://{}/v2/app/manifests/{digest}", registry.host());
            let accept = "application/vnd.oci.image.manifest.v1+json";
            let answer = reqwest::Client::new().get(manifest).header("accept", accept).send().await;
            let size = answer.expect("an answer").bytes().await.expect("a manifest").len();
            children.push(json!({
                "mediaType": accept, "digest": digest.to_string(), "size": size,
                "platform": {"os": "linux", "architecture": architecture},
            }));
        }
        let index_type = "application/vnd.oci.image.index.v1+json";
        let index = json!({"schemaVersion": 2, "mediaType": index_type, "manifests": children});
        let index = pusher.manifest("v1", index_type, &index.to_string()).await.expect("pushed");
        let reference = registry.reference("app:v1");
        let made = controller.create(claim(&[("reference", &reference)])).await.expect("made");
        assert_eq!(made.volume_context["reference"], format!("{reference}@{index}"));
        // A class that is for one platform is held to it.
        let of_one = |platform| claim(&[("reference", &reference), ("platform", platform)]);
        controller.create(of_one("linux/s390x")).await.expect("made");
        let status = controller.create(of_one("linux/riscv64")).await.expect_err("there is none");
        assert!(status.message().contains("linux/s390x"), "{status}");
    });
}

#[test]
fn the_claim_is_told_what_the_registry_says() {
    isolated(async {
        let (open, closed) = (DebianRegistry::start().await, DebianRegistry::with_login().await);
        let hosts = [open.host(), closed.host(), "127.0.0.1:1".to_owned()].join(",");
        let controller = Controller::start(&["--plain-http", &hosts, "--stall-timeout", "1"]).await;
        push(&open, 1).await;
        push(&closed, 1).await;
        let create = async |request: CreateVolumeRequest| controller.create(request).await;

        let absent = create(claim(&[("reference", &open.reference("models/absent:v1"))])).await;
        assert_eq!(absent.expect_err("absent").code(), Code::NotFound);
        let down = create(claim(&[("reference", "127.0.0.1:1/models/model:v1")])).await;
        // For the provisioner `UNAVAILABLE` would be work that goes on, for ever.
        assert_eq!(down.expect_err("nobody listens").code(), Code::Internal);
        // Whoever asks no registry is asked nothing.
        let unasked = [("reference", "127.0.0.1:1/models/model:v1"), ("check", "false"), ("pin", "false")];
        let made = create(claim(&unasked)).await.expect("made");
        assert_eq!(made.volume_context["reference"], "127.0.0.1:1/models/model:v1");

        let private = closed.reference("models/model:v1");
        let mut request = claim(&[("reference", &private), ("pin", "false")]);
        let anonymous = create(request.clone()).await.expect_err("a login is needed");
        assert_eq!(anonymous.code(), Code::Unauthenticated);
        let secret = [("username", LOGIN.0), ("password", LOGIN.1)];
        request.secrets = secret.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let made = create(request.clone()).await.expect("made");
        assert_eq!(made.volume_context["reference"], private, "pin: \"false\"");
        assert!(!format!("{made:?}").contains(LOGIN.1), "the volume holds no secret");

        for (limit, expected) in [(1 << 16, None), (1 << 15, Some(Code::OutOfRange))] {
            request.capacity_range = Some(CapacityRange { required_bytes: 1, limit_bytes: limit });
            let code = create(request.clone()).await.err().map(|status| status.code());
            assert_eq!(code, expected, "{limit}");
        }
    });
}

#[test]
fn a_claim_gets_what_its_namespaces_pods_may_have() {
    isolated(async {
        let registry = DebianRegistry::start().await;
        push(&registry, 1).await;
        let permits = r#"[{"namespaces":["shop"],"deny":["*"]}]"#;
        let flags = ["--plain-http", &registry.host(), "--permits", permits];
        let reference = registry.reference("models/model:v1");
        let controller = Controller::start(&flags).await;
        let refused = controller.create(claim(&[("reference", &reference)])).await.expect_err("denied");
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        controller.create(of_namespace("bank", &reference)).await.expect("made");
        let controller = Controller::start(&["--plain-http", &registry.host(), "--anonymous=false"]).await;
        let refused = controller.create(claim(&[("reference", &reference)])).await.expect_err("no secret");
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    });
}

#[test]
fn t44_claims_whose_registry_does_not_answer_leave_places_to_other_namespaces() {
    isolated(async {
        let (registry, silent) = (DebianRegistry::start().await, Scripted::start().await);
        push(&registry, 1).await;
        silent.script(|_| {
            let never = futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
            Some(axum::response::Response::new(axum::body::Body::from_stream(never)))
        });
        let hosts = [registry.host(), silent.host()].join(",");
        let controller = std::sync::Arc::new(Controller::start(&["--plain-http", &hosts]).await);
        let reference = silent.reference("models/model:v1");
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..12 {
            let (controller, request) =
                (std::sync::Arc::clone(&controller), of_namespace("shop", &reference));
            waiting
                .spawn(async move { controller.create(request).await.expect_err("it says nothing").code() });
        }
        let asked = || silent.requests().len() >= 4;
        eventually("claims that are worked on", asked).await;
        let good = registry.reference("models/model:v1");
        controller.create(of_namespace("bank", &good)).await.expect("made while others wait");
        // The first to end are those that found no place.
        let ended = waiting.join_next().await.expect("some wait").expect("no panic");
        assert_eq!(ended, Code::ResourceExhausted);
        waiting.abort_all();
    });
}

/// A claim in another namespace.
fn of_namespace(namespace: &str, reference: &str) -> CreateVolumeRequest {
    let mut request = claim(&[("reference", reference)]);
    request.parameters.insert("csi.storage.k8s.io/pvc/namespace".into(), namespace.into());
    request
}
