//! kubelet's part of a conversation: registration and the Node calls, over the real sockets.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::{Request, Status};

use crate::csi::pluginregistration::registration_client::RegistrationClient;
use crate::csi::pluginregistration::{InfoRequest, PluginInfo, RegistrationStatus};
use crate::csi::transport;
use crate::csi::v1::node_client::NodeClient;
use crate::csi::v1::volume_capability::access_mode::Mode;
use crate::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use crate::csi::v1::{
    NodeGetInfoRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeUnpublishVolumeRequest,
    VolumeCapability, VolumeCondition, VolumeUsage,
};
use crate::oci::digest::Digest;

/// A kubelet for one node: knows its directory, and dials a new connection for every call, as kubelet does.
#[derive(Debug, Clone)]
pub struct Kubelet {
    /// `/var/lib/kubelet` of this node.
    pub directory: PathBuf,
    /// The plugin's CSI socket.
    pub socket: PathBuf,
    /// Deadline of every call. kubelet's is two minutes.
    pub deadline: Duration,
}

/// A pod, as far as kubelet tells plugins of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID, and the name of its directory.
    pub uid: String,
    /// Its service account.
    pub service_account: String,
}

/// One volume of one pod.
#[derive(Debug, Clone)]
pub struct PodVolume {
    /// The volume's ID, as kubelet makes it for inline volumes.
    pub volume_id: String,
    /// Where it is published.
    pub target: PathBuf,
    /// The pod it is for.
    pub pod: Pod,
}

impl Pod {
    /// A pod of `namespace` with this UID, which is its name as well.
    pub fn new(namespace: &str, uid: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: uid.to_owned(),
            uid: uid.to_owned(),
            service_account: "default".to_owned(),
        }
    }

    /// What kubelet adds to the context of an inline volume of this pod, for a driver with `podInfoOnMount`.
    /// Source: kubelet v1.36, `getPodInfoAttrs` in pkg/volume/csi/csi_util.go.
    fn context(&self) -> [(&'static str, &str); 5] {
        [
            ("csi.storage.k8s.io/pod.name", &self.name),
            ("csi.storage.k8s.io/pod.namespace", &self.namespace),
            ("csi.storage.k8s.io/pod.uid", &self.uid),
            ("csi.storage.k8s.io/serviceAccount.name", &self.service_account),
            ("csi.storage.k8s.io/ephemeral", "true"),
        ]
    }
}

impl Kubelet {
    /// A kubelet whose directory is `directory`, and whose plugin serves at `socket`.
    pub fn new(directory: &Path, socket: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            socket: socket.to_owned(),
            deadline: Duration::from_secs(120),
        }
    }

    /// Does with a registration socket what kubelet does: asks, calls NodeGetInfo, and reports.
    ///
    /// # Errors
    /// When the plugin does not answer as it must.
    pub async fn register(&self, registration: &Path) -> Result<PluginInfo, Status> {
        let channel = transport::connect_by_path(registration)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let mut client = RegistrationClient::new(channel);
        let mut request = Request::new(InfoRequest {});
        request.set_timeout(Duration::from_secs(1));
        let info = client.get_info(request).await?.into_inner();
        self.node().await?.node_get_info(NodeGetInfoRequest {}).await?;
        let registered = RegistrationStatus { plugin_registered: true, error: String::new() };
        client.notify_registration_status(registered).await?;
        Ok(info)
    }

    /// Makes the directory in which the plugin will make the target of an inline volume of the pod with the UID `pod`, in
    /// the namespace `default`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn prepare(&self, pod: &str, volume: &str) -> std::io::Result<PodVolume> {
        self.prepare_for(&Pod::new("default", pod), volume)
    }

    /// The same for any pod.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn prepare_for(&self, pod: &Pod, volume: &str) -> std::io::Result<PodVolume> {
        let parent =
            self.directory.join("pods").join(&pod.uid).join("volumes/kubernetes.io~csi").join(volume);
        std::fs::create_dir_all(&parent)?;
        let id = Digest::sha256(format!("{}{volume}", pod.uid).as_bytes());
        let volume_id = format!("csi-{}", id.hex());
        Ok(PodVolume { volume_id, target: parent.join("mount"), pod: pod.clone() })
    }

    /// The request that kubelet makes for an inline volume.
    pub fn publish_request(
        &self,
        volume: &PodVolume,
        attributes: &[(&str, &str)],
        secrets: &[(&str, &str)],
    ) -> NodePublishVolumeRequest {
        let map = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let mut volume_context = map(attributes);
        // Whatever the pod's author wrote under these keys is overwritten.
        volume_context.extend(map(&volume.pod.context()));
        NodePublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            target_path: volume.target.to_string_lossy().into_owned(),
            volume_capability: Some(VolumeCapability {
                access_type: Some(AccessType::Mount(MountVolume::default())),
                access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
            }),
            readonly: true,
            secrets: map(secrets),
            volume_context,
            ..Default::default()
        }
    }

    /// Publishes.
    ///
    /// # Errors
    /// The plugin's status.
    pub async fn publish(&self, message: NodePublishVolumeRequest) -> Result<(), Status> {
        self.node().await?.node_publish_volume(self.timed(message)).await.map(drop)
    }

    /// Unpublishes, knowing no more than ID and path, as after kubelet's own restart.
    ///
    /// # Errors
    /// The plugin's status.
    pub async fn unpublish(&self, volume: &PodVolume) -> Result<(), Status> {
        let message = NodeUnpublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            target_path: volume.target.to_string_lossy().into_owned(),
        };
        self.node().await?.node_unpublish_volume(self.timed(message)).await.map(drop)
    }

    /// Asks how much a volume holds: bytes, then inodes.
    ///
    /// # Errors
    /// The plugin's status.
    pub async fn stats(&self, volume: &PodVolume) -> Result<Vec<VolumeUsage>, Status> {
        let message = NodeGetVolumeStatsRequest {
            volume_id: volume.volume_id.clone(),
            volume_path: volume.target.to_string_lossy().into_owned(),
            ..Default::default()
        };
        Ok(self.node().await?.node_get_volume_stats(self.timed(message)).await?.into_inner().usage)
    }

    /// What kubelet is told of the condition of a volume.
    ///
    /// # Errors
    /// The plugin's answer.
    pub async fn condition(&self, volume: &PodVolume) -> Result<VolumeCondition, Status> {
        let message = NodeGetVolumeStatsRequest {
            volume_id: volume.volume_id.clone(),
            volume_path: volume.target.to_string_lossy().into_owned(),
            ..Default::default()
        };
        let stats = self.node().await?.node_get_volume_stats(self.timed(message)).await?.into_inner();
        stats.volume_condition.ok_or_else(|| Status::internal("no condition"))
    }

    /// A new connection to the Node service.
    ///
    /// # Errors
    /// `UNAVAILABLE` when nobody listens.
    pub async fn node(&self) -> Result<NodeClient<tonic::transport::Channel>, Status> {
        let channel = transport::connect(&self.socket).await;
        channel.map(NodeClient::new).map_err(|error| Status::unavailable(error.to_string()))
    }

    fn timed<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline);
        request
    }
}
